//! HTTP filters.

pub mod dynamic_forward_proxy;
pub mod on_demand;
pub mod router;
