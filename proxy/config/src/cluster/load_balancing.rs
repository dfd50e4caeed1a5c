//! Load balancing policies decoded, from `lb_policy` and from `load_balancing_policy`.

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3::{RuntimeDouble, TypedExtensionConfig};
use envoy_types::pb::envoy::extensions::load_balancing_policies as policies;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf as google;
use policies::common::v3::LocalityLbConfig;
use policies::common::v3::locality_lb_config::LocalityConfigSpecifier as Locality;

use super::{
    ClientWeightsConfig, CommonLbConfig, HashingConfig, LbPolicy, LbRuntimeKeys, MetadataKey, OverrideSource,
    SlowStartConfig, SubsetConfig, ZoneAwareConfig,
};
use crate::decode::{Context, type_name, u32_value, u64_value};
use crate::route::HashPolicy;
use std::sync::Arc;
use std::time::Duration;

const MAX_RING: u64 = 8 * 1024 * 1024;
const MAGLEV_TABLE: u64 = 65_537;

impl LbPolicy {
    /// The policy of a cluster; what a policy says about localities goes into `common`.
    pub(super) fn decode(cx: &mut Context, message: &pb::Cluster, common: &mut CommonLbConfig) -> Option<Self> {
        if let Some(list) = &message.load_balancing_policy {
            if message.lb_subset_config.is_some() {
                cx.error_at(
                    "lb_subset_config",
                    "cluster: load_balancing_policy cannot be combined with lb_subset_config",
                );
            }
            use pb::cluster::common_lb_config::LocalityConfigSpecifier;
            let partial = message.common_lb_config.as_ref().is_some_and(|common| {
                let locality = &common.locality_config_specifier;
                common.consistent_hashing_lb_config.is_some()
                    || matches!(
                        locality,
                        Some(
                            LocalityConfigSpecifier::ZoneAwareLbConfig(_)
                                | LocalityConfigSpecifier::LocalityWeightedLbConfig(_)
                        )
                    )
            });
            if partial {
                cx.error_at(
                    "common_lb_config",
                    "cluster: load_balancing_policy cannot be combined with partial fields (zone_aware_lb_config, locality_weighted_lb_config, consistent_hashing_lb_config) of common_lb_config",
                );
            }
            return cx.at("load_balancing_policy", |cx| from_list(cx, list, common));
        }
        if let Some(config) = &message.lb_subset_config {
            if message.lb_policy() == pb::cluster::LbPolicy::ClusterProvided {
                let text = "cluster: LB policy CLUSTER_PROVIDED cannot be combined with lb_subset_config";
                cx.error_at("lb_subset_config", text);
            }
            common.subsets = cx.at("lb_subset_config", |cx| SubsetConfig::legacy(cx, config)).map(Arc::new);
        }
        legacy(cx, message, common)
    }
}

fn legacy(cx: &mut Context, message: &pb::Cluster, common: &mut CommonLbConfig) -> Option<LbPolicy> {
    use pb::cluster::{LbConfig, LbPolicy as Policy};
    let hashing = message.common_lb_config.as_ref().and_then(|config| config.consistent_hashing_lb_config.as_ref());
    if let Some(config) = hashing.filter(|_| matches!(message.lb_policy(), Policy::RingHash | Policy::Maglev)) {
        common.hashing = HashingConfig {
            use_hostname: config.use_hostname_for_hashing,
            balance_factor: u32_value(&config.hash_balance_factor),
            policies: Arc::default(),
        };
    }
    let keys = &mut common.runtime_keys;
    Some(match message.lb_policy() {
        Policy::RoundRobin => {
            if let Some(LbConfig::RoundRobinLbConfig(config)) = &message.lb_config {
                common.slow_start =
                    cx.at("round_robin_lb_config", |cx| legacy_slow_start(cx, &config.slow_start_config, keys));
            }
            LbPolicy::RoundRobin
        }
        Policy::LeastRequest => {
            let config = match &message.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => config.clone(),
                _ => Default::default(),
            };
            common.slow_start =
                cx.at("least_request_lb_config", |cx| legacy_slow_start(cx, &config.slow_start_config, keys));
            LbPolicy::LeastRequest {
                choice_count: u32_value(&config.choice_count).unwrap_or(2),
                active_request_bias: request_bias(config.active_request_bias.as_ref(), keys),
                full_scan: false,
            }
        }
        Policy::Random => LbPolicy::Random,
        Policy::RingHash => {
            use pb::cluster::ring_hash_lb_config::HashFunction;
            let config = match &message.lb_config {
                Some(LbConfig::RingHashLbConfig(config)) => *config,
                _ => Default::default(),
            };
            let murmur = config.hash_function() == HashFunction::MurmurHash2;
            ring_hash(cx, u64_value(&config.minimum_ring_size), u64_value(&config.maximum_ring_size), murmur)
        }
        Policy::Maglev => {
            let size = match &message.lb_config {
                Some(LbConfig::MaglevLbConfig(config)) => u64_value(&config.table_size),
                _ => None,
            };
            maglev(cx, size)
        }
        Policy::ClusterProvided => LbPolicy::ClusterProvided,
        Policy::LoadBalancingPolicyConfig => {
            cx.error_at("lb_policy", "cluster: field load_balancing_policy need to be set");
            return None;
        }
    })
}

fn legacy_slow_start(
    cx: &mut Context,
    message: &Option<pb::cluster::SlowStartConfig>,
    keys: &mut LbRuntimeKeys,
) -> Option<SlowStartConfig> {
    let same = message.clone().map(|message| policies::common::v3::SlowStartConfig {
        slow_start_window: message.slow_start_window,
        aggression: message.aggression,
        min_weight_percent: message.min_weight_percent,
    });
    slow_start(cx, &same, keys)
}

fn slow_start(
    cx: &mut Context,
    message: &Option<policies::common::v3::SlowStartConfig>,
    keys: &mut LbRuntimeKeys,
) -> Option<SlowStartConfig> {
    let message = message.as_ref()?;
    let (aggression, least) = (message.aggression.as_ref(), message.min_weight_percent.as_ref());
    let window = cx.at("slow_start_config", |cx| cx.duration("slow_start_window", &message.slow_start_window))?;
    keys.aggression = key(aggression);
    slow_start_of(window, aggression.map(|value| value.default_value), least.map(|percent| percent.value))
}

/// As in Envoy, a bias below zero is one.
fn request_bias(message: Option<&RuntimeDouble>, keys: &mut LbRuntimeKeys) -> f64 {
    keys.active_request_bias = key(message);
    message.map(|bias| bias.default_value).filter(|bias| *bias >= 0.0).unwrap_or(1.0)
}

fn key(message: Option<&RuntimeDouble>) -> Option<Box<str>> {
    message.map(|message| message.runtime_key.as_str()).filter(|key| !key.is_empty()).map(Into::into)
}

/// None without a window. As in Envoy, an aggression that is not above zero is one.
fn slow_start_of(window: Duration, aggression: Option<f64>, least: Option<f64>) -> Option<SlowStartConfig> {
    (window.as_millis() > 0).then(|| SlowStartConfig {
        window,
        aggression: aggression.filter(|aggression| *aggression > 0.0).unwrap_or(1.0),
        min_weight_percent: least.unwrap_or(10.0),
    })
}

fn hashing(cx: &mut Context, message: &policies::common::v3::ConsistentHashingLbConfig) -> HashingConfig {
    HashingConfig {
        use_hostname: message.use_hostname_for_hashing,
        balance_factor: u32_value(&message.hash_balance_factor),
        policies: cx.each("hash_policy", &message.hash_policy, HashPolicy::decode).into(),
    }
}

fn ring_hash(cx: &mut Context, min: Option<u64>, max: Option<u64>, murmur: bool) -> LbPolicy {
    let (minimum_ring_size, maximum_ring_size) = (min.unwrap_or(1024), max.unwrap_or(MAX_RING));
    if minimum_ring_size > maximum_ring_size {
        cx.error(format!(
            "ring hash: minimum_ring_size ({minimum_ring_size}) > maximum_ring_size ({maximum_ring_size})"
        ));
    }
    LbPolicy::RingHash { minimum_ring_size, maximum_ring_size, murmur }
}

fn maglev(cx: &mut Context, size: Option<u64>) -> LbPolicy {
    let table_size = size.unwrap_or(MAGLEV_TABLE);
    if !is_prime(table_size) {
        cx.error("The table size of maglev must be prime number");
    }
    LbPolicy::Maglev { table_size }
}

/// Table sizes are at most 5,000,011, so that trial division is quick; a larger one fails its constraint anyway.
fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n && *d < 100_000).all(|d| !n.is_multiple_of(d))
}

/// The first policy of the list that the core has; without one, the first is left to the registry.
fn from_list(cx: &mut Context, list: &pb::LoadBalancingPolicy, common: &mut CommonLbConfig) -> Option<LbPolicy> {
    let extensions = || list.policies.iter().map(|policy| policy.typed_extension_config.as_ref());
    cx.at("policies", |cx| {
        for (index, extension) in extensions().enumerate() {
            if let Some(extension) = extension.filter(|extension| is_known(extension)) {
                return cx.at_index(index, |cx| {
                    cx.at("typed_extension_config", |cx| cx.at("typed_config", |cx| known(cx, extension, common)))
                });
            }
        }
        match extensions().flatten().next() {
            Some(extension) => Some(LbPolicy::Extension(
                cx.at_index(0, |cx| cx.at("typed_extension_config", |cx| cx.extension(extension))),
            )),
            None => {
                cx.error("cluster: didn't find a registered load balancer factory implementation for cluster");
                None
            }
        }
    })
}

/// The only policy within `wrr_locality`, as in Envoy.
const CLIENT_SIDE: &str = "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin";

fn short_name(extension: &TypedExtensionConfig) -> Option<&str> {
    let any = extension.typed_config.as_ref()?;
    type_name(&any.type_url).strip_prefix("envoy.extensions.load_balancing_policies.")
}

fn is_known(extension: &TypedExtensionConfig) -> bool {
    matches!(
        short_name(extension),
        Some(
            "round_robin.v3.RoundRobin"
                | "least_request.v3.LeastRequest"
                | "random.v3.Random"
                | "ring_hash.v3.RingHash"
                | "maglev.v3.Maglev"
                | "cluster_provided.v3.ClusterProvided"
                | "wrr_locality.v3.WrrLocality"
                | "subset.v3.Subset"
                | "override_host.v3.OverrideHost"
                | "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin"
        )
    )
}

fn known(cx: &mut Context, extension: &TypedExtensionConfig, common: &mut CommonLbConfig) -> Option<LbPolicy> {
    let any = extension.typed_config.as_ref()?;
    Some(match short_name(extension)? {
        "round_robin.v3.RoundRobin" => {
            let config: policies::round_robin::v3::RoundRobin = cx.unpack(any)?;
            locality(common, &config.locality_lb_config);
            common.slow_start = slow_start(cx, &config.slow_start_config, &mut common.runtime_keys);
            LbPolicy::RoundRobin
        }
        "least_request.v3.LeastRequest" => {
            use policies::least_request::v3::least_request::SelectionMethod;
            let config: policies::least_request::v3::LeastRequest = cx.unpack(any)?;
            locality(common, &config.locality_lb_config);
            common.slow_start = slow_start(cx, &config.slow_start_config, &mut common.runtime_keys);
            LbPolicy::LeastRequest {
                choice_count: u32_value(&config.choice_count).unwrap_or(2),
                active_request_bias: request_bias(config.active_request_bias.as_ref(), &mut common.runtime_keys),
                full_scan: config.selection_method() == SelectionMethod::FullScan,
            }
        }
        "random.v3.Random" => {
            let config: policies::random::v3::Random = cx.unpack(any)?;
            locality(common, &config.locality_lb_config);
            LbPolicy::Random
        }
        "ring_hash.v3.RingHash" => {
            use policies::ring_hash::v3::ring_hash::HashFunction;
            let config: policies::ring_hash::v3::RingHash = cx.unpack(any)?;
            common.locality_weighted |= config.locality_weighted_lb_config.is_some();
            #[allow(deprecated, reason = "configurations still say it this way")]
            let own = (config.use_hostname_for_hashing, u32_value(&config.hash_balance_factor));
            common.hashing = match &config.consistent_hashing_lb_config {
                Some(config) => cx.at("consistent_hashing_lb_config", |cx| hashing(cx, config)),
                None => HashingConfig { use_hostname: own.0, balance_factor: own.1, policies: Arc::default() },
            };
            let murmur = config.hash_function() == HashFunction::MurmurHash2;
            ring_hash(cx, u64_value(&config.minimum_ring_size), u64_value(&config.maximum_ring_size), murmur)
        }
        "maglev.v3.Maglev" => {
            let config: policies::maglev::v3::Maglev = cx.unpack(any)?;
            common.locality_weighted |= config.locality_weighted_lb_config.is_some();
            if let Some(config) = &config.consistent_hashing_lb_config {
                common.hashing = cx.at("consistent_hashing_lb_config", |cx| hashing(cx, config));
            }
            maglev(cx, u64_value(&config.table_size))
        }
        "wrr_locality.v3.WrrLocality" => {
            let config: policies::wrr_locality::v3::WrrLocality = cx.unpack(any)?;
            common.locality_weighted = true;
            cx.required("endpoint_picking_policy", &config.endpoint_picking_policy, |cx, list| {
                let first = list.policies.iter().find_map(|policy| {
                    let extension = policy.typed_extension_config.as_ref()?;
                    short_name(extension).filter(|_| is_known(extension))
                });
                if first.is_some_and(|name| name != CLIENT_SIDE) {
                    cx.error(
                        "Currently WrrLocalityLoadBalancer only supports ClientSideWeightedRoundRobinLoadBalancer as \
                         its endpoint picking policy.",
                    );
                }
                from_list(cx, list, common)
            })?
        }
        "override_host.v3.OverrideHost" => {
            let config: policies::override_host::v3::OverrideHost = cx.unpack(any)?;
            let sources = cx.each("override_host_sources", &config.override_host_sources, OverrideSource::decode);
            common.override_host = Some(sources.into());
            common.selected_host_key = config.selected_host_key.as_ref().map(MetadataKey::decode);
            cx.required("fallback_policy", &config.fallback_policy, |cx, list| from_list(cx, list, common))?
        }
        "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin" => {
            use policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin;
            let config: ClientSideWeightedRoundRobin = cx.unpack(any)?;
            common.client_weights = Some(Arc::new(ClientWeightsConfig::decode(cx, &config)));
            common.slow_start = slow_start(cx, &config.slow_start_config, &mut common.runtime_keys);
            LbPolicy::RoundRobin
        }
        "subset.v3.Subset" => {
            let config: policies::subset::v3::Subset = cx.unpack(any)?;
            if common.subsets.is_some() {
                cx.error("subsets cannot be divided into subsets");
            }
            common.subsets = Some(Arc::new(SubsetConfig::extension(cx, &config)));
            let Some(list) = &config.subset_lb_policy else {
                cx.error_at(
                    "subset_lb_policy",
                    "cluster: didn't find a registered load balancer factory implementation for subset lb with names from []",
                );
                return None;
            };
            cx.at("subset_lb_policy", |cx| from_list(cx, list, common))?
        }
        _ => LbPolicy::ClusterProvided,
    })
}

impl ZoneAwareConfig {
    pub(super) fn new(enabled: &Option<Percent>, least: &Option<google::UInt64Value>) -> Self {
        let default = ZoneAwareConfig::default();
        ZoneAwareConfig {
            routing_enabled: enabled.map_or(default.routing_enabled, |percent| percent.value.round() as u32),
            min_cluster_size: u64_value(least).unwrap_or(default.min_cluster_size),
            ..default
        }
    }
}

fn locality(common: &mut CommonLbConfig, config: &Option<LocalityLbConfig>) {
    match config.as_ref().and_then(|config| config.locality_config_specifier.as_ref()) {
        Some(Locality::LocalityWeightedLbConfig(_)) => common.locality_weighted = true,
        Some(Locality::ZoneAwareLbConfig(zone)) => {
            use policies::common::v3::locality_lb_config::zone_aware_lb_config::LocalityBasis;
            common.fail_traffic_on_panic = zone.fail_traffic_on_panic;
            #[allow(deprecated, reason = "configurations still say it this way")]
            let direct = zone.force_locality_direct_routing.then_some(1);
            common.zone_aware = ZoneAwareConfig {
                force_local_zone: match &zone.force_local_zone {
                    Some(forced) => Some(u32_value(&forced.min_size).unwrap_or(1)),
                    None => direct,
                },
                by_weight: zone.locality_basis() == LocalityBasis::HealthyHostsWeight,
                ..ZoneAwareConfig::new(&zone.routing_enabled, &zone.min_cluster_size)
            };
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use prost::Message;

    fn extension<M: Message>(type_name: &str, config: &M) -> pb::load_balancing_policy::Policy {
        pb::load_balancing_policy::Policy {
            typed_extension_config: Some(TypedExtensionConfig {
                name: "p".into(),
                typed_config: Some(google::Any {
                    type_url: format!("type.googleapis.com/envoy.extensions.load_balancing_policies.{type_name}"),
                    value: config.encode_to_vec(),
                }),
            }),
        }
    }

    fn cluster(policies: Vec<pb::load_balancing_policy::Policy>) -> pb::Cluster {
        pb::Cluster { load_balancing_policy: Some(pb::LoadBalancingPolicy { policies }), ..Default::default() }
    }

    #[test]
    fn the_first_policy_that_is_known_wins() {
        let message = cluster(vec![extension("pick_first.v3.PickFirst", &()), extension("random.v3.Random", &())]);
        let policy = LbPolicy::decode(&mut Context::default(), &message, &mut CommonLbConfig::default());
        assert_eq!(policy, Some(LbPolicy::Random));
    }

    #[test]
    fn a_list_without_a_known_policy_is_left_to_the_registry() {
        let message = cluster(vec![extension("pick_first.v3.PickFirst", &())]);
        let policy = LbPolicy::decode(&mut Context::default(), &message, &mut CommonLbConfig::default());
        assert!(matches!(policy, Some(LbPolicy::Extension(config)) if config.type_name.ends_with("PickFirst")));
    }

    #[test]
    fn wrr_locality_weighs_localities_around_client_side_weights() {
        let decode = |inner: &str| {
            let inner = pb::LoadBalancingPolicy { policies: vec![extension(inner, &())] };
            let config = policies::wrr_locality::v3::WrrLocality { endpoint_picking_policy: Some(inner) };
            let message = cluster(vec![extension("wrr_locality.v3.WrrLocality", &config)]);
            Context::default().run(|cx| {
                let mut common = CommonLbConfig::default();
                let policy = LbPolicy::decode(cx, &message, &mut common)?;
                Some((policy, common.locality_weighted, common.client_weights.is_some()))
            })
        };
        assert_eq!(decode(CLIENT_SIDE).unwrap(), (LbPolicy::RoundRobin, true, true));
        let refused = errors(decode("least_request.v3.LeastRequest"));
        assert!(refused[0].contains("only supports ClientSideWeightedRoundRobinLoadBalancer"), "{refused:?}");
    }

    #[test]
    fn slow_start_needs_a_window_and_a_positive_aggression() {
        let decode = |seconds, aggression| {
            let slow_start = pb::cluster::SlowStartConfig {
                slow_start_window: Some(google::Duration { seconds, nanos: 0 }),
                aggression: Some(RuntimeDouble { default_value: aggression, runtime_key: "r".into() }),
                min_weight_percent: None,
            };
            let config = pb::cluster::RoundRobinLbConfig { slow_start_config: Some(slow_start) };
            let lb_config = Some(pb::cluster::LbConfig::RoundRobinLbConfig(config));
            let mut common = CommonLbConfig::default();
            LbPolicy::decode(&mut Context::default(), &pb::Cluster { lb_config, ..Default::default() }, &mut common);
            common.slow_start.map(|slow| (slow.window.as_secs(), slow.aggression, slow.min_weight_percent))
        };
        assert_eq!(decode(30, 2.0), Some((30, 2.0, 10.0)));
        assert_eq!(decode(30, -1.0), Some((30, 1.0, 10.0)));
        assert_eq!(decode(0, 2.0), None);
    }

    #[test]
    fn least_request_compares_some_or_all_hosts() {
        use policies::least_request::v3::{LeastRequest, least_request::SelectionMethod};
        let full = |config: &LeastRequest| {
            let message = cluster(vec![extension("least_request.v3.LeastRequest", config)]);
            let policy = LbPolicy::decode(&mut Context::default(), &message, &mut CommonLbConfig::default());
            matches!(policy, Some(LbPolicy::LeastRequest { full_scan: true, .. }))
        };
        assert!(!full(&LeastRequest::default()));
        assert!(full(&LeastRequest { selection_method: SelectionMethod::FullScan.into(), ..Default::default() }));
    }

    fn maglev_of(size: u64) -> pb::Cluster {
        let config = pb::cluster::MaglevLbConfig { table_size: Some(google::UInt64Value { value: size }) };
        pb::Cluster {
            lb_policy: pb::cluster::LbPolicy::Maglev.into(),
            lb_config: Some(pb::cluster::LbConfig::MaglevLbConfig(config)),
            ..Default::default()
        }
    }

    #[test]
    fn a_maglev_table_has_a_prime_size() {
        let decode =
            |size| Context::default().run(|cx| LbPolicy::decode(cx, &maglev_of(size), &mut CommonLbConfig::default()));
        assert_eq!(decode(65_537).unwrap(), LbPolicy::Maglev { table_size: 65_537 });
        assert_eq!(errors(decode(100)), ["The table size of maglev must be prime number"]);
    }

    #[test]
    fn a_ring_has_a_minimum_below_its_maximum() {
        let config = pb::cluster::RingHashLbConfig {
            minimum_ring_size: Some(google::UInt64Value { value: 100 }),
            maximum_ring_size: Some(google::UInt64Value { value: 10 }),
            ..Default::default()
        };
        let message = pb::Cluster {
            lb_policy: pb::cluster::LbPolicy::RingHash.into(),
            lb_config: Some(pb::cluster::LbConfig::RingHashLbConfig(config)),
            ..Default::default()
        };
        let result = Context::default().run(|cx| LbPolicy::decode(cx, &message, &mut CommonLbConfig::default()));
        assert_eq!(errors(result), ["ring hash: minimum_ring_size (100) > maximum_ring_size (10)"]);
    }
}
