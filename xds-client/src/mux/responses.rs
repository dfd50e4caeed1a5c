//! Responses: whom a response concerns and what each of them is told, and, once they have said what they make of it, the
//! acknowledgement or the refusal that is queued for it.

use std::time::Duration;

use rustc_hash::FxHashSet;

use super::delta::Ack;
use super::watches::{WatchId, Watches};
use super::{Machine, Mux, Place, Response};
use crate::names::{canonical, is_xdstp};
use crate::{Interest, Now, Resource, TypeUrl, Update, Verdict};

/// What one response means for whom. To be given back to [`Mux::finish`] with the verdicts.
#[derive(Debug)]
#[must_use]
pub struct Delivery {
    /// The type of the response.
    pub type_url: TypeUrl,
    /// Its version.
    pub version: String,
    /// Whom to tell what. Taken out by the driver.
    pub updates: Vec<(WatchId, Update)>,
    /// The response was refused before anyone was asked, with this text.
    pub malformed: Option<String>,
    pub(super) nonce: String,
    /// The stream on which it came.
    pub(super) stream: u64,
    pub(super) received: Vec<Received>,
    pub(super) removed: Vec<String>,
    pub(super) heartbeats: Vec<Heartbeat>,
    /// No one asks for this type any more; all that happens is what follows from that.
    pub(super) unwatched: Option<Unwatched>,
}

#[derive(Debug)]
pub(super) struct Unwatched {
    pub(super) empty: bool,
}

/// A resource of a response, after it was handed out.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) ttl: Option<Duration>,
    pub(super) kept: Option<Resource>,
}

#[derive(Debug)]
pub(super) struct Heartbeat {
    pub(super) name: String,
    pub(super) ttl: Option<Duration>,
}

/// A response, taken apart.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) resources: Vec<Resource>,
    pub(super) removed: Vec<String>,
    pub(super) heartbeats: Vec<Heartbeat>,
}

impl Mux {
    /// Takes a response. None if it concerns no type that was ever asked for: it is ignored.
    pub fn on_response(&mut self, now: Now, response: Response) -> Option<Delivery> {
        let (type_url, nonce, version, control_plane) = match &response {
            Response::Sotw(r) => (&r.type_url, &r.nonce, &r.version_info, &r.control_plane),
            Response::Delta(r) => (&r.type_url, &r.nonce, &r.system_version_info, &r.control_plane),
        };
        let type_url = TypeUrl::new(type_url.as_str());
        let entry = self.types.get_mut(&type_url)?;
        if let Some(control_plane) = control_plane {
            control_plane.identifier.clone_into(&mut self.control_plane);
        }
        let (nonce, version) = (nonce.clone(), version.clone());
        entry.received = Some(now.wall);
        entry.nonce.clone_from(&nonce);
        let mut delivery = Delivery {
            type_url: type_url.clone(),
            version,
            updates: Vec::new(),
            malformed: None,
            nonce,
            stream: self.stream,
            received: Vec::new(),
            removed: Vec::new(),
            heartbeats: Vec::new(),
            unwatched: None,
        };
        let parsed = match (&entry.machine, response) {
            (Machine::Sotw(_), Response::Sotw(response)) if entry.watches.is_empty() => {
                delivery.unwatched = Some(Unwatched { empty: response.resources.is_empty() });
                return Some(delivery);
            }
            (Machine::Sotw(sotw), Response::Sotw(mut response)) => sotw.parse(&type_url, &mut response),
            (Machine::Delta(delta), Response::Delta(mut response)) => delta.parse(&type_url, &mut response),
            _ => return None,
        };
        let mut parsed = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                delivery.malformed = Some(error);
                return Some(delivery);
            }
        };
        let keep = self.options.cached_types.contains(&type_url);
        let mut received = Vec::with_capacity(parsed.resources.len());
        let note = |resource: &Resource| {
            received.push(Received {
                name: canonical(&resource.name).into_owned(),
                version: resource.version.clone(),
                ttl: resource.ttl,
                kept: (keep && !resource.unresolved).then(|| resource.clone()),
            });
        };
        let update = |added, removed, full_state| Update {
            type_url: type_url.clone(),
            version: delivery.version.clone(),
            added,
            removed,
            full_state,
            expired: false,
            control_plane: self.control_plane.clone(),
        };
        delivery.updates = match entry.machine {
            Machine::Sotw(_) if self.options.deliver_all => to_all(&mut entry.watches, &mut parsed, note, update),
            Machine::Sotw(_) => to_interested(&mut entry.watches, &mut parsed, note, update),
            Machine::Delta(_) => changes(&entry.watches, &mut parsed, note, update),
        };
        delivery.received = received;
        delivery.removed = parsed.removed.iter().map(|name| canonical(name).into_owned()).collect();
        delivery.heartbeats = parsed.heartbeats;
        for heartbeat in delivery.heartbeats.iter_mut().filter(|heartbeat| is_xdstp(&heartbeat.name)) {
            heartbeat.name = canonical(&heartbeat.name).into_owned();
        }
        for (id, _) in &delivery.updates {
            self.first_fetches.clear(id);
        }
        Some(delivery)
    }

    /// Ends a response: records what became of each resource, and queues the ACK or the NACK.
    pub fn finish(&mut self, now: Now, delivery: Delivery, verdicts: &[(WatchId, Verdict)]) {
        let Some(entry) = self.types.get_mut(&delivery.type_url) else { return };
        // A response of a stream that has broken meanwhile is applied, but there is no one to answer.
        let answerable = self.open && delivery.stream == self.stream;
        if let Some(unwatched) = delivery.unwatched {
            if let Machine::Sotw(sotw) = &mut entry.machine
                && answerable
            {
                sotw.received(&delivery.nonce);
                if unwatched.empty {
                    sotw.accepted(&delivery.version);
                } else {
                    self.enqueue(&delivery.type_url);
                }
            }
            return;
        }
        let error = delivery.malformed.clone().or_else(|| {
            let mut texts: Vec<&str> = verdicts.iter().filter_map(|(_, v)| v.error()).collect();
            texts.dedup();
            (!texts.is_empty()).then(|| texts.join("\n"))
        });
        let unasked_too = self.options.deliver_all;
        entry.record(now, &delivery, verdicts, error.as_deref(), unasked_too);
        match &error {
            None => {
                entry.accepted = Some(now.wall);
                entry.version.clone_from(&delivery.version);
                entry.error.clear();
            }
            Some(error) => {
                entry.rejected = Some(now.wall);
                entry.error.clone_from(error);
            }
        }
        match &mut entry.machine {
            Machine::Sotw(sotw) => {
                match &error {
                    None => sotw.accepted(&delivery.version),
                    Some(error) if answerable => sotw.rejected(error),
                    Some(_) => {}
                }
                if answerable {
                    sotw.received(&delivery.nonce);
                    self.enqueue(&delivery.type_url);
                }
            }
            Machine::Delta(_) if answerable => {
                self.queue
                    .push_back(Place { type_url: delivery.type_url, ack: Some(Ack { nonce: delivery.nonce, error }) });
            }
            Machine::Delta(_) => {}
        }
    }
}

type Updates = Vec<(WatchId, Update)>;

/// State of the world, where the source does not heed what was asked for: everybody is given everything.
fn to_all(
    watches: &mut Watches,
    parsed: &mut Parsed,
    note: impl FnMut(&Resource),
    update: impl Fn(Vec<Resource>, Vec<String>, bool) -> Update,
) -> Updates {
    let ids: Vec<WatchId> = watches.ids().collect();
    let updates = ids.into_iter().map(|id| (id, everything(watches, id, parsed, &update))).collect();
    parsed.resources.iter().for_each(note);
    updates
}

/// State of the world: a wildcard is given everything, in the order of the response; names are given what they name.
fn to_interested(
    watches: &mut Watches,
    parsed: &mut Parsed,
    note: impl FnMut(&Resource),
    update: impl Fn(Vec<Resource>, Vec<String>, bool) -> Update,
) -> Updates {
    let wildcards = watches.wildcards();
    let mut updates: Updates = wildcards.iter().map(|id| (*id, everything(watches, *id, parsed, &update))).collect();
    // The first of two with one name counts, for those who ask by name.
    let mut seen = FxHashSet::default();
    let resources = std::mem::take(&mut parsed.resources);
    let unique = resources.into_iter().filter(|resource| seen.insert(resource.name.clone())).collect();
    let mut routed = watches.route(unique, &[], note);
    let named: Vec<_> = watches.ids_in(&mut routed, &wildcards).collect();
    for (id, (added, _)) in named {
        let whole = matches!(watches.interest(id), Some(Interest::Collection(_)));
        let removed = if whole {
            let names = added.iter().map(|resource| resource.name.clone()).collect();
            watches.full_state(id, &names)
        } else {
            Vec::new()
        };
        parsed.removed.extend(removed.iter().cloned());
        updates.push((id, update(added, removed, whole)));
    }
    updates
}

/// All of a response for one subscription. For a wildcard it is all that there is.
fn everything(
    watches: &mut Watches,
    id: WatchId,
    parsed: &Parsed,
    update: impl Fn(Vec<Resource>, Vec<String>, bool) -> Update,
) -> Update {
    let full_state = watches.interest(id) == Some(&Interest::Wildcard);
    let removed = if full_state {
        let resources = parsed.resources.iter().map(|resource| &resource.name);
        let names = resources.chain(parsed.heartbeats.iter().map(|heartbeat| &heartbeat.name)).cloned().collect();
        watches.full_state(id, &names)
    } else {
        Vec::new()
    };
    update(parsed.resources.clone(), removed, full_state)
}

/// Delta: each is told what has changed for it.
fn changes(
    watches: &Watches,
    parsed: &mut Parsed,
    note: impl FnMut(&Resource),
    update: impl Fn(Vec<Resource>, Vec<String>, bool) -> Update,
) -> Updates {
    if parsed.resources.is_empty() && parsed.removed.is_empty() && parsed.heartbeats.is_empty() {
        // There is nothing, which who waits for all of something has to know.
        let all = |id: &WatchId| matches!(watches.interest(*id), Some(Interest::Wildcard | Interest::Namespace(_)));
        return watches.ids().filter(all).map(|id| (id, update(Vec::new(), Vec::new(), false))).collect();
    }
    let mut routed = watches.route(std::mem::take(&mut parsed.resources), &parsed.removed, note);
    // The latest first, which may end the one whose place it takes.
    let latest_first = watches.ids_in(&mut routed, &[]);
    latest_first.map(|(id, (added, removed))| (id, update(added, removed, false))).collect()
}

/// The text of a NACK, cut as Envoy cuts it.
pub(super) fn nack_message(error: &str) -> String {
    const LONGEST: usize = 4096;
    if error.len() <= LONGEST {
        return error.to_owned();
    }
    let mut end = LONGEST;
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...(truncated)", &error[..end])
}
