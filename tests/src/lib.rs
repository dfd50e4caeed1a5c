//! The differential suite: the same configuration and the same requests for Nuncio and for the real Envoy 1.40.0.
//!
//! The cases are data (`tests/cases/*.yaml`, described in the README there); `build.rs` makes one test of each. Reading
//! order: [`case`] (what a file says), [`suite`] (what happens to it), [`proxy`], [`upstream`] and [`client`] (the three
//! parties), [`compare`] (the verdict).
//!
//! [`conversation`] and [`control_plane`] are a scripted control plane, [`snapshots`] is one that serves what it is given.
//!
//! With `NUNCIO_BIN` set to the Envoy binary, Envoy is compared with itself: the check that the harness is sound.

pub mod case;
pub mod certs;
pub mod client;
pub mod compare;
pub mod control_plane;
pub mod conversation;
pub mod find;
pub mod folder;
pub mod frames;
pub mod http1;
pub mod pending;
pub mod proxy;
pub mod proxy_header;
pub mod snapshots;
pub mod suite;
pub mod text;
pub mod tls;
pub mod upstream;
pub mod yaml;
