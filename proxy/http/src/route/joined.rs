//! Virtual hosts that join a table one by one while it is in use (VHDS).
//!
//! A change makes another value that shares all with the one before it but what leads to the domains that the change touches:
//! its cost does not grow with the number of domains. A request looks its host up by hash, once for each length that a
//! wildcard has.

use super::index::Found;
use super::table::{DomainRule, Host};
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, BuildHasherDefault};
use std::sync::Arc;

/// Rows, and buckets of a row.
const WIDTH: usize = 64;

#[derive(Debug)]
struct Domain {
    rule: DomainRule,
    /// Lower-cased, without the star.
    text: Box<[u8]>,
    host: Arc<Host>,
}

/// Sorted by hash.
type Bucket = Vec<(u64, Arc<Domain>)>;
/// Empty, or all buckets.
type Row = Vec<Arc<Bucket>>;
/// How many wildcards have a length.
type Lengths = BTreeMap<usize, u32>;

/// The domains of virtual hosts that have joined.
#[derive(Debug, Clone)]
pub(super) struct Joined {
    rows: Vec<Arc<Row>>,
    suffixes: Lengths,
    prefixes: Lengths,
    count: usize,
}

impl Default for Joined {
    fn default() -> Self {
        let none = Arc::new(Row::new());
        Joined { rows: vec![none; WIDTH], suffixes: Lengths::new(), prefixes: Lengths::new(), count: 0 }
    }
}

/// The kind of a lower-cased domain, and the domain without its star.
pub(super) fn parse(lower: &str) -> (DomainRule, &str) {
    if lower == "*" {
        (DomainRule::Any, "")
    } else if let Some(suffix) = lower.strip_prefix('*') {
        (DomainRule::Suffix, suffix)
    } else if let Some(prefix) = lower.strip_suffix('*') {
        (DomainRule::Prefix, prefix)
    } else {
        (DomainRule::Exact, lower)
    }
}

fn hash(rule: DomainRule, text: &[u8]) -> u64 {
    BuildHasherDefault::<rustc_hash::FxHasher>::default().hash_one((rule as u8, text))
}

/// The row of a hash, and the bucket in it.
fn place(hash: u64) -> (usize, usize) {
    ((hash >> 58) as usize % WIDTH, (hash >> 52) as usize % WIDTH)
}

impl Joined {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn get(&self, rule: DomainRule, text: &[u8]) -> Option<&Arc<Host>> {
        let hash = hash(rule, text);
        let (row, bucket) = place(hash);
        let bucket = self.rows[row].get(bucket)?;
        let first = bucket.partition_point(|(other, _)| *other < hash);
        let same = bucket[first..].iter().take_while(|(other, _)| *other == hash).map(|(_, domain)| domain);
        same.filter(|domain| domain.rule == rule && *domain.text == *text).map(|domain| &domain.host).next()
    }

    /// The host of a domain as it is written, lower-cased.
    pub(super) fn has(&self, lower: &str) -> bool {
        let (rule, text) = parse(lower);
        self.get(rule, text.as_bytes()).is_some()
    }

    /// Exact, longest suffix, longest prefix, `*`. `host` is lower-cased.
    pub(super) fn find(&self, host: &[u8]) -> Option<Found<&Arc<Host>>> {
        let found = |host, rule, length| Some(Found { host, rule, length });
        if let Some(at) = self.get(DomainRule::Exact, host) {
            return found(at, DomainRule::Exact, host.len());
        }
        // A wildcard stands for at least one character.
        for length in self.suffixes.range(..host.len()).rev().map(|(length, _)| *length) {
            if let Some(at) = self.get(DomainRule::Suffix, &host[host.len() - length..]) {
                return found(at, DomainRule::Suffix, length);
            }
        }
        for length in self.prefixes.range(..host.len()).rev().map(|(length, _)| *length) {
            if let Some(at) = self.get(DomainRule::Prefix, &host[..length]) {
                return found(at, DomainRule::Prefix, length);
            }
        }
        self.get(DomainRule::Any, b"").and_then(|at| found(at, DomainRule::Any, 0))
    }

    fn bucket(&mut self, hash: u64) -> &mut Bucket {
        let (row, bucket) = place(hash);
        let row = Arc::make_mut(&mut self.rows[row]);
        if row.is_empty() {
            row.resize(WIDTH, Arc::default());
        }
        Arc::make_mut(&mut row[bucket])
    }

    fn lengths(&mut self, rule: DomainRule) -> Option<&mut Lengths> {
        match rule {
            DomainRule::Suffix => Some(&mut self.suffixes),
            DomainRule::Prefix => Some(&mut self.prefixes),
            DomainRule::Exact | DomainRule::Any => None,
        }
    }

    /// Adds a domain, lower-cased, that is not there.
    pub(super) fn insert(&mut self, lower: &str, host: &Arc<Host>) {
        let (rule, text) = parse(lower);
        let hash = hash(rule, text.as_bytes());
        let bucket = self.bucket(hash);
        let at = bucket.partition_point(|(other, _)| *other <= hash);
        bucket.insert(at, (hash, Arc::new(Domain { rule, text: text.as_bytes().into(), host: host.clone() })));
        self.count += 1;
        if let Some(lengths) = self.lengths(rule) {
            *lengths.entry(text.len()).or_default() += 1;
        }
    }

    /// Removes a domain, lower-cased, if it is that of this host.
    pub(super) fn remove(&mut self, lower: &str, host: &Arc<Host>) {
        let (rule, text) = parse(lower);
        if !self.get(rule, text.as_bytes()).is_some_and(|own| Arc::ptr_eq(own, host)) {
            return;
        }
        self.bucket(hash(rule, text.as_bytes()))
            .retain(|(_, domain)| domain.rule != rule || *domain.text != *text.as_bytes());
        self.count -= 1;
        if let Some(lengths) = self.lengths(rule)
            && let Some(count) = lengths.get_mut(&text.len())
        {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&text.len());
            }
        }
    }
}
