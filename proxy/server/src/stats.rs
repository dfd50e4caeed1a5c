//! The server's own stats: `server.`, `listener_manager.`, `runtime.` and the watchdogs' names.

use nuncio_base::stat_family;

stat_family! {
    /// `server.`
    pub struct ServerStats {
        counters {
            debug_assertion_failures,
            dropped_stat_flushes,
            dynamic_unknown_fields,
            envoy_bug_failures,
            envoy_notifications,
            static_unknown_fields,
            wip_protos,
            main_thread_watchdog_mega_miss = "main_thread.watchdog_mega_miss",
            main_thread_watchdog_miss = "main_thread.watchdog_miss",
        }
        gauges {
            fips_mode = "compilation_settings.fips_mode",
            concurrency,
            days_until_first_cert_expiring,
            hot_restart_epoch,
            hot_restart_generation,
            live,
            memory_allocated,
            memory_heap_size,
            memory_physical_size,
            parent_connections,
            seconds_until_first_ocsp_response_expiring,
            state,
            stats_recent_lookups,
            total_connections,
            uptime,
            version,
        }
        histograms { initialization_time_ms: Milliseconds }
    }
}

stat_family! {
    /// `listener_manager.`
    pub struct ListenerManagerStats {
        counters {
            listener_added,
            listener_create_failure,
            listener_create_success,
            listener_in_place_updated,
            listener_modified,
            listener_removed,
            listener_stopped,
        }
        gauges {
            total_filter_chains_draining,
            total_listeners_active,
            total_listeners_draining,
            total_listeners_warming,
            workers_pinned,
            workers_started,
        }
    }
}

stat_family! {
    /// `runtime.`
    pub struct RuntimeStats {
        counters {
            deprecated_feature_use,
            load_error,
            load_success,
            override_dir_exists,
            override_dir_not_exists,
        }
        gauges { admin_overrides_active, deprecated_feature_seen_since_process_start, num_keys, num_layers }
    }
}
