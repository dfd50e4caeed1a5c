//! The router filter's configuration (`envoy.extensions.filters.http.router.v3`).

use crate::access_log::AccessLogConfig;
use crate::decode::{Context, bool_value};
use crate::hcm::HttpFilterConfig;
use crate::hcm::decode::{ROUTER_UPSTREAM, http_filters};
use envoy_types::pb::envoy::extensions::filters::http::router::v3 as pb;
use std::time::Duration;

/// `Router`.
#[derive(Debug, Clone, Default)]
pub struct RouterConfig {
    /// Responses are not counted by their codes, and their times not kept (`dynamic_stats: false`).
    pub without_dynamic_stats: bool,
    /// Responses to gRPC requests are not counted by their codes among those of the whole cluster
    /// (`suppress_grpc_request_failure_code_stats`).
    pub suppress_grpc_codes: bool,
    /// `suppress_envoy_headers`.
    pub suppress_envoy_headers: bool,
    /// `respect_expected_rq_timeout`.
    pub respect_expected_rq_timeout: bool,
    /// Request headers that are refused where their values are not understood.
    pub strict_check_headers: Vec<StrictHeader>,
    /// HTTP filters towards the upstreams of clusters that have none of their own.
    pub upstream_http_filters: Vec<HttpFilterConfig>,
    /// Access logs of tries.
    pub upstream_logs: Vec<AccessLogConfig>,
    /// A try is logged also when its stream begins.
    pub log_on_upstream_stream: bool,
    /// And again and again while it goes on.
    pub log_interval: Option<Duration>,
}

/// One of `strict_check_headers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrictHeader {
    /// `x-envoy-upstream-rq-timeout-ms`
    Timeout,
    /// `x-envoy-upstream-rq-per-try-timeout-ms`
    PerTryTimeout,
    /// `x-envoy-max-retries`
    MaxRetries,
    /// `x-envoy-retry-on`
    RetryOn,
    /// `x-envoy-retry-grpc-on`
    RetryGrpcOn,
}

impl RouterConfig {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &pb::Router) -> Option<Self> {
        let options = message.upstream_log_options.as_ref();
        Some(RouterConfig {
            without_dynamic_stats: bool_value(&message.dynamic_stats) == Some(false),
            suppress_grpc_codes: message.suppress_grpc_request_failure_code_stats,
            suppress_envoy_headers: message.suppress_envoy_headers,
            respect_expected_rq_timeout: message.respect_expected_rq_timeout,
            strict_check_headers: message.strict_check_headers.iter().filter_map(|name| strict_header(name)).collect(),
            upstream_http_filters: http_filters(
                cx,
                "upstream_http_filters",
                &message.upstream_http_filters,
                ROUTER_UPSTREAM,
            ),
            upstream_logs: cx.each("upstream_log", &message.upstream_log, AccessLogConfig::decode),
            log_on_upstream_stream: options.is_some_and(|options| options.flush_upstream_log_on_upstream_stream),
            log_interval: options.and_then(|options| {
                cx.at("upstream_log_options", |cx| {
                    cx.duration("upstream_log_flush_interval", &options.upstream_log_flush_interval)
                })
            }),
        })
    }
}

/// Other names are refused before.
fn strict_header(name: &str) -> Option<StrictHeader> {
    Some(match name {
        "x-envoy-upstream-rq-timeout-ms" => StrictHeader::Timeout,
        "x-envoy-upstream-rq-per-try-timeout-ms" => StrictHeader::PerTryTimeout,
        "x-envoy-max-retries" => StrictHeader::MaxRetries,
        "x-envoy-retry-on" => StrictHeader::RetryOn,
        "x-envoy-retry-grpc-on" => StrictHeader::RetryGrpcOn,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as manager;
    use envoy_types::pb::google::protobuf::Any;

    fn filter(name: &str, kind: &str) -> manager::HttpFilter {
        let any = Any { type_url: format!("type.googleapis.com/envoy.extensions.filters.http.{kind}"), value: vec![] };
        manager::HttpFilter {
            name: name.into(),
            config_type: Some(manager::http_filter::ConfigType::TypedConfig(any)),
            ..Default::default()
        }
    }

    #[test]
    fn the_filters_towards_upstreams_end_with_the_codec() {
        let decode = |filters| {
            let message = pb::Router { upstream_http_filters: filters, ..Default::default() };
            Context::default().run(|cx| RouterConfig::decode(cx, &message))
        };
        let (mutation, codec) = ("header_mutation.v3.HeaderMutation", "upstream_codec.v3.UpstreamCodec");
        assert!(decode(vec![filter("m", mutation), filter("c", codec)]).is_ok());
        assert_eq!(
            errors(decode(vec![filter("m", mutation)])),
            [
                "upstream_http_filters[0]: Error: non-terminal filter named m of type envoy.filters.http.header_mutation \
              is the last filter in a router upstream http filter chain. When upstream_http_filters are specified, they \
              must explicitly end with an UpstreamCodec filter."
            ]
        );
        assert_eq!(
            errors(decode(vec![filter("c", codec), filter("d", codec)])),
            [
                "upstream_http_filters[0]: Error: terminal filter named c of type envoy.filters.http.upstream_codec must \
              be the last filter in a router upstream http filter chain."
            ]
        );
    }

    #[test]
    fn filters_towards_upstreams_may_be_fetched() {
        use envoy_types::pb::envoy::config::core::v3::{ConfigSource, ExtensionConfigSource, config_source};
        let fetched = |kind: &str, default: bool| {
            let ads = config_source::ConfigSourceSpecifier::Ads(Default::default());
            let type_url = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}");
            let source = ExtensionConfigSource {
                config_source: Some(ConfigSource { config_source_specifier: Some(ads), ..Default::default() }),
                default_config: default.then(|| Any { type_url: type_url.clone(), value: vec![] }),
                type_urls: vec![type_url],
                ..Default::default()
            };
            manager::HttpFilter {
                name: "f".into(),
                config_type: Some(manager::http_filter::ConfigType::ConfigDiscovery(source)),
                ..Default::default()
            }
        };
        let decode = |filters| {
            let message = pb::Router { upstream_http_filters: filters, ..Default::default() };
            Context::default().run(|cx| RouterConfig::decode(cx, &message))
        };
        let (mutation, codec) = ("header_mutation.v3.HeaderMutation", "upstream_codec.v3.UpstreamCodec");
        let config = decode(vec![fetched(mutation, true), fetched(codec, false)]).unwrap();
        assert!(config.upstream_http_filters.iter().all(|filter| filter.config_discovery.is_some()));
        let [error] = &errors(decode(vec![fetched(codec, true), filter("c", codec)]))[..] else { panic!("one error") };
        assert!(error.contains("terminal filter named f of type envoy.filters.http.upstream_codec must be the last"));
    }
}
