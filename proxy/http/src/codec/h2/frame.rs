//! Frames of HTTP/2 (RFC 9113 4 and 6): their headers and payloads, read and written as plain bytes.
//!
//! Everything here is a pure function on one frame. [`Head::check`] judges what a frame header alone shows, so that a
//! frame is refused before its payload is there; the functions after it take the payload of a frame that passed. What
//! depends on streams, on settings or on the order of frames is the connection's to judge.

use std::ops::Range;

/// What a client's connection begins with.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame header.
pub const HEAD_LEN: usize = 9;
/// The largest payload, unless SETTINGS_MAX_FRAME_SIZE says otherwise.
pub const DEFAULT_MAX_FRAME_SIZE: u32 = 16_384;
/// The largest value of SETTINGS_MAX_FRAME_SIZE.
pub const MAX_FRAME_SIZE: u32 = (1 << 24) - 1;
/// The flow-control windows that a connection begins with.
pub const DEFAULT_WINDOW: u32 = 65_535;
/// The largest flow-control window.
pub const MAX_WINDOW: u32 = (1 << 31) - 1;
/// The highest stream number.
pub const MAX_STREAM: u32 = (1 << 31) - 1;

/// Frame types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 0
    Data,
    /// 1
    Headers,
    /// 2
    Priority,
    /// 3
    RstStream,
    /// 4
    Settings,
    /// 5
    PushPromise,
    /// 6
    Ping,
    /// 7
    GoAway,
    /// 8
    WindowUpdate,
    /// 9
    Continuation,
    /// Any other, which is ignored (RFC 9113 4.1).
    Unknown(u8),
}

impl Kind {
    /// The type of this number.
    #[inline]
    pub const fn from_code(code: u8) -> Kind {
        match code {
            0 => Kind::Data,
            1 => Kind::Headers,
            2 => Kind::Priority,
            3 => Kind::RstStream,
            4 => Kind::Settings,
            5 => Kind::PushPromise,
            6 => Kind::Ping,
            7 => Kind::GoAway,
            8 => Kind::WindowUpdate,
            9 => Kind::Continuation,
            other => Kind::Unknown(other),
        }
    }

    /// Its number.
    #[inline]
    pub const fn code(self) -> u8 {
        match self {
            Kind::Data => 0,
            Kind::Headers => 1,
            Kind::Priority => 2,
            Kind::RstStream => 3,
            Kind::Settings => 4,
            Kind::PushPromise => 5,
            Kind::Ping => 6,
            Kind::GoAway => 7,
            Kind::WindowUpdate => 8,
            Kind::Continuation => 9,
            Kind::Unknown(code) => code,
        }
    }
}

/// Flags, by the frames that have them.
pub mod flags {
    /// DATA, HEADERS: the stream's last.
    pub const END_STREAM: u8 = 0x1;
    /// SETTINGS, PING: an acknowledgement.
    pub const ACK: u8 = 0x1;
    /// HEADERS, PUSH_PROMISE, CONTINUATION: the header block's last.
    pub const END_HEADERS: u8 = 0x4;
    /// DATA, HEADERS, PUSH_PROMISE: a length of padding comes first.
    pub const PADDED: u8 = 0x8;
    /// HEADERS: a priority comes first.
    pub const PRIORITY: u8 = 0x20;
}

/// An error code of RST_STREAM and GOAWAY; peers may send unknown ones (RFC 9113 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorCode(pub u32);

macro_rules! error_codes {
    ($($name:ident = $code:literal),+ $(,)?) => {
        impl ErrorCode {
            $(#[doc = stringify!($code)] pub const $name: ErrorCode = ErrorCode($code);)+

            /// Its name in the RFC.
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($code => stringify!($name),)+
                    _ => "UNKNOWN",
                }
            }
        }
    };
}

error_codes! {
    NO_ERROR = 0, PROTOCOL_ERROR = 1, INTERNAL_ERROR = 2, FLOW_CONTROL_ERROR = 3, SETTINGS_TIMEOUT = 4,
    STREAM_CLOSED = 5, FRAME_SIZE_ERROR = 6, REFUSED_STREAM = 7, CANCEL = 8, COMPRESSION_ERROR = 9,
    CONNECT_ERROR = 10, ENHANCE_YOUR_CALM = 11, INADEQUATE_SECURITY = 12, HTTP_1_1_REQUIRED = 13,
}

/// Identifiers of SETTINGS.
pub mod setting {
    /// SETTINGS_HEADER_TABLE_SIZE
    pub const HEADER_TABLE_SIZE: u16 = 1;
    /// SETTINGS_ENABLE_PUSH
    pub const ENABLE_PUSH: u16 = 2;
    /// SETTINGS_MAX_CONCURRENT_STREAMS
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    /// SETTINGS_INITIAL_WINDOW_SIZE
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    /// SETTINGS_MAX_FRAME_SIZE
    pub const MAX_FRAME_SIZE: u16 = 5;
    /// SETTINGS_MAX_HEADER_LIST_SIZE
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
    /// SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441)
    pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// A frame that breaks the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The connection ends with this code.
    Connection(ErrorCode),
    /// The frame's stream is reset with this code.
    Stream(ErrorCode),
}

impl FrameError {
    const PROTOCOL: FrameError = FrameError::Connection(ErrorCode::PROTOCOL_ERROR);
    const SIZE: FrameError = FrameError::Connection(ErrorCode::FRAME_SIZE_ERROR);
}

/// A frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the payload.
    pub len: u32,
    /// Its type.
    pub kind: Kind,
    /// Its flags; those that the type does not have mean nothing.
    pub flags: u8,
    /// Its stream, without the reserved bit.
    pub stream: u32,
}

impl Head {
    /// Reads a frame header.
    #[inline]
    pub fn parse(bytes: &[u8; HEAD_LEN]) -> Head {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = *bytes;
        Head {
            len: u32::from_be_bytes([0, a, b, c]),
            kind: Kind::from_code(kind),
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & MAX_STREAM,
        }
    }

    /// Whether a flag is set.
    #[inline]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Judges the length and the stream. `max_frame_size` is our SETTINGS_MAX_FRAME_SIZE.
    #[inline]
    pub fn check(&self, max_frame_size: u32) -> Result<(), FrameError> {
        // RFC 9113 4.2 lets DATA reset the stream alone; its payload would have to be skipped, so all end the connection.
        if self.len > max_frame_size {
            return Err(FrameError::SIZE);
        }
        let on_stream = self.stream != 0;
        match self.kind {
            Kind::Data | Kind::Headers | Kind::PushPromise | Kind::Continuation if !on_stream => {
                Err(FrameError::PROTOCOL)
            }
            Kind::Priority if !on_stream => Err(FrameError::PROTOCOL),
            // RFC 9113 6.3: the one wrong length that is the stream's.
            Kind::Priority if self.len != 5 => Err(FrameError::Stream(ErrorCode::FRAME_SIZE_ERROR)),
            Kind::RstStream if !on_stream => Err(FrameError::PROTOCOL),
            Kind::RstStream | Kind::WindowUpdate if self.len != 4 => Err(FrameError::SIZE),
            Kind::Settings | Kind::Ping | Kind::GoAway if on_stream => Err(FrameError::PROTOCOL),
            Kind::Settings if self.has(flags::ACK) && self.len != 0 => Err(FrameError::SIZE),
            Kind::Settings if !self.len.is_multiple_of(6) => Err(FrameError::SIZE),
            Kind::Ping if self.len != 8 => Err(FrameError::SIZE),
            Kind::GoAway if self.len < 8 => Err(FrameError::SIZE),
            _ => Ok(()),
        }
    }

    /// Where the data or the piece of a header block stands in the payload of DATA, HEADERS, PUSH_PROMISE or
    /// CONTINUATION: without padding, and without what comes before it.
    ///
    /// Too short a payload for what the flags promise is a FRAME_SIZE_ERROR, more padding than there is room for a
    /// PROTOCOL_ERROR (RFC 9113 6.1), both of the connection.
    #[inline]
    pub fn content(&self, payload: &[u8]) -> Result<Range<usize>, FrameError> {
        let (mut begin, mut end) = (0, payload.len());
        if self.has(flags::PADDED) && matches!(self.kind, Kind::Data | Kind::Headers | Kind::PushPromise) {
            let padding = usize::from(*payload.first().ok_or(FrameError::SIZE)?);
            begin = 1;
            end = end.checked_sub(padding).filter(|&end| end >= begin).ok_or(FrameError::PROTOCOL)?;
        }
        match self.kind {
            Kind::Headers if self.has(flags::PRIORITY) => begin += 5,
            Kind::PushPromise => begin += 4,
            _ => {}
        }
        if begin > payload.len() {
            return Err(FrameError::SIZE);
        }
        if begin > end {
            return Err(FrameError::PROTOCOL);
        }
        Ok(begin..end)
    }

    /// The stream that PRIORITY, or HEADERS with the PRIORITY flag, says that this one depends on. Priorities are read
    /// past otherwise (RFC 9113 5.3.2).
    pub fn dependency(&self, payload: &[u8]) -> Option<u32> {
        let at = match self.kind {
            Kind::Priority => 0,
            Kind::Headers if self.has(flags::PRIORITY) => usize::from(self.has(flags::PADDED)),
            _ => return None,
        };
        u32_at(payload, at).map(|n| n & MAX_STREAM)
    }
}

fn u32_at(payload: &[u8], at: usize) -> Option<u32> {
    payload.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b))
}

/// The code of RST_STREAM.
#[inline]
pub fn rst_stream(payload: &[u8]) -> Result<ErrorCode, FrameError> {
    u32_at(payload, 0).map(ErrorCode).ok_or(FrameError::SIZE)
}

/// The identifiers and values of SETTINGS, in order.
pub fn settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> + '_ {
    payload.chunks_exact(6).map(|s| (u16::from_be_bytes([s[0], s[1]]), u32::from_be_bytes([s[2], s[3], s[4], s[5]])))
}

/// Judges a value of SETTINGS (RFC 9113 6.5.2); unknown ones are to be ignored.
pub fn check_setting(id: u16, value: u32) -> Result<(), FrameError> {
    match id {
        setting::ENABLE_PUSH | setting::ENABLE_CONNECT_PROTOCOL if value > 1 => Err(FrameError::PROTOCOL),
        setting::INITIAL_WINDOW_SIZE if value > MAX_WINDOW => {
            Err(FrameError::Connection(ErrorCode::FLOW_CONTROL_ERROR))
        }
        setting::MAX_FRAME_SIZE if !(DEFAULT_MAX_FRAME_SIZE..=MAX_FRAME_SIZE).contains(&value) => {
            Err(FrameError::PROTOCOL)
        }
        _ => Ok(()),
    }
}

/// The eight bytes of PING.
#[inline]
pub fn ping(payload: &[u8]) -> Result<[u8; 8], FrameError> {
    payload.first_chunk().copied().ok_or(FrameError::SIZE)
}

/// The last stream, the code and the debug data of GOAWAY.
pub fn go_away(payload: &[u8]) -> Result<(u32, ErrorCode, &[u8]), FrameError> {
    let (Some(last), Some(code)) = (u32_at(payload, 0), u32_at(payload, 4)) else { return Err(FrameError::SIZE) };
    Ok((last & MAX_STREAM, ErrorCode(code), &payload[8..]))
}

/// The increment of WINDOW_UPDATE. An increment of 0 is an error of the stream, or of the connection on stream 0
/// (RFC 9113 6.9).
#[inline]
pub fn window_update(head: &Head, payload: &[u8]) -> Result<u32, FrameError> {
    match u32_at(payload, 0).ok_or(FrameError::SIZE)? & MAX_WINDOW {
        0 if head.stream == 0 => Err(FrameError::PROTOCOL),
        0 => Err(FrameError::Stream(ErrorCode::PROTOCOL_ERROR)),
        n => Ok(n),
    }
}

/// Writes a frame header. `len` is below 2^24.
#[inline]
pub fn put_head(out: &mut Vec<u8>, len: usize, kind: Kind, flags: u8, stream: u32) {
    out.extend_from_slice(&head_bytes(len, kind, flags, stream));
}

/// A frame header's bytes. `len` is below 2^24.
#[inline]
pub fn head_bytes(len: usize, kind: Kind, flags: u8, stream: u32) -> [u8; HEAD_LEN] {
    debug_assert!(len <= MAX_FRAME_SIZE as usize, "a payload of {len} bytes");
    let [_, a, b, c] = (len as u32).to_be_bytes();
    let [s0, s1, s2, s3] = (stream & MAX_STREAM).to_be_bytes();
    [a, b, c, kind.code(), flags, s0, s1, s2, s3]
}

/// Writes SETTINGS.
pub fn put_settings(out: &mut Vec<u8>, values: &[(u16, u32)]) {
    put_head(out, values.len() * 6, Kind::Settings, 0, 0);
    for (id, value) in values {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Writes the acknowledgement of SETTINGS.
pub fn put_settings_ack(out: &mut Vec<u8>) {
    put_head(out, 0, Kind::Settings, flags::ACK, 0);
}

/// Writes PING, or its acknowledgement.
pub fn put_ping(out: &mut Vec<u8>, ack: bool, data: [u8; 8]) {
    put_head(out, 8, Kind::Ping, if ack { flags::ACK } else { 0 }, 0);
    out.extend_from_slice(&data);
}

/// Writes RST_STREAM.
pub fn put_rst_stream(out: &mut Vec<u8>, stream: u32, code: ErrorCode) {
    put_head(out, 4, Kind::RstStream, 0, stream);
    out.extend_from_slice(&code.0.to_be_bytes());
}

/// Writes GOAWAY.
pub fn put_go_away(out: &mut Vec<u8>, last_stream: u32, code: ErrorCode, debug: &[u8]) {
    put_head(out, 8 + debug.len(), Kind::GoAway, 0, 0);
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(debug);
}

/// Writes WINDOW_UPDATE.
pub fn put_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    put_head(out, 4, Kind::WindowUpdate, 0, stream);
    out.extend_from_slice(&increment.to_be_bytes());
}

/// Writes a header block as HEADERS and, where it is longer than the peer's `max_frame_size`, CONTINUATION.
///
/// `block` writes the block itself, in place.
pub fn put_headers(
    out: &mut Vec<u8>,
    stream: u32,
    end_stream: bool,
    max_frame_size: u32,
    block: impl FnOnce(&mut Vec<u8>),
) {
    let max = max_frame_size.max(1) as usize;
    let begin = out.len();
    out.extend_from_slice(&[0; HEAD_LEN]);
    block(out);
    let len = out.len() - begin - HEAD_LEN;
    let end_stream = if end_stream { flags::END_STREAM } else { 0 };
    if len <= max {
        let head = head_bytes(len, Kind::Headers, end_stream | flags::END_HEADERS, stream);
        out[begin..begin + HEAD_LEN].copy_from_slice(&head);
        return;
    }
    out[begin..begin + HEAD_LEN].copy_from_slice(&head_bytes(max, Kind::Headers, end_stream, stream));
    let rest = out.split_off(begin + HEAD_LEN + max);
    let mut pieces = rest.chunks(max).peekable();
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { flags::END_HEADERS } else { 0 };
        put_head(out, piece.len(), Kind::Continuation, last, stream);
        out.extend_from_slice(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u32 = DEFAULT_MAX_FRAME_SIZE;

    fn head(kind: u8, flags: u8, len: u32, stream: u32) -> Head {
        Head { len, kind: Kind::from_code(kind), flags, stream }
    }

    #[test]
    fn heads_are_read_as_they_were_written_without_the_reserved_bit() {
        let mut out = Vec::new();
        put_head(&mut out, 0x01_02_03, Kind::Continuation, 0x4, 0x0102_0304);
        assert_eq!(out, [1, 2, 3, 9, 4, 1, 2, 3, 4]);
        out[5] |= 0x80;
        let read = Head::parse(out[..].try_into().unwrap());
        assert_eq!(read, head(9, 4, 0x01_02_03, 0x0102_0304));
        for code in 0..=255 {
            assert_eq!(Kind::from_code(code).code(), code);
        }
    }

    #[test]
    fn wrong_lengths_and_streams_are_refused_by_the_head_alone() {
        let size = Err(FrameError::Connection(ErrorCode::FRAME_SIZE_ERROR));
        let protocol = Err(FrameError::Connection(ErrorCode::PROTOCOL_ERROR));
        for (kind, flags, len, stream, result) in [
            (0, 0, 0, 0, protocol),
            (0, 0, MAX, 1, Ok(())),
            (0, 0, MAX + 1, 1, size),
            (1, 0, 0, 0, protocol),
            (2, 0, 5, 1, Ok(())),
            (2, 0, 5, 0, protocol),
            (2, 0, 4, 1, Err(FrameError::Stream(ErrorCode::FRAME_SIZE_ERROR))),
            (3, 0, 4, 1, Ok(())),
            (3, 0, 4, 0, protocol),
            (3, 0, 5, 1, size),
            (4, 0, 12, 0, Ok(())),
            (4, 0, 12, 1, protocol),
            (4, 0, 7, 0, size),
            (4, flags::ACK, 0, 0, Ok(())),
            (4, flags::ACK, 6, 0, size),
            (5, 0, 4, 0, protocol),
            (6, 0, 8, 0, Ok(())),
            (6, 0, 8, 1, protocol),
            (6, 0, 7, 0, size),
            (7, 0, 8, 0, Ok(())),
            (7, 0, 8, 1, protocol),
            (7, 0, 7, 0, size),
            (8, 0, 4, 0, Ok(())),
            (8, 0, 4, 7, Ok(())),
            (8, 0, 3, 7, size),
            (9, 0, 0, 0, protocol),
            (77, 0xff, 3, 0, Ok(())),
            (77, 0, MAX + 1, 3, size),
        ] {
            assert_eq!(head(kind, flags, len, stream).check(MAX), result, "{kind} {flags} {len} {stream}");
        }
    }

    #[test]
    fn padding_and_priority_are_taken_off() {
        let size = || Err(FrameError::Connection(ErrorCode::FRAME_SIZE_ERROR));
        let protocol = || Err(FrameError::Connection(ErrorCode::PROTOCOL_ERROR));
        let both = flags::PADDED | flags::PRIORITY;
        for (kind, flags, payload, result) in [
            (0, 0, &[1, 2, 3][..], Ok(0..3)),
            (0, flags::PADDED, &[1, 2, 3], Ok(1..2)),
            (0, flags::PADDED, &[2, 2, 3], Ok(1..1)),
            (0, flags::PADDED, &[3, 2, 3], protocol()),
            (0, flags::PADDED, &[0], Ok(1..1)),
            (0, flags::PADDED, &[], size()),
            // DATA has no such flag.
            (0, flags::PRIORITY, &[1], Ok(0..1)),
            (1, flags::PRIORITY, &[0, 0, 0, 1, 9, 0x82], Ok(5..6)),
            (1, flags::PRIORITY, &[0, 0, 0, 1], size()),
            (1, both, &[1, 0, 0, 0, 1, 9, 0x82, 0], Ok(6..7)),
            (1, both, &[2, 0, 0, 0, 1, 9, 0x82], protocol()),
            (5, flags::PADDED, &[0, 0, 0, 0, 2, 0x82], Ok(5..6)),
            (9, flags::PADDED, &[9, 9], Ok(0..2)),
        ] {
            assert_eq!(
                head(kind, flags, payload.len() as u32, 1).content(payload),
                result,
                "{kind} {flags} {payload:?}"
            );
        }
        assert_eq!(head(1, both, 8, 1).dependency(&[1, 0x80, 0, 0, 5, 9, 0x82, 0]), Some(5));
        assert_eq!(head(2, 0, 5, 1).dependency(&[0, 0, 0, 1, 9]), Some(1));
        assert_eq!(head(1, 0, 1, 1).dependency(&[0x82]), None);
    }

    #[test]
    fn what_is_written_is_read() {
        let mut out = Vec::new();
        put_settings(&mut out, &[(setting::MAX_CONCURRENT_STREAMS, 100), (99, u32::MAX)]);
        put_go_away(&mut out, 7, ErrorCode::ENHANCE_YOUR_CALM, b"slow down");
        put_rst_stream(&mut out, 3, ErrorCode::CANCEL);
        put_window_update(&mut out, 3, 65_535);
        put_ping(&mut out, true, *b"12345678");
        put_settings_ack(&mut out);
        let mut rest = &out[..];
        let mut next = || {
            let (first, after) = rest.split_first_chunk().unwrap();
            let head = Head::parse(first);
            assert_eq!(head.check(MAX), Ok(()));
            let (payload, after) = after.split_at(head.len as usize);
            rest = after;
            (head, payload)
        };
        assert_eq!(settings(next().1).collect::<Vec<_>>(), [(3, 100), (99, u32::MAX)]);
        assert_eq!(go_away(next().1), Ok((7, ErrorCode(11), &b"slow down"[..])));
        let (head, payload) = next();
        assert_eq!((head.stream, rst_stream(payload).map(ErrorCode::name)), (3, Ok("CANCEL")));
        let (head, payload) = next();
        assert_eq!((head.stream, window_update(&head, payload)), (3, Ok(65_535)));
        let (head, payload) = next();
        assert_eq!((head.has(flags::ACK), ping(payload)), (true, Ok(*b"12345678")));
        assert!(next().0.has(flags::ACK));
        assert!(rest.is_empty());
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let connection = |code| Err(FrameError::Connection(code));
        assert_eq!(check_setting(setting::ENABLE_PUSH, 2), connection(ErrorCode::PROTOCOL_ERROR));
        assert_eq!(check_setting(setting::INITIAL_WINDOW_SIZE, 1 << 31), connection(ErrorCode::FLOW_CONTROL_ERROR));
        assert_eq!(check_setting(setting::MAX_FRAME_SIZE, 16_383), connection(ErrorCode::PROTOCOL_ERROR));
        assert_eq!(check_setting(setting::MAX_FRAME_SIZE, 1 << 24), connection(ErrorCode::PROTOCOL_ERROR));
        assert_eq!(check_setting(setting::MAX_FRAME_SIZE, MAX_FRAME_SIZE), Ok(()));
        assert_eq!(check_setting(1234, u32::MAX), Ok(()));
        let update = window_update(&head(8, 0, 4, 0), &[0x80, 0, 0, 0]);
        assert_eq!(update, Err(FrameError::Connection(ErrorCode::PROTOCOL_ERROR)));
        let stream = Err(FrameError::Stream(ErrorCode::PROTOCOL_ERROR));
        assert_eq!(window_update(&head(8, 0, 4, 1), &[0; 4]), stream);
        assert_eq!(ErrorCode(77).name(), "UNKNOWN");
    }

    #[test]
    fn long_header_blocks_continue() {
        for (len, frames) in [(0, 1), (10, 1), (11, 2), (20, 2), (35, 4)] {
            let block: Vec<u8> = (0..len).collect();
            let mut out = b"before".to_vec();
            put_headers(&mut out, 5, true, 10, |out| out.extend_from_slice(&block));
            let (mut rest, mut got, mut count) = (&out[6..], Vec::new(), 0);
            while let Some((first, after)) = rest.split_first_chunk() {
                let head = Head::parse(first);
                let (payload, after) = after.split_at(head.len as usize);
                rest = after;
                got.extend_from_slice(payload);
                count += 1;
                assert_eq!(head.kind, if count == 1 { Kind::Headers } else { Kind::Continuation });
                assert_eq!(head.has(flags::END_STREAM), count == 1);
                assert_eq!(head.has(flags::END_HEADERS), rest.is_empty());
                assert_eq!(head.stream, 5);
            }
            assert_eq!((got, count), (block, frames));
        }
    }
}
