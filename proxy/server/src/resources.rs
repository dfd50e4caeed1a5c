//! What the admin interface shows of resources that were fetched: versions, times, messages, and what was refused.
//!
//! Written by the discovery client's handlers, read by `/config_dump`. The objects themselves are with their managers.

use crate::discovered::Kind as ExtensionKind;
use crate::listeners::Origin;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// The last try to apply a resource, which failed (`UpdateFailureState`).
#[derive(Debug, Clone)]
pub struct Failure {
    /// Why.
    pub details: String,
    /// When.
    pub last_attempt: SystemTime,
    /// Version of what was refused.
    pub version: String,
    /// What was refused.
    pub bytes: Bytes,
}

impl Failure {
    /// Failed just now.
    pub fn new(details: &str, version: &str, bytes: &Bytes) -> Failure {
        Failure {
            details: details.to_owned(),
            last_attempt: SystemTime::now(),
            version: version.to_owned(),
            bytes: bytes.clone(),
        }
    }
}

/// Resources of one type, by name.
#[derive(Debug, Default)]
pub struct Kind {
    /// Version of the last response.
    pub version: String,
    origins: BTreeMap<String, Vec<(u64, Origin)>>,
    failures: BTreeMap<String, Failure>,
}

impl Kind {
    /// The object `id` was made from this; of the others of this name, those that `in_use` says are remembered.
    pub fn set(&mut self, name: &str, id: u64, origin: Origin, in_use: impl Fn(u64) -> bool) {
        let all = self.origins.entry(name.to_owned()).or_default();
        all.retain(|(other, _)| in_use(*other));
        all.push((id, origin));
        self.failures.remove(name);
    }

    /// Where the object `id` came from.
    pub fn origin(&self, name: &str, id: u64) -> Option<&Origin> {
        self.origins.get(name)?.iter().find(|(other, _)| *other == id).map(|(_, origin)| origin)
    }

    /// A version of this resource was refused.
    pub fn fail(&mut self, name: &str, failure: Failure) {
        self.failures.insert(name.to_owned(), failure);
    }

    /// The last version was taken.
    pub fn clear_failure(&mut self, name: &str) {
        self.failures.remove(name);
    }

    /// The resource is gone.
    pub fn remove(&mut self, name: &str) {
        self.origins.remove(name);
        self.failures.remove(name);
    }

    /// The object is gone.
    pub fn remove_id(&mut self, id: u64) {
        self.origins.retain(|_, all| {
            all.retain(|(other, _)| *other != id);
            !all.is_empty()
        });
    }

    /// All that are in use, by name.
    pub fn origins(&self) -> impl Iterator<Item = (&String, &Origin)> {
        self.origins.iter().flat_map(|(name, all)| all.iter().map(move |(_, origin)| (name, origin)))
    }

    /// What was refused.
    pub fn failures(&self) -> impl Iterator<Item = (&String, &Failure)> {
        self.failures.iter()
    }

    /// What was refused of this name.
    pub fn failure(&self, name: &str) -> Option<&Failure> {
        self.failures.get(name)
    }
}

/// A route table that was fetched.
#[derive(Debug, Clone, Default)]
pub struct RoutesView {
    /// Its name.
    pub name: String,
    /// What is in use.
    pub origin: Option<Origin>,
    /// What was refused last.
    pub failure: Option<Failure>,
    /// Virtual hosts that came beside it, by name: each a serialized `RouteConfiguration` of it alone.
    pub hosts: BTreeMap<Arc<str>, Bytes>,
    /// Version of the last of them and when it came.
    pub hosts_version: Option<(String, SystemTime)>,
}

/// The configuration of a filter that was fetched.
#[derive(Debug, Clone)]
pub struct ExtensionView {
    /// What is configured.
    pub kind: ExtensionKind,
    /// Its name.
    pub name: String,
    /// What is in use.
    pub origin: Option<Origin>,
    /// What was refused last.
    pub failure: Option<Failure>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Resources {
    clusters: Mutex<Kind>,
    listeners: Mutex<Kind>,
    routes: Mutex<BTreeMap<u64, RoutesView>>,
    secrets: Mutex<Kind>,
    secrets_awaited: Mutex<BTreeMap<u64, (String, SystemTime)>>,
    extensions: Mutex<BTreeMap<u64, ExtensionView>>,
    endpoints: Mutex<BTreeMap<String, (String, SystemTime)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Resources {
    /// Clusters; ids are those of the cluster objects.
    pub fn clusters(&self) -> MutexGuard<'_, Kind> {
        lock(&self.clusters)
    }

    /// Listeners: failures and the version; origins are with their manager.
    pub fn listeners(&self) -> MutexGuard<'_, Kind> {
        lock(&self.listeners)
    }

    /// Secrets; ids are those of the secrets.
    pub fn secrets(&self) -> MutexGuard<'_, Kind> {
        lock(&self.secrets)
    }

    /// The secret `id` is asked for, and has not come.
    pub fn await_secret(&self, id: u64, name: &str) {
        lock(&self.secrets_awaited).insert(id, (name.to_owned(), SystemTime::now()));
    }

    /// The secret `id` has come, or is not wanted any more.
    pub fn stop_awaiting_secret(&self, id: u64) {
        lock(&self.secrets_awaited).remove(&id);
    }

    /// Secrets that have not come, with the time when they were asked for.
    pub fn awaited_secrets(&self) -> Vec<(String, SystemTime)> {
        lock(&self.secrets_awaited).values().cloned().collect()
    }

    /// Route tables.
    pub fn routes(&self) -> Vec<RoutesView> {
        lock(&self.routes).values().cloned().collect()
    }

    /// Whether the table `id` was made from these bytes.
    pub fn routes_are(&self, id: u64, bytes: &Bytes) -> bool {
        let mut routes = lock(&self.routes);
        let Some(view) = routes.get_mut(&id) else { return false };
        let same = view.origin.as_ref().is_some_and(|origin| origin.bytes == *bytes);
        if same {
            view.failure = None;
        }
        same
    }

    /// The table `id` was made from this.
    pub fn set_routes(&self, id: u64, name: &str, origin: Origin) {
        let mut routes = lock(&self.routes);
        let view = routes.entry(id).or_default();
        view.name = name.to_owned();
        view.origin = Some(origin);
        view.failure = None;
        view.hosts_version = None;
    }

    /// The table `id` has virtual hosts beside its own: these come, those go, others stay.
    pub fn change_virtual_hosts(
        &self,
        id: u64,
        version: &str,
        added: impl Iterator<Item = (Arc<str>, Bytes)>,
        removed: &[Arc<str>],
    ) {
        let mut routes = lock(&self.routes);
        let view = routes.entry(id).or_default();
        removed.iter().for_each(|name| drop(view.hosts.remove(name)));
        view.hosts.extend(added);
        view.hosts_version = Some((version.to_owned(), SystemTime::now()));
    }

    /// This was refused for the table `id`.
    pub fn fail_routes(&self, id: u64, name: &str, failure: Failure) {
        let mut routes = lock(&self.routes);
        let view = routes.entry(id).or_default();
        view.name = name.to_owned();
        view.failure = Some(failure);
    }

    /// These virtual hosts beside the table `id` are not kept any more.
    pub fn forget_some_virtual_hosts(&self, id: u64, gone: &[Arc<str>]) {
        if let Some(view) = lock(&self.routes).get_mut(&id) {
            gone.iter().for_each(|name| drop(view.hosts.remove(name)));
        }
    }

    /// The table `id` has no virtual hosts beside its own any more.
    pub fn forget_virtual_hosts(&self, id: u64) {
        if let Some(view) = lock(&self.routes).get_mut(&id) {
            view.hosts.clear();
            view.hosts_version = None;
        }
    }

    /// The table is gone.
    pub fn forget_routes(&self, id: u64) {
        lock(&self.routes).remove(&id);
    }

    /// Configurations of filters.
    pub fn extensions(&self) -> Vec<ExtensionView> {
        lock(&self.extensions).values().cloned().collect()
    }

    /// The configuration `id` is this.
    pub fn set_extension(&self, id: u64, kind: ExtensionKind, name: &str, origin: Origin) {
        let view = ExtensionView { kind, name: name.to_owned(), origin: Some(origin), failure: None };
        lock(&self.extensions).insert(id, view);
    }

    /// This was refused for the configuration `id`.
    pub fn fail_extension(&self, id: u64, kind: ExtensionKind, name: &str, failure: Failure) {
        let mut extensions = lock(&self.extensions);
        let new = || ExtensionView { kind, name: name.to_owned(), origin: None, failure: None };
        extensions.entry(id).or_insert_with(new).failure = Some(failure);
    }

    /// What is in use has come again.
    pub fn clear_extension_failure(&self, id: u64) {
        if let Some(view) = lock(&self.extensions).get_mut(&id) {
            view.failure = None;
        }
    }

    /// The configuration is gone.
    pub fn forget_extension(&self, id: u64) {
        lock(&self.extensions).remove(&id);
    }

    /// Version of the endpoints of a cluster.
    pub fn set_endpoints_version(&self, cluster: &str, version: &str) {
        lock(&self.endpoints).insert(cluster.to_owned(), (version.to_owned(), SystemTime::now()));
    }

    /// Version of the endpoints of a cluster and when they came.
    pub fn endpoints_version(&self, cluster: &str) -> Option<(String, SystemTime)> {
        lock(&self.endpoints).get(cluster).cloned()
    }

    /// The cluster is gone.
    pub fn forget_endpoints(&self, cluster: &str) {
        lock(&self.endpoints).remove(cluster);
    }
}
