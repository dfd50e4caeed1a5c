//! Filters whose configuration is fetched (ECDS): one configuration under a name, shared by all filters that ask for it.
//!
//! ```text
//! a filter is built -> ExtensionConfigs::get -> Want::Extension -> update: every filter takes it -> swapped, all or none
//!                                                               -> remove: the default, or nothing
//! ```
//!
//! A listener or a connection manager that has such a filter gets its configuration here while it is built, with what came
//! last, or its default, or nothing. Who fetches is told through [`Wants`]; when the last user is gone, it is told that
//! too. What a filter does with a configuration is in `http`, `network` and `listener_filter`. Nothing here knows where
//! configurations come from.

pub(crate) mod chain;
pub(crate) mod http;
pub(crate) mod listener_filter;
pub(crate) mod network;
pub(crate) mod upstream;

use crate::init::{InitTarget, InitTargets};
use crate::server::Context;
use crate::xds::wants::{Want, Wants};
use bytes::Bytes;
use envoy_types::pb::google::protobuf::Any;
use nuncio_base::stat_family;
use nuncio_base::stats::Registry;
use nuncio_config::decode::Context as DecodeContext;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::discovered::ExtensionSource;
use nuncio_config::paths::FieldPath;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

stat_family! {
    /// `extension_config_discovery.<kind>.<name>.`
    pub struct ExtensionConfigStats {
        counters { config_conflict, config_fail, config_reload }
    }
}

/// What kind of filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// HTTP filters.
    Http,
    /// Network filters.
    Network,
    /// Listener filters.
    Listener,
    /// HTTP filters between routers and upstreams.
    Upstream,
}

impl Kind {
    /// All of them, in the order of `/config_dump`.
    pub const ALL: [Kind; 4] = [Kind::Http, Kind::Network, Kind::Listener, Kind::Upstream];

    /// The word in names of stats.
    pub fn stat_name(self) -> &'static str {
        match self {
            Kind::Http => "http_filter",
            Kind::Network => "network_filter",
            Kind::Listener => "tcp_listener_filter",
            Kind::Upstream => "upstream_http_filter",
        }
    }
}

/// A filter with this configuration, ready to be used.
pub(crate) struct Prepared {
    /// Puts it in use.
    pub(crate) commit: Box<dyn FnOnce()>,
    /// What it needs from outside itself.
    pub(crate) targets: InitTargets,
}

/// One place where a configuration is used.
pub(crate) trait User: Send + Sync {
    /// Which types may come.
    fn source(&self) -> &ExtensionSource;

    /// Builds the filter with a configuration.
    ///
    /// # Errors
    /// Everything that is wrong with it; nothing has changed then.
    fn prepare(self: Arc<Self>, config: &Any, context: &Context) -> Result<Prepared, Vec<ConfigError>>;

    /// There is no configuration: the default is used, or none.
    fn fall_back(&self);
}

/// A configuration under a name.
pub struct ExtensionConfig {
    /// Unique in the process.
    pub id: u64,
    /// What is configured.
    pub kind: Kind,
    /// Name of the filter and of the resource.
    pub name: Box<str>,
    /// Serialized `ConfigSource`.
    pub source: Bytes,
    /// Ready once the first configuration has come, or is waited for no longer.
    pub target: Arc<InitTarget>,
    /// Stats.
    pub stats: ExtensionConfigStats,
    state: Mutex<State>,
    wants: Wants,
}

#[derive(Default)]
struct State {
    accepted: Option<Any>,
    users: Vec<Weak<dyn User>>,
}

impl Drop for ExtensionConfig {
    fn drop(&mut self) {
        self.wants.send(Want::ExtensionGone(self.id));
    }
}

impl ExtensionConfig {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn users(&self) -> Vec<Arc<dyn User>> {
        let mut state = self.state();
        state.users.retain(|user| user.strong_count() > 0);
        state.users.iter().filter_map(Weak::upgrade).collect()
    }

    /// `extension_config_discovery.<kind>.<name>.`
    pub fn stat_prefix(&self) -> String {
        stat_prefix(self.kind, &self.name)
    }

    /// Whether a message of this type may come to all who use it.
    ///
    /// # Errors
    /// Envoy's words where it may not.
    pub fn check_type(&self, type_name: &str) -> Result<(), String> {
        self.users().iter().try_for_each(|user| user.source().check_type(type_name))
    }

    /// Whether this is the configuration that is in use.
    pub fn is_same(&self, config: &Any) -> bool {
        self.state().accepted.as_ref() == Some(config)
    }

    /// All who use it take a configuration, or none does. Returns what they need from outside before they can serve.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn update(self: &Arc<Self>, config: Any, context: &Context) -> Result<InitTargets, Vec<ConfigError>> {
        let mut ready = Vec::new();
        for user in self.users() {
            ready.push(user.prepare(&config, context)?);
        }
        self.state().accepted = Some(config);
        let targets = InitTargets::default();
        for prepared in ready {
            (prepared.commit)();
            targets.extend(&prepared.targets);
        }
        self.stats.config_reload().inc();
        Ok(targets)
    }

    /// The configuration is gone.
    pub fn remove(&self) {
        self.state().accepted = None;
        self.users().iter().for_each(|user| user.fall_back());
        self.stats.config_reload().inc();
    }

    /// A filter begins to use it: with what came last, where that fits.
    pub(crate) fn join(self: &Arc<Self>, user: Arc<dyn User>, context: &Context) -> Joined {
        self.join_with(user.clone(), |config| user.prepare(config, context))
    }

    /// As [`ExtensionConfig::join`], for one that needs nobody's help to take a configuration.
    pub(crate) fn join_with(
        self: &Arc<Self>,
        user: Arc<dyn User>,
        prepare: impl FnOnce(&Any) -> Result<Prepared, Vec<ConfigError>>,
    ) -> Joined {
        let accepted = {
            let mut state = self.state();
            state.users.push(Arc::downgrade(&user));
            state.accepted.clone()
        };
        let targets = InitTargets::default();
        let taken = accepted.is_some_and(|config| {
            let fits = user.source().check_type(nuncio_config::descriptors::type_name(&config.type_url));
            let prepared = fits.ok().and_then(|()| prepare(&config).ok());
            match prepared {
                Some(prepared) => {
                    (prepared.commit)();
                    targets.extend(&prepared.targets);
                    true
                }
                None => {
                    self.stats.config_conflict().inc();
                    false
                }
            }
        });
        if !taken {
            user.fall_back();
        }
        if !user.source().without_warming {
            targets.add(&self.target);
        }
        Joined { usage: Arc::new(Usage { _config: self.clone(), _user: user }), targets }
    }
}

/// A filter that has begun to use a configuration.
pub(crate) struct Joined {
    /// Keeps it in use.
    pub(crate) usage: Arc<Usage>,
    /// What the listener has to wait for.
    pub(crate) targets: InitTargets,
}

/// Keeps a configuration fetched and a filter told, as long as it lives.
pub struct Usage {
    _config: Arc<ExtensionConfig>,
    _user: Arc<dyn User>,
}

fn stat_prefix(kind: Kind, name: &str) -> String {
    format!("extension_config_discovery.{}.{}.", kind.stat_name(), name.replace(':', "_"))
}

type Key = (Kind, Box<str>, Bytes);

/// All configurations by kind, name and source.
pub struct ExtensionConfigs {
    by_key: Mutex<HashMap<Key, Weak<ExtensionConfig>>>,
    /// Kinds that have been asked for, in the order of [`Kind::ALL`].
    used: [AtomicBool; Kind::ALL.len()],
    registry: Registry,
    wants: Wants,
}

impl ExtensionConfigs {
    /// None yet.
    pub fn new(wants: Wants, registry: Registry) -> ExtensionConfigs {
        ExtensionConfigs { by_key: Mutex::default(), used: Default::default(), registry, wants }
    }

    /// Whether a filter of this kind has ever asked for its configuration.
    pub fn has_used(&self, kind: Kind) -> bool {
        self.used[kind as usize].load(Ordering::Relaxed)
    }

    /// The configuration of this name from this source; the first who asks makes it.
    pub fn get(&self, kind: Kind, name: &str, source: &Bytes) -> Arc<ExtensionConfig> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        self.used[kind as usize].store(true, Ordering::Relaxed);
        let key = (kind, name.into(), source.clone());
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = by_key.get(&key).and_then(Weak::upgrade) {
            return found;
        }
        let made = Arc::new(ExtensionConfig {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            kind,
            name: name.into(),
            source: source.clone(),
            target: InitTarget::new(format!("shared target FilterConfigSubscription init {name}")),
            stats: ExtensionConfigStats::new(&self.registry, &stat_prefix(kind, name)),
            state: Mutex::default(),
            wants: self.wants.clone(),
        });
        if by_key.len() >= 64 && by_key.len().is_power_of_two() {
            by_key.retain(|_, config| config.strong_count() > 0);
        }
        by_key.insert(key, Arc::downgrade(&made));
        drop(by_key);
        self.wants.send(Want::Extension(Arc::downgrade(&made)));
        made
    }

    /// As [`ExtensionConfigs::get`], for a filter of a cluster: it is asked for with what else clusters need, before
    /// listeners are.
    pub fn get_for_cluster(&self, name: &str, source: &Bytes) -> Arc<ExtensionConfig> {
        let config = self.get(Kind::Upstream, name, source);
        self.wants.send(Want::ClusterExtension(Arc::downgrade(&config)));
        config
    }
}

/// Whether what `source` says can be fetched from; `path` is that of the filter.
fn check_source(source: &ExtensionSource, path: &FieldPath, context: &Context) -> Result<(), Vec<ConfigError>> {
    context.sources.check(&source.source, path.field("config_discovery").field("config_source"))
}

/// What a configuration that has come is decoded with.
fn decode_context(context: &Context) -> DecodeContext {
    let mut cx = DecodeContext::default();
    let clusters = context.clusters.clone();
    cx.set_cluster_check(move |name| clusters.cluster(name).is_some());
    cx
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes configurations whose value is no `!`, and notes what it uses.
    struct Place {
        source: ExtensionSource,
        used: Mutex<Vec<String>>,
    }

    impl Place {
        fn new(types: &[&str]) -> Arc<Place> {
            let source = ExtensionSource {
                source: Bytes::new(),
                without_warming: false,
                type_names: types.iter().map(|name| (*name).into()).collect(),
                has_default: false,
            };
            Arc::new(Place { source, used: Mutex::default() })
        }

        fn used(&self) -> String {
            self.used.lock().unwrap().join(" ")
        }
    }

    impl User for Place {
        fn source(&self) -> &ExtensionSource {
            &self.source
        }

        fn prepare(self: Arc<Self>, config: &Any, _: &Context) -> Result<Prepared, Vec<ConfigError>> {
            if self.source.type_names.len() == 1 && config.value == b"!" {
                return Err(vec![ConfigError::new(FieldPath::root(), "no")]);
            }
            let text = String::from_utf8(config.value.clone()).unwrap();
            let commit = Box::new(move || self.used.lock().unwrap().push(text));
            Ok(Prepared { commit, targets: InitTargets::default() })
        }

        fn fall_back(&self) {
            self.used.lock().unwrap().push("-".into());
        }
    }

    fn any(value: &str) -> Any {
        Any { type_url: "type.googleapis.com/a.A".into(), value: value.into() }
    }

    #[test]
    fn all_who_use_a_configuration_take_another_or_none_does() {
        let server = crate::xds::test_server();
        let context = &server.context;
        let config = context.extensions.get(Kind::Http, "f", &Bytes::new());
        let (strict, lenient, gone) = (Place::new(&["a.A"]), Place::new(&["a.A", "b.B"]), Place::new(&["a.A"]));
        let joined: Vec<_> = [&strict, &lenient].into_iter().map(|place| config.join(place.clone(), context)).collect();
        drop(config.join(gone.clone(), context));
        let weak = Arc::downgrade(&gone);
        drop(gone);
        assert!(weak.upgrade().is_none(), "nothing keeps who has left");
        assert!(joined.iter().all(|joined| joined.targets.unready().len() == 1));
        config.update(any("1"), context).unwrap();
        assert!(config.update(any("!"), context).is_err());
        assert!(config.is_same(&any("1")) && !config.is_same(&any("!")));
        config.remove();
        assert_eq!((strict.used(), lenient.used()), ("- 1 -".into(), "- 1 -".into()));
        assert_eq!((config.stats.config_reload().value(), config.stats.config_conflict().value()), (2, 0));
    }

    #[test]
    fn who_comes_later_gets_what_came_last_if_it_fits() {
        let server = crate::xds::test_server();
        let context = &server.context;
        let config = context.extensions.get(Kind::Network, "f", &Bytes::new());
        assert!(Arc::ptr_eq(&config, &context.extensions.get(Kind::Network, "f", &Bytes::new())));
        assert!(!Arc::ptr_eq(&config, &context.extensions.get(Kind::Http, "f", &Bytes::new())));
        config.update(any("1"), context).unwrap();
        config.target.set_ready();
        let (fits, other) = (Place::new(&["a.A"]), Place::new(&["b.B"]));
        let joined = [config.join(fits.clone(), context), config.join(other.clone(), context)];
        assert!(joined.iter().all(|joined| joined.targets.unready().is_empty()));
        assert_eq!((fits.used(), other.used()), ("1".into(), "-".into()));
        assert_eq!(config.stats.config_conflict().value(), 1);
        assert!(config.check_type("a.A").is_err() && config.check_type("c.C").is_err());
    }
}
