//! The `location` of redirects.

use bytes::Bytes;
use nuncio_config::route::{RedirectAction, RedirectPath, RedirectScheme};

use super::entry::RedirectParts;
use super::rewrite::{replace_prefix, replace_regex};
use crate::formatter::FormatContext;
use crate::headers::{HeaderValue, Headers, names};
use crate::path::without_query;
use crate::stream_info::StreamInfo;

/// The location for a request, or None where it cannot be a header value. `matched` is how much of the path matched, if
/// any of it is written as the route has it.
pub(super) fn location(
    action: &RedirectAction,
    parts: &RedirectParts,
    matched: Option<usize>,
    headers: &Headers,
    info: &StreamInfo,
) -> Option<HeaderValue> {
    let request_scheme = headers.bytes(&names::SCHEME).unwrap_or_default();
    let scheme = match &action.scheme {
        RedirectScheme::Keep => request_scheme,
        RedirectScheme::Https => b"https",
        RedirectScheme::Scheme(scheme) => scheme.as_bytes(),
    };
    let host =
        if action.host.is_empty() { request_host(headers, scheme, action.port != 0) } else { action.host.as_bytes() };
    let path = headers.path();
    let mut rewritten = rewritten_path(action, parts, matched, headers);
    let mut has_own_query = false;
    let path: &[u8] = match &action.path {
        RedirectPath::Keep => path,
        RedirectPath::Replace(new) => {
            has_own_query = new.contains('?');
            &*rewritten.insert(with_query_of(path, new.as_bytes()))
        }
        RedirectPath::Prefix(_) | RedirectPath::Regex(_) => rewritten.as_deref().unwrap_or(path),
        RedirectPath::Format(_) => {
            let cx = FormatContext { request: Some(headers), ..FormatContext::new(info) };
            let mut new = Vec::new();
            parts.format.as_ref()?.write(&cx, &mut new);
            has_own_query = new.contains(&b'?');
            // A format of which nothing comes says nothing about the path.
            &*rewritten.insert(with_query_of(path, if new.is_empty() { without_query(path) } else { &new }))
        }
    };
    let path = match memchr::memchr(b'?', path) {
        // The query of a configured path is never stripped.
        Some(at) if action.strip_query && !has_own_query => &path[..at],
        _ => path,
    };
    let mut out = Vec::with_capacity(scheme.len() + host.len() + path.len() + 12);
    out.extend_from_slice(scheme);
    out.extend_from_slice(b"://");
    out.extend_from_slice(host);
    if action.port != 0 {
        out.push(b':');
        out.extend_from_slice(itoa::Buffer::new().format(action.port).as_bytes());
    }
    if path.first() != Some(&b'/') {
        out.push(b'/');
    }
    out.extend_from_slice(path);
    HeaderValue::parse(Bytes::from(out))
}

/// The path that a redirect by prefix or regular expression leads to.
pub(super) fn rewritten_path(
    action: &RedirectAction,
    parts: &RedirectParts,
    matched: Option<usize>,
    headers: &Headers,
) -> Option<Vec<u8>> {
    match &action.path {
        RedirectPath::Prefix(prefix) => Some(replace_prefix(headers.path(), matched?, prefix.as_bytes())),
        RedirectPath::Regex(rewrite) => Some(replace_regex(headers.path(), rewrite, parts.substitution.as_ref()?)),
        RedirectPath::Keep | RedirectPath::Replace(_) | RedirectPath::Format(_) => None,
    }
}

/// `new` with the query of `path`, unless it has its own.
fn with_query_of(path: &[u8], new: &[u8]) -> Vec<u8> {
    let query = if new.contains(&b'?') { &[][..] } else { &path[without_query(path).len()..] };
    [new, query].concat()
}

/// The location for `require_tls`.
pub(super) fn tls_location(headers: &Headers) -> Option<HeaderValue> {
    HeaderValue::parse(Bytes::from([b"https://", headers.authority(), headers.path()].concat()))
}

/// Where a direct response with a redirecting status points: the request itself.
pub(super) fn self_location(headers: &Headers) -> Option<HeaderValue> {
    let scheme = headers.bytes(&names::SCHEME).unwrap_or_default();
    let path = headers.path();
    let slash: &[u8] = if path.first() == Some(&b'/') { b"" } else { b"/" };
    HeaderValue::parse(Bytes::from([scheme, b"://", headers.authority(), slash, path].concat()))
}

/// The request's host, without its port where the redirect names one or changes away from the scheme it is default for.
fn request_host<'a>(headers: &'a Headers, scheme: &[u8], new_port: bool) -> &'a [u8] {
    let host = headers.authority();
    let port_at = if host.first() == Some(&b'[') {
        memchr::memmem::rfind(host, b"]:").map(|at| at + 1)
    } else {
        memchr::memrchr(b':', host)
    };
    let Some(at) = port_at else { return host };
    let protocol = headers.bytes(&names::X_FORWARDED_PROTO).unwrap_or_default();
    let default_port =
        (protocol == b"https" && &host[at..] == b":443") || (protocol == b"http" && &host[at..] == b":80");
    if new_port || (scheme != protocol && default_port) { &host[..at] } else { host }
}

#[cfg(test)]
mod tests {
    use super::super::rewrite::Substitution;
    use super::*;
    use crate::formatter::Formatter;
    use crate::formatter::tests::{headers, info};
    use nuncio_config::route::RegexRewrite;

    fn action(scheme: RedirectScheme, host: &str, port: u16, path: RedirectPath, strip_query: bool) -> RedirectAction {
        RedirectAction { scheme, host: host.into(), port, path, response_code: 301, strip_query }
    }

    fn show(action: &RedirectAction, host: &str, path: &str, matched: usize) -> String {
        let list =
            headers(&[(":scheme", "http"), (":authority", host), (":path", path), ("x-forwarded-proto", "http")]);
        let mut parts = RedirectParts::default();
        match &action.path {
            RedirectPath::Regex(rewrite) => parts.substitution = Some(Substitution::build(rewrite).unwrap()),
            RedirectPath::Format(format) => parts.format = Some(Formatter::new(format, true).unwrap()),
            _ => {}
        }
        location(action, &parts, Some(matched), &list, &info()).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn schemes_hosts_and_ports_combine() {
        use RedirectPath::Keep;
        use RedirectScheme as S;
        let table = [
            (action(S::Https, "", 0, Keep, false), "a.com", "https://a.com/p?q=1"),
            (action(S::Https, "", 0, Keep, false), "a.com:80", "https://a.com/p?q=1"),
            (action(S::Https, "", 0, Keep, false), "a.com:8080", "https://a.com:8080/p?q=1"),
            (action(S::Https, "", 8443, Keep, false), "a.com:8080", "https://a.com:8443/p?q=1"),
            (action(S::Https, "", 0, Keep, false), "[::1]:80", "https://[::1]/p?q=1"),
            (action(S::Https, "", 0, Keep, false), "[::1]", "https://[::1]/p?q=1"),
            (action(S::Keep, "", 0, Keep, false), "a.com:80", "http://a.com:80/p?q=1"),
            (action(S::Keep, "b.com", 0, Keep, false), "a.com:80", "http://b.com/p?q=1"),
            (action(S::Scheme("foo".into()), "b.com", 1, Keep, true), "a.com:80", "foo://b.com:1/p"),
        ];
        for (action, host, wanted) in table {
            assert_eq!(show(&action, host, "/p?q=1", 1), wanted, "{action:?}");
        }
    }

    #[test]
    fn paths_are_replaced_and_queries_kept_or_stripped() {
        use RedirectPath as P;
        let make = |path, strip| action(RedirectScheme::Keep, "", 0, path, strip);
        let regex =
            RegexRewrite { pattern: regex::bytes::Regex::new("/(\\w+)/x").unwrap(), substitution: "/y/\\1".into() };
        let table = [
            (make(P::Replace("/new".into()), false), "http://a/new?q=1"),
            (make(P::Replace("/new".into()), true), "http://a/new"),
            (make(P::Replace("/new?z".into()), true), "http://a/new?z"),
            (make(P::Replace("new".into()), false), "http://a/new?q=1"),
            (make(P::Prefix("/other".into()), false), "http://a/other/x?q=1"),
            (make(P::Prefix("/other".into()), true), "http://a/other/x"),
            (make(P::Regex(regex), false), "http://a/y/p?q=1"),
            (make(P::Format("/f%PATH(NQ)%".into()), false), "http://a/f/p/x?q=1"),
            (make(P::Format("/f?%QUERY_PARAMS%".into()), true), "http://a/f?q=1"),
            (make(P::Format("/f?z".into()), false), "http://a/f?z"),
            (make(P::Format("%REQ(none)%".into()), false), "http://a/p/x?q=1"),
            (make(P::Format("%REQ(none)%".into()), true), "http://a/p/x"),
        ];
        for (action, wanted) in table {
            assert_eq!(show(&action, "a", "/p/x?q=1", 2), wanted, "{action:?}");
        }
    }
}
