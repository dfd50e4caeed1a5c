//! HTTP/2: the frame guard's counting, frames, and header blocks.

use std::ops::ControlFlow;

use bytes::Bytes;
use nuncio_config::hcm::Http2Options;
use nuncio_http::codec::h2::frame::{self, Head, Kind};
use nuncio_http::codec::h2::guard::{FrameLimits, Tracker};
use nuncio_http::codec::h2::hpack::{Decoder, Encoder, Field};
use nuncio_http::headers::{HeaderName, HeaderValue};

/// Counts `data` whole and in pieces whose size is its first byte: both must find the same. The other direction must not
/// panic either.
pub fn frames(data: &[u8]) {
    let Some((step, data)) = data.split_first() else { return };
    let limits = FrameLimits::from(&Http2Options::default());
    for server in [true, false] {
        let mut whole = Tracker::new(limits, server);
        let result = whole.received(data);
        let mut pieces = Tracker::new(limits, server);
        for piece in data.chunks(usize::from(*step).max(1)) {
            let _ = pieces.received(piece);
        }
        assert_eq!(whole.violation(), pieces.violation());
        assert_eq!(result.err(), whole.violation());
        assert_eq!(whole.goaway_received, pieces.goaway_received);
        Tracker::new(limits, server).sent(data);
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

/// Reads one frame in all ways that its type has.
pub fn frame(data: &[u8]) {
    let Some((head, payload)) = data.split_first_chunk() else { return };
    let head = Head { len: payload.len() as u32, ..Head::parse(head) };
    if head.check(frame::DEFAULT_MAX_FRAME_SIZE).is_err() {
        return;
    }
    if let Ok(content) = head.content(payload) {
        assert!(content.end <= payload.len() && content.start <= content.end);
    }
    let _ = head.dependency(payload);
    // What the head's check lets pass has the length that its type wants.
    match head.kind {
        Kind::RstStream => assert!(frame::rst_stream(payload).is_ok()),
        Kind::Ping => assert!(frame::ping(payload).is_ok()),
        Kind::GoAway => assert!(frame::go_away(payload).is_ok()),
        Kind::WindowUpdate => {
            let _ = frame::window_update(&head, payload);
        }
        Kind::Settings => frame::settings(payload).for_each(|(id, value)| {
            let _ = frame::check_setting(id, value);
        }),
        _ => {}
    }
}
