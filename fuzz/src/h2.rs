//! HTTP/2: the frame guard's counting.

use nuncio_config::hcm::Http2Options;
use nuncio_http::codec::h2::guard::{FrameLimits, Tracker};

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
