//! Masks what differs from run to run, and finds what differs between the two proxies.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use anyhow::{Context as _, Result};
use regex::Regex;
use serde_json::Value;

/// Replaces volatile text in every string of an outcome.
#[derive(Debug)]
pub struct Mask {
    ports: BTreeMap<u16, String>,
    rules: Vec<(Regex, String)>,
}

/// Runs of text that are volatile everywhere.
static ALWAYS: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    let rules = [
        (r"\b[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\b", "<uuid>"),
        (r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} 202[5-9] \d\d:\d\d:\d\d GMT\b", "<date>"),
        (r"\b202[5-9]-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "<time>"),
    ];
    rules.map(|(r, to)| (Regex::new(r).expect("a valid regex"), to)).into()
});

/// Digit runs that may be ports.
static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\d+").expect("a valid regex"));

impl Mask {
    /// A mask for one proxy: its own ports, and the rules of the case.
    ///
    /// # Errors
    /// A rule that is no regular expression.
    pub fn new(ports: &BTreeMap<String, u16>, rules: &[(String, String)]) -> Result<Self> {
        let ports = ports.iter().map(|(name, port)| (*port, format!("<{name}>"))).collect();
        let rules = rules.iter().map(|(r, to)| Ok((Regex::new(r)?, to.clone()))).collect::<Result<_>>();
        Ok(Self { ports, rules: rules.context("`mask`")? })
    }

    /// One string.
    pub fn text(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (pattern, to) in ALWAYS.iter() {
            out = pattern.replace_all(&out, *to).into_owned();
        }
        out = NUMBER
            .replace_all(&out, |c: &regex::Captures<'_>| {
                let name = c[0].parse().ok().and_then(|port: u16| self.ports.get(&port));
                name.cloned().unwrap_or_else(|| c[0].to_owned())
            })
            .into_owned();
        for (pattern, to) in &self.rules {
            out = pattern.replace_all(&out, to.as_str()).into_owned();
        }
        out
    }

    /// A whole outcome.
    pub fn apply(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Number(n) => {
                if let Some(name) = n.as_u64().and_then(|n| u16::try_from(n).ok()).and_then(|n| self.ports.get(&n)) {
                    *value = Value::String(name.clone());
                }
            }
            Value::Array(items) => {
                // The time that an upstream took, wherever the field stands.
                if let [Value::String(name), Value::String(text)] = items.as_mut_slice()
                    && name == "x-envoy-upstream-service-time"
                    && !text.is_empty()
                    && text.bytes().all(|b| b.is_ascii_digit())
                {
                    "<ms>".clone_into(text);
                }
                items.iter_mut().for_each(|item| self.apply(item));
            }
            Value::Object(map) => {
                for (key, mut item) in std::mem::take(map) {
                    self.apply(&mut item);
                    map.insert(self.text(&key), item);
                }
            }
            _ => {}
        }
    }
}

/// The differences between two outcomes, for a reader; empty when there are none.
pub fn differences(envoy: &Value, nuncio: &Value) -> String {
    let mut out = String::new();
    walk("", Some(envoy), Some(nuncio), &mut out);
    out
}

fn walk(path: &str, envoy: Option<&Value>, nuncio: Option<&Value>, out: &mut String) {
    match (envoy, nuncio) {
        (a, b) if a == b => {}
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                walk(&format!("{path}/{key}"), a.get(key), b.get(key), out);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) if a.len() == b.len() && !is_fields(a) => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                walk(&format!("{path}/{i}"), Some(a), Some(b), out);
            }
        }
        (a, b) => {
            let (a, b) = (lines(a), lines(b));
            if a.len() <= 1 && b.len() <= 1 {
                let one = |l: &[String]| l.first().cloned().unwrap_or_else(|| "(nothing)".to_owned());
                let _ = writeln!(out, "  {path}\n    envoy:  {}\n    nuncio: {}", one(&a), one(&b));
                return;
            }
            let _ = writeln!(out, "  {path}   (- envoy, + nuncio)");
            let (a, b) = (a.join("\n") + "\n", b.join("\n") + "\n");
            let diff = similar::TextDiff::from_lines(&a, &b);
            for change in diff.iter_all_changes() {
                let _ = write!(out, "    {}{change}", change.tag());
            }
        }
    }
}

/// Whether a list is a list of header fields, best shown line by line.
fn is_fields(items: &[Value]) -> bool {
    items.iter().all(|i| i.as_array().is_some_and(|p| p.len() == 2 && p.iter().all(Value::is_string)))
}

fn lines(value: Option<&Value>) -> Vec<String> {
    match value {
        None => Vec::new(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| match item.as_array().map(Vec::as_slice) {
                Some([Value::String(name), Value::String(text)]) => format!("{name}: {text}"),
                _ => item.to_string(),
            })
            .collect(),
        Some(other) => vec![other.to_string()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn volatile_text_is_masked() {
        let ports = BTreeMap::from([("main".to_owned(), 17000)]);
        let mask = Mask::new(&ports, &[("abc".into(), "x".into())]).unwrap();
        let mut value = json!({"listener.127.0.0.1_17000.a": 17000, "h": [["x-envoy-upstream-service-time", "12"],
            ["x-request-id", "c679a464-06f6-4033-8c5e-de2790d219df"], ["date", "Mon, 23 Nov 2026 01:18:20 GMT"],
            ["y", "1abc2"]]});
        mask.apply(&mut value);
        assert_eq!(
            value,
            json!({"listener.127.0.0.1_<main>.a": "<main>", "h": [["x-envoy-upstream-service-time", "<ms>"],
                ["x-request-id", "<uuid>"], ["date", "<date>"], ["y", "1x2"]]})
        );
    }

    #[test]
    fn differences_name_the_place_and_both_sides() {
        assert_eq!(differences(&json!({"a": [1, 2]}), &json!({"a": [1, 2]})), "");
        let text = differences(&json!({"a": [1, 2], "b": 1}), &json!({"a": [1, 3], "b": 1}));
        assert!(text.contains("/a/1") && text.contains("envoy:  2") && text.contains("nuncio: 3"), "{text}");
        let text = differences(&json!([["a", "1"], ["b", "2"]]), &json!([["a", "1"]]));
        assert!(text.contains("-b: 2"), "{text}");
    }
}
