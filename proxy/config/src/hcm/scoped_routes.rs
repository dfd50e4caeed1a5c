//! Scoped routes: which table of routes a request goes to, by a key made of its headers.

use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use pb::scoped_routes::scope_key_builder::FragmentBuilder;
use pb::scoped_routes::scope_key_builder::fragment_builder::{Type, header_value_extractor::ExtractType};

use crate::decode::{Context, lower, serialized};
use crate::diagnostics::ConfigError;
use crate::route::RouteConfiguration;

/// `ScopedRoutes`.
#[derive(Debug, Clone)]
pub struct ScopedRoutesConfig {
    /// Name, used in stats and in `/config_dump`.
    pub name: Box<str>,
    /// How the key of a request is made: a fragment of each.
    pub key: Vec<KeyFragment>,
    /// Serialized `ConfigSource` of the routes of scopes that are fetched.
    pub rds_source: Bytes,
    /// The scopes.
    pub scopes: ScopeSource,
    /// Path in the configuration.
    pub path: Box<str>,
}

/// Where scopes come from.
#[derive(Debug, Clone)]
pub enum ScopeSource {
    /// `scoped_route_configurations_list`.
    Inline(Vec<ScopedRouteConfiguration>),
    /// `scoped_rds`.
    Discovered {
        /// The serialized `ConfigSource`.
        source: Bytes,
        /// `srds_resources_locator`; empty for all scopes of the source.
        locator: Box<str>,
    },
}

/// `FragmentBuilder`: takes one fragment of the key out of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFragment {
    /// Header, lower-cased. Of several values the first counts.
    pub header: Box<str>,
    /// Between elements; with an empty one the whole value is the only element.
    pub separator: Box<str>,
    /// What of the elements is the fragment.
    pub extract: Extract,
}

/// `extract_type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extract {
    /// The element at this place.
    Index(u32),
    /// What stands behind the key and its separator in the first element with this key.
    Element {
        /// Between key and value.
        separator: Box<str>,
        /// The key.
        key: Box<str>,
    },
}

/// `ScopedRouteConfiguration`.
#[derive(Debug, Clone)]
pub struct ScopedRouteConfiguration {
    /// Name.
    pub name: Box<str>,
    /// Fragments of the key, all of which a request has to have.
    pub key: Box<[Box<str>]>,
    /// Routes are fetched when the first request for this scope comes.
    pub on_demand: bool,
    /// Routes under a name.
    pub routes_name: Box<str>,
    /// Routes in place.
    pub routes: Option<Arc<RouteConfiguration>>,
    /// The message itself, for `/config_dump`.
    pub message: Bytes,
}

impl ScopedRoutesConfig {
    pub(crate) fn decode(cx: &mut Context, message: &pb::ScopedRoutes) -> Option<Self> {
        use pb::scoped_routes::ConfigSpecifier;
        let key = cx.required("scope_key_builder", &message.scope_key_builder, |cx, builder| {
            Some(cx.each("fragments", &builder.fragments, KeyFragment::decode))
        });
        let rds_source = message.rds_config_source.as_ref().map(serialized).unwrap_or_default();
        let scopes = match &message.config_specifier {
            Some(ConfigSpecifier::ScopedRouteConfigurationsList(list)) => {
                let all = &list.scoped_route_configurations;
                let scopes = cx.at("scoped_route_configurations_list", |cx| {
                    cx.each("scoped_route_configurations", all, inline_scope)
                });
                Some(ScopeSource::Inline(scopes))
            }
            Some(ConfigSpecifier::ScopedRds(scoped)) => Some(ScopeSource::Discovered {
                source: scoped.scoped_rds_config_source.as_ref().map(serialized).unwrap_or_default(),
                locator: scoped.srds_resources_locator.as_str().into(),
            }),
            None => {
                cx.error("Field 'config_specifier' is missing: one of scoped_route_configurations_list, scoped_rds");
                None
            }
        };
        let path = cx.path_text();
        Some(ScopedRoutesConfig { name: message.name.as_str().into(), key: key?, rds_source, scopes: scopes?, path })
    }
}

impl KeyFragment {
    fn decode(cx: &mut Context, message: &FragmentBuilder) -> Option<Self> {
        let Some(Type::HeaderValueExtractor(extractor)) = &message.r#type else {
            cx.error("Field 'type' is missing: header_value_extractor");
            return None;
        };
        cx.at("header_value_extractor", |cx| {
            let extract = match &extractor.extract_type {
                Some(ExtractType::Index(index)) => {
                    if *index != 0 && extractor.element_separator.is_empty() {
                        cx.error("Index > 0 for empty string element separator.");
                    }
                    Extract::Index(*index)
                }
                Some(ExtractType::Element(element)) => {
                    Extract::Element { separator: element.separator.as_str().into(), key: element.key.as_str().into() }
                }
                None => {
                    cx.error("HeaderValueExtractor extract_type not set.");
                    return None;
                }
            };
            let separator = extractor.element_separator.as_str().into();
            Some(KeyFragment { header: lower(&extractor.name), separator, extract })
        })
    }
}

impl ScopedRouteConfiguration {
    /// Decodes a scope that was fetched. Its routes, if they stand in it, are not read: they come under their name.
    pub fn decode(message: &route::ScopedRouteConfiguration, cx: &mut Context) -> Result<Self, Vec<ConfigError>> {
        cx.run(|cx| Self::from_message(cx, message))
    }

    fn from_message(_: &mut Context, message: &route::ScopedRouteConfiguration) -> Option<Self> {
        use route::scoped_route_configuration::key::fragment::Type;
        let fragments = message.key.iter().flat_map(|key| &key.fragments);
        Some(ScopedRouteConfiguration {
            name: message.name.as_str().into(),
            key: fragments
                .map(|fragment| match &fragment.r#type {
                    Some(Type::StringKey(key)) => key.as_str().into(),
                    None => Box::default(),
                })
                .collect(),
            on_demand: message.on_demand,
            routes_name: message.route_configuration_name.as_str().into(),
            routes: None,
            message: serialized(message),
        })
    }
}

/// A scope in a list has its routes in place.
fn inline_scope(cx: &mut Context, message: &route::ScopedRouteConfiguration) -> Option<ScopedRouteConfiguration> {
    if !message.route_configuration_name.is_empty() {
        cx.error("Fetching routes via RDS (route_configuration_name) is not supported with inline scoped routes.");
    }
    let Some(routes) = &message.route_configuration else {
        cx.error("You must specify a route_configuration with inline scoped routes.");
        return None;
    };
    let routes = cx.at("route_configuration", |cx| RouteConfiguration::from_message(cx, routes, true))?;
    let scope = ScopedRouteConfiguration::from_message(cx, message)?;
    Some(ScopedRouteConfiguration { routes: Some(Arc::new(routes)), ..scope })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use pb::scoped_routes::scope_key_builder::fragment_builder::HeaderValueExtractor;
    use pb::scoped_routes::{ConfigSpecifier, ScopeKeyBuilder};

    fn scoped(extractor: HeaderValueExtractor, scopes: Vec<route::ScopedRouteConfiguration>) -> pb::ScopedRoutes {
        let fragment = FragmentBuilder { r#type: Some(Type::HeaderValueExtractor(extractor)) };
        pb::ScopedRoutes {
            name: "s".into(),
            scope_key_builder: Some(ScopeKeyBuilder { fragments: vec![fragment] }),
            rds_config_source: None,
            config_specifier: Some(ConfigSpecifier::ScopedRouteConfigurationsList(pb::ScopedRouteConfigurationsList {
                scoped_route_configurations: scopes,
            })),
        }
    }

    fn decode(message: &pb::ScopedRoutes) -> Result<ScopedRoutesConfig, Vec<ConfigError>> {
        Context::default().run(|cx| ScopedRoutesConfig::decode(cx, message))
    }

    fn index(index: u32, separator: &str) -> HeaderValueExtractor {
        HeaderValueExtractor {
            name: "X-Key".into(),
            element_separator: separator.into(),
            extract_type: Some(ExtractType::Index(index)),
        }
    }

    #[test]
    fn a_fragment_without_a_rule_or_with_an_index_of_one_element_is_refused() {
        let config = decode(&scoped(index(1, ","), Vec::new())).unwrap();
        let fragment = KeyFragment { header: "x-key".into(), separator: ",".into(), extract: Extract::Index(1) };
        assert_eq!(config.key, [fragment]);
        assert!(decode(&scoped(index(0, ""), Vec::new())).is_ok());
        let refused = errors(decode(&scoped(index(1, ""), Vec::new())));
        assert!(refused[0].contains("Index > 0 for empty string element separator."), "{refused:?}");
        let none = HeaderValueExtractor { extract_type: None, ..index(0, "") };
        assert!(errors(decode(&scoped(none, Vec::new())))[0].contains("extract_type not set."));
    }

    #[test]
    fn a_scope_in_a_list_has_its_routes_in_place() {
        let by_name = route::ScopedRouteConfiguration { route_configuration_name: "r".into(), ..Default::default() };
        let refused = errors(decode(&scoped(index(0, ""), vec![by_name])));
        assert_eq!(refused.len(), 2, "{refused:?}");
        let in_place = route::ScopedRouteConfiguration {
            name: "one".into(),
            route_configuration: Some(route::RouteConfiguration::default()),
            ..Default::default()
        };
        let config = decode(&scoped(index(0, ""), vec![in_place])).unwrap();
        assert!(matches!(&config.scopes, ScopeSource::Inline(scopes) if scopes[0].routes.is_some()));
    }
}
