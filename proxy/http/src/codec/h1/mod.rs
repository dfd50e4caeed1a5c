//! HTTP/1: an own codec, so that idle connections own no buffers and a proxied request costs two reads and two writes.
//!
//! `request` and `response` turn bytes into heads (`parse` is what they share), `body` into body pieces and trailers, both without I/O; `encode` formats heads and
//! queues what is to be written; `server` and `client` put them on a byte stream. Sizes and strictness are Envoy's,
//! except that line ends, folds, Host and targets which Envoy repairs are refused.

pub mod body;
pub mod client;
pub(super) mod encode;
pub(super) mod input;
pub mod parse;
pub mod request;
pub mod response;
pub mod server;

pub use client::{ClientConfig, H1Client};
pub use parse::Limits;
pub use server::{Finish, H1Server, Request, RequestEvent, ServerConfig};

#[cfg(test)]
mod parse_tests;
#[cfg(test)]
mod tests;
