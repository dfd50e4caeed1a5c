//! `/runtime` and `/runtime_modify`.

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::AdminResponse;
use super::commands::Call;
use super::query::Query;

/// `/runtime`: each key with its value per layer and the one that counts.
pub(super) fn runtime(call: &Call<'_>) -> AdminResponse {
    let layers = call.sources.runtime_layers();
    let mut entries: IndexMap<&str, Vec<&str>> = IndexMap::new();
    for (index, layer) in layers.iter().enumerate() {
        for (key, value) in &layer.values {
            entries.entry(key).or_insert_with(|| vec![""; layers.len()])[index] = value;
        }
    }
    entries.sort_unstable_keys();
    let entries: serde_json::Map<String, Value> = entries
        .into_iter()
        .map(|(key, values)| {
            let last = values.iter().rev().find(|value| !value.is_empty()).copied().unwrap_or_default();
            (key.to_owned(), json!({"final_value": last, "layer_values": values}))
        })
        .collect();
    let names: Vec<_> = layers.iter().map(|layer| layer.name.as_str()).collect();
    AdminResponse::json(&json!({"entries": entries, "layers": names}))
}

/// `/runtime_modify`: parameters in the query, or in a form.
pub(super) fn modify(call: &Call<'_>) -> AdminResponse {
    let form;
    let mut values = call.query.all();
    if values.is_empty() && call.request.header("content-type") == Some("application/x-www-form-urlencoded") {
        form = Query::parse(&String::from_utf8_lossy(&call.request.body));
        values = form.all();
    }
    if values.is_empty() {
        let usage = "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n\
                     \x20      or send the parameters as form values\n\
                     use an empty value to remove a previously added override";
        return AdminResponse::text(400, usage);
    }
    match call.sources.modify_runtime(values) {
        Ok(()) => AdminResponse::ok(),
        Err(reason) => AdminResponse::text(503, reason),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sources::RuntimeLayerStatus;
    use super::super::testing::{FakeSources, get, post, text_of};
    use super::super::{AdminRequest, handle};
    use super::*;

    #[test]
    fn values_are_shown_by_layer() {
        let sources = FakeSources::default();
        assert_eq!(text_of(&get(&sources, "/runtime")), "{\n \"entries\": {},\n \"layers\": []\n}\n");
        let layer = |name: &str, values: &[(&str, &str)]| RuntimeLayerStatus {
            name: name.into(),
            values: values.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        *sources.layers.borrow_mut() = vec![layer("base", &[("b.c", "x"), ("a", "1")]), layer("adm", &[("a", "2")])];
        let expected = r#"{
 "entries": {
  "a": {
   "final_value": "2",
   "layer_values": [
    "1",
    "2"
   ]
  },
  "b.c": {
   "final_value": "x",
   "layer_values": [
    "x",
    ""
   ]
  }
 },
 "layers": [
  "base",
  "adm"
 ]
}
"#;
        assert_eq!(text_of(&get(&sources, "/runtime")), expected);
    }

    #[test]
    fn values_are_changed_by_query_or_form() {
        let sources = FakeSources::default();
        assert_eq!(post(&sources, "/runtime_modify").status, 400);
        assert_eq!(post(&sources, "/runtime_modify?a=1&b="), AdminResponse::ok());
        let form = AdminRequest {
            method: "POST".into(),
            path_and_query: "/runtime_modify".into(),
            headers: vec![("content-type".into(), "application/x-www-form-urlencoded".into())],
            body: "c=3".into(),
        };
        assert_eq!(handle(&form, &sources), AdminResponse::ok());
        assert_eq!(*sources.actions.borrow(), ["runtime a=1", "runtime b=", "runtime c=3"]);
        sources.no_admin_layer.set(true);
        assert_eq!(post(&sources, "/runtime_modify?a=1"), AdminResponse::text(503, "No admin layer specified"));
    }
}
