//! What the configuration asks for that must be fetched: a queue from the builders to the discovery client.
//!
//! Builders run on the control thread, but objects may end on any: the queue takes both.

use crate::discovered::ExtensionConfig;
use crate::grpc_logs::LogStream;
use crate::named_routes::NamedRoutes;
use crate::on_demand_clusters::OnDemandSource;
use crate::scoped_routes::DiscoveredScopes;
use nuncio_net::tls::secrets::Secret;
use std::sync::{Arc, Weak};
use tokio::sync::{mpsc, oneshot};

/// One thing that is wanted, or no longer.
pub enum Want {
    /// A route table.
    Routes(Weak<NamedRoutes>),
    /// The route table with this id has no user any more.
    RoutesGone(u64),
    /// Scopes.
    Scopes(Weak<DiscoveredScopes>),
    /// The scopes with this id have no user any more.
    ScopesGone(u64),
    /// What a request needs.
    OnDemand(OnDemand),
    /// The configuration of an extension.
    Extension(Weak<ExtensionConfig>),
    /// The configuration of an extension of a cluster.
    ClusterExtension(Weak<ExtensionConfig>),
    /// The configuration of an extension with this id has no user any more.
    ExtensionGone(u64),
    /// A secret.
    Secret(Weak<Secret>),
    /// The secret with this id has no user any more.
    SecretGone(u64),
    /// Access logs that are streamed to a server.
    Logs(LogStream),
}

/// What a request, or a connection, needs and is not there. Whoever waits is answered once it has come, or known not to come.
pub enum OnDemand {
    /// The virtual host of `host` in a route table.
    VirtualHost {
        /// The route table.
        routes: Weak<NamedRoutes>,
        /// `:authority`, lower-cased.
        host: Box<str>,
        /// Who waits.
        answer: oneshot::Sender<()>,
    },
    /// The routes of a scope, and the virtual host of `host` in them.
    Scope {
        /// The scopes.
        scopes: Weak<DiscoveredScopes>,
        /// The name of the scope.
        scope: Box<str>,
        /// `:authority`, lower-cased.
        host: Box<str>,
        /// Who waits.
        answer: oneshot::Sender<()>,
    },
    /// A cluster.
    Cluster {
        /// Who is asked.
        source: Arc<OnDemandSource>,
        /// Its name.
        cluster: Arc<str>,
        /// Who waits.
        answer: oneshot::Sender<()>,
    },
}

/// The sending end.
#[derive(Clone)]
pub struct Wants(mpsc::UnboundedSender<Want>);

impl Wants {
    /// Both ends.
    pub fn channel() -> (Wants, mpsc::UnboundedReceiver<Want>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Wants(sender), receiver)
    }

    /// Tells the other end, if it is still there.
    pub fn send(&self, want: Want) {
        // Without a discovery client (validation only) nobody fetches.
        let _ = self.0.send(want);
    }
}
