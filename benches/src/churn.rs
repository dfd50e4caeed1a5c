//! A configuration that changes all the time: routes, endpoints, listeners and certificates, at even distances, each change
//! small and legal, so that no request may fail.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nuncio_tests::certs::Certs;
use nuncio_tests::proxy::free_port;
use nuncio_tests::snapshots::{Message, Snapshots};
use serde_json::{Value, json};

use crate::dynamic::{Endpoint, address, assignment, cluster, connection_manager, extension};
use crate::steady::{Speaks, Target};

/// How many changes there are.
#[derive(Clone, Copy, Debug)]
pub struct Changes {
    /// Of routes.
    pub routes: u32,
    /// Of endpoints.
    pub endpoints: u32,
    /// Of listeners.
    pub listeners: u32,
    /// Of the certificate.
    pub certificates: u32,
}

impl Changes {
    /// All together.
    pub fn total(self) -> u32 {
        self.routes + self.endpoints + self.listeners + self.certificates
    }

    /// The kinds in the order in which their changes are due, each at even distances.
    fn schedule(self) -> Vec<(f64, Kind)> {
        let kinds = [
            (self.routes, Kind::Routes),
            (self.endpoints, Kind::Endpoints),
            (self.listeners, Kind::Listeners),
            (self.certificates, Kind::Certificate),
        ];
        let even =
            |(count, kind): (u32, Kind)| (0..count).map(move |n| ((f64::from(n) + 0.5) / f64::from(count), kind));
        let mut all: Vec<_> = kinds.into_iter().flat_map(even).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        all
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Routes,
    Endpoints,
    Listeners,
    Certificate,
}

/// Names of the certificates that take turns.
pub const CERTIFICATES: [&str; 8] = ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"];
/// Server names of the two filter chains with TLS.
const NAMES: [&str; 2] = ["a.example", "b.example"];

/// The configuration as it is now.
#[derive(Debug)]
pub struct Model {
    /// HTTP/1.1 upstreams and HTTP/2 upstreams.
    upstreams: [Vec<SocketAddr>; 2],
    certs: Rc<Certs>,
    /// Ports of the listeners with HTTP/1.1, HTTP/2 and TLS.
    ports: [u16; 3],
    /// Ports that the moving listener takes in turn.
    turns: [u16; 6],
    /// The addresses of the moving listener, the newest first.
    moving: Rc<RefCell<Vec<SocketAddr>>>,
    /// Versions of what changes in place and of what makes a new listener.
    chains: [u32; 4],
    frames: [u32; 3],
    others: u32,
    /// Changes so far, by kind.
    done: [u32; 4],
}

/// What one change sends.
struct Change {
    put: Vec<Message>,
    removed: Vec<(&'static str, String)>,
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

impl Model {
    /// Before any change.
    pub fn new(upstreams: [Vec<SocketAddr>; 2], certs: Rc<Certs>) -> Self {
        let turns = [(); 6].map(|()| free_port());
        let moving = Rc::new(RefCell::new(vec![local(turns[0])]));
        let ports = [(); 3].map(|()| free_port());
        Self { upstreams, certs, ports, turns, moving, chains: [0; 4], frames: [0; 3], others: 0, done: [0; 4] }
    }

    /// The clients.
    pub fn targets(&self) -> Vec<Target> {
        let fixed = |port| Rc::new(RefCell::new(vec![local(port)]));
        let target = |name, speaks, sni, addresses, share, connections, requests_per_connection| Target {
            name,
            speaks,
            sni,
            addresses,
            share,
            connections,
            requests_per_connection,
        };
        vec![
            target("h1", Speaks::Http1, None, fixed(self.ports[0]), 30, 24, 10_000),
            target("h2", Speaks::Http2, None, fixed(self.ports[1]), 30, 4, 100_000),
            target("tls h1", Speaks::Http1, Some(NAMES[0]), fixed(self.ports[2]), 15, 12, 50),
            target("tls h2", Speaks::Http2, Some(NAMES[1]), fixed(self.ports[2]), 15, 2, 200),
            target("moving", Speaks::Http1, None, self.moving.clone(), 10, 8, 10_000),
        ]
    }

    /// The port of the HTTP/1.1 listener.
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// Everything.
    ///
    /// # Errors
    /// A certificate that cannot be read.
    pub fn all(&self) -> Result<Vec<Message>> {
        let mut all = vec![
            Message::new("Cluster", &cluster("h1", false))?,
            Message::new("Cluster", &cluster("h2", true))?,
            Message::new("ClusterLoadAssignment", &self.endpoints(0))?,
            Message::new("ClusterLoadAssignment", &self.endpoints(1))?,
            Message::new("RouteConfiguration", &self.routes())?,
            Message::new("Secret", &self.secret()?)?,
        ];
        for listener in [self.plain(0), self.plain(1), self.tls(), self.moving(), self.other()] {
            all.push(Message::new("Listener", &listener)?);
        }
        Ok(all)
    }

    /// Some of the upstreams, in turn: one is left out, one drains, and weights differ.
    fn endpoints(&self, which: usize) -> Value {
        let turn = (self.done[Kind::Endpoints as usize] / 2) as usize;
        let all = &self.upstreams[which];
        let count = all.len();
        let endpoints = (0..count).filter(|n| turn.is_multiple_of(3) || n % count != turn % count).map(|n| Endpoint {
            address: all[n],
            drains: turn % 4 == 1 && (n + 1) % count == turn % count,
            weight: 1 + u32::try_from((n + turn) % 5).unwrap_or(0),
        });
        assignment(["h1", "h2"][which], &endpoints.collect::<Vec<_>>())
    }

    /// Routes of several forms; whatever the version, every request is answered by one of the clusters.
    fn routes(&self) -> Value {
        let turn = self.done[Kind::Routes as usize];
        let share = turn % 101;
        let both = json!({"weighted_clusters": {"clusters": [
            {"name": "h1", "weight": share}, {"name": "h2", "weight": 100 - share.min(100) + u32::from(share == 0)},
        ]}, "timeout": format!("{}s", 5 + turn % 7)});
        let cluster = if turn.is_multiple_of(2) { "h1" } else { "h2" };
        let one = json!({"cluster": cluster, "prefix_rewrite": "/other"});
        let first = match turn % 4 {
            0 => json!({"match": {"prefix": "/some"}, "route": one}),
            1 => {
                json!({"match": {"safe_regex": {"regex": format!("/some/(path|{turn})")}}, "route": {"cluster": "h1"}})
            }
            2 => json!({"match": {"prefix": "/", "headers": [
                {"name": "user-agent", "string_match": {"prefix": "nuncio"}}]}, "route": one}),
            _ => json!({"match": {"path": "/some/path"}, "route": both}),
        };
        let hosts = (0..turn % 10).map(|n| {
            json!({"name": format!("host{n}-{turn}"), "domains": [format!("host{n}-{turn}.example")], "routes": [
                {"match": {"prefix": "/"}, "direct_response": {"status": 404}}]})
        });
        let mut hosts: Vec<Value> = hosts.collect();
        let domains =
            if turn.is_multiple_of(3) { json!(["bench.example"]) } else { json!(["*.example", "bench.example"]) };
        hosts.push(json!({"name": "bench", "domains": domains, "routes": [
            first, {"match": {"prefix": "/"}, "route": both}]}));
        json!({"name": "routes", "virtual_hosts": hosts, "response_headers_to_add": [
            {"header": {"key": "x-routes", "value": turn.to_string()}}]})
    }

    fn secret(&self) -> Result<Value> {
        let name = CERTIFICATES[self.done[Kind::Certificate as usize] as usize % CERTIFICATES.len()];
        let (chain, key) = (self.certs.cert(name), self.certs.key(name));
        Ok(json!({"name": "server", "tls_certificate": {
            "certificate_chain": {"inline_string": std::fs::read_to_string(chain)?},
            "private_key": {"inline_string": std::fs::read_to_string(key)?},
        }}))
    }

    /// The HTTP/1.1 or the HTTP/2 listener.
    fn plain(&self, which: usize) -> Value {
        let codec = ["HTTP1", "HTTP2"][which];
        let server = format!("v{}", self.chains[which]);
        json!({"name": codec, "address": address(local(self.ports[which])),
            "per_connection_buffer_limit_bytes": 1_048_576 + self.frames[which],
            "filter_chains": [{"filters": [connection_manager(codec, &server)]}]})
    }

    /// Two filter chains with one secret.
    fn tls(&self) -> Value {
        let chain = |n: usize| {
            let server = format!("v{}", self.chains[2 + n]);
            json!({
                "name": NAMES[n],
                "filter_chain_match": {"server_names": [NAMES[n]]},
                "transport_socket": {"name": "tls", "typed_config": {
                    "@type": extension("transport_sockets.tls.v3.DownstreamTlsContext"),
                    "common_tls_context": {
                        "alpn_protocols": ["h2", "http/1.1"],
                        "tls_certificate_sds_secret_configs": [
                            {"name": "server", "sds_config": crate::dynamic::source()}],
                    },
                }},
                "filters": [connection_manager("AUTO", &server)],
            })
        };
        let inspector = json!({"name": "tls_inspector", "typed_config": {
            "@type": extension("filters.listener.tls_inspector.v3.TlsInspector")}});
        json!({"name": "tls", "address": address(local(self.ports[2])), "listener_filters": [inspector],
            "per_connection_buffer_limit_bytes": 1_048_576 + self.frames[2],
            "filter_chains": [chain(0), chain(1)]})
    }

    fn moving(&self) -> Value {
        let at = self.moving.borrow().first().copied().unwrap_or_else(|| local(self.turns[0]));
        json!({"name": "moving", "address": address(at),
            "filter_chains": [{"filters": [connection_manager("HTTP1", "moving")]}]})
    }

    fn other(&self) -> Value {
        // A Unix socket in the abstract namespace: no port that could be taken.
        let path = format!("@nuncio-churn-{}-{}", std::process::id(), self.others);
        json!({"name": format!("other{}", self.others), "address": {"pipe": {"path": path}},
            "filter_chains": [{"filters": [connection_manager("AUTO", "other")]}]})
    }

    fn next(&mut self, kind: Kind) -> Result<Change> {
        let turn = self.done[kind as usize];
        self.done[kind as usize] += 1;
        let mut removed = Vec::new();
        let message = match kind {
            Kind::Routes => Message::new("RouteConfiguration", &self.routes())?,
            Kind::Endpoints => Message::new("ClusterLoadAssignment", &self.endpoints(turn as usize % 2))?,
            Kind::Certificate => Message::new("Secret", &self.secret()?)?,
            Kind::Listeners => {
                let which = (turn / 5) as usize;
                let listener = match turn % 5 {
                    // In place: one of two filter chains, or the only one.
                    0 => {
                        self.chains[2 + which % 2] += 1;
                        self.tls()
                    }
                    1 => {
                        self.chains[which % 2] += 1;
                        self.plain(which % 2)
                    }
                    // A new listener at the same address.
                    2 => {
                        self.frames[which % 3] += 1;
                        if which % 3 == 2 { self.tls() } else { self.plain(which % 3) }
                    }
                    3 => {
                        let at = local(self.turns[(which + 1) % self.turns.len()]);
                        let mut moving = self.moving.borrow_mut();
                        moving.insert(0, at);
                        moving.truncate(2);
                        drop(moving);
                        self.moving()
                    }
                    _ => {
                        removed.push(("Listener", format!("other{}", self.others)));
                        self.others += 1;
                        self.other()
                    }
                };
                Message::new("Listener", &listener)?
            }
        };
        Ok(Change { put: vec![message], removed })
    }
}

/// Makes all changes within `time`, and waits until they are acknowledged.
///
/// # Errors
/// A change that was refused or not acknowledged.
pub async fn run(model: &mut Model, server: &Snapshots, changes: Changes, time: Duration) -> Result<()> {
    let begin = Instant::now();
    let mut versions = [0; 4];
    for (at, kind) in changes.schedule() {
        let due = begin + time.mul_f64(at);
        tokio::time::sleep_until(due.into()).await;
        let Change { put, removed } = model.next(kind)?;
        versions[kind as usize] = server.change(put, &removed)?.0;
    }
    let kinds = ["RouteConfiguration", "ClusterLoadAssignment", "Listener", "Secret"];
    for (kind, version) in kinds.into_iter().zip(versions).filter(|(_, version)| *version > 0) {
        server.acked(kind, version, Duration::from_secs(10)).await?;
    }
    let done: u32 = model.done.iter().sum();
    ensure!(done == changes.total(), "{done} changes");
    server.nothing_refused()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_spread_and_none_is_forgotten() {
        let changes = Changes { routes: 10, endpoints: 10, listeners: 2, certificates: 1 };
        let schedule = changes.schedule();
        assert_eq!(schedule.len(), 23);
        assert!(schedule.windows(2).all(|w| w[0].0 <= w[1].0));
        assert!(schedule.iter().all(|(at, _)| (0.0..1.0).contains(at)));
    }
}
