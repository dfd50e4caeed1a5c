//! gRPC on the admin listener: client status discovery. One call is one stream; requests and answers are framed messages,
//! and the status is in the trailers.

use crate::admin::csds;
use crate::sources::Sources;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use nuncio_http::active_stream::ActiveStream;
use nuncio_http::codec::Frame;
use nuncio_http::headers::{HeaderName, HeaderValue, Headers, names};
use prost::Message as _;
use std::future::poll_fn;

/// Flag and length before each message.
const PREFIX: usize = 5;
/// Bytes of a request message at most.
const MAX_MESSAGE: usize = 64 * 1024;

/// A status other than OK: code and message.
type Failure = (u8, String);

const INVALID_ARGUMENT: u8 = 3;
const RESOURCE_EXHAUSTED: u8 = 8;
const UNIMPLEMENTED: u8 = 12;
const INTERNAL: u8 = 13;

/// Whether a call is for this file.
pub(crate) fn is_call(stream: &ActiveStream<'_>, path: &str) -> bool {
    stream.is_grpc() && path.starts_with("/envoy.service.status.v3.ClientStatusDiscoveryService/")
}

/// Serves a call to its end.
pub(crate) async fn serve(stream: &mut ActiveStream<'_>, path: &str, sources: &Sources<'_>) {
    stream.info.response_code_details = Some("admin_filter_response".into());
    let mut head = Headers::with_capacity(4);
    head.set_status(200);
    head.append(names::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    stream.send_response_headers(head, false);
    let status = match path {
        csds::STREAM => answer_all(stream, sources, true).await,
        csds::FETCH => answer_all(stream, sources, false).await,
        _ => Some(Err((UNIMPLEMENTED, format!("unknown method {path}")))),
    };
    let Some(status) = status else { return };
    let (code, message) = status.err().unwrap_or_default();
    let mut trailers = Headers::with_capacity(2);
    let mut add = |name: &str, value: String| {
        if let (Some(name), Some(value)) = (HeaderName::parse(name), HeaderValue::parse(value)) {
            trailers.append(name, value);
        }
    };
    add("grpc-status", code.to_string());
    if !message.is_empty() {
        add("grpc-message", percent_encoded(&message));
    }
    stream.send_response_trailers(trailers);
    // A peer that has left needs no answer.
    let _ = poll_fn(|cx| stream.poll_response_flush(cx)).await;
}

/// Answers the one request, or each of several; None when the peer has left.
async fn answer_all(
    stream: &mut ActiveStream<'_>,
    sources: &Sources<'_>,
    several: bool,
) -> Option<Result<(), Failure>> {
    let mut buffer = BytesMut::new();
    let mut answered = false;
    loop {
        while let Some(message) = match next_message(&mut buffer) {
            Ok(message) => message,
            Err(failure) => return Some(Err(failure)),
        } {
            if answered && !several {
                return Some(Err((INTERNAL, "more than one message in a unary call".to_owned())));
            }
            let answer = match answer(&message, sources) {
                Ok(answer) => answer,
                Err(failure) => return Some(Err(failure)),
            };
            answered = true;
            if let Err(abort) = poll_fn(|cx| stream.poll_response_capacity(cx)).await {
                stream.abort(abort);
                return None;
            }
            stream.send_response_data(answer, false);
        }
        if stream.request_complete() {
            break;
        }
        match poll_fn(|cx| stream.poll_request_frame(cx)).await {
            Ok(Frame::Data(data, _)) => buffer.extend_from_slice(&data),
            Ok(Frame::Trailers(_)) => {}
            Err(abort) => {
                stream.abort(abort);
                return None;
            }
        }
    }
    let whole = buffer.is_empty() && (answered || several);
    Some(if whole { Ok(()) } else { Err((INTERNAL, "the request ends within a message".to_owned())) })
}

fn next_message(buffer: &mut BytesMut) -> Result<Option<Bytes>, Failure> {
    let Some((&[compressed, a, b, c, d], rest)) = buffer.split_first_chunk::<PREFIX>() else { return Ok(None) };
    if compressed != 0 {
        return Err((UNIMPLEMENTED, "messages must not be compressed".to_owned()));
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > MAX_MESSAGE {
        return Err((RESOURCE_EXHAUSTED, format!("a message has more than {MAX_MESSAGE} bytes")));
    }
    if rest.len() < length {
        return Ok(None);
    }
    buffer.advance(PREFIX);
    Ok(Some(buffer.split_to(length).freeze()))
}

fn answer(message: &[u8], sources: &Sources<'_>) -> Result<Bytes, Failure> {
    let request = ClientStatusRequest::decode(message).map_err(|error| (INVALID_ARGUMENT, error.to_string()))?;
    let response = csds::client_status(&request, sources).map_err(|error| (INVALID_ARGUMENT, error))?;
    let length = response.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).map_err(|_| (RESOURCE_EXHAUSTED, "too much to send".to_owned()))?);
    response.encode(&mut out).map_err(|error| (INTERNAL, error.to_string()))?;
    Ok(out.freeze())
}

/// `grpc-message` has percent signs and what is not printable ASCII escaped.
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_out_as_they_become_whole() {
        let mut buffer = BytesMut::from(&b"\0\0\0\0\x02ab\0\0\0\0\0\0\0"[..]);
        assert_eq!(next_message(&mut buffer), Ok(Some(Bytes::from_static(b"ab"))));
        assert_eq!(next_message(&mut buffer), Ok(Some(Bytes::new())));
        assert_eq!(next_message(&mut buffer), Ok(None));
        assert_eq!(buffer.len(), 2);
    }

    #[test]
    fn what_cannot_be_taken_is_a_status() {
        let status = |bytes: &[u8]| next_message(&mut BytesMut::from(bytes)).unwrap_err().0;
        assert_eq!(status(b"\x01\0\0\0\x02ab"), UNIMPLEMENTED);
        assert_eq!(status(b"\0\xff\0\0\0"), RESOURCE_EXHAUSTED);
    }

    #[test]
    fn the_text_of_a_status_is_escaped() {
        assert_eq!(percent_encoded("50% \u{e4}\n"), "50%25 %C3%A4%0A");
    }
}
