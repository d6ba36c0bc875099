//! A native library's message, made fit for a caller: one short line without paths, pointers or values.
//!
//! The backends put it into their errors; the full text goes to the log alone.

const CHARS_MAX: usize = 200;

/// `text` on one line, its paths, addresses and offending indices masked, at most 200 characters.
pub fn shortened(text: &str) -> String {
    let mut short = String::new();
    for word in text.split_whitespace() {
        let masked = masked(word);
        if masked.is_empty() || (masked == "…" && short.ends_with('…')) {
            continue;
        }
        if !short.is_empty() {
            short.push(' ');
        }
        if short.chars().count() + masked.chars().count() > CHARS_MAX {
            short.push('…');
            break;
        }
        short.push_str(&masked);
    }
    short
}

fn masked(word: &str) -> String {
    let bare = word.trim_matches(|c: char| !c.is_alphanumeric() && !"/._~".contains(c));
    if bare.starts_with("0x") || bare.contains('/') {
        return "…".into();
    }
    // C++ signatures say where in the library it happened, which helps nobody outside it.
    if word.contains("::") {
        return String::new();
    }
    match word.split_once('=') {
        Some((name, value)) if value.starts_with(|c: char| c.is_ascii_digit() || c == '-') => format!("{name}=…"),
        _ => word.chars().filter(|c| !c.is_control()).take(CHARS_MAX / 2).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_addresses_and_values_are_masked() {
        let long = "Load model from /tmp/a1/model.onnx failed: /src/core/graph.cc:12 onnxruntime::Graph::Resolve()\n at 0x7f00 idx=77, bad";
        assert_eq!(shortened(long), "Load model from … failed: … at … idx=… bad");
    }

    #[test]
    fn the_length_is_bounded() {
        assert!(shortened(&"word ".repeat(1000)).chars().count() <= CHARS_MAX + 2);
        assert!(shortened(&"w".repeat(100_000)).chars().count() <= CHARS_MAX + 2);
        assert_eq!(shortened("  \n"), "");
    }
}
