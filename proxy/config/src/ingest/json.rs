//! Reads JSON into a [`Tree`], with what protobuf's reader (and so Envoy) forgives: trailing commas, single quotes,
//! unquoted keys, control characters in strings. Keys that stand twice are kept: they merge.

use std::borrow::Cow;

use super::tree::{BuildError, Builder, Leaf, MAX_DEPTH, Place, Tree};
use crate::diagnostics::{ConfigError, Position};
use crate::paths::FieldPath;

/// The tree of `text`; `source` says which text of the report it is.
pub(crate) fn read(text: &str, source: u32) -> Result<Tree<'_>, ConfigError> {
    let mut reader = Reader { text, at: 0, line: 1, column: 1, source, builder: Builder::new(true) };
    reader.value(0)?;
    reader.skip_space();
    if reader.at < text.len() {
        return Err(reader.fail("extraneous characters after end of JSON object"));
    }
    match reader.builder.finish() {
        Some(tree) => Ok(tree),
        None => Err(ConfigError::new(FieldPath::root(), "the file is empty")),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: u32,
    column: u32,
    source: u32,
    builder: Builder<'a>,
}

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> Result<(), ConfigError> {
        self.skip_space();
        if depth > MAX_DEPTH {
            return Err(self.fail(&format!("nested deeper than {MAX_DEPTH} levels")));
        }
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"' | b'\'') => {
                let (string, place) = self.string()?;
                self.leaf(Leaf::Quoted(string), place)
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Leaf::JsonBool(true)),
            Some(b'f') => self.word("false", Leaf::JsonBool(false)),
            Some(b'n') => self.word("null", Leaf::JsonNull),
            Some(_) => Err(self.unexpected("a value")),
            None => Err(self.fail("unexpected end of file; expected a value")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), ConfigError> {
        let place = self.here();
        let started = self.builder.start_mapping(place);
        self.built(started)?;
        self.bump(1);
        loop {
            self.skip_space();
            match self.peek() {
                Some(b'}') => {
                    self.bump(1);
                    let ended = self.builder.end();
                    return self.built(ended);
                }
                Some(b'"' | b'\'') => {
                    let (key, place) = self.string()?;
                    self.leaf(Leaf::Quoted(key), place)?;
                }
                Some(byte) if is_bare(byte) => {
                    let length = self.rest().bytes().take_while(|b| is_bare(*b)).count();
                    let place = self.here();
                    let key = Cow::Borrowed(&self.text[self.at..self.at + length]);
                    self.bump(length);
                    self.leaf(Leaf::Quoted(key), place)?;
                }
                _ => return Err(self.unexpected("a key or '}'")),
            }
            self.skip_space();
            if self.peek() != Some(b':') {
                return Err(self.unexpected("':'"));
            }
            self.bump(1);
            self.value(depth + 1)?;
            self.skip_space();
            match self.peek() {
                Some(b',') => self.bump(1),
                Some(b'}') => {}
                _ => return Err(self.unexpected("',' or '}'")),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), ConfigError> {
        let place = self.here();
        let started = self.builder.start_sequence(place);
        self.built(started)?;
        self.bump(1);
        loop {
            self.skip_space();
            if self.peek() == Some(b']') {
                self.bump(1);
                let ended = self.builder.end();
                return self.built(ended);
            }
            self.value(depth + 1)?;
            self.skip_space();
            match self.peek() {
                Some(b',') => self.bump(1),
                Some(b']') => {}
                _ => return Err(self.unexpected("',' or ']'")),
            }
        }
    }

    fn number(&mut self) -> Result<(), ConfigError> {
        let digits = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let length = self.rest().bytes().take_while(digits).count();
        let text = &self.text[self.at..self.at + length];
        let magnitude = text.strip_prefix('-').unwrap_or(text).as_bytes();
        let leading_zero = magnitude.len() > 1 && magnitude[0] == b'0' && magnitude[1].is_ascii_digit();
        let finite = text.parse::<f64>().is_ok_and(f64::is_finite);
        if leading_zero || text.ends_with('.') || !magnitude.first().is_some_and(u8::is_ascii_digit) || !finite {
            return Err(self.fail(&format!("invalid number: '{text}'")));
        }
        let place = self.here();
        self.bump(length);
        self.leaf(Leaf::JsonNumber(text), place)
    }

    fn word(&mut self, word: &str, leaf: Leaf<'a>) -> Result<(), ConfigError> {
        if !self.rest().starts_with(word) {
            return Err(self.unexpected("a value"));
        }
        let place = self.here();
        self.bump(word.len());
        self.leaf(leaf, place)
    }

    fn string(&mut self) -> Result<(Cow<'a, str>, Place), ConfigError> {
        let (line, column) = (self.line, self.column);
        let quote = self.peek().unwrap_or(b'"');
        self.bump(1);
        let mut owned: Option<String> = None;
        let mut from = self.at;
        loop {
            match self.peek() {
                None => return Err(self.fail("unexpected end of file in a string")),
                Some(byte) if byte == quote => {
                    let tail = &self.text[from..self.at];
                    self.bump(1);
                    let string = match owned {
                        Some(string) => Cow::Owned(string + tail),
                        None => Cow::Borrowed(tail),
                    };
                    return Ok((string, Place { line, column }));
                }
                Some(b'\\') => {
                    let string = owned.get_or_insert_with(String::new);
                    string.push_str(&self.text[from..self.at]);
                    let character = self.escape()?;
                    owned.get_or_insert_with(String::new).push(character);
                    from = self.at;
                }
                Some(b'\n') => self.newline(),
                Some(_) => self.bump(1),
            }
        }
    }

    fn escape(&mut self) -> Result<char, ConfigError> {
        self.bump(1);
        let Some(byte) = self.peek() else { return Err(self.fail("unexpected end of file in a string")) };
        let character = match byte {
            b'"' | b'\\' | b'/' | b'\'' => byte as char,
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' | b'U' => {
                self.bump(1);
                return self.unicode();
            }
            _ => return Err(self.fail("invalid escape character")),
        };
        self.bump(1);
        Ok(character)
    }

    fn unicode(&mut self) -> Result<char, ConfigError> {
        let first = self.hex4()?;
        let code = match first {
            0xd800..=0xdbff => {
                if !self.rest().starts_with("\\u") {
                    return Err(self.fail("unpaired high surrogate"));
                }
                self.bump(2);
                let second = self.hex4()?;
                if !(0xdc00..=0xdfff).contains(&second) {
                    return Err(self.fail("invalid low surrogate"));
                }
                0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            code => code,
        };
        char::from_u32(code).ok_or_else(|| self.fail("unpaired low surrogate"))
    }

    fn hex4(&mut self) -> Result<u32, ConfigError> {
        let digits = self.rest().get(..4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        let Some(code) = digits.and_then(|d| u32::from_str_radix(d, 16).ok()) else {
            return Err(self.fail("invalid Unicode escape"));
        };
        self.bump(4);
        Ok(code)
    }

    fn leaf(&mut self, leaf: Leaf<'a>, place: Place) -> Result<(), ConfigError> {
        let built = self.builder.leaf(leaf, place, false).map(|_| ());
        self.built(built)
    }

    fn built<T>(&self, result: Result<T, BuildError>) -> Result<(), ConfigError> {
        match result {
            Ok(_) => Ok(()),
            Err(BuildError::TooDeep) => Err(self.fail(&format!("nested deeper than {MAX_DEPTH} levels"))),
            Err(BuildError::KeyNotScalar) => Err(self.fail("expected a key")),
            Err(BuildError::TooLarge) => Err(self.fail("the file is too large")),
        }
    }

    fn skip_space(&mut self) {
        while let Some(byte) = self.peek() {
            match byte {
                b'\n' => self.newline(),
                b' ' | b'\t' | b'\r' => self.bump(1),
                _ => return,
            }
        }
    }

    fn newline(&mut self) {
        self.at += 1;
        self.line = self.line.saturating_add(1);
        self.column = 1;
    }

    /// Goes on by `bytes`; only characters count as columns.
    fn bump(&mut self, bytes: usize) {
        let passed = &self.text.as_bytes()[self.at..self.at + bytes];
        let characters = passed.iter().filter(|b| (**b & 0xc0) != 0x80).count();
        self.column = self.column.saturating_add(u32::try_from(characters).unwrap_or(u32::MAX));
        self.at += bytes;
    }

    fn rest(&self) -> &'a str {
        // Inside a string `at` may stand between the bytes of one character; all callers look for ASCII only.
        self.text.get(self.at..).unwrap_or("")
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn here(&self) -> Place {
        Place { line: self.line, column: self.column }
    }

    fn unexpected(&self, expected: &str) -> ConfigError {
        match self.text.get(self.at..).and_then(|rest| rest.chars().next()) {
            Some(character) => self.fail(&format!("unexpected character: '{character}'; expected {expected}")),
            None => self.fail(&format!("unexpected end of file; expected {expected}")),
        }
    }

    fn fail(&self, message: &str) -> ConfigError {
        let position = Position { source: self.source, line: self.line, column: self.column, length: 1 };
        ConfigError::new(FieldPath::root(), format!("invalid JSON: {message}")).at(position)
    }
}

fn is_bare(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

#[cfg(test)]
mod tests {
    use super::super::tree::{Scalar, View};
    use super::*;

    #[test]
    fn what_protobuf_forgives_is_forgiven() {
        let tree = read("{'a': [1, 2,], b: \"x\\u00e9\\ud83d\\ude00\\n\", \"c\": null,}\n", 0).unwrap();
        let (_, a) = tree.get(tree.root, "a").unwrap();
        assert!(matches!(tree.view(a), View::Sequence(items) if items.len() == 2));
        let (_, b) = tree.get(tree.root, "b").unwrap();
        assert!(matches!(tree.view(b), View::Scalar(Scalar::Str(s)) if s == "xé😀\n"));
        let (_, c) = tree.get(tree.root, "c").unwrap();
        assert!(tree.is_null(c));
    }

    #[test]
    fn errors_name_the_place_in_characters() {
        let error = read("{\n  \"ä\": \"ö\" x}", 0).unwrap_err();
        assert_eq!(error.message, "invalid JSON: unexpected character: 'x'; expected ',' or '}'");
        assert_eq!(error.position.map(|p| (p.line, p.column)), Some((2, 12)));
    }

    #[test]
    fn malformed_texts_are_refused() {
        for text in [
            "",
            "{",
            "[1",
            "{\"a\"}",
            "{} x",
            "tru",
            "01",
            "1.",
            "-",
            "1e999",
            "\"\\x\"",
            "\"\\ud800\"",
            "\"abc",
            "{1:}",
            "/*c*/{}",
            "{\"a\":1 \"b\":2}",
            "\"\\u12\"",
            "[,]",
        ] {
            assert!(read(text, 0).is_err(), "{text}");
        }
        assert!(read(&"[".repeat(100_000), 0).is_err());
    }
}
