//! Real resources of control planes against all that becomes of a fetched resource, short of sockets.
//!
//! They are not part of the repository: `CORPORA` names the folder with `resources/`, where there is one.

use super::decode::tests::{resource, server_of};
use super::decode::{Decoder, fingerprint, text};
use crate::init::InitTargets;
use crate::server::Server;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use nuncio_config::corpus::{self, Content};
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use xds_client::{Resource, TypeUrl};

/// Takes a resource as the handlers do.
fn apply(server: &Arc<Server>, decoder: &Decoder, type_url: &TypeUrl, body: Vec<u8>) -> Result<(), String> {
    let resource = resource("r", type_url.clone(), body);
    if *type_url == TypeUrl::CLUSTER {
        let config = Arc::new(decoder.cluster(&resource)?);
        let name = config.name.clone();
        let added = server.context.clusters.add_or_update(config, fingerprint(&resource.body));
        server.context.clusters.remove(&name);
        added.map(|_| ()).map_err(|error| error.to_string())
    } else if *type_url == TypeUrl::CLUSTER_LOAD_ASSIGNMENT {
        decoder.endpoints(&resource).map(|_| ())
    } else if *type_url == TypeUrl::ROUTE_CONFIGURATION {
        let routes = server.context.routes.get("r", &bytes::Bytes::new(), "").ok_or("no table")?;
        routes.set(Arc::new(decoder.routes(&resource)?), None).map_err(|errors| text(&errors))
    } else if *type_url == TypeUrl::LISTENER {
        let config = Arc::new(decoder.listener(&resource)?);
        let mut missing = String::new();
        loop {
            let built = crate::listeners::build::listener(&config, &server.context, &InitTargets::default());
            let Err(errors) = built else { return Ok(()) };
            let errors = text(&errors);
            // Its control plane sends the clusters of log services beside it, in files of their own.
            match errors.split("Unknown gRPC client cluster '").nth(1).and_then(|rest| rest.split('\'').next()) {
                Some(name) if name != missing => missing = name.to_owned(),
                _ => return Err(errors),
            }
            server.context.clusters.add_or_update(Arc::new(decoder.cluster(&log_service(&missing))?), 0).unwrap();
        }
    } else {
        Err(format!("resources of type {type_url} have no way here"))
    }
}

/// A cluster without hosts.
fn log_service(name: &str) -> Resource {
    let cluster = Cluster { name: name.to_owned(), ..Cluster::default() };
    resource(name, TypeUrl::CLUSTER, cluster.encode_to_vec())
}

/// The type or name of the extension in an error that says that it is missing.
fn missing(error: &str) -> Option<&str> {
    if !error.contains("is not implemented") && !error.contains("is not supported yet") {
        return None;
    }
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_');
    let mut names = error.split(|c| !inside(c)).map(|name| name.trim_matches('.'));
    let types = ["envoy.", "xds.", "udpa."];
    names.rfind(|name| types.iter().any(|package| name.starts_with(package)))
}

#[test]
fn real_resources_are_taken_or_refused_for_an_extension_that_is_named() {
    let Some(corpora) = std::env::var_os("CORPORA") else {
        eprintln!("NOT TESTED: CORPORA names no folder with the resources of real control planes");
        return;
    };
    let outcomes = corpus::check(&Path::new(&corpora).join("resources"), "/certs").unwrap();
    assert!(!outcomes.is_empty(), "there are no resources");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let (_runtime, _local) = (runtime.enter(), local.enter());
    let server = server_of(
        "node: {id: a, cluster: b}\n\
         dynamic_resources: {ads_config: {api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: ads}}]}}\n\
         static_resources: {clusters: [{name: ads, typed_extension_protocol_options: \
         {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': \
         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
         explicit_http_config: {http2_protocol_options: {}}}}}]}\n",
        &[],
    );
    let decoder = Decoder::new(&server);
    let (mut accepted, mut refused) = (0, Vec::new());
    let mut not_yet: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in outcomes {
        let file = outcome.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let errors: Vec<String> = match outcome.content {
            Content::Resources(type_url, resources) => {
                let type_url = TypeUrl::new(&type_url);
                let each = resources.into_iter().map(|body| apply(&server, &decoder, &type_url, body));
                each.filter_map(Result::err).collect()
            }
            Content::Bootstrap(_) => vec!["not a file of resources".to_owned()],
            Content::Refused(report) => report.errors.iter().map(ToString::to_string).collect(),
        };
        // One reason may have a semicolon of its own.
        let errors: Vec<String> = errors.into_iter().map(|e| e.replace("; this ", ", this ")).collect();
        let names: Vec<Option<&str>> = errors.iter().flat_map(|e| e.split("; ")).map(missing).collect();
        if names.is_empty() {
            accepted += 1;
        } else if let Some(names) = names.into_iter().collect::<Option<Vec<_>>>() {
            *not_yet.entry(names[0].to_owned()).or_default() += 1;
        } else {
            refused.push(format!("{file}: {}", errors.join("\n    ")));
        }
    }
    let files: usize = not_yet.values().sum();
    for (name, files) in &not_yet {
        eprintln!("{files:4}  not implemented yet: {name}");
    }
    eprintln!("accepted {accepted}, not implemented yet {files}, refused {}", refused.len());
    assert!(refused.is_empty(), "refused for other reasons:\n{}", refused.join("\n"));
    // May only grow.
    let least: usize = include_str!("../../../../.ci/resources.min").trim().parse().unwrap();
    assert!(accepted >= least, "{accepted} files were accepted, {least} are the least");
}
