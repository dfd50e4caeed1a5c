//! JSON log lines: keys sorted, single operators typed, the rest text; one line each.

use serde_json::Value;

use super::eval::Shape;
use super::operator::{self, Op, Part};
use super::{FormatContext, FormatError};

/// A compiled JSON format.
#[derive(Debug, Clone)]
pub struct JsonFormatter {
    root: Node,
    omit_empty: bool,
}

#[derive(Debug, Clone)]
enum Node {
    /// Keys, each with its quotes and colon.
    Object(Box<[(Box<[u8]>, Node)]>),
    List(Box<[Node]>),
    /// Serialized already.
    Raw(Box<[u8]>),
    Null,
    Value(Op),
    Text(Box<[Part]>),
}

impl JsonFormatter {
    /// Compiles an object whose string leaves are format strings. Keys come out sorted, as Envoy writes them. With
    /// `omit_empty_values`, properties without a value are left out.
    pub fn new(format: &Value, omit_empty_values: bool) -> Result<Self, FormatError> {
        Ok(Self { root: compile(format)?, omit_empty: omit_empty_values })
    }

    /// Appends the object and a newline.
    pub fn write(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) {
        if !self.node(&self.root, cx, out) {
            out.extend_from_slice(b"{}");
        }
        out.push(b'\n');
    }

    /// Whether `%LOCAL_REPLY_BODY%` occurs.
    pub fn uses_local_reply_body(&self) -> bool {
        fn uses(node: &Node) -> bool {
            match node {
                Node::Object(list) => list.iter().any(|(_, node)| uses(node)),
                Node::List(list) => list.iter().any(uses),
                Node::Value(op) => matches!(op, Op::LocalReplyBody),
                Node::Text(parts) => parts.iter().any(|part| matches!(part, Part::Op(Op::LocalReplyBody))),
                Node::Raw(_) | Node::Null => false,
            }
        }
        uses(&self.root)
    }

    /// False, and nothing appended, where there is no value.
    fn node(&self, node: &Node, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
        match node {
            Node::Raw(text) => out.extend_from_slice(text),
            Node::Null => return false,
            Node::Value(op) => return write_value(op, cx, out),
            Node::Text(parts) => {
                out.push(b'"');
                for part in parts {
                    let start = out.len();
                    match part {
                        Part::Literal(text) => out.extend_from_slice(text),
                        Part::Op(op) => {
                            if !op.write(cx, out) && !self.omit_empty {
                                out.push(b'-');
                            }
                        }
                    }
                    escape_tail(start, out);
                }
                out.push(b'"');
            }
            Node::Object(list) => {
                let begin = out.len();
                out.push(b'{');
                let mut first = true;
                for (key, node) in list {
                    let start = out.len();
                    if !first {
                        out.push(b',');
                    }
                    out.extend_from_slice(key);
                    if self.node(node, cx, out) {
                        first = false;
                    } else if self.omit_empty {
                        out.truncate(start);
                    } else {
                        out.extend_from_slice(b"null");
                        first = false;
                    }
                }
                if first && self.omit_empty {
                    // An object that was left empty is omitted, too.
                    out.truncate(begin);
                    return false;
                }
                out.push(b'}');
            }
            Node::List(list) => {
                out.push(b'[');
                let mut first = true;
                for node in list {
                    let start = out.len();
                    if !first {
                        out.push(b',');
                    }
                    if self.node(node, cx, out) {
                        first = false;
                    } else if self.omit_empty {
                        out.truncate(start);
                    } else {
                        out.extend_from_slice(b"null");
                        first = false;
                    }
                }
                out.push(b']');
            }
        }
        true
    }
}

/// Appends the typed value of one operator; false where there is none.
pub(super) fn write_value(op: &Op, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
    match op.shape() {
        Shape::Number => op.write(cx, out),
        Shape::Json => op.write_json(cx, out),
        Shape::Text => {
            let start = out.len();
            out.push(b'"');
            if !op.write(cx, out) {
                out.truncate(start);
                return false;
            }
            escape_tail(start + 1, out);
            out.push(b'"');
            true
        }
    }
}

fn compile(value: &Value) -> Result<Node, FormatError> {
    Ok(match value {
        Value::Null => Node::Null,
        Value::Bool(value) => Node::Raw(if *value { &b"true"[..] } else { b"false" }.into()),
        Value::Number(number) => Node::Raw(show_number(number).into_bytes().into()),
        Value::String(format) => {
            let mut parts = operator::parse(format)?;
            match (parts.len(), parts.pop()) {
                (1, Some(Part::Op(op))) => Node::Value(op),
                (_, last) => {
                    parts.extend(last);
                    if parts.iter().all(|part| matches!(part, Part::Literal(_))) {
                        Node::Raw(quoted(&parts).into())
                    } else {
                        Node::Text(parts.into())
                    }
                }
            }
        }
        Value::Array(list) => Node::List(list.iter().map(compile).collect::<Result<_, _>>()?),
        Value::Object(map) => {
            let mut list: Vec<_> = map.iter().collect();
            list.sort_by_key(|(key, _)| key.as_bytes());
            let list = list.into_iter().map(|(key, value)| {
                let mut text = quoted(&[Part::Literal(key.as_bytes().into())]);
                text.push(b':');
                Ok((text.into_boxed_slice(), compile(value)?))
            });
            Node::Object(list.collect::<Result<_, FormatError>>()?)
        }
    })
}

fn quoted(parts: &[Part]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for part in parts {
        if let Part::Literal(text) = part {
            out.extend_from_slice(text);
        }
    }
    escape_tail(1, &mut out);
    out.push(b'"');
    out
}

/// A number of the configuration, which is a double there: integers without a point, large ones with an exponent.
fn show_number(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(value) if value.fract() == 0.0 && value.abs() < 1e15 => format!("{value:.0}"),
        Some(value) => {
            let text = format!("{value:e}");
            match text.split_once('e') {
                Some((digits, exponent)) => match exponent.parse::<i32>() {
                    Ok(exponent) if (-5..16).contains(&exponent) => format!("{value}"),
                    Ok(exponent) => {
                        let sign = if exponent < 0 { '-' } else { '+' };
                        format!("{digits}e{sign}{:02}", exponent.abs())
                    }
                    Err(_) => text,
                },
                None => text,
            }
        }
        None => number.to_string(),
    }
}

/// Escapes what was appended since `start`, in place where nothing needs it. Text that is not UTF-8 is taken for
/// Latin-1 and all of its special bytes are written by number, as Envoy does.
pub(super) fn escape_tail(start: usize, out: &mut Vec<u8>) {
    let plain = |byte: &u8| !matches!(byte, 0..=0x1f | b'"' | b'\\' | 0x80..);
    let tail = &out[start..];
    if tail.iter().all(plain) {
        return;
    }
    let utf8 = std::str::from_utf8(tail).is_ok();
    if utf8 && !tail.iter().any(|byte| matches!(byte, 0..=0x1f | b'"' | b'\\')) {
        return;
    }
    let tail = out.split_off(start);
    for byte in tail {
        match byte {
            0..=0x1f | b'"' | b'\\' | 0x80.. if !utf8 => unicode(byte, out),
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            0..=0x1f => unicode(byte, out),
            byte => out.push(byte),
        }
    }
}

fn unicode(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"\\u00");
    out.push(HEX[usize::from(byte >> 4)]);
    out.push(HEX[usize::from(byte & 15)]);
}
