//! Envoy's limits on frames, counted per connection: no I/O, no clock.

use nuncio_config::hcm::Http2Options;

use crate::codec::stats::Http2Stats;

/// A limit that the peer broke. The connection ends at once, without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::codec::h2) enum Flood {
    /// `max_consecutive_inbound_frames_with_empty_payload`
    #[error("Too many consecutive frames with an empty payload")]
    Empty,
    /// `max_inbound_priority_frames_per_stream`
    #[error("Too many PRIORITY frames")]
    Priority,
    /// `max_inbound_window_update_frames_per_data_frame_sent`
    #[error("Too many WINDOW_UPDATE frames")]
    WindowUpdate,
    /// `max_outbound_frames`
    #[error("Too many frames in the outbound queue.")]
    Outbound,
    /// `max_outbound_control_frames`
    #[error("Too many control frames in the outbound queue.")]
    OutboundControl,
}

impl Flood {
    /// Envoy's response code details.
    pub(in crate::codec::h2) fn details(self) -> &'static str {
        match self {
            Flood::Empty => "http2.inbound_empty_frames_flood",
            Flood::Outbound | Flood::OutboundControl => "http2.outbound_frames_flood",
            Flood::Priority | Flood::WindowUpdate => "http2.unknown.nghttp2.error",
        }
    }

    /// Counts it.
    pub(super) fn count(self, stats: &Http2Stats) {
        match self {
            Flood::Empty => stats.inbound_empty_frames_flood(),
            Flood::Priority => stats.inbound_priority_frames_flood(),
            Flood::WindowUpdate => stats.inbound_window_update_frames_flood(),
            Flood::Outbound => stats.outbound_flood(),
            Flood::OutboundControl => stats.outbound_control_flood(),
        }
        .inc();
    }
}

/// The limits, from [`Http2Options`].
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameLimits {
    empty: u32,
    priority: u32,
    window_update: u32,
    pub(super) outbound: usize,
    pub(super) outbound_control: usize,
}

impl From<&Http2Options> for FrameLimits {
    fn from(o: &Http2Options) -> Self {
        FrameLimits {
            empty: o.max_consecutive_inbound_frames_with_empty_payload,
            priority: o.max_inbound_priority_frames_per_stream,
            window_update: o.max_inbound_window_update_frames_per_data_frame_sent,
            outbound: o.max_outbound_frames as usize,
            outbound_control: o.max_outbound_control_frames as usize,
        }
    }
}

/// Counts the frames of a connection against the limits.
#[derive(Debug)]
pub(super) struct Constraints {
    pub(super) limits: FrameLimits,
    opened_streams: u64,
    consecutive_empty: u32,
    priority: u64,
    window_updates: u64,
    outbound_data: u64,
}

impl Constraints {
    pub(super) fn new(limits: FrameLimits) -> Constraints {
        Constraints {
            limits,
            opened_streams: 0,
            consecutive_empty: 0,
            priority: 0,
            window_updates: 0,
            outbound_data: 0,
        }
    }

    /// A stream was opened by either side.
    pub(super) fn opened(&mut self) {
        self.opened_streams += 1;
    }

    /// A DATA frame was sent.
    pub(super) fn data_sent(&mut self) {
        self.outbound_data += 1;
    }

    /// DATA, HEADERS or CONTINUATION came. `empty`: without payload but padding, and without END_STREAM.
    #[inline]
    pub(super) fn payload(&mut self, empty: bool) -> Result<(), Flood> {
        if !empty {
            self.consecutive_empty = 0;
            return Ok(());
        }
        self.consecutive_empty += 1;
        if self.consecutive_empty > self.limits.empty { Err(Flood::Empty) } else { Ok(()) }
    }

    /// PRIORITY came.
    pub(super) fn priority(&mut self) -> Result<(), Flood> {
        self.priority += 1;
        let most = u64::from(self.limits.priority) * (1 + self.opened_streams);
        if self.priority > most { Err(Flood::Priority) } else { Ok(()) }
    }

    /// WINDOW_UPDATE came.
    #[inline]
    pub(super) fn window_update(&mut self) -> Result<(), Flood> {
        self.window_updates += 1;
        let most = 5 + 2 * (self.opened_streams + u64::from(self.limits.window_update) * self.outbound_data);
        if self.window_updates > most { Err(Flood::WindowUpdate) } else { Ok(()) }
    }
}
