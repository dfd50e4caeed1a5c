//! `nuncio xds-check` on files: what it prints, and how it ends.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";
const SECRET: &str = "envoy.extensions.transport_sockets.tls.v3.Secret";

struct World(tempfile::TempDir);

impl World {
    /// Good resources of every type, all from files.
    fn new() -> World {
        let world = World(tempfile::tempdir().unwrap());
        world.write(
            "bootstrap.yaml",
            "node: {id: test, cluster: test}\ndynamic_resources:\n  cds_config: {path_config_source: {path: @DIR@/cds.yaml}}\n  \
             lds_config: {path_config_source: {path: @DIR@/lds.yaml}}\n",
        );
        world.write(
            "cds.yaml",
            &response(
                CLUSTER,
                "name: one\n  type: EDS\n  health_checks: [{timeout: 1s, interval: 1s, unhealthy_threshold: 1, \
                 healthy_threshold: 1, tcp_health_check: {}}]\n  \
                 eds_cluster_config: {eds_config: {path_config_source: {path: @DIR@/eds.yaml}}}",
            ),
        );
        world.write(
            "eds.yaml",
            &response(
                ENDPOINTS,
                "cluster_name: one\n  endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: \
                 {address: 127.0.0.1, port_value: 1}}}}]}]",
            ),
        );
        world.write("lds.yaml", &response(LISTENER, &listener("127.0.0.1", 0)));
        world.write(
            "rds.yaml",
            &response(
                ROUTES,
                "name: r\n  virtual_hosts: [{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, \
                 route: {cluster: one}}]}]",
            ),
        );
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        world.write(
            "sds.yaml",
            &response(
                SECRET,
                &format!(
                    "name: cert\n  tls_certificate: {{certificate_chain: {{inline_string: {certificate:?}}}, \
                     private_key: {{inline_string: {:?}}}}}",
                    key.serialize_pem()
                ),
            ),
        );
        world
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text.replace("@DIR@", &self.path().display().to_string())).unwrap();
    }

    fn check(&self, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_nuncio"))
            .args(["xds-check", "--timeout", "20", "--bootstrap"])
            .arg(self.path().join("bootstrap.yaml"))
            .args(more)
            .output()
            .unwrap()
    }

    /// Whether all is good, and the JSON.
    fn json(&self, more: &[&str]) -> (bool, Value) {
        let output = self.check(&[&["--output", "json"], more].concat());
        let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        assert!(output.stderr.is_empty(), "{output:?}");
        assert_eq!(output.status.code(), Some(if output.status.success() { 0 } else { 1 }));
        (output.status.success(), value)
    }
}

fn response(kind: &str, resource: &str) -> String {
    format!("version_info: \"7\"\nresources:\n- \"@type\": type.googleapis.com/{kind}\n  {resource}\n")
}

fn listener(address: &str, port: u16) -> String {
    format!(
        "name: l\n  address: {{socket_address: {{address: {address}, port_value: {port}}}}}\n  filter_chains:\n  \
         - transport_socket:\n      name: tls\n      typed_config:\n        \
         \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n        \
         common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: cert, sds_config: \
         {{path_config_source: {{path: @DIR@/sds.yaml}}}}}}]}}\n    filters:\n    - name: hcm\n      typed_config:\n        \
         \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n        \
         stat_prefix: a\n        \
         rds: {{route_config_name: r, config_source: {{path_config_source: {{path: @DIR@/rds.yaml}}}}}}\n        \
         http_filters:\n        - name: router\n          \
         typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"
    )
}

/// Type, name, version, verdict and error of each resource.
fn rows(value: &Value) -> Vec<[&str; 5]> {
    value["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| ["type", "name", "version", "verdict", "error"].map(|field| row[field].as_str().unwrap()))
        .collect()
}

#[test]
fn what_would_be_applied_is_accepted_and_no_socket_is_bound() {
    let world = World::new();
    // Bound by another: a process that binds would fail.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    world.write("lds.yaml", &response(LISTENER, &listener("127.0.0.1", taken.local_addr().unwrap().port())));
    let (good, value) = world.json(&[]);
    assert!(good, "{value}");
    let accepted = |kind, name| [kind, name, "7", "accepted", ""];
    assert_eq!(
        rows(&value),
        [
            accepted(CLUSTER, "one"),
            accepted(ENDPOINTS, "one"),
            accepted(LISTENER, "l"),
            accepted(ROUTES, "r"),
            accepted(SECRET, "cert")
        ]
    );
    let text = world.check(&[]);
    let text = String::from_utf8(text.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("TYPE ") && lines[0].ends_with("ERROR"), "{text}");
    assert!(lines[1].starts_with("Cluster ") && lines[1].ends_with("accepted"), "{text}");
    assert_eq!(lines[6], "5 accepted, 0 rejected, 0 missing");
}

#[test]
fn loads_are_not_reported() {
    let world = World::new();
    let balancer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    balancer.set_nonblocking(true).unwrap();
    let bootstrap = std::fs::read_to_string(world.path().join("bootstrap.yaml")).unwrap();
    let port = balancer.local_addr().unwrap().port();
    world.write(
        "bootstrap.yaml",
        &format!(
            "{bootstrap}cluster_manager: {{load_stats_config: {{api_type: GRPC, transport_api_version: V3, grpc_services: \
             [{{envoy_grpc: {{cluster_name: lrs}}}}]}}}}\nstatic_resources: {{clusters: [{{name: lrs, http2_protocol_options: \
             {{}}, load_assignment: {{cluster_name: lrs, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
             {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}}}]}}\n"
        ),
    );
    let (good, value) = world.json(&[]);
    assert!(good, "{value}");
    assert_eq!(balancer.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_runtime_layer_that_does_not_come_is_what_the_rest_waits_for() {
    let world = World::new();
    let bootstrap = std::fs::read_to_string(world.path().join("bootstrap.yaml")).unwrap();
    // Nobody listens any more.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    world.write(
        "bootstrap.yaml",
        &format!(
            "{bootstrap}layered_runtime: {{layers: [{{name: a, rtds_layer: {{name: a, rtds_config: {{initial_fetch_timeout: \
             0s, resource_api_version: V3, api_config_source: {{api_type: GRPC, transport_api_version: V3, grpc_services: \
             [{{google_grpc: {{target_uri: \"127.0.0.1:{gone}\", stat_prefix: x}}}}]}}}}}}}}]}}\n"
        ),
    );
    let (good, value) = world.json(&["--timeout", "1"]);
    assert!(!good, "{value}");
    assert!(value["error"].as_str().unwrap().contains("layers of the runtime have not come in time"), "{value}");
}

#[test]
fn what_would_be_refused_is_told_with_its_path() {
    let world = World::new();
    let good = response(LISTENER, &listener("127.0.0.1", 0));
    let bad = response(LISTENER, &listener("nowhere", 0).replace("name: l\n", "name: bad\n"));
    world.write("lds.yaml", &format!("{good}{}", bad.split_once("resources:\n").unwrap().1));
    let sds = std::fs::read_to_string(world.path().join("sds.yaml")).unwrap();
    world.write("sds.yaml", &sds.replace("name: cert", "name: other"));
    world.write("rds.yaml", &response(ROUTES, "name: r\n  virtual_hosts: [{name: v, domains: []}]"));
    let (good, value) = world.json(&[]);
    assert!(!good);
    let rows = rows(&value);
    let find = |name: &str, kind: &str| rows.iter().find(|row| row[0] == kind && row[1] == name).unwrap();
    assert_eq!(find("l", LISTENER)[3], "accepted");
    assert_eq!(find("bad", LISTENER)[3], "rejected");
    assert!(find("bad", LISTENER)[4].contains("malformed IP address: nowhere"), "{value}");
    assert!(find("bad", LISTENER)[4].contains("(in address.socket_address.address)"), "{value}");
    assert!(find("r", ROUTES)[3] == "rejected" && find("r", ROUTES)[4].contains("virtual_hosts[0].domains"), "{value}");
    assert_eq!(find("cert", SECRET)[3], "rejected");
    assert_eq!(find("cert", SECRET)[4], "Unexpected SDS secret (expecting cert): other");
    let output = world.check(&[]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(errors.lines().last(), Some("error: 3 accepted, 3 rejected, 0 missing"), "{errors}");
}

#[test]
fn a_file_that_is_none_is_refused() {
    let world = World::new();
    world.write("cds.yaml", "resources: 7\n");
    let (good, value) = world.json(&[]);
    assert!(!good);
    assert_eq!(rows(&value)[0][..4], [CLUSTER, "*", "", "rejected"]);
    assert!(rows(&value)[0][4].contains("resources"), "{value}");
    // That of listeners is looked at when they are asked for.
    std::fs::remove_file(world.path().join("lds.yaml")).unwrap();
    world.write("cds.yaml", "resources: []\n");
    let (good, value) = world.json(&[]);
    assert!(!good && rows(&value).is_empty());
    assert!(value["error"].as_str().unwrap().starts_with("dynamic_resources.lds_config: paths must refer"), "{value}");
    std::fs::remove_file(world.path().join("cds.yaml")).unwrap();
    let output = world.check(&["--output", "json"]);
    let report: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((output.status.code(), &report["errors"][0]["path"]), (Some(1), &"dynamic_resources.cds_config".into()));
}

#[test]
fn a_bootstrap_whose_files_of_resources_are_missing_does_not_start() {
    let world = World::new();
    let missing = "{resource_api_version: V3, path_config_source: {path: /nowhere/at/all}}";
    let listener = listener("127.0.0.1", 0).replace("{path_config_source: {path: @DIR@/rds.yaml}}", missing);
    let cluster = format!("name: c\n    type: EDS\n    eds_cluster_config: {{eds_config: {missing}}}");
    let listener = listener.replace('\n', "\n  ").replace("{path_config_source: {path: @DIR@/sds.yaml}}", missing);
    world.write(
        "bootstrap.yaml",
        &format!("node: {{id: test, cluster: test}}\nstatic_resources:\n  clusters:\n  - {cluster}\n  listeners:\n  - {listener}\n"),
    );
    for mode in ["validate", "serve"] {
        let output = Command::new(env!("CARGO_BIN_EXE_nuncio"))
            .args(["--mode", mode, "--output", "json", "-c"])
            .arg(world.path().join("bootstrap.yaml"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        let report: Value =
            text.lines().find_map(|line| serde_json::from_str(line).ok()).unwrap_or_else(|| panic!("{text}"));
        let errors = report["errors"].as_array().unwrap();
        let words = "paths must refer to an existing path in the system: '/nowhere/at/all' does not exist";
        assert!(errors.iter().all(|error| error["message"] == words), "{report:#}");
        let paths: Vec<&str> = errors.iter().map(|error| error["path"].as_str().unwrap()).collect();
        let chain = "static_resources.listeners[0].filter_chains[0]";
        let secret = "typed_config.common_tls_context.tls_certificate_sds_secret_configs[0].sds_config";
        assert_eq!(
            paths,
            [
                "static_resources.clusters[0].eds_cluster_config.eds_config",
                &format!("{chain}.transport_socket.{secret}"),
                &format!("{chain}.filters[0].typed_config.rds.config_source"),
            ]
        );
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn a_control_plane_that_is_not_there_is_named_when_the_time_is_over() {
    let world = World::new();
    // Nobody listens any more.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    world.write(
        "bootstrap.yaml",
        &format!(
            "node: {{id: test, cluster: test}}\ndynamic_resources:\n  lds_config: {{resource_api_version: V3, ads: {{}}}}\n  \
             ads_config: {{api_type: GRPC, transport_api_version: V3, grpc_services: [{{google_grpc: \
             {{target_uri: \"127.0.0.1:{gone}\", stat_prefix: x}}}}]}}\n"
        ),
    );
    let (good, value) = world.json(&["--timeout", "1"]);
    assert!(!good);
    assert_eq!(rows(&value)[0][..4], [LISTENER, "*", "", "missing"]);
    let source = value["unreachable"][0]["source"].as_str().unwrap();
    assert!(source.contains(&format!("127.0.0.1:{gone}")), "{value}");
    assert!(value["summary"].as_str().unwrap().contains("cannot be reached: "), "{value}");
}

#[test]
fn a_bootstrap_that_fetches_nothing_is_good_and_a_bad_one_is_not() {
    let world = World::new();
    world.write("bootstrap.yaml", "node: {id: test, cluster: test}\n");
    let (good, value) = world.json(&[]);
    assert!(good);
    assert_eq!(value["summary"], "nothing is fetched: the bootstrap names no source of resources");
    world.write("bootstrap.yaml", "nodes: {}\n");
    let output = world.check(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("nodes"));
}
