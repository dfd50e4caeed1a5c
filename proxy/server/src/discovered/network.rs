//! A network filter whose configuration is fetched: new connections get the filter of the newest configuration, those
//! that are there keep theirs.

use super::{Joined, Kind, Prepared, User, decode_context};
use crate::init::InitTargets;
use crate::listeners::build::{self, Place};
use crate::server::Context;
use arc_swap::ArcSwapOption;
use envoy_types::pb::google::protobuf::Any;
use futures_util::future::LocalBoxFuture;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::discovered::{Discovered, ExtensionSource};
use nuncio_config::listener::NetworkFilterConfig;
use nuncio_config::paths::FieldPath;
use nuncio_extensions::registry;
use nuncio_net::connection::Connection;
use nuncio_net::listener::{FilterChainFactory, FilterChainHandler, ListenerStats};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// The error of a filter that would be of a type that is not there.
pub(crate) fn unknown_type(filter: &Discovered<NetworkFilterConfig>) -> Option<ConfigError> {
    let known = |name: &str| registry::NETWORK_FILTERS.iter().any(|(_, message)| *message == name);
    let error = registry::unknown_type(&filter.source, "network filter", known)?;
    Some(ConfigError::new(FieldPath::parse(&filter.path), error))
}

/// The factory of a filter that is fetched. What it waits for is added to `targets`, all errors to `errors`.
pub(crate) fn build(
    filter: &Arc<Discovered<NetworkFilterConfig>>,
    place: &Place,
    context: &Context,
    targets: &InitTargets,
    errors: &mut Vec<ConfigError>,
) -> Option<Arc<dyn FilterChainFactory>> {
    if let Some(error) = unknown_type(filter) {
        errors.push(error);
        return None;
    }
    if let Err(found) = super::check_source(&filter.source, &FieldPath::parse(&filter.path), context) {
        errors.extend(found);
        return None;
    }
    let before = errors.len();
    let default =
        filter.default.as_ref().and_then(|default| build::network_filter(default, place, context, targets, errors));
    if errors.len() > before {
        return None;
    }
    let slot = Arc::new(Slot {
        filter: filter.clone(),
        place: place.clone(),
        default: default.map(Arc::new),
        current: ArcSwapOption::empty(),
        newest: AtomicU64::new(0),
        stats: ListenerStats::new(&context.registry, &place.prefix),
    });
    let config = context.extensions.get(Kind::Network, &filter.name, &filter.source.source);
    let Joined { usage, targets: needed } = config.join(slot.clone(), context);
    targets.extend(&needed);
    Some(Arc::new(Factory { slot, _usage: usage }))
}

/// A filter with one configuration. The outer `Arc` is what is compared and swapped.
type Version = Arc<dyn FilterChainFactory>;

struct Slot {
    filter: Arc<Discovered<NetworkFilterConfig>>,
    place: Place,
    default: Option<Arc<Version>>,
    current: ArcSwapOption<Version>,
    /// Counts configurations: what was prepared for an older one is not put in use any more.
    newest: AtomicU64,
    stats: ListenerStats,
}

impl User for Slot {
    fn source(&self) -> &ExtensionSource {
        &self.filter.source
    }

    fn prepare(self: Arc<Self>, config: &Any, context: &Context) -> Result<Prepared, Vec<ConfigError>> {
        let mut cx = decode_context(context);
        let decoded = NetworkFilterConfig::decode(&mut cx, &self.filter.name, config, self.filter.last)?;
        let targets = InitTargets::default();
        let mut errors = Vec::new();
        let built = build::network_filter(&decoded, &self.place, context, &targets, &mut errors);
        let Some(version) = built.filter(|_| errors.is_empty()) else { return Err(errors) };
        let needed = Arc::new(InitTargets::default());
        needed.extend(&targets);
        let commit = Box::new(move || {
            let number = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
            if self.current.load().is_none() || needed.unready().is_empty() {
                self.current.store(Some(Arc::new(version)));
                return;
            }
            // What serves goes on serving until the routes of the new one are there.
            tokio::task::spawn_local(async move {
                needed.all_ready().await;
                if self.newest.load(Ordering::Relaxed) == number {
                    self.current.store(Some(Arc::new(version)));
                }
            });
        });
        Ok(Prepared { commit, targets })
    }

    fn fall_back(&self) {
        self.newest.fetch_add(1, Ordering::Relaxed);
        self.current.store(self.default.clone());
    }
}

struct Factory {
    slot: Arc<Slot>,
    _usage: Arc<super::Usage>,
}

impl FilterChainFactory for Factory {
    fn create(&self) -> Rc<dyn FilterChainHandler> {
        Rc::new(Handler { slot: self.slot.clone(), made: RefCell::default() })
    }
}

type Made = (Weak<Version>, Rc<dyn FilterChainHandler>);

/// On one worker.
struct Handler {
    slot: Arc<Slot>,
    /// The handler of a version. The version itself goes when it is replaced, and with it what it has fetched.
    made: RefCell<Option<Made>>,
}

impl Handler {
    fn newest(&self) -> Option<Rc<dyn FilterChainHandler>> {
        let current = self.slot.current.load_full()?;
        let mut made = self.made.borrow_mut();
        match &*made {
            Some((version, handler)) if version.as_ptr() == Arc::as_ptr(&current) => Some(handler.clone()),
            _ => {
                let handler = current.create();
                *made = Some((Arc::downgrade(&current), handler.clone()));
                Some(handler)
            }
        }
    }
}

impl FilterChainHandler for Handler {
    fn serve(self: Rc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()> {
        match self.newest() {
            Some(handler) => handler.serve(connection),
            None => {
                self.slot.stats.network_extension_config_missing().inc();
                Box::pin(async move { drop(connection) })
            }
        }
    }
}
