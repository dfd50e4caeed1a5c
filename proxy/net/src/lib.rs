//! Network: addresses, sockets, listeners, filter chain selection, TLS and splice.
//!
//! What a connection is ([`connection::Connection`]) and how one comes to be: accepted by a [`listener`], looked at by
//! listener filters, given to a filter chain and wrapped in TLS; or opened towards an upstream by [`socket`] and [`tls`].
//! Nothing here knows HTTP, routes or clusters.

pub mod address;

pub mod interfaces;
pub mod socket;

pub mod chain_matcher;
pub mod filter_chain;

pub mod listener_filters;

pub mod listener;

pub mod connection;
mod io;
mod meter;

pub mod tls;

pub mod proxy_protocol_header;

pub mod splice;

mod sys;

pub use sys::{Allocator, Mapped, committed_memory, release_free_memory, release_program_pages};
