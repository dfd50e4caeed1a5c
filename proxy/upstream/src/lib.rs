//! Upstream: clusters, hosts, load balancing, connection pools, DNS.
