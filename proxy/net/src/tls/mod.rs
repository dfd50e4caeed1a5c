//! TLS on rustls and aws-lc-rs: contexts from the IR, handshakes, certificates and what is known about a session.

pub mod info;
