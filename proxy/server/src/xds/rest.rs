//! Polls through the proxy's clusters, over HTTP/1.1 or, where the cluster speaks that (`rest_h2`), over HTTP/2. A connection
//! is kept for the next poll as long as the server keeps it.

use super::rest_h2::{self, Poll};
use super::transport::{Counted, Protocol, connect_cluster};
use crate::server::Server;
use bytes::{Buf as _, Bytes, BytesMut};
use nuncio_config::cluster::UpstreamProtocol;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use xds_client::transport::{LocalFuture, RestResponse, RestTransport};

/// Largest answer to a poll.
pub(super) const MAX_RESPONSE: usize = 256 << 20;
/// Largest head of an answer, and largest line of a chunk.
const MAX_HEAD: usize = 64 << 10;

/// Tells how many milliseconds an answer may take.
pub(super) const TIMEOUT_HEADER: &str = "x-envoy-expected-rq-timeout-ms";

/// Polls one cluster.
pub(crate) struct ClusterRest {
    server: Arc<Server>,
    cluster: Box<str>,
    /// How long a poll may take, which the server is told.
    timeout: Duration,
    /// A connection between two polls.
    idle: Rc<RefCell<Option<Counted>>>,
    /// The connection of a cluster that speaks HTTP/2.
    h2: Rc<RefCell<Option<rest_h2::Connection>>>,
}

impl ClusterRest {
    pub(crate) fn new(server: &Arc<Server>, cluster: &str, timeout: Duration) -> ClusterRest {
        ClusterRest { server: server.clone(), cluster: cluster.into(), timeout, idle: Rc::default(), h2: Rc::default() }
    }
}

impl ClusterRest {
    fn post_h2(&self, path: &str, body: Bytes) -> LocalFuture<Result<RestResponse, String>> {
        let (server, cluster, kept, path, timeout) =
            (self.server.clone(), self.cluster.clone(), self.h2.clone(), path.to_owned(), self.timeout);
        Box::pin(async move {
            let secure = server.context.clusters.cluster(&cluster).is_some_and(|cluster| cluster.config.tls.is_some());
            let address = server.context.local_address();
            let poll = Poll { authority: &cluster, secure, path: &path, address: &address, timeout, body };
            let old = kept.take();
            let connection = match old {
                Some(connection) if connection.is_ready().await => connection,
                _ => {
                    let stream = connect_cluster(&server, &cluster, Protocol::Http2).await;
                    let stream = stream.map_err(|error| error.to_string())?;
                    rest_h2::Connection::new(stream).await.map_err(|error| error.to_string())?
                }
            };
            let answer = connection.post(&poll).await?;
            kept.replace(Some(connection));
            Ok(answer)
        })
    }

    fn speaks_h2(&self) -> bool {
        let cluster = self.server.context.clusters.cluster(&self.cluster);
        cluster.is_some_and(|cluster| cluster.config.http.protocol == UpstreamProtocol::Http2)
    }
}

impl RestTransport for ClusterRest {
    fn post(&self, path: &str, body: Bytes) -> LocalFuture<Result<RestResponse, String>> {
        if self.speaks_h2() {
            return self.post_h2(path, body);
        }
        let (server, cluster, idle) = (self.server.clone(), self.cluster.clone(), self.idle.clone());
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {cluster}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             x-envoy-internal: true\r\nx-forwarded-for: {}\r\n{TIMEOUT_HEADER}: {}\r\n\r\n",
            body.len(),
            server.context.local_address(),
            self.timeout.as_millis(),
        );
        Box::pin(async move {
            let kept = idle.take();
            if let Some(stream) = kept {
                match exchange(stream, head.as_bytes(), &body).await {
                    Ok(answer) => return Ok(answer.keep(&idle)),
                    // The server closed it meanwhile, without a word.
                    Err(Failed { answered: false, .. }) => {}
                    Err(failed) => return Err(failed.error.to_string()),
                }
            }
            let stream =
                connect_cluster(&server, &cluster, Protocol::Http1).await.map_err(|error| error.to_string())?;
            let answer = exchange(stream, head.as_bytes(), &body).await.map_err(|failed| failed.error.to_string())?;
            Ok(answer.keep(&idle))
        })
    }
}

/// An answer, with the connection if another request may follow on it.
struct Answer<S> {
    response: RestResponse,
    stream: Option<S>,
}

impl Answer<Counted> {
    fn keep(self, idle: &RefCell<Option<Counted>>) -> RestResponse {
        idle.replace(self.stream);
        self.response
    }
}

struct Failed {
    error: io::Error,
    /// The server had begun to answer.
    answered: bool,
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    head: &[u8],
    body: &[u8],
) -> Result<Answer<S>, Failed> {
    let mut buffer = BytesMut::new();
    let asked = async {
        stream.write_all(head).await?;
        stream.write_all(body).await?;
        stream.flush().await?;
        match more(&mut stream, &mut buffer).await? {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")),
        }
    };
    asked.await.map_err(|error| Failed { error, answered: false })?;
    let (response, keep) =
        read_answer(&mut stream, &mut buffer).await.map_err(|error| Failed { error, answered: true })?;
    // What comes unasked belongs to no poll.
    let keep = keep && buffer.is_empty();
    Ok(Answer { response, stream: keep.then_some(stream) })
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// Reads more; false at the end of the stream.
async fn more<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> io::Result<bool> {
    buffer.reserve(8192);
    Ok(stream.read_buf(buffer).await? > 0)
}

/// Reads until `buffer` begins with a piece that ends with `end`, and takes that out, `end` included.
async fn until<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut, end: &[u8]) -> io::Result<BytesMut> {
    let mut searched = 0;
    loop {
        let from = searched - searched.min(end.len());
        if let Some(at) = memchr::memmem::find(&buffer[from..], end) {
            return Ok(buffer.split_to(from + at + end.len()));
        }
        searched = buffer.len();
        if searched > MAX_HEAD {
            return Err(bad("a line or the headers are too long"));
        }
        if !more(stream, buffer).await? {
            return Err(bad("the answer is cut short"));
        }
    }
}

/// Takes `length` bytes out.
async fn exactly<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut, length: usize) -> io::Result<BytesMut> {
    while buffer.len() < length {
        if !more(stream, buffer).await? {
            return Err(bad("the body is cut short"));
        }
    }
    Ok(buffer.split_to(length))
}

/// The answer, and whether the connection stays.
async fn read_answer<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> io::Result<(RestResponse, bool)> {
    let head = until(stream, buffer, b"\r\n\r\n").await?;
    let head = std::str::from_utf8(&head).map_err(|_| bad("headers are no text"))?;
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
    let status = status.ok_or_else(|| bad("no status line"))?;
    let mut keep = first.starts_with("HTTP/1.1 ");
    let mut length = None;
    let mut chunked = false;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.parse::<usize>().map_err(|_| bad("bad content-length"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.eq_ignore_ascii_case("chunked");
        } else if name.eq_ignore_ascii_case("connection") {
            keep &= !value.split(',').any(|token| token.trim().eq_ignore_ascii_case("close"));
        }
    }
    let body = match (chunked, length) {
        _ if status == 204 || status == 304 => BytesMut::new(),
        (true, _) => read_chunks(stream, buffer).await?,
        (false, Some(length)) if length > MAX_RESPONSE => return Err(bad("the body is too large")),
        (false, Some(length)) => exactly(stream, buffer, length).await?,
        (false, None) => {
            keep = false;
            while more(stream, buffer).await? {
                if buffer.len() > MAX_RESPONSE {
                    return Err(bad("the body is too large"));
                }
            }
            buffer.split()
        }
    };
    Ok((RestResponse { status, body: body.freeze() }, keep))
}

async fn read_chunks<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> io::Result<BytesMut> {
    let mut body = BytesMut::new();
    loop {
        let line = until(stream, buffer, b"\r\n").await?;
        let size = std::str::from_utf8(&line).ok().and_then(|line| line.split(';').next());
        let size =
            size.and_then(|size| usize::from_str_radix(size.trim(), 16).ok()).ok_or_else(|| bad("bad chunks"))?;
        if size > MAX_RESPONSE - body.len() {
            return Err(bad("the body is too large"));
        }
        if size == 0 {
            // Trailers, of which nothing is wanted, end with an empty line.
            while until(stream, buffer, b"\r\n").await?.len() > 2 {}
            return Ok(body);
        }
        body.unsplit(exactly(stream, buffer, size).await?);
        let mut end = exactly(stream, buffer, 2).await?;
        if end.get_u16() != u16::from_be_bytes(*b"\r\n") {
            return Err(bad("bad chunks"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    async fn answered(bytes: &[u8]) -> Result<(u16, Vec<u8>, bool), bool> {
        let (client, mut server) = duplex(1 << 16);
        server.write_all(bytes).await.unwrap();
        let served = tokio::spawn(async move {
            let mut request = vec![0; 3];
            server.read_exact(&mut request).await.unwrap();
            server
        });
        let done = exchange(client, b"a", b"bc");
        // The end of the stream comes once the server has read the request and is dropped.
        let (done, _) = tokio::join!(done, async { drop(served.await) });
        done.map(|answer| (answer.response.status, answer.response.body.to_vec(), answer.stream.is_some()))
            .map_err(|failed| failed.answered)
    }

    #[tokio::test]
    async fn answers_are_read_and_tell_whether_the_connection_stays() {
        let cases: [(&[u8], _); 8] = [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", Ok((200, b"ab".to_vec(), true))),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\nt: v\r\n\r\n",
                Ok((200, b"abc".to_vec(), true)),
            ),
            (b"HTTP/1.1 304 Not Modified\r\n\r\n", Ok((304, Vec::new(), true))),
            (b"HTTP/1.1 200 OK\r\nconnection: Close\r\ncontent-length: 0\r\n\r\n", Ok((200, Vec::new(), false))),
            (b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na", Ok((200, b"a".to_vec(), false))),
            (b"HTTP/1.1 200 OK\r\n\r\nto the end", Ok((200, b"to the end".to_vec(), false))),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab", Ok((200, b"a".to_vec(), false))),
            (b"", Err(false)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(answered(bytes).await, expected, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        for bytes in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"[..],
            b"HTTP/1.1 200",
            b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\nab",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffff\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n",
        ] {
            assert!(answered(bytes).await.is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }
}
