//! A listener filter whose configuration is fetched: connections that come get the filter of the newest configuration.

use super::{Joined, Kind, Prepared, User, decode_context};
use crate::init::InitTargets;
use crate::server::Context;
use arc_swap::ArcSwapOption;
use envoy_types::pb::google::protobuf::Any;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::discovered::{Discovered, ExtensionSource};
use nuncio_config::listener::ListenerFilterConfig;
use nuncio_config::paths::FieldPath;
use nuncio_extensions::registry;
use nuncio_net::listener_filters::{self, FilterSlot, ListenerFilter};
use std::sync::Arc;

/// The filter of a listener that is fetched. What it waits for is added to `targets`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn build(
    filter: &Arc<Discovered<ListenerFilterConfig>>,
    context: &Context,
    targets: &InitTargets,
) -> Result<FilterSlot, ConfigError> {
    let known = |name: &str| registry::LISTENER_FILTERS.iter().any(|(_, message)| *message == name);
    if let Some(error) = registry::unknown_type(&filter.source, "listener filter", known) {
        return Err(ConfigError::new(FieldPath::parse(&filter.path), error));
    }
    super::check_source(&filter.source, &FieldPath::parse(&filter.path), context).map_err(|found| {
        found.into_iter().next().unwrap_or_else(|| ConfigError::new(FieldPath::root(), "no source"))
    })?;
    let default = filter.default.as_ref().map(|default| made(default, context)).transpose()?;
    let current = Arc::new(ArcSwapOption::empty());
    let slot = Arc::new(Slot { filter: filter.clone(), default, current: current.clone() });
    let config = context.extensions.get(Kind::Listener, &filter.name, &filter.source.source);
    let Joined { usage, targets: needed } = config.join(slot, context);
    targets.extend(&needed);
    Ok(FilterSlot::Swapped { current, owner: usage })
}

fn made(config: &ListenerFilterConfig, context: &Context) -> Result<Arc<dyn ListenerFilter>, ConfigError> {
    match (listener_filters::build(config, &context.registry), config) {
        (Some(filter), _) => Ok(filter),
        (None, ListenerFilterConfig::Extension(extension)) => {
            Err(registry::not_implemented("listener filter", extension, registry::path_of(extension)))
        }
        (None, _) => Err(ConfigError::new(FieldPath::root(), "a fetched filter cannot be fetched again")),
    }
}

struct Slot {
    filter: Arc<Discovered<ListenerFilterConfig>>,
    default: Option<Arc<dyn ListenerFilter>>,
    current: Arc<ArcSwapOption<Arc<dyn ListenerFilter>>>,
}

impl User for Slot {
    fn source(&self) -> &ExtensionSource {
        &self.filter.source
    }

    fn prepare(self: Arc<Self>, config: &Any, context: &Context) -> Result<Prepared, Vec<ConfigError>> {
        let decoded = ListenerFilterConfig::decode(&mut decode_context(context), &self.filter.name, config)?;
        let filter = made(&decoded, context).map_err(|error| vec![error])?;
        let commit = Box::new(move || self.current.store(Some(Arc::new(filter))));
        Ok(Prepared { commit, targets: InitTargets::default() })
    }

    fn fall_back(&self) {
        self.current.store(self.default.clone().map(Arc::new));
    }
}
