//! Walks a tree beside the descriptors and writes the message in protobuf's wire format: proto3 JSON with all that
//! protobuf's reader in Envoy forgives. Errors do not stop the walk: what is wrong is reported and left out.
//!
//! Nothing is built in between: a configuration of ten thousand clusters costs no more than its bytes. What stands twice
//! merges by the rules of the wire format. Scalars and the well-known types that are written as strings are in
//! `scalars`; constraints come after the walk.

use std::collections::HashSet;

use prost::encoding::{self, WireType};
use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

use super::scalars;
use super::tree::{MAX_DEPTH, NodeId, Scalar, Tree, View};
use crate::descriptors;
use crate::diagnostics::{ConfigError, Position, closest};
use crate::paths::FieldPath;

/// How many values a walk visits at most beyond a few for each node of the text: aliases count each time, so that a small
/// text cannot become a huge message.
const MAX_REPEATED: u32 = 1_000_000;

/// How many errors one run reports at most.
pub(super) const MAX_ERRORS: usize = 1_000;

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
        Walk {
            tree,
            source,
            allow_unknown,
            budget: tree.size().saturating_mul(4).saturating_add(MAX_REPEATED),
            errors: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// The message of the whole text, encoded.
    pub(super) fn root(&mut self, descriptor: &MessageDescriptor) -> Vec<u8> {
        let mut out = Vec::new();
        let root = FieldPath::root();
        self.message(self.tree.root, &Path::Root(&root), descriptor, &mut out, 0);
        out
    }

    fn fail(&mut self, node: NodeId, path: &Path<'_>, message: impl Into<String>) {
        self.fail_with(node, path, message.into(), None);
    }

    fn fail_with(&mut self, node: NodeId, path: &Path<'_>, message: String, suggestion: Option<String>) {
        if self.errors.len() >= MAX_ERRORS {
            // Nobody reads on; what else the walk would find is not worth its time.
            self.budget = 0;
            return;
        }
        let position = self.tree.position(node, self.source);
        self.errors.push(ConfigError::new(path.to_field_path(), message).at(position).with_suggestion(suggestion));
    }

    /// Writes the fields of the message at the node, whatever its type.
    fn message(
        &mut self,
        node: NodeId,
        path: &Path<'_>,
        descriptor: &MessageDescriptor,
        out: &mut Vec<u8>,
        depth: usize,
    ) {
        if depth > MAX_DEPTH {
            return self.fail(node, path, format!("nested deeper than {MAX_DEPTH} levels"));
        }
        if descriptor.package_name() == "google.protobuf" {
            match descriptor.name() {
                "Any" => return self.any(node, path, out, depth),
                "Value" => return self.value(node, path, descriptor, out, depth),
                "Struct" => {
                    if let Some(fields) = descriptor.get_field(1) {
                        self.map(node, path, &fields, out, depth);
                    }
                    return;
                }
                _ => {}
            }
            if !matches!(self.tree.view(node), View::Mapping(_)) && self.special(node, path, descriptor, out, depth) {
                return;
            }
        }
        match self.tree.view(node) {
            View::Mapping(entries) => self.fields(entries, path, descriptor, out, depth, false),
            _ => {
                let found = scalars::describe(self.tree, node);
                self.fail(node, path, format!("expected a mapping ({}), found {found}", descriptor.full_name()));
            }
        }
    }

    /// The types with a form of their own; `false` if the message is none of them.
    fn special(
        &mut self,
        node: NodeId,
        path: &Path<'_>,
        descriptor: &MessageDescriptor,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> bool {
        let time = match descriptor.name() {
            "Duration" => scalars::duration(self.tree, node),
            "Timestamp" => scalars::timestamp(self.tree, node),
            "FieldMask" => {
                match scalars::field_mask(self.tree, node) {
                    Ok(paths) => encoding::string::encode_repeated(1, &paths, out),
                    Err(error) => self.fail(node, path, error),
                }
                return true;
            }
            "ListValue" => {
                if let Some(values) = descriptor.get_field(1) {
                    match self.tree.view(node) {
                        View::Sequence(_) => self.field(node, path, &values, out, depth),
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
                if let Some(value) = descriptor.get_field(1) {
                    self.singular(node, path, &value, out, depth);
                }
                return true;
            }
            _ => return false,
        };
        match time {
            Ok((seconds, nanos)) => {
                encoding::int64::encode(1, &seconds, out);
                encoding::int32::encode(2, &nanos, out);
            }
            Err(error) => self.fail(node, path, error),
        }
        true
    }

    fn fields(
        &mut self,
        entries: &[(NodeId, NodeId)],
        path: &Path<'_>,
        descriptor: &MessageDescriptor,
        out: &mut Vec<u8>,
        depth: usize,
        in_any: bool,
    ) {
        let mut oneofs_set = OneofsSet::default();
        for &(key, value) in entries {
            let name = self.tree.text(key).unwrap_or_default();
            if in_any && name == "@type" {
                continue;
            }
            let field = descriptor.get_field_by_name(name).or_else(|| descriptor.get_field_by_json_name(name));
            let Some(field) = field else {
                self.unknown_field(key, name, path, descriptor);
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
            self.field(value, &path, &field, out, depth + 1);
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
        let hint = if name == "<<" { " (merge keys are not part of the YAML that is read here)" } else { "" };
        let message = format!("no such field: '{name}' in {}{hint}", descriptor.full_name());
        self.fail_with(key, &path, message, suggestion);
    }

    /// Writes the field with the value at the node.
    fn field(&mut self, node: NodeId, path: &Path<'_>, field: &FieldDescriptor, out: &mut Vec<u8>, depth: usize) {
        if field.is_map() {
            self.map(node, path, field, out, depth);
        } else if !field.is_list() {
            self.singular(node, path, field, out, depth);
        } else if matches!(self.tree.view(node), View::Sequence(_)) {
            self.list(node, path, field, &mut 0, out, depth);
        } else {
            // Protobuf's reader takes one element in place of a list of it.
            self.singular(node, &Path::Index(path, 0), field, out, depth);
        }
    }

    fn list(
        &mut self,
        node: NodeId,
        path: &Path<'_>,
        field: &FieldDescriptor,
        count: &mut usize,
        out: &mut Vec<u8>,
        depth: usize,
    ) {
        let View::Sequence(items) = self.tree.view(node) else { return };
        let kind = field.kind();
        let nests = kind
            .as_message()
            .is_some_and(|m| matches!(m.full_name(), "google.protobuf.Value" | "google.protobuf.ListValue"));
        for &item in items {
            if !nests && depth < MAX_DEPTH && matches!(self.tree.view(item), View::Sequence(_)) {
                // A list in a list is flattened.
                self.list(item, path, field, count, out, depth + 1);
                continue;
            }
            let written = (!self.tree.is_null(item) || takes_null(field))
                && self.singular(item, &Path::Index(path, *count), field, out, depth);
            if !written {
                // A default takes the place of null and of what is wrong, so that what follows keeps its number.
                scalars::encode_default(field.number(), &kind, out);
            }
            *count += 1;
        }
    }

    fn map(&mut self, node: NodeId, path: &Path<'_>, field: &FieldDescriptor, out: &mut Vec<u8>, depth: usize) {
        let View::Mapping(entries) = self.tree.view(node) else {
            let found = scalars::describe(self.tree, node);
            return self.fail(node, path, format!("expected a mapping, found {found}"));
        };
        let Kind::Message(entry) = field.kind() else { return };
        let (key_kind, value_field) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field());
        let mut seen = HashSet::new();
        for &(key, value) in entries {
            let name = self.tree.text(key).unwrap_or_default();
            let path = Path::Key(path, name);
            if !seen.insert(name) {
                self.fail(key, &path, format!("got unexpectedly-repeated map key: '{name}'"));
                continue;
            }
            let start = out.len();
            let nested = begin(field.number(), out);
            if let Err(error) = scalars::encode_map_key(name, &key_kind, out) {
                out.truncate(start);
                self.fail(key, &path, error);
                continue;
            }
            if !self.tree.is_null(value) || takes_null(&value_field) {
                self.singular(value, &path, &value_field, out, depth + 1);
            }
            end(nested, out);
        }
    }

    /// Writes one value of the field's type; `false` after an error that left nothing behind.
    fn singular(
        &mut self,
        node: NodeId,
        path: &Path<'_>,
        field: &FieldDescriptor,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> bool {
        if self.budget == 0 {
            return false;
        }
        self.budget -= 1;
        if self.budget == 0 {
            self.fail(node, path, "aliases make the configuration too large");
            return false;
        }
        match field.kind() {
            Kind::Message(descriptor) => {
                let nested = begin(field.number(), out);
                self.message(node, path, &descriptor, out, depth);
                end(nested, out);
                true
            }
            Kind::Enum(descriptor) => match self.enumeration(node, path, &descriptor) {
                Some(number) => {
                    encoding::int32::encode(field.number(), &number, out);
                    true
                }
                None => false,
            },
            kind => match scalars::encode(self.tree, node, field.number(), &kind, out) {
                Ok(()) => true,
                Err(error) => {
                    self.fail(node, path, error);
                    false
                }
            },
        }
    }

    fn enumeration(&mut self, node: NodeId, path: &Path<'_>, descriptor: &EnumDescriptor) -> Option<i32> {
        let name = match self.tree.view(node) {
            View::Scalar(Scalar::Str(name)) => name,
            View::Scalar(Scalar::Null) => return Some(0),
            _ => {
                return match scalars::int32(self.tree, node) {
                    Ok(number) => Some(number),
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
        if number.is_some() {
            return number;
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

    fn any(&mut self, node: NodeId, path: &Path<'_>, out: &mut Vec<u8>, depth: usize) {
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
            && self.typed_struct(node, path, out, depth)
        {
            return;
        }
        encoding::string::encode(1, &type_url.into_owned(), out);
        let nested = begin(2, out);
        if descriptor.package_name() == "google.protobuf" && descriptor.name() != "Empty" {
            for &(key, value) in entries {
                match self.tree.text(key) {
                    Some("@type") => {}
                    Some("value") if self.tree.is_null(value) && descriptor.name() != "Value" => {}
                    Some("value") => self.message(value, path, &descriptor, out, depth + 1),
                    _ => self.fail(key, path, "fields in a well-known-typed Any must be @type or value"),
                }
            }
        } else {
            self.fields(entries, path, &descriptor, out, depth + 1, true);
        }
        end(nested, out);
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

    /// Writes the `Any` of the message inside a `TypedStruct`; `false` if its `type_url` names none that is known.
    fn typed_struct(&mut self, node: NodeId, path: &Path<'_>, out: &mut Vec<u8>, depth: usize) -> bool {
        let url_entry = self.tree.get(node, "type_url").or_else(|| self.tree.get(node, "typeUrl"));
        let Some(type_url) = url_entry.and_then(|(_, url)| self.tree.text(url)) else { return false };
        let Some(descriptor) = descriptors::message(descriptors::type_name(type_url)) else { return false };
        encoding::string::encode(1, &descriptors::type_url(type_url), out);
        if let Some((_, value)) = self.tree.get(node, "value").filter(|(_, value)| !self.tree.is_null(*value)) {
            let nested = begin(2, out);
            self.message(value, path, &descriptor, out, depth + 1);
            end(nested, out);
        }
        true
    }

    /// A `google.protobuf.Value`, which takes the type of what stands there.
    fn value(
        &mut self,
        node: NodeId,
        path: &Path<'_>,
        descriptor: &MessageDescriptor,
        out: &mut Vec<u8>,
        depth: usize,
    ) {
        let number = match self.tree.view(node) {
            View::Scalar(Scalar::Null) => 1,
            View::Scalar(Scalar::Int(_) | Scalar::Number(_)) => 2,
            View::Scalar(Scalar::Str(_)) => 3,
            View::Scalar(Scalar::Bool(_)) => 4,
            View::Mapping(_) => 5,
            View::Sequence(_) => 6,
        };
        if let Some(field) = descriptor.get_field(number) {
            self.singular(node, path, &field, out, depth + 1);
        }
    }
}

/// Begins a message in field `number`: its key, and room for its length.
fn begin(number: u32, out: &mut Vec<u8>) -> usize {
    encoding::encode_key(number, WireType::LengthDelimited, out);
    out.push(0);
    out.len()
}

/// Ends the message that began at `start`: writes its length.
fn end(start: usize, out: &mut Vec<u8>) {
    let length = out.len() - start;
    if length < 0x80 {
        out[start - 1] = length as u8;
        return;
    }
    let mut varint = Vec::with_capacity(10);
    encoding::encode_varint(length as u64, &mut varint);
    out.splice(start - 1..start, varint);
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
