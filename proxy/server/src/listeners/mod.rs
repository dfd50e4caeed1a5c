//! The listeners of the process: added, changed and removed while they serve.
//!
//! ```text
//! add_or_update: build, bind  ->  warming (routes, secrets)  ->  active: workers run it  ->  draining  ->  gone
//! ```
//!
//! A change of filter chains only swaps them in the listener that runs; connections of chains that stay do not notice.
//! Any other change makes a new listener, which takes over the sockets of the old one. Called on the control thread.
//! Where listeners come from is not known here.

pub(crate) mod build;
mod drain;
mod table;

use crate::init::InitTargets;
use crate::server::Server;
use crate::stats::ListenerManagerStats;
use crate::worker::WorkerCommand;
use bytes::Bytes;
use nuncio_config::address::Address;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::listener::ListenerConfig;
use nuncio_config::paths::FieldPath;
use nuncio_net::listener::{Listener, PreparedUpdate};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use table::{Active, Managed, Needs, Table, Warming, WarmingKind};
use tokio::sync::mpsc;

/// Where a configuration came from, for `/config_dump`.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Version of the resource; empty in the bootstrap.
    pub version: String,
    /// The message as it came; empty in the bootstrap, whose dump has it.
    pub bytes: Bytes,
    /// When it was taken.
    pub updated: SystemTime,
}

/// What [`ListenerManager::add_or_update`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerOutcome {
    /// The name was new.
    Added,
    /// The listener of this name is replaced, or some of its filter chains.
    Modified,
    /// It is the same, or one of the bootstrap.
    Unchanged,
}

/// A listener as the admin interface shows it.
pub struct ListenerView {
    /// Name.
    pub name: Arc<str>,
    /// Not of the bootstrap.
    pub dynamic: bool,
    /// In use.
    pub active: Option<Origin>,
    /// Waiting for what it needs.
    pub warming: Option<Origin>,
    /// Its connections are told to end; the last one of the name.
    pub draining: Option<Origin>,
}

/// A listener that waits for something.
pub struct Unready {
    /// Its name.
    pub name: Arc<str>,
    /// Tells configurations of one name apart.
    pub fingerprint: u64,
    /// What it waits for.
    pub targets: Vec<String>,
}

/// All listeners.
pub struct ListenerManager {
    /// `listener_manager.`
    pub stats: ListenerManagerStats,
    table: Mutex<Table>,
    draining: Mutex<Vec<(Arc<Listener>, Origin)>>,
    workers: Mutex<Vec<mpsc::UnboundedSender<WorkerCommand>>>,
    concurrency: usize,
    binds: bool,
}

impl ListenerManager {
    /// No listeners; there will be `concurrency` workers.
    pub fn new(stats: ListenerManagerStats, concurrency: usize) -> ListenerManager {
        ListenerManager {
            stats,
            table: Mutex::default(),
            draining: Mutex::default(),
            workers: Mutex::default(),
            concurrency,
            binds: true,
        }
    }

    /// As it was, but for a process that only looks at a configuration: no listener that comes gets a socket.
    #[must_use]
    pub fn without_sockets(self) -> ListenerManager {
        ListenerManager { binds: false, ..self }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn workers(&self) -> MutexGuard<'_, Vec<mpsc::UnboundedSender<WorkerCommand>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a listener of the bootstrap, built and bound by the caller.
    pub fn add_static(&self, listener: Arc<Listener>) {
        let origin = Origin { version: String::new(), bytes: Bytes::new(), updated: SystemTime::now() };
        let name = listener.name().clone();
        let active = Active { listener, needs: Needs::default(), fingerprint: 0, origin };
        self.table().insert(Managed { name, dynamic: false, active: Some(active), warming: None });
        self.stats.listener_added().inc();
        self.show();
    }

    /// Hands all listeners to the workers; from now on listeners that come run at once when they are warm.
    pub fn start_workers(&self, workers: impl IntoIterator<Item = mpsc::UnboundedSender<WorkerCommand>>) {
        let mut own = self.workers();
        own.extend(workers);
        let active = self.active();
        self.stats.listener_create_success().add((active.len() * own.len()) as u64);
        self.stats.workers_started().set(1);
        for listener in active {
            run(&own, &listener);
        }
    }

    fn started(&self) -> bool {
        !self.workers().is_empty()
    }

    /// Listeners in use, in the order of adding.
    pub fn active(&self) -> Vec<Arc<Listener>> {
        self.table().all().filter_map(|managed| Some(managed.active.as_ref()?.listener.clone())).collect()
    }

    /// Listeners in use and those that drain: what has connections.
    pub fn running(&self) -> Vec<Arc<Listener>> {
        let mut all = self.active();
        all.extend(self.draining().iter().map(|(listener, _)| listener.clone()));
        all
    }

    fn draining(&self) -> MutexGuard<'_, Vec<(Arc<Listener>, Origin)>> {
        self.draining.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_draining(&self, listener: &Arc<Listener>, origin: Origin) {
        let mut draining = self.draining();
        draining.push((listener.clone(), origin));
        self.stats.total_listeners_draining().set(draining.len() as u64);
    }

    fn remove_draining(&self, listener: &Arc<Listener>) {
        let mut draining = self.draining();
        draining.retain(|(other, _)| !Arc::ptr_eq(other, listener));
        self.stats.total_listeners_draining().set(draining.len() as u64);
    }

    /// All of them for the admin interface.
    pub fn views(&self) -> Vec<ListenerView> {
        let draining = self.draining().iter().map(|(l, origin)| (l.name().clone(), origin.clone())).collect::<Vec<_>>();
        let table = self.table();
        let last = |name: &str| draining.iter().rev().find(|(other, _)| **other == *name).map(|(_, o)| o.clone());
        let started = self.started();
        let view = |managed: &Managed| {
            let active = managed.active.as_ref();
            // Until the workers start nothing is in use that still waits for something.
            let (active, early) = match active.filter(|active| !started && !active.needs.0.unready().is_empty()) {
                Some(early) => (None, Some(early)),
                None => (active, None),
            };
            let warming = managed.warming.as_ref().map(|warming| &warming.origin);
            ListenerView {
                draining: last(&managed.name),
                name: managed.name.clone(),
                dynamic: managed.dynamic,
                active: active.map(|active| active.origin.clone()),
                warming: warming.or(early.map(|early| &early.origin)).cloned(),
            }
        };
        let mut views: Vec<_> = table.all().map(view).collect();
        for (name, _) in &draining {
            if !views.iter().any(|view| view.name == *name) {
                let draining = last(name);
                views.push(ListenerView { name: name.clone(), dynamic: true, active: None, warming: None, draining });
            }
        }
        views
    }

    /// Whether the listener of this name has this configuration already, or may not be changed.
    pub fn is_same(&self, name: &str, fingerprint: u64) -> bool {
        Self::is_same_in(&self.table(), name, fingerprint)
    }

    fn is_same_in(table: &Table, name: &str, fingerprint: u64) -> bool {
        table.get(name).is_some_and(|managed| !managed.dynamic || managed.newest() == Some(fingerprint))
    }

    /// What listeners wait for, by listener.
    pub fn unready(&self) -> Vec<Unready> {
        let table = self.table();
        let names = |needs: &Needs| needs.0.unready().iter().map(|target| target.name.clone()).collect::<Vec<_>>();
        let unready = table.all().filter_map(|managed| {
            let (needs, fingerprint) = match (&managed.warming, &managed.active) {
                (Some(warming), _) => (&warming.needs, warming.fingerprint),
                // Until the workers start.
                (None, Some(active)) => (&active.needs, active.fingerprint),
                (None, None) => return None,
            };
            Some(Unready { name: managed.name.clone(), fingerprint, targets: names(needs) })
        });
        unready.filter(|listener| !listener.targets.is_empty()).collect()
    }

    /// Number of listeners in use or warming.
    pub fn len(&self) -> usize {
        self.table().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a listener or changes the one of its name. It is bound when this returns, and runs when it is warm.
    /// `fingerprint` tells configurations of one name apart.
    ///
    /// # Errors
    /// Everything that is wrong with it; nothing has changed then.
    pub fn add_or_update(
        &self,
        server: &Arc<Server>,
        config: ListenerConfig,
        fingerprint: u64,
        origin: Origin,
    ) -> Result<ListenerOutcome, Vec<ConfigError>> {
        let config = Arc::new(config);
        let (active, known) = {
            let table = self.table();
            match table.get(&config.name) {
                Some(_) if Self::is_same_in(&table, &config.name, fingerprint) => {
                    return Ok(ListenerOutcome::Unchanged);
                }
                Some(managed) => (managed.active.as_ref().map(|active| active.listener.clone()), true),
                None => (None, false),
            }
        };
        if let Some((other, address)) = self.table().address_of_another(&config) {
            return Err(vec![ConfigError::new(
                FieldPath::parse(&config.path),
                format!(
                    "error adding listener: '{}' has duplicate address '{address}' as existing listener '{other}'",
                    config.name
                ),
            )]);
        }
        let targets = Arc::new(InitTargets::default());
        let in_place = active
            .as_ref()
            .filter(|active| self.started() && active.config().frame_fingerprint == config.frame_fingerprint);
        let kind = match in_place {
            Some(active) => WarmingKind::InPlace(self.prepare(server, active, &config, &targets)?),
            None => WarmingKind::New(self.build(server, &config, active.as_deref(), &targets)?),
        };
        let outcome = if known {
            self.stats.listener_modified().inc();
            ListenerOutcome::Modified
        } else {
            self.stats.listener_added().inc();
            ListenerOutcome::Added
        };
        let id = {
            let mut table = self.table();
            let id = table.next_id();
            let needs = Needs(targets.clone());
            let warming = Warming { id, kind, config: config.clone(), fingerprint, needs, origin };
            if known {
                table.edit(&config.name, |managed| managed.warming = Some(warming));
            } else {
                let name = config.name.clone();
                table.insert(Managed { name, dynamic: true, active: None, warming: Some(warming) });
            }
            id
        };
        if !self.started() {
            // The server waits for what its first listeners need, and starts them together.
            server.init.extend(&targets);
            self.promote(server, &config.name, id);
        } else if targets.unready().is_empty() {
            self.promote(server, &config.name, id);
        } else {
            let (server, name) = (server.clone(), config.name.clone());
            tokio::task::spawn_local(async move {
                targets.all_ready().await;
                server.listeners.promote(&server, &name, id);
            });
        }
        self.show();
        Ok(outcome)
    }

    fn prepare(
        &self,
        server: &Server,
        active: &Listener,
        config: &Arc<ListenerConfig>,
        targets: &InitTargets,
    ) -> Result<PreparedUpdate, Vec<ConfigError>> {
        let prepared = build::with_parts(config, &server.context, targets, |parts| {
            active.prepare(config.clone(), &parts, &|old, new| old.fingerprint == new.fingerprint)
        })?;
        build::wait_for_secrets(prepared.filter_chains(), targets);
        Ok(prepared)
    }

    fn build(
        &self,
        server: &Server,
        config: &Arc<ListenerConfig>,
        active: Option<&Listener>,
        targets: &InitTargets,
    ) -> Result<Arc<Listener>, Vec<ConfigError>> {
        let listener = build::listener(config, &server.context, targets)?;
        if !self.binds {
            return Ok(listener);
        }
        listener.bind_for_later(self.concurrency, active).map_err(|error| {
            self.stats.listener_create_failure().inc();
            vec![ConfigError::new(FieldPath::parse(&config.path), error.to_string())]
        })?;
        Ok(listener)
    }

    /// What warms under this name and id is ready: it takes the place of what is active.
    fn promote(&self, server: &Arc<Server>, name: &str, id: u64) {
        let promoted = self.table().edit(name, |managed| {
            // Another change may have come meanwhile, which waits for things of its own.
            let Warming { kind, fingerprint, origin, needs, .. } =
                managed.warming.take_if(|warming| warming.id == id)?;
            Some(match kind {
                WarmingKind::InPlace(prepared) => {
                    let active = managed.active.as_mut()?;
                    (active.fingerprint, active.origin) = (fingerprint, origin);
                    Promoted::InPlace(active.listener.clone(), prepared)
                }
                WarmingKind::New(listener) => {
                    let old = managed.active.replace(Active { listener: listener.clone(), needs, fingerprint, origin });
                    Promoted::New(listener, old.map(|old| (old.listener, old.origin)))
                }
            })
        });
        match promoted.flatten() {
            Some(Promoted::InPlace(listener, prepared)) => {
                let gone = listener.apply(prepared, server.drain_strategy(), server.drain_time());
                self.stats.listener_in_place_updated().inc();
                self.stats.listener_create_success().add(self.workers().len() as u64);
                drain::chains(server, gone);
            }
            Some(Promoted::New(listener, old)) => {
                {
                    let workers = self.workers();
                    self.stats.listener_create_success().add(workers.len() as u64);
                    run(&workers, &listener);
                }
                if let Some((old, origin)) = old {
                    drain::replaced(server, &old, origin, &listener);
                }
            }
            None => {}
        }
        self.show();
    }

    /// Removes a listener: it stops accepting, and its connections drain. False when there is none of this name, or it
    /// is one of the bootstrap.
    pub fn remove(&self, server: &Arc<Server>, name: &str) -> bool {
        let removed = {
            let mut table = self.table();
            if table.get(name).is_none_or(|managed| !managed.dynamic) {
                return false;
            }
            table.remove(name)
        };
        self.stats.listener_removed().inc();
        if let Some(active) = removed.and_then(|managed| managed.active) {
            drain::removed(server, &active.listener, active.origin);
        }
        self.show();
        true
    }

    /// Brings the gauges up to date.
    fn show(&self) {
        let table = self.table();
        self.stats.total_listeners_active().set(table.active as u64);
        self.stats.total_listeners_warming().set(table.warming as u64);
    }
}

enum Promoted {
    InPlace(Arc<Listener>, PreparedUpdate),
    New(Arc<Listener>, Option<(Arc<Listener>, Origin)>),
}

fn run(workers: &[mpsc::UnboundedSender<WorkerCommand>], listener: &Arc<Listener>) {
    if workers.is_empty() {
        return;
    }
    if let Err(error) = listener.listen() {
        tracing::error!("{error}");
    }
    for worker in workers {
        // A worker that ended has said why.
        let _ = worker.send(WorkerCommand::Run(listener.clone()));
    }
}

/// An address that two listeners cannot share.
fn exclusive(config: &ListenerConfig) -> impl Iterator<Item = &Address> {
    config
        .addresses
        .iter()
        .map(|own| &own.address)
        .filter(|address| config.bind_to_port && !matches!(address, Address::Socket(socket) if socket.addr.port() == 0))
}
