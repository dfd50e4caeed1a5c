//! Extensions: one file or folder each, and the registry that lists them.
//!
//! Reading order: the registry, then what it lists. An extension uses the floors below and no other extension.

pub mod on_demand;
pub mod parts;
pub mod registry;

pub mod access_loggers;
pub mod http_filters;
pub mod network_filters;

/// The page about writing a filter; its example is compiled by the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/extending.md")]
mod extending {}
