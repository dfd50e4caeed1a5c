//! The load generator and what surrounds it; `benches/latency.rs` is the program.
//!
//! [`load`] sends (closed loop for the highest rate, open loop for latency), [`upstream`] answers, [`peers`] starts the
//! proxies, [`procfs`] reads what they cost, [`report`] prints and keeps the figures.

pub mod load;
pub mod peers;
pub mod procfs;
pub mod report;
pub mod upstream;
