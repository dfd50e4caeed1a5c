//! The HTTP connection manager as configured: what all of its connections and streams share. Built on the control
//! thread, used by all workers; holds no per-connection state.

use crate::access_log::AccessLogs;
use crate::codec::stats::CodecStats;
use crate::filter::LocalFuture;
use crate::filter_chains::ChainSource;
use crate::hcm_rules::HcmRules;
use crate::header_rules::LocalInfo;
use crate::headers::{HeaderValue, Headers};
use crate::local_reply::LocalReplyRules;
use crate::matchers::Runtime;
use crate::route::Routes;
use nuncio_base::stat_family;
use nuncio_config::hcm::HcmConfig;
use std::sync::Arc;

stat_family! {
    /// `http.<stat_prefix>.`
    pub struct HcmStats {
        counters {
            downstream_cx_delayed_close_timeout,
            downstream_cx_destroy,
            downstream_cx_destroy_active_rq,
            downstream_cx_destroy_local,
            downstream_cx_destroy_local_active_rq,
            downstream_cx_destroy_remote,
            downstream_cx_destroy_remote_active_rq,
            downstream_cx_drain_close,
            downstream_cx_http1_total,
            downstream_cx_http2_total,
            downstream_cx_http3_total,
            downstream_cx_idle_timeout,
            downstream_cx_max_duration_reached,
            downstream_cx_max_requests_reached,
            downstream_cx_overload_disable_keepalive,
            downstream_cx_protocol_error,
            downstream_cx_rx_bytes_total,
            downstream_cx_ssl_total,
            downstream_cx_total,
            downstream_cx_tx_bytes_total,
            downstream_cx_upgrades_total,
            downstream_flow_control_paused_reading_total,
            downstream_flow_control_resumed_reading_total,
            downstream_rq_1xx,
            downstream_rq_2xx,
            downstream_rq_3xx,
            downstream_rq_4xx,
            downstream_rq_5xx,
            downstream_rq_completed,
            downstream_rq_failed_path_normalization,
            downstream_rq_header_timeout,
            downstream_rq_http1_total,
            downstream_rq_http2_total,
            downstream_rq_http3_total,
            downstream_rq_idle_timeout,
            downstream_rq_max_duration_reached,
            downstream_rq_non_relative_path,
            downstream_rq_overload_close,
            downstream_rq_redirected_with_normalized_path,
            downstream_rq_rejected_via_ip_detection,
            downstream_rq_response_before_rq_complete,
            downstream_rq_rx_reset,
            downstream_rq_timeout,
            downstream_rq_too_large,
            downstream_rq_too_many_premature_resets,
            downstream_rq_total,
            downstream_rq_tx_reset,
            downstream_rq_ws_on_non_ws_route,
            rs_too_large,
            no_cluster,
            no_route,
            passthrough_internal_redirect_bad_location,
            passthrough_internal_redirect_no_route,
            passthrough_internal_redirect_predicate,
            passthrough_internal_redirect_too_many_redirects,
            passthrough_internal_redirect_unsafe_scheme,
            rq_direct_response,
            rq_overload_local_reply,
            rq_redirect,
            rq_reset_after_downstream_response_started,
            rq_total,
            tracing_client_enabled = "tracing.client_enabled",
            tracing_health_check = "tracing.health_check",
            tracing_not_traceable = "tracing.not_traceable",
            tracing_random_sampling = "tracing.random_sampling",
            tracing_service_forced = "tracing.service_forced",
        }
        gauges {
            downstream_cx_active,
            downstream_cx_http1_active,
            downstream_cx_http1_soft_drain,
            downstream_cx_http2_active,
            downstream_cx_http3_active,
            downstream_cx_rx_bytes_buffered,
            downstream_cx_ssl_active,
            downstream_cx_tx_bytes_buffered,
            downstream_cx_upgrades_active,
            downstream_rq_active,
        }
        histograms { downstream_cx_length_ms: Milliseconds, downstream_rq_time: Milliseconds }
    }
}

stat_family! {
    /// `listener.<address>.http.<stat_prefix>.`
    pub struct ListenerHttpStats {
        counters {
            downstream_rq_1xx,
            downstream_rq_2xx,
            downstream_rq_3xx,
            downstream_rq_4xx,
            downstream_rq_5xx,
            downstream_rq_completed,
        }
    }
}

/// Fetches routes when a request needs them.
pub trait OnDemandRoutes: Send + Sync {
    /// Asks for the routes of a request that has none; None where there is nothing to ask for. The future is ready once an
    /// answer has come, whatever it is.
    fn fetch(&self, headers: &Headers) -> Option<LocalFuture<'static, ()>>;
}

/// Everything an HTTP connection manager's connections share.
pub struct Hcm {
    /// Configuration.
    pub config: Arc<HcmConfig>,
    /// Routes; replaced as a whole. Streams pin what they use.
    pub routes: Routes,
    /// Fetches routes for requests that have none; None where all routes are there.
    pub on_demand: Option<Arc<dyn OnDemandRoutes>>,
    /// Filters.
    pub chains: ChainSource,
    /// Stats.
    pub stats: HcmStats,
    /// Stats under the listener.
    pub listener_stats: Option<ListenerHttpStats>,
    /// Stats of the codecs.
    pub codec_stats: CodecStats,
    /// Access logs.
    pub access_logs: AccessLogs,
    /// What few connection managers have; None where there is none of it.
    pub rules: Option<Box<HcmRules>>,
    /// Rewriting of local replies.
    pub local_reply: LocalReplyRules,
    /// `server` header.
    pub server_name: HeaderValue,
    /// Runtime layers.
    pub runtime: Arc<dyn Runtime>,
    /// The process.
    pub local: Arc<LocalInfo>,
}

impl Hcm {
    /// Counts a response by class, as Envoy's `chargeStats`.
    pub(crate) fn charge(&self, code: u16) {
        let s = &self.stats;
        s.downstream_rq_completed().inc();
        match code / 100 {
            1 => s.downstream_rq_1xx().inc(),
            2 => s.downstream_rq_2xx().inc(),
            3 => s.downstream_rq_3xx().inc(),
            4 => s.downstream_rq_4xx().inc(),
            5 => s.downstream_rq_5xx().inc(),
            _ => {}
        }
        let Some(l) = &self.listener_stats else { return };
        l.downstream_rq_completed().inc();
        match code / 100 {
            1 => l.downstream_rq_1xx().inc(),
            2 => l.downstream_rq_2xx().inc(),
            3 => l.downstream_rq_3xx().inc(),
            4 => l.downstream_rq_4xx().inc(),
            5 => l.downstream_rq_5xx().inc(),
            _ => {}
        }
    }
}
