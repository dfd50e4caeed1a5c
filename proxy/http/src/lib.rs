//! HTTP: codecs, connection manager, streams, filters, routes, access log formats.
