//! Hash policies of a route: what a consistent-hashing load balancer is given. Envoy's `HashPolicyImpl`.

use nuncio_base::random;
use nuncio_config::route::{HashPolicy, HashPolicyKind};
use nuncio_http::headers::{HeaderName, HeaderValue, Headers, names};
use nuncio_http::matchers;
use nuncio_http::stream_info::StreamInfo;
use std::fmt::Write as _;
use xxhash_rust::xxh64::xxh64;

/// The hash of a request; None when no policy yields one. A cookie that has to be made is added to `set_cookie`.
pub(crate) fn of_request(
    policies: &[HashPolicy],
    headers: &Headers,
    info: &StreamInfo,
    set_cookie: &mut Vec<HeaderValue>,
) -> Option<u64> {
    let mut hash: Option<u64> = None;
    for policy in policies {
        if let Some(new) = one(&policy.kind, headers, info, set_cookie) {
            // Rotating makes the order of the policies count.
            hash = Some(hash.map_or(0, |old| old.rotate_left(1)) ^ new);
        }
        if policy.terminal && hash.is_some() {
            break;
        }
    }
    hash
}

fn one(kind: &HashPolicyKind, headers: &Headers, info: &StreamInfo, set_cookie: &mut Vec<HeaderValue>) -> Option<u64> {
    match kind {
        HashPolicyKind::Header(name, rewrite) => {
            let name = HeaderName::parse(name)?;
            let mut values: Vec<&[u8]> = headers.get_all(&name).map(HeaderValue::as_bytes).collect();
            if values.is_empty() {
                return None;
            }
            if let ([value], Some(rewrite)) = (&values[..], rewrite) {
                let substitution = nuncio_http::route::rewrite::Substitution::build(rewrite).ok()?;
                let mut out = Vec::new();
                substitution.replace_all(rewrite, value, &mut out);
                return Some(xxh64(&out, 0));
            }
            // Envoy sorts several values, so that their order does not count.
            values.sort_unstable();
            let joined = values.iter().fold(0, |hash, value| xxh64(value, hash));
            Some(joined)
        }
        HashPolicyKind::Cookie { name, ttl, path, attributes } => {
            if let Some(value) = matchers::cookie(headers, name.as_bytes()).filter(|v| !v.is_empty()) {
                return Some(xxh64(value, 0));
            }
            let ttl = (*ttl)?;
            let id = format!("{:016x}", random::u64());
            let mut text = format!("{name}=\"{id}\"");
            // Writing to a String cannot fail.
            if !ttl.is_zero() {
                let _ = write!(text, "; Max-Age={}", ttl.as_secs());
            }
            if !path.is_empty() {
                let _ = write!(text, "; Path={path}");
            }
            for (key, value) in attributes {
                let _ = if value.is_empty() { write!(text, "; {key}") } else { write!(text, "; {key}={value}") };
            }
            text.push_str("; HttpOnly");
            set_cookie.extend(HeaderValue::parse(text));
            Some(xxh64(id.as_bytes(), 0))
        }
        HashPolicyKind::SourceIp => {
            let address = info.remote_address.as_ref().unwrap_or(&info.connection.remote_address);
            Some(xxh64(address.ip()?.to_string().as_bytes(), 0))
        }
        HashPolicyKind::QueryParameter(name) => {
            matchers::query_parameter(headers.bytes(&names::PATH)?, name.as_bytes()).map(|v| xxh64(v, 0))
        }
        HashPolicyKind::FilterState(key) => {
            let state = info.filter_state.as_ref()?;
            state.iter().find(|(k, _)| **k == **key).map(|(_, v)| xxh64(v.as_bytes(), 0))
        }
    }
}
