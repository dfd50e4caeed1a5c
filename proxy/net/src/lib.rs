//! Network: addresses, sockets, listeners, filter chain selection, TLS and splice.
