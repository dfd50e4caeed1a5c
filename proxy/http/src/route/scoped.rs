//! Scoped routes: the table of routes that a request goes to is found by a key made of its headers.
//!
//! Workers look scopes up without locks and without allocation: the hash of the key's fragments leads to a shard, an
//! `ArcSwap` of a short sorted list, so that a change copies a few entries however many scopes there are. Each scope has
//! its own `ArcSwap` of routes: new routes of one touch nothing else. The control thread adds and removes; where scopes
//! come from is not known here.

use super::table::RouteTable;
use crate::headers::{HeaderName, Headers};
use crate::matchers::header_name;
use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use memchr::memmem::Finder;
use nuncio_config::hcm::{Extract, KeyFragment};
use smallvec::SmallVec;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hash as _, Hasher as _};
use std::sync::Arc;

const SHARDS: usize = 256;

/// One scope.
#[derive(Debug)]
pub struct Scope {
    /// Its name.
    pub name: Box<str>,
    /// Fragments of its key.
    pub key: Box<[Box<str>]>,
    /// Its routes; empty until they have come.
    pub table: Arc<ArcSwap<RouteTable>>,
}

type Shard = ArcSwapOption<Vec<(u64, Arc<Scope>)>>;

/// Fragments of a request's key.
type Fragments<'a> = SmallVec<[&'a [u8]; 4]>;

/// Scopes by key.
pub struct Scopes {
    shards: Box<[Shard]>,
}

impl std::fmt::Debug for Scopes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scopes").finish_non_exhaustive()
    }
}

impl Default for Scopes {
    fn default() -> Self {
        Scopes { shards: std::iter::repeat_with(Shard::default).take(SHARDS).collect() }
    }
}

fn hash<'a>(fragments: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut hasher = BuildHasherDefault::<rustc_hash::FxHasher>::default().build_hasher();
    // A slice's hash begins with its length: "ab", "c" is not "a", "bc".
    fragments.for_each(|fragment| fragment.hash(&mut hasher));
    hasher.finish()
}

fn hash_of(key: &[Box<str>]) -> u64 {
    hash(key.iter().map(|fragment| fragment.as_bytes()))
}

fn has_key(scope: &Scope, fragments: &[&[u8]]) -> bool {
    // A key without fragments is nobody's, as in Envoy.
    !fragments.is_empty()
        && scope.key.len() == fragments.len()
        && scope.key.iter().zip(fragments).all(|(own, fragment)| own.as_bytes() == *fragment)
}

impl Scopes {
    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    /// Looks at the scope with a key.
    fn with<T>(&self, fragments: &[&[u8]], look: impl FnOnce(&Arc<Scope>) -> T) -> Option<T> {
        let hash = hash(fragments.iter().copied());
        let shard = self.shard(hash).load();
        let list = shard.as_ref()?;
        let first = list.partition_point(|(other, _)| *other < hash);
        let same = list[first..].iter().take_while(|(other, _)| *other == hash);
        same.map(|(_, scope)| scope).find(|scope| has_key(scope, fragments)).map(look)
    }

    fn change(&self, hash: u64, change: impl FnOnce(&mut Vec<(u64, Arc<Scope>)>)) {
        let shard = self.shard(hash);
        let mut list = shard.load().as_ref().map_or_else(Vec::new, |list| (**list).clone());
        change(&mut list);
        shard.store((!list.is_empty()).then(|| Arc::new(list)));
    }

    /// Adds a scope, in place of the one with its key. For one thread.
    pub fn insert(&self, scope: Arc<Scope>) {
        let hash = hash_of(&scope.key);
        self.change(hash, |list| {
            list.retain(|(other, old)| *other != hash || old.key != scope.key);
            let at = list.partition_point(|(other, _)| *other <= hash);
            list.insert(at, (hash, scope));
        });
    }

    /// Removes the scope with this key if it has this name. For one thread.
    pub fn remove(&self, key: &[Box<str>], name: &str) {
        let hash = hash_of(key);
        self.change(hash, |list| {
            list.retain(|(other, scope)| *other != hash || *scope.key != *key || *scope.name != *name);
        });
    }
}

/// One fragment of the key, ready to be taken.
struct Extractor {
    header: HeaderName,
    separator: Option<Finder<'static>>,
    extract: Extract,
}

/// How a request's key is made.
pub struct ScopeKeyBuilder(Box<[Extractor]>);

impl std::fmt::Debug for ScopeKeyBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ScopeKeyBuilder").field(&self.0.len()).finish()
    }
}

impl ScopeKeyBuilder {
    /// From the configuration.
    ///
    /// # Errors
    /// A header that cannot be.
    pub fn new(fragments: &[KeyFragment]) -> Result<Self, String> {
        let extractors = fragments.iter().map(|fragment| {
            let header =
                header_name(&fragment.header).ok_or_else(|| format!("invalid header name: {:?}", fragment.header))?;
            let separator =
                (!fragment.separator.is_empty()).then(|| Finder::new(fragment.separator.as_bytes()).into_owned());
            Ok(Extractor { header, separator, extract: fragment.extract.clone() })
        });
        extractors.collect::<Result<_, String>>().map(ScopeKeyBuilder)
    }

    /// Looks at the scope that a request has among `scopes`.
    pub fn find<T>(&self, scopes: &Scopes, headers: &Headers, look: impl FnOnce(&Arc<Scope>) -> T) -> Option<T> {
        scopes.with(&self.key(headers)?, look)
    }

    /// The key of a request; None where a fragment is missing.
    fn key<'a>(&self, headers: &'a Headers) -> Option<Fragments<'a>> {
        self.0.iter().map(|extractor| extractor.fragment(headers)).collect()
    }
}

impl Extractor {
    fn fragment<'a>(&self, headers: &'a Headers) -> Option<&'a [u8]> {
        let value = headers.bytes(&self.header)?;
        let mut elements = Elements { rest: Some(value), separator: self.separator.as_ref() };
        match &self.extract {
            Extract::Index(index) => elements.nth(*index as usize),
            Extract::Element { separator, key } => elements.find_map(|element| {
                // An element without the separator is a key with an empty value.
                let (own, value) = split_once(element, separator.as_bytes()).unwrap_or((element, b""));
                (own == key.as_bytes()).then_some(value)
            }),
        }
    }
}

fn split_once<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = memchr::memmem::find(text, separator)?;
    Some((&text[..at], &text[at + separator.len()..]))
}

/// The elements of a value.
struct Elements<'a, 's> {
    rest: Option<&'a [u8]>,
    separator: Option<&'s Finder<'static>>,
}

impl<'a> Iterator for Elements<'a, '_> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        match self.separator.and_then(|separator| Some((separator, separator.find(rest)?))) {
            Some((separator, at)) => {
                self.rest = Some(&rest[at + separator.needle().len()..]);
                Some(&rest[..at])
            }
            None => {
                self.rest = None;
                Some(rest)
            }
        }
    }
}

/// Routes by scope.
#[derive(Debug)]
pub struct ScopedRoutes {
    /// How a request's key is made.
    pub key: ScopeKeyBuilder,
    /// The scopes.
    pub scopes: Arc<Scopes>,
}

/// The routes of a connection manager.
#[derive(Debug)]
pub enum Routes {
    /// One table, replaced as a whole.
    Table(Arc<ArcSwap<RouteTable>>),
    /// A table for each scope.
    Scoped(ScopedRoutes),
}

impl Routes {
    /// The table for a request; None where there is no scope for it.
    pub fn load(&self, headers: &Headers) -> Option<Guard<Arc<RouteTable>>> {
        match self {
            Routes::Table(table) => Some(table.load()),
            Routes::Scoped(scoped) => scoped.key.find(&scoped.scopes, headers, |scope| scope.table.load()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::HeaderValue;

    fn fragment(header: &str, separator: &str, extract: Extract) -> KeyFragment {
        KeyFragment { header: header.into(), separator: separator.into(), extract }
    }

    fn element(key: &str) -> Extract {
        Extract::Element { separator: "=".into(), key: key.into() }
    }

    fn headers(list: &[(&'static str, &'static str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in list {
            headers.append(HeaderName::parse(name).unwrap(), HeaderValue::from_static(value));
        }
        headers
    }

    fn key(fragments: &[KeyFragment], list: &[(&'static str, &'static str)]) -> Option<Vec<String>> {
        let builder = ScopeKeyBuilder::new(fragments).unwrap();
        let headers = headers(list);
        let key = builder.key(&headers)?;
        Some(key.iter().map(|fragment| String::from_utf8_lossy(fragment).into_owned()).collect())
    }

    fn scope(name: &str, key: &[&str]) -> Arc<Scope> {
        let table = RouteTable::build(Arc::new(crate::route::table::tests::config(Vec::new()))).unwrap();
        Arc::new(Scope {
            name: name.into(),
            key: key.iter().map(|fragment| (*fragment).into()).collect(),
            table: Arc::new(ArcSwap::from_pointee(table)),
        })
    }

    #[test]
    fn fragments_are_taken_as_envoy_takes_them() {
        let by_key = [fragment("x-key", ";", element("t"))];
        for (value, expected) in [
            ("t=a", Some("a")),
            ("z=1;t=a", Some("a")),
            ("t=a=b;t=c", Some("a=b")),
            ("t", Some("")),
            ("t=", Some("")),
            ("T=a", None),
            (" t=a", None),
            ("", None),
        ] {
            assert_eq!(
                key(&by_key, &[("x-key", value)]).as_deref(),
                expected.map(|e| vec![e.to_owned()]).as_deref(),
                "{value}"
            );
        }
        let second = [fragment("x-key", ",", Extract::Index(1))];
        for (value, expected) in [("a,b", Some("b")), ("a,", Some("")), ("a", None), ("a,b,c", Some("b"))] {
            assert_eq!(
                key(&second, &[("x-key", value)]).as_deref(),
                expected.map(|e| vec![e.to_owned()]).as_deref(),
                "{value}"
            );
        }
        let whole = [fragment("x-key", "", Extract::Index(0))];
        assert_eq!(key(&whole, &[("x-key", "a,b"), ("x-key", "c")]), Some(vec!["a,b".to_owned()]));
        assert_eq!(key(&whole, &[("x-other", "a")]), None);
    }

    #[test]
    fn a_key_is_its_fragments_and_not_their_text_together() {
        let scopes = Scopes::default();
        scopes.insert(scope("one", &["ab", "c"]));
        scopes.insert(scope("two", &["a", "bc"]));
        scopes.insert(scope("none", &[]));
        let find = |key: &[&str]| {
            let key: Vec<&[u8]> = key.iter().map(|fragment| fragment.as_bytes()).collect();
            scopes.with(&key, |scope| scope.name.to_string())
        };
        assert_eq!(find(&["ab", "c"]).as_deref(), Some("one"));
        assert_eq!(find(&["a", "bc"]).as_deref(), Some("two"));
        assert_eq!(find(&["abc"]), None);
        assert_eq!(find(&[]), None);
    }

    #[test]
    fn a_scope_takes_the_place_of_the_one_with_its_key_and_is_removed_by_its_name() {
        let scopes = Scopes::default();
        for number in 0..2000 {
            scopes.insert(scope(&format!("s{number}"), &[&format!("k{number}"), "x"]));
        }
        scopes.insert(scope("new", &["k7", "x"]));
        let find = |number: usize| {
            let key = format!("k{number}");
            scopes.with(&[key.as_bytes(), b"x"], |scope| scope.name.to_string())
        };
        assert_eq!((find(7).as_deref(), find(1999).as_deref()), (Some("new"), Some("s1999")));
        scopes.remove(&["k7".into(), "x".into()], "s7");
        assert_eq!(find(7).as_deref(), Some("new"));
        scopes.remove(&["k7".into(), "x".into()], "new");
        assert_eq!((find(7), find(8).as_deref()), (None, Some("s8")));
    }
}
