//! Fields of which a message has one line: where a peer sends several, Envoy joins them with a comma when it reads them, so
//! that the other side, logs, matchers and everything that asks for one value see the whole. Called by the codecs for
//! heads; trailers stay as they come.

use crate::headers::{HeaderName, HeaderValue, Headers, NameSet};

/// Which kind of head is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// A request.
    Request,
    /// A response.
    Response,
}

const EITHER: NameSet = NameSet::of(&[
    "cache-control",
    "connection",
    "content-encoding",
    "content-type",
    "upgrade",
    "via",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-request-id",
]);
const REQUEST: NameSet = EITHER.and(NameSet::of(&[
    "accept",
    "accept-encoding",
    "authorization",
    "expect",
    "grpc-accept-encoding",
    "grpc-timeout",
    "if-modified-since",
    "if-none-match",
    "origin",
    "pragma",
    "referer",
    "user-agent",
    "x-client-trace-id",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-external-address",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-internal",
    "x-envoy-ip-tags",
    "x-envoy-is-timeout-retry",
    "x-envoy-max-retries",
    "x-envoy-original-host",
    "x-envoy-original-path",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-stream-duration-ms",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
]));
const RESPONSE: NameSet = EITHER.and(NameSet::of(&[
    "access-control-allow-origin",
    "age",
    "date",
    "etag",
    "expires",
    "grpc-message",
    "grpc-status",
    "last-modified",
    "location",
    "vary",
    "x-envoy-degraded",
    "x-envoy-immediate-health-check-fail",
    "x-envoy-ratelimited",
    "x-envoy-upstream-canary",
    "x-envoy-upstream-healthchecked-cluster",
]));

/// Adds a line of a head behind the others, or its value to the line of that name where there may be only one.
#[inline]
pub(super) fn push(headers: &mut Headers, head: Head, name: HeaderName, value: HeaderValue) {
    if is_single(head, &name) && headers.contains(&name) {
        headers.append_joined(name, value.as_bytes(), ",");
    } else {
        headers.push(name, value);
    }
}

#[inline]
fn is_single(head: Head, name: &HeaderName) -> bool {
    if name.is_interned() {
        return if head == Head::Request { REQUEST.contains(name) } else { RESPONSE.contains(name) };
    }
    let name = name.as_bytes();
    match head {
        Head::Request => matches!(
            name,
            b"access-control-request-headers"
                | b"access-control-request-method"
                | b"access-control-request-private-network"
                | b"if-match"
                | b"if-range"
                | b"if-unmodified-since"
                | b"proxy-status"
        ),
        Head::Response => matches!(
            name,
            b"access-control-allow-credentials"
                | b"access-control-allow-headers"
                | b"access-control-allow-methods"
                | b"access-control-allow-private-network"
                | b"access-control-expose-headers"
                | b"access-control-max-age"
                | b"proxy-status"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: Head, lines: &[(&str, &'static str)]) -> Vec<String> {
        let mut headers = Headers::new();
        for (name, value) in lines {
            push(&mut headers, head, HeaderName::parse(name).unwrap(), HeaderValue::from_static(value));
        }
        headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect()
    }

    #[test]
    fn lines_of_one_field_are_joined_where_the_first_stands() {
        let lines = [
            ("accept", "a"),
            ("x-other", "1"),
            ("accept", "b"),
            ("x-other", "2"),
            ("if-match", "c"),
            ("if-match", "d"),
        ];
        assert_eq!(read(Head::Request, &lines), ["accept: a,b", "x-other: 1", "x-other: 2", "if-match: c,d"]);
        assert_eq!(
            read(Head::Response, &lines),
            ["accept: a", "x-other: 1", "accept: b", "x-other: 2", "if-match: c", "if-match: d"]
        );
    }

    #[test]
    fn cookies_stay_apart_and_empty_lines_vanish_in_others() {
        assert_eq!(
            read(Head::Response, &[("set-cookie", "a=1"), ("set-cookie", "b=2")]),
            ["set-cookie: a=1", "set-cookie: b=2"]
        );
        assert_eq!(read(Head::Response, &[("vary", ""), ("vary", "accept")]), ["vary: accept"]);
    }
}
