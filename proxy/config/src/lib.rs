//! Configuration: Envoy's messages in, the proxy's own validated representation out.
