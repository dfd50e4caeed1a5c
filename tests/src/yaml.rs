//! YAML to `serde_json::Value`, for the case files: anchors and aliases, YAML 1.2 core scalars, nothing else.
//!
//! Called by `case`. The configurations inside the case files are text blocks that only the proxies read; this is not
//! the loader of the proxy.

use std::borrow::Cow;
use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use saphyr_parser::{Event, EventReceiver, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Reads one YAML document.
///
/// # Errors
/// Malformed YAML, a key that is no scalar, an unknown alias.
pub fn read(text: &str) -> Result<Value> {
    struct Sink<'a>(Vec<Event<'a>>);
    impl<'a> EventReceiver<'a> for Sink<'a> {
        fn on_event(&mut self, event: Event<'a>) {
            self.0.push(event);
        }
    }
    let mut sink = Sink(Vec::new());
    Parser::new_from_str(text).load(&mut sink, false).context("malformed YAML")?;
    let mut events = sink.0.into_iter().filter(|e| {
        !matches!(
            e,
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd
        )
    });
    let first = events.next().context("an empty document")?;
    node(first, &mut events, &mut HashMap::new())
}

fn node<'a>(
    event: Event<'a>,
    events: &mut impl Iterator<Item = Event<'a>>,
    anchors: &mut HashMap<usize, Value>,
) -> Result<Value> {
    let (value, anchor) = match event {
        Event::Alias(id) => (anchors.get(&id).cloned().context("an alias without its anchor")?, 0),
        Event::Scalar(text, style, anchor, _) => (scalar(text, style), anchor),
        Event::SequenceStart(anchor, _) => {
            let mut items = Vec::new();
            loop {
                match events.next().context("an open sequence")? {
                    Event::SequenceEnd => break,
                    other => items.push(node(other, events, anchors)?),
                }
            }
            (Value::Array(items), anchor)
        }
        Event::MappingStart(anchor, _) => {
            let mut map = Map::new();
            loop {
                let key = match events.next().context("an open mapping")? {
                    Event::MappingEnd => break,
                    Event::Scalar(text, ..) => text.into_owned(),
                    other => bail!("a key that is no scalar: {other:?}"),
                };
                let next = events.next().context("a key without a value")?;
                let value = node(next, events, anchors)?;
                if map.insert(key.clone(), value).is_some() {
                    bail!("the key {key:?} stands twice in one mapping");
                }
            }
            (Value::Object(map), anchor)
        }
        other => bail!("unexpected {other:?}"),
    };
    if anchor != 0 {
        anchors.insert(anchor, value.clone());
    }
    Ok(value)
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.into_owned());
    }
    match text.as_ref() {
        "" | "~" | "null" => return Value::Null,
        "true" => return Value::Bool(true),
        "false" => return Value::Bool(false),
        _ => {}
    }
    if let Ok(n) = text.parse::<i64>() {
        return Value::from(n);
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || c == '-')
        && let Ok(n) = text.parse::<f64>()
    {
        return Value::from(n);
    }
    Value::String(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scalars_mappings_sequences_and_aliases_become_json() {
        let text = "a: &x {b: 1, c: 'true'}\nd: [*x, 1.5, ~]\ne: |\n  two\n  lines\nf: \"\\r\\n\\x00\\xff\"\n";
        let expected = json!({"a": {"b": 1, "c": "true"}, "d": [{"b": 1, "c": "true"}, 1.5, null],
            "e": "two\nlines\n", "f": "\r\n\0\u{ff}"});
        assert_eq!(read(text).unwrap(), expected);
    }

    #[test]
    fn a_repeated_key_is_refused() {
        assert!(read("a: 1\na: 2\n").is_err());
    }
}
