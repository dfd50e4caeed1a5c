//! Extensions: one file each, and the registry that lists them.

pub mod network_filters;
