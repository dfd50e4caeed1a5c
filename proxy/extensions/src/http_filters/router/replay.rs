//! The request body as far as it was read, kept while the request may be tried again or sent elsewhere.

use nuncio_http::codec::Frame;
use std::collections::VecDeque;

/// See the module's documentation.
pub(crate) struct Replay {
    frames: Vec<Frame>,
    size: usize,
    limit: usize,
    abandoned: bool,
}

impl Replay {
    pub(crate) fn new(limit: usize) -> Replay {
        Replay { frames: Vec::new(), size: 0, limit, abandoned: false }
    }

    /// A body over the limit is streamed and then not retried.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// A copy of the frame with this number.
    pub(crate) fn frame(&self, number: usize) -> Option<Frame> {
        self.frames.get(number).map(copy)
    }

    /// All of the body.
    pub(crate) fn into_frames(self) -> VecDeque<Frame> {
        self.frames.into()
    }

    /// Keeps a copy. False when the body has just become too large.
    pub(crate) fn keep(&mut self, frame: &Frame) -> bool {
        if self.abandoned {
            return true;
        }
        if let Frame::Data(data, _) = frame {
            self.size += data.len();
        }
        if self.size > self.limit {
            self.abandoned = true;
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
