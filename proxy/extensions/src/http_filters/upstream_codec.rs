//! `envoy.filters.http.upstream_codec`: where a list of upstream HTTP filters ends.
//!
//! It has nothing to configure and nothing to do: the router hands what comes out of the filters to the codec of the
//! connection. A list without it at its end is refused, as in Envoy.

use crate::registry::HttpFilterEntry;

/// The filter in the registry.
pub const ENTRY: HttpFilterEntry = HttpFilterEntry {
    name: "envoy.filters.http.upstream_codec",
    message: "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec",
    terminal: true,
    build: |_, _, _| Ok(()),
};
