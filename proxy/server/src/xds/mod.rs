//! Where the discovery client meets the configuration: the only part of the proxy that knows that resources are fetched.

pub mod wants;

use crate::server::Server;
use nuncio_config::cluster::Discovery as ClusterDiscovery;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedReceiver;
use wants::Want;

/// Everything that is fetched while the server runs.
pub struct Discovery {
    server: Arc<Server>,
    wanted: UnboundedReceiver<Want>,
}

impl Discovery {
    /// Begins to fetch.
    pub fn start(server: &Arc<Server>, wanted: UnboundedReceiver<Want>) -> Discovery {
        Discovery { server: server.clone(), wanted }
    }

    /// Waits until the first clusters have their hosts.
    pub async fn clusters(&self) {
        for cluster in self.server.context.clusters.clusters() {
            if matches!(cluster.config.discovery, ClusterDiscovery::Eds { .. }) {
                cluster.give_up_waiting();
            }
        }
        self.server.context.clusters.initialized().await;
    }

    /// Waits until the first listeners have what they need.
    pub async fn listeners(mut self) {
        while let Ok(want) = self.wanted.try_recv() {
            if let Want::Routes(routes) = want
                && let Some(routes) = routes.upgrade()
            {
                routes.target.set_ready();
            }
        }
        self.server.init.all_ready().await;
    }
}
