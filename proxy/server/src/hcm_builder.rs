//! From the configuration of an HTTP connection manager to the object that workers use.

use crate::discovered::{self, Usage};
use crate::init::{InitTarget, InitTargets};
use crate::named_routes::{self, NamedRoutes};
use crate::scoped_routes::{self, KeptScopes, RoutesOnDemand};
use crate::server::Context;
use arc_swap::ArcSwap;
use futures_util::future::LocalBoxFuture;
use nuncio_config::access_log::AccessLogConfig;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::hcm::{HcmConfig, RouteSource, ScopeSource};
use nuncio_config::paths::FieldPath;
use nuncio_http::access_log::AccessLogs;
use nuncio_http::codec::stats::CodecStats;
use nuncio_http::conn_manager::HcmWorker;
use nuncio_http::filter_chains::ChainSource;
use nuncio_http::hcm::{Hcm, HcmStats, ListenerHttpStats, OnDemandRoutes};
use nuncio_http::hcm_rules::HcmRules;
use nuncio_http::headers::HeaderValue;
use nuncio_http::local_reply::LocalReplyRules;
use nuncio_http::route::Routes;
use nuncio_net::connection::Connection;
use nuncio_net::listener::{FilterChainFactory, FilterChainHandler};
use std::rc::Rc;
use std::sync::Arc;

/// A connection manager, and the routes that it shares with others.
pub type Built<T> = (T, KeptRoutes);

/// Routes that are shared, kept alive as long as somebody may use them.
#[derive(Clone, Default)]
pub enum KeptRoutes {
    /// None.
    #[default]
    Own,
    /// A table under a name.
    Named(Arc<NamedRoutes>),
    /// Scopes.
    Scoped(KeptScopes),
}

impl KeptRoutes {
    /// What has to be there before requests are taken.
    fn target(&self) -> Option<&Arc<InitTarget>> {
        match self {
            KeptRoutes::Named(routes) => Some(&routes.target),
            KeptRoutes::Scoped(KeptScopes::Discovered(scopes)) => Some(&scopes.target),
            KeptRoutes::Own | KeptRoutes::Scoped(KeptScopes::Inline(_)) => None,
        }
    }
}

/// Builds a connection manager. `listener_prefix` is `listener.<address>.`. What it waits for is added to `targets`, all
/// errors to `errors`.
pub fn build(
    config: &Arc<HcmConfig>,
    listener_prefix: &str,
    context: &Context,
    targets: &InitTargets,
    errors: &mut Vec<ConfigError>,
) -> Option<HttpParts> {
    // Routes are asked for before configurations of filters, as Envoy does.
    let routes = routes(config, context, errors);
    let built = discovered::http::build(config, context, targets, errors)?;
    let (hcm, routes) = finish(config, routes?, built.chains, listener_prefix, context, errors)?;
    if let Some(target) = routes.target() {
        targets.add(target);
    }
    Some(HttpParts { hcm: Arc::new(hcm), routes, usages: built.usages })
}

/// A connection manager with what keeps it up to date.
pub struct HttpParts {
    /// The connection manager.
    pub hcm: Arc<Hcm>,
    /// Routes that it shares with others.
    pub routes: KeptRoutes,
    /// Of filters whose configuration is fetched.
    pub usages: Vec<Arc<Usage>>,
}

/// As [`build`], with filter chains that are not configured: the admin interface's.
pub fn assemble(
    config: &Arc<HcmConfig>,
    chains: ChainSource,
    listener_prefix: &str,
    context: &Context,
    errors: &mut Vec<ConfigError>,
) -> Option<Built<Hcm>> {
    let routes = routes(config, context, errors)?;
    finish(config, routes, chains, listener_prefix, context, errors)
}

fn finish(
    config: &Arc<HcmConfig>,
    (routes, on_demand, kept): BuiltRoutes,
    chains: ChainSource,
    listener_prefix: &str,
    context: &Context,
    errors: &mut Vec<ConfigError>,
) -> Option<Built<Hcm>> {
    let before = errors.len();
    let access_logs = access_logs(&config.access_logs, context, errors);
    let local_reply = match LocalReplyRules::new(config.local_reply.as_ref(), &context.runtime) {
        Ok(rules) => rules,
        Err(found) => {
            errors.extend(found.into_iter().map(|(path, message)| ConfigError::new(FieldPath::parse(&path), message)));
            LocalReplyRules::default()
        }
    };
    let rules = match HcmRules::build(config, &context.local) {
        Ok(rules) => rules,
        Err(found) => {
            errors.extend(found.into_iter().map(|(path, message)| ConfigError::new(FieldPath::parse(&path), message)));
            None
        }
    };
    let prefix = format!("http.{}.", config.stat_prefix);
    let stats = HcmStats::new(&context.registry, &prefix);
    let listener_stats = ListenerHttpStats::new(&context.registry, &format!("{listener_prefix}{prefix}"));
    let server_name = HeaderValue::parse(config.server_name.to_string()).unwrap_or_default();
    let hcm = Hcm {
        config: config.clone(),
        routes,
        on_demand,
        chains,
        stats,
        listener_stats: Some(listener_stats),
        codec_stats: CodecStats::server(&context.registry),
        access_logs,
        rules,
        local_reply,
        server_name,
        runtime: context.runtime.clone(),
        local: context.local.clone(),
    };
    (errors.len() == before).then_some((hcm, kept))
}

fn keep<T>(result: Result<T, Vec<ConfigError>>, errors: &mut Vec<ConfigError>) -> Option<T> {
    result.map_err(|found| errors.extend(found)).ok()
}

/// Routes, who fetches more of them for a request, and what keeps them.
type BuiltRoutes = (Routes, Option<Arc<dyn OnDemandRoutes>>, KeptRoutes);

fn routes(config: &HcmConfig, context: &Context, errors: &mut Vec<ConfigError>) -> Option<BuiltRoutes> {
    let prefix = format!("http.{}.", config.stat_prefix);
    match &config.routes {
        RouteSource::Static(routes) => {
            let table = keep(named_routes::build(routes.clone(), &context.table_tools()), errors)?;
            Some((Routes::Table(Arc::new(ArcSwap::from_pointee(table))), None, KeptRoutes::Own))
        }
        RouteSource::Rds { name, source } => {
            let path = FieldPath::parse(&config.path).field("rds").field("config_source");
            keep(context.sources.place(name, source, path), errors)?;
            let named = context.routes.get(name, source, &prefix)?;
            let on_demand = RoutesOnDemand::table(&named, &context.wants);
            Some((Routes::Table(named.table.clone()), Some(on_demand), KeptRoutes::Named(named)))
        }
        RouteSource::Scoped(scoped) => {
            if let ScopeSource::Discovered { source, locator } = &scoped.scopes {
                let path = FieldPath::parse(&scoped.path);
                keep(context.sources.scopes(source, locator, path.field("scoped_rds")), errors)?;
                keep(context.sources.check(&scoped.rds_source, path.field("rds_config_source")), errors)?;
            }
            let (routes, kept) = scoped_routes::build(scoped, &prefix, context, errors)?;
            let on_demand = RoutesOnDemand::scoped(scoped, &kept, &context.wants);
            let on_demand = on_demand.map(|routes| routes as Arc<dyn OnDemandRoutes>);
            Some((Routes::Scoped(routes), on_demand, KeptRoutes::Scoped(kept)))
        }
    }
}

/// Builds access loggers; what cannot be built is an error with its path.
pub fn access_logs(configs: &[AccessLogConfig], context: &Context, errors: &mut Vec<ConfigError>) -> AccessLogs {
    AccessLogs::build(configs, &context.access_logs, &context.runtime, Some(&*context.grpc_logs)).unwrap_or_else(
        |found| {
            errors.extend(found.into_iter().map(|(path, message)| ConfigError::new(FieldPath::parse(&path), message)));
            AccessLogs::default()
        },
    )
}

/// Serves connections with an HTTP connection manager.
pub struct HttpFactory {
    /// The connection manager.
    pub hcm: Arc<Hcm>,
    /// `per_connection_buffer_limit_bytes` of the listener.
    pub buffer_limit: usize,
    /// Routes that are shared.
    pub routes: KeptRoutes,
    /// Filters whose configuration is fetched, as long as somebody may use them.
    pub discovered: Vec<Arc<Usage>>,
}

impl FilterChainFactory for HttpFactory {
    fn create(&self) -> Rc<dyn FilterChainHandler> {
        Rc::new(HttpHandler(HcmWorker::new(self.hcm.clone(), self.buffer_limit)))
    }
}

struct HttpHandler(HcmWorker);

impl FilterChainHandler for HttpHandler {
    fn serve(self: Rc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move { self.0.serve(connection).await })
    }
}
