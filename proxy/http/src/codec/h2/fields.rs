//! Header lists of HTTP/2 and of the project, converted and checked.
//!
//! Names that the proxy knows are converted by table, without parsing; the other names and all values of one message
//! are copied once, into one allocation. Requests and responses that RFC 9113 8.2 and 8.3 call malformed and that `h2`
//! lets pass are refused here.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Uri};

use crate::codec::StreamError;
use crate::codec::h1::parse::{Limits, parse_decimal, tokens};
use crate::codec::h1::request::is_authority;
use crate::codec::stats::Http2Stats;
use crate::headers::{HeaderName, HeaderValue, Headers, Known, names, status_value};
use nuncio_config::hcm::UnderscoresAction;

/// Room in a list for what the proxy adds.
const SPARE: usize = 8;

/// `http`'s names of the interned ones, by their discriminant; none for pseudo-headers.
static NAMES: LazyLock<Vec<Option<http::HeaderName>>> = LazyLock::new(|| {
    Known::all().map(|(_, text)| (!text.starts_with(':')).then(|| http::HeaderName::from_static(text))).collect()
});

/// Errors in Envoy's words.
pub(super) mod errors {
    use crate::codec::StreamError;

    pub(in crate::codec::h2) fn messaging() -> StreamError {
        StreamError::protocol("http2.violation.of.messaging.rule", 0)
    }
    pub(in crate::codec::h2) fn header_field() -> StreamError {
        StreamError::protocol("http2.invalid.header.field", 0)
    }
    pub(in crate::codec::h2) fn too_many_headers() -> StreamError {
        StreamError::protocol("http2.too_many_headers", 0)
    }
    pub(in crate::codec::h2) fn too_large() -> StreamError {
        StreamError::protocol("http2.header_list_size_too_large", 0)
    }
    pub(in crate::codec::h2) fn unexpected_underscore() -> StreamError {
        StreamError::protocol("http2.unexpected_underscore", 0)
    }
}

/// What is accepted of a peer.
pub(super) struct Rules<'a> {
    pub(super) limits: Limits,
    pub(super) underscores: UnderscoresAction,
    pub(super) stats: &'a Http2Stats,
}

/// A request as the proxy sees it.
pub(super) struct DecodedRequest {
    pub(super) headers: Headers,
    /// An extended CONNECT (RFC 8441), shown as an HTTP/1 upgrade.
    pub(super) upgrade: bool,
    pub(super) connect: bool,
}

/// Turns a request head into the project's list.
pub(super) fn decode_request(head: http::request::Parts, rules: &Rules<'_>) -> Result<DecodedRequest, StreamError> {
    let http::request::Parts { method, uri, headers: map, extensions, .. } = head;
    let protocol = extensions.get::<h2::ext::Protocol>();
    let connect = method == Method::CONNECT && protocol.is_none();
    let mut headers = Headers::with_capacity(map.len() + 6 + SPARE);

    let host = map.get(http::header::HOST).map(http::HeaderValue::as_bytes);
    let authority = uri.authority().map(|a| a.as_str().as_bytes()).or(host);
    if authority.is_some_and(|a| !is_authority(a)) || map.get_all(http::header::HOST).iter().count() > 1 {
        return Err(StreamError::protocol("http.invalid_authority", 0));
    }
    let path = uri.path_and_query().map(|p| p.as_str().as_bytes());
    let scheme = uri.scheme();
    let mut size = authority.map_or(0, <[u8]>::len) + path.map_or(0, <[u8]>::len);
    size += protocol.map_or(0, |p| p.as_str().len()) + map_size(&map);
    let mut arena = BytesMut::with_capacity(size);

    if let Some(authority) = authority {
        headers.push(names::AUTHORITY, copy(&mut arena, authority));
    }
    match path {
        Some(b"/") => headers.push(names::PATH, HeaderValue::from_static("/")),
        Some(path) if !path.is_empty() => headers.push(names::PATH, copy(&mut arena, path)),
        _ if connect => {}
        _ => return Err(errors::messaging()),
    }
    let upgrade = protocol.is_some();
    let method = match &method {
        _ if upgrade => HeaderValue::from_static("GET"),
        m => match *m {
            Method::GET => HeaderValue::from_static("GET"),
            Method::POST => HeaderValue::from_static("POST"),
            Method::PUT => HeaderValue::from_static("PUT"),
            Method::HEAD => HeaderValue::from_static("HEAD"),
            Method::DELETE => HeaderValue::from_static("DELETE"),
            Method::OPTIONS => HeaderValue::from_static("OPTIONS"),
            Method::PATCH => HeaderValue::from_static("PATCH"),
            Method::CONNECT => HeaderValue::from_static("CONNECT"),
            ref other => HeaderValue::from_checked(Bytes::copy_from_slice(other.as_str().as_bytes())),
        },
    };
    headers.push(names::METHOD, method);
    if !connect {
        // `h2` keeps a scheme only beside an authority; a scheme that it took without one was http or https.
        headers.push(
            names::SCHEME,
            match scheme {
                Some(s) if *s == Scheme::HTTPS => HeaderValue::from_static("https"),
                Some(s) if *s == Scheme::HTTP => HeaderValue::from_static("http"),
                Some(s) => HeaderValue::from_checked(Bytes::copy_from_slice(s.as_str().as_bytes())),
                None if uri.authority().is_some() => return Err(errors::messaging()),
                None => HeaderValue::from_static("http"),
            },
        );
    }
    decode_fields(&map, &mut headers, &mut arena, rules, true)?;
    if let Some(protocol) = protocol {
        headers.push(names::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.push(names::UPGRADE, copy(&mut arena, protocol.as_str().as_bytes()));
    }
    Ok(DecodedRequest { headers, upgrade, connect })
}

/// Turns a response head into the project's list. `upgraded` is the protocol of an extended CONNECT that was accepted.
pub(super) fn decode_response(
    status: http::StatusCode,
    map: &HeaderMap,
    rules: &Rules<'_>,
    upgraded: Option<&HeaderValue>,
) -> Result<Headers, StreamError> {
    let mut headers = Headers::with_capacity(map.len() + 3 + SPARE);
    headers.push(names::STATUS, status_value(if upgraded.is_some() { 101 } else { status.as_u16() }));
    let mut arena = BytesMut::with_capacity(map_size(map));
    decode_fields(map, &mut headers, &mut arena, rules, false)?;
    if let Some(protocol) = upgraded {
        headers.push(names::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.push(names::UPGRADE, protocol.clone());
    }
    Ok(headers)
}

/// Turns trailers into the project's list.
pub(super) fn decode_trailers(map: &HeaderMap, rules: &Rules<'_>) -> Result<Headers, StreamError> {
    let mut headers = Headers::with_capacity(map.len());
    let mut arena = BytesMut::with_capacity(map_size(map));
    decode_fields(map, &mut headers, &mut arena, rules, false)?;
    Ok(headers)
}

fn map_size(map: &HeaderMap) -> usize {
    map.iter().map(|(n, v)| n.as_str().len() + v.len() + 2).sum()
}

fn copy(arena: &mut BytesMut, bytes: &[u8]) -> HeaderValue {
    if bytes.is_empty() {
        return HeaderValue::default();
    }
    arena.extend_from_slice(bytes);
    HeaderValue::from_checked(arena.split().freeze())
}

fn decode_fields(
    map: &HeaderMap,
    headers: &mut Headers,
    arena: &mut BytesMut,
    rules: &Rules<'_>,
    request: bool,
) -> Result<(), StreamError> {
    // Every field counts, each piece of a cookie too.
    if headers.len() + map.len() > rules.limits.max_count {
        rules.stats.header_overflow().inc();
        return Err(errors::too_many_headers());
    }
    let mut size = headers.byte_size();
    let mut cookies = false;
    let mut length = None;
    for (name, value) in map {
        let text = name.as_str().as_bytes();
        let v = value.as_bytes();
        size += text.len() + v.len();
        let name = match HeaderName::from_known(text) {
            Some(name) => name,
            None => {
                if rules.underscores != UnderscoresAction::Allow && text.contains(&b'_') {
                    if rules.underscores == UnderscoresAction::DropHeader {
                        rules.stats.dropped_headers_with_underscores().inc();
                        continue;
                    }
                    rules.stats.requests_rejected_with_underscores_in_headers().inc();
                    return Err(errors::unexpected_underscore());
                }
                arena.extend_from_slice(text);
                HeaderName::from_lower(arena.split().freeze())
            }
        };
        match name.known() {
            // Joined below; the authority is in `:authority`.
            Some(Known::COOKIE) if request => {
                cookies = true;
                continue;
            }
            Some(Known::HOST) if request => continue,
            Some(Known::CONTENT_LENGTH) => {
                if length.is_some() || parse_decimal(v).is_none() {
                    return Err(errors::messaging());
                }
                length = Some(());
            }
            // RFC 9113 8.2.2: no connection-specific fields.
            Some(
                Known::CONNECTION
                | Known::KEEP_ALIVE
                | Known::PROXY_CONNECTION
                | Known::TRANSFER_ENCODING
                | Known::UPGRADE,
            ) => return Err(errors::header_field()),
            Some(Known::TE) if request && !v.eq_ignore_ascii_case(b"trailers") => return Err(errors::header_field()),
            _ => {}
        }
        headers.push(name, copy(arena, v));
    }
    if size > rules.limits.max_bytes {
        rules.stats.header_list_size_too_large().inc();
        return Err(errors::too_large());
    }
    if cookies {
        for (i, crumb) in map.get_all(http::header::COOKIE).iter().enumerate() {
            if i > 0 {
                arena.extend_from_slice(b"; ");
            }
            arena.extend_from_slice(crumb.as_bytes());
        }
        headers.push(names::COOKIE, HeaderValue::from_checked(arena.split().freeze()));
    }
    Ok(())
}

/// The fields of a message for `h2`: without pseudo-headers and what belongs to an HTTP/1 connection.
pub(super) fn encode_fields(headers: &Headers, map: &mut HeaderMap) {
    for (name, value) in headers.iter() {
        let encoded = match name.known() {
            Some(
                Known::CONNECTION
                | Known::KEEP_ALIVE
                | Known::PROXY_CONNECTION
                | Known::TRANSFER_ENCODING
                | Known::UPGRADE
                | Known::HTTP2_SETTINGS
                | Known::HOST,
            ) => continue,
            Some(Known::TE) => {
                if !tokens(value.as_bytes()).any(|t| t.eq_ignore_ascii_case(b"trailers")) {
                    continue;
                }
                map.append(http::header::TE, http::HeaderValue::from_static("trailers"));
                continue;
            }
            Some(k) => match &NAMES[k as usize] {
                Some(n) => n.clone(),
                None => continue,
            },
            None if name.is_pseudo() => continue,
            None => match http::HeaderName::from_bytes(name.as_bytes()) {
                Ok(n) => n,
                Err(_) => continue,
            },
        };
        // Values hold no CR, LF or NUL; other control characters cannot be sent.
        let Ok(v) = http::HeaderValue::from_maybe_shared(value.bytes().clone()) else { continue };
        // Fails only beyond 32,768 entries.
        if map.try_append(encoded, v).is_err() {
            return;
        }
    }
}

/// A request head for `h2`. An HTTP/1 style upgrade becomes an extended CONNECT; its protocol is returned.
pub(super) fn encode_request(headers: &Headers) -> Option<(http::Request<()>, Option<HeaderValue>)> {
    let method = headers.method();
    let upgrade = upgrade_of(headers);
    let mut request = http::Request::new(());
    *request.method_mut() = if upgrade.is_some() { Method::CONNECT } else { Method::from_bytes(method).ok()? };
    let connect = method == b"CONNECT";
    let mut parts = http::uri::Parts::default();
    let authority = headers.get(&names::AUTHORITY)?;
    parts.authority = Some(Authority::from_maybe_shared(authority.bytes().clone()).ok()?);
    if !connect {
        parts.scheme = Some(match headers.bytes(&names::SCHEME) {
            None | Some(b"http") => Scheme::HTTP,
            Some(b"https") => Scheme::HTTPS,
            Some(other) => Scheme::try_from(other).ok()?,
        });
        parts.path_and_query = Some(encode_path(headers.get(&names::PATH)?)?);
    }
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    let mut map = HeaderMap::with_capacity(headers.len());
    encode_fields(headers, &mut map);
    *request.headers_mut() = map;
    if let Some(protocol) = &upgrade {
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol.to_str()?));
    }
    Some((request, upgrade))
}

/// What an HTTP/1 style upgrade request or response asks for.
pub(super) fn upgrade_of(headers: &Headers) -> Option<HeaderValue> {
    let connection = headers.bytes(&names::CONNECTION)?;
    let upgrade = headers.get(&names::UPGRADE)?;
    tokens(connection).any(|t| t.eq_ignore_ascii_case(b"upgrade")).then(|| upgrade.clone())
}

/// `http` knows fewer characters than HTTP/1 clients send: those are percent-encoded.
fn encode_path(path: &HeaderValue) -> Option<PathAndQuery> {
    if let Ok(path) = PathAndQuery::from_maybe_shared(path.bytes().clone()) {
        return Some(path);
    }
    let mut encoded = Vec::with_capacity(path.as_bytes().len() + 16);
    for &b in path.as_bytes() {
        if b <= 0x20 || b >= 0x7f || matches!(b, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}') {
            encoded.extend_from_slice(format!("%{b:02X}").as_bytes());
        } else {
            encoded.push(b);
        }
    }
    PathAndQuery::from_maybe_shared(Bytes::from(encoded)).ok()
}

/// A response head for `h2`.
pub(super) fn encode_response(headers: &Headers, status: u16) -> Option<http::Response<()>> {
    let mut response = http::Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(status).ok()?;
    let mut map = HeaderMap::with_capacity(headers.len());
    encode_fields(headers, &mut map);
    *response.headers_mut() = map;
    Some(response)
}
