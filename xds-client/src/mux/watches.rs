//! Who asked for what of one type, and who is to be told about a resource.
//!
//! Names are indexed, so that one endpoint update among ten thousand subscriptions touches one of them.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};

use crate::names::{canonical, collection_of, is_xdstp};
use crate::{Interest, Resource};

/// The name that stands for everything.
pub(crate) const WILDCARD: &str = "*";

/// One subscription of a mux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub(crate) u64);

/// How the names that all subscriptions together ask for have changed. [`WILDCARD`] counts as a name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) added: Vec<String>,
    pub(crate) removed: Vec<String>,
}

#[derive(Debug)]
struct Watch {
    interest: Interest,
    /// Names asked for on demand, beside the interest.
    on_demand: BTreeSet<String>,
    /// What a wildcard subscription was given by full states.
    given: FxHashSet<String>,
    /// Its place in `order`.
    place: u64,
}

impl Watch {
    fn names(&self) -> BTreeSet<&str> {
        let mut names: BTreeSet<&str> = self.on_demand.iter().map(String::as_str).collect();
        match &self.interest {
            Interest::Names(list) => names.extend(list.iter().map(String::as_str)),
            Interest::Collection(name) => {
                names.insert(name);
            }
            Interest::Wildcard | Interest::Namespace(_) => {
                names.insert(WILDCARD);
            }
        }
        names
    }
}

/// What one subscription is given of an update.
pub(crate) type Routed = IndexMap<WatchId, (Vec<Resource>, Vec<String>), FxBuildHasher>;

#[derive(Debug, Default)]
pub(crate) struct Watches {
    by_id: FxHashMap<WatchId, Watch>,
    /// The latest last.
    order: BTreeMap<u64, WatchId>,
    /// With the wildcard, under its name.
    by_name: FxHashMap<String, Vec<WatchId>>,
    next_place: u64,
    /// How many of them are for collections.
    collections: usize,
}

impl Watches {
    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// All subscriptions, the latest first.
    pub(crate) fn ids(&self) -> impl Iterator<Item = WatchId> {
        self.order.values().rev().copied()
    }

    /// Subscriptions to everything, the latest first. The cost does not depend on the others.
    pub(crate) fn wildcards(&self) -> Vec<WatchId> {
        let all = self.by_name.get(WILDCARD).into_iter().flatten().copied();
        let mut ids: Vec<_> = all.filter(|id| self.interest(*id) == Some(&Interest::Wildcard)).collect();
        ids.sort_unstable_by_key(|id| std::cmp::Reverse(self.place(*id)));
        ids
    }

    pub(crate) fn interest(&self, id: WatchId) -> Option<&Interest> {
        self.by_id.get(&id).map(|w| &w.interest)
    }

    /// Whether anything at all is asked for.
    pub(crate) fn wants_anything(&self) -> bool {
        !self.by_name.is_empty()
    }

    /// Whether anyone asks for `name` by name.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.by_name.contains_key(&*canonical(name))
    }

    /// Whether anyone asks for `name` in whatever way.
    pub(crate) fn cares_for(&self, name: &str) -> bool {
        self.wants(name)
            || self.wants_everything()
            || (self.collections > 0 && collection_of(name).is_some_and(|all| self.by_name.contains_key(&all)))
    }

    /// Whether anyone asks for all of something, of which a state of the world is whole.
    pub(crate) fn has_full_states(&self) -> bool {
        self.collections > 0 || self.wants_everything()
    }

    pub(crate) fn wants_everything(&self) -> bool {
        self.wants(WILDCARD)
    }

    /// Adds a subscription, or changes what it asks for.
    pub(crate) fn set(&mut self, id: WatchId, interest: Interest) -> Change {
        let place = self.next_place;
        self.next_place += 1;
        self.order.insert(place, id);
        self.collections += usize::from(matches!(interest, Interest::Collection(_)));
        let watch = Watch { interest, on_demand: BTreeSet::new(), given: FxHashSet::default(), place };
        let new: Vec<String> = watch.names().into_iter().map(str::to_owned).collect();
        let old = self.by_id.insert(id, watch);
        let mut change = Change::default();
        let mut old_names = Vec::new();
        if let Some(old) = old {
            self.collections -= usize::from(matches!(old.interest, Interest::Collection(_)));
            self.order.remove(&old.place);
            let kept: FxHashSet<&str> = new.iter().map(String::as_str).collect();
            old_names.extend(old.names().into_iter().filter(|n| !kept.contains(n)).map(str::to_owned));
            if let Some(watch) = self.by_id.get_mut(&id) {
                watch.given = old.given;
            }
        }
        self.link(id, new, &mut change);
        self.unlink(id, old_names, &mut change);
        change
    }

    /// Asks for further names beside the interest.
    pub(crate) fn on_demand(&mut self, id: WatchId, names: &[String]) -> Change {
        let mut change = Change::default();
        let Some(watch) = self.by_id.get_mut(&id) else { return change };
        watch.on_demand.extend(names.iter().cloned());
        self.link(id, names.to_vec(), &mut change);
        // What is asked for again has perhaps been forgotten by whoever asks: it is named again.
        change.added = names.to_vec();
        change
    }

    /// Ends what was asked for under these names, on demand or at first.
    pub(crate) fn release(&mut self, id: WatchId, names: &[String]) -> Change {
        let mut change = Change::default();
        let Some(watch) = self.by_id.get_mut(&id) else { return change };
        let mut gone: Vec<String> = names.iter().filter(|name| watch.on_demand.remove(*name)).cloned().collect();
        if let Interest::Names(own) = &mut watch.interest {
            gone.extend(names.iter().filter(|name| own.contains(name)).cloned());
            own.retain(|name| !names.contains(name));
        }
        self.unlink(id, gone, &mut change);
        change
    }

    pub(crate) fn remove(&mut self, id: WatchId) -> Change {
        let mut change = Change::default();
        if let Some(watch) = self.by_id.remove(&id) {
            self.collections -= usize::from(matches!(watch.interest, Interest::Collection(_)));
            self.order.remove(&watch.place);
            let names = watch.names().into_iter().map(str::to_owned).collect();
            self.unlink(id, names, &mut change);
        }
        change
    }

    fn link(&mut self, id: WatchId, names: Vec<String>, change: &mut Change) {
        for name in names {
            let ids = self.by_name.entry(name.clone()).or_default();
            if ids.is_empty() {
                change.added.push(name);
            }
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }

    fn unlink(&mut self, id: WatchId, names: Vec<String>, change: &mut Change) {
        for name in names {
            if let Some(ids) = self.by_name.get_mut(&name) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.by_name.remove(&name);
                    change.removed.push(name);
                }
            }
        }
    }

    /// The names of a state-of-the-world request: those of the latest subscription first, each once. Empty for a
    /// wildcard, which is named only beside other names.
    pub(crate) fn request_names(&self) -> Vec<String> {
        let mut seen: FxHashSet<&str> = FxHashSet::default();
        let mut names = Vec::with_capacity(self.by_name.len());
        for watch in self.ids().filter_map(|id| self.by_id.get(&id)) {
            names.extend(watch.names().into_iter().filter(|name| seen.insert(name)).map(str::to_owned));
        }
        if names == [WILDCARD] {
            names.clear();
        }
        names
    }

    /// Who is to be told about `name`: who asked for it or for all of its collection, and who asked for everything.
    fn interested(&self, name: &str) -> Vec<WatchId> {
        let mut ids = self.by_name.get(&*canonical(name)).cloned().unwrap_or_default();
        if ids.is_empty()
            && is_xdstp(name)
            && let Some(collection) = collection_of(name)
        {
            ids = self.by_name.get(&collection).cloned().unwrap_or_default();
        }
        for id in self.by_name.get(WILDCARD).into_iter().flatten() {
            let matches = match self.interest(*id) {
                Some(Interest::Namespace(space)) => {
                    name.strip_prefix(space.as_str()).is_some_and(|rest| rest.starts_with('/'))
                }
                _ => true,
            };
            if matches && !ids.contains(id) {
                ids.push(*id);
            }
        }
        ids
    }

    pub(crate) fn is_interested(&self, id: WatchId, name: &str) -> bool {
        self.interested(name).contains(&id)
    }

    /// Sorts an update by subscription. `keep` is called for each resource that anyone is interested in.
    pub(crate) fn route(
        &self,
        resources: Vec<Resource>,
        removed: &[String],
        mut keep: impl FnMut(&Resource),
    ) -> Routed {
        let mut routed = Routed::default();
        for resource in resources {
            let ids = self.interested(&resource.name);
            let Some((last, others)) = ids.split_last() else { continue };
            keep(&resource);
            for id in others {
                routed.entry(*id).or_default().0.push(resource.clone());
            }
            routed.entry(*last).or_default().0.push(resource);
        }
        for name in removed {
            for id in self.interested(name) {
                routed.entry(id).or_default().1.push(name.clone());
            }
        }
        routed
    }

    /// Takes out of `routed` all but the subscriptions in `without`, the latest first.
    pub(crate) fn ids_in<'a>(
        &self,
        routed: &'a mut Routed,
        without: &'a [WatchId],
    ) -> impl Iterator<Item = (WatchId, (Vec<Resource>, Vec<String>))> + 'a {
        routed.sort_unstable_by(|a, _, b, _| self.place(*b).cmp(&self.place(*a)));
        routed.drain(..).filter(|(id, _)| !without.contains(id))
    }

    fn place(&self, id: WatchId) -> u64 {
        self.by_id.get(&id).map_or(0, |w| w.place)
    }

    /// What `id` was given by earlier full states and `names` leaves out. It is given `names` now.
    pub(crate) fn full_state(&mut self, id: WatchId, names: &FxHashSet<String>) -> Vec<String> {
        let Some(watch) = self.by_id.get_mut(&id) else { return Vec::new() };
        let mut gone: Vec<String> = watch.given.difference(names).cloned().collect();
        gone.sort_unstable();
        watch.given.extend(names.iter().cloned());
        gone
    }

    /// `id` took a full state of these names: it holds nothing else.
    pub(crate) fn keep_given(&mut self, id: WatchId, names: &FxHashSet<&str>) {
        if let Some(watch) = self.by_id.get_mut(&id) {
            watch.given.retain(|name| names.contains(&*canonical(name)));
        }
    }

    /// `id` has let go of `gone`.
    pub(crate) fn forget_given(&mut self, id: WatchId, gone: &[String]) {
        if let Some(watch) = self.by_id.get_mut(&id) {
            for name in gone {
                watch.given.remove(name);
            }
        }
    }
}
