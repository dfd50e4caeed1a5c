//! Transport sockets towards upstreams decoded: TLS, PROXY headers, and what chooses among several.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::matching::common_inputs::transport_socket::v3::TransportSocketNameAction;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3 as proxy_protocol;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use rustc_hash::FxHashMap;

use super::{TransportSocketMatch, UpstreamSocket};
use crate::decode::{Context, json, type_name};
use crate::extensions::unregistered;
use crate::matching::{MatchInput, MatchTree};
use crate::proxy_protocol::UpstreamProxyProtocol;
use crate::tls::UpstreamTlsContext;
use crate::typed_config::TypedConfig;

/// TLS or plain text (`raw_buffer`), with a PROXY header before it or without; or a socket that is of none of these kinds.
pub(super) fn transport_socket(
    cx: &mut Context,
    message: &core::TransportSocket,
) -> (UpstreamSocket, Option<TypedConfig>) {
    let plain = UpstreamSocket::default;
    let any = message.config_type.as_ref().map(|core::transport_socket::ConfigType::TypedConfig(any)| any);
    match any.map(|any| (type_name(&any.type_url), any)) {
        Some(("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", any)) => {
            let context = cx.at("typed_config", |cx| {
                let message: tls::UpstreamTlsContext = cx.unpack(any)?;
                UpstreamTlsContext::from_message(cx, &message)
            });
            (UpstreamSocket { tls: context.map(Arc::new), ..plain() }, None)
        }
        Some(("envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport", any)) => {
            let socket = cx.at("typed_config", |cx| {
                let message: proxy_protocol::ProxyProtocolUpstreamTransport = cx.unpack(any)?;
                Some(with_proxy_header(cx, &message))
            });
            (socket.unwrap_or_default(), None)
        }
        Some(("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer", _)) => (plain(), None),
        None if message.name == "envoy.transport_sockets.raw_buffer" => (plain(), None),
        _ => (plain(), Some(cx.typed_config(&message.name, any))),
    }
}

fn with_proxy_header(cx: &mut Context, message: &proxy_protocol::ProxyProtocolUpstreamTransport) -> UpstreamSocket {
    let config = message.config.clone().unwrap_or_default();
    let header = cx.at("config", |cx| UpstreamProxyProtocol::decode(cx, &config));
    let inner = message.transport_socket.as_ref().map(|socket| {
        cx.at("transport_socket", |cx| {
            let (socket, other) = transport_socket(cx, socket);
            if let Some(other) = other {
                cx.error(format!("transport socket {} is not implemented behind a PROXY header", other.name));
            }
            if socket.proxy_protocol.is_some() {
                cx.error("a PROXY header before a PROXY header is not implemented");
            }
            socket
        })
    });
    UpstreamSocket { tls: inner.and_then(|inner| inner.tls), proxy_protocol: Some(Arc::new(header)) }
}

pub(super) fn socket_match(
    cx: &mut Context,
    message: &pb::cluster::TransportSocketMatch,
) -> Option<TransportSocketMatch> {
    let criteria = message.r#match.as_ref().map_or_else(|| serde_json::json!({}), json::from_struct);
    let Some(socket) = message.transport_socket.as_ref() else {
        cx.error(unregistered("", ""));
        return None;
    };
    let socket = cx.at("transport_socket", |cx| {
        let (socket, other) = transport_socket(cx, socket);
        if let Some(other) = other {
            cx.error(format!("transport socket '{}' is not implemented in transport_socket_matches", other.type_name));
        }
        socket
    });
    Some(TransportSocketMatch { name: message.name.as_str().into(), criteria, socket })
}

/// A tree that names transport socket matches, in Envoy's words where it refuses them.
pub(super) fn socket_matcher(
    cx: &mut Context,
    message: &pb::Cluster,
    matcher: &Matcher,
) -> Option<MatchTree<Option<u32>>> {
    let mut positions = FxHashMap::default();
    for (position, entry) in message.transport_socket_matches.iter().enumerate() {
        if positions.insert(entry.name.as_str(), position as u32).is_some() {
            let name = &entry.name;
            cx.error(format!("Duplicate transport socket name '{name}' found in transport_socket_matches"));
        }
    }
    cx.at("transport_socket_matcher", |cx| {
        MatchTree::decode(cx, matcher, &MatchInput::is_of_endpoint, &mut |cx, action| {
            let any = action.typed_config.as_ref()?;
            let kind = type_name(&any.type_url);
            if kind != "envoy.extensions.matching.common_inputs.transport_socket.v3.TransportSocketNameAction" {
                cx.error(unregistered(&action.name, kind));
                return None;
            }
            let action: TransportSocketNameAction = cx.at("typed_config", |cx| cx.unpack(any))?;
            Some(positions.get(&*action.name).copied())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::envoy::config::core::v3 as core;
    use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
    use envoy_types::pb::google::protobuf::Any;
    use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
    use envoy_types::pb::xds::r#type::matcher::v3::matcher::{OnMatch, on_match};
    use prost::Message;

    fn socket(name: &str, value: Vec<u8>) -> core::TransportSocket {
        let any = Any { type_url: format!("x/envoy.extensions.transport_sockets.{name}"), value };
        core::TransportSocket { name: "t".into(), config_type: Some(ConfigType::TypedConfig(any)) }
    }

    fn with_header(inner: core::TransportSocket) -> core::TransportSocket {
        let message = proxy_protocol::ProxyProtocolUpstreamTransport {
            config: Some(core::ProxyProtocolConfig { version: 1, ..Default::default() }),
            transport_socket: Some(inner),
            ..Default::default()
        };
        socket("proxy_protocol.v3.ProxyProtocolUpstreamTransport", message.encode_to_vec())
    }

    #[test]
    fn a_header_goes_before_tls_or_plain_text() {
        let decode = |message: &core::TransportSocket| Context::default().run(|cx| Some(transport_socket(cx, message)));
        let (plain, other) = decode(&with_header(socket("raw_buffer.v3.RawBuffer", Vec::new()))).unwrap();
        assert!(plain.tls.is_none() && plain.proxy_protocol.is_some() && other.is_none());
        let (secure, _) = decode(&with_header(socket("tls.v3.UpstreamTlsContext", Vec::new()))).unwrap();
        assert!(secure.tls.is_some() && secure.proxy_protocol.is_some());
        let tap = decode(&with_header(socket("tap.v3.Tap", Vec::new())));
        assert_eq!(
            errors(tap),
            ["typed_config.transport_socket: transport socket t is not implemented behind a PROXY header"]
        );
        let twice = decode(&with_header(with_header(socket("raw_buffer.v3.RawBuffer", Vec::new()))));
        assert_eq!(
            errors(twice),
            ["typed_config.transport_socket: a PROXY header before a PROXY header is not implemented"]
        );
    }

    #[test]
    fn a_tree_names_matches_by_their_place() {
        let entry = |name: &str| pb::cluster::TransportSocketMatch { name: name.into(), ..Default::default() };
        let tree = |name: &str| {
            let action = TransportSocketNameAction { name: name.into() };
            let kind = "envoy.extensions.matching.common_inputs.transport_socket.v3.TransportSocketNameAction";
            let any = Any { type_url: format!("x/{kind}"), value: action.encode_to_vec() };
            let action = TypedExtensionConfig { name: "a".into(), typed_config: Some(any) };
            let then = OnMatch { on_match: Some(on_match::OnMatch::Action(action)), ..Default::default() };
            Matcher { on_no_match: Some(Box::new(then)), ..Default::default() }
        };
        let decode = |names: &[&str], name: &str| {
            let matches = names.iter().map(|name| entry(name)).collect();
            let message = pb::Cluster { transport_socket_matches: matches, ..Default::default() };
            Context::default().run(|cx| {
                let mut found = Vec::new();
                socket_matcher(cx, &message, &tree(name))?.actions(&mut |action| found.push(*action));
                Some(found)
            })
        };
        assert_eq!(decode(&["a", "b"], "b").unwrap(), [Some(1)]);
        assert_eq!(decode(&["a", "b"], "c").unwrap(), [None]);
        assert_eq!(
            errors(decode(&["a", "a"], "a")),
            ["Duplicate transport socket name 'a' found in transport_socket_matches"]
        );
    }
}
