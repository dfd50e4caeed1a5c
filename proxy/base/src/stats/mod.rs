//! Stats: counters, gauges, histograms and text readouts under Envoy's names.
//!
//! A component declares its stats once with [`stat_family!`](crate::stat_family) and gets a handle when it is built:
//! `ClusterStats::new(&registry, "cluster.foo.")`. Counting is one relaxed add to the calling worker's own shard; no
//! hashing, formatting or allocation (a shard's memory is allocated at its first count). Names are the prefix plus a
//! static suffix, put together only for output; tags are extracted only for output. When the last handle is dropped,
//! the stats leave the output.
//!
//! Names that are known only at run time use [`Registry::counter`], [`Registry::gauge`] and
//! [`Registry::text_readout`]; response codes use [`CodeStats`]. This module flushes nothing by itself: the server calls
//! [`Registry::merge_histograms`] at every flush interval.

mod block;
mod code;
mod family;
mod histogram;
pub mod output;
mod registry;
pub mod tags;

pub use block::{Block, Counter, CounterRef, FamilyDesc, Gauge, GaugeRef, Histogram, HistogramRef, Unit};
pub use code::CodeStats;
pub use histogram::{Bucket, HistogramData, LogLinear, QUANTILES};
pub use registry::{
    DEFAULT_BUCKETS, HistogramSnapshot, HostMetric, NameMatcher, Registry, Snapshot, StatName, StatValue, StatsConfig,
    TextReadout,
};
