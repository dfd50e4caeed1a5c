//! Stats of clusters and of the cluster manager, under Envoy's names.
//!
//! Handed out as handles when a cluster is built; pools, load balancers and the router filter count in them. Response
//! codes are [`CodeStats`]; the `internal.` and `external.` twins and the shadow of canaries appear at their first use.

use arc_swap::ArcSwap;
use nuncio_base::stats::{CodeStats, Registry};
use std::sync::{Arc, OnceLock};

nuncio_base::stat_family! {
    /// Everything under `cluster.<name>.` that always exists, except response codes.
    pub struct ClusterFamily {
        counters {
            assignment_stale, assignment_timeout_received, assignment_use_cached,
            bind_errors,
            total_match_count = "default.total_match_count",
            lb_healthy_panic, lb_local_cluster_not_ok, lb_recalculate_zone_structures,
            lb_subsets_created, lb_subsets_fallback, lb_subsets_fallback_panic, lb_subsets_removed, lb_subsets_selected,
            lb_zone_cluster_too_small, lb_zone_no_capacity_left, lb_zone_routing_all_directly,
            lb_zone_routing_cross_zone, lb_zone_routing_sampled,
            membership_change,
            original_dst_host_invalid, retry_or_shadow_abandoned,
            update_attempt, update_empty, update_failure, update_no_rebuild, update_success,
            upstream_cx_close_notify, upstream_cx_connect_attempts_exceeded, upstream_cx_connect_fail,
            upstream_cx_connect_timeout, upstream_cx_connect_with_0_rtt,
            upstream_cx_destroy, upstream_cx_destroy_local, upstream_cx_destroy_local_with_active_rq,
            upstream_cx_destroy_remote, upstream_cx_destroy_remote_with_active_rq, upstream_cx_destroy_with_active_rq,
            upstream_cx_http1_total, upstream_cx_http2_total, upstream_cx_http3_total,
            upstream_cx_idle_timeout, upstream_cx_max_duration_reached, upstream_cx_max_requests,
            upstream_cx_none_healthy, upstream_cx_overflow, upstream_cx_pool_overflow, upstream_cx_preconnect_skipped,
            upstream_cx_protocol_error, upstream_cx_rx_bytes_total, upstream_cx_total, upstream_cx_tx_bytes_total,
            upstream_flow_control_backed_up_total, upstream_flow_control_drained_total,
            upstream_flow_control_paused_reading_total, upstream_flow_control_resumed_reading_total,
            upstream_http3_broken, upstream_internal_redirect_failed_total, upstream_internal_redirect_succeeded_total,
            upstream_queue_overloaded,
            upstream_rq_0rtt, upstream_rq_active_overflow, upstream_rq_cancelled, upstream_rq_maintenance_mode,
            upstream_rq_max_duration_reached, upstream_rq_pending_failure_eject, upstream_rq_pending_overflow,
            upstream_rq_pending_total, upstream_rq_per_try_idle_timeout, upstream_rq_per_try_timeout,
            upstream_rq_retry, upstream_rq_retry_backoff_exponential, upstream_rq_retry_backoff_ratelimited,
            upstream_rq_retry_limit_exceeded, upstream_rq_retry_overflow, upstream_rq_retry_success,
            upstream_rq_rx_reset, upstream_rq_rx_reset_no_error, upstream_rq_timeout, upstream_rq_total,
            upstream_rq_tx_reset,
        }
        gauges {
            cb_default_cx_open = "circuit_breakers.default.cx_open",
            cb_default_cx_pool_open = "circuit_breakers.default.cx_pool_open",
            cb_default_rq_open = "circuit_breakers.default.rq_open",
            cb_default_rq_pending_open = "circuit_breakers.default.rq_pending_open",
            cb_default_rq_retry_open = "circuit_breakers.default.rq_retry_open",
            cb_high_cx_open = "circuit_breakers.high.cx_open",
            cb_high_cx_pool_open = "circuit_breakers.high.cx_pool_open",
            cb_high_rq_open = "circuit_breakers.high.rq_open",
            cb_high_rq_pending_open = "circuit_breakers.high.rq_pending_open",
            cb_high_rq_retry_open = "circuit_breakers.high.rq_retry_open",
            lb_subsets_active, max_host_weight,
            membership_degraded, membership_excluded, membership_healthy, membership_total,
            upstream_cx_active, upstream_cx_rx_bytes_buffered, upstream_cx_tx_bytes_buffered,
            upstream_rq_active, upstream_rq_pending_active,
            version, warming_state,
        }
        histograms {
            upstream_cx_connect_ms: Milliseconds,
            upstream_cx_length_ms: Milliseconds,
            upstream_rq_per_cx: Unspecified,
        }
    }
}

nuncio_base::stat_family! {
    /// `remaining_*` gauges of one priority, with `track_remaining`.
    pub struct RemainingFamily {
        gauges { remaining_cx, remaining_cx_pools, remaining_pending, remaining_retries, remaining_rq }
    }
}

nuncio_base::stat_family! {
    /// Times under `cluster.<name>.` and its `internal.`, `external.` and `canary.` twins.
    pub struct TimeFamily {
        when: used;
        histograms { upstream_rq_time: Milliseconds }
    }
}

nuncio_base::stat_family! {
    /// `track_timeout_budgets`.
    pub struct TimeoutBudgetFamily {
        histograms {
            upstream_rq_timeout_budget_percent_used: Unspecified,
            upstream_rq_timeout_budget_per_try_percent_used: Unspecified,
        }
    }
}

nuncio_base::stat_family! {
    /// `track_cluster_stats.request_response_sizes`.
    pub struct SizeFamily {
        histograms {
            upstream_rq_body_size: Bytes,
            upstream_rq_headers_count: Unspecified,
            upstream_rq_headers_size: Bytes,
            upstream_rs_body_size: Bytes,
            upstream_rs_headers_count: Unspecified,
            upstream_rs_headers_size: Bytes,
        }
    }
}

nuncio_base::stat_family! {
    /// `cluster_manager.`
    pub struct ClusterManagerStats {
        counters {
            cluster_added, cluster_modified, cluster_removed, cluster_updated, cluster_updated_via_merge,
            update_merge_cancelled, update_out_of_merge_window,
        }
        gauges { active_clusters, warming_clusters }
    }
}

nuncio_base::stat_family! {
    /// `ring_hash_lb.` of a cluster.
    pub struct RingHashStats {
        gauges { max_hashes_per_host, min_hashes_per_host, size }
    }
}

nuncio_base::stat_family! {
    /// `maglev_lb.` of a cluster.
    pub struct MaglevStats {
        gauges { max_entries_per_host, min_entries_per_host }
    }
}

nuncio_base::stat_family! {
    /// Of clusters with subsets only.
    pub struct SubsetFamily {
        gauges { lb_subsets_single_host_per_subset_duplicate }
    }
}

/// Response codes and request times of one prefix.
#[derive(Clone)]
pub struct ResponseStats {
    /// `upstream_rq_<code>`, `upstream_rq_<class>xx`, `upstream_rq_completed`.
    pub codes: CodeStats,
    /// `upstream_rq_time`.
    pub time: TimeFamily,
}

impl ResponseStats {
    fn new(registry: &Registry, prefix: &str) -> Self {
        ResponseStats { codes: CodeStats::new(registry, prefix), time: TimeFamily::new(registry, prefix) }
    }
}

/// Statistics of a cluster's requests under another name.
pub struct AltStats {
    registry: Registry,
    prefix: Box<str>,
    all: OnceLock<ResponseStats>,
    internal: OnceLock<ResponseStats>,
    external: OnceLock<ResponseStats>,
    canary: OnceLock<ResponseStats>,
}

impl AltStats {
    /// Those of all requests, of internal or of external ones, and of canaries where one has answered.
    pub fn each(&self, internal: bool, canary: bool) -> impl Iterator<Item = &ResponseStats> {
        let own = if internal { (&self.internal, "internal.") } else { (&self.external, "external.") };
        let canary = canary.then_some((&self.canary, "canary."));
        [(&self.all, ""), own].into_iter().chain(canary).map(|(cell, name)| {
            cell.get_or_init(|| ResponseStats::new(&self.registry, &format!("{}{name}", self.prefix)))
        })
    }
}

/// All stats of one cluster. Derefs to [`ClusterFamily`].
pub struct ClusterStats {
    family: ClusterFamily,
    /// Shows `upstream_rq_completed` before the first response.
    _total: CodeStats,
    registry: Registry,
    prefix: Box<str>,
    responses: OnceLock<Box<ResponseStats>>,
    internal: OnceLock<Box<ResponseStats>>,
    external: OnceLock<Box<ResponseStats>>,
    canary: OnceLock<Box<ResponseStats>>,
    /// Zone of this proxy; empty where it has none.
    own_zone: Box<str>,
    /// By zone of the hosts.
    zones: ArcSwap<Vec<(Box<str>, Arc<ResponseStats>)>>,
    retried: OnceLock<Box<ResponseStats>>,
    /// By the name that requests bring (`x-envoy-upstream-alt-stat-name`).
    alternative: ArcSwap<Vec<(Box<str>, Arc<AltStats>)>>,
    budgets: OnceLock<Box<TimeoutBudgetFamily>>,
    sizes: OnceLock<Box<SizeFamily>>,
    kept: std::sync::Mutex<Vec<Box<dyn std::any::Any + Send + Sync>>>,
}

impl std::ops::Deref for ClusterStats {
    type Target = ClusterFamily;

    #[inline]
    fn deref(&self) -> &ClusterFamily {
        &self.family
    }
}

impl std::fmt::Debug for ClusterStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterStats").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl ClusterStats {
    /// Stats of the cluster whose observability name is `name` (`:` already replaced).
    pub fn new(registry: &Registry, name: &str) -> Self {
        Self::in_zone(registry, name, "")
    }

    /// As [`ClusterStats::new`], for a proxy that is in `zone`: what goes from there to zones of hosts is counted.
    pub fn in_zone(registry: &Registry, name: &str, zone: &str) -> Self {
        let prefix = format!("cluster.{name}.");
        ClusterStats {
            own_zone: zone.into(),
            zones: ArcSwap::default(),
            family: ClusterFamily::new(registry, &prefix),
            _total: CodeStats::with_total(registry, &prefix),
            registry: registry.clone(),
            prefix: prefix.into(),
            responses: OnceLock::new(),
            internal: OnceLock::new(),
            external: OnceLock::new(),
            canary: OnceLock::new(),
            retried: OnceLock::new(),
            alternative: ArcSwap::default(),
            budgets: OnceLock::new(),
            sizes: OnceLock::new(),
            kept: std::sync::Mutex::default(),
        }
    }

    /// Codes and times of requests to hosts of `zone` (`zone.<own>.<zone>.`); None where one of the two has no name.
    #[inline]
    pub fn zone(&self, zone: &str) -> Option<Arc<ResponseStats>> {
        if self.own_zone.is_empty() || zone.is_empty() {
            return None;
        }
        let known = self.zones.load();
        known.iter().find(|(name, _)| **name == *zone).map(|(_, stats)| stats.clone()).or_else(|| self.new_zone(zone))
    }

    #[cold]
    fn new_zone(&self, zone: &str) -> Option<Arc<ResponseStats>> {
        // Only one thread adds at a time.
        let _kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = self.zones.load();
        if let Some((_, stats)) = known.iter().find(|(name, _)| **name == *zone) {
            return Some(stats.clone());
        }
        let prefix = format!("{}zone.{}.{zone}.", self.prefix, self.own_zone);
        let stats = Arc::new(ResponseStats::new(&self.registry, &prefix));
        let mut all = Vec::clone(&known);
        all.push((zone.into(), stats.clone()));
        self.zones.store(Arc::new(all));
        Some(stats)
    }

    /// Statistics under a name that a request brings. None once there are too many names.
    pub fn alternative(&self, name: &str) -> Option<Arc<AltStats>> {
        // Whoever may send such names would else fill the memory.
        const MOST: usize = 256;
        let find = |known: &Vec<(Box<str>, Arc<AltStats>)>| {
            known.iter().find(|(other, _)| **other == *name).map(|(_, stats)| stats.clone())
        };
        if let Some(stats) = find(&self.alternative.load()) {
            return Some(stats);
        }
        // Only one thread adds at a time.
        let _kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = self.alternative.load();
        if let Some(stats) = find(&known) {
            return Some(stats);
        }
        if known.len() >= MOST {
            return None;
        }
        let prefix = format!("{}{}.", self.prefix, name.trim_end_matches('.'));
        let stats = Arc::new(AltStats {
            registry: self.registry.clone(),
            prefix: prefix.into(),
            all: OnceLock::new(),
            internal: OnceLock::new(),
            external: OnceLock::new(),
            canary: OnceLock::new(),
        });
        let mut all = Vec::clone(&known);
        all.push((name.into(), stats.clone()));
        self.alternative.store(Arc::new(all));
        Some(stats)
    }

    fn twin<'a>(&self, cell: &'a OnceLock<Box<ResponseStats>>, name: &str) -> &'a ResponseStats {
        cell.get_or_init(|| Box::new(ResponseStats::new(&self.registry, &format!("{}{name}", self.prefix))))
    }

    /// Codes and times of all requests.
    #[inline]
    pub fn responses(&self) -> &ResponseStats {
        self.twin(&self.responses, "")
    }

    /// Of internal requests (`internal.`).
    #[inline]
    pub fn internal(&self) -> &ResponseStats {
        self.twin(&self.internal, "internal.")
    }

    /// Of external requests (`external.`).
    #[inline]
    pub fn external(&self) -> &ResponseStats {
        self.twin(&self.external, "external.")
    }

    /// Codes of responses that led to another try (`retry.`).
    pub fn retried(&self) -> &ResponseStats {
        self.twin(&self.retried, "retry.")
    }

    /// Of requests answered by canaries (`canary.`).
    #[inline]
    pub fn canary(&self) -> &ResponseStats {
        self.twin(&self.canary, "canary.")
    }

    /// Shares of timeouts used, for `track_timeout_budgets`.
    pub fn timeout_budgets(&self) -> &TimeoutBudgetFamily {
        self.budgets.get_or_init(|| Box::new(TimeoutBudgetFamily::new(&self.registry, &self.prefix)))
    }

    /// Sizes of requests and responses, for `track_cluster_stats`.
    pub fn sizes(&self) -> &SizeFamily {
        self.sizes.get_or_init(|| Box::new(SizeFamily::new(&self.registry, &self.prefix)))
    }

    /// Keeps the handle of a family that few clusters have (hash tables' gauges) as long as the cluster lives; a second
    /// handle of the same type replaces the first.
    pub(crate) fn keep<T: std::any::Any + Send + Sync>(&self, family: T) {
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.retain(|other| !other.is::<T>());
        kept.push(Box::new(family));
    }

    /// Subsets after an update and before it, and how many are new. Envoy divides hosts once per worker and once for its
    /// main thread, and counts all of that.
    pub(crate) fn count_subsets(&self, now: u64, before: u64, created: u64) {
        let times = self.registry.workers() as u64 + 1;
        self.lb_subsets_created().add(created * times);
        self.lb_subsets_removed().add((before + created - now) * times);
        self.lb_subsets_active().add(now.wrapping_sub(before).wrapping_mul(times));
    }

    /// Hosts that had no place in a subset of a single host.
    pub(crate) fn lb_subsets_duplicates(&self, count: u64) {
        let family = SubsetFamily::new(&self.registry, &self.prefix);
        family.lb_subsets_single_host_per_subset_duplicate().set(count);
        self.keep(family);
    }

    /// `cluster.<name>.`
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The registry that these stats live in.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}
