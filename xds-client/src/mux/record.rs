//! What became of each resource of a response: the table that status and caches read, times to live, and what delta tells
//! a new stream. Called when a response ends ([`super::Mux::finish`]); what is answered is decided there.

use rustc_hash::{FxHashMap, FxHashSet};
use std::time::Duration;

use super::{Delivery, Machine, Type, WatchId};
use crate::names::canonical;
use crate::{Now, Verdict};

impl Type {
    /// Records what became of each resource of a response.
    pub(super) fn record(
        &mut self,
        now: Now,
        delivery: &Delivery,
        verdicts: &[(WatchId, Verdict)],
        error: Option<&str>,
        unasked_too: bool,
    ) {
        let rejecting: Vec<&(WatchId, Verdict)> = verdicts.iter().filter(|(_, v)| !v.is_accepted()).collect();
        let refused = rejecting.iter().flat_map(|(_, v)| v.resources());
        let by_name: FxHashMap<_, &str> = refused.map(|r| (canonical(&r.name), r.message.as_str())).collect();
        let whole: Vec<&(WatchId, Verdict)> =
            rejecting.iter().filter(|(_, v)| v.resources().is_empty()).copied().collect();
        for resource in &delivery.received {
            // A handler may have dropped it while it was told.
            if !(unasked_too || self.watches.cares_for(&resource.name)) {
                continue;
            }
            let refused = by_name.get(resource.name.as_str()).copied().or_else(|| {
                let by = whole.iter().find(|(id, _)| self.watches.is_interested(*id, &resource.name))?;
                by.1.error()
            });
            if let Some(refused) = refused {
                self.table.rejected(&resource.name, &resource.version, refused, now.wall);
                continue;
            }
            self.table.accepted(&resource.name, &resource.version, resource.kept.clone(), now.wall);
            if let Machine::Delta(delta) = &mut self.machine {
                // The server is not told of what a refused response brought, good or not.
                if error.is_none() {
                    delta.accepted(&resource.name, &resource.version);
                }
                if !delta.holds(&resource.name) {
                    continue;
                }
            }
            self.set_ttl(now, &resource.name, resource.ttl);
        }
        for heartbeat in &delivery.heartbeats {
            if self.table.holds(&heartbeat.name) {
                self.set_ttl(now, &heartbeat.name, heartbeat.ttl);
            }
        }
        if delivery.malformed.is_some() {
            return;
        }
        for name in &delivery.removed {
            self.ttls.clear(name);
            self.table.gone(name, self.watches.wants(name), now.wall);
            if let Machine::Delta(delta) = &mut self.machine
                && error.is_none()
            {
                delta.gone(name);
            }
        }
        // What a full state leaves out is gone.
        if matches!(self.machine, Machine::Sotw(_)) && self.watches.has_full_states() {
            let names: FxHashSet<&str> = (delivery.received.iter().map(|r| r.name.as_str()))
                .chain(delivery.heartbeats.iter().map(|h| h.name.as_str()))
                .collect();
            let everything = self.watches.wants_everything();
            let unasked = self.table.unasked().filter(|name| everything && !names.contains(name));
            let gone: Vec<String> = unasked.map(str::to_owned).collect();
            for name in gone {
                self.ttls.clear(&name);
                self.table.gone(&name, false, now.wall);
            }
            if error.is_none() {
                for (id, _) in verdicts {
                    self.watches.keep_given(*id, &names);
                }
            }
        }
    }

    fn set_ttl(&mut self, now: Now, name: &str, ttl: Option<Duration>) {
        // A TTL beyond what a clock can say is none.
        match ttl.and_then(|ttl| now.instant.checked_add(ttl)) {
            Some(at) => self.ttls.set(name.to_owned(), at),
            None => self.ttls.clear(&name.to_owned()),
        }
    }
}
