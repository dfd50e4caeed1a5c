//! DNS for clusters: names to addresses, by hickory, on the control thread.
//!
//! `/etc/hosts`, `localhost` and IP literals need no network. Answers are not cached here: the refresh rate of each
//! cluster says how often it asks, as in Envoy. `cluster` keeps clusters up to date with it.

pub(crate) mod cluster;
#[cfg(test)]
mod tests;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use nuncio_config::cluster::{DnsConfig, DnsLookupFamily};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Addresses of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// In the order of the answer; empty when the name has none.
    pub(crate) addresses: Vec<IpAddr>,
    /// The shortest time to live.
    pub(crate) ttl: Duration,
}

/// A lookup failed: no server answered, or none would.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DnsError(String);

/// What makes two clusters share a resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    resolvers: Vec<SocketAddr>,
    use_tcp: bool,
    no_default_search_domain: bool,
    strategy: Strategy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    V4,
    V6,
    V6ThenV4,
    V4ThenV6,
    Both,
}

/// The resolvers of a process, one per kind of question.
#[derive(Default)]
pub(crate) struct Resolvers {
    made: Mutex<Vec<(Key, Resolver)>>,
}

/// Asks in the way that one cluster configures.
#[derive(Clone)]
pub(crate) struct Resolver {
    inner: Arc<TokioResolver>,
}

impl Resolvers {
    /// The resolver for `config`.
    ///
    /// # Errors
    /// When the system's configuration cannot be used.
    pub(crate) fn get(&self, config: &DnsConfig) -> Result<Resolver, DnsError> {
        let key = Key {
            resolvers: config.resolvers.clone(),
            use_tcp: config.use_tcp,
            no_default_search_domain: config.no_default_search_domain,
            strategy: match config.family {
                DnsLookupFamily::Auto => Strategy::V6ThenV4,
                DnsLookupFamily::V4Only => Strategy::V4,
                DnsLookupFamily::V6Only => Strategy::V6,
                DnsLookupFamily::V4Preferred => Strategy::V4ThenV6,
                DnsLookupFamily::All => Strategy::Both,
            },
        };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, resolver)) = made.iter().find(|(other, _)| *other == key) {
            return Ok(resolver.clone());
        }
        let resolver = Resolver { inner: Arc::new(build(&key)?) };
        made.push((key, resolver.clone()));
        Ok(resolver)
    }
}

fn build(key: &Key) -> Result<TokioResolver, DnsError> {
    let connection = |port: u16| {
        let mut udp = ConnectionConfig::udp();
        let mut tcp = ConnectionConfig::tcp();
        (udp.port, tcp.port) = (port, port);
        if key.use_tcp { vec![tcp] } else { vec![udp, tcp] }
    };
    let system = hickory_resolver::system_conf::read_system_conf();
    let (mut config, mut options) = match (system, key.resolvers.is_empty()) {
        (Ok(system), _) => system,
        // Without resolv.conf, names in /etc/hosts still work.
        (Err(_), _) => (ResolverConfig::from_parts(None, Vec::new(), Vec::new()), ResolverOpts::default()),
    };
    let (domain, search, mut servers) = config.into_parts();
    if !key.resolvers.is_empty() {
        let own = key.resolvers.iter();
        servers = own.map(|addr| NameServerConfig::new(addr.ip(), true, connection(addr.port()))).collect();
    } else if key.use_tcp {
        for server in &mut servers {
            server.connections = connection(53);
        }
    }
    config = if key.no_default_search_domain {
        ResolverConfig::from_parts(None, Vec::new(), servers)
    } else {
        ResolverConfig::from_parts(domain, search, servers)
    };
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Always;
    options.ip_strategy = match key.strategy {
        Strategy::V4 => LookupIpStrategy::Ipv4Only,
        Strategy::V6 => LookupIpStrategy::Ipv6Only,
        Strategy::V6ThenV4 => LookupIpStrategy::Ipv6thenIpv4,
        Strategy::V4ThenV6 => LookupIpStrategy::Ipv4thenIpv6,
        Strategy::Both => LookupIpStrategy::Ipv4AndIpv6,
    };
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().map_err(|error| DnsError(error.to_string()))
}

impl Resolver {
    /// The addresses of `name`. A name that does not exist, or has no address, has an empty answer.
    ///
    /// # Errors
    /// [`DnsError`] when nobody answers.
    pub(crate) async fn resolve(&self, name: &str) -> Result<Answer, DnsError> {
        if let Ok(ip) = name.parse::<IpAddr>() {
            return Ok(Answer { addresses: vec![ip], ttl: Duration::ZERO });
        }
        match self.inner.lookup_ip(name).await {
            Ok(lookup) => {
                let records = lookup.as_lookup().answers().iter();
                let ttl = records.filter(|record| matches!(record.data, RData::A(_) | RData::AAAA(_)));
                let ttl = ttl.map(|record| record.ttl).min().unwrap_or(0);
                let mut addresses: Vec<IpAddr> = Vec::new();
                for ip in lookup.iter() {
                    if !addresses.contains(&ip) {
                        addresses.push(ip);
                    }
                }
                Ok(Answer { addresses, ttl: Duration::from_secs(u64::from(ttl)) })
            }
            Err(error) if error.is_nx_domain() || error.is_no_records_found() => {
                Ok(Answer { addresses: Vec::new(), ttl: Duration::ZERO })
            }
            Err(error) => Err(DnsError(error.to_string())),
        }
    }
}
