//! `envoy.filters.listener.http_inspector`: tells HTTP/1.0, HTTP/1.1 and HTTP/2 from anything else by the request line or
//! the preface, and leaves `http/1.0`, `http/1.1` or `h2c` as the connection's application protocol.

use nuncio_base::stat_family;
use nuncio_base::stats::Registry;
use tokio::net::TcpStream;

use super::{ListenerFilter, Verdict};
use crate::connection::{ConnectionInfo, ProtocolList, TransportProtocol};

stat_family! {
    /// `http_inspector.*`
    struct HttpInspectorStats {
        counters { read_error, http10_found, http11_found, http2_found, http_not_found }
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A request line that is longer is not looked at any further.
const MAX_INSPECT: usize = 64 * 1024;

/// The filter.
pub struct HttpInspector {
    stats: HttpInspectorStats,
}

enum Found {
    Protocol(&'static [u8]),
    Nothing,
    Undecided,
}

impl HttpInspector {
    pub(super) fn new(registry: &Registry) -> Self {
        Self { stats: HttpInspectorStats::new(registry, "http_inspector.") }
    }
}

impl ListenerFilter for HttpInspector {
    fn on_accept(&self, info: &mut ConnectionInfo, _socket: Option<&TcpStream>) -> bool {
        info.detected_transport_protocol != TransportProtocol::Tls
    }

    fn on_data(&self, data: &[u8], info: &mut ConnectionInfo) -> Verdict {
        match inspect(data) {
            Found::Protocol(name) => {
                match name {
                    b"h2c" => self.stats.http2_found().inc(),
                    b"http/1.1" => self.stats.http11_found().inc(),
                    _ => self.stats.http10_found().inc(),
                }
                info.application_protocols = ProtocolList::new([name]);
                Verdict::Done { consume: 0 }
            }
            Found::Nothing => {
                self.stats.http_not_found().inc();
                Verdict::Done { consume: 0 }
            }
            Found::Undecided if data.len() >= MAX_INSPECT => {
                self.stats.read_error().inc();
                Verdict::Close
            }
            Found::Undecided => Verdict::More { limit: MAX_INSPECT },
        }
    }
}

fn inspect(data: &[u8]) -> Found {
    if data.starts_with(PREFACE) {
        return Found::Protocol(b"h2c");
    }
    if PREFACE.starts_with(data) {
        return Found::Undecided;
    }
    let (line, complete) = match memchr::memchr(b'\n', data) {
        Some(end) => (&data[..end], true),
        None => (data, false),
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let (method, target, version) = (parts.next().unwrap_or(line), parts.next(), parts.next());
    if method.is_empty() || !method.iter().copied().all(is_token) {
        return Found::Nothing;
    }
    if target.is_some_and(|target| target.iter().any(|byte| *byte < 0x21 || *byte == 0x7f)) {
        return Found::Nothing;
    }
    if !complete {
        return match version {
            Some(version) if !b"HTTP/".starts_with(&version[..version.len().min(5)]) => Found::Nothing,
            _ => Found::Undecided,
        };
    }
    match (target, version) {
        (Some(target), Some(version)) if !target.is_empty() => match version {
            b"HTTP/1.1" => Found::Protocol(b"http/1.1"),
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
                Found::Protocol(b"http/1.0")
            }
            _ => Found::Nothing,
        },
        _ => Found::Nothing,
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(data: &[u8]) -> &'static str {
        match inspect(data) {
            Found::Protocol(b"h2c") => "2",
            Found::Protocol(b"http/1.1") => "1.1",
            Found::Protocol(_) => "1.0",
            Found::Nothing => "no",
            Found::Undecided => "more",
        }
    }

    #[test]
    fn request_lines_tell_their_version() {
        assert_eq!(verdict(b"GET / HTTP/1.1\r\nhost: a\r\n"), "1.1");
        assert_eq!(verdict(b"GET / HTTP/1.0\r\n"), "1.0");
        assert_eq!(verdict(b"GET / HTTP/1.7\r\n"), "1.0");
        assert_eq!(verdict(b"hello\r\n\r\n"), "no");
        assert_eq!(verdict(b"GET /\r\n"), "no");
        assert_eq!(verdict(b"\r\nGET / HTTP/1.1\r\n"), "no");
        assert_eq!(verdict(b"\x16\x03\x01\x02"), "no");
    }

    #[test]
    fn every_prefix_of_a_request_or_preface_is_undecided() {
        for end in 1..PREFACE.len() {
            assert_eq!(verdict(&PREFACE[..end]), "more", "{end}");
        }
        assert_eq!(verdict(PREFACE), "2");
        let line = b"PRIORITIZE /a HTTP/1.1\r\n";
        for end in 1..line.len() {
            assert_eq!(verdict(&line[..end]), "more", "{end}");
        }
        assert_eq!(verdict(line), "1.1");
    }
}
