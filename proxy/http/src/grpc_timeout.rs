//! `grpc-timeout`: a gRPC client's deadline.

use crate::headers::HeaderValue;
use std::time::Duration;

/// Up to 8 digits and a unit; None for what is malformed.
pub fn parse(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        // Envoy rounds up to whole milliseconds.
        "u" => Duration::from_millis(n.div_ceil(1000)),
        "n" => Duration::from_millis(n.div_ceil(1_000_000)),
        _ => return None,
    })
}

/// A `grpc-timeout` in the finest unit in which its number has at most eight digits.
pub fn value(d: Duration) -> HeaderValue {
    const UNITS: [(u64, char); 4] = [(1, 'm'), (1000, 'S'), (60_000, 'M'), (3_600_000, 'H')];
    let ms = d.as_millis() as u64;
    let (number, unit) = UNITS
        .iter()
        .map(|(factor, unit)| (ms / factor, *unit))
        .find(|(n, _)| *n <= 99_999_999)
        .unwrap_or((99_999_999, 'H'));
    HeaderValue::parse(format!("{number}{unit}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_written_with_at_most_eight_digits() {
        assert_eq!(value(Duration::from_millis(700)).as_bytes(), b"700m");
        assert_eq!(value(Duration::from_secs(99_999_999)).as_bytes(), b"99999999S");
        assert_eq!(value(Duration::ZERO).as_bytes(), b"0m");
    }

    #[test]
    fn there_are_six_units() {
        assert_eq!(parse("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse("1500u"), Some(Duration::from_millis(2)));
        assert_eq!(parse("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse("123456789m"), None);
        assert_eq!(parse("5"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn long_grpc_timeouts_are_told_in_coarser_units() {
        let text = |ms| value(Duration::from_millis(ms)).to_str().unwrap().to_owned();
        assert_eq!((text(1), text(99_999_999), text(100_000_000)), ("1m".into(), "99999999m".into(), "100000S".into()));
    }
}
