//! What a request may allocate. The real server runs here under an allocator that counts; client and upstream are
//! scripts over fixed buffers, so that everything counted is the proxy's.
//!
//! The ceilings are what was measured plus one: who goes over has put allocations on the path of every request. Of those
//! on HTTP/1.1 two are futures, two header lists, and the rest values that are made for the request (id, rewritten path,
//! formatted headers) and the response's head.
//!
//! `NUNCIO_ALLOCATION_SITES=1 cargo test -p nuncio --test allocations -- --nocapture` prints
//! where they are made.

#![allow(clippy::print_stdout, reason = "figures are what people run it for")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use nuncio::listeners::ListenerManager;
use nuncio::log::Log;
use nuncio::options::Options;
use nuncio::stats::ListenerManagerStats;
use nuncio::{hcm_builder, loading, server};
use nuncio_config::listener::NetworkFilterConfig;
use nuncio_extensions::registry;
use nuncio_http::filter::{DataAction, HeadersAction, Hooks, HttpFilter, StreamView};
use nuncio_http::filter_chains::ChainSource;
use nuncio_http::headers::{Headers, names};
use nuncio_net::listener::{Listener, ListenerParts};
use tokio::sync::oneshot;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// One profiler, hence one measurement, at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const REQUESTS: u64 = 2_000;
const WARM_UP: u64 = 200;

/// What ends the body of every response.
const END: &[u8] = b"END!";

const UPSTREAM_RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\n\
    cache-control: no-store\r\nx-served-by: script\r\n\r\nhello 789END!";

const H1_REQUEST: &[u8] = b"GET /api/items/17?full=1 HTTP/1.1\r\nhost: shop.example\r\nuser-agent: script/1.0\r\n\
    accept: text/html,application/xhtml+xml\r\naccept-language: en-US,en;q=0.5\r\naccept-encoding: gzip, br\r\n\
    cookie: session=0123456789abcdef; theme=dark\r\nx-custom-one: 1\r\nx-custom-two: 2\r\n\r\n";

/// What is around the request, to show that its cost does not depend on it.
#[derive(Clone, Copy, Default)]
struct Around {
    filters: usize,
    routes: usize,
    virtual_hosts: usize,
    clusters: usize,
}

impl Around {
    const MUCH: Around = Around { filters: 4, routes: 40, virtual_hosts: 40, clusters: 40 };
}

#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    Http1,
    Http2,
}

#[test]
fn an_http1_request_stays_under_its_ceiling() {
    hold("h1", 11.0, measure("h1", Protocol::Http1, Around::default()));
}

#[test]
fn an_http2_request_stays_under_its_ceiling() {
    hold("h2c", 16.0, measure("h2c", Protocol::Http2, Around::default()));
}

#[test]
fn filters_routes_and_stats_do_not_allocate_per_request() {
    for (name, protocol) in [("h1", Protocol::Http1), ("h2c", Protocol::Http2)] {
        let plain = measure(name, protocol, Around::default());
        let much = measure(name, protocol, Around::MUCH);
        // What the control thread does beside adds a few in all.
        assert!(
            (much - plain).abs() < 0.2,
            "{name}: {plain:.2} allocations per request, {much:.2} with much around it"
        );
    }
}

#[track_caller]
fn hold(name: &str, ceiling: f64, measured: f64) {
    println!("{name}: {measured:.2} allocations per request, ceiling {ceiling}");
    assert!(measured <= ceiling, "{name}: {measured:.2} allocations per request, above the ceiling of {ceiling}");
    assert!(measured > 1.0, "{name}: nothing is counted");
}

/// A filter without state that reads the request and adds nothing.
struct Reader;

impl HttpFilter for Reader {
    type State = ();

    fn hooks(&self) -> Hooks {
        Hooks { decode_headers: true, encode_headers: true, complete: true, ..Hooks::default() }
    }

    fn decode_headers(&self, (): &mut (), view: &mut StreamView<'_>, _: bool) -> HeadersAction {
        assert!(view.request.contains(&names::PATH));
        HeadersAction::Continue
    }

    fn encode_headers(&self, (): &mut (), _: &mut StreamView<'_>, response: &mut Headers, _: bool) -> DataAction {
        assert!(response.contains(&names::STATUS));
        DataAction::Continue
    }
}

/// Allocations per request on one connection, once everything is warm.
fn measure(name: &str, protocol: Protocol, around: Around) -> f64 {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(dir.path(), upstream(), around);
    let mut client = Client::new(proxy.address, protocol);
    (0..WARM_UP).for_each(|_| client.request());
    let sites = std::env::var_os("NUNCIO_ALLOCATION_SITES").is_some().then(|| dir.path().join("sites.json"));
    let profiler = match &sites {
        None => dhat::Profiler::builder().testing().build(),
        Some(file) => dhat::Profiler::builder().file_name(file).trim_backtraces(Some(40)).build(),
    };
    (0..REQUESTS).for_each(|_| client.request());
    let blocks = dhat::HeapStats::get().total_blocks;
    drop(profiler);
    if let Some(file) = &sites {
        print_sites(name, file);
    }
    drop(client);
    proxy.stop();
    blocks as f64 / REQUESTS as f64
}

/// Where the allocations of a profile were made, most frequent first.
fn print_sites(name: &str, file: &Path) {
    let profile: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let frames = profile["ftbl"].as_array().unwrap();
    let mut sites: Vec<(f64, u64, String)> = Vec::new();
    for point in profile["pps"].as_array().unwrap() {
        let per_request = point["tbk"].as_u64().unwrap() as f64 / REQUESTS as f64;
        let stack = point["fs"].as_array().unwrap().iter().filter_map(|i| frames[i.as_u64()? as usize].as_str());
        let own: Vec<&str> = stack
            .filter(|f| !["(alloc/", "(core/", "(std/", "(src/", "__rust_alloc", "???"].iter().any(|s| f.contains(s)))
            .collect();
        let bytes = point["tb"].as_u64().unwrap() / point["tbk"].as_u64().unwrap().max(1);
        sites.push((per_request, bytes, own[..own.len().min(5)].join("\n        ")));
    }
    sites.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (per_request, bytes, stack) in sites.iter().filter(|s| s.0 > 0.005) {
        println!("{name}: {per_request:.2} per request, {bytes} bytes\n        {stack}");
    }
}

struct Proxy {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Proxy {
    fn start(dir: &Path, upstream: SocketAddr, around: Around) -> Proxy {
        let config = bootstrap(dir, upstream, around);
        let args = ["nuncio", "--config-yaml", &config, "--concurrency", "1", "-l", "error"];
        let options = Options::parse_args(args.map(str::to_owned).to_vec()).map_err(|(text, _)| text).unwrap();
        let log = Log::install("error", "", "%v", false, None).unwrap();
        let bootstrap = loading::load(&options).unwrap_or_else(|report| panic!("{report}"));
        let mut bound = server::build(bootstrap, options, log, false).unwrap_or_else(|e| panic!("{e:?}"));
        let listener = with_filters(&bound.server, around.filters);
        listener.bind(1).unwrap();
        let address = match listener.addresses().into_iter().next().unwrap() {
            nuncio_net::address::Address::Ip(address) => address,
            other => panic!("listens at {other}"),
        };
        let stats = ListenerManagerStats::new(&bound.server.context.registry, "listener_manager.");
        let listeners = ListenerManager::new(stats, 1);
        listeners.add_static(listener);
        Arc::get_mut(&mut bound.server).unwrap().listeners = listeners;
        let (stop, stopped) = oneshot::channel();
        let run = move || bound.run_until(async move { stopped.await.unwrap_or_default() }).unwrap();
        Proxy { address, stop, thread: std::thread::spawn(run) }
    }

    fn stop(self) {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

/// The first listener of the server, built as the server builds it, with filters that no configuration names.
fn with_filters(server: &server::Server, filters: usize) -> Arc<Listener> {
    let context = &server.context;
    let config = server.listeners.active()[0].config();
    let parts = ListenerParts {
        registry: &context.registry,
        global: context.global.clone(),
        drain: &context.drain,
        contexts: &context.contexts,
        filter_chain: &|chain| {
            let Some(NetworkFilterConfig::Http(hcm)) = chain.filters.first() else { panic!("an HTTP filter chain") };
            let mut chain = registry::http_chain(&hcm.http_filters, &context.factory_context()).unwrap();
            for i in 0..filters {
                chain.push(format!("reader-{i}").into(), Reader);
            }
            // As of a chain with a filter whose configuration is fetched.
            let chains = ChainSource::Swapped(Arc::new(ArcSwap::from_pointee(chain.into())));
            let mut errors = Vec::new();
            let (hcm, routes) = hcm_builder::assemble(hcm, chains, "listener.test.", context, &mut errors).unwrap();
            let buffer_limit = config.per_connection_buffer_limit_bytes as usize;
            Ok(Arc::new(hcm_builder::HttpFactory { hcm: Arc::new(hcm), buffer_limit, routes, discovered: Vec::new() }))
        },
        listener_filter: &|_| Err("no listener filters here".to_owned()),
        in_fraction: Arc::new(|_, _| false),
        access_logs: Vec::new(),
    };
    Listener::new(config.clone(), parts).unwrap()
}

/// An edge as people configure it: access log, request id, forwarded headers, mutations on three levels, retries,
/// rewriting, two hosts.
fn bootstrap(dir: &Path, upstream: SocketAddr, around: Around) -> String {
    let log = dir.join("access.log").display().to_string();
    let port = upstream.port();
    let hosts: String = (0..around.virtual_hosts)
        .map(|i| {
            format!(
                "\n            - {{name: other-{i}, domains: [\"h{i}.example\", \"*.w{i}.example\"], \
                 routes: [{{match: {{prefix: /}}, route: {{cluster: main}}}}]}}"
            )
        })
        .collect();
    let routes: String = (0..around.routes)
        .map(|i| {
            format!(
                "\n              - {{name: other-{i}, match: {{prefix: /other-{i}, headers: \
                 [{{name: x-kind, string_match: {{exact: k{i}}}}}]}}, route: {{cluster: main}}}}"
            )
        })
        .collect();
    let clusters: String = (0..around.clusters)
        .map(|i| {
            format!(
                "\n  - {{name: other-{i}, load_assignment: {{cluster_name: other-{i}, endpoints: [{{lb_endpoints: \
                 [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}}}"
            )
        })
        .collect();
    format!(
        r#"
static_resources:
  listeners:
  - name: edge
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: edge
          use_remote_address: true
          normalize_path: true
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {log}
          route_config:
            name: edge
            request_headers_to_add: [{{header: {{key: x-edge, value: test}}}}]
            response_headers_to_add: [{{header: {{key: strict-transport-security, value: max-age=600}}}}]
            virtual_hosts:{hosts}
            - name: shop
              domains: [shop.example, "*.shop.example"]
              request_headers_to_remove: [x-custom-two]
              response_headers_to_remove: [x-served-by]
              routes:
              - match: {{path: /health}}
                direct_response: {{status: 200}}
              - match: {{safe_regex: {{regex: "/img/[a-z]+"}}}}
                route: {{cluster: main}}{routes}
              - name: api
                match: {{prefix: /api/}}
                request_headers_to_add: [{{header: {{key: x-client, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}}}]
                route:
                  cluster: main
                  timeout: 5s
                  prefix_rewrite: /v2/
                  retry_policy: {{retry_on: "5xx,reset", num_retries: 2}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:{clusters}
  - name: main
    load_assignment:
      cluster_name: main
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.2, port_value: {port}}}}}}}
"#
    )
}

/// Answers every request the same; its threads end with their connections.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                let mut have = 0;
                while let Ok(n @ 1..) = connection.read(&mut buffer[have..]) {
                    have += n;
                    if buffer[..have].ends_with(b"\r\n\r\n") {
                        have = 0;
                        if connection.write_all(UPSTREAM_RESPONSE).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

/// One connection over a fixed buffer.
struct Client {
    socket: TcpStream,
    protocol: Protocol,
    stream: u32,
    request: Vec<u8>,
}

const DATA: u8 = 0;
const SETTINGS: u8 = 4;

impl Client {
    fn new(address: SocketAddr, protocol: Protocol) -> Client {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        let request = match protocol {
            Protocol::Http1 => H1_REQUEST.to_vec(),
            Protocol::Http2 => {
                socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
                h2_request()
            }
        };
        Client { socket, protocol, stream: 1, request }
    }

    /// Sends the request and reads its response to the end.
    fn request(&mut self) {
        if self.protocol == Protocol::Http2 {
            self.request[5..9].copy_from_slice(&self.stream.to_be_bytes());
        }
        self.socket.write_all(&self.request).unwrap();
        match self.protocol {
            Protocol::Http1 => self.read_h1(),
            Protocol::Http2 => self.read_h2(),
        }
        self.stream += 2;
    }

    fn read_h1(&mut self) {
        let mut buffer = [0; 4096];
        let mut have = 0;
        while !buffer[..have].ends_with(END) {
            let n = self.socket.read(&mut buffer[have..]).unwrap();
            assert!(n > 0, "the proxy closed the connection");
            have += n;
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", buffer[..have].escape_ascii());
    }

    fn read_h2(&mut self) {
        let mut body = [0; 16384];
        loop {
            let mut head = [0; 9];
            self.socket.read_exact(&mut head).unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            self.socket.read_exact(&mut body[..length]).unwrap();
            let (kind, flags) = (head[3], head[4]);
            if kind == SETTINGS && flags & 1 == 0 {
                self.socket.write_all(b"\0\0\0\x04\x01\0\0\0\0").unwrap();
            }
            assert!(![3, 7].contains(&kind), "reset or GOAWAY");
            // RST_STREAM and GOAWAY apart, everything before the end of the body may be anything.
            if kind == DATA && flags & 1 == 1 {
                assert!(length == 0 || body[..length].ends_with(END));
                return;
            }
        }
    }
}

/// The same request as a HEADERS frame of literals, which leaves the peer's table alone.
fn h2_request() -> Vec<u8> {
    let text = std::str::from_utf8(H1_REQUEST).unwrap();
    let path = text.split(' ').nth(1).unwrap();
    let fields = text.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
    let pseudo = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "shop.example")];
    let mut block = Vec::new();
    for (name, value) in pseudo.into_iter().chain(fields.filter(|(name, _)| *name != "host")) {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    let length = u32::try_from(block.len()).unwrap().to_be_bytes();
    let (end_stream, end_headers) = (0x1, 0x4);
    let mut frame = vec![length[1], length[2], length[3], 1, end_stream | end_headers, 0, 0, 0, 0];
    frame.extend_from_slice(&block);
    frame
}
