//! The generic matcher tree (`xds.type.matcher.v3.Matcher`): predicates and maps over inputs, which lead to actions.
//!
//! Decoded once, with the action decoded by whoever uses the tree (routes, filter chains), and then walked for each request
//! or connection. Inputs are named by [`MatchInput`]; [`MatchTree::compile`] turns them into what the user looks up fast, and a
//! [`MatchData`] gives their values. Knows no headers and no sockets.

mod decode;

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;
use rustc_hash::FxHashMap;
use xxhash_rust::xxh64::xxh64;

use crate::matchers::{RuntimeFraction, StringMatcher};

/// A tree whose leaves are actions of type `A`, over inputs of type `I`.
#[derive(Debug, Clone)]
pub struct MatchTree<A, I = MatchInput> {
    kind: MatchKind<A, I>,
    on_no_match: Option<Box<OnMatch<A, I>>>,
}

/// An element of a list.
type Field<A, I> = (Predicate<I>, OnMatch<A, I>);

/// An element of a map.
type Entry<A, I> = (Box<[u8]>, OnMatch<A, I>);

#[derive(Debug, Clone)]
enum MatchKind<A, I> {
    /// `matcher_list`: the first that holds.
    List(Box<[Field<A, I>]>),
    /// `exact_match_map`.
    Exact(I, FxHashMap<Box<[u8]>, OnMatch<A, I>>),
    /// `prefix_match_map`, longest keys first.
    Prefix(I, Box<[Entry<A, I>]>),
    /// An IP matcher: ranges from the longest to the shortest; exclusive ones end the search.
    Ip(I, Box<[(IpNet, usize)]>, Box<[(OnMatch<A, I>, bool)]>),
    /// A server name matcher.
    Names(I, Names, Box<[OnMatch<A, I>]>),
    /// Neither: `on_no_match` decides.
    Empty,
}

/// Server names and the positions of what they lead to.
#[derive(Debug, Clone, Default)]
struct Names {
    exact: FxHashMap<Box<[u8]>, usize>,
    /// `example.com` for `*.example.com`.
    suffixes: FxHashMap<Box<[u8]>, usize>,
    /// `*`.
    any: Option<usize>,
}

impl Names {
    /// Positions for `name`, the best first: the whole name, then its suffixes from the longest on, then any.
    fn find<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
        let exact = self.exact.get(name).copied();
        let dots = name.iter().enumerate().filter(|(_, byte)| **byte == b'.');
        let suffixes = dots.filter_map(|(at, _)| self.suffixes.get(name.get(at + 1..)?).copied());
        exact.into_iter().chain(suffixes).chain(self.any).filter(|_| !name.is_empty())
    }
}

/// What a match leads to.
#[derive(Debug, Clone)]
struct OnMatch<A, I> {
    keep_matching: bool,
    then: Then<A, I>,
}

#[derive(Debug, Clone)]
enum Then<A, I> {
    Matcher(Box<MatchTree<A, I>>),
    Action(A),
}

#[derive(Debug, Clone)]
enum Predicate<I> {
    Single(I, Condition),
    Or(Box<[Predicate<I>]>),
    And(Box<[Predicate<I>]>),
    Not(Box<Predicate<I>>),
}

#[derive(Debug, Clone)]
enum Condition {
    String(StringMatcher),
    Ip(Box<[IpNet]>),
    /// The share of values, by their hash with this seed.
    Fraction(RuntimeFraction, u64),
    /// The hash of the value with `seed`, modulo `modulo`, is `threshold` or more.
    Hash {
        seed: u64,
        modulo: u64,
        threshold: u64,
    },
}

/// What a tree can look at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MatchInput {
    /// A request header, lower-cased; lines joined by commas.
    RequestHeader(Box<str>),
    /// A request trailer.
    RequestTrailer(Box<str>),
    /// A response header.
    ResponseHeader(Box<str>),
    /// A response trailer.
    ResponseTrailer(Box<str>),
    /// The first value of a query parameter.
    QueryParameter(Box<str>),
    /// Status of the response.
    StatusCode,
    /// Its class, such as `5xx`.
    StatusCodeClass,
    /// IP address of the local end.
    DestinationIp,
    /// Port of the local end.
    DestinationPort,
    /// IP address of the client.
    SourceIp,
    /// Port of the client.
    SourcePort,
    /// IP address of the peer, whatever it says of the client.
    DirectSourceIp,
    /// `local` where the peer is on this machine.
    SourceType,
    /// Server name that TLS asks for.
    ServerName,
    /// `tls` or `raw_buffer`.
    TransportProtocol,
    /// Protocols that the client offers, quoted.
    ApplicationProtocol,
    /// Network namespace of the listening socket.
    NetworkNamespace,
    /// The same for all: a variable of the environment, read when the configuration was.
    Fixed(Option<Box<str>>),
    /// URI names of the client certificate.
    UriSan,
    /// DNS names of the client certificate.
    DnsSan,
    /// Subject of the client certificate.
    Subject,
    /// A filter state object as text.
    FilterState(Box<str>),
    /// A dynamic metadata value: filter and keys.
    DynamicMetadata(Box<str>, Box<[Box<str>]>),
    /// A value of an endpoint's metadata: filter and keys.
    EndpointMetadata(Box<str>, Box<[Box<str>]>),
    /// A value of the metadata of an endpoint's locality: filter and keys.
    LocalityMetadata(Box<str>, Box<[Box<str>]>),
}

impl MatchInput {
    /// Whether a request has a value for it before it is routed.
    pub fn is_of_request(&self) -> bool {
        !matches!(
            self,
            Self::RequestTrailer(_)
                | Self::ResponseHeader(_)
                | Self::ResponseTrailer(_)
                | Self::StatusCode
                | Self::StatusCodeClass
                | Self::TransportProtocol
                | Self::ApplicationProtocol
                | Self::EndpointMetadata(..)
                | Self::LocalityMetadata(..)
        )
    }

    /// Whether it is of an endpoint.
    pub fn is_of_endpoint(&self) -> bool {
        matches!(self, Self::EndpointMetadata(..) | Self::LocalityMetadata(..) | Self::Fixed(_))
    }

    /// Whether Envoy takes it for connections, before there is a request.
    pub fn is_of_connection(&self) -> bool {
        matches!(
            self,
            Self::DestinationIp
                | Self::DestinationPort
                | Self::SourceIp
                | Self::SourcePort
                | Self::DirectSourceIp
                | Self::SourceType
                | Self::ServerName
                | Self::TransportProtocol
                | Self::ApplicationProtocol
                | Self::NetworkNamespace
                | Self::UriSan
                | Self::DnsSan
                | Self::Subject
                | Self::FilterState(_)
                | Self::Fixed(_)
        )
    }
}

/// Gives the values of inputs.
pub trait MatchData<I> {
    /// The value; None where there is none.
    fn value<'a>(&'a self, input: &'a I) -> Option<Cow<'a, [u8]>>;

    /// Whether a share includes what has this hash.
    fn in_fraction(&self, fraction: &RuntimeFraction, hash: u64) -> bool;
}

impl<A, I> MatchTree<A, I> {
    /// The action for `data`; None where nothing matches.
    pub fn find(&self, data: &dyn MatchData<I>) -> Option<&A> {
        let found = match &self.kind {
            MatchKind::List(list) => {
                list.iter().find_map(|(predicate, then)| if predicate.holds(data) { then.find(data) } else { None })
            }
            MatchKind::Exact(input, map) => {
                data.value(input).and_then(|value| map.get(&*value)).and_then(|then| then.find(data))
            }
            MatchKind::Prefix(input, list) => data.value(input).and_then(|value| {
                list.iter().filter(|(key, _)| value.starts_with(key)).find_map(|(_, then)| then.find(data))
            }),
            MatchKind::Ip(input, ranges, actions) => data.value(input).and_then(|value| {
                let ip: IpAddr = std::str::from_utf8(&value).ok()?.parse().ok()?;
                for (_, at) in ranges.iter().filter(|(range, _)| range.contains(&ip)) {
                    let (then, exclusive) = &actions[*at];
                    let found = then.find(data);
                    if found.is_some() || *exclusive {
                        return found;
                    }
                }
                None
            }),
            MatchKind::Names(input, names, actions) => data
                .value(input)
                .and_then(|value| names.find(&value).find_map(|at| actions.get(at).and_then(|then| then.find(data)))),
            MatchKind::Empty => None,
        };
        found.or_else(|| self.on_no_match.as_ref()?.find(data))
    }

    /// A tree with one action, whatever the input; for tests and defaults.
    pub fn always(action: A) -> Self {
        let then = OnMatch { keep_matching: false, then: Then::Action(action) };
        MatchTree { kind: MatchKind::Empty, on_no_match: Some(Box::new(then)) }
    }

    /// A tree that finds nothing.
    pub fn never() -> Self {
        MatchTree { kind: MatchKind::Empty, on_no_match: None }
    }

    /// Calls `visit` with every action.
    pub fn actions(&self, visit: &mut dyn FnMut(&A)) {
        let mut each = |then: &OnMatch<A, I>| match &then.then {
            Then::Matcher(tree) => tree.actions(visit),
            Then::Action(action) => visit(action),
        };
        match &self.kind {
            MatchKind::List(list) => list.iter().for_each(|(_, then)| each(then)),
            MatchKind::Exact(_, map) => map.values().for_each(&mut each),
            MatchKind::Prefix(_, list) => list.iter().for_each(|(_, then)| each(then)),
            MatchKind::Ip(_, _, actions) => actions.iter().for_each(|(then, _)| each(then)),
            MatchKind::Names(_, _, actions) => actions.iter().for_each(&mut each),
            MatchKind::Empty => {}
        }
        if let Some(then) = &self.on_no_match {
            each(then);
        }
    }

    /// The same tree over inputs that are looked up faster; None when one of them cannot be compiled.
    pub fn compile<J>(&self, input: &mut dyn FnMut(&I) -> Option<J>) -> Option<MatchTree<A, J>>
    where
        A: Clone,
    {
        let kind = match &self.kind {
            MatchKind::List(list) => {
                let mut out = Vec::with_capacity(list.len());
                for (predicate, then) in list {
                    out.push((predicate.compile(input)?, then.compile(input)?));
                }
                MatchKind::List(out.into())
            }
            MatchKind::Exact(from, map) => {
                let from = input(from)?;
                let mut out = FxHashMap::default();
                for (key, then) in map {
                    out.insert(key.clone(), then.compile(input)?);
                }
                MatchKind::Exact(from, out)
            }
            MatchKind::Prefix(from, list) => {
                let from = input(from)?;
                let mut out = Vec::with_capacity(list.len());
                for (key, then) in list {
                    out.push((key.clone(), then.compile(input)?));
                }
                MatchKind::Prefix(from, out.into())
            }
            MatchKind::Ip(from, ranges, actions) => {
                let from = input(from)?;
                let mut out = Vec::with_capacity(actions.len());
                for (then, exclusive) in actions {
                    out.push((then.compile(input)?, *exclusive));
                }
                MatchKind::Ip(from, ranges.clone(), out.into())
            }
            MatchKind::Names(from, names, actions) => {
                let from = input(from)?;
                let mut out = Vec::with_capacity(actions.len());
                for then in actions {
                    out.push(then.compile(input)?);
                }
                MatchKind::Names(from, names.clone(), out.into())
            }
            MatchKind::Empty => MatchKind::Empty,
        };
        let on_no_match = match &self.on_no_match {
            Some(then) => Some(Box::new(then.compile(input)?)),
            None => None,
        };
        Some(MatchTree { kind, on_no_match })
    }
}

impl<A, I> OnMatch<A, I> {
    /// None also where matching is to go on after this.
    fn find(&self, data: &dyn MatchData<I>) -> Option<&A> {
        let found = match &self.then {
            Then::Matcher(tree) => tree.find(data),
            Then::Action(action) => Some(action),
        };
        found.filter(|_| !self.keep_matching)
    }

    fn compile<J>(&self, input: &mut dyn FnMut(&I) -> Option<J>) -> Option<OnMatch<A, J>>
    where
        A: Clone,
    {
        let then = match &self.then {
            Then::Matcher(tree) => Then::Matcher(Box::new(tree.compile(input)?)),
            Then::Action(action) => Then::Action(action.clone()),
        };
        Some(OnMatch { keep_matching: self.keep_matching, then })
    }
}

impl<I> Predicate<I> {
    fn holds(&self, data: &dyn MatchData<I>) -> bool {
        match self {
            Predicate::Single(input, condition) => data.value(input).is_some_and(|value| condition.holds(&value, data)),
            Predicate::Or(list) => list.iter().any(|predicate| predicate.holds(data)),
            Predicate::And(list) => list.iter().all(|predicate| predicate.holds(data)),
            Predicate::Not(predicate) => !predicate.holds(data),
        }
    }

    fn compile<J>(&self, input: &mut dyn FnMut(&I) -> Option<J>) -> Option<Predicate<J>> {
        let mut list = |list: &[Predicate<I>]| {
            let mut out = Vec::with_capacity(list.len());
            for predicate in list {
                out.push(predicate.compile(input)?);
            }
            Some(out.into_boxed_slice())
        };
        Some(match self {
            Predicate::Or(inner) => Predicate::Or(list(inner)?),
            Predicate::And(inner) => Predicate::And(list(inner)?),
            Predicate::Not(inner) => Predicate::Not(Box::new(inner.compile(input)?)),
            Predicate::Single(from, condition) => Predicate::Single(input(from)?, condition.clone()),
        })
    }
}

impl Condition {
    fn holds<I>(&self, value: &[u8], data: &dyn MatchData<I>) -> bool {
        match self {
            Condition::String(matcher) => matcher.matches(value),
            Condition::Ip(ranges) => {
                let ip = std::str::from_utf8(value).ok().and_then(|text| text.parse::<IpAddr>().ok());
                ip.is_some_and(|ip| ranges.iter().any(|range| range.contains(&ip)))
            }
            Condition::Fraction(fraction, seed) => data.in_fraction(fraction, xxh64(value, *seed)),
            Condition::Hash { seed, modulo, threshold } => xxh64(value, *seed) % (*modulo).max(1) >= *threshold,
        }
    }
}
