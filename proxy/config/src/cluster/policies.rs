//! Policies of a cluster that go before those of routes (`HttpProtocolOptions`).

use std::sync::Arc;

use envoy_types::pb::envoy::config::common::matcher::v3 as pb;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream;

use super::{HttpPolicies, ResponsePredicate};
use crate::decode::Context;
use crate::matchers::HeaderMatcher;
use crate::route::{HashPolicy, MirrorPolicy, RetryPolicy};

impl HttpPolicies {
    /// Decodes them; None where there is none.
    pub(super) fn decode(cx: &mut Context, message: &upstream::HttpProtocolOptions) -> Option<Self> {
        let outlier = message.outlier_detection.as_ref();
        let none = message.request_mirror_policies.is_empty()
            && message.hash_policy.is_empty()
            && message.retry_policy.is_none()
            && outlier.is_none();
        if none {
            return None;
        }
        Some(HttpPolicies {
            // Clusters may come in any order: what a mirror names is looked for with each request.
            mirrors: cx.each("request_mirror_policies", &message.request_mirror_policies, |cx, mirror| {
                MirrorPolicy::decode(cx, mirror, false)
            }),
            hash: cx.each("hash_policy", &message.hash_policy, HashPolicy::decode),
            retry: cx.optional("retry_policy", &message.retry_policy, RetryPolicy::decode).map(Arc::new),
            error_matcher: outlier.and_then(|outlier| outlier.error_matcher.as_ref()).and_then(|matcher| {
                cx.at("outlier_detection", |cx| cx.at("error_matcher", |cx| ResponsePredicate::decode(cx, matcher)))
            }),
            path: cx.path_text(),
        })
    }
}

impl ResponsePredicate {
    fn decode(cx: &mut Context, message: &pb::MatchPredicate) -> Option<Self> {
        use pb::match_predicate::Rule;
        Some(match message.rule.as_ref()? {
            Rule::OrMatch(set) => {
                Self::Any(cx.at("or_match", |cx| cx.each("rules", &set.rules, ResponsePredicate::decode)))
            }
            Rule::AndMatch(set) => {
                Self::All(cx.at("and_match", |cx| cx.each("rules", &set.rules, ResponsePredicate::decode)))
            }
            Rule::NotMatch(rule) => Self::Not(Box::new(cx.at("not_match", |cx| Self::decode(cx, rule))?)),
            Rule::AnyMatch(any) => Self::Constant(*any),
            Rule::HttpResponseHeadersMatch(headers) => {
                Self::Headers(cx.at("http_response_headers_match", |cx| {
                    cx.each("headers", &headers.headers, HeaderMatcher::decode)
                }))
            }
            // Only the head of a response is shown to it.
            Rule::HttpRequestHeadersMatch(_)
            | Rule::HttpRequestTrailersMatch(_)
            | Rule::HttpResponseTrailersMatch(_)
            | Rule::HttpRequestGenericBodyMatch(_)
            | Rule::HttpResponseGenericBodyMatch(_) => Self::Constant(false),
        })
    }
}
