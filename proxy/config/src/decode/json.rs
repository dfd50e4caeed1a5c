//! `google.protobuf.Struct` and `Metadata` as JSON values.
//!
//! Keys come out sorted: the maps of protobuf have no order, and results must not vary from run to run.

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value as PbValue, value::Kind};
use serde_json::{Map, Number, Value};
use std::sync::Arc;

use super::sorted;

/// A struct as a JSON object.
pub(crate) fn from_struct(message: &Struct) -> Value {
    let mut object = Map::with_capacity(message.fields.len());
    for (key, value) in sorted(&message.fields) {
        object.insert(key.clone(), from_value(value));
    }
    Value::Object(object)
}

/// A value as JSON. Numbers without a fraction become integers; those that JSON cannot say become null.
pub(crate) fn from_value(value: &PbValue) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => from_number(*number),
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        Some(Kind::BoolValue(flag)) => Value::Bool(*flag),
        Some(Kind::StructValue(object)) => from_struct(object),
        Some(Kind::ListValue(list)) => from_list(list),
    }
}

fn from_list(list: &ListValue) -> Value {
    Value::Array(list.values.iter().map(from_value).collect())
}

fn from_number(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53: every integer below has its own f64.
    if number.fract() == 0.0 && number.abs() <= EXACT {
        Value::Number(Number::from(number as i64))
    } else {
        Number::from_f64(number).map_or(Value::Null, Value::Number)
    }
}

/// `filter_metadata` as an object of objects; `None` when there is none.
pub(crate) fn metadata(message: &Option<Metadata>) -> Option<Arc<Value>> {
    let message = message.as_ref()?;
    let mut object = Map::with_capacity(message.filter_metadata.len());
    for (name, value) in sorted(&message.filter_metadata) {
        object.insert(name.clone(), from_struct(value));
    }
    (!object.is_empty()).then(|| Arc::new(Value::Object(object)))
}

/// One namespace of `filter_metadata`.
pub(crate) fn metadata_namespace(message: &Option<Metadata>, namespace: &str) -> Option<Arc<Value>> {
    message.as_ref()?.filter_metadata.get(namespace).map(|value| Arc::new(from_struct(value)))
}

/// The object `base` with the fields of `over`, which win.
pub(crate) fn merged(base: Option<&Arc<Value>>, over: Option<Arc<Value>>) -> Option<Arc<Value>> {
    match (base.map(|base| &**base), over.as_deref()) {
        (Some(Value::Object(base)), Some(Value::Object(over))) => {
            let mut object = base.clone();
            object.extend(over.iter().map(|(key, value)| (key.clone(), value.clone())));
            Some(Arc::new(Value::Object(object)))
        }
        _ => over.or_else(|| base.cloned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: f64) -> PbValue {
        PbValue { kind: Some(Kind::NumberValue(value)) }
    }

    #[test]
    fn structs_become_objects_with_sorted_keys() {
        let list = ListValue { values: vec![number(1.0), PbValue { kind: Some(Kind::BoolValue(true)) }] };
        let message = Struct {
            fields: [
                ("b".to_owned(), number(0.5)),
                ("a".to_owned(), PbValue { kind: Some(Kind::ListValue(list)) }),
                ("c".to_owned(), PbValue { kind: Some(Kind::NullValue(0)) }),
            ]
            .into(),
        };
        assert_eq!(from_struct(&message).to_string(), r#"{"a":[1,true],"b":0.5,"c":null}"#);
    }

    #[test]
    fn numbers_that_json_lacks_become_null() {
        assert_eq!(from_value(&number(f64::NAN)), Value::Null);
    }
}
