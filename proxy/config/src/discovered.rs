//! Filters whose configuration is fetched (`envoy.config.core.v3.ExtensionConfigSource`).
//!
//! What stands in the configuration is where to ask, which types may come, and what to use until then. The name to ask for
//! is that of the filter.

use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::Any;

use crate::decode::{Context, serialized, type_name};

/// `ExtensionConfigSource`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtensionSource {
    /// Serialized `ConfigSource`.
    pub source: Bytes,
    /// `apply_default_config_without_warming`: the listener does not wait for the first answer.
    pub without_warming: bool,
    /// Full names of the messages that may come, in order.
    pub type_names: Vec<Box<str>>,
    /// There is a `default_config`.
    pub has_default: bool,
}

impl ExtensionSource {
    /// Decodes the source of the filter `name`, which is at the current path.
    pub(crate) fn decode(cx: &mut Context, name: &str, message: &core::ExtensionConfigSource) -> Arc<Self> {
        let mut type_names: Vec<Box<str>> = message.type_urls.iter().map(|url| type_name(url).into()).collect();
        type_names.sort_unstable();
        type_names.dedup();
        let source = ExtensionSource {
            source: message.config_source.as_ref().map(serialized).unwrap_or_default(),
            without_warming: message.apply_default_config_without_warming,
            type_names,
            has_default: message.default_config.is_some(),
        };
        if source.without_warming && message.default_config.is_none() {
            cx.error(format!("Error: filter config {name} applied without warming but has no default config."));
        }
        if let Some(default) = &message.default_config
            && let Err(error) = source.check_type(type_name(&default.type_url))
        {
            cx.error_at("default_config", error);
        }
        Arc::new(source)
    }

    /// Whether a message of this type may come.
    ///
    /// # Errors
    /// Envoy's words where it may not.
    pub fn check_type(&self, type_name: &str) -> Result<(), String> {
        if self.type_names.iter().any(|known| **known == *type_name) {
            return Ok(());
        }
        let expected = self.type_names.join(", ");
        Err(format!("Error: filter config has type URL {type_name} but expect {expected}."))
    }
}

/// A network or listener filter whose configuration is fetched.
#[derive(Debug, Clone)]
pub struct Discovered<T> {
    /// Name of the filter and of the resource.
    pub name: Arc<str>,
    /// Where to ask.
    pub source: Arc<ExtensionSource>,
    /// What to use until something has come, and when it is gone.
    pub default: Option<T>,
    /// The filter is the last of its chain.
    pub last: bool,
    /// Path in the configuration.
    pub path: Arc<str>,
}

impl<T> Discovered<T> {
    /// Decodes a filter with `decode` for its default configuration. At the path of the filter.
    pub(crate) fn decode(
        cx: &mut Context,
        name: &str,
        message: &core::ExtensionConfigSource,
        last: bool,
        decode: impl FnOnce(&mut Context, &Any) -> Option<T>,
    ) -> Option<Self> {
        cx.at("config_discovery", |cx| {
            let source = ExtensionSource::decode(cx, name, message);
            let default = match &message.default_config {
                // One of another type has been reported.
                Some(any) if source.check_type(type_name(&any.type_url)).is_err() => return None,
                Some(any) => Some(cx.at("default_config", |cx| decode(cx, any))?),
                None => None,
            };
            Some(Discovered { name: name.into(), source, default, last, path: cx.path_text().into() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_name: &str) -> Any {
        Any { type_url: format!("type.googleapis.com/{type_name}"), value: Vec::new() }
    }

    fn source() -> core::ExtensionConfigSource {
        core::ExtensionConfigSource {
            type_urls: vec!["type.googleapis.com/b.B".into(), "a.A".into()],
            ..Default::default()
        }
    }

    fn errors(message: &core::ExtensionConfigSource) -> Vec<String> {
        let decoded = Context::default().run(|cx| Discovered::decode(cx, "f", message, true, |_, _| Some(())));
        crate::decode::tests::errors(decoded)
    }

    #[test]
    fn only_the_types_that_are_named_may_come() {
        let decoded = ExtensionSource::decode(&mut Context::default(), "f", &source());
        assert_eq!(decoded.check_type("b.B"), Ok(()));
        assert_eq!(
            decoded.check_type("c.C").unwrap_err(),
            "Error: filter config has type URL c.C but expect a.A, b.B."
        );
        let default = core::ExtensionConfigSource { default_config: Some(any("c.C")), ..source() };
        assert_eq!(
            errors(&default),
            ["config_discovery.default_config: Error: filter config has type URL c.C but expect a.A, b.B."]
        );
    }

    #[test]
    fn who_does_not_wait_needs_a_default() {
        let hasty = core::ExtensionConfigSource { apply_default_config_without_warming: true, ..source() };
        assert_eq!(
            errors(&hasty),
            ["config_discovery: Error: filter config f applied without warming but has no default config."]
        );
    }
}
