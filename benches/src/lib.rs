//! The load generators and what surrounds them; the programs are in `benches/`.
//!
//! [`bulk`] is large bodies; [`faulty`] fails; [`load`] sends (closed loop for the highest rate, open loop for latency), [`upstream`] answers, [`peers`] starts the
//! proxies, [`procfs`] reads what they cost, [`report`] prints and keeps the figures.

pub mod bulk;
pub mod faulty;
pub mod load;
pub mod peers;
pub mod procfs;
pub mod report;
pub mod upstream;
