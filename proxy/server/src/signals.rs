//! Signals, periodic work of the control thread, and systemd.

use crate::server::Server;
use std::path::Path;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use xds_client::transport::file::FileWatch;

/// The signals that end the process.
pub struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// Takes SIGTERM and SIGINT over.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> std::io::Result<Signals> {
        Ok(Signals { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one; its name as Envoy logs it.
    pub async fn terminate(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "ENVOY_SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// Starts what runs beside serving: stat flushes, log reopening, SIGHUP.
pub fn spawn_watchers(server: &Arc<Server>) {
    let flusher = server.clone();
    tokio::task::spawn_local(async move {
        let mut tick = tokio::time::interval(flusher.bootstrap.config.stats_flush_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            flusher.update_gauges();
            if !flusher.bootstrap.config.stats_flush_on_admin {
                flusher.context.registry.merge_histograms();
            }
        }
    });
    on_signal(SignalKind::user_defined1(), "SIGUSR1", {
        let server = server.clone();
        move || {
            tracing::info!("caught SIGUSR1, reopening access logs");
            server.context.access_logs.reopen();
        }
    });
    on_signal(SignalKind::user_defined2(), "SIGUSR2", || tracing::warn!("caught and eating SIGUSR2"));
    on_signal(SignalKind::hangup(), "SIGHUP", {
        let server = server.clone();
        move || {
            tracing::warn!(
                "caught SIGHUP: reading runtime layers from disk again; the bootstrap is read at start only"
            );
            server.runtime.reload_disk();
            server.apply_runtime_limits();
        }
    });
    let links = server.runtime.disk_links();
    if !links.is_empty() {
        links.iter().for_each(|link| watch_runtime(server, link));
        server.runtime.reload_disk_if_changed();
        server.apply_runtime_limits();
    }
    let contexts = server.context.contexts.clone();
    tokio::task::spawn_local(async move { contexts.run().await });
}

/// Reads layers on disk again whenever the link to their version is swapped.
fn watch_runtime(server: &Arc<Server>, link: &Path) {
    let mut watch = match FileWatch::file(link) {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!("the runtime in {} is not watched (SIGHUP reads it again): {error}", link.display());
            return;
        }
    };
    let server = server.clone();
    tokio::task::spawn_local(async move {
        loop {
            watch.changed().await;
            server.runtime.reload_disk();
            server.apply_runtime_limits();
        }
    });
}

fn on_signal(kind: SignalKind, name: &'static str, mut act: impl FnMut() + 'static) {
    match signal(kind) {
        Ok(mut stream) => {
            tokio::task::spawn_local(async move {
                while stream.recv().await.is_some() {
                    act();
                }
            });
        }
        Err(e) => tracing::warn!("{name} is not handled: {e}"),
    }
}

/// Tells systemd that the process serves, where it asked to be told.
pub fn notify_ready() {
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// Tells systemd that the process drains.
pub fn notify_stopping() {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
}
