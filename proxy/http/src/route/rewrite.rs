//! Path and host rewrites: regex substitution with `\N`, prefix replacement, `x-forwarded-host`.

use bytes::Bytes;
use nuncio_config::route::{RegexRewrite, UriTemplateRewrite};
use regex::bytes::Captures;

use crate::formatter::{FormatContext, Formatter};
use crate::headers::{HeaderValue, Headers, names};
use crate::path::without_query;

/// A substitution split at its groups.
#[derive(Debug, Clone)]
pub struct Substitution(Box<[Piece]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(Box<[u8]>),
    Group(usize),
}

impl Substitution {
    /// From `\1` text; `\\` is a backslash. The error names a group that the pattern does not have.
    pub fn build(rewrite: &RegexRewrite) -> Result<Self, String> {
        let text = rewrite.substitution.as_bytes();
        let (mut pieces, mut literal, mut at) = (Vec::new(), Vec::new(), 0);
        while at < text.len() {
            match (text[at], text.get(at + 1)) {
                (b'\\', Some(digit)) if digit.is_ascii_digit() => {
                    let group = usize::from(digit - b'0');
                    if group >= rewrite.pattern.captures_len() {
                        return Err(format!("invalid substitution: there is no group {group}"));
                    }
                    if !literal.is_empty() {
                        pieces.push(Piece::Literal(std::mem::take(&mut literal).into()));
                    }
                    pieces.push(Piece::Group(group));
                    at += 2;
                }
                (b'\\', Some(b'\\')) => {
                    literal.push(b'\\');
                    at += 2;
                }
                (b'\\', _) => {
                    return Err("invalid substitution: a backslash stands before a digit or a backslash".into());
                }
                (byte, _) => {
                    literal.push(byte);
                    at += 1;
                }
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal.into()));
        }
        Ok(Self(pieces.into()))
    }

    /// Replaces every match in `text`.
    pub fn replace_all(&self, rewrite: &RegexRewrite, text: &[u8], out: &mut Vec<u8>) {
        let mut last = 0;
        for captures in rewrite.pattern.captures_iter(text) {
            let Some(whole) = captures.get(0) else { continue };
            out.extend_from_slice(&text[last..whole.start()]);
            self.expand(&captures, out);
            last = whole.end();
        }
        out.extend_from_slice(&text[last..]);
    }

    fn expand(&self, captures: &Captures<'_>, out: &mut Vec<u8>) {
        for piece in &self.0 {
            match piece {
                Piece::Literal(text) => out.extend_from_slice(text),
                Piece::Group(group) => {
                    if let Some(found) = captures.get(*group) {
                        out.extend_from_slice(found.as_bytes());
                    }
                }
            }
        }
    }
}

/// `path` with its first `matched` bytes replaced.
pub(super) fn replace_prefix(path: &[u8], matched: usize, prefix: &[u8]) -> Vec<u8> {
    let rest = path.get(matched..).unwrap_or_default();
    let mut out = Vec::with_capacity(prefix.len() + rest.len());
    out.extend_from_slice(prefix);
    out.extend_from_slice(rest);
    out
}

/// `path` with all but its query substituted.
pub(super) fn replace_regex(path: &[u8], rewrite: &RegexRewrite, substitution: &Substitution) -> Vec<u8> {
    let plain = without_query(path);
    let mut out = Vec::with_capacity(path.len() + 16);
    substitution.replace_all(rewrite, plain, &mut out);
    out.extend_from_slice(&path[plain.len()..]);
    out
}

/// `path` with all but its query formatted anew; None where nothing comes of it.
pub(super) fn replace_format(path: &[u8], format: &Formatter, cx: &FormatContext<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len() + 16);
    format.write(cx, &mut out);
    if out.is_empty() {
        return None;
    }
    out.extend_from_slice(&path[without_query(path).len()..]);
    Some(out)
}

/// `path` with all but its query put together anew; None where the template does not match.
pub(super) fn replace_template(path: &[u8], template: &UriTemplateRewrite) -> Option<Vec<u8>> {
    let plain = without_query(path);
    let mut out = Vec::with_capacity(path.len() + 16);
    template.rewrite(plain, &mut out)?;
    out.extend_from_slice(&path[plain.len()..]);
    Some(out)
}

/// Sets the host, keeping the old one in `x-forwarded-host` and `x-envoy-original-host` where asked.
pub fn update_authority(headers: &mut Headers, host: HeaderValue, append_x_forwarded_host: bool, keep_original: bool) {
    if let Some(old) = headers.get(&names::AUTHORITY).cloned().filter(|old| !old.as_bytes().is_empty()) {
        if keep_original {
            headers.set(names::X_ENVOY_ORIGINAL_HOST, old.clone());
        }
        if append_x_forwarded_host {
            let last =
                headers.bytes(&names::X_FORWARDED_HOST).and_then(|list| list.rsplit(|byte| *byte == b',').next());
            if last != Some(old.as_bytes()) {
                headers.append_joined(names::X_FORWARDED_HOST, old.as_bytes(), ",");
            }
        }
    }
    headers.set(names::AUTHORITY, host);
}

/// Sets the path, keeping the old one in `x-envoy-original-path` where asked.
pub(super) fn update_path(headers: &mut Headers, path: Vec<u8>, keep_original: bool) {
    let Some(path) = HeaderValue::parse(Bytes::from(path)) else { return };
    if keep_original && let Some(old) = headers.get(&names::PATH).cloned() {
        headers.set(names::X_ENVOY_ORIGINAL_PATH, old);
    }
    headers.set(names::PATH, path);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formatter::tests::headers;

    fn replaced(pattern: &str, substitution: &str, path: &str) -> String {
        let rewrite =
            RegexRewrite { pattern: regex::bytes::Regex::new(pattern).unwrap(), substitution: substitution.into() };
        let substitution = Substitution::build(&rewrite).unwrap();
        String::from_utf8(replace_regex(path.as_bytes(), &rewrite, &substitution)).unwrap()
    }

    #[test]
    fn groups_are_put_in() {
        assert_eq!(
            replaced("^/service/([^/]+)(/.*)$", "\\2/instance/\\1", "/service/foo/v1/api?x=1"),
            "/v1/api/instance/foo?x=1"
        );
        assert_eq!(replaced("one", "two", "/xxx/one/yyy/one/zzz"), "/xxx/two/yyy/two/zzz");
        assert_eq!(replaced("/$", "", "/a/"), "/a");
        assert_eq!(replaced(".*", "/x\\0\\\\", "/a?q#f"), "/x/a\\?q#f");
        assert_eq!(replaced("(?i)/AAA/", "/bbb/", "/aaa/c"), "/bbb/c");
    }

    #[test]
    fn bad_groups_are_errors() {
        let rewrite =
            |text: &str| RegexRewrite { pattern: regex::bytes::Regex::new("(a)").unwrap(), substitution: text.into() };
        assert!(Substitution::build(&rewrite("\\1\\0")).is_ok());
        assert!(Substitution::build(&rewrite("\\2")).is_err());
        assert!(Substitution::build(&rewrite("\\x")).is_err());
    }

    #[test]
    fn the_old_host_is_kept_once() {
        let mut list = headers(&[(":authority", "a"), ("x-forwarded-host", "z,a")]);
        update_authority(&mut list, HeaderValue::from_static("b"), true, true);
        assert_eq!(list.str(&names::X_FORWARDED_HOST), Some("z,a"));
        assert_eq!(list.str(&names::X_ENVOY_ORIGINAL_HOST), Some("a"));
        update_authority(&mut list, HeaderValue::from_static("c"), true, false);
        assert_eq!(list.str(&names::X_FORWARDED_HOST), Some("z,a,b"));
        assert_eq!(list.authority(), b"c");
    }
}
