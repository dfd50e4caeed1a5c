//! `InternalRedirectPolicy` decoded.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::internal_redirect::allow_listed_routes::v3::AllowListedRoutesConfig;
use pb::route_action as action;

use crate::decode::{Context, boxed, lower, u32_value};
use crate::extensions::type_of;

/// `InternalRedirectPolicy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalRedirectPolicy {
    /// Default 1.
    pub max_internal_redirects: u32,
    /// Default 302 only.
    pub redirect_response_codes: Vec<u16>,
    /// Predicates; all must hold.
    pub predicates: Vec<RedirectPredicate>,
    /// Cross-scheme redirects.
    pub allow_cross_scheme_redirect: bool,
    /// Headers copied from the response, lower-cased.
    pub response_headers_to_copy: Vec<Box<str>>,
}

/// Whether a redirect may lead to a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPredicate {
    /// Only to routes with these names.
    AllowListedRoutes(Vec<Box<str>>),
    /// Not to a route to which this route has redirected the request before.
    PreviousRoutes,
    /// Not from a plaintext connection to HTTPS.
    SafeCrossScheme,
}

/// The policy of a route, its deprecated form included.
pub(super) fn decode(cx: &mut Context, message: &pb::RouteAction) -> Option<InternalRedirectPolicy> {
    if message.internal_redirect_policy.is_some() {
        return cx.optional("internal_redirect_policy", &message.internal_redirect_policy, policy);
    }
    let handled = message.internal_redirect_action() == action::InternalRedirectAction::HandleInternalRedirect;
    handled.then(|| InternalRedirectPolicy {
        max_internal_redirects: u32_value(&message.max_internal_redirects).unwrap_or(1),
        redirect_response_codes: vec![302],
        predicates: Vec::new(),
        allow_cross_scheme_redirect: false,
        response_headers_to_copy: Vec::new(),
    })
}

fn policy(cx: &mut Context, message: &pb::InternalRedirectPolicy) -> Option<InternalRedirectPolicy> {
    let mut codes: Vec<u16> = message
        .redirect_response_codes
        .iter()
        .filter_map(|code| u16::try_from(*code).ok())
        .filter(|code| matches!(code, 301 | 302 | 303 | 307 | 308))
        .collect();
    if message.redirect_response_codes.is_empty() {
        codes.push(302);
    }
    let headers = cx.each("response_headers_to_copy", &message.response_headers_to_copy, |cx, name| {
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") || name.is_empty() {
            cx.error(format!(":-prefixed headers or Hosts may not be specified here: {name}"));
            return None;
        }
        Some(lower(name))
    });
    Some(InternalRedirectPolicy {
        max_internal_redirects: u32_value(&message.max_internal_redirects).unwrap_or(1),
        redirect_response_codes: codes,
        predicates: cx.each("predicates", &message.predicates, predicate),
        allow_cross_scheme_redirect: message.allow_cross_scheme_redirect,
        response_headers_to_copy: headers,
    })
}

fn predicate(cx: &mut Context, message: &core::TypedExtensionConfig) -> Option<RedirectPredicate> {
    match type_of(message) {
        "envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig" => {
            let config: AllowListedRoutesConfig =
                cx.at("typed_config", |cx| cx.unpack(message.typed_config.as_ref()?))?;
            Some(RedirectPredicate::AllowListedRoutes(boxed(&config.allowed_route_names)))
        }
        "envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig" => {
            Some(RedirectPredicate::PreviousRoutes)
        }
        "envoy.extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig" => {
            Some(RedirectPredicate::SafeCrossScheme)
        }
        other => {
            cx.refuse_extension("envoy.internal_redirect_predicates", &message.name, other);
            None
        }
    }
}
