//! Header lists of messages: what RFC 9113 8.2 and 8.3 and the proxy's limits say about them, while they are decoded.
//!
//! [`HeadReader`] takes the fields of one block in their order, as HPACK finds them, and makes the project's list of
//! them; nothing is copied again. All decisions and details are Envoy's. What leaves is judged in `encode`.

use std::ops::ControlFlow;

use bytes::BytesMut;
use nuncio_config::hcm::UnderscoresAction;

use crate::codec::StreamError;
use crate::codec::h1::parse::{Limits, parse_decimal};
use crate::codec::h1::request::is_authority;
use crate::codec::h2::hpack::{Fault, Field};
use crate::codec::single::{self, Head};
use crate::codec::stats::Http2Stats;
use crate::headers::{HeaderName, HeaderValue, Headers, Known, is_token, names};

/// Room in a list for what the proxy adds.
const SPARE: usize = 8;

/// Errors in Envoy's words.
pub(super) mod errors {
    use crate::codec::StreamError;

    pub(in crate::codec::h2::machine) fn messaging() -> StreamError {
        StreamError::protocol("http2.violation.of.messaging.rule", 0)
    }
    pub(in crate::codec::h2::machine) fn header_field() -> StreamError {
        StreamError::protocol("http2.invalid.header.field", 0)
    }
    pub(in crate::codec::h2::machine) fn too_many_headers() -> StreamError {
        StreamError::protocol("http2.too_many_headers", 0)
    }
    pub(in crate::codec::h2::machine) fn too_large() -> StreamError {
        StreamError::protocol("http2.header_list_size_too_large", 0)
    }
    pub(in crate::codec::h2::machine) fn unexpected_underscore() -> StreamError {
        StreamError::protocol("http2.unexpected_underscore", 0)
    }
}

/// Which list it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Response,
    Trailers,
}

/// What is accepted of a peer.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) limits: Limits,
    pub(super) underscores: UnderscoresAction,
    /// `:protocol` may be sent.
    pub(super) extended_connect: bool,
    /// Bytes outside ASCII make a value invalid.
    pub(super) disallow_obs_text: bool,
    pub(super) stats: &'a Http2Stats,
}

/// Why a list is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: StreamError,
    /// It is no HTTP, as opposed to more than is wanted.
    pub(super) malformed: bool,
}

/// A request head.
#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) headers: Headers,
    pub(super) content_length: Option<u64>,
    /// An extended CONNECT (RFC 8441), shown as an HTTP/1 upgrade.
    pub(super) upgrade: bool,
    pub(super) connect: bool,
}

const METHOD: u8 = 1;
const PATH: u8 = 2;
const AUTHORITY: u8 = 4;
const SCHEME: u8 = 8;
const PROTOCOL: u8 = 16;
const STATUS: u8 = 32;
const HOST: u8 = 64;

/// Reads the fields of one block.
pub(super) struct HeadReader<'a> {
    rules: Rules<'a>,
    kind: Kind,
    headers: Headers,
    size: usize,
    count: usize,
    /// Pseudo-headers that were there, and `host`.
    seen: u8,
    /// A field that is no pseudo-header was there.
    regular: bool,
    content_length: Option<u64>,
    host: Option<HeaderValue>,
    protocol: Option<HeaderValue>,
    cookie: Option<HeaderValue>,
    cookies: BytesMut,
    refusal: Option<Refusal>,
}

impl<'a> HeadReader<'a> {
    pub(super) fn new(kind: Kind, rules: Rules<'a>) -> HeadReader<'a> {
        HeadReader {
            rules,
            kind,
            headers: Headers::with_capacity(if kind == Kind::Trailers { 4 } else { 8 + SPARE }),
            size: 0,
            count: 0,
            seen: 0,
            regular: false,
            content_length: None,
            host: None,
            protocol: None,
            cookie: None,
            cookies: BytesMut::new(),
            refusal: None,
        }
    }

    fn refuse(&mut self, error: StreamError, malformed: bool) -> ControlFlow<()> {
        self.refusal.get_or_insert(Refusal { error, malformed });
        ControlFlow::Break(())
    }

    fn malformed(&mut self) -> ControlFlow<()> {
        self.refuse(errors::header_field(), true)
    }

    /// The next field. Broken off at the first that is refused.
    #[inline]
    pub(super) fn field(&mut self, field: Field<'_>, size: usize) -> ControlFlow<()> {
        let (name, value) = match field {
            Field::Valid(name, value) => (name, value),
            Field::Malformed { fault, .. } => {
                debug_assert!(matches!(fault, Fault::Name | Fault::Value));
                return self.malformed();
            }
        };
        if self.rules.disallow_obs_text && !value.as_bytes().is_ascii() {
            return self.malformed();
        }
        if name.is_pseudo() {
            if self.pseudo(&name, &value).is_break() {
                return self.malformed();
            }
        } else {
            self.regular = true;
            match self.regular(&name, &value) {
                Ok(true) => {}
                Ok(false) => return ControlFlow::Continue(()),
                Err(flow) => return flow,
            }
        }
        // Every field counts, each piece of a cookie too.
        self.count += 1;
        self.size += size;
        if self.count > self.rules.limits.max_count {
            self.rules.stats.header_overflow().inc();
            return self.refuse(errors::too_many_headers(), false);
        }
        if self.size > self.rules.limits.max_bytes {
            self.rules.stats.header_list_size_too_large().inc();
            return self.refuse(errors::too_large(), false);
        }
        match name.known() {
            Some(Known::COOKIE) if self.kind == Kind::Request => self.crumb(value),
            Some(Known::HOST) if self.kind == Kind::Request => {
                self.host.get_or_insert(value);
            }
            Some(Known::PROTOCOL) => self.protocol = Some(value),
            _ => match self.kind {
                Kind::Request => single::push(&mut self.headers, Head::Request, name, value),
                Kind::Response => single::push(&mut self.headers, Head::Response, name, value),
                Kind::Trailers => self.headers.push(name, value),
            },
        }
        ControlFlow::Continue(())
    }

    /// Breaks where a pseudo-header may not stand or has no such value.
    fn pseudo(&mut self, name: &HeaderName, value: &HeaderValue) -> ControlFlow<()> {
        let v = value.as_bytes();
        let (flag, ok) = match (self.kind, name.known()) {
            (Kind::Request, Some(Known::METHOD)) => (METHOD, v.iter().all(|&b| is_token(b))),
            (Kind::Request, Some(Known::PATH)) => (PATH, v.iter().all(|&b| b > 0x20 && b != 0x7f)),
            (Kind::Request, Some(Known::AUTHORITY)) => (AUTHORITY, is_authority(v)),
            (Kind::Request, Some(Known::SCHEME)) => (SCHEME, is_scheme(v)),
            (Kind::Request, Some(Known::PROTOCOL)) => (PROTOCOL, self.rules.extended_connect),
            (Kind::Response, Some(Known::STATUS)) => {
                (STATUS, v.len() == 3 && (b'1'..=b'9').contains(&v[0]) && v.iter().all(u8::is_ascii_digit))
            }
            _ => return ControlFlow::Break(()),
        };
        if self.regular || self.seen & flag != 0 || !ok || v.is_empty() {
            return ControlFlow::Break(());
        }
        self.seen |= flag;
        ControlFlow::Continue(())
    }

    /// False: the field is left out.
    #[inline]
    fn regular(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<bool, ControlFlow<()>> {
        let v = value.as_bytes();
        match name.known() {
            None if self.rules.underscores != UnderscoresAction::Allow && name.as_bytes().contains(&b'_') => {
                if self.rules.underscores == UnderscoresAction::DropHeader {
                    self.rules.stats.dropped_headers_with_underscores().inc();
                    return Ok(false);
                }
                self.rules.stats.requests_rejected_with_underscores_in_headers().inc();
                return Err(self.refuse(errors::unexpected_underscore(), false));
            }
            Some(Known::CONTENT_LENGTH) if self.kind != Kind::Trailers => {
                // Two, even if equal, are refused: which one counts is anybody's guess.
                let length = parse_decimal(v);
                if self.content_length.is_some() || length.is_none() {
                    return Err(self.malformed());
                }
                self.content_length = length;
            }
            // RFC 9113 8.2.2: no connection-specific fields.
            Some(
                Known::CONNECTION
                | Known::KEEP_ALIVE
                | Known::PROXY_CONNECTION
                | Known::TRANSFER_ENCODING
                | Known::UPGRADE,
            ) => return Err(self.malformed()),
            Some(Known::TE) if self.kind == Kind::Request && !v.eq_ignore_ascii_case(b"trailers") => {
                return Err(self.malformed());
            }
            Some(Known::HOST) if self.kind == Kind::Request => {
                if self.seen & HOST != 0 || !is_authority(v) {
                    return Err(self.malformed());
                }
                self.seen |= HOST;
            }
            _ => {}
        }
        Ok(true)
    }

    fn crumb(&mut self, value: HeaderValue) {
        match self.cookie.take() {
            None if self.cookies.is_empty() => self.cookie = Some(value),
            first => {
                if let Some(first) = first {
                    self.cookies.extend_from_slice(first.as_bytes());
                }
                self.cookies.extend_from_slice(b"; ");
                self.cookies.extend_from_slice(value.as_bytes());
            }
        }
    }

    /// Why the list is refused, if it is.
    fn refused(&mut self) -> Result<(), Refusal> {
        self.refusal.take().map_or(Ok(()), Err)
    }

    /// The request, when all fields are read.
    pub(super) fn request(mut self, end_stream: bool) -> Result<RequestHead, Refusal> {
        self.refused()?;
        let messaging = || Refusal { error: errors::messaging(), malformed: true };
        let method = self.headers.method();
        let connect = method == b"CONNECT";
        let upgrade = self.seen & PROTOCOL != 0;
        if self.seen & (AUTHORITY | HOST) == 0 {
            return Err(messaging());
        }
        if connect && !upgrade {
            if self.seen & (SCHEME | PATH) != 0 {
                return Err(messaging());
            }
        } else {
            let all = METHOD | PATH | SCHEME;
            if self.seen & all != all || (upgrade && (!connect || self.seen & AUTHORITY == 0)) {
                return Err(messaging());
            }
            let path = self.headers.path();
            let scheme = self.headers.bytes(&names::SCHEME).unwrap_or_default();
            let http = scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https");
            if http && path.first() != Some(&b'/') && !(path == b"*" && method == b"OPTIONS") {
                return Err(messaging());
            }
        }
        if end_stream && self.content_length.is_some_and(|n| n > 0) {
            return Err(messaging());
        }
        if self.seen & AUTHORITY == 0
            && let Some(host) = self.host.take()
        {
            self.headers.append(names::AUTHORITY, host);
        }
        if let Some(protocol) = self.protocol.take() {
            self.headers.set(names::METHOD, HeaderValue::from_static("GET"));
            self.headers.push(names::CONNECTION, HeaderValue::from_static("upgrade"));
            self.headers.push(names::UPGRADE, protocol);
        }
        if let Some(cookie) = self.cookie.take() {
            self.headers.push(names::COOKIE, cookie);
        } else if !self.cookies.is_empty() {
            self.headers.push(names::COOKIE, HeaderValue::from_checked(std::mem::take(&mut self.cookies).freeze()));
        }
        Ok(RequestHead {
            headers: self.headers,
            content_length: self.content_length,
            upgrade,
            connect: connect && !upgrade,
        })
    }

    /// The response head and its content-length.
    pub(super) fn response(mut self, end_stream: bool) -> Result<(Headers, Option<u64>), Refusal> {
        self.refused()?;
        let status = self.headers.status();
        // 101 does not exist in HTTP/2, and an informational head is never the end.
        if self.seen & STATUS == 0 || status == 101 || (status < 200 && end_stream) {
            return Err(Refusal { error: errors::messaging(), malformed: true });
        }
        if let Some(length) = self.content_length
            && (status == 204 || status < 200)
        {
            if status != 204 || length != 0 {
                return Err(Refusal { error: errors::header_field(), malformed: true });
            }
            self.headers.remove(&names::CONTENT_LENGTH);
        }
        Ok((self.headers, self.content_length))
    }

    /// The trailers.
    pub(super) fn trailers(mut self) -> Result<Headers, Refusal> {
        self.refused()?;
        Ok(self.headers)
    }
}

/// RFC 3986 3.1.
fn is_scheme(v: &[u8]) -> bool {
    v.first().is_some_and(u8::is_ascii_alphabetic)
        && v.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

/// An error of the whole connection, as streams that have no part in it see it.
pub(super) fn connection_error() -> StreamError {
    StreamError::protocol("codec_error:The_user_callback_function_failed", 0)
}

/// What a field of a message that leaves becomes: None where it belongs to an HTTP/1 connection.
#[inline]
pub(super) fn is_sent(name: &HeaderName) -> bool {
    match name.known() {
        None => !name.is_pseudo(),
        Some(k) => {
            k as u8 > Known::PROTOCOL as u8
                && !matches!(
                    k,
                    Known::CONNECTION
                        | Known::KEEP_ALIVE
                        | Known::PROXY_CONNECTION
                        | Known::TRANSFER_ENCODING
                        | Known::UPGRADE
                        | Known::HTTP2_SETTINGS
                        | Known::HOST
                )
        }
    }
}
