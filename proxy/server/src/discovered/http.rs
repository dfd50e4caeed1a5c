//! HTTP filters whose configuration is fetched, as parts of the filter chains of a connection manager.
//!
//! All chains of a connection manager are put together anew from their parts when one part changes, and swapped together.

use super::{ExtensionConfig, Joined, Kind, Prepared, Usage, User};
use crate::init::InitTargets;
use crate::server::Context;
use arc_swap::ArcSwap;
use envoy_types::pb::google::protobuf::Any;
use nuncio_config::descriptors::type_name;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::discovered::ExtensionSource;
use nuncio_config::hcm::{HcmConfig, HttpFilterConfig};
use nuncio_config::paths::FieldPath;
use nuncio_extensions::registry::{self, FilterPlace};
use nuncio_http::filter::FilterChain;
use nuncio_http::filter_chains::{ChainSource, FilterChains, MissingConfig};
use std::sync::{Arc, Mutex, PoisonError};

/// The filter chains of a connection manager, and what keeps its fetched filters up to date.
pub(crate) struct BuiltChains {
    pub(crate) chains: ChainSource,
    pub(crate) usages: Vec<Arc<Usage>>,
}

/// Builds the chains of a connection manager. What it waits for is added to `targets`, all errors to `errors`.
pub(crate) fn build(
    config: &HcmConfig,
    context: &Context,
    targets: &InitTargets,
    errors: &mut Vec<ConfigError>,
) -> Option<BuiltChains> {
    let before = errors.len();
    let mut builder = Builder { parts: Parts::default(), fetched: Vec::new(), context, errors };
    builder.chain(None, &config.http_filters, "http");
    for upgrade in config.upgrades.iter().filter(|upgrade| !upgrade.filters.is_empty()) {
        builder.chain(Some(&upgrade.upgrade_type), &upgrade.filters, "http upgrade");
    }
    let Builder { parts, fetched, .. } = builder;
    if errors.len() > before {
        return None;
    }
    let chains = parts.put_together();
    if fetched.is_empty() {
        return Some(BuiltChains { chains: ChainSource::Fixed(chains), usages: Vec::new() });
    }
    let swapped = Arc::new(ArcSwap::from_pointee(chains));
    let shared = Arc::new(Shared { parts: Mutex::new(parts), swapped: swapped.clone() });
    let mut usages = Vec::new();
    for (config, mut slot) in fetched {
        slot.shared = Some(shared.clone());
        let Joined { usage, targets: needed } = config.join(Arc::new(slot), context);
        targets.extend(&needed);
        usages.push(usage);
    }
    Some(BuiltChains { chains: ChainSource::Swapped(swapped), usages })
}

struct Builder<'a> {
    parts: Parts,
    fetched: Vec<(Arc<ExtensionConfig>, Slot)>,
    context: &'a Context,
    errors: &'a mut Vec<ConfigError>,
}

impl Builder<'_> {
    fn chain(&mut self, upgrade: Option<&str>, filters: &[HttpFilterConfig], kind: &'static str) {
        let factory = self.context.factory_context();
        let mut parts = Vec::with_capacity(filters.len());
        for (at, filter) in filters.iter().enumerate() {
            let last = at + 1 == filters.len();
            let Some(source) = &filter.config_discovery else {
                match registry::http_filter(filter, last, FilterPlace::Downstream, &factory) {
                    Ok(part) => parts.push(Part::Fixed(part)),
                    Err(found) => self.errors.extend(found),
                }
                continue;
            };
            let known = |name: &str| registry::HTTP_FILTERS.iter().any(|entry| entry.message == name);
            if let Some(error) = registry::unknown_type(source, "HTTP filter", known) {
                self.errors.push(ConfigError::new(registry::path_of(&filter.config), error));
                continue;
            }
            // The configuration in the place of that which comes says where it is itself.
            let place = filter.config.path.strip_suffix(".config_discovery.default_config");
            let place = FieldPath::parse(place.unwrap_or(&filter.config.path));
            if let Err(found) = super::check_source(source, &place, self.context) {
                self.errors.extend(found);
                continue;
            }
            let build = || registry::http_filter(filter, last, FilterPlace::Downstream, &factory);
            let default = match source.has_default.then(build) {
                None => None,
                Some(Ok(part)) => Some(part),
                Some(Err(found)) => {
                    self.errors.extend(found);
                    continue;
                }
            };
            let config = self.context.extensions.get(Kind::Http, &filter.name, &source.source);
            // A filter that is off does nothing before its configuration has come.
            parts.push(Part::Fetched(filter.disabled.then(FilterChain::new)));
            let place = (self.parts.chains.len(), at);
            let slot =
                Slot { filter: filter.clone(), source: source.clone(), kind, last, place, default, shared: None };
            self.fetched.push((config, slot));
        }
        self.parts.chains.push((upgrade.map(Into::into), parts));
    }
}

/// One filter, or what is there of it.
#[derive(Clone)]
enum Part {
    Fixed(FilterChain),
    Fetched(Option<FilterChain>),
}

/// Chains with their parts; the first is that of ordinary requests.
#[derive(Clone, Default)]
struct Parts {
    chains: Vec<(Option<Box<str>>, Vec<Part>)>,
}

impl Parts {
    fn put_together(&self) -> FilterChains {
        let mut out = FilterChains::default();
        for (upgrade, parts) in &self.chains {
            let mut chain = FilterChain::new();
            let mut missing = false;
            for part in parts {
                match part {
                    Part::Fixed(part) | Part::Fetched(Some(part)) => chain.extend(part),
                    // Nothing gets beyond the first.
                    Part::Fetched(None) if missing => {}
                    Part::Fetched(None) => {
                        missing = true;
                        chain.push("".into(), MissingConfig);
                    }
                }
            }
            match upgrade {
                None => out.ordinary = chain,
                Some(name) => out.upgrades.push((name.clone(), chain)),
            }
        }
        out
    }
}

/// The chains of one connection manager.
struct Shared {
    parts: Mutex<Parts>,
    swapped: Arc<ArcSwap<FilterChains>>,
}

impl Shared {
    fn set(&self, (chain, at): (usize, usize), filter: Option<FilterChain>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let place = parts.chains.get_mut(chain).and_then(|(_, parts)| parts.get_mut(at));
        if let Some(Part::Fetched(current)) = place {
            *current = filter;
            self.swapped.store(Arc::new(parts.put_together()));
        }
    }
}

/// The place of a fetched filter.
struct Slot {
    filter: HttpFilterConfig,
    source: Arc<ExtensionSource>,
    kind: &'static str,
    last: bool,
    place: (usize, usize),
    default: Option<FilterChain>,
    /// Set before anybody sees the slot.
    shared: Option<Arc<Shared>>,
}

impl User for Slot {
    fn source(&self) -> &ExtensionSource {
        &self.source
    }

    fn prepare(self: Arc<Self>, config: &Any, context: &Context) -> Result<Prepared, Vec<ConfigError>> {
        let mut filter = self.filter.clone();
        filter.config.type_name = type_name(&config.type_url).into();
        filter.config.value = config.value.clone().into();
        filter.config.path = "typed_config".into();
        let path = registry::path_of(&filter.config);
        if let Some(error) = filter.position_error(self.last, self.kind) {
            return Err(vec![ConfigError::new(path, error)]);
        }
        // Whether a route may do without it is not asked of what has come.
        filter.is_optional = false;
        let part = registry::http_filter(&filter, self.last, FilterPlace::Downstream, &context.factory_context())?;
        let commit = Box::new(move || {
            if let Some(shared) = &self.shared {
                shared.set(self.place, Some(part));
            }
        });
        Ok(Prepared { commit, targets: InitTargets::default() })
    }

    fn fall_back(&self) {
        if let Some(shared) = &self.shared {
            shared.set(self.place, self.default.clone().or_else(|| self.filter.disabled.then(FilterChain::new)));
        }
    }
}
