//! Who this proxy says it is: the node of the bootstrap, with the version that control planes choose by.

use crate::options::ENVOY_VERSION;
use envoy_types::pb::envoy::config::core::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::SemanticVersion;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use nuncio_config::descriptors;
use nuncio_extensions::parts::PARTS;
use nuncio_extensions::registry;
use prost::Message as _;

/// The node as servers are told it. Extensions are those that exist here.
pub(crate) fn node(bootstrap: &[u8]) -> pb::Node {
    // These bytes were encoded by this process.
    let mut node = pb::Node::decode(bootstrap).unwrap_or_default();
    node.user_agent_name = "envoy".to_owned();
    let mut numbers = ENVOY_VERSION.split('.').map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let version = SemanticVersion { major_number: next(), minor_number: next(), patch: next() };
    let metadata = [
        ("build.type", "RELEASE"),
        ("revision.sha", env!("CARGO_PKG_VERSION")),
        ("revision.status", "Clean"),
        ("ssl.version", "AWS-LC"),
    ];
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let build = pb::BuildVersion {
        version: Some(version),
        metadata: Some(Struct {
            fields: metadata.into_iter().map(|(name, value)| (name.to_owned(), text(value))).collect(),
        }),
    };
    node.user_agent_version_type = Some(pb::node::UserAgentVersionType::UserAgentBuildVersion(build));
    node.extensions = extensions();
    node
}

/// What of the node is told in the names of collections: keys of context parameters, and values.
pub(crate) fn context_params(node: &pb::Node, names: &[Box<str>]) -> Vec<(String, String)> {
    let locality = node.locality.clone().unwrap_or_default();
    let build = match &node.user_agent_version_type {
        Some(pb::node::UserAgentVersionType::UserAgentBuildVersion(build)) => build.clone(),
        _ => pb::BuildVersion::default(),
    };
    let version = build.version.unwrap_or_default();
    let mut out = Vec::new();
    for name in names {
        let value = match &**name {
            "id" => node.id.clone(),
            "cluster" => node.cluster.clone(),
            "user_agent_name" => node.user_agent_name.clone(),
            // It is told as a build version.
            "user_agent_version" => String::new(),
            "locality.region" => locality.region.clone(),
            "locality.zone" => locality.zone.clone(),
            "locality.sub_zone" => locality.sub_zone.clone(),
            "user_agent_build_version.version" => {
                format!("{}.{}.{}", version.major_number, version.minor_number, version.patch)
            }
            "metadata" | "user_agent_build_version.metadata" => {
                let metadata = if **name == *"metadata" { &node.metadata } else { &build.metadata };
                for (key, value) in metadata.iter().flat_map(|metadata| &metadata.fields) {
                    let json = descriptors::to_json("google.protobuf.Value", &value.encode_to_vec());
                    out.push((format!("xds.node.{name}.{key}"), json.to_string()));
                }
                continue;
            }
            // As in Envoy, what is not known is not told.
            _ => continue,
        };
        out.push((format!("xds.node.{name}"), value));
    }
    out
}

fn extensions() -> Vec<pb::Extension> {
    let filters = [
        ("envoy.filters.http", registry::HTTP_FILTERS),
        ("envoy.filters.http.upstream", registry::UPSTREAM_HTTP_FILTERS),
    ];
    let filters = filters.into_iter().flat_map(|(category, list)| {
        list.iter().map(move |entry| extension(category, entry.name, of_filter(entry.message)))
    });
    let lists = [
        ("envoy.filters.network", registry::NETWORK_FILTERS),
        ("envoy.filters.listener", registry::LISTENER_FILTERS),
        ("envoy.load_balancing_policies", registry::LOAD_BALANCING_POLICIES),
        ("envoy.clusters", registry::CLUSTERS),
        ("envoy.access_loggers", registry::ACCESS_LOGGERS),
        ("envoy.transport_sockets.downstream", registry::DOWNSTREAM_TRANSPORT_SOCKETS),
        ("envoy.transport_sockets.upstream", registry::UPSTREAM_TRANSPORT_SOCKETS),
    ];
    let rest = lists.into_iter().chain(PARTS.iter().copied()).flat_map(|(category, list)| {
        list.iter().map(move |(name, message)| {
            let messages = [*message].into_iter().filter(|message| !message.is_empty());
            extension(category, name, messages.map(str::to_owned).collect())
        })
    });
    filters.chain(rest).collect()
}

/// The message of an HTTP filter, and those that routes have for it, which are in the same package.
fn of_filter(message: &str) -> Vec<String> {
    let package = message.rfind('.').map_or(message, |dot| &message[..=dot]);
    let per_route = registry::PER_ROUTE.iter().map(|(message, _)| *message);
    let all = std::iter::once(message).chain(per_route.filter(|message| message.starts_with(package)));
    all.map(str::to_owned).collect()
}

fn extension(category: &str, name: &str, type_urls: Vec<String>) -> pb::Extension {
    pb::Extension { name: name.to_owned(), category: category.to_owned(), type_urls, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_told_an_envoy_version_and_what_the_bootstrap_says() {
        let own = pb::Node { id: "a".into(), cluster: "b".into(), ..Default::default() };
        let node = node(&own.encode_to_vec());
        assert_eq!((node.id.as_str(), node.cluster.as_str(), node.user_agent_name.as_str()), ("a", "b", "envoy"));
        let Some(pb::node::UserAgentVersionType::UserAgentBuildVersion(build)) = node.user_agent_version_type.clone()
        else {
            panic!("a build version");
        };
        assert!(build.version.is_some_and(|version| version.major_number >= 1 && version.minor_number >= 40));
        assert!(node.extensions.iter().any(|e| e.name == "envoy.filters.http.router"));
        let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let metadata = Struct { fields: [("k".to_owned(), text("v"))].into() };
        let node = pb::Node { metadata: Some(metadata), ..node };
        let names = ["id", "locality.zone", "metadata", "user_agent_build_version.version", "nothing"];
        let params = context_params(&node, &names.map(Into::into));
        let version = ENVOY_VERSION.to_owned();
        let wanted = [
            ("id", "a"),
            ("locality.zone", ""),
            ("metadata.k", "\"v\""),
            ("user_agent_build_version.version", &version),
        ];
        assert_eq!(params, wanted.map(|(name, value)| (format!("xds.node.{name}"), value.to_owned())));
    }
}
