//! HTTP/2: the `h2` crate behind the codec traits, with Envoy's limits around it.
//!
//! `guard` stands between the socket and `h2` and counts frames; `fields` converts header lists and checks requests;
//! `keepalive` sends pings; `premature` judges rapid resets; `refused` stands for
//! a stream that was refused; `server` and `client` are the two ends.

pub mod client;
mod fields;
pub mod frame;
pub mod guard;
pub mod hpack;
mod keepalive;
mod premature;
mod refused;
pub mod server;
mod stream;

pub use client::{ClientConfig, H2Client, H2ClientStream, H2Sender};
pub use premature::PrematureResets;
pub use refused::RefusedStream;
pub use server::{H2Request, H2Server, H2ServerStream, ServerConfig};

#[cfg(test)]
mod tests;
