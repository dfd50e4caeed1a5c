//! Placeholders of the case files, and bytes as Latin-1 text.

use std::sync::LazyLock;

use anyhow::{Context as _, Result, bail};
use regex::{Captures, Regex};

/// The bytes of a text whose characters stand for one byte each; `{{repeat TEXT N}}` is written out.
///
/// # Errors
/// A character above U+00FF.
pub fn bytes(text: &str) -> Result<Vec<u8>> {
    static REPEAT: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\{\{repeat (.+?) (\d+)\}\}").expect("a valid regex"));
    let full = REPEAT.replace_all(text, |c: &Captures<'_>| c[1].repeat(c[2].parse().unwrap_or(0)));
    full.chars()
        .map(|c| u8::try_from(u32::from(c)).with_context(|| format!("{c:?} is no byte; write bytes as \\xNN")))
        .collect()
}

/// Bytes as text, one character per byte.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| char::from(b)).collect()
}

/// Replaces `{{NAME ARGUMENT...}}` by what `lookup` says; several lines are indented as far as the placeholder.
///
/// # Errors
/// What `lookup` does not know.
pub fn expand(text: &str, mut lookup: impl FnMut(&[&str]) -> Option<String>) -> Result<String> {
    static HOLDER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\{\{([a-z][^{}]*)\}\}").expect("a valid regex"));
    let mut unknown = None;
    let out = HOLDER.replace_all(text, |c: &Captures<'_>| {
        let words: Vec<&str> = c[1].split_whitespace().collect();
        let Some(found) = lookup(&words) else {
            unknown.get_or_insert_with(|| c[0].to_owned());
            return String::new();
        };
        let at = c.get(0).map_or(0, |whole| whole.start());
        let column = at - text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        found.replace('\n', &format!("\n{}", " ".repeat(column)))
    });
    match unknown {
        Some(name) => bail!("unknown placeholder {name}"),
        None => Ok(out.into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_bytes_and_repeats_are_written_out() {
        assert_eq!(bytes("a\u{ff}{{repeat xy 3}}").unwrap(), b"a\xffxyxyxy");
        assert!(bytes("\u{20ac}").is_err());
    }

    #[test]
    fn placeholders_are_looked_up_and_unknown_ones_named() {
        let text = expand("a {{port x}} b", |w| (w == ["port", "x"]).then(|| "1".to_owned())).unwrap();
        assert_eq!(text, "a 1 b");
        let text = expand("x\n  {{two}}\n", |_| Some("a\nb".to_owned())).unwrap();
        assert_eq!(text, "x\n  a\n  b\n");
        assert!(expand("{{nope}}", |_| None).unwrap_err().to_string().contains("{{nope}}"));
    }
}
