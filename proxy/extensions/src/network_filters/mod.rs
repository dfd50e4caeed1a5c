//! Network filters.

pub mod sni_dynamic_forward_proxy;
pub mod tcp_proxy;
