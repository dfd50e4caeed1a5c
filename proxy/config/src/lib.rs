//! Configuration: Envoy's messages in, the proxy's own validated representation (IR) out.
//!
//! Reading order: how text becomes messages, what is checked on the way, then one file per API area with
//! the IR types on top and their decoding from protobuf below. Nothing here knows sockets, threads or tokio.

// Envoy still accepts fields that it calls deprecated, and so does the proxy.
#![allow(deprecated)]

pub mod constraints;
pub mod corpus;
pub mod descriptors;
pub mod diagnostics;
pub mod ingest;
pub mod paths;
pub mod support;

pub mod decode;
mod extensions;

pub mod access_log;
pub mod address;
pub mod bootstrap;
pub mod cluster;
pub mod config_source;
pub mod data_source;
pub mod discovered;
pub mod hcm;
pub mod header_mutation;
pub mod listener;
pub mod matchers;
pub mod matching;
mod overload;
pub mod proxy_protocol;
pub mod route;
pub mod router;
pub mod tcp_proxy;
pub mod tls;
pub mod typed_config;

pub use diagnostics::{ConfigError, Position, Report};
pub use paths::FieldPath;
