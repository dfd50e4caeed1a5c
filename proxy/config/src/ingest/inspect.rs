//! One visit to every message of a configuration, the contents of each `Any` included: constraints are checked, fields
//! of the support table found, unknown fields of binary input reported.

use prost_reflect::{DynamicMessage, MapKey, ReflectMessage as _, Value};

use super::walk::UnknownField;
use crate::constraints::{self, Constraints, Violation, error_name, key_text};
use crate::descriptors;
use crate::diagnostics::ConfigError;
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
    /// Unknown fields of binary input, if they are allowed.
    pub unknown: Vec<UnknownField>,
}

/// Visits `message` and all messages in it.
pub fn inspect(message: &DynamicMessage, allow_unknown: bool) -> Findings {
    let mut visit =
        Visit { constraints: Constraints::new(), table: Table::get(), allow_unknown, findings: Findings::default() };
    visit.top(message, &FieldPath::root());
    visit.findings
}

struct Visit {
    constraints: Constraints,
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

impl Visit {
    fn top(&mut self, message: &DynamicMessage, path: &FieldPath) {
        self.message(message, Way::Top(path), true, true);
    }

    /// `checked`: whether constraints count here; `supported`: whether this is not inside a field that is ignored.
    fn message(&mut self, message: &DynamicMessage, way: Way<'_>, checked: bool, supported: bool) {
        let descriptor = message.descriptor();
        let rules = self.constraints.of(&descriptor);
        if checked {
            for violation in rules.check(message).into_iter().chain(rules.check_enums(message)) {
                self.violation(violation, descriptor.name(), way);
            }
        }
        if message.unknown_fields().next().is_some() {
            self.unknown(message, way);
        }
        let table = if supported { self.table.message(descriptor.full_name()) } else { None };
        for (field, value) in message.fields() {
            let mut supported = supported;
            match table.map(|table| table.field(field.name())) {
                Some(Support::Ignored(reason)) => {
                    let step = Way::Field { before: &way, message: "", field: field.name(), element: Element::Whole };
                    self.findings.ignored.push(IgnoredField { path: step.path(), reason });
                    supported = false;
                }
                Some(Support::Rejected(reason)) => {
                    let step = Way::Field { before: &way, message: "", field: field.name(), element: Element::Whole };
                    let text = format!("{}.{} is not supported: {reason}", descriptor.full_name(), field.name());
                    self.findings.errors.push(ConfigError::new(step.path(), text));
                    supported = false;
                }
                Some(Support::Done) | None => {}
            }
            let checked = checked && !rules.skips(field.number());
            let step = |element| Way::Field { before: &way, message: descriptor.name(), field: field.name(), element };
            match value {
                Value::Message(inner) => self.inner(inner, step(Element::Whole), checked, supported),
                Value::List(list) => {
                    for (i, item) in list.iter().enumerate() {
                        let Value::Message(inner) = item else { break };
                        self.inner(inner, step(Element::Index(i)), checked, supported);
                    }
                }
                Value::Map(map) if map.values().any(|value| matches!(value, Value::Message(_))) => {
                    let mut entries: Vec<(&MapKey, &Value)> = map.iter().collect();
                    entries.sort_by(|a, b| a.0.cmp(b.0));
                    for (key, value) in entries {
                        let Value::Message(inner) = value else { break };
                        let key = key_text(key);
                        let step = Way::Field {
                            before: &way,
                            message: descriptor.name(),
                            field: field.name(),
                            element: Element::Key(&key),
                        };
                        self.inner(inner, step, checked, supported);
                    }
                }
                _ => {}
            }
        }
    }

    fn inner(&mut self, message: &DynamicMessage, way: Way<'_>, checked: bool, supported: bool) {
        if message.descriptor().package_name() != "google.protobuf" {
            return self.message(message, way, checked, supported);
        }
        if message.descriptor().name() != "Any" {
            // Wrappers, durations and free-form structs have no rules of their own.
            return;
        }
        let (Some(url), Some(bytes)) = (message.get_field_by_name("type_url"), message.get_field_by_name("value"))
        else {
            return;
        };
        let (Some(url), Some(bytes)) = (url.as_str(), bytes.as_bytes()) else { return };
        match descriptors::any_to_dynamic(url, bytes) {
            Some(Ok(contents)) => self.message(&contents, Way::Top(&way.path()), true, supported),
            Some(Err(error)) => {
                let text = format!("Unable to unpack as {}: {error}", descriptors::type_name(url));
                self.findings.errors.push(ConfigError::new(way.path(), text));
            }
            None => {}
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
        self.findings.errors.push(ConfigError::new(path, text));
    }

    fn unknown(&mut self, message: &DynamicMessage, way: Way<'_>) {
        let path = way.path();
        if self.allow_unknown {
            self.findings.unknown.push(UnknownField { path, position: None });
            return;
        }
        let mut numbers: Vec<String> = message.unknown_fields().map(|field| field.number().to_string()).collect();
        numbers.dedup();
        let text = format!(
            "Protobuf message (type {} with unknown field set {{{}}}) has unknown fields",
            message.descriptor().full_name(),
            numbers.join(", ")
        );
        self.findings.errors.push(ConfigError::new(path, text));
    }
}
