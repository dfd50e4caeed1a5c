//! Bounded loads for the hashing policies (`hash_balance_factor`): a host that has more than its share of the active
//! requests is passed over.
//!
//! As Envoy does it: the share of a host is the factor times the average, by weight. From an overloaded host the search
//! jumps over all hosts in an order that follows from the hash alone, so that the same request goes the same way; when
//! every host is overloaded, the least of them serves. Nothing here allocates beyond a scratch list of each thread.

use super::HashTable;
use crate::host::Host;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

thread_local! {
    /// The order of hosts while it is drawn.
    static ORDER: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Hosts of a priority with the share that each may have.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Weights sum to one.
    hosts: Box<[(Arc<Host>, f64)]>,
    /// Weights by id of the host.
    weights: FxHashMap<u64, f64>,
    /// Percent of the average.
    factor: u32,
}

impl Bounds {
    pub(super) fn new(hosts: &[(Arc<Host>, f64)], factor: u32) -> Self {
        Bounds { hosts: hosts.into(), weights: hosts.iter().map(|(host, weight)| (host.id, *weight)).collect(), factor }
    }

    /// The host for `hash`. `active` are the requests of the whole cluster now.
    pub(super) fn pick<'a>(
        &'a self,
        table: &'a dyn HashTable,
        hash: u64,
        attempt: u32,
        active: u64,
    ) -> Option<&'a Arc<Host>> {
        let first = table.pick(hash, attempt)?;
        // All hosts together may have so many requests.
        let slots = (active.saturating_add(1).saturating_mul(u64::from(self.factor)).saturating_add(99)) / 100;
        let load = load_of(first, self.weights.get(&first.id).copied().unwrap_or(0.0), slots);
        if load <= 1.0 { Some(first) } else { Some(self.instead_of(first, load, hash, slots)) }
    }

    #[cold]
    fn instead_of<'a>(&'a self, first: &'a Arc<Host>, load: f64, hash: u64, slots: u64) -> &'a Arc<Host> {
        ORDER.with_borrow_mut(|order| {
            order.clear();
            order.extend(0..self.hosts.len() as u32);
            let mut random = Mt19937::new(hash as u32);
            let mut least = (first, load);
            for at in 0..order.len() {
                let jump = random.below((order.len() - at) as u32) as usize;
                order.swap(at, at + jump);
                let (host, weight) = &self.hosts[order[at] as usize];
                if host.id == first.id {
                    continue;
                }
                let load = load_of(host, *weight, slots);
                if load <= 1.0 {
                    return host;
                }
                if load < least.1 {
                    least = (host, load);
                }
            }
            least.0
        })
    }
}

/// Active requests of `host` by what it may have; more than one is too much.
fn load_of(host: &Host, weight: f64, slots: u64) -> f64 {
    let own = (slots as f64 * weight).ceil().max(1.0);
    f64::from(host.stats.rq_active.load(Relaxed)) / own
}

const WORDS: usize = 624;
const SHIFT: usize = 397;

/// The 32-bit Mersenne twister of the C++ standard library (`std::mt19937`), whose sequence decides which host is next.
struct Mt19937 {
    state: [u32; WORDS],
    next: usize,
}

impl Mt19937 {
    fn new(seed: u32) -> Self {
        let mut state = [seed; WORDS];
        for at in 1..WORDS {
            let before = state[at - 1];
            state[at] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(at as u32);
        }
        Mt19937 { state, next: 0 }
    }

    /// Words are renewed one at a time, as few of them are asked for.
    fn next(&mut self) -> u32 {
        let (at, following) = (self.next, (self.next + 1) % WORDS);
        let mixed = (self.state[at] & 0x8000_0000) | (self.state[following] & 0x7fff_ffff);
        let twist = if mixed & 1 == 0 { 0 } else { 0x9908_b0df };
        let mut word = self.state[(at + SHIFT) % WORDS] ^ (mixed >> 1) ^ twist;
        self.state[at] = word;
        self.next = following;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// Uniform below `bound`, which is not 0.
    fn below(&mut self, bound: u32) -> u32 {
        let part = (1_u64 << 32) / u64::from(bound);
        loop {
            let drawn = u64::from(self.next()) / part;
            if drawn < u64::from(bound) {
                return drawn as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::weighted_set;

    /// Always the first host.
    #[derive(Debug)]
    struct First(Arc<Host>);

    impl HashTable for First {
        fn pick(&self, _: u64, _: u32) -> Option<&Arc<Host>> {
            Some(&self.0)
        }
    }

    struct Fixture {
        bounds: Bounds,
        first: First,
    }

    impl Fixture {
        /// Hosts of these weights with so many active requests.
        fn new(hosts: &[(u32, u32)], factor: u32) -> Self {
            let set = weighted_set(&hosts.iter().map(|(weight, _)| *weight).collect::<Vec<_>>());
            let sum: u32 = hosts.iter().map(|(weight, _)| weight).sum();
            let list: Vec<_> = set.hosts().cloned().map(|host| (host.weight(), host)).collect();
            let list: Vec<_> =
                list.into_iter().map(|(weight, host)| (host, f64::from(weight) / f64::from(sum))).collect();
            for ((host, _), (_, active)) in list.iter().zip(hosts) {
                host.stats.rq_active.store(*active, Relaxed);
            }
            Fixture { first: First(list[0].0.clone()), bounds: Bounds::new(&list, factor) }
        }

        fn pick(&self, hash: u64) -> u16 {
            let active = self.bounds.hosts.iter().map(|(host, _)| u64::from(host.stats.rq_active.load(Relaxed))).sum();
            self.bounds.pick(&self.first, hash, 0, active).and_then(|host| host.address.port()).expect("a host")
        }
    }

    #[test]
    fn the_twister_is_that_of_the_standard_library() {
        // The standard says what the 10,000th number of the default seed is.
        let mut random = Mt19937::new(5489);
        assert_eq!(random.next(), 3_499_211_612);
        assert_eq!((0..9_999).map(|_| random.next()).last(), Some(4_123_659_995));
    }

    #[test]
    fn a_host_serves_up_to_its_share_of_the_average() {
        // 4 hosts, 7 requests and this one: 8 times 1.25 are 10 slots, 2.5 for each, rounded up.
        assert_eq!(Fixture::new(&[(1, 3), (1, 2), (1, 1), (1, 1)], 125).pick(1), 0);
        assert_ne!(Fixture::new(&[(1, 4), (1, 1), (1, 1), (1, 1)], 125).pick(1), 0);
        // Twice the weight, twice the share.
        assert_eq!(Fixture::new(&[(2, 4), (1, 1), (1, 1), (1, 1)], 125).pick(1), 0);
    }

    #[test]
    fn another_host_follows_from_the_hash_alone() {
        let full = Fixture::new(&[(1, 20), (1, 0), (1, 0), (1, 0)], 100);
        let picks = || (0..64).map(|hash| full.pick(hash)).collect::<Vec<_>>();
        let once = picks();
        assert_eq!(once, picks());
        assert!((1..4).all(|port| once.contains(&port)) && !once.contains(&0), "{once:?}");
        // Overloaded ones are passed over in turn.
        let two = Fixture::new(&[(1, 20), (1, 20), (1, 0), (1, 20)], 100);
        assert!((0..64).all(|hash| two.pick(hash) == 2));
    }

    #[test]
    fn the_least_overloaded_serves_when_all_are() {
        // Weights of next to nothing: a single slot for each of the last three.
        let all = Fixture::new(&[(1_000_000, 3000), (1, 5), (1, 3), (1, 4)], 100);
        all.bounds.hosts[0].0.stats.rq_active.store(100_000, Relaxed);
        let active = 2;
        let picked = all.bounds.pick(&all.first, 7, 0, active).and_then(|host| host.address.port());
        assert_eq!(picked, Some(2));
    }

    #[test]
    fn an_idle_cluster_keeps_every_request_at_its_host() {
        let idle = Fixture::new(&[(1, 0), (1, 0), (1, 0)], 100);
        assert!((0..64).all(|hash| idle.pick(hash) == 0));
    }
}
