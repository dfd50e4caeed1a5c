//! What must be there before something may serve: route tables, secrets, first lists of resources.
//!
//! A part of the configuration that needs something from outside adds an [`InitTarget`] while it is built. The server waits
//! for those of the listeners that it starts with, a listener that comes later for its own. A target is ready when the
//! thing has come, or when nobody waits for it any longer; ready it stays. A listener that is replaced or removed gives
//! its targets up: nobody waits for them on its behalf.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// One thing to wait for.
#[derive(Debug)]
pub struct InitTarget {
    /// What `/init_dump` calls it.
    pub name: String,
    ready: Arc<watch::Sender<bool>>,
    /// Whoever needs it has given it up.
    given_up: Option<Arc<watch::Sender<bool>>>,
}

impl InitTarget {
    /// A target that is not ready.
    pub fn new(name: impl Into<String>) -> Arc<InitTarget> {
        Self::shared(name, &Arc::new(watch::channel(false).0))
    }

    /// A target that is ready when somebody else says so.
    pub fn shared(name: impl Into<String>, ready: &Arc<watch::Sender<bool>>) -> Arc<InitTarget> {
        Arc::new(InitTarget { name: name.into(), ready: ready.clone(), given_up: None })
    }

    /// It has come, or will not.
    pub fn set_ready(&self) {
        self.ready.send_replace(true);
    }

    /// Whether it is ready.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow() || self.given_up.as_ref().is_some_and(|given_up| *given_up.borrow())
    }

    /// Waits until it is.
    pub async fn ready(&self) {
        let mut ready = self.ready.subscribe();
        // The senders live as long as `self`.
        let Some(given_up) = &self.given_up else {
            let _ = ready.wait_for(|ready| *ready).await;
            return;
        };
        let mut given_up = given_up.subscribe();
        tokio::select! {
            _ = ready.wait_for(|ready| *ready) => {}
            _ = given_up.wait_for(|given_up| *given_up) => {}
        }
    }
}

/// Targets of one waiter.
#[derive(Debug)]
pub struct InitTargets {
    targets: Mutex<Vec<Arc<InitTarget>>>,
    given_up: Arc<watch::Sender<bool>>,
}

impl Default for InitTargets {
    fn default() -> Self {
        InitTargets { targets: Mutex::default(), given_up: Arc::new(watch::channel(false).0) }
    }
}

impl InitTargets {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<InitTarget>>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one, unless it is ready already. It counts as ready for this waiter, and for those that take over its targets,
    /// once they are given up; for others who need the same thing it does not.
    pub fn add(&self, target: &Arc<InitTarget>) {
        if !target.is_ready() {
            let (name, ready) = (target.name.clone(), target.ready.clone());
            self.lock().push(Arc::new(InitTarget { name, ready, given_up: Some(self.given_up.clone()) }));
        }
    }

    /// Takes over all targets of another.
    pub fn extend(&self, other: &InitTargets) {
        let others = other.lock().clone();
        self.lock().extend(others);
    }

    /// What waits is not wanted any more: nothing of this is waited for.
    pub fn give_up(&self) {
        self.given_up.send_replace(true);
    }

    /// Those that are not ready.
    pub fn unready(&self) -> Vec<Arc<InitTarget>> {
        let mut all = self.lock();
        all.retain(|target| !target.is_ready());
        all.clone()
    }

    /// Waits until all are ready, those included that are added meanwhile.
    pub async fn all_ready(&self) {
        loop {
            let unready = self.unready();
            let Some(first) = unready.first() else { return };
            first.ready().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_waiter_waits_for_targets_that_come_while_it_waits() {
        let (first, second) = (InitTarget::new("a"), InitTarget::new("b"));
        let targets = Arc::new(InitTargets::default());
        targets.add(&first);
        let waiter = tokio::spawn({
            let targets = targets.clone();
            async move { targets.all_ready().await }
        });
        tokio::task::yield_now().await;
        targets.add(&second);
        first.set_ready();
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        assert_eq!(targets.unready().len(), 1);
        second.set_ready();
        waiter.await.expect("ends");
        targets.add(&second);
        assert!(targets.unready().is_empty());
    }

    #[tokio::test]
    async fn what_is_given_up_is_waited_for_only_by_others_who_need_it() {
        let routes = InitTarget::new("routes");
        let (gone, stays, server) = (InitTargets::default(), InitTargets::default(), InitTargets::default());
        gone.add(&routes);
        server.extend(&gone);
        assert_eq!(server.unready().len(), 1);
        let mut waiter = std::pin::pin!(server.all_ready());
        let waits = std::future::poll_fn(|cx| std::task::Poll::Ready(waiter.as_mut().poll(cx).is_pending())).await;
        assert!(waits);
        gone.give_up();
        waiter.await;
        assert!(gone.unready().is_empty() && server.unready().is_empty() && !routes.is_ready());
        stays.add(&routes);
        server.extend(&stays);
        assert_eq!(server.unready().len(), 1);
    }
}
