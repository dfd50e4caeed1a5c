//! One HTTP filter of a chain whose configuration is fetched: what may come, and what it makes.
//!
//! Used for the filters of connection managers and for those between routers and upstreams.

use crate::source_check::SourceCheck;
use envoy_types::pb::google::protobuf::Any;
use nuncio_config::descriptors::type_name;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::discovered::ExtensionSource;
use nuncio_config::hcm::HttpFilterConfig;
use nuncio_config::paths::FieldPath;
use nuncio_extensions::registry::{self, FactoryContext, FilterPlace};
use nuncio_http::filter::FilterChain;
use nuncio_http::filter_chains::MissingConfig;
use std::sync::Arc;

/// One filter of a chain, or what is there of it.
#[derive(Clone)]
pub(super) enum Part {
    /// It is configured in place.
    Fixed(FilterChain),
    /// It is fetched.
    Fetched(Option<FilterChain>),
}

/// A chain of these filters. Where one has no configuration requests are answered.
pub(super) fn put_together(parts: &[Part]) -> FilterChain {
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
    chain
}

/// A filter that is fetched.
pub(super) struct FetchedFilter {
    filter: HttpFilterConfig,
    pub(super) source: Arc<ExtensionSource>,
    /// Envoy's word for the chain.
    kind: &'static str,
    /// It is the last of its chain.
    last: bool,
    place: FilterPlace,
    default: Option<FilterChain>,
}

impl FetchedFilter {
    /// Builds the default of `filter`, and looks at what can be fetched. `sources`: none where somebody else looks at those.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(
        filter: &HttpFilterConfig,
        source: &Arc<ExtensionSource>,
        (kind, place): (&'static str, FilterPlace),
        last: bool,
        factory: &FactoryContext,
        sources: Option<&SourceCheck>,
    ) -> Result<FetchedFilter, Vec<ConfigError>> {
        let known = |name: &str| place.entries().iter().any(|entry| entry.message == name);
        if let Some(error) = registry::unknown_type(source, place.filters(), known) {
            return Err(vec![ConfigError::new(registry::path_of(&filter.config), error)]);
        }
        if let Some(sources) = sources {
            let path = path(filter).field("config_discovery").field("config_source");
            sources.check(&source.source, path)?;
        }
        let build = || registry::http_filter(filter, last, place, factory);
        let default = source.has_default.then(build).transpose()?;
        Ok(FetchedFilter { filter: filter.clone(), source: source.clone(), kind, last, place, default })
    }

    /// Name of the filter and of the resource.
    pub(super) fn name(&self) -> &str {
        &self.filter.name
    }

    /// What is there of it without a configuration that was fetched.
    pub(super) fn without(&self) -> Option<FilterChain> {
        // A filter that is off does nothing before its configuration has come.
        self.default.clone().or_else(|| self.filter.disabled.then(FilterChain::new))
    }

    /// The filter with a configuration that has come.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn with(&self, config: &Any, factory: &FactoryContext) -> Result<FilterChain, Vec<ConfigError>> {
        let mut filter = self.filter.clone();
        filter.config.type_name = type_name(&config.type_url).into();
        filter.config.value = config.value.clone().into();
        filter.config.path = "typed_config".into();
        if let Some(error) = filter.position_error(self.last, self.kind) {
            return Err(vec![ConfigError::new(registry::path_of(&filter.config), error)]);
        }
        // Whether a route may do without it is not asked of what has come.
        filter.is_optional = false;
        registry::http_filter(&filter, self.last, self.place, factory)
    }
}

/// Where a filter is in the configuration.
pub(crate) fn path(filter: &HttpFilterConfig) -> FieldPath {
    // The configuration in the place of that which comes says where it is itself.
    let place = filter.config.path.strip_suffix(".config_discovery.default_config");
    FieldPath::parse(place.unwrap_or(&filter.config.path))
}
