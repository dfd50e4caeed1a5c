//! Sources for tests: plain cells.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use nuncio_base::stats::{Registry, StatsConfig};
use prost::Message as _;

use super::sources::*;
use super::{AdminRequest, AdminResponse, handle};

/// Shows what its cells hold, and notes what it is told to do.
pub(super) struct FakeSources {
    pub(super) registry: Registry,
    pub(super) prepared: Cell<u32>,
    pub(super) state: Cell<ServerState>,
    pub(super) unready: RefCell<Vec<InitManagerStatus>>,
    pub(super) clusters: RefCell<Vec<ClusterStatus>>,
    pub(super) listeners: RefCell<Vec<ListenerStatus>>,
    pub(super) certificates: RefCell<Vec<CertificateSet>>,
    pub(super) dump: RefCell<ConfigDump>,
    pub(super) layers: RefCell<Vec<RuntimeLayerStatus>>,
    pub(super) no_admin_layer: Cell<bool>,
    pub(super) levels: RefCell<Vec<(String, LogLevel)>>,
    pub(super) actions: RefCell<Vec<String>>,
}

impl Default for FakeSources {
    fn default() -> Self {
        Self {
            registry: Registry::new(1, StatsConfig::default()),
            prepared: Cell::default(),
            state: Cell::default(),
            unready: RefCell::default(),
            clusters: RefCell::default(),
            listeners: RefCell::default(),
            certificates: RefCell::default(),
            dump: RefCell::default(),
            layers: RefCell::default(),
            no_admin_layer: Cell::default(),
            levels: RefCell::new(vec![("admin".into(), LogLevel::Info), ("http".into(), LogLevel::Info)]),
            actions: RefCell::default(),
        }
    }
}

impl FakeSources {
    fn note(&self, action: impl Into<String>) {
        self.actions.borrow_mut().push(action.into());
    }
}

impl AdminSources for FakeSources {
    fn stats(&self) -> &Registry {
        &self.registry
    }

    fn prepare_stats(&self) {
        self.prepared.set(self.prepared.get() + 1);
    }

    fn server_state(&self) -> ServerState {
        self.state.get()
    }

    fn server_info(&self) -> ServerInfo {
        let node = serde_json::json!({
            "id": "n1",
            "cluster": "c1",
            "locality": {"region": "r", "zone": "z"},
            "user_agent_name": "envoy",
            "user_agent_build_version": {
                "version": {"major_number": 1, "minor_number": 40},
                "metadata": {"ssl.version": "BoringSSL"},
            },
            "extensions": [{
                "name": "envoy.filters.connection_pools.tcp.generic",
                "category": "envoy.upstreams",
                "type_urls": ["envoy.extensions.upstreams.tcp.generic.v3.GenericConnectionPoolProto"],
            }],
        });
        let descriptor = nuncio_config::descriptors::message("envoy.config.core.v3.Node").expect("a known message");
        let node = prost_reflect::DynamicMessage::deserialize(descriptor, node).expect("a valid node");
        ServerInfo {
            version: "9e55/1.40.0/Clean/RELEASE/BoringSSL".into(),
            uptime_current_epoch: Duration::from_millis(29_700),
            uptime_all_epochs: Duration::from_secs(29),
            options: CommandLineOptions {
                base_id: 79,
                config_path: "b.yaml".into(),
                admin_address_path: "adm".into(),
                disable_hot_restart: true,
                ..CommandLineOptions::default()
            },
            node: node.encode_to_vec().into(),
        }
    }

    fn hot_restart_version(&self) -> String {
        "disabled".into()
    }

    fn unready_targets(&self) -> Vec<InitManagerStatus> {
        self.unready.borrow().clone()
    }

    fn memory(&self) -> MemoryStatus {
        MemoryStatus {
            allocated: 1,
            heap_size: 2,
            pageheap_unmapped: 3,
            pageheap_free: 4,
            total_thread_cache: 5,
            total_physical_bytes: 6,
        }
    }

    fn clusters(&self) -> Vec<ClusterStatus> {
        self.clusters.borrow().clone()
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        self.listeners.borrow().clone()
    }

    fn certificates(&self) -> Vec<CertificateSet> {
        self.certificates.borrow().clone()
    }

    fn config_dump(&self, include_eds: bool) -> ConfigDump {
        if include_eds {
            self.note("dump with eds: true");
        }
        self.dump.borrow().clone()
    }

    fn runtime_layers(&self) -> Vec<RuntimeLayerStatus> {
        self.layers.borrow().clone()
    }

    fn modify_runtime(&self, values: &[(String, String)]) -> Result<(), String> {
        if self.no_admin_layer.get() {
            return Err("No admin layer specified".into());
        }
        for (key, value) in values {
            self.note(format!("runtime {key}={value}"));
        }
        Ok(())
    }

    fn log_levels(&self) -> Vec<(String, LogLevel)> {
        self.levels.borrow().clone()
    }

    fn set_log_levels(&self, levels: &[(String, LogLevel)]) {
        for (name, level) in levels {
            for logger in self.levels.borrow_mut().iter_mut().filter(|logger| logger.0 == *name) {
                logger.1 = *level;
            }
        }
    }

    fn fail_health_check(&self, fail: bool) {
        self.note(format!("health check fails: {fail}"));
    }

    fn drain_listeners(&self, how: DrainListeners) {
        self.note(format!("drain {how:?}"));
    }

    fn quit(&self) {
        self.note("quit");
    }

    fn reopen_logs(&self) {
        self.note("reopen logs");
    }
}

pub(super) fn get(sources: &FakeSources, path_and_query: &str) -> AdminResponse {
    send(sources, "GET", path_and_query)
}

pub(super) fn post(sources: &FakeSources, path_and_query: &str) -> AdminResponse {
    send(sources, "POST", path_and_query)
}

fn send(sources: &FakeSources, method: &str, path_and_query: &str) -> AdminResponse {
    let request =
        AdminRequest { method: method.into(), path_and_query: path_and_query.into(), ..AdminRequest::default() };
    handle(&request, sources)
}

pub(super) fn text_of(response: &AdminResponse) -> &str {
    std::str::from_utf8(&response.body).expect("text")
}
