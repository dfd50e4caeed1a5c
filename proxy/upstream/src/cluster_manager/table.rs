//! Clusters by name, for lookups without locks.
//!
//! Names hash to shards, each an `ArcSwap` of a short sorted table, so that a change copies a few entries however many
//! clusters there are.

use crate::cluster::Cluster;
use arc_swap::ArcSwapOption;
use rustc_hash::FxHasher;
use std::hash::{BuildHasher as _, BuildHasherDefault};
use std::sync::Arc;

const SHARDS: usize = 512;

type Shard = ArcSwapOption<Vec<(u64, Arc<Cluster>)>>;

/// The clusters in use.
pub(super) struct ClusterTable {
    shards: Box<[Shard]>,
}

impl Default for ClusterTable {
    fn default() -> Self {
        ClusterTable { shards: std::iter::repeat_with(Shard::default).take(SHARDS).collect() }
    }
}

impl ClusterTable {
    /// The cluster of this name. For every thread.
    #[inline]
    pub(super) fn get(&self, name: &str) -> Option<Arc<Cluster>> {
        let hash = hash(name);
        let shard = self.shard(hash).load();
        let entries = shard.as_ref()?;
        let from = entries.partition_point(|entry| entry.0 < hash);
        entries[from..]
            .iter()
            .take_while(|entry| entry.0 == hash)
            .find(|entry| **entry.1.name() == *name)
            .map(|entry| entry.1.clone())
    }

    /// Swaps the entry of `name`; returns the old one. For one thread at a time.
    pub(super) fn replace(&self, name: &str, new: Option<Arc<Cluster>>) -> Option<Arc<Cluster>> {
        let hash = hash(name);
        let shard = self.shard(hash);
        let mut entries: Vec<_> = shard.load().as_ref().map(|entries| (**entries).clone()).unwrap_or_default();
        let at = entries.iter().position(|entry| entry.0 == hash && **entry.1.name() == *name);
        let old = at.map(|at| entries.remove(at).1);
        if let Some(new) = new {
            let at = entries.partition_point(|entry| entry.0 < hash);
            entries.insert(at, (hash, new));
        }
        entries.shrink_to_fit();
        shard.store((!entries.is_empty()).then(|| Arc::new(entries)));
        old
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[(hash >> 48) as usize % SHARDS]
    }
}

#[inline]
fn hash(name: &str) -> u64 {
    BuildHasherDefault::<FxHasher>::default().hash_one(name)
}
