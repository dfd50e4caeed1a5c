//! One name of a DNS cache, shared by the control thread and workers.

use crate::host::now_ms;
use arc_swap::ArcSwapOption;
use nuncio_net::address::Address;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// A name with what is known of it.
#[derive(Debug)]
pub struct CachedHost {
    /// As requests say it, with its port.
    pub(crate) name: Arc<str>,
    /// What is asked for.
    pub(crate) resolved_name: Box<str>,
    pub(crate) port: u16,
    /// Never empty.
    addresses: ArcSwapOption<Vec<Address>>,
    /// There was a first answer.
    complete: AtomicBool,
    failed: AtomicBool,
    given_up: AtomicBool,
    last_used: AtomicU64,
    /// Why there is no address.
    details: ArcSwapOption<Box<str>>,
    waiting: Mutex<Vec<oneshot::Sender<Arc<CachedHost>>>>,
}

impl CachedHost {
    pub(super) fn new(name: Arc<str>, default_port: u16) -> Self {
        let (host, port) = match name.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().unwrap_or(default_port)),
            None => (&*name, default_port),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        CachedHost {
            resolved_name: bare.into(),
            port,
            name,
            addresses: ArcSwapOption::empty(),
            complete: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            last_used: AtomicU64::new(now_ms()),
            details: ArcSwapOption::empty(),
            waiting: Mutex::default(),
        }
    }

    /// Whether it has an address to connect to.
    pub fn has_address(&self) -> bool {
        self.addresses.load().is_some()
    }

    /// Why it has none, without spaces.
    pub fn details(&self) -> Box<str> {
        self.details.load().as_ref().map_or_else(|| "not_resolved".into(), |details| Box::clone(details))
    }

    /// It is in use: its time to live begins anew.
    #[inline]
    pub(crate) fn touch(&self) {
        self.last_used.store(now_ms(), Relaxed);
    }

    pub(super) fn last_used(&self) -> u64 {
        self.last_used.load(Relaxed)
    }

    pub(crate) fn addresses(&self) -> Option<Arc<Vec<Address>>> {
        self.addresses.load_full()
    }

    /// False when they are the same.
    pub(super) fn set_addresses(&self, addresses: &[SocketAddr]) -> bool {
        let new: Vec<Address> = addresses.iter().map(|address| Address::Ip(*address)).collect();
        if self.addresses.load().as_ref().is_some_and(|old| **old == new) {
            return false;
        }
        self.addresses.store(Some(Arc::new(new)));
        true
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Acquire)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Relaxed)
    }

    pub(super) fn give_up(&self) {
        self.given_up.store(true, Relaxed);
    }

    /// An answer has come: whoever waits goes on.
    pub(super) fn complete(self: &Arc<Self>, failed: bool, details: String) {
        if !self.has_address() {
            self.details.store(Some(Arc::new(format!("dns_resolution_failure{{{details}}}").into())));
        }
        self.failed.store(failed, Relaxed);
        self.complete.store(true, Release);
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for answer in waiting {
            // Who has gone meanwhile does not want it.
            let _ = answer.send(self.clone());
        }
    }

    /// `answer` gets the host as soon as there was a first answer.
    pub(super) fn wait(self: &Arc<Self>, answer: Option<oneshot::Sender<Arc<CachedHost>>>) {
        let Some(answer) = answer else { return };
        if self.is_complete() {
            let _ = answer.send(self.clone());
        } else {
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        }
    }
}
