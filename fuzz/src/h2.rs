//! HTTP/2: whole connections, and header blocks.

use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use nuncio_base::stats::{Registry, StatsConfig};
use nuncio_config::hcm::{Http2Options, UnderscoresAction};
use nuncio_http::codec::StreamError;
use nuncio_http::codec::h1::Limits;
use nuncio_http::codec::h2::frame::PREFACE;
use nuncio_http::codec::h2::hpack::{Decoder, Encoder, Field};
use nuncio_http::codec::h2::{Config, H2Client, H2Server};
use nuncio_http::codec::stats::Http2Stats;
use nuncio_http::headers::{HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A byte stream that yields `data` in pieces and takes all that is written.
struct Script<'a> {
    data: &'a [u8],
    step: usize,
}

impl AsyncRead for Script<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = self.step.min(self.data.len()).min(buf.remaining());
        if n == 0 {
            return Poll::Pending;
        }
        let (piece, rest) = self.data.split_at(n);
        buf.put_slice(piece);
        self.data = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn config() -> Rc<Config> {
    let stats = Http2Stats::new(&Registry::new(1, StatsConfig::default()), "http2.");
    Rc::new(Config {
        options: Http2Options::default(),
        limits: Limits { max_bytes: 60 * 1024, max_count: 100 },
        underscores: UnderscoresAction::Allow,
        stream_error_on_invalid_http_message: true,
        buffer_limit: 0,
        runtime: None,
        stats,
    })
}

/// The requests that a server takes of `data`, and how the connection is left.
fn serve(data: &[u8], step: usize) -> (Vec<String>, Option<Option<StreamError>>) {
    let mut server = H2Server::new(Script { data, step }, config());
    let mut cx = Context::from_waker(Waker::noop());
    let (mut requests, mut held) = (Vec::new(), Vec::new());
    // Each turn takes some bytes at least.
    for _ in 0..=data.len() {
        match server.poll_accept(&mut cx) {
            Poll::Ready(Some(Ok(request))) => {
                requests.push(format!("{:?} {}", request.headers, request.end_stream));
                held.push(request.stream);
            }
            Poll::Ready(Some(Err(error))) => return (requests, Some(Some(error))),
            Poll::Ready(None) => return (requests, Some(None)),
            Poll::Pending => {}
        }
    }
    (requests, None)
}

/// Serves `data` whole and in pieces whose size is its first byte: both must come to the same. A client that is
/// answered with it must not panic either.
pub fn frames(data: &[u8]) {
    let Some((step, data)) = data.split_first() else { return };
    let step = usize::from(*step).max(1);
    assert_eq!(serve(data, usize::MAX), serve(data, step));
    let (_, mut client) = H2Client::new(Script { data: data.strip_prefix(PREFACE).unwrap_or(data), step }, config());
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..=data.len() {
        if Pin::new(&mut client).poll(&mut cx).is_ready() {
            break;
        }
    }
}

/// Reads header blocks, each behind two bytes of length: what was read well is written and read again, and must be the
/// same. A table size comes first.
pub fn header_blocks(data: &[u8]) {
    let Some((size, mut data)) = data.split_first() else { return };
    let size = usize::from(*size) * 32;
    let (mut decoder, mut again) = (Decoder::new(size), Decoder::default());
    let mut encoder = Encoder::with_max_table_size(size);
    while let Some((len, rest)) = data.split_first_chunk() {
        let (block, rest) = rest.split_at(usize::from(u16::from_be_bytes(*len)).min(rest.len()));
        data = rest;
        let mut fields = Vec::new();
        let result = decoder.decode(block, |field, size| {
            match field {
                Field::Valid(name, value) => {
                    assert_eq!(size, name.as_bytes().len() + value.as_bytes().len());
                    // A parser of names agrees, and has the same form for it.
                    assert_eq!(HeaderName::parse(name.as_str()).as_ref(), Some(&name));
                    fields.push((name, value));
                }
                Field::Malformed { name, value, .. } => assert_eq!(size, name.len() + value.len()),
            }
            if fields.len() < 100 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if result.is_err() {
            return;
        }
        assert_eq!(written_and_read(&mut encoder, &mut again, &fields), fields);
    }
}

fn written_and_read(
    encoder: &mut Encoder,
    decoder: &mut Decoder,
    fields: &[(HeaderName, HeaderValue)],
) -> Vec<(HeaderName, HeaderValue)> {
    let mut block = Vec::new();
    encoder.begin(&mut block);
    for (name, value) in fields {
        encoder.field(name, value, &mut block);
    }
    let mut read = Vec::with_capacity(fields.len());
    let result = decoder.decode(&block, |field, _| {
        if let Field::Valid(name, value) = field {
            read.push((name, value));
        }
        ControlFlow::Continue(())
    });
    assert_eq!(result, Ok(()), "{:?}", Bytes::from(block));
    read
}
