//! RE2's syntax, as Envoy's configurations use it, on the `regex` crate.
//!
//! Both descend from the same design, but differ at the edges: RE2 takes `{`, `[` inside a class and `\<` literally
//! where the crate does not, has `\Q..\E` and `\C`, and its `\d \w \s \b` know ASCII only. Envoy has it read text as Latin-1:
//! an expression matches bytes, and a letter beyond ASCII is the bytes that it is written in. [`translate`] rewrites all this.

use regex::bytes::{Regex, RegexBuilder};

/// Memory one compiled expression may take. RE2 has no limit on the program in Envoy's default settings.
const SIZE_LIMIT: usize = 10 << 20;

/// Most repetitions, also of what is repeated within what is repeated.
const MAX_REPETITIONS: u32 = 1000;

/// The expression in the crate's syntax; `anchored` demands a match of the whole text.
pub(super) fn translate(text: &str, anchored: bool) -> Result<String, String> {
    let out = String::with_capacity(text.len() + 16);
    let mut this = Translation { text, rest: text, out, open: vec![1], atom: 1, repeated: None };
    if anchored {
        this.out.push_str("^(?:");
    }
    while let Some(c) = this.rest.chars().next() {
        this.step(c)?;
    }
    if anchored {
        this.out.push_str(")$");
    }
    Ok(this.out)
}

/// Compiles what [`translate`] made; the error is one line.
pub(super) fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern).unicode(false).size_limit(SIZE_LIMIT).dfa_size_limit(SIZE_LIMIT).build().map_err(
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

struct Translation<'t> {
    text: &'t str,
    rest: &'t str,
    out: String,
    /// For the whole and each open group: how often its most repeated part is.
    open: Vec<u32>,
    /// The same for what stands before this place.
    atom: u32,
    /// Where the repetition before this place begins: no other may follow it.
    repeated: Option<usize>,
}

impl<'t> Translation<'t> {
    fn step(&mut self, c: char) -> Result<(), String> {
        let before = self.repeated.take();
        match c {
            '\\' => {
                self.atom = 1;
                self.escape(false)?;
            }
            '[' => {
                self.atom = 1;
                self.class()?;
            }
            '(' => self.group()?,
            ')' => {
                if self.open.len() > 1 {
                    self.atom = self.open.pop().unwrap_or(1);
                    self.note_repetition();
                }
                self.take(1);
            }
            '*' | '+' | '?' => self.repetition(1, 1, before)?,
            '{' => match counted(self.rest)? {
                Some((length, times)) => self.repetition(length, times, before)?,
                None => {
                    self.atom = 1;
                    self.out.push('\\');
                    self.take(1);
                }
            },
            _ => {
                self.atom = 1;
                self.rest = &self.rest[c.len_utf8()..];
                self.literal(c);
            }
        }
        Ok(())
    }

    /// Copies so many bytes of ASCII.
    fn take(&mut self, length: usize) {
        let (taken, rest) = self.rest.split_at(length);
        self.out.push_str(taken);
        self.rest = rest;
    }

    /// A character as it is, or the bytes that it is written in.
    fn literal(&mut self, c: char) {
        match c.is_ascii() {
            true => self.out.push(c),
            false => c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| self.byte(byte)),
        }
    }

    fn byte(&mut self, byte: u8) {
        self.out.push_str(&format!("\\x{byte:02x}"));
    }

    /// The repetition before this place is inside of the group that is open.
    fn note_repetition(&mut self) {
        if let Some(most) = self.open.last_mut() {
            *most = self.atom.max(*most);
        }
    }

    fn repetition(&mut self, length: usize, times: u32, before: Option<usize>) -> Result<(), String> {
        let here = self.text.len() - self.rest.len();
        if let Some(first) = before {
            return Err(format!("bad repetition operator: {}", &self.text[first..here + length]));
        }
        let all = self.atom.saturating_mul(times.max(1));
        if all > MAX_REPETITIONS {
            return Err(format!("invalid repetition size: {}", &self.rest[..length]));
        }
        self.atom = all;
        self.note_repetition();
        self.take(length);
        if self.rest.starts_with('?') {
            self.take(1);
        }
        self.repeated = Some(here);
        Ok(())
    }

    fn group(&mut self) -> Result<(), String> {
        let Some(inner) = self.rest.strip_prefix("(?") else {
            self.open.push(1);
            self.take(1);
            return Ok(());
        };
        if let Some(named) = inner.strip_prefix("P<").or_else(|| inner.strip_prefix('<')) {
            // Nobody asks for a group by its name, and RE2 lets two have the same.
            let end = named.find('>');
            let name = end.map_or("", |end| &named[..end]);
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                let length = self.rest.len() - named.len() + end.map_or(named.len(), |end| end + 1);
                return Err(format!("invalid named capture group: {}", &self.rest[..length]));
            }
            self.open.push(1);
            self.out.push('(');
            self.rest = &named[name.len() + 1..];
            return Ok(());
        }
        let (mut on, mut off) = (String::new(), String::new());
        let (mut negated, mut last) = (false, None);
        for (at, c) in inner.char_indices() {
            match c {
                'i' | 'm' | 's' | 'U' => {
                    let (to, from) = if negated { (&mut off, &mut on) } else { (&mut on, &mut off) };
                    from.retain(|flag| flag != c);
                    if !to.contains(c) {
                        to.push(c);
                    }
                }
                '-' if !negated => negated = true,
                ':' | ')' if last != Some('-') => {
                    self.out.push_str("(?");
                    self.out.push_str(&on);
                    if !off.is_empty() {
                        self.out.push('-');
                        self.out.push_str(&off);
                    }
                    if c == ':' {
                        self.open.push(1);
                    } else if on.is_empty() && off.is_empty() {
                        self.out.push(':');
                    }
                    self.out.push(c);
                    self.rest = &inner[at + 1..];
                    return Ok(());
                }
                _ => return Err(format!("invalid perl operator: (?{}", &inner[..at + c.len_utf8()])),
            }
            last = Some(c);
        }
        Err(format!("missing ): {}", self.text))
    }

    fn class(&mut self) -> Result<(), String> {
        let whole = self.rest;
        self.take(if self.rest.starts_with("[^") { 2 } else { 1 });
        // Whether a hyphen that may make a range is just before.
        let (mut first, mut hyphen) = (true, false);
        while let Some(c) = self.rest.chars().next() {
            // Whether it stands for several characters: then no range begins with it.
            let mut is_set = false;
            match c {
                ']' if !first => {
                    self.take(1);
                    return Ok(());
                }
                '\\' => is_set = self.escape(true)?,
                '[' if self.rest.starts_with("[:") && self.rest[2..].contains(":]") => {
                    let end = self.rest[2..].find(":]").map_or(0, |at| at + 4);
                    let name = &self.rest[2..end - 2];
                    if !POSIX_CLASSES.contains(&name.strip_prefix('^').unwrap_or(name)) {
                        return Err(format!("invalid character class range: {}", &self.rest[..end]));
                    }
                    self.take(end);
                    is_set = true;
                }
                '-' if !first && !hyphen => {
                    self.take(1);
                    hyphen = true;
                    continue;
                }
                _ => {
                    // A second hyphen in a row would be the crate's set difference.
                    if matches!(c, ']' | '[' | '&' | '~' | '-') {
                        self.out.push('\\');
                    }
                    self.rest = &self.rest[c.len_utf8()..];
                    self.literal(c);
                }
            }
            if is_set && self.rest.starts_with('-') {
                self.out.push('\\');
                self.take(1);
            }
            (first, hyphen) = (false, false);
        }
        Err(format!("missing ]: {whole}"))
    }

    /// One escape, within a class or outside. Says whether it stands for several characters.
    fn escape(&mut self, in_class: bool) -> Result<bool, String> {
        let tail = &self.rest[1..];
        let Some(c) = tail.chars().next() else { return Err("trailing \\".into()) };
        let after = &tail[c.len_utf8()..];
        let bad = |length: usize| Err(format!("invalid escape sequence: \\{}", &tail[..length]));
        match c {
            'Q' if !in_class => {
                let (literal, rest) = after.split_once("\\E").unwrap_or((after, ""));
                for c in literal.chars() {
                    if c.is_ascii_punctuation() {
                        self.out.push('\\');
                    }
                    self.literal(c);
                }
                self.rest = rest;
            }
            'C' if !in_class => {
                self.out.push_str("(?s:.)");
                self.rest = after;
            }
            '0'..='9' => {
                let octal = |c: &char| c.is_digit(8);
                let more = after.chars().take_while(octal).take(2).count();
                if !octal(&c) || (c != '0' && more == 0) {
                    return bad(1);
                }
                match u8::from_str_radix(&tail[..=more], 8) {
                    Ok(code) => self.byte(code),
                    Err(_) => return bad(more + 1),
                }
                self.rest = &tail[more + 1..];
            }
            'x' => {
                let (digits, rest) = match after.strip_prefix('{') {
                    Some(inside) => inside.split_once('}').unwrap_or(("", after)),
                    None => after.split_at_checked(2).unwrap_or(("", after)),
                };
                let is_hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
                match u8::from_str_radix(digits.trim_start_matches('0'), 16) {
                    Ok(code) if is_hex => self.byte(code),
                    Err(_) if is_hex && digits.bytes().all(|byte| byte == b'0') => self.byte(0),
                    _ => return bad(1),
                }
                self.rest = rest;
            }
            'p' | 'P' => {
                self.unicode_class()?;
                return Ok(true);
            }
            '<' | '>' => {
                self.out.push(c);
                self.rest = after;
            }
            _ if !c.is_ascii() || c.is_ascii_alphabetic() && !ESCAPES.contains(c) => return bad(c.len_utf8()),
            _ => {
                self.take(2);
                return Ok("dDsSwW".contains(c));
            }
        }
        Ok(false)
    }

    /// `\pN`, `\p{Greek}`, `\P{^Lu}`: as far as they are below 256.
    fn unicode_class(&mut self) -> Result<(), String> {
        let tail = &self.rest[2..];
        let (name, rest) = match tail.strip_prefix('{') {
            Some(inside) => inside.split_once('}').unwrap_or(("", tail)),
            None => tail.split_at_checked(1).unwrap_or(("", tail)),
        };
        let (plain, mut negated) = name.strip_prefix('^').map_or((name, false), |plain| (plain, true));
        negated ^= self.rest.starts_with("\\P");
        let bad = || format!("invalid character class range: {}", &self.rest[..self.rest.len() - rest.len()]);
        let kind = match plain {
            "Any" => "\\p{Any}".to_owned(),
            _ if CATEGORIES.contains(&plain) => format!("\\p{{gc={plain}}}"),
            // RE2 is strict about the case of scripts.
            _ if plain.split('_').all(|word| word.starts_with(|c: char| c.is_ascii_uppercase())) => {
                format!("\\p{{sc={plain}}}")
            }
            _ => return Err(bad()),
        };
        let class = regex::Regex::new(&format!("^{kind}$")).map_err(|_| bad())?;
        self.rest = rest;
        self.out.push('[');
        let start = self.out.len();
        for byte in 0..=u8::MAX {
            if class.is_match(char::from(byte).encode_utf8(&mut [0; 2])) != negated {
                self.byte(byte);
            }
        }
        if self.out.len() == start {
            self.out.push_str("^\\x00-\\xff");
        }
        self.out.push(']');
        Ok(())
    }
}

/// Length and number of the counted repetition at the beginning of `text`, if it is one.
fn counted(text: &str) -> Result<Option<(usize, u32)>, String> {
    let Some(end) = text.find('}') else { return Ok(None) };
    let inside = &text[1..end];
    let (low, high) = inside.split_once(',').unwrap_or((inside, ""));
    let high = if high.is_empty() { low } else { high };
    // Other numbers are no numbers to RE2.
    let number = |text: &str| {
        let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        text.parse::<u32>().ok().filter(|number| plain && *number < 100_000_000)
    };
    match (number(low), number(high)) {
        (Some(low), Some(high)) if low.max(high) > MAX_REPETITIONS => {
            Err(format!("invalid repetition size: {}", &text[..=end]))
        }
        (Some(_), Some(times)) => Ok(Some((end + 1, times))),
        _ => Ok(None),
    }
}

/// Classes in brackets within brackets.
const POSIX_CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word",
    "xdigit",
];

/// General categories of Unicode.
const CATEGORIES: [&str; 36] = [
    "C", "Cc", "Cf", "Co", "Cs", "L", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc", "Me", "Mn", "N", "Nd", "Nl", "No", "P",
    "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S", "Sc", "Sk", "Sm", "So", "Z", "Zl", "Zp", "Zs",
];

/// Letters that mean the same after a backslash in both.
const ESCAPES: &str = "abBAdDfnrsStvwWz";

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
        assert!(full("a{02}b{100000000}", "a{02}b{100000000}"));
    }

    #[test]
    fn brackets_and_operators_in_a_class_are_literal() {
        assert!(full("[[&&x]+", "[&x"));
        assert!(full("[]a]+", "]a"));
        assert!(full("[^]a]", "b"));
        assert!(full("[[:digit:]_]+", "1_2"));
        assert!(full("[[:]]", ":]") && full("[[:alpha:]-z]+", "a-"));
        assert!(full("[+--]+", "+,-") && full("[--a]+[\\--a]+", "A5"));
        assert!(full("[---][--][-a][a-]", "---a"));
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
    fn a_letter_beyond_ascii_is_its_bytes() {
        let bytes = |pattern: &str, text: &[u8]| compile(&translate(pattern, true).unwrap()).unwrap().is_match(text);
        assert!(full("é", "é") && full("..", "é") && !full(".", "é"));
        assert!(full("[é]+", "é") && bytes("[é]", b"\xa9"));
        assert!(bytes(r"\x{ff}\xfe\377\x{0041}\x{0}", b"\xff\xfe\xffA\0"));
        assert!(bytes(r"\p{L}[\pN-]\p{^L}", b"\xe9-\xb7") && !bytes(r"\P{L}", b"\xe9"));
        assert!(!bytes(r"\p{Greek}|[\p{Greek}]", b"a") && bytes(r"[^\p{Greek}]\p{Any}", b"ab"));
        for bad in
            [r"\x{100}", r"\400", r"\x4", r"\x{}", r"\x{g}", r"\é", r"\p{greek}", r"\p{Alphabetic}", r"\p{L", r"\p"]
        {
            assert!(translate(bad, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn repetitions_within_repetitions_are_counted_together() {
        for bad in ["(a{1000}){2}", "((a{10}){10}){11}", "(a{2}b{400}){3}", "(a{2,}){501}"] {
            assert!(translate(bad, true).is_err_and(|error| error.starts_with("invalid repetition size: {")), "{bad}");
        }
        for good in ["(a{1000}){0}", "(a{1000})*b{3}", "((a{2}){3}){5}", "(a{500}b{400}){2}"] {
            assert!(translate(good, true).is_ok(), "{good}");
        }
    }

    #[test]
    fn groups_have_names_and_flags_as_in_re2() {
        assert!(full("(?P<n>a)(?<n>b)(?P<1>c)", "abc"));
        assert!(full("(?ii)a(?i-i)a(?s-i:.)", "Aa\n"));
        for bad in ["(?P<>a)", "(?P<a-b>a)", "(?P<é>a)", "(?P<n", "(?i-:a)", "(?--i)a", "(?i"] {
            assert!(translate(bad, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_are_one_line() {
        assert_eq!(compile(&translate("(a", false).unwrap()).unwrap_err(), "unclosed group");
        assert_eq!(translate("a{1001}", false).unwrap_err(), "invalid repetition size: {1001}");
        assert_eq!(translate("[a", false).unwrap_err(), "missing ]: [a");
    }
}
