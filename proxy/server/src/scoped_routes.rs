//! Scoped routes: scopes of a connection manager, in place or fetched, each with a route table under a name.
//!
//! A connection manager gets its scopes here while it is built. Scopes that are fetched are filled by somebody else, who is
//! told through [`Wants`], and are shared by all connection managers that ask for the same. Nothing here knows how scopes
//! are fetched.

use crate::init::InitTarget;
use crate::named_routes::{self, NamedRoutes, TableTools};
use crate::server::Context;
use crate::xds::wants::{OnDemand, Want, Wants};
use arc_swap::ArcSwap;
use bytes::Bytes;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::hcm::{ScopeSource, ScopedRouteConfiguration, ScopedRoutesConfig};
use nuncio_config::paths::FieldPath;
use nuncio_http::filter::LocalFuture;
use nuncio_http::hcm::OnDemandRoutes;
use nuncio_http::headers::{Headers, names};
use nuncio_http::route::{RouteTable, Scope, ScopeKeyBuilder, ScopedRoutes, Scopes};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;
use tokio::sync::oneshot;

/// Scopes that are fetched.
pub struct DiscoveredScopes {
    /// Unique in the process.
    pub id: u64,
    /// Name of the `scoped_routes`.
    pub name: Box<str>,
    /// Serialized `ConfigSource` of the scopes.
    pub source: Bytes,
    /// The collection of them; empty for all that the source has.
    pub locator: Box<str>,
    /// Serialized `ConfigSource` of their routes.
    pub rds_source: Bytes,
    /// `http.<stat_prefix>.` of the first that asked, for stats.
    pub stat_prefix: String,
    /// Ready once the first scopes and their routes have come.
    pub target: Arc<InitTarget>,
    /// What workers see.
    pub scopes: Arc<Scopes>,
    held: Mutex<Held>,
    tools: TableTools,
    wants: Wants,
}

/// A scope, and what keeps its routes.
#[derive(Clone)]
pub struct HeldScope {
    /// The scope as it came.
    pub config: Arc<ScopedRouteConfiguration>,
    /// Its routes; None for a scope on demand that no request has asked for.
    pub routes: Option<Arc<NamedRoutes>>,
}

#[derive(Default)]
struct Held {
    scopes: BTreeMap<Box<str>, HeldScope>,
    /// Names by key.
    keys: HashMap<Box<[Box<str>]>, Box<str>>,
    /// How many of them are on demand, and how many have routes.
    on_demand: usize,
    active: usize,
    version: String,
    updated: Option<SystemTime>,
}

/// What `/config_dump` shows of scopes.
#[derive(Debug, Clone)]
pub struct ScopesDump {
    /// Name of the `scoped_routes`.
    pub name: String,
    /// Version of the last update that changed something; empty for scopes in place.
    pub version: String,
    /// When that was.
    pub updated: SystemTime,
    /// Scopes by name, each with its message.
    pub scopes: Vec<(String, Bytes)>,
}

impl Drop for DiscoveredScopes {
    fn drop(&mut self) {
        self.wants.send(Want::ScopesGone(self.id));
    }
}

fn empty(tools: &TableTools) -> Option<Arc<ArcSwap<RouteTable>>> {
    let table = named_routes::build(named_routes::empty_routes("")?, tools).ok()?;
    Some(Arc::new(ArcSwap::from_pointee(table)))
}

impl DiscoveredScopes {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The scope with this name.
    pub fn scope(&self, name: &str) -> Option<HeldScope> {
        self.lock().scopes.get(name).cloned()
    }

    /// What keeps an update from being taken, in Envoy's words: a name or a key that stands twice, in it or beside what
    /// stays. Scopes of the update may take the keys of those that it changes or removes.
    pub fn conflict(&self, added: &[Arc<ScopedRouteConfiguration>], removed: &[String]) -> Option<String> {
        let held = self.lock();
        let going: HashSet<&str> =
            removed.iter().map(String::as_str).chain(added.iter().map(|scope| &*scope.name)).collect();
        let mut names = HashSet::new();
        let mut keys: HashMap<&[Box<str>], &str> = HashMap::new();
        for scope in added {
            if !names.insert(&*scope.name) {
                return Some(format!("duplicate scoped route configuration '{}' found", scope.name));
            }
            let stays = held.keys.get(&scope.key).map(|name| &**name).filter(|name| !going.contains(name));
            if let Some(first) = stays.or_else(|| keys.get(&*scope.key).copied()) {
                let second = &scope.name;
                return Some(format!("scope key conflict found, first scope is '{first}', second scope is '{second}'"));
            }
            keys.insert(&scope.key, &scope.name);
        }
        None
    }

    /// Names of all scopes.
    pub fn names(&self) -> Vec<Box<str>> {
        self.lock().scopes.keys().cloned().collect()
    }

    /// How many scopes there are, how many wait for a request, and how many have routes.
    pub fn counts(&self) -> (usize, usize, usize) {
        let held = self.lock();
        (held.scopes.len(), held.on_demand, held.active)
    }

    /// Adds a scope, in place of the one with its name.
    pub fn set(&self, scope: HeldScope) {
        let config = &scope.config;
        let table = match &scope.routes {
            Some(routes) => routes.table.clone(),
            None => match empty(&self.tools) {
                Some(table) => table,
                None => return,
            },
        };
        let seen = Scope { name: config.name.clone(), key: config.key.clone(), table };
        let mut held = self.lock();
        held.on_demand += usize::from(config.on_demand);
        held.active += usize::from(scope.routes.is_some());
        let old = held.scopes.insert(config.name.clone(), scope.clone());
        held.uncount(old.as_ref());
        if let Some(old) = old.filter(|old| old.config.key != config.key) {
            held.forget_key(&old.config);
            self.scopes.remove(&old.config.key, &old.config.name);
        }
        held.keys.insert(config.key.clone(), config.name.clone());
        drop(held);
        self.scopes.insert(Arc::new(seen));
    }

    /// Removes the scope with this name; what kept its routes.
    pub fn remove(&self, name: &str) -> Option<HeldScope> {
        let mut held = self.lock();
        let old = held.scopes.remove(name)?;
        held.uncount(Some(&old));
        held.forget_key(&old.config);
        drop(held);
        self.scopes.remove(&old.config.key, name);
        Some(old)
    }

    /// The scopes are of this version now.
    pub fn set_version(&self, version: &str) {
        let mut held = self.lock();
        version.clone_into(&mut held.version);
        held.updated = Some(SystemTime::now());
    }

    /// What `/config_dump` shows; None before the first update.
    pub fn dump(&self) -> Option<ScopesDump> {
        let held = self.lock();
        let message = |scope: &HeldScope| (scope.config.name.to_string(), scope.config.message.clone());
        Some(ScopesDump {
            name: self.name.to_string(),
            version: held.version.clone(),
            updated: held.updated?,
            scopes: held.scopes.values().map(message).collect(),
        })
    }
}

impl Held {
    fn uncount(&mut self, gone: Option<&HeldScope>) {
        if let Some(gone) = gone {
            self.on_demand -= usize::from(gone.config.on_demand);
            self.active -= usize::from(gone.routes.is_some());
        }
    }

    fn forget_key(&mut self, config: &ScopedRouteConfiguration) {
        // Another scope may have taken the key over.
        if self.keys.get(&config.key).is_some_and(|name| *name == config.name) {
            self.keys.remove(&config.key);
        }
    }
}

/// All scopes: those that are fetched by name and sources, those in place for `/config_dump`.
pub struct ScopeTables {
    discovered: Mutex<Vec<Weak<DiscoveredScopes>>>,
    inline: Mutex<Vec<Weak<InlineScopes>>>,
    tools: TableTools,
    wants: Wants,
}

/// Scopes in place.
pub struct InlineScopes {
    config: Arc<ScopedRoutesConfig>,
    made: SystemTime,
}

impl InlineScopes {
    fn dump(&self) -> ScopesDump {
        let scopes: &[ScopedRouteConfiguration] = match &self.config.scopes {
            ScopeSource::Inline(scopes) => scopes,
            ScopeSource::Discovered { .. } => &[],
        };
        ScopesDump {
            name: self.config.name.to_string(),
            version: String::new(),
            updated: self.made,
            scopes: scopes.iter().map(|scope| (scope.name.to_string(), scope.message.clone())).collect(),
        }
    }
}

/// What a connection manager has to keep as long as it lives.
#[derive(Clone)]
pub enum KeptScopes {
    /// In place.
    Inline(Arc<InlineScopes>),
    /// Fetched.
    Discovered(Arc<DiscoveredScopes>),
}

fn live<T>(list: &Mutex<Vec<Weak<T>>>) -> MutexGuard<'_, Vec<Weak<T>>> {
    let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
    list.retain(|one| one.strong_count() > 0);
    list
}

impl ScopeTables {
    /// No scopes yet; their routes will be compiled with `tools`.
    pub fn new(wants: Wants, tools: TableTools) -> ScopeTables {
        ScopeTables { discovered: Mutex::default(), inline: Mutex::default(), tools, wants }
    }

    /// Scopes in place for `/config_dump`.
    pub fn inline_dump(&self) -> Vec<ScopesDump> {
        live(&self.inline).iter().filter_map(Weak::upgrade).map(|scopes| scopes.dump()).collect()
    }

    /// Scopes that were fetched for `/config_dump`.
    pub fn discovered_dump(&self) -> Vec<ScopesDump> {
        live(&self.discovered).iter().filter_map(Weak::upgrade).filter_map(|scopes| scopes.dump()).collect()
    }

    fn discovered(
        &self,
        config: &ScopedRoutesConfig,
        (source, locator): (&Bytes, &str),
        stat_prefix: &str,
    ) -> Arc<DiscoveredScopes> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut discovered = live(&self.discovered);
        let found = discovered.iter().filter_map(Weak::upgrade).find(|scopes| {
            (&*scopes.name, &*scopes.locator, &scopes.source, &scopes.rds_source)
                == (&*config.name, locator, source, &config.rds_source)
        });
        if let Some(found) = found {
            return found;
        }
        let made = Arc::new(DiscoveredScopes {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: config.name.clone(),
            source: source.clone(),
            locator: locator.into(),
            rds_source: config.rds_source.clone(),
            stat_prefix: stat_prefix.to_owned(),
            target: InitTarget::new("target ConfigSubscriptionCommonBase init target 'SRDS'"),
            scopes: Arc::default(),
            held: Mutex::default(),
            tools: self.tools.clone(),
            wants: self.wants.clone(),
        });
        discovered.push(Arc::downgrade(&made));
        drop(discovered);
        self.wants.send(Want::Scopes(Arc::downgrade(&made)));
        made
    }
}

/// The scopes of a connection manager, and what keeps them. None with errors told.
pub fn build(
    config: &Arc<ScopedRoutesConfig>,
    stat_prefix: &str,
    context: &Context,
    errors: &mut Vec<ConfigError>,
) -> Option<(ScopedRoutes, KeptScopes)> {
    let path = FieldPath::parse(&config.path);
    let key = ScopeKeyBuilder::new(&config.key)
        .map_err(|error| errors.push(ConfigError::new(path, format!("scope_key_builder: {error}"))))
        .ok()?;
    match &config.scopes {
        ScopeSource::Discovered { source, locator } => {
            let discovered = context.scopes.discovered(config, (source, locator), stat_prefix);
            let scopes = discovered.scopes.clone();
            Some((ScopedRoutes { key, scopes }, KeptScopes::Discovered(discovered)))
        }
        ScopeSource::Inline(list) => {
            let scopes = Scopes::default();
            for scope in list {
                let Some(routes) = &scope.routes else { continue };
                match named_routes::build(routes.clone(), &context.table_tools()) {
                    Ok(table) => scopes.insert(Arc::new(Scope {
                        name: scope.name.clone(),
                        key: scope.key.clone(),
                        table: Arc::new(ArcSwap::from_pointee(table)),
                    })),
                    Err(found) => errors.extend(found),
                }
            }
            let kept = Arc::new(InlineScopes { config: config.clone(), made: SystemTime::now() });
            live(&context.scopes.inline).push(Arc::downgrade(&kept));
            Some((ScopedRoutes { key, scopes: Arc::new(scopes) }, KeptScopes::Inline(kept)))
        }
    }
}

/// Asks for routes of requests that have none.
pub struct RoutesOnDemand {
    wants: Wants,
    kind: Kind,
}

/// Connection managers that drain do not keep what they ask for.
enum Kind {
    Table(Weak<NamedRoutes>),
    Scoped { key: ScopeKeyBuilder, scopes: Weak<DiscoveredScopes> },
}

impl RoutesOnDemand {
    /// For one table.
    pub fn table(routes: &Arc<NamedRoutes>, wants: &Wants) -> Arc<RoutesOnDemand> {
        Arc::new(RoutesOnDemand { wants: wants.clone(), kind: Kind::Table(Arc::downgrade(routes)) })
    }

    /// For scopes that are fetched; None for those in place, whose routes are there.
    pub fn scoped(config: &ScopedRoutesConfig, kept: &KeptScopes, wants: &Wants) -> Option<Arc<RoutesOnDemand>> {
        let KeptScopes::Discovered(scopes) = kept else { return None };
        let key = ScopeKeyBuilder::new(&config.key).ok()?;
        let scopes = Arc::downgrade(scopes);
        Some(Arc::new(RoutesOnDemand { wants: wants.clone(), kind: Kind::Scoped { key, scopes } }))
    }
}

impl OnDemandRoutes for RoutesOnDemand {
    fn fetch(&self, headers: &Headers) -> Option<LocalFuture<'static, ()>> {
        let host: Box<str> = headers.str(&names::AUTHORITY)?.to_ascii_lowercase().into();
        let (answer, answered) = oneshot::channel();
        let want = match &self.kind {
            Kind::Table(routes) => {
                // Without VHDS all there is is there.
                routes.upgrade().filter(|routes| routes.uses_vhds())?;
                OnDemand::VirtualHost { routes: routes.clone(), host, answer }
            }
            Kind::Scoped { key, scopes } => {
                let scope = key.find(&scopes.upgrade()?.scopes, headers, |scope| scope.name.clone())?;
                OnDemand::Scope { scopes: scopes.clone(), scope, host, answer }
            }
        };
        self.wants.send(Want::OnDemand(want));
        // Where nobody answers any more, the request goes on with what there is.
        Some(Box::pin(async move { drop(answered.await) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::named_routes::RouteTables;
    use nuncio_http::headers::{HeaderName, HeaderValue};

    struct Setup {
        scopes: Arc<DiscoveredScopes>,
        routes: RouteTables,
        key: ScopeKeyBuilder,
        wanted: tokio::sync::mpsc::UnboundedReceiver<Want>,
    }

    fn setup() -> Setup {
        let tools = TableTools::of_tests();
        let (wants, wanted) = Wants::channel();
        let fragment = nuncio_config::hcm::KeyFragment {
            header: "x-key".into(),
            separator: "".into(),
            extract: nuncio_config::hcm::Extract::Index(0),
        };
        let config = ScopedRoutesConfig {
            name: "s".into(),
            key: vec![fragment],
            rds_source: Bytes::new(),
            scopes: ScopeSource::Discovered { source: Bytes::new(), locator: "".into() },
            path: "".into(),
        };
        let tables = ScopeTables::new(wants.clone(), tools.clone());
        let all = Bytes::new();
        let scopes = tables.discovered(&config, (&all, ""), "http.a.");
        assert!(Arc::ptr_eq(&scopes, &tables.discovered(&config, (&all, ""), "http.b.")));
        assert!(!Arc::ptr_eq(&scopes, &tables.discovered(&config, (&all, "file:///s"), "http.b.")));
        let key = ScopeKeyBuilder::new(&config.key).expect("a key");
        Setup { scopes, routes: RouteTables::new(wants, tools), key, wanted }
    }

    fn scope(name: &str, key: &str) -> Arc<ScopedRouteConfiguration> {
        Arc::new(ScopedRouteConfiguration {
            name: name.into(),
            key: Box::new([key.into()]),
            on_demand: false,
            routes_name: "r".into(),
            routes: None,
            message: Bytes::from(format!("{name} {key}")),
        })
    }

    impl Setup {
        fn set(&self, name: &str, key: &str) {
            let routes = self.routes.get("r", &Bytes::new(), "http.a.");
            self.scopes.set(HeldScope { config: scope(name, key), routes });
        }

        /// The scope of a request with this key.
        fn find(&self, key: &'static str) -> Option<String> {
            let mut headers = Headers::new();
            headers.append(HeaderName::parse("x-key").expect("a name"), HeaderValue::from_static(key));
            self.key.find(&self.scopes.scopes, &headers, |scope| scope.name.to_string())
        }
    }

    #[test]
    fn scopes_may_change_their_keys_for_each_others() {
        let setup = setup();
        setup.set("one", "a");
        setup.set("two", "b");
        let swapped = [scope("one", "b"), scope("two", "a")];
        assert_eq!(setup.scopes.conflict(&swapped, &[]), None);
        setup.set("one", "b");
        setup.set("two", "a");
        assert_eq!((setup.find("a").as_deref(), setup.find("b").as_deref()), (Some("two"), Some("one")));
        assert!(setup.scopes.remove("one").is_some() && setup.scopes.remove("one").is_none());
        assert_eq!((setup.find("a").as_deref(), setup.find("b")), (Some("two"), None));
        assert_eq!(setup.scopes.counts(), (1, 0, 1));
    }

    #[test]
    fn a_key_or_a_name_that_stands_twice_is_a_conflict() {
        let setup = setup();
        setup.set("one", "a");
        let conflict = |added: &[Arc<ScopedRouteConfiguration>], removed: &[&str]| {
            let removed: Vec<String> = removed.iter().map(|name| (*name).to_owned()).collect();
            setup.scopes.conflict(added, &removed)
        };
        let key =
            |first: &str| Some(format!("scope key conflict found, first scope is '{first}', second scope is 'two'"));
        assert_eq!(conflict(&[scope("two", "a")], &[]), key("one"));
        assert_eq!(conflict(&[scope("two", "a")], &["one"]), None);
        assert_eq!(conflict(&[scope("three", "b"), scope("two", "b")], &[]), key("three"));
        let twice = conflict(&[scope("two", "b"), scope("two", "c")], &[]);
        assert_eq!(twice.as_deref(), Some("duplicate scoped route configuration 'two' found"));
    }

    #[test]
    fn a_request_asks_for_the_routes_of_its_scope_and_goes_on_when_nobody_answers() {
        let mut setup = setup();
        setup.set("one", "a");
        let kind = Kind::Scoped {
            key: ScopeKeyBuilder::new(&[nuncio_config::hcm::KeyFragment {
                header: "x-key".into(),
                separator: "".into(),
                extract: nuncio_config::hcm::Extract::Index(0),
            }])
            .expect("a key"),
            scopes: Arc::downgrade(&setup.scopes),
        };
        let (wants, mut wanted) = Wants::channel();
        let on_demand = RoutesOnDemand { wants, kind };
        let mut headers = Headers::new();
        headers.append(names::AUTHORITY, HeaderValue::from_static("A.Example"));
        assert!(on_demand.fetch(&headers).is_none());
        headers.append(HeaderName::parse("x-key").expect("a name"), HeaderValue::from_static("a"));
        let fetch = on_demand.fetch(&headers).expect("something to ask for");
        let Ok(Want::OnDemand(OnDemand::Scope { scope, host, answer, .. })) = wanted.try_recv() else {
            panic!("the scope is asked for");
        };
        assert_eq!((&*scope, &*host), ("one", "a.example"));
        drop(answer);
        futures_util::future::FutureExt::now_or_never(fetch).expect("it goes on");
        let id = setup.scopes.id;
        drop(setup.scopes);
        let told: Vec<_> = std::iter::from_fn(|| setup.wanted.try_recv().ok()).collect();
        assert!(told.iter().any(|want| matches!(want, Want::ScopesGone(gone) if *gone == id)));
    }
}
