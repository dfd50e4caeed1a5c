//! ECDS: the configuration of a filter under a name has one subscription, whoever uses it.

use super::decode::extension_text;
use super::stats::Counted;
use super::{Inner, Unusable, text};
use crate::discovered::{ExtensionConfig, Kind};
use crate::listeners::Origin;
use crate::resources::Failure;
use nuncio_config::config_source::ConfigSource;
use nuncio_config::paths::FieldPath;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::SystemTime;
use xds_client::{
    FetchFailure, Interest, Resource, ResourceHandler, Source, SubscriptionOptions, TypeUrl, Update, Verdict,
};

/// Subscribes to a configuration, unless that has been done. `own`: what a `self` stands for.
pub(super) fn watch(inner: &Rc<Inner>, config: &Arc<ExtensionConfig>, own: Option<Source>) {
    if inner.extensions.borrow().contains_key(&config.id) {
        return;
    }
    if let Err(error) = try_watch(inner, config, own) {
        tracing::error!(target: "config", "the configuration of filter '{}' cannot be fetched: {error}", config.name);
        let name = config.name.to_string();
        inner.unusable.borrow_mut().push(Unusable { type_url: TypeUrl::TYPED_EXTENSION_CONFIG, name, error });
        config.target.set_ready();
    }
}

fn try_watch(inner: &Rc<Inner>, config: &Arc<ExtensionConfig>, own: Option<Source>) -> Result<(), String> {
    let path = FieldPath::root().field("config_discovery").field("config_source");
    let source = ConfigSource::parse(&config.source, path).map_err(|errors| text(&errors))?;
    let prefix = config.stat_prefix();
    let handler = Rc::new(ExtensionHandler {
        inner: Rc::downgrade(inner),
        config: Arc::downgrade(config),
        name: config.name.to_string(),
    });
    let options = SubscriptionOptions {
        type_url: TypeUrl::TYPED_EXTENSION_CONFIG,
        interest: Interest::Names(vec![config.name.to_string()]),
        initial_fetch_timeout: source.initial_fetch_timeout,
    };
    let stats = Rc::new(Counted::new(&inner.server.context.registry, &prefix));
    let from = inner.sources.resolve(&source, &prefix, own)?;
    let subscription = inner.client.subscribe(&from, options, handler, stats).map_err(|error| error.to_string())?;
    inner.extensions.borrow_mut().insert(config.id, subscription);
    Ok(())
}

/// Nobody uses the configuration any more.
pub(super) fn forget(inner: &Inner, id: u64) {
    let gone = inner.extensions.borrow_mut().remove(&id);
    drop(gone);
    inner.server.resources.forget_extension(id);
}

struct ExtensionHandler {
    inner: Weak<Inner>,
    config: std::sync::Weak<ExtensionConfig>,
    name: String,
}

impl ExtensionHandler {
    fn apply(&self, inner: &Inner, config: &Arc<ExtensionConfig>, update: &Update) -> Result<(), String> {
        if update.added.is_empty() && update.removed.contains(&self.name) {
            config.remove();
            inner.server.resources.forget_extension(config.id);
            config.target.set_ready();
            return Ok(());
        }
        let [resource] = &update.added[..] else {
            let count = update.added.len();
            return Err(format!("Unexpected number of resources in ExtensionConfigDS response: {count}"));
        };
        if resource.name != self.name {
            return Err(format!("Unexpected resource name in ExtensionConfigDS response: {}", resource.name));
        }
        let resources = &inner.server.resources;
        let taken = self.take(inner, config, resource);
        if let Err(message) = &taken {
            let failure = Failure::new(message, &resource.version, &resource.body);
            resources.fail_extension(config.id, config.kind, &self.name, failure);
        }
        taken
    }

    fn take(&self, inner: &Inner, config: &Arc<ExtensionConfig>, resource: &Resource) -> Result<(), String> {
        let resources = &inner.server.resources;
        if let Some(type_name) = inner.decoder.extension_type(resource) {
            config.check_type(&type_name)?;
        }
        let any = inner.decoder.extension(resource)?;
        if config.is_same(&any) {
            resources.clear_extension_failure(config.id);
            return Ok(());
        }
        let context = &inner.server.context;
        let targets = config.update(any, context).map_err(|errors| extension_text(&errors))?;
        let origin =
            Origin { version: resource.version.clone(), bytes: resource.body.clone(), updated: SystemTime::now() };
        resources.set_extension(config.id, config.kind, &self.name, origin);
        if targets.unready().is_empty() {
            config.target.set_ready();
        } else {
            // A connection manager that has come serves once it has its routes.
            let config = config.clone();
            tokio::task::spawn_local(async move {
                targets.all_ready().await;
                config.target.set_ready();
            });
        }
        Ok(())
    }
}

impl ResourceHandler for ExtensionHandler {
    fn on_update(&self, update: Update) -> Verdict {
        let (Some(inner), Some(config)) = (self.inner.upgrade(), self.config.upgrade()) else {
            return Verdict::accept();
        };
        let applied = self.apply(&inner, &config, &update);
        if config.kind == Kind::Upstream {
            inner.hold_until_clusters_know(TypeUrl::TYPED_EXTENSION_CONFIG);
        }
        // A connection manager may have come, whose routes are asked for before this is answered.
        inner.take_new_wants();
        match applied {
            Ok(()) => Verdict::accept(),
            Err(message) => {
                config.stats.config_fail().inc();
                config.target.set_ready();
                tracing::warn!(target: "config", "the configuration of filter '{}' is refused: {message}", self.name);
                Verdict::reject(message)
            }
        }
    }

    fn on_failure(&self, why: FetchFailure) {
        if why != FetchFailure::ConnectionFailure
            && let Some(config) = self.config.upgrade()
        {
            config.stats.config_fail().inc();
            config.target.set_ready();
        }
    }
}
