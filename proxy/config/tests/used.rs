//! What the decoded configuration says is used by the floors above: a field that no code reads has no effect, whatever the
//! support table promises.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Fields that nothing reads yet; the support table says so of each. Four are different: decoding itself goes by
/// `validate_clusters`, a method of this crate by `ip_version`, properties are always sorted, and `cluster_name` is for people.
const UNUSED: &[&str] = &[
    "append_local_overload",
    "bootstrap_extensions",
    "cluster_name",
    "decorator_operation",
    "default_socket_options",
    "header_prefix",
    "ip_version",
    "overload_manager",
    "profile_path",
    "request_id_pack_trace_reason",
    "sort_properties",
    "stats_sinks",
    "trace_sampled",
    "tracing",
    "validate_clusters",
];

fn sources(folder: &Path, out: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, out)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
    Ok(())
}

/// The fields of the structs in `text`.
fn fields(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("    pub ")?.split_once(": "))
        .filter(|(name, _)| !name.contains('('))
        .map(|(name, _)| name)
        .collect()
}

fn reads(text: &str, field: &str) -> bool {
    text.match_indices(&format!(".{field}")).any(|(at, found)| {
        let next = text[at + found.len()..].chars().next();
        !next.is_some_and(|next| next.is_alphanumeric() || next == '_' || next == '(')
    }) || text.match_indices(field).any(|(at, found)| {
        // A pattern that takes the value apart: `Policy { field, .. }`.
        let before = text[..at].trim_end().chars().next_back();
        let after = text[at + found.len()..].chars().next();
        matches!(before, Some('{' | ',')) && matches!(after, Some(',' | ' '))
    })
}

#[test]
fn every_field_is_read_above_the_configuration() {
    let proxy = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for floor in ["net", "http", "upstream", "extensions", "server"] {
        sources(&proxy.join(floor).join("src"), &mut files).unwrap();
    }
    let texts: Vec<String> = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let parts = [
        "access_log.rs",
        "bootstrap.rs",
        "cluster.rs",
        "cluster/client_weights.rs",
        "cluster/destinations.rs",
        "cluster/dynamic_forward_proxy.rs",
        "cluster/health_check.rs",
        "cluster/outlier.rs",
        "cluster/subset.rs",
        "config_source.rs",
        "hcm.rs",
        "hcm/scoped_routes.rs",
        "listener.rs",
        "proxy_protocol.rs",
        "route.rs",
        "route/internal_redirect.rs",
        "route/retry.rs",
        "router.rs",
        "tcp_proxy.rs",
        "tls.rs",
    ];
    let config: String =
        parts.iter().map(|part| fs::read_to_string(proxy.join("config/src").join(part)).unwrap()).collect();
    let mut unread: Vec<&str> =
        fields(&config).into_iter().filter(|field| !texts.iter().any(|text| reads(text, field))).collect();
    unread.sort_unstable();
    unread.dedup();
    let mut expected = UNUSED.to_vec();
    expected.sort_unstable();
    assert_eq!(unread, expected);
}
