//! ODCDS: clusters that requests and connections ask for by name. Delta only, as the service is.
//!
//! ```text
//! the first name -> a subscription to it -> its answer -> names that were asked for meanwhile -> each name as it is asked for
//! ```
//!
//! Clusters that come are handled as those of CDS; who waits for one goes on when it is warm. Names that requests bring are
//! bounded ([`Names`]); clusters that are there are not given up.

use super::clusters::{self, verdict};
use super::names::{Limits, Names};
use super::stats::Counted;
use super::{Inner, Unusable};
use crate::on_demand_clusters::OnDemandSource;
use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use tokio::sync::oneshot;
use xds_client::{
    FetchFailure, Interest, ResourceError, ResourceHandler, Subscription, SubscriptionOptions, TypeUrl, Update, Verdict,
};

const STATS: &str = "cluster_manager.odcds.";

/// One source. None where it cannot be used.
pub(super) struct Clusters {
    subscription: Option<Subscription>,
    state: Rc<RefCell<State>>,
}

struct State {
    asked: Names,
    /// The first answer has come, or is waited for no longer.
    answered: bool,
    /// Names to ask for then.
    awaiting: Vec<String>,
    /// Somebody has asked meanwhile, for whatever name.
    asked_meanwhile: bool,
}

/// A request waits for a cluster.
pub(super) fn fetch(inner: &Rc<Inner>, source: &Arc<OnDemandSource>, cluster: &str, answer: oneshot::Sender<()>) {
    if inner.server.context.clusters.cluster(cluster).is_some() {
        return;
    }
    let known = inner.on_demand.borrow().get(&source.id).map(|clusters| clusters.state.clone());
    let is_first = known.is_none();
    let state = known.unwrap_or_else(|| {
        // What is there stays: others may use it.
        let limits = Limits { gives_up_present: false, ..Limits::default() };
        Rc::new(RefCell::new(State {
            asked: Names::new(limits),
            answered: false,
            awaiting: Vec::new(),
            asked_meanwhile: false,
        }))
    });
    let Some(asked) = state.borrow_mut().asked.ask(cluster, answer) else {
        tracing::debug!(target: "upstream", "no more clusters are asked for on demand");
        return;
    };
    if is_first {
        let subscription = subscribe(inner, source, cluster, &state).map_err(|error| {
            tracing::error!(target: "upstream", "clusters cannot be fetched on demand: {error}");
            let name = cluster.to_owned();
            inner.unusable.borrow_mut().push(Unusable { type_url: TypeUrl::CLUSTER, name, error });
            // Nobody waits for what cannot come.
            state.borrow_mut().asked = Names::new(Limits { names: 0, ..Limits::default() });
        });
        let clusters = Clusters { subscription: subscription.ok(), state };
        inner.on_demand.borrow_mut().insert(source.id, clusters);
        return;
    }
    let all = inner.on_demand.borrow();
    let Some(subscription) = all.get(&source.id).and_then(|clusters| clusters.subscription.as_ref()) else { return };
    release(subscription, &asked.given_up);
    if !asked.is_new && !asked.is_alone {
        return;
    }
    // As in Envoy a name is asked for once, and whoever needs it again waits for what the server says of it. That it was
    // needed is counted.
    let name = asked.is_new.then(|| cluster.to_owned());
    let mut state = state.borrow_mut();
    if state.answered {
        drop(state);
        subscription.request_on_demand(name.as_slice());
    } else {
        state.asked_meanwhile = true;
        state.awaiting.extend(name);
    }
}

/// A cluster has come from elsewhere: whoever waits for one of this name goes on when it is warm.
pub(super) fn came(inner: &Inner, cluster: &str) {
    for clusters in inner.on_demand.borrow().values() {
        if clusters.state.borrow().asked.is_awaited(cluster) {
            settle_when_warm(inner, &clusters.state, cluster);
        }
    }
}

fn settle_when_warm(inner: &Inner, state: &Rc<RefCell<State>>, cluster: &str) {
    let manager = inner.server.context.clusters.clone();
    let settle = |state: &RefCell<State>, name: &str| {
        // What is there is not given up.
        let _ = state.borrow_mut().asked.answered(name, true);
    };
    if manager.cluster(cluster).is_some() {
        return settle(state, cluster);
    }
    let (state, cluster) = (state.clone(), cluster.to_owned());
    tokio::task::spawn_local(async move {
        manager.warmed_up(&cluster).await;
        if manager.cluster(&cluster).is_some() {
            settle(&state, &cluster);
        }
    });
}

fn subscribe(
    inner: &Rc<Inner>,
    source: &OnDemandSource,
    first: &str,
    state: &Rc<RefCell<State>>,
) -> Result<Subscription, String> {
    let handler = Rc::new(Handler { inner: Rc::downgrade(inner), source: source.id, state: state.clone() });
    let options = SubscriptionOptions {
        type_url: TypeUrl::CLUSTER,
        interest: Interest::Names(vec![first.to_owned()]),
        initial_fetch_timeout: source.config.initial_fetch_timeout,
    };
    let stats = Rc::new(Counted::new(&inner.server.context.registry, STATS));
    let from = inner.source(&source.config, &TypeUrl::CLUSTER, STATS, inner.origin_of_clusters())?;
    inner.client.subscribe(&from, options, handler, stats).map_err(|error| error.to_string())
}

fn release(subscription: &Subscription, names: &[Arc<str>]) {
    if !names.is_empty() {
        subscription.release_on_demand(&names.iter().map(|name| name.to_string()).collect::<Vec<_>>());
    }
}

struct Handler {
    inner: Weak<Inner>,
    /// Its id.
    source: u64,
    state: Rc<RefCell<State>>,
}

impl Handler {
    /// What was asked for before the first answer is asked for now.
    fn answered(&self, inner: &Inner) {
        let (awaiting, asked) = {
            let mut state = self.state.borrow_mut();
            state.answered = true;
            (std::mem::take(&mut state.awaiting), std::mem::take(&mut state.asked_meanwhile))
        };
        if asked
            && let Some(subscription) = inner.on_demand.borrow().get(&self.source).and_then(|c| c.subscription.as_ref())
        {
            subscription.request_on_demand(&awaiting);
        }
    }

    /// The server has none of this name: who waits for it goes on.
    fn settle_absent(&self, inner: &Inner, name: &str) {
        let given_up = self.state.borrow_mut().asked.answered(name, false);
        if let Some(subscription) = inner.on_demand.borrow().get(&self.source).and_then(|c| c.subscription.as_ref()) {
            release(subscription, given_up.as_slice());
        }
    }
}

impl ResourceHandler for Handler {
    fn on_update(&self, update: Update) -> Verdict {
        let Some(inner) = self.inner.upgrade() else { return Verdict::accept() };
        // The endpoints of all new clusters are asked for at once.
        let pause = inner.client.pause(&[TypeUrl::CLUSTER_LOAD_ASSIGNMENT]);
        let mut errors: Vec<ResourceError> = Vec::new();
        for resource in update.added.iter().filter(|resource| !resource.unresolved) {
            errors.extend(clusters::take(&inner, resource).err());
        }
        update.removed.iter().for_each(|name| clusters::remove(&inner, name));
        inner.take_wants();
        drop(pause);
        inner.hold_clusters_until_warm();
        self.answered(&inner);
        let refused: HashSet<&str> = errors.iter().map(|error| error.name.as_str()).collect();
        // Who waits for one that is refused may get a better one in time, as in Envoy.
        for resource in update.added.iter().filter(|resource| !refused.contains(resource.name.as_str())) {
            match resource.unresolved {
                true => self.settle_absent(&inner, &resource.name),
                false => settle_when_warm(&inner, &self.state, &resource.name),
            }
        }
        update.removed.iter().for_each(|name| self.settle_absent(&inner, name));
        inner.clusters_may_be_done();
        verdict("Error adding/updating cluster(s) ", ", ", "", errors)
    }

    fn on_failure(&self, why: FetchFailure) {
        if why != FetchFailure::ConnectionFailure
            && let Some(inner) = self.inner.upgrade()
        {
            self.answered(&inner);
        }
    }
}
