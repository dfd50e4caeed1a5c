//! What the configuration asks for that must be fetched: a queue from the builders to the discovery client.
//!
//! Builders run on the control thread, but objects may end on any: the queue takes both.

use crate::named_routes::NamedRoutes;
use nuncio_net::tls::secrets::Secret;
use std::sync::Weak;
use tokio::sync::mpsc;

/// One thing that is wanted, or no longer.
pub enum Want {
    /// A route table.
    Routes(Weak<NamedRoutes>),
    /// The route table with this id has no user any more.
    RoutesGone(u64),
    /// A secret.
    Secret(Weak<Secret>),
    /// The secret with this id has no user any more.
    SecretGone(u64),
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
