//! Options of HTTP towards a cluster: `HttpProtocolOptions`, and the deprecated fields that said the same.

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream;

use super::{HttpPolicies, UpstreamHttpOptions, UpstreamProtocol};
use crate::decode::{Context, sorted, u32_value};
use crate::hcm::decode::{CLUSTER_UPSTREAM, http_filters, share};
use crate::hcm::{Http1Options, Http2Options};

/// The entry of `typed_extension_protocol_options` that counts.
pub(super) const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The options of `typed_extension_protocol_options`, or of the deprecated fields of the cluster where it has none.
pub(super) fn http_options(cx: &mut Context, message: &pb::Cluster) -> (UpstreamHttpOptions, Option<HttpPolicies>) {
    check_keys(cx, message);
    let per_cluster = u32_value(&message.max_requests_per_connection);
    let mut policies = None;
    let decoded = match message.typed_extension_protocol_options.get(HTTP_OPTIONS) {
        Some(any) => cx.at("typed_extension_protocol_options", |cx| {
            cx.at_key(HTTP_OPTIONS, |cx| {
                let options: upstream::HttpProtocolOptions = cx.unpack(any)?;
                policies = HttpPolicies::decode(cx, &options);
                Some(typed_options(cx, &options))
            })
        }),
        None => Some(deprecated_options(cx, message)),
    };
    let mut options = decoded.unwrap_or_default();
    options.max_requests_per_connection = options.max_requests_per_connection.or(per_cluster).filter(|max| *max > 0);
    (options, policies)
}

/// What else than [`HTTP_OPTIONS`] may have options; none of these has an effect here.
const OTHERS: [&str; 7] = [
    "envoy.extensions.upstreams.http.reverse_tunnel.v3.ReverseTunnelUpstreamCodecOptions",
    "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions",
    "envoy.filters.network.redis_proxy",
    "envoy.filters.network.thrift_proxy",
    "envoy.redis_proxy",
    "envoy.upstreams.http.http_protocol_options",
    "envoy.upstreams.tcp.tcp_protocol_options",
];

fn check_keys(cx: &mut Context, message: &pb::Cluster) {
    cx.at("typed_extension_protocol_options", |cx| {
        for (name, _) in sorted(&message.typed_extension_protocol_options) {
            if name == HTTP_OPTIONS || OTHERS.contains(&name.as_str()) {
                continue;
            }
            let is_filter = ["envoy.filters.http.", "envoy.filters.network."].iter().any(|start| name.starts_with(start));
            let text = match is_filter {
                true => format!("filter {name} does not support protocol options"),
                false => format!(
                    "Didn't find a registered network or http filter or protocol options implementation for name: '{name}'"
                ),
            };
            cx.at_key(name, |cx| cx.error(text));
        }
    });
}

fn typed_options(cx: &mut Context, message: &upstream::HttpProtocolOptions) -> UpstreamHttpOptions {
    use upstream::http_protocol_options::UpstreamProtocolOptions as Kind;
    use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;
    let mut options = UpstreamHttpOptions::default();
    match &message.upstream_protocol_options {
        Some(Kind::ExplicitHttpConfig(explicit)) => {
            cx.at("explicit_http_config", |cx| match &explicit.protocol_config {
                Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                    options.protocol = UpstreamProtocol::Http2;
                    protocols(cx, &mut options, &None, &Some(http2.clone()));
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => options.protocol = UpstreamProtocol::Http3,
                Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
                    protocols(cx, &mut options, &Some(http1.clone()), &None);
                }
                None => {}
            })
        }
        Some(Kind::UseDownstreamProtocolConfig(config)) => cx.at("use_downstream_protocol_config", |cx| {
            options.protocol = UpstreamProtocol::UseDownstream;
            protocols(cx, &mut options, &config.http_protocol_options, &config.http2_protocol_options);
        }),
        Some(Kind::AutoConfig(config)) => cx.at("auto_config", |cx| {
            options.protocol = UpstreamProtocol::Auto;
            protocols(cx, &mut options, &config.http_protocol_options, &config.http2_protocol_options);
        }),
        None => {}
    }
    common_options(cx, &mut options, &message.common_http_protocol_options, &message.upstream_http_protocol_options);
    options.http_filters = http_filters(cx, "http_filters", &message.http_filters, CLUSTER_UPSTREAM);
    options
}

fn deprecated_options(cx: &mut Context, message: &pb::Cluster) -> UpstreamHttpOptions {
    use pb::cluster::ClusterProtocolSelection;
    let mut options = UpstreamHttpOptions::default();
    let downstream = message.protocol_selection() == ClusterProtocolSelection::UseDownstreamProtocol;
    if downstream {
        options.protocol = UpstreamProtocol::UseDownstream;
    } else if message.http2_protocol_options.is_some() {
        options.protocol = UpstreamProtocol::Http2;
        if message.http_protocol_options.is_some() {
            cx.error(
                "cluster: Both HTTP1 and HTTP2 options may only be configured with non-default 'protocol_selection' values",
            );
        }
    }
    protocols(cx, &mut options, &message.http_protocol_options, &message.http2_protocol_options);
    common_options(cx, &mut options, &message.common_http_protocol_options, &message.upstream_http_protocol_options);
    options
}

fn protocols(
    cx: &mut Context,
    options: &mut UpstreamHttpOptions,
    http1: &Option<core::Http1ProtocolOptions>,
    http2: &Option<core::Http2ProtocolOptions>,
) {
    let decoded = cx.optional("http_protocol_options", http1, |cx, m| Http1Options::decode(cx, m, None));
    options.http1 = decoded.unwrap_or_default();
    let decoded = cx.optional("http2_protocol_options", http2, |cx, m| Http2Options::decode(cx, m, None));
    options.http2 = decoded.unwrap_or_default();
}

fn common_options(
    cx: &mut Context,
    options: &mut UpstreamHttpOptions,
    common: &Option<core::HttpProtocolOptions>,
    upstream: &Option<core::UpstreamHttpProtocolOptions>,
) {
    if let Some(common) = common {
        cx.at("common_http_protocol_options", |cx| {
            options.idle_timeout = cx.timeout("idle_timeout", &common.idle_timeout, options.idle_timeout);
            options.max_connection_duration =
                cx.timeout("max_connection_duration", &common.max_connection_duration, None);
            options.max_connection_duration_jitter = share(common.max_connection_duration_jitter.as_ref());
            options.max_stream_duration = cx.timeout("max_stream_duration", &common.max_stream_duration, None);
        });
        options.max_requests_per_connection = u32_value(&common.max_requests_per_connection);
        options.max_headers_count = u32_value(&common.max_headers_count).unwrap_or(options.max_headers_count);
        options.max_response_headers_kb = u32_value(&common.max_response_headers_kb);
    }
    if let Some(upstream) = upstream {
        options.auto_sni = upstream.auto_sni;
        options.auto_san_validation = upstream.auto_san_validation;
        options.override_auto_sni_header = (!upstream.override_auto_sni_header.is_empty())
            .then(|| upstream.override_auto_sni_header.to_ascii_lowercase().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::decode::tests::{cluster, decode};
    use crate::decode::tests::errors;
    use envoy_types::pb::google::protobuf as google;
    use google::Any;
    use pb::cluster::DiscoveryType;
    use prost::Message;

    fn typed(options: &upstream::HttpProtocolOptions) -> pb::Cluster {
        let any = Any { type_url: format!("type.googleapis.com/{HTTP_OPTIONS}"), value: options.encode_to_vec() };
        pb::Cluster {
            typed_extension_protocol_options: [(HTTP_OPTIONS.to_owned(), any)].into(),
            ..cluster(DiscoveryType::Static, &[])
        }
    }

    #[test]
    fn explicit_http2_is_http2() {
        use upstream::http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config};
        let http2 = envoy_types::pb::envoy::config::core::v3::Http2ProtocolOptions {
            max_concurrent_streams: Some(google::UInt32Value { value: 7 }),
            ..Default::default()
        };
        let message = typed(&upstream::HttpProtocolOptions {
            upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(explicit_http_config::ProtocolConfig::Http2ProtocolOptions(http2)),
            })),
            ..Default::default()
        });
        let http = decode(&message).unwrap().http;
        assert_eq!((http.protocol, http.http2.max_concurrent_streams), (UpstreamProtocol::Http2, 7));
    }

    #[test]
    fn the_automatic_protocol_needs_tls() {
        use upstream::http_protocol_options::UpstreamProtocolOptions;
        let message = typed(&upstream::HttpProtocolOptions {
            upstream_protocol_options: Some(UpstreamProtocolOptions::AutoConfig(Default::default())),
            ..Default::default()
        });
        assert_eq!(errors(decode(&message)), ["ALPN configured for cluster c which has a non-ALPN transport socket"]);
    }

    #[test]
    fn the_deprecated_http2_options_still_choose_http2() {
        let mut message =
            pb::Cluster { http2_protocol_options: Some(Default::default()), ..cluster(DiscoveryType::Static, &[]) };
        assert_eq!(decode(&message).unwrap().http.protocol, UpstreamProtocol::Http2);
        message.http_protocol_options = Some(Default::default());
        assert_eq!(
            errors(decode(&message)),
            [
                "cluster: Both HTTP1 and HTTP2 options may only be configured with non-default 'protocol_selection' values"
            ]
        );
        message.protocol_selection = pb::cluster::ClusterProtocolSelection::UseDownstreamProtocol.into();
        assert_eq!(decode(&message).unwrap().http.protocol, UpstreamProtocol::UseDownstream);
    }

    #[test]
    fn max_requests_per_connection_of_the_options_goes_before_the_clusters() {
        use envoy_types::pb::envoy::config::core::v3::HttpProtocolOptions;
        let mut message = typed(&upstream::HttpProtocolOptions {
            common_http_protocol_options: Some(HttpProtocolOptions {
                max_requests_per_connection: Some(google::UInt32Value { value: 5 }),
                ..Default::default()
            }),
            ..Default::default()
        });
        message.max_requests_per_connection = Some(google::UInt32Value { value: 9 });
        assert_eq!(decode(&message).unwrap().http.max_requests_per_connection, Some(5));
    }
}
