//! RE2's syntax, as Envoy's configurations use it, on the `regex` crate.
//!
//! Both descend from the same design, but differ at the edges: RE2 takes `{`, `[` inside a class and `\<` literally
//! where the crate does not, has `\Q..\E` and `\C`, and its `\d \w \s \b` know ASCII only. [`translate`] rewrites these.

use regex::bytes::{Regex, RegexBuilder};

/// Memory one compiled expression may take. RE2 has no limit on the program in Envoy's default settings.
const SIZE_LIMIT: usize = 10 << 20;

/// The expression in the crate's syntax; `anchored` demands a match of the whole text.
pub(super) fn translate(text: &str, anchored: bool) -> Result<String, String> {
    let mut out = String::with_capacity(text.len() + 16);
    if anchored {
        out.push_str("^(?:");
    }
    let mut rest = text;
    // Inside a class: characters of it seen so far (a `]` is literal as the first of them).
    let mut class: Option<usize> = None;
    // Where the repetition before this place begins, and what it is not to be followed by.
    let mut repeated: Option<usize> = None;
    while let Some(c) = rest.chars().next() {
        let before = repeated.take();
        let tail = &rest[c.len_utf8()..];
        if c == '\\' {
            rest = escape(tail, class.is_some(), &mut out)?;
            class = class.map(|n| n + 1);
            if class.is_some() && tail.starts_with(['d', 'D', 's', 'S', 'w', 'W']) && rest.starts_with('-') {
                // What ends a class of characters begins no range.
                out.push_str("\\-");
                rest = &rest[1..];
            }
            continue;
        }
        if let Some(seen) = class {
            match c {
                ']' if seen > 0 => {
                    class = None;
                    out.push(']');
                }
                '[' if tail.starts_with(':') && tail.contains(":]") => {
                    let end = tail.find(":]").map_or(0, |at| at + 2);
                    let name = tail.get(1..end - 2).unwrap_or_default();
                    if !POSIX_CLASSES.contains(&name.strip_prefix('^').unwrap_or(name)) {
                        return Err(format!("invalid character class range: [{}", &tail[..end]));
                    }
                    out.push('[');
                    out.push_str(&tail[..end]);
                    rest = &tail[end..];
                    class = Some(seen + 1);
                    continue;
                }
                ']' | '[' | '&' | '~' => {
                    out.push('\\');
                    out.push(c);
                    class = Some(seen + 1);
                }
                // A second hyphen in a row would be the crate's set difference.
                '-' if out.ends_with('-') && seen > 0 => {
                    out.push_str("\\-");
                    class = Some(seen + 1);
                }
                _ => {
                    out.push(c);
                    class = Some(seen + 1);
                }
            }
        } else {
            match c {
                '[' => {
                    out.push('[');
                    let negated = tail.starts_with('^');
                    if negated {
                        out.push('^');
                        rest = &tail[1..];
                        class = Some(0);
                        continue;
                    }
                    class = Some(0);
                }
                '{' if !repetition(tail)? => out.push_str("\\{"),
                '*' | '+' | '?' | '{' => {
                    let here = text.len() - rest.len();
                    let length = if c == '{' { tail.find('}').map_or(1, |at| at + 2) } else { 1 };
                    if let Some(first) = before {
                        return Err(format!("bad repetition operator: {}", &text[first..here + length]));
                    }
                    out.push_str(&rest[..length]);
                    rest = &rest[length..];
                    if let Some(after) = rest.strip_prefix('?') {
                        out.push('?');
                        rest = after;
                    }
                    repeated = Some(here);
                    continue;
                }
                '(' => {
                    if let Some(flags) = tail.strip_prefix('?') {
                        known_flags(flags)?;
                        out.push_str(if flags.starts_with(')') { "(?:" } else { "(?" });
                        rest = flags;
                        continue;
                    }
                    out.push('(');
                }
                _ => out.push(c),
            }
        }
        rest = tail;
    }
    if class.is_some() {
        return Err("missing ]".into());
    }
    if anchored {
        out.push_str(")$");
    }
    Ok(out)
}

/// Compiles what [`translate`] made; the error is one line.
pub(super) fn compile(pattern: &str) -> Result<Regex, String> {
    // Without Unicode mode the classes are ASCII's, as in RE2, and programs are several times smaller. Only texts
    // that name characters beyond ASCII need it.
    let unicode = !pattern.is_ascii() || pattern.contains("\\p") || pattern.contains("\\P") || pattern.contains("\\x{");
    RegexBuilder::new(pattern).unicode(unicode).size_limit(SIZE_LIMIT).dfa_size_limit(SIZE_LIMIT).build().map_err(
        |error| match error {
            regex::Error::CompiledTooBig(_) => "pattern too large - compile failed".to_owned(),
            error => {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                last.strip_prefix("error: ").unwrap_or(last).to_owned()
            }
        },
    )
}

/// Classes in brackets within brackets.
const POSIX_CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word",
    "xdigit",
];

/// Letters that mean something after a backslash.
const ESCAPES: &str = "abBAdDfnpPrsStvwWxz";

/// What follows `(?`: a name, or flags that RE2 has.
fn known_flags(text: &str) -> Result<(), String> {
    if text.starts_with("P<") || text.starts_with('<') {
        return Ok(());
    }
    let end = text.find([':', ')']).unwrap_or(text.len());
    match text[..end].char_indices().find(|(_, c)| !matches!(c, 'i' | 'm' | 's' | 'U' | '-')) {
        Some((at, c)) => Err(format!("invalid perl operator: (?{}", &text[..at + c.len_utf8()])),
        None => Ok(()),
    }
}

/// Copies one escape; `tail` follows the backslash. Returns what is left.
fn escape<'a>(tail: &'a str, in_class: bool, out: &mut String) -> Result<&'a str, String> {
    let Some(c) = tail.chars().next() else { return Err("trailing \\".into()) };
    let after = &tail[c.len_utf8()..];
    match c {
        'Q' if !in_class => {
            let (literal, rest) = after.split_once("\\E").unwrap_or((after, ""));
            out.push_str(&regex::escape(literal));
            return Ok(rest);
        }
        'C' if !in_class => out.push_str("(?s-u:.)"),
        '0'..='9' => {
            let octal = |c: &char| c.is_digit(8);
            let more = after.chars().take_while(octal).take(2).count();
            if !octal(&c) || (c != '0' && more == 0) {
                return Err(format!("invalid escape sequence: \\{c}"));
            }
            let code = u32::from_str_radix(&tail[..=more], 8).unwrap_or_default();
            out.push_str(&if code < 0x80 { format!("\\x{code:02x}") } else { format!("\\x{{{code:x}}}") });
            return Ok(&tail[more + 1..]);
        }
        '<' | '>' => out.push(c),
        _ if c.is_ascii_alphabetic() && !ESCAPES.contains(c) => {
            return Err(format!("invalid escape sequence: \\{c}"));
        }
        _ => {
            out.push('\\');
            out.push(c);
        }
    }
    Ok(after)
}

/// Whether what follows a `{` makes it a counted repetition; RE2 allows counts up to 1000.
fn repetition(tail: &str) -> Result<bool, String> {
    let Some((inside, _)) = tail.split_once('}') else { return Ok(false) };
    let (low, high) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if low.is_empty() || !digits(low) || !digits(high) {
        return Ok(false);
    }
    for count in [low, high] {
        if !count.is_empty() && count.parse::<u32>().is_ok_and(|n| n > 1000) || count.len() > 9 {
            return Err(format!("invalid repetition size: {{{inside}}}"));
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(pattern: &str, text: &str) -> bool {
        compile(&translate(pattern, true).unwrap()).unwrap().is_match(text.as_bytes())
    }

    #[test]
    fn the_whole_text_has_to_match() {
        assert!(full("/a|/b", "/b"));
        assert!(!full("/a|/b", "/a/"));
        assert!(!full("/a", "x/a"));
    }

    #[test]
    fn braces_that_count_nothing_are_literal() {
        assert!(full("/foo/{id}", "/foo/{id}"));
        assert!(full("a{2,3}", "aaa"));
        assert!(full("a{,3}", "a{,3}"));
    }

    #[test]
    fn brackets_and_operators_in_a_class_are_literal() {
        assert!(full("[[&&x]+", "[&x"));
        assert!(full("[]a]+", "]a"));
        assert!(full("[^]a]", "b"));
        assert!(full("[[:digit:]_]+", "1_2"));
        assert!(full("[+--]+", "+,-"));
    }

    #[test]
    fn quoted_text_is_literal() {
        assert!(full(r"\Qa.b\E.", "a.bx"));
        assert!(!full(r"\Qa.b\E", "axb"));
    }

    #[test]
    fn digit_classes_are_ascii() {
        assert!(!full(r"\d", "\u{0663}"));
        assert!(full(r"\w+\.com", "a_1.com"));
    }

    #[test]
    fn back_references_do_not_exist() {
        assert_eq!(translate(r"(a)\1", true).unwrap_err(), r"invalid escape sequence: \1");
    }

    #[test]
    fn what_only_the_crate_has_does_not_exist() {
        for (pattern, why) in [
            ("a**", "bad repetition operator: **"),
            ("a++", "bad repetition operator: ++"),
            ("a{2}{3}", "bad repetition operator: {2}{3}"),
            ("a*?+", "bad repetition operator: *?+"),
            ("(?x)a b", "invalid perl operator: (?x"),
            ("(?R)", "invalid perl operator: (?R"),
            ("(?=a)", "invalid perl operator: (?="),
            (r"\u0041", r"invalid escape sequence: \u"),
            (r"\h", r"invalid escape sequence: \h"),
            (r"\8", r"invalid escape sequence: \8"),
            ("[[:foo:]]", "invalid character class range: [:foo:]"),
        ] {
            assert_eq!(translate(pattern, true).unwrap_err(), why, "{pattern}");
        }
        assert!(full(r"\101\07", "A\u{7}"));
        assert!(full("(?i-s:A+?)(?U)b*", "abb"));
        assert!(full("(?P<n>a)(b)*?", "ab"));
        assert!(full("a{2}?", "aa"));
        assert!(full(r"(?)[\d-z]+", "1-z"));
    }

    #[test]
    fn errors_are_one_line() {
        assert_eq!(compile(&translate("(a", false).unwrap()).unwrap_err(), "unclosed group");
        assert_eq!(translate("a{1001}", false).unwrap_err(), "invalid repetition size: {1001}");
        assert_eq!(translate("[a", false).unwrap_err(), "missing ]");
    }
}
