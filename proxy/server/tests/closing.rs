//! Connections end although their peers do not help: clients that do not read are let go of, and requests that the end of
//! a filter chain or of the process cuts short are logged.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Answers each connection's request with that many bytes; 0: with nothing at all.
fn upstream(bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut socket in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                if socket.read(&mut buffer).is_ok_and(|n| n > 0) && bytes > 0 {
                    let _ = write!(socket, "HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n");
                    let _ = socket.write_all(&vec![b'x'; bytes]);
                }
                while socket.read(&mut buffer).is_ok_and(|n| n > 0) {}
            });
        }
    });
    address
}

/// Nuncio with one listener that comes from a file. Killed when a test fails.
struct Process {
    child: Child,
    folder: tempfile::TempDir,
    address: SocketAddr,
}

impl Process {
    /// `listener` and `hcm` are further fields of those.
    fn start(upstream: SocketAddr, listener: &str, hcm: &str) -> Process {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let bootstrap = format!(
            "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\nnode: {{id: a, cluster: \
             b}}\ndynamic_resources:\n  lds_config: {{path_config_source: {{path: {}}}}}\nstatic_resources:\n  clusters:\n  \
             - {{name: up, type: STATIC, load_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{{endpoint: \
             {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]}}}}\n",
            at("lds.yaml").display(),
            upstream.port()
        );
        std::fs::write(at("bootstrap.yaml"), bootstrap).unwrap();
        std::fs::write(at("lds.yaml"), listeners(&folder, "first", listener, hcm)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_nuncio"))
            .arg("-c")
            .arg(at("bootstrap.yaml"))
            .arg("--admin-address-path")
            .arg(at("admin"))
            .args(["--concurrency", "1", "--log-level", "error", "--drain-time-s", "1"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut process = Process { child, folder, address: upstream };
        process.address = until("the listener", || {
            let text = process.admin("/listeners")?;
            text.lines().find_map(|line| line.strip_prefix("main::"))?.parse().ok()
        });
        process
    }

    /// Puts another filter chain in the place of the one there is.
    fn replace_chain(&self, listener: &str, hcm: &str) {
        let next = self.folder.path().join("next.yaml");
        std::fs::write(&next, listeners(&self.folder, "second", listener, hcm)).unwrap();
        std::fs::rename(next, self.folder.path().join("lds.yaml")).unwrap();
    }

    fn admin(&self, path: &str) -> Option<String> {
        let address = std::fs::read_to_string(self.folder.path().join("admin")).ok()?;
        let mut socket = TcpStream::connect(address.trim()).ok()?;
        write!(socket, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Waits for a statistic to have a value.
    fn stat(&self, name: &str, value: u64) {
        until(&format!("{name} {value}"), || {
            let text = self.admin(&format!("/stats?filter={name}"))?;
            text.lines().any(|line| line == format!("{name}: {value}")).then_some(())
        });
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    }

    /// An HTTP/1 request for `path`.
    fn get(&self, path: &str) -> TcpStream {
        let mut socket = self.connect();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        socket
    }

    /// An HTTP/2 request for `path`.
    fn get2(&self, path: &str) -> TcpStream {
        let mut socket = self.connect();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        // `:method: GET`, `:scheme: http`, `:authority: h`, `:path`; END_STREAM and END_HEADERS.
        let mut block = vec![0x82, 0x86, 0x41, 1, b'h', 0x04, path.len() as u8];
        block.extend_from_slice(path.as_bytes());
        bytes.extend_from_slice(&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1]);
        bytes.extend_from_slice(&block);
        socket.write_all(&bytes).unwrap();
        socket
    }

    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listeners(folder: &tempfile::TempDir, chain: &str, listener: &str, hcm: &str) -> String {
    let of = "type.googleapis.com/envoy.extensions";
    format!(
        "version_info: {chain}\nresources:\n- '@type': type.googleapis.com/envoy.config.listener.v3.Listener\n  name: \
         main\n  {listener}\n  address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n  filter_chains:\n  - \
         name: {chain}\n    filters:\n    - name: hcm\n      typed_config:\n        '@type': \
         {of}.filters.network.http_connection_manager.v3.HttpConnectionManager\n        stat_prefix: main\n        \
         {hcm}\n        access_log: [{{name: log, typed_config: {{'@type': \
         {of}.access_loggers.file.v3.FileAccessLog, path: {}, log_format: {{text_format_source: {{inline_string: \
         \"%REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\\n\"}}}}}}}}]\n        \
         http_filters: [{{name: router, typed_config: {{'@type': {of}.filters.http.router.v3.Router}}}}]\n        \
         route_config: {{name: {chain}, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, \
         route: {{cluster: up, timeout: 0s}}}}]}}]}}\n",
        folder.path().join("log").display()
    )
}

const BIG: usize = 32 * 1024 * 1024;

#[test]
fn a_client_that_stops_reading_is_let_go_of() {
    // The first response ends in the buffer, the second one waits at the upstream.
    for buffer in [2 * BIG, 32 * 1024] {
        let process = Process::start(
            upstream(BIG),
            &format!("per_connection_buffer_limit_bytes: {buffer}"),
            "stream_idle_timeout: 0.3s\n        delayed_close_timeout: 0.2s",
        );
        let mut socket = process.get("/big");
        socket.read_exact(&mut [0; 17]).unwrap();
        process.stat("http.main.downstream_rq_total", 1);
        process.stat("http.main.downstream_cx_active", 0);
        // It is there to the end, and does not read.
        drop(socket);
    }
}

#[test]
fn an_http2_connection_is_idle_from_the_end_of_its_last_stream() {
    const IDLE: Duration = Duration::from_secs(1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let process = Process::start(
        listener.local_addr().unwrap(),
        "",
        "codec_type: HTTP2\n        drain_timeout: 0.2s\n        common_http_protocol_options: {idle_timeout: 1s}",
    );
    let mut client = process.get2("/");
    let (mut upstream, _) = listener.accept().unwrap();
    upstream.read_exact(&mut [0; 16]).unwrap();
    // The request takes longer than the timeout.
    thread::sleep(IDLE + IDLE / 2);
    let answered = Instant::now();
    upstream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    // The response, two GOAWAYs, the end.
    let mut kinds = Vec::new();
    let mut head = [0; 9];
    let mut first = None;
    while client.read_exact(&mut head).is_ok() {
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        client.read_exact(&mut payload).unwrap();
        kinds.push(head[3]);
        if head[3] == 7 {
            first.get_or_insert_with(Instant::now);
        }
    }
    kinds.retain(|kind| [1, 3, 7].contains(kind));
    assert_eq!(kinds, [1, 7, 7]);
    assert!(first.unwrap() - answered >= IDLE, "{:?}", first.unwrap() - answered);
}

#[test]
fn requests_that_end_with_their_filter_chain_are_logged() {
    let process = Process::start(upstream(0), "", "");
    let (mut one, mut two) = (process.get("/one"), process.get2("/two"));
    process.stat("cluster.up.upstream_rq_active", 2);
    process.replace_chain("", "server_name: second");
    let mut rest = Vec::new();
    // A reset is an end as well.
    let _ = (one.read_to_end(&mut rest), two.read_to_end(&mut rest));
    let details = "DC downstream_local_disconnect(filter_chain_is_being_removed)";
    let expected = [format!("/one HTTP/1.1 0 {details}"), format!("/two HTTP/2 0 {details}")];
    until("the log", || (process.log().len() >= 2).then_some(()));
    assert_eq!(process.log(), expected);
    process.stat("http.main.downstream_rq_active", 0);
    process.stat("cluster.up.upstream_rq_active", 0);
}

#[test]
fn requests_that_end_with_the_process_are_logged() {
    let mut process = Process::start(upstream(0), "", "");
    let sockets = [process.get("/one"), process.get2("/two")];
    process.stat("cluster.up.upstream_rq_active", 2);
    let pid = process.child.id().to_string();
    for _ in 0..2 {
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        until("refused connections", || TcpStream::connect(process.address).is_err().then_some(()));
    }
    let status = until("the end of the process", || process.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    drop(sockets);
    let details = "DC downstream_local_disconnect(purging_socket_that_have_not_progressed_to_connections)";
    assert_eq!(process.log(), [format!("/one HTTP/1.1 0 {details}"), format!("/two HTTP/2 0 {details}")]);
}
