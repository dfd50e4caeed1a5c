//! Holds the support table against the decoders: a field that is said to be ignored or rejected must not reach the
//! decoded configuration, and one that is said to be done must.
//!
//! Samples ([`super::samples`]) are configurations that together contain every message of an area. In each, at each message, each
//! field in turn is set to a value; whether the decoded configuration changes is what the table has to say.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value};

use super::{Support, Table};
use crate::descriptors;

/// One step from a message to one inside it.
#[derive(Clone, Debug)]
enum Step {
    Field(u32),
    Element(u32, usize),
    Entry(u32, MapKey),
    /// Into the contents of an `Any`.
    Any,
}

/// What decoding makes of an encoded message, as text; errors begin with `Err`.
pub(super) type Decode<'a> = &'a dyn Fn(&[u8]) -> String;

/// Mistakes of the table's messages in `areas`, held against `samples` of the message `root`.
/// `carried` are fields that reach the decoded configuration although nothing uses them yet.
pub(super) fn mistakes(
    areas: &[&str],
    samples: &[DynamicMessage],
    carried: &[&str],
    decode: Decode<'_>,
) -> Vec<String> {
    let own: BTreeSet<&str> = Table::get()
        .areas()
        .filter(|(title, _)| areas.contains(title))
        .flat_map(|(_, messages)| messages.map(|message| message.name))
        .collect();
    let mut carries = BTreeSet::new();
    let mut visited = BTreeSet::new();
    // Done fields that have had an effect somewhere.
    let mut effect: BTreeMap<(String, String), bool> = BTreeMap::new();
    let mut wrong = BTreeSet::new();
    for sample in samples {
        let mut places = Vec::new();
        collect(sample, &mut Vec::new(), &mut places);
        for (path, descriptor) in places {
            let Some(support) = Table::get().message(descriptor.full_name()) else { continue };
            if !own.contains(descriptor.full_name()) {
                continue;
            }
            visited.insert(descriptor.full_name().to_owned());
            for field in descriptor.fields() {
                let changes = effect_of(sample, &path, &field, decode);
                let key = (descriptor.full_name().to_owned(), field.name().to_owned());
                let name = format!("{}.{}", descriptor.full_name(), field.name());
                // What an inner message does is found at its own fields.
                let inner = matches!(field.kind(), Kind::Message(held) if held.package_name() != "google.protobuf");
                match (support.field(field.name()), changes) {
                    (Support::Done, _) if inner => {}
                    (Support::Done, changes) => *effect.entry(key).or_default() |= changes,
                    (Support::Rejected(_), Change::Value) | (Support::Ignored(_), Change::Value | Change::Error) => {
                        match carried.iter().find(|carried| **carried == name) {
                            Some(carried) => carries.insert(*carried),
                            None => wrong.insert(format!("{name} is read")),
                        };
                    }
                    _ => {}
                }
            }
        }
    }
    let without = effect.into_iter().filter(|(_, effect)| !effect);
    wrong.extend(without.map(|((message, field), _)| format!("{message}.{field} has no effect")));
    wrong.extend(own.iter().filter(|name| !visited.contains(**name)).map(|name| format!("{name} is in no sample")));
    wrong.extend(carried.iter().filter(|name| !carries.contains(*name)).map(|name| format!("{name} is not carried")));
    wrong.into_iter().collect()
}

/// What setting a field does to the outcome of decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    None,
    /// Only errors: the field is refused.
    Error,
    Value,
}

impl std::ops::BitOrAssign<Change> for bool {
    fn bitor_assign(&mut self, change: Change) {
        *self |= change != Change::None;
    }
}

fn effect_of(sample: &DynamicMessage, path: &[Step], field: &FieldDescriptor, decode: Decode<'_>) -> Change {
    let without = {
        let mut copy = sample.clone();
        edit(&mut copy, path, &mut |message| {
            match field.containing_oneof() {
                Some(oneof) => oneof.fields().for_each(|member| message.clear_field(&member)),
                None => message.clear_field(field),
            };
        });
        copy
    };
    let mut now = Vec::new();
    edit(&mut sample.clone(), path, &mut |message| {
        if message.has_field(field) {
            now.push(message.get_field(field).into_owned());
        }
    });
    let before = decode(&without.encode_to_vec());
    let change = |value: Value| {
        let mut with = without.clone();
        edit(&mut with, path, &mut |message| message.set_field(field, value.clone()));
        match decode(&with.encode_to_vec()) {
            after if after == before => Change::None,
            after if after.starts_with("Err") => Change::Error,
            _ => Change::Value,
        }
    };
    now.into_iter().chain(values(field)).map(change).max().unwrap_or(Change::None)
}

/// Every message inside `message`, and the way to it.
fn collect(message: &DynamicMessage, path: &mut Vec<Step>, out: &mut Vec<(Vec<Step>, MessageDescriptor)>) {
    if message.descriptor().full_name() == "google.protobuf.Any" {
        if let Some(inner) = unpack(message) {
            path.push(Step::Any);
            collect(&inner, path, out);
            path.pop();
        }
        return;
    }
    out.push((path.clone(), message.descriptor()));
    for (field, value) in message.fields() {
        let mut into = |step, inner: &DynamicMessage| {
            path.push(step);
            collect(inner, path, out);
            path.pop();
        };
        let number = field.number();
        match value {
            Value::Message(inner) => into(Step::Field(number), inner),
            Value::List(list) => list.iter().enumerate().for_each(|(index, element)| {
                if let Value::Message(inner) = element {
                    into(Step::Element(number, index), inner);
                }
            }),
            Value::Map(map) => map.iter().for_each(|(key, element)| {
                if let Value::Message(inner) = element {
                    into(Step::Entry(number, key.clone()), inner);
                }
            }),
            _ => {}
        }
    }
}

fn unpack(any: &DynamicMessage) -> Option<DynamicMessage> {
    let any = any.transcode_to::<prost_types::Any>().ok()?;
    descriptors::any_to_dynamic(&any.type_url, &any.value)?.ok()
}

/// Changes the message at the end of `path`.
fn edit(message: &mut DynamicMessage, path: &[Step], change: &mut dyn FnMut(&mut DynamicMessage)) {
    let Some((step, rest)) = path.split_first() else { return change(message) };
    let field = |message: &DynamicMessage, number| message.descriptor().get_field(number);
    match step {
        Step::Any => {
            let Some(mut inner) = unpack(message) else { return };
            edit(&mut inner, rest, change);
            message.set_field_by_name("value", Value::Bytes(inner.encode_to_vec().into()));
        }
        Step::Field(number) => {
            let Some(field) = field(message, *number) else { return };
            if let Value::Message(inner) = message.get_field_mut(&field) {
                edit(inner, rest, change);
            }
        }
        Step::Element(number, index) => {
            let Some(field) = field(message, *number) else { return };
            if let Value::List(list) = message.get_field_mut(&field)
                && let Some(Value::Message(inner)) = list.get_mut(*index)
            {
                edit(inner, rest, change);
            }
        }
        Step::Entry(number, key) => {
            let Some(field) = field(message, *number) else { return };
            if let Value::Map(map) = message.get_field_mut(&field)
                && let Some(Value::Message(inner)) = map.get_mut(key)
            {
                edit(inner, rest, change);
            }
        }
    }
}

/// Values to try for a field.
fn values(field: &FieldDescriptor) -> Vec<Value> {
    if let Kind::Message(entry) = field.kind()
        && field.is_map()
    {
        let key = MapKey::String("x".to_owned());
        let inner = kind_values(&entry.map_entry_value_field().kind());
        return inner.into_iter().map(|value| Value::Map([(key.clone(), value)].into())).collect();
    }
    let inner = kind_values(&field.kind());
    match field.is_list() {
        true => inner.into_iter().map(|value| Value::List(vec![value])).collect(),
        false => inner,
    }
}

fn kind_values(kind: &Kind) -> Vec<Value> {
    match kind {
        Kind::Bool => vec![Value::Bool(true)],
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => vec![Value::I32(7)],
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => vec![Value::I64(7)],
        Kind::Uint32 | Kind::Fixed32 => vec![Value::U32(7)],
        Kind::Uint64 | Kind::Fixed64 => vec![Value::U64(7)],
        Kind::Float => vec![Value::F32(0.25)],
        Kind::Double => vec![Value::F64(0.25)],
        Kind::String => vec![Value::String("x".to_owned()), Value::String("127.0.0.9".to_owned())],
        Kind::Bytes => vec![Value::Bytes(b"x".as_slice().into())],
        Kind::Enum(kind) => kind.values().map(|value| Value::EnumNumber(value.number())).collect(),
        Kind::Message(message) => message_values(message),
    }
}

/// The empty message, and for small types of Google's one that holds something.
fn message_values(message: &MessageDescriptor) -> Vec<Value> {
    let mut out = vec![Value::Message(DynamicMessage::new(message.clone()))];
    let mut with = |name: &str, value: Value| {
        let mut filled = DynamicMessage::new(message.clone());
        filled.set_field_by_name(name, value);
        out.push(Value::Message(filled));
    };
    match message.full_name() {
        "google.protobuf.Duration" => with("seconds", Value::I64(3)),
        "google.protobuf.Struct" => {
            let Some(Kind::Message(entry)) = message.get_field_by_name("fields").map(|field| field.kind()) else {
                return out;
            };
            let Kind::Message(value) = entry.map_entry_value_field().kind() else { return out };
            let mut text = DynamicMessage::new(value);
            text.set_field_by_name("string_value", Value::String("y".to_owned()));
            with("fields", Value::Map([(MapKey::String("x".to_owned()), Value::Message(text))].into()));
        }
        name if name.starts_with("google.protobuf.") && name.ends_with("Value") => {
            for field in message.fields().filter(|field| field.name() == "value") {
                kind_values(&field.kind()).into_iter().for_each(|value| with("value", value));
            }
        }
        _ => {}
    }
    out
}
