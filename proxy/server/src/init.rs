//! What must be there before something may serve: route tables, secrets, first lists of resources.
//!
//! A part of the configuration that needs something from outside adds an [`InitTarget`] while it is built. The server waits
//! for those of the listeners that it starts with, a listener that comes later for its own. A target is ready when the
//! thing has come, or when nobody waits for it any longer; ready it stays.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// One thing to wait for.
#[derive(Debug)]
pub struct InitTarget {
    /// What `/init_dump` calls it.
    pub name: String,
    ready: Arc<watch::Sender<bool>>,
}

impl InitTarget {
    /// A target that is not ready.
    pub fn new(name: impl Into<String>) -> Arc<InitTarget> {
        Self::shared(name, &Arc::new(watch::channel(false).0))
    }

    /// A target that is ready when somebody else says so.
    pub fn shared(name: impl Into<String>, ready: &Arc<watch::Sender<bool>>) -> Arc<InitTarget> {
        Arc::new(InitTarget { name: name.into(), ready: ready.clone() })
    }

    /// It has come, or will not.
    pub fn set_ready(&self) {
        self.ready.send_replace(true);
    }

    /// Whether it is ready.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Waits until it is.
    pub async fn ready(&self) {
        // The sender lives as long as `self`.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }
}

/// Targets of one waiter.
#[derive(Debug, Default)]
pub struct InitTargets(Mutex<Vec<Arc<InitTarget>>>);

impl InitTargets {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<InitTarget>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one, unless it is ready already.
    pub fn add(&self, target: &Arc<InitTarget>) {
        if !target.is_ready() {
            self.lock().push(target.clone());
        }
    }

    /// Takes over all targets of another.
    pub fn extend(&self, other: &InitTargets) {
        let others = other.lock().clone();
        self.lock().extend(others);
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
}
