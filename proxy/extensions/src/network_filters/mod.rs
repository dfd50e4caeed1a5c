//! Network filters that end a chain.

pub mod tcp_proxy;
