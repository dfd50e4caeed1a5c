//! Configurations that nobody should run: each entry of `refused.yaml` is one mistake in a configuration that is good
//! otherwise. Envoy and Nuncio both refuse it; Nuncio names the field. Entries that are `accepted` only look like mistakes:
//! both take them.

use std::path::Path;
use std::process::Command;

use nuncio_tests::{find, yaml};
use serde_json::{Map, Value, json};

/// What an entry may put in place of, or add to, the configuration that is good.
const PARTS: [&str; 10] =
    ["match", "action", "route", "host", "routes", "manager", "listener", "cluster", "policy", "bootstrap"];

fn entries() -> Vec<Map<String, Value>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("refused.yaml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let list = yaml::read(&text).unwrap_or_else(|e| panic!("{e:#}"));
    let list = list.as_array().expect("a list of entries");
    assert!(list.len() >= 250, "only {} entries", list.len());
    list.iter().map(|entry| entry.as_object().expect("an entry").clone()).collect()
}

/// Fields of `more` over those of `base`; a null takes a field away.
fn merged(base: Value, more: Option<&Value>) -> Value {
    let (Value::Object(mut base), Some(Value::Object(more))) = (base.clone(), more) else { return base };
    for (name, value) in more {
        match value {
            Value::Null => drop(base.remove(name)),
            value => drop(base.insert(name.clone(), value.clone())),
        }
    }
    base.into()
}

fn configuration(entry: &Map<String, Value>) -> Value {
    let part = |name: &str| entry.get(name);
    let extension = |kind: &str| format!("type.googleapis.com/envoy.extensions.{kind}");
    let action = part("action").cloned().unwrap_or_else(|| json!({"cluster": "up"}));
    let matches = part("match").cloned().unwrap_or_else(|| json!({"prefix": "/"}));
    let route = part("route").cloned().unwrap_or_else(|| json!({"match": matches, "route": action}));
    let host = merged(json!({"name": "v", "domains": ["*"], "routes": [route]}), part("host"));
    let routes = merged(json!({"name": "rc", "virtual_hosts": [host]}), part("routes"));
    let manager = json!({
        "@type": extension("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "h",
        "route_config": routes,
        "http_filters": [
            {"name": "hm", "typed_config": {"@type": extension("filters.http.header_mutation.v3.HeaderMutation")}},
            {"name": "r", "typed_config": {"@type": extension("filters.http.router.v3.Router")}},
        ],
    });
    let manager = merged(manager, part("manager"));
    let address = |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let hosts = json!([{"lb_endpoints": [{"endpoint": {"address": address(9)}}]}]);
    let mut cluster = json!({
        "name": "up",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "up", "endpoints": hosts},
    });
    if let Some(policy) = part("policy") {
        let policy = json!({"policies": [{"typed_extension_config": {"name": "p", "typed_config": policy}}]});
        cluster = merged(cluster, Some(&json!({"load_balancing_policy": policy})));
    }
    let cluster = merged(cluster, part("cluster"));
    let listener = json!({
        "name": "l",
        "address": address(0),
        "filter_chains": [{"filters": [{"name": "h", "typed_config": manager}]}],
    });
    let listener = merged(listener, part("listener"));
    merged(json!({"static_resources": {"listeners": [listener], "clusters": [cluster]}}), part("bootstrap"))
}

/// Whether the configuration is good for `binary`, and what it says.
fn validate(binary: &Path, file: &Path, more: &[&str]) -> (bool, String) {
    let run = Command::new(binary)
        .args(["--mode", "validate", "-l", "error", "-c"])
        .arg(file)
        .args(more)
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
    (run.status.success(), String::from_utf8_lossy(&run.stderr).into_owned())
}

#[test]
fn what_is_good_otherwise_is_good() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("good.json");
    std::fs::write(&file, configuration(&Map::new()).to_string()).unwrap();
    let nuncio = find::nuncio().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(validate(&nuncio, &file, &[]), (true, String::new()));
    if let Some(envoy) = find::envoy_or_loud() {
        assert!(validate(&envoy, &file, &["--disable-hot-restart"]).0);
    }
}

#[test]
fn what_is_fetched_needs_a_named_node_in_envoy_alone() {
    let folder = tempfile::tempdir().unwrap();
    let clusters = folder.path().join("clusters.json");
    std::fs::write(&clusters, r#"{"version_info": "1", "resources": []}"#).unwrap();
    let dynamic = json!({"cds_config": {"path_config_source": {"path": clusters}}});
    let entry = json!({"bootstrap": {"dynamic_resources": dynamic}});
    let file = folder.path().join("nameless.json");
    std::fs::write(&file, configuration(entry.as_object().unwrap()).to_string()).unwrap();
    let nuncio = find::nuncio().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(validate(&nuncio, &file, &[]), (true, String::new()));
    if let Some(envoy) = find::envoy_or_loud() {
        let (good, said) = validate(&envoy, &file, &["--disable-hot-restart"]);
        assert!(!good && said.contains("node 'id' and 'cluster' are required"), "{said}");
    }
}

#[test]
fn both_agree_and_nuncio_says_where_the_mistake_is() {
    let folder = tempfile::tempdir().unwrap();
    let nuncio = find::nuncio().unwrap_or_else(|e| panic!("{e}"));
    let envoy = find::envoy_or_loud();
    let mut wrong = Vec::new();
    for (number, entry) in entries().iter().enumerate() {
        let accepted = entry.contains_key("accepted");
        let what = entry[if accepted { "accepted" } else { "refused" }].as_str().expect("what it is");
        let known =
            |name: &String| matches!(name.as_str(), "refused" | "accepted" | "at") || PARTS.contains(&name.as_str());
        assert!(entry.keys().all(known), "{what}: an unknown part");
        let file = folder.path().join(format!("{number}.json"));
        std::fs::write(&file, configuration(entry).to_string()).unwrap();
        if let Some(envoy) = &envoy
            && validate(envoy, &file, &["--disable-hot-restart"]).0 != accepted
        {
            wrong.push(format!("{what}: not so with Envoy"));
        }
        if accepted {
            let (good, said) = validate(&nuncio, &file, &[]);
            if !good {
                wrong.push(format!("{what}: refused\n{said}"));
            }
            continue;
        }
        let at = entry["at"].as_str().expect("where");
        let (good, said) = validate(&nuncio, &file, &[]);
        let named = said.lines().any(|line| line.trim_start().starts_with("= note: in ") && line.ends_with(at));
        if good || !named {
            wrong.push(format!("{what}: not refused at {at}\n{said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn all_mistakes_are_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.json");
    let action = json!({"weighted_clusters": {"clusters": [{"name": "up", "weight": 0}]}, "prefix_rewrite": "/a",
        "regex_rewrite": {"pattern": {"regex": "("}, "substitution": ""}});
    let entry = json!({
        "match": {"safe_regex": {"regex": "[a"}},
        "action": action,
        "host": {"request_mirror_policies": [{"cluster": "missing"}], "request_headers_to_remove": [":path"]},
        "cluster": {
            "lb_subset_config": {"subset_selectors": [{"keys": ["a"], "fallback_policy": "KEYS_SUBSET"}]},
            "outlier_detection": {"base_ejection_time": "9s", "max_ejection_time": "1s"},
        },
    });
    std::fs::write(&file, configuration(entry.as_object().unwrap()).to_string()).unwrap();
    let nuncio = find::nuncio().unwrap_or_else(|e| panic!("{e}"));
    let (good, said) = validate(&nuncio, &file, &[]);
    assert!(!good);
    for at in [
        ".match.safe_regex.regex",
        ".route.weighted_clusters",
        ".request_mirror_policies[0].cluster",
        ".request_headers_to_remove[0]",
        ".subset_selectors[0]",
        ".outlier_detection",
    ] {
        assert!(said.lines().any(|line| line.contains("= note: in ") && line.contains(at)), "{at} in\n{said}");
    }
}
