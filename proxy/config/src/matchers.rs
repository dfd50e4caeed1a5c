//! Matchers shared by every API area: strings, headers, query parameters, fractions, address ranges.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::r#type::matcher::v3 as pb;
use envoy_types::pb::envoy::r#type::v3 as percent;
use envoy_types::pb::xds::core::v3 as xds;
use ipnet::IpNet;
use regex::bytes::Regex;
use std::net::IpAddr;

use crate::decode::{Context, lower};

/// `envoy.type.matcher.v3.StringMatcher`, compiled. Where `ignore_case` is set the pattern is stored lower-cased.
#[derive(Debug, Clone)]
pub enum StringMatcher {
    /// Whole value equal.
    Exact(Box<str>, IgnoreCase),
    /// Value begins with.
    Prefix(Box<str>, IgnoreCase),
    /// Value ends with.
    Suffix(Box<str>, IgnoreCase),
    /// Value contains.
    Contains(Box<str>, IgnoreCase),
    /// Full match of an RE2 expression (anchored at both ends when compiled).
    Regex(Regex),
}

/// ASCII case-insensitive comparison when true.
pub type IgnoreCase = bool;

/// `envoy.config.route.v3.HeaderMatcher`. Repeated headers are joined with "," before matching, as Envoy does.
#[derive(Debug, Clone)]
pub struct HeaderMatcher {
    /// Lower-cased header name, or a pseudo-header such as `:path`.
    pub name: Box<str>,
    /// What the value must satisfy.
    pub kind: HeaderMatchKind,
    /// `invert_match`.
    pub invert: bool,
    /// `treat_missing_header_as_empty`.
    pub missing_as_empty: bool,
}

/// The condition of a [`HeaderMatcher`].
#[derive(Debug, Clone)]
pub enum HeaderMatchKind {
    /// `present_match`; false asks for absence.
    Present(bool),
    /// Any string condition (the deprecated exact/prefix/suffix/contains/safe_regex forms decode to this too).
    String(StringMatcher),
    /// `range_match`: an integer in `[start, end)`.
    Range {
        /// First value that matches.
        start: i64,
        /// First value past the range.
        end: i64,
    },
}

/// `envoy.config.route.v3.QueryParameterMatcher`.
#[derive(Debug, Clone)]
pub struct QueryParameterMatcher {
    /// Parameter name.
    pub name: Box<str>,
    /// None asks only for presence (Envoy: neither field set).
    pub value: Option<StringMatcher>,
    /// `present_match`; only consulted when `value` is None.
    pub present: bool,
}

/// Cookie matcher of `RouteMatch.cookies`.
#[derive(Debug, Clone)]
pub struct CookieMatcher {
    /// Cookie name.
    pub name: Box<str>,
    /// Condition on the value.
    pub value: StringMatcher,
    /// `invert_match`.
    pub invert: bool,
}

/// `envoy.type.v3.FractionalPercent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FractionalPercent {
    /// Numerator.
    pub numerator: u32,
    /// 100, 10,000 or 1,000,000.
    pub denominator: u32,
}

/// `RuntimeFractionalPercent`: a default that a runtime key may override.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeFraction {
    /// Used when the key is not set in any runtime layer.
    pub default: FractionalPercent,
    /// Runtime key; empty for none.
    pub runtime_key: Box<str>,
}

/// A boolean that a runtime key may override (`RuntimeFeatureFlag`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeFlag {
    /// Used when the key is not set.
    pub default: bool,
    /// Runtime key; empty for none.
    pub runtime_key: Box<str>,
}

/// `envoy.config.core.v3.CidrRange`.
pub type CidrRange = IpNet;

impl StringMatcher {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &pb::StringMatcher) -> Option<Self> {
        use pb::string_matcher::MatchPattern;
        let ignore = message.ignore_case;
        let text = |value: &str| -> Box<str> { if ignore { value.to_ascii_lowercase().into() } else { value.into() } };
        Some(match message.match_pattern.as_ref()? {
            MatchPattern::Exact(value) => StringMatcher::Exact(text(value), ignore),
            MatchPattern::Prefix(value) => StringMatcher::Prefix(text(value), ignore),
            MatchPattern::Suffix(value) => StringMatcher::Suffix(text(value), ignore),
            MatchPattern::Contains(value) => StringMatcher::Contains(text(value), ignore),
            MatchPattern::SafeRegex(regex) => {
                if ignore {
                    cx.error("ignore_case has no effect for safe_regex.");
                }
                StringMatcher::Regex(cx.at("safe_regex", |cx| anchored(cx, regex))?)
            }
            MatchPattern::Custom(custom) => {
                cx.error_at("custom", format!("string matcher extension '{}' is not implemented", custom.name));
                return None;
            }
        })
    }
}

impl StringMatcher {
    /// Whether a value satisfies it.
    pub fn matches(&self, value: &[u8]) -> bool {
        let same = |text: Option<&[u8]>, pattern: &str, ignore: IgnoreCase| {
            text.is_some_and(|text| match ignore {
                false => text == pattern.as_bytes(),
                true => text.eq_ignore_ascii_case(pattern.as_bytes()),
            })
        };
        match self {
            StringMatcher::Exact(pattern, ignore) => same(Some(value), pattern, *ignore),
            StringMatcher::Prefix(pattern, ignore) => same(value.get(..pattern.len()), pattern, *ignore),
            StringMatcher::Suffix(pattern, ignore) => {
                same(value.len().checked_sub(pattern.len()).map(|start| &value[start..]), pattern, *ignore)
            }
            StringMatcher::Contains(pattern, _) if pattern.is_empty() => true,
            StringMatcher::Contains(pattern, false) => memchr::memmem::find(value, pattern.as_bytes()).is_some(),
            StringMatcher::Contains(pattern, true) => {
                value.windows(pattern.len()).any(|window| window.eq_ignore_ascii_case(pattern.as_bytes()))
            }
            StringMatcher::Regex(regex) => regex.is_match(value),
        }
    }
}

/// A `RegexMatcher` that has to match the whole text.
pub fn anchored(cx: &mut Context, message: &pb::RegexMatcher) -> Option<Regex> {
    cx.at("regex", |cx| cx.compile(&message.regex, true))
}

/// A `RegexMatcher` whose matches are replaced.
pub fn unanchored(cx: &mut Context, message: &pb::RegexMatcher) -> Option<Regex> {
    cx.at("regex", |cx| cx.compile(&message.regex, false))
}

impl HeaderMatcher {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &route::HeaderMatcher) -> Option<Self> {
        use route::header_matcher::HeaderMatchSpecifier as Specifier;
        let plain = |matcher| HeaderMatchKind::String(matcher);
        let kind = match &message.header_match_specifier {
            None => HeaderMatchKind::Present(true),
            Some(Specifier::PresentMatch(present)) => HeaderMatchKind::Present(*present),
            Some(Specifier::ExactMatch(value)) => plain(StringMatcher::Exact(value.as_str().into(), false)),
            Some(Specifier::PrefixMatch(value)) => plain(StringMatcher::Prefix(value.as_str().into(), false)),
            Some(Specifier::SuffixMatch(value)) => plain(StringMatcher::Suffix(value.as_str().into(), false)),
            Some(Specifier::ContainsMatch(value)) => plain(StringMatcher::Contains(value.as_str().into(), false)),
            Some(Specifier::SafeRegexMatch(regex)) => {
                plain(StringMatcher::Regex(cx.at("safe_regex_match", |cx| anchored(cx, regex))?))
            }
            Some(Specifier::StringMatch(matcher)) => {
                plain(cx.at("string_match", |cx| StringMatcher::decode(cx, matcher))?)
            }
            Some(Specifier::RangeMatch(range)) => HeaderMatchKind::Range { start: range.start, end: range.end },
        };
        Some(HeaderMatcher {
            name: lower(&message.name),
            kind,
            invert: message.invert_match,
            missing_as_empty: message.treat_missing_header_as_empty,
        })
    }
}

impl QueryParameterMatcher {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &route::QueryParameterMatcher) -> Option<Self> {
        use route::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
        let (value, present) = match &message.query_parameter_match_specifier {
            None => (None, true),
            Some(Specifier::PresentMatch(present)) => (None, *present),
            Some(Specifier::StringMatch(matcher)) => {
                (Some(cx.at("string_match", |cx| StringMatcher::decode(cx, matcher))?), true)
            }
        };
        Some(QueryParameterMatcher { name: message.name.as_str().into(), value, present })
    }
}

impl CookieMatcher {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &route::CookieMatcher) -> Option<Self> {
        let value = cx.required("string_match", &message.string_match, StringMatcher::decode)?;
        Some(CookieMatcher { name: message.name.as_str().into(), value, invert: message.invert_match })
    }
}

impl FractionalPercent {
    /// Decodes the message, which cannot be wrong.
    pub fn decode(message: &percent::FractionalPercent) -> Self {
        use percent::fractional_percent::DenominatorType;
        let denominator = match message.denominator() {
            DenominatorType::Hundred => 100,
            DenominatorType::TenThousand => 10_000,
            DenominatorType::Million => 1_000_000,
        };
        FractionalPercent { numerator: message.numerator, denominator }
    }
}

impl RuntimeFraction {
    /// Decodes the message, which cannot be wrong.
    pub fn decode(message: &core::RuntimeFractionalPercent) -> Self {
        let never = FractionalPercent { numerator: 0, denominator: 100 };
        RuntimeFraction {
            default: message.default_value.as_ref().map_or(never, FractionalPercent::decode),
            runtime_key: message.runtime_key.as_str().into(),
        }
    }
}

impl RuntimeFlag {
    /// Decodes the message, which cannot be wrong.
    pub fn decode(message: &core::RuntimeFeatureFlag) -> Self {
        RuntimeFlag {
            default: message.default_value.as_ref().is_some_and(|value| value.value),
            runtime_key: message.runtime_key.as_str().into(),
        }
    }
}

/// A `CidrRange`, its host bits cleared.
pub fn cidr_range(cx: &mut Context, message: &core::CidrRange) -> Option<CidrRange> {
    range(cx, &message.address_prefix, message.prefix_len.as_ref().map_or(0, |value| value.value))
}

/// `xds.core.v3.CidrRange`, the same message under another name.
pub fn xds_cidr_range(cx: &mut Context, message: &xds::CidrRange) -> Option<CidrRange> {
    range(cx, &message.address_prefix, message.prefix_len.as_ref().map_or(0, |value| value.value))
}

fn range(cx: &mut Context, address: &str, length: u32) -> Option<CidrRange> {
    let Ok(parsed) = address.parse::<IpAddr>() else {
        cx.error_at("address_prefix", format!("malformed IP address: {address}"));
        return None;
    };
    // A length beyond the address' own is cut to it, as in Envoy.
    let longest = if parsed.is_ipv4() { 32 } else { 128 };
    let length = u8::try_from(length).unwrap_or(longest).min(longest);
    Some(IpNet::new(parsed, length).ok()?.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::google::protobuf::UInt32Value;
    use pb::string_matcher::MatchPattern;

    fn string(pattern: MatchPattern, ignore_case: bool) -> pb::StringMatcher {
        pb::StringMatcher { ignore_case, match_pattern: Some(pattern) }
    }

    fn regex(text: &str) -> pb::RegexMatcher {
        pb::RegexMatcher { regex: text.into(), ..Default::default() }
    }

    #[test]
    fn patterns_that_ignore_case_are_stored_in_lower_case() {
        let mut cx = Context::default();
        let matcher = StringMatcher::decode(&mut cx, &string(MatchPattern::Prefix("AbC".into()), true));
        assert!(matches!(matcher, Some(StringMatcher::Prefix(text, true)) if &*text == "abc"));
    }

    #[test]
    fn a_regex_matches_the_whole_value() {
        let mut cx = Context::default();
        let matcher = StringMatcher::decode(&mut cx, &string(MatchPattern::SafeRegex(regex("a|b")), false));
        let Some(StringMatcher::Regex(regex)) = matcher else { panic!("{matcher:?}") };
        assert!(regex.is_match(b"b") && !regex.is_match(b"ab"));
    }

    #[test]
    fn an_invalid_regex_is_an_error_at_its_field() {
        let message = string(MatchPattern::SafeRegex(regex("(")), false);
        let result = Context::default().run(|cx| StringMatcher::decode(cx, &message));
        assert_eq!(errors(result), ["safe_regex.regex: invalid regex '(': unclosed group"]);
    }

    #[test]
    fn ignore_case_with_a_regex_is_an_error() {
        let message = string(MatchPattern::SafeRegex(regex("a")), true);
        let result = Context::default().run(|cx| StringMatcher::decode(cx, &message));
        assert_eq!(errors(result), ["ignore_case has no effect for safe_regex."]);
    }

    #[test]
    fn a_header_matcher_without_condition_asks_for_presence() {
        let message = route::HeaderMatcher { name: "X-A".into(), ..Default::default() };
        let matcher = HeaderMatcher::decode(&mut Context::default(), &message).unwrap();
        assert_eq!(&*matcher.name, "x-a");
        assert!(matches!(matcher.kind, HeaderMatchKind::Present(true)));
    }

    #[test]
    fn the_deprecated_exact_match_is_a_string_matcher() {
        use route::header_matcher::HeaderMatchSpecifier;
        let specifier = Some(HeaderMatchSpecifier::ExactMatch("V".into()));
        let message =
            route::HeaderMatcher { name: "a".into(), header_match_specifier: specifier, ..Default::default() };
        let matcher = HeaderMatcher::decode(&mut Context::default(), &message).unwrap();
        assert!(matches!(matcher.kind, HeaderMatchKind::String(StringMatcher::Exact(v, false)) if &*v == "V"));
    }

    fn cidr(prefix: &str, length: u32) -> core::CidrRange {
        core::CidrRange { address_prefix: prefix.into(), prefix_len: Some(UInt32Value { value: length }) }
    }

    #[test]
    fn ranges_lose_their_host_bits() {
        let net = cidr_range(&mut Context::default(), &cidr("10.1.2.3", 8)).unwrap();
        assert_eq!(net.to_string(), "10.0.0.0/8");
        let net = cidr_range(&mut Context::default(), &cidr("10.1.2.3", 35)).unwrap();
        assert_eq!(net.to_string(), "10.1.2.3/32");
    }

    #[test]
    fn a_range_without_an_address_is_an_error() {
        let result = Context::default().run(|cx| cidr_range(cx, &cidr("example", 8)));
        assert_eq!(errors(result), ["address_prefix: malformed IP address: example"]);
    }
}
