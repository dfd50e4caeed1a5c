//! The machine alone: bytes in, bytes out, one rule at a time.

mod client;

use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::frame::{FrameHead, PREFACE, kind};
use super::hpack::{Decoder, Field};
use super::machine::{Connection, End, MAX_SLICES, Role};
use super::tests::config;
use super::{Config, ErrorCode};
use crate::codec::{Frame, ResetReason};
use crate::headers::{HeaderName, HeaderValue, Headers, names, status_value};

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const BOTH: u8 = END_STREAM | END_HEADERS;
/// `GET / http a`, and as POST.
const GET: &[u8] = b"\x82\x84\x86\x01\x01a";
const POST: &[u8] = b"\x83\x84\x86\x01\x01a";
/// `:status: 200`
const OK: &[u8] = b"\x88";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    let mut out = vec![a, b, c, kind, flags];
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

fn headers(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    frame(kind::HEADERS, flags, stream, block)
}

fn data(flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    frame(kind::DATA, flags, stream, payload)
}

/// A connection under test.
struct Peer {
    connection: Connection,
    decoder: Decoder,
}

/// A frame that the machine sent.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sent {
    Data(u32, usize, bool),
    Headers(u32, String, bool),
    Reset(u32, u32),
    GoAway(u32, u32),
    WindowUpdate(u32, u32),
    Ack(u8),
    Ping,
}

impl Peer {
    fn new(role: Role, change: impl FnOnce(&mut Config)) -> Peer {
        let mut config = config();
        change(&mut config);
        let connection = Connection::new(role, Rc::new(config), Instant::now());
        let mut peer = Peer { connection, decoder: Decoder::default() };
        let mut start = Vec::new();
        if role == Role::Server {
            start.extend(PREFACE);
        }
        start.extend(frame(kind::SETTINGS, 0, 0, &[]));
        peer.recv(&start);
        peer.sent();
        peer
    }

    fn server() -> Peer {
        Peer::new(Role::Server, |_| {})
    }

    fn client() -> Peer {
        Peer::new(Role::Client, |_| {})
    }

    fn recv(&mut self, bytes: &[u8]) {
        let mut buf = BytesMut::from(bytes);
        self.connection.recv(&mut buf);
    }

    /// All bytes that it has to send.
    fn bytes(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            self.connection.pump();
            let mut slices = [std::io::IoSlice::new(&[]); MAX_SLICES];
            let n = self.connection.out.slices(&mut slices);
            let before = all.len();
            for slice in &slices[..n] {
                all.extend_from_slice(slice);
            }
            let written = all.len() - before;
            if written == 0 {
                return all;
            }
            self.connection.out.advance(written);
        }
    }

    /// The frames that it has to send, without SETTINGS.
    fn sent(&mut self) -> Vec<Sent> {
        let all = self.bytes();
        let mut rest = all.strip_prefix(PREFACE).unwrap_or(&all);
        let mut out = Vec::new();
        while let Some(head) = FrameHead::parse(rest) {
            let payload = &rest[9..9 + head.length];
            let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"));
            let end = head.flags & END_STREAM != 0;
            match head.kind {
                kind::DATA => out.push(Sent::Data(head.stream, payload.len(), end)),
                kind::HEADERS => {
                    let mut text = Vec::new();
                    let sink = |field: Field<'_>, _: usize| {
                        let Field::Valid(name, value) = field else { panic!("a malformed field was sent") };
                        text.push(format!("{name}: {}", value.as_bytes().escape_ascii()));
                        std::ops::ControlFlow::Continue(())
                    };
                    self.decoder.decode(payload, sink).expect("a header block");
                    out.push(Sent::Headers(head.stream, text.join("|"), end));
                }
                kind::RST_STREAM => out.push(Sent::Reset(head.stream, number(0))),
                kind::GOAWAY => out.push(Sent::GoAway(number(0), number(4))),
                kind::WINDOW_UPDATE => out.push(Sent::WindowUpdate(head.stream, number(0))),
                kind::SETTINGS | kind::PING if head.flags & 1 != 0 => out.push(Sent::Ack(head.kind)),
                kind::PING => out.push(Sent::Ping),
                _ => {}
            }
            rest = &rest[9 + head.length..];
        }
        assert!(rest.is_empty());
        out
    }

    /// The details with which the connection ended.
    fn details(&self) -> Option<&'static str> {
        match self.connection.end()? {
            End::Protocol(error) => Some(error.details),
            End::Flood(flood) => Some(flood.details()),
            _ => Some("other"),
        }
    }

    /// The next request's place and head.
    fn accept(&mut self) -> (usize, String) {
        let accepted = self.connection.accept().expect("a request");
        (accepted.key, show(&accepted.headers))
    }

    fn read(&mut self, key: usize) -> Poll<Result<Frame, crate::codec::StreamError>> {
        self.connection.poll_frame(key, Waker::noop())
    }

    fn request(&mut self, lines: &[(&str, &str)], end: bool) -> usize {
        self.connection.send_request(&list(lines), end).expect("a stream")
    }
}

fn show(headers: &Headers) -> String {
    headers.iter().map(|(n, v)| format!("{n}: {}", v.as_bytes().escape_ascii())).collect::<Vec<_>>().join("|")
}

fn list(lines: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in lines {
        headers
            .append(HeaderName::parse(name).expect("a name"), HeaderValue::parse(value.to_string()).expect("a value"));
    }
    headers
}

fn answer(status: u16) -> Headers {
    let mut headers = Headers::new();
    headers.append(names::STATUS, status_value(status));
    headers
}

const REQUEST: &[(&str, &str)] = &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

/// What a request with this block ends with: the details, or nothing for a request that is taken.
fn verdict(flags: u8, block: &[u8]) -> Option<&'static str> {
    let mut peer = Peer::server();
    peer.recv(&headers(flags, 1, block));
    let taken = peer.connection.accept().is_some();
    let details = peer.details();
    assert_eq!(taken, details.is_none());
    details
}

#[test]
fn a_request_is_answered() {
    let mut peer = Peer::server();
    peer.recv(&headers(BOTH, 1, GET));
    let (key, head) = peer.accept();
    assert_eq!(head, ":method: GET|:path: /|:scheme: http|:authority: a");
    peer.connection.send_response(key, &answer(200), false, false);
    peer.connection.send_data(key, Bytes::from_static(b"hi"), true);
    assert_eq!(peer.sent(), [Sent::Headers(1, ":status: 200".into(), false), Sent::Data(1, 2, true)]);
    assert!(!peer.connection.has_streams());
    let meter = peer.connection.meter(key);
    assert_eq!((meter.wire_bytes_received, meter.header_bytes_received), (15, 15));
    assert_eq!((meter.wire_bytes_sent, meter.header_bytes_sent), (10 + 11, 10));
    peer.connection.release(key);
    assert_eq!(peer.connection.active_streams(), 0);
}

#[test]
fn a_message_may_come_byte_by_byte() {
    let mut peer = Peer::server();
    let mut all = headers(0, 1, &POST[..3]);
    all.extend(frame(kind::CONTINUATION, END_HEADERS, 1, &POST[3..]));
    all.extend(data(8, 1, &[3, b'a', b'b', 0, 0, 0]));
    all.extend(data(END_STREAM, 1, b"c"));
    let mut buf = BytesMut::new();
    for byte in all {
        buf.extend_from_slice(&[byte]);
        peer.connection.recv(&mut buf);
    }
    let (key, _) = peer.accept();
    let mut body = Vec::new();
    while let Poll::Ready(Ok(Frame::Data(data, end))) = peer.read(key) {
        body.extend_from_slice(&data);
        if end {
            break;
        }
    }
    assert_eq!(body, b"abc");
}

#[test]
fn malformed_requests_have_envoys_details() {
    const FIELD: Option<&str> = Some("http2.invalid.header.field");
    const MESSAGING: Option<&str> = Some("http2.violation.of.messaging.rule");
    let with = |more: &[u8]| [GET, more].concat();
    for (block, details) in [
        (b"\x82\x86\x01\x01a".to_vec(), MESSAGING),
        (b"\x84\x86\x01\x01a".to_vec(), MESSAGING),
        (b"\x82\x84\x86".to_vec(), MESSAGING),
        (b"\x82\x04\x01b\x86\x01\x01a".to_vec(), MESSAGING),
        (b"\x02\x07CONNECT\x84\x86\x01\x01a".to_vec(), MESSAGING),
        (b"\x82\x04\x00\x86\x01\x01a".to_vec(), FIELD),
        (b"\x82\x84\x06\x00\x01\x01a".to_vec(), FIELD),
        (b"\x82\x84\x86\x01\x00".to_vec(), FIELD),
        (b"\x82\x84\x86\x01\x03u@h".to_vec(), FIELD),
        (b"\x82\x83\x84\x86\x01\x01a".to_vec(), FIELD),
        (b"\x82\x84\0\x01x\x01y\x86\x01\x01a".to_vec(), FIELD),
        (with(b"\0\x01X\x01y"), FIELD),
        (with(b"\0\x02:x\x01y"), FIELD),
        (with(b"\x88"), FIELD),
        (with(b"\0\x0aconnection\x05close"), FIELD),
        (with(b"\0\x02te\x04gzip"), FIELD),
        (with(b"\0\x01x\x03a\0b"), FIELD),
        (with(b"\0\0\x01y"), FIELD),
        (with(b"\x0f\x0d\x0219\x0f\x0d\x0219"), FIELD),
        (with(b"\x0f\x0d\x02-1"), FIELD),
        (with(b"\x0f\x0d\x011"), MESSAGING),
        (with(b"\0\x04host\x01b"), None),
        (b"\x82\x84\x86\0\x04host\x01b".to_vec(), None),
        (with(b"\0\x02te\x08trailers"), None),
        (with(b"\0\x01x\x03 y "), None),
        (b"\x02\x07CONNECT\x01\x01a".to_vec(), None),
        (b"\x02\x07OPTIONS\x04\x01*\x86\x01\x01a".to_vec(), None),
    ] {
        assert_eq!(verdict(BOTH, &block), details, "{}", block.escape_ascii());
    }
}

#[test]
fn a_malformed_request_resets_its_stream_where_told() {
    let mut peer = Peer::new(Role::Server, |c| c.stream_error_on_invalid_http_message = true);
    peer.recv(&headers(BOTH, 1, &[GET, b"\0\x01X\x01y"].concat()));
    peer.recv(&headers(BOTH, 3, GET));
    assert_eq!(peer.sent(), [Sent::Reset(1, 1)]);
    assert_eq!(peer.connection.take_rejected()[0].details, "http2.invalid.header.field");
    peer.accept();
}

#[test]
fn bytes_outside_ascii_are_refused_where_told() {
    let block = [GET, b"\0\x01x\x02\xc3\xa9"].concat();
    let mut peer = Peer::server();
    peer.recv(&headers(BOTH, 1, &block));
    peer.accept();
    let mut peer = Peer::new(Role::Server, |c| {
        c.stream_error_on_invalid_http_message = true;
        c.options.disallow_obs_text = true;
    });
    peer.recv(&headers(BOTH, 1, &block));
    assert_eq!(peer.sent(), [Sent::Reset(1, 1)]);
    assert_eq!(peer.connection.take_rejected()[0].details, "http2.invalid.header.field");
}

#[test]
fn limits_reset_the_stream_and_leave_the_table_right() {
    let mut peer = Peer::new(Role::Server, |c| c.limits.max_count = 6);
    // With incremental indexing: what comes after the limit counts for the table.
    let crumbs: Vec<u8> = (b'a'..b'e').flat_map(|c| [0x40, 1, c, 1, c]).collect();
    peer.recv(&headers(BOTH, 1, &[GET, &crumbs].concat()));
    assert_eq!(peer.sent(), [Sent::Reset(1, 2)]);
    assert_eq!(peer.connection.take_rejected()[0].details, "http2.too_many_headers");
    peer.recv(&headers(BOTH, 3, &[GET, b"\xbe\xc1"].concat()));
    assert_eq!(peer.accept().1, ":method: GET|:path: /|:scheme: http|:authority: a|d: d|a: a");

    let mut peer = Peer::server();
    let mut field = b"\0\x01x\x7f\xe9\x06".to_vec();
    field.resize(field.len() + 1000, b'a');
    peer.recv(&headers(0, 1, GET));
    for _ in 0..100 {
        peer.recv(&frame(kind::CONTINUATION, 0, 1, &field));
    }
    peer.recv(&frame(kind::CONTINUATION, END_HEADERS, 1, b"\x90"));
    assert_eq!(peer.sent(), [Sent::Reset(1, 2)]);
    assert_eq!(peer.connection.take_rejected()[0].details, "http2.header_list_size_too_large");
    assert!(peer.connection.end().is_none());
}

#[test]
fn an_endless_header_block_ends_the_connection() {
    let mut peer = Peer::server();
    peer.recv(&headers(0, 1, GET));
    for _ in 0..100 {
        peer.recv(&frame(kind::CONTINUATION, 0, 1, &[0x80 | 2; 16_000]));
        assert!(peer.connection.held_bytes() < 300_000);
    }
    assert_eq!(peer.sent(), [Sent::Reset(1, 2), Sent::GoAway(1, 11)]);
    assert_eq!(peer.connection.take_rejected().len(), 1);
}

#[test]
fn what_breaks_the_framing_ends_the_connection() {
    // The GOAWAY's code, or nothing where Envoy closes without a word.
    for (bytes, code) in [
        (data(0, 1, b"x"), Some(1)),
        (headers(BOTH, 2, GET), None),
        ([headers(BOTH, 5, GET), headers(BOTH, 3, GET)].concat(), Some(5)),
        (frame(5, END_HEADERS, 1, &[0, 0, 0, 2]), None),
        (frame(kind::PING, 0, 0, &[0; 9]), Some(6)),
        (frame(kind::PING, 0, 1, &[0; 8]), None),
        (frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4]), None),
        (frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]), None),
        (frame(kind::WINDOW_UPDATE, 0, 0, &[0; 3]), Some(6)),
        (frame(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), None),
        ([headers(END_HEADERS, 1, POST), frame(kind::WINDOW_UPDATE, 0, 1, &[0; 4])].concat(), None),
        ([headers(END_HEADERS, 1, POST), frame(kind::WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])].concat(), None),
        (headers(BOTH, 1, &[0xff; 5]), Some(9)),
        (data(0, 1, &[0; 17_000]), Some(6)),
        ([headers(0, 1, GET), frame(kind::PING, 0, 0, &[0; 8])].concat(), Some(1)),
        (frame(kind::CONTINUATION, END_HEADERS, 1, GET), Some(1)),
        (frame(kind::RST_STREAM, 0, 1, &[0; 4]), None),
        (frame(kind::RST_STREAM, 0, 0, &[0; 4]), None),
        (frame(kind::RST_STREAM, 0, 1, &[0; 5]), Some(6)),
        (frame(kind::SETTINGS, 0, 0, &[0; 5]), Some(6)),
        (frame(kind::SETTINGS, 1, 0, &[0; 6]), Some(6)),
        (frame(kind::SETTINGS, 0, 1, &[]), None),
        // Only one SETTINGS frame of ours can be acknowledged.
        (frame(kind::SETTINGS, 1, 0, &[]).repeat(2), None),
        (frame(kind::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 5]), None),
        (frame(kind::SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]), None),
        (frame(kind::SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]), None),
        (frame(kind::SETTINGS, 0, 0, &[0; 6 * 33]), Some(11)),
        (frame(kind::PRIORITY, 0, 1, &[0; 4]), Some(6)),
        (frame(kind::GOAWAY, 0, 1, &[0; 8]), None),
        (frame(kind::GOAWAY, 0, 0, &[0; 7]), Some(6)),
        (headers(BOTH | 8, 1, &[9, 0x82]), Some(1)),
        (headers(BOTH | 32, 1, &[&[0, 0, 0, 1, 0], GET].concat()), None),
        ([headers(END_HEADERS, 1, POST), data(8, 1, &[9, 1, 2])].concat(), Some(1)),
        ([headers(END_HEADERS, 1, POST), data(8, 1, &[])].concat(), Some(1)),
        ([headers(BOTH, 1, POST), data(0, 1, b"x")].concat(), Some(5)),
        ([headers(BOTH, 1, POST), headers(BOTH, 1, POST)].concat(), None),
        ([headers(END_HEADERS, 1, POST), headers(END_HEADERS, 1, b"\0\x01x\x01y")].concat(), None),
        ([headers(END_HEADERS, 1, POST), headers(BOTH, 1, b"\x84")].concat(), None),
    ] {
        let mut peer = Peer::server();
        peer.recv(&bytes);
        assert!(peer.connection.end().is_some(), "{bytes:?}");
        let goaway =
            peer.sent().into_iter().find_map(|f| if let Sent::GoAway(_, code) = f { Some(code) } else { None });
        assert_eq!(goaway, code, "{:?}", &bytes[..bytes.len().min(40)]);
        // And after the end nothing happens.
        peer.recv(&headers(BOTH, 9, GET));
        assert!(peer.sent().is_empty());
    }
}

#[test]
fn what_does_no_harm_is_ignored() {
    for bytes in [
        frame(0xbb, 0xff, 7, b"whatever"),
        frame(kind::SETTINGS, 0, 0, &[0xff, 0xff, 0, 0, 0, 1]),
        frame(kind::PRIORITY, 0, 9, &[0, 0, 0, 1, 5]),
        frame(kind::PRIORITY, 0, 9, &[0, 0, 0, 9, 5]),
        frame(kind::PRIORITY, 0, 0, &[0; 5]),
        frame(kind::PING, 1, 0, &[0; 8]),
        frame(kind::GOAWAY, 0, 0, &[0; 8]),
    ] {
        let mut peer = Peer::server();
        peer.recv(&bytes);
        peer.recv(&headers(BOTH, 1, GET));
        peer.accept();
        assert!(peer.connection.end().is_none());
    }
}

#[test]
fn settings_and_pings_are_acknowledged() {
    let mut peer = Peer::server();
    peer.recv(&frame(kind::SETTINGS, 0, 0, &[]));
    peer.recv(&frame(kind::PING, 0, 0, b"12345678"));
    assert_eq!(peer.sent(), [Sent::Ack(4), Sent::Ack(6)]);
}

#[test]
fn a_body_follows_the_windows_of_the_peer() {
    let mut peer = Peer::server();
    peer.recv(&frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 10]));
    peer.recv(&headers(BOTH, 1, GET));
    peer.sent();
    let (key, _) = peer.accept();
    peer.connection.send_response(key, &answer(200), false, false);
    peer.connection.send_data(key, Bytes::from_static(b"0123456789abcdef"), false);
    peer.connection.send_trailers(key, &list(&[("t", "1")]));
    assert_eq!(peer.sent()[1..], [Sent::Data(1, 10, false)]);
    assert!(peer.connection.poll_flush(key, Waker::noop()).is_pending());
    peer.recv(&frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 4]));
    assert_eq!(peer.sent(), [Sent::Data(1, 4, false)]);
    // Settings make windows larger, and negative.
    peer.recv(&frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 5]));
    peer.recv(&frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 5]));
    assert_eq!(peer.sent(), [Sent::Ack(4)]);
    peer.recv(&frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 1, 0]));
    assert_eq!(peer.sent(), [Sent::Ack(4), Sent::Data(1, 2, false), Sent::Headers(1, "t: 1".into(), true)]);
    assert!(peer.connection.poll_flush(key, Waker::noop()).is_ready());
}

#[test]
fn streams_share_the_connections_window_in_turns() {
    let mut peer = Peer::server();
    let mut keys = Vec::new();
    for id in [1, 3] {
        peer.recv(&headers(BOTH, id, GET));
        keys.push(peer.accept().0);
    }
    for key in keys {
        peer.connection.send_response(key, &answer(200), false, false);
        peer.connection.send_data(key, Bytes::from(vec![0; 60_000]), true);
    }
    let sent: Vec<_> = peer.sent().into_iter().filter(|f| matches!(f, Sent::Data(..))).collect();
    let by = |id| {
        sent.iter()
            .map(|f| {
                if let Sent::Data(i, n, _) = f
                    && *i == id
                {
                    *n
                } else {
                    0
                }
            })
            .sum::<usize>()
    };
    assert_eq!(by(1) + by(3), 65_535, "{sent:?}");
    assert!(by(1).abs_diff(by(3)) <= 16_384, "{sent:?}");
    peer.recv(&frame(kind::WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]));
    let sent = peer.sent();
    assert_eq!(sent.iter().filter(|f| matches!(f, Sent::Data(_, _, true))).count(), 2, "{sent:?}");
}

#[test]
fn windows_open_as_the_consumer_takes() {
    let small = |c: &mut Config| {
        c.options.initial_stream_window_size = 65_535;
        c.options.initial_connection_window_size = 65_535;
    };
    let mut peer = Peer::new(Role::Server, small);
    peer.recv(&headers(END_HEADERS, 1, POST));
    let (key, _) = peer.accept();
    for _ in 0..3 {
        peer.recv(&data(0, 1, &[0; 16_000]));
    }
    assert!(peer.sent().is_empty());
    assert!(peer.read(key).is_ready());
    assert!(peer.read(key).is_ready());
    assert!(peer.sent().is_empty());
    assert!(peer.read(key).is_ready());
    assert_eq!(peer.sent(), [Sent::WindowUpdate(1, 48_000), Sent::WindowUpdate(0, 48_000)]);

    // More than was allowed ends the stream; what nobody reads is given back to the connection.
    let mut peer = Peer::new(Role::Server, |c| {
        small(c);
        c.options.initial_connection_window_size = 131_070;
    });
    peer.recv(&headers(END_HEADERS, 1, POST));
    for _ in 0..5 {
        peer.recv(&data(0, 1, &[0; 16_000]));
    }
    assert_eq!(peer.sent(), [Sent::Reset(1, 3)]);
    let (key, _) = peer.accept();
    peer.connection.release(key);
    assert_eq!(peer.sent(), [Sent::WindowUpdate(0, 80_000)]);

    // And more than the connection was allowed ends it.
    let mut peer = Peer::new(Role::Server, |c| {
        small(c);
        c.options.initial_stream_window_size = 1 << 20;
    });
    peer.recv(&headers(END_HEADERS, 1, POST));
    for _ in 0..5 {
        peer.recv(&data(0, 1, &[0; 16_000]));
    }
    assert_eq!(peer.sent(), [Sent::GoAway(1, 3)]);
}

#[test]
fn a_slow_consumer_holds_what_it_counts() {
    let mut peer = Peer::server();
    peer.recv(&headers(END_HEADERS, 1, POST));
    let (key, _) = peer.accept();
    let mut sent = 0;
    for _ in 0..300_000 {
        peer.recv(&data(0, 1, b"x"));
        sent += 1;
    }
    assert_eq!(peer.connection.held_bytes(), sent);
    let mut pieces = 0;
    let mut read = 0;
    while let Poll::Ready(Ok(Frame::Data(data, _))) = peer.read(key) {
        pieces += 1;
        read += data.len();
    }
    assert_eq!(read, sent);
    assert!(pieces < 20, "{pieces} pieces");
}

#[test]
fn a_body_that_is_not_as_long_as_it_said_resets_its_stream() {
    for (length, body, end) in [(b'9', &b"abc"[..], END_STREAM), (b'2', b"abc", 0)] {
        let mut peer = Peer::server();
        peer.recv(&headers(END_HEADERS, 1, &[POST, &[0x0f, 0x0d, 1, length]].concat()));
        peer.recv(&data(end, 1, body));
        assert_eq!(peer.sent(), [Sent::Reset(1, 1)]);
        // Late frames of a stream that this side reset are no error.
        peer.recv(&data(0, 1, b"more"));
        peer.recv(&headers(BOTH, 1, b"\0\x01x\x01y"));
        peer.recv(&headers(BOTH, 3, GET));
        assert_eq!(peer.details(), None);
        let (key, _) = peer.accept();
        let error = peer.connection.error(key).expect("an error");
        assert_eq!((error.reason, error.details), (ResetReason::RemoteReset, "http2.remote_reset"));
        // What answers it is dropped silently.
        peer.connection.send_response(key, &answer(200), true, false);
        assert!(peer.connection.poll_flush(key, Waker::noop()).is_ready());
    }
}

#[test]
fn frames_on_closed_streams_are_errors() {
    for late in [data(0, 1, b"x"), headers(BOTH, 1, GET)] {
        let mut peer = Peer::server();
        peer.recv(&headers(BOTH, 1, GET));
        let (key, _) = peer.accept();
        peer.connection.send_response(key, &answer(200), true, false);
        peer.sent();
        peer.recv(&frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]));
        peer.recv(&frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]));
        assert!(peer.connection.end().is_none());
        peer.recv(&late);
        assert_eq!(peer.sent(), [Sent::GoAway(1, 5)]);
    }
}

#[test]
fn an_early_answer_resets_what_is_left_of_the_request() {
    let mut peer = Peer::server();
    peer.recv(&headers(END_HEADERS, 1, POST));
    let (key, _) = peer.accept();
    peer.connection.send_response(key, &answer(200), false, false);
    peer.connection.send_data(key, Bytes::from_static(b"hi"), true);
    peer.connection.release(key);
    assert_eq!(peer.sent()[1..], [Sent::Data(1, 2, true), Sent::Reset(1, 0)]);
    assert_eq!(peer.connection.active_streams(), 0);
}

#[test]
fn a_dropped_stream_is_cancelled_and_a_queued_end_still_goes() {
    let mut peer = Peer::server();
    peer.recv(&frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    peer.recv(&headers(BOTH, 1, GET));
    peer.recv(&headers(BOTH, 3, GET));
    let ((one, _), (two, _)) = (peer.accept(), peer.accept());
    peer.connection.send_response(one, &answer(200), false, false);
    peer.connection.send_data(one, Bytes::from_static(b"hi"), true);
    peer.connection.release(one);
    peer.connection.release(two);
    let sent = peer.sent();
    assert_eq!(sent[1..], [Sent::Headers(1, ":status: 200".into(), false), Sent::Reset(3, 8)]);
    assert_eq!(peer.connection.active_streams(), 1);
    peer.recv(&frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 9]));
    assert_eq!(peer.sent(), [Sent::Data(1, 2, true)]);
    assert_eq!(peer.connection.active_streams(), 0);
}

#[test]
fn more_streams_than_allowed_are_refused_until_the_limit_is_known() {
    let mut peer = Peer::new(Role::Server, |c| c.options.max_concurrent_streams = 1);
    peer.recv(&headers(BOTH, 1, GET));
    peer.recv(&headers(BOTH, 3, GET));
    assert_eq!(peer.sent(), [Sent::Reset(3, 7)]);
    assert!(peer.connection.end().is_none());
    peer.recv(&frame(kind::SETTINGS, 1, 0, &[]));
    peer.recv(&headers(BOTH, 5, GET));
    assert!(peer.connection.end().is_some());
}

#[test]
fn goodbye_is_said_twice() {
    let mut peer = Peer::server();
    peer.recv(&headers(BOTH, 1, GET));
    let (key, _) = peer.accept();
    peer.connection.graceful_shutdown();
    assert_eq!(peer.sent(), [Sent::GoAway(0x7fff_ffff, 0), Sent::Ping]);
    // What was on its way is still served.
    peer.recv(&headers(BOTH, 3, GET));
    let (other, _) = peer.accept();
    peer.recv(&frame(kind::PING, 1, 0, b"shutdown"));
    assert_eq!(peer.sent(), [Sent::Ping]);
    // Peers answer pings first: this was opened before they read the goodbye.
    peer.recv(&headers(BOTH, 5, GET));
    let (behind, _) = peer.accept();
    peer.recv(&frame(kind::PING, 1, 0, b"shutdown"));
    assert_eq!(peer.sent(), [Sent::GoAway(5, 0)]);
    peer.recv(&headers(BOTH, 7, GET));
    assert!(peer.connection.accept().is_none());
    assert!(!peer.connection.is_done());
    for key in [key, other, behind] {
        peer.connection.send_response(key, &answer(200), true, false);
        peer.connection.release(key);
    }
    assert!(peer.connection.is_done());
}

#[test]
fn goodbye_does_not_wait_for_an_answer_for_ever() {
    let mut peer = Peer::server();
    peer.recv(&headers(BOTH, 1, GET));
    let (key, _) = peer.accept();
    peer.connection.graceful_shutdown();
    peer.sent();
    peer.connection.end_shutdown();
    assert_eq!(peer.sent(), [Sent::GoAway(1, 0)]);
    assert!(!peer.connection.is_done(), "a stream is open");
    // A late answer changes nothing.
    peer.recv(&frame(kind::PING, 1, 0, b"shutdown"));
    assert_eq!(peer.sent(), []);
    peer.connection.send_response(key, &answer(200), true, false);
    peer.connection.release(key);
    assert!(peer.connection.is_done());
}

#[test]
fn floods_are_counted() {
    let mut peer = Peer::server();
    peer.recv(&headers(END_HEADERS, 1, POST));
    peer.recv(&data(8, 1, &[1, 0]));
    peer.recv(&data(0, 1, &[]));
    assert_eq!(peer.details(), Some("http2.inbound_empty_frames_flood"));

    // A peer that asks and does not read.
    let mut peer = Peer::server();
    peer.connection.blocked = true;
    for _ in 0..=1000 {
        peer.recv(&frame(kind::PING, 0, 0, &[0; 8]));
    }
    assert_eq!(peer.details(), Some("http2.outbound_frames_flood"));
    assert_eq!(peer.connection.config.stats.outbound_control_flood().value(), 1);

    let mut peer = Peer::new(Role::Server, |c| c.options.max_outbound_frames = 20);
    for id in 0..11 {
        peer.recv(&headers(BOTH, 2 * id + 1, GET));
        let Some(accepted) = peer.connection.accept() else { break };
        peer.connection.send_response(accepted.key, &answer(200), false, false);
        peer.connection.send_data(accepted.key, Bytes::from_static(b"x"), true);
    }
    assert_eq!(peer.details(), Some("http2.outbound_frames_flood"));
    assert_eq!(peer.connection.config.stats.outbound_flood().value(), 1);
}

#[test]
fn rapid_resets_end_the_connection_at_half_of_the_limit() {
    let mut peer = Peer::server();
    let mut frames = Vec::new();
    for i in 0..1000 {
        frames.extend(headers(BOTH, 2 * i + 1, GET));
        frames.extend(frame(kind::RST_STREAM, 0, 2 * i + 1, &[0, 0, 0, 8]));
    }
    peer.recv(&frames);
    assert_eq!(peer.connection.end(), Some(&End::TooManyResets));
    assert_eq!(peer.connection.config.stats.rx_reset().value(), 250);
    // Late resets, and resets of what was answered, do not count.
    let mut peer = Peer::server();
    for i in 0..1000 {
        peer.recv(&headers(BOTH, 2 * i + 1, GET));
        let (key, _) = peer.accept();
        if i % 2 == 0 {
            peer.connection.send_response(key, &answer(200), false, false);
        } else {
            peer.connection.now += Duration::from_secs(2);
        }
        peer.recv(&frame(kind::RST_STREAM, 0, 2 * i + 1, &[0, 0, 0, 8]));
        peer.connection.release(key);
    }
    assert!(peer.connection.end().is_none());
    assert_eq!(peer.connection.active_streams(), 0);
}

#[test]
fn more_resets_than_the_bucket_holds_end_the_connection_with_goaway() {
    let mut peer = Peer::new(Role::Server, |config| {
        config.options.stream_reset_burst = 5;
        config.options.stream_reset_rate = 2;
    });
    let mut next = 1;
    let mut reset = |peer: &mut Peer, wait: u64| {
        peer.connection.now += Duration::from_millis(wait);
        peer.recv(&headers(BOTH, next, GET));
        peer.recv(&frame(kind::RST_STREAM, 0, next, &[0, 0, 0, 8]));
        next += 2;
        peer.connection.end().is_none()
    };
    assert!((0..5).all(|_| reset(&mut peer, 100)));
    // Two more with each second.
    assert!((0..2).all(|_| reset(&mut peer, 600)));
    assert!((0..20).all(|_| reset(&mut peer, 600)));
    assert!((0..10).any(|_| !reset(&mut peer, 1)));
    assert!(matches!(peer.sent().last(), Some(Sent::GoAway(_, 2))));
    // Those of streams that are over count, too; what a server resets does not.
    let mut peer = Peer::new(Role::Server, |config| config.options.stream_reset_burst = 1);
    peer.recv(&headers(BOTH, 1, GET));
    let again = frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    peer.recv(&again);
    assert!(peer.connection.end().is_none());
    peer.recv(&again);
    assert!(peer.connection.end().is_some());
    let mut peer = Peer::new(Role::Client, |config| config.options.stream_reset_burst = 0);
    peer.request(REQUEST, true);
    peer.recv(&frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]));
    assert!(peer.connection.end().is_none());
}

#[test]
fn a_full_window_takes_hardly_more_memory_than_its_bytes() {
    let mut peer = Peer::client();
    let key = peer.request(REQUEST, true);
    peer.recv(&headers(END_HEADERS, 1, OK));
    // Frames come in reads of any size, none of which falls together with the blocks.
    let frames = data(0, 1, &[7; 16_000]).repeat(1000);
    let mut buf = BytesMut::new();
    for piece in frames.chunks(10_007) {
        buf.extend_from_slice(piece);
        peer.connection.recv(&mut buf);
    }
    let mut sizes = Vec::new();
    while let Poll::Ready(Ok(Frame::Data(data, _))) = peer.read(key) {
        assert!(data.iter().all(|&byte| byte == 7));
        sizes.push(data.len());
    }
    assert_eq!(sizes.iter().sum::<usize>(), 16_000_000);
    let slow: Vec<usize> = sizes.into_iter().skip_while(|&size| size < 64 * 1024).collect();
    let (last, full) = slow.split_last().expect("a slow queue");
    assert!(full.iter().all(|&size| size == 64 * 1024) && *last <= 64 * 1024 && full.len() > 200, "{full:?}");
}
