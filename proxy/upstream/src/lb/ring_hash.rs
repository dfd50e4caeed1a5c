//! Ketama ring, host for host as Envoy's `RING_HASH`.

use super::HashTable;
use crate::host::Host;
use crate::stats::{ClusterStats, RingHashStats};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// libstdc++'s seed of `std::hash`, which Envoy keeps for its MurmurHash2 ring.
const MURMUR_SEED: u64 = 0xc70f_6907;

/// Hashes in order, each with the index of its host.
#[derive(Debug)]
pub struct Ring {
    hashes: Box<[(u64, u32)]>,
    hosts: Box<[Arc<Host>]>,
}

/// What a host is hashed by: metadata `envoy.lb` `hash_key`, else its name or its address.
pub(super) fn hash_key(host: &Host, by_name: bool) -> Arc<str> {
    let metadata = host.metadata();
    let key = metadata.as_ref().and_then(|metadata| metadata.get("envoy.lb")?.get("hash_key")?.as_str());
    match key.filter(|key| !key.is_empty()) {
        Some(key) => key.into(),
        None if by_name => host.hostname.clone(),
        None => host.address_text.clone(),
    }
}

impl Ring {
    /// The ring over hosts whose weights sum to one. `by_name` hashes their names instead of their addresses.
    pub fn new(
        hosts: &[(Arc<Host>, f64)],
        sizes: RangeInclusive<u64>,
        murmur: bool,
        by_name: bool,
        stats: &ClusterStats,
    ) -> Self {
        let (min_size, max_size) = sizes.into_inner();
        let least = hosts.iter().map(|(_, weight)| *weight).fold(1.0, f64::min);
        // Scaled so that the host of least weight has a whole number of hashes.
        let scale = ((least * min_size as f64).ceil() / least).min(max_size as f64);
        let size = if hosts.is_empty() { 0 } else { scale.ceil() as u64 };
        let mut hashes = Vec::with_capacity(size as usize);
        let (mut target, mut fewest, mut most) = (0.0, size, 0);
        let mut key = String::new();
        for (index, (host, weight)) in hosts.iter().enumerate() {
            target += scale * weight;
            let mut count = 0u64;
            let name = hash_key(host, by_name);
            // Running sums over all hosts, so that fractions are not lost.
            while (hashes.len() as f64) < target {
                key.clear();
                key.push_str(&name);
                key.push('_');
                key.push_str(&count.to_string());
                let hash = if murmur {
                    murmur2(key.as_bytes(), MURMUR_SEED)
                } else {
                    xxhash_rust::xxh64::xxh64(key.as_bytes(), 0)
                };
                hashes.push((hash, index as u32));
                count += 1;
            }
            fewest = fewest.min(count);
            most = most.max(count);
        }
        hashes.sort_by_key(|(hash, _)| *hash);
        if !hosts.is_empty() {
            let gauges = RingHashStats::new(stats.registry(), &format!("{}ring_hash_lb.", stats.prefix()));
            gauges.size().set(size);
            gauges.min_hashes_per_host().set(fewest);
            gauges.max_hashes_per_host().set(most);
            stats.keep(gauges);
        }
        Ring { hashes: hashes.into(), hosts: hosts.iter().map(|(host, _)| host.clone()).collect() }
    }
}

impl HashTable for Ring {
    fn pick(&self, hash: u64, attempt: u32) -> Option<&Arc<Host>> {
        if self.hashes.is_empty() {
            return None;
        }
        let at = self.hashes.partition_point(|(entry, _)| *entry < hash);
        let at = if at == self.hashes.len() { 0 } else { at };
        let (_, host) = self.hashes[(at + attempt as usize) % self.hashes.len()];
        self.hosts.get(host as usize)
    }
}

/// MurmurHash2, 64-bit version A.
fn murmur2(data: &[u8], seed: u64) -> u64 {
    const MUL: u64 = 0xc6a4_a793_5bd1_e995;
    let mix = |value: u64| {
        let value = value.wrapping_mul(MUL);
        (value ^ (value >> 47)).wrapping_mul(MUL)
    };
    let mut hash = seed ^ (data.len() as u64).wrapping_mul(MUL);
    let mut chunks = data.chunks_exact(8);
    for chunk in &mut chunks {
        let word = chunk.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        hash = (hash ^ mix(word)).wrapping_mul(MUL);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let word = rest.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        hash = (hash ^ word).wrapping_mul(MUL);
    }
    hash = (hash ^ (hash >> 47)).wrapping_mul(MUL);
    hash ^ (hash >> 47)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{stats, weighted_set};

    fn ring(weights: &[u32], min: u64, max: u64) -> Ring {
        let set = weighted_set(weights);
        let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        let hosts: Vec<_> =
            set.host_sets[0].hosts.iter().map(|host| (host.clone(), f64::from(host.weight()) / sum)).collect();
        Ring::new(&hosts, min..=max, false, false, &stats())
    }

    #[test]
    fn murmur_is_that_of_the_standard_library_of_gnu() {
        // Envoy's own vectors for `std::hash<std::string>`.
        assert_eq!(murmur2(b"", MURMUR_SEED), 6_142_509_188_972_423_790);
        assert_eq!(murmur2(b"a", MURMUR_SEED), 4_993_892_634_952_068_459);
        assert_eq!(murmur2(b"abcdefgh", MURMUR_SEED), 8_664_279_048_047_335_611);
    }

    #[test]
    fn the_ring_has_the_asked_size_and_gives_hosts_their_share() {
        let ring = ring(&[1, 2, 1], 12, 8 << 20);
        let count = |host| ring.hashes.iter().filter(|(_, entry)| *entry == host).count();
        assert_eq!((ring.hashes.len(), count(0), count(1), count(2)), (12, 3, 6, 3));
    }

    #[test]
    fn a_key_finds_the_next_hash_and_wraps() {
        let ring = ring(&[1, 1], 8, 8 << 20);
        let (first, last) = (ring.hashes[0], ring.hashes[7]);
        let port = |host: Option<&Arc<Host>>| host.and_then(|host| host.address.port()).map(u32::from);
        assert_eq!(port(ring.pick(first.0, 0)), Some(first.1));
        assert_eq!(port(ring.pick(last.0.wrapping_add(1), 0)), Some(first.1));
        assert_eq!(port(ring.pick(first.0, 1)), Some(ring.hashes[1].1));
    }

    #[test]
    fn a_host_is_hashed_by_its_key_its_name_or_its_address() {
        let host = crate::testing::named_host(1, "one.example");
        assert_eq!((&*hash_key(&host, false), &*hash_key(&host, true)), ("127.0.0.1:1", "one.example"));
        host.set_metadata(Some(Arc::new(serde_json::json!({"envoy.lb": {"hash_key": "k"}}))));
        assert_eq!(&*hash_key(&host, true), "k");
        host.set_metadata(Some(Arc::new(serde_json::json!({"envoy.lb": {"hash_key": ""}}))));
        assert_eq!(&*hash_key(&host, false), "127.0.0.1:1");
    }

    /// Hosts that Envoy 1.40 picks for the header values `key0` to `key39`, by the last digit of their port.
    const RING: &str = "2211222323232123223221222212211222312212";
    const MURMUR: &str = "1222213233312233211223132212131212313212";
    const MAGLEV: &str = "2322231311213123213223121133221111122121";

    #[test]
    fn keys_find_the_same_hosts_as_in_envoy() {
        let locality = Arc::default();
        let hosts = [(29921, 1), (29922, 2), (29923, 1)].map(|(port, weight)| {
            let host = crate::testing::host(port, weight, &locality);
            (host, f64::from(weight) / 4.0)
        });
        let picked = |table: &dyn HashTable| -> String {
            let keys = (0..40).map(|key| xxhash_rust::xxh64::xxh64(format!("key{key}").as_bytes(), 0));
            let ports = keys.filter_map(|hash| table.pick(hash, 0)?.address.port());
            ports.map(|port| char::from(b'0' + (port % 10) as u8)).collect()
        };
        assert_eq!(picked(&Ring::new(&hosts, 1024..=8 << 20, false, false, &stats())), RING);
        assert_eq!(picked(&Ring::new(&hosts, 1024..=8 << 20, true, false, &stats())), MURMUR);
        assert_eq!(picked(&super::super::maglev::MaglevTable::new(&hosts, 65537, false, &stats())), MAGLEV);
    }
}
