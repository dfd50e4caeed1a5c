//! What the ingest accepts, as measured on Envoy, and what comes out of it.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use envoy_types::pb::google::protobuf::Any;

fn json_of(loaded: &Loaded) -> Value {
    descriptors::to_json(descriptors::BOOTSTRAP, &loaded.bytes)
}

fn read(text: &str, syntax: Syntax) -> Value {
    match load_text("a", text, syntax, false) {
        Ok(loaded) => json_of(&loaded),
        Err(report) => panic!("{text}\n{report}"),
    }
}

fn yaml(text: &str) -> Value {
    read(text, Syntax::Yaml)
}

fn cluster(fields: &str) -> Value {
    let mut value = yaml(&format!("static_resources: {{clusters: {{name: a, {fields}}}}}\n"));
    let mut cluster = value["static_resources"]["clusters"][0].take();
    cluster.as_object_mut().unwrap().remove("name");
    cluster
}

/// A file of the test's own, removed with the value.
struct File(PathBuf);

impl File {
    fn new(name: &str, bytes: &[u8]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("nuncio-ingest-{}-{count}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        File(path)
    }

    fn load(&self) -> Result<Loaded, Report> {
        load(&Source { path: Some(&self.0), ..Source::default() })
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().unwrap_or(&self.0));
    }
}

#[test]
fn one_object_stands_for_a_list_and_nested_lists_are_flattened() {
    let expected = json!({"static_resources": {"clusters": [{"name": "a"}, {"name": "b"}]}});
    assert_eq!(yaml("static_resources: {clusters: [[{name: a}], {name: b}]}\n"), expected);
    let expected = json!({"static_resources": {"clusters": [{"name": "a"}]}});
    assert_eq!(yaml("static_resources: {clusters: {name: a}}\n"), expected);
}

#[test]
fn both_cases_of_field_names_are_read_and_merged() {
    let text = "staticResources: {clusters: {name: a, connectTimeout: 1s, lb_policy: RANDOM}}\n";
    let expected =
        json!({"static_resources": {"clusters": [{"name": "a", "connect_timeout": "1s", "lb_policy": "RANDOM"}]}});
    assert_eq!(yaml(text), expected);
    assert_eq!(
        cluster("connect_timeout: {seconds: 1}, connectTimeout: {nanos: 5000000}"),
        json!({"connect_timeout": "1.005s"})
    );
}

#[test]
fn durations_wrappers_and_enums_have_several_forms() {
    assert_eq!(cluster("connect_timeout: 0.25s"), json!({"connect_timeout": "0.250s"}));
    assert_eq!(cluster("connect_timeout: {seconds: \"1\", nanos: 500000000}"), json!({"connect_timeout": "1.500s"}));
    for form in ["5", "\"5\"", "{value: 5}", "5.0", "0x5", "5e0"] {
        let expected = json!({"per_connection_buffer_limit_bytes": 5});
        assert_eq!(cluster(&format!("per_connection_buffer_limit_bytes: {form}")), expected, "{form}");
    }
    for form in ["RANDOM", "random", "Random", "3", "\"3\""] {
        assert_eq!(cluster(&format!("lb_policy: {form}")), json!({"lb_policy": "RANDOM"}), "{form}");
    }
    for form in ["yes", "\"yes\"", "true", "\"1\"", "ON", "{value: true}"] {
        assert_eq!(
            cluster(&format!("wait_for_warm_on_init: {form}")),
            json!({"wait_for_warm_on_init": true}),
            "{form}"
        );
    }
}

#[test]
fn null_is_the_absence_of_a_value() {
    assert_eq!(yaml("node:\nadmin: ~\nstatic_resources: {clusters: null}\n"), json!({"static_resources": {}}));
    assert_eq!(cluster("type: STATIC, cluster_type: "), json!({"type": "STATIC"}));
}

#[test]
fn free_form_structs_keep_the_types_that_envoy_gives_them() {
    let text = "node: {metadata: {a: 1e3, b: 5, c: 99999999999, d: 0x10, e: ~, f: [y, {g: \"y\"}], a-b: x}}\n";
    let metadata =
        json!({"a": "1e3", "b": 5.0, "c": "99999999999", "d": 16.0, "e": null, "f": [true, {"g": "y"}], "a-b": "x"});
    assert_eq!(yaml(text), json!({"node": {"metadata": metadata}}));
    let text = r#"{"node": {"metadata": {"a": 1e3, "b": 99999999999}}}"#;
    assert_eq!(read(text, Syntax::Json), json!({"node": {"metadata": {"a": 1000.0, "b": 99_999_999_999.0}}}));
}

#[test]
fn keys_that_stand_twice_count_last_in_yaml_and_merge_in_json() {
    let loaded = load_text("a", "node: {id: a, id: b}\n", Syntax::Yaml, false).unwrap();
    assert_eq!(json_of(&loaded), json!({"node": {"id": "b"}}));
    assert_eq!(loaded.warnings.len(), 1);
    assert_eq!(loaded.warnings[0].message, "the key 'id' stands twice in this mapping; the last one counts");
    let text = r#"{"node": {"id": "a"}, "node": {"cluster": "c"}, "static_resources": {"clusters": {"name": "a"}, "clusters": [{"name": "b"}]}}"#;
    let expected =
        json!({"node": {"id": "a", "cluster": "c"}, "static_resources": {"clusters": [{"name": "a"}, {"name": "b"}]}});
    assert_eq!(read(text, Syntax::Json), expected);
}

const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

fn filter(typed_config: &str) -> Value {
    let mut value = yaml(&format!(
        "static_resources: {{listeners: {{address: {{pipe: {{path: /x}}}}, filter_chains: {{filters: {{name: f, typed_config: {typed_config}}}}}}}}}\n"
    ));
    value["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"].take()
}

#[test]
fn a_typed_struct_becomes_the_message_that_it_names() {
    let expected = json!({"@type": TCP_PROXY, "stat_prefix": "a", "cluster": "b"});
    assert_eq!(filter(&format!("{{\"@type\": {TCP_PROXY}, stat_prefix: a, cluster: b}}")), expected);
    for name in ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"] {
        let text = format!("{{\"@type\": a/{name}, type_url: {TCP_PROXY}, value: {{statPrefix: a, cluster: b}}}}");
        assert_eq!(filter(&text), expected, "{name}");
    }
    let opaque = filter("{\"@type\": a/xds.type.v3.TypedStruct, type_url: a/unknown, value: {x: 1}}");
    assert_eq!(opaque, json!({"@type": "a/xds.type.v3.TypedStruct", "type_url": "a/unknown", "value": {"x": 1.0}}));
}

#[test]
fn a_typed_struct_from_the_wire_is_unwrapped_with_the_same_rules() {
    let text = "{\"@type\": a/xds.type.v3.TypedStruct, type_url: a/unknown, value: {statPrefix: a, cluster: b}}";
    let descriptor = descriptors::message("google.protobuf.Any").unwrap();
    let any = Any::decode(parse(&descriptor, text, Syntax::Yaml, 0, false).bytes.as_slice()).unwrap();
    let mut unknown = Vec::new();
    let path = FieldPath::root().field("typed_config");
    assert!(unwrap_typed_struct(&any, &path, false, &mut unknown).unwrap().is_none(), "an unknown type stays opaque");
    let mut bytes = any.value.clone();
    let retype = |bytes: &mut Vec<u8>, url: &str| {
        // A second type_url in the encoding replaces the first.
        prost::encoding::string::encode(1, &url.to_owned(), bytes);
    };
    retype(&mut bytes, TCP_PROXY);
    let typed = Any { type_url: any.type_url.clone(), value: bytes };
    let message = unwrap_typed_struct(&typed, &path, false, &mut unknown).unwrap().unwrap();
    assert_eq!(message.type_url, TCP_PROXY);
    let json = descriptors::to_json(descriptors::type_name(TCP_PROXY), &message.value);
    assert_eq!(json, json!({"stat_prefix": "a", "cluster": "b"}));
    let mut bytes = any.value;
    retype(&mut bytes, "a/envoy.config.cluster.v3.Cluster");
    let errors =
        unwrap_typed_struct(&Any { type_url: any.type_url, value: bytes }, &path, false, &mut unknown).unwrap_err();
    assert!(errors.iter().any(|e| e.path.to_string() == "typed_config.statPrefix"), "{errors:?}");
}

#[test]
fn the_overlay_is_merged_over_the_file() {
    let file = File::new("a.yaml", b"node: {id: a, cluster: c}\nstatic_resources: {clusters: {name: a}}\n");
    let overlay = r#"{"node": {"id": "b"}, "static_resources": {"clusters": [{"name": "b"}]}}"#;
    let loaded = load(&Source { path: Some(&file.0), overlay_yaml: Some(overlay), allow_unknown: false }).unwrap();
    let expected = json!({
        "node": {"id": "b", "cluster": "c"},
        "static_resources": {"clusters": [{"name": "a"}, {"name": "b"}]},
    });
    assert_eq!(json_of(&loaded), expected);
    let broken = "static_resources: {clusters: [{name: ''}]}\nnode: {idd: x}\n";
    let report = load(&Source { path: Some(&file.0), overlay_yaml: Some(broken), allow_unknown: false }).unwrap_err();
    let places: Vec<_> = report.errors.iter().filter_map(|e| e.position.map(|p| (p.source, p.line))).collect();
    assert_eq!(places, [(1, 1), (1, 2)], "{report}");
    assert!(report.to_text(false).contains("--config-yaml:1:32"), "{report}");
}

#[test]
fn the_ending_of_its_name_says_how_a_file_is_written() {
    let node = json!({"node": {"id": "a"}});
    let bytes = Bootstrap {
        node: Some(envoy_types::pb::envoy::config::core::v3::Node { id: "a".into(), ..Default::default() }),
        ..Default::default()
    }
    .encode_to_vec();
    let files: [(&str, &[u8]); 8] = [
        ("a.yaml", b"node: {id: a}\n"),
        ("a.YML", b"node: {id: a}\n"),
        ("a.json", b"{\"node\": {\"id\": \"a\",}}"),
        ("a.pb", &bytes),
        ("a.pb_text", b"node { id: \"a\" }\n"),
        ("json", b" {\"node\": {\"id\": \"a\"}}"),
        ("yaml", b"node: {id: a}\n"),
        ("bom.yaml", b"\xef\xbb\xbfnode: {id: a}\n"),
    ];
    for (name, text) in files {
        let file = File::new(name, text);
        match file.load() {
            Ok(loaded) => assert_eq!(json_of(&loaded), node, "{name}"),
            Err(report) => panic!("{name}: {report}"),
        }
    }
    assert!(File::new("b.pb", b"\xff\xff").load().is_err());
    assert!(File::new("latin.yaml", b"node: {id: \xe4}\n").load().is_err());
    let unknown = File::new("c.pb", &[0xf8, 0xff, 0x01, 0x01]).load().unwrap_err();
    assert!(unknown.to_text(false).contains("has unknown fields"), "{unknown}");
    assert!(load(&Source { path: Some(Path::new("/no/such/file.yaml")), ..Source::default() }).is_err());
    assert!(load(&Source::default()).is_err());
}

#[cfg(unix)]
#[test]
fn a_fifo_is_read_once_to_its_end() {
    let file = File::new("unused", b"");
    let fifo = file.0.with_file_name("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let writer = {
        let fifo = fifo.clone();
        std::thread::spawn(move || {
            let mut pipe = fs::OpenOptions::new().write(true).open(fifo).unwrap();
            pipe.write_all(b"{\"node\":").unwrap();
            pipe.flush().unwrap();
            pipe.write_all(b" {\"id\": \"a\"}}").unwrap();
        })
    };
    let loaded = load(&Source { path: Some(&fifo), ..Source::default() }).unwrap();
    writer.join().unwrap();
    assert_eq!(json_of(&loaded), json!({"node": {"id": "a"}}));
}

#[test]
fn unknown_fields_are_passed_over_and_remembered_where_they_are_allowed() {
    let text = "nod: 1\nstatic_resources: {clusters: {name: a, lb_policy: BEST, x: {y: z}}}\n";
    assert!(load_text("a", text, Syntax::Yaml, false).is_err());
    let loaded = load_text("a", text, Syntax::Yaml, true).unwrap();
    let unknown: Vec<String> = loaded.unknown.iter().map(|field| field.path.to_string()).collect();
    assert_eq!(unknown, ["nod", "static_resources.clusters[0].lb_policy", "static_resources.clusters[0].x"]);
}

#[test]
fn ignored_and_deprecated_fields_are_listed_with_their_paths() {
    let text = "static_resources: {clusters: {name: a, common_lb_config: {override_host_status: {}}, http2_protocol_options: {}}}\n";
    let loaded = load_text("a", text, Syntax::Yaml, false).unwrap();
    let ignored: Vec<String> = loaded.ignored.iter().map(|field| field.path.to_string()).collect();
    assert_eq!(ignored, ["static_resources.clusters[0].common_lb_config.override_host_status"]);
    assert!(!loaded.ignored[0].reason.is_empty());
    let deprecated: Vec<String> = loaded.deprecated.iter().map(ToString::to_string).collect();
    assert_eq!(deprecated, ["static_resources.clusters[0].http2_protocol_options"]);
}

#[test]
fn a_small_text_cannot_become_a_huge_message() {
    let mut text = String::from("!ignore a0: &a0 {x: {}}\n");
    for level in 1..40 {
        let items = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("!ignore a{level}: &a{level} {{x: [{items}]}}\n"));
    }
    // Forty levels of ten aliases each would be 10^40 values.
    text.push_str("node: {metadata: *a39}\n");
    let report = load_text("a", &text, Syntax::Yaml, false).unwrap_err();
    assert!(report.errors[0].message.contains("nested deeper") && report.errors.len() <= 1_000, "{report}");
    let mut text = String::from("!ignore a0: &a0 {x: {}}\n");
    for level in 1..8 {
        let items = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("!ignore a{level}: &a{level} [{items}]\n"));
    }
    text.push_str("node: {metadata: {a: *a7}}\n");
    let report = load_text("a", &text, Syntax::Yaml, false).unwrap_err();
    assert_eq!(report.errors.last().map(|e| e.message.as_str()), Some("aliases make the configuration too large"));
}

#[test]
fn a_configuration_of_ten_thousand_clusters_loads() {
    let mut text = String::from("static_resources:\n  clusters:\n");
    for i in 0..10_000 {
        text.push_str(&format!(
            "  - name: cluster_{i}\n    connect_timeout: 1s\n    load_assignment: {{cluster_name: c}}\n"
        ));
    }
    let loaded = load_text("a", &text, Syntax::Yaml, false).unwrap();
    assert_eq!(loaded.bootstrap.static_resources.map(|s| s.clusters.len()), Some(10_000));
    text.push_str("  - name: ''\n");
    let report = load_text("a", &text, Syntax::Yaml, false).unwrap_err();
    assert_eq!(report.errors[0].path.to_string(), "static_resources.clusters[10000].name");
    assert_eq!(report.errors[0].position.map(|p| p.line), Some(30_003));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_makes_the_ingest_panic(text in "\\PC*") {
        let _ = load_text("a", &text, Syntax::Yaml, false).map_err(|report| report.to_text(false));
        let _ = load_text("a", &text, Syntax::Json, true).map_err(|report| report.to_text(false));
    }

    #[test]
    fn no_text_that_looks_like_a_configuration_makes_the_ingest_panic(
        text in "(node|admin|static_resources|clusters|name|'@type'|\\[|\\]|\\{|\\}|:|,|-|\\*a|&a|!ignore|\"|\n|  | |1|a|é|\\\\){0,60}",
    ) {
        let _ = load_text("a", &text, Syntax::Yaml, true).map_err(|report| report.to_text(false));
        let _ = load_text("a", &text, Syntax::Json, false).map_err(|report| report.to_text(false));
    }

    #[test]
    fn no_bytes_make_the_inspection_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let descriptor = descriptors::message(descriptors::BOOTSTRAP).unwrap();
        let _ = inspect(&descriptor, &bytes, false);
    }

    #[test]
    fn no_damage_to_a_good_file_makes_the_ingest_panic(at in 0_usize..600, with in any::<u8>()) {
        let mut text = b"static_resources:\n  clusters:\n  - name: a\n    connect_timeout: 1s\n    lb_policy: RANDOM\n    load_assignment:\n      cluster_name: a\n      endpoints:\n      - lb_endpoints:\n        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 80}}}\n".to_vec();
        let at = at % text.len();
        text[at] = with;
        let text = String::from_utf8_lossy(&text).into_owned();
        let _ = load_text("a", &text, Syntax::Yaml, false).map_err(|report| report.to_text(false));
    }
}
