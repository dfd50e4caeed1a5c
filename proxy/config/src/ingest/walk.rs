//! Walks a tree beside the descriptors and builds a [`DynamicMessage`]: proto3 JSON with all that protobuf's reader in
//! Envoy forgives. Errors do not stop the walk: what is wrong is reported and left out.
//!
//! Scalars and the well-known types with a form of their own are in `scalars`; constraints come after the walk.

use std::collections::HashMap;

use prost::Message as _;
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _, Value,
};

use super::scalars;
use super::tree::{MAX_DEPTH, NodeId, Scalar, Tree, View};
use crate::descriptors;
use crate::diagnostics::{ConfigError, Position, closest};
use crate::paths::FieldPath;

/// How many nodes a walk visits at most, aliases counted each time, so that a small text cannot become a huge message.
const MAX_NODES: u32 = 20_000_000;

/// A field that no message has, met where unknown fields are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownField {
    /// Its path, ending in the unknown name.
    pub path: FieldPath,
    /// Where it stands.
    pub position: Option<Position>,
}

/// The path of the walk, kept on the stack; it becomes a [`FieldPath`] only for an error.
#[derive(Clone, Copy)]
pub(super) enum Path<'p> {
    Root(&'p FieldPath),
    Field(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
    Key(&'p Path<'p>, &'p str),
}

impl Path<'_> {
    fn to_field_path(self) -> FieldPath {
        match self {
            Path::Root(path) => path.clone(),
            Path::Field(parent, name) => parent.to_field_path().field(name.to_owned()),
            Path::Index(parent, index) => parent.to_field_path().index(index),
            Path::Key(parent, key) => parent.to_field_path().key(key),
        }
    }
}

/// One walk over one text.
pub(super) struct Walk<'t> {
    pub(super) tree: &'t Tree<'t>,
    source: u32,
    allow_unknown: bool,
    budget: u32,
    pub(super) errors: Vec<ConfigError>,
    pub(super) unknown: Vec<UnknownField>,
}

impl<'t> Walk<'t> {
    pub(super) fn new(tree: &'t Tree<'t>, source: u32, allow_unknown: bool) -> Self {
        Walk { tree, source, allow_unknown, budget: MAX_NODES, errors: Vec::new(), unknown: Vec::new() }
    }

    /// The message of the whole text.
    pub(super) fn root(&mut self, descriptor: &MessageDescriptor) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        let root = FieldPath::root();
        self.message(self.tree.root, &Path::Root(&root), &mut message, 0);
        message
    }

    pub(super) fn fail(&mut self, node: NodeId, path: &Path<'_>, message: impl Into<String>) {
        let position = self.tree.position(node, self.source);
        self.errors.push(ConfigError::new(path.to_field_path(), message).at(position));
    }

    fn fail_with(&mut self, node: NodeId, path: &Path<'_>, message: String, suggestion: Option<String>) {
        let position = self.tree.position(node, self.source);
        self.errors.push(ConfigError::new(path.to_field_path(), message).at(position).with_suggestion(suggestion));
    }

    /// Reads the node into `message`, whatever its type; what is there already is merged with.
    pub(super) fn message(&mut self, node: NodeId, path: &Path<'_>, message: &mut DynamicMessage, depth: usize) {
        if depth > MAX_DEPTH {
            return self.fail(node, path, format!("nested deeper than {MAX_DEPTH} levels"));
        }
        let descriptor = message.descriptor();
        if descriptor.package_name() == "google.protobuf" {
            match descriptor.name() {
                "Any" => return self.any(node, path, message, depth),
                "Value" => return self.value(node, path, message, depth),
                "Struct" => {
                    if let Some(fields) = descriptor.get_field(1) {
                        self.map(node, path, &fields, message, depth);
                    }
                    return;
                }
                _ => {}
            }
            if !matches!(self.tree.view(node), View::Mapping(_)) && self.special(node, path, message, depth) {
                return;
            }
        }
        match self.tree.view(node) {
            View::Mapping(entries) => self.fields(entries, path, message, depth, false),
            _ => {
                let found = scalars::describe(self.tree, node);
                self.fail(node, path, format!("expected a mapping ({}), found {found}", descriptor.full_name()));
            }
        }
    }

    /// The types with a form of their own; `false` if `message` is none of them.
    fn special(&mut self, node: NodeId, path: &Path<'_>, message: &mut DynamicMessage, depth: usize) -> bool {
        let descriptor = message.descriptor();
        let built = match descriptor.name() {
            "Duration" => scalars::duration(self.tree, node),
            "Timestamp" => scalars::timestamp(self.tree, node),
            "FieldMask" => {
                match scalars::field_mask(self.tree, node) {
                    Ok(paths) => {
                        let paths = paths.into_iter().map(Value::String).collect();
                        let _ = message.try_set_field_by_name("paths", Value::List(paths));
                    }
                    Err(error) => self.fail(node, path, error),
                }
                return true;
            }
            "ListValue" => {
                if let Some(values) = descriptor.get_field(1) {
                    match self.tree.view(node) {
                        View::Sequence(_) => self.field(node, path, &values, message, depth),
                        _ => {
                            let found = scalars::describe(self.tree, node);
                            self.fail(node, path, format!("expected a list, found {found}"));
                        }
                    }
                }
                return true;
            }
            "DoubleValue" | "FloatValue" | "Int64Value" | "UInt64Value" | "Int32Value" | "UInt32Value"
            | "BoolValue" | "StringValue" | "BytesValue" => {
                if let Some(value) = descriptor.get_field(1)
                    && let Some(value_of) = self.singular(node, path, &value, depth, None)
                {
                    let _ = message.try_set_field(&value, value_of);
                }
                return true;
            }
            _ => return false,
        };
        match built {
            Ok((seconds, nanos)) => {
                let _ = message.try_set_field_by_name("seconds", Value::I64(seconds));
                let _ = message.try_set_field_by_name("nanos", Value::I32(nanos));
            }
            Err(error) => self.fail(node, path, error),
        }
        true
    }

    fn fields(
        &mut self,
        entries: &[(NodeId, NodeId)],
        path: &Path<'_>,
        message: &mut DynamicMessage,
        depth: usize,
        in_any: bool,
    ) {
        let descriptor = message.descriptor();
        let mut oneofs_set = OneofsSet::default();
        for &(key, value) in entries {
            let name = self.tree.text(key).unwrap_or_default();
            if in_any && name == "@type" {
                continue;
            }
            let field = descriptor.get_field_by_name(name).or_else(|| descriptor.get_field_by_json_name(name));
            let Some(field) = field else {
                self.unknown_field(key, name, path, &descriptor);
                continue;
            };
            if self.tree.is_null(value) && (field.is_list() || field.is_map() || !takes_null(&field)) {
                continue;
            }
            let path = Path::Field(path, field.name());
            if let Some(oneof) = field.containing_oneof().filter(|oneof| !oneof.is_synthetic())
                && let Some(other) = oneofs_set.set(oneof.name(), field.name())
            {
                let message = format!(
                    "'{}' has already been set (either directly or as part of a oneof): only one field of '{}' may be \
                     set, and '{other}' is",
                    field.name(),
                    oneof.name(),
                );
                self.fail(key, &path, message);
                continue;
            }
            self.field(value, &path, &field, message, depth + 1);
        }
    }

    fn unknown_field(&mut self, key: NodeId, name: &str, path: &Path<'_>, descriptor: &MessageDescriptor) {
        let path = Path::Field(path, name);
        if self.allow_unknown {
            let position = Some(self.tree.position(key, self.source));
            self.unknown.push(UnknownField { path: path.to_field_path(), position });
            return;
        }
        let fields: Vec<FieldDescriptor> = descriptor.fields().collect();
        let suggestion = closest(name, fields.iter().map(FieldDescriptor::name)).map(str::to_owned);
        self.fail_with(key, &path, format!("no such field: '{name}' in {}", descriptor.full_name()), suggestion);
    }

    /// Reads the node into `field` of `message`.
    fn field(
        &mut self,
        node: NodeId,
        path: &Path<'_>,
        field: &FieldDescriptor,
        message: &mut DynamicMessage,
        depth: usize,
    ) {
        if field.is_map() {
            return self.map(node, path, field, message, depth);
        }
        if field.is_list() {
            let mut list = match message.take_field(field) {
                Some(Value::List(list)) => list,
                _ => Vec::new(),
            };
            match self.tree.view(node) {
                View::Sequence(_) => self.list(node, path, field, &mut list, depth),
                // Protobuf's reader takes one element in place of a list of it.
                _ => list.extend(self.singular(node, &Path::Index(path, list.len()), field, depth, None)),
            }
            let _ = message.try_set_field(field, Value::List(list));
            return;
        }
        let before = match field.kind() {
            Kind::Message(_) => message.take_field(field),
            _ => None,
        };
        if let Some(value) = self.singular(node, path, field, depth, before) {
            let _ = message.try_set_field(field, value);
        }
    }

    fn list(&mut self, node: NodeId, path: &Path<'_>, field: &FieldDescriptor, list: &mut Vec<Value>, depth: usize) {
        let View::Sequence(items) = self.tree.view(node) else { return };
        let kind = field.kind();
        let nests = kind
            .as_message()
            .is_some_and(|m| matches!(m.full_name(), "google.protobuf.Value" | "google.protobuf.ListValue"));
        for &item in items {
            if !nests && depth < MAX_DEPTH && matches!(self.tree.view(item), View::Sequence(_)) {
                // A list in a list is flattened.
                self.list(item, path, field, list, depth + 1);
                continue;
            }
            let value = match self.tree.is_null(item) && !takes_null(field) {
                true => None,
                false => self.singular(item, &Path::Index(path, list.len()), field, depth, None),
            };
            // A default takes the place of null and of what is wrong, so that the places after it keep their numbers.
            list.push(value.unwrap_or_else(|| match &kind {
                Kind::Message(descriptor) => Value::Message(DynamicMessage::new(descriptor.clone())),
                kind => Value::default_value(kind),
            }));
        }
    }

    fn map(
        &mut self,
        node: NodeId,
        path: &Path<'_>,
        field: &FieldDescriptor,
        message: &mut DynamicMessage,
        depth: usize,
    ) {
        let View::Mapping(entries) = self.tree.view(node) else {
            let found = scalars::describe(self.tree, node);
            return self.fail(node, path, format!("expected a mapping, found {found}"));
        };
        let Kind::Message(entry) = field.kind() else { return };
        let (key_kind, value_field) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field());
        let mut map = match message.take_field(field) {
            Some(Value::Map(map)) => map,
            _ => HashMap::new(),
        };
        for &(key, value) in entries {
            let name = self.tree.text(key).unwrap_or_default();
            let path = Path::Key(path, name);
            let map_key = match scalars::map_key(name, &key_kind) {
                Ok(map_key) => map_key,
                Err(error) => {
                    self.fail(key, &path, error);
                    continue;
                }
            };
            if map.contains_key(&map_key) {
                self.fail(key, &path, format!("got unexpectedly-repeated map key: '{name}'"));
                continue;
            }
            let value = if self.tree.is_null(value) && !takes_null(&value_field) {
                Some(Value::default_value_for_field(&value_field))
            } else {
                self.singular(value, &path, &value_field, depth + 1, None)
            };
            if let Some(value) = value {
                map.insert(map_key, value);
            }
        }
        let _ = message.try_set_field(field, Value::Map(map));
    }

    /// One value of the field's type; `before` is a message to merge with. `None` after an error.
    fn singular(
        &mut self,
        node: NodeId,
        path: &Path<'_>,
        field: &FieldDescriptor,
        depth: usize,
        before: Option<Value>,
    ) -> Option<Value> {
        if self.budget == 0 {
            return None;
        }
        self.budget -= 1;
        if self.budget == 0 {
            self.fail(node, path, format!("the configuration has more than {MAX_NODES} values"));
            return None;
        }
        let kind = field.kind();
        match kind {
            Kind::Message(descriptor) => {
                let mut message = match before {
                    Some(Value::Message(message)) => message,
                    _ => DynamicMessage::new(descriptor),
                };
                self.message(node, path, &mut message, depth);
                Some(Value::Message(message))
            }
            Kind::Enum(descriptor) => self.enumeration(node, path, &descriptor),
            kind => match scalars::scalar(self.tree, node, &kind) {
                Ok(value) => Some(value),
                Err(error) => {
                    self.fail(node, path, error);
                    None
                }
            },
        }
    }

    fn enumeration(&mut self, node: NodeId, path: &Path<'_>, descriptor: &EnumDescriptor) -> Option<Value> {
        let name = match self.tree.view(node) {
            View::Scalar(Scalar::Str(name)) => name,
            View::Scalar(Scalar::Null) => return Some(Value::EnumNumber(0)),
            _ => {
                return match scalars::scalar(self.tree, node, &Kind::Int32) {
                    Ok(Value::I32(number)) => Some(Value::EnumNumber(number)),
                    _ => {
                        let found = scalars::describe(self.tree, node);
                        let message = format!(
                            "expected the name or number of a value of {}, found {found}",
                            descriptor.full_name()
                        );
                        self.fail(node, path, message);
                        None
                    }
                };
            }
        };
        let number = descriptor
            .get_value_by_name(&name)
            .or_else(|| descriptor.values().find(|value| value.name().eq_ignore_ascii_case(&name)))
            .map(|value| value.number())
            .or_else(|| name.parse().ok());
        if let Some(number) = number {
            return Some(Value::EnumNumber(number));
        }
        if self.allow_unknown {
            let position = Some(self.tree.position(node, self.source));
            self.unknown.push(UnknownField { path: path.to_field_path(), position });
            return None;
        }
        let values: Vec<_> = descriptor.values().collect();
        let suggestion = closest(&name, values.iter().map(|value| value.name())).map(str::to_owned);
        let message = format!("unknown enum value: '{name}' for {}", descriptor.full_name());
        self.fail_with(node, path, message, suggestion);
        None
    }

    fn any(&mut self, node: NodeId, path: &Path<'_>, any: &mut DynamicMessage, depth: usize) {
        let View::Mapping(entries) = self.tree.view(node) else {
            let found = scalars::describe(self.tree, node);
            return self.fail(node, path, format!("expected a mapping with '@type', found {found}"));
        };
        let Some((key, url_node)) = self.tree.get(node, "@type") else {
            if !entries.is_empty() {
                self.fail(node, path, "missing '@type': it names the message that the other fields belong to");
            }
            return;
        };
        if entries.iter().filter(|(k, _)| self.tree.text(*k) == Some("@type")).count() > 1 {
            return self.fail(key, path, "repeated @type in Any");
        }
        let View::Scalar(Scalar::Str(type_url)) = self.tree.view(url_node) else {
            return self.fail(url_node, path, "'@type' must be a string");
        };
        if type_url.find('/').is_none_or(|slash| slash == 0) {
            let message = format!("@type must contain at least one / and a nonempty host; got: {type_url}");
            let suggestion = descriptors::message(&type_url).map(|m| format!("type.googleapis.com/{}", m.full_name()));
            return self.fail_with(url_node, path, message, suggestion);
        }
        let Some(descriptor) = descriptors::message(descriptors::type_name(&type_url)) else {
            return self.unknown_type(url_node, &type_url, path);
        };
        if matches!(descriptor.full_name(), "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct")
            && let Some((type_url, message)) = self.typed_struct(node, path, depth)
        {
            return pack(any, type_url, &message);
        }
        let mut message = DynamicMessage::new(descriptor.clone());
        if descriptor.package_name() == "google.protobuf" && descriptor.name() != "Empty" {
            for &(key, value) in entries {
                match self.tree.text(key) {
                    Some("@type") => {}
                    Some("value") if self.tree.is_null(value) && descriptor.name() != "Value" => {}
                    Some("value") => self.message(value, path, &mut message, depth + 1),
                    _ => self.fail(key, path, "fields in a well-known-typed Any must be @type or value"),
                }
            }
        } else {
            self.fields(entries, path, &mut message, depth + 1, true);
        }
        pack(any, type_url.into_owned(), &message);
    }

    fn unknown_type(&mut self, node: NodeId, type_url: &str, path: &Path<'_>) {
        let (host, name) = type_url.rsplit_once('/').unwrap_or(("type.googleapis.com", type_url));
        let known: Vec<MessageDescriptor> =
            descriptors::pool().all_messages().filter(|m| m.parent_message().is_none()).collect();
        let last = name.rsplit('.').next().unwrap_or(name);
        // The same message in another package is the likelier mistake; else the closest full name.
        let same: Vec<&str> = known.iter().filter(|m| m.name() == last).map(MessageDescriptor::full_name).collect();
        let suggestion = match same.as_slice() {
            [] => closest(name, known.iter().map(MessageDescriptor::full_name)),
            same => same.iter().copied().max_by(|a, b| strsim::jaro(name, a).total_cmp(&strsim::jaro(name, b))),
        };
        let suggestion = suggestion.map(|name| format!("{host}/{name}"));
        self.fail_with(node, path, format!("could not find @type '{type_url}'"), suggestion);
    }

    /// The message inside a `TypedStruct`, if its `type_url` names one that is known.
    fn typed_struct(&mut self, node: NodeId, path: &Path<'_>, depth: usize) -> Option<(String, DynamicMessage)> {
        let (_, url_node) = self.tree.get(node, "type_url").or_else(|| self.tree.get(node, "typeUrl"))?;
        let type_url = self.tree.text(url_node)?;
        let descriptor = descriptors::message(descriptors::type_name(type_url))?;
        let type_url = match type_url.contains('/') {
            true => type_url.to_owned(),
            false => format!("type.googleapis.com/{type_url}"),
        };
        let mut message = DynamicMessage::new(descriptor);
        if let Some((_, value)) = self.tree.get(node, "value").filter(|(_, value)| !self.tree.is_null(*value)) {
            self.message(value, path, &mut message, depth + 1);
        }
        Some((type_url, message))
    }

    fn value(&mut self, node: NodeId, path: &Path<'_>, message: &mut DynamicMessage, depth: usize) {
        let value = match self.tree.view(node) {
            View::Scalar(Scalar::Null) => ("null_value", Value::EnumNumber(0)),
            View::Scalar(Scalar::Bool(value)) => ("bool_value", Value::Bool(value)),
            View::Scalar(Scalar::Str(value)) => ("string_value", Value::String(value.into_owned())),
            View::Scalar(Scalar::Int(_) | Scalar::Number(_)) => match scalars::scalar(self.tree, node, &Kind::Double) {
                Ok(value) => ("number_value", value),
                Err(error) => return self.fail(node, path, error),
            },
            View::Sequence(_) | View::Mapping(_) => {
                let name = match self.tree.view(node) {
                    View::Sequence(_) => "list_value",
                    _ => "struct_value",
                };
                let descriptor = message.descriptor();
                if let Some(field) = descriptor.get_field_by_name(name) {
                    self.field(node, path, &field, message, depth + 1);
                }
                return;
            }
        };
        let _ = message.try_set_field_by_name(value.0, value.1);
    }
}

fn pack(any: &mut DynamicMessage, type_url: String, message: &DynamicMessage) {
    let _ = any.try_set_field_by_number(1, Value::String(type_url));
    let _ = any.try_set_field_by_number(2, Value::Bytes(message.encode_to_vec().into()));
}

/// Whether null is a value of the field's type and not the absence of one.
fn takes_null(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(message) => message.full_name() == "google.protobuf.Value",
        Kind::Enum(descriptor) => descriptor.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}

/// Which member of each oneof of one message has been set.
#[derive(Default)]
struct OneofsSet(Vec<(String, String)>);

impl OneofsSet {
    /// Notes that `field` is set; the member that was set before, if any.
    fn set(&mut self, oneof: &str, field: &str) -> Option<String> {
        if let Some((_, before)) = self.0.iter().find(|(name, _)| name == oneof) {
            return Some(before.clone());
        }
        self.0.push((oneof.to_owned(), field.to_owned()));
        None
    }
}
