//! Whole conversations, as a server sees them.

mod answers;
mod collections;
mod delta;
mod streams;
mod time;

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::ControlPlane;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryResponse, Resource as ProtoResource,
};
use envoy_types::pb::google::protobuf::{Any, Duration as ProtoDuration};
use prost::Message;

use super::*;
use crate::status::ResourceStatus;
use crate::{ResourceError, Verdict};

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::CLUSTER_LOAD_ASSIGNMENT;
const LDS: TypeUrl = TypeUrl::LISTENER;
const RDS: TypeUrl = TypeUrl::ROUTE_CONFIGURATION;

/// A mux, a clock, and the requests in a form that reads like a log:
/// `TYPE v=.. n=.. [names]` or `TYPE n=.. +[..] -[..] {..}`, with `node` and the error if there are any.
struct Talk {
    mux: Mux,
    now: Now,
    short: FxHashMap<String, &'static str>,
}

impl Talk {
    fn new(options: MuxOptions) -> Talk {
        let short = [(CDS, "CDS"), (EDS, "EDS"), (LDS, "LDS"), (RDS, "RDS")];
        let mut talk = Talk {
            mux: Mux::new(options),
            now: Now { instant: Instant::now(), wall: SystemTime::UNIX_EPOCH },
            short: short.into_iter().map(|(t, s)| (t.as_str().to_owned(), s)).collect(),
        };
        talk.mux.stream_opened();
        talk
    }

    fn sotw() -> Talk {
        Talk::new(MuxOptions { node_on_first_message_only: true, ..MuxOptions::new(Protocol::Sotw) })
    }

    fn delta() -> Talk {
        Talk::new(MuxOptions { node_on_first_message_only: true, ..MuxOptions::new(Protocol::Delta) })
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.wall += time;
    }

    fn wildcard(&mut self, type_url: TypeUrl) -> WatchId {
        self.mux.subscribe(self.now, SubscriptionOptions::new(type_url, Interest::Wildcard))
    }

    fn names(&mut self, type_url: TypeUrl, names: &[&str]) -> WatchId {
        self.mux.subscribe(self.now, SubscriptionOptions::new(type_url, named(names)))
    }

    fn sent(&mut self) -> Vec<String> {
        let mut sent = Vec::new();
        while let Due::Send(request) = self.mux.poll_request(self.now) {
            let mut line = match &request.body {
                RequestBody::Sotw(r) => {
                    let kind = self.short[&r.type_url];
                    let error = r.error_detail.as_ref();
                    let mut line =
                        format!("{kind} v={} n={} [{}]", r.version_info, r.response_nonce, r.resource_names.join(" "));
                    if let Some(e) = error {
                        line += &format!(" error {}: {}", e.code, e.message);
                    }
                    line
                }
                RequestBody::Delta(r) => {
                    let mut held: Vec<String> =
                        r.initial_resource_versions.iter().map(|(n, v)| format!("{n}={v}")).collect();
                    held.sort();
                    let mut line = format!("{} n={}", self.short[&r.type_url], r.response_nonce);
                    line += &format!(" +[{}]", r.resource_names_subscribe.join(" "));
                    line += &format!(" -[{}]", r.resource_names_unsubscribe.join(" "));
                    line += &format!(" {{{}}}", held.join(" "));
                    if let Some(e) = &r.error_detail {
                        line += &format!(" error {}: {}", e.code, e.message);
                    }
                    line
                }
            };
            if request.with_node && matches!(request.body, RequestBody::Sotw(_)) {
                line += " node";
            }
            sent.push(line);
        }
        sent
    }

    /// Takes a response, answers every update with `judge`, and returns what was handed out.
    fn take(
        &mut self,
        response: Response,
        mut judge: impl FnMut(&mut Mux, WatchId, &Update) -> Verdict,
    ) -> Vec<(WatchId, Update)> {
        let Some(mut delivery) = self.mux.on_response(self.now, response) else { return Vec::new() };
        let updates = std::mem::take(&mut delivery.updates);
        let verdicts: Vec<(WatchId, Verdict)> =
            updates.iter().map(|(id, update)| (*id, judge(&mut self.mux, *id, update))).collect();
        self.mux.finish(self.now, delivery, &verdicts);
        updates
    }

    fn accept(&mut self, response: Response) -> Vec<(WatchId, Update)> {
        self.take(response, |_, _, _| Verdict::accept())
    }

    fn status(&self, type_url: &TypeUrl, name: &str) -> Option<crate::status::ResourceState> {
        let types = self.mux.snapshot();
        types.into_iter().find(|t| t.type_url == *type_url)?.resources.into_iter().find(|r| r.name == name)
    }
}

fn named(names: &[&str]) -> Interest {
    Interest::Names(names.iter().map(|n| (*n).to_owned()).collect())
}

fn any(type_url: &TypeUrl, name: &str) -> Any {
    // Field 1 is the name in all of these messages.
    let body = Cluster { name: name.to_owned(), ..Cluster::default() };
    Any { type_url: type_url.as_str().to_owned(), value: body.encode_to_vec() }
}

fn sotw(type_url: TypeUrl, version: &str, nonce: &str, names: &[&str]) -> Response {
    Response::Sotw(DiscoveryResponse {
        version_info: version.to_owned(),
        nonce: nonce.to_owned(),
        resources: names.iter().map(|n| any(&type_url, n)).collect(),
        type_url: type_url.as_str().to_owned(),
        ..DiscoveryResponse::default()
    })
}

/// Each resource is `name=version`, or a bare name for a removal.
fn delta(type_url: TypeUrl, nonce: &str, resources: &[&str]) -> Response {
    let mut response = DeltaDiscoveryResponse {
        system_version_info: format!("s{nonce}"),
        nonce: nonce.to_owned(),
        type_url: type_url.as_str().to_owned(),
        ..DeltaDiscoveryResponse::default()
    };
    for resource in resources {
        match resource.split_once('=') {
            Some((name, version)) => response.resources.push(ProtoResource {
                name: name.to_owned(),
                version: version.to_owned(),
                resource: Some(any(&type_url, name)),
                ..ProtoResource::default()
            }),
            None => response.removed_resources.push((*resource).to_owned()),
        }
    }
    Response::Delta(response)
}

fn added(updates: &[(WatchId, Update)]) -> Vec<String> {
    updates
        .iter()
        .map(|(id, u)| {
            let names: Vec<&str> = u.added.iter().map(|r| r.name.as_str()).collect();
            format!("{}: +[{}] -[{}]", id.0, names.join(" "), u.removed.join(" "))
        })
        .collect()
}

const NONE: [&str; 0] = [];
