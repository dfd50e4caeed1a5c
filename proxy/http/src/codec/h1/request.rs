//! Strict parser of request heads: bytes in, [`Headers`] and a framing decision out. No I/O.
//!
//! What needs routes or the connection manager (missing Host, fragments, `OPTIONS *`) passes.

use bytes::{Bytes, BytesMut};

use super::parse::{
    Framing, Lines, SPARE, Seen, check_unfinished, errors, field_bytes, original_names, parse_lines, preserving,
    tokens, value,
};
use super::server::ServerConfig;
use crate::codec::single::{self, Head};
use crate::codec::{Protocol, StreamError};
use crate::headers::{HeaderName, HeaderValue, Headers, Known, names};
use nuncio_config::hcm::{HeaderKeyFormat, UnderscoresAction};

/// CRLFs accepted before a request line (RFC 9112 2.2).
const MAX_LEADING_BLANK: usize = 16;
/// Headers that a Connection header may nominate.
const MAX_NOMINATED: usize = 10;
/// Longest `te` value that may be nominated.
const MAX_NOMINATED_TE: usize = 256;

/// A parsed request head.
#[derive(Debug)]
pub struct RequestHead {
    /// Pseudo-headers, then the headers as they came.
    pub headers: Headers,
    /// HTTP/1.0 or HTTP/1.1.
    pub protocol: Protocol,
    /// Framing of the body.
    pub framing: Framing,
    /// The client wants the connection kept.
    pub keep_alive: bool,
    /// An `upgrade` that is not ignored.
    pub upgrade: bool,
    /// The method is CONNECT.
    pub connect: bool,
    /// The method is HEAD.
    pub head: bool,
    /// Bytes of the head on the wire.
    pub wire_bytes: usize,
    /// Bytes of its fields, as Envoy counts them.
    pub field_bytes: usize,
}

const TOKEN: u8 = 1;
const TARGET: u8 = 2;

static CLASS: [u8; 256] = {
    let mut t = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        if crate::headers::is_token(i as u8) {
            t[i] |= TOKEN;
        }
        if i > 0x20 && i < 0x7f {
            t[i] |= TARGET;
        }
        i += 1;
    }
    t
};

/// A method that the proxy knows, as a static value.
fn known_method(m: &[u8]) -> Option<&'static str> {
    Some(match m {
        b"GET" => "GET",
        b"POST" => "POST",
        b"PUT" => "PUT",
        b"HEAD" => "HEAD",
        b"DELETE" => "DELETE",
        b"OPTIONS" => "OPTIONS",
        b"PATCH" => "PATCH",
        b"CONNECT" => "CONNECT",
        b"TRACE" => "TRACE",
        b"ACL" => "ACL",
        b"BIND" => "BIND",
        b"CHECKOUT" => "CHECKOUT",
        b"COPY" => "COPY",
        b"LINK" => "LINK",
        b"LOCK" => "LOCK",
        b"MERGE" => "MERGE",
        b"MKACTIVITY" => "MKACTIVITY",
        b"MKCALENDAR" => "MKCALENDAR",
        b"MKCOL" => "MKCOL",
        b"MOVE" => "MOVE",
        b"MSEARCH" => "MSEARCH",
        b"NOTIFY" => "NOTIFY",
        b"PROPFIND" => "PROPFIND",
        b"PROPPATCH" => "PROPPATCH",
        b"PURGE" => "PURGE",
        b"REBIND" => "REBIND",
        b"REPORT" => "REPORT",
        b"SEARCH" => "SEARCH",
        b"SOURCE" => "SOURCE",
        b"SUBSCRIBE" => "SUBSCRIBE",
        b"UNBIND" => "UNBIND",
        b"UNLINK" => "UNLINK",
        b"UNLOCK" => "UNLOCK",
        b"UNSUBSCRIBE" => "UNSUBSCRIBE",
        _ => return None,
    })
}

/// The request line, as ranges.
struct RequestLine {
    method: (usize, usize),
    target: (usize, usize),
    protocol: Protocol,
    /// Where the headers begin.
    end: usize,
    /// HTTP/0.9: nothing follows.
    simple: bool,
}

fn parse_request_line(buf: &[u8], start: usize, config: &ServerConfig) -> Result<Option<RequestLine>, StreamError> {
    let mut at = start;
    while buf.get(at).is_some_and(|&b| CLASS[b as usize] & TOKEN != 0) {
        at += 1;
    }
    let method = (start, at);
    match buf.get(at) {
        None if at - start <= 64 => return Ok(None),
        Some(b' ') if at > start => {}
        Some(0) => return Err(errors::invalid_characters()),
        _ => return Err(errors::codec_error()),
    }
    if !config.allow_custom_methods && known_method(&buf[method.0..method.1]).is_none() {
        return Err(errors::codec_error());
    }
    at += 1;
    let target_start = at;
    while buf.get(at).is_some_and(|&b| CLASS[b as usize] & TARGET != 0) {
        at += 1;
    }
    let target = (target_start, at);
    if at - target_start > config.limits.max_bytes {
        return Err(errors::headers_too_large());
    }
    match buf.get(at) {
        None => return Ok(None),
        // HTTP/0.9 has no version; Envoy takes it as 1.0 where that is allowed.
        Some(b'\r') if at > target_start => {
            return match buf.get(at + 1) {
                None => Ok(None),
                Some(b'\n') if config.accept_http_10 => {
                    Ok(Some(RequestLine { method, target, protocol: Protocol::Http10, end: at + 2, simple: true }))
                }
                Some(b'\n') => Err(errors::low_version()),
                Some(_) => Err(errors::codec_error()),
            };
        }
        Some(b' ') if at > target_start => {}
        Some(b' ' | b'\t' | b'\r' | b'\n') | Some(0x80..) => return Err(errors::codec_error()),
        Some(_) => return Err(errors::invalid_characters()),
    }
    at += 1;
    let Some(version) = buf.get(at..at + 10) else {
        // Enough to see that this is no version.
        let have = &buf[at..];
        let wrong = !b"HTTP/".starts_with(&have[..have.len().min(5)]) || have.contains(&b'\n');
        return if wrong { Err(errors::codec_error()) } else { Ok(None) };
    };
    let protocol = match version {
        b"HTTP/1.1\r\n" => Protocol::Http11,
        b"HTTP/1.0\r\n" if config.accept_http_10 => Protocol::Http10,
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9', b'\r', b'\n'] => {
            return Err(errors::low_version());
        }
        _ => return Err(errors::codec_error()),
    };
    Ok(Some(RequestLine { method, target, protocol, end: at + 10, simple: false }))
}

/// What a request target says.
struct Target {
    path: Option<(usize, usize)>,
    /// `?...` without a path: "/" must be put before it.
    bare_query: bool,
    authority: Option<(usize, usize)>,
    scheme: Option<&'static str>,
}

fn parse_target(buf: &[u8], line: &RequestLine, config: &ServerConfig) -> Result<Target, StreamError> {
    let (start, end) = line.target;
    let target = &buf[start..end];
    let method = &buf[line.method.0..line.method.1];
    let mut out = Target { path: Some((start, end)), bare_query: false, authority: None, scheme: None };
    if method == b"CONNECT" {
        // authority-form only, with a port (RFC 9110 9.3.6).
        let port = target.iter().rposition(|&b| b == b':').map(|i| &target[i + 1..]);
        if !is_authority(target) || port.is_none_or(|p| p.is_empty() || target.ends_with(b"]")) {
            return Err(errors::invalid_url());
        }
        out.path = None;
        out.authority = Some((start, end));
        return Ok(out);
    }
    if target[0] == b'/' {
        return Ok(out);
    }
    if target == b"*" {
        return if method == b"OPTIONS" { Ok(out) } else { Err(errors::invalid_url()) };
    }
    let scheme_length = target.iter().take_while(|b| b.is_ascii_alphabetic()).count();
    if scheme_length == 0 || !target[scheme_length..].starts_with(b"://") {
        return Err(errors::codec_error());
    }
    if !config.allow_absolute_url {
        return Ok(out);
    }
    out.scheme = Some(if target[..scheme_length].eq_ignore_ascii_case(b"http") {
        "http"
    } else if target[..scheme_length].eq_ignore_ascii_case(b"https") {
        "https"
    } else {
        return Err(errors::invalid_scheme());
    });
    let host_start = start + scheme_length + 3;
    let rest = &buf[host_start..end];
    let host_length = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    // Userinfo is dropped, as by Envoy.
    let skip = rest[..host_length].iter().rposition(|&b| b == b'@').map_or(0, |i| i + 1);
    let authority = (host_start + skip, host_start + host_length);
    if !is_authority(&buf[authority.0..authority.1]) || rest[..skip].iter().filter(|&&b| b == b'@').count() > 1 {
        return Err(errors::invalid_url());
    }
    out.authority = Some(authority);
    out.path = Some((host_start + host_length, end));
    out.bare_query = rest.get(host_length) != Some(&b'/');
    Ok(out)
}

/// Host or authority: a name or address in URI characters, and perhaps a port in digits. No userinfo.
pub(crate) fn is_authority(v: &[u8]) -> bool {
    let (host, port) = match v.first() {
        None => return false,
        Some(b'[') => {
            let Some(end) = v.iter().position(|&b| b == b']') else { return false };
            if !v[1..end].iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.' | b'%' | b'v' | b'-' | b'_'))
            {
                return false;
            }
            match &v[end + 1..] {
                [] => return end > 1,
                [b':', port @ ..] => (&v[1..end], port),
                _ => return false,
            }
        }
        Some(_) => match v.iter().position(|&b| b == b':') {
            Some(colon) => (&v[..colon], &v[colon + 1..]),
            None => (v, &v[..0]),
        },
    };
    let host_ok = v[0] == b'['
        || host.iter().all(|&b| {
            b.is_ascii_alphanumeric()
                || matches!(
                    b,
                    b'-' | b'.'
                        | b'_'
                        | b'~'
                        | b'%'
                        | b'!'
                        | b'$'
                        | b'&'
                        | b'\''
                        | b'('
                        | b')'
                        | b'*'
                        | b'+'
                        | b','
                        | b';'
                        | b'='
                )
        });
    !host.is_empty() && host_ok && port.iter().all(u8::is_ascii_digit)
}

/// Parses a request head at the start of `buf` and consumes it. Ok(None): more bytes are needed.
///
/// # Errors
/// What Envoy answers with, as status and details. The connection cannot go on.
pub fn parse_request(buf: &mut BytesMut, config: &ServerConfig, tls: bool) -> Result<Option<RequestHead>, StreamError> {
    if config.header_key_format == HeaderKeyFormat::PreserveCase {
        return Ok(preserving(buf, |copy| parse_lowered(copy, config, tls))?.map(|(mut head, original)| {
            head.headers.set_original_names(original_names(&original));
            head
        }));
    }
    parse_lowered(buf, config, tls)
}

fn parse_lowered(buf: &mut BytesMut, config: &ServerConfig, tls: bool) -> Result<Option<RequestHead>, StreamError> {
    let mut start = 0;
    while buf.get(start) == Some(&b'\r') {
        match buf.get(start + 1) {
            None => return Ok(None),
            Some(b'\n') if start < 2 * MAX_LEADING_BLANK => start += 2,
            Some(_) => return Err(errors::codec_error()),
        }
    }
    let Some(line) = parse_request_line(buf, start, config)? else {
        check_unfinished(buf, config.limits)?;
        return Ok(None);
    };
    let target = parse_target(buf, &line, config)?;
    let mut lines = Lines::new();
    if line.simple {
        let bytes = buf.split_to(line.end).freeze();
        return build_request(&bytes, &line, &target, &lines, config, tls).map(Some);
    }
    let Some(end) = parse_lines(buf, line.end, line.target.1 - line.target.0, config.limits, &mut lines)? else {
        check_unfinished(buf, config.limits)?;
        return Ok(None);
    };
    let bytes = buf.split_to(end).freeze();
    build_request(&bytes, &line, &target, &lines, config, tls).map(Some)
}

fn build_request(
    bytes: &Bytes,
    line: &RequestLine,
    target: &Target,
    lines: &Lines,
    config: &ServerConfig,
    tls: bool,
) -> Result<RequestHead, StreamError> {
    let mut headers = Headers::with_capacity(lines.len() + 4 + SPARE);
    let method = &bytes[line.method.0..line.method.1];
    let connect = method == b"CONNECT";
    let http10 = line.protocol == Protocol::Http10;

    // The host's place is first, whatever the order was; it is filled in below.
    let mut host: Option<HeaderValue> = None;
    headers.push(names::AUTHORITY, HeaderValue::default());
    match target.path {
        Some(range) if target.bare_query => {
            let query = &bytes[range.0..range.1];
            let path = if query.is_empty() { Bytes::from_static(b"/") } else { [b"/", query].concat().into() };
            headers.push(names::PATH, HeaderValue::from_checked(path));
        }
        Some(range) => {
            let path = if range.1 - range.0 == 1 && bytes[range.0] == b'/' {
                HeaderValue::from_static("/")
            } else {
                value(bytes, (range.0 as u32, range.1 as u32))
            };
            headers.push(names::PATH, path);
        }
        None => {}
    }
    let method_value = match known_method(method) {
        Some(m) => HeaderValue::from_static(m),
        None => value(bytes, (line.method.0 as u32, line.method.1 as u32)),
    };
    headers.push(names::METHOD, method_value);
    if !connect {
        let scheme = target.scheme.unwrap_or(if tls { "https" } else { "http" });
        headers.push(names::SCHEME, HeaderValue::from_static(scheme));
    }

    let mut seen = Seen::default();
    for l in lines {
        let name = HeaderName::from_lower_slice(bytes, l.name.0 as usize..l.name.1 as usize);
        let v = &bytes[l.value.0 as usize..l.value.1 as usize];
        match name.known() {
            Some(Known::HOST) => {
                if host.is_some() || !is_authority(v) {
                    return Err(errors::invalid_authority());
                }
                host = Some(value(bytes, l.value));
                continue;
            }
            Some(Known::CONTENT_LENGTH) => seen.content_length(v)?,
            Some(Known::TRANSFER_ENCODING) => {
                seen.transfer_encoding(v)?;
                // Framing is the codec's: it is made again on the other side.
                continue;
            }
            Some(Known::CONNECTION) => seen.connection(v),
            Some(Known::UPGRADE) => seen.upgrade = true,
            Some(_) => {}
            None if config.underscores != UnderscoresAction::Allow && name.as_bytes().contains(&b'_') => {
                if config.underscores == UnderscoresAction::DropHeader {
                    config.stats.dropped_headers_with_underscores().inc();
                    continue;
                }
                config.stats.requests_rejected_with_underscores_in_headers().inc();
                return Err(errors::unexpected_underscore());
            }
            None => {}
        }
        single::push(&mut headers, Head::Request, name, value(bytes, l.value));
    }

    if let Some(range) = target.authority {
        host = Some(value(bytes, (range.0 as u32, range.1 as u32)));
    } else if host.is_none() && http10 {
        host.clone_from(&config.default_host);
    }
    match host {
        Some(host) => headers.replace_first(host),
        None => {
            headers.remove(&names::AUTHORITY);
        }
    }

    if http10 && seen.transfer_encoding {
        // RFC 9112 6.1: faulty framing.
        return Err(errors::transfer_encoding_not_allowed());
    }
    if connect {
        if seen.transfer_encoding {
            return Err(errors::invalid_transfer_encoding());
        }
        match seen.content_length {
            None => {}
            Some(0) => {
                headers.remove(&names::CONTENT_LENGTH);
            }
            Some(_) => return Err(errors::body_disallowed()),
        }
    }
    if seen.both(config.allow_chunked_length)? {
        headers.remove(&names::CONTENT_LENGTH);
    }
    let mut upgrade = seen.upgrade && seen.connection_upgrade && !connect && !http10;
    if upgrade && config.ignores_upgrade(headers.bytes(&names::UPGRADE).unwrap_or_default()) {
        upgrade = false;
        ignore_upgrade(&mut headers);
    }
    if seen.nominated && !upgrade && !connect {
        remove_nominated(&mut headers)?;
    }
    let framing = match seen.content_length {
        _ if connect => Framing::None,
        _ if seen.chunked => Framing::Chunked,
        Some(0) | None => Framing::None,
        Some(n) => Framing::Length(n),
    };
    Ok(RequestHead {
        headers,
        protocol: line.protocol,
        framing,
        keep_alive: if http10 { seen.keep_alive && !seen.close } else { !seen.close },
        upgrade,
        connect,
        head: method == b"HEAD",
        wire_bytes: bytes.len(),
        field_bytes: field_bytes(lines),
    })
}

/// Makes an upgrade request an ordinary one: `h2c` always, others by configuration.
fn ignore_upgrade(headers: &mut Headers) {
    headers.remove(&names::UPGRADE);
    headers.remove(&names::HTTP2_SETTINGS);
    let kept: Vec<&[u8]> = headers
        .get_all(&names::CONNECTION)
        .flat_map(|v| tokens(v.as_bytes()))
        .filter(|t| !t.eq_ignore_ascii_case(b"upgrade") && !t.eq_ignore_ascii_case(b"http2-settings"))
        .collect();
    let kept = kept.join(&b","[..]);
    if kept.is_empty() {
        headers.remove(&names::CONNECTION);
    } else {
        headers.set(names::CONNECTION, HeaderValue::from_checked(kept.into()));
    }
}

/// Removes the headers that Connection names (RFC 9110 7.6.1), with Envoy's exceptions.
fn remove_nominated(headers: &mut Headers) -> Result<(), StreamError> {
    let joined = headers.joined(&names::CONNECTION).unwrap_or_default().to_ascii_lowercase();
    if tokens(&joined).count() > MAX_NOMINATED {
        return Err(errors::connection_header_rejected());
    }
    for token in tokens(&joined) {
        if matches!(token, b"close" | b"keep-alive" | b"upgrade" | b"http2-settings" | b"connection") {
            continue;
        }
        if token[0] == b':' || matches!(token, b"x-forwarded-for" | b"x-forwarded-host" | b"x-forwarded-proto") {
            return Err(errors::connection_header_rejected());
        }
        if token == b"te" {
            let te = headers.joined(&names::TE).unwrap_or_default();
            if te.len() >= MAX_NOMINATED_TE {
                return Err(errors::connection_header_rejected());
            }
            if tokens(&te).any(|t| t.eq_ignore_ascii_case(b"trailers")) {
                headers.set(names::TE, HeaderValue::from_static("trailers"));
                continue;
            }
        }
        if token == b"host" {
            headers.remove(&names::AUTHORITY);
        }
        headers.remove_if(|n, _| n.as_bytes() == token);
    }
    Ok(())
}
