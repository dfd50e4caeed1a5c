//! Times in formats: ISO 8601 by default, or a strftime format with Envoy's additions (`%s`, `%f`, `%3f`, `%E3S`).

use std::cell::RefCell;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::FormatError;

/// A compiled time format.
#[derive(Debug, Clone)]
pub(super) struct TimeFormat {
    /// None: `2026-11-23T01:44:54.707Z`.
    items: Option<Box<[Item]>>,
    local: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Literal(Box<str>),
    /// `%s`
    EpochSeconds,
    /// `%f`, `%3f`: fraction of a second with so many digits.
    Fraction(u8),
    /// `%E3S`: seconds with so many digits; `%E*S` with as many as needed.
    Seconds(Option<u8>),
    /// Anything of strftime, with its padding flag.
    Field(u8, Pad),
    /// `%Ez`: `+00:00`.
    OffsetWithColon,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pad {
    Default,
    None,
    Space,
    Zero,
}

/// A moment split into fields.
struct Fields {
    epoch: i64,
    nanos: u32,
    year: i64,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    /// 0 is Sunday.
    weekday: u32,
    /// From 1.
    yearday: u32,
    /// Seconds east of UTC.
    offset: i32,
    zone: Option<String>,
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

thread_local! {
    /// The default format up to the seconds, of the second formatted last.
    static CACHE: RefCell<(i64, Vec<u8>)> = const { RefCell::new((i64::MIN, Vec::new())) };
}

impl TimeFormat {
    /// Compiles; an empty format is the default one. A newline is refused, since the result may become a header.
    pub(super) fn new(format: &str, local: bool) -> Result<Self, FormatError> {
        if format.is_empty() {
            return Ok(Self { items: None, local });
        }
        let items = parse(format)
            .ok_or_else(|| FormatError("Invalid header configuration. Format string contains newline.".into()))?;
        Ok(Self { items: Some(items.into()), local })
    }

    /// Appends the time.
    pub(super) fn write(&self, time: SystemTime, out: &mut Vec<u8>) {
        let (epoch, nanos) = split(time);
        match &self.items {
            None if !self.local => iso(epoch, nanos, out),
            None => {
                let fields = Fields::new(epoch, nanos, true);
                write_iso_date(&fields, out);
                // Writing to a buffer cannot fail, here and below.
                drop(write!(out, ".{:03}", nanos / 1_000_000));
                write_offset(fields.offset, "", out);
            }
            Some(items) => {
                let fields = Fields::new(epoch, nanos, self.local);
                items.iter().for_each(|item| write_item(item, &fields, out));
            }
        }
    }
}

fn split(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (since.as_secs() as i64, since.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            match before.subsec_nanos() {
                0 => (-(before.as_secs() as i64), 0),
                nanos => (-(before.as_secs() as i64) - 1, 1_000_000_000 - nanos),
            }
        }
    }
}

/// The default format; all but the milliseconds is the same for a whole second.
fn iso(epoch: i64, nanos: u32, out: &mut Vec<u8>) {
    CACHE.with_borrow_mut(|(cached, text)| {
        if *cached != epoch {
            *cached = epoch;
            text.clear();
            write_iso_date(&Fields::new(epoch, 0, false), text);
        }
        out.extend_from_slice(text);
    });
    let millis = nanos / 1_000_000;
    let digit = |number: u32| b'0' + (number % 10) as u8;
    out.extend_from_slice(&[b'.', digit(millis / 100), digit(millis / 10), digit(millis), b'Z']);
}

fn write_iso_date(f: &Fields, out: &mut Vec<u8>) {
    drop(write!(out, "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}", f.year, f.month, f.day, f.hour, f.minute, f.second));
}

/// None where the format would print a newline.
fn parse(format: &str) -> Option<Vec<Item>> {
    let (mut items, mut literal) = (Vec::new(), String::new());
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        let spec = &rest[at + 1..];
        let Some((item, used)) = parse_spec(spec)? else {
            literal.push('%');
            rest = spec;
            continue;
        };
        rest = &spec[used..];
        match item {
            Item::Literal(text) => literal.push_str(&text),
            item => {
                if !literal.is_empty() {
                    items.push(Item::Literal(std::mem::take(&mut literal).into()));
                }
                items.push(item);
            }
        }
    }
    literal.push_str(rest);
    if literal.contains('\n') {
        return None;
    }
    if !literal.is_empty() {
        items.push(Item::Literal(literal.into()));
    }
    Some(items)
}

/// What follows a `%`, and how many bytes of it: Some(None) where it is no conversion, None for a newline.
#[allow(clippy::option_option)]
fn parse_spec(spec: &str) -> Option<Option<(Item, usize)>> {
    let bytes = spec.as_bytes();
    let mut at = 0;
    let mut pad = Pad::Default;
    while let Some(flag) = bytes.get(at) {
        pad = match flag {
            b'-' => Pad::None,
            b'_' => Pad::Space,
            b'0' => Pad::Zero,
            b'^' | b'#' => pad,
            _ => break,
        };
        at += 1;
    }
    let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let width = spec[at..at + digits].parse::<u8>().ok();
    at += digits;
    let extended = matches!(bytes.get(at), Some(b'E' | b'O'));
    if extended {
        at += 1;
        let rest = &bytes[at..];
        let number = |byte: u8| byte.is_ascii_digit().then(|| (byte - b'0').min(9));
        let found = match rest {
            [b'*', b'S', ..] => Some((Item::Seconds(None), 2)),
            [b'*', b'f', ..] => Some((Item::Fraction(9), 2)),
            [digit, b'S', ..] if digit.is_ascii_digit() => Some((Item::Seconds(number(*digit)), 2)),
            [digit, b'f', ..] if digit.is_ascii_digit() => Some((Item::Fraction(number(*digit)?), 2)),
            [b'4', b'Y', ..] => Some((Item::Field(b'Y', Pad::Zero), 2)),
            [b'z', ..] => Some((Item::OffsetWithColon, 1)),
            [b'T', ..] => Some((Item::Literal("T".into()), 1)),
            _ => None,
        };
        if let Some((item, used)) = found {
            return Some(Some((item, at + used)));
        }
    }
    let Some(&letter) = bytes.get(at) else { return Some(None) };
    let item = match letter {
        b'n' => return None,
        b's' if !extended => Item::EpochSeconds,
        b'f' if !extended => Item::Fraction(width.unwrap_or(9).clamp(1, 9)),
        b'%' => Item::Literal("%".into()),
        b't' => Item::Literal("\t".into()),
        b'Y' | b'C' | b'y' | b'm' | b'd' | b'e' | b'H' | b'I' | b'k' | b'l' | b'M' | b'S' | b'j' | b'a' | b'A'
        | b'b' | b'B' | b'h' | b'p' | b'P' | b'D' | b'x' | b'F' | b'T' | b'X' | b'R' | b'r' | b'c' | b'u' | b'w'
        | b'U' | b'W' | b'V' | b'G' | b'g' | b'z' | b'Z' => Item::Field(letter, pad),
        _ => return Some(None),
    };
    Some(Some((item, at + 1)))
}

impl Fields {
    fn new(epoch: i64, nanos: u32, local: bool) -> Self {
        let (mut offset, mut zone) = (0, None);
        if local && let Ok(stamp) = jiff::Timestamp::new(epoch, 0) {
            let here = jiff::tz::TimeZone::system();
            let info = here.to_offset_info(stamp);
            offset = info.offset().seconds();
            zone = Some(info.abbreviation().to_owned());
        }
        let shifted = epoch.saturating_add(i64::from(offset));
        let (days, rest) = (shifted.div_euclid(86_400), shifted.rem_euclid(86_400) as u32);
        let (year, month, day) = civil(days);
        Self {
            epoch,
            nanos,
            year,
            month,
            day,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
            weekday: (days + 4).rem_euclid(7) as u32,
            yearday: (days - days_from_civil(year) + 1) as u32,
            offset,
            zone,
        }
    }

    /// ISO 8601 week and its year.
    fn iso_week(&self) -> (i64, u32) {
        // The week belongs to the year of its Thursday.
        let weekday = (self.weekday + 6) % 7;
        let thursday = i64::from(self.yearday) - 1 - i64::from(weekday) + 3;
        let length = |year: i64| days_from_civil(year + 1) - days_from_civil(year);
        let (year, day) = if thursday < 0 {
            (self.year - 1, thursday + length(self.year - 1))
        } else if thursday >= length(self.year) {
            (self.year + 1, thursday - length(self.year))
        } else {
            (self.year, thursday)
        };
        (year, (day / 7 + 1) as u32)
    }
}

/// Year, month and day of a day counted from 1970, in the Gregorian calendar.
fn civil(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month as u32, day as u32)
}

/// Day of the first of January.
fn days_from_civil(year: i64) -> i64 {
    let before = year - 1;
    before * 365 + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400) - 719_162
}

fn write_offset(offset: i32, colon: &str, out: &mut Vec<u8>) {
    let sign = if offset < 0 { '-' } else { '+' };
    let minutes = offset.unsigned_abs() / 60;
    drop(write!(out, "{sign}{:02}{colon}{:02}", minutes / 60, minutes % 60));
}

fn write_item(item: &Item, f: &Fields, out: &mut Vec<u8>) {
    match item {
        Item::Literal(text) => out.extend_from_slice(text.as_bytes()),
        Item::EpochSeconds => drop(write!(out, "{}", f.epoch)),
        Item::Fraction(digits) => write_fraction(f.nanos, *digits, out),
        Item::Seconds(digits) => {
            drop(write!(out, "{:02}", f.second));
            let digits =
                digits.unwrap_or_else(|| (1..=9).find(|d| f.nanos.is_multiple_of(10u32.pow(9 - d))).unwrap_or(9) as u8);
            if digits > 0 && (f.nanos > 0 || matches!(item, Item::Seconds(Some(_)))) {
                out.push(b'.');
                write_fraction(f.nanos, digits, out);
            }
        }
        Item::OffsetWithColon => write_offset(f.offset, ":", out),
        Item::Field(letter, pad) => write_field(*letter, *pad, f, out),
    }
}

fn write_fraction(nanos: u32, digits: u8, out: &mut Vec<u8>) {
    let digits = digits.clamp(1, 9);
    let shown = nanos / 10u32.pow(9 - u32::from(digits));
    drop(write!(out, "{shown:0width$}", width = usize::from(digits)));
}

fn write_field(letter: u8, pad: Pad, f: &Fields, out: &mut Vec<u8>) {
    let mut number = |value: i64, width: usize, default: Pad| {
        let pad = if pad == Pad::Default { default } else { pad };
        drop(match pad {
            Pad::None => write!(out, "{value}"),
            Pad::Space => write!(out, "{value:width$}"),
            Pad::Zero | Pad::Default => write!(out, "{value:0width$}"),
        });
    };
    let twelve = match f.hour % 12 {
        0 => 12,
        hour => hour,
    };
    match letter {
        b'Y' => number(f.year, 4, Pad::None),
        b'C' => number(f.year.div_euclid(100), 2, Pad::Zero),
        b'y' => number(f.year.rem_euclid(100), 2, Pad::Zero),
        b'm' => number(f.month.into(), 2, Pad::Zero),
        b'd' => number(f.day.into(), 2, Pad::Zero),
        b'e' => number(f.day.into(), 2, Pad::Space),
        b'H' => number(f.hour.into(), 2, Pad::Zero),
        b'k' => number(f.hour.into(), 2, Pad::Space),
        b'I' => number(twelve.into(), 2, Pad::Zero),
        b'l' => number(twelve.into(), 2, Pad::Space),
        b'M' => number(f.minute.into(), 2, Pad::Zero),
        b'S' => number(f.second.into(), 2, Pad::Zero),
        b'j' => number(f.yearday.into(), 3, Pad::Zero),
        b'u' => number(if f.weekday == 0 { 7 } else { f.weekday.into() }, 1, Pad::None),
        b'w' => number(f.weekday.into(), 1, Pad::None),
        b'U' => number(((f.yearday + 6 - f.weekday) / 7).into(), 2, Pad::Zero),
        b'W' => number(((f.yearday + 6 - (f.weekday + 6) % 7) / 7).into(), 2, Pad::Zero),
        b'V' => number(f.iso_week().1.into(), 2, Pad::Zero),
        b'G' => number(f.iso_week().0, 4, Pad::None),
        b'g' => number(f.iso_week().0.rem_euclid(100), 2, Pad::Zero),
        b'a' => out.extend_from_slice(&DAYS[f.weekday as usize].as_bytes()[..3]),
        b'A' => out.extend_from_slice(DAYS[f.weekday as usize].as_bytes()),
        b'b' | b'h' => out.extend_from_slice(&MONTHS[f.month as usize - 1].as_bytes()[..3]),
        b'B' => out.extend_from_slice(MONTHS[f.month as usize - 1].as_bytes()),
        b'p' => out.extend_from_slice(if f.hour < 12 { b"AM" } else { b"PM" }),
        b'P' => out.extend_from_slice(if f.hour < 12 { b"am" } else { b"pm" }),
        b'z' => write_offset(f.offset, "", out),
        b'Z' => out.extend_from_slice(f.zone.as_deref().unwrap_or("UTC").as_bytes()),
        composite => {
            let inner: &[u8] = match composite {
                b'D' | b'x' => b"m/d/y",
                b'F' => b"Y-m-d",
                b'T' | b'X' => b"H:M:S",
                b'R' => b"H:M",
                b'r' => b"I:M:S p",
                _ => b"a b e H:M:S Y",
            };
            for &byte in inner {
                if byte.is_ascii_alphabetic() {
                    write_field(byte, Pad::Default, f, out);
                } else {
                    out.push(byte);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn show(format: &str, epoch: u64, nanos: u32) -> String {
        let mut out = Vec::new();
        TimeFormat::new(format, false).unwrap().write(UNIX_EPOCH + Duration::new(epoch, nanos), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_default_is_iso_8601_with_milliseconds() {
        assert_eq!(show("", 1_795_398_294, 707_601_000), "2026-11-23T01:44:54.707Z");
        assert_eq!(show("", 1_795_398_294, 7_000_000), "2026-11-23T01:44:54.007Z");
        assert_eq!(show("", 951_782_400, 0), "2000-02-29T00:00:00.000Z");
    }

    #[test]
    fn formats_print_what_envoy_prints() {
        let format = "%s %s %3f %f %1f %9f %Y/%m/%d %e %E3S %E*S %Z %z %a %b %j %H%I%p %%";
        let wanted = "1795398294 1795398294 707 707601000 7 707601000 2026/11/23 23 54.707 54.707601 UTC +0000 Mon Nov \
                      327 0101AM %";
        assert_eq!(show(format, 1_795_398_294, 707_601_000), wanted);
        assert_eq!(
            show("%e|%-d|%D %T|%c|%G-W%V-%u", 1_641_081_600, 0),
            " 2|2|01/02/22 00:00:00|Sun Jan  2 00:00:00 2022|2021-W52-7"
        );
        assert_eq!(show("100%q%", 0, 0), "100%q%");
    }

    #[test]
    fn newlines_are_refused() {
        for format in ["%n", "%-3n", "%En", "a\nb"] {
            assert!(TimeFormat::new(format, false).is_err(), "{format:?}");
        }
    }
}
