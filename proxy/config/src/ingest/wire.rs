//! One level of an encoded message: its fields with their descriptors, the messages in it still encoded.
//!
//! The inspection goes through a configuration of any size this way and holds no more of it than the path it is on.

use std::borrow::Cow;
use std::collections::HashMap;

use prost::encoding::{self, DecodeContext, WireType};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

/// The fields of one message.
pub(crate) struct Shallow<'b> {
    /// Fields that are set, by number.
    pub(crate) fields: Vec<(FieldDescriptor, Content<'b>)>,
    /// Numbers of fields that the message does not have.
    pub(crate) unknown: Vec<u32>,
}

/// What a field holds.
pub(crate) enum Content<'b> {
    /// A scalar, or a list of scalars.
    Value(Value),
    /// A message.
    Message(MessageDescriptor, Cow<'b, [u8]>),
    /// A list of messages.
    Messages(MessageDescriptor, Vec<&'b [u8]>),
    /// A map: the keys, and the values where those are messages.
    Map(Value, Option<MapMessages>),
}

/// The type of a map's values, and each with its key.
pub(crate) type MapMessages = (MessageDescriptor, Vec<(MapKey, Vec<u8>)>);

enum Raw<'b> {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(&'b [u8]),
}

impl<'b> Shallow<'b> {
    /// Reads the fields of a `descriptor` in `bytes`.
    pub(crate) fn read(descriptor: &MessageDescriptor, bytes: &'b [u8]) -> Result<Self, Malformed> {
        let mut raw: Vec<(u32, Raw<'b>)> = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (number, wire_type) = encoding::decode_key(&mut rest)?;
            let value = match wire_type {
                WireType::Varint => Raw::Varint(encoding::decode_varint(&mut rest)?),
                WireType::SixtyFourBit => Raw::Fixed64(take(&mut rest)?),
                WireType::ThirtyTwoBit => Raw::Fixed32(take(&mut rest)?),
                WireType::LengthDelimited => {
                    let length = encoding::decode_varint(&mut rest)?;
                    let length = usize::try_from(length).ok().filter(|length| *length <= rest.len());
                    let (value, after) = rest.split_at(length.ok_or_else(truncated)?);
                    rest = after;
                    Raw::Bytes(value)
                }
                WireType::StartGroup | WireType::EndGroup => {
                    encoding::skip_field(wire_type, number, &mut rest, DecodeContext::default())?;
                    Raw::Varint(0)
                }
            };
            raw.push((number, value));
        }
        raw.sort_by_key(|(number, _)| *number);

        let mut shallow = Shallow { fields: Vec::new(), unknown: Vec::new() };
        for group in raw.chunk_by(|a, b| a.0 == b.0) {
            let number = group[0].0;
            match descriptor.get_field(number) {
                Some(field) => {
                    let content = content(&field, group)?;
                    shallow.fields.push((field, content));
                }
                None => shallow.unknown.push(number),
            }
        }
        Ok(shallow)
    }

    /// Whether the field is set; without presence that is: not its default.
    pub(crate) fn has(&self, field: &FieldDescriptor) -> bool {
        self.content(field).is_some_and(|content| match content {
            Content::Value(value) => field.supports_presence() || !value.is_default_for_field(field),
            _ => true,
        })
    }

    /// The value that constraints look at: scalars as they are, and of messages only the well-known ones that have
    /// rules (durations, wrappers); all others are there without contents.
    pub(crate) fn value(&self, field: &FieldDescriptor) -> Cow<'_, Value> {
        match self.content(field) {
            None => Cow::Owned(Value::default_value_for_field(field)),
            Some(Content::Value(value) | Content::Map(value, _)) => Cow::Borrowed(value),
            Some(Content::Message(descriptor, bytes)) => Cow::Owned(well_known(descriptor, bytes)),
            Some(Content::Messages(descriptor, list)) => {
                Cow::Owned(Value::List(list.iter().map(|bytes| well_known(descriptor, bytes)).collect()))
            }
        }
    }

    fn content(&self, field: &FieldDescriptor) -> Option<&Content<'b>> {
        let at = self.fields.binary_search_by_key(&field.number(), |(field, _)| field.number()).ok()?;
        Some(&self.fields[at].1)
    }
}

fn well_known(descriptor: &MessageDescriptor, bytes: &[u8]) -> Value {
    let small = descriptor.package_name() == "google.protobuf" && !matches!(descriptor.name(), "Struct" | "ListValue");
    let decoded = if small { DynamicMessage::decode(descriptor.clone(), bytes).ok() } else { None };
    Value::Message(decoded.unwrap_or_else(|| DynamicMessage::new(descriptor.clone())))
}

fn content<'b>(field: &FieldDescriptor, group: &[(u32, Raw<'b>)]) -> Result<Content<'b>, Malformed> {
    let kind = field.kind();
    let Kind::Message(descriptor) = kind else {
        let mut values = Vec::new();
        for (_, raw) in group {
            scalars(&kind, raw, &mut values)?;
        }
        return Ok(Content::Value(match field.is_list() {
            true => Value::List(values),
            false => values.pop().unwrap_or_else(|| Value::default_value_for_field(field)),
        }));
    };
    let mut messages = Vec::with_capacity(group.len());
    for (_, raw) in group {
        let Raw::Bytes(bytes) = raw else { return Err(wrong_type(field)) };
        messages.push(*bytes);
    }
    if field.is_map() {
        return map(&descriptor, &messages);
    }
    if field.is_list() {
        return Ok(Content::Messages(descriptor, messages));
    }
    // A message that stands several times is the merge of all.
    let bytes = match messages.as_slice() {
        [only] => Cow::Borrowed(*only),
        all => Cow::Owned(all.concat()),
    };
    Ok(Content::Message(descriptor, bytes))
}

fn map<'b>(entry: &MessageDescriptor, entries: &[&'b [u8]]) -> Result<Content<'b>, Malformed> {
    let mut map = HashMap::new();
    let mut messages = Vec::new();
    let value_field = entry.map_entry_value_field();
    for bytes in entries {
        let shallow = Shallow::read(entry, bytes)?;
        let key = shallow.value(&entry.map_entry_key_field()).into_owned().into_map_key();
        let Some(key) = key else { continue };
        if let Some(Content::Message(_, bytes)) = shallow.content(&value_field) {
            messages.push((key.clone(), bytes.to_vec()));
        }
        map.insert(key, shallow.value(&value_field).into_owned());
    }
    let messages = match value_field.kind() {
        Kind::Message(descriptor) => Some((descriptor, messages)),
        _ => None,
    };
    Ok(Content::Map(Value::Map(map), messages))
}

/// One scalar, or the packed scalars of a list.
fn scalars(kind: &Kind, raw: &Raw<'_>, values: &mut Vec<Value>) -> Result<(), Malformed> {
    let value = match (kind, raw) {
        (Kind::String, Raw::Bytes(bytes)) => Value::String(String::from_utf8_lossy(bytes).into_owned()),
        (Kind::Bytes, Raw::Bytes(bytes)) => Value::Bytes(bytes.to_vec().into()),
        (kind, Raw::Bytes(packed)) => {
            let mut rest = *packed;
            while !rest.is_empty() {
                let one = match kind.wire_type() {
                    WireType::Varint => Raw::Varint(encoding::decode_varint(&mut rest)?),
                    WireType::SixtyFourBit => Raw::Fixed64(take(&mut rest)?),
                    WireType::ThirtyTwoBit => Raw::Fixed32(take(&mut rest)?),
                    _ => return Err(truncated()),
                };
                scalars(kind, &one, values)?;
            }
            return Ok(());
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // As the wire format defines it.
        (kind, Raw::Varint(v)) => match kind {
            Kind::Bool => Value::Bool(*v != 0),
            Kind::Enum(_) => Value::EnumNumber(*v as i32),
            Kind::Int32 => Value::I32(*v as i32),
            Kind::Sint32 => Value::I32(zigzag(*v) as i32),
            Kind::Int64 => Value::I64(*v as i64),
            Kind::Sint64 => Value::I64(zigzag(*v)),
            Kind::Uint32 => Value::U32(*v as u32),
            Kind::Uint64 => Value::U64(*v),
            kind => Value::default_value(kind),
        },
        (kind, Raw::Fixed64(bytes)) => match kind {
            Kind::Double => Value::F64(f64::from_le_bytes(*bytes)),
            Kind::Fixed64 => Value::U64(u64::from_le_bytes(*bytes)),
            Kind::Sfixed64 => Value::I64(i64::from_le_bytes(*bytes)),
            kind => Value::default_value(kind),
        },
        (kind, Raw::Fixed32(bytes)) => match kind {
            Kind::Float => Value::F32(f32::from_le_bytes(*bytes)),
            Kind::Fixed32 => Value::U32(u32::from_le_bytes(*bytes)),
            Kind::Sfixed32 => Value::I32(i32::from_le_bytes(*bytes)),
            kind => Value::default_value(kind),
        },
    };
    values.push(value);
    Ok(())
}

#[allow(clippy::cast_possible_wrap)] // As the wire format defines it.
fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (value, after) = rest.split_first_chunk().ok_or_else(truncated)?;
    *rest = after;
    Ok(*value)
}

fn truncated() -> Malformed {
    Malformed("the message is truncated".to_owned())
}

fn wrong_type(field: &FieldDescriptor) -> Malformed {
    Malformed(format!("the field {} has a wrong wire type", field.full_name()))
}

/// Bytes that are not an encoded message, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(String);

impl From<prost::DecodeError> for Malformed {
    fn from(error: prost::DecodeError) -> Self {
        Malformed(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors;
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::google::protobuf::Duration;
    use prost::Message as _;

    #[test]
    fn messages_that_stand_twice_are_merged_and_scalars_keep_the_last() {
        let descriptor = descriptors::message("envoy.config.cluster.v3.Cluster").unwrap();
        let part = |name: &str, seconds, nanos| Cluster {
            name: name.to_owned(),
            connect_timeout: Some(Duration { seconds, nanos }),
            ..Cluster::default()
        };
        let bytes = [part("a", 1, 0).encode_to_vec(), part("b", 0, 5).encode_to_vec()].concat();
        let shallow = Shallow::read(&descriptor, &bytes).unwrap();
        let name = descriptor.get_field_by_name("name").unwrap();
        assert_eq!(shallow.value(&name).as_str(), Some("b"));
        let timeout = shallow.value(&descriptor.get_field_by_name("connect_timeout").unwrap()).into_owned();
        let timeout = timeout.as_message().unwrap();
        assert_eq!(timeout.get_field_by_name("seconds").unwrap().as_i64(), Some(1));
        assert_eq!(timeout.get_field_by_name("nanos").unwrap().as_i32(), Some(5));
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        let descriptor = descriptors::message("envoy.config.cluster.v3.Cluster").unwrap();
        for bytes in [b"\x0a\x05a".as_slice(), b"\xff", b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x20\x01"] {
            let broken = Shallow::read(&descriptor, bytes).is_err();
            assert!(broken || Cluster::decode(bytes).is_err(), "{bytes:?}");
        }
    }
}
