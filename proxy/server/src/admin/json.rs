//! JSON as protobuf's printer writes it: one space per level, whole numbers without a fraction, angle brackets escaped.

use std::io;

use nuncio_base::stats::output::general;
use serde::Serialize as _;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// `value` over several lines, with a newline at the end.
pub(super) fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = ProtobufFormatter { pretty: PrettyFormatter::with_indent(b" ") };
    // Writing a value to memory fails only for maps with keys that are no strings, which a `Value` cannot have.
    let _ = value.serialize(&mut Serializer::with_formatter(&mut out, formatter));
    out.push(b'\n');
    String::from_utf8(out).unwrap_or_default()
}

/// Characters escaped besides those that JSON demands.
const ESCAPED: [char; 5] = ['<', '>', '\u{7f}', '\u{2028}', '\u{2029}'];

struct ProtobufFormatter<'a> {
    pretty: PrettyFormatter<'a>,
}

impl Formatter for ProtobufFormatter<'_> {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        // 15 digits, or 17 if the value needs them.
        let short = general(value, 15);
        let exact = short.parse() == Ok(value);
        writer.write_all(if exact { short } else { general(value, 17) }.as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| ESCAPED.contains(c)) {
            writer.write_all(&rest.as_bytes()[..at])?;
            write!(writer, "\\u{:04x}", u32::from(c))?;
            rest = &rest[at + c.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_array(writer)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.pretty.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_object(writer)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.pretty.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_written_as_protobuf_writes_them() {
        assert_eq!(pretty(&json!({})), "{}\n");
        let value = json!({"a": [1, 2.0, 0.5, []], "n": [1e20, 1e-7, 33.3, 0.0, 1e14], "b": "<x> & \"y\"\n", "c": {}});
        let expected = "{\n \"a\": [\n  1,\n  2,\n  0.5,\n  []\n ],\n \"n\": [\n  1e+20,\n  1e-07,\n  33.3,\n  0,\n  100000000000000\n ],\n \"b\": \"\\u003cx\\u003e & \\\"y\\\"\\n\",\n \"c\": {}\n}\n";
        assert_eq!(pretty(&value), expected);
    }
}
