//! URI templates: `path_match_policy` and `path_rewrite_policy`. A pattern becomes a regular expression with one named
//! group for each variable, a rewrite becomes text and numbers of groups.
//!
//! `*` is one path segment, `**` any rest, `{name}` and `{name=pattern}` capture. At most five variables, each named once.

use crate::decode::Context;
use regex::bytes::Regex;

/// Most variables of a pattern.
const MAX_VARIABLES: usize = 5;
/// Longest name of a variable.
const MAX_NAME: usize = 16;
/// Characters of a path segment, as the inside of a class of the `regex` crate.
const SEGMENT: &str = r"a-zA-Z0-9\-._\~%!$\&'()+,;:@";

/// A compiled pattern.
#[derive(Debug, Clone)]
pub struct UriTemplate {
    /// Matches the whole path without its query.
    pub regex: Regex,
    /// As written.
    pub text: Box<str>,
}

/// A compiled `path_template_rewrite`.
#[derive(Debug, Clone)]
pub struct UriTemplateRewrite {
    /// The pattern whose groups are used.
    pub template: UriTemplate,
    /// What the new path is put together from.
    pub pieces: Box<[RewritePiece]>,
}

/// A piece of a rewritten path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RewritePiece {
    /// Text.
    Literal(Box<str>),
    /// What this group of the pattern matched.
    Group(usize),
}

impl UriTemplate {
    /// Compiles a pattern; an error is reported to `cx` at the current path.
    pub(super) fn decode(cx: &mut Context, text: &str) -> Option<Self> {
        let Ok(pattern) = Parser::default().pattern(text) else {
            cx.error_at("path_template", format!("path_match_policy.path_template {text} is invalid"));
            return None;
        };
        match Regex::new(&pattern) {
            Ok(regex) => Some(UriTemplate { regex, text: text.into() }),
            Err(_) => {
                cx.error_at("path_template", format!("path_match_policy.path_template {text} is invalid"));
                None
            }
        }
    }
}

impl UriTemplateRewrite {
    /// Compiles a rewrite of paths that `template` matches; an error is reported to `cx` at the current path.
    pub(super) fn decode(cx: &mut Context, text: &str, template: &UriTemplate) -> Option<Self> {
        let Ok(pieces) = rewrite_pieces(text) else {
            cx.error_at(
                "path_template_rewrite",
                format!("path_rewrite_policy.path_template_rewrite {text} is invalid"),
            );
            return None;
        };
        let resolved = pieces.into_iter().map(|piece| match piece {
            Parsed::Literal(text) => Some(RewritePiece::Literal(text.into())),
            Parsed::Variable(name) => {
                let number = template.regex.capture_names().position(|known| known == Some(name))?;
                Some(RewritePiece::Group(number))
            }
        });
        let Some(pieces) = resolved.collect() else {
            cx.error_at(
                "path_template_rewrite",
                format!(
                    "mismatch between variables in path_match_policy {} and path_rewrite_policy {text}",
                    template.text
                ),
            );
            return None;
        };
        Some(UriTemplateRewrite { template: template.clone(), pieces })
    }

    /// The new path for one without query; None where the pattern does not match it.
    pub fn rewrite(&self, path: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let captures = self.template.regex.captures(path)?;
        for piece in &self.pieces {
            match piece {
                RewritePiece::Literal(text) => out.extend_from_slice(text.as_bytes()),
                RewritePiece::Group(number) => {
                    out.extend_from_slice(captures.get(*number).map_or(&b""[..], |group| group.as_bytes()));
                }
            }
        }
        Some(())
    }
}

/// A pattern or rewrite is malformed.
struct Malformed;

#[derive(Default)]
struct Parser<'t> {
    names: Vec<&'t str>,
    after_text_glob: bool,
}

impl<'t> Parser<'t> {
    /// The anchored regular expression of a pattern.
    fn pattern(&mut self, text: &'t str) -> Result<String, Malformed> {
        let graphic = text.bytes().all(|byte| byte.is_ascii_graphic());
        let mut rest = text.strip_prefix('/').filter(|_| graphic).ok_or(Malformed)?;
        let mut out = String::from("^/");
        while !rest.is_empty() {
            rest = self.segment(rest, &mut out)?;
            if let Some(tail) = rest.strip_prefix('/') {
                out.push('/');
                rest = tail;
            } else if !rest.is_empty() {
                // What follows a glob or variable within its segment is a suffix, the last of the pattern.
                literal(rest, &mut out)?;
                break;
            }
        }
        out.push('$');
        Ok(out)
    }

    /// One segment; what is left.
    fn segment(&mut self, text: &'t str, out: &mut String) -> Result<&'t str, Malformed> {
        if text.starts_with('*') {
            return self.glob(text, out);
        }
        let Some(inner) = text.strip_prefix('{') else {
            let (segment, _) = text.split_once('/').unwrap_or((text, ""));
            literal(segment, out)?;
            return Ok(&text[segment.len()..]);
        };
        let (inner, rest) = inner.split_once('}').ok_or(Malformed)?;
        let (name, matches) = inner.split_once('=').unwrap_or((inner, "*"));
        if !is_name(name) || name.len() > MAX_NAME || self.names.contains(&name) || self.names.len() == MAX_VARIABLES {
            return Err(Malformed);
        }
        self.names.push(name);
        out.push_str("(?P<");
        out.push_str(name);
        out.push('>');
        self.variable(matches, out)?;
        out.push(')');
        Ok(rest)
    }

    fn variable(&mut self, mut text: &'t str, out: &mut String) -> Result<(), Malformed> {
        loop {
            if text.starts_with('*') {
                text = self.glob(text, out)?;
            } else {
                let (segment, _) = text.split_once('/').unwrap_or((text, ""));
                literal(segment, out)?;
                text = &text[segment.len()..];
            }
            if text.is_empty() {
                return Ok(());
            }
            text = text.strip_prefix('/').filter(|rest| !rest.is_empty()).ok_or(Malformed)?;
            out.push('/');
        }
    }

    fn glob(&mut self, text: &'t str, out: &mut String) -> Result<&'t str, Malformed> {
        if self.after_text_glob {
            return Err(Malformed);
        }
        out.push('[');
        out.push_str(SEGMENT);
        match text.strip_prefix("**") {
            Some(rest) => {
                self.after_text_glob = true;
                out.push_str("/]*");
                Ok(rest)
            }
            None => {
                out.push_str("]+");
                Ok(&text[1..])
            }
        }
    }
}

fn literal(text: &str, out: &mut String) -> Result<(), Malformed> {
    if text.is_empty() || !text.bytes().all(is_segment_byte) {
        return Err(Malformed);
    }
    out.push_str(&regex::escape(text));
    Ok(())
}

fn is_segment_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@".contains(&byte)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

enum Parsed<'t> {
    Literal(&'t str),
    Variable(&'t str),
}

fn rewrite_pieces(text: &str) -> Result<Vec<Parsed<'_>>, Malformed> {
    if !text.starts_with('/') || text.contains("//") {
        return Err(Malformed);
    }
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (text, tail) = rest.split_once('{').map_or((rest, None), |(text, tail)| (text, Some(tail)));
        if !text.is_empty() {
            if !text.bytes().all(|byte| byte == b'/' || is_segment_byte(byte)) {
                return Err(Malformed);
            }
            pieces.push(Parsed::Literal(text));
        }
        let Some(tail) = tail else { break };
        let (name, tail) = tail.split_once('}').ok_or(Malformed)?;
        if !is_name(name) {
            return Err(Malformed);
        }
        pieces.push(Parsed::Variable(name));
        rest = tail;
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;

    fn template(text: &str) -> UriTemplate {
        UriTemplate::decode(&mut Context::default(), text).unwrap()
    }

    #[test]
    fn patterns_match_whole_paths() {
        let table = [
            ("/a/*/c", "/a/b/c", true),
            ("/a/*/c", "/a/b/b/c", false),
            ("/a/*/c", "/a//c", false),
            ("/a/**", "/a/b/c", true),
            ("/a/**", "/a/", true),
            ("/a/**", "/a", false),
            ("/{x}/", "/b/", true),
            ("/{x}/", "/b", false),
            ("/{x=v1/*}/z", "/v1/q/z", true),
            ("/{x=v1/*}/z", "/v2/q/z", false),
            ("/**.m3u8", "/a/b.m3u8", true),
            ("/**.m3u8", "/a/bxm3u8", false),
            ("/a.b", "/axb", false),
            ("/", "/", true),
        ];
        for (pattern, path, wanted) in table {
            assert_eq!(template(pattern).regex.is_match(path.as_bytes()), wanted, "{pattern} {path}");
        }
    }

    #[test]
    fn malformed_patterns_are_errors() {
        let long = format!("/{{{}}}", "a".repeat(17));
        let table = [
            "",
            "a",
            "/{",
            "/{a",
            "/{1}",
            "/{a=}",
            "/{a}/{a}",
            "/**/*",
            "/**/{a}",
            "/a*",
            "/*a/b",
            "//",
            "/{a=/}",
            &long,
            "/{a}/{b}/{c}/{d}/{e}/{f}",
            "/a b",
        ];
        for pattern in table {
            let result = Context::default().run(|cx| UriTemplate::decode(cx, pattern));
            let wanted = format!("path_template: path_match_policy.path_template {pattern} is invalid");
            assert_eq!(errors(result), [wanted]);
        }
    }

    #[test]
    fn variables_are_put_into_the_new_path() {
        let template = template("/{lang}/{rest=**}");
        let rewrite = UriTemplateRewrite::decode(&mut Context::default(), "/x/{rest}.{lang}", &template).unwrap();
        let mut out = Vec::new();
        rewrite.rewrite(b"/en/a/b", &mut out).unwrap();
        assert_eq!(out, b"/x/a/b.en");
        let result = Context::default().run(|cx| UriTemplateRewrite::decode(cx, "/{no}", &template));
        assert_eq!(
            errors(result),
            [
                "path_template_rewrite: mismatch between variables in path_match_policy /{lang}/{rest=**} and path_rewrite_policy /{no}"
            ]
        );
        for text in ["x", "/a//b", "/{", "/{1}", "/*"] {
            assert!(Context::default().run(|cx| UriTemplateRewrite::decode(cx, text, &template)).is_err(), "{text}");
        }
    }
}
