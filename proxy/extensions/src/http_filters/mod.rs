//! HTTP filters.

pub mod on_demand;
pub mod router;
