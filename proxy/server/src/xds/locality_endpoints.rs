//! LEDS: localities whose endpoints come one by one, each locality's as a collection.
//!
//! An assignment that came by EDS ([`super::endpoints`]) may name collections in the place of endpoints. Each is
//! subscribed to as long as the cluster's newest assignment names it. The hosts change when all of them have come, and
//! then with each change of one of them; until then the cluster goes on with what it has, or warms.

use super::Inner;
use super::stats::{Counted, LocalityEndpointsFamily};
use crate::source_check::{Root, SourceCheck};
use nuncio_config::cluster::{ClusterLoadAssignment, Endpoint, EndpointCollection, LocalityEndpoints, check_weights};
use nuncio_config::config_source::ConfigSource;
use nuncio_config::paths::FieldPath;
use nuncio_upstream::Cluster;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use xds_client::{
    FetchFailure, Interest, ResourceHandler, Source, Subscription, SubscriptionOptions, TypeUrl, Update, Verdict,
};

/// What tells collections apart: the name, and the serialized source.
type Key = (Box<str>, bytes::Bytes);

/// The collections of one cluster's localities.
pub(super) struct Collections {
    inner: Weak<Inner>,
    cluster: std::sync::Weak<Cluster>,
    /// The newest assignment, where it names collections.
    assignment: RefCell<Option<Arc<ClusterLoadAssignment>>>,
    by_key: RefCell<HashMap<Key, Rc<Collection>>>,
    /// What is done when endpoints have come that did not come with an assignment.
    changed: fn(&Rc<Inner>, &Arc<Cluster>),
}

pub(super) struct Collection {
    endpoints: RefCell<BTreeMap<String, Arc<Endpoint>>>,
    /// They have come, or will not come soon.
    known: Cell<bool>,
    subscription: RefCell<Option<Subscription>>,
}

/// Collections of all clusters that come by the aggregated stream, by name. A server that has sent one does not send it again
/// for another cluster, nor for one that takes the place of another: that begins with what is known.
#[derive(Default)]
pub(super) struct Shared {
    by_name: HashMap<String, Vec<Weak<Collection>>>,
    /// When names of which nobody knows any more are looked for.
    sweep_at: usize,
}

impl Shared {
    /// What is known of `name`.
    fn endpoints(&self, name: &str) -> Option<BTreeMap<String, Arc<Endpoint>>> {
        let mut alive = self.by_name.get(name)?.iter().filter_map(Weak::upgrade);
        let known = alive.find(|collection| collection.known.get())?;
        Some(known.endpoints.borrow().clone())
    }

    fn add(&mut self, name: String, collection: &Rc<Collection>) {
        let is_alive = |collection: &Weak<Collection>| collection.strong_count() > 0;
        if self.by_name.len() >= self.sweep_at {
            self.by_name.retain(|_, list| list.iter().any(is_alive));
            self.sweep_at = (self.by_name.len() * 2).max(64);
        }
        let list = self.by_name.entry(name).or_default();
        list.retain(is_alive);
        list.push(Rc::downgrade(collection));
    }
}

/// A collection that is not subscribed to yet.
struct New {
    key: Key,
    source: Source,
    options: SubscriptionOptions,
}

impl Collections {
    pub(super) fn new(
        inner: &Weak<Inner>,
        cluster: &std::sync::Weak<Cluster>,
        changed: fn(&Rc<Inner>, &Arc<Cluster>),
    ) -> Rc<Collections> {
        Rc::new(Collections {
            inner: inner.clone(),
            cluster: cluster.clone(),
            assignment: RefCell::default(),
            by_key: RefCell::default(),
            changed,
        })
    }

    /// Takes over an assignment; false where some of its collections have to come first.
    ///
    /// # Errors
    /// A collection cannot be asked for; nothing has changed then.
    pub(super) fn assign(
        self: &Rc<Self>,
        inner: &Rc<Inner>,
        cluster: &Arc<Cluster>,
        assignment: Arc<ClusterLoadAssignment>,
    ) -> Result<bool, String> {
        let named: HashMap<Key, Arc<EndpointCollection>> = assignment
            .localities
            .iter()
            .filter_map(|locality| locality.collection.clone())
            .map(|collection| ((collection.name.clone(), collection.source.clone()), collection))
            .collect();
        if named.is_empty() {
            self.assignment.take();
            let gone = self.by_key.take();
            cluster.set_endpoints(assignment);
            drop(gone);
            return Ok(true);
        }
        let known = |key: &Key| self.by_key.borrow().contains_key(key);
        let new = named.iter().filter(|(key, _)| !known(key));
        let new = new.map(|(_, collection)| asked(inner, cluster, collection)).collect::<Result<Vec<_>, _>>()?;
        // All collections of an assignment are asked for at once.
        let pause = inner.client.pause(&[TypeUrl::LB_ENDPOINT]);
        for new in new {
            self.subscribe(inner, cluster, new)?;
        }
        let gone: Vec<_> = self.by_key.borrow_mut().extract_if(|key, _| !named.contains_key(key)).collect();
        self.assignment.replace(Some(assignment));
        let complete = self.publish(cluster);
        drop((gone, pause));
        Ok(complete)
    }

    fn subscribe(self: &Rc<Self>, inner: &Inner, cluster: &Arc<Cluster>, new: New) -> Result<(), String> {
        let New { key, source, options } = new;
        let shared = match (&source, &options.interest) {
            (Source::Ads, Interest::Collection(name)) => Some(name.clone()),
            _ => None,
        };
        let known = shared.as_ref().and_then(|name| inner.shared_collections.borrow().endpoints(name));
        let collection = Rc::new(Collection {
            known: Cell::new(known.is_some()),
            endpoints: RefCell::new(known.unwrap_or_default()),
            subscription: RefCell::default(),
        });
        if let Some(name) = shared {
            inner.shared_collections.borrow_mut().add(name, &collection);
        }
        let (registry, prefix) = (&inner.server.context.registry, prefix(cluster));
        let handler = Rc::new(CollectionHandler {
            all: Rc::downgrade(self),
            own: Rc::downgrade(&collection),
            stats: LocalityEndpointsFamily::new(registry, &prefix),
        });
        let stats = Rc::new(Counted::new(registry, &prefix));
        let subscription =
            inner.client.subscribe(&source, options, handler, stats).map_err(|error| error.to_string())?;
        collection.subscription.replace(Some(subscription));
        self.by_key.borrow_mut().insert(key, collection);
        Ok(())
    }

    /// Gives the cluster the newest assignment with the endpoints of its collections; false while some have not come.
    fn publish(&self, cluster: &Cluster) -> bool {
        let assignment = self.assignment.borrow();
        let Some(assignment) = &*assignment else { return true };
        let by_key = self.by_key.borrow();
        if by_key.values().any(|collection| !collection.known.get()) {
            return false;
        }
        let filled = |locality: &LocalityEndpoints| {
            let Some(named) = &locality.collection else { return locality.clone() };
            let collection = by_key.get(&(named.name.clone(), named.source.clone()));
            let endpoints = collection.map(|collection| collection.endpoints.borrow());
            let own = |endpoint: &Arc<Endpoint>| Endpoint {
                locality_metadata: named.locality_metadata.clone(),
                ..(**endpoint).clone()
            };
            let endpoints = endpoints.iter().flat_map(|endpoints| endpoints.values().map(own)).collect();
            LocalityEndpoints { endpoints, ..locality.clone() }
        };
        let localities = assignment.localities.iter().map(filled).collect();
        cluster.set_endpoints(Arc::new(ClusterLoadAssignment { localities, ..(**assignment).clone() }));
        true
    }

    /// A collection has come, or changed.
    fn collection_changed(&self) {
        if let (Some(inner), Some(cluster)) = (self.inner.upgrade(), self.cluster.upgrade())
            && self.publish(&cluster)
        {
            (self.changed)(&inner, &cluster);
        }
    }
}

fn prefix(cluster: &Cluster) -> String {
    format!("{}leds.", cluster.stats.prefix())
}

/// How a collection is asked for.
fn asked(inner: &Inner, cluster: &Cluster, collection: &EndpointCollection) -> Result<New, String> {
    let source = match &*collection.source {
        b"" => None,
        source => {
            let parsed = ConfigSource::parse(source, FieldPath::root().field("leds_config"));
            Some(parsed.map_err(|errors| super::text(&errors))?)
        }
    };
    let root = root(&inner.server.context.sources, source.as_ref(), &collection.name)?;
    let source = inner.source(&root.source, &TypeUrl::LB_ENDPOINT, &prefix(cluster), None)?;
    let options = SubscriptionOptions {
        type_url: TypeUrl::LB_ENDPOINT,
        interest: inner.interest_in(&root),
        initial_fetch_timeout: root.source.initial_fetch_timeout,
    };
    Ok(New { key: (collection.name.clone(), collection.source.clone()), source, options })
}

/// # Errors
/// Envoy takes endpoints from other sources than incremental ones and never uses them.
fn root(sources: &SourceCheck, source: Option<&ConfigSource>, name: &str) -> Result<Root, String> {
    let root = sources.root(source, Some(name), &TypeUrl::LB_ENDPOINT)?;
    if sources.is_delta(&root.source) {
        return Ok(root);
    }
    Err(format!("{name}: endpoints of a locality come by delta xDS only (LEDS): its cluster would never be warm"))
}

struct CollectionHandler {
    all: Weak<Collections>,
    own: Weak<Collection>,
    stats: LocalityEndpointsFamily,
}

impl CollectionHandler {
    fn apply(&self, inner: &Inner, own: &Collection, update: &Update) -> Result<(), String> {
        if update.added.is_empty() && update.removed.is_empty() {
            self.stats.update_empty().inc();
            return Ok(());
        }
        let mut endpoints = own.endpoints.borrow().clone();
        for name in &update.removed {
            endpoints.remove(name);
        }
        for resource in &update.added {
            endpoints.insert(resource.name.clone(), Arc::new(inner.decoder.endpoint(resource)?));
        }
        check_weights(endpoints.values().map(|endpoint| &**endpoint))?;
        own.endpoints.replace(endpoints);
        Ok(())
    }
}

impl ResourceHandler for CollectionHandler {
    fn on_update(&self, update: Update) -> Verdict {
        let (Some(all), Some(own)) = (self.all.upgrade(), self.own.upgrade()) else { return Verdict::accept() };
        let Some(inner) = all.inner.upgrade() else { return Verdict::accept() };
        let done = self.apply(&inner, &own, &update);
        let first = !own.known.replace(true);
        let empty = update.added.is_empty() && update.removed.is_empty();
        if first || (done.is_ok() && !empty) {
            all.collection_changed();
        }
        match done {
            Ok(()) => Verdict::accept(),
            Err(message) => {
                tracing::warn!(target: "config", "endpoints of a locality are refused: {message}");
                Verdict::reject(message)
            }
        }
    }

    fn on_failure(&self, why: FetchFailure) {
        let (Some(all), Some(own)) = (self.all.upgrade(), self.own.upgrade()) else { return };
        if why != FetchFailure::ConnectionFailure && !own.known.replace(true) {
            all.collection_changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::decode::tests::server_of;
    use nuncio_config::config_source::SourceKind;

    #[test]
    fn endpoints_that_would_never_be_used_are_not_asked_for() {
        let ads = |kind: &str| {
            server_of(
                &format!(
                    "node: {{id: a, cluster: b}}\n\
                     static_resources: {{clusters: [{{name: x, load_assignment: {{cluster_name: x}}}}]}}\n\
                     dynamic_resources: {{ads_config: {{api_type: {kind}, transport_api_version: V3, \
                     grpc_services: [{{envoy_grpc: {{cluster_name: x}}}}]}}}}\n"
                ),
                &[],
            )
        };
        let source = ConfigSource {
            kind: SourceKind::Ads,
            initial_fetch_timeout: std::time::Duration::ZERO,
            authorities: Box::default(),
        };
        let name = "xdstp://a/envoy.config.endpoint.v3.LbEndpoint/x/*";
        let (delta, whole) = (ads("DELTA_GRPC"), ads("GRPC"));
        assert!(root(&delta.context.sources, Some(&source), name).is_ok());
        let error = root(&whole.context.sources, Some(&source), name).expect_err("refused");
        assert!(error.contains("delta xDS only"), "{error}");
        let error = root(&delta.context.sources, None, "file:///dev/null").expect_err("refused");
        assert!(error.contains("delta xDS only"), "{error}");
    }
}
