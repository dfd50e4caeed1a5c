//! What is known about each resource of one type: for the admin views, and the cache of endpoints.

use std::time::SystemTime;

use rustc_hash::FxHashMap;

use crate::Resource;
use crate::status::{ResourceState, ResourceStatus};

#[derive(Debug)]
struct Entry {
    status: ResourceStatus,
    version: String,
    requested: Option<SystemTime>,
    received: Option<SystemTime>,
    accepted: Option<SystemTime>,
    rejected: Option<SystemTime>,
    /// The error, and the version it concerns.
    error: Option<Box<(String, String)>>,
    cached: Option<Box<Resource>>,
}

impl Entry {
    fn new() -> Entry {
        Entry {
            status: ResourceStatus::Requested,
            version: String::new(),
            requested: None,
            received: None,
            accepted: None,
            rejected: None,
            error: None,
            cached: None,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: FxHashMap<String, Entry>,
}

impl Table {
    pub(crate) fn requested(&mut self, name: &str, at: SystemTime) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.requested.get_or_insert(at);
        } else {
            self.entries.insert(name.to_owned(), Entry { requested: Some(at), ..Entry::new() });
        }
    }

    /// No one asks for `name` by name any more. `kept` if a wildcard may still hold it.
    pub(crate) fn unrequested(&mut self, name: &str, kept: bool) {
        if kept && let Some(entry) = self.entries.get_mut(name) {
            entry.requested = None;
        } else {
            self.entries.remove(name);
        }
    }

    fn entry(&mut self, name: &str) -> &mut Entry {
        if !self.entries.contains_key(name) {
            self.entries.insert(name.to_owned(), Entry::new());
        }
        self.entries.entry(name.to_owned()).or_insert_with(Entry::new)
    }

    pub(crate) fn accepted(&mut self, name: &str, version: &str, cached: Option<Resource>, at: SystemTime) {
        let entry = self.entry(name);
        entry.status = ResourceStatus::Acked;
        version.clone_into(&mut entry.version);
        entry.received = Some(at);
        entry.accepted = Some(at);
        entry.error = None;
        entry.cached = cached.map(Box::new);
    }

    pub(crate) fn rejected(&mut self, name: &str, version: &str, error: &str, at: SystemTime) {
        let entry = self.entry(name);
        entry.status = ResourceStatus::Nacked;
        entry.received = Some(at);
        entry.rejected = Some(at);
        entry.error = Some(Box::new((error.to_owned(), version.to_owned())));
    }

    /// The server says that there is no such resource, or it expired. `wanted` if someone asks for it by name.
    pub(crate) fn gone(&mut self, name: &str, wanted: bool, at: SystemTime) {
        if wanted && let Some(entry) = self.entries.get_mut(name) {
            let requested = entry.requested;
            let (accepted, rejected) = (entry.accepted, entry.rejected);
            *entry = Entry {
                status: ResourceStatus::DoesNotExist,
                requested,
                received: Some(at),
                accepted,
                rejected,
                ..Entry::new()
            };
        } else {
            self.entries.remove(name);
        }
    }

    pub(crate) fn timed_out(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name)
            && entry.status == ResourceStatus::Requested
        {
            entry.status = ResourceStatus::Timeout;
        }
    }

    /// Names that no one asked for by name.
    pub(crate) fn unasked(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(|(_, e)| e.requested.is_none()).map(|(name, _)| name.as_str())
    }

    /// Whether a version of `name` is held.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|e| e.accepted.is_some() && e.status != ResourceStatus::DoesNotExist)
    }

    pub(crate) fn cached(&self, name: &str) -> Option<&Resource> {
        self.entries.get(name)?.cached.as_deref()
    }

    pub(crate) fn snapshot(&self) -> Vec<ResourceState> {
        let mut states: Vec<ResourceState> = self
            .entries
            .iter()
            .map(|(name, e)| {
                let (error, rejected_version) = e.error.as_deref().cloned().unwrap_or_default();
                ResourceState {
                    name: name.clone(),
                    status: e.status,
                    version: e.version.clone(),
                    requested: e.requested,
                    received: e.received,
                    accepted: e.accepted,
                    rejected: e.rejected,
                    error,
                    rejected_version,
                }
            })
            .collect();
        states.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        states
    }
}
