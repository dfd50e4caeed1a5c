//! Routes: which virtual host and route a request gets, and what the route does to it.
//!
//! Reading order: `table` (the one match function), `matching` (matcher trees), `index`, `joined` and `trie` (how it avoids scanning), `entry` (a compiled
//! route), `scoped` (a table for each scope), `active` (a route pinned by a request, with its cluster), `policies` (what the router acts on),
//! `rate_limit`, `rewrite`, `redirect` and `stats`. Built from
//! [`nuncio_config::route`]; shared by all workers. Clusters are only names here.

pub mod active;
pub mod entry;
mod index;
mod joined;
pub(crate) mod matching;
pub mod policies;
pub mod rate_limit;
pub mod redirect;
pub mod rewrite;
pub mod scoped;
pub mod stats;
pub mod table;
mod trie;

pub use active::ActiveRoute;
pub(crate) use entry::read;
pub use entry::{
    BuildContext, DirectResponseBody, FilterConfigs, Mismatch, PerFilterDecoder, RouteEntry, VirtualCluster,
    VirtualHostEntry,
};
pub use policies::{HashPolicies, InternalRedirect, Mirror, RetryConditions};
pub use rate_limit::{Descriptor, DescriptorInputs, RateLimits};
pub use scoped::{Routes, Scope, ScopeKeyBuilder, ScopedRoutes, Scopes};
pub use stats::RequestStats;
pub use table::{BuildError, DomainRule, RouteOutcome, RouteRequest, RouteTable, Tracer};
