//! Listeners by name, in the order of adding, with the addresses they have. No operation looks at the others.

use super::{Origin, exclusive};
use crate::init::InitTargets;
use nuncio_config::address::Address;
use nuncio_config::listener::{ListenAddress, ListenerConfig};
use nuncio_net::listener::{Listener, PreparedUpdate};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// One listener: what is in use and what warms.
pub(super) struct Managed {
    pub(super) name: Arc<str>,
    pub(super) dynamic: bool,
    pub(super) active: Option<Active>,
    pub(super) warming: Option<Warming>,
}

/// What a listener needs; given up when the listener goes.
#[derive(Default)]
pub(super) struct Needs(pub(super) Arc<InitTargets>);

impl Drop for Needs {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// What is in use.
pub(super) struct Active {
    pub(super) listener: Arc<Listener>,
    /// The first listeners of the server are in use before they have it.
    pub(super) needs: Needs,
    pub(super) fingerprint: u64,
    pub(super) origin: Origin,
}

/// What waits.
pub(super) struct Warming {
    /// Tells it from one that came later.
    pub(super) id: u64,
    pub(super) kind: WarmingKind,
    pub(super) config: Arc<ListenerConfig>,
    pub(super) fingerprint: u64,
    pub(super) needs: Needs,
    pub(super) origin: Origin,
}

pub(super) enum WarmingKind {
    /// A listener that will run.
    New(Arc<Listener>),
    /// Filter chains for the listener that runs.
    InPlace(PreparedUpdate),
}

impl Managed {
    /// The fingerprint of the configuration that came last.
    pub(super) fn newest(&self) -> Option<u64> {
        let warming = self.warming.as_ref().map(|warming| warming.fingerprint);
        warming.or_else(|| self.active.as_ref().map(|active| active.fingerprint))
    }

    fn addresses(&self) -> Vec<Address> {
        let active = self.active.as_ref().map(|active| active.listener.config());
        let configs = active.iter().chain(self.warming.as_ref().map(|warming| &warming.config));
        configs.flat_map(|config| exclusive(config).cloned()).collect()
    }

    fn counts(&self) -> (usize, usize) {
        (usize::from(self.active.is_some()), usize::from(self.warming.is_some()))
    }
}

#[derive(Default)]
pub(super) struct Table {
    by_place: BTreeMap<u64, Managed>,
    places: HashMap<Arc<str>, u64>,
    addresses: HashMap<Address, Arc<str>>,
    next: u64,
    /// Listeners in use.
    pub(super) active: usize,
    /// Listeners of which something waits.
    pub(super) warming: usize,
}

impl Table {
    /// A number that was not used before.
    pub(super) fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn len(&self) -> usize {
        self.by_place.len()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Managed> {
        self.by_place.values()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Managed> {
        self.by_place.get(self.places.get(name)?)
    }

    /// Adds a listener whose name is new.
    pub(super) fn insert(&mut self, managed: Managed) {
        let place = self.next_id();
        self.places.insert(managed.name.clone(), place);
        self.count_in(&managed);
        self.by_place.insert(place, managed);
    }

    /// Changes a listener.
    pub(super) fn edit<T>(&mut self, name: &str, change: impl FnOnce(&mut Managed) -> T) -> Option<T> {
        let place = *self.places.get(name)?;
        let mut managed = self.by_place.remove(&place)?;
        self.count_out(&managed);
        let result = change(&mut managed);
        self.count_in(&managed);
        self.by_place.insert(place, managed);
        Some(result)
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Managed> {
        let managed = self.by_place.remove(&self.places.remove(name)?)?;
        self.count_out(&managed);
        Some(managed)
    }

    fn count_in(&mut self, managed: &Managed) {
        let (active, warming) = managed.counts();
        self.active += active;
        self.warming += warming;
        for address in managed.addresses() {
            self.addresses.insert(address, managed.name.clone());
        }
    }

    fn count_out(&mut self, managed: &Managed) {
        let (active, warming) = managed.counts();
        self.active -= active;
        self.warming -= warming;
        for address in managed.addresses() {
            self.addresses.remove(&address);
        }
    }

    /// An address of `config` that a listener of another name has, and that name.
    pub(super) fn address_of_another(&self, config: &ListenerConfig) -> Option<(Arc<str>, String)> {
        let (address, name) = exclusive(config)
            .filter_map(|address| Some((address, self.addresses.get(address)?)))
            .find(|(_, name)| **name != config.name)?;
        let shown = ListenAddress::from(address.clone());
        Some((name.clone(), shown.to_string()))
    }
}
