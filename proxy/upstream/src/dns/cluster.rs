//! STRICT_DNS and LOGICAL_DNS: tasks on the control thread that ask again and again while the cluster lives.
//!
//! STRICT_DNS has one task per endpoint name; each address of its answer is a host. LOGICAL_DNS has one host, which moves
//! to the newest address. An answer without addresses removes the hosts of STRICT_DNS; a failed question changes nothing.

use super::{Answer, Resolver};
use crate::cluster::Cluster;
use crate::cluster_manager::Warming;
use crate::discovery::{empty_groups, make_host};
use crate::host::{Host, health_flag};
use crate::host_set::HostGroup;
use nuncio_base::random;
use nuncio_config::address::{Address as ConfigAddress, EndpointAddress};
use nuncio_config::cluster::{ClusterConfig, DnsConfig, Endpoint, Locality};
use nuncio_net::address::Address;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// One name to ask for.
pub(crate) struct Target {
    locality: usize,
    endpoint: usize,
    name: String,
    port: u16,
}

/// The names of a cluster; the error says which endpoint has none.
pub(crate) fn targets(config: &ClusterConfig) -> Result<Vec<Target>, String> {
    let mut targets = Vec::new();
    for (locality, group) in config.endpoints.localities.iter().enumerate() {
        for (endpoint, entry) in group.endpoints.iter().enumerate() {
            let (name, port) = match &entry.address {
                EndpointAddress::Name { host, port } => (host.clone(), *port),
                EndpointAddress::Resolved(ConfigAddress::Socket(socket)) => {
                    (socket.addr.ip().to_string(), socket.addr.port())
                }
                EndpointAddress::Resolved(other) => return Err(Address::from(other).to_string()),
            };
            targets.push(Target { locality, endpoint, name, port });
        }
    }
    Ok(targets)
}

/// Hosts per target, shared by the tasks of a cluster.
struct Strict {
    groups: Mutex<Vec<Vec<Arc<Host>>>>,
    targets: Vec<Target>,
    /// By locality of the configuration.
    localities: Vec<Arc<Locality>>,
    warming: Mutex<Option<Warming>>,
}

impl Strict {
    fn groups(&self) -> MutexGuard<'_, Vec<Vec<Arc<Host>>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn localities(config: &ClusterConfig) -> Vec<Arc<Locality>> {
    config.endpoints.localities.iter().map(|entry| Arc::new(entry.locality.clone())).collect()
}

/// Starts a STRICT_DNS cluster's tasks.
pub(crate) fn start_strict(
    cluster: &Arc<Cluster>,
    targets: Vec<Target>,
    resolver: &Resolver,
    control: &tokio::runtime::Handle,
    warming: Option<Warming>,
) {
    let shared = Arc::new(Strict {
        groups: Mutex::new(vec![Vec::new(); targets.len()]),
        localities: localities(&cluster.config),
        // Without a name there is nothing to wait for.
        warming: Mutex::new(warming.filter(|_| !targets.is_empty())),
        targets,
    });
    for index in 0..shared.targets.len() {
        let (shared, resolver) = (shared.clone(), resolver.clone());
        control.spawn(refresh(
            Arc::downgrade(cluster),
            resolver,
            shared.targets[index].name.clone(),
            move |cluster, answer| {
                if let Some(answer) = answer {
                    strict_answer(&shared, index, cluster, answer);
                }
                // As in Envoy the first answer of any name is enough.
                shared.warming.lock().unwrap_or_else(PoisonError::into_inner).take();
            },
        ));
    }
}

fn endpoint_of<'a>(config: &'a ClusterConfig, target: &Target) -> &'a Endpoint {
    &config.endpoints.localities[target.locality].endpoints[target.endpoint]
}

fn hostname(endpoint: &Endpoint, target: &Target) -> Arc<str> {
    if endpoint.hostname.is_empty() { target.name.as_str().into() } else { (*endpoint.hostname).into() }
}

fn strict_answer(shared: &Strict, index: usize, cluster: &Arc<Cluster>, answer: &Answer) {
    let target = &shared.targets[index];
    let config = &cluster.config;
    let endpoint = endpoint_of(config, target);
    let mut groups = shared.groups();
    let old = &groups[index];
    // A host that left the answers may have been kept for its health.
    let state = cluster.state();
    let kept = |address: &Address, name: &str| {
        let mut hosts = state.priority_set.hosts();
        let pending = |host: &Host| host.clear_flags(health_flag::PENDING_DYNAMIC_REMOVAL);
        let found = hosts.find(|host| {
            host.health_flags() & health_flag::PENDING_DYNAMIC_REMOVAL != 0
                && host.address == *address
                && *host.hostname == *name
        })?;
        pending(found);
        Some(found.clone())
    };
    let mut changed = old.len() != answer.addresses.len();
    let hosts: Vec<_> = answer
        .addresses
        .iter()
        .map(|ip| {
            let address = Address::Ip(SocketAddr::new(*ip, target.port));
            // A host that stays keeps its counters and connections.
            old.iter().find(|host| host.address == address).cloned().unwrap_or_else(|| {
                changed = true;
                let locality = &shared.localities[target.locality];
                let priority = config.endpoints.localities[target.locality].priority;
                let name = hostname(endpoint, target);
                kept(&address, &name)
                    .filter(|host| host.locality == *locality)
                    .unwrap_or_else(|| make_host(config, endpoint, address, name, locality, priority))
            })
        })
        .collect();
    if !changed {
        cluster.stats.update_no_rebuild().inc();
        return;
    }
    groups[index] = hosts;
    let mut all = empty_groups(cluster);
    for (at, locality) in config.endpoints.localities.iter().enumerate() {
        let mut hosts: Vec<Arc<Host>> = Vec::new();
        for (_, found) in shared.targets.iter().zip(groups.iter()).filter(|(target, _)| target.locality == at) {
            hosts.extend(found.iter().cloned());
        }
        all.groups.push(HostGroup {
            priority: locality.priority,
            locality: shared.localities[at].clone(),
            weight: locality.weight,
            hosts,
        });
    }
    let heaviest = all.groups.iter().flat_map(|group| &group.hosts).map(|host| host.weight()).max().unwrap_or(0);
    cluster.stats.max_host_weight().set(u64::from(heaviest));
    cluster.update(all.priority_set());
}

/// Starts a LOGICAL_DNS cluster's task. `target` is its only endpoint.
pub(crate) fn start_logical(
    cluster: &Arc<Cluster>,
    target: Target,
    resolver: &Resolver,
    control: &tokio::runtime::Handle,
    warming: Option<Warming>,
) {
    let name = target.name.clone();
    let mut host: Option<Arc<Host>> = None;
    let mut warming = warming;
    control.spawn(refresh(Arc::downgrade(cluster), resolver.clone(), name, move |cluster, answer| {
        if let Some(answer) = answer.filter(|answer| !answer.addresses.is_empty()) {
            let ips = answer.addresses.iter();
            let addresses: Vec<_> = ips.map(|ip| Address::Ip(SocketAddr::new(*ip, target.port))).collect();
            match &host {
                Some(host) => {
                    if !host.set_connect_addresses(&addresses) {
                        cluster.stats.update_no_rebuild().inc();
                    }
                }
                None => host = Some(logical_host(cluster, &target, &addresses)),
            }
        }
        warming.take();
    }));
}

fn logical_host(cluster: &Arc<Cluster>, target: &Target, addresses: &[Address]) -> Arc<Host> {
    let config = &cluster.config;
    let endpoint = endpoint_of(config, target);
    let group = &config.endpoints.localities[target.locality];
    let locality = Arc::new(group.locality.clone());
    let name = hostname(endpoint, target);
    let host = make_host(config, endpoint, addresses[0].clone(), name, &locality, group.priority);
    host.set_connect_addresses(addresses);
    let mut groups = empty_groups(cluster);
    groups.groups.push(HostGroup {
        priority: group.priority,
        locality,
        weight: group.weight,
        hosts: vec![host.clone()],
    });
    cluster.update(groups.priority_set());
    host
}

/// Asks for `name` while the cluster lives, and hands every outcome to `apply`: the answer, or None for a failure.
async fn refresh(
    cluster: Weak<Cluster>,
    resolver: Resolver,
    name: String,
    mut apply: impl FnMut(&Arc<Cluster>, Option<&Answer>) + Send,
) {
    let mut backoff = None;
    loop {
        let Some(strong) = cluster.upgrade().filter(|cluster| !cluster.is_removed()) else { return };
        strong.stats.update_attempt().inc();
        drop(strong);
        let result = resolver.resolve(&name).await;
        let Some(strong) = cluster.upgrade().filter(|cluster| !cluster.is_removed()) else { return };
        let dns = &strong.config.dns;
        let delay = match &result {
            Ok(answer) => {
                strong.stats.update_success().inc();
                apply(&strong, Some(answer));
                backoff = None;
                success_delay(dns, answer, random::below)
            }
            Err(error) => {
                tracing::debug!(cluster = &**strong.name(), name, %error, "DNS resolution failed");
                strong.stats.update_failure().inc();
                apply(&strong, None);
                failure_delay(dns, &mut backoff, random::below)
            }
        };
        drop(strong);
        tokio::time::sleep(delay.max(Duration::from_millis(1))).await;
    }
}

/// Time until the next question after an answer.
fn success_delay(dns: &DnsConfig, answer: &Answer, random: impl FnOnce(u64) -> u64) -> Duration {
    let use_ttl = dns.respect_ttl && !answer.addresses.is_empty() && !answer.ttl.is_zero();
    let rate = if use_ttl { answer.ttl.max(dns.min_refresh_rate) } else { dns.refresh_rate };
    rate + Duration::from_millis(random(dns.jitter.as_millis() as u64))
}

/// Time until the next question after a failure: the refresh rate, or a random part of an interval that doubles.
fn failure_delay(dns: &DnsConfig, interval: &mut Option<Duration>, random: impl FnOnce(u64) -> u64) -> Duration {
    let Some((base, max)) = dns.failure_refresh else { return dns.refresh_rate };
    let now = interval.unwrap_or(base).min(max);
    *interval = Some((now * 2).min(max));
    Duration::from_millis(random(now.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refresh_rate_may_follow_the_ttl_and_has_jitter() {
        let answer = |ttl| Answer { addresses: vec![[127, 0, 0, 1].into()], ttl: Duration::from_secs(ttl) };
        let mut dns = DnsConfig::default();
        assert_eq!(success_delay(&dns, &answer(60), |_| 0), Duration::from_secs(5));
        dns.respect_ttl = true;
        dns.jitter = Duration::from_millis(100);
        assert_eq!(success_delay(&dns, &answer(60), |bound| bound - 1), Duration::from_millis(60_099));
        assert_eq!(success_delay(&dns, &answer(0), |_| 0), Duration::from_secs(5));
        dns.min_refresh_rate = Duration::from_secs(20);
        assert_eq!(success_delay(&dns, &answer(60), |_| 0), Duration::from_secs(60));
        assert_eq!(success_delay(&dns, &answer(7), |_| 0), Duration::from_secs(20));
    }

    #[test]
    fn failures_back_off_up_to_the_maximum() {
        let mut dns = DnsConfig::default();
        assert_eq!(failure_delay(&dns, &mut None, |_| 0), Duration::from_secs(5));
        dns.failure_refresh = Some((Duration::from_secs(1), Duration::from_secs(3)));
        let mut interval = None;
        let delays: Vec<_> = (0..3).map(|_| failure_delay(&dns, &mut interval, |bound| bound).as_secs()).collect();
        assert_eq!(delays, [1, 2, 3]);
    }
}
