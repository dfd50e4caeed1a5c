//! Sockets: listening ones bound with every option of a listener, and outgoing ones connected with a deadline.
//!
//! Binding happens once, on the control thread, before any worker runs; connecting on workers. Errors say what was tried,
//! where, and what to do about it. Accepting is `listener`'s work.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nuncio_config::address as config;
use nuncio_config::cluster::{BindConfig, TcpKeepalive as KeepaliveConfig};
use nuncio_config::listener::{SocketOption, SocketOptionState, SocketOptionValue};
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use crate::address::Address;
use crate::connection::Plain;
use crate::sys;

/// How a listening socket is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListenOptions {
    /// Bind only; [`start_listening`] does the rest.
    pub bind_only: bool,
    /// SO_REUSEPORT.
    pub reuse_port: bool,
    /// Length of the accept queue; the system's limit (`net.core.somaxconn`) when absent.
    pub backlog: Option<u32>,
    /// Raw options, each applied in its state.
    pub socket_options: Vec<SocketOption>,
    /// Keep-alive, which accepted sockets inherit.
    pub keepalive: Option<KeepaliveConfig>,
    /// IP_TRANSPARENT.
    pub transparent: Option<bool>,
    /// IP_FREEBIND.
    pub freebind: Option<bool>,
    /// TCP_FASTOPEN queue length.
    pub fast_open: Option<u32>,
}

/// A listening socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// bind(2) failed.
    #[error("cannot bind '{address}': {}{}", reason(.source), bind_hint(.address, .source))]
    Bind {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// listen(2) failed.
    #[error("cannot listen on '{address}': {}", reason(.source))]
    Listen {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// A socket option was refused.
    #[error("cannot set {option} on the socket for '{address}': {}{}", reason(.source), option_hint(.source))]
    Option {
        /// Where.
        address: Address,
        /// Which option.
        option: String,
        /// What the system said.
        source: io::Error,
    },
    /// socket(2) failed.
    #[error("cannot create a socket for '{address}': {}", reason(.source))]
    Create {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// The network namespace cannot be entered.
    #[error("cannot bind '{address}': {source}")]
    Namespace {
        /// Where.
        address: Address,
        /// What was tried, and what the system said.
        source: io::Error,
    },
    /// The path or its socket file cannot be used.
    #[error("cannot bind '{path}': {problem}")]
    Path {
        /// Socket path.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// This kind of address cannot be listened on.
    #[error("cannot listen on '{address}': {problem}")]
    Unsupported {
        /// Where.
        address: Address,
        /// Why.
        problem: &'static str,
    },
}

/// The text of a system error without Rust's "(os error N)", as `strerror` gives it.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) if error.raw_os_error().is_some() => text[..at].to_owned(),
        _ => text,
    }
}

fn bind_hint(address: &Address, error: &io::Error) -> String {
    match (error.kind(), address.port()) {
        (io::ErrorKind::AddrInUse, Some(port)) => {
            format!(" (another process has port {port}; `ss -ltnp 'sport = :{port}'` shows it)")
        }
        (io::ErrorKind::PermissionDenied, Some(port @ 1..=1023)) => {
            format!(" (port {port} needs root or the capability CAP_NET_BIND_SERVICE)")
        }
        (io::ErrorKind::AddrNotAvailable, Some(_)) => {
            " (no interface has this address; `freebind: true` binds without it)".to_owned()
        }
        _ => String::new(),
    }
}

fn option_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (needs root or the capability CAP_NET_ADMIN)",
        _ => "",
    }
}

/// Binds and, unless told otherwise, listens. The socket is nonblocking; with port 0 its local address tells the port.
///
/// # Errors
/// [`BindError`]; a Unix socket path that something listens on already is not taken over.
pub fn listen(address: &config::Address, options: &ListenOptions) -> Result<Socket, BindError> {
    let shown = Address::from(address);
    match address {
        config::Address::Socket(ip) if ip.udp => {
            Err(BindError::Unsupported { address: shown, problem: "UDP listeners are not supported" })
        }
        config::Address::Socket(ip) => listen_tcp(ip, shown, options),
        config::Address::Pipe { path, mode } => listen_unix(path, *mode, shown, options),
        config::Address::Internal { .. } => {
            Err(BindError::Unsupported { address: shown, problem: "internal listeners are not supported" })
        }
    }
}

fn listen_tcp(ip: &config::SocketAddress, shown: Address, options: &ListenOptions) -> Result<Socket, BindError> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let create = || Socket::new(Domain::for_address(ip.addr), kind, Some(Protocol::TCP));
    let socket = in_namespace(ip.network_namespace.as_deref(), create).map_err(|source| {
        // Without a code it is the namespace that cannot be entered, and says so.
        match (source.raw_os_error(), &ip.network_namespace) {
            (None, Some(_)) => BindError::Namespace { address: shown.clone(), source },
            _ => BindError::Create { address: shown.clone(), source },
        }
    })?;
    let fail = |option: &str, source| BindError::Option { address: shown.clone(), option: option.to_owned(), source };
    let set = |option: &str, result: io::Result<()>| result.map_err(|source| fail(option, source));
    set("SO_REUSEADDR", socket.set_reuse_address(true))?;
    if options.reuse_port {
        set("SO_REUSEPORT", socket.set_reuse_port(true))?;
    }
    if ip.addr.is_ipv6() {
        // An IPv6 wildcard takes IPv4 too only where `ipv4_compat` asks for it.
        set("IPV6_V6ONLY", socket.set_only_v6(!ip.ipv4_compat))?;
    }
    apply_ip_flags(&socket, ip.addr, options.transparent, options.freebind)
        .map_err(|(name, error)| fail(name, error))?;
    if let Some(keepalive) = options.keepalive {
        set("SO_KEEPALIVE", set_keepalive(socket2::SockRef::from(&socket), keepalive))?;
    }
    apply(&socket, &options.socket_options, SocketOptionState::Prebind, &shown)?;
    if let Err(source) = socket.bind(&ip.addr.into()) {
        return Err(BindError::Bind { address: shown, source });
    }
    apply(&socket, &options.socket_options, SocketOptionState::Bound, &shown)?;
    if !options.bind_only {
        start_listening(&socket, options, shown)?;
    }
    Ok(socket)
}

/// Makes a socket, in another network namespace where one is given: it belongs to that network for good.
fn in_namespace<T: Send>(namespace: Option<&str>, create: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    match namespace {
        Some(path) => sys::in_network_namespace(Path::new(path), create),
        None => create(),
    }
}

/// Listens on a bound socket. Again on one that listens already it changes nothing but the length of the queue.
///
/// # Errors
/// [`BindError`].
pub fn start_listening(socket: &Socket, options: &ListenOptions, shown: Address) -> Result<(), BindError> {
    if let Err(source) = socket.listen(backlog(options)) {
        return Err(BindError::Listen { address: shown, source });
    }
    if let (Some(length), Address::Ip(_)) = (options.fast_open, &shown) {
        sys::set_int_option(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, length as i32).map_err(|source| {
            BindError::Option { address: shown.clone(), option: "TCP_FASTOPEN".to_owned(), source }
        })?;
    }
    apply(socket, &options.socket_options, SocketOptionState::Listening, &shown)
}

fn backlog(options: &ListenOptions) -> i32 {
    // The kernel caps it at net.core.somaxconn, which is what Envoy reads for its default.
    options.backlog.map_or(i32::MAX, |length| i32::try_from(length).unwrap_or(i32::MAX))
}

fn listen_unix(path: &Path, mode: u32, shown: Address, options: &ListenOptions) -> Result<Socket, BindError> {
    let problem = |problem: String| BindError::Path { path: shown.to_string(), problem };
    let abstract_name = path.to_str().and_then(|path| path.strip_prefix('@'));
    let addr = match abstract_name {
        Some(name) if mode != 0 => {
            return Err(problem(format!("mode {mode:o} cannot be set on the abstract socket '@{name}'")));
        }
        Some(name) => SockAddr::unix(PathBuf::from(format!("\0{name}"))),
        None => SockAddr::unix(path),
    }
    .map_err(|error| problem(format!("{} (a socket path has at most 107 bytes)", reason(&error))))?;
    if abstract_name.is_none() {
        remove_stale(path, &addr).map_err(problem)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)
        .map_err(|source| BindError::Create { address: shown.clone(), source })?;
    apply(&socket, &options.socket_options, SocketOptionState::Prebind, &shown)?;
    if let Err(source) = socket.bind(&addr) {
        return Err(BindError::Bind { address: shown, source });
    }
    if mode != 0 {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .map_err(|error| problem(format!("cannot set mode {mode:o}: {}", reason(&error))))?;
    }
    apply(&socket, &options.socket_options, SocketOptionState::Bound, &shown)?;
    if !options.bind_only {
        start_listening(&socket, options, shown)?;
    }
    Ok(socket)
}

/// Removes a socket file that nobody listens on any more. A live socket or another kind of file is left alone.
fn remove_stale(path: &Path, addr: &SockAddr) -> Result<(), String> {
    use std::os::unix::fs::FileTypeExt as _;
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err("a file that is no socket is in the way".to_owned());
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)
        .map_err(|error| format!("cannot create a socket: {}", reason(&error)))?;
    match probe.connect(addr) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| format!("cannot remove the stale socket: {}", reason(&error)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(()) => Err("Address already in use (another process listens on this socket)".to_owned()),
        // EAGAIN: its accept queue is full, so somebody has it.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err("Address already in use (another process listens on this socket)".to_owned())
        }
        Err(error) => Err(format!("cannot tell whether the socket is in use: {}", reason(&error))),
    }
}

fn apply_ip_flags(
    socket: &Socket,
    addr: SocketAddr,
    transparent: Option<bool>,
    freebind: Option<bool>,
) -> Result<(), (&'static str, io::Error)> {
    if let Some(on) = transparent {
        let result = if addr.is_ipv4() {
            socket.set_ip_transparent_v4(on)
        } else {
            sys::set_int_option(socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, on.into())
        };
        result.map_err(|error| ("IP_TRANSPARENT", error))?;
    }
    if let Some(on) = freebind {
        let result = if addr.is_ipv4() { socket.set_freebind_v4(on) } else { socket.set_freebind_v6(on) };
        result.map_err(|error| ("IP_FREEBIND", error))?;
    }
    Ok(())
}

fn apply(
    socket: &Socket,
    options: &[SocketOption],
    state: SocketOptionState,
    address: &Address,
) -> Result<(), BindError> {
    for option in options.iter().filter(|option| option.state == state && option.is_for(address.ip())) {
        set_option(socket, option).map_err(|source| BindError::Option {
            address: address.clone(),
            option: format!("socket option (level {}, name {})", option.level, option.name),
            source,
        })?;
    }
    Ok(())
}

fn set_option(socket: &impl AsRawFd, option: &SocketOption) -> io::Result<()> {
    match &option.value {
        SocketOptionValue::Int(value) => sys::set_int_option(socket, option.level, option.name, *value),
        SocketOptionValue::Bytes(value) => sys::set_option(socket, option.level, option.name, value),
    }
}

/// How outgoing connections are made.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// Source address and options.
    pub bind: BindConfig,
    /// TCP keep-alive.
    pub keepalive: Option<KeepaliveConfig>,
}

/// An outgoing connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No answer within the connect timeout.
    #[error("connection timeout")]
    Timeout,
    /// The peer or the system refused.
    #[error("{}", reason(.0))]
    Failed(#[from] io::Error),
    /// A local problem before connecting: a source address or an option.
    #[error("{what}: {}", reason(.source))]
    Local {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Connects to `address`; gives up after `timeout` (zero: never).
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(address: &Address, options: &ConnectOptions, timeout: Duration) -> Result<Plain, ConnectError> {
    if timeout.is_zero() {
        return connect_now(address, options).await;
    }
    nuncio_base::timer::timeout(timeout, connect_now(address, options)).await.unwrap_or(Err(ConnectError::Timeout))
}

async fn connect_now(address: &Address, options: &ConnectOptions) -> Result<Plain, ConnectError> {
    match address {
        Address::Ip(addr) => Ok(Plain::tcp(connect_tcp(*addr, options).await?)),
        Address::Pipe(path) => Ok(Plain::unix(connect_unix(path).await?)),
        Address::Internal(_) => Err(ConnectError::Failed(io::Error::from(io::ErrorKind::Unsupported))),
    }
}

/// Connects to the first of `addresses` that answers. The next one is tried after `delay` (300 ms in Envoy) or at a
/// failure, without giving up on those before (RFC 8305); returns which one it was.
///
/// # Errors
/// The last failure, or a timeout, when none answered.
pub async fn connect_any(
    addresses: &[Address],
    options: &ConnectOptions,
    delay: Duration,
    timeout: Duration,
) -> Result<(usize, Plain), ConnectError> {
    use futures_util::stream::{FuturesUnordered, StreamExt as _};
    if let [address] = addresses {
        return Ok((0, connect(address, options, timeout).await?));
    }
    let race = async {
        let mut attempts = FuturesUnordered::new();
        let mut waiting = addresses.iter().enumerate();
        let mut last = ConnectError::Failed(io::Error::from(io::ErrorKind::AddrNotAvailable));
        loop {
            if let Some((index, address)) = waiting.next() {
                attempts.push(async move { (index, connect_now(address, options).await) });
            }
            if attempts.is_empty() {
                return Err(last);
            }
            let outcome = if waiting.len() > 0 {
                nuncio_base::timer::timeout(delay, attempts.next()).await.ok().flatten()
            } else {
                attempts.next().await
            };
            match outcome {
                Some((index, Ok(stream))) => return Ok((index, stream)),
                Some((_, Err(error))) => last = error,
                None => {}
            }
        }
    };
    if timeout.is_zero() {
        return race.await;
    }
    nuncio_base::timer::timeout(timeout, race).await.unwrap_or(Err(ConnectError::Timeout))
}

async fn connect_tcp(addr: SocketAddr, options: &ConnectOptions) -> Result<TcpStream, ConnectError> {
    let local = |what: String| move |source| ConnectError::Local { what, source };
    let bind = &options.bind;
    let source = bind.source_for(addr);
    let create = || if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = in_namespace(source.and_then(|source| source.network_namespace.as_deref()), create)
        .map_err(local("cannot create a socket".to_owned()))?;
    if bind.freebind {
        let socket = socket2::SockRef::from(&socket);
        if addr.is_ipv4() { socket.set_freebind_v4(true) } else { socket.set_freebind_v6(true) }
            .map_err(local("cannot set IP_FREEBIND".to_owned()))?;
    }
    for option in source.and_then(|source| source.socket_options.as_ref()).unwrap_or(&bind.socket_options) {
        // An outgoing socket is never listening; the other two states differ only by the bind between them.
        if option.state != SocketOptionState::Listening && option.is_for(Some(addr.ip())) {
            set_option(&socket, option)
                .map_err(local(format!("cannot set socket option (level {}, name {})", option.level, option.name)))?;
        }
    }
    if let Some(source) = source.map(|source| source.addr).filter(|source| source.is_ipv4() == addr.is_ipv4()) {
        if source.port() == 0 {
            // The kernel picks the port at connect(2), when it knows the peer: ports can be shared between peers.
            let _ = sys::set_int_option(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
        }
        socket.bind(source).map_err(local(format!("failed to bind to {source}")))?;
    }
    if let Some(keepalive) = options.keepalive {
        set_keepalive(socket2::SockRef::from(&socket), keepalive)
            .map_err(local("cannot set TCP keep-alive".to_owned()))?;
    }
    socket.set_nodelay(true)?;
    Ok(socket.connect(addr).await?)
}

fn set_keepalive(socket: socket2::SockRef<'_>, config: KeepaliveConfig) -> io::Result<()> {
    let mut keepalive = TcpKeepalive::new();
    if let Some(time) = config.time {
        keepalive = keepalive.with_time(Duration::from_secs(time.into()));
    }
    if let Some(interval) = config.interval {
        keepalive = keepalive.with_interval(Duration::from_secs(interval.into()));
    }
    if let Some(probes) = config.probes {
        keepalive = keepalive.with_retries(probes);
    }
    socket.set_keepalive(true)?;
    socket.set_tcp_keepalive(&keepalive)
}

async fn connect_unix(path: &str) -> Result<UnixStream, ConnectError> {
    match path.strip_prefix('@') {
        Some(name) => Ok(UnixStream::connect(format!("\0{name}")).await?),
        None => Ok(UnixStream::connect(path).await?),
    }
}

/// The same listening socket for another worker, where SO_REUSEPORT is off.
///
/// # Errors
/// What dup(2) says.
pub fn duplicate(socket: &Socket) -> io::Result<OwnedFd> {
    Ok(socket.try_clone()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_config::cluster::SourceAddress;

    fn tcp(addr: &str) -> config::Address {
        let addr: SocketAddr = addr.parse().expect("an address");
        config::Address::Socket(addr.into())
    }

    fn pipe(path: &Path) -> config::Address {
        config::Address::Pipe { path: path.to_owned(), mode: 0o640 }
    }

    fn local(socket: &Socket) -> SocketAddr {
        socket.local_addr().expect("bound").as_socket().expect("an IP")
    }

    #[test]
    fn a_port_in_use_is_named() {
        let first = listen(&tcp("127.0.0.1:0"), &ListenOptions::default()).expect("bound");
        let taken = local(&first);
        let error = listen(&tcp(&taken.to_string()), &ListenOptions::default()).expect_err("taken").to_string();
        assert!(error.starts_with(&format!("cannot bind '{taken}': Address already in use (")), "{error}");
    }

    #[test]
    fn sockets_of_several_workers_share_a_port() {
        let options = ListenOptions { reuse_port: true, ..ListenOptions::default() };
        let first = listen(&tcp("127.0.0.1:0"), &options).expect("bound");
        let second = listen(&tcp(&local(&first).to_string()), &options).expect("bound");
        assert_eq!(local(&first), local(&second));
    }

    #[test]
    fn raw_options_are_applied_in_their_state() {
        let option = |state, size| SocketOption {
            level: libc::SOL_SOCKET,
            name: libc::SO_RCVBUF,
            value: SocketOptionValue::Int(size),
            state,
            ip_version: None,
        };
        let options = ListenOptions {
            socket_options: vec![
                option(SocketOptionState::Prebind, 10_000),
                option(SocketOptionState::Bound, 20_000),
                option(SocketOptionState::Listening, 30_000),
            ],
            ..ListenOptions::default()
        };
        let socket = listen(&tcp("127.0.0.1:0"), &options).expect("bound");
        // The kernel doubles the value.
        assert_eq!(socket.recv_buffer_size().expect("a size"), 60_000);
        let bad = SocketOption {
            level: libc::SOL_SOCKET,
            name: 9999,
            value: SocketOptionValue::Int(1),
            state: SocketOptionState::Prebind,
            ip_version: None,
        };
        let options = ListenOptions { socket_options: vec![bad], ..ListenOptions::default() };
        let error = listen(&tcp("127.0.0.1:0"), &options).expect_err("refused").to_string();
        assert!(error.contains("socket option (level 1, name 9999)"), "{error}");
    }

    #[test]
    fn options_of_the_other_ip_version_are_left_out_and_keep_alive_is_inherited() {
        use nuncio_config::listener::IpVersion;
        let option = |version, size| SocketOption {
            level: libc::SOL_SOCKET,
            name: libc::SO_RCVBUF,
            value: SocketOptionValue::Int(size),
            state: SocketOptionState::Prebind,
            ip_version: Some(version),
        };
        let options = ListenOptions {
            socket_options: vec![option(IpVersion::V4, 10_000), option(IpVersion::V6, 20_000)],
            keepalive: Some(KeepaliveConfig { probes: Some(3), time: Some(30), interval: None }),
            ..ListenOptions::default()
        };
        let socket = listen(&tcp("127.0.0.1:0"), &options).expect("bound");
        assert_eq!(socket.recv_buffer_size().expect("a size"), 20_000, "doubled by the kernel");
        let _client = std::net::TcpStream::connect(local(&socket)).expect("connects");
        socket.set_nonblocking(false).expect("it can wait");
        let (accepted, _) = socket.accept().expect("a connection");
        assert!(accepted.keepalive().expect("known"));
        assert_eq!(accepted.tcp_keepalive_time().expect("known"), Duration::from_secs(30));
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let first = listen(&pipe(&path), &ListenOptions::default()).expect("bound");
        let error = listen(&pipe(&path), &ListenOptions::default()).expect_err("in use").to_string();
        assert!(error.contains("Address already in use"), "{error}");
        drop(first);
        let _again = listen(&pipe(&path), &ListenOptions::default()).expect("replaced");
        let mode = std::fs::metadata(&path).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let file = folder.path().join("f");
        std::fs::write(&file, "x").expect("written");
        let error = listen(&pipe(&file), &ListenOptions::default()).expect_err("a file").to_string();
        assert!(error.contains("no socket"), "{error}");
    }

    #[tokio::test]
    async fn abstract_sockets_connect() {
        let name = format!("@nuncio-test-{}", std::process::id());
        let address = config::Address::Pipe { path: name.clone().into(), mode: 0 };
        let socket = listen(&address, &ListenOptions::default()).expect("bound");
        let shown = Address::from_sockaddr(&socket.local_addr().expect("bound"));
        assert_eq!(shown.to_string(), name);
        connect(&shown, &ConnectOptions::default(), Duration::from_secs(5)).await.expect("connects");
    }

    #[tokio::test]
    async fn connecting_uses_the_source_address_and_reports_refusal() {
        let socket = listen(&tcp("127.0.0.1:0"), &ListenOptions::default()).expect("bound");
        let to = Address::Ip(local(&socket));
        let mut options = ConnectOptions::default();
        let source = |addr: &str| SourceAddress {
            addr: addr.parse().expect("an address"),
            network_namespace: None,
            socket_options: None,
        };
        options.bind.sources = vec![source("[::1]:0"), source("127.0.0.2:0")];
        options.keepalive = Some(KeepaliveConfig { probes: Some(3), time: Some(30), interval: Some(5) });
        let stream = connect(&to, &options, Duration::from_secs(5)).await.expect("connects");
        let from = stream.tcp_stream().expect("TCP").local_addr().expect("an address");
        assert_eq!(from.ip().to_string(), "127.0.0.2");
        drop(socket);
        let error = connect(&to, &options, Duration::from_secs(5)).await.err().expect("refused");
        assert_eq!(error.to_string(), "Connection refused");
    }

    #[tokio::test]
    async fn the_next_address_is_tried_after_a_failure() {
        let socket = listen(&tcp("127.0.0.1:0"), &ListenOptions::default()).expect("bound");
        let good = local(&socket);
        let closed = listen(&tcp("127.0.0.1:0"), &ListenOptions::default()).expect("bound");
        let bad = local(&closed);
        drop(closed);
        let long = Duration::from_secs(30);
        let addresses = [Address::Ip(bad), Address::Ip(good)];
        let (index, _) = connect_any(&addresses, &ConnectOptions::default(), long, long).await.expect("connects");
        assert_eq!(index, 1);
        let none = [Address::Ip(bad), Address::Ip(bad)];
        let error = connect_any(&none, &ConnectOptions::default(), long, long).await.err().expect("refused");
        assert_eq!(error.to_string(), "Connection refused");
    }
}
