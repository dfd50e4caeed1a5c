//! Matchers shared by every API area: strings, headers, query parameters, fractions, address ranges.

use ipnet::IpNet;
use regex::bytes::Regex;

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
