//! ORIGINAL_DST clusters: requests go where their connection wanted to go, or where a header or metadata says.
//!
//! A host is made at the first request for its address, on the worker that serves it, and handed to the control thread,
//! which publishes it for all workers. There, hosts that nobody has asked for since the last look and that no connection
//! uses are taken out again. Workers may make hosts of one address at the same time; they come and go together.

use crate::cluster::Cluster;
use crate::discovery::make_host;
use crate::host::Host;
use crate::host_set::{HostGroup, HostGroups, PrioritySet};
use crate::lb::LbContext;
use crate::stats::ClusterStats;
use nuncio_config::address::EndpointAddress;
use nuncio_config::cluster::{ClusterConfig, Endpoint, OriginalDstConfig};
use nuncio_http::headers::HeaderName;
use nuncio_net::address::Address;
use rustc_hash::{FxHashMap, FxHashSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Filter state that names the address, before everything else.
const FILTER_STATE: &str = "envoy.network.transport_socket.original_dst_address";

/// Hosts that may wait to be published; requests to more new addresses at once find no host.
const MOST_WAITING: usize = 4096;

/// Where a cluster's requests may go.
#[derive(Debug)]
pub(crate) struct Destinations {
    config: Arc<ClusterConfig>,
    rules: OriginalDstConfig,
    header: Option<HeaderName>,
    made: mpsc::Sender<Arc<Host>>,
    /// Until somebody publishes them.
    waiting: Mutex<Option<mpsc::Receiver<Arc<Host>>>>,
}

/// The hosts of a worker's own making that are not published yet.
pub(crate) type Made = FxHashMap<SocketAddr, Arc<Host>>;

/// Published hosts by address.
#[derive(Debug)]
pub(crate) struct DestinationTable {
    destinations: Arc<Destinations>,
    hosts: FxHashMap<SocketAddr, Arc<Host>>,
}

impl Destinations {
    pub(crate) fn new(config: &Arc<ClusterConfig>, rules: &OriginalDstConfig) -> Self {
        let (made, waiting) = mpsc::channel(MOST_WAITING);
        let header = rules.header.as_deref().and_then(HeaderName::parse);
        let waiting = Mutex::new(Some(waiting));
        Destinations { config: config.clone(), rules: rules.clone(), header, made, waiting }
    }

    /// The address that a request or connection asks for.
    fn address(&self, context: &LbContext<'_>, stats: &ClusterStats) -> Option<SocketAddr> {
        let mut address = self.said(context, stats).or_else(|| {
            let connection = &context.info?.connection;
            let restored = connection.local_address != connection.direct_local_address;
            match connection.local_address {
                Address::Ip(address) if restored => Some(address),
                _ => None,
            }
        })?;
        if let Some(port) = self.rules.port {
            address.set_port(port);
        }
        Some(address)
    }

    /// What filter state, metadata or the header say; what is no address counts as not said.
    fn said(&self, context: &LbContext<'_>, stats: &ClusterStats) -> Option<SocketAddr> {
        let state = context.info.and_then(|info| info.filter_state.as_ref());
        if let Some((_, text)) = state.and_then(|state| state.iter().find(|(key, _)| **key == *FILTER_STATE))
            && let Ok(address) = text.parse()
        {
            return Some(address);
        }
        let parsed = |text: &str| {
            let address = text.parse().ok();
            if address.is_none() {
                stats.original_dst_host_invalid().inc();
            }
            address
        };
        let metadata = self.rules.metadata_key.as_ref().and_then(|key| {
            let all = context.info?.dynamic_metadata.as_ref()?;
            key.find(all)?.as_str()
        });
        if let Some(address) = metadata.and_then(parsed) {
            return Some(address);
        }
        let value = context.headers?.get(self.header.as_ref()?)?;
        value.to_str().and_then(parsed)
    }

    fn make(&self, address: SocketAddr) -> Option<Arc<Host>> {
        let place = self.made.try_reserve().ok()?;
        let address = Address::Ip(address);
        let name = format!("{}{address}", self.config.name).into();
        // The address of the endpoint itself is not looked at.
        let endpoint = Endpoint::new(EndpointAddress::Name { host: String::new(), port: 0 });
        let host = make_host(&self.config, &endpoint, address, name, &Arc::default(), 0);
        place.send(host.clone());
        Some(host)
    }
}

impl DestinationTable {
    /// The hosts of `set`; of several with one address, the first.
    pub(crate) fn new(destinations: Arc<Destinations>, set: &PrioritySet) -> Self {
        let mut hosts = FxHashMap::default();
        for host in set.hosts() {
            if let Address::Ip(address) = host.address {
                hosts.entry(address).or_insert_with(|| host.clone());
            }
        }
        DestinationTable { destinations, hosts }
    }

    /// The host that the context asks for; `made` are those that this worker has made.
    pub(crate) fn choose(&self, made: &mut Made, context: &LbContext<'_>, stats: &ClusterStats) -> Option<Arc<Host>> {
        let address = self.destinations.address(context, stats)?;
        if let Some(host) = self.hosts.get(&address) {
            host.note_pick();
            return Some(host.clone());
        }
        if let Some(host) = made.get(&address).filter(|host| !host.is_removed()) {
            host.note_pick();
            return Some(host.clone());
        }
        let host = self.destinations.make(address)?;
        host.note_pick();
        made.insert(address, host.clone());
        Some(host)
    }

    /// Forgets hosts that are published, or gone.
    pub(crate) fn forget_published(&self, made: &mut Made) {
        made.retain(|address, host| !host.is_removed() && !self.hosts.contains_key(address));
    }
}

/// Publishes hosts that workers of `cluster` have made, and takes out those that are not used, until the cluster is gone.
pub(crate) fn start(cluster: &Arc<Cluster>, control: &tokio::runtime::Handle) {
    let Some(destinations) = cluster.destinations() else { return };
    let waiting = destinations.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(waiting) = waiting else { return };
    control.spawn(run(Arc::downgrade(cluster), destinations.rules.cleanup_interval, waiting));
}

async fn run(cluster: Weak<Cluster>, interval: Duration, mut made: mpsc::Receiver<Arc<Host>>) {
    let mut next = Instant::now() + interval;
    let mut new = Vec::new();
    loop {
        let look = tokio::select! {
            count = made.recv_many(&mut new, MOST_WAITING) => {
                if count == 0 {
                    return;
                }
                false
            }
            () = sleep_until(next) => true,
        };
        let Some(cluster) = cluster.upgrade().filter(|cluster| !cluster.is_removed()) else { return };
        if look {
            next = Instant::now() + interval;
        }
        let present = cluster.state().priority_set.clone();
        let kept = if look { used(&present) } else { present.hosts().cloned().collect() };
        if new.is_empty() && kept.len() == present.hosts().count() {
            continue;
        }
        let hosts = kept.into_iter().chain(new.drain(..)).collect();
        let group = HostGroup { priority: 0, locality: Arc::default(), weight: None, hosts };
        let groups = HostGroups { groups: vec![group], ..crate::discovery::empty_groups(&cluster) };
        cluster.update(groups.priority_set());
    }
}

/// Hosts whose address was asked for since the last look, or has connections.
fn used(set: &PrioritySet) -> Vec<Arc<Host>> {
    let addresses: FxHashSet<&Address> = set
        .hosts()
        .filter(|host| {
            let picked = host.take_pick();
            let stats = &host.stats;
            picked || stats.cx_active.load(Relaxed) > 0 || stats.rq_pending_active.load(Relaxed) > 0
        })
        .map(|host| &host.address)
        .collect();
    set.hosts().filter(|host| addresses.contains(&host.address)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{config, stats};
    use nuncio_config::cluster::{MetadataKey, MetadataStep};
    use nuncio_http::headers::{HeaderValue, Headers};
    use nuncio_http::stream_info::StreamInfo;
    use nuncio_net::connection::ConnectionInfo;
    use std::rc::Rc;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    /// A connection to `direct` that was redirected here from `original`.
    fn info(direct: &str, original: &str) -> StreamInfo {
        let mut connection = ConnectionInfo::new(Address::Ip(address(direct)), Address::Ip(address("127.0.0.1:9")));
        connection.local_address = Address::Ip(address(original));
        StreamInfo::new(Rc::new(connection), 1, None)
    }

    fn table(rules: &OriginalDstConfig) -> DestinationTable {
        let destinations = Arc::new(Destinations::new(&Arc::new(config()), rules));
        DestinationTable::new(destinations, &PrioritySet::default())
    }

    fn picked(rules: OriginalDstConfig, info: &StreamInfo, headers: &Headers) -> (Option<SocketAddr>, u64) {
        let (table, stats) = (table(&rules), stats());
        let context = LbContext { headers: Some(headers), info: Some(info), ..LbContext::default() };
        let host = table.choose(&mut Made::default(), &context, &stats);
        let address = host.and_then(|host| match host.address {
            Address::Ip(address) => Some(address),
            _ => None,
        });
        (address, stats.original_dst_host_invalid().value())
    }

    fn header(value: &'static str) -> Headers {
        let mut headers = Headers::default();
        let name = HeaderName::parse("x-envoy-original-dst-host").expect("a name");
        headers.append(name, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn a_connection_goes_on_to_where_it_wanted_to_go() {
        let none = Headers::default();
        let redirected = info("127.0.0.1:1000", "10.0.0.1:80");
        let rules = OriginalDstConfig::default();
        assert_eq!(picked(rules.clone(), &redirected, &none).0, Some(address("10.0.0.1:80")));
        assert_eq!(picked(rules.clone(), &info("127.0.0.1:1000", "127.0.0.1:1000"), &none).0, None);
        let rules = OriginalDstConfig { port: Some(8080), ..rules };
        assert_eq!(picked(rules, &redirected, &none).0, Some(address("10.0.0.1:8080")));
    }

    #[test]
    fn a_header_says_where_to_go_only_where_it_may() {
        let redirected = info("127.0.0.1:1000", "10.0.0.1:80");
        let rules =
            OriginalDstConfig { header: Some("x-envoy-original-dst-host".into()), ..OriginalDstConfig::default() };
        let to = |value| picked(rules.clone(), &redirected, &header(value));
        assert_eq!(to("10.9.9.9:99"), (Some(address("10.9.9.9:99")), 0));
        assert_eq!(to("[::1]:99"), (Some(address("[::1]:99")), 0));
        assert_eq!(to("10.9.9.9"), (Some(address("10.0.0.1:80")), 1));
        let without = picked(OriginalDstConfig::default(), &redirected, &header("10.9.9.9:99"));
        assert_eq!(without, (Some(address("10.0.0.1:80")), 0));
    }

    #[test]
    fn metadata_goes_before_the_header() {
        let mut redirected = info("127.0.0.1:1000", "10.0.0.1:80");
        let metadata = serde_json::json!({"f": {"to": "10.7.7.7:77"}});
        redirected.dynamic_metadata = metadata.as_object().cloned().map(Box::new);
        let key = MetadataKey { key: "f".into(), path: [MetadataStep::Key("to".into())].into() };
        let rules = OriginalDstConfig {
            header: Some("x-envoy-original-dst-host".into()),
            metadata_key: Some(key),
            ..OriginalDstConfig::default()
        };
        assert_eq!(picked(rules, &redirected, &header("10.9.9.9:99")).0, Some(address("10.7.7.7:77")));
    }

    #[test]
    fn a_worker_makes_one_host_for_an_address() {
        let table = table(&OriginalDstConfig::default());
        let (stats, mut made) = (stats(), Made::default());
        let info = info("127.0.0.1:1000", "10.0.0.1:80");
        let context = LbContext { info: Some(&info), ..LbContext::default() };
        let first = table.choose(&mut made, &context, &stats).expect("a host");
        let second = table.choose(&mut made, &context, &stats).expect("a host");
        assert!(Arc::ptr_eq(&first, &second));
        let mut waiting = table.destinations.waiting.lock().unwrap().take().expect("nobody has taken it");
        assert!(waiting.try_recv().is_ok_and(|host| Arc::ptr_eq(&host, &first)) && waiting.try_recv().is_err());
    }

    #[test]
    fn hosts_that_nobody_asks_for_go_after_two_looks() {
        let set = crate::testing::weighted_set(&[1, 1]);
        let hosts: Vec<_> = set.hosts().cloned().collect();
        hosts[0].note_pick();
        hosts[1].stats.cx_active.store(1, Relaxed);
        assert_eq!(used(&set).len(), 2);
        assert_eq!(used(&set).len(), 1);
        hosts[1].stats.cx_active.store(0, Relaxed);
        assert!(used(&set).is_empty());
    }
}
