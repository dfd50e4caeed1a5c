//! Scalars of proto3 JSON and the well-known types that are written as strings, as leniently as protobuf's reader.
//!
//! Every function takes a leaf of the tree and gives the value or a message that says what was expected and found.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost_reflect::{Kind, MapKey, Value};

use super::tree::{NodeId, Scalar, Tree, View};

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);

/// The largest magnitude of a duration in seconds.
const MAX_DURATION_SECONDS: i64 = 3_652_500 * 86_400;

/// What stands at the node, for an error.
pub(super) fn describe(tree: &Tree<'_>, node: NodeId) -> String {
    let text = tree.text(node).unwrap_or_default();
    match tree.view(node) {
        View::Scalar(Scalar::Null) => "null".to_owned(),
        View::Scalar(Scalar::Bool(_)) => format!("the boolean {text}"),
        View::Scalar(Scalar::Int(_) | Scalar::Number(_)) => format!("the number {text}"),
        View::Scalar(Scalar::Str(text)) => format!("'{text}'"),
        View::Sequence(_) => "a list".to_owned(),
        View::Mapping(_) => "a mapping".to_owned(),
    }
}

/// A scalar of `kind`; enums and messages are not scalars.
pub(super) fn scalar(tree: &Tree<'_>, node: NodeId, kind: &Kind) -> Result<Value, String> {
    match kind {
        Kind::String => string(tree, node).map(Value::String),
        Kind::Bytes => {
            let text = string(tree, node)?;
            let standard = text.replace('-', "+").replace('_', "/");
            match STANDARD.decode(&standard) {
                Ok(bytes) => Ok(Value::Bytes(bytes.into())),
                Err(_) => Err("expected bytes in base64: corrupt base64".to_owned()),
            }
        }
        Kind::Bool => boolean(tree, node).map(Value::Bool),
        Kind::Double => float(tree, node).map(Value::F64),
        Kind::Float => {
            let value = float(tree, node)?;
            #[allow(clippy::cast_possible_truncation)] // The loss is the point of a 32-bit float.
            let narrow = value as f32;
            if value.is_finite() && !narrow.is_finite() {
                return Err(format!("float out of range: {}", describe(tree, node)));
            }
            Ok(Value::F32(narrow))
        }
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => narrow(tree, node).map(Value::I32),
        Kind::Uint32 | Kind::Fixed32 => narrow(tree, node).map(Value::U32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => narrow(tree, node).map(Value::I64),
        Kind::Uint64 | Kind::Fixed64 => narrow(tree, node).map(Value::U64),
        Kind::Message(_) | Kind::Enum(_) => Err("expected a scalar".to_owned()),
    }
}

fn string(tree: &Tree<'_>, node: NodeId) -> Result<String, String> {
    match tree.view(node) {
        View::Scalar(Scalar::Str(text)) => Ok(text.into_owned()),
        View::Scalar(Scalar::Bool(_) | Scalar::Int(_) | Scalar::Number(_)) => {
            let text = tree.text(node).unwrap_or_default();
            Err(format!("expected a string, found {} (write it in quotes: \"{text}\")", describe(tree, node)))
        }
        _ => Err(format!("expected a string, found {}", describe(tree, node))),
    }
}

fn boolean(tree: &Tree<'_>, node: NodeId) -> Result<bool, String> {
    let word = match tree.view(node) {
        View::Scalar(Scalar::Bool(value)) => return Ok(value),
        View::Scalar(Scalar::Str(text)) => text.to_ascii_lowercase(),
        _ => String::new(),
    };
    match word.as_str() {
        "true" | "t" | "yes" | "y" | "1" => Ok(true),
        "false" | "f" | "no" | "n" | "0" => Ok(false),
        _ => Err(format!("expected 'true' or 'false', found {}", describe(tree, node))),
    }
}

fn float(tree: &Tree<'_>, node: NodeId) -> Result<f64, String> {
    let fail = || format!("expected a number, found {}", describe(tree, node));
    match tree.view(node) {
        #[allow(clippy::cast_precision_loss)] // 32 bits fit.
        View::Scalar(Scalar::Int(value)) => Ok(value as f64),
        View::Scalar(Scalar::Number(text)) => text.parse().map_err(|_| fail()),
        View::Scalar(Scalar::Str(text)) => {
            text.trim_matches(|c: char| c.is_ascii_whitespace()).parse().map_err(|_| fail())
        }
        _ => Err(fail()),
    }
}

/// An integer that fits `T`; also one that is written with an exponent or a fraction of zero, or in quotes.
fn narrow<T: TryFrom<i128>>(tree: &Tree<'_>, node: NodeId) -> Result<T, String> {
    let value = match tree.view(node) {
        View::Scalar(Scalar::Int(value)) => Some(i128::from(value)),
        View::Scalar(Scalar::Number(text)) => whole(text),
        View::Scalar(Scalar::Str(text)) => whole(&text),
        _ => None,
    };
    let Some(value) = value else {
        return Err(format!("expected an integer, found {}", describe(tree, node)));
    };
    T::try_from(value).map_err(|_| format!("integer out of range: {}", describe(tree, node)))
}

fn whole(text: &str) -> Option<i128> {
    if let Ok(value) = text.parse() {
        return Some(value);
    }
    // What double can hold without a gap, times two: protobuf's own limit.
    let value: f64 = text.parse().ok()?;
    #[allow(clippy::cast_possible_truncation)] // Checked against the limit just before.
    (value.fract() == 0.0 && value.abs() <= 18_014_398_509_481_984.0).then_some(value as i128)
}

/// A map key, which JSON always writes as a string.
pub(super) fn map_key(text: &str, kind: &Kind) -> Result<MapKey, String> {
    fn parse<T: std::str::FromStr>(text: &str) -> Result<T, String> {
        text.parse().map_err(|_| format!("expected an integer as key, found '{text}'"))
    }
    match kind {
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => parse(text).map(MapKey::I32),
        Kind::Uint32 | Kind::Fixed32 => parse(text).map(MapKey::U32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => parse(text).map(MapKey::I64),
        Kind::Uint64 | Kind::Fixed64 => parse(text).map(MapKey::U64),
        Kind::Bool => text.parse().map(MapKey::Bool).map_err(|_| format!("expected bool string, got '{text}'")),
        _ => Ok(MapKey::String(text.to_owned())),
    }
}

/// Seconds and nanoseconds of a duration such as `1s` or `-0.25s`.
pub(super) fn duration(tree: &Tree<'_>, node: NodeId) -> Result<(i64, i32), String> {
    let View::Scalar(Scalar::Str(text)) = tree.view(node) else {
        return Err(format!("expected a duration such as \"1s\" or \"0.25s\", found {}", describe(tree, node)));
    };
    let bad = |what: &str| format!("{what}: '{text}'; a duration is written like \"1s\" or \"0.25s\"");
    let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'-').count();
    if digits == 0 {
        return Err(bad("duration must start with an integer"));
    }
    let (whole, rest) = text.split_at(digits);
    let seconds: i64 = whole.parse().map_err(|_| bad("duration had bad seconds"))?;
    if !(-MAX_DURATION_SECONDS..=MAX_DURATION_SECONDS).contains(&seconds) {
        return Err(bad("duration out of range"));
    }
    let (nanos, rest) = nanos(rest).ok_or_else(|| bad("duration had bad nanoseconds"))?;
    if rest != "s" {
        return Err(bad("duration must end with a single 's'"));
    }
    Ok((seconds, if whole.starts_with('-') { -nanos } else { nanos }))
}

/// The nanoseconds of a fraction `.25` at the start of `text`, and what follows; zero without a fraction.
fn nanos(text: &str) -> Option<(i32, &str)> {
    let Some(fraction) = text.strip_prefix('.') else { return Some((0, text)) };
    let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 || digits > 9 {
        return None;
    }
    let value: i32 = fraction[..digits].parse().ok()?;
    Some((value * 10_i32.pow(9 - u32::try_from(digits).ok()?), &fraction[digits..]))
}

/// Seconds since the epoch and nanoseconds of an RFC 3339 time.
pub(super) fn timestamp(tree: &Tree<'_>, node: NodeId) -> Result<(i64, i32), String> {
    let fail = || format!("expected a time such as \"2026-01-31T12:00:00Z\", found {}", describe(tree, node));
    let View::Scalar(Scalar::Str(text)) = tree.view(node) else { return Err(fail()) };
    parse_timestamp(&text).ok_or_else(fail)
}

fn parse_timestamp(text: &str) -> Option<(i64, i32)> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let is = |at: usize, byte: u8| text.as_bytes().get(at) == Some(&byte);
    if !(is(4, b'-') && is(7, b'-') && is(10, b'T') && is(13, b':') && is(16, b':')) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if year == 0 || !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (nanos, zone) = nanos(text.get(19..)?)?;
    let offset = match zone.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let at = text.len() - zone.len();
            let minutes = number(at + 1..at + 3)? * 60 + number(at + 4..at + 6)?;
            if *sign == b'+' { -minutes * 60 } else { minutes * 60 }
        }
        _ => return None,
    };
    // Days since the epoch in the proleptic Gregorian calendar, with years that begin in March.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some((days * 86_400 + hour * 3600 + minute * 60 + second + offset, nanos))
}

/// The paths of a field mask, which JSON writes as `a.b,cD`.
pub(super) fn field_mask(tree: &Tree<'_>, node: NodeId) -> Result<Vec<String>, String> {
    let text = string(tree, node)?;
    Ok(text.split(',').filter(|path| !path.is_empty()).map(snake_case).collect())
}

fn snake_case(path: &str) -> String {
    let mut snake = String::with_capacity(path.len() + 4);
    for character in path.chars() {
        if character.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(character.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::super::{json, yaml};
    use super::*;

    fn yaml_scalar(text: &str, kind: &Kind) -> Result<Value, String> {
        let tree = yaml::read(text, 0).unwrap();
        scalar(&tree, tree.root, kind)
    }

    #[test]
    fn numbers_and_booleans_may_stand_in_quotes() {
        assert_eq!(yaml_scalar("\"5\"", &Kind::Uint32), Ok(Value::U32(5)));
        assert_eq!(yaml_scalar("1e3", &Kind::Uint32), Ok(Value::U32(1000)));
        assert_eq!(yaml_scalar("0x10", &Kind::Int64), Ok(Value::I64(16)));
        assert_eq!(yaml_scalar("18446744073709551615", &Kind::Uint64), Ok(Value::U64(u64::MAX)));
        assert_eq!(yaml_scalar(".5", &Kind::Double), Ok(Value::F64(0.5)));
        assert_eq!(yaml_scalar("'yes'", &Kind::Bool), Ok(Value::Bool(true)));
        assert_eq!(yaml_scalar("off", &Kind::Bool), Ok(Value::Bool(false)));
        assert_eq!(yaml_scalar("aGk", &Kind::Bytes), Ok(Value::Bytes("hi".into())));
    }

    #[test]
    fn what_does_not_fit_says_what_was_found() {
        let error = |text: &str, kind: &Kind| yaml_scalar(text, kind).unwrap_err();
        assert_eq!(error("y", &Kind::String), "expected a string, found the boolean y (write it in quotes: \"y\")");
        assert_eq!(error("5000000000", &Kind::Uint32), "integer out of range: '5000000000'");
        assert_eq!(error("-1", &Kind::Uint64), "integer out of range: the number -1");
        assert_eq!(error("1.5", &Kind::Int32), "expected an integer, found '1.5'");
        assert_eq!(error("1", &Kind::Bool), "expected 'true' or 'false', found the number 1");
        assert_eq!(error("{}", &Kind::Double), "expected a number, found a mapping");
        assert_eq!(error("'%'", &Kind::Bytes), "expected bytes in base64: corrupt base64");
    }

    #[test]
    fn durations_and_times_are_read_as_protobuf_reads_them() {
        let read = |text: &str| {
            let text = format!("\"{text}\"");
            let tree = json::read(&text, 0).unwrap();
            duration(&tree, tree.root)
        };
        assert_eq!(read("1s"), Ok((1, 0)));
        assert_eq!(read("-0.25s"), Ok((0, -250_000_000)));
        for bad in ["1", "1ms", "s", ".5s", "1.s", "1.0000000001s", "400000000000s", "1-s"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_timestamp("1970-01-01T00:00:00Z"), Some((0, 0)));
        assert_eq!(parse_timestamp("2026-11-23T01:02:03.5+01:00"), Some((1_795_392_123, 500_000_000)));
        assert_eq!(parse_timestamp("2000-02-29T00:00:00-00:30"), Some((951_784_200, 0)));
        for bad in ["2026-11-23", "2026-13-01T00:00:00Z", "2026-11-23T01:02:03", "2026-11-23T01:02:03z"] {
            assert_eq!(parse_timestamp(bad), None, "{bad}");
        }
    }
}
