//! `envoy.filters.listener.tls_inspector`: finds a ClientHello and takes SNI and ALPN from it.
//!
//! An own small reader of the parts that matter, which answers each handshake record boundary as BoringSSL does: what is
//! no ClientHello is plain text, and a ClientHello that does not end within the limit closes the connection.

use nuncio_base::stat_family;
use nuncio_base::stats::Registry;
use nuncio_config::listener::TlsInspectorConfig;

use super::fingerprint::Parts;
use super::{ListenerFilter, Verdict};
use crate::connection::{ConnectionInfo, Fingerprints, ProtocolList, TransportProtocol};
use crate::tls::plain_text_reason;

stat_family! {
    /// `tls_inspector.*`
    struct TlsInspectorStats {
        counters {
            client_hello_too_large,
            tls_found,
            tls_not_found,
            alpn_found,
            alpn_not_found,
            sni_found,
            sni_not_found,
        }
        histograms { bytes_processed: Bytes }
    }
}

/// Envoy's limit, and the largest handshake message that BoringSSL takes here.
const MAX_CLIENT_HELLO: usize = 16 * 1024;
const RECORD_HEADER: usize = 5;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// The filter.
pub struct TlsInspector {
    config: TlsInspectorConfig,
    stats: TlsInspectorStats,
}

impl TlsInspector {
    pub(crate) fn new(config: TlsInspectorConfig, registry: &Registry) -> Self {
        Self { config, stats: TlsInspectorStats::new(registry, "tls_inspector.") }
    }
}

impl ListenerFilter for TlsInspector {
    fn on_data(&self, data: &[u8], info: &mut ConnectionInfo) -> Verdict {
        let stats = &self.stats;
        let limit = self.config.max_client_hello_size as usize;
        match inspect(data, &self.config) {
            Inspection::Undecided if data.len() >= limit => {
                stats.client_hello_too_large().inc();
                stats.bytes_processed().record(data.len() as u64);
                Verdict::Close
            }
            Inspection::Undecided => Verdict::More { limit },
            Inspection::NotTls { processed } => {
                stats.tls_not_found().inc();
                stats.bytes_processed().record(processed as u64);
                // Set once per connection; this filter is the first that can say it.
                let _ = info.transport_failure_reason.set(plain_text_reason(data).into());
                if self.config.close_on_errors { Verdict::Close } else { Verdict::Done { consume: 0 } }
            }
            Inspection::Tls { hello, processed } => {
                stats.tls_found().inc();
                stats.bytes_processed().record(processed as u64);
                info.detected_transport_protocol = TransportProtocol::Tls;
                info.fingerprints = hello.fingerprints;
                if hello.alpn.is_empty() {
                    stats.alpn_not_found().inc();
                } else {
                    stats.alpn_found().inc();
                    info.application_protocols = hello.alpn;
                }
                if hello.server_name.is_empty() {
                    stats.sni_not_found().inc();
                } else {
                    stats.sni_found().inc();
                    info.requested_server_name = Some(hello.server_name);
                }
                Verdict::Done { consume: 0 }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Inspection {
    Undecided,
    NotTls { processed: usize },
    Tls { hello: Hello, processed: usize },
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Hello {
    /// Lower case; empty for none.
    server_name: Box<str>,
    alpn: ProtocolList,
    fingerprints: Option<Box<Fingerprints>>,
}

fn inspect(data: &[u8], config: &TlsInspectorConfig) -> Inspection {
    // The message may be spread over records; it is copied only then.
    let mut joined = Vec::new();
    let mut rest = data;
    let mut first: &[u8] = &[];
    loop {
        let processed = data.len() - rest.len();
        let Some((header, after)) = rest.split_first_chunk::<RECORD_HEADER>() else { return Inspection::Undecided };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[0] != HANDSHAKE || header[1] != 3 || length == 0 || length > MAX_CLIENT_HELLO {
            return Inspection::NotTls { processed: processed + RECORD_HEADER };
        }
        let (body, complete) = match after.split_at_checked(length) {
            Some((body, after)) => {
                rest = after;
                (body, true)
            }
            None => (after, false),
        };
        let message = if first.is_empty() {
            first = body;
            body
        } else {
            if joined.is_empty() {
                joined.extend_from_slice(first);
            }
            joined.extend_from_slice(body);
            &joined
        };
        let processed = data.len() - rest.len();
        match client_hello(message, config) {
            Message::Whole(Some(hello)) => return Inspection::Tls { hello, processed },
            Message::Whole(None) => return Inspection::NotTls { processed },
            Message::Part if !complete => return Inspection::Undecided,
            Message::Part => {}
        }
    }
}

enum Message {
    Part,
    Whole(Option<Hello>),
}

fn client_hello(message: &[u8], config: &TlsInspectorConfig) -> Message {
    let Some((header, body)) = message.split_first_chunk::<4>() else {
        return if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            Message::Whole(None)
        } else {
            Message::Part
        };
    };
    let length = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
    if header[0] != CLIENT_HELLO || length > MAX_CLIENT_HELLO {
        return Message::Whole(None);
    }
    match body.get(..length) {
        Some(body) => Message::Whole(parse(body, config)),
        None => Message::Part,
    }
}

/// A cursor over length-prefixed fields.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn block8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    fn block16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

/// RFC 8446 4.1.2; none if it is malformed.
fn parse(body: &[u8], config: &TlsInspectorConfig) -> Option<Hello> {
    let mut fields = Fields(body);
    let version = fields.u16()?;
    let _random = fields.take(32)?;
    let session_id = fields.block8()?;
    let ciphers = fields.block16()?;
    let compression = fields.block8()?;
    if version < 0x0301
        || session_id.len() > 32
        || ciphers.len() < 2
        || ciphers.len() % 2 != 0
        || compression.is_empty()
    {
        return None;
    }
    let mut hello = Hello::default();
    let wanted = config.ja3 || config.ja4;
    let mut parts = Parts { version, ciphers, extensions: Vec::new() };
    if fields.0.is_empty() {
        hello.fingerprints = wanted.then(|| fingerprints(&parts, config));
        return Some(hello);
    }
    let mut extensions = Fields(fields.block16()?);
    if !fields.0.is_empty() {
        return None;
    }
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.block16()?;
        if wanted {
            parts.extensions.push((kind, content));
        }
        match kind {
            0 => hello.server_name = server_name(content)?,
            // Envoy leaves a malformed list to the TLS stack.
            16 => hello.alpn = alpn(content).unwrap_or_default(),
            _ => {}
        }
    }
    hello.fingerprints = wanted.then(|| fingerprints(&parts, config));
    Some(hello)
}

fn fingerprints(parts: &Parts<'_>, config: &TlsInspectorConfig) -> Box<Fingerprints> {
    Box::new(Fingerprints { ja3: config.ja3.then(|| parts.ja3()), ja4: config.ja4.then(|| parts.ja4()) })
}

/// RFC 6066 3, as strict as BoringSSL: one name, of type host_name, 1 to 255 bytes without NUL.
fn server_name(content: &[u8]) -> Option<Box<str>> {
    let mut fields = Fields(content);
    let mut list = Fields(fields.block16()?);
    let kind = list.take(1)?[0];
    let name = list.block16()?;
    if !fields.0.is_empty()
        || !list.0.is_empty()
        || kind != 0
        || name.is_empty()
        || name.len() > 255
        || name.contains(&0)
    {
        return None;
    }
    Some(String::from_utf8_lossy(name).to_ascii_lowercase().into())
}

fn alpn(content: &[u8]) -> Option<ProtocolList> {
    let mut fields = Fields(content);
    let mut list = Fields(fields.block16()?);
    if !fields.0.is_empty() || list.0.len() < 2 {
        return None;
    }
    let mut names = Vec::new();
    while !list.0.is_empty() {
        let name = list.block8()?;
        if name.is_empty() {
            return None;
        }
        names.push(name);
    }
    Some(ProtocolList::new(names))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn inspect(data: &[u8]) -> Inspection {
        super::inspect(data, &TlsInspectorConfig::default())
    }

    fn block16(content: &[u8]) -> Vec<u8> {
        [&(content.len() as u16).to_be_bytes()[..], content].concat()
    }

    /// A ClientHello message with these extensions.
    fn message(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        let encoded: Vec<u8> = extensions
            .iter()
            .flat_map(|(kind, content)| [&kind.to_be_bytes()[..], &block16(content)].concat())
            .collect();
        body.extend(block16(&encoded));
        [&[CLIENT_HELLO, 0][..], &block16(&body)].concat()
    }

    fn record(content: &[u8]) -> Vec<u8> {
        [&[HANDSHAKE, 3, 1][..], &block16(content)].concat()
    }

    fn sni(name: &str) -> (u16, Vec<u8>) {
        (0, block16(&[&[0][..], &block16(name.as_bytes())].concat()))
    }

    pub(crate) fn hello(name: &str) -> Vec<u8> {
        record(&message(&[sni(name), (16, block16(b"\x02h2\x08http/1.1"))]))
    }

    #[test]
    fn sni_and_alpn_are_found() {
        let data = hello("A.Example.COM");
        let Inspection::Tls { hello, processed } = inspect(&data) else { panic!("TLS") };
        assert_eq!(&*hello.server_name, "a.example.com");
        assert_eq!(hello.alpn.iter().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
        assert_eq!(processed, data.len());
    }

    #[test]
    fn every_prefix_is_undecided() {
        let data = hello("a.example.com");
        for end in 0..data.len() {
            assert_eq!(inspect(&data[..end]), Inspection::Undecided, "{end}");
        }
    }

    #[test]
    fn a_message_may_be_split_over_records() {
        let message = message(&[sni("a.com")]);
        for size in [1, 3, 7, 50] {
            let data: Vec<u8> = message.chunks(size).flat_map(record).collect();
            assert!(
                matches!(inspect(&data), Inspection::Tls { hello, .. } if &*hello.server_name == "a.com"),
                "{size}"
            );
            assert_eq!(inspect(&data[..data.len() - 1]), Inspection::Undecided, "{size}");
        }
    }

    #[test]
    fn what_is_no_client_hello_is_plain_text() {
        assert_eq!(inspect(b"GET / HTTP/1.1\r\n"), Inspection::NotTls { processed: 5 });
        assert_eq!(inspect(&[HANDSHAKE, 2, 0, 0, 5, 1]), Inspection::NotTls { processed: 5 });
        let server_hello = record(&[2, 0, 0, 1, 0]);
        assert!(matches!(inspect(&server_hello), Inspection::NotTls { .. }));
        let bad_name = record(&message(&[sni("a\0b")]));
        assert!(matches!(inspect(&bad_name), Inspection::NotTls { .. }));
    }

    #[test]
    fn a_malformed_alpn_list_is_left_to_the_tls_stack() {
        let data = record(&message(&[sni("a.com"), (16, vec![0, 9, 1])]));
        assert!(matches!(inspect(&data), Inspection::Tls { hello, .. } if hello.alpn.is_empty()));
    }

    proptest::proptest! {
        #[test]
        fn garbage_never_panics(data in proptest::collection::vec(0u8.., 0..200), at in 0usize..150) {
            let _ = inspect(&data);
            let mut hello = hello("a.example.com");
            let end = hello.len().min(at + data.len());
            if at < end {
                hello[at..end].copy_from_slice(&data[..end - at]);
            }
            let _ = inspect(&hello);
        }
    }
}
