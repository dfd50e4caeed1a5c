//! HTTP filters whose configuration is fetched, as parts of the filter chains of a connection manager.
//!
//! All chains of a connection manager are put together anew from their parts when one part changes, and swapped together.

use super::chain::{FetchedFilter, Part, put_together};
use super::{ExtensionConfig, Joined, Kind, Prepared, Usage, User};
use crate::init::InitTargets;
use crate::server::Context;
use arc_swap::ArcSwap;
use envoy_types::pb::google::protobuf::Any;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::discovered::ExtensionSource;
use nuncio_config::hcm::{HcmConfig, HttpFilterConfig};
use nuncio_extensions::registry::{self, FactoryContext, FilterPlace};
use nuncio_http::filter::FilterChain;
use nuncio_http::filter_chains::{ChainSource, FilterChains};
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
    // What the filters themselves fetch.
    let waits = Arc::new(InitTargets::default());
    let factory = context.factory_context_for(&waits);
    let mut builder = Builder { parts: Parts::default(), fetched: Vec::new(), context, factory, errors };
    builder.chain(None, &config.http_filters, "http");
    for upgrade in config.upgrades.iter().filter(|upgrade| !upgrade.filters.is_empty()) {
        builder.chain(Some(&upgrade.upgrade_type), &upgrade.filters, "http upgrade");
    }
    let Builder { parts, fetched, .. } = builder;
    if errors.len() > before {
        return None;
    }
    targets.extend(&waits);
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
    factory: FactoryContext,
    errors: &'a mut Vec<ConfigError>,
}

impl Builder<'_> {
    fn chain(&mut self, upgrade: Option<&str>, filters: &[HttpFilterConfig], kind: &'static str) {
        let place = FilterPlace::Downstream;
        let sources = Some(&*self.context.sources);
        let mut parts = Vec::with_capacity(filters.len());
        for (at, filter) in filters.iter().enumerate() {
            let last = at + 1 == filters.len();
            let Some(source) = &filter.config_discovery else {
                match registry::http_filter(filter, last, place, &self.factory) {
                    Ok(part) => parts.push(Part::Fixed(part)),
                    Err(found) => self.errors.extend(found),
                }
                continue;
            };
            match FetchedFilter::new(filter, source, (kind, place), last, &self.factory, sources) {
                Ok(fetched) => {
                    let config = self.context.extensions.get(Kind::Http, &filter.name, &source.source);
                    parts.push(Part::Fetched(filter.disabled.then(FilterChain::new)));
                    let place = (self.parts.chains.len(), at);
                    self.fetched.push((config, Slot { filter: fetched, place, shared: None }));
                }
                Err(found) => self.errors.extend(found),
            }
        }
        self.parts.chains.push((upgrade.map(Into::into), parts));
    }
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
            let chain = put_together(parts);
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
    filter: FetchedFilter,
    place: (usize, usize),
    /// Set before anybody sees the slot.
    shared: Option<Arc<Shared>>,
}

impl User for Slot {
    fn source(&self) -> &ExtensionSource {
        &self.filter.source
    }

    fn prepare(self: Arc<Self>, config: &Any, context: &Context) -> Result<Prepared, Vec<ConfigError>> {
        let waits = Arc::new(InitTargets::default());
        let part = self.filter.with(config, &context.factory_context_for(&waits))?;
        let commit = Box::new(move || {
            if let Some(shared) = &self.shared {
                shared.set(self.place, Some(part));
            }
        });
        let targets = InitTargets::default();
        targets.extend(&waits);
        Ok(Prepared { commit, targets })
    }

    fn fall_back(&self) {
        if let Some(shared) = &self.shared {
            shared.set(self.place, self.filter.without());
        }
    }
}
