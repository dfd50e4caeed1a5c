//! A control plane that serves resources it is given, to any number of aggregated streams in either form of the protocol,
//! and notes what is acknowledged and refused.
//!
//! It runs on a thread of its own, so that whoever drives it (tests of failures, the churn bench) is not in its way. A
//! change is sent to the streams that asked for what changed, and only that of it, except where the protocol wants the
//! whole list. Dropped, it is gone with all its connections; another can be started at the same port.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::control_plane::{Asked, ControlPlane, Request};
use crate::conversation::{encoded, type_url};

/// A resource.
#[derive(Clone, Debug)]
pub struct Message {
    name: String,
    any: Any,
}

impl Message {
    /// A resource of a type by its short name (`Cluster`), in JSON.
    ///
    /// # Errors
    /// It is no such message.
    pub fn new(kind: &str, value: &Value) -> Result<Message> {
        let name = value.get("name").or_else(|| value.get("cluster_name")).and_then(Value::as_str);
        let name = name.context("a resource without a name")?.to_owned();
        Ok(Message { name, any: encoded(value, &type_url(kind)?)? })
    }
}

/// What the proxies have said.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// When the first request came.
    pub first: Option<Instant>,
    /// How many streams there have been.
    pub streams: usize,
    /// By short name of the type: the last version that was acknowledged.
    pub acked: BTreeMap<String, u64>,
    /// Texts of refusals, with the type.
    pub nacks: Vec<String>,
}

enum Command {
    Change { version: u64, put: Vec<Message>, remove: Vec<(String, String)>, sent: oneshot::Sender<Instant> },
    Silence(bool),
    Raw(Bytes),
}

/// See the module.
#[derive(Debug)]
pub struct Snapshots {
    /// Where it listens.
    pub address: SocketAddr,
    commands: mpsc::UnboundedSender<Command>,
    seen: Arc<Mutex<Seen>>,
    version: AtomicU64,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        let (commands, _) = mpsc::unbounded_channel();
        self.commands = commands;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Snapshots {
    /// Listens at a port, 0 for any. Versions count up from `version`.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(port: u16, version: u64) -> Result<Snapshots> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let seen = Arc::<Mutex<Seen>>::default();
        let (told, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let seen = seen.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let Ok(runtime) = runtime else { return };
                runtime.block_on(async move {
                    let server = ControlPlane::start_at((Ipv4Addr::LOCALHOST, port).into()).await;
                    let server = match server {
                        Ok(server) => server,
                        Err(e) => return drop(told.send(Err(e))),
                    };
                    let _ = told.send(Ok(server.address));
                    State {
                        server,
                        seen,
                        resources: HashMap::new(),
                        streams: BTreeMap::new(),
                        nonce: 0,
                        silent: false,
                    }
                    .run(receiver)
                    .await;
                });
            }
        });
        let address = address.recv().context("the control plane does not start")??;
        Ok(Snapshots { address, commands, seen, version: AtomicU64::new(version), thread: Some(thread) })
    }

    /// Adds or replaces resources, and removes others by type (its short name) and name. Returns the version of the
    /// change, and what will be the time when it was sent.
    ///
    /// # Errors
    /// A type that does not exist.
    pub fn change(&self, put: Vec<Message>, remove: &[(&str, String)]) -> Result<(u64, oneshot::Receiver<Instant>)> {
        let remove =
            remove.iter().map(|(kind, name)| Ok((type_url(kind)?, name.clone()))).collect::<Result<Vec<_>>>()?;
        let version = self.version.fetch_add(1, Ordering::Relaxed) + 1;
        let (sent, receiver) = oneshot::channel();
        let _ = self.commands.send(Command::Change { version, put, remove, sent });
        Ok((version, receiver))
    }

    /// Answers nothing any more, or again: then everything that was asked or changed meanwhile.
    pub fn silence(&self, silent: bool) {
        let _ = self.commands.send(Command::Silence(silent));
    }

    /// Sends bytes as they are on every stream.
    pub fn raw(&self, bytes: impl Into<Bytes>) {
        let _ = self.commands.send(Command::Raw(bytes.into()));
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the proxies have said so far.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// Waits until this version of a type, or a later one, is acknowledged.
    ///
    /// # Errors
    /// It is not in time.
    pub async fn acked(&self, kind: &str, version: u64, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let last = self.lock().acked.get(kind).copied();
            if last.is_some_and(|last| last >= version) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("version {version} of {kind} is not acknowledged, but {last:?}: {:#?}", self.seen());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// # Errors
    /// Something was refused.
    pub fn nothing_refused(&self) -> Result<()> {
        let seen = self.lock();
        ensure!(seen.nacks.is_empty(), "refused: {:#?}", seen.nacks);
        Ok(())
    }
}

/// Resources of one type.
#[derive(Default)]
struct Kind {
    /// Of the last change.
    version: u64,
    /// By name, with the versions they came with.
    all: BTreeMap<String, (u64, Any)>,
}

/// What a stream asks for of one type.
#[derive(Default)]
struct Sub {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Versions by nonce that wait for an answer.
    pending: BTreeMap<u64, u64>,
    /// Not answered because of a silence.
    owed: bool,
}

struct Stream {
    delta: bool,
    subs: BTreeMap<String, Sub>,
}

struct State {
    server: ControlPlane,
    seen: Arc<Mutex<Seen>>,
    resources: HashMap<String, Kind>,
    streams: BTreeMap<usize, Stream>,
    nonce: u64,
    silent: bool,
}

fn short(type_url: &str) -> &str {
    type_url.rsplit('.').next().unwrap_or_default()
}

/// Types of which a state of the world is the whole list.
fn whole(type_url: &str) -> bool {
    matches!(short(type_url), "Cluster" | "Listener")
}

impl State {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            tokio::select! {
                asked = self.server.asked() => match asked {
                    Some(asked) => self.asked(asked),
                    None => return,
                },
                command = commands.recv() => match command {
                    Some(Command::Change { version, put, remove, sent }) => {
                        self.change(version, put, remove);
                        let _ = sent.send(Instant::now());
                    }
                    Some(Command::Silence(silent)) => self.silence(silent),
                    Some(Command::Raw(bytes)) => {
                        let streams: Vec<usize> = self.streams.keys().copied().collect();
                        for id in streams {
                            if self.server.raw(id, bytes.clone()).is_err() {
                                self.streams.remove(&id);
                            }
                        }
                    }
                    None => return,
                },
            }
        }
    }

    fn asked(&mut self, asked: Asked) {
        let delta = matches!(asked.request, Request::Delta(_));
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.first.get_or_insert_with(Instant::now);
            if !self.streams.contains_key(&asked.stream) {
                seen.streams += 1;
            }
        }
        self.streams.entry(asked.stream).or_insert_with(|| Stream { delta, subs: BTreeMap::new() });
        match asked.request {
            Request::Sotw(request) => self.sotw(asked.stream, *request),
            Request::Delta(request) => self.delta(asked.stream, *request),
            // Reports of load are not answered.
            Request::Load(_) => {}
        }
    }

    /// Notes the answer to a response; true if the request is one.
    fn answer(&self, sub: &mut Sub, type_url: &str, nonce: &str, error: Option<String>) -> bool {
        let Ok(nonce) = nonce.parse() else { return false };
        let Some(version) = sub.pending.remove(&nonce) else { return false };
        // Those before it were passed over.
        sub.pending.retain(|other, _| *other > nonce);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error) => seen.nacks.push(format!("{}: {error}", short(type_url))),
            None => {
                let last = seen.acked.entry(short(type_url).to_owned()).or_default();
                *last = version.max(*last);
            }
        }
        true
    }

    fn sotw(&mut self, id: usize, request: DiscoveryRequest) {
        let DiscoveryRequest { type_url, resource_names, response_nonce, error_detail, .. } = request;
        let Some(mut sub) = self.streams.get_mut(&id).map(|s| s.subs.remove(&type_url)) else { return };
        let first = sub.is_none();
        let own = sub.get_or_insert_with(Sub::default);
        let answers = self.answer(own, &type_url, &response_nonce, error_detail.map(|e| e.message));
        let names: BTreeSet<String> = resource_names.into_iter().collect();
        own.wildcard = names.is_empty() && whole(&type_url);
        let same = own.names == names;
        let new: Vec<String> = match answers || first {
            // An answer may ask for more, too.
            true => names.difference(&own.names).cloned().collect(),
            // Asked again: a cluster that has changed waits for its endpoints.
            false if same => names.iter().cloned().collect(),
            false => names.difference(&own.names).cloned().collect(),
        };
        own.names = names;
        let all = own.wildcard && !answers;
        if let (Some(stream), Some(sub)) = (self.streams.get_mut(&id), sub) {
            stream.subs.insert(type_url.clone(), sub);
        }
        if all || !new.is_empty() {
            self.send(id, &type_url, &new, &[]);
        }
    }

    fn delta(&mut self, id: usize, request: DeltaDiscoveryRequest) {
        let type_url = request.type_url;
        let Some(sub) = self.streams.get_mut(&id).map(|s| s.subs.remove(&type_url)) else { return };
        let first = sub.is_none();
        let mut sub = sub.unwrap_or_default();
        self.answer(&mut sub, &type_url, &request.response_nonce, request.error_detail.map(|e| e.message));
        let mut new: Vec<String> = Vec::new();
        let kind = &self.resources.entry(type_url.clone()).or_default().all;
        let held = &request.initial_resource_versions;
        let fresh = |name: &String| {
            kind.get(name).is_some_and(|(version, _)| held.get(name).is_none_or(|held| *held != version.to_string()))
        };
        if first && request.resource_names_subscribe.is_empty() {
            sub.wildcard = true;
            new.extend(kind.keys().filter(|name| fresh(name)).cloned());
        }
        for name in &request.resource_names_unsubscribe {
            sub.names.remove(name);
        }
        for name in request.resource_names_subscribe {
            if fresh(&name) {
                new.push(name.clone());
            }
            sub.names.insert(name);
        }
        let removed: Vec<String> = held.keys().filter(|name| !kind.contains_key(*name)).cloned().collect();
        let wildcard = first && sub.wildcard;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.subs.insert(type_url.clone(), sub);
        }
        if wildcard || !new.is_empty() || !removed.is_empty() {
            self.send(id, &type_url, &new, &removed);
        }
    }

    fn change(&mut self, version: u64, put: Vec<Message>, remove: Vec<(String, String)>) {
        let mut changed: BTreeMap<String, (Vec<String>, Vec<String>)> = BTreeMap::new();
        for message in put {
            let type_url = message.any.type_url.clone();
            changed.entry(type_url.clone()).or_default().0.push(message.name.clone());
            let kind = self.resources.entry(type_url).or_default();
            kind.version = version;
            kind.all.insert(message.name, (version, message.any));
        }
        for (type_url, name) in remove {
            let kind = self.resources.entry(type_url.clone()).or_default();
            if kind.all.remove(&name).is_some() {
                kind.version = version;
                changed.entry(type_url).or_default().1.push(name);
            }
        }
        // Clusters before their endpoints, listeners before their routes.
        let order = ["Cluster", "ClusterLoadAssignment", "Listener"];
        let mut changed: Vec<_> = changed.into_iter().collect();
        changed.sort_by_key(|(t, _)| order.iter().position(|o| *o == short(t)).unwrap_or(order.len()));
        for (type_url, (put, removed)) in changed {
            let asking = self.streams.iter().filter_map(|(id, stream)| {
                let sub = stream.subs.get(&type_url)?;
                let wants = |names: &[String]| -> Vec<String> {
                    names.iter().filter(|n| sub.wildcard || sub.names.contains(*n)).cloned().collect()
                };
                let (put, removed) = (wants(&put), wants(&removed));
                (!put.is_empty() || !removed.is_empty()).then_some((*id, put, removed))
            });
            let asking: Vec<_> = asking.collect();
            for (id, put, removed) in asking {
                self.send(id, &type_url, &put, &removed);
            }
        }
    }

    fn silence(&mut self, silent: bool) {
        self.silent = silent;
        if silent {
            return;
        }
        let mut owed = Vec::new();
        for (id, stream) in &mut self.streams {
            for (type_url, sub) in &mut stream.subs {
                if std::mem::take(&mut sub.owed) {
                    owed.push((*id, type_url.clone(), sub.wildcard, sub.names.iter().cloned().collect::<Vec<_>>()));
                }
            }
        }
        for (id, type_url, wildcard, mut names) in owed {
            let kind = self.resources.entry(type_url.clone()).or_default();
            if wildcard {
                names.extend(kind.all.keys().cloned());
            }
            self.send(id, &type_url, &names, &[]);
        }
    }

    /// Sends these resources to a stream, or all where a state of the world has to be whole.
    fn send(&mut self, id: usize, type_url: &str, names: &[String], removed: &[String]) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Some(sub) = stream.subs.get_mut(type_url) else { return };
        let kind = self.resources.entry(type_url.to_owned()).or_default();
        // Who asks before the first change must not take that there is nothing.
        if self.silent || kind.version == 0 {
            sub.owed = self.silent;
            return;
        }
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let whole = sub.wildcard && !stream.delta;
        let type_url = type_url.to_owned();
        let message = if stream.delta {
            let resource = |name: &String| {
                let (version, any) = kind.all.get(name)?;
                let (name, version) = (name.clone(), version.to_string());
                Some(Resource { name, version, resource: Some(any.clone()), ..Resource::default() })
            };
            DeltaDiscoveryResponse {
                system_version_info: kind.version.to_string(),
                nonce,
                type_url,
                resources: names.iter().filter_map(resource).collect(),
                removed_resources: removed.to_vec(),
                ..DeltaDiscoveryResponse::default()
            }
            .encode_to_vec()
        } else {
            let resources: Vec<Any> = match whole {
                true => kind.all.values().map(|(_, any)| any.clone()).collect(),
                false => names.iter().filter_map(|name| Some(kind.all.get(name)?.1.clone())).collect(),
            };
            // What is removed of the types that are asked for by name is not said; their users go first.
            if resources.is_empty() && !whole {
                return;
            }
            let version_info = kind.version.to_string();
            DiscoveryResponse { version_info, nonce, type_url, resources, ..DiscoveryResponse::default() }
                .encode_to_vec()
        };
        sub.pending.insert(self.nonce, kind.version);
        if self.server.send(id, &message).is_err() {
            self.streams.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_port_can_be_taken_again_and_a_resource_needs_a_name() {
        let first = Snapshots::start(0, 0).unwrap();
        let port = first.address.port();
        assert!(Snapshots::start(port, 0).is_err());
        drop(first);
        assert_eq!(Snapshots::start(port, 0).unwrap().address.port(), port);
        assert!(Message::new("Cluster", &json!({"connect_timeout": "1s"})).is_err());
        assert!(Message::new("Cluster", &json!({"name": "a", "no_such_field": 1})).is_err());
        assert!(Message::new("Cluster", &json!({"name": "a", "connect_timeout": "1s"})).is_ok());
    }
}
