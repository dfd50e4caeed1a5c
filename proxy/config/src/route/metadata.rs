//! `MetadataMatcher`, `ValueMatcher` and `FilterStateMatcher` (`envoy.type.matcher.v3`) decoded.

use envoy_types::pb::envoy::r#type::matcher::v3 as pb;

use super::{FilterStateCondition, FilterStateMatcher, MetadataMatcher, ValueMatcher};
use crate::decode::Context;
use crate::matchers::{StringMatcher, xds_cidr_range};

impl MetadataMatcher {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &pb::MetadataMatcher) -> Option<Self> {
        use pb::metadata_matcher::path_segment::Segment;
        let path = message
            .path
            .iter()
            .filter_map(|segment| segment.segment.as_ref())
            .map(|Segment::Key(key)| key.as_str().into())
            .collect();
        Some(MetadataMatcher {
            filter: message.filter.as_str().into(),
            path,
            value: cx.required("value", &message.value, ValueMatcher::decode)?,
            invert: message.invert,
        })
    }
}

impl ValueMatcher {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &pb::ValueMatcher) -> Option<Self> {
        use pb::double_matcher::MatchPattern as Double;
        use pb::value_matcher::MatchPattern;
        Some(match message.match_pattern.as_ref()? {
            MatchPattern::NullMatch(_) => ValueMatcher::Null,
            MatchPattern::DoubleMatch(double) => match double.match_pattern.as_ref()? {
                Double::Exact(value) => ValueMatcher::Number(*value),
                Double::Range(range) => ValueMatcher::Range(range.start, range.end),
            },
            MatchPattern::StringMatch(matcher) => {
                ValueMatcher::String(cx.at("string_match", |cx| StringMatcher::decode(cx, matcher))?)
            }
            MatchPattern::BoolMatch(value) => ValueMatcher::Bool(*value),
            MatchPattern::PresentMatch(present) => ValueMatcher::Present(*present),
            MatchPattern::ListMatch(list) => {
                let pb::list_matcher::MatchPattern::OneOf(inner) = list.match_pattern.as_ref()?;
                let inner = cx.at("list_match", |cx| cx.at("one_of", |cx| ValueMatcher::decode(cx, inner)))?;
                ValueMatcher::ListOneOf(Box::new(inner))
            }
            MatchPattern::OrMatch(or) => ValueMatcher::Or(
                cx.at("or_match", |cx| cx.each("value_matchers", &or.value_matchers, ValueMatcher::decode)),
            ),
        })
    }
}

impl FilterStateMatcher {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &pb::FilterStateMatcher) -> Option<Self> {
        use pb::filter_state_matcher::Matcher;
        let value = match message.matcher.as_ref()? {
            Matcher::StringMatch(matcher) => {
                FilterStateCondition::String(cx.at("string_match", |cx| StringMatcher::decode(cx, matcher))?)
            }
            Matcher::AddressMatch(matcher) => FilterStateCondition::Address {
                ranges: cx.at("address_match", |cx| cx.each("ranges", &matcher.ranges, xds_cidr_range)),
                invert: matcher.invert_match,
            },
        };
        Some(FilterStateMatcher { key: message.key.as_str().into(), value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_conditions_are_decoded() {
        use pb::value_matcher::MatchPattern;
        let bool_match = |value| pb::ValueMatcher { match_pattern: Some(MatchPattern::BoolMatch(value)) };
        let one_of = pb::list_matcher::MatchPattern::OneOf(Box::new(bool_match(true)));
        let list = pb::ListMatcher { match_pattern: Some(one_of) };
        let list = pb::ValueMatcher { match_pattern: Some(MatchPattern::ListMatch(Box::new(list))) };
        let or = pb::OrMatcher { value_matchers: vec![list, bool_match(false)] };
        let message = pb::MetadataMatcher {
            filter: "f".into(),
            path: vec![pb::metadata_matcher::PathSegment {
                segment: Some(pb::metadata_matcher::path_segment::Segment::Key("k".into())),
            }],
            value: Some(pb::ValueMatcher { match_pattern: Some(MatchPattern::OrMatch(or)) }),
            invert: true,
        };
        let matcher = MetadataMatcher::decode(&mut Context::default(), &message).unwrap();
        assert_eq!(matcher.path, ["k".into()]);
        let ValueMatcher::Or(inner) = matcher.value else { panic!("{:?}", matcher.value) };
        assert!(matches!(&inner[0], ValueMatcher::ListOneOf(one) if matches!(**one, ValueMatcher::Bool(true))));
        assert!(matches!(inner[1], ValueMatcher::Bool(false)));
    }
}
