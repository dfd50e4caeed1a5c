//! Stats of the codecs: `http1.` and `http2.`, of the server's own connections and below `cluster.<name>.`.

nuncio_base::stat_family! {
    /// HTTP/1 codec stats; the prefix ends in `http1.`.
    pub struct Http1Stats {
        counters {
            dropped_headers_with_underscores,
            metadata_not_supported_error,
            requests_rejected_with_underscores_in_headers,
            response_flood,
        }
    }
}

nuncio_base::stat_family! {
    /// HTTP/2 codec stats; the prefix ends in `http2.`.
    pub struct Http2Stats {
        counters {
            dropped_headers_with_underscores,
            goaway_sent,
            header_overflow,
            headers_cb_no_stream,
            inbound_empty_frames_flood,
            inbound_priority_frames_flood,
            inbound_window_update_frames_flood,
            keepalive_timeout,
            metadata_empty_frames,
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
            outbound_control_frames_active,
            outbound_frames_active,
            pending_send_bytes,
            streams_active,
        }
    }
}
