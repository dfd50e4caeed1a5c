//! The process ends as it promises: what is in flight at SIGTERM is finished, and a second signal does not wait.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine, and far shorter than the drain time.
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

/// Answers each connection's request when told to; `waiting` hears of each request.
struct Upstream {
    address: SocketAddr,
    waiting: Receiver<Sender<()>>,
}

fn http_upstream() -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, waiting) = channel();
    thread::spawn(move || {
        for mut socket in listener.incoming().map_while(Result::ok) {
            let tell: Sender<Sender<()>> = tell.clone();
            thread::spawn(move || {
                let mut got = Vec::new();
                let mut buffer = [0; 1024];
                while !got.windows(4).any(|four| four == b"\r\n\r\n") {
                    match socket.read(&mut buffer) {
                        Ok(n) if n > 0 => got.extend_from_slice(&buffer[..n]),
                        _ => return,
                    }
                }
                let (go, told) = channel();
                if tell.send(go).is_ok() && told.recv().is_ok() {
                    let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone");
                }
            });
        }
    });
    Upstream { address, waiting }
}

fn echo_upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut socket in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(n) = socket.read(&mut buffer) {
                    if n == 0 || socket.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn bootstrap(http: SocketAddr, echo: SocketAddr) -> String {
    let any = "address: {socket_address: {address: 127.0.0.1, port_value: 0}}";
    let of = "type.googleapis.com/envoy.extensions.filters";
    let cluster = |name: &str, at: SocketAddr| {
        format!(
            "  - {{name: {name}, type: STATIC, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: \
             [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]}}}}\n",
            at.port()
        )
    };
    format!(
        "admin: {{{any}}}\nstatic_resources:\n  listeners:\n  - name: http\n    {any}\n    filter_chains: [{{filters: \
         [{{name: hcm, typed_config: {{'@type': {of}.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: http, http_filters: [{{name: router, typed_config: {{'@type': {of}.http.router.v3.Router}}}}], \
         route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: \
         http}}}}]}}]}}}}}}]}}]\n  - name: tcp\n    {any}\n    filter_chains: [{{filters: [{{name: tcp, typed_config: \
         {{'@type': {of}.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: echo}}}}]}}]\n  clusters:\n{}{}",
        cluster("http", http),
        cluster("echo", echo)
    )
}

/// The process, killed when a test fails.
struct Process {
    child: Child,
    http: SocketAddr,
    tcp: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Process {
    fn start(http: SocketAddr, echo: SocketAddr) -> Process {
        let folder = tempfile::tempdir().unwrap();
        let (config, admin) = (folder.path().join("bootstrap.yaml"), folder.path().join("admin"));
        std::fs::write(&config, bootstrap(http, echo)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_nuncio"))
            .arg("-c")
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&admin)
            .args(["--concurrency", "2", "--log-level", "error"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut process = Process { child, http, tcp: echo, _folder: folder };
        let text = until("the listeners", || listeners(&admin));
        let address = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("::"));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
        };
        (process.http, process.tcp) = (address("http"), address("tcp"));
        process
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    fn ended(&mut self) -> ExitStatus {
        until("the end of the process", || self.child.try_wait().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `/listeners` says once both are bound.
fn listeners(admin: &Path) -> Option<String> {
    let address = std::fs::read_to_string(admin).ok()?;
    let mut socket = TcpStream::connect(address.trim()).ok()?;
    socket.write_all(b"GET /listeners HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    socket.read_to_string(&mut text).ok()?;
    let complete = text.contains("http::") && text.contains("tcp::") && !text.contains(":0\n");
    complete.then_some(text)
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn echoes(socket: &mut TcpStream, byte: u8) {
    socket.write_all(&[byte]).unwrap();
    let mut got = [0];
    socket.read_exact(&mut got).unwrap();
    assert_eq!(got[0], byte);
}

/// Opens an HTTP/2 connection and sends one request.
fn h2_request(address: SocketAddr) -> TcpStream {
    let mut socket = connect(address);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // `:method: GET`, `:scheme: http`, `:path: /`, `:authority: h`; END_STREAM and END_HEADERS.
    let block = [0x82, 0x86, 0x84, 0x41, 1, b'h'];
    bytes.extend_from_slice(&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1]);
    bytes.extend_from_slice(&block);
    socket.write_all(&bytes).unwrap();
    socket
}

/// Reads frames until the stream has ended and GOAWAY has come; the body of the response.
fn h2_response(socket: &mut TcpStream) -> Vec<u8> {
    let (mut body, mut ended, mut goaway) = (Vec::new(), false, false);
    while !(ended && goaway) {
        let mut head = [0; 9];
        socket.read_exact(&mut head).unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        socket.read_exact(&mut payload).unwrap();
        match head[3] {
            0 => body.extend_from_slice(&payload),
            7 => goaway = true,
            3 => panic!("the stream was reset"),
            _ => {}
        }
        ended |= head[3] <= 1 && head[4] & 1 != 0;
    }
    body
}

#[test]
fn what_is_in_flight_at_sigterm_is_finished() {
    let upstream = http_upstream();
    let mut process = Process::start(upstream.address, echo_upstream());
    let mut tcp = connect(process.tcp);
    echoes(&mut tcp, b'a');
    let mut h1 = connect(process.http);
    h1.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut h2 = h2_request(process.http);
    let requests = [(); 2].map(|()| upstream.waiting.recv_timeout(DEADLINE).expect("a request at the upstream"));

    process.terminate();
    for address in [process.http, process.tcp] {
        until("refused connections", || TcpStream::connect(address).is_err().then_some(()));
    }
    echoes(&mut tcp, b'b');
    assert!(process.child.try_wait().unwrap().is_none(), "it has ended with requests in flight");
    for request in requests {
        request.send(()).unwrap();
    }
    let mut text = String::new();
    h1.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\ndone"), "{text}");
    assert!(text.contains("\r\nconnection: close\r\n"), "{text}");
    assert_eq!(h2_response(&mut h2), b"done");
    drop(h2);
    echoes(&mut tcp, b'c');
    drop(tcp);
    assert_eq!(process.ended().code(), Some(0));
}

#[test]
fn a_second_signal_does_not_wait() {
    let mut process = Process::start(http_upstream().address, echo_upstream());
    let mut tcp = connect(process.tcp);
    echoes(&mut tcp, b'a');
    process.terminate();
    until("refused connections", || TcpStream::connect(process.tcp).is_err().then_some(()));
    echoes(&mut tcp, b'b');
    process.terminate();
    assert_eq!(process.ended().code(), Some(0));
    assert_eq!(tcp.read(&mut [0]).unwrap_or(0), 0);
}
