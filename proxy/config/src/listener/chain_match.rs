//! `FilterChainMatch` decoded, and the check that no two chains of a listener match the same connection equally.

use std::hash::{Hash, Hasher};

use envoy_types::pb::envoy::config::listener::v3 as pb;
use ipnet::IpNet;
use rustc_hash::{FxHashSet, FxHasher};

use super::{FilterChainConfig, FilterChainMatch, SourceType};
use crate::decode::{Context, boxed, u32_value};
use crate::matchers::{CidrRange, cidr_range};

/// Combinations of match values looked at per listener. A listener with more is taken on trust: the match tree takes
/// the first chain then.
const MAX_COMBINATIONS: usize = 1 << 20;

impl FilterChainMatch {
    /// What is wrong even where a matcher tree chooses and the match is not looked at.
    pub(super) fn check(cx: &mut Context, message: &pb::FilterChainMatch, name: &str) {
        if !message.address_suffix.is_empty() || message.suffix_len.is_some() {
            cx.error(format!("filter chain '{name}' contains unimplemented fields"));
        }
    }

    pub(super) fn decode(cx: &mut Context, message: &pb::FilterChainMatch) -> Option<Self> {
        use pb::filter_chain_match::ConnectionSourceType;
        let server_names = cx.each("server_names", &message.server_names, |cx, name| {
            let labels = name.strip_prefix("*.").unwrap_or(name);
            if labels.contains('*') {
                cx.error("partial wildcards are not supported in \"server_names\"");
                return None;
            }
            Some(name.to_ascii_lowercase().into())
        });
        Some(FilterChainMatch {
            destination_port: u32_value(&message.destination_port).and_then(|port| u16::try_from(port).ok()),
            prefix_ranges: cx.each("prefix_ranges", &message.prefix_ranges, cidr_range),
            server_names,
            transport_protocol: message.transport_protocol.as_str().into(),
            application_protocols: boxed(&message.application_protocols),
            direct_source_prefix_ranges: cx.each(
                "direct_source_prefix_ranges",
                &message.direct_source_prefix_ranges,
                cidr_range,
            ),
            source_type: match message.source_type() {
                ConnectionSourceType::Any => SourceType::Any,
                ConnectionSourceType::SameIpOrLoopback => SourceType::SameIpOrLoopback,
                ConnectionSourceType::External => SourceType::External,
            },
            source_prefix_ranges: cx.each("source_prefix_ranges", &message.source_prefix_ranges, cidr_range),
            source_ports: message.source_ports.iter().filter_map(|port| u16::try_from(*port).ok()).collect(),
        })
    }
}

/// Reports chains with equal or overlapping matches, in Envoy's words; `address` is the listener's.
pub(super) fn check_overlaps(
    cx: &mut Context,
    messages: &[pb::FilterChain],
    chains: &[impl AsRef<FilterChainConfig>],
    address: &str,
) {
    // A chain that failed to decode is left out, and then positions would not agree.
    if messages.len() != chains.len() {
        return;
    }
    let mut whole: rustc_hash::FxHashMap<u64, usize> = rustc_hash::FxHashMap::default();
    let mut seen: FxHashSet<u64> = FxHashSet::default();
    let mut combinations = 0usize;
    cx.at("filter_chains", |cx| {
        for (index, chain) in chains.iter().enumerate() {
            let chain = chain.as_ref();
            let key = message_key(messages[index].filter_chain_match.as_ref());
            let first = *whole.entry(key).or_insert(index);
            if first != index {
                cx.at_index(index, |cx| {
                    cx.error_at(
                        "filter_chain_match",
                        format!(
                            "error adding listener '{address}': filter chain '{}' has the same matching rules defined as '{}'",
                            chain.name,
                            chains[first].as_ref().name
                        ),
                    );
                });
                continue;
            }
            combinations = combinations.saturating_add(count(&chain.matches));
            if combinations > MAX_COMBINATIONS {
                return;
            }
            if !add_all(&chain.matches, &mut seen) {
                cx.at_index(index, |cx| {
                    cx.error_at(
                        "filter_chain_match",
                        format!(
                            "error adding listener '{address}': multiple filter chains with overlapping matching rules are defined"
                        ),
                    );
                });
            }
        }
    });
}

/// A key of the match as it is written, so that equal messages are told apart from overlapping ones.
fn message_key(message: Option<&pb::FilterChainMatch>) -> u64 {
    use prost::Message;
    let mut hasher = FxHasher::default();
    message.map(Message::encode_to_vec).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

fn count(matches: &FilterChainMatch) -> usize {
    [
        matches.prefix_ranges.len(),
        matches.server_names.len(),
        matches.application_protocols.len(),
        matches.direct_source_prefix_ranges.len(),
        matches.source_prefix_ranges.len(),
        matches.source_ports.len(),
    ]
    .iter()
    .fold(1usize, |product, len| product.saturating_mul((*len).max(1)))
}

/// Adds every combination of the match's values; false when one was there already.
fn add_all(matches: &FilterChainMatch, seen: &mut FxHashSet<u64>) -> bool {
    fn ranges(list: &[CidrRange]) -> Vec<Option<&IpNet>> {
        if list.is_empty() { vec![None] } else { list.iter().map(Some).collect() }
    }
    fn names(list: &[Box<str>]) -> Vec<&str> {
        if list.is_empty() { vec![""] } else { list.iter().map(|name| &**name).collect() }
    }
    let ports: &[u16] = if matches.source_ports.is_empty() { &[0] } else { &matches.source_ports };
    let mut fresh = true;
    for destination in ranges(&matches.prefix_ranges) {
        for server in names(&matches.server_names) {
            for protocol in names(&matches.application_protocols) {
                for direct in ranges(&matches.direct_source_prefix_ranges) {
                    for source in ranges(&matches.source_prefix_ranges) {
                        for port in ports {
                            let mut hasher = FxHasher::default();
                            (matches.destination_port, destination, server, &matches.transport_protocol)
                                .hash(&mut hasher);
                            (protocol, direct, matches.source_type, source, port).hash(&mut hasher);
                            fresh &= seen.insert(hasher.finish());
                        }
                    }
                }
            }
        }
    }
    fresh
}
