//! The descriptors of Envoy's messages, compiled from the `.proto` files by the build script.
//!
//! Ingest, constraints, the support table and `config_dump` look messages up here by name or type URL. The pool is
//! decoded at first use (some ten milliseconds), shared by all threads, and takes some ten megabytes: a process that
//! has read its configuration can [`release`] it, and the next use decodes it again.

use std::sync::{Mutex, PoisonError};

use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::{Value, json};

static POOL: Mutex<Option<DescriptorPool>> = Mutex::new(None);

/// The full name of the bootstrap message.
pub const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

/// All messages that are known. Cheap to call: the pool is counted, not copied.
pub fn pool() -> DescriptorPool {
    POOL.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get_or_insert_with(|| {
            #[allow(clippy::expect_used)] // The bytes are part of the program, and a test decodes them.
            DescriptorPool::decode(include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin")).as_slice())
                .expect("the built-in descriptors are valid")
        })
        .clone()
}

/// Lets go of the pool; its memory is free again when the last message made from it is gone.
pub fn release() {
    POOL.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// The message that `name` names, such as `envoy.config.cluster.v3.Cluster`.
pub fn message(name: &str) -> Option<MessageDescriptor> {
    pool().get_message_by_name(name)
}

/// The message name in a type URL: what follows the last slash.
pub fn type_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// `name` as a type URL; what is one already stays as it is.
pub fn type_url(name: &str) -> String {
    if name.contains('/') { name.to_owned() } else { format!("type.googleapis.com/{name}") }
}

/// Decodes the contents of an `Any`; `None` when the type is not known.
pub fn any_to_dynamic(type_url: &str, value: &[u8]) -> Option<Result<DynamicMessage, prost::DecodeError>> {
    message(type_name(type_url)).map(|descriptor| DynamicMessage::decode(descriptor, value))
}

/// The message `name` encoded in `bytes` as JSON the way Envoy's `config_dump` writes it: original field names, enums by
/// name, defaults left out, the contents of an `Any` beside their `@type`, 64-bit integers as strings.
///
/// What cannot be decoded is shown as `{"@type", "value"}` with the bytes in base64, so that a dump never fails.
pub fn to_json(name: &str, bytes: &[u8]) -> Value {
    let decoded = message(name).and_then(|descriptor| DynamicMessage::decode(descriptor, bytes).ok());
    decoded.and_then(|message| dynamic_to_json(&message)).unwrap_or_else(|| opaque(name, bytes))
}

/// Like [`to_json`], for a message that is already decoded; `None` when an `Any` in it is of an unknown type.
pub fn dynamic_to_json(message: &DynamicMessage) -> Option<Value> {
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(true)
        .stringify_64_bit_integers(true)
        .use_enum_numbers(false);
    message.serialize_with_options(serde_json::value::Serializer, &options).ok()
}

fn opaque(name: &str, bytes: &[u8]) -> Value {
    use base64::Engine as _;
    json!({
        "@type": format!("type.googleapis.com/{name}"),
        "value": base64::engine::general_purpose::STANDARD.encode(bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use prost::Message as _;

    #[test]
    fn the_pool_holds_envoys_messages_and_their_annotations() {
        let bootstrap = message(BOOTSTRAP).expect("the bootstrap is known");
        assert!(bootstrap.get_field_by_name("static_resources").is_some());
        assert!(pool().all_messages().len() > 1500);
        let rules = pool().get_extension_by_name("validate.rules").expect("validation rules are known");
        let cluster = message("envoy.config.cluster.v3.Cluster").expect("clusters are known");
        let name = cluster.get_field_by_name("name").expect("a cluster has a name");
        assert!(name.options().has_extension(&rules));
        for supplement in ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct", "xds.type.matcher.v3.IPMatcher"] {
            assert!(message(supplement).is_some(), "{supplement}");
        }
    }

    #[test]
    fn json_is_written_as_config_dump_writes_it() {
        let cluster = Cluster {
            name: "a".into(),
            connect_timeout: Some(envoy_types::pb::google::protobuf::Duration { seconds: 0, nanos: 250_000_000 }),
            lb_policy: 1,
            ..Cluster::default()
        };
        assert_eq!(
            to_json("envoy.config.cluster.v3.Cluster", &cluster.encode_to_vec()),
            json!({"name": "a", "connect_timeout": "0.250s", "lb_policy": "LEAST_REQUEST"})
        );
        assert_eq!(to_json("no.Such", b"ab"), json!({"@type": "type.googleapis.com/no.Such", "value": "YWI="}));
    }
}
