//! HTTP/2: an own codec, so that header lists are converted once, flow control follows the consumer, and errors and
//! limits are Envoy's.
//!
//! `machine` is a connection without I/O, over `frame` and `hpack`; `driver` puts it on a byte stream, and `keepalive`
//! gives it pings; `handle` is what both ends' streams have in common; `server` and `client` are the two ends. `premature`
//! bounds resets; `refused` stands for a stream that was refused.

pub mod client;
mod driver;
pub mod frame;
mod handle;
pub mod hpack;
mod keepalive;
mod machine;
mod premature;
mod refused;
pub mod server;

use std::sync::Arc;

use nuncio_config::hcm::{Http2Options, UnderscoresAction};

use crate::codec::h1::parse::Limits;
use crate::codec::stats::Http2Stats;
use crate::matchers::Runtime;

pub use client::{H2Client, H2ClientStream, H2Sender};
pub use frame::ErrorCode;
pub use premature::{PrematureLimits, PrematureResets, ResetRate};
pub use refused::RefusedStream;
pub use server::{H2Request, H2Server, H2ServerStream};

/// What all connections of a filter chain or of a cluster share.
#[derive(Clone)]
pub struct Config {
    /// The options.
    pub options: Http2Options,
    /// Size of a head.
    pub limits: Limits,
    /// What is done with names that have underscores; of clients, nothing.
    pub underscores: UnderscoresAction,
    /// An invalid message resets its stream instead of ending the connection.
    pub stream_error_on_invalid_http_message: bool,
    /// High watermark of what waits to be written; 0 for the codec's own.
    pub buffer_limit: usize,
    /// Where a server looks for the limits of early resets; none for their defaults.
    pub runtime: Option<Arc<dyn Runtime>>,
    /// Counters.
    pub stats: Http2Stats,
}

impl Config {
    /// The limits of early resets, as they are now.
    fn premature_limits(&self) -> PrematureLimits {
        self.runtime.as_ref().map_or_else(PrematureLimits::default, |runtime| PrematureLimits::of(&**runtime))
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("options", &self.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod interop_tests;
#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod tests;
