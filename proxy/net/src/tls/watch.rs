//! Reloads TLS contexts when their files change, and lists the certificates of all contexts.
//!
//! Lives on the control thread. Folders are watched, not files: certificates are replaced by renames, on Kubernetes by
//! swapping the `..data` link of the folder. Every event leads to a comparison of the contents, so that it does not
//! matter what kind it was. A pair that does not fit (key written, certificate not yet) is refused and the old one kept;
//! the event for the other file brings the next try.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use super::certificates::ContextCertificates;
use super::error::TlsConfigError;
use super::secrets::Secrets;

/// Events within this time lead to one look at the files.
const SETTLE: Duration = Duration::from_millis(50);

/// An event so long ago cannot have come between reading the files of a context and adding it.
const RECENT: Duration = Duration::from_secs(60);

/// A context that can be read again.
pub trait Reload: Send + Sync {
    /// Folders to watch, and the files in them.
    fn watched(&self) -> Vec<(PathBuf, PathBuf)>;

    /// Reads the files again if they have changed; says whether the context is a new one now.
    ///
    /// # Errors
    /// What is wrong with the new files; the old state stays.
    fn reload(&self) -> Result<bool, TlsConfigError>;

    /// Certificates for `/certs`.
    fn context_certificates(&self) -> ContextCertificates;
}

/// All TLS contexts of the process. Cheap to clone.
#[derive(Clone, Default)]
pub struct TlsContexts {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for TlsContexts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsContexts").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Inner {
    secrets: Secrets,
    state: Mutex<Watched>,
    events: Arc<Events>,
}

/// What the watcher has seen.
#[derive(Default)]
struct Events {
    changed: Notify,
    last: Mutex<Option<Instant>>,
}

impl Events {
    fn happened(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.changed.notify_one();
    }

    fn is_recent(&self) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|at| at.elapsed() < RECENT)
    }
}

#[derive(Default)]
struct Watched {
    contexts: Vec<Weak<dyn Reload>>,
    folders: BTreeSet<PathBuf>,
    watcher: Option<RecommendedWatcher>,
}

impl TlsContexts {
    /// No contexts yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The secrets that contexts share.
    pub fn secrets(&self) -> &Secrets {
        &self.inner.secrets
    }

    /// Watches the files of contexts that have got secrets since they were added.
    pub fn watch_again(&self) {
        let mut state = self.lock();
        let contexts: Vec<_> = state.contexts.iter().filter_map(Weak::upgrade).collect();
        for (folder, _) in contexts.iter().flat_map(|context| context.watched()) {
            self.watch(&mut state, folder);
        }
    }

    /// Adds a context. It leaves by itself when its last user drops it. What has changed since its files were read is seen.
    pub fn add(&self, context: &Arc<impl Reload + 'static>) {
        let context: Arc<dyn Reload> = context.clone();
        let folders: Vec<_> = context.watched().into_iter().map(|(folder, _)| folder).collect();
        let mut state = self.lock();
        state.contexts.retain(|context| context.strong_count() > 0);
        state.contexts.push(Arc::downgrade(&context));
        for folder in folders {
            self.watch(&mut state, folder);
        }
        if self.inner.events.is_recent() {
            self.inner.events.changed.notify_one();
        }
    }

    fn watch(&self, state: &mut Watched, folder: PathBuf) {
        if state.folders.contains(&folder) {
            return;
        }
        if state.watcher.is_none() {
            let events = self.inner.events.clone();
            match notify::recommended_watcher(move |_event| events.happened()) {
                Ok(watcher) => state.watcher = Some(watcher),
                Err(error) => {
                    tracing::warn!(%error, "certificate files cannot be watched; changes need a restart");
                    return;
                }
            }
        }
        let Some(watcher) = &mut state.watcher else { return };
        match watcher.watch(&folder, RecursiveMode::NonRecursive) {
            Ok(()) => {
                state.folders.insert(folder);
                // Its files were read before it was watched.
                self.inner.events.changed.notify_one();
            }
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "the folder of certificate files cannot be watched");
            }
        }
    }

    /// Reloads contexts whenever a watched folder changes. Runs on the control thread until it is dropped.
    pub async fn run(&self) {
        loop {
            self.inner.events.changed.notified().await;
            tokio::time::sleep(SETTLE).await;
            self.reload();
        }
    }

    /// Looks at the files of all contexts now; returns how many contexts are new.
    pub fn reload(&self) -> usize {
        let contexts: Vec<_> = self.lock().contexts.iter().filter_map(Weak::upgrade).collect();
        let mut count = 0;
        for context in contexts {
            match context.reload() {
                Ok(true) => count += 1,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "changed certificate files are refused; the old ones stay in use"),
            }
        }
        if count > 0 {
            tracing::info!(contexts = count, "certificate files have changed and are in use");
        }
        count
    }

    /// The certificates of every context, for `/certs`.
    pub fn certificates(&self) -> Vec<ContextCertificates> {
        self.lock().contexts.iter().filter_map(Weak::upgrade).map(|context| context.context_certificates()).collect()
    }

    /// Whole days until the first certificate ends; 0 when one has ended, none without certificates
    /// (`server.days_until_first_cert_expiring`).
    pub fn days_until_first_expiration(&self, now: SystemTime) -> Option<u32> {
        let first = self.certificates().iter().filter_map(ContextCertificates::first_expiration).min()?;
        Some(days_until(first, now))
    }
}

/// Whole days from `now` until `end`; 0 when it is over.
pub fn days_until(end: SystemTime, now: SystemTime) -> u32 {
    end.duration_since(now).map_or(0, |left| u32::try_from(left.as_secs() / 86_400).unwrap_or(u32::MAX))
}
