//! What the strict parsers of requests and responses share: header lines, limits, errors, framing headers. No I/O.
//!
//! Names are put in lower case in place; names and values become slices of the frozen read buffer. Where Envoy repairs
//! a message (bare LF, folded lines, bare CR, several Hosts, blanks in the request line) these parsers refuse it; all
//! other decisions, statuses and detail strings are Envoy's. Heads themselves are in `request` and `response`.

use bytes::{Buf, Bytes, BytesMut};
use smallvec::SmallVec;

use crate::codec::StreamError;
use crate::headers::{HeaderName, HeaderValue, Headers};

/// Room in a list for what the proxy adds to a message.
pub(super) const SPARE: usize = 8;

/// How long the body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// `content-length`.
    Length(u64),
    /// `transfer-encoding: chunked`.
    Chunked,
    /// Until the peer closes: responses only.
    UntilClose,
    /// After an upgrade or CONNECT: bytes until the peer closes.
    Raw,
}

/// Size limits of a head or of trailers.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of names, values and the request target together.
    pub max_bytes: usize,
    /// Number of lines.
    pub max_count: usize,
}

/// Errors in Envoy's words; each has its status.
pub mod errors {
    use crate::codec::StreamError;

    macro_rules! errors {
        ($($(#[$m:meta])* $name:ident = $text:literal, $status:literal;)+) => {
            $($(#[$m])* #[doc = concat!("`", $text, "`")]
            pub fn $name() -> StreamError { StreamError::protocol($text, $status) })+
        };
    }

    errors! {
        codec_error = "http1.codec_error", 400;
        invalid_characters = "http1.invalid_characters", 400;
        headers_too_large = "http1.headers_too_large", 431;
        too_many_headers = "http1.too_many_headers", 431;
        length_and_chunked = "http1.content_length_and_chunked_not_allowed", 400;
        invalid_transfer_encoding = "http1.invalid_transfer_encoding", 501;
        transfer_encoding_not_allowed = "http1.transfer_encoding_not_allowed", 400;
        content_length_not_allowed = "http1.content_length_not_allowed", 400;
        invalid_url = "http1.invalid_url", 400;
        invalid_scheme = "http1.invalid_scheme", 400;
        body_disallowed = "http1.body_disallowed", 400;
        connection_header_rejected = "http1.connection_header_rejected", 400;
        unexpected_underscore = "http1.unexpected_underscore", 400;
        invalid_authority = "http.invalid_authority", 400;
        low_version = "low_version", 426;
    }
}

/// Lower case of token characters; 0 for all others.
static LOWER: [u8; 256] = {
    let mut t = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        if crate::headers::is_token(i as u8) {
            t[i] = (i as u8).to_ascii_lowercase();
        }
        i += 1;
    }
    t
};

/// Index of the first byte at or after `i` that may not stand in a value: a control character other than tab.
/// `buf.len()` if there is none.
#[inline]
pub(super) fn value_end(buf: &[u8], mut i: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    loop {
        while let Some(chunk) = buf.get(i..i + 8).and_then(|c| <[u8; 8]>::try_from(c).ok()) {
            let x = u64::from_le_bytes(chunk);
            let controls = x.wrapping_sub(ONES * 0x20) & !x & HIGH;
            let del = x ^ (ONES * 0x7f);
            let found = controls | (del.wrapping_sub(ONES) & !del & HIGH);
            if found != 0 {
                // Borrows reach only higher bytes: the lowest hit is a true one.
                i += (found.trailing_zeros() / 8) as usize;
                break;
            }
            i += 8;
        }
        while let Some(&b) = buf.get(i) {
            if b == b'\t' || (b >= 0x20 && b != 0x7f) {
                i += 1;
                if i.is_multiple_of(8) {
                    break;
                }
            } else {
                return i;
            }
        }
        if i >= buf.len() {
            return buf.len();
        }
    }
}

/// One header line as ranges of the buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) name: (u32, u32),
    pub(super) value: (u32, u32),
}

pub(super) type Lines = SmallVec<[Line; 40]>;

/// What Envoy counts as received header bytes: names and values, and three bytes for each field.
pub(super) fn field_bytes(lines: &Lines) -> usize {
    let length = |(start, end): (u32, u32)| (end - start) as usize;
    lines.iter().map(|line| length(line.name) + length(line.value) + 3).sum()
}

/// Reads header lines from `at` to the empty line. Ok(None): more bytes are needed. Ok(Some): the end of the head.
pub(super) fn parse_lines(
    buf: &mut [u8],
    mut at: usize,
    mut size: usize,
    limits: Limits,
    lines: &mut Lines,
) -> Result<Option<usize>, StreamError> {
    loop {
        let start = at;
        while let Some(&b) = buf.get(at) {
            let lower = LOWER[b as usize];
            if lower == 0 {
                break;
            }
            buf[at] = lower;
            at += 1;
        }
        let Some(&b) = buf.get(at) else { return Ok(None) };
        if b != b':' {
            if b == b'\r' && at == start {
                return match buf.get(at + 1) {
                    None => Ok(None),
                    Some(b'\n') => Ok(Some(at + 2)),
                    Some(_) => Err(errors::codec_error()),
                };
            }
            return Err(if b == 0 { errors::invalid_characters() } else { errors::codec_error() });
        }
        if at == start {
            return Err(errors::codec_error());
        }
        let name = (start as u32, at as u32);
        let mut from = at + 1;
        at = value_end(buf, from);
        match (buf.get(at), buf.get(at + 1)) {
            (None, _) | (Some(b'\r'), None) => return Ok(None),
            (Some(b'\r'), Some(b'\n')) => {}
            // A bare CR or LF could end the line for another parser.
            (Some(b'\r' | b'\n'), _) => return Err(errors::codec_error()),
            _ => return Err(errors::invalid_characters()),
        }
        let mut to = at;
        while from < to && matches!(buf[from], b' ' | b'\t') {
            from += 1;
        }
        while from < to && matches!(buf[to - 1], b' ' | b'\t') {
            to -= 1;
        }
        at += 2;
        size += (name.1 - name.0) as usize + (to - from);
        if size > limits.max_bytes {
            return Err(errors::headers_too_large());
        }
        lines.push(Line { name, value: (from as u32, to as u32) });
        if lines.len() > limits.max_count {
            return Err(errors::too_many_headers());
        }
    }
}

/// Error for a head that goes on beyond any size it may have; `framing` is what is not name or value.
pub(super) fn check_unfinished(buf: &[u8], limits: Limits) -> Result<(), StreamError> {
    let framing = 4 * limits.max_count.min(16 * 1024) + 1024;
    if buf.len() > limits.max_bytes.saturating_add(framing) { Err(errors::headers_too_large()) } else { Ok(()) }
}

/// Parses trailers (after the last chunk's line) up to and with the empty line.
/// Ok(None): more bytes are needed. The bytes are consumed only when all are there.
pub(super) fn parse_trailers(buf: &mut BytesMut, limits: Limits, keep: bool) -> Result<Option<Headers>, StreamError> {
    let mut lines = Lines::new();
    let Some(end) = parse_lines(buf, 0, 0, limits, &mut lines)? else {
        check_unfinished(buf, limits)?;
        return Ok(None);
    };
    if !keep || lines.is_empty() {
        buf.advance(end);
        return Ok(Some(Headers::new()));
    }
    let bytes = buf.split_to(end).freeze();
    let mut headers = Headers::with_capacity(lines.len());
    for line in &lines {
        let name = HeaderName::from_lower_slice(&bytes, line.name.0 as usize..line.name.1 as usize);
        headers.push(name, value(&bytes, line.value));
    }
    Ok(Some(headers))
}

#[inline]
pub(super) fn value(bytes: &Bytes, range: (u32, u32)) -> HeaderValue {
    if range.0 == range.1 {
        return HeaderValue::default();
    }
    HeaderValue::from_checked(bytes.slice(range.0 as usize..range.1 as usize))
}

/// Position and content of what decides about framing and the connection.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) content_length: Option<u64>,
    pub(super) transfer_encoding: bool,
    pub(super) chunked: bool,
    pub(super) connection: bool,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) connection_upgrade: bool,
    /// Tokens of Connection other than those above.
    pub(super) nominated: bool,
    pub(super) upgrade: bool,
}

impl Seen {
    pub(super) fn content_length(&mut self, v: &[u8]) -> Result<(), StreamError> {
        // Two, even if equal, are refused: which one counts is anybody's guess.
        if self.content_length.is_some() {
            return Err(errors::codec_error());
        }
        self.content_length = Some(parse_decimal(v).ok_or_else(errors::codec_error)?);
        Ok(())
    }

    pub(super) fn transfer_encoding(&mut self, v: &[u8]) -> Result<(), StreamError> {
        if self.transfer_encoding || !v.eq_ignore_ascii_case(b"chunked") {
            return Err(errors::invalid_transfer_encoding());
        }
        self.transfer_encoding = true;
        self.chunked = true;
        Ok(())
    }

    pub(super) fn connection(&mut self, v: &[u8]) {
        self.connection = true;
        for token in tokens(v) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.connection_upgrade = true;
            } else {
                self.nominated = true;
            }
        }
    }

    /// `Ok(true)` if Content-Length must be removed because chunked wins.
    pub(super) fn both(&self, allow_chunked_length: bool) -> Result<bool, StreamError> {
        if !self.chunked || self.content_length.is_none() {
            return Ok(false);
        }
        if allow_chunked_length { Ok(true) } else { Err(errors::length_and_chunked()) }
    }
}

/// Digits only, without sign or blanks; None beyond `u64`.
pub(crate) fn parse_decimal(v: &[u8]) -> Option<u64> {
    if v.is_empty() || v.len() > 20 {
        return None;
    }
    v.iter().try_fold(0u64, |n, &b| match b {
        b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// The comma-separated tokens of a value, trimmed; empty ones are left out.
pub(crate) fn tokens(v: &[u8]) -> impl Iterator<Item = &[u8]> {
    v.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

/// A parser's view of `buf`, for a `preserve_case` formatter: it lowers names in place, so it works on a copy, and what
/// it takes is consumed from `buf` as it was. Gives the parser's result and the original bytes.
pub(super) fn preserving<T>(
    buf: &mut BytesMut,
    parse: impl FnOnce(&mut BytesMut) -> Result<Option<T>, StreamError>,
) -> Result<Option<(T, Bytes)>, StreamError> {
    let mut copy = BytesMut::from(&buf[..]);
    let Some(parsed) = parse(&mut copy)? else { return Ok(None) };
    let original = buf.split_to(buf.len() - copy.len()).freeze();
    Ok(Some((parsed, original)))
}

/// The names of a head as they were written: what stands before the colon of each line after the first.
pub(super) fn original_names(head: &Bytes) -> Box<[Bytes]> {
    let mut names = Vec::new();
    let mut start = 0;
    while let Some(length) = memchr::memchr(b'\n', &head[start..]) {
        let line = &head[start..start + length];
        // The first line has no name; a colon in its target makes one that nothing asks for.
        if let Some(colon) = memchr::memchr(b':', line).filter(|&c| line[..c].iter().all(|&b| LOWER[b as usize] != 0)) {
            names.push(head.slice(start..start + colon));
        }
        start += length + 1;
    }
    names.into_boxed_slice()
}
