//! The protoc-gen-validate rules in Envoy's `.proto` files, interpreted by reflection, in Envoy's wording.
//!
//! The inspection of the ingest asks for the rules of each message that it visits; they are compiled once per type. The
//! rules that Envoy's C++ does not check (addresses, URIs) are not checked here either.

use std::rc::Rc;

use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    OneofDescriptor, ReflectMessage as _, Value,
};
use regex::Regex;
use rustc_hash::FxHashMap;

use crate::descriptors;
use crate::ingest::Shallow;

/// The rules of all message types met so far.
pub struct Constraints {
    annotations: Option<Annotations>,
    compiled: FxHashMap<String, Rc<MessageRules>>,
}

struct Annotations {
    field: ExtensionDescriptor,
    oneof_required: ExtensionDescriptor,
    disabled: ExtensionDescriptor,
    ignored: ExtensionDescriptor,
}

/// The rules of one message type.
#[derive(Default)]
pub struct MessageRules {
    fields: Vec<(FieldDescriptor, FieldRules)>,
    required_oneofs: Vec<OneofDescriptor>,
    skipped: Vec<u32>,
    deprecated: Vec<u32>,
}

/// A rule that a message breaks.
pub struct Violation {
    /// The field; `None` for a oneof of which no member is set.
    pub field: Option<FieldDescriptor>,
    /// The oneof of which no member is set.
    pub oneof: Option<OneofDescriptor>,
    /// Which element of the field, if it is not the field as a whole.
    pub element: Element,
    /// What is wrong, in Envoy's words.
    pub reason: String,
}

/// A part of a repeated or map field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Element {
    /// The field as a whole.
    Whole,
    /// An element of a list.
    Index(usize),
    /// The key of a map entry.
    Key(String),
    /// The value of a map entry.
    ValueOf(String),
}

#[derive(Default)]
struct FieldRules {
    required: bool,
    ignore_empty: bool,
    check: Check,
}

#[derive(Default)]
enum Check {
    #[default]
    None,
    Integer(Limits<i128>),
    Float(Limits<f64>),
    Duration(Limits<i128>),
    Bool(bool),
    Text(Box<TextRules>),
    Bytes(Lengths),
    Enum(Limits<i128>, bool),
    Repeated(Box<RepeatedRules>),
    Map(Box<MapRules>),
    Any {
        one_of: Vec<String>,
        none_of: Vec<String>,
    },
}

struct Limits<T> {
    equal: Option<T>,
    lt: Option<T>,
    lte: Option<T>,
    gt: Option<T>,
    gte: Option<T>,
    one_of: Vec<T>,
    none_of: Vec<T>,
}

#[derive(Default, Clone, Copy)]
struct Lengths {
    exact: Option<u64>,
    min: Option<u64>,
    max: Option<u64>,
}

struct TextRules {
    equal: Option<String>,
    characters: Lengths,
    bytes: Lengths,
    prefix: Option<String>,
    suffix: Option<String>,
    contains: Option<String>,
    not_contains: Option<String>,
    pattern: Option<(Regex, String)>,
    one_of: Vec<String>,
    none_of: Vec<String>,
}

struct RepeatedRules {
    items: Lengths,
    unique: bool,
    each: FieldRules,
}

struct MapRules {
    pairs: Lengths,
    keys: FieldRules,
    values: FieldRules,
}

impl Default for Constraints {
    fn default() -> Self {
        Self::new()
    }
}

impl Constraints {
    /// No rules compiled yet.
    pub fn new() -> Self {
        Constraints { annotations: Annotations::of(&descriptors::pool()), compiled: FxHashMap::default() }
    }

    /// The rules of `descriptor`.
    pub fn of(&mut self, descriptor: &MessageDescriptor) -> Rc<MessageRules> {
        if let Some(rules) = self.compiled.get(descriptor.full_name()) {
            return rules.clone();
        }
        let rules = Rc::new(match &self.annotations {
            Some(annotations) => MessageRules::compile(descriptor, annotations),
            None => MessageRules::default(),
        });
        self.compiled.insert(descriptor.full_name().to_owned(), rules.clone());
        rules
    }
}

impl Annotations {
    fn of(pool: &DescriptorPool) -> Option<Self> {
        Some(Annotations {
            field: pool.get_extension_by_name("validate.rules")?,
            oneof_required: pool.get_extension_by_name("validate.required")?,
            disabled: pool.get_extension_by_name("validate.disabled")?,
            ignored: pool.get_extension_by_name("validate.ignored")?,
        })
    }
}

impl MessageRules {
    fn compile(descriptor: &MessageDescriptor, annotations: &Annotations) -> Self {
        let options = descriptor.options();
        let is_deprecated = |field: &FieldDescriptor| flag(&field.options(), "deprecated");
        let set = |options: &DynamicMessage, extension: &ExtensionDescriptor| {
            options.get_extension(extension).as_bool().unwrap_or(false)
        };
        let mut rules = MessageRules {
            deprecated: descriptor.fields().filter(is_deprecated).map(|field| field.number()).collect(),
            ..MessageRules::default()
        };
        if set(&options, &annotations.disabled) || set(&options, &annotations.ignored) {
            return rules;
        }
        for oneof in descriptor.oneofs() {
            if set(&oneof.options(), &annotations.oneof_required) {
                rules.required_oneofs.push(oneof);
            }
        }
        for field in descriptor.fields() {
            let options = field.options();
            if !options.has_extension(&annotations.field) {
                continue;
            }
            let extension = options.get_extension(&annotations.field);
            let Some(message) = extension.as_message() else { continue };
            if sub(message, "message").is_some_and(|m| flag(&m, "skip")) {
                rules.skipped.push(field.number());
            }
            let compiled = FieldRules::compile(message);
            if compiled.required || !matches!(compiled.check, Check::None) {
                rules.fields.push((field, compiled));
            }
        }
        rules
    }

    /// Whether the rules inside the message in field `number` do not count.
    pub fn skips(&self, number: u32) -> bool {
        self.skipped.contains(&number)
    }

    /// Whether Envoy calls field `number` deprecated.
    pub fn is_deprecated(&self, number: u32) -> bool {
        self.deprecated.contains(&number)
    }

    /// What `message` breaks; the messages inside it are not looked at.
    pub(crate) fn check(&self, message: &Shallow<'_>) -> Vec<Violation> {
        let mut violations = Vec::new();
        for oneof in &self.required_oneofs {
            if !oneof.fields().any(|field| message.has(&field)) {
                violations.push(Violation {
                    field: None,
                    oneof: Some(oneof.clone()),
                    element: Element::Whole,
                    reason: "is required".to_owned(),
                });
            }
        }
        for (field, rules) in &self.fields {
            let present = message.has(field);
            if !present && (field.supports_presence() || rules.ignore_empty) {
                // Only what has presence can be required: messages and members of a oneof.
                if rules.required && field.containing_oneof().is_none() {
                    violations.push(Violation::of(field, Element::Whole, "value is required"));
                }
                continue;
            }
            let value = message.value(field);
            rules.check(&value, Element::Whole, &mut |element, reason| {
                violations.push(Violation::of(field, element, reason));
            });
        }
        violations
    }
}

impl Violation {
    fn of(field: &FieldDescriptor, element: Element, reason: impl Into<String>) -> Self {
        Violation { field: Some(field.clone()), oneof: None, element, reason: reason.into() }
    }
}

impl FieldRules {
    fn compile(rules: &DynamicMessage) -> Self {
        let mut compiled = FieldRules {
            required: sub(rules, "message").is_some_and(|m| flag(&m, "required")),
            ..FieldRules::default()
        };
        let Some(oneof) = rules.descriptor().oneofs().find(|oneof| oneof.name() == "type") else { return compiled };
        let Some(field) = oneof.fields().find(|field| rules.has_field(field)) else { return compiled };
        let value = rules.get_field(&field);
        let Some(of) = value.as_message() else { return compiled };
        compiled.ignore_empty = flag(of, "ignore_empty");
        compiled.required |= flag(of, "required");
        compiled.check = match field.name() {
            "float" | "double" => Check::Float(Limits::compile(of, as_float)),
            "int32" | "int64" | "uint32" | "uint64" | "sint32" | "sint64" | "fixed32" | "fixed64" | "sfixed32"
            | "sfixed64" => Check::Integer(Limits::compile(of, as_integer)),
            "bool" => match get(of, "const").and_then(|v| v.as_bool()) {
                Some(value) => Check::Bool(value),
                None => Check::None,
            },
            "string" => Check::Text(Box::new(TextRules::compile(of))),
            "bytes" => Check::Bytes(Lengths::compile(of, "len", "min_len", "max_len")),
            "enum" => Check::Enum(Limits::compile(of, as_integer), flag(of, "defined_only")),
            "repeated" => Check::Repeated(Box::new(RepeatedRules {
                items: Lengths::compile(of, "", "min_items", "max_items"),
                unique: flag(of, "unique"),
                each: sub(of, "items").map(|rules| FieldRules::compile(&rules)).unwrap_or_default(),
            })),
            "map" => Check::Map(Box::new(MapRules {
                pairs: Lengths::compile(of, "", "min_pairs", "max_pairs"),
                keys: sub(of, "keys").map(|rules| FieldRules::compile(&rules)).unwrap_or_default(),
                values: sub(of, "values").map(|rules| FieldRules::compile(&rules)).unwrap_or_default(),
            })),
            "any" => Check::Any { one_of: texts(of, "in"), none_of: texts(of, "not_in") },
            "duration" => Check::Duration(Limits::compile(of, as_nanos)),
            _ => Check::None,
        };
        compiled
    }

    fn check(&self, value: &Value, element: Element, report: &mut dyn FnMut(Element, String)) {
        if self.ignore_empty && is_empty(value) {
            return;
        }
        // The rules of a wrapper are those of what it wraps.
        if let Value::Message(message) = value
            && !matches!(self.check, Check::None | Check::Duration(_) | Check::Any { .. })
        {
            if let Some(field) = message.descriptor().get_field(1) {
                self.check(&message.get_field(&field), element, report);
            }
            return;
        }
        let broken = match (&self.check, value) {
            (Check::Integer(limits), value) => {
                as_integer(value).and_then(|value| limits.check(value, |v| v.to_string()))
            }
            (Check::Float(limits), value) => as_float(value).and_then(|value| limits.check(value, |v| v.to_string())),
            (Check::Duration(limits), value) => as_nanos(value).and_then(|value| limits.check(value, go_duration)),
            (Check::Bool(expected), Value::Bool(value)) if value != expected => {
                Some(format!("value must equal {expected}"))
            }
            (Check::Text(rules), Value::String(value)) => rules.check(value),
            (Check::Bytes(lengths), Value::Bytes(value)) => lengths.check(value.len(), "bytes", Lengths::LENGTH),
            (Check::Enum(limits, _), Value::EnumNumber(number)) => limits.check(i128::from(*number), |v| v.to_string()),
            (Check::Any { one_of, none_of }, Value::Message(any)) => {
                let url = any.get_field_by_name("type_url").and_then(|v| v.as_str().map(str::to_owned));
                check_type_url(&url.unwrap_or_default(), one_of, none_of)
            }
            (Check::Repeated(rules), Value::List(list)) => {
                rules.check(list, report);
                None
            }
            (Check::Map(rules), Value::Map(map)) => {
                if let Some(reason) = rules.pairs.check(map.len(), "pair", Lengths::COUNT) {
                    report(Element::Whole, reason);
                }
                for (key, value) in map {
                    let name = key_text(key);
                    rules.keys.check(&Value::from(key.clone()), Element::Key(name.clone()), report);
                    rules.values.check(value, Element::ValueOf(name), report);
                }
                None
            }
            _ => None,
        };
        if let Some(reason) = broken {
            report(element, reason);
        }
    }

    /// The rule that an enum may only have defined values; it needs the enum's descriptor.
    fn defined_only(&self) -> bool {
        match &self.check {
            Check::Enum(_, defined_only) => *defined_only,
            Check::Repeated(rules) => rules.each.defined_only(),
            Check::Map(rules) => rules.values.defined_only(),
            _ => false,
        }
    }
}

impl MessageRules {
    /// Enum fields with a number that the enum does not define, where a rule forbids that.
    pub(crate) fn check_enums(&self, message: &Shallow<'_>) -> Vec<Violation> {
        const REASON: &str = "value must be one of the defined enum values";
        let mut violations = Vec::new();
        for (field, _) in self.fields.iter().filter(|(_, rules)| rules.defined_only()) {
            let undefined = |kind: &Kind, value: &Value| match (kind, value) {
                (Kind::Enum(descriptor), Value::EnumNumber(number)) => descriptor.get_value(*number).is_none(),
                _ => false,
            };
            let kind = match field.kind() {
                Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
                kind => kind,
            };
            match message.value(field).as_ref() {
                Value::List(list) => {
                    for (i, _) in list.iter().enumerate().filter(|(_, value)| undefined(&kind, value)) {
                        violations.push(Violation::of(field, Element::Index(i), REASON));
                    }
                }
                Value::Map(map) => {
                    for (key, _) in map.iter().filter(|(_, value)| undefined(&kind, value)) {
                        violations.push(Violation::of(field, Element::ValueOf(key_text(key)), REASON));
                    }
                }
                value if undefined(&kind, value) => violations.push(Violation::of(field, Element::Whole, REASON)),
                _ => {}
            }
        }
        violations
    }
}

impl RepeatedRules {
    fn check(&self, list: &[Value], report: &mut dyn FnMut(Element, String)) {
        if let Some(reason) = self.items.check(list.len(), "item", Lengths::COUNT) {
            report(Element::Whole, reason);
        }
        for (i, value) in list.iter().enumerate() {
            if self.unique && list[..i].contains(value) {
                report(Element::Index(i), "repeated value must contain unique items".to_owned());
            }
            self.each.check(value, Element::Index(i), report);
        }
    }
}

impl TextRules {
    fn compile(of: &DynamicMessage) -> Self {
        let strict = get(of, "strict").and_then(|v| v.as_bool()).unwrap_or(true);
        // The patterns that protoc-gen-validate knows by name.
        let known = match get(of, "well_known_regex").and_then(|v| v.as_enum_number()) {
            Some(1) if strict => Some("^:?[0-9a-zA-Z!#$%&'*+-.^_|~\x60]+$"),
            Some(2) if strict => Some("^[^\u{0}-\u{8}\u{a}-\u{1f}\u{7f}]*$"),
            Some(1 | 2) => Some("^[^\u{0}\u{a}\u{d}]*$"),
            _ => None,
        };
        let pattern = known.map(str::to_owned).or_else(|| text(of, "pattern"));
        TextRules {
            equal: text(of, "const"),
            characters: Lengths::compile(of, "len", "min_len", "max_len"),
            bytes: Lengths::compile(of, "len_bytes", "min_bytes", "max_bytes"),
            prefix: text(of, "prefix"),
            suffix: text(of, "suffix"),
            contains: text(of, "contains"),
            not_contains: text(of, "not_contains"),
            pattern: pattern.and_then(|p| Regex::new(&format!("\\A(?:{p})\\z")).ok().map(|regex| (regex, p))),
            one_of: texts(of, "in"),
            none_of: texts(of, "not_in"),
        }
    }

    fn check(&self, value: &str) -> Option<String> {
        if let Some(equal) = self.equal.as_ref().filter(|equal| *equal != value) {
            return Some(format!("value must equal {equal}"));
        }
        if let Some(reason) = listed(
            &value,
            |v| self.one_of.iter().any(|o| o == v),
            &self.one_of,
            &self.none_of,
            |v| self.none_of.iter().any(|o| o == v),
        ) {
            return Some(reason);
        }
        if let Some(reason) = self.characters.check(value.chars().count(), "characters", Lengths::LENGTH) {
            return Some(reason);
        }
        if let Some(reason) = self.bytes.check(value.len(), "bytes", Lengths::LENGTH) {
            return Some(reason);
        }
        if let Some(prefix) = self.prefix.as_ref().filter(|p| !value.starts_with(p.as_str())) {
            return Some(format!("value does not have prefix {prefix:?}"));
        }
        if let Some(suffix) = self.suffix.as_ref().filter(|s| !value.ends_with(s.as_str())) {
            return Some(format!("value does not have suffix {suffix:?}"));
        }
        if let Some(part) = self.contains.as_ref().filter(|part| !value.contains(part.as_str())) {
            return Some(format!("value does not contain substring {part:?}"));
        }
        if let Some(part) = self.not_contains.as_ref().filter(|part| value.contains(part.as_str())) {
            return Some(format!("value contains substring {part:?}"));
        }
        match &self.pattern {
            Some((regex, pattern)) if !regex.is_match(value) => {
                Some(format!("value does not match regex pattern {pattern:?}"))
            }
            _ => None,
        }
    }
}

/// How a number of things is spoken of.
#[derive(Clone, Copy)]
struct Wording {
    subject: &'static str,
    at_most: &'static str,
    exactly: &'static str,
    counted: bool,
}

impl Lengths {
    const LENGTH: Wording =
        Wording { subject: "value length must be", at_most: "at most", exactly: "", counted: false };
    const COUNT: Wording =
        Wording { subject: "value must contain", at_most: "no more than", exactly: "exactly ", counted: true };

    fn compile(of: &DynamicMessage, exact: &str, min: &str, max: &str) -> Self {
        let number = |name: &str| (!name.is_empty()).then(|| get(of, name)).flatten().and_then(|v| v.as_u64());
        Lengths { exact: number(exact), min: number(min), max: number(max) }
    }

    fn check(self, length: usize, unit: &str, words: Wording) -> Option<String> {
        let length = length as u64;
        let Wording { subject, at_most, exactly, counted } = words;
        let (some, many) =
            if counted { (format!("{unit}(s)"), format!("{unit}s")) } else { (unit.to_owned(), unit.to_owned()) };
        match (self.exact, self.min, self.max) {
            (Some(n), _, _) if length != n => Some(format!("{subject} {exactly}{n} {some}")),
            (None, Some(min), Some(max)) if min == max && length != min => {
                Some(format!("{subject} {exactly}{min} {some}"))
            }
            (None, Some(min), Some(max)) if length < min || length > max => {
                Some(format!("{subject} between {min} and {max} {many}, inclusive"))
            }
            (None, Some(min), None) if length < min => Some(format!("{subject} at least {min} {some}")),
            (None, None, Some(max)) if length > max => Some(format!("{subject} {at_most} {max} {some}")),
            _ => None,
        }
    }
}

impl<T: PartialOrd + Copy> Limits<T> {
    fn compile(of: &DynamicMessage, read: impl Fn(&Value) -> Option<T>) -> Self {
        let one = |name: &str| get(of, name).and_then(|value| read(&value));
        let many = |name: &str| match get(of, name) {
            Some(Value::List(list)) => list.iter().filter_map(&read).collect(),
            _ => Vec::new(),
        };
        Limits {
            equal: one("const"),
            lt: one("lt"),
            lte: one("lte"),
            gt: one("gt"),
            gte: one("gte"),
            one_of: many("in"),
            none_of: many("not_in"),
        }
    }

    fn check(&self, value: T, show: impl Fn(T) -> String) -> Option<String> {
        if let Some(equal) = self.equal.filter(|equal| *equal != value) {
            return Some(format!("value must equal {}", show(equal)));
        }
        let low = self.gt.map(|v| (v, false)).or(self.gte.map(|v| (v, true)));
        let high = self.lt.map(|v| (v, false)).or(self.lte.map(|v| (v, true)));
        let above = |(bound, inclusive): (T, bool)| value > bound || (inclusive && value == bound);
        let below = |(bound, inclusive): (T, bool)| value < bound || (inclusive && value == bound);
        match (low, high) {
            (Some(low), Some(high)) if high.0 >= low.0 && !(above(low) && below(high)) => {
                let (open, close) = (if low.1 { '[' } else { '(' }, if high.1 { ']' } else { ')' });
                return Some(format!("value must be inside range {open}{}, {}{close}", show(low.0), show(high.0)));
            }
            (Some(low), Some(high)) if high.0 < low.0 && !(above(low) || below(high)) => {
                let (open, close) = (if high.1 { '(' } else { '[' }, if low.1 { ')' } else { ']' });
                return Some(format!("value must be outside range {open}{}, {}{close}", show(high.0), show(low.0)));
            }
            (Some(low), None) if !above(low) => {
                let or_equal = if low.1 { " or equal to" } else { "" };
                return Some(format!("value must be greater than{or_equal} {}", show(low.0)));
            }
            (None, Some(high)) if !below(high) => {
                let or_equal = if high.1 { " or equal to" } else { "" };
                return Some(format!("value must be less than{or_equal} {}", show(high.0)));
            }
            _ => {}
        }
        let shown = |list: &[T]| list.iter().map(|v| show(*v)).collect::<Vec<_>>();
        listed(
            &value,
            |v| self.one_of.contains(v),
            &shown(&self.one_of),
            &shown(&self.none_of),
            |v| self.none_of.contains(v),
        )
    }
}

fn listed<T>(
    value: &T,
    in_one_of: impl Fn(&T) -> bool,
    one_of: &[String],
    none_of: &[String],
    in_none_of: impl Fn(&T) -> bool,
) -> Option<String> {
    if !one_of.is_empty() && !in_one_of(value) {
        Some(format!("value must be in list [{}]", one_of.join(" ")))
    } else if !none_of.is_empty() && in_none_of(value) {
        Some(format!("value must not be in list [{}]", none_of.join(" ")))
    } else {
        None
    }
}

fn check_type_url(url: &str, one_of: &[String], none_of: &[String]) -> Option<String> {
    let has = |list: &[String]| list.iter().any(|item| item == url);
    if !one_of.is_empty() && !has(one_of) {
        Some(format!("type URL must be in list [{}]", one_of.join(" ")))
    } else if has(none_of) {
        Some(format!("type URL must not be in list [{}]", none_of.join(" ")))
    } else {
        None
    }
}

fn get(message: &DynamicMessage, name: &str) -> Option<Value> {
    let field = message.descriptor().get_field_by_name(name)?;
    (message.has_field(&field)).then(|| message.get_field(&field).into_owned())
}

fn sub(message: &DynamicMessage, name: &str) -> Option<DynamicMessage> {
    match get(message, name)? {
        Value::Message(message) => Some(message),
        _ => None,
    }
}

fn flag(message: &DynamicMessage, name: &str) -> bool {
    get(message, name).and_then(|value| value.as_bool()).unwrap_or(false)
}

fn text(message: &DynamicMessage, name: &str) -> Option<String> {
    get(message, name)?.as_str().map(str::to_owned)
}

fn texts(message: &DynamicMessage, name: &str) -> Vec<String> {
    match get(message, name) {
        Some(Value::List(list)) => list.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    }
}

fn as_integer(value: &Value) -> Option<i128> {
    match value {
        Value::I32(v) | Value::EnumNumber(v) => Some(i128::from(*v)),
        Value::I64(v) => Some(i128::from(*v)),
        Value::U32(v) => Some(i128::from(*v)),
        Value::U64(v) => Some(i128::from(*v)),
        _ => None,
    }
}

fn as_float(value: &Value) -> Option<f64> {
    match value {
        Value::F32(v) => Some(f64::from(*v)),
        Value::F64(v) => Some(*v),
        _ => None,
    }
}

/// The nanoseconds of a duration.
fn as_nanos(value: &Value) -> Option<i128> {
    let message = value.as_message()?;
    let seconds = message.get_field_by_name("seconds")?.as_i64()?;
    let nanos = message.get_field_by_name("nanos")?.as_i32()?;
    Some(i128::from(seconds) * 1_000_000_000 + i128::from(nanos))
}

/// A duration as Go writes it, and so the error texts: `1ms`, `1m30s`, `0s`.
fn go_duration(nanos: i128) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let fraction = |value: u128, unit: u128| {
        let rest = format!("{:0width$}", value % unit, width = unit.to_string().len() - 1);
        let rest = rest.trim_end_matches('0');
        if rest.is_empty() { (value / unit).to_string() } else { format!("{}.{rest}", value / unit) }
    };
    let text = match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(nanos, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(nanos, 1_000_000)),
        _ => {
            let minutes = nanos / 60_000_000_000;
            let seconds = format!("{}s", fraction(nanos % 60_000_000_000, 1_000_000_000));
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    };
    format!("{sign}{text}")
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.is_empty(),
        Value::F32(v) => *v == 0.0,
        Value::F64(v) => *v == 0.0,
        value => as_integer(value) == Some(0),
    }
}

/// A map key as text.
pub fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(v) => v.to_string(),
        MapKey::I32(v) => v.to_string(),
        MapKey::I64(v) => v.to_string(),
        MapKey::U32(v) => v.to_string(),
        MapKey::U64(v) => v.to_string(),
        MapKey::String(v) => v.clone(),
    }
}

/// A field's name as Envoy's error texts write it: `stat_prefix` is `StatPrefix`.
pub fn error_name(name: &str) -> String {
    let mut pascal = String::with_capacity(name.len());
    let mut upper = true;
    for character in name.chars() {
        match character {
            '_' => upper = true,
            c if upper => {
                pascal.push(c.to_ascii_uppercase());
                upper = false;
            }
            c => pascal.push(c),
        }
    }
    pascal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (1_000_000, "1ms"),
            (250_000_000, "250ms"),
            (1_000_000_000, "1s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (-1_500_000_000, "-1.5s"),
        ] {
            assert_eq!(go_duration(nanos), text);
        }
    }

    #[test]
    fn counts_and_lengths_speak_envoys_language() {
        let say = |lengths: Lengths, n, unit, words| lengths.check(n, unit, words);
        let min = Lengths { min: Some(1), ..Lengths::default() };
        assert_eq!(
            say(min, 0, "characters", Lengths::LENGTH).as_deref(),
            Some("value length must be at least 1 characters")
        );
        assert_eq!(say(min, 0, "item", Lengths::COUNT).as_deref(), Some("value must contain at least 1 item(s)"));
        let max = Lengths { max: Some(2), ..Lengths::default() };
        assert_eq!(say(max, 3, "item", Lengths::COUNT).as_deref(), Some("value must contain no more than 2 item(s)"));
        let both = Lengths { min: Some(1), max: Some(2), exact: None };
        assert_eq!(
            say(both, 3, "bytes", Lengths::LENGTH).as_deref(),
            Some("value length must be between 1 and 2 bytes, inclusive")
        );
        assert_eq!(say(both, 2, "bytes", Lengths::LENGTH), None);
    }

    #[test]
    fn limits_name_the_range() {
        let limits = Limits::<i128> {
            equal: None,
            lt: None,
            lte: Some(100),
            gt: Some(0),
            gte: None,
            one_of: Vec::new(),
            none_of: vec![7],
        };
        assert_eq!(limits.check(0, |v| v.to_string()).as_deref(), Some("value must be inside range (0, 100]"));
        assert_eq!(limits.check(7, |v| v.to_string()).as_deref(), Some("value must not be in list [7]"));
        assert_eq!(limits.check(100, |v| v.to_string()), None);
    }
}
