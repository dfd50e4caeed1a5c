//! What single steps of the request path cost: route lookup, header work, HPACK, host picks, stats.
//!
//! `cargo bench --bench micro [-- --smoke]`. Each figure is the median of many batches, in nanoseconds per operation.
//! A lookup among 10,000 routes or virtual hosts may cost at most twice one among 10, and a pick among 1,000 hosts at most
//! four times one among 10; more ends the run with an error.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use envoy_types::pb::envoy::config::cluster::v3 as cluster_pb;
use envoy_types::pb::envoy::config::route::v3 as pb;
use nuncio_base::stat_family;
use nuncio_base::stats::{Registry, StatsConfig};
use nuncio_config::cluster::{ClusterConfig, HealthStatus};
use nuncio_config::decode::Context;
use nuncio_config::paths::FieldPath;
use nuncio_config::route::RouteConfiguration;
use nuncio_http::codec::h2::hpack::{Decoder, Encoder, Field};
use nuncio_http::headers::{HeaderName, HeaderValue, Headers, names};
use nuncio_http::matchers::NoRuntime;
use nuncio_http::route::{RouteOutcome, RouteRequest, RouteTable};
use nuncio_net::address::Address;
use nuncio_upstream::host::{Host, HostDescription};
use nuncio_upstream::host_set::{Grouping, HostGroup, HostGroups};
use nuncio_upstream::lb::{LbContext, LbTables, WorkerLb};
use nuncio_upstream::stats::ClusterStats;

/// The sizes of tables and host sets.
const SIZES: [usize; 3] = [10, 1_000, 10_000];

/// How much dearer a pick may be among a hundred times as many hosts: turns by weight are a heap, rings are searched.
const PICK: f64 = 4.0;

struct Bench {
    smoke: bool,
}

fn main() -> Result<()> {
    let mut bench = Bench { smoke: false };
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--smoke" => bench.smoke = true,
            // `cargo bench NAME` passes the name to every bench.
            name if !name.starts_with('-') && !"micro".contains(name) => return Ok(()),
            _ => {}
        }
    }
    let mut slow = Vec::new();
    for (what, by_size) in [
        ("route by prefix", bench.routes_by_prefix()?),
        ("route by exact path", bench.routes_by_path()?),
        ("virtual host", bench.virtual_hosts()?),
        ("virtual host by suffix", bench.virtual_hosts_by_suffix()?),
    ] {
        if by_size[2] > 2.0 * by_size[0] {
            slow.push(format!("{what}: {:.0} ns among 10,000, {:.0} ns among 10", by_size[2], by_size[0]));
        }
    }
    bench.headers()?;
    bench.hpack()?;
    for (what, [few, many]) in bench.load_balancing()? {
        if many > PICK * few {
            slow.push(format!("{what}: {many:.0} ns among 1,000 hosts, {few:.0} ns among 10"));
        }
    }
    bench.stats();
    if !bench.smoke && !slow.is_empty() {
        bail!("the cost grows with the number: {}", slow.join("; "));
    }
    Ok(())
}

impl Bench {
    /// Nanoseconds per call: prints the median of the batches and gives the best, which other work on the machine has
    /// disturbed least, for comparisons.
    #[allow(clippy::print_stdout, reason = "the figures are the product")]
    fn time(&self, name: &str, mut operation: impl FnMut()) -> f64 {
        let (batches, enough) = if self.smoke { (1, Duration::ZERO) } else { (30, Duration::from_millis(10)) };
        let mut calls = 1_u32;
        // A batch long enough that the clock does not matter; this also warms the caches.
        loop {
            let begin = Instant::now();
            (0..calls).for_each(|_| operation());
            if begin.elapsed() >= enough || calls > 1 << 24 {
                break;
            }
            calls *= 2;
        }
        let mut nanos: Vec<f64> = (0..batches)
            .map(|_| {
                let begin = Instant::now();
                (0..calls).for_each(|_| operation());
                begin.elapsed().as_nanos() as f64 / f64::from(calls)
            })
            .collect();
        nanos.sort_by(f64::total_cmp);
        let median = nanos[nanos.len() / 2];
        println!("{name:<52} {median:>10.1} ns");
        nanos[0]
    }

    /// Looks up the first, a middle and the last of `n` routes in turn.
    fn lookups(&self, name: &str, table: &RouteTable, requests: &[Headers]) -> Result<f64> {
        for headers in requests {
            if !matches!(table.route(&request(headers), None), RouteOutcome::Route { .. }) {
                bail!("{name}: {:?} finds no route", headers.str(&names::PATH));
            }
        }
        let mut turn = 0;
        Ok(self.time(name, || {
            turn = (turn + 1) % requests.len();
            black_box(table.route(&request(&requests[turn]), None));
        }))
    }

    fn routes_by_prefix(&self) -> Result<[f64; 3]> {
        self.sizes("route by prefix", |n| {
            let routes =
                (0..n).map(|i| route(pb::route_match::PathSpecifier::Prefix(format!("/api/v{i}/items/")))).collect();
            (vec![host("all", "*", routes)], three(n).map(|i| headers("a.example", &format!("/api/v{i}/items/7"))))
        })
    }

    fn routes_by_path(&self) -> Result<[f64; 3]> {
        self.sizes("route by exact path", |n| {
            let routes =
                (0..n).map(|i| route(pb::route_match::PathSpecifier::Path(format!("/api/v{i}/items")))).collect();
            (vec![host("all", "*", routes)], three(n).map(|i| headers("a.example", &format!("/api/v{i}/items"))))
        })
    }

    fn virtual_hosts(&self) -> Result<[f64; 3]> {
        self.sizes("virtual host", |n| {
            let hosts = (0..n).map(|i| host(&format!("h{i}"), &format!("h{i}.example"), vec![any()])).collect();
            (hosts, three(n).map(|i| headers(&format!("h{i}.example"), "/")))
        })
    }

    fn virtual_hosts_by_suffix(&self) -> Result<[f64; 3]> {
        self.sizes("virtual host by suffix", |n| {
            let hosts = (0..n).map(|i| host(&format!("h{i}"), &format!("*.h{i}.example"), vec![any()])).collect();
            (hosts, three(n).map(|i| headers(&format!("www.h{i}.example"), "/")))
        })
    }

    fn sizes(&self, name: &str, make: impl Fn(usize) -> (Vec<pb::VirtualHost>, [Headers; 3])) -> Result<[f64; 3]> {
        let mut figures = [0.0; 3];
        for (figure, n) in figures.iter_mut().zip(SIZES) {
            let (virtual_hosts, requests) = make(n);
            *figure = self.lookups(&format!("{name}, {n}"), &table(virtual_hosts)?, &requests)?;
        }
        Ok(figures)
    }

    /// The edits of a plain request: read what routing reads, drop hop-by-hop fields, add what goes upstream.
    fn headers(&self) -> Result<()> {
        let given = client_headers();
        let value = |text: &'static str| HeaderValue::parse(text).context("a header value");
        let (address, scheme, id) =
            (value("10.0.0.1")?, value("http")?, value("c679a464-06f6-4033-8c5e-de2790d219df")?);
        let mut headers = Headers::with_capacity(24);
        self.time("headers: build from a client's request", || {
            headers.clear();
            for (name, value) in &given {
                headers.append(name.clone(), value.clone());
            }
            black_box(&headers);
        });
        self.time("headers: build, sanitize and add", || {
            headers.clear();
            for (name, value) in &given {
                headers.append(name.clone(), value.clone());
            }
            for name in [&names::CONNECTION, &names::KEEP_ALIVE, &names::PROXY_CONNECTION] {
                headers.remove(name);
            }
            black_box((headers.path(), headers.method(), headers.authority()));
            headers.set(names::X_FORWARDED_PROTO, scheme.clone());
            headers.append(names::X_FORWARDED_FOR, address.clone());
            headers.set(names::X_REQUEST_ID, id.clone());
            black_box(headers.byte_size());
        });
        Ok(())
    }

    /// Header blocks: the first of a connection, and one when the table is filled. Request identifiers and lengths
    /// change with each message.
    fn hpack(&self) -> Result<()> {
        let mut request = headers("api.example", "/api/v1/items?page=7");
        request.remove(&names::CONNECTION);
        request.append(names::SCHEME, HeaderValue::from_static("http"));
        let mut response = Headers::new();
        response.set_status(200);
        for (name, value) in [
            ("date", "Tue, 15 Nov 1994 08:12:31 GMT"),
            ("content-type", "application/json"),
            ("cache-control", "max-age=60"),
            ("vary", "accept-encoding"),
            ("server", "envoy"),
            ("x-custom-three", "three"),
        ] {
            let name = HeaderName::parse(name).context("a header name")?;
            response.append(name, HeaderValue::from_static(value));
        }
        let mut indexed = Headers::new();
        request.iter().for_each(|(n, v)| indexed.append(n.clone(), v.clone()));
        let changing = [
            (names::X_REQUEST_ID, "c679a464-06f6-4033-8c5e-de2790d219df"),
            (names::X_ENVOY_UPSTREAM_SERVICE_TIME, "12"),
            (names::CONTENT_LENGTH, "1234"),
        ];
        request.append(changing[0].0.clone(), HeaderValue::from_static(changing[0].1));
        changing[1..].iter().for_each(|(n, v)| response.append(n.clone(), HeaderValue::from_static(v)));
        for (what, list) in [("request", &request), ("request all indexed", &indexed), ("response", &response)] {
            let n = list.len();
            let mut block = Vec::new();
            self.time(&format!("hpack: encode a first {what}, {n} fields"), || {
                block.clear();
                Encoder::new().encode(list, &mut block);
                black_box(&block);
            });
            let mut encoder = Encoder::new();
            let mut blocks = Vec::new();
            for _ in 0..4 {
                block.clear();
                encoder.encode(list, &mut block);
                blocks.push(block.clone());
            }
            self.time(&format!("hpack: encode a {what}"), || {
                block.clear();
                encoder.encode(list, &mut block);
                black_box(&block);
            });
            self.time(&format!("hpack: decode a first {what}"), || {
                black_box(decoded(&mut Decoder::default(), &blocks[0]));
            });
            let mut decoder = Decoder::default();
            if !blocks.iter().all(|block| decoded(&mut decoder, block) == *list) {
                bail!("the {what} is not decoded as it was encoded");
            }
            let name = format!("hpack: decode a {what}, {} bytes", block.len());
            self.time(&name, || {
                black_box(decoded(&mut decoder, &block));
            });
        }
        Ok(())
    }

    /// What a pick costs among 10 hosts and among 1,000, by policy.
    fn load_balancing(&self) -> Result<Vec<(String, [f64; 2])>> {
        use cluster_pb::cluster::LbPolicy;
        let mut figures = Vec::new();
        for policy in
            [LbPolicy::RoundRobin, LbPolicy::LeastRequest, LbPolicy::Random, LbPolicy::RingHash, LbPolicy::Maglev]
        {
            let message = cluster_pb::Cluster {
                name: "bench".to_owned(),
                lb_policy: policy.into(),
                ..cluster_pb::Cluster::default()
            };
            for weights in ["equal", "weighted"] {
                let among = |n| {
                    self.pick(&format!("{policy:?} among {n}, {weights}"), &message, n, |i| {
                        (if weights == "equal" { 1 } else { 1 + i % 7 }, None)
                    })
                };
                figures.push((format!("pick: {policy:?}, {weights}"), [among(10)?, among(1_000)?]));
            }
        }
        let subsets = cluster_pb::Cluster {
            name: "bench".to_owned(),
            lb_subset_config: Some(cluster_pb::cluster::LbSubsetConfig {
                subset_selectors: vec![cluster_pb::cluster::lb_subset_config::LbSubsetSelector {
                    keys: vec!["version".to_owned()],
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..cluster_pb::Cluster::default()
        };
        let among = |n| {
            self.pick(&format!("RoundRobin in one of five subsets of {n}"), &subsets, n, |i| {
                (1, Some(serde_json::json!({"envoy.lb": {"version": (i % 5).to_string()}})))
            })
        };
        figures.push(("pick: subsets".to_owned(), [among(10)?, among(1_000)?]));
        Ok(figures)
    }

    /// Picks of a cluster with `n` hosts, each with a weight and metadata.
    fn pick(
        &self,
        name: &str,
        message: &cluster_pb::Cluster,
        n: u32,
        host: impl Fn(u32) -> (u32, Option<serde_json::Value>),
    ) -> Result<f64> {
        let config = ClusterConfig::decode(message, &mut Context::new(FieldPath::root()))
            .map_err(|e| anyhow::anyhow!("{e:?}"))?;
        let stats = ClusterStats::new(&Registry::new(1, StatsConfig::default()), "bench");
        let locality = Arc::default();
        let hosts = (0..n).map(|i| upstream_host(i, host(i), &locality)).collect();
        let groups = vec![HostGroup { priority: 0, locality, weight: None, hosts }];
        let set = HostGroups { groups, overprovisioning_factor: 140, weighted_health: false, grouping: Grouping::None }
            .priority_set();
        let tables = LbTables::new(&config, &set, &stats);
        let mut worker = WorkerLb::with_seed(1);
        let wanted = serde_json::json!({"version": "3"});
        let mut hash = 0_u64;
        Ok(self.time(&format!("pick: {name}"), || {
            hash = hash.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let context = LbContext { hash: Some(hash), metadata_match: wanted.as_object(), ..LbContext::default() };
            black_box(worker.choose_host(&tables, &set, &context, &stats));
        }))
    }

    fn stats(&self) {
        stat_family! {
            struct Family {
                counters { a, b }
                gauges { g }
                histograms { h: Milliseconds }
            }
        }
        let registry = Registry::new(2, StatsConfig::default());
        let family = Family::new(&registry, "bench.");
        self.time("stats: count", || family.a().inc());
        self.time("stats: what a request counts (8 counters, 2 gauges)", || {
            for _ in 0..4 {
                family.a().inc();
                family.b().add(100);
            }
            family.g().inc();
            family.g().dec();
        });
        self.time("stats: record in a histogram", || family.h().record(17));
        let blocks: Vec<Family> = (0..1000).map(|i| Family::new(&registry, &format!("bench.{i}."))).collect();
        self.time("stats: read 2,000 counters", || {
            let sum: u64 = blocks.iter().map(|f| f.a().value() + f.b().value()).sum();
            black_box(sum);
        });
    }
}

fn decoded(decoder: &mut Decoder, block: &[u8]) -> Headers {
    let mut headers = Headers::with_capacity(24);
    let result = decoder.decode(block, |field, _| {
        if let Field::Valid(name, value) = field {
            headers.append(name, value);
        }
        ControlFlow::Continue(())
    });
    debug_assert_eq!(result, Ok(()));
    headers
}

fn three(n: usize) -> [usize; 3] {
    [0, n / 2, n - 1]
}

fn table(virtual_hosts: Vec<pb::VirtualHost>) -> Result<RouteTable> {
    let message =
        pb::RouteConfiguration { name: "bench".to_owned(), virtual_hosts, ..pb::RouteConfiguration::default() };
    let config = RouteConfiguration::decode(&message, &mut Context::new(FieldPath::root()));
    let config = config.map_err(|e| anyhow::anyhow!("{e:?}"))?;
    RouteTable::build(Arc::new(config)).map_err(|e| anyhow::anyhow!("{e:?}"))
}

fn host(name: &str, domain: &str, routes: Vec<pb::Route>) -> pb::VirtualHost {
    let domains = vec![domain.to_owned()];
    pb::VirtualHost { name: name.to_owned(), domains, routes, ..pb::VirtualHost::default() }
}

fn route(path: pb::route_match::PathSpecifier) -> pb::Route {
    let matches = pb::RouteMatch { path_specifier: Some(path), ..pb::RouteMatch::default() };
    let cluster = pb::route_action::ClusterSpecifier::Cluster("c".to_owned());
    let action = pb::RouteAction { cluster_specifier: Some(cluster), ..pb::RouteAction::default() };
    pb::Route { r#match: Some(matches), action: Some(pb::route::Action::Route(action)), ..pb::Route::default() }
}

fn any() -> pb::Route {
    route(pb::route_match::PathSpecifier::Prefix("/".to_owned()))
}

fn request(headers: &Headers) -> RouteRequest<'_> {
    let scheme = b"http";
    RouteRequest {
        headers,
        scheme,
        internal: false,
        random: 7,
        tls: None,
        dynamic_metadata: None,
        info: None,
        filter_state: None,
        runtime: &NoRuntime,
    }
}

fn headers(authority: &str, path: &str) -> Headers {
    let mut headers = Headers::with_capacity(24);
    let fields = [(names::METHOD, "GET"), (names::PATH, path), (names::AUTHORITY, authority)];
    for (name, value) in fields {
        headers.append(name, HeaderValue::from_checked(value.as_bytes().to_vec().into()));
    }
    for (name, value) in client_headers() {
        headers.append(name, value);
    }
    headers
}

/// What a browser sends, roughly.
fn client_headers() -> Vec<(HeaderName, HeaderValue)> {
    let fields = [
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-language", "en-US,en;q=0.5"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("connection", "keep-alive"),
        ("cookie", "session=0123456789abcdef; theme=dark"),
        ("x-custom-one", "1"),
        ("x-custom-two", "2"),
    ];
    fields.iter().filter_map(|(n, v)| Some((HeaderName::parse(n)?, HeaderValue::parse(*v)?))).collect()
}

fn upstream_host(
    i: u32,
    (weight, metadata): (u32, Option<serde_json::Value>),
    locality: &Arc<nuncio_config::cluster::Locality>,
) -> Arc<Host> {
    let port = u16::try_from(10_000 + i).unwrap_or(1);
    Arc::new(Host::new(HostDescription {
        address: Address::Ip(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        additional_addresses: Vec::new(),
        hostname: "".into(),
        locality: locality.clone(),
        priority: 0,
        weight,
        health: HealthStatus::Unknown,
        metadata: metadata.map(Arc::new),
        transport_socket_match: None,
        own_health_check: None,
    }))
}
