//! What a route says about retries, hashing, mirroring and internal redirects, compiled: header names parsed,
//! substitutions split, conditions ready. The router filter, one floor up, acts on it.

use bytes::Bytes;
use nuncio_config::matchers::{HeaderMatcher, RuntimeFraction};
use nuncio_config::route::{
    HashPolicy, HashPolicyKind, InternalRedirectPolicy, MirrorPolicy, RegexRewrite, RetryPolicy,
};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh64::xxh64;

use super::rewrite::Substitution;
use super::table::BuildError;
use crate::formatter::FormatContext;
use crate::header_mutation::{MutationList, Side};
use crate::headers::{HeaderName, HeaderValue, Headers, names};
use crate::matchers::{self, HeaderMatch, Runtime, build_header_matches, header_name, in_runtime_fraction};
use crate::stream_info::StreamInfo;

fn parse_name(name: &str, path: impl FnOnce() -> String, errors: &mut Vec<BuildError>) -> Option<HeaderName> {
    let parsed = header_name(name);
    if parsed.is_none() {
        errors.push((path(), format!("invalid header name: {name:?}")));
    }
    parsed
}

/// Header conditions of a retry policy, compiled.
#[derive(Debug, Default)]
pub struct RetryConditions {
    /// `retriable_headers`: a response with one of them is retried.
    pub response_headers: Box<[HeaderMatch]>,
    /// `retriable_request_headers`: only requests with one of them are retried; empty for all.
    pub request_headers: Box<[HeaderMatch]>,
    /// `reset_headers` of the rate-limited back-off; true for those that hold a time of day.
    pub reset_headers: Box<[(HeaderName, bool)]>,
}

impl RetryConditions {
    /// Compiles those of the policy at `path`; None where it has none.
    pub fn build(policy: &RetryPolicy, path: &str, errors: &mut Vec<BuildError>) -> Option<Arc<Self>> {
        let resets = policy.rate_limited_back_off.as_ref().map_or(&[][..], |limited| &limited.reset_headers);
        if policy.retriable_headers.is_empty() && policy.retriable_request_headers.is_empty() && resets.is_empty() {
            return None;
        }
        let mut list = |field: &str, matchers: &[HeaderMatcher]| {
            build_header_matches(matchers).unwrap_or_else(|text| {
                errors.push((format!("{path}.retry_policy.{field}"), text));
                Box::default()
            })
        };
        let response_headers = list("retriable_headers", &policy.retriable_headers);
        let request_headers = list("retriable_request_headers", &policy.retriable_request_headers);
        let reset = |(at, (name, time)): (usize, &(Box<str>, bool))| {
            let field = || format!("{path}.retry_policy.rate_limited_retry_back_off.reset_headers[{at}].name");
            Some((parse_name(name, field, errors)?, *time))
        };
        let reset_headers = resets.iter().enumerate().filter_map(reset).collect();
        Some(Arc::new(RetryConditions { response_headers, request_headers, reset_headers }))
    }
}

/// `hash_policy`, compiled.
#[derive(Debug, Default)]
pub struct HashPolicies(Box<[(bool, HashKind)]>);

#[derive(Debug)]
enum HashKind {
    Header(HeaderName, Option<(RegexRewrite, Substitution)>),
    Cookie { name: Box<str>, ttl: Option<Duration>, attributes: Box<str> },
    SourceIp,
    QueryParameter(Box<str>),
    FilterState(Box<str>),
}

impl HashPolicies {
    /// Compiles those at `path`; what is wrong is added to `errors`.
    pub fn build(policies: &[HashPolicy], path: &str, errors: &mut Vec<BuildError>) -> Self {
        let mut list = Vec::with_capacity(policies.len());
        for (at, policy) in policies.iter().enumerate() {
            let path = format!("{path}.hash_policy[{at}]");
            let kind = match &policy.kind {
                HashPolicyKind::Header(name, rewrite) => {
                    let Some(name) = parse_name(name, || format!("{path}.header.header_name"), errors) else {
                        continue;
                    };
                    let rewrite = rewrite.as_ref().and_then(|rewrite| match Substitution::build(rewrite) {
                        Ok(substitution) => Some((rewrite.clone(), substitution)),
                        Err(text) => {
                            errors.push((format!("{path}.header.regex_rewrite.substitution"), text));
                            None
                        }
                    });
                    HashKind::Header(name, rewrite)
                }
                HashPolicyKind::Cookie { name, ttl, path, attributes } => {
                    HashKind::Cookie { name: name.clone(), ttl: *ttl, attributes: cookie_tail(*ttl, path, attributes) }
                }
                HashPolicyKind::SourceIp => HashKind::SourceIp,
                HashPolicyKind::QueryParameter(name) => HashKind::QueryParameter(name.clone()),
                HashPolicyKind::FilterState(key) => HashKind::FilterState(key.clone()),
            };
            list.push((policy.terminal, kind));
        }
        Self(list.into())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The hash of a request; None when no policy yields one. A cookie that has to be made is handed to `set_cookie`;
    /// without it none is made.
    pub fn hash(
        &self,
        headers: &Headers,
        info: &StreamInfo,
        mut set_cookie: Option<&mut dyn FnMut(HeaderValue)>,
    ) -> Option<u64> {
        let mut hash: Option<u64> = None;
        for (terminal, kind) in &self.0 {
            if let Some(new) = kind.hash(headers, info, &mut set_cookie) {
                // Rotating makes the order of the policies count.
                hash = Some(hash.map_or(0, |old| old.rotate_left(1)) ^ new);
            }
            if *terminal && hash.is_some() {
                break;
            }
        }
        hash
    }
}

impl HashKind {
    fn hash(
        &self,
        headers: &Headers,
        info: &StreamInfo,
        set_cookie: &mut Option<&mut dyn FnMut(HeaderValue)>,
    ) -> Option<u64> {
        match self {
            HashKind::Header(name, rewrite) => header_hash(headers, name, rewrite.as_ref()),
            HashKind::Cookie { name, ttl, attributes } => {
                if let Some(value) = matchers::cookie(headers, name.as_bytes()).filter(|value| !value.is_empty()) {
                    return Some(xxh64(value, 0));
                }
                (*ttl)?;
                let set_cookie = set_cookie.as_mut()?;
                let id = format!("{:016x}", nuncio_base::random::u64());
                if let Some(value) = HeaderValue::parse(format!("{name}=\"{id}\"{attributes}")) {
                    set_cookie(value);
                }
                Some(xxh64(id.as_bytes(), 0))
            }
            HashKind::SourceIp => {
                let address = info.remote_address.as_ref().unwrap_or(&info.connection.remote_address);
                Some(xxh64(address.ip()?.to_string().as_bytes(), 0))
            }
            HashKind::QueryParameter(name) => {
                matchers::query_parameter(headers.bytes(&names::PATH)?, name.as_bytes()).map(|value| xxh64(value, 0))
            }
            HashKind::FilterState(key) => {
                let state = info.filter_state.as_ref()?;
                state.iter().find(|(known, _)| **known == **key).map(|(_, value)| xxh64(value.as_bytes(), 0))
            }
        }
    }
}

/// Several values are sorted first, so that their order does not count.
fn header_hash(headers: &Headers, name: &HeaderName, rewrite: Option<&(RegexRewrite, Substitution)>) -> Option<u64> {
    let mut values: smallvec::SmallVec<[std::borrow::Cow<'_, [u8]>; 4]> =
        headers.get_all(name).map(|value| value.as_bytes().into()).collect();
    if let Some((rewrite, substitution)) = rewrite {
        for value in &mut values {
            let mut out = Vec::with_capacity(value.len());
            substitution.replace_all(rewrite, value, &mut out);
            *value = out.into();
        }
    }
    match &mut values[..] {
        [] => None,
        [one] => Some(xxh64(one, 0)),
        many => {
            many.sort_unstable();
            Some(many.iter().fold(0, |hash, value| xxh64(value, hash)))
        }
    }
}

/// What follows the value of a cookie that is made here.
fn cookie_tail(ttl: Option<Duration>, path: &str, attributes: &[(Box<str>, Box<str>)]) -> Box<str> {
    let mut text = String::new();
    // Writing to a String cannot fail.
    if let Some(ttl) = ttl.filter(|ttl| ttl.as_secs() > 0) {
        let _ = write!(text, "; Max-Age={}", ttl.as_secs());
    }
    if !path.is_empty() {
        let _ = write!(text, "; Path={path}");
    }
    for (key, value) in attributes {
        let _ = if value.is_empty() { write!(text, "; {key}") } else { write!(text, "; {key}={value}") };
    }
    text.push_str("; HttpOnly");
    text.into()
}

/// One `request_mirror_policies` entry, compiled.
#[derive(Debug)]
pub struct Mirror {
    cluster: Arc<str>,
    cluster_header: Option<HeaderName>,
    fraction: Option<RuntimeFraction>,
    host: Option<HeaderValue>,
    append_shadow: bool,
    mutations: MutationList,
}

impl Mirror {
    /// Compiles all; what is wrong is added to `errors`.
    pub fn build_all(policies: &[MirrorPolicy], errors: &mut Vec<BuildError>) -> Box<[Mirror]> {
        policies.iter().filter_map(|policy| Self::build(policy, errors)).collect()
    }

    fn build(policy: &MirrorPolicy, errors: &mut Vec<BuildError>) -> Option<Mirror> {
        let path = &policy.path;
        let cluster_header = match &policy.cluster_header {
            Some(name) => Some(parse_name(name, || format!("{path}.cluster_header"), errors)?),
            None => None,
        };
        let host = match policy.host_rewrite_literal.as_deref() {
            Some(host) => {
                let value = HeaderValue::parse(Bytes::copy_from_slice(host.as_bytes()));
                if value.is_none() {
                    errors.push((format!("{path}.host_rewrite_literal"), "not a header value".into()));
                }
                value
            }
            None => None,
        };
        let mutations = MutationList::build(&policy.header_mutations).unwrap_or_else(|list| {
            let place = |at| format!("{path}.request_headers_mutations[{at}]");
            errors.extend(list.into_iter().map(|(at, text)| (place(at), text)));
            MutationList::default()
        });
        Some(Mirror {
            cluster: policy.cluster.clone(),
            cluster_header,
            fraction: policy.runtime_fraction.clone(),
            append_shadow: !policy.disable_shadow_host_suffix_append && host.is_none(),
            host,
            mutations,
        })
    }

    /// Whether a request with this random number is mirrored.
    pub fn applies(&self, runtime: &dyn Runtime, random: u64) -> bool {
        self.fraction.as_ref().is_none_or(|fraction| in_runtime_fraction(fraction, runtime, random))
    }

    /// The cluster that gets the copy; None where a header should name it but does not.
    pub fn cluster<'a>(&'a self, headers: &'a Headers) -> Option<&'a str> {
        match &self.cluster_header {
            None => Some(&self.cluster),
            Some(name) => headers.str(name).filter(|name| !name.is_empty()),
        }
    }

    /// Makes the headers of the copy out of a copy of the headers.
    pub fn finalize(&self, headers: &mut Headers, cx: &FormatContext<'_>) {
        self.mutations.apply(Side::Request, headers, cx);
        if let Some(host) = &self.host {
            headers.set(names::AUTHORITY, host.clone());
        } else if self.append_shadow
            && let Some(host) = HeaderValue::parse(shadow_host(headers.authority()))
        {
            headers.set(names::AUTHORITY, host);
        }
    }
}

/// `host:port` becomes `host-shadow:port`.
fn shadow_host(host: &[u8]) -> Vec<u8> {
    const SUFFIX: &[u8] = b"-shadow";
    let port = memchr::memrchr(b':', host).filter(|at| memchr::memchr(b']', &host[*at..]).is_none());
    let (name, port) = host.split_at(port.unwrap_or(host.len()));
    [name, SUFFIX, port].concat()
}

/// `internal_redirect_policy`, with its header names parsed.
#[derive(Debug)]
pub struct InternalRedirect {
    /// The policy.
    pub policy: InternalRedirectPolicy,
    /// `response_headers_to_copy`.
    pub headers_to_copy: Box<[HeaderName]>,
}

impl InternalRedirect {
    pub(super) fn build(policy: &InternalRedirectPolicy, path: &str, errors: &mut Vec<BuildError>) -> Self {
        let field = |at| move || format!("{path}.route.internal_redirect_policy.response_headers_to_copy[{at}]");
        let names = policy.response_headers_to_copy.iter().enumerate();
        let headers_to_copy = names.filter_map(|(at, name)| parse_name(name, field(at), errors)).collect();
        Self { policy: policy.clone(), headers_to_copy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formatter::tests::{headers, info};
    use crate::matchers::NoRuntime;
    use nuncio_config::header_mutation::HeaderMutation;
    use nuncio_config::matchers::StringMatcher;

    fn policies(kinds: Vec<(HashPolicyKind, bool)>) -> HashPolicies {
        let list: Vec<HashPolicy> = kinds.into_iter().map(|(kind, terminal)| HashPolicy { terminal, kind }).collect();
        let mut errors = Vec::new();
        let built = HashPolicies::build(&list, "r", &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        built
    }

    #[test]
    fn hashes_of_several_policies_are_combined_in_order_until_a_terminal_one() {
        let header = |name: &str| HashPolicyKind::Header(name.into(), None);
        let list = headers(&[("a", "1"), ("b", "2")]);
        let hash = |kinds| policies(kinds).hash(&list, &info(), None);
        let both = hash(vec![(header("a"), false), (header("b"), false)]).unwrap();
        assert_eq!(both, xxh64(b"1", 0).rotate_left(1) ^ xxh64(b"2", 0));
        assert_eq!(hash(vec![(header("a"), true), (header("b"), false)]), Some(xxh64(b"1", 0)));
        assert_eq!(hash(vec![(header("none"), true), (header("b"), false)]), Some(xxh64(b"2", 0)));
        assert_eq!(hash(vec![(header("none"), false)]), None);
    }

    #[test]
    fn the_order_of_header_lines_does_not_count() {
        let kind = || vec![(HashPolicyKind::Header("a".into(), None), false)];
        let one = policies(kind()).hash(&headers(&[("a", "x"), ("a", "y")]), &info(), None);
        let two = policies(kind()).hash(&headers(&[("a", "y"), ("a", "x")]), &info(), None);
        let wanted = xxh64(b"y", xxh64(b"x", 0));
        assert_eq!((one, two), (Some(wanted), Some(wanted)));
    }

    #[test]
    fn a_missing_cookie_is_made_only_with_a_ttl() {
        let cookie = |ttl| HashPolicyKind::Cookie {
            name: "c".into(),
            ttl,
            path: "/p".into(),
            attributes: vec![("SameSite".into(), "Strict".into()), ("Secure".into(), "".into())],
        };
        let mut made = Vec::new();
        let none = headers(&[]);
        assert_eq!(policies(vec![(cookie(None), false)]).hash(&none, &info(), Some(&mut |v| made.push(v))), None);
        let ttl = Some(Duration::from_secs(9));
        assert_eq!(policies(vec![(cookie(ttl), false)]).hash(&none, &info(), None), None);
        let hash = policies(vec![(cookie(ttl), false)]).hash(&none, &info(), Some(&mut |v| made.push(v))).unwrap();
        let text = made[0].to_str().unwrap();
        assert!(text.ends_with("\"; Max-Age=9; Path=/p; SameSite=Strict; Secure; HttpOnly"), "{text}");
        assert_eq!(hash, xxh64(&text.as_bytes()[3..19], 0));
    }

    #[test]
    fn the_shadow_suffix_stands_before_the_port() {
        let table =
            [("a", "a-shadow"), ("a:80", "a-shadow:80"), ("[::1]", "[::1]-shadow"), ("[::1]:80", "[::1]-shadow:80")];
        for (host, wanted) in table {
            assert_eq!(shadow_host(host.as_bytes()), wanted.as_bytes());
        }
    }

    #[test]
    fn a_mirror_changes_its_copy_in_order() {
        let policy = MirrorPolicy {
            cluster: "m".into(),
            cluster_header: None,
            runtime_fraction: None,
            trace_sampled: None,
            disable_shadow_host_suffix_append: false,
            host_rewrite_literal: Some("h".into()),
            header_mutations: vec![
                HeaderMutation::RemoveOnMatch(StringMatcher::Prefix("x-".into(), false)),
                HeaderMutation::Remove("b".into()),
            ],
            path: "p".into(),
        };
        let mirror = &Mirror::build_all(&[policy], &mut Vec::new())[0];
        assert!(mirror.applies(&NoRuntime, 1));
        let mut list = headers(&[(":authority", "a"), ("x-one", "1"), ("b", "2"), ("c", "3")]);
        assert_eq!(mirror.cluster(&list), Some("m"));
        let info = info();
        mirror.finalize(&mut list, &FormatContext::new(&info));
        assert_eq!((list.authority(), list.len()), (&b"h"[..], 2));
    }
}
