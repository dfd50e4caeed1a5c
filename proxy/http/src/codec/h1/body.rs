//! Body decoder: content-length, chunked with trailers, until close. No I/O.
//!
//! Chunk lines are read strictly (RFC 9112 7.1): hexadecimal digits, extensions only after `;`, CRLF ends. Extensions
//! are dropped. Data is passed on in the pieces in which it was read, without copying.

use bytes::{Buf, Bytes, BytesMut};

use super::parse::{Framing, Limits, errors, parse_trailers};
use crate::codec::StreamError;
use crate::headers::Headers;

/// Longest chunk line with its extensions.
const MAX_CHUNK_LINE: usize = 4096;

/// What [`Decoder::decode`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes; true when the message ends with them.
    Data(Bytes, bool),
    /// Trailers (perhaps none): the message ends.
    Trailers(Headers),
    /// More bytes are needed.
    NeedMore,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The message is over.
    Done,
    Length(u64),
    UntilClose,
    ChunkLine,
    ChunkData(u64),
    /// The CRLF after chunk data.
    ChunkEnd,
    Trailers,
}

/// Decodes one body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    limits: Limits,
    keep_trailers: bool,
    /// Bytes of framing consumed: chunk lines and trailers.
    pub framing_bytes: u64,
}

impl Decoder {
    /// A decoder for a body that is framed so. `keep_trailers`: deliver trailers instead of dropping them.
    pub fn new(framing: Framing, limits: Limits, keep_trailers: bool) -> Decoder {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => State::ChunkLine,
            Framing::UntilClose | Framing::Raw => State::UntilClose,
        };
        Decoder { state, limits, keep_trailers, framing_bytes: 0 }
    }

    /// True when the whole message has been decoded.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// True when the peer's close is the end of the message.
    pub fn is_until_close(&self) -> bool {
        self.state == State::UntilClose
    }

    /// Takes the next piece from `buf`.
    ///
    /// # Errors
    /// Bad chunks or trailers: the connection cannot go on.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Piece, StreamError> {
        loop {
            match self.state {
                State::Done => return Ok(Piece::Data(Bytes::new(), true)),
                State::UntilClose => {
                    return Ok(if buf.is_empty() { Piece::NeedMore } else { Piece::Data(buf.split().freeze(), false) });
                }
                State::Length(left) => {
                    if buf.is_empty() {
                        return Ok(Piece::NeedMore);
                    }
                    let (data, left) = take(buf, left);
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    return Ok(Piece::Data(data, left == 0));
                }
                State::ChunkLine => match chunk_line(buf)? {
                    None => return Ok(Piece::NeedMore),
                    Some((size, line)) => {
                        buf.advance(line);
                        self.framing_bytes += line as u64;
                        self.state = if size == 0 { State::Trailers } else { State::ChunkData(size) };
                    }
                },
                State::ChunkData(left) => {
                    if buf.is_empty() {
                        return Ok(Piece::NeedMore);
                    }
                    // A chunk that is seen to end wrongly is not handed on.
                    let after = usize::try_from(left).ok().and_then(|left| buf.get(left..)).unwrap_or_default();
                    if !b"\r\n".starts_with(&after[..after.len().min(2)]) {
                        return Err(errors::codec_error());
                    }
                    let (data, left) = take(buf, left);
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    if left == 0 && buf.starts_with(b"\r\n0\r\n\r\n") {
                        // The common end of a body: no further piece, nothing to wait for.
                        buf.advance(7);
                        self.framing_bytes += 7;
                        self.state = State::Done;
                        return Ok(Piece::Data(data, true));
                    }
                    return Ok(Piece::Data(data, false));
                }
                State::ChunkEnd => match buf.get(..2) {
                    Some(b"\r\n") => {
                        buf.advance(2);
                        self.framing_bytes += 2;
                        self.state = State::ChunkLine;
                    }
                    None if buf.is_empty() || buf[0] == b'\r' => return Ok(Piece::NeedMore),
                    _ => return Err(errors::codec_error()),
                },
                State::Trailers => {
                    let before = buf.len();
                    let Some(trailers) = parse_trailers(buf, self.limits, self.keep_trailers)? else {
                        return Ok(Piece::NeedMore);
                    };
                    self.framing_bytes += (before - buf.len()) as u64;
                    self.state = State::Done;
                    return Ok(if trailers.is_empty() {
                        Piece::Data(Bytes::new(), true)
                    } else {
                        Piece::Trailers(trailers)
                    });
                }
            }
        }
    }
}

fn take(buf: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let n = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
    (buf.split_to(n).freeze(), left - n as u64)
}

/// Size of the next chunk and length of its line. Ok(None): more bytes are needed.
fn chunk_line(buf: &[u8]) -> Result<Option<(u64, usize)>, StreamError> {
    let mut size: u64 = 0;
    let mut at = 0;
    while let Some(digit) = buf.get(at).and_then(|&b| char::from(b).to_digit(16)) {
        if size >> 60 != 0 {
            return Err(errors::codec_error());
        }
        size = size << 4 | u64::from(digit);
        at += 1;
        if at > 16 {
            return Err(errors::codec_error());
        }
    }
    let Some(&next) = buf.get(at) else { return Ok(None) };
    if at == 0 {
        return Err(errors::codec_error());
    }
    let mut extension = at;
    if next != b'\r' {
        // BWS may stand before ";" (RFC 9112 7.1.1).
        while buf.get(extension).is_some_and(|b| matches!(b, b' ' | b'\t')) {
            extension += 1;
        }
        match buf.get(extension) {
            None => return if extension > MAX_CHUNK_LINE { Err(errors::codec_error()) } else { Ok(None) },
            Some(b';') => {}
            Some(_) => return Err(errors::codec_error()),
        }
        while buf.get(extension).is_some_and(|&b| b == b'\t' || (b >= 0x20 && b != 0x7f)) {
            extension += 1;
        }
    }
    if extension > MAX_CHUNK_LINE {
        return Err(errors::codec_error());
    }
    match (buf.get(extension), buf.get(extension + 1)) {
        (None, _) | (Some(b'\r'), None) => Ok(None),
        (Some(b'\r'), Some(b'\n')) => Ok(Some((size, extension + 2))),
        _ => Err(errors::codec_error()),
    }
}
