//! Names of the form `xdstp://AUTHORITY/TYPE/ID?KEY=VALUE`, as Envoy reads and writes them.
//!
//! Two texts that differ in the order of their parameters or in what is escaped are one name; what is sent, and what is
//! compared, is the canonical text. A name that ends in `/*` stands for all resources beside it, a glob collection.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use percent_encoding::percent_decode_str;

const SCHEME: &str = "xdstp:";

/// A name, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceName {
    /// Who is responsible for it.
    pub authority: String,
    /// The name of the message, without a prefix.
    pub resource_type: String,
    /// What follows the type; may have slashes.
    pub id: String,
    /// Parameters of the context.
    pub params: BTreeMap<String, String>,
}

/// Why a text is not such a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Another scheme.
    #[error("{0} does not have an xdstp: scheme")]
    Scheme(String),
    /// There is nothing after the authority.
    #[error("Resource type missing from {0}")]
    Type(String),
}

/// Whether a name is of this form, well formed or not.
pub fn is_xdstp(name: &str) -> bool {
    name.starts_with(SCHEME)
}

/// The canonical text of a name. A name of another form, or one that is malformed, is its own.
pub fn canonical(name: &str) -> Cow<'_, str> {
    if !is_xdstp(name) {
        return Cow::Borrowed(name);
    }
    match ResourceName::parse(name) {
        Ok(parsed) => match parsed.to_string() {
            text if text == name => Cow::Borrowed(name),
            text => Cow::Owned(text),
        },
        Err(_) => Cow::Borrowed(name),
    }
}

/// Whether two texts are one name.
pub fn is_same(one: &str, other: &str) -> bool {
    one == other || (is_xdstp(one) && is_xdstp(other) && canonical(one) == canonical(other))
}

/// The glob collection in which a resource of this name is. None if the name is of another form.
pub(crate) fn collection_of(name: &str) -> Option<String> {
    let mut parsed = ResourceName::parse(name).ok()?;
    parsed.id = match parsed.id.rfind('/') {
        Some(slash) => format!("{}/*", &parsed.id[..slash]),
        None => "*".to_owned(),
    };
    Some(parsed.to_string())
}

impl ResourceName {
    /// Reads a name.
    ///
    /// # Errors
    /// It is not of this form.
    pub fn parse(name: &str) -> Result<ResourceName, NameError> {
        if !is_xdstp(name) {
            return Err(NameError::Scheme(name.to_owned()));
        }
        let rest = name.split_once("://").map_or(name, |(_, rest)| rest);
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let (resource_type, id) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
        if resource_type.is_empty() {
            return Err(NameError::Type(path.to_owned()));
        }
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        // The first of two with one key counts.
        let mut params = BTreeMap::new();
        for (key, value) in pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))) {
            params.entry(decode(key)).or_insert_with(|| decode(value));
        }
        Ok(ResourceName {
            authority: decode(authority),
            resource_type: resource_type.to_owned(),
            id: decode(id),
            params,
        })
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xdstp://{}/{}", encode(&self.authority, b"%/?#"), self.resource_type)?;
        if !self.id.is_empty() {
            write!(f, "/{}", encode(&self.id, b"%?#[]"))?;
        }
        let param =
            |(key, value): (&String, &String)| format!("{}={}", encode(key, b"%#[]&="), encode(value, b"%#[]&="));
        let mut params: Vec<String> = self.params.iter().map(param).collect();
        params.sort_unstable();
        if !params.is_empty() {
            write!(f, "?{}", params.join("&"))?;
        }
        Ok(())
    }
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Escapes `reserved`, and what is not visible ASCII.
fn encode<'a>(text: &'a str, reserved: &[u8]) -> Cow<'a, str> {
    let escaped = |byte: u8| !(b' '..b'~').contains(&byte) || reserved.contains(&byte);
    if !text.bytes().any(escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        match escaped(byte) {
            true => out.push_str(&format!("%{byte:02X}")),
            false => out.push(char::from(byte)),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canonical_text_of_a_name_is_envoys() {
        for (name, wanted) in [
            ("r1", "r1"),
            ("xdstp://a/t/x?b=1&a=2", "xdstp://a/t/x?a=2&b=1"),
            ("xdstp://a/t/x?b=1&a=1#foo", "xdstp://a/t/x?a=1%23foo&b=1"),
            ("xdstp://au%20th/t/a b/%2fc:d?x", "xdstp://au th/t/a b//c:d?x="),
            ("xdstp:///t", "xdstp:///t"),
            ("xdstp:/auth", "xdstp://xdstp:/auth"),
            ("xdstp://a/t/x#entry=foo", "xdstp://a/t/x%23entry=foo"),
            ("xdstp://a/t/é~", "xdstp://a/t/%C3%A9%7E"),
            ("xdstp://a", "xdstp://a"),
        ] {
            assert_eq!(canonical(name), wanted);
            assert_eq!(canonical(wanted), wanted, "once more");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let error = |name: &str| ResourceName::parse(name).unwrap_err().to_string();
        assert_eq!(error("foo"), "foo does not have an xdstp: scheme");
        assert_eq!(error("xdstp://a"), "Resource type missing from /");
        assert_eq!(error("xdstp://a//x"), "Resource type missing from //x");
    }

    #[test]
    fn a_resource_is_in_the_collection_beside_it() {
        assert_eq!(collection_of("xdstp://a/t/x/y?b=1&a=1").as_deref(), Some("xdstp://a/t/x/*?a=1&b=1"));
        assert_eq!(collection_of("xdstp://a/t/x").as_deref(), Some("xdstp://a/t/*"));
        assert_eq!(collection_of("x/y"), None);
    }
}
