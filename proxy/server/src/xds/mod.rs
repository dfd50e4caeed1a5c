//! Where the discovery client meets the configuration: the only part of the proxy that knows that resources are fetched.
//!
//! ```text
//! clusters of the bootstrap -> runtime layers -> their endpoints -> CDS -> endpoints of its clusters -> LDS -> routes, secrets -> workers
//! ```
//!
//! Each kind of resource has a file with its handler, which reads what came (`decode`), hands it to its manager, and
//! answers with what was wrong. `source` turns a `ConfigSource` into a source of the client. All of it runs on the
//! control thread.

mod clusters;
#[cfg(test)]
mod corpora;
mod decode;
mod endpoints;
mod extensions;
mod files;
mod listeners;
mod load_stats;
mod locality_endpoints;
mod logs;
mod names;
mod node;
mod on_demand_clusters;
mod rest;
mod rest_h2;
mod routes;
mod runtime;
mod scopes;
mod secrets;
mod source;
mod stats;
mod transport;
pub mod view;
mod virtual_hosts;
pub mod wants;

use crate::init::InitTarget;
use crate::server::Server;
use crate::source_check::Root;
use clusters::ClusterHandler;
use decode::{Decoder, text};
use listeners::ListenerHandler;
use nuncio_config::config_source::{ConfigSource, SourceKind};
use source::Sources;
use stats::{Counted, Reloads};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedReceiver;
use wants::{OnDemand, Want};
use xds_client::load::LoadReporting;
use xds_client::status::SourceState;
use xds_client::{
    Client, ClientOptions, Interest, Pause, ResourceHandler, Source, Subscription, SubscriptionOptions, TypeUrl,
};

/// Everything that is fetched while the server runs.
pub struct Discovery {
    inner: Rc<Inner>,
    reader: tokio::task::AbortHandle,
}

/// A resource whose source cannot be used.
#[derive(Debug, Clone)]
pub struct Unusable {
    /// Its type.
    pub type_url: TypeUrl,
    /// Its name.
    pub name: String,
    /// Why.
    pub error: String,
}

/// A request that waits for the routes of its host.
type Waiting = (Box<str>, tokio::sync::oneshot::Sender<()>);

/// What handlers share.
pub(crate) struct Inner {
    pub(crate) server: Arc<Server>,
    client: Client,
    sources: Sources,
    decoder: Decoder,
    wanted: RefCell<UnboundedReceiver<Want>>,
    /// Routes and configurations of filters wait until clusters are there.
    routes_may_start: Cell<bool>,
    held: RefCell<Vec<Want>>,
    clusters: RefCell<Option<Subscription>>,
    listeners: RefCell<Option<Subscription>>,
    /// By name of the cluster; the newest object's last.
    endpoints: RefCell<HashMap<Arc<str>, Vec<endpoints::Watch>>>,
    /// Endpoints of localities that come by the aggregated stream.
    shared_collections: RefCell<locality_endpoints::Shared>,
    /// The first layers of the runtime are acknowledged once clusters are asked for, as Envoy does.
    runtime_held: RefCell<Option<Pause>>,
    /// The layers of the runtime that the start waits for; empty once it does not.
    runtime_targets: RefCell<Vec<Arc<InitTarget>>>,
    /// Of the runtime's layers.
    runtime: RefCell<Vec<Subscription>>,
    /// By id of the table.
    routes: RefCell<HashMap<u64, Subscription>>,
    /// By id of the scopes.
    scopes: RefCell<HashMap<u64, (Subscription, Rc<stats::ScopesFamily>)>>,
    /// By id of the table.
    virtual_hosts: RefCell<HashMap<u64, virtual_hosts::Hosts>>,
    /// Requests that wait for a table, by its id: for which host, and who.
    waiting: RefCell<HashMap<u64, Vec<Waiting>>>,
    /// By id of the source.
    on_demand: RefCell<HashMap<u64, on_demand_clusters::Clusters>>,
    /// By id of the configuration.
    extensions: RefCell<HashMap<u64, Subscription>>,
    /// Configurations that nobody wants any more, while an answer waits that goes first.
    held_gone: RefCell<Option<Vec<u64>>>,
    /// By id of the secret.
    secrets: RefCell<HashMap<u64, Subscription>>,
    /// Clusters of the bootstrap and of the first answer are warm.
    first_clusters_done: Cell<bool>,
    /// The first list of clusters, once it is asked for.
    first_clusters: RefCell<Option<Arc<InitTarget>>>,
    /// The endpoints of clusters of the bootstrap have been asked for, and then clusters.
    own_endpoints_asked: Cell<bool>,
    clusters_asked: Cell<bool>,
    /// What keeps clusters and listeners from being fetched.
    clusters_error: RefCell<Option<String>>,
    listeners_error: RefCell<Option<String>>,
    /// What cannot be asked for, because its source cannot be used.
    unusable: RefCell<Vec<Unusable>>,
    /// Load reports, where they are asked for.
    load_reports: RefCell<Option<LoadReporting>>,
    /// Acknowledgements of CDS wait while new clusters warm.
    warming: RefCell<Option<Pause>>,
}

impl Inner {
    /// Where clusters come from, for a `self` in one of them.
    fn origin_of_clusters(&self) -> Option<Source> {
        self.origin(self.server.bootstrap.config.dynamic.cds.as_ref())
    }

    /// Where listeners come from, for a `self` in one of them.
    fn origin_of_listeners(&self) -> Option<Source> {
        self.origin(self.server.bootstrap.config.dynamic.lds.as_ref())
    }

    fn origin(&self, source: Option<&ConfigSource>) -> Option<Source> {
        let source = source.filter(|source| source.kind != SourceKind::SelfSource)?;
        self.sources.resolve(source, "", None).ok()
    }

    /// Takes what the configuration has asked for since the last call.
    fn take_wants(self: &Rc<Self>) {
        loop {
            let Ok(want) = self.wanted.borrow_mut().try_recv() else { return };
            self.take(want);
        }
    }

    /// As [`take_wants`](Self::take_wants), for a handler whose answer goes before what is no longer wanted is given up.
    fn take_new_wants(self: &Rc<Self>) {
        let mut gone = Vec::new();
        loop {
            let Ok(want) = self.wanted.borrow_mut().try_recv() else { break };
            match want {
                Want::RoutesGone(_) | Want::ScopesGone(_) | Want::ExtensionGone(_) | Want::SecretGone(_) => {
                    gone.push(want);
                }
                Want::Routes(_)
                | Want::Scopes(_)
                | Want::OnDemand(_)
                | Want::Extension(_)
                | Want::ClusterExtension(_)
                | Want::Secret(_)
                | Want::Logs(_) => self.take(want),
            }
        }
        if !gone.is_empty() {
            let inner = Rc::downgrade(self);
            tokio::task::spawn_local(async move {
                let Some(inner) = inner.upgrade() else { return };
                gone.into_iter().for_each(|want| inner.take(want));
            });
        }
    }

    fn take(self: &Rc<Self>, want: Want) {
        match want {
            Want::Routes(_) | Want::Scopes(_) | Want::Extension(_) if !self.routes_may_start.get() => {
                self.held.borrow_mut().push(want);
            }
            Want::Routes(routes) => {
                if let Some(routes) = routes.upgrade() {
                    routes::watch(self, &routes);
                }
            }
            Want::RoutesGone(id) => routes::forget(self, id),
            Want::Scopes(scopes) => {
                if let Some(scopes) = scopes.upgrade() {
                    scopes::watch(self, &scopes);
                }
            }
            Want::ScopesGone(id) => scopes::forget(self, id),
            Want::OnDemand(OnDemand::VirtualHost { routes, host, answer }) => {
                if let Some(routes) = routes.upgrade() {
                    virtual_hosts::fetch(self, &routes, &host, answer);
                }
            }
            Want::OnDemand(OnDemand::Scope { scopes, scope, host, answer }) => {
                if let Some(scopes) = scopes.upgrade() {
                    scopes::fetch(self, &scopes, &scope, host, answer);
                }
            }
            Want::OnDemand(OnDemand::Cluster { source, cluster, answer }) => {
                on_demand_clusters::fetch(self, &source, &cluster, answer);
            }
            Want::Extension(config) => {
                if let Some(config) = config.upgrade() {
                    extensions::watch(self, &config, self.origin_of_listeners());
                }
            }
            Want::ClusterExtension(config) => {
                if let Some(config) = config.upgrade() {
                    extensions::watch(self, &config, self.origin_of_clusters());
                }
            }
            Want::ExtensionGone(id) => match &mut *self.held_gone.borrow_mut() {
                Some(held) => held.push(id),
                None => extensions::forget(self, id),
            },
            Want::Secret(secret) => {
                if let Some(secret) = secret.upgrade() {
                    secrets::watch(self, &secret);
                }
            }
            Want::SecretGone(id) => secrets::forget(self, id),
            Want::Logs(stream) => logs::start(self, stream),
        }
    }

    /// After the first clusters, the acknowledgement of an update of clusters waits until the new ones are warm.
    fn hold_clusters_until_warm(self: &Rc<Self>) {
        let clusters = self.server.context.clusters.clone();
        if !self.first_clusters_done.get() || clusters.is_warm() || self.warming.borrow().is_some() {
            return;
        }
        self.warming.replace(Some(self.client.pause(&[TypeUrl::CLUSTER])));
        let inner = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            clusters.initialized().await;
            if let Some(inner) = inner.upgrade() {
                let pause = inner.warming.take();
                drop(pause);
            }
        });
    }

    /// Called when a handler has done its work: as soon as the first clusters are warm listeners are asked for, before the
    /// answer that made them so is acknowledged, as Envoy does.
    fn clusters_may_be_done(self: &Rc<Self>) {
        if self.warming.borrow().is_some() && self.server.context.clusters.is_warm() {
            let pause = self.warming.take();
            drop(pause);
        }
        // The same goes for clusters, after the endpoints of those of the bootstrap.
        if self.own_endpoints_asked.get() && self.server.context.clusters.is_initialized() {
            self.start_clusters();
        }
        let fetched = self.first_clusters.borrow().as_ref().is_some_and(|target| target.is_ready());
        if fetched && !self.first_clusters_done.get() && self.server.context.clusters.is_initialized() {
            self.first_clusters_done.set(true);
            self.start_listeners();
        }
    }

    /// A cluster may have waited for what a handler has just brought, and knows of it when its own task has run: the handler's
    /// answer waits for that.
    fn hold_until_clusters_know(self: &Rc<Self>, type_url: TypeUrl) {
        if self.server.context.clusters.is_initialized() {
            return;
        }
        let pause = self.client.pause(&[type_url]);
        // What is no longer wanted then is given up behind the answer.
        self.held_gone.borrow_mut().get_or_insert_default();
        let inner = Rc::downgrade(self);
        // Tasks of the runtime run in the order in which they were woken.
        let last = tokio::runtime::Handle::current().spawn(async {});
        tokio::task::spawn_local(async move {
            let _ = last.await;
            if let Some(inner) = inner.upgrade() {
                inner.clusters_may_be_done();
            }
            drop(pause);
            tokio::task::yield_now().await;
            let Some(inner) = inner.upgrade() else { return };
            let gone = inner.held_gone.take();
            gone.into_iter().flatten().for_each(|id| extensions::forget(&inner, id));
        });
    }

    /// Asks for clusters; once.
    fn start_clusters(self: &Rc<Self>) {
        let dynamic = &self.server.bootstrap.config.dynamic;
        if self.clusters_asked.replace(true) || !dynamic.fetches_clusters() {
            return;
        }
        const STATS: &str = "cluster_manager.cds.";
        let target = InitTarget::new("target CDS");
        self.first_clusters.replace(Some(target.clone()));
        let reloads = Reloads::new(&self.server.context.registry, STATS);
        let handler = Rc::new(ClusterHandler { inner: Rc::downgrade(self), target, reloads });
        let (source, locator) = (dynamic.cds.as_ref(), dynamic.cds_locator.as_deref());
        match self.subscribe_to_all(source, locator, TypeUrl::CLUSTER, STATS, handler) {
            Ok(subscription) => drop(self.clusters.replace(Some(subscription))),
            Err(error) => *self.clusters_error.borrow_mut() = Some(error),
        }
    }

    /// Asks for listeners and for the routes of those that are there; once.
    fn start_listeners(self: &Rc<Self>) {
        if self.routes_may_start.replace(true) {
            return;
        }
        let pause = self.client.pause(&[TypeUrl::ROUTE_CONFIGURATION, TypeUrl::TYPED_EXTENSION_CONFIG]);
        let held = self.held.take();
        for want in held {
            self.take(want);
        }
        self.take_wants();
        drop(pause);
        let dynamic = &self.server.bootstrap.config.dynamic;
        if !dynamic.fetches_listeners() {
            return;
        }
        let target = InitTarget::new("target LDS");
        self.server.init.add(&target);
        let handler = Rc::new(ListenerHandler { inner: Rc::downgrade(self), target });
        let (source, locator) = (dynamic.lds.as_ref(), dynamic.lds_locator.as_deref());
        match self.subscribe_to_all(source, locator, TypeUrl::LISTENER, "listener_manager.lds.", handler) {
            Ok(subscription) => drop(self.listeners.replace(Some(subscription))),
            Err(error) => *self.listeners_error.borrow_mut() = Some(error),
        }
    }

    /// A source of resources of a type, which can be subscribed to.
    fn source(
        &self,
        config: &ConfigSource,
        type_url: &TypeUrl,
        prefix: &str,
        own: Option<Source>,
    ) -> Result<Source, String> {
        let source = self.sources.resolve(config, prefix, own)?;
        self.client.check(&source, type_url).map_err(|error| error.to_string())?;
        Ok(source)
    }

    /// What is asked for of the resources of a root.
    fn interest_in(&self, root: &Root) -> Interest {
        let Some(name) = &root.collection else { return Interest::Wildcard };
        let dynamic = &self.server.bootstrap.config.dynamic;
        let mut name = name.clone();
        for (key, value) in node::context_params(self.client.node(), &dynamic.node_context_params) {
            name.params.entry(key).or_insert(value);
        }
        Interest::Collection(name.to_string())
    }

    fn subscribe_to_all(
        &self,
        source: Option<&ConfigSource>,
        locator: Option<&str>,
        type_url: TypeUrl,
        prefix: &str,
        handler: Rc<dyn ResourceHandler>,
    ) -> Result<Subscription, String> {
        let root = self.server.context.sources.root(source, locator, &type_url)?;
        let from = self.sources.resolve(&root.source, prefix, None)?;
        let options = SubscriptionOptions {
            type_url,
            interest: self.interest_in(&root),
            initial_fetch_timeout: root.source.initial_fetch_timeout,
        };
        let stats = Rc::new(Counted::new(&self.server.context.registry, prefix));
        self.client.subscribe(&from, options, handler, stats).map_err(|error| error.to_string())
    }
}

impl Discovery {
    /// Prepares everything; nothing is fetched yet.
    ///
    /// # Errors
    /// The aggregated source cannot be used.
    pub fn start(server: &Arc<Server>, wanted: UnboundedReceiver<Want>) -> Result<Discovery, String> {
        let seed = nuncio_base::random::u64();
        let client = Client::new(ClientOptions { node: node::node(&server.bootstrap.node), seed });
        let sources = Sources::new(server);
        if let Some(ads) = &server.bootstrap.config.dynamic.ads {
            let source = sources.grpc(ads, "").map_err(|e| format!("dynamic_resources.ads_config: {e}"))?;
            client.set_ads(source);
        }
        sources.declare_authorities(&client)?;
        let inner = Rc::new(Inner {
            server: server.clone(),
            client,
            sources,
            decoder: Decoder::new(server),
            wanted: RefCell::new(wanted),
            routes_may_start: Cell::new(false),
            held: RefCell::default(),
            clusters: RefCell::default(),
            listeners: RefCell::default(),
            endpoints: RefCell::default(),
            shared_collections: RefCell::default(),
            runtime_held: RefCell::default(),
            runtime_targets: RefCell::default(),
            runtime: RefCell::default(),
            routes: RefCell::default(),
            scopes: RefCell::default(),
            virtual_hosts: RefCell::default(),
            waiting: RefCell::default(),
            on_demand: RefCell::default(),
            extensions: RefCell::default(),
            held_gone: RefCell::default(),
            secrets: RefCell::default(),
            first_clusters_done: Cell::new(false),
            first_clusters: RefCell::default(),
            own_endpoints_asked: Cell::new(false),
            clusters_asked: Cell::new(false),
            clusters_error: RefCell::default(),
            listeners_error: RefCell::default(),
            unusable: RefCell::default(),
            load_reports: RefCell::default(),
            warming: RefCell::default(),
        });
        view::set(&inner);
        let reader = tokio::task::spawn_local({
            let inner = Rc::downgrade(&inner);
            async move {
                loop {
                    let next = std::future::poll_fn(|cx| match inner.upgrade() {
                        Some(inner) => inner.wanted.borrow_mut().poll_recv(cx),
                        None => std::task::Poll::Ready(None),
                    });
                    let Some(want) = next.await else { return };
                    let Some(inner) = inner.upgrade() else { return };
                    inner.take(want);
                }
            }
        });
        Ok(Discovery { inner, reader: reader.abort_handle() })
    }

    /// Fetches clusters and their endpoints; returns when the first of all have come or are waited for no longer.
    ///
    /// # Errors
    /// A source that cannot be used.
    pub async fn clusters(&self) -> Result<(), String> {
        let (inner, server) = (&self.inner, &self.inner.server);
        let clusters = &server.context.clusters;
        clusters.primary_initialized().await;
        inner.client.start_ads();
        runtime::watch_all(inner)?;
        let layers = inner.runtime_targets.borrow().clone();
        layers.iter().for_each(|layer| server.init.add(layer));
        for layer in &layers {
            layer.ready().await;
        }
        inner.runtime_targets.take();
        server.runtime.refresh();
        let held = inner.runtime_held.take();
        let pause = inner.client.pause(&[TypeUrl::CLUSTER_LOAD_ASSIGNMENT]);
        for cluster in clusters.clusters() {
            let watched = match endpoints::source(inner, &cluster.config) {
                Ok(Some(from)) => endpoints::watch(inner, &cluster, &from),
                other => other.map(drop),
            };
            watched.map_err(|error| format!("{}.eds_cluster_config: {error}", cluster.config.path))?;
        }
        drop(pause);
        if let Some(config) = &server.bootstrap.config.load_stats {
            let reports = load_stats::start(inner, config)
                .map_err(|error| format!("cluster_manager.load_stats_config: {error}"))?;
            inner.load_reports.replace(Some(reports));
        }
        let held = held.filter(|_| clusters.is_initialized());
        inner.own_endpoints_asked.set(true);
        clusters.initialized().await;
        inner.start_clusters();
        if let Some(error) = inner.clusters_error.take() {
            return Err(format!("dynamic_resources.cds_config: {error}"));
        }
        drop(held);
        let first = inner.first_clusters.borrow().clone();
        if let Some(target) = first {
            target.ready().await;
            clusters.initialized().await;
        }
        inner.first_clusters_done.set(true);
        Ok(())
    }

    /// Fetches listeners and what they need; returns when the first of all have come or are waited for no longer.
    ///
    /// # Errors
    /// A source that cannot be used.
    pub async fn listeners(&self) -> Result<(), String> {
        let (inner, server) = (&self.inner, &self.inner.server);
        inner.start_listeners();
        if let Some(error) = inner.listeners_error.take() {
            return Err(format!("dynamic_resources.lds_config: {error}"));
        }
        server.init.all_ready().await;
        Ok(())
    }

    /// Everything that was asked for, with what came of it.
    pub fn snapshot(&self) -> Vec<SourceState> {
        self.inner.client.snapshot()
    }

    /// What could not be asked for.
    pub fn unusable(&self) -> Vec<Unusable> {
        self.inner.unusable.borrow().clone()
    }

    /// Whether the first layers of the runtime are waited for.
    pub fn awaits_runtime(&self) -> bool {
        !self.inner.runtime_targets.borrow().is_empty()
    }

    /// Whether listeners have been asked for, or need not be.
    pub fn listeners_asked(&self) -> bool {
        let inner = &self.inner;
        !inner.server.bootstrap.config.dynamic.fetches_listeners() || inner.listeners.borrow().is_some()
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.reader.abort();
        // Subscriptions have handlers with weak references only; what is left ends with the client.
        self.inner.clusters.take();
        self.inner.listeners.take();
        self.inner.runtime.take();
        self.inner.load_reports.take();
    }
}

/// A server that serves nothing, for tests of what is built for one.
#[cfg(test)]
pub(crate) fn test_server() -> Arc<Server> {
    decode::tests::server(&[])
}
