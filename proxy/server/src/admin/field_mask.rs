//! Field masks on messages that are already JSON with their original field names.

use prost_reflect::{Kind, MessageDescriptor};
use serde_json::Value;

/// A parsed mask: paths of field names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FieldMask {
    pub(super) paths: Vec<String>,
}

impl FieldMask {
    /// Paths separated by commas.
    pub(super) fn parse(text: &str) -> Self {
        Self { paths: text.split(',').filter(|path| !path.is_empty()).map(str::to_owned).collect() }
    }

    /// Whether each path names a field of the message. Paths do not go through repeated fields.
    pub(super) fn fits(&self, message: &MessageDescriptor) -> bool {
        self.paths.iter().all(|path| path_fits(path, message))
    }

    /// Leaves only what the paths name. A mask without paths leaves everything.
    pub(super) fn trim(&self, value: &mut Value) {
        if !self.paths.is_empty() {
            let paths: Vec<&str> = self.paths.iter().map(String::as_str).collect();
            trim(value, &paths);
        }
    }
}

fn path_fits(path: &str, message: &MessageDescriptor) -> bool {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let Some(field) = message.get_field_by_name(first) else { return false };
    match (rest, field.kind()) {
        (None, _) => true,
        (Some(rest), Kind::Message(inner)) if !field.is_list() && !field.is_map() => path_fits(rest, &inner),
        _ => false,
    }
}

fn trim(value: &mut Value, paths: &[&str]) {
    let Value::Object(fields) = value else { return };
    fields.retain(|name, field| {
        let mut below = Vec::new();
        for path in paths {
            match path.strip_prefix(name.as_str()) {
                Some("") => return true,
                Some(rest) if rest.starts_with('.') => below.push(&rest[1..]),
                _ => {}
            }
        }
        if below.is_empty() {
            return false;
        }
        trim(field, &below);
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_config::descriptors;
    use serde_json::json;

    #[test]
    fn a_mask_leaves_what_it_names() {
        let mut value = json!({"a": {"b": 1, "c": 2}, "ab": 3, "d": {"e": {"f": 4, "g": 5}}});
        FieldMask::parse("a.b,d.e.g").trim(&mut value);
        assert_eq!(value, json!({"a": {"b": 1}, "d": {"e": {"g": 5}}}));
        FieldMask::parse("").trim(&mut value);
        assert_eq!(value, json!({"a": {"b": 1}, "d": {"e": {"g": 5}}}));
    }

    #[test]
    fn a_mask_must_fit_the_message() {
        let dump = descriptors::message("envoy.admin.v3.BootstrapConfigDump").expect("a known message");
        for (mask, fits) in [
            ("bootstrap", true),
            ("bootstrap.node.id,last_updated", true),
            ("", true),
            ("bogus", false),
            ("bootstrap.bogus", false),
            ("bootstrap.static_resources.clusters", true),
            ("bootstrap.static_resources.clusters.name", false),
            ("bootstrap.node.id.x", false),
        ] {
            assert_eq!(FieldMask::parse(mask).fits(&dump), fits, "{mask}");
        }
    }
}
