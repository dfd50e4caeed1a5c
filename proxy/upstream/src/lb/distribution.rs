//! Tests only: 10,000 picks of each policy, held to the shares that Envoy gives by a chi-square test.

use super::{LbContext, LbTables, WorkerLb};
use crate::host_set::{Grouping, HostGroup, HostGroups, PrioritySet};
use crate::testing::{config, host, priority_set, stats, weighted_set};
use nuncio_base::random;
use nuncio_config::cluster::{ClusterConfig, HealthStatus, LbPolicy, Locality};
use std::sync::Arc;

const PICKS: usize = 10_000;

/// What chi-square exceeds once in ten thousand samples, by degrees of freedom.
const CRITICAL: [f64; 5] = [0.0, 15.14, 18.42, 21.11, 23.51];

/// Picks by the port of the host, 0, 1, ...
fn picks(lb_policy: LbPolicy, set: &PrioritySet, hosts: usize) -> Vec<f64> {
    random::seed(7);
    let stats = stats();
    let tables = LbTables::new(&ClusterConfig { lb_policy, ..config() }, set, &stats);
    let mut lb = WorkerLb::with_seed(3);
    let mut counts = vec![0.0; hosts];
    for _ in 0..PICKS {
        let picked = lb.choose_host(&tables, set, &LbContext::default(), &stats).and_then(|host| host.address.port());
        counts[usize::from(picked.expect("a host"))] += 1.0;
    }
    counts
}

/// The counts follow `shares`, of any sum; hosts with a share of 0 are never picked.
fn follow(counts: &[f64], shares: &[f64]) {
    let sum: f64 = shares.iter().sum();
    let pairs = || counts.iter().zip(shares);
    assert!(pairs().all(|(count, share)| *share > 0.0 || *count == 0.0), "{counts:?}");
    let deviations = pairs().filter(|(_, share)| **share > 0.0).map(|(count, share)| {
        let expected = PICKS as f64 * share / sum;
        (count - expected).powi(2) / expected
    });
    let chi_square: f64 = deviations.sum();
    let freedom = shares.iter().filter(|share| **share > 0.0).count() - 1;
    assert!(chi_square <= CRITICAL[freedom], "{counts:?}: {chi_square}");
}

/// Turns are as even as whole numbers are.
fn exactly(counts: &[f64], shares: &[f64]) {
    let sum: f64 = shares.iter().sum();
    let even = |(count, share): (&f64, &f64)| (count - PICKS as f64 * share / sum).abs() <= 2.0;
    assert!(counts.iter().zip(shares).all(even), "{counts:?}");
}

const LEAST: LbPolicy = LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0, full_scan: false };
const RING: LbPolicy = LbPolicy::RingHash { minimum_ring_size: 65_536, maximum_ring_size: 8 << 20, murmur: false };

#[test]
fn turns_and_idle_least_requests_go_exactly_by_weight() {
    let set = weighted_set(&[1, 2, 5]);
    exactly(&picks(LbPolicy::RoundRobin, &set, 3), &[1.0, 2.0, 5.0]);
    exactly(&picks(LEAST, &set, 3), &[1.0, 2.0, 5.0]);
}

#[test]
fn idle_hosts_of_one_weight_are_picked_alike() {
    let set = weighted_set(&[3, 3, 3, 3]);
    follow(&picks(LEAST, &set, 4), &[1.0; 4]);
    let scan = LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0, full_scan: true };
    follow(&picks(scan, &set, 4), &[1.0; 4]);
}

#[test]
fn random_does_not_weigh() {
    follow(&picks(LbPolicy::Random, &weighted_set(&[1, 2, 9]), 3), &[1.0; 3]);
}

#[test]
fn random_hashes_follow_the_weights() {
    let set = weighted_set(&[1, 2, 5]);
    follow(&picks(LbPolicy::Maglev { table_size: 65_537 }, &set, 3), &[1.0, 2.0, 5.0]);
    // The arcs of a ring differ; over so many hashes they are off by about a hundredth.
    let counts = picks(RING, &set, 3);
    let off = |(count, share): (&f64, f64)| (count - PICKS as f64 * share / 8.0).abs();
    let all: Vec<_> = counts.iter().zip([1.0, 2.0, 5.0]).map(off).collect();
    assert!(all.iter().all(|off| *off < 200.0), "{counts:?}");
}

#[test]
fn priorities_take_what_they_can() {
    // Half of the first priority fails: 70 percent. A quarter is degraded: what the healthy cannot take.
    follow(&picks(LbPolicy::RoundRobin, &priority_set(&[(1, 0, 1), (1, 0, 0)]), 3), &[70.0, 0.0, 30.0]);
    follow(&picks(LEAST, &priority_set(&[(2, 1, 1)]), 4), &[35.0, 35.0, 30.0, 0.0]);
}

#[test]
fn localities_go_by_weight_and_by_what_is_healthy_of_them() {
    let zone = |name: &str| Arc::new(Locality { zone: name.into(), ..Locality::default() });
    let group = |name: &str, ports: [u16; 2], failing: bool| {
        let locality = zone(name);
        let hosts = ports.map(|port| host(port, 1, &locality));
        if failing {
            hosts[1].set_eds_health(HealthStatus::Unhealthy);
        }
        HostGroup { priority: 0, locality, weight: Some(1), hosts: hosts.into() }
    };
    let groups = HostGroups {
        groups: vec![group("a", [0, 1], true), group("b", [2, 3], false)],
        overprovisioning_factor: 140,
        weighted_health: false,
        grouping: Grouping::Weighted,
    };
    // The first can serve 1.4 times a half of its part.
    exactly(&picks(LbPolicy::RoundRobin, &groups.priority_set(), 4), &[0.7, 0.0, 0.5, 0.5]);
}
