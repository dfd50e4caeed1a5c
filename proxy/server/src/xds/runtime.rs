//! RTDS: each layer of the runtime that is fetched has one subscription. Layers keep their place in the order.

use super::stats::Counted;
use super::{Inner, text};
use crate::init::InitTarget;
use nuncio_config::config_source::ConfigSource;
use nuncio_config::paths::FieldPath;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use xds_client::{FetchFailure, Interest, ResourceHandler, SubscriptionOptions, TypeUrl, Update, Verdict};

/// Subscribes to all layers that are fetched. The targets of [`Inner`] are ready once each has come, or will not.
///
/// # Errors
/// A source that cannot be used.
pub(super) fn watch_all(inner: &Rc<Inner>) -> Result<(), String> {
    let pause = inner.client.pause(&[TypeUrl::RUNTIME]);
    for layer in inner.server.runtime.fetched() {
        let path = FieldPath::root().field("layered_runtime").field("layers").index(layer.index);
        let path = path.field("rtds_layer").field("rtds_config");
        let source = ConfigSource::parse(&layer.source, path.clone()).map_err(|errors| text(&errors))?;
        let target = InitTarget::new(format!("target RTDS {}", layer.resource));
        let handler = Rc::new(RuntimeHandler {
            inner: Rc::downgrade(inner),
            index: layer.index,
            name: layer.resource.to_string(),
            target: target.clone(),
        });
        let options = SubscriptionOptions {
            type_url: TypeUrl::RUNTIME,
            interest: Interest::Names(vec![layer.resource.to_string()]),
            initial_fetch_timeout: source.initial_fetch_timeout,
        };
        let stats = Rc::new(Counted::new(&inner.server.context.registry, "runtime."));
        let from = inner.sources.resolve(&source, "runtime.", None).map_err(|error| format!("{path}: {error}"))?;
        let subscription = inner.client.subscribe(&from, options, handler, stats);
        inner.runtime.borrow_mut().push(subscription.map_err(|error| format!("{path}: {error}"))?);
        inner.runtime_targets.borrow_mut().push(target);
    }
    drop(pause);
    Ok(())
}

/// The update that makes the last of the first layers ready is acknowledged after clusters are asked for. Those before it
/// are not held: a server may wait for their acknowledgement.
fn hold_last(inner: &Inner) {
    let targets = inner.runtime_targets.borrow();
    if !targets.is_empty() && targets.iter().all(|target| target.is_ready()) && inner.runtime_held.borrow().is_none() {
        inner.runtime_held.replace(Some(inner.client.pause(&[TypeUrl::RUNTIME])));
    }
}

struct RuntimeHandler {
    inner: Weak<Inner>,
    /// Of the layer.
    index: usize,
    name: String,
    target: Arc<InitTarget>,
}

impl RuntimeHandler {
    fn apply(&self, inner: &Inner, update: &Update) -> Result<(), String> {
        let (added, removed) = (update.added.as_slice(), update.removed.as_slice());
        let server = &inner.server;
        match (added, removed) {
            ([resource], []) if resource.name != self.name => {
                Err(format!("Unexpected RTDS runtime (expecting {}): {}", self.name, resource.name))
            }
            ([resource], []) => {
                let values = inner.decoder.runtime(resource)?;
                tracing::info!(target: "runtime", "rtds: {} key(s) in '{}'", values.len(), self.name);
                server.runtime.set_fetched(self.index, values);
                Ok(())
            }
            ([], [name]) if *name != self.name => {
                Err(format!("Unexpected removal of unknown RTDS runtime layer {name}, expected {}", self.name))
            }
            ([], [_]) => {
                server.runtime.set_fetched(self.index, Vec::new());
                Ok(())
            }
            _ => Err(format!(
                "Unexpected RTDS resource length, number of added resources {}, number of removed resources {}",
                added.len(),
                removed.len()
            )),
        }
    }
}

impl ResourceHandler for RuntimeHandler {
    fn on_update(&self, update: Update) -> Verdict {
        let Some(inner) = self.inner.upgrade() else { return Verdict::accept() };
        let done = self.apply(&inner, &update);
        self.target.set_ready();
        hold_last(&inner);
        match done {
            Ok(()) => {
                inner.server.apply_runtime_limits();
                Verdict::accept()
            }
            Err(message) => {
                tracing::warn!(target: "config", "runtime layer '{}' is refused: {message}", self.name);
                Verdict::reject(message)
            }
        }
    }

    fn on_failure(&self, why: FetchFailure) {
        if why != FetchFailure::ConnectionFailure {
            self.target.set_ready();
        }
    }
}
