//! Whatever happens in whatever order, no subscription is lost and no nonce is wrong.
//!
//! A model of a server keeps what it was asked for on the current stream, and which of its nonces wait for an answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant, SystemTime};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource as ProtoResource,
};
use envoy_types::pb::google::protobuf::Any;
use proptest::prelude::*;
use prost::Message;
use xds_client::mux::{Due, Mux, MuxOptions, RequestBody, Response, WatchId};
use xds_client::{Interest, Now, Protocol, RateLimit, SubscriptionOptions, TypeUrl, Verdict};

const TYPES: [TypeUrl; 3] = [TypeUrl::CLUSTER, TypeUrl::CLUSTER_LOAD_ASSIGNMENT, TypeUrl::ROUTE_CONFIGURATION];

#[derive(Clone, Debug)]
enum Step {
    /// A type, and names as bits; no names for the wildcard of clusters.
    Subscribe(usize, u8),
    Update(usize, u8),
    Unsubscribe(usize),
    Pause(usize),
    Resume(usize),
    /// A type, resources as bits, whether they are refused, and whether a subscription ends while they are looked at.
    Respond(usize, u8, bool, bool),
    Send,
    Reconnect,
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3usize, any::<u8>()).prop_map(|(t, n)| Step::Subscribe(t, n)),
        2 => (any::<usize>(), any::<u8>()).prop_map(|(i, n)| Step::Update(i, n)),
        3 => any::<usize>().prop_map(Step::Unsubscribe),
        1 => (0..3usize).prop_map(Step::Pause),
        2 => (0..3usize).prop_map(Step::Resume),
        6 => (0..3usize, any::<u8>(), any::<bool>(), any::<bool>()).prop_map(|(t, n, r, e)| Step::Respond(t, n, r, e)),
        5 => Just(Step::Send),
        1 => Just(Step::Reconnect),
        1 => any::<u16>().prop_map(Step::Wait),
    ]
}

/// What the server knows of one type on the current stream.
#[derive(Default)]
struct Asked {
    requests: usize,
    names: BTreeSet<String>,
    wildcard: bool,
    /// Nonces that were sent and not answered, oldest first.
    open: Vec<String>,
    last_answered: String,
}

struct World {
    protocol: Protocol,
    mux: Mux,
    now: Now,
    watches: Vec<(WatchId, usize, Interest)>,
    pauses: [u32; 3],
    asked: HashMap<TypeUrl, Asked>,
    /// Delta: the versions that the client has taken, by type and name.
    taken: HashMap<TypeUrl, BTreeMap<String, String>>,
    nonces: u64,
    fresh: bool,
}

fn interest(kind: usize, bits: u8) -> Interest {
    let names: Vec<String> = (0..6).filter(|b| bits & (1 << b) != 0).map(|b| format!("x{b}")).collect();
    if kind == 0 && names.len() < 3 { Interest::Wildcard } else { Interest::Names(names) }
}

impl World {
    fn wanted(&self, kind: usize) -> (bool, BTreeSet<String>) {
        let mut names = BTreeSet::new();
        let mut wildcard = false;
        for (_, _, interest) in self.watches.iter().filter(|(_, k, _)| *k == kind) {
            match interest {
                Interest::Names(list) => names.extend(list.iter().cloned()),
                _ => wildcard = true,
            }
        }
        (wildcard, names)
    }

    fn send(&mut self) {
        while let Due::Send(request) = self.mux.poll_request(self.now) {
            let (kind, nonce) = match &request.body {
                RequestBody::Sotw(r) => (TypeUrl::new(r.type_url.as_str()), r.response_nonce.clone()),
                RequestBody::Delta(r) => (TypeUrl::new(r.type_url.as_str()), r.response_nonce.clone()),
            };
            let index = TYPES.iter().position(|t| *t == kind).unwrap();
            assert_eq!(self.pauses[index], 0, "a paused type was sent");
            assert!(request.with_node || !self.fresh, "the first message of a stream has no node");
            self.fresh = false;
            let asked = self.asked.entry(kind.clone()).or_default();
            asked.requests += 1;
            match &request.body {
                RequestBody::Sotw(r) => {
                    if !nonce.is_empty() && nonce != asked.last_answered {
                        let at = asked.open.iter().position(|n| *n == nonce).expect("a nonce that was never sent");
                        // Older ones are answered by the answer to a newer one.
                        asked.open.drain(..=at);
                        asked.last_answered.clone_from(&nonce);
                    } else {
                        assert_eq!(nonce, asked.last_answered, "an old nonce");
                        assert!(r.error_detail.is_none(), "an error that answers nothing");
                    }
                    asked.names = r.resource_names.iter().filter(|n| *n != "*").cloned().collect();
                    asked.wildcard =
                        r.resource_names.is_empty() && kind == TYPES[0] || r.resource_names.iter().any(|n| n == "*");
                    let unique: BTreeSet<&String> = r.resource_names.iter().collect();
                    assert_eq!(unique.len(), r.resource_names.len(), "a name twice");
                    let all = asked.requests == 1 && r.resource_names.is_empty();
                    assert!(!all || kind == TYPES[0], "a wildcard that no one wanted");
                }
                RequestBody::Delta(r) => {
                    if nonce.is_empty() {
                        assert!(r.error_detail.is_none());
                    } else {
                        let at = asked.open.iter().position(|n| *n == nonce).expect("a nonce unknown or answered");
                        asked.open.remove(at);
                    }
                    if asked.requests == 1 {
                        asked.wildcard = r.resource_names_subscribe.is_empty();
                        let held: BTreeMap<String, String> = r.initial_resource_versions.clone().into_iter().collect();
                        let taken = self.taken.get(&kind).cloned().unwrap_or_default();
                        for (name, version) in &held {
                            assert_eq!(taken.get(name), Some(version), "a version that was not taken");
                        }
                    } else {
                        assert!(r.initial_resource_versions.is_empty());
                    }
                    for name in &r.resource_names_unsubscribe {
                        if name == "*" {
                            asked.wildcard = false;
                        }
                        asked.names.remove(name);
                    }
                    for name in &r.resource_names_subscribe {
                        if name == "*" {
                            asked.wildcard = true;
                        } else {
                            asked.names.insert(name.clone());
                        }
                    }
                }
            }
        }
    }

    fn respond(&mut self, kind: usize, bits: u8, refuse: bool, end_one: bool) {
        let type_url = TYPES[kind].clone();
        let Some(asked) = self.asked.get_mut(&type_url) else { return };
        self.nonces += 1;
        let nonce = format!("n{}", self.nonces);
        let version = format!("v{}", self.nonces);
        let names: Vec<String> = (0..6).filter(|b| bits & (1 << b) != 0).map(|b| format!("x{b}")).collect();
        let body = |name: &String| Any {
            type_url: type_url.as_str().to_owned(),
            value: Cluster { name: name.clone(), ..Cluster::default() }.encode_to_vec(),
        };
        let response = match self.protocol {
            Protocol::Sotw => Response::Sotw(DiscoveryResponse {
                version_info: version.clone(),
                nonce: nonce.clone(),
                type_url: type_url.as_str().to_owned(),
                resources: names.iter().map(body).collect(),
                ..DiscoveryResponse::default()
            }),
            Protocol::Delta => Response::Delta(DeltaDiscoveryResponse {
                nonce: nonce.clone(),
                type_url: type_url.as_str().to_owned(),
                resources: names
                    .iter()
                    .map(|name| ProtoResource {
                        name: name.clone(),
                        version: version.clone(),
                        resource: Some(body(name)),
                        ..ProtoResource::default()
                    })
                    .collect(),
                ..DeltaDiscoveryResponse::default()
            }),
        };
        asked.open.push(nonce);
        let mut delivery = self.mux.on_response(self.now, response).expect("the type was asked for");
        let updates = std::mem::take(&mut delivery.updates);
        if end_one && !self.watches.is_empty() {
            let (id, ..) = self.watches.remove(usize::from(bits) % self.watches.len());
            self.mux.unsubscribe(id);
        }
        let mut verdicts = Vec::new();
        for (id, update) in updates {
            for resource in &update.added {
                assert!(names.contains(&resource.name));
            }
            verdicts.push((id, if refuse { Verdict::reject("no") } else { Verdict::accept() }));
        }
        let refused = refuse && !verdicts.is_empty();
        self.mux.finish(self.now, delivery, &verdicts);
        if !refused {
            let taken = self.taken.entry(type_url).or_default();
            taken.extend(names.into_iter().map(|name| (name, version.clone())));
        }
    }

    fn check(&mut self) {
        for (kind, type_url) in TYPES.iter().enumerate() {
            for _ in 0..std::mem::take(&mut self.pauses[kind]) {
                self.mux.resume(type_url);
            }
        }
        for _ in 0..200 {
            self.send();
            self.now.instant += Duration::from_secs(10);
        }
        for (kind, type_url) in TYPES.iter().enumerate() {
            let (wildcard, names) = self.wanted(kind);
            let empty = Asked::default();
            let asked = self.asked.get(type_url).unwrap_or(&empty);
            assert_eq!(asked.names, names, "{type_url}");
            // A wildcard that no one wants any more is not always taken back (nothing says so in either form).
            assert!(asked.wildcard || !wildcard, "the wildcard of {type_url} was lost");
            // State of the world says nothing more once nothing is asked for.
            if self.protocol == Protocol::Delta || !names.is_empty() || wildcard {
                assert!(asked.open.is_empty(), "{:?} of {type_url} were not answered", asked.open);
            }
        }
        assert_eq!(self.mux.pending_requests(), 0);
    }
}

fn play(protocol: Protocol, limited: bool, steps: Vec<Step>) {
    let rate_limit = limited.then_some(RateLimit { max_tokens: 3, fill_rate: 10.0 });
    let options = MuxOptions { node_on_first_message_only: true, rate_limit, ..MuxOptions::new(protocol) };
    let mut world = World {
        protocol,
        mux: Mux::new(options),
        now: Now { instant: Instant::now(), wall: SystemTime::UNIX_EPOCH },
        watches: Vec::new(),
        pauses: [0; 3],
        asked: HashMap::new(),
        taken: HashMap::new(),
        nonces: 0,
        fresh: true,
    };
    world.mux.stream_opened();
    for step in steps {
        match step {
            Step::Subscribe(kind, bits) => {
                let interest = interest(kind, bits);
                let options = SubscriptionOptions::new(TYPES[kind].clone(), interest.clone());
                let id = world.mux.subscribe(world.now, options);
                world.watches.push((id, kind, interest));
            }
            Step::Update(i, bits) if !world.watches.is_empty() => {
                let i = i % world.watches.len();
                let (id, kind, held) = &mut world.watches[i];
                *held = interest(*kind, bits);
                world.mux.update(world.now, *id, held.clone());
            }
            Step::Unsubscribe(i) if !world.watches.is_empty() => {
                let (id, ..) = world.watches.remove(i % world.watches.len());
                world.mux.unsubscribe(id);
            }
            Step::Update(..) | Step::Unsubscribe(_) => {}
            Step::Pause(kind) => {
                world.pauses[kind] += 1;
                world.mux.pause(&TYPES[kind]);
            }
            Step::Resume(kind) if world.pauses[kind] > 0 => {
                world.pauses[kind] -= 1;
                world.mux.resume(&TYPES[kind]);
            }
            Step::Resume(_) => {}
            Step::Respond(kind, bits, refuse, end_one) => world.respond(kind, bits, refuse, end_one),
            Step::Send => world.send(),
            Step::Reconnect => {
                world.mux.stream_closed();
                world.mux.stream_opened();
                world.asked.clear();
                world.fresh = true;
            }
            Step::Wait(ms) => {
                world.now.instant += Duration::from_millis(u64::from(ms));
                // No resource here has a TTL: all that can come due is a first fetch.
                assert!(world.mux.on_deadline(world.now).removals.is_empty());
            }
        }
    }
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn state_of_the_world_loses_nothing(limited: bool, steps in prop::collection::vec(step(), 1..60)) {
        play(Protocol::Sotw, limited, steps);
    }

    #[test]
    fn delta_loses_nothing(limited: bool, steps in prop::collection::vec(step(), 1..60)) {
        play(Protocol::Delta, limited, steps);
    }
}
