//! A control plane that fails in many ways: whatever it does, the last good state is served, without one failed request,
//! and what comes after it is taken.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nuncio_tests::find;
use nuncio_tests::proxy::free_port;
use nuncio_tests::snapshots::{Message, Snapshots};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::modes::{get, until, upstream};
use crate::spawned::Spawned;

const PATIENCE: Duration = Duration::from_secs(30);

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn assignment(name: &str, port: u16) -> Value {
    json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]})
}

fn source() -> Value {
    json!({"ads": {}, "resource_api_version": "V3"})
}

fn cluster(name: &str) -> Result<Message> {
    Message::new(
        "Cluster",
        &json!({"name": name, "type": "EDS", "connect_timeout": "1s", "eds_cluster_config": {"eds_config": source()}}),
    )
}

fn endpoints(name: &str, port: u16) -> Result<Message> {
    Message::new("ClusterLoadAssignment", &assignment(name, port))
}

fn routes(cluster: &str) -> Result<Message> {
    let routes = json!([{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]);
    let hosts = json!([{"name": "all", "domains": ["*"], "routes": routes}]);
    Message::new("RouteConfiguration", &json!({"name": "routes", "virtual_hosts": hosts}))
}

fn listener(name: &str, port: u16) -> Result<Message> {
    let extension = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let manager = json!({
        "@type": extension("network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "rds": {"route_config_name": "routes", "config_source": source()},
        "http_filters": [{"name": "router", "typed_config": {"@type": extension("http.router.v3.Router")}}],
    });
    let filters = json!([{"name": "hcm", "typed_config": manager}]);
    Message::new("Listener", &json!({"name": name, "address": address(port), "filter_chains": [{"filters": filters}]}))
}

/// A proxy, its control plane, and two upstreams that say who they are.
struct Setup {
    server: Option<Snapshots>,
    port: u16,
    listener: u16,
    admin: u16,
    one: u16,
    two: u16,
    _proxy: Spawned,
    _dir: tempfile::TempDir,
}

impl Setup {
    /// Serves cluster `up` with the first upstream.
    async fn start(delta: bool) -> Result<Setup> {
        let nuncio = find::nuncio().map_err(anyhow::Error::msg)?;
        let (one, two) = (upstream("one").await?, upstream("two").await?);
        // A port that no other connection takes while the server is away.
        let (port, listener_port, admin) = (free_port(), free_port(), free_port());
        let server = Snapshots::start(port, 0)?;
        server.change(
            vec![cluster("up")?, endpoints("up", one)?, listener("main", listener_port)?, routes("up")?],
            &[],
        )?;
        let mut xds = json!({"name": "xds", "connect_timeout": "1s", "load_assignment": assignment("xds", port)});
        xds["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }});
        let bootstrap = json!({
            "node": {"id": "test", "cluster": "test"},
            "admin": {"address": address(admin)},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": if delta { "DELTA_GRPC" } else { "GRPC" },
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
                },
                "cds_config": source(),
                "lds_config": source(),
            },
            "static_resources": {"clusters": [xds]},
        });
        let dir = tempfile::tempdir()?;
        let proxy = Spawned::start(&nuncio, dir.path(), &bootstrap, &[])?;
        let setup =
            Setup { server: Some(server), port, listener: listener_port, admin, one, two, _proxy: proxy, _dir: dir };
        until(listener_port, "/", "200 one").await?;
        Ok(setup)
    }

    fn server(&self) -> Result<&Snapshots> {
        self.server.as_ref().context("no control plane")
    }

    /// Another control plane at the same port, whose state is not that of the first.
    fn restart(&mut self) -> Result<()> {
        self.server = None;
        // Sockets of the old one may be in the way for a moment.
        let deadline = Instant::now() + PATIENCE;
        let server = loop {
            match Snapshots::start(self.port, 1000) {
                Ok(server) => break server,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        // Whatever routes use at this moment stays, as every control plane has to see to; all else is different.
        let mut state =
            vec![cluster("up")?, endpoints("up", self.two)?, cluster("other")?, endpoints("other", self.one)?];
        state.extend([listener("main", self.listener)?, routes("up")?]);
        server.change(state, &[])?;
        self.server = Some(server);
        Ok(())
    }

    /// What the admin interface says.
    async fn stat(&self, name: &str) -> Result<String> {
        let answer = get(self.admin, &format!("/stats?filter=^{name}$")).await?.replacen(' ', "\n", 1);
        let value = answer.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned);
        value.with_context(|| format!("no stat {name}"))
    }

    /// Waits for a stat.
    async fn stat_is(&self, name: &str, want: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.stat(name).await;
            if value.as_ref().is_ok_and(|value| value == want) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{name} is {value:?} instead of {want}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Clients that ask all the time.
struct Load {
    asked: Arc<AtomicU64>,
    failed: Arc<OnceLock<String>>,
    task: JoinHandle<()>,
}

impl Load {
    fn start(port: u16) -> Load {
        let (asked, failed) = (Arc::<AtomicU64>::default(), Arc::<OnceLock<String>>::default());
        let (count, failure) = (asked.clone(), failed.clone());
        let task = tokio::spawn(async move {
            loop {
                match get(port, "/").await {
                    Ok(answer) if answer == "200 one" || answer == "200 two" => count.fetch_add(1, Ordering::Relaxed),
                    other => return drop(failure.set(format!("{other:?}"))),
                };
            }
        });
        Load { asked, failed, task }
    }

    /// So many more requests are answered.
    async fn goes_on(&self, more: u64) -> Result<()> {
        let want = self.asked.load(Ordering::Relaxed) + more;
        let deadline = Instant::now() + PATIENCE;
        while self.asked.load(Ordering::Relaxed) < want {
            ensure!(self.failed.get().is_none(), "a request failed: {:?}", self.failed);
            ensure!(Instant::now() < deadline, "requests are not answered any more");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn end(self) -> Result<()> {
        self.goes_on(1).await?;
        self.task.abort();
        Ok(())
    }
}

/// Runs a scenario for both forms of the protocol.
fn both<F: Future<Output = Result<()>>>(scenario: impl Fn(bool) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for delta in [false, true] {
        let done = runtime.block_on(async { tokio::time::timeout(4 * PATIENCE, scenario(delta)).await });
        done.unwrap_or_else(|_| panic!("delta {delta}: no end")).unwrap_or_else(|e| panic!("delta {delta}: {e:#}"));
    }
}

#[test]
fn a_server_that_dies_is_waited_for_and_one_with_another_state_is_believed() {
    both(|delta| async move {
        let mut setup = Setup::start(delta).await?;
        let load = Load::start(setup.listener);
        setup.server = None;
        setup.stat_is("control_plane.connected_state", "0").await?;
        load.goes_on(50).await?;
        ensure!(get(setup.listener, "/").await? == "200 one", "the last good state is served");
        setup.restart()?;
        until(setup.listener, "/", "200 two").await?;
        setup.stat_is("cluster_manager.active_clusters", "3").await?;
        setup.server()?.change(vec![routes("other")?], &[])?;
        until(setup.listener, "/", "200 one").await?;
        setup.server()?.change(Vec::new(), &[("Cluster", "up".to_owned())])?;
        setup.stat_is("cluster_manager.active_clusters", "2").await?;
        setup.server()?.nothing_refused()?;
        load.end().await
    });
}

#[test]
fn a_server_that_is_silent_changes_nothing_until_it_speaks() {
    both(|delta| async move {
        let setup = Setup::start(delta).await?;
        let load = Load::start(setup.listener);
        setup.server()?.silence(true);
        setup.server()?.change(vec![endpoints("up", setup.two)?], &[])?;
        load.goes_on(50).await?;
        ensure!(get(setup.listener, "/").await? == "200 one", "the last good state is served");
        setup.server()?.silence(false);
        until(setup.listener, "/", "200 two").await?;
        setup.server()?.nothing_refused()?;
        load.end().await
    });
}

#[test]
fn what_is_no_message_ends_the_stream_and_another_follows() {
    both(|delta| async move {
        let setup = Setup::start(delta).await?;
        let load = Load::start(setup.listener);
        let garbage: [&'static [u8]; 3] = [
            // No message of this type; compressed, which was not asked for; longer than anything may be.
            b"\0\0\0\0\x04\xff\xff\xff\xff",
            b"\x01\0\0\0\x04\0\0\0\0",
            b"\0\xff\xff\xff\xff",
        ];
        for (count, bytes) in garbage.into_iter().enumerate() {
            let deadline = Instant::now() + PATIENCE;
            while setup.server()?.seen().streams <= count {
                ensure!(Instant::now() < deadline, "no stream after garbage {count}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            setup.server()?.raw(bytes);
            load.goes_on(20).await?;
        }
        let deadline = Instant::now() + PATIENCE;
        while setup.server()?.seen().streams <= garbage.len() {
            ensure!(Instant::now() < deadline, "no stream after the garbage");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        setup.server()?.change(vec![endpoints("up", setup.two)?], &[])?;
        until(setup.listener, "/", "200 two").await?;
        load.end().await
    });
}

#[test]
fn a_server_that_does_not_speak_http2_is_left_and_tried_again() {
    both(|delta| async move {
        let mut setup = Setup::start(delta).await?;
        let load = Load::start(setup.listener);
        setup.server = None;
        setup.stat_is("control_plane.connected_state", "0").await?;
        let impostor = loop {
            match TcpListener::bind((Ipv4Addr::LOCALHOST, setup.port)).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        // One that talks nonsense, one that closes, and one that accepts and never says a word.
        for nonsense in [&b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"[..], b""] {
            let (mut stream, _) = tokio::time::timeout(PATIENCE, impostor.accept()).await??;
            stream.write_all(nonsense).await?;
            load.goes_on(10).await?;
        }
        let (mut mute, _): (TcpStream, _) = tokio::time::timeout(PATIENCE, impostor.accept()).await??;
        let mut preface = [0; 16];
        mute.read_exact(&mut preface).await?;
        load.goes_on(50).await?;
        ensure!(get(setup.listener, "/").await? == "200 one", "the last good state is served");
        drop((mute, impostor));
        setup.restart()?;
        until(setup.listener, "/", "200 two").await?;
        load.end().await
    });
}

#[test]
fn ten_thousand_clusters_at_once_are_taken_while_requests_run() {
    both(|delta| async move {
        let setup = Setup::start(delta).await?;
        let load = Load::start(setup.listener);
        let mut many = Vec::new();
        for n in 0..10_000 {
            let name = format!("c{n}");
            many.push(cluster(&name)?);
            many.push(endpoints(&name, setup.two)?);
        }
        // The last of them is what is routed to in the end.
        let (version, _) = setup.server()?.change(many, &[])?;
        setup.server()?.acked("Cluster", version, 3 * PATIENCE).await?;
        setup.server()?.change(vec![routes("c9999")?], &[])?;
        until(setup.listener, "/", "200 two").await?;
        // And the first of them.
        setup.server()?.change(vec![endpoints("c0", setup.one)?, routes("c0")?], &[])?;
        until(setup.listener, "/", "200 one").await?;
        setup.server()?.nothing_refused()?;
        load.end().await
    });
}

#[test]
fn of_a_version_that_is_half_bad_the_good_half_is_applied_and_the_rest_is_as_it_was() {
    both(|delta| async move {
        let setup = Setup::start(delta).await?;
        let load = Load::start(setup.listener);
        let other = free_port();
        let bad_cluster = Message::new("Cluster", &json!({"name": "bad", "type": "EDS", "connect_timeout": "1s"}))?;
        // The listener that serves becomes one that cannot be, beside a good new one.
        let unknown = json!({"name": "f", "typed_config": {"@type": "type.googleapis.com/google.protobuf.Struct"}});
        let bad_listener = Message::new(
            "Listener",
            &json!({"name": "main", "address": address(setup.listener), "filter_chains": [{"filters": [unknown]}]}),
        )?;
        let half =
            vec![cluster("good")?, endpoints("good", setup.two)?, bad_cluster, bad_listener, listener("other", other)?];
        setup.server()?.change(half, &[])?;
        until(other, "/", "200 one").await?;
        let deadline = Instant::now() + PATIENCE;
        let nacks = loop {
            let nacks = setup.server()?.seen().nacks;
            if nacks.len() >= 2 {
                break nacks;
            }
            if Instant::now() > deadline {
                bail!("too few refusals: {nacks:#?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        ensure!(nacks.iter().any(|n| n.starts_with("Cluster: Error adding/updating cluster(s) bad: ")), "{nacks:#?}");
        ensure!(
            nacks.iter().any(|n| n.starts_with("Listener: Error adding/updating listener(s) main: ")),
            "{nacks:#?}"
        );
        load.goes_on(50).await?;
        ensure!(get(setup.listener, "/").await? == "200 one", "the listener as it was is served");
        // The good cluster of the half can be used, and what replaces the bad ones is taken.
        let whole =
            vec![cluster("bad")?, endpoints("bad", setup.one)?, listener("main", setup.listener)?, routes("good")?];
        let (version, _) = setup.server()?.change(whole, &[])?;
        until(setup.listener, "/", "200 two").await?;
        for kind in ["Cluster", "Listener"] {
            setup.server()?.acked(kind, version, PATIENCE).await?;
        }
        load.end().await
    });
}
