//! What a node says of itself: that Nuncio tells control planes of every extension that it has, under Envoy's names, and of
//! none that it has not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use nuncio_config::support::Table;
use nuncio_tests::control_plane::{ControlPlane, Request};
use nuncio_tests::find;
use serde_json::json;

use crate::spawned::Spawned;

const PATIENCE: Duration = Duration::from_secs(30);

/// Categories and names, with the messages of each.
type Extensions = BTreeMap<(String, String), BTreeSet<String>>;

#[test]
fn a_node_has_the_extensions_that_there_are_under_envoys_names() {
    let Some(envoy) = find::envoy_or_loud() else { return };
    let nuncio = find::nuncio().unwrap_or_else(|e| panic!("no Nuncio: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let told = |binary| runtime.block_on(node_of(binary)).unwrap_or_else(|e| panic!("{e:#}"));
    let (theirs, ours) = (told(envoy), told(nuncio));
    assert_eq!(
        (&ours.id, &ours.cluster, &ours.user_agent_name),
        (&theirs.id, &theirs.cluster, &theirs.user_agent_name)
    );
    assert_eq!(ours.client_features, theirs.client_features);
    assert_eq!(version(&ours), version(&theirs));
    let (theirs, ours) = (extensions(&theirs), extensions(&ours));
    for (extension, messages) in &ours {
        let envoy = theirs.get(extension).unwrap_or_else(|| panic!("Envoy has no {extension:?}"));
        assert!(messages.is_subset(envoy), "{extension:?}: {messages:?} are not of {envoy:?}");
    }
    // What the support table has, and is an extension of Envoy's, is there.
    let known = |message: &&String| Table::get().message(message).is_some();
    let mut untold = Vec::new();
    for (extension, messages) in &theirs {
        let told = ours.get(extension);
        let missing = messages.iter().filter(known).filter(|message| !told.is_some_and(|told| told.contains(*message)));
        untold.extend(missing.map(|message| (extension, message)));
    }
    assert!(untold.is_empty(), "not told: {untold:#?}");
}

fn extensions(node: &Node) -> Extensions {
    let of = |e: &envoy_types::pb::envoy::config::core::v3::Extension| {
        ((e.category.clone(), e.name.clone()), e.type_urls.iter().cloned().collect())
    };
    let all: Extensions = node.extensions.iter().map(of).collect();
    assert_eq!(all.len(), node.extensions.len(), "each once");
    all
}

fn version(node: &Node) -> Option<(u32, u32, u32)> {
    let Some(UserAgentVersionType::UserAgentBuildVersion(build)) = &node.user_agent_version_type else { return None };
    build.version.as_ref().map(|v| (v.major_number, v.minor_number, v.patch))
}

/// The node in the first request of a proxy.
async fn node_of(binary: PathBuf) -> Result<Node> {
    let dir = tempfile::tempdir()?;
    let mut server = ControlPlane::start().await?;
    let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": server.address.port()}});
    let bootstrap = json!({
        "node": {"id": "test", "cluster": "test"},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC", "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {"clusters": [{
            "name": "xds", "type": "STATIC", "connect_timeout": "2s",
            "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }},
        }]},
    });
    let asked = Spawned::start(&binary, dir.path(), &bootstrap, &[])?
        .during(async { tokio::time::timeout(PATIENCE, server.asked()).await?.context("nothing is asked") })
        .await?;
    let Request::Sotw(request) = asked.request else { bail!("{asked:?}") };
    request.node.context("no node")
}
