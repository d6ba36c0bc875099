//! Numbers as people read them, in verdicts: `4.1 % (41 of 1,000)`.

use std::time::Duration;

/// Digits of a number that count.
const DIGITS: i32 = 3;
const DIGITS_OF_P: i32 = 2;
/// Below it a probability is written by its power of ten.
const P_PLAIN_MIN: f64 = 1e-4;

/// `4.1 % (41 of 1,000)`
pub fn share(hits: u64, of: u64) -> String {
    match of {
        0 => "unknown (0 of 0)".to_owned(),
        of => format!("{} ({} of {})", percent(hits as f64 / of as f64), count(hits), count(of)),
    }
}

/// `4.1 %`
pub fn percent(share: f64) -> String {
    format!("{} %", number(100.0 * share))
}

/// `12,345`
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let groups: Vec<&str> = {
        let first = digits.len() % 3;
        let (head, tail) = digits.split_at(first);
        let tail = (0..tail.len() / 3).map(|place| &tail[3 * place..3 * place + 3]);
        Some(head).filter(|head| !head.is_empty()).into_iter().chain(tail).collect()
    };
    groups.join(",")
}

/// Three digits, or all before the point: `0.0123`, `1235`.
pub fn number(number: f64) -> String {
    rounded(number, DIGITS)
}

/// `0.0083`, `3e-12`
pub fn p_value(p: f64) -> String {
    match p >= P_PLAIN_MIN || p == 0.0 {
        true => rounded(p, DIGITS_OF_P),
        false => format!("{p:.0e}"),
    }
}

/// `12.3 ms`
pub fn seconds(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 1e-3 => format!("{} µs", number(1e6 * seconds)),
        seconds if seconds < 1.0 => format!("{} ms", number(1e3 * seconds)),
        seconds => format!("{} s", number(seconds)),
    }
}

/// `12m 5s`
pub fn time(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

fn rounded(number: f64, digits: i32) -> String {
    if number == 0.0 || !number.is_finite() {
        return number.abs().to_string();
    }
    let decimals = (digits - 1 - number.abs().log10().floor() as i32).max(0);
    let text = format!("{number:.*}", decimals as usize);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_read_well() {
        assert_eq!(share(41, 1_000), "4.1 % (41 of 1,000)");
        assert_eq!(share(0, 0), "unknown (0 of 0)");
        assert_eq!([0, 7, 999, 1_000, 1_234_567].map(count), ["0", "7", "999", "1,000", "1,234,567"]);
        assert_eq!([0.0, 1.0, -0.012_345, 1_234.6, 5.0, 99.99].map(number), ["0", "1", "-0.0123", "1235", "5", "100"]);
        assert_eq!([1.0, 0.05 / 6.0, 0.000_3, 3.2e-12, 0.0].map(p_value), ["1", "0.0083", "0.0003", "3e-12", "0"]);
        assert_eq!([5e-6, 0.0123, 2.5].map(seconds), ["5 µs", "12.3 ms", "2.5 s"]);
        assert_eq!(time(Duration::from_millis(725_400)), "12m 5s");
        assert_eq!(number(f64::INFINITY), "inf");
    }
}
