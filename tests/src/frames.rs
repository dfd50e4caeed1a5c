//! Raw HTTP/2 frames for what no well-behaved client library sends: floods and protocol errors.

use anyhow::{Context as _, Result, bail};

use crate::case::Flood;

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
const GOAWAY: u8 = 7;
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

/// The preface, and the frames of a case.
///
/// # Errors
/// An unknown sort, or a frame that is not written as it should be.
pub fn bytes(flood: &Flood) -> Result<Vec<u8>> {
    let mut out = PREFACE.to_vec();
    if !flood.frames.is_empty() {
        for text in &flood.frames {
            written(text, &mut out).with_context(|| format!("frame {text:?}"))?;
        }
        return Ok(out);
    }
    let (sort, count) = (flood.sort.as_str(), flood.count);
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

/// A frame that is written out.
fn written(text: &str, out: &mut Vec<u8>) -> Result<()> {
    let (times, text) = match text.split_once('*') {
        Some((times, text)) => (times.trim().parse()?, text),
        None => (1, text),
    };
    let mut words = text.split_whitespace();
    let mut word = || words.next().context("too short");
    let kind = match word()? {
        "DATA" => DATA,
        "HEADERS" => HEADERS,
        "PRIORITY" => PRIORITY,
        "RST_STREAM" => RST_STREAM,
        "SETTINGS" => SETTINGS,
        "PUSH_PROMISE" => PUSH_PROMISE,
        "PING" => PING,
        "GOAWAY" => GOAWAY,
        "WINDOW_UPDATE" => WINDOW_UPDATE,
        "CONTINUATION" => CONTINUATION,
        number => number.parse()?,
    };
    let (flags, stream) = (word()?.parse()?, word()?.parse()?);
    let mut payload = Vec::new();
    for word in words {
        let (digits, repeat) = word.split_once('x').unwrap_or((word, "1"));
        let piece = (0..digits.len()).step_by(2);
        let piece = piece.map(|i| Ok(u8::from_str_radix(digits.get(i..i + 2).context("odd digits")?, 16)?));
        payload.extend(piece.collect::<Result<Vec<u8>>>()?.repeat(repeat.parse()?));
    }
    out.extend(frame(kind, flags, stream, &payload).repeat(times));
    Ok(())
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
            GOAWAY => out.push(format!("GOAWAY code {}", code(4))),
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
    fn frames_are_written_out() {
        let mut out = Vec::new();
        written("2* PING 1 0 0001x2 ffx4", &mut out).unwrap();
        assert_eq!(out, frame(PING, 1, 0, &[0, 1, 0, 1, 255, 255, 255, 255]).repeat(2));
        for wrong in ["PING", "PING 0 0 123", "NONE 0 0", "PING 0 0 zz", "x* PING 0 0"] {
            assert!(written(wrong, &mut out).is_err(), "{wrong}");
        }
    }

    #[test]
    fn frames_are_summed_up() {
        let mut bytes = frame(SETTINGS, 0, 0, &[]);
        bytes.extend(frame(RST_STREAM, 0, 3, &[0, 0, 0, 1]));
        bytes.extend(frame(7, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 11]));
        assert_eq!(summary(&bytes), ["RST_STREAM on 3, code 1", "GOAWAY code 11"]);
    }
}
