//! HTTP filters.

pub mod dynamic_forward_proxy;
pub mod header_mutation;
pub mod on_demand;
mod query;
pub mod router;
pub mod upstream_codec;
