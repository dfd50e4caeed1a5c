//! The request body as far as it was read, kept while the request may be tried again or sent elsewhere.

use nuncio_http::codec::Frame;
use std::collections::VecDeque;

/// See the module's documentation.
pub(crate) struct Replay {
    frames: Vec<Frame>,
    size: usize,
    limit: usize,
    /// Frames that were read and are not kept any more; 0 as long as everything is.
    dropped: usize,
}

/// What a try sends next.
pub(crate) enum Next {
    /// A copy of a frame that is kept.
    Kept(Frame),
    /// What has not been read yet.
    Unread,
    /// It was read, and is gone: the try cannot be completed.
    Lost,
}

impl Replay {
    pub(crate) fn new(limit: usize) -> Replay {
        Replay { frames: Vec::new(), size: 0, limit, dropped: 0 }
    }

    /// A body over the limit is streamed and then not retried.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.dropped > 0
    }

    /// Whether nothing of the body was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.dropped == 0
    }

    /// What comes after the first `number` frames of the body.
    pub(crate) fn next(&self, number: usize) -> Next {
        match self.frames.get(number) {
            _ if number < self.dropped => Next::Lost,
            Some(frame) => Next::Kept(copy(frame)),
            None => Next::Unread,
        }
    }

    /// All of the body.
    pub(crate) fn into_frames(self) -> VecDeque<Frame> {
        self.frames.into()
    }

    /// Keeps a copy of what was just read. False when the body has just become too large.
    pub(crate) fn keep(&mut self, frame: &Frame) -> bool {
        if self.is_abandoned() {
            self.dropped += 1;
            return true;
        }
        if let Frame::Data(data, _) = frame {
            self.size += data.len();
        }
        if self.size > self.limit {
            self.dropped = self.frames.len() + 1;
            self.frames = Vec::new();
            return false;
        }
        self.frames.push(copy(frame));
        true
    }
}

/// A copy of a frame; its bytes are shared.
pub(crate) fn copy(frame: &Frame) -> Frame {
    match frame {
        Frame::Data(data, end) => Frame::Data(data.clone(), *end),
        Frame::Trailers(trailers) => Frame::Trailers(trailers.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn data(text: &'static str) -> Frame {
        Frame::Data(Bytes::from_static(text.as_bytes()), false)
    }

    #[test]
    fn a_try_is_given_every_frame_in_turn_until_it_is_up_to_date() {
        let mut replay = Replay::new(8);
        assert!(replay.is_empty() && matches!(replay.next(0), Next::Unread));
        assert!(replay.keep(&data("abc")) && replay.keep(&data("def")));
        assert!(matches!(replay.next(1), Next::Kept(Frame::Data(data, false)) if data == "def"));
        assert!(matches!(replay.next(2), Next::Unread));
    }

    #[test]
    fn a_try_that_lags_when_the_body_is_given_up_has_lost_frames() {
        let mut replay = Replay::new(5);
        assert!(replay.keep(&data("abc")));
        assert!(!replay.keep(&data("def")) && replay.is_abandoned());
        // A new try, one that lags, and the one that read the last frame.
        assert!(matches!(replay.next(0), Next::Lost) && matches!(replay.next(1), Next::Lost));
        assert!(matches!(replay.next(2), Next::Unread));
        assert!(replay.keep(&data("ghi")) && matches!(replay.next(2), Next::Lost));
        assert!(matches!(replay.next(3), Next::Unread) && !replay.is_empty());
    }
}
