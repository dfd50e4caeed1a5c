//! Matchers over strings, headers, query parameters, cookies and metadata, evaluated without allocating.
//!
//! Built from the IR when a route table, a virtual cluster or an access-log filter is built; the IR already holds
//! compiled regexes and lower-cased patterns. Nothing here parses configuration.

use nuncio_config::matchers as config;
use nuncio_config::route::{MetadataMatcher, ValueMatcher};
use serde_json::Value;

use crate::headers::{HeaderName, Headers, names};

pub use config::{FractionalPercent, RuntimeFraction, StringMatcher};

/// What runtime layers override. The server implements it over its layers; [`NoRuntime`] overrides nothing.
pub trait Runtime: Send + Sync {
    /// The value of an integer key, if any layer sets it.
    fn integer(&self, key: &str) -> Option<u64>;

    /// The value of a key that is a number with decimals, if any layer sets it.
    fn double(&self, key: &str) -> Option<f64> {
        self.integer(key).map(|value| value as f64)
    }

    /// The value of a fractional-percent key, if any layer sets one (an integer counts as percent).
    fn fraction(&self, key: &str) -> Option<FractionalPercent> {
        let percent = self.integer(key)?;
        Some(FractionalPercent { numerator: percent.min(100) as u32, denominator: 100 })
    }
}

/// A runtime without layers.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRuntime;

impl Runtime for NoRuntime {
    fn integer(&self, _: &str) -> Option<u64> {
        None
    }
}

/// Whether a share of requests includes the one with this random value.
#[inline]
pub fn in_fraction(percent: FractionalPercent, random: u64) -> bool {
    random % u64::from(percent.denominator.max(1)) < u64::from(percent.numerator)
}

/// As [`in_fraction`], with the runtime key consulted first.
#[inline]
pub fn in_runtime_fraction(fraction: &RuntimeFraction, runtime: &dyn Runtime, random: u64) -> bool {
    let percent = if fraction.runtime_key.is_empty() {
        fraction.default
    } else {
        runtime.fraction(&fraction.runtime_key).unwrap_or(fraction.default)
    };
    in_fraction(percent, random)
}

/// Whether a string satisfies a matcher.
#[inline]
pub fn string_matches(matcher: &StringMatcher, value: &[u8]) -> bool {
    matcher.matches(value)
}

pub(crate) fn starts_with_ignore_case(value: &[u8], prefix: &[u8]) -> bool {
    value.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
}

/// The name under which the header list keeps a configured header: Envoy's `host` is `:authority`.
pub fn header_name(name: &str) -> Option<HeaderName> {
    if name.eq_ignore_ascii_case("host") {
        return Some(names::AUTHORITY);
    }
    HeaderName::parse(name)
}

/// A header condition, ready to evaluate.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    name: HeaderName,
    kind: config::HeaderMatchKind,
    invert: bool,
    missing_as_empty: bool,
}

impl HeaderMatch {
    /// From the IR; the error says what is wrong with the name.
    pub fn build(matcher: &config::HeaderMatcher) -> Result<Self, String> {
        let name = header_name(&matcher.name).ok_or_else(|| format!("invalid header name: {:?}", matcher.name))?;
        Ok(Self {
            name,
            kind: matcher.kind.clone(),
            invert: matcher.invert,
            missing_as_empty: matcher.missing_as_empty,
        })
    }

    /// Name of the header that it looks at.
    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    /// Whether these headers satisfy it. A missing header matches nothing but `present_match`, inverted or not. Of a
    /// header with several lines each is looked at on its own, as Envoy does since 1.39.
    pub fn matches(&self, headers: &Headers) -> bool {
        if let config::HeaderMatchKind::Present(present) = self.kind {
            return ((headers.contains(&self.name) || self.missing_as_empty) == present) != self.invert;
        }
        let mut found = false;
        for value in headers.get_all(&self.name) {
            found = true;
            if self.value_matches(value.as_bytes()) {
                return !self.invert;
            }
        }
        if found {
            return self.invert;
        }
        self.missing_as_empty && self.value_matches(b"") != self.invert
    }

    fn value_matches(&self, value: &[u8]) -> bool {
        match &self.kind {
            config::HeaderMatchKind::Present(_) => true,
            config::HeaderMatchKind::String(matcher) => string_matches(matcher, value),
            config::HeaderMatchKind::Range { start, end } => {
                parse_int(value).is_some_and(|number| (*start..*end).contains(&number))
            }
        }
    }
}

/// A decimal integer with optional surrounding blanks and sign, as Envoy's header ranges read it.
fn parse_int(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.trim_ascii().parse().ok()
}

/// All of a list of header conditions.
pub fn build_header_matches(list: &[config::HeaderMatcher]) -> Result<Box<[HeaderMatch]>, String> {
    list.iter().map(HeaderMatch::build).collect()
}

/// First value of a query parameter, not decoded; `Some(b"")` where it has no value.
pub fn query_parameter<'a>(path: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let query = &path[memchr::memchr(b'?', path)? + 1..];
    query.split(|&byte| byte == b'&').find_map(|parameter| match memchr::memchr(b'=', parameter) {
        Some(at) => (&parameter[..at] == name).then(|| &parameter[at + 1..]),
        // An empty piece between two '&' is a parameter without a name.
        None => (parameter == name && !query.is_empty()).then_some(&b""[..]),
    })
}

/// Whether the query satisfies a matcher.
pub fn query_matches(matcher: &config::QueryParameterMatcher, path: &[u8]) -> bool {
    let value = query_parameter(path, matcher.name.as_bytes());
    match (&matcher.value, value) {
        (Some(matcher), value) => value.is_some_and(|value| string_matches(matcher, value)),
        (None, value) => value.is_some() == matcher.present,
    }
}

/// First value of a cookie, without its double quotes.
pub fn cookie<'a>(headers: &'a Headers, name: &[u8]) -> Option<&'a [u8]> {
    for line in headers.get_all(&names::COOKIE) {
        for pair in line.as_bytes().split(|&byte| byte == b';') {
            let start = pair.iter().position(|&byte| byte != b' ').unwrap_or(pair.len());
            let pair = &pair[start..];
            let Some(at) = memchr::memchr(b'=', pair) else { continue };
            if &pair[..at] == name {
                let value = &pair[at + 1..];
                return Some(match value {
                    [b'"', inner @ .., b'"'] => inner,
                    _ => value,
                });
            }
        }
    }
    None
}

/// Whether the cookies satisfy a matcher; an inverted one matches where the cookie is missing.
pub fn cookie_matches(matcher: &config::CookieMatcher, headers: &Headers) -> bool {
    let matched = cookie(headers, matcher.name.as_bytes()).is_some_and(|value| string_matches(&matcher.value, value));
    matched != matcher.invert
}

/// Whether metadata satisfies a matcher.
pub fn metadata_matches(matcher: &MetadataMatcher, metadata: Option<&serde_json::Map<String, Value>>) -> bool {
    let value = metadata_value(metadata, &matcher.filter, &matcher.path);
    value_matches(&matcher.value, value) != matcher.invert
}

/// The value at a path of keys under a namespace.
pub fn metadata_value<'a>(
    metadata: Option<&'a serde_json::Map<String, Value>>,
    namespace: &str,
    path: &[Box<str>],
) -> Option<&'a Value> {
    let mut value = metadata?.get(namespace)?;
    for key in path {
        value = value.as_object()?.get(&**key)?;
    }
    Some(value)
}

fn value_matches(matcher: &ValueMatcher, value: Option<&Value>) -> bool {
    match matcher {
        ValueMatcher::Null => value.is_some_and(Value::is_null),
        ValueMatcher::Range(start, end) => {
            value.and_then(Value::as_f64).is_some_and(|number| *start <= number && number < *end)
        }
        // Envoy compares doubles exactly.
        #[allow(clippy::float_cmp)]
        ValueMatcher::Number(wanted) => value.and_then(Value::as_f64).is_some_and(|number| number == *wanted),
        ValueMatcher::String(matcher) => {
            value.and_then(Value::as_str).is_some_and(|text| string_matches(matcher, text.as_bytes()))
        }
        ValueMatcher::Bool(wanted) => value.and_then(Value::as_bool) == Some(*wanted),
        ValueMatcher::Present(wanted) => value.is_some_and(|value| !value.is_null()) == *wanted,
        ValueMatcher::ListOneOf(inner) => {
            value.and_then(Value::as_array).is_some_and(|list| list.iter().any(|item| value_matches(inner, Some(item))))
        }
        ValueMatcher::Or(list) => list.iter().any(|matcher| value_matches(matcher, value)),
    }
}

/// Whether these are the headers of a gRPC request.
pub fn is_grpc_request(headers: &Headers) -> bool {
    headers.contains(&names::PATH)
        && headers.bytes(&names::CONTENT_TYPE).is_some_and(|value| {
            value.strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || rest[0] == b'+')
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::HeaderValue;
    use nuncio_config::matchers::{CookieMatcher, HeaderMatchKind, HeaderMatcher, QueryParameterMatcher};

    fn headers(list: &[(&str, &'static str)]) -> Headers {
        let mut out = Headers::new();
        for (name, value) in list {
            out.append(HeaderName::parse(name).unwrap(), HeaderValue::from_static(value));
        }
        out
    }

    fn header(kind: HeaderMatchKind, invert: bool, missing_as_empty: bool) -> HeaderMatch {
        HeaderMatch::build(&HeaderMatcher { name: "x".into(), kind, invert, missing_as_empty }).unwrap()
    }

    #[test]
    fn every_string_matcher_has_its_ignore_case_form() {
        let table = [
            (StringMatcher::Exact("ab".into(), false), "ab", "AB"),
            (StringMatcher::Prefix("ab".into(), false), "abc", "ABC"),
            (StringMatcher::Suffix("bc".into(), false), "abc", "ABC"),
            (StringMatcher::Contains("b".into(), false), "abc", "ABC"),
        ];
        for (matcher, lower, upper) in table {
            assert!(string_matches(&matcher, lower.as_bytes()) && !string_matches(&matcher, upper.as_bytes()));
            let any_case = match matcher {
                StringMatcher::Exact(p, _) => StringMatcher::Exact(p, true),
                StringMatcher::Prefix(p, _) => StringMatcher::Prefix(p, true),
                StringMatcher::Suffix(p, _) => StringMatcher::Suffix(p, true),
                StringMatcher::Contains(p, _) => StringMatcher::Contains(p, true),
                StringMatcher::Regex(r) => StringMatcher::Regex(r),
            };
            assert!(string_matches(&any_case, lower.as_bytes()) && string_matches(&any_case, upper.as_bytes()));
            assert!(!string_matches(&any_case, b""));
        }
    }

    #[test]
    fn a_missing_header_matches_only_when_treated_as_empty_or_asked_for_by_presence() {
        let exact = |text: &str| HeaderMatchKind::String(StringMatcher::Exact(text.into(), false));
        let none = headers(&[]);
        assert!(!header(exact("a"), false, false).matches(&none));
        assert!(!header(exact("a"), true, false).matches(&none));
        assert!(header(exact("a"), true, true).matches(&none));
        assert!(header(exact(""), false, true).matches(&none));
        assert!(header(HeaderMatchKind::Present(false), false, false).matches(&none));
        assert!(header(HeaderMatchKind::Present(true), true, false).matches(&none));
        assert!(header(HeaderMatchKind::Present(true), false, false).matches(&headers(&[("x", "")])));
    }

    #[test]
    fn repeated_headers_match_one_by_one_and_ranges_are_half_open() {
        let two = headers(&[("x", "a"), ("x", "b")]);
        let exact = |text: &str, invert| {
            header(HeaderMatchKind::String(StringMatcher::Exact(text.into(), false)), invert, false).matches(&two)
        };
        assert!(exact("a", false) && exact("b", false) && !exact("a,b", false));
        assert!(!exact("a", true) && !exact("b", true) && exact("a,b", true));
        let range = header(HeaderMatchKind::Range { start: -5, end: 10 }, false, false);
        for (text, wanted) in [("-5", true), ("9", true), ("10", false), ("", false), ("1x", false)] {
            assert_eq!(range.matches(&headers(&[("x", text)])), wanted, "{text}");
        }
    }

    #[test]
    fn host_is_the_authority() {
        let matcher = HeaderMatch::build(&HeaderMatcher {
            name: "host".into(),
            kind: HeaderMatchKind::String(StringMatcher::Exact("a".into(), false)),
            invert: false,
            missing_as_empty: false,
        })
        .unwrap();
        assert!(matcher.matches(&headers(&[(":authority", "a")])));
    }

    #[test]
    fn query_parameters_are_found_by_their_first_value() {
        let path = b"/p?a=1&b&a=2&c=x=y&";
        let value = |name: &str| query_parameter(path, name.as_bytes());
        assert_eq!(value("a"), Some(&b"1"[..]));
        assert_eq!(value("b"), Some(&b""[..]));
        assert_eq!(value("c"), Some(&b"x=y"[..]));
        assert_eq!(value("d"), None);
        assert_eq!(query_parameter(b"/p", b"a"), None);
        let matcher =
            |value: Option<StringMatcher>, present| QueryParameterMatcher { name: "a".into(), value, present };
        assert!(query_matches(&matcher(Some(StringMatcher::Exact("1".into(), false)), true), path));
        assert!(!query_matches(&matcher(Some(StringMatcher::Exact("2".into(), false)), true), path));
        assert!(query_matches(&matcher(None, true), path));
        assert!(query_matches(&matcher(None, false), b"/p?b"));
    }

    #[test]
    fn cookies_are_split_and_unquoted() {
        let list = headers(&[("cookie", "a=1; b=\"q\";c = 3"), ("cookie", "a=9")]);
        assert_eq!(cookie(&list, b"a"), Some(&b"1"[..]));
        assert_eq!(cookie(&list, b"b"), Some(&b"q"[..]));
        assert_eq!(cookie(&list, b"c"), None);
        let inverted = CookieMatcher { name: "z".into(), value: StringMatcher::Exact("1".into(), false), invert: true };
        assert!(cookie_matches(&inverted, &list));
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for (value, wanted) in
            [("application/grpc", true), ("application/grpc+proto", true), ("application/grpc-web", false)]
        {
            assert_eq!(is_grpc_request(&headers(&[(":path", "/a"), ("content-type", value)])), wanted);
        }
    }

    #[test]
    fn fractions_compare_the_random_value() {
        let half =
            RuntimeFraction { default: FractionalPercent { numerator: 50, denominator: 100 }, runtime_key: "k".into() };
        assert!(in_runtime_fraction(&half, &NoRuntime, 149));
        assert!(!in_runtime_fraction(&half, &NoRuntime, 150));
        struct All;
        impl Runtime for All {
            fn integer(&self, _: &str) -> Option<u64> {
                Some(200)
            }
        }
        assert!(in_runtime_fraction(&half, &All, 199));
    }
}
