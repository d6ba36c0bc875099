//! `grpc-timeout`, read by us: the library ignores a malformed one and answers an expired one with CANCELLED.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};

use crate::error::{Error, Result};

static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The moment after which the caller no longer waits. INVALID_ARGUMENT where the header is not what gRPC says,
/// DEADLINE_EXCEEDED where there was no time from the start.
pub fn deadline(headers: &HeaderMap, now: Instant) -> Result<Option<Instant>> {
    let Some(value) = headers.get(&GRPC_TIMEOUT) else {
        return Ok(None);
    };
    let timeout = value.to_str().ok().and_then(parse).ok_or_else(|| {
        Error::invalid("INVALID_TIMEOUT", "grpc-timeout is one to eight digits and one of H, M, S, m, u, n")
    })?;
    if timeout.is_zero() {
        return Err(Error::deadline_exceeded("before the request arrived"));
    }
    // A moment beyond the clock's end is no deadline.
    Ok(now.checked_add(timeout))
}

fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_grpc() {
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for malformed in ["", "m", "1", "-1S", "+1S", "1.5S", "123456789S", "1s", "1 S", "١S", "1é"] {
            assert_eq!(parse(malformed), None, "{malformed:?} passed");
        }
    }

    #[test]
    fn no_time_is_an_expired_deadline() {
        let mut headers = HeaderMap::new();
        let now = Instant::now();
        assert_eq!(deadline(&headers, now).expect("none"), None);
        headers.insert("grpc-timeout", "0n".parse().expect("a value"));
        assert_eq!(deadline(&headers, now).expect_err("expired").reason(), "DEADLINE_EXCEEDED");
        headers.insert("grpc-timeout", "soon".parse().expect("a value"));
        assert_eq!(deadline(&headers, now).expect_err("malformed").reason(), "INVALID_TIMEOUT");
    }
}
