//! The end of listeners and filter chains: connections are told to close, and are closed when the drain time is over.

use super::Origin;
use crate::server::Server;
use nuncio_net::listener::{FilterChain, Listener};
use std::sync::Arc;

/// Ends filter chains that are no longer part of their listener; they drain already.
pub(super) fn chains(server: &Arc<Server>, chains: Vec<Arc<FilterChain>>) {
    if chains.is_empty() {
        return;
    }
    let count = chains.len() as u64;
    server.listeners.stats.total_filter_chains_draining().add(count);
    let (server, time) = (server.clone(), server.drain_time());
    tokio::task::spawn_local(async move {
        tokio::time::sleep(time).await;
        for chain in &chains {
            chain.close_connections();
        }
        server.listeners.stats.total_filter_chains_draining().sub(count);
    });
}

/// Ends a listener in whose place another runs. Before there are workers it has nothing to drain, and goes at once.
pub(super) fn replaced(server: &Arc<Server>, old: &Arc<Listener>, origin: Origin, new: &Listener) {
    let addresses = new.addresses();
    if old.addresses().iter().any(|address| addresses.contains(address)) {
        old.stop_handed_over();
    } else {
        old.stop();
    }
    if server.listeners.started() {
        drain(server, old, origin);
    }
}

/// Ends a listener.
pub(super) fn removed(server: &Arc<Server>, listener: &Arc<Listener>, origin: Origin) {
    listener.stop();
    if server.listeners.started() {
        drain(server, listener, origin);
    }
}

fn drain(server: &Arc<Server>, listener: &Arc<Listener>, origin: Origin) {
    let time = server.drain_time();
    listener.start_drain(server.drain_strategy(), time);
    server.listeners.add_draining(listener, origin);
    let (server, listener) = (server.clone(), listener.clone());
    tokio::task::spawn_local(async move {
        tokio::select! {
            () = gone(&listener) => {}
            () = tokio::time::sleep(time) => {}
        }
        listener.close_connections();
        server.listeners.remove_draining(&listener);
    });
}

/// Workers take what waits in the queues when they hear of the stop; only then no connection means none.
async fn gone(listener: &Listener) {
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    listener.drained().await;
}
