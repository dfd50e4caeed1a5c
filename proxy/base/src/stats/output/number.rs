//! Floating-point numbers as Envoy's three formatters write them.

/// `%g` of C with `precision` significant digits, exact: trailing zeros cut, an exponent (of at least two digits) below 1e-4
/// and from `precision` digits on; `nan` and `inf` for what is no number.
pub fn general(value: f64, precision: usize) -> String {
    if let Some(text) = special(value) {
        return text.to_owned();
    }
    let scientific = format!("{value:.*e}", precision - 1);
    let (mantissa, exponent) = split(&scientific);
    if exponent < -4 || exponent >= precision as i32 {
        return join(trim(mantissa), exponent);
    }
    let decimals = (precision as i32 - 1 - exponent) as usize;
    trim(&format!("{value:.decimals$}")).to_owned()
}

/// The shortest digits that read back as `value`; with an exponent below 1e-4 and from 1e16.
pub(super) fn shortest(value: f64) -> String {
    if let Some(text) = special(value) {
        return text.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = split(&scientific);
    if (-4..16).contains(&exponent) { format!("{value}") } else { join(mantissa, exponent) }
}

/// The shortest text that reads back as `value`, with an exponent only if that is shorter; `null` for NaN. For JSON.
pub(super) fn json(value: f64) -> String {
    if !value.is_finite() {
        return "null".to_owned();
    }
    let fixed = format!("{value}");
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = split(&scientific);
    let scientific = join(mantissa, exponent);
    if scientific.len() < fixed.len() { scientific } else { fixed }
}

fn special(value: f64) -> Option<&'static str> {
    if value.is_nan() {
        Some("nan")
    } else if value.is_infinite() {
        Some(if value > 0.0 { "inf" } else { "-inf" })
    } else if value == 0.0 {
        Some("0")
    } else {
        None
    }
}

fn split(scientific: &str) -> (&str, i32) {
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    (mantissa, exponent.parse().unwrap_or(0))
}

fn join(mantissa: &str, exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

fn trim(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_envoy_writes_them() {
        assert_eq!(general(1_800_000.0, 6), "1.8e+06");
        assert_eq!(general(600_000.0, 6), "600000");
        assert_eq!(general(0.1, 6), "0.1");
        assert_eq!(general(0.5, 32), "0.5");
        assert_eq!(general(3_600_000.0, 32), "3600000");
        assert_eq!(general(12.48, 32), "12.48000000000000042632564145606");
        assert_eq!(general(f64::NAN, 32), "nan");
        assert_eq!(shortest(1.0333333333333334), "1.0333333333333334");
        assert_eq!(shortest(1585.7142857142858), "1585.7142857142858");
        assert_eq!(shortest(305_000.0), "305000");
        assert_eq!(shortest(1e16), "1e+16");
        assert_eq!(json(300_000.0), "3e+05");
        assert_eq!(json(1_800_000.0), "1800000");
        assert_eq!(json(30_000.0), "30000");
        assert_eq!(json(0.1), "0.1");
        assert_eq!(json(0.0), "0");
        assert_eq!(json(f64::NAN), "null");
    }
}
