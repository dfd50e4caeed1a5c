//! The upstream of the benches: HTTP/1.1 with 13 bytes on every path, or an echo for TCP. It does as little as it can.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\ncontent-type: text/plain\r\n\r\nHello, World!";

/// Starts the HTTP upstream on the current runtime.
///
/// # Errors
/// No port.
pub async fn http() -> Result<SocketAddr> {
    serve(|mut stream| async move {
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
            if answers > 0 && stream.write_all(&ANSWER.repeat(answers)).await.is_err() {
                return;
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
