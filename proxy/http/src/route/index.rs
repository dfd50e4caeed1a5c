//! How a request's virtual host and candidate routes are found without scanning.
//!
//! Hosts: a hash for exact domains, one trie for prefixes and one, over reversed names, for suffixes. Paths: a hash for
//! exact paths, a trie for prefixes, and the rest (regexes, CONNECT) as an ordered list. The lists are merged in route
//! order, so that the first candidate whose other conditions hold is the first match, as in a scan.

use nuncio_config::route::{PathMatch, Route};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::table::DomainRule;
use super::trie::Trie;

/// Below this number of routes a scan is faster than any index.
const SCAN: usize = 6;

/// What a request's host leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found<T> {
    pub(super) host: T,
    pub(super) rule: DomainRule,
    /// Of the domain, without its star.
    pub(super) length: usize,
}

impl<T> Found<T> {
    /// Whether this comes before the other in Envoy's order.
    pub(super) fn is_before<U>(&self, other: &Found<U>) -> bool {
        (self.rule as u8, std::cmp::Reverse(self.length)) < (other.rule as u8, std::cmp::Reverse(other.length))
    }
}

/// A host as it is looked up, in `buffer` where it is written otherwise.
pub(super) fn lower<'a>(host: &'a [u8], buffer: &'a mut SmallVec<[u8; 128]>) -> &'a [u8] {
    if !host.iter().any(u8::is_ascii_uppercase) {
        return host;
    }
    buffer.extend(host.iter().map(u8::to_ascii_lowercase));
    buffer
}

/// Domains of all virtual hosts, each mapped to the host's position.
#[derive(Debug, Default)]
pub(super) struct HostIndex {
    exact: FxHashMap<Box<[u8]>, u32>,
    suffixes: Trie,
    prefixes: Trie,
    default: Option<u32>,
}

impl HostIndex {
    /// From domains and their hosts; `duplicate` is told the number of the domain that was there already.
    pub(super) fn build<'a>(
        domains: impl Iterator<Item = (&'a str, u32)>,
        mut duplicate: impl FnMut(usize, &str),
    ) -> Self {
        let mut index = Self::default();
        let (mut suffixes, mut prefixes) = (FxHashMap::default(), FxHashMap::default());
        for (number, (domain, host)) in domains.enumerate() {
            let lower = domain.to_ascii_lowercase();
            let old = if lower == "*" {
                index.default.replace(host)
            } else if let Some(suffix) = lower.strip_prefix('*') {
                suffixes.insert(suffix.bytes().rev().collect::<Vec<u8>>(), host)
            } else if let Some(prefix) = lower.strip_suffix('*') {
                prefixes.insert(prefix.as_bytes().to_vec(), host)
            } else {
                index.exact.insert(lower.as_bytes().into(), host)
            };
            if old.is_some() {
                duplicate(number, &lower);
            }
        }
        index.suffixes = Trie::build(suffixes.iter().map(|(key, host)| (&**key, *host)), false);
        index.prefixes = Trie::build(prefixes.iter().map(|(key, host)| (&**key, *host)), false);
        index
    }

    /// The host of `*` when there are no other domains: no header needs to be looked at.
    pub(super) fn only_default(&self) -> Option<u32> {
        let others = !self.exact.is_empty() || !self.suffixes.is_empty() || !self.prefixes.is_empty();
        if others { None } else { self.default }
    }

    /// Exact, longest suffix, longest prefix, `*`. `host` is lower-cased.
    pub(super) fn find(&self, host: &[u8]) -> Option<Found<u32>> {
        let found = |(host, length), rule| Found { host, rule, length };
        if let Some(at) = self.exact.get(host) {
            return Some(found((*at, host.len()), DomainRule::Exact));
        }
        if !self.suffixes.is_empty() {
            let reversed: SmallVec<[u8; 128]> = host.iter().rev().copied().collect();
            if let Some(at) = longest(&self.suffixes, &reversed) {
                return Some(found(at, DomainRule::Suffix));
            }
        }
        match longest(&self.prefixes, host) {
            Some(at) => Some(found(at, DomainRule::Prefix)),
            None => self.default.map(|at| found((at, 0), DomainRule::Any)),
        }
    }

    /// Whether this domain, lower-cased, is there as it is written.
    pub(super) fn has(&self, lower: &str) -> bool {
        let in_trie = |keys: &Trie, text: &[u8]| {
            let mut has = false;
            keys.visit(text, |depth, _| has |= depth == text.len());
            has
        };
        match super::joined::parse(lower) {
            (DomainRule::Exact, text) => self.exact.contains_key(text.as_bytes()),
            (DomainRule::Suffix, text) => in_trie(&self.suffixes, &text.bytes().rev().collect::<Vec<u8>>()),
            (DomainRule::Prefix, text) => in_trie(&self.prefixes, text.as_bytes()),
            (DomainRule::Any, _) => self.default.is_some(),
        }
    }
}

/// The longest key that `text` begins with and does not equal, and its length: a wildcard stands for at least one character.
fn longest(keys: &Trie, text: &[u8]) -> Option<(u32, usize)> {
    let mut best = None;
    keys.visit(text, |depth, values| {
        if depth < text.len() {
            best = values.first().map(|value| (*value, depth));
        }
    });
    best
}

/// Routes of one virtual host by path.
#[derive(Debug)]
pub(super) enum PathIndex {
    /// So few that all are candidates.
    Scan(u32),
    /// Indexed.
    Index(Box<Indexed>),
}

#[derive(Debug, Default)]
pub(super) struct Indexed {
    exact: FxHashMap<Box<[u8]>, Box<[u32]>>,
    exact_folded: FxHashMap<Box<[u8]>, Box<[u32]>>,
    /// Values are twice the route's number, plus one for separated prefixes.
    prefixes: Trie,
    prefixes_folded: Trie,
    rest: Box<[u32]>,
}

impl PathIndex {
    /// From the routes in order.
    pub(super) fn build(routes: &[Route]) -> Self {
        if routes.len() <= SCAN {
            return PathIndex::Scan(routes.len() as u32);
        }
        let (mut exact, mut exact_folded) = (FxHashMap::<_, Vec<u32>>::default(), FxHashMap::<_, Vec<u32>>::default());
        let (mut prefixes, mut prefixes_folded, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        for (number, route) in routes.iter().enumerate() {
            let number = number as u32;
            let folded = !route.matches.case_sensitive;
            let key = |text: &str| if folded { text.to_ascii_lowercase().into_bytes() } else { text.into() };
            match &route.matches.path {
                PathMatch::Exact(path) => {
                    let map = if folded { &mut exact_folded } else { &mut exact };
                    map.entry(key(path).into_boxed_slice()).or_default().push(number);
                }
                PathMatch::Prefix(path) | PathMatch::SeparatedPrefix(path) => {
                    let separated = u32::from(matches!(route.matches.path, PathMatch::SeparatedPrefix(_)));
                    let list = if folded { &mut prefixes_folded } else { &mut prefixes };
                    list.push((key(path), number * 2 + separated));
                }
                PathMatch::Regex(_) | PathMatch::Connect | PathMatch::Template(_) => {
                    rest.push(number);
                }
            }
        }
        let freeze =
            |map: FxHashMap<Box<[u8]>, Vec<u32>>| map.into_iter().map(|(key, list)| (key, list.into())).collect();
        PathIndex::Index(Box::new(Indexed {
            exact: freeze(exact),
            exact_folded: freeze(exact_folded),
            prefixes: Trie::build(prefixes.iter().map(|(key, value)| (&**key, *value)), false),
            prefixes_folded: Trie::build(prefixes_folded.iter().map(|(key, value)| (&**key, *value)), true),
            rest: rest.into(),
        }))
    }

    /// Calls `accept` with each route whose path condition may hold, in order, until it returns true; that route.
    /// `path` is the path without query, None where the request has none. The second argument of `accept` says that
    /// the path condition is known to hold.
    #[inline]
    pub(super) fn first(&self, path: Option<&[u8]>, mut accept: impl FnMut(u32, bool) -> bool) -> Option<u32> {
        match self {
            PathIndex::Scan(count) => (0..*count).find(|number| accept(*number, false)),
            PathIndex::Index(indexed) => indexed.first(path, accept),
        }
    }
}

/// A sorted list of candidates that is being consumed.
struct List<'t> {
    rest: &'t [u32],
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Path compared already.
    Exact,
    /// A prefix of this length was compared already.
    Prefix(usize),
    /// Nothing is known.
    Rest,
}

impl Indexed {
    fn first(&self, path: Option<&[u8]>, mut accept: impl FnMut(u32, bool) -> bool) -> Option<u32> {
        let mut lists = SmallVec::<[List<'_>; 8]>::new();
        let text = path.unwrap_or_default();
        if path.is_some() {
            if let Some(list) = self.exact.get(text) {
                lists.push(List { rest: list, kind: Kind::Exact });
            }
            if !self.exact_folded.is_empty() {
                let lower: SmallVec<[u8; 256]> = text.iter().map(u8::to_ascii_lowercase).collect();
                if let Some(list) = self.exact_folded.get(&lower[..]) {
                    lists.push(List { rest: list, kind: Kind::Exact });
                }
            }
            let mut found = |depth, values| lists.push(List { rest: values, kind: Kind::Prefix(depth) });
            self.prefixes.visit(text, &mut found);
            self.prefixes_folded.visit(text, &mut found);
        }
        if !self.rest.is_empty() {
            lists.push(List { rest: &self.rest, kind: Kind::Rest });
        }
        loop {
            let (number, at) = lists
                .iter()
                .enumerate()
                .filter_map(|(at, list)| {
                    let first = *list.rest.first()?;
                    Some((if matches!(list.kind, Kind::Prefix(_)) { first / 2 } else { first }, at))
                })
                .min()?;
            let list = &mut lists[at];
            let separated = list.rest[0] & 1 == 1;
            list.rest = &list.rest[1..];
            let known = match list.kind {
                Kind::Exact => true,
                Kind::Prefix(depth) if separated => match text.get(depth) {
                    None | Some(b'/') => true,
                    Some(_) => continue,
                },
                Kind::Prefix(_) => true,
                Kind::Rest => false,
            };
            if accept(number, known) {
                return Some(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_tried_in_envoys_order() {
        let domains = ["a.com", "*.com", "*.b.com", "*-x.b.com", "a.*", "a.b.*", "*", "A.com:80"];
        let mut none = |_: usize, name: &str| panic!("{name} is no duplicate");
        let index = HostIndex::build(domains.iter().copied().zip(0..), &mut none);
        let table = [
            ("a.com", 0),
            ("A.COM", 0),
            ("a.com:80", 7),
            ("x.com", 1),
            ("y.b.com", 2),
            ("y-x.b.com", 3),
            ("a.org", 4),
            ("a.b.org", 5),
            (".com", 6),
            ("a.", 6),
            ("", 6),
            ("q", 6),
        ];
        for (host, wanted) in table {
            assert_eq!(
                index.find(lower(host.as_bytes(), &mut SmallVec::new())).map(|found| found.host),
                Some(wanted),
                "{host}"
            );
        }
        assert_eq!(index.only_default(), None);
        for domain in ["a.com", "*.b.com", "a.*", "*"] {
            assert!(index.has(domain), "{domain}");
        }
        for domain in ["b.com", "*om", "*.a.com", "a*", "a.b.c*"] {
            assert!(!index.has(domain), "{domain}");
        }
    }

    #[test]
    fn duplicate_domains_are_reported() {
        let mut seen = Vec::new();
        HostIndex::build(["a", "A", "*", "*", "*.c", "*.C", "c.*", "C.*"].into_iter().zip(0..), |_, name| {
            seen.push(name.to_owned());
        });
        assert_eq!(seen, ["a", "*", "*.c", "c.*"]);
    }
}
