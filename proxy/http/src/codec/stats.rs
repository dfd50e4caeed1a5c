//! Stats of the codecs: `http1.` and `http2.` at the top for downstream connections, and below `cluster.<name>.`.

nuncio_base::stat_family! {
    /// HTTP/1 codec stats; the prefix ends in `http1.`. Shown from the first connection on.
    pub struct Http1Stats {
        when: used;
        counters {
            dropped_headers_with_underscores,
            metadata_not_supported_error,
            requests_rejected_with_underscores_in_headers,
            response_flood,
        }
    }
}

nuncio_base::stat_family! {
    /// HTTP/2 codec stats; the prefix ends in `http2.`. Those that only Envoy's libraries can count stay at zero.
    /// Shown from the first connection on.
    pub struct Http2Stats {
        when: used;
        counters {
            cookies_total_bytes_too_large,
            dropped_headers_with_underscores,
            goaway_sent,
            header_list_size_too_large,
            header_overflow,
            headers_cb_no_stream,
            inbound_empty_frames_flood,
            inbound_priority_frames_flood,
            inbound_window_update_frames_flood,
            keepalive_timeout,
            metadata_empty_frames,
            nghttp2_downstream_connections,
            nghttp2_upstream_connections,
            oghttp2_downstream_connections,
            oghttp2_upstream_connections,
            outbound_control_flood,
            outbound_flood,
            requests_rejected_with_underscores_in_headers,
            rx_messaging_error,
            rx_reset,
            stream_refused_errors,
            trailers,
            tx_flush_timeout,
            tx_reset,
        }
        gauges {
            deferred_stream_close,
            outbound_control_frames_active,
            outbound_frames_active,
            pending_send_bytes,
            streams_active,
        }
        histograms {
            cookie_count: Unspecified,
            cookie_size: Unspecified,
            header_count: Unspecified,
            header_list_size: Unspecified,
        }
    }
}

/// The codecs' stats of one side.
#[derive(Clone)]
pub struct CodecStats {
    /// `http1.`
    pub http1: Http1Stats,
    /// `http2.`
    pub http2: Http2Stats,
}

impl CodecStats {
    /// Of the server's own connections: the names have no further prefix.
    pub fn server(registry: &nuncio_base::stats::Registry) -> CodecStats {
        CodecStats { http1: Http1Stats::new(registry, "http1."), http2: Http2Stats::new(registry, "http2.") }
    }
}
