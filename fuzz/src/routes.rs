//! Format strings, path normalization and route matching on arbitrary input.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use nuncio_config::hcm::EscapedSlashesAction;
use nuncio_config::header_mutation::HeaderMutations;
use nuncio_config::route::{
    PathMatch, RequireTls, Route, RouteActionKind, RouteConfiguration, RouteMatch, VirtualHost,
};
use nuncio_http::formatter::{FormatContext, Formatter, JsonFormatter};
use nuncio_http::headers::{HeaderName, HeaderValue, Headers, names};
use nuncio_http::matchers::NoRuntime;
use nuncio_http::path::{Normalized, PathRules, normalize};
use nuncio_http::route::{RouteOutcome, RouteRequest, RouteTable};
use nuncio_http::stream_info::StreamInfo;
use nuncio_net::connection::{Address, ConnectionInfo};

fn info() -> StreamInfo {
    let ip = |port: u16| Address::Ip(([127, 0, 0, 1], port).into());
    StreamInfo::new(Rc::new(ConnectionInfo::new(ip(80), ip(5555))), 1, None)
}

fn headers(path: &[u8], host: &[u8]) -> Option<Headers> {
    let mut list = Headers::new();
    list.append(names::METHOD, HeaderValue::from_static("GET"));
    list.append(names::AUTHORITY, HeaderValue::parse(Bytes::copy_from_slice(host))?);
    list.append(names::PATH, HeaderValue::parse(Bytes::copy_from_slice(path))?);
    list.append(HeaderName::parse("x-f")?, HeaderValue::from_static("1"));
    Some(list)
}

/// Compiles the first line of the input as a format and evaluates it on a request made of the rest. JSON output has to parse.
pub fn formatter(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let Ok(format) = std::str::from_utf8(&data[..at]) else { return };
    let Some(request) = headers(data.get(at + 1..).unwrap_or_default(), b"host") else { return };
    let info = info();
    let cx = FormatContext { request: Some(&request), ..FormatContext::new(&info) };
    let mut out = Vec::new();
    if let Ok(formatter) = Formatter::new(format, data.len().is_multiple_of(2)) {
        formatter.write(&cx, &mut out);
    }
    let json = serde_json::json!({ "k": format, "list": [format, 1] });
    if let Ok(formatter) = JsonFormatter::new(&json, data.len().is_multiple_of(2)) {
        out.clear();
        formatter.write(&cx, &mut out);
        let parsed = serde_json::from_slice::<serde_json::Value>(&out);
        assert!(parsed.is_ok(), "{}", out.escape_ascii());
    }
}

/// Normalizes the input as a path: a second pass changes nothing, and no dot segment is left.
pub fn path(data: &[u8]) {
    for merge_slashes in [false, true] {
        let rules = PathRules { normalize: true, merge_slashes, escaped_slashes: EscapedSlashesAction::KeepUnchanged };
        let path = match normalize(data, rules) {
            Normalized::Same => data.to_vec(),
            Normalized::Changed(new) => new,
            Normalized::Redirect(_) | Normalized::Rejected(_) => continue,
        };
        assert_eq!(normalize(&path, rules), Normalized::Same, "{}", path.escape_ascii());
        let plain = path.split(|byte| *byte == b'?').next().unwrap_or_default();
        assert!(plain.split(|byte| *byte == b'/').all(|segment| segment != b"." && segment != b".."));
    }
}

/// The first line is a path, the others are routes: the indexed table finds what a scan finds.
pub fn route_matcher(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let path = lines.next().unwrap_or_default();
    let routes: Vec<Route> = lines.take(64).enumerate().map(|(at, line)| route(at, line)).collect();
    let Some(request) = headers(path.as_bytes(), b"Host.example:80") else { return };
    let plain = path.split(['?', '#']).next().unwrap_or_default();
    let scanned = routes.iter().position(|route| match &route.matches.path {
        PathMatch::Exact(exact) => plain == &**exact,
        PathMatch::Prefix(prefix) => plain.starts_with(&**prefix),
        PathMatch::SeparatedPrefix(prefix) => {
            plain.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        _ => false,
    });
    let Ok(table) = RouteTable::build(Arc::new(config(routes))) else { return };
    let query = RouteRequest {
        headers: &request,
        scheme: b"http",
        internal: false,
        random: 0,
        tls: None,
        dynamic_metadata: None,
        info: None,
        filter_state: None,
        runtime: &NoRuntime,
    };
    let found = match table.route(&query, None) {
        RouteOutcome::Route(active) => active.entry().name().parse::<usize>().ok(),
        RouteOutcome::TlsRedirect(_) | RouteOutcome::NotFound => None,
    };
    assert_eq!(found, scanned);
}

/// `=` begins an exact path, `/` a prefix, `+` a separated prefix.
fn route(at: usize, line: &str) -> Route {
    let path = if let Some(exact) = line.strip_prefix('=') {
        PathMatch::Exact(exact.into())
    } else if let Some(prefix) = line.strip_prefix('+') {
        PathMatch::SeparatedPrefix(prefix.into())
    } else {
        PathMatch::Prefix(line.into())
    };
    Route {
        name: at.to_string().into(),
        matches: RouteMatch {
            path,
            case_sensitive: true,
            runtime_fraction: None,
            headers: Vec::new(),
            query_parameters: Vec::new(),
            cookies: Vec::new(),
            grpc: false,
            tls_context: None,
            dynamic_metadata: Vec::new(),
            filter_state: Vec::new(),
        },
        action: RouteActionKind::NonForwarding,
        headers: HeaderMutations::default(),
        typed_per_filter_config: Vec::new(),
        metadata: None,
        decorator_operation: None,
        per_request_buffer_limit_bytes: None,
        stat_prefix: None,
        path: "route".into(),
    }
}

fn config(routes: Vec<Route>) -> RouteConfiguration {
    RouteConfiguration {
        name: "rc".into(),
        virtual_hosts: vec![VirtualHost {
            metadata: None,
            name: "v".into(),
            domains: vec!["*.example:80".into(), "other".into()],
            routes,
            matcher: None,
            require_tls: RequireTls::None,
            virtual_clusters: Vec::new(),
            headers: HeaderMutations::default(),
            typed_per_filter_config: Vec::new(),
            retry_policy: None,
            include_request_attempt_count: false,
            include_attempt_count_in_response: false,
            include_is_timeout_retry_header: false,
            per_request_buffer_limit_bytes: None,
            request_mirror_policies: Vec::new(),
            rate_limits: Vec::new(),
            path: "virtual_hosts[0]".into(),
        }],
        internal_only_headers: Vec::new(),
        headers: HeaderMutations::default(),
        most_specific_header_mutations_wins: false,
        validate_clusters: false,
        typed_per_filter_config: Vec::new(),
        max_direct_response_body_size_bytes: 4096,
        ignore_port_in_host_matching: false,
        ignore_path_parameters_in_path_matching: false,
        vhost_header: None,
        request_mirror_policies: Vec::new(),
        vhds: None,
        path: "route_config".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: &[u8] = b"%/.;:()?ABC\n\\2e";

    fn replay(target: fn(&[u8]), seeds: &[&[u8]]) {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut next = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % bound.max(1) as u64) as usize
        };
        for seed in seeds {
            target(seed);
            for _ in 0..500 {
                let mut data = seed.to_vec();
                for _ in 0..=next(4) {
                    let at = next(data.len() + 1);
                    let other = seeds[next(seeds.len())];
                    match next(3) {
                        0 => data.insert(at, BYTES[next(BYTES.len())]),
                        1 => data.truncate(at),
                        _ => data.extend_from_slice(&other[next(other.len() + 1)..]),
                    }
                }
                target(&data);
            }
        }
    }

    #[test]
    fn seeds_and_their_mutations_hold() {
        replay(
            formatter,
            &[
                b"%REQ(X-F?:PATH):3% %START_TIME(%3f %E*S)%\n/a?b",
                b"%PATH(NQ)%%%\n/x",
                b"%QUERY_PARAM(a)%\n/?a=%ff\"",
                b"a\"b",
            ],
        );
        replay(path, &[b"/a/../b/%2e%2E/c?d", b"/%%342e/..;x/.", b"\\a\\..//", b"*", b"/\xc3\xa9{}"]);
        replay(route_matcher, &[b"/a/b?c\n/\n=/a/b\n+/a\n/a/\n/a/b/\n=/\n+/a/b\n/b", b"/\n\n=\n+\n/\n/\n/\n/\n/"]);
    }
}
