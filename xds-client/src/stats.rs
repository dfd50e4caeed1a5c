//! Where the client reports what happens, so that its owner can count it under its own names.

use std::time::{Duration, SystemTime};

/// The number that Envoy's `version` gauges show for a version text: its xxHash64.
pub fn version_hash(version: &str) -> u64 {
    xxhash_rust::xxh64::xxh64(version.as_bytes(), 0)
}

/// Receives the events of one subscription. Every method does nothing by default.
pub trait SubscriptionStats {
    /// `update_attempt`: the subscription began or changed, or a response, a failure or a time-out concerned it.
    fn attempt(&self) {}
    /// `update_success`, `update_time`, `version`, `version_text`, `update_duration`.
    fn success(&self, _version: &str, _at: SystemTime, _took: Duration) {}
    /// `update_rejected`.
    fn rejected(&self) {}
    /// `update_failure`: the stream broke, or a poll or a file could not be read.
    fn failure(&self) {}
    /// `init_fetch_timeout`.
    fn init_fetch_timeout(&self) {}
}

/// Whether there is a stream, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connected {
    /// There is none.
    No,
    /// To the server of the source.
    Primary,
    /// To the one that stands in for it.
    Failover,
}

/// Receives the events of one stream to a control plane (`control_plane.*`). Every method does nothing by default.
pub trait ControlPlaneStats {
    /// `connected_state`.
    fn connected(&self, _to: Connected) {}
    /// `pending_requests`: requests held back by the rate limit.
    fn pending_requests(&self, _count: usize) {}
    /// `rate_limit_enforced`.
    fn rate_limit_enforced(&self) {}
    /// `identifier`.
    fn identifier(&self, _identifier: &str) {}
}

impl SubscriptionStats for () {}
impl ControlPlaneStats for () {}

#[cfg(test)]
mod tests {
    #[test]
    fn a_version_hashes_as_envoy_does() {
        assert_eq!(super::version_hash(""), 17_241_709_254_077_376_921);
    }
}
