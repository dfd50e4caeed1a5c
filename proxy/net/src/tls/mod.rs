//! TLS on rustls and aws-lc-rs: contexts from the IR, handshakes, certificates and what is known about a session.
//!
//! [`server::ServerTlsContext`] belongs to a filter chain, [`client::ClientTlsContext`] to a cluster. Both read their data
//! sources when they are built, and again when [`watch`] sees a file change: the new state is swapped in whole, or the old
//! one is kept when the new files are bad. What rustls cannot do (TLS 1.0, CBC, RSA key exchange) is an error that names it.

pub mod info;

mod der;
mod encrypted_key;
mod error;
mod handshake;
pub mod parameters;
mod pbes2;
mod pkcs12;
pub mod secrets;
mod sources;
mod stats;
mod tickets;
mod verify;

mod certificates;
pub mod client;
pub mod server;
mod server_configs;
pub mod watch;

pub use certificates::{ContextCertificates, LoadedCertificate};
pub use error::{HandshakeError, TlsConfigError, plain_text_reason};
pub use stats::TlsStats;

/// Seeds the random generator of aws-lc-rs on a thread of its own. The seeding takes tens of milliseconds in a new
/// process; called first thing at start, it is over before the first handshake needs it.
pub fn warm_up() {
    let spawned = std::thread::Builder::new().name("tls-warm-up".to_owned()).spawn(|| {
        let mut byte = [0];
        // A failure here shows again, with a connection to blame, at the first handshake.
        let _ = aws_lc_rs::rand::fill(&mut byte);
    });
    if let Err(error) = spawned {
        tracing::debug!(%error, "no thread for seeding the random generator; the first handshake will do it");
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Contexts for the tests of this crate.

    pub(crate) use super::certificates::tests::self_signed;
    pub(crate) use super::server::tests::{downstream, upstream};
}
