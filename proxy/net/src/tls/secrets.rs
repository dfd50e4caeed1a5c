//! Secrets by name that come from outside while the process runs: certificates, validation contexts, session ticket keys.
//!
//! A TLS context that refers to a secret gets it here when it is built; who fetches it is told, and told again when nobody
//! needs it any more. A secret that is set reaches every context that uses it: new handshakes take the new state,
//! connections that exist stay.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use nuncio_base::stats::Counter;
use nuncio_config::data_source::DataSource;
use nuncio_config::decode::StaticSecret;
use nuncio_config::tls::{
    CertificateSource, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, ValidationSource,
};
use tokio::sync::watch;

use super::error::TlsConfigError;
use super::sources;

/// What happens to the secrets of the process.
pub enum SecretEvent {
    /// Somebody needs this one.
    Wanted(Weak<Secret>),
    /// Nobody needs the one with this id.
    Gone(u64),
}

type OnEvent = Box<dyn Fn(SecretEvent) + Send + Sync>;

/// What a secret is used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum SecretKind {
    Certificate,
    Validation,
    TicketKeys,
}

type Key = (SecretKind, Box<str>, Bytes);

/// All secrets in use. Cheap to clone.
#[derive(Clone, Default)]
pub struct Secrets {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    by_key: Mutex<HashMap<Key, Weak<Secret>>>,
    on_event: OnceLock<OnEvent>,
}

/// A TLS context that uses secrets.
pub(super) trait SecretUser: Send + Sync {
    /// Takes the secrets as they are now.
    fn refresh(&self) -> Result<(), TlsConfigError>;
}

/// One secret.
pub struct Secret {
    /// Unique in the process.
    pub id: u64,
    /// Its name.
    pub name: Box<str>,
    /// Serialized `ConfigSource`.
    pub source: Bytes,
    kind: SecretKind,
    value: Mutex<Option<StaticSecret>>,
    /// A digest of the files that the value names, as they were when they were last looked at.
    files: Mutex<[u8; 32]>,
    failed_rotations: OnceLock<Counter>,
    users: Mutex<Vec<Weak<dyn SecretUser>>>,
    ready: Arc<watch::Sender<bool>>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the value.
        f.debug_struct("Secret").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        if let Some(on_event) = self.shared.on_event.get() {
            on_event(SecretEvent::Gone(self.id));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Secrets {
    /// Tells `on_event` from now on which secrets are needed. Once only; before anything is built.
    pub fn on_event(&self, on_event: impl Fn(SecretEvent) + Send + Sync + 'static) {
        let _ = self.shared.on_event.set(Box::new(on_event));
    }

    fn get(&self, config: &SdsSecretConfig, kind: SecretKind) -> Arc<Secret> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let source = config.source.clone().unwrap_or_default();
        let key = (kind, config.name.clone(), source.clone());
        let made = {
            let mut by_key = lock(&self.shared.by_key);
            if let Some(found) = by_key.get(&key).and_then(Weak::upgrade) {
                return found;
            }
            let made = Arc::new(Secret {
                id: NEXT.fetch_add(1, Ordering::Relaxed),
                name: config.name.clone(),
                source,
                kind,
                value: Mutex::default(),
                files: Mutex::default(),
                failed_rotations: OnceLock::new(),
                users: Mutex::default(),
                ready: Arc::new(watch::channel(false).0),
                shared: self.shared.clone(),
            });
            by_key.retain(|_, secret| secret.strong_count() > 0);
            by_key.insert(key, Arc::downgrade(&made));
            made
        };
        if let Some(on_event) = self.shared.on_event.get() {
            on_event(SecretEvent::Wanted(Arc::downgrade(&made)));
        }
        made
    }

    /// The secrets that a context refers to, in its order.
    pub(super) fn of(&self, common: &CommonTlsContext) -> Vec<Arc<Secret>> {
        let certificates = common.certificates.iter().filter_map(|source| match source {
            CertificateSource::Sds(config) => Some(self.get(config, SecretKind::Certificate)),
            CertificateSource::Static(_) => None,
        });
        let mut all: Vec<_> = certificates.collect();
        if let Some(ValidationSource::Sds { secret, .. }) = &common.validation {
            all.push(self.get(secret, SecretKind::Validation));
        }
        all
    }
}

impl Secrets {
    /// The session ticket keys that a server's context refers to.
    pub(super) fn ticket_keys(&self, config: &SdsSecretConfig) -> Arc<Secret> {
        self.get(config, SecretKind::TicketKeys)
    }
}

impl Secret {
    /// Sets the value; every context that uses it takes it, or it is refused and the old one stays.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn set(&self, value: StaticSecret) -> Result<(), String> {
        let fits = match &value {
            StaticSecret::Certificate(_) => self.kind == SecretKind::Certificate,
            StaticSecret::Validation(_) => self.kind == SecretKind::Validation,
            StaticSecret::TicketKeys(_) => self.kind == SecretKind::TicketKeys,
            StaticSecret::Generic(_) => false,
        };
        if !fits {
            let wanted = match self.kind {
                SecretKind::Certificate => "tls_certificate",
                SecretKind::Validation => "validation_context",
                SecretKind::TicketKeys => "session_ticket_keys",
            };
            return Err(format!("Unexpected type of secret '{}': a {wanted} is needed", self.name));
        }
        let old = lock(&self.value).replace(value);
        let users: Vec<_> = lock(&self.users).iter().filter_map(Weak::upgrade).collect();
        for user in &users {
            if let Err(error) = user.refresh() {
                *lock(&self.value) = old;
                for user in &users {
                    // What they had was good.
                    let _ = user.refresh();
                }
                return Err(error.problem);
            }
        }
        self.look_at_files();
        self.set_ready();
        Ok(())
    }

    /// Nobody waits for it any longer, whether it has come or not.
    pub fn set_ready(&self) {
        self.ready.send_replace(true);
    }

    /// Whether it has come, or nobody waits for it.
    pub fn readiness(&self) -> &Arc<watch::Sender<bool>> {
        &self.ready
    }

    /// Waits until it has come, or nobody waits for it.
    pub async fn ready(&self) {
        // The sender lives as long as `self`.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Counts from now on whenever files that it names change to what cannot be used (`sds.NAME.key_rotation_failed`).
    pub fn count_failed_rotations(&self, counter: Counter) {
        let _ = self.failed_rotations.set(counter);
    }

    /// The files are what they are now; says whether they were others when this was last asked.
    pub(super) fn look_at_files(&self) -> bool {
        let now = sources::digest(&lock(&self.value).as_ref().map(files).unwrap_or_default());
        std::mem::replace(&mut *lock(&self.files), now) != now
    }

    /// A context could not take the files as they are now.
    pub(super) fn rotation_failed(&self) {
        if self.look_at_files()
            && let Some(counter) = self.failed_rotations.get()
        {
            counter.inc();
        }
    }

    /// Whether no value of it has come yet.
    pub fn is_missing(&self) -> bool {
        lock(&self.value).is_none()
    }

    fn value(&self) -> Option<StaticSecret> {
        lock(&self.value).clone()
    }

    pub(super) fn used_by(&self, user: Weak<dyn SecretUser>) {
        let mut users = lock(&self.users);
        users.retain(|user| user.strong_count() > 0);
        users.push(user);
    }
}

/// What a value reads.
fn files(value: &StaticSecret) -> Vec<&DataSource> {
    match value {
        StaticSecret::Certificate(certificate) => {
            let more = certificate.password.iter().chain(&certificate.ocsp_staple);
            [&certificate.chain, &certificate.key].into_iter().chain(more).collect()
        }
        StaticSecret::Validation(context) => context.trusted_ca.iter().chain(&context.crl).collect(),
        StaticSecret::TicketKeys(keys) => keys.iter().collect(),
        StaticSecret::Generic(_) => Vec::new(),
    }
}

/// Session ticket keys; None while they are missing.
fn resolve_ticket_keys(secret: &Secret) -> Option<Vec<DataSource>> {
    match secret.value() {
        Some(StaticSecret::TicketKeys(keys)) => Some(keys),
        _ => None,
    }
}

/// The context with its secrets in place; None while one is missing.
pub(super) fn resolve(common: &CommonTlsContext, secrets: &[Arc<Secret>]) -> Option<CommonTlsContext> {
    let mut values = secrets.iter().map(|secret| secret.value());
    let mut resolved = common.clone();
    for source in &mut resolved.certificates {
        if let CertificateSource::Sds(_) = source {
            let Some(Some(StaticSecret::Certificate(certificate))) = values.next() else { return None };
            *source = CertificateSource::Static(certificate);
        }
    }
    if let Some(ValidationSource::Sds { default, .. }) = &resolved.validation {
        let Some(Some(StaticSecret::Validation(context))) = values.next() else { return None };
        let merged = match default {
            Some(default) => context.merged_over((**default).clone()),
            None => *context,
        };
        resolved.validation = Some(ValidationSource::Static(merged));
    }
    Some(resolved)
}

/// As [`resolve`], of a server, whose session ticket keys are the last secret where they are fetched.
pub(super) fn resolve_server(
    template: &Arc<DownstreamTlsContext>,
    secrets: &[Arc<Secret>],
) -> Option<Arc<DownstreamTlsContext>> {
    if secrets.is_empty() {
        return Some(template.clone());
    }
    let (keys, of_common) = match secrets.split_last() {
        Some((keys, rest)) if template.session_ticket_keys_sds.is_some() => (Some(keys), rest),
        _ => (None, secrets),
    };
    let common = resolve(&template.common, of_common)?;
    let session_ticket_keys = match keys {
        Some(keys) => resolve_ticket_keys(keys)?,
        None => template.session_ticket_keys.clone(),
    };
    Some(Arc::new(DownstreamTlsContext { common, session_ticket_keys, ..(**template).clone() }))
}

#[cfg(test)]
mod tests {
    use super::super::TlsStats;
    use super::super::server::ServerTlsContext;
    use super::super::server::tests::downstream;
    use super::*;
    use nuncio_base::stats::{Registry, StatsConfig};

    #[test]
    fn session_ticket_keys_come_by_name_and_bad_ones_leave_the_old() {
        let mut context = downstream();
        let source = Some(Bytes::from_static(b"source"));
        context.session_ticket_keys_sds = Some(SdsSecretConfig { name: "keys".into(), source });
        let stats = Arc::new(TlsStats::server(&Registry::new(1, StatsConfig::default()), "listener.x."));
        let server = ServerTlsContext::with_secrets(Arc::new(context), stats, &Secrets::default()).expect("a context");
        let [secret] = server.secrets() else { panic!("one secret") };
        let chains = || server.certificates().chains.len();
        let keys = |length: usize| StaticSecret::TicketKeys(vec![DataSource::Inline(vec![1; length])]);
        assert_eq!((&*secret.name, chains()), ("keys", 0), "nothing serves before the keys are there");
        let error = secret.set(StaticSecret::Generic(None)).expect_err("another type");
        assert_eq!(error, "Unexpected type of secret 'keys': a session_ticket_keys is needed");
        assert!(secret.set(keys(79)).is_err() && chains() == 0);
        secret.set(keys(80)).expect("keys");
        assert_eq!((chains(), *secret.readiness().borrow()), (1, true));
        let error = secret.set(keys(79)).expect_err("too short");
        assert!(error.contains("Length 79, expected length 80"), "{error}");
        assert!(matches!(resolve_ticket_keys(secret).as_deref(), Some([DataSource::Inline(key)]) if key.len() == 80));
    }

    #[test]
    fn files_of_a_secret_that_change_to_what_is_bad_are_counted_once_for_it() {
        use super::super::watch::Reload as _;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys");
        let write = |fill: u8, length: usize| std::fs::write(&path, vec![fill; length]).expect("written");
        let mut context = downstream();
        let source = Some(Bytes::from_static(b"source"));
        context.session_ticket_keys_sds = Some(SdsSecretConfig { name: "keys".into(), source });
        let registry = Registry::new(1, StatsConfig::default());
        let stats = Arc::new(TlsStats::server(&registry, "listener.x."));
        let server = ServerTlsContext::with_secrets(Arc::new(context), stats, &Secrets::default()).expect("a context");
        let [secret] = server.secrets() else { panic!("one secret") };
        let counter = registry.counter("sds.keys.key_rotation_failed");
        secret.count_failed_rotations(counter.clone());
        write(1, 80);
        secret
            .set(StaticSecret::TicketKeys(vec![DataSource::File { path: path.clone(), watched_directory: None }]))
            .expect("keys");
        assert!(!secret.is_missing() && !server.reload().expect("as they were"));
        write(1, 79);
        assert!(server.reload().is_err() && server.reload().is_err());
        assert_eq!(counter.value(), 1);
        write(2, 80);
        assert!(server.reload().expect("good ones"));
        write(2, 79);
        assert!(server.reload().is_err());
        assert_eq!(counter.value(), 2);
    }
}
