//! HTTP/1 messages as a test needs them: order, case and framing kept, nothing repaired.
//!
//! Both the client and the scripted upstream read with this; it takes what comes and reports it.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::text::latin1;

/// Collects bytes and cuts messages out of them.
#[derive(Debug, Default)]
pub struct Reader {
    /// What is not used yet.
    pub buffer: Vec<u8>,
}

/// A response.
#[derive(Debug, Default)]
pub struct Response {
    /// Status line as sent.
    pub line: String,
    /// Status code.
    pub status: u16,
    /// Fields, names as sent.
    pub headers: Vec<(String, String)>,
    /// Body without its framing.
    pub body: String,
    /// Trailer fields.
    pub trailers: Vec<(String, String)>,
    /// How the body was framed.
    pub framing: &'static str,
    /// The body ended before its framing said so.
    pub incomplete: bool,
}

/// A request as an upstream saw it.
#[derive(Debug, Default)]
pub struct Request {
    /// Request line as sent.
    pub line: String,
    /// Fields, names as sent.
    pub headers: Vec<(String, String)>,
    /// Body without its framing.
    pub body: String,
    /// Trailer fields.
    pub trailers: Vec<(String, String)>,
    /// How the body is framed.
    pub framing: Framing,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    #[default]
    None,
    /// After so many bytes.
    Length(usize),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// A head: the first line, the fields, and its length in bytes.
type Head = (String, Vec<(String, String)>, usize);
/// A body, its trailers, and the length in bytes of both with their framing.
type Body = (Vec<u8>, Vec<(String, String)>, usize);

impl Reader {
    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Cuts the next response out, interim ones included. `end`: no more bytes will come.
    ///
    /// # Errors
    /// Something that is no response.
    pub fn response(&mut self, to_head: bool, end: bool) -> Result<Option<Response>> {
        let Some((line, headers, length)) = self.head()? else { return Ok(None) };
        let status: u16 =
            line.split(' ').nth(1).and_then(|s| s.parse().ok()).with_context(|| format!("no status in {line:?}"))?;
        let framing = match framing(&headers) {
            _ if to_head || status < 200 || status == 204 || status == 304 => Framing::None,
            Framing::None => Framing::Close,
            other => other,
        };
        let mut response = Response { line, status, headers, ..Response::default() };
        response.framing = match framing {
            Framing::None => "none",
            Framing::Length(_) => "length",
            Framing::Chunked => "chunked",
            Framing::Close => "close",
        };
        match body(&self.buffer[length..], framing)? {
            Some((bytes, trailers, used)) => {
                response.body = latin1(&bytes);
                response.trailers = trailers;
                self.buffer.drain(..length + used);
            }
            None if end => {
                let rest = &self.buffer[length..];
                response.incomplete = framing != Framing::Close;
                response.body = latin1(rest);
                self.buffer.clear();
            }
            None => return Ok(None),
        }
        Ok(Some(response))
    }

    /// Cuts the head of the next request out; its body stays.
    ///
    /// # Errors
    /// Something that is no request.
    pub fn request_head(&mut self) -> Result<Option<Request>> {
        let Some((line, headers, length)) = self.head()? else { return Ok(None) };
        self.buffer.drain(..length);
        Ok(Some(Request { framing: framing(&headers), line, headers, ..Request::default() }))
    }

    /// Cuts the body of `request` out, if all of it is here.
    ///
    /// # Errors
    /// A broken chunk.
    pub fn request_body(&mut self, request: &mut Request) -> Result<bool> {
        let Some((bytes, trailers, used)) = body(&self.buffer, request.framing)? else { return Ok(false) };
        self.buffer.drain(..used);
        request.body = latin1(&bytes);
        request.trailers = trailers;
        Ok(true)
    }

    fn head(&self) -> Result<Option<Head>> {
        let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(None) };
        let text = latin1(&self.buffer[..end]);
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        if !first.contains("HTTP/1.") {
            bail!("not HTTP/1: {first:?}");
        }
        Ok(Some((first, lines.map(field).collect(), end + 4)))
    }
}

fn field(line: &str) -> (String, String) {
    match line.split_once(':') {
        Some((name, value)) => (name.to_owned(), value.trim().to_owned()),
        None => (line.to_owned(), String::new()),
    }
}

fn framing(headers: &[(String, String)]) -> Framing {
    let value = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v);
    if value("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        return Framing::Chunked;
    }
    match value("content-length").and_then(|v| v.parse().ok()) {
        Some(n) => Framing::Length(n),
        None => Framing::None,
    }
}

fn body(bytes: &[u8], framing: Framing) -> Result<Option<Body>> {
    match framing {
        Framing::None => Ok(Some((Vec::new(), Vec::new(), 0))),
        Framing::Length(n) => Ok((bytes.len() >= n).then(|| (bytes[..n].to_vec(), Vec::new(), n))),
        Framing::Close => Ok(None),
        Framing::Chunked => chunked(bytes),
    }
}

fn chunked(bytes: &[u8]) -> Result<Option<Body>> {
    let mut at = 0;
    let mut out = Vec::new();
    let line = |at: usize| bytes[at..].windows(2).position(|w| w == b"\r\n").map(|n| at + n);
    loop {
        let Some(end) = line(at) else { return Ok(None) };
        let size = latin1(&bytes[at..end]);
        let size = usize::from_str_radix(&size, 16).with_context(|| format!("chunk size {size:?}"))?;
        at = end + 2;
        if size > 0 {
            if bytes.len() < at + size + 2 {
                return Ok(None);
            }
            out.extend_from_slice(&bytes[at..at + size]);
            at += size + 2;
            continue;
        }
        let mut trailers = Vec::new();
        loop {
            let Some(end) = line(at) else { return Ok(None) };
            let text = latin1(&bytes[at..end]);
            at = end + 2;
            if text.is_empty() {
                return Ok(Some((out, trailers, at)));
            }
            trailers.push(field(&text));
        }
    }
}

/// Fields as JSON.
pub fn pairs(fields: &[(String, String)]) -> Value {
    fields.iter().map(|(n, v)| json!([n, v])).collect()
}

impl Response {
    /// The response as the outcome of a step; empty parts are left out.
    pub fn to_json(&self) -> Value {
        let mut out = json!({"line": self.line, "headers": pairs(&self.headers), "framing": self.framing});
        if !self.body.is_empty() {
            out["body"] = json!(self.body);
        }
        if !self.trailers.is_empty() {
            out["trailers"] = pairs(&self.trailers);
        }
        if self.incomplete {
            out["incomplete"] = json!(true);
        }
        out
    }

    /// Whether the sender announced the end of the connection.
    pub fn closes(&self) -> bool {
        self.headers.iter().any(|(n, v)| n.eq_ignore_ascii_case("connection") && v.eq_ignore_ascii_case("close"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_cut_out_once_it_is_whole() {
        let mut reader = Reader::default();
        reader.push(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        );
        assert_eq!(reader.response(false, false).unwrap().unwrap().status, 100);
        assert!(reader.response(false, false).unwrap().is_none());
        reader.push(b"x: y\r\n\r\nHTTP/1.1 ");
        let response = reader.response(false, false).unwrap().unwrap();
        assert_eq!((response.body.as_str(), response.trailers.len()), ("abc", 1));
        assert_eq!(reader.buffer, b"HTTP/1.1 ");
    }

    #[test]
    fn a_body_that_stops_short_is_incomplete() {
        let mut reader = Reader::default();
        reader.push(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc");
        assert!(reader.response(false, false).unwrap().is_none());
        assert!(reader.response(false, true).unwrap().unwrap().incomplete);
    }
}
