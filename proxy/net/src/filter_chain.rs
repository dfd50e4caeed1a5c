//! Which filter chain takes a connection: Envoy's match order as an index.
//!
//! Built when a listener is configured, looked up once per connection without scanning the chains. The criteria come one
//! after another: destination port, destination IP, server name, transport protocol, application protocol, direct source
//! IP, source type, source IP, source port. At each the most specific entry wins, and there is no way back: when its chains
//! fail a later criterion, no other is tried and the default filter chain takes the connection.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nuncio_config::listener::{FilterChainMatch, SourceType};
use prefix_trie::PrefixMap;
use rustc_hash::FxHashMap;

use crate::address::Address;
use crate::connection::{ConnectionInfo, ProtocolList, TransportProtocol, is_local};

/// What is known about a connection when its chain is chosen.
#[derive(Debug, Clone, Copy)]
pub struct ChainInput<'a> {
    /// Local address, restored.
    pub local: &'a Address,
    /// Peer, restored.
    pub remote: &'a Address,
    /// Peer of the socket.
    pub direct_remote: &'a Address,
    /// SNI in lower case; empty for none.
    pub server_name: &'a str,
    /// What the first bytes looked like.
    pub transport_protocol: TransportProtocol,
    /// ALPN names of the client.
    pub application_protocols: &'a ProtocolList,
}

impl<'a> From<&'a ConnectionInfo> for ChainInput<'a> {
    fn from(info: &'a ConnectionInfo) -> Self {
        Self {
            local: &info.local_address,
            remote: &info.remote_address,
            direct_remote: &info.direct_remote_address,
            server_name: info.requested_server_name.as_deref().unwrap_or(""),
            transport_protocol: info.detected_transport_protocol,
            application_protocols: &info.application_protocols,
        }
    }
}

/// A criterion of the match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Criterion {
    /// `destination_port`.
    DestinationPort,
    /// `prefix_ranges`.
    DestinationIp,
    /// `server_names`.
    ServerName,
    /// `transport_protocol`.
    TransportProtocol,
    /// `application_protocols`.
    ApplicationProtocol,
    /// `direct_source_prefix_ranges`.
    DirectSourceIp,
    /// `source_type`.
    SourceType,
    /// `source_prefix_ranges`.
    SourceIp,
    /// `source_ports`.
    SourcePort,
}

/// Hears what each criterion chose; for explaining a match.
pub trait MatchTracer {
    /// The criterion chose `entry` (empty: the entry of chains that do not ask), or found nothing.
    fn step(&mut self, criterion: Criterion, entry: Option<String>);
}

/// Chains that cannot be told apart, or names that cannot be matched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Two chains ask for exactly the same.
    #[error("filter chain '{name}' has the same matching rules defined as '{other}'")]
    Duplicate {
        /// The second chain.
        name: Box<str>,
        /// The first chain.
        other: Box<str>,
    },
    /// Two chains can both be the best match for a connection.
    #[error("multiple filter chains with overlapping matching rules are defined ('{name}' and '{other}')")]
    Overlap {
        /// The second chain.
        name: Box<str>,
        /// The first chain.
        other: Box<str>,
    },
    /// A `*` that is not the whole first label.
    #[error("partial wildcards are not supported in \"server_names\" ('{server_name}' in filter chain '{name}')")]
    PartialWildcard {
        /// The chain.
        name: Box<str>,
        /// The name at fault.
        server_name: Box<str>,
    },
}

type Ports = FxHashMap<u16, u32>;
type SourceTypes = [IpTrie<Ports>; 3];
type Protocols = FxHashMap<Box<[u8]>, IpTrie<SourceTypes>>;
type Transports = FxHashMap<Box<str>, Protocols>;
type Names = FxHashMap<Box<str>, Transports>;

/// The index. Leaves are positions in the list of chains that it was built from.
#[derive(Debug, Default)]
pub struct FilterChainIndex {
    ports: FxHashMap<u16, IpTrie<Names>>,
}

/// Longest-prefix maps of both IP versions.
#[derive(Debug, Default)]
struct IpTrie<T> {
    v4: PrefixMap<Ipv4Net, T>,
    v6: PrefixMap<Ipv6Net, T>,
}

impl<T: Default> IpTrie<T> {
    /// The entries for these ranges; for none, those of all addresses of both versions.
    fn visit(
        &mut self,
        ranges: &[IpNet],
        mut visit: impl FnMut(&mut T) -> Result<(), ChainError>,
    ) -> Result<(), ChainError> {
        if ranges.is_empty() {
            visit(self.v4.entry(Ipv4Net::default()).or_default())?;
            return visit(self.v6.entry(Ipv6Net::default()).or_default());
        }
        for range in ranges {
            match range.trunc() {
                IpNet::V4(range) => visit(self.v4.entry(range).or_default())?,
                IpNet::V6(range) => visit(self.v6.entry(range).or_default())?,
            }
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    fn find(&self, ip: IpAddr) -> Option<(IpNet, &T)> {
        match ip {
            IpAddr::V4(ip) => self.v4.get_lpm(&Ipv4Net::from(ip)).map(|(net, value)| (IpNet::V4(net), value)),
            IpAddr::V6(ip) => self.v6.get_lpm(&Ipv6Net::from(ip)).map(|(net, value)| (IpNet::V6(net), value)),
        }
    }
}

/// An address that only ranges of all addresses hold; Envoy's stand-in for Unix sockets.
const NO_IP: IpAddr = IpAddr::V4(Ipv4Addr::BROADCAST);

impl FilterChainIndex {
    /// Builds the index over chains given by name and match.
    ///
    /// # Errors
    /// [`ChainError`] for the first chain that cannot be added.
    pub fn new<'a>(chains: impl IntoIterator<Item = (&'a str, &'a FilterChainMatch)>) -> Result<Self, ChainError> {
        let mut index = Self::default();
        let chains: Vec<_> = chains.into_iter().collect();
        for (at, (name, matches)) in chains.iter().enumerate() {
            index.add(at, name, matches).map_err(|error| match error {
                // `add` knows the other chain only by its position.
                ChainError::Overlap { name, other } => {
                    let other = other.parse::<usize>().ok().and_then(|at| chains.get(at));
                    let (other, earlier) = other.map_or(("", None), |(name, matches)| (*name, Some(*matches)));
                    if earlier == Some(*matches) {
                        ChainError::Duplicate { name, other: other.into() }
                    } else {
                        ChainError::Overlap { name, other: other.into() }
                    }
                }
                other => other,
            })?;
        }
        Ok(index)
    }

    fn add(&mut self, at: usize, name: &str, matches: &FilterChainMatch) -> Result<(), ChainError> {
        let server_names = server_name_keys(name, matches)?;
        let any: [Box<[u8]>; 1] = [Box::default()];
        let protocols: Vec<Box<[u8]>> =
            matches.application_protocols.iter().map(|protocol| protocol.as_bytes().into()).collect();
        let protocols = if protocols.is_empty() { &any[..] } else { &protocols };
        let ports = if matches.source_ports.is_empty() { &[0][..] } else { &matches.source_ports };
        let position = u32::try_from(at).unwrap_or(u32::MAX);
        let names = self.ports.entry(matches.destination_port.unwrap_or(0)).or_default();
        names.visit(&matches.prefix_ranges, |names| {
            for server_name in &server_names {
                let transports = names.entry(server_name.clone()).or_default();
                let by_protocol = transports.entry(matches.transport_protocol.clone()).or_default();
                for protocol in protocols {
                    let direct = by_protocol.entry(protocol.clone()).or_default();
                    direct.visit(&matches.direct_source_prefix_ranges, |types| {
                        types[matches.source_type as usize].visit(&matches.source_prefix_ranges, |leaf| {
                            for port in ports {
                                match leaf.insert(*port, position) {
                                    // One chain may repeat a value.
                                    Some(other) if other != position => {
                                        return Err(ChainError::Overlap {
                                            name: name.into(),
                                            other: other.to_string().into(),
                                        });
                                    }
                                    _ => {}
                                }
                            }
                            Ok(())
                        })
                    })?;
                }
            }
            Ok(())
        })
    }

    /// The chain for a connection; none means the default filter chain. The tracer, if any, hears every step.
    pub fn find(&self, input: &ChainInput<'_>, mut tracer: Option<&mut dyn MatchTracer>) -> Option<usize> {
        let mut step = |criterion: Criterion, entry: Option<&dyn Fn() -> String>| {
            if let Some(tracer) = &mut tracer {
                tracer.step(criterion, entry.map(|entry| entry()));
            }
        };

        let port = input.local.port().unwrap_or(0);
        let (port, names) = match self.ports.get(&port) {
            Some(names) if port != 0 => (Some(port), Some(names)),
            _ => (None, self.ports.get(&0)),
        };
        let Some(names) = names else {
            step(Criterion::DestinationPort, None);
            return None;
        };
        step(Criterion::DestinationPort, Some(&|| text(port)));

        let Some((range, names)) = names.find(input.local.ip().unwrap_or(NO_IP)) else {
            step(Criterion::DestinationIp, None);
            return None;
        };
        step(Criterion::DestinationIp, Some(&|| range.to_string()));

        let Some((name, transports)) = find_name(names, input.server_name) else {
            step(Criterion::ServerName, None);
            return None;
        };
        step(Criterion::ServerName, Some(&|| name.to_owned()));

        let wanted = input.transport_protocol.as_str();
        let Some((transport, protocols)) = transports.get_key_value(wanted).or_else(|| transports.get_key_value(""))
        else {
            step(Criterion::TransportProtocol, None);
            return None;
        };
        step(Criterion::TransportProtocol, Some(&|| transport.to_string()));

        let offered = || input.application_protocols.iter().find_map(|name| protocols.get_key_value(name));
        let Some((protocol, direct)) = offered().or_else(|| protocols.get_key_value(&[][..])) else {
            step(Criterion::ApplicationProtocol, None);
            return None;
        };
        step(Criterion::ApplicationProtocol, Some(&|| String::from_utf8_lossy(protocol).into_owned()));

        let Some((range, types)) = direct.find(input.direct_remote.ip().unwrap_or(NO_IP)) else {
            step(Criterion::DirectSourceIp, None);
            return None;
        };
        step(Criterion::DirectSourceIp, Some(&|| range.to_string()));

        let (kind, sources) = find_type(types, input);
        if sources.is_empty() {
            step(Criterion::SourceType, None);
            return None;
        }
        step(Criterion::SourceType, Some(&|| format!("{kind:?}")));

        let Some((range, ports)) = sources.find(input.remote.ip().unwrap_or(NO_IP)) else {
            step(Criterion::SourceIp, None);
            return None;
        };
        step(Criterion::SourceIp, Some(&|| range.to_string()));

        let port = input.remote.port().unwrap_or(0);
        let found =
            ports.get(&port).map(|chain| (Some(port), chain)).or_else(|| ports.get(&0).map(|chain| (None, chain)));
        let Some((port, chain)) = found else {
            step(Criterion::SourcePort, None);
            return None;
        };
        step(Criterion::SourcePort, Some(&|| text(port.filter(|port| *port != 0))));
        Some(*chain as usize)
    }

    /// Whether any chain asks for what only the TLS inspector finds out.
    pub fn needs_tls_inspector<'a>(chains: impl IntoIterator<Item = &'a FilterChainMatch>) -> bool {
        chains.into_iter().any(|matches| {
            &*matches.transport_protocol == "tls"
                || matches.transport_protocol.is_empty()
                    && (!matches.server_names.is_empty() || !matches.application_protocols.is_empty())
        })
    }
}

fn text(port: Option<u16>) -> String {
    port.map_or_else(String::new, |port| port.to_string())
}

/// Keys of the name map: the names themselves, `.example.com` for `*.example.com`, and empty for any.
fn server_name_keys(chain: &str, matches: &FilterChainMatch) -> Result<Vec<Box<str>>, ChainError> {
    if matches.server_names.is_empty() {
        return Ok(vec![Box::default()]);
    }
    let key = |name: &str| {
        let key = if name.starts_with("*.") { &name[1..] } else { name };
        if key.contains('*') {
            return Err(ChainError::PartialWildcard { name: chain.into(), server_name: name.into() });
        }
        Ok(key.to_ascii_lowercase().into())
    };
    matches.server_names.iter().map(|name| key(name)).collect()
}

/// The entry of the exact name, of the longest wildcard suffix, or of chains that do not ask.
fn find_name<'a>(names: &'a Names, wanted: &str) -> Option<(&'a str, &'a Transports)> {
    let find = |key: &str| names.get_key_value(key).map(|(name, transports)| (&**name, transports));
    if let Some(exact) = find(wanted) {
        return Some(exact);
    }
    let mut from = 1;
    while let Some(at) = wanted.get(from..).and_then(|rest| rest.find('.')).map(|at| at + from) {
        if at + 1 >= wanted.len() {
            break;
        }
        if let Some(wildcard) = find(&wanted[at..]) {
            return Some(wildcard);
        }
        from = at + 1;
    }
    find("")
}

/// The map of the connection's own source type if a chain asks for it, else the one of any type.
fn find_type<'a>(types: &'a SourceTypes, input: &ChainInput<'_>) -> (SourceType, &'a IpTrie<Ports>) {
    let local = &types[SourceType::SameIpOrLoopback as usize];
    let external = &types[SourceType::External as usize];
    if !local.is_empty() || !external.is_empty() {
        let is_local = is_local(input.local, input.remote);
        if is_local && !local.is_empty() {
            return (SourceType::SameIpOrLoopback, local);
        }
        if !is_local && !external.is_empty() {
            return (SourceType::External, external);
        }
    }
    (SourceType::Any, &types[SourceType::Any as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> Address {
        Address::Ip(text.parse().expect("an address"))
    }

    struct Case {
        local: Address,
        remote: Address,
        name: &'static str,
        transport: TransportProtocol,
        protocols: ProtocolList,
    }

    impl Default for Case {
        fn default() -> Self {
            Self {
                local: ip("10.0.0.1:443"),
                remote: ip("192.168.1.5:5000"),
                name: "",
                transport: TransportProtocol::RawBuffer,
                protocols: ProtocolList::default(),
            }
        }
    }

    impl Case {
        fn input(&self) -> ChainInput<'_> {
            ChainInput {
                local: &self.local,
                remote: &self.remote,
                direct_remote: &self.remote,
                server_name: self.name,
                transport_protocol: self.transport,
                application_protocols: &self.protocols,
            }
        }
    }

    fn index(chains: &[FilterChainMatch]) -> FilterChainIndex {
        FilterChainIndex::new(chains.iter().map(|chain| ("", chain))).expect("no conflict")
    }

    fn any() -> FilterChainMatch {
        FilterChainMatch::default()
    }

    #[test]
    fn exact_names_go_before_wildcards_and_longer_suffixes_first() {
        let named = |name: &str| FilterChainMatch { server_names: vec![name.into()], ..any() };
        let index = index(&[named("a.b.example.com"), named("*.b.example.com"), named("*.example.com"), any()]);
        let find = |name| index.find(&Case { name, ..Case::default() }.input(), None);
        assert_eq!(find("a.b.example.com"), Some(0));
        assert_eq!(find("x.b.example.com"), Some(1));
        assert_eq!(find("x.y.b.example.com"), Some(1));
        assert_eq!(find("b.example.com"), Some(2));
        assert_eq!(find("example.com"), Some(3));
        assert_eq!(find(""), Some(3));
    }

    #[test]
    fn there_is_no_way_back_from_a_more_specific_entry() {
        let index = index(&[
            FilterChainMatch { destination_port: Some(443), server_names: vec!["a.com".into()], ..any() },
            any(),
        ]);
        assert_eq!(index.find(&Case::default().input(), None), None);
        let other_port = Case { local: ip("10.0.0.1:80"), ..Case::default() };
        assert_eq!(index.find(&other_port.input(), None), Some(1));
    }

    #[test]
    fn the_longest_prefix_wins() {
        let range = |text: &str| FilterChainMatch { prefix_ranges: vec![text.parse().expect("a range")], ..any() };
        let index = index(&[range("10.0.0.0/8"), range("10.0.0.0/24"), range("::/0")]);
        assert_eq!(index.find(&Case::default().input(), None), Some(1));
        let find = |local| index.find(&Case { local, ..Case::default() }.input(), None);
        assert_eq!(find(ip("10.9.0.1:443")), Some(0));
        assert_eq!(find(ip("[::1]:443")), Some(2));
        assert_eq!(find(ip("11.0.0.1:443")), None);
        assert_eq!(find(Address::Pipe("/x".into())), None);
    }

    #[test]
    fn the_clients_order_of_protocols_decides() {
        let protocol = |name: &str| FilterChainMatch { application_protocols: vec![name.into()], ..any() };
        let index = index(&[protocol("h2"), protocol("http/1.1"), any()]);
        let find = |names: &[&[u8]]| {
            let protocols = ProtocolList::new(names.iter().copied());
            index.find(&Case { protocols, ..Case::default() }.input(), None)
        };
        assert_eq!(find(&[b"http/1.1", b"h2"]), Some(1));
        assert_eq!(find(&[b"foo", b"h2"]), Some(0));
        assert_eq!(find(&[b"foo"]), Some(2));
    }

    #[test]
    fn source_types_and_ports_come_last() {
        let index = index(&[
            FilterChainMatch { source_type: SourceType::SameIpOrLoopback, ..any() },
            FilterChainMatch { source_type: SourceType::External, source_ports: vec![5000], ..any() },
            any(),
        ]);
        let find = |remote| index.find(&Case { remote, ..Case::default() }.input(), None);
        assert_eq!(find(ip("127.0.0.1:1")), Some(0));
        assert_eq!(find(ip("10.0.0.1:1")), Some(0));
        assert_eq!(find(ip("1.1.1.1:5000")), Some(1));
        assert_eq!(find(ip("1.1.1.1:5001")), None);
    }

    #[test]
    fn chains_that_cannot_be_told_apart_are_refused() {
        let names = |names: &[&str]| FilterChainMatch {
            server_names: names.iter().map(|name| (*name).into()).collect(),
            ..any()
        };
        let error = FilterChainIndex::new([("x", &names(&["a"])), ("y", &names(&["a"]))]).expect_err("equal");
        assert_eq!(error.to_string(), "filter chain 'y' has the same matching rules defined as 'x'");
        let error = FilterChainIndex::new([("x", &names(&["a"])), ("y", &names(&["b", "a"]))]).expect_err("overlap");
        assert_eq!(
            error.to_string(),
            "multiple filter chains with overlapping matching rules are defined ('y' and 'x')"
        );
        let error = FilterChainIndex::new([("x", &names(&["a*.com"]))]).expect_err("wildcard");
        assert!(matches!(error, ChainError::PartialWildcard { .. }));
    }

    #[test]
    fn the_tracer_hears_every_step() {
        struct Steps(Vec<(Criterion, Option<String>)>);
        impl MatchTracer for Steps {
            fn step(&mut self, criterion: Criterion, entry: Option<String>) {
                self.0.push((criterion, entry));
            }
        }
        let index = index(&[FilterChainMatch { server_names: vec!["*.a.com".into()], ..any() }]);
        let mut steps = Steps(Vec::new());
        assert_eq!(index.find(&Case { name: "x.a.com", ..Case::default() }.input(), Some(&mut steps)), Some(0));
        assert_eq!(steps.0.len(), 9);
        assert_eq!(steps.0[2], (Criterion::ServerName, Some(".a.com".to_owned())));
        let mut steps = Steps(Vec::new());
        assert_eq!(index.find(&Case::default().input(), Some(&mut steps)), None);
        assert_eq!(steps.0.last(), Some(&(Criterion::ServerName, None)));
    }

    /// The specification by scanning: narrow the set of chains criterion by criterion.
    fn naive(chains: &[FilterChainMatch], input: &ChainInput<'_>) -> Option<usize> {
        let mut left: Vec<usize> = (0..chains.len()).collect();
        let port = input.local.port();
        let exact: Vec<_> =
            left.iter().copied().filter(|at| port.is_some() && chains[*at].destination_port == port).collect();
        left = if exact.is_empty() {
            left.into_iter().filter(|at| chains[*at].destination_port.is_none()).collect()
        } else {
            exact
        };
        let by_range = |left: Vec<usize>, ip: IpAddr, ranges: &dyn Fn(usize) -> Vec<IpNet>| {
            let effective = |at: usize| {
                let ranges = ranges(at);
                if ranges.is_empty() {
                    vec![IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]
                } else {
                    ranges.iter().map(IpNet::trunc).collect()
                }
            };
            let holding = |at: usize| effective(at).into_iter().filter(|range| range.contains(&ip));
            let best = left.iter().flat_map(|at| holding(*at)).max_by_key(IpNet::prefix_len);
            left.into_iter().filter(|at| best.is_some_and(|best| effective(*at).contains(&best))).collect::<Vec<_>>()
        };
        let ip_of = |address: &Address| address.ip().unwrap_or(NO_IP);
        left = by_range(left, ip_of(input.local), &|at| chains[at].prefix_ranges.clone());
        let mut wanted = vec![input.server_name.to_owned()];
        let labels: Vec<_> = input.server_name.split('.').collect();
        wanted.extend((1..labels.len()).map(|at| format!("*.{}", labels[at..].join("."))));
        let named = wanted.iter().filter(|name| !name.is_empty()).map(|name| {
            left.iter()
                .copied()
                .filter(|at| chains[*at].server_names.iter().any(|own| **own == **name))
                .collect::<Vec<_>>()
        });
        left = named
            .into_iter()
            .find(|found| !found.is_empty())
            .unwrap_or_else(|| left.iter().copied().filter(|at| chains[*at].server_names.is_empty()).collect());
        let transport = |wanted: &str| {
            left.iter().copied().filter(|at| &*chains[*at].transport_protocol == wanted).collect::<Vec<_>>()
        };
        let exact = transport(input.transport_protocol.as_str());
        left = if exact.is_empty() { transport("") } else { exact };
        let protocols = input.application_protocols.iter().map(|name| {
            let has = |at: &usize| chains[*at].application_protocols.iter().any(|own| own.as_bytes() == name);
            left.iter().copied().filter(has).collect::<Vec<_>>()
        });
        left = protocols.into_iter().find(|found| !found.is_empty()).unwrap_or_else(|| {
            left.iter().copied().filter(|at| chains[*at].application_protocols.is_empty()).collect()
        });
        left = by_range(left, ip_of(input.direct_remote), &|at| chains[at].direct_source_prefix_ranges.clone());
        let own = if is_local(input.local, input.remote) { SourceType::SameIpOrLoopback } else { SourceType::External };
        let of_type = |kind| left.iter().copied().filter(|at| chains[*at].source_type == kind).collect::<Vec<_>>();
        let exact = of_type(own);
        left = if exact.is_empty() { of_type(SourceType::Any) } else { exact };
        left = by_range(left, ip_of(input.remote), &|at| chains[at].source_prefix_ranges.clone());
        let port = input.remote.port().unwrap_or(0);
        let exact = left.iter().copied().find(|at| chains[*at].source_ports.contains(&port));
        exact.or_else(|| left.iter().copied().find(|at| chains[*at].source_ports.is_empty()))
    }

    fn some_of<T: Clone + std::fmt::Debug + 'static>(values: Vec<T>) -> impl Strategy<Value = Vec<T>> {
        proptest::sample::subsequence(values.clone(), 0..=values.len().min(2))
    }

    fn ranges() -> impl Strategy<Value = Vec<IpNet>> {
        let all = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "::/0", "fd00::/8"];
        some_of(all.iter().map(|text| text.parse().expect("a range")).collect())
    }

    fn matches() -> impl Strategy<Value = FilterChainMatch> {
        let names = ["a.com", "b.a.com", "*.a.com", "*.b.a.com", "*.com"];
        (
            proptest::option::of(prop_oneof![Just(80u16), Just(443)]),
            ranges(),
            some_of(names.iter().map(|name| Box::<str>::from(*name)).collect()),
            prop_oneof![Just(""), Just("tls"), Just("raw_buffer")],
            some_of(vec![Box::<str>::from("h2"), "http/1.1".into()]),
            ranges(),
            prop_oneof![Just(SourceType::Any), Just(SourceType::SameIpOrLoopback), Just(SourceType::External)],
            ranges(),
            some_of(vec![1000u16, 2000]),
        )
            .prop_map(|(port, dest, names, transport, protocols, direct, kind, source, ports)| {
                FilterChainMatch {
                    destination_port: port,
                    prefix_ranges: dest,
                    server_names: names,
                    transport_protocol: transport.into(),
                    application_protocols: protocols,
                    direct_source_prefix_ranges: direct,
                    source_type: kind,
                    source_prefix_ranges: source,
                    source_ports: ports,
                }
            })
    }

    fn address() -> impl Strategy<Value = Address> {
        let ips = ["10.1.2.3", "10.1.9.9", "10.9.9.9", "127.0.0.1", "[fd00::1]", "[::1]"];
        prop_oneof![
            8 => (proptest::sample::select(ips.to_vec()), proptest::sample::select(vec![80, 443, 1000, 2000, 3000]))
                .prop_map(|(host, port)| ip(&format!("{host}:{port}"))),
            1 => Just(Address::Pipe("/s".into())),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn the_index_agrees_with_a_scan(
            candidates in proptest::collection::vec(matches(), 1..12),
            (local, remote, direct) in (address(), address(), address()),
            name in proptest::sample::select(vec!["", "a.com", "b.a.com", "c.b.a.com", "x.com", "org"]),
            transport in proptest::sample::select(vec![TransportProtocol::Tls, TransportProtocol::RawBuffer]),
            protocols in some_of(vec![&b"http/1.1"[..], b"h2", b"foo"]),
        ) {
            let mut chains: Vec<FilterChainMatch> = Vec::new();
            for chain in candidates {
                let all = chains.iter().chain([&chain]).map(|chain| ("", chain));
                if FilterChainIndex::new(all).is_ok() {
                    chains.push(chain);
                }
            }
            let protocols = ProtocolList::new(protocols);
            let input = ChainInput {
                local: &local,
                remote: &remote,
                direct_remote: &direct,
                server_name: name,
                transport_protocol: transport,
                application_protocols: &protocols,
            };
            prop_assert_eq!(index(&chains).find(&input, None), naive(&chains, &input));
        }
    }
}
