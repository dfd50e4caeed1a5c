//! Scalars of proto3 JSON and the well-known types that are written as strings, as leniently as protobuf's reader.
//!
//! Every function takes a leaf of the tree and gives the value or a message that says what was expected and found.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::encoding;
use prost_reflect::Kind;

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

/// Writes the scalar at the node as field `number`; enums and messages are not scalars.
pub(super) fn encode(tree: &Tree<'_>, node: NodeId, number: u32, kind: &Kind, out: &mut Vec<u8>) -> Result<(), String> {
    match kind {
        Kind::String => encoding::string::encode(number, &string(tree, node)?, out),
        Kind::Bytes => encoding::bytes::encode(number, &bytes(tree, node)?, out),
        Kind::Bool => encoding::bool::encode(number, &boolean(tree, node)?, out),
        Kind::Double => encoding::double::encode(number, &double(tree, node)?, out),
        Kind::Float => encoding::float::encode(number, &float(tree, node)?, out),
        Kind::Int32 => encoding::int32::encode(number, &integer(tree, node)?, out),
        Kind::Sint32 => encoding::sint32::encode(number, &integer(tree, node)?, out),
        Kind::Sfixed32 => encoding::sfixed32::encode(number, &integer(tree, node)?, out),
        Kind::Uint32 => encoding::uint32::encode(number, &integer(tree, node)?, out),
        Kind::Fixed32 => encoding::fixed32::encode(number, &integer(tree, node)?, out),
        Kind::Int64 => encoding::int64::encode(number, &integer(tree, node)?, out),
        Kind::Sint64 => encoding::sint64::encode(number, &integer(tree, node)?, out),
        Kind::Sfixed64 => encoding::sfixed64::encode(number, &integer(tree, node)?, out),
        Kind::Uint64 => encoding::uint64::encode(number, &integer(tree, node)?, out),
        Kind::Fixed64 => encoding::fixed64::encode(number, &integer(tree, node)?, out),
        Kind::Message(_) | Kind::Enum(_) => return Err("expected a scalar".to_owned()),
    }
    Ok(())
}

/// Writes the default of a type as field `number`.
pub(super) fn encode_default(number: u32, kind: &Kind, out: &mut Vec<u8>) {
    encoding::encode_key(number, kind.wire_type(), out);
    let length = match kind.wire_type() {
        encoding::WireType::SixtyFourBit => 8,
        encoding::WireType::ThirtyTwoBit => 4,
        _ => 1,
    };
    out.resize(out.len() + length, 0);
}

/// The number of an enum value.
pub(super) fn int32(tree: &Tree<'_>, node: NodeId) -> Result<i32, String> {
    integer(tree, node)
}

fn bytes(tree: &Tree<'_>, node: NodeId) -> Result<Vec<u8>, String> {
    let text = string(tree, node)?.replace('-', "+").replace('_', "/");
    STANDARD.decode(&text).map_err(|_| "expected bytes in base64: corrupt base64".to_owned())
}

fn float(tree: &Tree<'_>, node: NodeId) -> Result<f32, String> {
    let value = double(tree, node)?;
    #[allow(clippy::cast_possible_truncation)] // The loss is the point of a 32-bit float.
    let narrow = value as f32;
    if value.is_finite() && !narrow.is_finite() {
        return Err(format!("float out of range: {}", describe(tree, node)));
    }
    Ok(narrow)
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

fn double(tree: &Tree<'_>, node: NodeId) -> Result<f64, String> {
    let fail = || format!("expected a number, found {}", describe(tree, node));
    match tree.view(node) {
        #[allow(clippy::cast_precision_loss)] // 32 bits fit.
        View::Scalar(Scalar::Int(value)) => Ok(value as f64),
        View::Scalar(Scalar::Number(text)) => text.parse().map_err(|_| fail()),
        View::Scalar(Scalar::Str(text)) => {
            let text = text.trim_matches(|c: char| c.is_ascii_whitespace());
            text.parse().ok().or_else(|| hexadecimal(text)).ok_or_else(fail)
        }
        _ => Err(fail()),
    }
}

/// An integer that fits `T`; also one that is written with an exponent or a fraction of zero, or in quotes.
fn integer<T: TryFrom<i128>>(tree: &Tree<'_>, node: NodeId) -> Result<T, String> {
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
    let value: f64 = text.parse().ok().or_else(|| hexadecimal(text))?;
    #[allow(clippy::cast_possible_truncation)] // Checked against the limit just before.
    (value.fract() == 0.0 && value.abs() <= 18_014_398_509_481_984.0).then_some(value as i128)
}

/// A number as C writes it in hexadecimal, such as `0x10` and `-0x1.8p3`; protobuf reads it where a number is in quotes.
fn hexadecimal(text: &str) -> Option<f64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    let digits = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"))?;
    let (mantissa, exponent) = digits.split_once(['p', 'P']).unwrap_or((digits, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let value = whole.chars().chain(fraction.chars()).try_fold(0.0, |value: f64, digit| {
        let digit = digit.to_digit(16)?;
        Some(value.mul_add(16.0, f64::from(digit)))
    })?;
    let exponent: i32 = exponent.parse().ok()?;
    let places = i32::try_from(fraction.len()).ok()?.checked_mul(4)?;
    Some(sign * value * f64::from(exponent.checked_sub(places)?).exp2())
}

/// Writes a map key, which JSON always has as a string, as field 1.
pub(super) fn encode_map_key(text: &str, kind: &Kind, out: &mut Vec<u8>) -> Result<(), String> {
    fn parse<T: std::str::FromStr>(text: &str) -> Result<T, String> {
        text.parse().map_err(|_| format!("expected an integer as key, found '{text}'"))
    }
    match kind {
        Kind::Int32 => encoding::int32::encode(1, &parse(text)?, out),
        Kind::Sint32 => encoding::sint32::encode(1, &parse(text)?, out),
        Kind::Sfixed32 => encoding::sfixed32::encode(1, &parse(text)?, out),
        Kind::Uint32 => encoding::uint32::encode(1, &parse(text)?, out),
        Kind::Fixed32 => encoding::fixed32::encode(1, &parse(text)?, out),
        Kind::Int64 => encoding::int64::encode(1, &parse(text)?, out),
        Kind::Sint64 => encoding::sint64::encode(1, &parse(text)?, out),
        Kind::Sfixed64 => encoding::sfixed64::encode(1, &parse(text)?, out),
        Kind::Uint64 => encoding::uint64::encode(1, &parse(text)?, out),
        Kind::Fixed64 => encoding::fixed64::encode(1, &parse(text)?, out),
        Kind::Bool => {
            let key = text.parse().map_err(|_| format!("expected bool string, got '{text}'"))?;
            encoding::bool::encode(1, &key, out);
        }
        _ => encoding::string::encode(1, &text.to_owned(), out),
    }
    Ok(())
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

    fn yaml<T>(text: &str, read: impl Fn(&Tree<'_>, NodeId) -> T) -> T {
        let tree = yaml::read(text, 0).unwrap();
        read(&tree, tree.root)
    }

    #[test]
    fn numbers_and_booleans_may_stand_in_quotes() {
        assert_eq!(yaml("\"5\"", integer::<u32>), Ok(5));
        assert_eq!(yaml("1e3", integer::<u32>), Ok(1000));
        assert_eq!(yaml("0x10", integer::<i64>), Ok(16));
        assert_eq!(yaml("'0x10'", integer::<i64>), Ok(16));
        assert_eq!(yaml("'-0X1F'", integer::<i64>), Ok(-31));
        assert_eq!(yaml("'0x1.8p1'", integer::<u32>), Ok(3));
        assert_eq!(yaml("' 0x1.8'", double), Ok(1.5));
        for bad in ["'0x'", "'0xg'", "'0x1p'", "'0x-1'", "'x10'", "'0x1.8'"] {
            assert!(yaml(bad, integer::<i64>).is_err(), "{bad}");
        }
        assert_eq!(yaml("18446744073709551615", integer::<u64>), Ok(u64::MAX));
        assert_eq!(yaml(".5", double), Ok(0.5));
        assert_eq!(yaml("'yes'", boolean), Ok(true));
        assert_eq!(yaml("off", boolean), Ok(false));
        assert_eq!(yaml("aGk", bytes), Ok(b"hi".to_vec()));
    }

    #[test]
    fn what_does_not_fit_says_what_was_found() {
        assert_eq!(
            yaml("y", string).unwrap_err(),
            "expected a string, found the boolean y (write it in quotes: \"y\")"
        );
        assert_eq!(yaml("5000000000", integer::<u32>).unwrap_err(), "integer out of range: '5000000000'");
        assert_eq!(yaml("-1", integer::<u64>).unwrap_err(), "integer out of range: the number -1");
        assert_eq!(yaml("1.5", integer::<i32>).unwrap_err(), "expected an integer, found '1.5'");
        assert_eq!(yaml("1", boolean).unwrap_err(), "expected 'true' or 'false', found the number 1");
        assert_eq!(yaml("{}", double).unwrap_err(), "expected a number, found a mapping");
        assert_eq!(yaml("'%'", bytes).unwrap_err(), "expected bytes in base64: corrupt base64");
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
