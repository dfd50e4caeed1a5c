//! From a `ConfigSource` to a source of the discovery client: files, streams and polls through the proxy's clusters.

use super::stats::ControlPlane;
use super::transport::{self, ClusterConnect};
use super::{files, rest};
use crate::server::Server;
use crate::source_check::Place;
use nuncio_config::config_source::{Api, ApiConfigSource, ConfigSource, GrpcService, GrpcTarget, SourceKind};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use xds_client::transport::GrpcTransport;
use xds_client::transport::grpc::{Channel, ChannelOptions};
use xds_client::{Aggregated, Backoff, Client, GrpcSource, PathSource, Protocol, RateLimit, RestSource, Source};

/// Makes sources. Channels to one control plane are shared.
pub(crate) struct Sources {
    server: Arc<Server>,
    channels: RefCell<HashMap<String, Channel>>,
    authorities: RefCell<Authorities>,
}

/// The streams of those who know the resources of `xdstp://` names.
#[derive(Default)]
struct Authorities {
    named: Vec<Aggregated>,
    default: Option<Aggregated>,
}

impl Sources {
    pub(crate) fn new(server: &Arc<Server>) -> Sources {
        Sources { server: server.clone(), channels: RefCell::default(), authorities: RefCell::default() }
    }

    /// The source that `config` means. `prefix` is that of the stats of who asks; `own` is where the message with `config`
    /// came from, for `self`.
    pub(crate) fn resolve(&self, config: &ConfigSource, prefix: &str, own: Option<Source>) -> Result<Source, String> {
        match &config.kind {
            SourceKind::Ads => Ok(Source::Ads),
            SourceKind::SelfSource => own.ok_or_else(|| "self is used in a resource that was not fetched".to_owned()),
            SourceKind::Path { path, watched_directory, watch_modify } => {
                self.server.context.sources.usable(config)?;
                Ok(Source::Path(Rc::new(PathSource {
                    path: path.clone(),
                    watched_directory: watched_directory.clone(),
                    watch_modify: *watch_modify,
                    parse: Rc::new(files::parse),
                })))
            }
            SourceKind::CollectionFile(path) => {
                self.server.context.sources.usable(config)?;
                Ok(Source::Path(Rc::new(PathSource {
                    path: path.clone(),
                    watched_directory: None,
                    watch_modify: false,
                    parse: Rc::new(files::parse_collection),
                })))
            }
            SourceKind::Api(api) => self.api(api, prefix),
        }
    }

    /// The place of a resource, as a source and with the time to wait for it.
    pub(crate) fn place(&self, place: &Place, prefix: &str, own: Option<Source>) -> Result<(Source, Duration), String> {
        match place {
            Place::Source(source) => Ok((self.resolve(source, prefix, own)?, source.initial_fetch_timeout)),
            Place::Authority { index, initial_fetch_timeout } => {
                let authorities = self.authorities.borrow();
                let stream = match index {
                    Some(index) => authorities.named.get(*index),
                    None => authorities.default.as_ref(),
                };
                let stream = stream.ok_or_else(|| "the authority is not there yet".to_owned())?;
                Ok((Source::Aggregated(stream.clone()), *initial_fetch_timeout))
            }
        }
    }

    /// Declares the streams of authorities.
    ///
    /// # Errors
    /// One of them cannot be used, which is named.
    pub(crate) fn declare_authorities(&self, client: &Client) -> Result<(), String> {
        let dynamic = &self.server.bootstrap.config.dynamic;
        let declare = |source: &ConfigSource| match &source.kind {
            SourceKind::Api(api) => Ok(client.aggregated(self.grpc(api, "")?)),
            _ => Err("a stream needs api_type AGGREGATED_GRPC or AGGREGATED_DELTA_GRPC".to_owned()),
        };
        let named = dynamic.authorities.iter().enumerate();
        let named = named.map(|(i, source)| declare(source).map_err(|e| format!("config_sources[{i}]: {e}")));
        let default = dynamic.default_authority.as_ref().map(declare);
        *self.authorities.borrow_mut() = Authorities {
            named: named.collect::<Result<_, _>>()?,
            default: default.transpose().map_err(|e| format!("default_config_source: {e}"))?,
        };
        Ok(())
    }

    fn api(&self, config: &ApiConfigSource, prefix: &str) -> Result<Source, String> {
        match &config.api {
            Api::Grpc { aggregated: true, .. } => Ok(Source::Ads),
            Api::Grpc { .. } => Ok(Source::Grpc(Rc::new(self.grpc(config, prefix)?))),
            Api::Rest { cluster, refresh_delay, request_timeout } => {
                self.check_cluster(cluster)?;
                Ok(Source::Rest(Rc::new(RestSource {
                    name: cluster.to_string(),
                    transport: Rc::new(rest::ClusterRest::new(&self.server, cluster, *request_timeout)),
                    codec: Rc::new(files::Json),
                    refresh_delay: *refresh_delay,
                    request_timeout: *request_timeout,
                })))
            }
        }
    }

    /// The stream that `config` describes; `prefix` is that of its stats.
    pub(crate) fn grpc(&self, config: &ApiConfigSource, prefix: &str) -> Result<GrpcSource, String> {
        let Api::Grpc { delta, service, failover, .. } = &config.api else {
            return Err("a stream needs api_type GRPC or DELTA_GRPC".to_owned());
        };
        self.server.context.sources.api(config)?;
        let failover = failover.as_ref().map(|service| self.channel(service)).transpose()?;
        let backoff = service.backoff.map_or_else(Backoff::default, |(base, max)| Backoff { base, max });
        let (name, channel) = self.channel(service)?;
        Ok(GrpcSource {
            name,
            protocol: if *delta { Protocol::Delta } else { Protocol::Sotw },
            transport: Rc::new(channel),
            failover: failover.map(|(_, channel)| Rc::new(channel) as Rc<dyn GrpcTransport>),
            node_on_first_message_only: config.set_node_on_first_message_only,
            rate_limit: config
                .rate_limit
                .map(|limit| RateLimit { max_tokens: limit.max_tokens, fill_rate: limit.fill_rate }),
            backoff,
            cache_endpoints: true,
            stats: Rc::new(ControlPlane::new(&self.server.context.registry, prefix)),
        })
    }

    /// Opens streams to the server that `config` names, for a service that is none of discovery.
    pub(crate) fn transport(&self, config: &ApiConfigSource) -> Result<Rc<dyn GrpcTransport>, String> {
        let Api::Grpc { service, .. } = &config.api else {
            return Err("a stream needs api_type GRPC or DELTA_GRPC".to_owned());
        };
        let (_, channel) = self.channel(service)?;
        Ok(Rc::new(channel))
    }

    /// The connections to a control plane: one set for all streams that are configured alike.
    pub(super) fn channel(&self, service: &GrpcService) -> Result<(String, Channel), String> {
        let key = format!("{service:?}");
        let mut channels = self.channels.borrow_mut();
        match &service.target {
            GrpcTarget::Envoy { cluster, authority, max_receive_message_length, skip_envoy_headers } => {
                self.check_cluster(cluster)?;
                let name = cluster.to_string();
                if let Some(known) = channels.get(&key) {
                    return Ok((name, known.clone()));
                }
                let mut options = ChannelOptions::new(if authority.is_empty() { &**cluster } else { authority });
                if !skip_envoy_headers {
                    let own = self.server.context.local_address();
                    options.metadata.push(("x-envoy-internal".to_owned(), "true".to_owned()));
                    options.metadata.push(("x-forwarded-for".to_owned(), own));
                }
                options.metadata.extend(service.initial_metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())));
                if let Some(max) = max_receive_message_length {
                    options.max_message_size = *max as usize;
                }
                options.keepalive = self.keepalive(cluster);
                let connect = ClusterConnect::new(&self.server, cluster);
                options.tls = connect.is_secure();
                let channel = Channel::new(Box::new(connect), options);
                channels.insert(key, channel.clone());
                Ok((name, channel))
            }
            GrpcTarget::Google { uri, tls, access_token, .. } => {
                let name = uri.to_string();
                if let Some(known) = channels.get(&key) {
                    return Ok((name, known.clone()));
                }
                let target = transport::Target::parse(uri, tls.as_ref(), &self.server.context.registry)?;
                let mut options = ChannelOptions::new(target.authority());
                let token = access_token.as_ref().map(|token| ("authorization".to_owned(), format!("Bearer {token}")));
                options.metadata.extend(token);
                options.metadata.extend(service.initial_metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())));
                options.tls = tls.is_some();
                let channel = Channel::new(Box::new(target), options);
                channels.insert(key, channel.clone());
                Ok((name, channel))
            }
        }
    }

    /// `connection_keepalive` of the cluster's HTTP/2 options.
    fn keepalive(&self, cluster: &str) -> Option<(Duration, Duration)> {
        let cluster = self.server.context.clusters.cluster(cluster)?;
        let http2 = &cluster.config.http.http2;
        Some((http2.keepalive_interval?, http2.keepalive_timeout))
    }

    fn check_cluster(&self, name: &str) -> Result<(), String> {
        self.server.context.sources.cluster_is_asked(name)
    }
}
