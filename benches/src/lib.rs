//! The load generators and what surrounds them; the programs are in `benches/`.
//!
//! [`bulk`] is large bodies; [`faulty`] fails; [`load`] sends (closed loop for the highest rate, open loop for latency), [`upstream`] answers, [`peers`] starts the
//! proxies, [`procfs`] reads what they cost, [`report`] prints and keeps the figures. For dynamic configuration, [`dynamic`]
//! starts a proxy with a control plane; [`churn`] changes everything while [`steady`] asks, and [`scale`] has thousands of
//! clusters.

pub mod bulk;
pub mod churn;
pub mod dynamic;
pub mod faulty;
pub mod load;
pub mod peers;
pub mod procfs;
pub mod report;
pub mod scale;
pub mod steady;
pub mod upstream;
