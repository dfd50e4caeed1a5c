//! What the callbacks of a handshake learn, kept per connection.
//!
//! rustls' certificate resolvers and verifiers are shared by all connections of a context and return little. While a
//! handshake is polled, its [`Record`] lies in a thread-local, where the callbacks write into it.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use nuncio_base::clock;
use rustls::CommonState;
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;

use super::certificates::OwnCertificate;
use super::info::{TlsInfo, cipher_name, group_name, version_name};
use super::stats::TlsStats;
use super::verify::VerifyFailure;

#[derive(Default)]
pub(super) struct Record {
    /// Certificate that this side showed.
    pub(super) local: Option<Arc<OwnCertificate>>,
    /// Why the peer's certificate was refused.
    pub(super) failure: Option<VerifyFailure>,
    /// The peer's certificate was verified.
    pub(super) validated: bool,
    /// The peer's chain, noted when it is refused.
    pub(super) peer: Vec<CertificateDer<'static>>,
    /// Signature algorithm of the peer.
    pub(super) sigalg: &'static str,
    /// Its secrets go to the key log.
    pub(super) logs_keys: bool,
    /// When it began.
    pub(super) began: Option<Instant>,
}

thread_local! {
    static CURRENT: RefCell<Record> = RefCell::new(Record::default());
}

/// Writes into the record of the handshake that is being polled.
pub(super) fn note(write: impl FnOnce(&mut Record)) {
    CURRENT.with_borrow_mut(write);
}

/// Whether secrets of the handshake that is being polled go to the key log.
pub(super) fn logs_keys() -> bool {
    CURRENT.with_borrow(|record| record.logs_keys)
}

/// Polls `future` with `record` in place.
pub(super) async fn recorded<F: Future>(record: &mut Record, future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        CURRENT.with_borrow_mut(|current| std::mem::swap(current, record));
        let result = future.as_mut().poll(cx);
        CURRENT.with_borrow_mut(|current| std::mem::swap(current, record));
        result
    })
    .await
}

/// Counts a finished handshake and describes its session.
pub(super) fn finish(state: &CommonState, record: Record, enforced: bool, stats: &TlsStats) -> TlsInfo {
    let resumed = state.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    let version = version_name(state.protocol_version());
    let cipher = state.negotiated_cipher_suite().map_or("", |suite| cipher_name(suite.suite()));
    let group = state.negotiated_key_exchange_group().map_or("", |group| group_name(group.name()));
    stats.agreed(version, cipher, group, record.sigalg);
    if resumed {
        stats.fixed.session_reused().inc();
    }
    let peer_certificates: Box<[_]> = state.peer_certificates().unwrap_or_default().into();
    if peer_certificates.is_empty() {
        stats.fixed.no_certificate().inc();
    }
    TlsInfo {
        version,
        cipher,
        group,
        session_id: Box::default(),
        resumed,
        peer_validated: !peer_certificates.is_empty() && (record.validated || resumed && enforced),
        peer_certificates,
        local_certificate: record.local.map(|own| own.info.clone()),
        handshake: record.began.map(|began| (began, clock::now())),
        peer: Default::default(),
    }
}

/// What is known about a session whose handshake failed.
pub(super) fn failed_session(record: Record) -> Option<Box<TlsInfo>> {
    if record.local.is_none() && record.peer.is_empty() {
        return None;
    }
    Some(Box::new(TlsInfo {
        version: "",
        cipher: "",
        group: "",
        session_id: Box::default(),
        resumed: false,
        peer_validated: false,
        peer_certificates: record.peer.into(),
        local_certificate: record.local.map(|own| own.info.clone()),
        handshake: None,
        peer: Default::default(),
    }))
}
