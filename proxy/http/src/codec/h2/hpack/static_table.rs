//! The static table of RFC 7541 Appendix A, with the project's interned names.

use crate::headers::{HeaderName, HeaderValue, KNOWN_COUNT, Known, find_interned};

/// Number of entries; the dynamic table's indices follow.
pub(super) const LEN: usize = 61;

macro_rules! table {
    ($($name:literal = $value:literal),+ $(,)?) => {
        const TEXT: [(&str, &str); LEN] = [$(($name, $value)),+];

        /// The entries; the entry of index `i` stands at `i - 1`.
        pub(super) static ENTRIES: [(HeaderName, HeaderValue); LEN] =
            [$((HeaderName::from_static($name), HeaderValue::from_static($value))),+];
    };
}

table! {
    ":authority" = "", ":method" = "GET", ":method" = "POST", ":path" = "/", ":path" = "/index.html",
    ":scheme" = "http", ":scheme" = "https", ":status" = "200", ":status" = "204", ":status" = "206",
    ":status" = "304", ":status" = "400", ":status" = "404", ":status" = "500", "accept-charset" = "",
    "accept-encoding" = "gzip, deflate", "accept-language" = "", "accept-ranges" = "", "accept" = "",
    "access-control-allow-origin" = "", "age" = "", "allow" = "", "authorization" = "", "cache-control" = "",
    "content-disposition" = "", "content-encoding" = "", "content-language" = "", "content-length" = "",
    "content-location" = "", "content-range" = "", "content-type" = "", "cookie" = "", "date" = "", "etag" = "",
    "expect" = "", "expires" = "", "from" = "", "host" = "", "if-match" = "", "if-modified-since" = "",
    "if-none-match" = "", "if-range" = "", "if-unmodified-since" = "", "last-modified" = "", "link" = "",
    "location" = "", "max-forwards" = "", "proxy-authenticate" = "", "proxy-authorization" = "", "range" = "",
    "referer" = "", "refresh" = "", "retry-after" = "", "server" = "", "set-cookie" = "",
    "strict-transport-security" = "", "transfer-encoding" = "", "user-agent" = "", "vary" = "", "via" = "",
    "www-authenticate" = "",
}

/// The first index of each interned name; 0 where there is none.
const FIRST: [u8; KNOWN_COUNT] = {
    let mut first = [0; KNOWN_COUNT];
    let mut i = LEN;
    while i > 0 {
        if let Some(known) = find_interned(TEXT[i - 1].0.as_bytes()) {
            first[known] = i as u8;
        }
        i -= 1;
    }
    first
};

/// The first index of a name; 0 where there is none.
#[inline]
pub(super) fn index_of_name(name: &HeaderName) -> usize {
    match name.known() {
        Some(known) => usize::from(FIRST[known as usize]),
        None => index_of_unknown(name.as_bytes()),
    }
}

/// The entries whose names the proxy does not intern.
fn index_of_unknown(name: &[u8]) -> usize {
    match name {
        b"accept-charset" => 15,
        b"allow" => 22,
        b"content-disposition" => 25,
        b"content-language" => 27,
        b"content-location" => 29,
        b"content-range" => 30,
        b"from" => 37,
        b"if-match" => 39,
        b"if-range" => 42,
        b"if-unmodified-since" => 43,
        b"link" => 45,
        b"max-forwards" => 47,
        b"refresh" => 52,
        _ => 0,
    }
}

/// The index of a whole field that has a value in the table.
#[inline]
pub(super) fn index_of_field(known: Known, value: &[u8]) -> Option<usize> {
    Some(match (known, value) {
        (Known::METHOD, b"GET") => 2,
        (Known::METHOD, b"POST") => 3,
        (Known::PATH, b"/") => 4,
        (Known::PATH, b"/index.html") => 5,
        (Known::SCHEME, b"http") => 6,
        (Known::SCHEME, b"https") => 7,
        (Known::STATUS, b"200") => 8,
        (Known::STATUS, b"204") => 9,
        (Known::STATUS, b"206") => 10,
        (Known::STATUS, b"304") => 11,
        (Known::STATUS, b"400") => 12,
        (Known::STATUS, b"404") => 13,
        (Known::STATUS, b"500") => 14,
        (Known::ACCEPT_ENCODING, b"gzip, deflate") => 16,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_found_by_its_name_and_by_its_value() {
        for (i, (name, value)) in ENTRIES.iter().enumerate() {
            assert_eq!(name.as_str(), TEXT[i].0);
            assert_eq!(value.as_bytes(), TEXT[i].1.as_bytes());
            let first = TEXT.iter().position(|(n, _)| *n == TEXT[i].0).unwrap();
            assert_eq!(index_of_name(name), first + 1, "{name}");
            assert_eq!(HeaderName::parse(TEXT[i].0).unwrap(), *name, "a name has one form");
            if !value.as_bytes().is_empty() {
                assert_eq!(index_of_field(name.known().unwrap(), value.as_bytes()), Some(i + 1));
            }
        }
        assert_eq!(index_of_name(&HeaderName::from_static("x-request-id")), 0);
    }
}
