//! Hides what Envoy's messages mark as sensitive (private keys, passwords) before a message is shown.

use std::sync::LazyLock;

use nuncio_config::descriptors;
use prost::Message as _;
use prost_reflect::{DynamicMessage, ReflectMessage as _, Value};
use rustc_hash::FxHashSet;

const HIDDEN: &str = "[redacted]";

/// Full names of the fields with `udpa.annotations.sensitive`.
static SENSITIVE: LazyLock<FxHashSet<String>> = LazyLock::new(|| {
    let pool = descriptors::pool();
    let Some(extension) = pool.get_extension_by_name("udpa.annotations.sensitive") else {
        return FxHashSet::default();
    };
    let fields = pool.all_messages().flat_map(|message| message.fields().collect::<Vec<_>>());
    let marked = fields.filter(|field| {
        let options = field.options();
        options.has_extension(&extension) && options.get_extension(&extension).as_bool() == Some(true)
    });
    marked.map(|field| field.full_name().to_owned()).collect()
});

/// Replaces the text and bytes of sensitive fields, at any depth and inside `Any`; clears their other values.
pub(super) fn redact(message: &mut DynamicMessage) {
    redact_fields(message, false);
}

fn redact_fields(message: &mut DynamicMessage, hide: bool) {
    if message.descriptor().full_name() == "google.protobuf.Any" {
        redact_any(message, hide);
        return;
    }
    let fields: Vec<_> = message.fields().map(|(field, _)| field).collect();
    for field in fields {
        let hide = hide || SENSITIVE.contains(field.full_name());
        let mut value = message.get_field(&field).into_owned();
        if redact_value(&mut value, hide) {
            message.set_field(&field, value);
        } else {
            message.clear_field(&field);
        }
    }
}

/// Whether the value stays.
fn redact_value(value: &mut Value, hide: bool) -> bool {
    match value {
        Value::Message(message) => redact_fields(message, hide),
        Value::List(list) => list.retain_mut(|item| redact_value(item, hide)),
        Value::Map(map) => map.retain(|_, item| redact_value(item, hide)),
        Value::String(text) if hide => HIDDEN.clone_into(text),
        Value::Bytes(bytes) if hide => *bytes = bytes::Bytes::from_static(HIDDEN.as_bytes()),
        _ => return !hide,
    }
    true
}

fn redact_any(any: &mut DynamicMessage, hide: bool) {
    let text = |name: &str| any.get_field_by_name(name).map(std::borrow::Cow::into_owned);
    let (Some(Value::String(type_url)), Some(Value::Bytes(bytes))) = (text("type_url"), text("value")) else { return };
    if let Some(Ok(mut inner)) = descriptors::any_to_dynamic(&type_url, &bytes) {
        redact_fields(&mut inner, hide);
        any.set_field_by_name("value", Value::Bytes(inner.encode_to_vec().into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(message: &str, value: serde_json::Value) -> serde_json::Value {
        let descriptor = descriptors::message(message).expect("a known message");
        let mut message = DynamicMessage::deserialize(descriptor, value).expect("a valid message");
        redact(&mut message);
        descriptors::dynamic_to_json(&message).expect("known types")
    }

    #[test]
    fn private_keys_are_hidden_also_inside_any() {
        let context = |chain: &str, key: &str| {
            json!({"name": "tls", "transport_socket": {"name": "t", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {"tls_certificates": [{
                    "certificate_chain": {"inline_string": chain},
                    "private_key": {"inline_string": key},
                }]},
            }}})
        };
        let chain = shown("envoy.config.listener.v3.FilterChain", context("CHAIN", "SECRET"));
        assert_eq!(chain, context("CHAIN", "[redacted]"));
    }

    #[test]
    fn what_is_not_sensitive_stays() {
        let cluster = json!({"name": "a", "connect_timeout": "1s", "lb_policy": "LEAST_REQUEST"});
        assert_eq!(shown("envoy.config.cluster.v3.Cluster", cluster.clone()), cluster);
    }
}
