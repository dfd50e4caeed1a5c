//! Configuration that changes while the proxy serves: files as the source, requests all the time, and none may fail.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nuncio::loading;
use nuncio::log::Log;
use nuncio::options::Options;
use nuncio::server::{self, Server};
use tokio::sync::oneshot;

const LIMIT: Duration = Duration::from_secs(60);

/// An upstream that answers every request with its name.
struct Upstream {
    port: u16,
}

impl Upstream {
    fn start(name: &'static str) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                std::thread::spawn(move || {
                    let mut writer = stream.try_clone().unwrap();
                    let mut reader = BufReader::new(stream);
                    loop {
                        let mut line = String::new();
                        while line != "\r\n" {
                            line.clear();
                            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                                return;
                            }
                        }
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                        if writer.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Upstream { port }
    }
}

/// A client with one connection that it keeps as long as it may.
struct Client {
    address: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    fn new(address: SocketAddr) -> Client {
        Client { address, stream: None }
    }

    fn get(&mut self, path: &str) -> std::io::Result<(u16, String)> {
        let result = self.try_get(path);
        if result.is_err() {
            self.stream = None;
        }
        result
    }

    fn try_get(&mut self, path: &str) -> std::io::Result<(u16, String)> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.address)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.set_nodelay(true)?;
            self.stream = Some(BufReader::new(stream));
        }
        let reader = self.stream.as_mut().unwrap();
        reader.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nhost: a.example\r\n\r\n").as_bytes())?;
        let mut head = String::new();
        loop {
            let before = head.len();
            if reader.read_line(&mut head)? == 0 {
                return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, format!("after {head:?}")));
            }
            if head.len() - before == 2 {
                break;
            }
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
        let header = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        let mut body = vec![0; header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0)];
        reader.read_exact(&mut body)?;
        if header("connection").as_deref() == Some("close") {
            self.stream = None;
        }
        Ok((status, String::from_utf8(body).unwrap()))
    }
}

/// Requests without a pause, from several connections.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(address: SocketAddr, path: &'static str) -> Load {
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let threads = (0..4).map(|_| {
            let (stop, sent) = (stop.clone(), sent.clone());
            std::thread::spawn(move || {
                let mut client = Client::new(address);
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) && failed.len() < 20 {
                    sent.fetch_add(1, Ordering::Relaxed);
                    match client.get(path) {
                        Ok((200, _)) => {}
                        Ok((status, body)) => failed.push(format!("{status} {body}")),
                        Err(error) => failed.push(error.to_string()),
                    }
                    std::thread::sleep(Duration::from_micros(300));
                }
                failed
            })
        });
        Load { threads: threads.collect(), stop, sent }
    }

    /// Waits until `count` more requests have been sent.
    fn pass(&self, count: u64) {
        let goal = self.sent.load(Ordering::Relaxed) + count;
        until("requests", || {
            self.sent.load(Ordering::Relaxed) >= goal || self.threads.iter().any(JoinHandle::is_finished)
        });
    }

    /// Ends it; every request must have had its 200.
    fn assert_no_failure(self) {
        self.stop.store(true, Ordering::Relaxed);
        let failed: Vec<_> = self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let sent = self.sent.load(Ordering::Relaxed);
        assert!(failed.is_empty(), "{} of {sent} requests failed: {failed:?}", failed.len());
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A proxy that takes everything from files in a folder of its own.
struct World {
    folder: tempfile::TempDir,
    server: Arc<Server>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl World {
    fn new(resources: &[(&str, String)]) -> World {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| folder.path().join(name);
        for (name, text) in resources {
            std::fs::write(of(name), with_folder(text, folder.path())).unwrap();
        }
        let config = format!(
            "node: {{id: test, cluster: test}}\n\
             dynamic_resources:\n  cds_config: {{path_config_source: {{path: {}}}}}\n  lds_config: {{path_config_source: {{path: {}}}}}\n",
            of("cds.yaml").display(),
            of("lds.yaml").display()
        );
        let args = [
            "nuncio",
            "--config-yaml",
            &config,
            "--concurrency",
            "2",
            "-l",
            "warning",
            "--drain-time-s",
            "2",
            "--drain-strategy",
            "immediate",
        ];
        let options = Options::parse_args(args.map(str::to_owned).to_vec()).map_err(|(text, _)| text).unwrap();
        let log = Log::install("warning", "", "%v", false, None).unwrap();
        let bootstrap = loading::load(&options).unwrap_or_else(|report| panic!("{report}"));
        let bound = server::build(bootstrap, options, log, true).unwrap_or_else(|e| panic!("{e:?}"));
        let server = bound.server.clone();
        let (stop, stopped) = oneshot::channel();
        let run = move || bound.run_until(async move { stopped.await.unwrap_or_default() }).unwrap();
        let thread = std::thread::spawn(run);
        let world = World { folder, server, stop: Some(stop), thread: Some(thread) };
        until("live", || world.server.state() == server::State::Live);
        world
    }

    /// Replaces a file as programs that care do it: written beside, then renamed.
    fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        let beside = self.folder.path().join(format!("{name}.new"));
        std::fs::write(&beside, with_folder(text, self.folder.path())).unwrap();
        std::fs::rename(beside, path).unwrap();
    }

    fn address_of(&self, listener: &str) -> Option<SocketAddr> {
        let active = self.server.listeners.active();
        active.iter().find(|own| **own.name() == *listener)?.addresses().first()?.socket_addr()
    }

    fn address(&self) -> SocketAddr {
        self.address_of("l").unwrap()
    }

    fn count(&self, name: &str) -> u64 {
        let registry = &self.server.context.registry;
        registry.counter_value(name).or_else(|| registry.gauge_value(name)).unwrap_or(0)
    }

    fn until_count(&self, name: &str, value: u64) {
        until(&format!("{name} is {value}"), || self.count(name) >= value);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn with_folder(text: &str, folder: &std::path::Path) -> String {
    text.replace("@DIR@", &PathBuf::from(folder).display().to_string())
}

fn cds(version: u32, clusters: &[(&str, &str)]) -> String {
    let clusters: String = clusters
        .iter()
        .map(|(name, extra)| {
            format!(
                "- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: {name}\n  type: EDS\n  {extra}\n  \
                 eds_cluster_config: {{eds_config: {{path_config_source: {{path: \"@DIR@/eds-{name}.yaml\"}}}}}}\n"
            )
        })
        .collect();
    format!("version_info: \"{version}\"\nresources:\n{clusters}")
}

fn eds(version: u32, name: &str, ports: &[u16]) -> String {
    let endpoints: Vec<_> = ports
        .iter()
        .map(|port| {
            format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}")
        })
        .collect();
    format!(
        "version_info: \"{version}\"\nresources:\n\
         - \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n  cluster_name: {name}\n  \
         endpoints: [{{lb_endpoints: [{}]}}]\n",
        endpoints.join(", ")
    )
}

fn listener(name: &str, address: &str, extra: &str, stat_prefix: &str) -> String {
    format!(
        "- \"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\n  name: {name}\n  \
         address: {{socket_address: {{address: {address}, port_value: 0}}}}\n  {extra}\n  filter_chains:\n  - filters:\n    \
         - name: hcm\n      typed_config:\n        \
         \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n        \
         stat_prefix: {stat_prefix}\n        \
         rds: {{route_config_name: r, config_source: {{path_config_source: {{path: \"@DIR@/rds.yaml\"}}}}}}\n        \
         http_filters:\n        - name: router\n          \
         typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}\n"
    )
}

fn lds(version: u32, listeners: &[String]) -> String {
    format!("version_info: \"{version}\"\nresources:\n{}", listeners.concat())
}

fn rds(version: u32, cluster: &str) -> String {
    format!(
        "version_info: \"{version}\"\nresources:\n\
         - \"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration\n  name: r\n  virtual_hosts:\n  \
         - name: v\n    domains: [\"*\"]\n    routes:\n    \
         - {{match: {{prefix: /version}}, direct_response: {{status: 200, body: {{inline_string: v{version}}}}}}}\n    \
         - {{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}\n"
    )
}

fn world(ports: &[u16]) -> World {
    World::new(&[
        ("cds.yaml", cds(1, &[("one", "connect_timeout: 5s")])),
        ("eds-one.yaml", eds(1, "one", ports)),
        ("eds-two.yaml", eds(1, "two", ports)),
        ("lds.yaml", lds(1, &[listener("l", "127.0.0.1", "", "a")])),
        ("rds.yaml", rds(1, "one")),
    ])
}

#[test]
fn routes_are_switched_under_load() {
    let upstream = Upstream::start("up");
    let world = world(&[upstream.port]);
    let load = Load::start(world.address(), "/");
    let mut client = Client::new(world.address());
    for version in 2..=30 {
        world.write("rds.yaml", &rds(version, "one"));
        until("the new route", || client.get("/version").unwrap() == (200, format!("v{version}")));
    }
    load.assert_no_failure();
    assert!(world.count("http.a.rds.r.update_success") >= 30);
    assert_eq!(world.count("http.a.rds.r.config_reload"), 30);
}

#[test]
fn endpoints_come_and_go_under_load() {
    let (first, second) = (Upstream::start("first"), Upstream::start("second"));
    let world = world(&[first.port]);
    let load = Load::start(world.address(), "/");
    let mut client = Client::new(world.address());
    for version in 2..=30 {
        let (name, upstream) = if version % 2 == 0 { ("second", &second) } else { ("first", &first) };
        world.write("eds-one.yaml", &eds(version, "one", &[upstream.port]));
        until("the other host", || client.get("/").unwrap() == (200, name.to_owned()));
    }
    load.assert_no_failure();
    assert_eq!(world.count("cluster.one.membership_change"), 30);
    assert_eq!(world.count("cluster.one.membership_total"), 1);
}

#[test]
fn clusters_change_come_and_go_under_load() {
    let upstream = Upstream::start("up");
    let world = world(&[upstream.port]);
    let load = Load::start(world.address(), "/");
    for version in 2..=15 {
        let timeout = format!("connect_timeout: {version}s");
        world.write("cds.yaml", &cds(version, &[("one", &timeout), ("two", "connect_timeout: 5s")]));
        world.until_count("cluster_manager.cds.update_success", u64::from(version));
        load.pass(20);
    }
    assert_eq!(world.count("cluster_manager.cluster_modified"), 14);
    assert_eq!(world.count("cluster_manager.cluster_added"), 2);
    world.write("rds.yaml", &rds(2, "two"));
    world.until_count("http.a.rds.r.update_success", 2);
    load.pass(20);
    world.write("cds.yaml", &cds(16, &[("two", "connect_timeout: 5s")]));
    world.until_count("cluster_manager.cluster_removed", 1);
    load.pass(50);
    load.assert_no_failure();
    assert_eq!(world.count("cluster_manager.active_clusters"), 1);
    assert_eq!(world.count("cluster_manager.warming_clusters"), 0);
}

#[test]
fn filter_chains_are_swapped_in_place_under_load() {
    let upstream = Upstream::start("up");
    let world = world(&[upstream.port]);
    let before = world.address();
    let load = Load::start(before, "/");
    for version in 2..=15 {
        world.write("lds.yaml", &lds(version, &[listener("l", "127.0.0.1", "", &format!("p{version}"))]));
        world.until_count("listener_manager.listener_in_place_updated", u64::from(version) - 1);
        load.pass(50);
        until("requests in the new chain", || world.count(&format!("http.p{version}.downstream_rq_completed")) > 0);
    }
    load.assert_no_failure();
    assert_eq!(world.address(), before);
    assert_eq!(world.count("listener_manager.total_listeners_draining"), 0);
    until("the old chains are gone", || world.count("listener_manager.total_filter_chains_draining") == 0);
}

#[test]
fn a_listener_is_replaced_on_its_sockets_under_load() {
    let upstream = Upstream::start("up");
    let world = world(&[upstream.port]);
    let before = world.address();
    let load = Load::start(before, "/");
    for version in 2..=12 {
        let limit = format!("per_connection_buffer_limit_bytes: {}", 1000 * version);
        world.write("lds.yaml", &lds(version, &[listener("l", "127.0.0.1", &limit, "a")]));
        world.until_count("listener_manager.listener_modified", u64::from(version) - 1);
        load.pass(50);
    }
    load.assert_no_failure();
    assert_eq!(world.address(), before);
    assert_eq!(world.count("listener_manager.listener_in_place_updated"), 0);
    until("the old listeners are gone", || world.count("listener_manager.total_listeners_draining") == 0);
}

#[test]
fn listeners_come_and_go_beside_one_that_serves() {
    let upstream = Upstream::start("up");
    let world = world(&[upstream.port]);
    let load = Load::start(world.address(), "/");
    let both = |version| lds(version, &[listener("l", "127.0.0.1", "", "a"), listener("m", "127.0.0.1", "", "b")]);
    for version in 2..=6 {
        world.write("lds.yaml", &both(version));
        until("the new listener", || world.address_of("m").is_some());
        let address = world.address_of("m").unwrap();
        until("an answer", || Client::new(address).get("/").is_ok_and(|answer| answer.0 == 200));
        world.write("lds.yaml", &lds(version, &[listener("l", "127.0.0.1", "", "a")]));
        until("its end", || world.address_of("m").is_none());
        until("nobody listens", || TcpStream::connect(address).is_err());
    }
    load.assert_no_failure();
    assert_eq!(world.count("listener_manager.listener_removed"), 5);
}

#[test]
fn of_a_partly_bad_update_the_good_part_is_applied_and_the_bad_one_is_told() {
    let upstream = Upstream::start("up");
    let world = world(&[upstream.port]);
    let bad = listener("bad", "not-an-address", "", "a");
    world.write("lds.yaml", &lds(2, &[bad, listener("m", "127.0.0.1", "", "b")]));
    world.until_count("listener_manager.lds.update_rejected", 1);
    until("the good one", || world.address_of("m").is_some());
    assert!(world.address_of("bad").is_none() && world.address_of("l").is_none());
    let failure = world.server.resources.listeners().failure("bad").unwrap().details.clone();
    assert!(failure.starts_with("malformed IP address: not-an-address"), "{failure}");
    world.write("rds.yaml", &rds(2, "one").replace("domains: [\"*\"]", "domains: [\"*\", \"*\"]"));
    // The table is that of the first listener that asked for it.
    world.until_count("http.a.rds.r.update_rejected", 1);
    let address = world.address_of("m").unwrap();
    assert_eq!(Client::new(address).get("/version").unwrap(), (200, "v1".to_owned()));
}

/// A certificate for `a.example` with its key, self-signed, as PEM.
fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn sds(version: u32, name: &str, (certificate, key): &(String, String)) -> String {
    let quoted = |text: &str| format!("{text:?}");
    format!(
        "version_info: \"{version}\"\nresources:\n\
         - \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: {name}\n  \
         tls_certificate: {{certificate_chain: {{inline_string: {}}}, private_key: {{inline_string: {}}}}}\n",
        quoted(certificate),
        quoted(key)
    )
}

fn tls_listener(name: &str) -> String {
    listener(name, "127.0.0.1", "", "t").replace(
        "  - filters:\n",
        "  - transport_socket:\n      name: tls\n      typed_config:\n        \
         \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n        \
         common_tls_context: {tls_certificate_sds_secret_configs: [{name: cert, sds_config: \
         {path_config_source: {path: \"@DIR@/sds.yaml\"}}}]}\n    filters:\n",
    )
}

/// The certificate that a listener shows, as PEM without its line ends.
fn shown_certificate(address: SocketAddr) -> Option<Vec<u8>> {
    use nuncio_net::connection::Plain;
    use nuncio_net::tls::client::{ClientTarget, ClientTlsContext};
    let registry = nuncio_base::stats::Registry::new(1, nuncio_base::stats::StatsConfig::default());
    let message = envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext {
        sni: "a.example".to_owned(),
        ..Default::default()
    };
    let config = nuncio_config::decode::Context::default()
        .run(|cx| nuncio_config::tls::UpstreamTlsContext::from_message(cx, &message))
        .unwrap();
    let stats = Arc::new(nuncio_net::tls::TlsStats::client(&registry, "t."));
    let context = ClientTlsContext::new(Arc::new(config), stats).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let session = context.connect(Plain::tcp(stream), &ClientTarget::default()).await.ok()?;
        session.tls.peer_certificates.first().map(|certificate| certificate.to_vec())
    })
}

fn der(certificate: &(String, String)) -> Vec<u8> {
    use base64::Engine as _;
    let body: String = certificate.0.lines().filter(|line| !line.starts_with("---")).collect();
    base64::engine::general_purpose::STANDARD.decode(body).unwrap()
}

#[test]
fn certificates_are_rotated_and_a_bad_one_changes_nothing() {
    let upstream = Upstream::start("up");
    let world = world(&[upstream.port]);
    let load = Load::start(world.address(), "/");
    let first = certificate();
    world.write("sds.yaml", &sds(1, "cert", &first));
    world.write("lds.yaml", &lds(2, &[listener("l", "127.0.0.1", "", "a"), tls_listener("t")]));
    until("the listener", || world.address_of("t").is_some());
    let address = world.address_of("t").unwrap();
    until("the first certificate", || shown_certificate(address).as_ref() == Some(&der(&first)));
    for version in 2..=6 {
        let next = certificate();
        world.write("sds.yaml", &sds(version, "cert", &next));
        until("the next certificate", || shown_certificate(address).as_ref() == Some(&der(&next)));
        let refused = world.count("sds.cert.update_rejected");
        world.write("sds.yaml", &sds(version, "cert", &(next.0.clone(), certificate().1)));
        world.until_count("sds.cert.update_rejected", refused + 1);
        assert_eq!(shown_certificate(address), Some(der(&next)));
    }
    load.assert_no_failure();
}

#[test]
fn a_listener_waits_for_its_secret() {
    let upstream = Upstream::start("up");
    let world = world(&[upstream.port]);
    let first = certificate();
    // The file is there, but its secret is another: nothing comes under the name.
    world.write("sds.yaml", "version_info: \"0\"\nresources: []\n");
    world.write("lds.yaml", &lds(2, &[listener("l", "127.0.0.1", "", "a"), tls_listener("t")]));
    world.until_count("sds.cert.update_rejected", 1);
    // A refused answer ends the waiting, as in Envoy: the listener runs and resets connections.
    until("the listener", || world.address_of("t").is_some());
    let address = world.address_of("t").unwrap();
    until("a refused handshake", || {
        shown_certificate(address).is_none()
            && world.server.context.registry.snapshot().counters.iter().any(|(name, value)| {
                name.to_string().ends_with("downstream_context_secrets_not_ready") && value.value > 0
            })
    });
    world.write("sds.yaml", &sds(1, "cert", &first));
    until("the certificate", || shown_certificate(address).as_ref() == Some(&der(&first)));
}
