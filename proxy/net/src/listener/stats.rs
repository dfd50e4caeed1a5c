//! `listener.ADDRESS.*`, and guards that keep its gauges right however a connection ends.

use nuncio_base::clock;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nuncio_base::stat_family;
use tokio::time::Instant;

use super::Listener;

stat_family! {
    /// Stats of one listener.
    pub struct ListenerStats {
        counters {
            downstream_cx_total,
            downstream_cx_destroy,
            downstream_cx_overflow,
            downstream_cx_overload_reject,
            downstream_cx_transport_socket_connect_timeout,
            downstream_global_cx_overflow,
            downstream_listener_filter_error,
            downstream_listener_filter_remote_close,
            downstream_pre_cx_timeout,
            no_filter_chain_match,
            extension_config_missing,
            network_extension_config_missing,
        }
        gauges { downstream_cx_active, downstream_pre_cx_active }
        histograms { downstream_cx_length_ms: Milliseconds, connections_accepted_per_socket_event: Unspecified }
    }
}

stat_family! {
    /// Stats of one worker of a listener.
    pub struct WorkerListenerStats {
        counters { downstream_cx_total }
        gauges { downstream_cx_active }
    }
}

/// A socket that counts against the limits of its listener and of the process, from accept to close.
pub(super) struct AcceptedGuard {
    listener: Arc<Listener>,
}

impl AcceptedGuard {
    /// None when a limit is reached, which is counted.
    pub(super) fn new(listener: &Arc<Listener>) -> Option<Self> {
        let global = &listener.global;
        if !listener.ignore_global_limit && !global.try_add() {
            listener.stats.downstream_global_cx_overflow().inc();
            return None;
        }
        if listener.ignore_global_limit {
            global.active.fetch_add(1, Ordering::Relaxed);
        }
        let limit = listener.connection_limit.load(Ordering::Relaxed);
        if listener.active.fetch_add(1, Ordering::Relaxed) >= limit {
            drop(Self { listener: listener.clone() });
            listener.stats.downstream_cx_overflow().inc();
            return None;
        }
        Some(Self { listener: listener.clone() })
    }
}

impl Drop for AcceptedGuard {
    fn drop(&mut self) {
        self.listener.global.active.fetch_sub(1, Ordering::Relaxed);
        if self.listener.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.listener.idle.notify_waiters();
        }
    }
}

/// A socket whose listener filters run.
pub(super) struct PreConnectionGuard<'a>(&'a ListenerStats);

impl<'a> PreConnectionGuard<'a> {
    pub(super) fn new(stats: &'a ListenerStats) -> Self {
        stats.downstream_pre_cx_active().inc();
        Self(stats)
    }
}

impl Drop for PreConnectionGuard<'_> {
    fn drop(&mut self) {
        self.0.downstream_pre_cx_active().dec();
    }
}

/// A connection that has its filter chain.
pub(super) struct ConnectionGuard {
    listener: Arc<Listener>,
    worker: Rc<WorkerListenerStats>,
    start: Instant,
}

impl ConnectionGuard {
    pub(super) fn new(listener: &Arc<Listener>, worker: &Rc<WorkerListenerStats>) -> Self {
        listener.stats.downstream_cx_total().inc();
        listener.stats.downstream_cx_active().inc();
        worker.downstream_cx_total().inc();
        worker.downstream_cx_active().inc();
        Self { listener: listener.clone(), worker: worker.clone(), start: clock::now() }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let stats = &self.listener.stats;
        stats.downstream_cx_active().dec();
        stats.downstream_cx_destroy().inc();
        stats.downstream_cx_length_ms().record(clock::now().saturating_duration_since(self.start).as_millis() as u64);
        self.worker.downstream_cx_active().dec();
    }
}
