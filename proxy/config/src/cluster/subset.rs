//! `lb_subset_config` and the `subset` load balancing policy decoded.

use envoy_types::pb::envoy::config::cluster::v3::cluster::{LbSubsetConfig as Legacy, lb_subset_config as legacy};
use envoy_types::pb::envoy::extensions::load_balancing_policies::subset::v3 as pb;
use envoy_types::pb::google::protobuf::Struct;
use pb::subset::lb_subset_selector::LbSubsetSelectorFallbackPolicy as Selector;

use crate::decode::{Context, json};

/// Name of the criterion that lists criteria to try one after the other.
pub const FALLBACK_LIST: &str = "fallback_list";

/// How a cluster's hosts are divided by their metadata under `envoy.lb`.
#[derive(Debug, Clone, PartialEq)]
pub struct SubsetConfig {
    /// What is done where no subset answers a request.
    pub fallback: SubsetFallback,
    /// Keys and values of the default subset.
    pub default_subset: serde_json::Map<String, serde_json::Value>,
    /// Which keys make subsets.
    pub selectors: Vec<SubsetSelector>,
    /// Localities keep their weights within subsets.
    pub locality_weight_aware: bool,
    /// Those weights are scaled by the share of hosts that the subset has.
    pub scale_locality_weight: bool,
    /// A fallback without hosts uses any host.
    pub panic_mode_any: bool,
    /// A list in a host's metadata stands for each of its values.
    pub list_as_any: bool,
    /// `metadata_fallback_policy: FALLBACK_LIST`.
    pub fallback_list: bool,
    /// Criteria may have more keys than a selector.
    pub allow_redundant_keys: bool,
}

/// What is done for a request that no subset answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubsetFallback {
    /// NO_FALLBACK.
    None,
    /// ANY_ENDPOINT.
    Any,
    /// DEFAULT_SUBSET.
    Default,
}

/// `LbSubsetSelector`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubsetSelector {
    /// Sorted, without duplicates.
    pub keys: Box<[Box<str>]>,
    /// What is done when criteria of these keys find no subset; None for what the cluster says.
    pub fallback: Option<SelectorFallback>,
    /// Every subset has one host.
    pub single_host_per_subset: bool,
}

/// What a selector does when its criteria find no subset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SelectorFallback {
    /// As the cluster's fallbacks.
    To(SubsetFallback),
    /// Looks again with these keys only; sorted.
    Keys(Box<[Box<str>]>),
}

impl SubsetConfig {
    /// Of a cluster's `lb_subset_config`; None where it has no selectors, as then nothing is divided.
    pub(super) fn legacy(cx: &mut Context, message: &Legacy) -> Option<Self> {
        use legacy::{LbSubsetFallbackPolicy as Fallback, LbSubsetMetadataFallbackPolicy as Metadata};
        let selectors = cx.each("subset_selectors", &message.subset_selectors, |cx, selector| {
            // Numbers and names are the same as those of the newer message.
            let fallback = Selector::try_from(selector.fallback_policy).unwrap_or(Selector::NotDefined);
            selector_of(cx, &selector.keys, fallback, &selector.fallback_keys_subset, selector.single_host_per_subset)
        });
        (!selectors.is_empty()).then(|| SubsetConfig {
            fallback: match message.fallback_policy() {
                Fallback::NoFallback => SubsetFallback::None,
                Fallback::AnyEndpoint => SubsetFallback::Any,
                Fallback::DefaultSubset => SubsetFallback::Default,
            },
            default_subset: labels(&message.default_subset),
            selectors,
            locality_weight_aware: message.locality_weight_aware,
            scale_locality_weight: message.scale_locality_weight,
            panic_mode_any: message.panic_mode_any,
            list_as_any: message.list_as_any,
            fallback_list: message.metadata_fallback_policy() == Metadata::FallbackList,
            allow_redundant_keys: false,
        })
    }

    /// Of the policy as an extension.
    pub(super) fn extension(cx: &mut Context, message: &pb::Subset) -> Self {
        use pb::subset::{LbSubsetFallbackPolicy as Fallback, LbSubsetMetadataFallbackPolicy as Metadata};
        SubsetConfig {
            fallback: match message.fallback_policy() {
                Fallback::NoFallback => SubsetFallback::None,
                Fallback::AnyEndpoint => SubsetFallback::Any,
                Fallback::DefaultSubset => SubsetFallback::Default,
            },
            default_subset: labels(&message.default_subset),
            selectors: cx.each("subset_selectors", &message.subset_selectors, |cx, selector| {
                let fallback = selector.fallback_policy();
                let single = selector.single_host_per_subset;
                selector_of(cx, &selector.keys, fallback, &selector.fallback_keys_subset, single)
            }),
            locality_weight_aware: message.locality_weight_aware,
            scale_locality_weight: message.scale_locality_weight,
            panic_mode_any: message.panic_mode_any,
            list_as_any: message.list_as_any,
            fallback_list: message.metadata_fallback_policy() == Metadata::FallbackList,
            allow_redundant_keys: message.allow_redundant_keys,
        }
    }
}

fn labels(message: &Option<Struct>) -> serde_json::Map<String, serde_json::Value> {
    match message.as_ref().map(json::from_struct) {
        Some(serde_json::Value::Object(object)) => object,
        _ => serde_json::Map::new(),
    }
}

fn sorted(keys: &[String]) -> Box<[Box<str>]> {
    let mut keys: Vec<Box<str>> = keys.iter().map(|key| key.as_str().into()).collect();
    keys.sort();
    keys.dedup();
    keys.into()
}

fn selector_of(
    cx: &mut Context,
    keys: &[String],
    fallback: Selector,
    fallback_keys: &[String],
    single_host_per_subset: bool,
) -> Option<SubsetSelector> {
    let (keys, fallback_keys) = (sorted(keys), sorted(fallback_keys));
    let fallback = match fallback {
        Selector::KeysSubset => {
            let problem = if fallback_keys.is_empty() {
                Some("fallback_keys_subset cannot be empty")
            } else if fallback_keys.iter().any(|key| !keys.contains(key)) {
                Some("fallback_keys_subset must be a subset of selector keys")
            } else if fallback_keys.len() == keys.len() {
                Some("fallback_keys_subset cannot be equal to keys")
            } else {
                None
            };
            if let Some(problem) = problem {
                cx.error_at("fallback_keys_subset", problem);
                return None;
            }
            Some(SelectorFallback::Keys(fallback_keys))
        }
        _ if !fallback_keys.is_empty() => {
            cx.error_at("fallback_keys_subset", "fallback_keys_subset can be set only for KEYS_SUBSET fallback_policy");
            return None;
        }
        Selector::NotDefined => None,
        Selector::NoFallback => Some(SelectorFallback::To(SubsetFallback::None)),
        Selector::AnyEndpoint => Some(SelectorFallback::To(SubsetFallback::Any)),
        Selector::DefaultSubset => Some(SelectorFallback::To(SubsetFallback::Default)),
    };
    Some(SubsetSelector { keys, fallback, single_host_per_subset })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;

    fn selector(keys: &[&str], fallback: Selector, fallback_keys: &[&str]) -> legacy::LbSubsetSelector {
        let owned = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        legacy::LbSubsetSelector {
            keys: owned(keys),
            fallback_policy: fallback.into(),
            fallback_keys_subset: owned(fallback_keys),
            ..Default::default()
        }
    }

    fn decode(selectors: Vec<legacy::LbSubsetSelector>) -> Result<SubsetConfig, Vec<crate::diagnostics::ConfigError>> {
        let message = Legacy { subset_selectors: selectors, ..Default::default() };
        Context::default().run(|cx| SubsetConfig::legacy(cx, &message))
    }

    #[test]
    fn keys_are_sorted_and_fall_back_to_fewer_of_them() {
        let config = decode(vec![selector(&["b", "a", "b"], Selector::KeysSubset, &["b"])]).unwrap();
        assert_eq!(*config.selectors[0].keys, ["a".into(), "b".into()]);
        assert_eq!(config.selectors[0].fallback, Some(SelectorFallback::Keys(["b".into()].into())));
    }

    #[test]
    fn every_wrong_selector_is_named() {
        let result = decode(vec![
            selector(&["a"], Selector::KeysSubset, &[]),
            selector(&["a"], Selector::KeysSubset, &["b"]),
            selector(&["a"], Selector::KeysSubset, &["a"]),
            selector(&["a", "b"], Selector::AnyEndpoint, &["a"]),
        ]);
        let path = |at: usize| format!("subset_selectors[{at}].fallback_keys_subset: fallback_keys_subset");
        assert_eq!(
            errors(result),
            [
                format!("{} cannot be empty", path(0)),
                format!("{} must be a subset of selector keys", path(1)),
                format!("{} cannot be equal to keys", path(2)),
                format!("{} can be set only for KEYS_SUBSET fallback_policy", path(3)),
            ]
        );
    }

    #[test]
    fn without_selectors_nothing_is_divided() {
        assert_eq!(SubsetConfig::legacy(&mut Context::default(), &Legacy::default()), None);
    }
}
