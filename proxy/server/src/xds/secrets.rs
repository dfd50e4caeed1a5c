//! SDS: a secret under a name has one subscription, whatever contexts use it.

use super::stats::Counted;
use super::{Inner, Unusable, text};
use crate::listeners::Origin;
use crate::resources::Failure;
use nuncio_config::config_source::ConfigSource;
use nuncio_config::paths::FieldPath;
use nuncio_net::tls::secrets::Secret;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::SystemTime;
use xds_client::names::is_same;
use xds_client::{FetchFailure, Interest, ResourceHandler, SubscriptionOptions, TypeUrl, Update, Verdict};

/// Subscribes to a secret.
pub(super) fn watch(inner: &Rc<Inner>, secret: &Arc<Secret>) {
    if let Err(error) = try_watch(inner, secret) {
        tracing::error!(target: "config", "secret '{}' cannot be fetched: {error}", secret.name);
        let name = secret.name.to_string();
        inner.unusable.borrow_mut().push(Unusable { type_url: TypeUrl::SECRET, name, error });
        secret.set_ready();
    }
}

fn try_watch(inner: &Rc<Inner>, secret: &Arc<Secret>) -> Result<(), String> {
    let source = ConfigSource::parse(&secret.source, FieldPath::root().field("sds_config"));
    let source = source.map_err(|errors| text(&errors))?;
    let prefix = format!("sds.{}.", secret.name.replace(':', "_"));
    let handler = Rc::new(SecretHandler {
        inner: Rc::downgrade(inner),
        secret: Arc::downgrade(secret),
        name: secret.name.to_string(),
    });
    let options = SubscriptionOptions {
        type_url: TypeUrl::SECRET,
        interest: Interest::Names(vec![secret.name.to_string()]),
        initial_fetch_timeout: source.initial_fetch_timeout,
    };
    let stats = Rc::new(Counted::new(&inner.server.context.registry, &prefix));
    let rotations = format!("{prefix}key_rotation_failed");
    secret.count_failed_rotations(inner.server.context.registry.counter(&rotations));
    let from = inner.sources.resolve(&source, &prefix, inner.origin_of_listeners())?;
    let subscription = inner.client.subscribe(&from, options, handler, stats).map_err(|error| error.to_string())?;
    inner.secrets.borrow_mut().insert(secret.id, subscription);
    if secret.is_missing() {
        inner.server.resources.await_secret(secret.id, &secret.name);
    }
    Ok(())
}

/// Nobody uses the secret any more.
pub(super) fn forget(inner: &Inner, id: u64) {
    let gone = inner.secrets.borrow_mut().remove(&id);
    drop(gone);
    inner.server.resources.secrets().remove_id(id);
    inner.server.resources.stop_awaiting_secret(id);
}

struct SecretHandler {
    inner: Weak<Inner>,
    secret: std::sync::Weak<Secret>,
    name: String,
}

impl SecretHandler {
    fn apply(&self, inner: &Inner, secret: &Secret, update: &Update) -> Result<(), String> {
        if update.added.is_empty() {
            // A secret that is left out stays; Envoy calls an answer without it an error.
            return match update.removed.is_empty() {
                true => Err(format!("Missing SDS resources for {} in onConfigUpdate()", self.name)),
                false => Ok(()),
            };
        }
        let Some(resource) = update.added.iter().find(|resource| is_same(&resource.name, &self.name)) else {
            let other = update.added.first().map_or("", |resource| resource.name.as_str());
            return Err(format!("Unexpected SDS secret (expecting {}): {other}", self.name));
        };
        let applied = inner.decoder.secret(resource).and_then(|value| secret.set(value));
        let mut shown = inner.server.resources.secrets();
        match applied {
            Ok(()) => {
                let origin = Origin {
                    version: resource.version.clone(),
                    bytes: resource.body.clone(),
                    updated: SystemTime::now(),
                };
                shown.set(&self.name, secret.id, origin, |id| id != secret.id);
                drop(shown);
                inner.server.resources.stop_awaiting_secret(secret.id);
                // The secret may name files.
                inner.server.context.contexts.watch_again();
                Ok(())
            }
            Err(message) => {
                shown.fail(&self.name, Failure::new(&message, &resource.version, &resource.body));
                Err(message)
            }
        }
    }
}

impl ResourceHandler for SecretHandler {
    fn on_update(&self, update: Update) -> Verdict {
        let (Some(inner), Some(secret)) = (self.inner.upgrade(), self.secret.upgrade()) else {
            return Verdict::accept();
        };
        let done = self.apply(&inner, &secret, &update);
        secret.set_ready();
        match done {
            Ok(()) => Verdict::accept(),
            Err(message) => {
                tracing::warn!(target: "config", "secret '{}' is refused: {message}", self.name);
                Verdict::reject(message)
            }
        }
    }

    fn on_failure(&self, why: FetchFailure) {
        if why != FetchFailure::ConnectionFailure
            && let Some(secret) = self.secret.upgrade()
        {
            secret.set_ready();
        }
    }
}
