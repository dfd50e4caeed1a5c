//! Route tables by name: one table shared by all connection managers that ask for it, swapped whole.
//!
//! A connection manager gets its table here while it is built, empty until somebody fills it. Who does is told through
//! [`Wants`]; when the last user is gone, it is told that too. Nothing here knows where routes come from.

use crate::init::InitTarget;
use crate::xds::wants::{Want, Wants};
use arc_swap::ArcSwap;
use bytes::Bytes;
use nuncio_base::stats::Registry;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::paths::FieldPath;
use nuncio_config::route::RouteConfiguration;
use nuncio_extensions::on_demand::ClusterSources;
use nuncio_extensions::registry::PerRouteDecoder;
use nuncio_http::route::{BuildContext, RouteTable};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A table under a name.
pub struct NamedRoutes {
    /// Unique in the process.
    pub id: u64,
    /// `route_config_name`.
    pub name: Box<str>,
    /// Serialized `ConfigSource`.
    pub source: Bytes,
    /// `http.<stat_prefix>.` of the first that asked, for stats.
    pub stat_prefix: String,
    /// The table; empty at first.
    pub table: Arc<ArcSwap<RouteTable>>,
    /// Ready once the first routes have come.
    pub target: Arc<InitTarget>,
    /// Routes have come.
    loaded: AtomicBool,
    /// Virtual hosts come beside them.
    vhds: AtomicBool,
    parts: Mutex<Parts>,
    tools: TableTools,
    wants: Wants,
}

/// What every table is compiled with.
#[derive(Clone)]
pub struct TableTools {
    /// Where statistics of routes live.
    pub registry: Registry,
    /// Whom routes ask for clusters on demand.
    pub on_demand: Arc<dyn ClusterSources>,
}

/// Virtual hosts by name, each compiled as a table of its own.
pub type VirtualHosts = BTreeMap<Arc<str>, Arc<RouteTable>>;

/// What the table is put together from, where virtual hosts come beside the routes.
#[derive(Default)]
struct Parts {
    hosts: VirtualHosts,
}

impl Drop for NamedRoutes {
    fn drop(&mut self) {
        self.wants.send(Want::RoutesGone(self.id));
    }
}

impl NamedRoutes {
    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compiles other routes and swaps them in, with the virtual hosts that come beside them; requests that have picked a
    /// route keep it. Without `hosts` those that are there stay, as long as the routes want any.
    ///
    /// # Errors
    /// Everything that is wrong; the old routes stay.
    pub fn set(&self, routes: Arc<RouteConfiguration>, hosts: Option<VirtualHosts>) -> Result<(), Vec<ConfigError>> {
        let vhds = routes.vhds.is_some();
        let base = Arc::new(build(routes, &self.tools)?);
        let mut parts = self.parts();
        let none = VirtualHosts::new();
        let used = if vhds { hosts.as_ref().unwrap_or(&parts.hosts) } else { &none };
        self.table.store(joined(&base, std::iter::empty(), used.values())?);
        match hosts {
            _ if !vhds => parts.hosts.clear(),
            Some(hosts) => parts.hosts = hosts,
            None => {}
        }
        self.vhds.store(vhds, Ordering::Release);
        self.loaded.store(true, Ordering::Release);
        Ok(())
    }

    /// Adds virtual hosts that came beside the routes, or takes them away. Others are not touched, and cost nothing.
    ///
    /// # Errors
    /// A domain stands in two virtual hosts; the old ones stay.
    pub fn change_hosts(&self, added: VirtualHosts, removed: &[Arc<str>]) -> Result<(), Vec<ConfigError>> {
        if !self.uses_vhds() {
            return Ok(());
        }
        let mut parts = self.parts();
        // Those that come in place of others make room for themselves.
        let leave = removed.iter().chain(added.keys()).filter_map(|name| parts.hosts.get(name));
        let table = joined(&self.table.load_full(), leave, added.values())?;
        self.table.store(table);
        removed.iter().for_each(|name| drop(parts.hosts.remove(name)));
        parts.hosts.extend(added);
        Ok(())
    }

    /// Compiles a virtual host on its own.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn compile_host(&self, alone: RouteConfiguration) -> Result<Arc<RouteTable>, Vec<ConfigError>> {
        build(Arc::new(alone), &self.tools).map(Arc::new)
    }

    /// Whether routes have come.
    pub fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Whether virtual hosts come beside the routes, and may be asked for.
    pub fn uses_vhds(&self) -> bool {
        self.vhds.load(Ordering::Acquire)
    }

    /// Every request is a 404 from now on.
    pub fn clear(&self) {
        if let Some(table) = empty_routes(&self.name).and_then(|routes| build(routes, &self.tools).ok()) {
            self.table.store(Arc::new(table));
            *self.parts() = Parts::default();
            self.vhds.store(false, Ordering::Release);
        }
    }
}

/// A table without some of the virtual hosts that came beside it, and with others.
fn joined<'t>(
    table: &Arc<RouteTable>,
    leave: impl Iterator<Item = &'t Arc<RouteTable>>,
    join: impl ExactSizeIterator<Item = &'t Arc<RouteTable>>,
) -> Result<Arc<RouteTable>, Vec<ConfigError>> {
    let mut leave = leave.map(|host| &**host).peekable();
    if leave.peek().is_none() && join.len() == 0 {
        return Ok(table.clone());
    }
    table.with_virtual_hosts(leave, join.map(|host| &**host)).map(Arc::new).map_err(errors)
}

fn errors(found: Vec<(String, String)>) -> Vec<ConfigError> {
    found.into_iter().map(|(path, message)| ConfigError::new(FieldPath::parse(&path), message)).collect()
}

type Key = (Box<str>, Bytes);

/// All tables by name and source.
pub struct RouteTables {
    by_key: Mutex<HashMap<Key, Weak<NamedRoutes>>>,
    tools: TableTools,
    wants: Wants,
}

impl RouteTables {
    /// No tables yet; they will be compiled with `tools`.
    pub fn new(wants: Wants, tools: TableTools) -> RouteTables {
        RouteTables { by_key: Mutex::default(), tools, wants }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Weak<NamedRoutes>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table of this name from this source; the first who asks makes it. None for a name that cannot be.
    pub fn get(&self, name: &str, source: &Bytes, stat_prefix: &str) -> Option<Arc<NamedRoutes>> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let key = (name.into(), source.clone());
        let mut by_key = self.lock();
        if let Some(found) = by_key.get(&key).and_then(Weak::upgrade) {
            return Some(found);
        }
        let table = build(empty_routes(name)?, &self.tools).ok()?;
        let made = Arc::new(NamedRoutes {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: name.into(),
            source: source.clone(),
            stat_prefix: stat_prefix.to_owned(),
            table: Arc::new(ArcSwap::from_pointee(table)),
            target: InitTarget::new(format!("shared target RdsRouteConfigSubscription RDS init {name}")),
            loaded: AtomicBool::new(false),
            vhds: AtomicBool::new(false),
            parts: Mutex::default(),
            tools: self.tools.clone(),
            wants: self.wants.clone(),
        });
        if by_key.len() >= 64 && by_key.len().is_power_of_two() {
            by_key.retain(|_, routes| routes.strong_count() > 0);
        }
        by_key.insert(key, Arc::downgrade(&made));
        drop(by_key);
        self.wants.send(Want::Routes(Arc::downgrade(&made)));
        Some(made)
    }
}

/// Compiles routes.
///
/// # Errors
/// Everything that is wrong, with paths.
pub fn build(routes: Arc<RouteConfiguration>, tools: &TableTools) -> Result<RouteTable, Vec<ConfigError>> {
    let decoder = PerRouteDecoder { on_demand: &*tools.on_demand };
    RouteTable::build_with(routes, BuildContext { registry: Some(&tools.registry), decoder: Some(&decoder) })
        .map_err(errors)
}

/// A route configuration without virtual hosts.
pub fn empty_routes(name: &str) -> Option<Arc<RouteConfiguration>> {
    let message =
        envoy_types::pb::envoy::config::route::v3::RouteConfiguration { name: name.to_owned(), ..Default::default() };
    RouteConfiguration::decode(&message, &mut nuncio_config::decode::Context::default()).ok().map(Arc::new)
}

#[cfg(test)]
impl TableTools {
    pub(crate) fn of_tests() -> TableTools {
        let server = crate::xds::test_server();
        TableTools { registry: server.context.registry.clone(), on_demand: server.context.on_demand.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> TableTools {
        TableTools::of_tests()
    }

    #[test]
    fn a_name_has_one_table_per_source_and_both_ends_of_its_life_are_told() {
        let (wants, mut wanted) = Wants::channel();
        let tables = RouteTables::new(wants, tools());
        let (ads, file) = (Bytes::from_static(b"ads"), Bytes::from_static(b"file"));
        let one = tables.get("r", &ads, "http.a.").expect("a table");
        let again = tables.get("r", &ads, "http.b.").expect("a table");
        let other = tables.get("r", &file, "http.a.").expect("a table");
        assert!(Arc::ptr_eq(&one, &again) && !Arc::ptr_eq(&one, &other));
        let id = one.id;
        drop((one, again));
        let told: Vec<_> = std::iter::from_fn(|| wanted.try_recv().ok()).collect();
        assert!(matches!(&told[..], [Want::Routes(_), Want::Routes(_), Want::RoutesGone(gone)] if *gone == id));
        let new = tables.get("r", &ads, "http.a.").expect("a table");
        assert!(new.id != id && !new.target.is_ready());
    }

    #[test]
    fn bad_routes_leave_the_old_ones_in_use() {
        let tables = RouteTables::new(Wants::channel().0, tools());
        let routes = tables.get("r", &Bytes::new(), "").expect("a table");
        let mut wrong = (*empty_routes("r").expect("routes")).clone();
        wrong.vhost_header = Some("not a header".into());
        let before = routes.table.load_full();
        assert!(routes.set(Arc::new(wrong), None).is_err() && !routes.is_loaded());
        assert!(Arc::ptr_eq(&before, &routes.table.load_full()));
        routes.set(empty_routes("r").expect("routes"), None).expect("good routes");
        assert!(routes.is_loaded() && !Arc::ptr_eq(&before, &routes.table.load_full()));
    }

    #[test]
    fn virtual_hosts_stay_beside_routes_that_want_them_and_go_with_the_wish() {
        let tables = RouteTables::new(Wants::channel().0, tools());
        let routes = tables.get("r", &Bytes::new(), "").expect("a table");
        let mut config = (*empty_routes("r").expect("routes")).clone();
        config.vhds = Some(Bytes::new());
        let host = |domain: &str| {
            use envoy_types::pb::envoy::config::route::v3 as pb;
            let message = pb::VirtualHost { name: domain.into(), domains: vec![domain.into()], ..Default::default() };
            let mut cx = nuncio_config::decode::Context::default();
            let alone = RouteConfiguration::decode_virtual_host(&pb::RouteConfiguration::default(), message, &mut cx);
            routes.compile_host(alone.expect("a virtual host")).expect("a virtual host")
        };
        let one = |name: &str, domain: &str| VirtualHosts::from([(Arc::from(name), host(domain))]);
        let has = |domain: &str| routes.table.load().has_virtual_host(domain.as_bytes());
        assert!(!routes.uses_vhds());
        routes.change_hosts(one("early", "early.example"), &[]).expect("nothing to join");
        assert!(!has("early.example"));
        routes.set(Arc::new(config.clone()), None).expect("good routes");
        assert!(routes.uses_vhds());
        routes.change_hosts(one("a", "a.example"), &[]).expect("a host");
        routes.set(Arc::new(config.clone()), None).expect("good routes");
        assert!(has("a.example"));
        assert!(routes.change_hosts(one("b", "a.example"), &[]).is_err() && has("a.example"));
        routes.change_hosts(one("b", "b.example"), &["a".into()]).expect("another host");
        assert!(!has("a.example") && has("b.example"));
        config.vhds = None;
        routes.set(Arc::new(config), None).expect("good routes");
        assert!(!has("b.example") && !routes.uses_vhds());
    }
}
