//! The client's end, and what must hold whatever comes.

use proptest::prelude::*;

use super::*;

#[test]
fn a_client_reads_heads_bodies_and_trailers() {
    let mut peer = Peer::client();
    let key = peer.request(REQUEST, true);
    assert_eq!(peer.sent(), [Sent::Headers(1, ":method: GET|:scheme: http|:authority: a|:path: /".into(), true)]);
    peer.recv(&headers(END_HEADERS, 1, b"\x08\x03103"));
    peer.recv(&headers(END_HEADERS, 1, OK));
    peer.recv(&data(0, 1, b"abc"));
    peer.recv(&headers(BOTH, 1, b"\0\x01t\x011"));
    let head = |peer: &mut Peer| match peer.connection.poll_head(key, Waker::noop()) {
        Poll::Ready(Ok((headers, end))) => (headers.status(), end),
        other => panic!("{other:?}"),
    };
    assert_eq!(head(&mut peer), (103, false));
    assert_eq!(head(&mut peer), (200, false));
    assert!(matches!(peer.read(key), Poll::Ready(Ok(Frame::Data(data, false))) if data == "abc"));
    assert!(matches!(peer.read(key), Poll::Ready(Ok(Frame::Trailers(t))) if show(&t) == "t: 1"));
    assert!(!peer.connection.has_streams());
}

#[test]
fn the_rest_of_a_frame_does_not_go_to_the_next_stream() {
    // A body, cut in the middle of a DATA frame.
    let mut peer = Peer::client();
    let left = peer.request(REQUEST, true);
    peer.recv(&headers(END_HEADERS, 1, OK));
    let frame = data(END_STREAM, 1, b"of the first");
    peer.recv(&frame[..12]);
    peer.connection.release(left);
    let next = peer.request(REQUEST, true);
    assert_eq!(next, left, "the key is used again");
    peer.recv(&frame[12..]);
    peer.recv(&headers(END_HEADERS, 3, OK));
    peer.recv(&data(END_STREAM, 3, b"second"));
    assert!(
        matches!(peer.connection.poll_head(next, Waker::noop()), Poll::Ready(Ok((head, false))) if head.status() == 200)
    );
    assert!(matches!(peer.read(next), Poll::Ready(Ok(Frame::Data(data, true))) if data == "second"));

    // A head whose CONTINUATION is still to come.
    let mut peer = Peer::client();
    let left = peer.request(REQUEST, true);
    peer.recv(&headers(END_STREAM, 1, OK));
    peer.connection.release(left);
    let next = peer.request(REQUEST, true);
    peer.recv(&super::frame(kind::CONTINUATION, END_HEADERS, 1, b"\0\x01a\x01b"));
    assert!(peer.connection.end().is_none());
    assert!(peer.connection.poll_head(next, Waker::noop()).is_pending());
    peer.recv(&headers(BOTH, 3, b"\x89"));
    assert!(
        matches!(peer.connection.poll_head(next, Waker::noop()), Poll::Ready(Ok((head, true))) if head.status() == 204)
    );
}

#[test]
fn what_a_server_may_not_send_ends_the_connection() {
    for bytes in [
        headers(END_HEADERS, 1, b"\x82"),
        headers(END_HEADERS, 1, b"\0\x01x\x01y"),
        headers(END_HEADERS, 1, b"\x08\x03101"),
        headers(BOTH, 1, b"\x08\x03100"),
        headers(END_HEADERS, 1, b"\x08\x02-1"),
        headers(END_HEADERS, 1, b"\x88\0\x07upgrade\x01x"),
        data(0, 1, b"x"),
        headers(END_HEADERS, 3, OK),
        headers(END_HEADERS, 2, OK),
        frame(5, END_HEADERS, 1, &[0, 0, 0, 2]),
        frame(kind::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 1]),
        [headers(END_HEADERS, 1, OK), headers(END_HEADERS, 1, OK)].concat(),
        [headers(BOTH, 1, OK), headers(BOTH, 1, b"\0\x01t\x011")].concat(),
    ] {
        let mut peer = Peer::client();
        let key = peer.request(REQUEST, false);
        peer.recv(&bytes);
        assert!(peer.connection.end().is_some(), "{bytes:?}");
        let error = peer.connection.error(key);
        let complete = bytes.len() > 20;
        assert!(complete || error.is_some_and(|e| e.reason == ResetReason::ProtocolError), "{bytes:?}");
    }
}

#[test]
fn heads_that_have_no_body_have_none() {
    let mut peer = Peer::client();
    let key = peer.request(&[(":method", "HEAD"), (":scheme", "http"), (":authority", "a"), (":path", "/")], true);
    peer.recv(&headers(BOTH, 1, b"\x88\x0f\x0d\x019"));
    assert!(matches!(peer.connection.poll_head(key, Waker::noop()), Poll::Ready(Ok((_, true)))));
    let key = peer.request(REQUEST, true);
    peer.sent();
    peer.recv(&headers(END_HEADERS, 3, b"\x89\x0f\x0d\x010"));
    peer.recv(&data(END_STREAM, 3, b"x"));
    assert_eq!(peer.sent(), [Sent::Reset(3, 1)]);
    let Poll::Ready(Ok((head, _))) = peer.connection.poll_head(key, Waker::noop()) else { panic!("a head") };
    assert_eq!(show(&head), ":status: 204");
}

#[test]
fn resets_tell_what_may_be_tried_again() {
    let mut peer = Peer::client();
    let keys: Vec<_> = (0..4).map(|_| peer.request(REQUEST, true)).collect();
    peer.recv(&frame(kind::RST_STREAM, 0, 1, &ErrorCode::REFUSED_STREAM.0.to_be_bytes()));
    peer.recv(&frame(kind::RST_STREAM, 0, 3, &ErrorCode::CANCEL.0.to_be_bytes()));
    peer.recv(&frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 0]));
    let reasons: Vec<_> = keys.iter().map(|&key| peer.connection.error(key).map(|e| e.reason)).collect();
    let refused = Some(ResetReason::RemoteRefusedStreamReset);
    assert_eq!(reasons, [refused, Some(ResetReason::RemoteReset), None, refused]);
    assert!(!peer.connection.is_usable());
    peer.connection.finish(End::Closed);
    let error = peer.connection.error(keys[2]).expect("an error");
    assert_eq!(error.reason, ResetReason::ConnectionTermination);
}

#[test]
fn a_complete_response_survives_the_reset_of_the_request() {
    let mut peer = Peer::client();
    let key = peer.request(REQUEST, false);
    peer.recv(&headers(END_HEADERS, 1, OK));
    peer.recv(&data(END_STREAM, 1, b"done"));
    peer.recv(&frame(kind::RST_STREAM, 0, 1, &[0; 4]));
    assert!(peer.connection.error(key).is_none());
    peer.connection.send_data(key, Bytes::from_static(b"unwanted"), true);
    assert!(matches!(peer.connection.poll_head(key, Waker::noop()), Poll::Ready(Ok((_, false)))));
    assert!(matches!(peer.read(key), Poll::Ready(Ok(Frame::Data(data, true))) if data == "done"));
    assert!(!peer.sent().iter().any(|f| matches!(f, Sent::Data(..))));
}

#[test]
fn large_heads_go_out_in_pieces() {
    let mut peer = Peer::client();
    let long = "x".repeat(40_000);
    peer.request(&[REQUEST, &[("long", &long)]].concat(), true);
    let bytes = peer.bytes();
    let mut kinds = Vec::new();
    let mut rest = &bytes[..];
    while let Some(head) = FrameHead::parse(rest) {
        kinds.push((head.kind, head.flags));
        rest = &rest[9 + head.length..];
    }
    assert_eq!(kinds.first(), Some(&(kind::HEADERS, END_STREAM)));
    assert_eq!(kinds.last(), Some(&(kind::CONTINUATION, END_HEADERS)));
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let stream = prop_oneof![Just(0u32), Just(1), Just(2), Just(3), Just(5), 0..9u32];
    let block = prop_oneof![
        Just(GET.to_vec()),
        Just(POST.to_vec()),
        Just(OK.to_vec()),
        Just(b"\0\x01t\x011".to_vec()),
        Just([POST, b"\x0f\x0d\x013"].concat()),
        prop::collection::vec(any::<u8>(), 0..30),
    ];
    let small = prop::collection::vec(any::<u8>(), 0..12);
    let number = prop_oneof![Just(0u32), Just(1), Just(1000), Just(0x7fff_ffff), any::<u32>()];
    prop_oneof![
        4 => (any::<u8>(), stream.clone(), block).prop_map(|(f, s, b)| headers(f & 0x2d | (f & 4), s, &b)),
        4 => (any::<u8>(), stream.clone(), prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(f, s, p)| data(f & 9, s, &p)),
        2 => (stream.clone(), number.clone()).prop_map(|(s, n)| frame(kind::WINDOW_UPDATE, 0, s, &n.to_be_bytes())),
        1 => (stream.clone(), number.clone()).prop_map(|(s, n)| frame(kind::RST_STREAM, 0, s, &n.to_be_bytes())),
        1 => (0..9u8, number).prop_map(|(id, n)| {
            frame(kind::SETTINGS, 0, 0, &[&[0, id][..], &n.to_be_bytes()].concat())
        }),
        1 => (any::<u8>(), any::<u8>(), stream, small).prop_map(|(k, f, s, p)| frame(k % 12, f, s, &p)),
        1 => Just(frame(kind::PING, 0, 0, &[0; 8])),
        1 => Just(frame(kind::PING, 1, 0, b"shutdown")),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_frames_panics_or_grows_beyond_its_windows(
        role in any::<bool>(),
        frames in prop::collection::vec((any_frame(), 0..8u8), 1..60),
        cut in 1..200usize,
    ) {
        let role = if role { Role::Server } else { Role::Client };
        let mut peer = Peer::new(role, |c| {
            c.options.initial_stream_window_size = 65_535;
            c.options.initial_connection_window_size = 65_535;
            c.stream_error_on_invalid_http_message = true;
        });
        let mut keys = Vec::new();
        let mut buf = BytesMut::new();
        for (frame, act) in frames {
            for piece in frame.chunks(cut) {
                buf.extend_from_slice(piece);
                peer.connection.recv(&mut buf);
            }
            while let Some(accepted) = peer.connection.accept() {
                keys.push(accepted.key);
            }
            if role == Role::Client && act == 7
                && let Some(key) = peer.connection.send_request(&list(REQUEST), false)
            {
                keys.push(key);
            }
            if let Some(&key) = keys.get(usize::from(act)) {
                match act % 4 {
                    0 if role == Role::Server => peer.connection.send_response(key, &answer(200), false, false),
                    1 => peer.connection.send_data(key, Bytes::from(vec![0; 5000]), act == 5),
                    2 => { let _ = peer.read(key); }
                    _ => {
                        keys.retain(|k| *k != key);
                        peer.connection.release(key);
                    }
                }
            }
            prop_assert!(peer.connection.held_bytes() < 65_535 + 60 * 5100 + 10_000);
            prop_assert!(buf.len() < 20_000);
            if act == 3 {
                peer.bytes();
            }
        }
        for key in keys {
            peer.connection.release(key);
        }
        peer.connection.finish(End::Closed);
        prop_assert_eq!(peer.connection.active_streams(), 0);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for role in [Role::Server, Role::Client] {
            Peer::new(role, |_| {}).recv(&bytes);
        }
    }
}
