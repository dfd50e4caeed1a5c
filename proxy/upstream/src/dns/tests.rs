//! Clusters against a name server in the test's process.

use crate::cluster_manager::{ClusterManager, ClusterManagerOptions};
use crate::testing::config;
use nuncio_base::stats::{Registry, StatsConfig};
use nuncio_config::address::EndpointAddress;
use nuncio_config::cluster::{BindConfig, ClusterConfig, Discovery, DnsLookupFamily, Endpoint, LocalityEndpoints};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UdpSocket;

/// Answers of the name server: None for SERVFAIL.
type Zone = Arc<Mutex<Option<Vec<Ipv4Addr>>>>;

/// A name server that gives every name the A records of the zone, and no AAAA records.
async fn name_server(zone: Zone) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut packet = [0; 1500];
        while let Ok((length, peer)) = socket.recv_from(&mut packet).await {
            let query = &packet[..length];
            let name_end = 12 + query[12..].iter().position(|byte| *byte == 0).expect("a name") + 1;
            let is_a = query[name_end..name_end + 2] == [0, 1];
            let answers = zone.lock().expect("no panic").clone();
            let mut reply = query[..2].to_vec();
            reply.extend([0x81, if answers.is_some() { 0x80 } else { 0x82 }, 0, 1]);
            let addresses = answers.filter(|_| is_a).unwrap_or_default();
            reply.extend([0, addresses.len() as u8, 0, 0, 0, 0]);
            reply.extend(&query[12..name_end + 4]);
            for ip in addresses {
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
                reply.extend(ip.octets());
            }
            let _ = socket.send_to(&reply, peer).await;
        }
    });
    address
}

fn named(discovery: Discovery, host: &str, server: SocketAddr) -> ClusterConfig {
    let mut config = config();
    config.discovery = discovery;
    config.dns.resolvers = vec![server];
    config.dns.family = DnsLookupFamily::V4Only;
    config.dns.refresh_rate = Duration::from_millis(20);
    config.endpoints.localities.push(LocalityEndpoints {
        endpoints: vec![Endpoint::new(EndpointAddress::Name { host: host.to_owned(), port: 80 })],
        ..LocalityEndpoints::default()
    });
    config
}

struct Setup {
    registry: Registry,
    manager: Arc<ClusterManager>,
}

impl Setup {
    async fn new(config: ClusterConfig) -> Setup {
        let registry = Registry::new(1, StatsConfig::default());
        let manager = ClusterManager::new(ClusterManagerOptions {
            registry: registry.clone(),
            upstream_bind: BindConfig::default(),
            control: tokio::runtime::Handle::current(),
            outlier_events: None,
            tls_contexts: Default::default(),
            event_logs: None,
        });
        manager.add(Arc::new(config)).expect("a cluster");
        tokio::time::timeout(Duration::from_secs(10), manager.initialized()).await.expect("it initializes");
        Setup { registry, manager }
    }

    fn hosts(&self) -> Vec<(u64, String)> {
        let cluster = self.manager.cluster("a").expect("the cluster");
        let set = cluster.state().priority_set.clone();
        let mut hosts: Vec<_> = set.hosts().map(|host| (host.id, host.shown_address().1.to_string())).collect();
        hosts.sort_by(|a, b| a.1.cmp(&b.1));
        hosts
    }

    fn count(&self, name: &str) -> u64 {
        self.registry.counter_value(&format!("cluster.a.{name}")).expect("a counter")
    }

    async fn until(&self, what: &str, condition: impl Fn(&Setup) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !condition(self) {
            assert!(tokio::time::Instant::now() < deadline, "never: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn zone(addresses: &[[u8; 4]]) -> Option<Vec<Ipv4Addr>> {
    Some(addresses.iter().map(|octets| Ipv4Addr::from(*octets)).collect())
}

#[tokio::test]
async fn strict_dns_follows_the_answers_and_keeps_hosts_that_stay() {
    let answers: Zone = Arc::new(Mutex::new(zone(&[[127, 0, 0, 1], [127, 0, 0, 2]])));
    let server = name_server(answers.clone()).await;
    let setup = Setup::new(named(Discovery::StrictDns, "one.test.", server)).await;
    let first = setup.hosts();
    assert_eq!(first.iter().map(|host| host.1.as_str()).collect::<Vec<_>>(), ["127.0.0.1:80", "127.0.0.2:80"]);
    setup.until("an answer without change", |setup| setup.count("update_no_rebuild") > 0).await;
    *answers.lock().expect("no panic") = zone(&[[127, 0, 0, 2], [127, 0, 0, 3]]);
    setup.until("the new host", |setup| setup.hosts().last().is_some_and(|host| host.1 == "127.0.0.3:80")).await;
    let second = setup.hosts();
    assert_eq!((second.len(), second[0].0), (2, first[1].0));
    assert_eq!(setup.count("membership_change"), 2);
    // A name server that fails changes nothing.
    *answers.lock().expect("no panic") = None;
    setup.until("a failure", |setup| setup.count("update_failure") > 0).await;
    assert_eq!(setup.hosts(), second);
}

#[tokio::test]
async fn logical_dns_moves_its_one_host() {
    let answers: Zone = Arc::new(Mutex::new(zone(&[[127, 0, 0, 1]])));
    let server = name_server(answers.clone()).await;
    let setup = Setup::new(named(Discovery::LogicalDns, "one.test.", server)).await;
    let first = setup.hosts();
    assert_eq!(first[0].1, "127.0.0.1:80");
    *answers.lock().expect("no panic") = zone(&[[127, 0, 0, 9]]);
    setup.until("the move", |setup| setup.hosts()[0].1 == "127.0.0.9:80").await;
    assert_eq!((setup.hosts()[0].0, setup.count("membership_change")), (first[0].0, 1));
}

#[tokio::test]
async fn a_failed_first_question_ends_the_warming() {
    let server = name_server(Arc::new(Mutex::new(None))).await;
    let setup = Setup::new(named(Discovery::StrictDns, "one.test.", server)).await;
    assert!(setup.hosts().is_empty());
    assert!(setup.count("update_failure") > 0);
}

#[tokio::test]
async fn localhost_and_literals_need_no_name_server() {
    let nobody: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    for name in ["localhost", "127.0.0.1"] {
        let setup = Setup::new(named(Discovery::StrictDns, name, nobody)).await;
        assert_eq!(setup.hosts()[0].1, "127.0.0.1:80", "{name}");
    }
}
