//! Fuzz targets as plain functions: each takes arbitrary bytes, must not panic, and checks what must hold.
//!
//! A fuzzer calls them with new input; `tests/corpus.rs` replays the kept input of `corpus/<target>/` with
//! `cargo test`. They do no I/O.

pub mod h1;
pub mod h2;
pub mod routes;
pub mod xds;

/// A fuzz target: its name, which is its folder in `corpus/`, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("h1_head", h1::head),
    ("h1_chunked", h1::chunked),
    ("h2_frames", h2::frames),
    ("hpack", h2::header_blocks),
    ("formatter", routes::formatter),
    ("path", routes::path),
    ("route_matcher", routes::route_matcher),
    ("xds_stream", xds::stream),
];
