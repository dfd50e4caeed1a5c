//! Which extensions Envoy 1.40 has, by category, and which fields that have no effect here name some.
//!
//! What is not implemented is refused by whoever decodes it, or passed over where the support table says so. What Envoy does
//! not have either is a mistake wherever it stands, and refused in Envoy's words. The decoders and the inspection of the
//! ingest ask; the extensions that this project has are listed in the registry, some floors up.

use std::sync::LazyLock;

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use rustc_hash::FxHashMap;

use crate::decode::{Context, type_name};

const FILE: &str = include_str!("../support/extensions.txt");

/// Types by category.
static KNOWN: LazyLock<FxHashMap<&'static str, Vec<&'static str>>> = LazyLock::new(|| {
    let mut known: FxHashMap<&str, Vec<&str>> = FxHashMap::default();
    let mut category = "";
    for line in FILE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix("  ") {
            Some(name) => known.entry(category).or_default().push(name),
            None => category = line,
        }
    }
    known
});

/// Whether Envoy has an extension of this category for messages of this type.
fn is_known(category: &str, type_name: &str) -> bool {
    KNOWN.get(category).is_some_and(|types| types.contains(&type_name))
}

/// Envoy's text about an extension that it does not have.
pub(crate) fn unregistered(name: &str, type_name: &str) -> String {
    format!("Didn't find a registered implementation for '{name}' with type URL: '{type_name}'")
}

/// Why an extension is refused that is not implemented here, in the words of Envoy where Envoy does not have it.
pub(crate) fn refusal(category: &str, name: &str, type_name: &str) -> String {
    refusal_with(category, name, type_name, || unregistered(name, type_name))
}

/// The same with other words of Envoy.
pub(crate) fn refusal_with(category: &str, name: &str, type_name: &str, unknown: impl FnOnce() -> String) -> String {
    match is_known(category, type_name) {
        true => format!("extension '{name}' of type '{type_name}' is not implemented yet"),
        false => unknown(),
    }
}

/// Fields that the support table ignores, and the category of the extensions in them.
const IGNORED: [(&str, &str, &str); 14] = [
    ("envoy.config.bootstrap.v3.Bootstrap", "stats_sinks", "envoy.stats_sinks"),
    ("envoy.config.bootstrap.v3.Bootstrap", "bootstrap_extensions", "envoy.bootstrap"),
    ("envoy.config.bootstrap.v3.Bootstrap", "default_regex_engine", "envoy.regex_engines"),
    ("envoy.config.bootstrap.v3.Bootstrap", "listener_manager", "envoy.listener_manager_impl"),
    // Envoy has interfaces for these two, and no extensions.
    ("envoy.config.bootstrap.v3.Bootstrap", "xds_delegate_extension", "envoy.xds_delegates"),
    ("envoy.config.bootstrap.v3.Bootstrap", "xds_config_tracker_extension", "envoy.config_trackers"),
    ("envoy.config.core.v3.ApiConfigSource", "config_validators", "envoy.config.validators"),
    // What follows stands in messages that are not decoded.
    ("envoy.config.overload.v3.OverloadManager", "resource_monitors", "envoy.resource_monitors"),
    ("envoy.config.trace.v3.Tracing", "http", "envoy.tracers"),
    (
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing",
        "provider",
        "envoy.tracers",
    ),
    ("envoy.config.bootstrap.v3.Watchdog.WatchdogAction", "config", "envoy.guarddog_actions"),
    ("envoy.config.bootstrap.v3.FatalAction", "config", "envoy.fatal_action"),
    ("envoy.config.common.key_value.v3.KeyValueStoreConfig", "config", "envoy.common.key_value"),
    ("envoy.config.listener.v3.Listener.ConnectionBalanceConfig", "extend_balance", "envoy.network.connection_balance"),
];

/// The category of the extensions in a field that has no effect; None where Envoy does not look at them either.
pub(crate) fn ignored_category(message: &str, field: &str) -> Option<&'static str> {
    let of = |(m, f, _): &&(&str, &str, &str)| *m == message && *f == field;
    IGNORED.iter().find(of).map(|(_, _, category)| *category)
}

/// Refuses an extension of which Envoy has none, whose field has no effect here.
pub(crate) fn check_ignored(category: &str, name: &str, type_name: &str) -> Result<(), String> {
    if is_known(category, type_name) { Ok(()) } else { Err(unregistered(name, type_name)) }
}

impl Context {
    /// Refuses the extension at the current path; see [`refusal`].
    pub(crate) fn refuse_extension(&mut self, category: &str, name: &str, type_name: &str) {
        self.error(refusal(category, name, type_name));
    }
}

/// The type of an extension's configuration; empty where it has none.
pub(crate) fn type_of(message: &TypedExtensionConfig) -> &str {
    message.typed_config.as_ref().map_or("", |any| type_name(&any.type_url))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors;
    use crate::support::{Support, Table};

    #[test]
    fn a_mistake_is_told_from_what_is_not_there_yet() {
        let name = "envoy.extensions.health_checkers.thrift.v3.Thrift";
        assert_eq!(
            refusal("envoy.health_checkers", "t", name),
            format!("extension 't' of type '{name}' is not implemented yet")
        );
        assert_eq!(
            refusal("envoy.tracers", "t", name),
            format!("Didn't find a registered implementation for 't' with type URL: '{name}'")
        );
        assert_eq!(refusal_with("envoy.formatter", "t", "", || "no".to_owned()), "no");
    }

    #[test]
    fn every_type_of_the_list_is_a_message_once() {
        // Of a newer message than those at hand: it cannot be written in a configuration.
        const ABSENT: [&str; 1] =
            ["envoy.extensions.router.cluster_specifiers.priority_group.v3.PriorityGroupClusterSpecifier"];
        for (category, types) in &*KNOWN {
            for name in types {
                assert_eq!(types.iter().filter(|other| *other == name).count(), 1, "{name} in {category}");
                assert!(descriptors::message(name).is_some() != ABSENT.contains(name), "{name} in {category}");
            }
        }
    }

    #[test]
    fn fields_of_decoded_messages_that_name_ignored_extensions_are_ignored() {
        for (message, field, _) in IGNORED {
            let descriptor = descriptors::message(message).expect(message);
            assert!(descriptor.get_field_by_name(field).is_some(), "{message}.{field}");
            let support = Table::get().message(message).map(|table| table.field(field));
            assert!(matches!(support, None | Some(Support::Ignored(_))), "{message}.{field}: {support:?}");
        }
    }
}
