//! The client: subscriptions over any source, each source driven by a task of the current `LocalSet`.
//!
//! ADS is one source that all share. Every other gRPC source gives each subscription a stream of its own, and each
//! subscription to REST or a file polls or watches by itself, as Envoy does.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use prost::Message;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use crate::driver;
use crate::mux::{Mux, MuxOptions, Protocol, WatchId};
use crate::names::canonical;
use crate::stats::{ControlPlaneStats, SubscriptionStats};
use crate::status::SourceState;
use crate::transport::file::FileWatch;
use crate::transport::{GrpcTransport, RestTransport};
use crate::{
    ADS_DELTA_PATH, ADS_SOTW_PATH, Backoff, Interest, RateLimit, Resource, ResourceHandler, SubscriptionOptions,
    TypeUrl,
};

/// Who the client is.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// What every server is told: id, cluster, locality, metadata, user agent, extensions.
    pub node: Node,
    /// The seed of all jitter.
    pub seed: u64,
}

/// A gRPC control plane.
pub struct GrpcSource {
    /// What its owner calls it: a cluster or a target. For the admin view.
    pub name: String,
    /// State of the world or delta.
    pub protocol: Protocol,
    /// Opens the streams.
    pub transport: Rc<dyn GrpcTransport>,
    /// Opens them to another server while the first has never answered and has failed twice. In between, and when the other
    /// fails, the first is tried again.
    pub failover: Option<Rc<dyn GrpcTransport>>,
    /// `set_node_on_first_message_only`.
    pub node_on_first_message_only: bool,
    /// `rate_limit_settings`.
    pub rate_limit: Option<RateLimit>,
    /// Between attempts to open a stream.
    pub backoff: Backoff,
    /// Keeps the last good endpoints of each cluster for [`Client::cached`].
    pub cache_endpoints: bool,
    /// `control_plane.*`.
    pub stats: Rc<dyn ControlPlaneStats>,
}

/// A control plane that is polled over HTTP.
pub struct RestSource {
    /// What its owner calls it. For the admin view.
    pub name: String,
    /// Posts the polls.
    pub transport: Rc<dyn RestTransport>,
    /// Between messages and JSON.
    pub codec: Rc<dyn JsonCodec>,
    /// `refresh_delay`: the wait between two polls, to which up to as much again is added at random.
    pub refresh_delay: Duration,
    /// `request_timeout`. Envoy's default is 1 s.
    pub request_timeout: Duration,
}

/// A file that holds a `DiscoveryResponse`.
pub struct PathSource {
    /// The file.
    pub path: PathBuf,
    /// Read the file again when something is moved into this directory, rather than into that of the file.
    pub watched_directory: Option<PathBuf>,
    /// A file of the watched directory that is written in place is a change, too.
    pub watch_modify: bool,
    /// Decodes the file, whatever its format.
    pub parse: Rc<ParseFile>,
}

/// Decodes a file of resources; the path tells the format.
pub type ParseFile = dyn Fn(&Path, &[u8]) -> Result<DiscoveryResponse, String>;

/// Between messages and proto3 JSON, which takes descriptors that this crate does not have.
pub trait JsonCodec {
    /// A request as JSON with the original field names.
    fn encode(&self, request: &DiscoveryRequest) -> Result<Vec<u8>, String>;
    /// A response from JSON.
    fn decode(&self, json: &[u8]) -> Result<DiscoveryResponse, String>;
}

/// Where resources come from.
#[derive(Clone)]
pub enum Source {
    /// The aggregated stream ([`Client::set_ads`]).
    Ads,
    /// Another aggregated stream ([`Client::aggregated`]).
    Aggregated(Aggregated),
    /// A stream for each subscription.
    Grpc(Rc<GrpcSource>),
    /// Polls. The consumer is given all that a response holds, whatever it asked for.
    Rest(Rc<RestSource>),
    /// A file. The consumer is given all that it holds, whatever it asked for.
    Path(Rc<PathSource>),
}

/// Why a subscription cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// `Source::Ads` without [`Client::set_ads`].
    #[error("no aggregated source is configured")]
    NoAds,
    /// The type has no service of that form.
    #[error("there is no such discovery service for {0}")]
    NoService(TypeUrl),
    /// The directory of a file cannot be watched.
    #[error("unable to watch {path}: {reason}")]
    Watch {
        /// The file.
        path: String,
        /// Why not.
        reason: String,
    },
}

/// See the module. Clones are the same client.
#[derive(Clone)]
pub struct Client {
    shared: Rc<ClientShared>,
}

pub(crate) struct ClientShared {
    pub(crate) node: Node,
    /// The node, encoded once for all requests.
    pub(crate) node_bytes: Vec<u8>,
    random: RefCell<fastrand::Rng>,
    ads: RefCell<Option<Ads>>,
    aggregated: RefCell<Vec<Weak<Ads>>>,
    channels: RefCell<Vec<Weak<Channel>>>,
}

/// An aggregated stream.
struct Ads {
    source: Rc<GrpcSource>,
    channel: Rc<Channel>,
    started: Cell<bool>,
}

impl Ads {
    fn new(client: &Rc<ClientShared>, source: GrpcSource) -> Ads {
        let channel = Channel::grpc(client, "ads", &source);
        Ads { source: Rc::new(source), channel, started: Cell::new(false) }
    }

    fn start(&self, client: &Rc<ClientShared>) {
        if self.started.replace(true) {
            return;
        }
        let path = match self.source.protocol {
            Protocol::Sotw => ADS_SOTW_PATH,
            Protocol::Delta => ADS_DELTA_PATH,
        };
        let (client, channel) = (Rc::downgrade(client), Rc::downgrade(&self.channel));
        self.channel.spawn(driver::grpc::run(client, channel, self.source.clone(), path.to_owned()));
    }
}

/// An aggregated stream beside the one of [`Client::set_ads`]: that of an authority, which knows the resources of `xdstp://`
/// names.
#[derive(Clone)]
pub struct Aggregated(Rc<Ads>);

impl ClientShared {
    pub(crate) fn random(&self) -> u64 {
        self.random.borrow_mut().u64(..)
    }

    fn all_aggregated(&self) -> Vec<Rc<Ads>> {
        let mut all = self.aggregated.borrow_mut();
        all.retain(|ads| ads.strong_count() > 0);
        all.iter().filter_map(Weak::upgrade).collect()
    }

    fn aggregated_channels(&self) -> Vec<Rc<Channel>> {
        let first = self.ads.borrow().as_ref().map(|ads| ads.channel.clone());
        first.into_iter().chain(self.all_aggregated().into_iter().map(|ads| ads.channel.clone())).collect()
    }
}

/// Who is to be told about one subscription.
#[derive(Clone)]
pub(crate) struct Consumer {
    pub(crate) handler: Rc<dyn ResourceHandler>,
    pub(crate) stats: Rc<dyn SubscriptionStats>,
}

/// One mux and what its task needs. Lives as long as its subscriptions, or as the client in the case of ADS.
pub(crate) struct Channel {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) mux: RefCell<Mux>,
    consumers: RefCell<FxHashMap<WatchId, Consumer>>,
    /// There is something new to send, or to wait for.
    pub(crate) changed: Rc<Notify>,
    pub(crate) connected: Cell<bool>,
    pub(crate) last_failure: RefCell<String>,
    task: Cell<Option<tokio::task::AbortHandle>>,
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Channel {
    fn new(client: &Rc<ClientShared>, kind: &'static str, name: String, options: MuxOptions) -> Rc<Channel> {
        let channel = Rc::new(Channel {
            kind,
            name,
            mux: RefCell::new(Mux::new(options)),
            consumers: RefCell::default(),
            changed: Rc::new(Notify::new()),
            connected: Cell::new(false),
            last_failure: RefCell::default(),
            task: Cell::new(None),
        });
        let mut channels = client.channels.borrow_mut();
        channels.retain(|c| c.strong_count() > 0);
        channels.push(Rc::downgrade(&channel));
        channel
    }

    fn grpc(client: &Rc<ClientShared>, kind: &'static str, source: &GrpcSource) -> Rc<Channel> {
        let options = MuxOptions {
            protocol: source.protocol,
            node_on_first_message_only: source.node_on_first_message_only,
            rate_limit: source.rate_limit,
            cached_types: if source.cache_endpoints { vec![TypeUrl::CLUSTER_LOAD_ASSIGNMENT] } else { Vec::new() },
            deliver_all: false,
        };
        Channel::new(client, kind, source.name.clone(), options)
    }

    fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let handle = tokio::task::spawn_local(task);
        self.task.set(Some(handle.abort_handle()));
    }

    /// A gRPC stream, rather than a poll or a file.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self.kind, "ads" | "grpc")
    }

    pub(crate) fn consumer(&self, id: WatchId) -> Option<Consumer> {
        self.consumers.borrow().get(&id).cloned()
    }

    fn state(&self) -> SourceState {
        let mux = self.mux.borrow();
        SourceState {
            kind: self.kind,
            name: self.name.clone(),
            delta: mux.protocol() == Protocol::Delta,
            connected: self.connected.get(),
            control_plane: mux.control_plane().to_owned(),
            last_failure: self.last_failure.borrow().clone(),
            types: mux.snapshot(),
        }
    }
}

impl Client {
    /// A client without sources. Its methods are called on a `LocalSet`.
    pub fn new(options: ClientOptions) -> Client {
        Client {
            shared: Rc::new(ClientShared {
                node_bytes: options.node.encode_to_vec(),
                node: options.node,
                random: RefCell::new(fastrand::Rng::with_seed(options.seed)),
                ads: RefCell::default(),
                aggregated: RefCell::default(),
                channels: RefCell::default(),
            }),
        }
    }

    /// What every server is told.
    pub fn node(&self) -> &Node {
        &self.shared.node
    }

    /// Declares the aggregated source. Subscriptions to it are taken from now on, and asked for once it is started. One
    /// that was declared before is dropped, with its subscriptions.
    pub fn set_ads(&self, source: GrpcSource) {
        *self.shared.ads.borrow_mut() = Some(Ads::new(&self.shared, source));
    }

    /// Declares another aggregated source, which lives as long as what is returned. It is opened with the first
    /// ([`Client::start_ads`]).
    pub fn aggregated(&self, source: GrpcSource) -> Aggregated {
        let ads = Rc::new(Ads::new(&self.shared, source));
        self.shared.aggregated.borrow_mut().push(Rc::downgrade(&ads));
        Aggregated(ads)
    }

    /// Opens the aggregated streams, and keeps them open from now on.
    pub fn start_ads(&self) {
        if let Some(ads) = self.shared.ads.borrow().as_ref() {
            ads.start(&self.shared);
        }
        self.shared.all_aggregated().iter().for_each(|ads| ads.start(&self.shared));
    }

    /// Asks for resources. The subscription ends when what is returned is dropped.
    pub fn subscribe(
        &self,
        source: &Source,
        options: SubscriptionOptions,
        handler: Rc<dyn ResourceHandler>,
        stats: Rc<dyn SubscriptionStats>,
    ) -> Result<Subscription, SubscribeError> {
        let type_url = options.type_url.clone();
        let no_service = || SubscribeError::NoService(type_url.clone());
        let consumer = Consumer { handler, stats };
        let client = Rc::downgrade(&self.shared);
        Ok(match source {
            Source::Ads => {
                let ads = self.shared.ads.borrow();
                let channel = ads.as_ref().map(|a| a.channel.clone()).ok_or(SubscribeError::NoAds)?;
                drop(ads);
                subscribe(channel, options, consumer)
            }
            Source::Aggregated(Aggregated(ads)) => subscribe(ads.channel.clone(), options, consumer),
            Source::Grpc(source) => {
                let path = path_of(&type_url, source.protocol).ok_or_else(no_service)?;
                let channel = Channel::grpc(&self.shared, "grpc", source);
                let task = driver::grpc::run(client, Rc::downgrade(&channel), source.clone(), path);
                let subscription = subscribe(channel, options, consumer);
                subscription.channel.spawn(task);
                subscription
            }
            Source::Rest(source) => {
                let path = type_url.rest_path().ok_or_else(no_service)?;
                let options_of_mux = MuxOptions { deliver_all: true, ..MuxOptions::new(Protocol::Sotw) };
                let channel = Channel::new(&self.shared, "rest", source.name.clone(), options_of_mux);
                let task = driver::rest::run(client, Rc::downgrade(&channel), source.clone(), path);
                let subscription = subscribe(channel, options, consumer);
                subscription.channel.spawn(task);
                subscription
            }
            Source::Path(source) => {
                let options_of_mux = MuxOptions { deliver_all: true, ..MuxOptions::new(Protocol::Sotw) };
                let name = source.path.display().to_string();
                let watch = watch_of(source)?;
                let channel = Channel::new(&self.shared, "path", name, options_of_mux);
                // A file is there or it is not: there is nothing to wait for.
                let options = SubscriptionOptions { initial_fetch_timeout: Duration::ZERO, ..options };
                let task = driver::path::run(Rc::downgrade(&channel), source.clone(), type_url, watch);
                let subscription = subscribe(channel, options, consumer);
                subscription.channel.spawn(task);
                subscription
            }
        })
    }

    /// Whether resources of a type can be subscribed to at a source, as far as that can be known without doing it.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub fn check(&self, source: &Source, type_url: &TypeUrl) -> Result<(), SubscribeError> {
        let no_service = || SubscribeError::NoService(type_url.clone());
        match source {
            Source::Ads => self.shared.ads.borrow().as_ref().map(|_| ()).ok_or(SubscribeError::NoAds),
            Source::Aggregated(_) => Ok(()),
            Source::Grpc(source) => path_of(type_url, source.protocol).map(|_| ()).ok_or_else(no_service),
            Source::Rest(_) => type_url.rest_path().map(|_| ()).ok_or_else(no_service),
            Source::Path(source) => watch_of(source).map(|_| ()),
        }
    }

    /// Holds back the requests of these types on the aggregated streams, acknowledgements included, until what is returned
    /// is dropped. Pauses of one type add up.
    pub fn pause(&self, types: &[TypeUrl]) -> Pause {
        let channels = self.shared.aggregated_channels();
        for channel in &channels {
            let mut mux = channel.mux.borrow_mut();
            types.iter().for_each(|t| mux.pause(t));
        }
        Pause { channels, types: types.to_vec() }
    }

    /// The last good resource of that name on an aggregated stream, if its source keeps them
    /// ([`GrpcSource::cache_endpoints`]) and someone still asks for it.
    pub fn cached(&self, type_url: &TypeUrl, name: &str) -> Option<Resource> {
        let name = canonical(name);
        let channels = self.shared.aggregated_channels();
        channels.iter().find_map(|channel| channel.mux.borrow().cached(type_url, &name).cloned())
    }

    /// All that is known about all sources.
    pub fn snapshot(&self) -> Vec<SourceState> {
        self.shared.channels.borrow().iter().filter_map(Weak::upgrade).map(|c| c.state()).collect()
    }
}

fn path_of(type_url: &TypeUrl, protocol: Protocol) -> Option<String> {
    match protocol {
        Protocol::Sotw => type_url.sotw_path(),
        Protocol::Delta => type_url.delta_path(),
    }
}

fn watch_of(source: &PathSource) -> Result<FileWatch, SubscribeError> {
    let watch = match &source.watched_directory {
        Some(directory) => FileWatch::directory(directory, source.watch_modify),
        None => FileWatch::file(&source.path),
    };
    watch.map_err(|e| SubscribeError::Watch { path: source.path.display().to_string(), reason: e.to_string() })
}

fn subscribe(channel: Rc<Channel>, options: SubscriptionOptions, consumer: Consumer) -> Subscription {
    // A poll and a file count their own attempts.
    if channel.is_stream() {
        consumer.stats.attempt();
    }
    let id = channel.mux.borrow_mut().subscribe(driver::now(), options);
    channel.consumers.borrow_mut().insert(id, consumer);
    channel.changed.notify_one();
    Subscription { channel, id }
}

/// Something that is asked for. Dropped, it is no longer.
pub struct Subscription {
    channel: Rc<Channel>,
    id: WatchId,
}

impl Subscription {
    /// Asks for something else from now on.
    pub fn update(&self, interest: Interest) {
        self.channel.mux.borrow_mut().update(driver::now(), self.id, interest);
        self.attempt();
    }

    /// Delta: asks for further resources, beside a wildcard or a namespace.
    pub fn request_on_demand(&self, names: &[String]) {
        self.channel.mux.borrow_mut().request_on_demand(driver::now(), self.id, names);
        self.attempt();
    }

    /// Delta: ends what was asked for under these names, by [`Subscription::request_on_demand`] or at first. The server is
    /// told.
    pub fn release_on_demand(&self, names: &[String]) {
        self.channel.mux.borrow_mut().release_on_demand(self.id, names);
        self.channel.changed.notify_one();
    }

    /// The last good resource of that name, if its source keeps them.
    pub fn cached(&self, type_url: &TypeUrl, name: &str) -> Option<Resource> {
        self.channel.mux.borrow().cached(type_url, name).cloned()
    }

    fn attempt(&self) {
        if let Some(consumer) = self.channel.consumer(self.id) {
            consumer.stats.attempt();
        }
        self.channel.changed.notify_one();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.channel.mux.borrow_mut().unsubscribe(self.id);
        // Dropped after the table is let go of: what it holds may subscribe or unsubscribe in turn.
        let consumer = self.channel.consumers.borrow_mut().remove(&self.id);
        self.channel.changed.notify_one();
        drop(consumer);
    }
}

/// Requests of some types are held back while this lives.
#[must_use]
pub struct Pause {
    channels: Vec<Rc<Channel>>,
    types: Vec<TypeUrl>,
}

impl Drop for Pause {
    fn drop(&mut self) {
        for channel in &self.channels {
            let mut mux = channel.mux.borrow_mut();
            self.types.iter().for_each(|t| mux.resume(t));
            drop(mux);
            channel.changed.notify_one();
        }
    }
}
