//! The sans-io parts: tables of good and bad input, and properties of arbitrary input.

use bytes::{Bytes, BytesMut};
use nuncio_base::stats::{Registry, StatsConfig};
use nuncio_config::hcm::{Http1Options, UnderscoresAction};
use proptest::prelude::*;

use super::body::{Decoder, Piece};
use super::parse::{Framing, Limits};
use super::request::{RequestHead, is_authority, parse_request};
use super::response::{RequestKind, ResponseHead, parse_response};
use super::server::ServerConfig;
use crate::codec::stats::Http1Stats;
use crate::codec::{Protocol, StreamError};
use crate::headers::{HeaderValue, Headers};

const LIMITS: Limits = Limits { max_bytes: 60 * 1024, max_count: 100 };

fn config(change: impl FnOnce(&mut ServerConfig)) -> ServerConfig {
    let stats = Http1Stats::new(&Registry::new(1, StatsConfig::default()), "http1.");
    let mut config = ServerConfig::new(&Http1Options::default(), LIMITS, UnderscoresAction::Allow, 0, stats);
    change(&mut config);
    config
}

fn request_with(input: &[u8], config: &ServerConfig) -> Result<Option<RequestHead>, StreamError> {
    parse_request(&mut BytesMut::from(input), config, false)
}

fn request(input: &[u8]) -> Result<Option<RequestHead>, StreamError> {
    request_with(input, &config(|_| {}))
}

fn show(headers: &Headers) -> String {
    headers.iter().map(|(n, v)| format!("{n}: {}", v.as_bytes().escape_ascii())).collect::<Vec<_>>().join("|")
}

fn good(input: &str) -> RequestHead {
    request(input.as_bytes()).unwrap_or_else(|e| panic!("{input:?}: {e}")).unwrap_or_else(|| panic!("{input:?}"))
}

/// A request with these lines beside a good first line and Host.
fn lines(lines: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\n").into_bytes()
}

#[test]
fn bad_requests_get_the_status_and_details_of_envoy() {
    let codec_error = (400, "http1.codec_error");
    let characters = (400, "http1.invalid_characters");
    let authority = (400, "http.invalid_authority");
    let url = (400, "http1.invalid_url");
    let encoding = (501, "http1.invalid_transfer_encoding");
    let low = (426, "low_version");
    let table: Vec<(&str, Vec<u8>, (u16, &str))> = vec![
        (
            "both lengths",
            lines("content-length: 1\r\ntransfer-encoding: chunked"),
            (400, "http1.content_length_and_chunked_not_allowed"),
        ),
        (
            "both lengths turned",
            lines("transfer-encoding: chunked\r\ncontent-length: 1"),
            (400, "http1.content_length_and_chunked_not_allowed"),
        ),
        ("two equal lengths", lines("content-length: 1\r\ncontent-length: 1"), codec_error),
        ("two lengths", lines("content-length: 1\r\ncontent-length: 2"), codec_error),
        ("list of lengths", lines("content-length: 1, 1"), codec_error),
        ("plus", lines("content-length: +1"), codec_error),
        ("minus", lines("content-length: -1"), codec_error),
        ("hexadecimal", lines("content-length: 0x1"), codec_error),
        ("empty length", lines("content-length:"), codec_error),
        ("huge length", lines("content-length: 99999999999999999999"), codec_error),
        ("gzip", lines("transfer-encoding: gzip"), encoding),
        ("gzip, chunked", lines("transfer-encoding: gzip, chunked"), encoding),
        ("chunked twice", lines("transfer-encoding: chunked\r\ntransfer-encoding: chunked"), encoding),
        ("chunked, chunked", lines("transfer-encoding: chunked, chunked"), encoding),
        ("xchunked", lines("transfer-encoding: xchunked"), encoding),
        ("identity", lines("transfer-encoding: identity"), encoding),
        ("empty encoding", lines("transfer-encoding:"), encoding),
        ("bare LF line", b"GET / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n".to_vec(), codec_error),
        ("bare LF first line", b"GET / HTTP/1.1\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("bare LF end", b"GET / HTTP/1.1\r\nhost: a\r\n\n".to_vec(), codec_error),
        ("bare CR", lines("x: a\rb"), codec_error),
        ("bare CR line", b"GET / HTTP/1.1\r\nhost: a\r\n\rx".to_vec(), codec_error),
        ("obs-fold", lines("x: a\r\n b"), codec_error),
        ("obs-fold tab", lines("x: a\r\n\tb"), codec_error),
        ("first line folded", b"GET / HTTP/1.1\r\n host: a\r\n\r\n".to_vec(), codec_error),
        ("space before colon", lines("x : a"), codec_error),
        ("tab before colon", lines("x\t: a"), codec_error),
        ("NUL in value", lines("x: a\0b"), characters),
        ("NUL in name", lines("x\0: a"), characters),
        ("empty name", lines(": a"), codec_error),
        ("no colon", lines("xyz"), codec_error),
        ("control in value", lines("x: a\x01b"), characters),
        ("DEL in value", lines("x: a\x7fb"), characters),
        ("bad name", lines("x(y): a"), codec_error),
        ("no slash", b"GET foo HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("no target", b"GET  HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("space in target", b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("two spaces", b"GET  / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("tab", b"GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("tab after target", b"GET /\tHTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("control in target", b"GET /a\x01 HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), characters),
        ("NUL in method", b"GE\0T / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), characters),
        ("NUL in target", b"GET /a\0 HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), characters),
        ("high byte in target", b"GET /\xc3\xa9 HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("asterisk", b"GET * HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), url),
        ("ftp", b"GET ftp://h/p HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), (400, "http1.invalid_scheme")),
        ("no host in URL", b"GET http:///p HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), url),
        ("two users in URL", b"GET http://u@v@h/p HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), url),
        ("CONNECT without port", b"CONNECT h HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), url),
        ("CONNECT path", b"CONNECT /p HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), url),
        (
            "CONNECT with length",
            b"CONNECT h:1 HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n".to_vec(),
            (400, "http1.body_disallowed"),
        ),
        (
            "CONNECT chunked",
            b"CONNECT h:1 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
            encoding,
        ),
        ("two Hosts", lines("host: a"), authority),
        ("user in Host", b"GET / HTTP/1.1\r\nhost: u@h\r\n\r\n".to_vec(), authority),
        ("slash in Host", b"GET / HTTP/1.1\r\nhost: h/a\r\n\r\n".to_vec(), authority),
        ("space in Host", b"GET / HTTP/1.1\r\nhost: h i\r\n\r\n".to_vec(), authority),
        ("empty Host", b"GET / HTTP/1.1\r\nhost:\r\n\r\n".to_vec(), authority),
        ("letters as port", b"GET / HTTP/1.1\r\nhost: h:x\r\n\r\n".to_vec(), authority),
        ("bad Host beside a URL", b"GET http://h/ HTTP/1.1\r\nhost: u@h\r\n\r\n".to_vec(), authority),
        ("1.0", b"GET / HTTP/1.0\r\nhost: a\r\n\r\n".to_vec(), low),
        ("0.9 in words", b"GET / HTTP/0.9\r\nhost: a\r\n\r\n".to_vec(), low),
        ("1.2", b"GET / HTTP/1.2\r\nhost: a\r\n\r\n".to_vec(), low),
        ("2.0", b"GET / HTTP/2.0\r\nhost: a\r\n\r\n".to_vec(), low),
        ("no version", b"GET /\r\n".to_vec(), low),
        ("bad version", b"GET / HTTP/x.y\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("lower version", b"GET / http/1.1\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("long version", b"GET / HTTP/1.10\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("unknown method", b"FOO / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("lower method", b"get / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("bad method", b"G(T / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("method alone", b"GET\r\n\r\n".to_vec(), codec_error),
        ("leading space", b" GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("leading LF", b"\nGET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), codec_error),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00".to_vec(), codec_error),
        ("the HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), codec_error),
        ("nominated x-forwarded-for", lines("connection: x-forwarded-for"), (400, "http1.connection_header_rejected")),
        ("large value", lines(&format!("x: {}", "y".repeat(61_440))), (431, "http1.headers_too_large")),
        (
            "large target",
            format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "y".repeat(61_440)).into_bytes(),
            (431, "http1.headers_too_large"),
        ),
        (
            "101 headers",
            lines(&(0..100).map(|i| format!("x{i}: y")).collect::<Vec<_>>().join("\r\n")),
            (431, "http1.too_many_headers"),
        ),
    ];
    for (name, input, (status, details)) in table {
        let error = request(&input).map(|h| h.map(|h| show(&h.headers))).expect_err(name);
        assert_eq!((error.status, error.details), (status, details), "{name}");
    }
}

#[test]
fn an_error_is_seen_without_waiting_for_the_end_of_the_head() {
    for input in ["G\x01", "GET /a\x01", "GET / HTTX", "GET / HTTP/1.1\r\nx y", "GET / HTTP/1.1\r\nx: \0", "FOO "] {
        assert!(request(input.as_bytes()).is_err(), "{input:?}");
    }
    for input in ["", "\r", "\r\n", "GET", "GET /", "GET / HT", "GET / HTTP/1.1\r", "GET / HTTP/1.1\r\nx: y\r\n\r"] {
        assert!(matches!(request(input.as_bytes()), Ok(None)), "{input:?}");
    }
}

#[test]
fn a_head_that_never_ends_is_refused_at_the_limit() {
    let mut endless = b"GET / HTTP/1.1\r\nx: ".to_vec();
    endless.extend(vec![b'y'; 70_000]);
    assert_eq!(request(&endless).expect_err("too large").status, 431);
    let mut path = b"GET /".to_vec();
    path.extend(vec![b'y'; 70_000]);
    assert_eq!(request(&path).expect_err("too large").status, 431);
    assert_eq!(request(&[b'A'; 100]).expect_err("no method").status, 400);
}

#[test]
fn targets_become_path_authority_and_scheme() {
    let table = [
        ("GET /", ":authority: a|:path: /|:method: GET|:scheme: http"),
        ("GET //x//?a?b", ":authority: a|:path: //x//?a?b|:method: GET|:scheme: http"),
        ("GET /a#b", ":authority: a|:path: /a#b|:method: GET|:scheme: http"),
        ("GET /a\"<>\\^`{|}%zz%00", ":authority: a|:path: /a\\\"<>\\\\^`{|}%zz%00|:method: GET|:scheme: http"),
        ("OPTIONS *", ":authority: a|:path: *|:method: OPTIONS|:scheme: http"),
        ("GET http://x.example:81/p?q", ":authority: x.example:81|:path: /p?q|:method: GET|:scheme: http"),
        ("GET HTTPS://x.example", ":authority: x.example|:path: /|:method: GET|:scheme: https"),
        ("GET http://u:p@x.example?q", ":authority: x.example|:path: /?q|:method: GET|:scheme: http"),
        ("GET http://[::1]:8080/", ":authority: [::1]:8080|:path: /|:method: GET|:scheme: http"),
        ("CONNECT h.example:443", ":authority: h.example:443|:method: CONNECT"),
    ];
    for (line, expected) in table {
        assert_eq!(show(&good(&format!("{line} HTTP/1.1\r\nhost: a\r\n\r\n")).headers), expected);
    }
}

#[test]
fn names_are_lowered_values_trimmed_and_the_rest_kept() {
    let head = good(
        "GET / HTTP/1.1\r\nX-B: \t v w \t\r\nHost:a\r\nX-A:\r\nx-b:2\r\nx\u{e9}y: 1\r\n\r\n"
            .replace('\u{e9}', "-")
            .as_str(),
    );
    assert_eq!(show(&head.headers), ":authority: a|:path: /|:method: GET|:scheme: http|x-b: v w|x-a: |x-b: 2|x-y: 1");
    let latin = request(b"GET / HTTP/1.1\r\nhost: a\r\nx: a\xc3\xa9\tb\r\n\r\n").expect("good").expect("whole");
    assert_eq!(show(&latin.headers), ":authority: a|:path: /|:method: GET|:scheme: http|x: a\\xc3\\xa9\\tb");
    assert!(good("\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n").keep_alive);
}

#[test]
fn a_request_without_host_is_left_to_the_connection_manager() {
    assert_eq!(show(&good("GET / HTTP/1.1\r\n\r\n").headers), ":path: /|:method: GET|:scheme: http");
    assert_eq!(
        show(&good("GET / HTTP/1.1\r\nhost: a\r\nconnection: host, x\r\nx: 1\r\n\r\n").headers),
        ":path: /|:method: GET|:scheme: http|connection: host, x"
    );
}

#[test]
fn framing_and_connection_follow_the_headers() {
    let f = |l: &str| {
        let h = good(std::str::from_utf8(&lines(l)).expect("text"));
        (h.framing, h.keep_alive, h.upgrade)
    };
    assert_eq!(f("x: y"), (Framing::None, true, false));
    assert_eq!(f("content-length: 0"), (Framing::None, true, false));
    assert_eq!(f("content-length: 0012"), (Framing::Length(12), true, false));
    assert_eq!(f("Transfer-Encoding: \tChunked"), (Framing::Chunked, true, false));
    assert_eq!(f("connection: keep-alive, Close"), (Framing::None, false, false));
    assert_eq!(f("connection: Upgrade\r\nupgrade: websocket"), (Framing::None, true, true));
    assert_eq!(
        f("connection: Upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AA"),
        (Framing::None, true, false)
    );
    assert_eq!(f("upgrade: websocket"), (Framing::None, true, false));
    let h = good(
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade,http2-settings,te\r\nte: gzip, trailers\r\nupgrade: h2c\r\nhttp2-settings: A\r\n\r\n",
    );
    assert_eq!(show(&h.headers), ":authority: a|:path: /|:method: GET|:scheme: http|connection: te|te: trailers");
}

#[test]
fn options_change_what_is_taken() {
    let c = config(|c| c.allow_chunked_length = true);
    let h = request_with(&lines("content-length: 1\r\ntransfer-encoding: chunked"), &c).expect("good").expect("whole");
    assert_eq!(h.framing, Framing::Chunked);
    assert_eq!(show(&h.headers), ":authority: a|:path: /|:method: POST|:scheme: http");

    let c = config(|c| {
        c.accept_http_10 = true;
        c.default_host = HeaderValue::parse("dflt");
    });
    let h = request_with(b"GET / HTTP/1.0\r\n\r\n", &c).expect("good").expect("whole");
    assert_eq!((h.protocol, h.keep_alive), (Protocol::Http10, false));
    assert_eq!(show(&h.headers), ":authority: dflt|:path: /|:method: GET|:scheme: http");
    assert!(
        request_with(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", &c).expect("good").expect("whole").keep_alive
    );
    assert!(request_with(b"GET /\r\n", &c).expect("good").is_some());
    let te = request_with(b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", &c).expect_err("faulty framing");
    assert_eq!(te.details, "http1.transfer_encoding_not_allowed");

    let c = config(|c| c.allow_custom_methods = true);
    let h = request_with(b"fOO / HTTP/1.1\r\nhost: a\r\n\r\n", &c).expect("good").expect("whole");
    assert_eq!(h.headers.method(), b"fOO");

    let c = config(|c| c.underscores = UnderscoresAction::DropHeader);
    let h = request_with(&lines("x_y: 1\r\nz: 2"), &c).expect("good").expect("whole");
    assert_eq!(show(&h.headers), ":authority: a|:path: /|:method: POST|:scheme: http|z: 2");
    assert_eq!(c.stats.dropped_headers_with_underscores().value(), 1);
    let c = config(|c| c.underscores = UnderscoresAction::RejectRequest);
    assert_eq!(request_with(&lines("x_y: 1"), &c).expect_err("refused").details, "http1.unexpected_underscore");
    assert_eq!(c.stats.requests_rejected_with_underscores_in_headers().value(), 1);

    let c = config(|c| c.ignore_upgrade = Some(Box::new(|u| u == "foo")));
    let h = request_with(&lines("connection: upgrade\r\nupgrade: foo"), &c).expect("good").expect("whole");
    assert!(!h.upgrade);
}

#[test]
fn authorities_are_hosts_with_perhaps_a_port() {
    for a in ["a", "a.b-c_d", "a:1", "a:", "1.2.3.4:80", "[::1]", "[fe80::1%25e]:80", "a,b", "h:99999", "%41"] {
        assert!(is_authority(a.as_bytes()), "{a}");
    }
    for a in
        ["", ":1", "[", "[]", "[::1]x", "[::1]:x", "[g]", "a@b", "a b", "a/b", "a?b", "a#b", "a:b", "a\u{e9}", "a:1:2"]
    {
        assert!(!is_authority(a.as_bytes()), "{a}");
    }
}

fn response(input: &str, kind: RequestKind) -> Result<Option<ResponseHead>, StreamError> {
    parse_response(&mut BytesMut::from(input), LIMITS, false, kind)
}

#[test]
fn responses_are_framed_by_what_they_answer() {
    let get = RequestKind::default();
    let head = RequestKind { head: true, ..get };
    let connect = RequestKind { connect: true, ..get };
    let upgrade = RequestKind { upgrade: true, ..get };
    let table = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", get, Framing::Length(5), true),
        ("HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", get, Framing::None, true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", get, Framing::Chunked, true),
        ("HTTP/1.1 200 OK\r\n\r\n", get, Framing::UntilClose, false),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\n", get, Framing::Length(5), false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n", get, Framing::Length(5), false),
        ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\n", get, Framing::Length(5), true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", head, Framing::None, true),
        ("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", get, Framing::None, true),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", get, Framing::None, true),
        ("HTTP/1.1 100 Continue\r\n\r\n", get, Framing::None, true),
        ("HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n", upgrade, Framing::Raw, false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", connect, Framing::Raw, false),
        ("HTTP/1.1 403 No\r\ncontent-length: 5\r\n\r\n", connect, Framing::Length(5), true),
    ];
    for (input, kind, framing, keep_alive) in table {
        let h = response(input, kind).expect(input).expect(input);
        assert_eq!((h.framing, h.keep_alive), (framing, keep_alive), "{input}");
    }
}

#[test]
fn bad_responses_are_protocol_errors() {
    for input in [
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTX/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\n\r\n",
        "garbage",
        "HTTP/1.1 101 Switching\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 204 No\r\ncontent-length: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx : a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\0\r\n\r\n",
    ] {
        assert!(response(input, RequestKind::default()).is_err(), "{input:?}");
    }
    for input in ["", "H", "HTTP/1.1", "HTTP/1.1 200", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK\r\nx: y\r\n"] {
        assert!(matches!(response(input, RequestKind::default()), Ok(None)), "{input:?}");
    }
}

/// Decodes `input`, given in pieces of at most `step` bytes. The body, the trailers, and what is left over.
fn decode(framing: Framing, input: &[u8], step: usize) -> Result<(Vec<u8>, Headers, usize, bool), StreamError> {
    let mut decoder = Decoder::new(framing, LIMITS, true);
    let mut buf = BytesMut::new();
    let mut body = Vec::new();
    let mut trailers = Headers::new();
    let mut chunks = input.chunks(step.max(1));
    while !decoder.is_done() {
        match decoder.decode(&mut buf)? {
            Piece::Data(data, _) => body.extend_from_slice(&data),
            Piece::Trailers(t) => trailers = t,
            Piece::NeedMore => match chunks.next() {
                Some(more) => buf.extend_from_slice(more),
                None => return Ok((body, trailers, buf.len(), false)),
            },
        }
    }
    Ok((body, trailers, buf.len() + chunks.map(<[u8]>::len).sum::<usize>(), true))
}

#[test]
fn a_chunked_body_may_be_cut_anywhere() {
    let input = b"3\r\nabc\r\n0A;x=\"y\" ;z\r\n0123456789\r\n1 \t;q\r\n!\r\n0\r\nT: 1\r\nu: 2\r\n\r\nnext";
    for step in 1..=input.len() {
        let (body, trailers, rest, done) = decode(Framing::Chunked, input, step).expect("good");
        assert_eq!(
            (body.as_slice(), show(&trailers).as_str(), rest, done),
            (&b"abc0123456789!"[..], "t: 1|u: 2", 4, true),
            "{step}"
        );
    }
    for cut in 0..input.len() - 4 {
        let (.., done) = decode(Framing::Chunked, &input[..cut], 7).expect("good so far");
        assert!(!done, "{cut}");
    }
}

#[test]
fn bad_chunks_are_refused() {
    for input in [
        "x\r\n",
        "\r\n",
        " 3\r\nabc\r\n",
        "3 \r\nabc\r\n",
        "0x3\r\nabc\r\n",
        "-3\r\nabc\r\n",
        "+3\r\nabc\r\n",
        "3\nabc\r\n",
        "3;a\nabc\r\n",
        "3\rabc\r\n",
        "3;a\rb\r\nabc",
        "3\r\nabcd\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\rX",
        "3x\r\nabc\r\n",
        "3 x\r\nabc",
        "3,4\r\n",
        "FFFFFFFFFFFFFFFFF\r\n",
        "00000000000000003\r\nabc\r\n",
        "3;\0\r\nabc",
        "0\r\nx y\r\n\r\n",
        "0\r\nx : y\r\n\r\n",
        "0\r\n x: y\r\n\r\n",
        "0\r\nx: y\n\r\n",
        "0\r\n\n",
    ] {
        for step in [1, 3, 100] {
            assert!(decode(Framing::Chunked, input.as_bytes(), step).is_err(), "{input:?} by {step}");
        }
    }
    let endless = format!("3;{}", "a".repeat(5000));
    assert!(decode(Framing::Chunked, endless.as_bytes(), 100).is_err());
    let large = format!("0\r\nx: {}\r\n\r\n", "y".repeat(61_441));
    assert_eq!(decode(Framing::Chunked, large.as_bytes(), 1000).expect_err("large").details, "http1.headers_too_large");
    let many = format!("0\r\n{}\r\n", "x: y\r\n".repeat(101));
    assert_eq!(decode(Framing::Chunked, many.as_bytes(), 1000).expect_err("many").details, "http1.too_many_headers");
}

#[test]
fn a_length_is_counted_to_the_byte() {
    for step in 1..8 {
        let (body, _, rest, done) = decode(Framing::Length(5), b"hello!!", step).expect("good");
        assert_eq!((body.as_slice(), rest, done), (&b"hello"[..], 2, true));
    }
    assert!(!decode(Framing::Length(u64::MAX), b"hello", 2).expect("good").3);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(input in proptest::collection::vec(any::<u8>(), 0..300), step in 1usize..40) {
        let _ = request(&input);
        let _ = parse_response(&mut BytesMut::from(&input[..]), LIMITS, true, RequestKind::default());
        let _ = decode(Framing::Chunked, &input, step);
    }

    #[test]
    fn bytes_near_http_never_panic_and_never_smuggle(
        pieces in proptest::collection::vec(prop::sample::select(vec![
            "GET ", "POST ", "/", "/a", " ", "HTTP/1.1", "\r\n", "\n", "\r", "host: a", "host:", "x: y", "x", ":", "\t",
            "content-length: 5", "content-length: 6", "transfer-encoding: chunked", "transfer-encoding: x", "\0",
            "connection: close", "http://h/", "5\r\n", "0\r\n", "hello", ";", "\u{7f}",
        ]), 0..24),
    ) {
        let input = pieces.concat();
        if let Ok(Some(head)) = request(input.as_bytes()) {
            // What was taken is unambiguous: a head of CRLF lines with at most one framing.
            let wire = &input.as_bytes()[..head.wire_bytes];
            prop_assert!(wire.ends_with(b"\r\n\r\n"));
            prop_assert!(wire.iter().enumerate().all(|(i, &b)| b != b'\n' || (i > 0 && wire[i - 1] == b'\r')));
            prop_assert!(wire.iter().enumerate().all(|(i, &b)| b != b'\r' || wire.get(i + 1) == Some(&b'\n')));
            let lower = input.to_ascii_lowercase();
            let count = |n: &str| lower[..head.wire_bytes].matches(n).count();
            prop_assert!(count("\r\ncontent-length") + count("\r\ntransfer-encoding") <= 1);
            prop_assert!(count("\r\nhost") <= 1);
        }
    }

    #[test]
    fn a_head_is_parsed_the_same_however_it_arrives(
        values in proptest::collection::vec("[ -~\u{80}-\u{ff}\t]{0,40}", 0..10),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut input = b"GET /p HTTP/1.1\r\nhost: a\r\n".to_vec();
        for (i, v) in values.iter().enumerate() {
            input.extend(format!("x-{i}: {v}\r\n").into_bytes());
        }
        input.extend(b"\r\n");
        let whole = request(&input).expect("good").expect("whole");
        for (i, v) in values.iter().enumerate() {
            let name = crate::headers::HeaderName::parse(&format!("x-{i}")).expect("a name");
            prop_assert_eq!(whole.headers.bytes(&name).expect("there"), v.trim_matches([' ', '\t']).as_bytes());
        }
        let config = config(|_| {});
        let cut = cut.index(input.len());
        let mut buf = BytesMut::from(&input[..cut]);
        prop_assert!(parse_request(&mut buf, &config, false).expect("good so far").is_none());
        buf.extend_from_slice(&input[cut..]);
        let again = parse_request(&mut buf, &config, false).expect("good").expect("whole");
        prop_assert_eq!(show(&again.headers), show(&whole.headers));
    }

    #[test]
    fn a_body_in_chunks_is_the_body(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..8),
        step in 1usize..20,
    ) {
        let mut output = super::encode::Output::default();
        for chunk in &chunks {
            output.chunk(Bytes::from(chunk.clone()));
        }
        let mut wire = output.take_all();
        wire.extend_from_slice(b"0\r\n\r\n");
        let (body, _, rest, done) = decode(Framing::Chunked, &wire, step).expect("good");
        prop_assert_eq!((body, rest, done), (chunks.concat(), 0, true));
    }
}
