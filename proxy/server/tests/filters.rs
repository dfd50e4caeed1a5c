//! What filters may do that no filter of the server's own does yet: the server runs here with filters that no
//! configuration names.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use nuncio::listeners::ListenerManager;
use nuncio::log::Log;
use nuncio::options::Options;
use nuncio::stats::ListenerManagerStats;
use nuncio::{hcm_builder, loading, server};
use nuncio_config::listener::NetworkFilterConfig;
use nuncio_extensions::registry;
use nuncio_http::filter::{DataAction, HeadersAction, Hooks, HttpFilter, StreamView};
use nuncio_http::filter_chains::ChainSource;
use nuncio_http::headers::Headers;
use nuncio_http::local_reply::LocalReply;
use nuncio_net::listener::{Listener, ListenerParts};
use tokio::sync::oneshot;

/// Refuses every response, and counts those that it was shown; and bodies of requests that begin with `!`.
struct Judge {
    shown: Arc<AtomicUsize>,
}

impl HttpFilter for Judge {
    type State = ();

    fn hooks(&self) -> Hooks {
        Hooks { decode_headers: true, decode_body: true, encode_headers: true, ..Hooks::default() }
    }

    fn decode_headers(&self, (): &mut (), _: &mut StreamView<'_>, end: bool) -> HeadersAction {
        if end { HeadersAction::Continue } else { HeadersAction::Buffer }
    }

    fn decode_data(&self, (): &mut (), _: &mut StreamView<'_>, data: &mut Bytes, _: bool) -> DataAction {
        if data.starts_with(b"!") {
            return DataAction::Respond(LocalReply::new(403, "not this", "judge_request"));
        }
        DataAction::Continue
    }

    fn encode_headers(&self, (): &mut (), _: &mut StreamView<'_>, response: &mut Headers, _: bool) -> DataAction {
        self.shown.fetch_add(1, Ordering::Relaxed);
        if response.status() == 403 {
            return DataAction::Continue;
        }
        DataAction::Respond(LocalReply::new(502, "not that", "judge_response"))
    }
}

struct Proxy {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Proxy {
    fn start(shown: &Arc<AtomicUsize>) -> Proxy {
        let args = ["nuncio", "--config-yaml", CONFIG, "--concurrency", "1", "-l", "error"];
        let options = Options::parse_args(args.map(str::to_owned).to_vec()).map_err(|(text, _)| text).unwrap();
        let log = Log::install("error", "", "%v", false, None).unwrap();
        let bootstrap = loading::load(&options).unwrap_or_else(|report| panic!("{report}"));
        let mut bound = server::build(bootstrap, options, log, false).unwrap_or_else(|e| panic!("{e:?}"));
        let listener = judged(&bound.server, shown);
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

/// The listener of the server, built as the server builds it, with the judge as its filter.
fn judged(server: &server::Server, shown: &Arc<AtomicUsize>) -> Arc<Listener> {
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
            chain.push("judge".into(), Judge { shown: shown.clone() });
            let chains = ChainSource::Swapped(Arc::new(ArcSwap::from_pointee(chain.into())));
            let mut errors = Vec::new();
            let (hcm, routes) = hcm_builder::assemble(hcm, chains, "listener.test.", context, &mut errors).unwrap();
            let hcm = Arc::new(hcm);
            Ok(Arc::new(hcm_builder::HttpFactory { hcm, buffer_limit: 1024, routes, discovered: Vec::new() }))
        },
        listener_filter: &|_| Err("no listener filters here".to_owned()),
        in_fraction: Arc::new(|_, _| false),
        access_logs: Vec::new(),
    };
    Listener::new(config, parts).unwrap()
}

const CONFIG: &str = r#"
static_resources:
  listeners:
  - name: main
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          delayed_close_timeout: 0.1s
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: "all of it"}}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
"#;

/// What comes back until the connection ends.
fn exchange(address: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_filters_answer_ends_the_request() {
    let shown = Arc::new(AtomicUsize::new(0));
    let proxy = Proxy::start(&shown);
    // The rest of the body never comes, and is not waited for.
    let text = exchange(proxy.address, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n!");
    assert!(text.starts_with("HTTP/1.1 403 Forbidden\r\n") && text.ends_with("\r\n\r\nnot this"), "{text}");
    assert_eq!(shown.swap(0, Ordering::Relaxed), 1);

    // The answer in a response's place is not shown to the filter that gave it.
    let text = exchange(proxy.address, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 502 Bad Gateway\r\n") && text.ends_with("\r\n\r\nnot that"), "{text}");
    assert_eq!(shown.load(Ordering::Relaxed), 1);
    proxy.stop();
}
