//! One visit to every message of a configuration, the contents of each `Any` included: constraints are checked, fields
//! of the support table found, unknown fields of binary input reported.

use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor, Value};

use super::walk::{MAX_ERRORS, UnknownField};
use super::wire::{Content, Shallow};
use crate::constraints::{self, Constraints, Violation, error_name, key_text};
use crate::descriptors;
use crate::diagnostics::ConfigError;
use crate::extensions;
use crate::paths::FieldPath;
use crate::support::{Support, Table};

/// A field that is set and has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoredField {
    /// Which field.
    pub path: FieldPath,
    /// Why it has no effect.
    pub reason: &'static str,
}

/// What a visit found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Violated constraints, fields that are refused, and unknown fields that are not allowed.
    pub errors: Vec<ConfigError>,
    /// Fields that are set and have no effect.
    pub ignored: Vec<IgnoredField>,
    /// Fields that are set and that Envoy calls deprecated.
    pub deprecated: Vec<FieldPath>,
    /// Unknown fields of binary input, if they are allowed.
    pub unknown: Vec<UnknownField>,
}

/// Visits the message in `bytes` and all messages in it.
pub fn inspect(descriptor: &MessageDescriptor, bytes: &[u8], allow_unknown: bool) -> Findings {
    Inspector::default().inspect(descriptor, bytes, allow_unknown)
}

/// Inspects many messages: the rules of each type are read once.
#[derive(Default)]
pub struct Inspector {
    constraints: Constraints,
}

impl Inspector {
    /// As [`inspect`].
    pub fn inspect(&mut self, descriptor: &MessageDescriptor, bytes: &[u8], allow_unknown: bool) -> Findings {
        let constraints = &mut self.constraints;
        let mut visit = Visit { constraints, table: Table::get(), allow_unknown, findings: Findings::default() };
        visit.message(descriptor, bytes, Way::Top(&FieldPath::root()), true, true);
        visit.findings
    }
}

struct Visit<'v> {
    constraints: &'v mut Constraints,
    table: &'static Table,
    allow_unknown: bool,
    findings: Findings,
}

/// How the visit came to a message, kept on the stack.
#[derive(Clone, Copy)]
enum Way<'w> {
    /// The message of the file, or the contents of an `Any`: Envoy's texts begin anew here.
    Top(&'w FieldPath),
    /// A field of the message before.
    Field { before: &'w Way<'w>, message: &'w str, field: &'w str, element: Element<'w> },
}

#[derive(Clone, Copy)]
enum Element<'w> {
    Whole,
    Index(usize),
    Key(&'w str),
}

impl Way<'_> {
    fn path(self) -> FieldPath {
        match self {
            Way::Top(path) => path.clone(),
            Way::Field { before, field, element, .. } => {
                let path = before.path().field(field.to_owned());
                match element {
                    Element::Whole => path,
                    Element::Index(index) => path.index(index),
                    Element::Key(key) => path.key(key),
                }
            }
        }
    }

    /// `AValidationError.B[0]: embedded message failed validation | caused by ` for each message on the way.
    fn causes(self) -> String {
        let Way::Field { before, message, field, element } = self else { return String::new() };
        let causes = before.causes();
        let name = error_name(field);
        let element = match element {
            Element::Whole => String::new(),
            Element::Index(index) => format!("[{index}]"),
            Element::Key(key) => format!("[{key}]"),
        };
        format!("{causes}{message}ValidationError.{name}{element}: embedded message failed validation | caused by ")
    }
}

impl Visit<'_> {
    /// `checked`: whether constraints count here; `supported`: whether this is not inside a field that is ignored.
    fn message(&mut self, descriptor: &MessageDescriptor, bytes: &[u8], way: Way<'_>, checked: bool, supported: bool) {
        let message = match Shallow::read(descriptor, bytes) {
            Ok(message) => message,
            Err(error) => {
                let text = format!("Unable to unpack as {}: {error}", descriptor.full_name());
                self.fail(ConfigError::new(way.path(), text));
                return;
            }
        };
        let rules = self.constraints.of(descriptor);
        if checked {
            for violation in rules.check(&message).into_iter().chain(rules.check_enums(&message)) {
                self.violation(violation, descriptor.name(), way);
            }
        }
        if !message.unknown.is_empty() {
            self.unknown(descriptor, &message.unknown, way);
        }
        let table = if supported { self.table.message(descriptor.full_name()) } else { None };
        for (field, content) in &message.fields {
            let step = |element| Way::Field { before: &way, message: descriptor.name(), field: field.name(), element };
            let supported = supported
                && match table.map(|table| table.field(field.name())) {
                    Some(support) if support != Support::Done && message.has(field) => {
                        self.unsupported(descriptor, support, step(Element::Whole));
                        false
                    }
                    _ => true,
                };
            if rules.is_deprecated(field.number()) && message.has(field) {
                self.findings.deprecated.push(step(Element::Whole).path());
            }
            let category = match supported {
                true => None,
                false => extensions::ignored_category(descriptor.full_name(), field.name()),
            };
            let checked = checked && !rules.skips(field.number());
            match content {
                Content::Value(_) | Content::Map(_, None) => {}
                Content::Message(descriptor, bytes) => {
                    self.ignored_extension(category, descriptor, bytes, step(Element::Whole));
                    self.inner(descriptor, bytes, step(Element::Whole), checked, supported);
                }
                Content::Messages(descriptor, list) => {
                    for (i, bytes) in list.iter().enumerate() {
                        self.ignored_extension(category, descriptor, bytes, step(Element::Index(i)));
                        self.inner(descriptor, bytes, step(Element::Index(i)), checked, supported);
                    }
                }
                Content::Map(_, Some((descriptor, entries))) => {
                    for (key, bytes) in entries {
                        let key = key_text(key);
                        let way = Way::Field {
                            before: &way,
                            message: descriptor.name(),
                            field: field.name(),
                            element: Element::Key(&key),
                        };
                        self.inner(descriptor, bytes, way, checked, supported);
                    }
                }
            }
        }
    }

    fn unsupported(&mut self, descriptor: &MessageDescriptor, support: Support, way: Way<'_>) {
        let path = way.path();
        match support {
            Support::Done => {}
            Support::Ignored(reason) => self.findings.ignored.push(IgnoredField { path, reason }),
            Support::Rejected(reason) => {
                let Way::Field { field, .. } = way else { return };
                let text = format!("{}.{field} is not supported: {reason}", descriptor.full_name());
                self.fail(ConfigError::new(path, text));
            }
        }
    }

    /// An extension that has no effect here has to be one that Envoy has. Each kind of message that holds one has a `name`
    /// and a `typed_config`.
    fn ignored_extension(
        &mut self,
        category: Option<&str>,
        descriptor: &MessageDescriptor,
        bytes: &[u8],
        way: Way<'_>,
    ) {
        let Some(category) = category else { return };
        // What cannot be decoded is told by the visit itself.
        let Ok(message) = DynamicMessage::decode(descriptor.clone(), bytes) else { return };
        let text = |message: &DynamicMessage, field: &str| {
            let value = message.get_field_by_name(field);
            value.as_deref().and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let config = message.get_field_by_name("typed_config");
        let url = config.as_deref().and_then(Value::as_message).map(|any| text(any, "type_url")).unwrap_or_default();
        let refused = extensions::check_ignored(category, &text(&message, "name"), descriptors::type_name(&url));
        if let Err(error) = refused {
            self.fail(ConfigError::new(way.path().field("typed_config"), error));
        }
    }

    fn inner(&mut self, descriptor: &MessageDescriptor, bytes: &[u8], way: Way<'_>, checked: bool, supported: bool) {
        if descriptor.package_name() != "google.protobuf" {
            return self.message(descriptor, bytes, way, checked, supported);
        }
        if descriptor.name() != "Any" {
            // Wrappers, durations and free-form structs have no rules of their own.
            return;
        }
        let any = match Any::decode(bytes) {
            Ok(any) => any,
            Err(error) => {
                let text = format!("Unable to unpack as google.protobuf.Any: {error}");
                self.fail(ConfigError::new(way.path(), text));
                return;
            }
        };
        if let Some(descriptor) = descriptors::message(descriptors::type_name(&any.type_url)) {
            let path = way.path();
            if descriptor.package_name() == "google.protobuf" {
                return self.inner(&descriptor, &any.value, Way::Top(&path), checked, supported);
            }
            self.message(&descriptor, &any.value, Way::Top(&path), true, supported);
        }
    }

    fn fail(&mut self, error: ConfigError) {
        if self.findings.errors.len() < MAX_ERRORS {
            self.findings.errors.push(error);
        }
    }

    fn violation(&mut self, violation: Violation, message: &str, way: Way<'_>) {
        let (path, what) = match (&violation.field, &violation.oneof) {
            (Some(field), _) => {
                let path = way.path().field(field.name().to_owned());
                let name = error_name(field.name());
                match &violation.element {
                    constraints::Element::Whole => (path, format!("{message}ValidationError.{name}")),
                    constraints::Element::Index(index) => {
                        (path.index(*index), format!("{message}ValidationError.{name}[{index}]"))
                    }
                    constraints::Element::Key(key) => {
                        (path.key(key), format!("key for {message}ValidationError.{name}[{key}]"))
                    }
                    constraints::Element::ValueOf(key) => {
                        (path.key(key), format!("{message}ValidationError.{name}[{key}]"))
                    }
                }
            }
            (None, Some(oneof)) => (way.path(), format!("field: \"{}\", reason", oneof.name())),
            (None, None) => (way.path(), format!("{message}ValidationError")),
        };
        let mut text = format!("Proto constraint validation failed ({}{what}: {})", way.causes(), violation.reason);
        if let Some(oneof) = &violation.oneof {
            let members: Vec<String> = oneof.fields().map(|field| field.name().to_owned()).collect();
            text.push_str(&format!(": set one of {}", members.join(", ")));
        }
        self.fail(ConfigError::new(path, text));
    }

    fn unknown(&mut self, descriptor: &MessageDescriptor, numbers: &[u32], way: Way<'_>) {
        let path = way.path();
        if self.allow_unknown {
            self.findings.unknown.push(UnknownField { path, position: None });
            return;
        }
        let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
        let text = format!(
            "Protobuf message (type {} with unknown field set {{{}}}) has unknown fields",
            descriptor.full_name(),
            numbers.join(", ")
        );
        self.fail(ConfigError::new(path, text));
    }
}
