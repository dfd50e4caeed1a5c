//! `TypedStruct`: a message written as a struct, for those who send a message that they were not compiled with.
//!
//! A text is unwrapped while it is read (`walk`). What came encoded, from a control plane or as a binary bootstrap, is
//! unwrapped here, before it is inspected and decoded: nothing after that sees a `TypedStruct` of a type that is known.
//! One of an unknown type stays as it is, and is refused where the extension is looked for.

use std::collections::HashMap;

use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use prost::encoding::{self, DecodeContext, WireType};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::walk::UnknownField;
use super::{Syntax, parse};
use crate::descriptors;
use crate::diagnostics::ConfigError;
use crate::paths::{FieldPath, Segment};

const NAMES: [&str; 2] = ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"];

/// What they have in common: without it in the bytes there is nothing to unwrap.
const MARK: &[u8] = b".TypedStruct";

/// As deep as messages may lie in one another, here as in every decoder.
const MAX_DEPTH: usize = 100;

/// A message without any `TypedStruct` of a known type.
#[derive(Debug, Default)]
pub struct Unwrapped {
    /// The message encoded anew; `None` when there was nothing to unwrap.
    pub bytes: Option<Vec<u8>>,
    /// What is wrong with a struct as the message that it stands for; it is left as it was.
    pub errors: Vec<ConfigError>,
    /// Fields of structs that their messages do not have, if those are allowed.
    pub unknown: Vec<UnknownField>,
}

/// Unwraps every `TypedStruct` in an encoded message, also those in the contents of another `Any`. What cannot be read is
/// left for the decoder to refuse.
pub fn unwrap_typed_structs(descriptor: &MessageDescriptor, bytes: &[u8], allow_unknown: bool) -> Unwrapped {
    let mut out = Unwrapped::default();
    if memchr::memmem::find(bytes, MARK).is_some() {
        let mut visit = Visit { allow_unknown, path: Vec::new(), out: &mut out };
        let bytes = visit.message(descriptor, bytes, 0);
        out.bytes = bytes;
    }
    out
}

/// The message inside a `TypedStruct`, packed as what it stands for; `None` if `any` is none, or of a type that is not
/// known and has to stay opaque.
///
/// # Errors
/// What is wrong with the struct as a message of that type; paths begin at `path`.
pub fn unwrap_typed_struct(
    any: &Any,
    path: &FieldPath,
    allow_unknown: bool,
    unknown: &mut Vec<UnknownField>,
) -> Result<Option<Any>, Vec<ConfigError>> {
    if !NAMES.contains(&descriptors::type_name(&any.type_url)) {
        return Ok(None);
    }
    let fail = |message: String| vec![ConfigError::new(path.clone(), message)];
    let Some(Ok(typed)) = descriptors::any_to_dynamic(&any.type_url, &any.value) else {
        return Err(fail("the TypedStruct cannot be decoded".to_owned()));
    };
    let type_url = typed.get_field_by_name("type_url").and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    let Some(descriptor) = descriptors::message(descriptors::type_name(&type_url)) else { return Ok(None) };
    let value = typed.get_field_by_name("value").and_then(|v| v.as_message().and_then(descriptors::dynamic_to_json));
    let text = value.map_or_else(|| "{}".to_owned(), |value| value.to_string());
    let mut parsed = parse(&descriptor, &text, Syntax::Json, 0, allow_unknown);
    for field in &mut parsed.unknown {
        field.path = path.join(&field.path);
        field.position = None;
    }
    unknown.append(&mut parsed.unknown);
    if parsed.errors.is_empty() {
        return Ok(Some(Any { type_url: descriptors::type_url(&type_url), value: parsed.bytes }));
    }
    for error in &mut parsed.errors {
        error.path = path.join(&error.path);
        error.position = None;
    }
    Err(parsed.errors)
}

struct Visit<'v> {
    allow_unknown: bool,
    path: Vec<Segment>,
    out: &'v mut Unwrapped,
}

impl Visit<'_> {
    /// The message encoded anew, if anything in it was unwrapped.
    fn message(&mut self, descriptor: &MessageDescriptor, bytes: &[u8], depth: usize) -> Option<Vec<u8>> {
        if depth > MAX_DEPTH || memchr::memmem::find(bytes, MARK).is_none() {
            return None;
        }
        if descriptor.full_name() == "google.protobuf.Any" {
            return self.any(bytes, depth);
        }
        if descriptor.package_name() == "google.protobuf" {
            return None;
        }
        let mut out = Vec::with_capacity(bytes.len());
        let mut changed = false;
        let mut seen = HashMap::<u32, usize>::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let start = rest;
            let (number, wire_type) = encoding::decode_key(&mut rest).ok()?;
            if wire_type == WireType::LengthDelimited
                && let Some(field) = descriptor.get_field(number)
                && let Kind::Message(inner) = field.kind()
            {
                let length = usize::try_from(encoding::decode_varint(&mut rest).ok()?).ok()?;
                let (content, after) = rest.split_at_checked(length)?;
                rest = after;
                let index = seen.entry(number).or_default();
                let steps = self.enter(&field, *index, content);
                *index += 1;
                let new = self.message(&inner, content, depth + 1);
                self.path.truncate(self.path.len() - steps);
                if let Some(new) = new {
                    encoding::encode_key(number, WireType::LengthDelimited, &mut out);
                    encoding::encode_varint(new.len() as u64, &mut out);
                    out.extend_from_slice(&new);
                    changed = true;
                    continue;
                }
            } else {
                encoding::skip_field(wire_type, number, &mut rest, DecodeContext::default()).ok()?;
            }
            out.extend_from_slice(&start[..start.len() - rest.len()]);
        }
        changed.then_some(out)
    }

    /// Goes a field down; says by how many steps.
    fn enter(&mut self, field: &FieldDescriptor, index: usize, content: &[u8]) -> usize {
        if field.parent_message().is_map_entry() {
            // The entry was the step.
            return 0;
        }
        self.path.push(Segment::Field(field.name().to_owned().into()));
        if field.is_map() {
            let mut rest = content;
            let key = match encoding::decode_key(&mut rest) {
                Ok((1, WireType::LengthDelimited)) => encoding::decode_varint(&mut rest)
                    .ok()
                    .and_then(|length| rest.get(..usize::try_from(length).ok()?))
                    .map(|key| String::from_utf8_lossy(key).into_owned()),
                _ => None,
            };
            self.path.push(Segment::Key(key.unwrap_or_default().into()));
            return 2;
        }
        if field.is_list() {
            self.path.push(Segment::Index(u32::try_from(index).unwrap_or(u32::MAX)));
            return 2;
        }
        1
    }

    fn any(&mut self, bytes: &[u8], depth: usize) -> Option<Vec<u8>> {
        let any = Any::decode(bytes).ok()?;
        let path = self.path.iter().cloned().fold(FieldPath::root(), |path, step| path.push(step));
        match unwrap_typed_struct(&any, &path, self.allow_unknown, &mut self.out.unknown) {
            // Structs inside the struct were unwrapped with it.
            Ok(Some(message)) => return Some(message.encode_to_vec()),
            Ok(None) => {}
            Err(errors) => {
                self.out.errors.extend(errors);
                return None;
            }
        }
        let descriptor = descriptors::message(descriptors::type_name(&any.type_url))?;
        let value = self.message(&descriptor, &any.value, depth + 1)?;
        Some(Any { type_url: any.type_url, value }.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

    fn encode(name: &str, value: serde_json::Value) -> Vec<u8> {
        use prost_reflect::DynamicMessage;
        let descriptor = descriptors::message(name).unwrap();
        DynamicMessage::deserialize(descriptor, value).unwrap().encode_to_vec()
    }

    /// A listener as another program encodes it, with `typed_config` as the configuration of its filter.
    fn listener(typed_config: serde_json::Value) -> Vec<u8> {
        let filter = json!({"name": "f", "typed_config": typed_config});
        encode("envoy.config.listener.v3.Listener", json!({"filter_chains": [{}, {"filters": [filter]}], "name": "l"}))
    }

    fn unwrap(name: &str, bytes: &[u8], allow_unknown: bool) -> (serde_json::Value, Unwrapped) {
        let done = unwrap_typed_structs(&descriptors::message(name).unwrap(), bytes, allow_unknown);
        (descriptors::to_json(name, done.bytes.as_deref().unwrap_or(bytes)), done)
    }

    #[test]
    fn the_structs_of_an_encoded_message_become_what_they_stand_for() {
        const LISTENER: &str = "envoy.config.listener.v3.Listener";
        for name in NAMES {
            let bytes = listener(json!({
                "@type": format!("type.googleapis.com/{name}"),
                "type_url": TCP_PROXY,
                "value": {"stat_prefix": "a", "cluster": "b", "max_connect_attempts": 3, "idle_timeout": "5s"},
            }));
            let (json, done) = unwrap(LISTENER, &bytes, false);
            assert!(done.errors.is_empty() && done.unknown.is_empty(), "{done:?}");
            let expected = json!({
                "@type": TCP_PROXY, "stat_prefix": "a", "cluster": "b", "max_connect_attempts": 3, "idle_timeout": "5s"
            });
            assert_eq!(json["filter_chains"][1]["filters"][0]["typed_config"], expected);
            assert_eq!(json["name"], "l");
        }
    }

    #[test]
    fn structs_inside_messages_maps_and_other_structs_are_found() {
        const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";
        let cors = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy";
        let wrapper = "type.googleapis.com/envoy.config.route.v3.FilterConfig";
        let inner = json!({
            "@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": cors, "value": {"maxAge": "7"},
        });
        let outer = json!({
            "@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": wrapper,
            "value": {"is_optional": true, "config": inner},
        });
        let packed = json!({"@type": wrapper, "config": inner});
        let bytes = encode(ROUTES, json!({"typed_per_filter_config": {"a": outer, "b": packed, "c": inner}}));
        let (json, done) = unwrap(ROUTES, &bytes, false);
        assert!(done.errors.is_empty(), "{done:?}");
        let message = json!({"@type": cors, "max_age": "7"});
        let expected = json!({
            "a": {"@type": wrapper, "is_optional": true, "config": message},
            "b": {"@type": wrapper, "config": message},
            "c": message,
        });
        assert_eq!(json["typed_per_filter_config"], expected);
    }

    #[test]
    fn what_a_struct_gets_wrong_is_named_with_its_path() {
        const LISTENER: &str = "envoy.config.listener.v3.Listener";
        let bytes = listener(json!({
            "@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": TCP_PROXY, "value": {"clutser": "b"},
        }));
        let (_, done) = unwrap(LISTENER, &bytes, false);
        let path = "filter_chains[1].filters[0].typed_config.clutser";
        assert_eq!(done.errors[0].path.to_string(), path);
        assert!(done.errors[0].message.contains("no such field: 'clutser'"), "{:?}", done.errors);
        let (json, done) = unwrap(LISTENER, &bytes, true);
        assert!(done.errors.is_empty(), "{done:?}");
        assert_eq!(done.unknown[0].path.to_string(), path);
        assert_eq!(json["filter_chains"][1]["filters"][0]["typed_config"], json!({"@type": TCP_PROXY}));
    }

    #[test]
    fn what_has_no_struct_and_what_is_broken_stays_as_it_is() {
        let descriptor = descriptors::message("envoy.config.listener.v3.Listener").unwrap();
        let plain = listener(json!({"@type": TCP_PROXY, "stat_prefix": "TypedStruct"}));
        assert!(unwrap_typed_structs(&descriptor, &plain, false).bytes.is_none());
        let whole = listener(json!({
            "@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": TCP_PROXY, "value": {"cluster": "b"},
        }));
        for end in 0..whole.len() {
            // Only what is cut after the struct may still hold it.
            let _ = unwrap_typed_structs(&descriptor, &whole[..end], false);
        }
        // Deeper than anything is read, and yet no deeper than the stack.
        let mut any = Any { type_url: "a/xds.type.v3.TypedStruct".into(), value: Vec::new() };
        for _ in 0..3_000 {
            any = Any { type_url: "a/google.protobuf.Any".into(), value: any.encode_to_vec() };
        }
        let descriptor = descriptors::message("google.protobuf.Any").unwrap();
        assert!(unwrap_typed_structs(&descriptor, &any.encode_to_vec(), false).bytes.is_none());
    }
}
