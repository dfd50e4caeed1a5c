//! HTTP: headers, codecs, the connection manager and its streams, filters, routes, access log formats.
//!
//! Reading order: what a message is (`headers`, `body`), how it arrives and leaves (`codec`), what is known about a
//! stream (`stream_info`), how filters see it (`filter`). Knows no clusters: the router filter, two floors up, does.

pub mod grpc_timeout;
pub mod headers;

pub mod codec;
pub mod conn_manager;
mod conn_manager_h2;
pub mod hcm;

pub mod active_stream;
mod client_cert;
pub mod filter;
pub mod filter_chains;
pub mod header_rules;
pub mod local_reply;
pub mod stream_info;
pub mod upstream_filters;

pub mod access_log;

pub mod matchers;
pub mod path;
pub mod route;

pub mod formatter;
pub mod hcm_rules;
pub mod header_mutation;
mod proxy_status;
