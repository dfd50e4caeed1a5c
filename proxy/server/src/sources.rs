//! What the admin interface shows, taken from the running server.

use crate::admin::{
    AddressStatus, AdminSources, CertificateSet, CertificateStatus, CircuitBreakerStatus, ClusterStatus,
    CommandLineOptions, ConfigDump, ConfigEntry, DrainListeners, EdsHealth, HealthFlags, HostStatus, InitManagerStatus,
    ListenerStatus, LogLevel, MemoryStatus, OutlierStatus, RuntimeLayerStatus, ServerInfo, ServerState, SubjectAltName,
};
use crate::listeners::Unready;
use crate::log::Level;
use crate::options::{DrainStrategy, IpVersion, Mode};
use crate::server::{Server, State};
use bytes::Bytes;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap as Message;
use nuncio_base::stats::{HostMetric, Registry};
use nuncio_config::cluster::{Discovery, HealthStatus};
use nuncio_net::address::Address;
use nuncio_net::tls::LoadedCertificate;
use nuncio_upstream::host::Health;
use nuncio_upstream::{Cluster, Host, Resource, ResourcePriority};
use prost::Message as _;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// The server behind one admin request. What the request asks to be done happens in [`Sources::act`], after its answer.
pub(crate) struct Sources<'a> {
    server: &'a Arc<Server>,
    quit: Cell<bool>,
    drain: RefCell<Option<DrainListeners>>,
}

impl<'a> Sources<'a> {
    /// For one request.
    pub(crate) fn new(server: &'a Arc<Server>) -> Sources<'a> {
        Sources { server, quit: Cell::new(false), drain: RefCell::new(None) }
    }

    /// Does what was asked for.
    pub(crate) fn act(&self) {
        if let Some(how) = self.drain.take() {
            self.server.drain_listeners(how.graceful, how.skip_exit, how.inbound_only);
        }
        if self.quit.get() {
            self.server.quit();
        }
    }
}

impl AdminSources for Sources<'_> {
    fn stats(&self) -> &Registry {
        &self.server.context.registry
    }

    fn prepare_stats(&self) {
        self.server.update_gauges();
        if self.server.bootstrap.config.stats_flush_on_admin {
            self.server.context.registry.merge_histograms();
        }
    }

    fn host_metrics(&self) -> Vec<HostMetric> {
        let mut clusters = self.server.context.clusters.clusters();
        clusters.retain(|cluster| cluster.config.per_endpoint_stats);
        clusters.sort_by(|a, b| a.name().cmp(b.name()));
        let hosts = |cluster: &Arc<Cluster>| {
            let state = cluster.state();
            state.priority_set.hosts().flat_map(|host| host_metrics(cluster, host)).collect::<Vec<_>>()
        };
        clusters.iter().flat_map(hosts).collect()
    }

    fn server_state(&self) -> ServerState {
        match self.server.state() {
            State::Live => ServerState::Live,
            State::Draining => ServerState::Draining,
            State::PreInitializing => ServerState::PreInitializing,
            State::Initializing => ServerState::Initializing,
        }
    }

    fn server_info(&self) -> ServerInfo {
        let s = self.server;
        let uptime = s.started.elapsed();
        ServerInfo {
            version: crate::options::build_version(),
            uptime_current_epoch: uptime,
            uptime_all_epochs: uptime,
            options: options(s),
            node: s.bootstrap.node.clone(),
        }
    }

    fn hot_restart_version(&self) -> String {
        "disabled".to_owned()
    }

    fn unready_targets(&self) -> Vec<InitManagerStatus> {
        let server = self.server;
        let status = |component: &str, name: String, targets: Vec<String>| InitManagerStatus {
            component: component.to_owned(),
            name,
            targets,
        };
        let mut all = Vec::new();
        let waits = |cluster: &Arc<Cluster>| cluster.stats.warming_state().value() > 0;
        let clusters = server.context.clusters.clusters().into_iter().filter(waits);
        let clusters: Vec<_> = clusters.chain(server.context.clusters.warming()).collect();
        if !clusters.is_empty() {
            let targets = clusters.iter().map(|c| format!("cluster {}", c.name())).collect();
            all.push(status("cluster", "cluster manager".to_owned(), targets));
        }
        let listeners = server.listeners.unready();
        // What the start waits for on behalf of listeners stands with them.
        let of_listeners: HashSet<&String> = listeners.iter().flat_map(|listener| &listener.targets).collect();
        let unready = server.init.unready();
        let targets = unready.iter().map(|target| target.name.clone()).filter(|name| !of_listeners.contains(name));
        let targets: Vec<String> = targets.collect();
        if !targets.is_empty() {
            all.push(status("server", "init manager Server".to_owned(), targets));
        }
        for Unready { name, fingerprint, targets } in listeners {
            let manager = format!("init manager Listener-local-init-manager {name} {fingerprint}");
            all.push(status("listener", manager, targets));
        }
        all
    }

    fn memory(&self) -> MemoryStatus {
        crate::memory::status()
    }

    fn clusters(&self) -> Vec<ClusterStatus> {
        self.server.context.clusters.clusters().iter().map(cluster).collect()
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        let address = |(address, network): (Address, Option<Arc<str>>)| match (address.socket_addr(), network) {
            (Some(socket), Some(file)) => AddressStatus::InNetwork(socket, file.to_string()),
            _ => AddressStatus::of(&address),
        };
        let status = |l: &Arc<nuncio_net::listener::Listener>| ListenerStatus {
            name: l.name().to_string(),
            addresses: l.addresses_in_networks().into_iter().map(address).collect(),
        };
        self.server.listeners.active().iter().map(status).collect()
    }

    fn certificates(&self) -> Vec<CertificateSet> {
        let sets = self.server.context.contexts.certificates();
        let set = |c: nuncio_net::tls::ContextCertificates| CertificateSet {
            ca: c.ca.iter().map(certificate).collect(),
            chain: c.chains.iter().map(certificate).collect(),
        };
        sets.into_iter().map(set).collect()
    }

    fn config_dump(&self, include_eds: bool) -> ConfigDump {
        let s = self.server;
        let entry = |name: &str, message: &str, bytes: Vec<u8>| ConfigEntry {
            name: name.to_owned(),
            version_info: String::new(),
            message: message.to_owned(),
            bytes: Bytes::from(bytes),
            last_updated: s.started_at,
            active: true,
            warming: None,
            draining: None,
            error: None,
            parts: Vec::new(),
        };
        // These bytes were encoded by this process.
        let bootstrap = Message::decode(s.bootstrap.bytes.clone()).unwrap_or_default();
        let resources = bootstrap.static_resources.unwrap_or_default();
        let mut dump = ConfigDump {
            bootstrap: Some(entry("", "envoy.config.bootstrap.v3.Bootstrap", s.bootstrap.bytes.to_vec())),
            ..ConfigDump::default()
        };
        dump.static_clusters = resources
            .clusters
            .iter()
            .map(|c| entry(&c.name, "envoy.config.cluster.v3.Cluster", c.encode_to_vec()))
            .collect();
        dump.static_listeners = resources
            .listeners
            .iter()
            .map(|l| entry(&l.name, "envoy.config.listener.v3.Listener", l.encode_to_vec()))
            .collect();
        dump.static_route_configs = crate::config_dump::route_configs(&resources)
            .into_iter()
            .map(|(name, bytes)| entry(&name, "envoy.config.route.v3.RouteConfiguration", bytes))
            .collect();
        dump.static_secrets = resources
            .secrets
            .iter()
            .map(|x| entry(&x.name, "envoy.extensions.transport_sockets.tls.v3.Secret", x.encode_to_vec()))
            .collect();
        if include_eds {
            let assignments = s.context.clusters.clusters();
            dump.static_endpoint_configs = Some(
                assignments
                    .iter()
                    .filter(|c| !crate::config_dump::is_dynamic(c))
                    .map(|c| {
                        let message = crate::config_dump::endpoints(c);
                        entry(c.name(), "envoy.config.endpoint.v3.ClusterLoadAssignment", message.encode_to_vec())
                    })
                    .collect(),
            );
        }
        crate::config_dump::dynamic(s, include_eds, &mut dump);
        dump
    }

    fn runtime_layers(&self) -> Vec<RuntimeLayerStatus> {
        self.server.runtime.layers().into_iter().map(|(name, values)| RuntimeLayerStatus { name, values }).collect()
    }

    fn modify_runtime(&self, values: &[(String, String)]) -> Result<(), String> {
        self.server.runtime.modify(values)?;
        self.server.apply_runtime_limits();
        Ok(())
    }

    fn log_levels(&self) -> Vec<(String, LogLevel)> {
        let levels = self.server.log.levels();
        levels.into_iter().filter_map(|(name, level)| Some((name.to_owned(), LogLevel::parse(level)?))).collect()
    }

    fn set_log_levels(&self, levels: &[(String, LogLevel)]) {
        for (name, level) in levels {
            if let Some(level) = Level::parse(level.as_str()) {
                self.server.log.set(name, level);
            }
        }
    }

    fn fail_health_check(&self, fail: bool) {
        self.server.fail_health_check(fail);
    }

    fn drain_listeners(&self, how: DrainListeners) {
        self.drain.replace(Some(how));
    }

    fn quit(&self) {
        self.quit.set(true);
    }

    fn discovery(&self) -> Vec<xds_client::status::SourceState> {
        crate::xds::view::sources()
    }

    fn reopen_logs(&self) {
        self.server.context.access_logs.reopen();
    }
}

impl AddressStatus {
    fn of(address: &Address) -> AddressStatus {
        match address.socket_addr() {
            Some(addr) => AddressStatus::Socket(addr),
            None => AddressStatus::Pipe(address.to_string()),
        }
    }
}

fn cluster(cluster: &Arc<Cluster>) -> ClusterStatus {
    let config = &cluster.config;
    let state = cluster.state();
    let outlier = cluster.outlier_detection();
    let rates = outlier.map(|outlier| outlier.host_rates()).unwrap_or_default();
    ClusterStatus {
        name: cluster.name().to_string(),
        observability_name: cluster.observability_name.to_string(),
        added_via_api: config.added_via_api,
        eds_service_name: match &config.discovery {
            Discovery::Eds { service_name, .. } if **service_name != *config.name => service_name.to_string(),
            _ => String::new(),
        },
        outlier: outlier.map(|outlier| {
            let [external, local] = outlier.rates();
            OutlierStatus {
                success_rate_average: external.average,
                success_rate_ejection_threshold: external.threshold,
                local_origin_success_rate_average: local.average,
                local_origin_success_rate_ejection_threshold: local.threshold,
            }
        }),
        default_priority: limits(cluster, ResourcePriority::Default),
        high_priority: limits(cluster, ResourcePriority::High),
        hosts: state
            .priority_set
            .hosts()
            .map(|h| {
                let rates = rates.iter().find(|(id, _)| *id == h.id).map_or([-1.0; 2], |(_, rates)| *rates);
                HostStatus { success_rate: rates[0], local_origin_success_rate: rates[1], ..host(h) }
            })
            .collect(),
    }
}

/// The limits as they are now: a retry budget moves with the load.
fn limits(cluster: &Cluster, priority: ResourcePriority) -> CircuitBreakerStatus {
    let limits = cluster.resource_manager(priority);
    CircuitBreakerStatus {
        max_connections: u64::from(limits.max(Resource::Connections)),
        max_pending_requests: u64::from(limits.max(Resource::PendingRequests)),
        max_requests: u64::from(limits.max(Resource::Requests)),
        max_retries: u64::from(limits.max(Resource::Retries)),
    }
}

/// What Envoy shows of a host with the stats (`per_endpoint_stats`), in its order.
fn host_metrics(cluster: &Cluster, host: &Host) -> Vec<HostMetric> {
    let address = host.observability_name.clone().unwrap_or_else(|| host.shown_address().1);
    let mut tags = vec![
        ("envoy_cluster_name", cluster.observability_name.replace(':', "_")),
        ("envoy_endpoint_address", address.to_string()),
    ];
    if !host.hostname.is_empty() {
        tags.push(("envoy_endpoint_hostname", host.hostname.to_string()));
    }
    let prefix = format!("{}endpoint.{}.", cluster.stats.prefix(), address.replace(':', "_"));
    let stats = &host.stats;
    let healthy = u64::from(host.health() == Health::Healthy);
    [
        ("cluster.endpoint.cx_connect_fail", true, stats.cx_connect_fail.load(Relaxed)),
        ("cluster.endpoint.cx_total", true, stats.cx_total.load(Relaxed)),
        ("cluster.endpoint.rq_error", true, stats.rq_error.load(Relaxed)),
        ("cluster.endpoint.rq_success", true, stats.rq_success.load(Relaxed)),
        ("cluster.endpoint.rq_timeout", true, stats.rq_timeout.load(Relaxed)),
        ("cluster.endpoint.rq_total", true, stats.rq_total.load(Relaxed)),
        ("cluster.endpoint.cx_active", false, u64::from(stats.cx_active.load(Relaxed))),
        ("cluster.endpoint.rq_active", false, u64::from(stats.rq_active.load(Relaxed))),
        ("cluster.endpoint.rq_pending_active", false, u64::from(stats.rq_pending_active.load(Relaxed))),
        ("cluster.endpoint.healthy", false, healthy),
    ]
    .into_iter()
    .map(|(family, counter, value)| {
        let name = format!("{prefix}{}", family.rsplit('.').next().unwrap_or_default());
        HostMetric { name, family, tags: tags.clone(), counter, value }
    })
    .collect()
}

fn host(host: &Host) -> HostStatus {
    let stats = &host.stats;
    let eds = match host.eds_status() {
        HealthStatus::Unknown | HealthStatus::Healthy => EdsHealth::Healthy,
        HealthStatus::Unhealthy | HealthStatus::Timeout => EdsHealth::Unhealthy,
        HealthStatus::Draining => EdsHealth::Draining,
        HealthStatus::Degraded => EdsHealth::Degraded,
    };
    HostStatus {
        hostname: host.hostname.to_string(),
        cx_active: u64::from(stats.cx_active.load(Relaxed)),
        cx_connect_fail: stats.cx_connect_fail.load(Relaxed),
        cx_total: stats.cx_total.load(Relaxed),
        rq_active: u64::from(stats.rq_active.load(Relaxed)),
        rq_error: stats.rq_error.load(Relaxed),
        rq_pending_active: u64::from(stats.rq_pending_active.load(Relaxed)),
        rq_success: stats.rq_success.load(Relaxed),
        rq_timeout: stats.rq_timeout.load(Relaxed),
        rq_total: stats.rq_total.load(Relaxed),
        health_flags: health_flags(host, eds),
        weight: host.weight(),
        region: host.locality.region.to_string(),
        zone: host.locality.zone.to_string(),
        sub_zone: host.locality.sub_zone.to_string(),
        canary: host.is_canary(),
        priority: host.priority.load(Relaxed),
        ..HostStatus::new(AddressStatus::of(&host.address))
    }
}

fn health_flags(host: &Host, eds: EdsHealth) -> HealthFlags {
    use nuncio_upstream::host::health_flag as flag;
    let flags = host.health_flags();
    let has = |flag: u32| flags & flag != 0;
    HealthFlags {
        failed_active_hc: has(flag::FAILED_ACTIVE_HC),
        failed_outlier_check: has(flag::FAILED_OUTLIER_CHECK),
        eds,
        degraded_active_hc: has(flag::DEGRADED_ACTIVE_HC),
        pending_dynamic_removal: has(flag::PENDING_DYNAMIC_REMOVAL),
        pending_active_hc: has(flag::PENDING_ACTIVE_HC),
        excluded_via_immediate_hc_fail: has(flag::EXCLUDED_VIA_IMMEDIATE_HC_FAIL),
        active_hc_timeout: has(flag::ACTIVE_HC_TIMEOUT),
        degraded_outlier_detection: has(flag::DEGRADED_OUTLIER_DETECTION),
    }
}

fn certificate(c: &LoadedCertificate) -> CertificateStatus {
    let info = &c.info;
    let dns = info.dns_sans().map(|n| SubjectAltName::Dns(n.into_owned()));
    let uri = info.uri_sans().map(|n| SubjectAltName::Uri(n.into_owned()));
    let ip = info.ip_sans().map(|n| SubjectAltName::Ip(n.to_owned()));
    CertificateStatus {
        path: c.path.to_string(),
        serial_number: info.serial.to_string(),
        subject_alt_names: dns.chain(uri).chain(ip).collect(),
        valid_from: info.not_before,
        expiration_time: info.not_after,
    }
}

fn options(server: &Server) -> CommandLineOptions {
    let o = &server.options;
    let path = |p: &Option<std::path::PathBuf>| p.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    CommandLineOptions {
        base_id: u64::from(o.base_id),
        use_dynamic_base_id: o.use_dynamic_base_id,
        base_id_path: path(&o.base_id_path),
        concurrency: server.concurrency as u32,
        config_path: path(&o.config_path),
        config_yaml: o.config_yaml.clone().unwrap_or_default(),
        allow_unknown_static_fields: o.allow_unknown_static_fields || o.allow_unknown_fields,
        reject_unknown_dynamic_fields: o.reject_unknown_dynamic_fields,
        ignore_unknown_dynamic_fields: o.ignore_unknown_dynamic_fields,
        skip_deprecated_logs: o.skip_deprecated_logs,
        admin_address_path: path(&o.admin_address_path),
        local_address_ip_version: if o.local_address_ip_version == IpVersion::V6 { "v6" } else { "v4" }.to_owned(),
        log_level: o.log_level.clone(),
        component_log_level: o.component_log_level.clone(),
        log_format: o.log_format.clone(),
        log_format_escaped: o.log_format_escaped,
        log_path: path(&o.log_path),
        log_stacktrace_single_entry: o.log_stacktrace_single_entry,
        service_cluster: o.service_cluster.clone().unwrap_or_default(),
        service_node: o.service_node.clone().unwrap_or_default(),
        service_zone: o.service_zone.clone().unwrap_or_default(),
        file_flush_interval: Duration::from_millis(o.file_flush_interval_msec),
        file_flush_min_size: o.file_flush_min_size_kb as u32,
        drain_time: Duration::from_secs(o.drain_time_s),
        drain_strategy: if o.drain_strategy == DrainStrategy::Gradual { "Gradual" } else { "Immediate" }.to_owned(),
        parent_shutdown_time: Duration::from_secs(o.parent_shutdown_time_s),
        mode: if o.mode == Mode::Serve { "Serve" } else { "Validate" }.to_owned(),
        disable_hot_restart: o.disable_hot_restart,
        skip_hot_restart_on_no_parent: o.skip_hot_restart_on_no_parent,
        skip_hot_restart_parent_stats: o.skip_hot_restart_parent_stats,
        enable_mutex_tracing: o.enable_mutex_tracing,
        restart_epoch: o.restart_epoch,
        cpuset_threads: o.cpuset_threads,
        disabled_extensions: o.disable_extensions.split(',').filter(|e| !e.is_empty()).map(str::to_owned).collect(),
        enable_fine_grain_logging: o.enable_fine_grain_logging,
        socket_path: o.socket_path.clone(),
        socket_mode: u32::from_str_radix(&o.socket_mode, 8).unwrap_or(0),
        enable_core_dump: o.enable_core_dump,
        stats_tag: o.stats_tag.clone(),
    }
}
