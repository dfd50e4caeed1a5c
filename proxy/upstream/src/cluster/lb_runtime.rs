//! What runtime keys and the place of this proxy say of the load balancing of all clusters.

use super::Cluster;
use nuncio_config::cluster::{ClusterConfig, LbPolicy, Locality};
use nuncio_http::matchers::Runtime;
use std::sync::Arc;

/// What runtime keys say of the load balancing of all clusters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LbRuntime {
    /// `upstream.healthy_panic_threshold`
    pub(crate) panic_threshold: Option<u64>,
    /// `upstream.zone_routing.enabled`
    pub(crate) zones_enabled: Option<u64>,
    /// `upstream.zone_routing.min_cluster_size`
    pub(crate) min_cluster_size: Option<u64>,
}

impl LbRuntime {
    pub(crate) fn read(runtime: &dyn Runtime) -> Self {
        LbRuntime {
            panic_threshold: runtime.integer("upstream.healthy_panic_threshold"),
            zones_enabled: runtime.integer("upstream.zone_routing.enabled"),
            min_cluster_size: runtime.integer("upstream.zone_routing.min_cluster_size"),
        }
    }

    /// `config` with what the keys say, and those that it names itself.
    pub(super) fn applied(self, config: &Arc<ClusterConfig>, runtime: Option<&dyn Runtime>) -> Arc<ClusterConfig> {
        if self == LbRuntime::default() && config.lb_common.runtime_keys.is_empty() {
            return config.clone();
        }
        let mut config = (**config).clone();
        let common = &mut config.lb_common;
        if let Some(percent) = self.panic_threshold {
            common.healthy_panic_threshold = percent.min(100) as f64;
        }
        if let Some(percent) = self.zones_enabled {
            common.zone_aware.routing_enabled = percent.min(100) as u32;
        }
        if let Some(size) = self.min_cluster_size {
            common.zone_aware.min_cluster_size = size;
        }
        let double = |key: &Option<Box<str>>| runtime?.double(key.as_ref()?);
        if let (Some(slow_start), Some(value)) = (&mut common.slow_start, double(&common.runtime_keys.aggression)) {
            slow_start.aggression = if value > 0.0 { value } else { 1.0 };
        }
        if let (LbPolicy::LeastRequest { active_request_bias, .. }, Some(value)) =
            (&mut config.lb_policy, double(&common.runtime_keys.active_request_bias))
        {
            *active_request_bias = if value >= 0.0 { value } else { 1.0 };
        }
        Arc::new(config)
    }
}

/// Where this proxy is: what zone-aware routing has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zones {
    /// `cluster_manager.local_cluster_name`; without it nothing is routed by zones.
    pub local_cluster: Option<Box<str>>,
    /// Locality of the node.
    pub locality: Arc<Locality>,
}

impl Zones {
    /// Whether `config`'s policy tells zones apart. The local cluster itself is not routed so.
    pub(super) fn concern(&self, config: &ClusterConfig) -> bool {
        let policy =
            matches!(config.lb_policy, LbPolicy::RoundRobin | LbPolicy::LeastRequest { .. } | LbPolicy::Random);
        let local = self.local_cluster.as_ref().is_some_and(|local| **local != *config.name);
        policy && local && !config.lb_common.locality_weighted
    }
}

impl Cluster {
    /// Runtime keys may say something else of load balancing.
    pub(crate) fn apply_runtime(&self, of_all: LbRuntime, runtime: &dyn Runtime) {
        let new = of_all.applied(&self.config, Some(runtime));
        let old = self.lb_config.load_full();
        if (&new.lb_common, &new.lb_policy) != (&old.lb_common, &old.lb_policy) {
            self.lb_config.store(new);
            self.follow();
        }
    }
}
