//! Columns for people.

use crate::telemetry::logs::escape;

/// Left-aligned columns under their headings, two spaces apart. Cells may hold anything: control characters are escaped.
pub fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let headings = headings.map(str::to_string);
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| escape(cell))).collect();
    let lines = || std::iter::once(&headings).chain(&rows);
    let widths: [usize; N] =
        std::array::from_fn(|column| lines().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in lines() {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["early".into(), "1.0".into()], ["é\u{1b}".into(), String::new()]];
        assert_eq!(table(["MODEL", "V"], &rows), "MODEL    V\nearly    1.0\né\\u001b\n");
    }
}
