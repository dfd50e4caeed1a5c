//! Many types of resources on one stream, without any input or output.
//!
//! A [`Mux`] is told what is asked for, what arrives and what time it is, and says what to send and whom to tell. Whoever
//! drives it (see `driver.rs`) owns the stream and calls the handlers. One mux with one type serves a stream that is not
//! aggregated, a poll or a file.
//!
//! ```text
//!   subscribe / update / unsubscribe / resume --> queue of types, each at most once --poll_request--> requests
//!   on_response --> Delivery --(handlers)--> finish --> ACK or NACK, at the end of that queue
//! ```
//! A request is made when it is sent, not when it is queued, so that whatever is asked for until then goes in one message:
//! what the handler of a CDS response asks of EDS stands before the ACK of CDS, in one request for all names.

mod delta;
mod messages;
mod record;
mod responses;
mod sotw;
mod table;
mod watches;

use std::collections::VecDeque;
use std::time::{Instant, SystemTime};

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use indexmap::IndexMap;
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::status::TypeState;
use crate::timing::{Deadlines, TokenBucket};
use crate::{Interest, Now, RateLimit, Resource, SubscriptionOptions, TypeUrl, Update};
use delta::{Ack, Delta};
pub use messages::{Due, Request, RequestBody, Response};
pub use responses::Delivery;
use responses::{Heartbeat, Parsed, nack_message};
use sotw::Sotw;
use table::Table;
pub use watches::WatchId;
use watches::{Change, WILDCARD, Watches};

/// The two forms of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// State of the world.
    Sotw,
    /// Incremental.
    Delta,
}

/// How a mux behaves.
#[derive(Clone, Debug)]
pub struct MuxOptions {
    /// The form of the protocol.
    pub protocol: Protocol,
    /// `set_node_on_first_message_only`.
    pub node_on_first_message_only: bool,
    /// `rate_limit_settings`. None limits nothing.
    pub rate_limit: Option<RateLimit>,
    /// Types of which the last good resource is kept for [`Mux::cached`].
    pub cached_types: Vec<TypeUrl>,
    /// A subscription is given everything that a response holds, whatever it asked for. For polls and files, whose
    /// consumers check the names.
    pub deliver_all: bool,
}

impl MuxOptions {
    /// Nothing but the protocol.
    pub fn new(protocol: Protocol) -> MuxOptions {
        MuxOptions {
            protocol,
            node_on_first_message_only: false,
            rate_limit: None,
            cached_types: Vec::new(),
            deliver_all: false,
        }
    }
}

/// What has come due with time.
#[derive(Debug, Default)]
pub struct Expired {
    /// Subscriptions whose `initial_fetch_timeout` went by.
    pub timed_out: Vec<WatchId>,
    /// Resources whose TTL ran out, as removals. The verdict on them is of no consequence.
    pub removals: Vec<(WatchId, Update)>,
}

#[derive(Debug)]
enum Machine {
    Sotw(Box<Sotw>),
    Delta(Box<Delta>),
}

/// One type.
#[derive(Debug)]
struct Type {
    machine: Machine,
    watches: Watches,
    table: Table,
    ttls: Deadlines<String>,
    /// There is a place for it in the queue that is not an acknowledgement of delta.
    queued: bool,
    version: String,
    nonce: String,
    error: String,
    requested: Option<SystemTime>,
    received: Option<SystemTime>,
    accepted: Option<SystemTime>,
    rejected: Option<SystemTime>,
}

#[derive(Debug)]
struct Place {
    type_url: TypeUrl,
    ack: Option<Ack>,
}

/// See the module.
#[derive(Debug)]
pub struct Mux {
    options: MuxOptions,
    types: IndexMap<TypeUrl, Type, FxBuildHasher>,
    queue: VecDeque<Place>,
    pauses: FxHashMap<TypeUrl, u32>,
    watch_types: FxHashMap<WatchId, TypeUrl>,
    next_watch: u64,
    first_fetches: Deadlines<WatchId>,
    bucket: Option<TokenBucket>,
    /// The number of the stream, and whether it is there.
    stream: u64,
    open: bool,
    first_message: bool,
    control_plane: String,
    /// How often the rate limit has held a request back.
    rate_limited: u64,
}

impl Mux {
    /// A mux without a stream.
    pub fn new(options: MuxOptions) -> Mux {
        Mux {
            bucket: options.rate_limit.map(TokenBucket::new),
            options,
            types: IndexMap::default(),
            queue: VecDeque::new(),
            pauses: FxHashMap::default(),
            watch_types: FxHashMap::default(),
            next_watch: 0,
            first_fetches: Deadlines::default(),
            stream: 0,
            open: false,
            first_message: true,
            control_plane: String::new(),
            rate_limited: 0,
        }
    }

    /// The form of the protocol.
    pub fn protocol(&self) -> Protocol {
        self.options.protocol
    }

    /// Asks for resources.
    pub fn subscribe(&mut self, now: Now, options: SubscriptionOptions) -> WatchId {
        let options = SubscriptionOptions { interest: options.interest.canonical(), ..options };
        let id = WatchId(self.next_watch);
        self.next_watch += 1;
        if !options.initial_fetch_timeout.is_zero()
            && let Some(at) = now.instant.checked_add(options.initial_fetch_timeout)
        {
            self.first_fetches.set(id, at);
        }
        self.watch_types.insert(id, options.type_url.clone());
        let protocol = self.options.protocol;
        self.types.entry(options.type_url.clone()).or_insert_with_key(|type_url| Type::new(protocol, type_url));
        self.set_interest(now, &options.type_url, id, options.interest);
        id
    }

    /// Changes what a subscription asks for.
    pub fn update(&mut self, now: Now, id: WatchId, interest: Interest) {
        if let Some(type_url) = self.watch_types.get(&id).cloned() {
            self.set_interest(now, &type_url, id, interest.canonical());
        }
    }

    fn set_interest(&mut self, now: Now, type_url: &TypeUrl, id: WatchId, interest: Interest) {
        let Some(entry) = self.types.get_mut(type_url) else { return };
        if let Interest::Names(names) = &interest {
            for name in names.iter().filter(|n| *n != WILDCARD) {
                entry.table.requested(name, now.wall);
            }
        }
        let change = entry.watches.set(id, interest);
        self.interest_changed(type_url, change);
    }

    /// Delta: asks for further names, which reach the subscription by its wildcard or its namespace. Names that were asked
    /// for before are asked for again.
    pub fn request_on_demand(&mut self, now: Now, id: WatchId, names: &[String]) {
        let Some(type_url) = self.watch_types.get(&id).cloned() else { return };
        let Some(entry) = self.types.get_mut(&type_url) else { return };
        for name in names {
            entry.table.requested(name, now.wall);
        }
        let change = entry.watches.on_demand(id, names);
        self.interest_changed(&type_url, change);
    }

    /// Delta: ends what was asked for under these names, by [`Mux::request_on_demand`] or at first.
    pub fn release_on_demand(&mut self, id: WatchId, names: &[String]) {
        let Some(type_url) = self.watch_types.get(&id).cloned() else { return };
        let Some(entry) = self.types.get_mut(&type_url) else { return };
        let change = entry.watches.release(id, names);
        // A namespace does not bring what is outside of what was asked for; a wildcard may hold it still.
        let everything = !entry.watches.wildcards().is_empty();
        for name in &change.removed {
            entry.table.unrequested(name, everything && entry.table.holds(name));
        }
        if let Machine::Delta(delta) = &mut entry.machine {
            delta.released(change.removed, everything);
            self.enqueue(&type_url);
        }
    }

    /// Ends a subscription.
    pub fn unsubscribe(&mut self, id: WatchId) {
        self.first_fetches.clear(&id);
        let Some(type_url) = self.watch_types.remove(&id) else { return };
        let Some(entry) = self.types.get_mut(&type_url) else { return };
        let named = match entry.watches.interest(id) {
            Some(Interest::Names(names)) if self.options.protocol == Protocol::Sotw => !names.is_empty(),
            Some(Interest::Collection(_)) => true,
            _ => self.options.protocol == Protocol::Delta,
        };
        let change = entry.watches.remove(id);
        if named {
            self.interest_changed(&type_url, change);
        } else if let Machine::Sotw(sotw) = &mut entry.machine {
            // A wildcard of which no one asks the rest: the server is not told, as Envoy does.
            sotw.interest_changed();
        }
    }

    fn interest_changed(&mut self, type_url: &TypeUrl, change: Change) {
        let Some(entry) = self.types.get_mut(type_url) else { return };
        let wildcard = entry.watches.wants_everything();
        for name in change.removed.iter().filter(|n| *n != WILDCARD) {
            entry.table.unrequested(name, wildcard);
            if !wildcard {
                entry.ttls.clear(name);
            }
        }
        match &mut entry.machine {
            Machine::Sotw(sotw) => sotw.interest_changed(),
            Machine::Delta(delta) => delta.interest_changed(change),
        }
        self.enqueue(type_url);
    }

    /// Holds back the requests of a type, acknowledgements included, until as many calls of [`Mux::resume`].
    pub fn pause(&mut self, type_url: &TypeUrl) {
        *self.pauses.entry(type_url.clone()).or_default() += 1;
    }

    /// Ends one pause.
    pub fn resume(&mut self, type_url: &TypeUrl) {
        let Some(count) = self.pauses.get_mut(type_url) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.pauses.remove(type_url);
        // What waited takes its place in the order in which types are resumed.
        let (waited, mut rest): (Vec<Place>, VecDeque<Place>) = {
            let mut waited = Vec::new();
            let mut rest = VecDeque::with_capacity(self.queue.len());
            for place in self.queue.drain(..) {
                if place.type_url == *type_url { waited.push(place) } else { rest.push_back(place) }
            }
            (waited, rest)
        };
        rest.extend(waited);
        self.queue = rest;
    }

    /// Whether the requests of a type are held back.
    pub fn is_paused(&self, type_url: &TypeUrl) -> bool {
        self.pauses.contains_key(type_url)
    }

    /// There is a stream. All that is asked for is asked for again; with delta the server is told what is held.
    pub fn stream_opened(&mut self) {
        self.stream_opened_to(true);
    }

    /// As [`Mux::stream_opened`], to a server that what is held has `known` or has not come from: another is not told of it.
    pub fn stream_opened_to(&mut self, known: bool) {
        self.stream += 1;
        self.open = true;
        self.first_message = true;
        self.queue.clear();
        for entry in self.types.values_mut() {
            entry.queued = false;
            entry.nonce.clear();
            match &mut entry.machine {
                Machine::Sotw(sotw) => sotw.stream_opened(),
                Machine::Delta(delta) => delta.stream_opened(known),
            }
        }
        let types: Vec<TypeUrl> = self.types.keys().cloned().collect();
        for type_url in types {
            self.enqueue(&type_url);
        }
    }

    /// There is no stream. Returns the subscriptions, which are to be told.
    pub fn stream_closed(&mut self) -> Vec<WatchId> {
        self.open = false;
        self.queue.clear();
        self.types.values_mut().for_each(|t| t.queued = false);
        self.types.values().flat_map(|t| t.watches.ids()).collect()
    }

    fn enqueue(&mut self, type_url: &TypeUrl) {
        let Some(entry) = self.types.get_mut(type_url) else { return };
        if self.open && !entry.queued && entry.has_something_to_say() {
            entry.queued = true;
            self.queue.push_back(Place { type_url: type_url.clone(), ack: None });
        }
    }

    /// The next request to send, if it may be sent now. It counts as sent.
    pub fn poll_request(&mut self, now: Now) -> Due<'_> {
        let index = loop {
            if !self.open {
                return Due::Nothing;
            }
            let Some(index) = self.queue.iter().position(|p| !self.pauses.contains_key(&p.type_url)) else {
                return Due::Nothing;
            };
            let place = &self.queue[index];
            if place.ack.is_some() || self.types.get(&place.type_url).is_some_and(Type::has_something_to_say) {
                break index;
            }
            // Said meanwhile, with an acknowledgement; or no one asks any more.
            let gone = self.queue.remove(index);
            if let Some(entry) = gone.and_then(|p| self.types.get_mut(&p.type_url)) {
                entry.queued = false;
            }
        };
        if let Some(bucket) = &mut self.bucket
            && let Err(at) = bucket.take(now.instant)
        {
            self.rate_limited += 1;
            return Due::Wait(at);
        }
        let Some(place) = self.queue.remove(index) else { return Due::Nothing };
        let Some(entry) = self.types.get_mut(&place.type_url) else { return Due::Nothing };
        let with_node = std::mem::take(&mut self.first_message) || !self.options.node_on_first_message_only;
        // Once something has come on this stream, what follows are answers and other names, which have times of their own.
        if entry.nonce.is_empty() {
            entry.requested = Some(now.wall);
        }
        let Type { machine, watches, queued, .. } = entry;
        if place.ack.is_none() {
            *queued = false;
        }
        let (body, names): (_, &[u8]) = match machine {
            Machine::Sotw(sotw) => {
                let (request, names) = sotw.request(|| watches.request_names());
                (RequestBody::Sotw(request), names)
            }
            Machine::Delta(delta) => (RequestBody::Delta(Box::new(delta.request(&place.type_url, place.ack))), &[]),
        };
        Due::Send(Request { body, with_node, names })
    }

    /// How many requests wait that no pause holds back.
    pub fn pending_requests(&self) -> usize {
        self.queue.iter().filter(|p| !self.pauses.contains_key(&p.type_url)).count()
    }

    /// How often the rate limit has held a request back.
    pub fn rate_limited(&self) -> u64 {
        self.rate_limited
    }

    /// The request of a poll: the only type of this mux, with the last version that was taken and the names in order.
    pub fn poll_body(&mut self, now: Now) -> Option<DiscoveryRequest> {
        let (type_url, entry) = self.types.first_mut()?;
        entry.requested = Some(now.wall);
        let mut names = entry.watches.request_names();
        names.sort_unstable();
        Some(DiscoveryRequest {
            version_info: match &entry.machine {
                Machine::Sotw(sotw) => sotw.version().to_owned(),
                Machine::Delta(_) => return None,
            },
            resource_names: names,
            type_url: type_url.as_str().to_owned(),
            ..DiscoveryRequest::default()
        })
    }

    /// When something comes due next: the first fetch of a subscription, or the TTL of a resource.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.types.values().filter_map(|t| t.ttls.next()).chain(self.first_fetches.next()).min()
    }

    /// Takes what has come due.
    pub fn on_deadline(&mut self, now: Now) -> Expired {
        let mut expired = Expired { timed_out: self.first_fetches.due(now.instant), removals: Vec::new() };
        for id in &expired.timed_out {
            let Some(entry) = self.watch_types.get(id).and_then(|t| self.types.get_mut(t)) else { continue };
            if let Some(Interest::Names(names)) = entry.watches.interest(*id) {
                names.iter().for_each(|name| entry.table.timed_out(name));
            }
        }
        for (type_url, entry) in &mut self.types {
            let names = entry.ttls.due(now.instant);
            if names.is_empty() {
                continue;
            }
            for (id, (_, removed)) in entry.watches.route(Vec::new(), &names, |_| {}) {
                entry.watches.forget_given(id, &removed);
                let update = Update {
                    type_url: type_url.clone(),
                    version: String::new(),
                    added: Vec::new(),
                    removed,
                    full_state: false,
                    expired: true,
                    control_plane: self.control_plane.clone(),
                };
                expired.removals.push((id, update));
            }
            for name in &names {
                entry.table.gone(name, entry.watches.wants(name), now.wall);
                if let Machine::Delta(delta) = &mut entry.machine {
                    delta.gone(name);
                }
            }
        }
        expired
    }

    /// The last good resource of that name, for the types of [`MuxOptions::cached_types`].
    pub fn cached(&self, type_url: &TypeUrl, name: &str) -> Option<&Resource> {
        self.types.get(type_url)?.table.cached(name)
    }

    /// Whether a subscription still exists: the handler of another may have ended it.
    pub fn is_subscribed(&self, id: WatchId) -> bool {
        self.watch_types.contains_key(&id)
    }

    /// The subscriptions to one type.
    pub fn subscribed_to(&self, type_url: &TypeUrl) -> Vec<WatchId> {
        self.types.get(type_url).map(|t| t.watches.ids().collect()).unwrap_or_default()
    }

    /// How many subscriptions there are.
    pub fn subscriptions(&self) -> usize {
        self.watch_types.len()
    }

    /// `control_plane.identifier` of the last response that had one.
    pub fn control_plane(&self) -> &str {
        &self.control_plane
    }

    /// All that is known about all types.
    pub fn snapshot(&self) -> Vec<TypeState> {
        let state = |(type_url, t): (&TypeUrl, &Type)| TypeState {
            type_url: type_url.clone(),
            version: t.version.clone(),
            nonce: t.nonce.clone(),
            error: t.error.clone(),
            requested: t.requested,
            received: t.received,
            accepted: t.accepted,
            rejected: t.rejected,
            subscriptions: t.watches.len(),
            paused: self.is_paused(type_url),
            resources: t.table.snapshot(),
        };
        self.types.iter().map(state).collect()
    }
}

impl Type {
    fn new(protocol: Protocol, type_url: &TypeUrl) -> Type {
        Type {
            machine: match protocol {
                Protocol::Sotw => Machine::Sotw(Box::new(Sotw::new(type_url))),
                Protocol::Delta => Machine::Delta(Box::default()),
            },
            watches: Watches::default(),
            table: Table::default(),
            ttls: Deadlines::default(),
            queued: false,
            version: String::new(),
            nonce: String::new(),
            error: String::new(),
            requested: None,
            received: None,
            accepted: None,
            rejected: None,
        }
    }

    fn has_something_to_say(&self) -> bool {
        match &self.machine {
            // On a fresh stream no names would mean all names: silence is what means none.
            Machine::Sotw(sotw) => sotw.asked() || self.watches.wants_anything(),
            Machine::Delta(delta) => delta.pending(),
        }
    }
}

#[cfg(test)]
mod tests;
