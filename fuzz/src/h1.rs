//! HTTP/1: heads of requests and responses, chunked bodies.

use bytes::BytesMut;
use nuncio_base::stats::{Registry, StatsConfig};
use nuncio_config::hcm::{Http1Options, UnderscoresAction};
use nuncio_http::codec::h1::ServerConfig;
use nuncio_http::codec::h1::body::{Decoder, Piece};
use nuncio_http::codec::h1::parse::{Framing, Limits};
use nuncio_http::codec::h1::request::parse_request;
use nuncio_http::codec::h1::response::{RequestKind, parse_response};
use nuncio_http::codec::stats::Http1Stats;

const LIMITS: Limits = Limits { max_bytes: 4096, max_count: 20 };

fn config(lenient: bool) -> ServerConfig {
    let options = Http1Options {
        accept_http_10: lenient,
        allow_custom_methods: lenient,
        allow_chunked_length: lenient,
        ..Http1Options::default()
    };
    let underscores = if lenient { UnderscoresAction::DropHeader } else { UnderscoresAction::Allow };
    let stats = Http1Stats::new(&Registry::new(1, StatsConfig::default()), "http1.");
    ServerConfig::new(&options, LIMITS, underscores, 0, stats)
}

/// Parses `data` as a request and as a response. What is taken as a request must be unambiguous, must not depend on how
/// it arrived, and must stay within the limits.
pub fn head(data: &[u8]) {
    for lenient in [false, true] {
        let config = config(lenient);
        let mut whole = BytesMut::from(data);
        let parsed = parse_request(&mut whole, &config, false);
        if let Ok(Some(head)) = &parsed {
            assert_eq!(head.wire_bytes + whole.len(), data.len());
            assert!(head.headers.len() <= LIMITS.max_count + 4);
            let wire = &data[..head.wire_bytes];
            for (i, &b) in wire.iter().enumerate() {
                assert!(b != b'\n' || (i > 0 && wire[i - 1] == b'\r'), "a bare LF was taken");
                assert!(b != b'\r' || wire.get(i + 1) == Some(&b'\n'), "a bare CR was taken");
                assert!(b != 0, "a NUL was taken");
            }
            for (name, value) in head.headers.iter() {
                assert!(!name.as_bytes().iter().any(u8::is_ascii_uppercase));
                assert!(!value.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
            }
            // Byte by byte it is the same.
            let mut buf = BytesMut::new();
            for (i, byte) in wire.iter().enumerate() {
                buf.extend_from_slice(&[*byte]);
                let again = parse_request(&mut buf, &config, false);
                match again {
                    Ok(None) => assert!(i + 1 < wire.len(), "the end was not seen"),
                    Ok(Some(again)) => {
                        assert_eq!(i + 1, wire.len(), "it ended early");
                        assert_eq!(again.headers, head.headers);
                        assert_eq!(again.framing, head.framing);
                    }
                    Err(e) => panic!("refused in pieces: {e}"),
                }
            }
        }
    }
    for kind in [
        RequestKind::default(),
        RequestKind { head: true, ..RequestKind::default() },
        RequestKind { connect: true, ..RequestKind::default() },
        RequestKind { upgrade: true, ..RequestKind::default() },
    ] {
        let mut buf = BytesMut::from(data);
        if let Ok(Some(head)) = parse_response(&mut buf, LIMITS, false, kind) {
            assert!((100..1000).contains(&head.status));
            assert!(!kind.head || matches!(head.framing, Framing::None));
        }
    }
}

fn decode(data: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), &'static str> {
    let mut decoder = Decoder::new(Framing::Chunked, LIMITS, true);
    let (mut buf, mut body, mut given) = (BytesMut::new(), Vec::new(), 0);
    while !decoder.is_done() {
        match decoder.decode(&mut buf).map_err(|e| e.details)? {
            Piece::Data(data, _) => body.extend_from_slice(&data),
            Piece::Trailers(_) => {}
            Piece::NeedMore if given == data.len() => return Ok((body, given, false)),
            Piece::NeedMore => {
                let more = (given + step).min(data.len());
                buf.extend_from_slice(&data[given..more]);
                given = more;
            }
        }
    }
    Ok((body, given - buf.len(), true))
}

/// Decodes `data` as a chunked body, whole and in pieces whose size is its first byte: both must agree.
pub fn chunked(data: &[u8]) {
    let Some((step, data)) = data.split_first() else { return };
    let whole = decode(data, data.len().max(1));
    let pieces = decode(data, usize::from(*step).max(1));
    assert_eq!(whole, pieces);
    if let Ok((body, used, _)) = whole {
        assert!(body.len() <= used && used <= data.len());
    }
}
