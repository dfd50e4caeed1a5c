//! Raw HTTP/2 frames for what no well-behaved client library sends: floods and protocol errors.

use anyhow::{Result, bail};

/// A client's preface with an empty SETTINGS frame.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// `GET / http a` without use of the dynamic table.
const REQUEST: &[u8] = b"\x82\x84\x86\x01\x01a";
/// `POST / http a`.
const POST: &[u8] = b"\x83\x84\x86\x01\x01a";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// The preface and `count` frames of one sort.
///
/// # Errors
/// An unknown sort.
pub fn flood(sort: &str, count: u32) -> Result<Vec<u8>> {
    let mut out = PREFACE.to_vec();
    let open = frame(HEADERS, END_HEADERS, 1, POST);
    match sort {
        "ping" => (0..count).for_each(|_| out.extend(frame(PING, 0, 0, &[0; 8]))),
        "settings" => (0..count).for_each(|_| out.extend(frame(SETTINGS, 0, 0, &[]))),
        "priority" => (0..count).for_each(|_| out.extend(frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16]))),
        "window_update" => {
            out.extend(open);
            (0..count).for_each(|_| out.extend(frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])));
        }
        "empty_data" => {
            out.extend(open);
            (0..count).for_each(|_| out.extend(frame(DATA, 0, 1, &[])));
        }
        "rapid_reset" => {
            for i in 0..count {
                out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * i + 1, REQUEST));
                out.extend(frame(RST_STREAM, 0, 2 * i + 1, &[0, 0, 0, 8]));
            }
        }
        "continuation" => {
            out.extend(frame(HEADERS, 0, 1, REQUEST));
            // A literal field of 1,000 bytes in each.
            let mut field = b"\0\x01x\x7f\xe9\x06".to_vec();
            field.resize(field.len() + 1000, b'a');
            (0..count).for_each(|_| out.extend(frame(CONTINUATION, 0, 1, &field)));
        }
        "data_on_idle" => out.extend(frame(DATA, 0, 1, b"x")),
        "even_stream" => out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2, REQUEST)),
        "reused_stream" => {
            out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 5, REQUEST));
            out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 3, REQUEST));
        }
        "push_promise" => out.extend(frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])),
        "long_ping" => out.extend(frame(PING, 0, 0, &[0; 9])),
        "zero_window_update" => out.extend(frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        "window_overflow" => (0..2).for_each(|_| out.extend(frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]))),
        "broken_hpack" => out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff, 0xff, 0xff, 0xff, 0xff])),
        "oversized" => out.extend(frame(DATA, 0, 1, &[0; 17_000])),
        "unknown_type" => out.extend(frame(0xbb, 0, 0, b"ignored")),
        "interleaved" => {
            out.extend(frame(HEADERS, 0, 1, REQUEST));
            out.extend(frame(PING, 0, 0, &[0; 8]));
        }
        // Requests that break HTTP's rules for messages.
        "no_path" => out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x82\x86\x01\x01a")),
        "no_method" => out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x84\x86\x01\x01a")),
        "two_methods" => out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x82\x83\x84\x86\x01\x01a")),
        "upper_case" => {
            out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x82\x84\x86\x01\x01a\0\x01X\x01y"));
        }
        "pseudo_after" => {
            out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x82\x84\0\x01x\x01y\x86\x01\x01a"));
        }
        "unknown_pseudo" => {
            out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x82\x84\x86\x01\x01a\0\x02:x\x01y"));
        }
        "empty_scheme" => out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x82\x84\x06\x00\x01\x01a")),
        "connection_field" => {
            out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x82\x84\x86\x01\x01a\0\x0aconnection\x05close"));
        }
        "nul_in_value" => {
            out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x82\x84\x86\x01\x01a\0\x01x\x03a\0b"));
        }
        "short_body" => {
            out.extend(frame(HEADERS, END_HEADERS, 1, b"\x83\x84\x86\x01\x01a\x0f\x0d\x01\x39"));
            out.extend(frame(DATA, END_STREAM, 1, b"abc"));
        }
        "trailers_with_pseudo" => {
            out.extend(frame(HEADERS, END_HEADERS, 1, POST));
            out.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x84"));
        }
        other => bail!("no flood {other:?}"),
    }
    Ok(out)
}

/// The frames that came back, by name: those that say how a connection or a stream ended, and whether streams got a
/// response.
pub fn summary(bytes: &[u8]) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while rest.len() >= 9 {
        let length = usize::from(rest[0]) << 16 | usize::from(rest[1]) << 8 | usize::from(rest[2]);
        let (kind, stream) = (rest[3], u32::from_be_bytes([rest[5] & 0x7f, rest[6], rest[7], rest[8]]));
        let Some(payload) = rest.get(9..9 + length) else { break };
        let code = |at: usize| payload.get(at..at + 4).map_or(0, |c| u32::from_be_bytes([c[0], c[1], c[2], c[3]]));
        match kind {
            HEADERS => out.push(format!("HEADERS on {stream}")),
            RST_STREAM => out.push(format!("RST_STREAM on {stream}, code {}", code(0))),
            7 => out.push(format!("GOAWAY code {}", code(4))),
            _ => {}
        }
        rest = &rest[9 + length..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_summed_up() {
        let mut bytes = frame(SETTINGS, 0, 0, &[]);
        bytes.extend(frame(RST_STREAM, 0, 3, &[0, 0, 0, 1]));
        bytes.extend(frame(7, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 11]));
        assert_eq!(summary(&bytes), ["RST_STREAM on 3, code 1", "GOAWAY code 11"]);
    }
}
