//! Reads PROXY headers for scripted upstreams: as text in which ports of the loopback, which differ from run to run, are `*`.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::text;

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Reads the header in front of everything else, and nothing beyond it: `v1 TCP4 1.2.3.4:5 127.0.0.1:*`,
/// `v2 11 1.2.3.4:5 127.0.0.1:* e1=value`, `v2 LOCAL`.
///
/// # Errors
/// What comes is no PROXY header.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<String> {
    let mut head = Vec::new();
    loop {
        head.push(stream.read_u8().await?);
        if head == V2_SIGNATURE {
            return v2(stream).await;
        }
        let v1 = b"PROXY ".starts_with(&head) || head.starts_with(b"PROXY ");
        if v1 && head.ends_with(b"\r\n") {
            return v1_text(&text::latin1(&head));
        }
        if (!v1 && !V2_SIGNATURE.starts_with(&head)) || head.len() > 108 {
            bail!("no PROXY header: {:?}", text::latin1(&head));
        }
    }
}

fn v1_text(line: &str) -> Result<String> {
    let words: Vec<&str> = line.trim_end().split(' ').collect();
    let [_, family, source, destination, from, to] = words[..] else { return Ok(format!("v1 {}", line.trim_end())) };
    let show = |ip: &str, port: &str| Ok::<_, anyhow::Error>(shown(SocketAddr::new(ip.parse()?, port.parse()?)));
    Ok(format!("v1 {family} {} {}", show(source, from)?, show(destination, to)?))
}

async fn v2(stream: &mut (impl AsyncRead + Unpin)) -> Result<String> {
    let command = stream.read_u8().await?;
    let family = stream.read_u8().await?;
    let mut body = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut body).await?;
    if command == 0x20 {
        return Ok(format!("v2 LOCAL{}", if body.is_empty() { "" } else { " with a body" }));
    }
    let size = if family >> 4 == 1 { 4 } else { 16 };
    let (addresses, mut rest) = body.split_at_checked(2 * size + 4).context("no room for addresses")?;
    let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
    let ip = |bytes: &[u8]| -> Result<IpAddr> {
        Ok(match <[u8; 4]>::try_from(bytes) {
            Ok(v4) => v4.into(),
            Err(_) => <[u8; 16]>::try_from(bytes)?.into(),
        })
    };
    let source = SocketAddr::new(ip(&addresses[..size])?, port(2 * size));
    let destination = SocketAddr::new(ip(&addresses[size..2 * size])?, port(2 * size + 2));
    let mut out = format!("v2 {family:x} {} {}", shown(source), shown(destination));
    while !rest.is_empty() {
        let (head, after) = rest.split_first_chunk::<3>().context("a broken TLV")?;
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        let (value, after) = after.split_at_checked(length).context("a broken TLV")?;
        // A long value by its length alone.
        match value.len() {
            0..200 => out.push_str(&format!(" {:x}={}", head[0], text::latin1(value))),
            long => out.push_str(&format!(" {:x}=({long} bytes)", head[0])),
        }
        rest = after;
    }
    Ok(out)
}

fn shown(address: SocketAddr) -> String {
    if address.ip().is_loopback() { format!("{}:*", address.ip()) } else { address.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn text_of(bytes: &[u8]) -> Result<String> {
        let mut rest = bytes;
        let text = read(&mut rest).await?;
        assert_eq!(rest, b"GET");
        Ok(text)
    }

    #[tokio::test]
    async fn headers_are_read_to_their_end() {
        let v1 = text_of(b"PROXY TCP4 1.2.3.4 127.0.0.1 5 80\r\nGET").await.unwrap();
        assert_eq!(v1, "v1 TCP4 1.2.3.4:5 127.0.0.1:*");
        let v2 = [V2_SIGNATURE, b"\x21\x11\0\x11\x01\x02\x03\x04\x05\x06\x07\x08\0\x05\0\x50\xe1\0\x02abGET"].concat();
        assert_eq!(text_of(&v2).await.unwrap(), "v2 11 1.2.3.4:5 5.6.7.8:80 e1=ab");
        let local = [V2_SIGNATURE, b"\x20\0\0\0GET"].concat();
        assert_eq!(text_of(&local).await.unwrap(), "v2 LOCAL");
        assert!(read(&mut &b"GET / HTTP/1.1\r\n"[..]).await.is_err());
    }
}
