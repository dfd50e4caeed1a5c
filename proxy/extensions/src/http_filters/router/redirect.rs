//! Internal redirects: a redirect that the upstream answers with is followed here instead of by the client.

use super::Request;
use nuncio_config::route::RedirectPredicate;
use nuncio_http::active_stream::ActiveStream;
use nuncio_http::headers::{HeaderValue, Headers, names};
use nuncio_http::route::InternalRedirect;
use std::collections::VecDeque;

/// Follows the redirect if the route allows it: the stream then begins anew with the new location. False when the
/// response goes to the client.
pub(crate) fn follow(stream: &mut ActiveStream<'_>, request: &mut Request, head: &Headers) -> bool {
    let route = request.route.entry().clone();
    let Some(redirect) = route.internal_redirect() else { return false };
    if !redirect.policy.redirect_response_codes.contains(&head.status()) {
        return false;
    }
    // A body that has not been read whole, or was not kept, cannot be sent again.
    let replayable = request.replay.as_ref().is_some_and(|replay| !replay.is_abandoned());
    let location = head.get(&names::LOCATION).cloned();
    let target = location.filter(|_| replayable && stream.request_complete());
    let target = target.and_then(|location| retarget(stream, redirect, route.name(), head, &location));
    let stats = &request.cluster.stats;
    let Some((headers, keeps_body)) = target else {
        stats.upstream_internal_redirect_failed_total().inc();
        return false;
    };
    stats.upstream_internal_redirect_succeeded_total().inc();
    let replay = request.replay.take().filter(|_| keeps_body);
    stream.request = headers;
    stream.recreate(replay.map_or_else(VecDeque::new, |replay| replay.into_frames()), head.clone());
    true
}

/// The headers of the redirected request, and whether its body is sent again.
fn retarget(
    stream: &mut ActiveStream<'_>,
    redirect: &InternalRedirect,
    route: &str,
    head: &Headers,
    location: &HeaderValue,
) -> Option<(Headers, bool)> {
    let hcm = stream.connection.hcm.clone();
    let stats = &hcm.stats;
    let policy = &redirect.policy;
    let old = &stream.request;
    if !old.contains(&names::PATH) {
        return None;
    }
    let Some(url) = location.to_str().and_then(Url::parse) else {
        stats.passthrough_internal_redirect_bad_location().inc();
        return None;
    };
    let was_http = match old.bytes(&names::SCHEME) {
        Some(scheme) if scheme.eq_ignore_ascii_case(b"http") => true,
        _ => !stream.connection.info.is_tls(),
    };
    let becomes_http = url.scheme.eq_ignore_ascii_case("http");
    if !policy.allow_cross_scheme_redirect && was_http != becomes_http {
        stats.passthrough_internal_redirect_unsafe_scheme().inc();
        return None;
    }
    if stream.redirects.count >= policy.max_internal_redirects {
        stats.passthrough_internal_redirect_too_many_redirects().inc();
        return None;
    }
    let mut headers = old.clone();
    for name in &redirect.headers_to_copy {
        headers.remove(name);
        for value in head.get_all(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers.set(names::SCHEME, HeaderValue::parse(url.scheme.to_owned())?);
    headers.set(names::AUTHORITY, HeaderValue::parse(url.authority.to_owned())?);
    headers.set(names::PATH, HeaderValue::parse(url.path_and_query())?);
    let Some(target) = stream.note_route_of(&headers) else {
        stats.passthrough_internal_redirect_no_route().inc();
        return None;
    };
    for predicate in &policy.predicates {
        let accepted = match predicate {
            RedirectPredicate::AllowListedRoutes(names) => names.iter().any(|name| **name == *target),
            RedirectPredicate::PreviousRoutes => stream.redirects.visit(route, &target),
            RedirectPredicate::SafeCrossScheme => !was_http || becomes_http,
        };
        if !accepted {
            stats.passthrough_internal_redirect_predicate().inc();
            return None;
        }
    }
    // RFC 9110 15.4.4: See Other is followed with GET, and without content.
    let see_other = head.status() == 303 && !matches!(headers.method(), b"GET" | b"HEAD");
    if see_other {
        headers.set(names::METHOD, HeaderValue::from_static("GET"));
        headers.remove(&names::CONTENT_LENGTH);
    }
    let scheme: &[u8] = if was_http { b"http" } else { b"https" };
    let original = [scheme, b"://", stream.request.authority(), stream.request.path()].concat();
    headers.set(names::X_ENVOY_ORIGINAL_URL, HeaderValue::parse(original)?);
    stream.redirects.count += 1;
    Some((headers, !see_other))
}

/// An absolute URL, split.
#[derive(Debug, PartialEq, Eq)]
struct Url<'t> {
    scheme: &'t str,
    authority: &'t str,
    /// From the path's slash on, the fragment left out; may be empty.
    rest: &'t str,
}

impl<'t> Url<'t> {
    /// None for what is not an absolute URL of HTTP.
    fn parse(text: &'t str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return None;
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        // Who the user is is not part of a host.
        let authority = authority.rsplit('@').next().unwrap_or_default();
        if authority.is_empty() || text.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return None;
        }
        let rest = rest.split('#').next().unwrap_or_default();
        Some(Url { scheme, authority, rest })
    }

    fn path_and_query(&self) -> String {
        let slash = if self.rest.starts_with('/') { "" } else { "/" };
        format!("{slash}{}", self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_urls_are_followed() {
        let show = |text| Url::parse(text).map(|url| (url.scheme, url.authority, url.path_and_query()));
        assert_eq!(show("http://a:1/p?q#f"), Some(("http", "a:1", "/p?q".into())));
        assert_eq!(show("https://a"), Some(("https", "a", "/".into())));
        assert_eq!(show("https://a?q"), Some(("https", "a", "/?q".into())));
        assert_eq!(show("http://user:word@a/p"), Some(("http", "a", "/p".into())));
        for text in ["/p", "p", "", "ftp://a/p", "http:///p", "http://a/ b"] {
            assert_eq!(show(text), None, "{text}");
        }
    }
}
