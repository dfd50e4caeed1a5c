//! The DNS cache of dynamic forward proxies: names that requests bring, with their addresses.
//!
//! HTTP filters look a name up on their worker, without locks ([`DnsCache::look_up`]), and wait for names that are new.
//! A task per name on the control thread asks for it, again and again while it is used; clusters of the cache get a host
//! for every name that has an address. Workers wait for answers, never for the task.

mod host;
mod named;

pub use host::CachedHost;
pub use named::{DYNAMIC_HOST, DYNAMIC_PORT};
pub(crate) use named::{NamedTable, authority_of};

use crate::cluster::Cluster;
use crate::dns::{Resolver, Resolvers};
use crate::host::now_ms;
use arc_swap::ArcSwap;
use nuncio_base::random;
use nuncio_base::stats::Registry;
use nuncio_config::cluster::DnsCacheConfig;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

nuncio_base::stat_family! {
    /// `dns_cache.<name>.`
    pub struct DnsCacheStats {
        counters {
            cache_load, dns_address_filter_out, dns_query_attempt, dns_query_failure, dns_query_success, dns_query_timeout,
            dns_rq_pending_overflow, host_added, host_address_changed, host_overflow, host_removed,
        }
        gauges {
            num_hosts,
            rq_pending_open = "circuit_breakers.rq_pending_open",
            rq_pending_remaining = "circuit_breakers.rq_pending_remaining",
        }
    }
}

/// What a look-up finds.
pub enum LookUp {
    /// The name is known; whether it has an address is another question.
    Known(Arc<CachedHost>),
    /// It has to be asked for.
    Asked(Waiting),
    /// There are too many names.
    Overflow,
    /// Too many requests wait for answers.
    PendingOverflow,
}

/// A request that waits for the first answer about a name.
pub struct Waiting {
    answer: oneshot::Receiver<Arc<CachedHost>>,
    /// Counted until the answer is there.
    _pending: Pending,
}

impl Waiting {
    /// The name, once there was an answer; None when the cache has gone.
    pub async fn answer(self) -> Option<Arc<CachedHost>> {
        self.answer.await.ok()
    }
}

/// One request that waits, as the cache counts it.
struct Pending(Arc<DnsCache>);

impl Pending {
    /// None when too many wait.
    fn new(cache: &Arc<DnsCache>) -> Option<Pending> {
        let limit = cache.config.max_pending_requests;
        let before = cache.pending.fetch_update(Relaxed, Relaxed, |count| (count < limit).then_some(count + 1)).ok()?;
        cache.stats.rq_pending_remaining().dec();
        if before + 1 == limit {
            cache.stats.rq_pending_open().inc();
        }
        Some(Pending(cache.clone()))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let cache = &self.0;
        let before = cache.pending.fetch_sub(1, Relaxed);
        cache.stats.rq_pending_remaining().inc();
        if before == cache.config.max_pending_requests {
            cache.stats.rq_pending_open().dec();
        }
    }
}

/// A name that a worker wants to know.
struct Load {
    name: Arc<str>,
    default_port: u16,
    answer: Option<oneshot::Sender<Arc<CachedHost>>>,
}

type Hosts = FxHashMap<Arc<str>, Arc<CachedHost>>;

/// One cache.
pub struct DnsCache {
    config: Arc<DnsCacheConfig>,
    stats: DnsCacheStats,
    resolver: Resolver,
    /// By name and port.
    hosts: ArcSwap<Hosts>,
    pending: AtomicU32,
    loads: mpsc::UnboundedSender<Load>,
    /// Those that get the hosts.
    clusters: Mutex<Vec<Weak<Cluster>>>,
}

impl std::fmt::Debug for DnsCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsCache").field("name", &self.config.name).finish_non_exhaustive()
    }
}

/// All caches of a process by name.
pub(crate) struct DnsCaches {
    made: Mutex<FxHashMap<Box<str>, Weak<DnsCache>>>,
    resolvers: Arc<Resolvers>,
    registry: Registry,
    control: tokio::runtime::Handle,
}

impl DnsCaches {
    pub(crate) fn new(resolvers: &Arc<Resolvers>, registry: &Registry, control: &tokio::runtime::Handle) -> Self {
        let (resolvers, registry, control) = (resolvers.clone(), registry.clone(), control.clone());
        DnsCaches { made: Mutex::default(), resolvers, registry, control }
    }

    /// The cache of `config`, made if there is none of its name.
    pub(crate) fn get(&self, config: &Arc<DnsCacheConfig>) -> Result<Arc<DnsCache>, String> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = made.get(&config.name).and_then(Weak::upgrade) {
            return match cache.config == *config {
                true => Ok(cache),
                false => Err(format!("config specified DNS cache '{}' with different settings", config.name)),
            };
        }
        let resolver = self.resolvers.get(&config.dns).map_err(|error| format!("DNS cannot be set up: {error}"))?;
        let (loads, queue) = mpsc::unbounded_channel();
        let stats = DnsCacheStats::new(&self.registry, &format!("dns_cache.{}.", config.name));
        let cache = Arc::new(DnsCache {
            stats,
            resolver,
            hosts: ArcSwap::default(),
            pending: AtomicU32::new(0),
            loads,
            clusters: Mutex::default(),
            config: config.clone(),
        });
        cache.stats.rq_pending_remaining().set(u64::from(config.max_pending_requests));
        for (name, port) in &config.preresolve {
            let load = Load { name: normalized(name, *port).as_str().into(), default_port: *port, answer: None };
            // The receiver is still here.
            let _ = cache.loads.send(load);
        }
        self.control.spawn(serve(Arc::downgrade(&cache), queue, self.control.clone()));
        made.retain(|_, other| other.strong_count() > 0);
        made.insert(config.name.clone(), Arc::downgrade(&cache));
        Ok(cache)
    }
}

impl DnsCache {
    /// Looks `authority` up; `default_port` is for one that names none. Lock-free; for workers. Requests that may wait are
    /// limited, and with them what the control thread is asked for.
    pub fn look_up(self: &Arc<Self>, authority: &str, default_port: u16) -> LookUp {
        // As in Envoy, whoever comes while too many wait is refused, though the name may be known.
        if self.pending.load(Relaxed) >= self.config.max_pending_requests {
            self.stats.dns_rq_pending_overflow().inc();
            return LookUp::PendingOverflow;
        }
        let name = normalized(authority, default_port);
        let hosts = self.hosts.load();
        if let Some(host) = hosts.get(name.as_str()).filter(|host| host.is_complete())
            && !(self.config.no_refresh_on_failure && host.has_failed())
        {
            return LookUp::Known(host.clone());
        }
        if hosts.len() as u64 >= u64::from(self.config.max_hosts) {
            self.stats.host_overflow().inc();
            return LookUp::Overflow;
        }
        let Some(pending) = Pending::new(self) else {
            self.stats.dns_rq_pending_overflow().inc();
            return LookUp::PendingOverflow;
        };
        let (sender, answer) = oneshot::channel();
        let load = Load { name: name.as_str().into(), default_port, answer: Some(sender) };
        // Without a receiver the process ends, and the wait with it.
        let _ = self.loads.send(load);
        LookUp::Asked(Waiting { answer, _pending: pending })
    }

    /// The entry of a name with its port.
    pub(crate) fn host(&self, name: &str) -> Option<Arc<CachedHost>> {
        self.hosts.load().get(name).cloned()
    }

    /// `cluster` gets a host for every name that has an address, now and later. For the control thread.
    pub(crate) fn attach(&self, cluster: &Arc<Cluster>) {
        let mut clusters = self.clusters();
        clusters.retain(|other| other.upgrade().is_some_and(|other| !other.is_removed()));
        clusters.push(Arc::downgrade(cluster));
        drop(clusters);
        named::set_hosts(cluster, self.hosts.load().values());
    }

    fn clusters(&self) -> MutexGuard<'_, Vec<Weak<Cluster>>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Hosts)) {
        let mut hosts = Hosts::clone(&self.hosts.load());
        change(&mut hosts);
        self.stats.num_hosts().set(hosts.len() as u64);
        self.hosts.store(Arc::new(hosts));
    }

    /// A worker wants to know a name. On the control thread, as all below.
    fn load(self: &Arc<Self>, load: Load, control: &tokio::runtime::Handle) {
        let known = self.host(&load.name);
        if let Some(host) = known {
            let again = self.config.no_refresh_on_failure && host.has_failed();
            if !(host.is_complete() && again) {
                host.wait(load.answer);
                return;
            }
            self.remove(&host);
        }
        let host = Arc::new(CachedHost::new(load.name.clone(), load.default_port));
        host.wait(load.answer);
        self.stats.host_added().inc();
        self.change(|hosts| drop(hosts.insert(host.name.clone(), host.clone())));
        control.spawn(keep(Arc::downgrade(self), host));
    }

    fn remove(&self, host: &Arc<CachedHost>) {
        host.give_up();
        self.stats.host_removed().inc();
        self.change(|hosts| drop(hosts.remove(&host.name)));
        self.show_hosts();
    }

    fn show_hosts(&self) {
        let hosts = self.hosts.load();
        for cluster in self.clusters().iter().filter_map(Weak::upgrade).filter(|cluster| !cluster.is_removed()) {
            named::set_hosts(&cluster, hosts.values());
        }
    }

    /// An answer, or its absence, has come: publishes what is new. Returns when to ask again; None for never.
    fn answered(&self, host: &Arc<CachedHost>, answer: Outcome, backoff: &mut Option<Duration>) -> Option<Duration> {
        let stats = &self.stats;
        let dns = &self.config.dns;
        let (failed, details) = match &answer {
            Outcome::Addresses(addresses, _) if addresses.is_empty() => {
                (false, "cares_norecords:Domain_name_not_found".to_owned())
            }
            Outcome::Addresses(..) => (false, String::new()),
            Outcome::Failed => (true, "cares_failure:Could_not_contact_DNS_servers".to_owned()),
            Outcome::Timeout => {
                stats.dns_query_timeout().inc();
                (true, "resolve_timeout".to_owned())
            }
        };
        match failed {
            true => stats.dns_query_failure().inc(),
            false => stats.dns_query_success().inc(),
        }
        let mut delay = dns.refresh_rate;
        if let Outcome::Addresses(addresses, ttl) = &answer
            && !addresses.is_empty()
        {
            delay = (*ttl).max(self.config.min_refresh_rate);
            if host.set_addresses(addresses) {
                stats.host_address_changed().inc();
                self.show_hosts();
            }
        }
        host.complete(failed, details);
        if !failed {
            *backoff = None;
            return Some(delay);
        }
        if self.config.no_refresh_on_failure {
            return None;
        }
        let Some((base, max)) = dns.failure_refresh else { return Some(dns.refresh_rate) };
        let interval = backoff.unwrap_or(base).min(max);
        *backoff = Some((interval * 2).min(max));
        Some(Duration::from_millis(random::below(interval.as_millis().max(1) as u64)))
    }
}

/// What came of a question.
enum Outcome {
    Addresses(Vec<SocketAddr>, Duration),
    Failed,
    Timeout,
}

/// Takes the names that workers want to know, while the cache lives.
async fn serve(cache: Weak<DnsCache>, mut loads: mpsc::UnboundedReceiver<Load>, control: tokio::runtime::Handle) {
    while let Some(load) = loads.recv().await {
        let Some(cache) = cache.upgrade() else { return };
        cache.load(load, &control);
    }
}

/// Asks for one name again and again while it is used.
async fn keep(cache: Weak<DnsCache>, host: Arc<CachedHost>) {
    let mut backoff = None;
    loop {
        let Some(strong) = cache.upgrade() else { return };
        strong.stats.dns_query_attempt().inc();
        let (resolver, timeout) = (strong.resolver.clone(), strong.config.query_timeout);
        drop(strong);
        let resolve = resolver.resolve(&host.resolved_name);
        let answer = match timeout.is_zero() {
            true => Ok(resolve.await),
            false => tokio::time::timeout(timeout, resolve).await,
        };
        let outcome = match answer {
            Ok(Ok(answer)) => {
                let addresses = answer.addresses.iter().map(|ip| SocketAddr::new(*ip, host.port));
                Outcome::Addresses(addresses.collect(), answer.ttl)
            }
            Ok(Err(_)) => Outcome::Failed,
            Err(_) => Outcome::Timeout,
        };
        let Some(strong) = cache.upgrade().filter(|_| !host.is_given_up()) else { return };
        let Some(delay) = strong.answered(&host, outcome, &mut backoff) else { return };
        let host_ttl = strong.config.host_ttl;
        drop(strong);
        tokio::time::sleep(delay.max(Duration::from_millis(1))).await;
        let Some(strong) = cache.upgrade().filter(|_| !host.is_given_up()) else { return };
        if Duration::from_millis(now_ms().saturating_sub(host.last_used())) > host_ttl {
            strong.remove(&host);
            return;
        }
    }
}

/// `authority` with its port, as names are kept. Mostly without an allocation.
pub(crate) fn normalized(authority: &str, default_port: u16) -> Name {
    let mut name = Name(SmallVec::from_slice(authority.as_bytes()));
    let has_port = match authority.rsplit_once(':') {
        Some((host, port)) => {
            // A bare IPv6 address has colons and no port.
            (!host.contains(':') || host.ends_with(']')) && port.parse::<u16>().is_ok()
        }
        None => false,
    };
    if !has_port && !authority.is_empty() {
        let mut digits = [0; 6];
        let mut at = digits.len();
        let mut rest = default_port;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        at -= 1;
        digits[at] = b':';
        name.0.extend_from_slice(&digits[at..]);
    }
    name
}

/// A name with its port.
pub(crate) struct Name(SmallVec<[u8; 80]>);

impl Name {
    /// The same behind `prefix`.
    pub(crate) fn prefixed(mut self, prefix: &str) -> Name {
        self.0.insert_from_slice(0, prefix.as_bytes());
        self
    }

    pub(crate) fn as_str(&self) -> &str {
        // Made of text and ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use nuncio_base::stats::StatsConfig;

    fn config(name: &str) -> DnsCacheConfig {
        DnsCacheConfig {
            name: name.into(),
            dns: nuncio_config::cluster::DnsConfig { refresh_rate: Duration::from_secs(60), ..Default::default() },
            min_refresh_rate: Duration::from_secs(5),
            host_ttl: Duration::from_secs(300),
            max_hosts: 2,
            query_timeout: Duration::from_secs(5),
            max_pending_requests: 2,
            no_refresh_on_failure: false,
            preresolve: Vec::new(),
        }
    }

    fn caches() -> DnsCaches {
        let registry = Registry::new(1, StatsConfig::default());
        DnsCaches::new(&Arc::default(), &registry, &tokio::runtime::Handle::current())
    }

    async fn known(cache: &Arc<DnsCache>, authority: &str) -> Arc<CachedHost> {
        match cache.look_up(authority, 80) {
            LookUp::Known(host) => host,
            LookUp::Asked(waiting) => waiting.answer().await.expect("an answer"),
            _ => panic!("refused"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_asked_for_once_and_again_while_it_is_used() {
        let cache = caches().get(&Arc::new(config("a"))).expect("a cache");
        let host = known(&cache, "127.0.0.1").await;
        assert!(host.has_address() && host.port == 80);
        assert!(Arc::ptr_eq(&host, &known(&cache, "127.0.0.1:80").await));
        assert_eq!((cache.stats.dns_query_attempt().value(), cache.stats.num_hosts().value()), (1, 1));
        // An address has no time to live: it is looked at again at the least interval.
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_secs(5)).await;
            host.touch();
        }
        assert!(cache.stats.dns_query_attempt().value() > 90);
        assert_eq!((cache.stats.host_address_changed().value(), cache.stats.num_hosts().value()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_nobody_uses_is_given_up() {
        let cache = caches().get(&Arc::new(config("a"))).expect("a cache");
        let host = known(&cache, "127.0.0.1").await;
        tokio::time::sleep(Duration::from_secs(310)).await;
        assert!(host.is_given_up());
        assert_eq!((cache.stats.host_removed().value(), cache.stats.num_hosts().value()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn names_and_waiting_requests_are_bounded() {
        let cache = caches().get(&Arc::new(config("a"))).expect("a cache");
        let first = cache.look_up("127.0.0.1:1", 80);
        let second = cache.look_up("127.0.0.1:2", 80);
        assert!(matches!((&first, &second), (LookUp::Asked(_), LookUp::Asked(_))));
        assert!(matches!(cache.look_up("127.0.0.1:1", 80), LookUp::PendingOverflow));
        assert_eq!((cache.stats.rq_pending_open().value(), cache.stats.rq_pending_remaining().value()), (1, 0));
        for waiting in [first, second] {
            let LookUp::Asked(waiting) = waiting else { panic!("not asked") };
            assert!(waiting.answer().await.is_some());
        }
        assert_eq!((cache.stats.rq_pending_open().value(), cache.stats.rq_pending_remaining().value()), (0, 2));
        assert!(matches!(cache.look_up("127.0.0.1:3", 80), LookUp::Overflow));
        assert!(matches!(cache.look_up("127.0.0.1:1", 80), LookUp::Known(_)));
        assert_eq!((cache.stats.host_overflow().value(), cache.stats.dns_rq_pending_overflow().value()), (1, 1));
    }

    #[tokio::test]
    async fn caches_of_one_name_have_the_same_settings() {
        let caches = caches();
        let one = caches.get(&Arc::new(config("a"))).expect("a cache");
        assert!(Arc::ptr_eq(&one, &caches.get(&Arc::new(config("a"))).expect("the same")));
        let other = caches.get(&Arc::new(DnsCacheConfig { max_hosts: 9, ..config("a") }));
        assert_eq!(other.err().as_deref(), Some("config specified DNS cache 'a' with different settings"));
    }

    #[test]
    fn names_have_their_ports() {
        let name = |authority, port| normalized(authority, port).as_str().to_owned();
        assert_eq!(name("a.example", 80), "a.example:80");
        assert_eq!(name("a.example:8080", 80), "a.example:8080");
        assert_eq!(name("[::1]", 443), "[::1]:443");
        assert_eq!(name("[::1]:1", 65535), "[::1]:1");
        assert_eq!(name("a.example", 65535), "a.example:65535");
        assert_eq!(name("", 80), "");
    }
}
