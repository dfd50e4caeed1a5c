//! The upstreams of the benches: HTTP/1.1 with 13 bytes on every path, or an echo for TCP, which do as little as they can; and
//! some that take their time or say who they are.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\ncontent-type: text/plain\r\n\r\nHello, World!";

/// Starts the HTTP upstream on the current runtime.
///
/// # Errors
/// No port.
pub async fn http() -> Result<SocketAddr> {
    answering(ANSWER.to_vec(), Duration::ZERO).await
}

/// An HTTP/1.1 upstream whose bodies are `name`.
///
/// # Errors
/// No port.
pub async fn named(name: &str) -> Result<SocketAddr> {
    answering(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len()).into_bytes(), Duration::ZERO)
        .await
}

/// An HTTP/1.1 upstream that waits before it answers.
///
/// # Errors
/// No port.
pub async fn slow(wait: Duration) -> Result<SocketAddr> {
    answering(ANSWER.to_vec(), wait).await
}

/// An HTTP/2 upstream that waits before it answers.
///
/// # Errors
/// No port.
pub async fn slow_http2(wait: Duration) -> Result<SocketAddr> {
    serve(move |stream| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            tokio::task::spawn_local(async move {
                tokio::time::sleep(wait).await;
                let mut head = http::Response::new(());
                head.headers_mut().insert("content-length", http::HeaderValue::from_static("13"));
                // A stream that was reset meanwhile needs no answer.
                if let Ok(mut body) = respond.send_response(head, false) {
                    let _ = body.send_data(Bytes::from_static(b"Hello, World!"), true);
                }
            });
        }
    })
    .await
}

async fn answering(answer: Vec<u8>, wait: Duration) -> Result<SocketAddr> {
    let answer: Rc<[u8]> = answer.into();
    serve(move |mut stream| {
        let answer = answer.clone();
        async move {
            let mut buffer = vec![0; 32 * 1024];
            let mut held = 0;
            while let Ok(n) = stream.read(&mut buffer[held..]).await {
                if n == 0 {
                    return;
                }
                held += n;
                // The proxies send no bodies here, so that each blank line ends one request.
                let mut used = 0;
                let mut answers = 0;
                while let Some(end) = buffer[used..held].windows(4).position(|w| w == b"\r\n\r\n") {
                    used += end + 4;
                    answers += 1;
                }
                buffer.copy_within(used..held, 0);
                held -= used;
                if answers > 0 && !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                if answers > 0 && stream.write_all(&answer.repeat(answers)).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// Starts the TCP echo on the current runtime.
///
/// # Errors
/// No port.
pub async fn echo() -> Result<SocketAddr> {
    serve(|mut stream| async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n) = stream.read(&mut buffer).await {
            if n == 0 || stream.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn serve<F: Future<Output = ()> + 'static>(connection: impl Fn(TcpStream) -> F + 'static) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::task::spawn_local(connection(stream));
        }
    });
    Ok(address)
}
