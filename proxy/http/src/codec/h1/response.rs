//! Strict parser of response heads: bytes in, [`Headers`] and a framing decision out. No I/O.

use bytes::{Buf as _, Bytes, BytesMut};

use super::parse::{
    Framing, Limits, Lines, SPARE, Seen, check_unfinished, errors, field_bytes, parse_lines, value, value_end,
};
use crate::codec::single::{self, Head};
use crate::codec::{Protocol, StreamError};
use crate::headers::{HeaderName, Headers, Known, names, status_value};

/// A parsed response head.
#[derive(Debug)]
pub struct ResponseHead {
    /// `:status`, then the headers as they came.
    pub headers: Headers,
    /// Status code.
    pub status: u16,
    /// HTTP/1.0 or HTTP/1.1.
    pub protocol: Protocol,
    /// Framing of the body.
    pub framing: Framing,
    /// The server keeps the connection.
    pub keep_alive: bool,
    /// The server has said that it does not.
    pub closes: bool,
    /// Bytes of the head on the wire.
    pub wire_bytes: usize,
    /// Bytes of its fields, as Envoy counts them.
    pub field_bytes: usize,
}

/// What a response answers: it decides about the body.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestKind {
    /// HEAD.
    pub head: bool,
    /// CONNECT.
    pub connect: bool,
    /// The request asked for an upgrade.
    pub upgrade: bool,
}

/// Parses a response head at the start of `buf` and consumes it. Ok(None): more bytes are needed.
///
/// # Errors
/// Details as Envoy's; the connection cannot go on.
pub fn parse_response(
    buf: &mut BytesMut,
    limits: Limits,
    allow_chunked_length: bool,
    request: RequestKind,
) -> Result<Option<ResponseHead>, StreamError> {
    let Some((protocol, status, at)) = parse_status_line(buf)? else {
        check_unfinished(buf, limits)?;
        return Ok(None);
    };
    let mut lines = Lines::new();
    let Some(end) = parse_lines(buf, at, 0, limits, &mut lines)? else {
        check_unfinished(buf, limits)?;
        return Ok(None);
    };
    // The head outlives the exchange that read it (access logs want it): a copy, so that the buffer can be used again.
    let bytes = Bytes::copy_from_slice(&buf[..end]);
    buf.advance(end);
    let mut headers = Headers::with_capacity(lines.len() + 1 + SPARE);
    headers.push(names::STATUS, status_value(status));
    let mut seen = Seen::default();
    for l in &lines {
        let name = HeaderName::from_lower_slice(&bytes, l.name.0 as usize..l.name.1 as usize);
        let v = &bytes[l.value.0 as usize..l.value.1 as usize];
        match name.known() {
            Some(Known::CONTENT_LENGTH) => seen.content_length(v)?,
            Some(Known::TRANSFER_ENCODING) => {
                seen.transfer_encoding(v)?;
                continue;
            }
            Some(Known::CONNECTION) => seen.connection(v),
            _ => {}
        }
        single::push(&mut headers, Head::Response, name, value(&bytes, l.value));
    }
    let http10 = protocol == Protocol::Http10;
    if http10 && seen.transfer_encoding {
        return Err(errors::transfer_encoding_not_allowed());
    }
    let tunnel = (request.connect && (200..300).contains(&status)) || (status == 101 && request.upgrade);
    if request.connect && (200..300).contains(&status) && seen.transfer_encoding {
        return Err(errors::invalid_transfer_encoding());
    }
    if status < 200 || status == 204 {
        if seen.transfer_encoding {
            return Err(errors::transfer_encoding_not_allowed());
        }
        match seen.content_length {
            None => {}
            Some(0) => {
                headers.remove(&names::CONTENT_LENGTH);
            }
            Some(_) => return Err(errors::content_length_not_allowed()),
        }
    }
    if status == 101 && !request.upgrade {
        return Err(errors::codec_error());
    }
    if seen.both(allow_chunked_length)? {
        headers.remove(&names::CONTENT_LENGTH);
    }
    let framing = if tunnel {
        Framing::Raw
    } else if request.head || status < 200 || status == 204 || status == 304 {
        Framing::None
    } else if seen.chunked {
        Framing::Chunked
    } else {
        match seen.content_length {
            Some(0) => Framing::None,
            Some(n) => Framing::Length(n),
            None => Framing::UntilClose,
        }
    };
    let closes = seen.close || (http10 && !seen.keep_alive);
    let keep_alive = framing != Framing::UntilClose && framing != Framing::Raw && !closes;
    Ok(Some(ResponseHead {
        headers,
        status,
        protocol,
        framing,
        keep_alive,
        closes,
        wire_bytes: bytes.len(),
        field_bytes: field_bytes(&lines),
    }))
}

fn parse_status_line(buf: &[u8]) -> Result<Option<(Protocol, u16, usize)>, StreamError> {
    let Some(head) = buf.get(..13) else {
        let prefix = b"HTTP/1.";
        let n = buf.len().min(prefix.len());
        return if buf[..n] != prefix[..n] || buf.contains(&b'\n') && buf.len() < 12 {
            Err(errors::codec_error())
        } else {
            Ok(None)
        };
    };
    let protocol = match &head[..9] {
        b"HTTP/1.1 " => Protocol::Http11,
        b"HTTP/1.0 " => Protocol::Http10,
        _ => return Err(errors::codec_error()),
    };
    let [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] = &head[9..12] else { return Err(errors::codec_error()) };
    let status = u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0');
    // The reason phrase is dropped; without one even the blank may be missing.
    if head[12] != b' ' && head[12] != b'\r' {
        return Err(errors::codec_error());
    }
    let end = value_end(buf, 12);
    match (buf.get(end), buf.get(end + 1)) {
        (None, _) | (Some(b'\r'), None) => Ok(None),
        (Some(b'\r'), Some(b'\n')) => Ok(Some((protocol, status, end + 2))),
        _ => Err(errors::codec_error()),
    }
}
