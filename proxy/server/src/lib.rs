//! The nuncio binary: options, assembly, workers, admin, drain.

pub mod admin;
