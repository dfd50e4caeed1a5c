//! The query of a path as a list of parameters that can be changed, in the order in which Envoy writes them: sorted by name.
//!
//! Names and values are decoded for comparing and written back with what would end or break the query encoded.

/// Parameters by name; those of one name stay in their order.
#[derive(Debug, Default)]
pub(super) struct Query {
    /// Name, value, and whether the value is new: it is then encoded as a form is.
    list: Vec<(Vec<u8>, Vec<u8>, bool)>,
}

impl Query {
    /// The parameters of `path`; none where it has no query.
    pub(super) fn parse(path: &[u8]) -> Query {
        let Some(at) = path.iter().position(|byte| *byte == b'?') else { return Query::default() };
        let query = path[at + 1..].split(|byte| *byte == b'#').next().unwrap_or_default();
        let parameter = |text: &[u8]| {
            let (name, value) = match text.iter().position(|byte| *byte == b'=') {
                Some(at) => (&text[..at], &text[at + 1..]),
                None => (text, &[][..]),
            };
            (decode(name), decode(value), false)
        };
        Query { list: query.split(|byte| *byte == b'&').filter(|text| !text.is_empty()).map(parameter).collect() }
    }

    pub(super) fn contains(&self, name: &[u8]) -> bool {
        self.list.iter().any(|(known, ..)| known == name)
    }

    pub(super) fn remove(&mut self, name: &[u8]) {
        self.list.retain(|(known, ..)| known != name);
    }

    pub(super) fn add(&mut self, name: &[u8], value: Vec<u8>) {
        self.list.push((name.to_vec(), value, true));
    }

    /// `path` with these parameters for its query.
    pub(super) fn replace_in(mut self, path: &[u8]) -> Vec<u8> {
        let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
        let mut out = path[..end].to_vec();
        self.list.sort_by(|one, other| one.0.cmp(&other.0));
        for (at, (name, value, new)) in self.list.iter().enumerate() {
            out.push(if at == 0 { b'?' } else { b'&' });
            encode(name, &mut out, |byte| breaks(byte) || byte == b'=');
            out.push(b'=');
            match new {
                true => encode(value, &mut out, |byte| {
                    !(byte.is_ascii_alphanumeric() || matches!(byte, b'*' | b'-' | b'.' | b'_'))
                }),
                false => encode(value, &mut out, breaks),
            }
        }
        out
    }
}

/// Bytes that a request line cannot have, that end the query, or that would be taken for something else.
fn breaks(byte: u8) -> bool {
    byte <= b' ' || byte >= 0x7f || matches!(byte, b'#' | b'&' | b'%')
}

fn decode(text: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| (*byte as char).to_digit(16));
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match (byte, digit(text.get(at + 1)), digit(text.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

fn encode(text: &[u8], out: &mut Vec<u8>, wanted: impl Fn(u8) -> bool) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in text {
        if wanted(byte) {
            out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        } else {
            out.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str, change: impl FnOnce(&mut Query)) -> String {
        let mut query = Query::parse(path.as_bytes());
        change(&mut query);
        String::from_utf8(query.replace_in(path.as_bytes())).unwrap()
    }

    #[test]
    fn parameters_are_written_sorted_by_name() {
        let path = "/p?z=1&a=%41%2f&b=2&a=3&c&d=&c=4";
        assert_eq!(text(path, |_| {}), "/p?a=A/&a=3&b=2&c=&c=4&d=&z=1");
        assert_eq!(text(path, |query| query.remove(b"a")), "/p?b=2&c=&c=4&d=&z=1");
        assert_eq!(text(path, |query| query.add(b"b", b"val".to_vec())), "/p?a=A/&a=3&b=2&b=val&c=&c=4&d=&z=1");
        assert_eq!(text("/p", |_| {}), "/p");
        assert_eq!(text("/p?a=1", |query| query.remove(b"a")), "/p");
    }

    #[test]
    fn what_would_break_the_request_is_written_encoded() {
        assert_eq!(text("/p?a%0d%0a=%20%26%25&b=%zz", |_| {}), "/p?a%0D%0A=%20%26%25&b=%25zz");
        assert_eq!(text("/p", |query| query.add(b"b c", b"x y/&*".to_vec())), "/p?b%20c=x%20y%2F%26*");
    }
}
