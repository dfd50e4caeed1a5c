//! HTTP filters between routers and upstreams whose configuration is fetched.
//!
//! Each router and each cluster has a chain of its own, which is put together anew and swapped when one of its parts
//! changes. The chains belong to clusters and routers, which the cluster manager and listeners keep: what makes them holds
//! neither.

use super::chain::{FetchedFilter, Part, put_together};
use super::{ExtensionConfigs, Joined, Kind, Prepared, Usage, User};
use crate::init::InitTargets;
use crate::on_demand_clusters::OnDemandSources;
use crate::server::Context;
use crate::source_check::SourceCheck;
use arc_swap::ArcSwap;
use envoy_types::pb::google::protobuf::Any;
use nuncio_base::stats::Registry;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::discovered::ExtensionSource;
use nuncio_config::hcm::{CLUSTER_UPSTREAM, HttpFilterConfig};
use nuncio_config::paths::FieldPath;
use nuncio_extensions::registry::{self, AccessLogBuilder, FactoryContext, FetchedFilters, FilterPlace};
use nuncio_http::filter::FilterChain;
use nuncio_http::upstream_filters::UpstreamFilters;
use nuncio_upstream::ClusterManager;
use nuncio_upstream::cluster_manager::BuiltFilters;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What filters towards upstreams are made with.
pub(crate) struct UpstreamFactory {
    pub(crate) clusters: Weak<ClusterManager>,
    pub(crate) stats: Registry,
    pub(crate) access_logs: Weak<dyn AccessLogBuilder>,
    pub(crate) on_demand: Weak<OnDemandSources>,
    pub(crate) extensions: Arc<ExtensionConfigs>,
    pub(crate) sources: Weak<SourceCheck>,
}

impl UpstreamFactory {
    /// What extensions get; what their filters wait for is added to `targets`. None when the process ends.
    fn context(self: &Arc<Self>, targets: &Arc<InitTargets>) -> Option<FactoryContext> {
        Some(FactoryContext {
            clusters: self.clusters.upgrade()?,
            stats: self.stats.clone(),
            access_logs: self.access_logs.upgrade()?,
            on_demand: self.on_demand.upgrade()?,
            fetched: Arc::new(Fetch { factory: self.clone(), targets: targets.clone() }),
        })
    }

    /// Makes the HTTP filters of a cluster.
    ///
    /// # Errors
    /// The first thing that is wrong with them: its path, and what it is.
    pub(crate) fn of_cluster(self: &Arc<Self>, filters: &[HttpFilterConfig]) -> Result<BuiltFilters, (String, String)> {
        let gone = || (String::new(), GONE.to_owned());
        let targets = Arc::new(InitTargets::default());
        let context = self.context(&targets).ok_or_else(gone)?;
        let first = |errors: Vec<ConfigError>| {
            errors.into_iter().next().map_or_else(gone, |error| (error.path.to_string(), error.message))
        };
        let filters = registry::upstream_chain(filters, CLUSTER_UPSTREAM, &context).map_err(first)?;
        let ready = (!targets.unready().is_empty()).then(|| Box::pin(async move { targets.all_ready().await }) as _);
        Ok(BuiltFilters { filters, ready })
    }

    fn chain(
        self: &Arc<Self>,
        filters: &[HttpFilterConfig],
        kind: &'static str,
        targets: &Arc<InitTargets>,
    ) -> Result<UpstreamFilters, Vec<ConfigError>> {
        let gone = || vec![ConfigError::new(FieldPath::root(), GONE.to_owned())];
        let context = self.context(targets).ok_or_else(gone)?;
        let sources = self.sources.upgrade().ok_or_else(gone)?;
        // The sources of clusters are looked at when all clusters are there.
        let sources = Some(&*sources).filter(|_| kind != CLUSTER_UPSTREAM);
        let place = FilterPlace::Upstream;
        let (mut parts, mut fetched, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for (at, filter) in filters.iter().enumerate() {
            let last = at + 1 == filters.len();
            match &filter.config_discovery {
                None => match registry::http_filter(filter, last, place, &context) {
                    Ok(part) => parts.push(Part::Fixed(part)),
                    Err(found) => errors.extend(found),
                },
                Some(source) => match FetchedFilter::new(filter, source, (kind, place), last, &context, sources) {
                    Ok(filter) => {
                        parts.push(Part::Fetched(filter.without()));
                        fetched.push((at, filter));
                    }
                    Err(found) => errors.extend(found),
                },
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let current = Arc::new(ArcSwap::from_pointee(put_together(&parts)));
        let shared = Arc::new(Shared { parts: Mutex::new(parts), swapped: current.clone() });
        let mut usages: Vec<Arc<Usage>> = Vec::with_capacity(fetched.len());
        for (at, filter) in fetched {
            let source = &filter.source.source;
            let config = match kind {
                CLUSTER_UPSTREAM => self.extensions.get_for_cluster(filter.name(), source),
                _ => self.extensions.get(Kind::Upstream, filter.name(), source),
            };
            let slot = Arc::new(Slot { factory: Arc::downgrade(self), filter, at, shared: shared.clone() });
            let Joined { usage, targets: needed } = config.join_with(slot.clone(), |config| slot.taken(config));
            targets.extend(&needed);
            usages.push(usage);
        }
        Ok(UpstreamFilters::Swapped { current, owner: Arc::new(usages) })
    }
}

const GONE: &str = "the process ends";

/// Makes chains for one router or cluster.
pub(crate) struct Fetch {
    pub(crate) factory: Arc<UpstreamFactory>,
    /// What it has to wait for.
    pub(crate) targets: Arc<InitTargets>,
}

impl FetchedFilters for Fetch {
    fn upstream_chain(
        &self,
        filters: &[HttpFilterConfig],
        kind: &'static str,
    ) -> Result<UpstreamFilters, Vec<ConfigError>> {
        self.factory.chain(filters, kind, &self.targets)
    }
}

/// The chain of one router or cluster.
struct Shared {
    parts: Mutex<Vec<Part>>,
    swapped: Arc<ArcSwap<FilterChain>>,
}

impl Shared {
    fn set(&self, at: usize, filter: Option<FilterChain>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Part::Fetched(current)) = parts.get_mut(at) {
            *current = filter;
            self.swapped.store(Arc::new(put_together(&parts)));
        }
    }
}

/// The place of a fetched filter.
struct Slot {
    factory: Weak<UpstreamFactory>,
    filter: FetchedFilter,
    at: usize,
    shared: Arc<Shared>,
}

impl Slot {
    fn taken(self: &Arc<Self>, config: &Any) -> Result<Prepared, Vec<ConfigError>> {
        let targets = Arc::new(InitTargets::default());
        let context = self.factory.upgrade().and_then(|factory| factory.context(&targets));
        let context = context.ok_or_else(|| vec![ConfigError::new(FieldPath::root(), GONE.to_owned())])?;
        let part = self.filter.with(config, &context)?;
        let slot = self.clone();
        let commit = Box::new(move || slot.shared.set(slot.at, Some(part)));
        Ok(Prepared { commit, targets: InitTargets::default() })
    }
}

impl User for Slot {
    fn source(&self) -> &ExtensionSource {
        &self.filter.source
    }

    fn prepare(self: Arc<Self>, config: &Any, _: &Context) -> Result<Prepared, Vec<ConfigError>> {
        self.taken(config)
    }

    fn fall_back(&self) {
        self.shared.set(self.at, self.filter.without());
    }
}
