//! `%XFCC_VALUE(KEY)%`: one key of the client certificates that `x-forwarded-client-cert` tells of.
//!
//! The first element that has the key counts. Quoted values may hold commas and semicolons; a quote that does not end
//! makes the whole header unreadable, as in Envoy.

/// A key, as the header writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ForwardedKey(&'static str);

impl ForwardedKey {
    /// The key with this name, in any case.
    pub(super) fn named(name: &str) -> Option<Self> {
        const KEYS: [&str; 7] = ["By", "Hash", "Cert", "Chain", "Subject", "URI", "DNS"];
        KEYS.into_iter().find(|key| key.eq_ignore_ascii_case(name)).map(Self)
    }

    /// Appends the value that `header` has for it; false where there is none.
    pub(super) fn write(self, header: &[u8], out: &mut Vec<u8>) -> bool {
        let mut found = None;
        let (mut start, mut quoted, mut at) = (0, false, 0);
        while at <= header.len() {
            match header.get(at) {
                Some(b'\\') if quoted => at += 1,
                Some(b'"') => quoted = !quoted,
                None | Some(b',' | b';') if !quoted => {
                    let pair = header.get(start..at).unwrap_or_default();
                    found = found.or_else(|| self.value_in(pair));
                    start = at + 1;
                }
                _ => {}
            }
            at += 1;
        }
        let Some(value) = found.filter(|_| !quoted) else { return false };
        match value {
            [b'"', inner @ .., b'"'] => {
                let mut escaped = false;
                out.extend(inner.iter().copied().filter(|byte| {
                    escaped = *byte == b'\\' && !escaped;
                    !escaped
                }));
            }
            plain => out.extend_from_slice(plain),
        }
        true
    }

    fn value_in(self, pair: &[u8]) -> Option<&[u8]> {
        let at = memchr::memchr(b'=', pair)?;
        let value = pair[at + 1..].trim_ascii();
        (pair[..at].trim_ascii().eq_ignore_ascii_case(self.0.as_bytes()) && !value.is_empty()).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(header: &str, key: &str) -> String {
        let mut out = Vec::new();
        match ForwardedKey::named(key).unwrap().write(header.as_bytes(), &mut out) {
            true => String::from_utf8(out).unwrap(),
            false => "-".into(),
        }
    }

    #[test]
    fn the_first_element_with_the_key_counts() {
        for (header, wanted) in [
            ("By=a;Hash=h;URI=u1", "u1"),
            ("URI=u1,URI=u2", "u1"),
            ("Hash=x,URI=u2", "u2"),
            ("By=b;URI=a;URI=b", "a"),
            ("  URI = x ", "x"),
            ("uri=a=b", "a=b"),
            (",URI=x", "x"),
            ("URI=", "-"),
            ("URI", "-"),
            ("\"URI\"=x", "-"),
            ("", "-"),
        ] {
            assert_eq!(value(header, "uri"), wanted, "{header}");
        }
    }

    #[test]
    fn quotes_hold_commas_and_have_to_end() {
        assert_eq!(value("Subject=\"CN=x,O=y;z\";URI=u", "Subject"), "CN=x,O=y;z");
        assert_eq!(value("Subject=\"a\\\"b\\\\\";URI=u", "Subject"), "a\"b\\");
        assert_eq!(value("URI=x\"y\"", "URI"), "x\"y\"");
        assert_eq!(value("Subject=\"unterminated;URI=x", "URI"), "-");
        assert_eq!(value("URI=x;Subject=\"unterminated", "URI"), "-");
    }

    #[test]
    fn other_keys_are_not_known() {
        assert_eq!(ForwardedKey::named("Foo"), None);
    }
}
