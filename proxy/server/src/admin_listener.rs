//! The admin interface on its listener: the same HTTP code as everywhere, on the control thread, with its own filter.

use crate::admin::{self, AdminRequest};
use crate::admin_grpc;
use crate::hcm_builder::{self, HttpFactory};
use crate::server::{Context, Server};
use crate::sources::Sources;
use bytes::BytesMut;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_pb;
use envoy_types::pb::google::protobuf::{Any, BoolValue};
use nuncio_config::bootstrap::AdminConfig;
use nuncio_config::decode::Context as DecodeContext;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::listener::{ListenAddress, ListenerConfig, NetworkFilterConfig};
use nuncio_config::paths::FieldPath;
use nuncio_http::active_stream::ActiveStream;
use nuncio_http::codec::Frame;
use nuncio_http::filter::{FilterChain, LocalFuture, TerminalFilter};
use nuncio_http::filter_chains::ChainSource;
use nuncio_http::headers::{HeaderName, HeaderValue, Headers, names};
use nuncio_http::local_reply::LocalReply;
use nuncio_net::listener::{FilterChainFactory, Listener, ListenerParts, WorkerListeners, run_listener};
use prost::Message as _;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, OnceLock, Weak};

/// Bytes of a request body at most; only `/runtime_modify` and client status discovery read one.
const MAX_BODY: usize = 64 * 1024;

/// The admin listener, built before the server that it shows.
pub(crate) struct Pending {
    listener: Arc<Listener>,
    server: Arc<OnceLock<Weak<Server>>>,
}

impl Pending {
    /// Gives the admin interface its server.
    ///
    /// # Errors
    /// When it has one already.
    pub(crate) fn finish(self, server: &Arc<Server>) -> Result<Arc<Listener>, String> {
        self.server.set(Arc::downgrade(server)).map_err(|_| "the admin interface is in use".to_owned())?;
        Ok(self.listener)
    }
}

/// Builds the admin listener; what is wrong is added to `errors`.
pub(crate) fn build(config: &AdminConfig, context: &Context, errors: &mut Vec<ConfigError>) -> Option<Pending> {
    let mut listener = match listener_config() {
        Ok(listener) => listener,
        Err(found) => {
            errors.extend(found);
            return None;
        }
    };
    listener.addresses = vec![ListenAddress {
        socket_options: Some(config.socket_options.clone()),
        ..ListenAddress::from(config.address.clone())
    }];
    listener.ignore_global_conn_limit = config.ignore_global_conn_limit;
    let server: Arc<OnceLock<Weak<Server>>> = Arc::default();
    let logs = hcm_builder::access_logs(&config.access_logs, context, errors);
    let allow_paths: Arc<[_]> = config.allow_paths.clone().into();
    let buffer_limit = listener.per_connection_buffer_limit_bytes as usize;
    let parts = ListenerParts {
        registry: &context.registry,
        global: context.global.clone(),
        // The admin interface serves until the process ends: it does not drain with the server.
        drain: &nuncio_base::drain::DrainHandle::new(),
        contexts: &context.contexts,
        filter_chain: &|chain| {
            let Some(NetworkFilterConfig::Http(config)) = chain.filters.first() else {
                return Err("the admin listener has no connection manager".to_owned());
            };
            let mut filters = FilterChain::new();
            filters.set_terminal(Box::new(AdminFilter { server: server.clone(), allow_paths: allow_paths.clone() }));
            let mut found = Vec::new();
            let hcm = hcm_builder::assemble(
                config,
                ChainSource::Fixed(filters.into()),
                "listener.admin.",
                context,
                &mut found,
            );
            let (mut hcm, _) =
                hcm.ok_or_else(|| found.iter().map(|e| e.message.clone()).collect::<Vec<_>>().join("; "))?;
            hcm.access_logs = logs.clone();
            let factory: Arc<dyn FilterChainFactory> = Arc::new(HttpFactory {
                hcm: Arc::new(hcm),
                buffer_limit,
                routes: hcm_builder::KeptRoutes::Own,
                discovered: Vec::new(),
            });
            Ok(factory)
        },
        listener_filter: &|_| Err("the admin listener has no listener filters".to_owned()),
        in_fraction: Arc::new(|_, _| false),
        access_logs: Vec::new(),
    };
    match Listener::new(Arc::new(listener), parts) {
        Ok(listener) => Some(Pending { listener, server }),
        Err(e) => {
            errors.push(ConfigError::new(FieldPath::root().field("admin"), e.to_string()));
            None
        }
    }
}

/// A listener as Envoy's admin has one, but for its address.
fn listener_config() -> Result<ListenerConfig, Vec<ConfigError>> {
    let hcm = hcm_pb::HttpConnectionManager {
        stat_prefix: "admin".to_owned(),
        // Before anything looks at a path: `allow_paths` and the choice of the command see the same text.
        normalize_path: Some(BoolValue { value: true }),
        merge_slashes: true,
        route_specifier: Some(hcm_pb::http_connection_manager::RouteSpecifier::RouteConfig(Default::default())),
        ..Default::default()
    };
    let typed = Any {
        type_url:
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
                .to_owned(),
        value: hcm.encode_to_vec(),
    };
    let filter = pb::Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(pb::filter::ConfigType::TypedConfig(typed)),
    };
    let address = envoy_types::pb::envoy::config::core::v3::Address {
        address: Some(envoy_types::pb::envoy::config::core::v3::address::Address::Pipe(
            envoy_types::pb::envoy::config::core::v3::Pipe { path: "@".to_owned(), mode: 0 },
        )),
    };
    let message = pb::Listener {
        name: "admin".to_owned(),
        stat_prefix: "admin".to_owned(),
        address: Some(address),
        filter_chains: vec![pb::FilterChain { filters: vec![filter], ..Default::default() }],
        enable_reuse_port: Some(BoolValue { value: false }),
        ..Default::default()
    };
    ListenerConfig::decode(&message, &mut DecodeContext::new(FieldPath::root().field("admin")))
}

/// Runs the admin listener on this thread until the process ends.
///
/// # Errors
/// When its socket cannot be used.
pub(crate) async fn run(listener: Arc<Listener>) -> std::io::Result<()> {
    run_listener(listener, 0, Rc::new(WorkerListeners::default())).await
}

/// Answers admin requests.
struct AdminFilter {
    server: Arc<OnceLock<Weak<Server>>>,
    allow_paths: Arc<[nuncio_config::matchers::StringMatcher]>,
}

impl TerminalFilter for AdminFilter {
    fn serve<'a>(&'a self, stream: &'a mut ActiveStream<'_>) -> LocalFuture<'a, ()> {
        Box::pin(async move {
            let Some(server) = self.server.get().and_then(Weak::upgrade) else {
                return stream.local_reply(LocalReply::new(503, "no server", "admin_filter_response"));
            };
            let path = stream.request.str(&names::PATH).unwrap_or("/").to_owned();
            // As in Envoy, the matchers see the query, too.
            if !self.allow_paths.is_empty()
                && !self.allow_paths.iter().any(|m| nuncio_http::matchers::string_matches(m, path.as_bytes()))
            {
                let reply = format!("request to path {path} not allowed");
                let mut reply_403 = LocalReply::new(403, "", "admin_filter_response");
                reply_403.body = reply.into();
                return stream.local_reply(reply_403);
            }
            if admin_grpc::is_call(stream, path.split('?').next().unwrap_or("/")) {
                return admin_grpc::serve(stream, &path, &Sources::new(&server)).await;
            }
            let Some(body) = read_body(stream).await else { return };
            let headers = stream.request.iter().filter(|(name, _)| !name.is_pseudo());
            let mut headers: Vec<_> = headers
                .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap_or("").to_owned()))
                .collect();
            if let Some(host) = stream.request.str(&names::AUTHORITY) {
                headers.push(("host".to_owned(), host.to_owned()));
            }
            let request = AdminRequest {
                method: String::from_utf8_lossy(stream.request.method()).into_owned(),
                path_and_query: path,
                headers,
                body,
            };
            let sources = Sources::new(&server);
            let answer = admin::handle(&request, &sources);
            let mut head = Headers::with_capacity(8);
            head.set_status(answer.status);
            head.append(names::CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
            for (name, value) in admin::COMMON_HEADERS {
                if let Some(name) = HeaderName::parse(name) {
                    head.append(name, HeaderValue::from_static(value));
                }
            }
            stream.info.response_code_details = Some("admin_filter_response".into());
            stream.send_response_headers(head, false);
            stream.send_response_data(answer.body, true);
            // What ends the process must not overtake the answer.
            let _ = poll_fn(|cx| stream.poll_response_flush(cx)).await;
            sources.act();
        })
    }
}

/// The whole body; None when the stream ended or the body is too large.
async fn read_body(stream: &mut ActiveStream<'_>) -> Option<bytes::Bytes> {
    let mut body = BytesMut::new();
    while !stream.request_complete() {
        match poll_fn(|cx| stream.poll_request_frame(cx)).await {
            Ok(Frame::Data(data, _)) => body.extend_from_slice(&data),
            Ok(Frame::Trailers(_)) => {}
            Err(abort) => {
                stream.abort(abort);
                return None;
            }
        }
        if body.len() > MAX_BODY {
            stream.local_reply(LocalReply::new(413, "Payload Too Large", "request_payload_too_large"));
            return None;
        }
    }
    Some(body.freeze())
}
