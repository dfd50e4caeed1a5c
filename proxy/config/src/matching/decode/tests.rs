//! Trees from messages, and what they find.

use super::super::MatchData;
use super::*;
use crate::decode::tests::errors;
use std::borrow::Cow;

fn any(name: &str, message: &impl Message) -> TypedExtensionConfig {
    let any = Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() };
    TypedExtensionConfig { name: "x".into(), typed_config: Some(any) }
}

fn header(name: &str) -> TypedExtensionConfig {
    let message = envoy::HttpRequestHeaderMatchInput { header_name: name.into() };
    any("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", &message)
}

fn action(name: &str) -> tree::OnMatch {
    let action = TypedExtensionConfig { name: name.into(), typed_config: None };
    tree::OnMatch { keep_matching: false, on_match: Some(tree::on_match::OnMatch::Action(action)) }
}

fn nested(matcher: pb::Matcher) -> tree::OnMatch {
    tree::OnMatch { keep_matching: false, on_match: Some(tree::on_match::OnMatch::Matcher(Box::new(matcher))) }
}

fn exact(header_name: &str, value: &str) -> list::Predicate {
    let value = pb::StringMatcher {
        match_pattern: Some(pb::string_matcher::MatchPattern::Exact(value.into())),
        ignore_case: false,
    };
    let single = list::predicate::SinglePredicate {
        input: Some(header(header_name)),
        matcher: Some(list::predicate::single_predicate::Matcher::ValueMatch(value)),
    };
    list::Predicate { match_type: Some(list::predicate::MatchType::SinglePredicate(single)) }
}

fn matchers(entries: Vec<(list::Predicate, tree::OnMatch)>, otherwise: Option<tree::OnMatch>) -> pb::Matcher {
    let matchers = entries.into_iter().map(|(predicate, on_match)| list_entry(predicate, on_match)).collect();
    pb::Matcher {
        matcher_type: Some(tree::MatcherType::MatcherList(tree::MatcherList { matchers })),
        on_no_match: otherwise.map(Box::new),
    }
}

fn list_entry(predicate: list::Predicate, on_match: tree::OnMatch) -> list::FieldMatcher {
    list::FieldMatcher { predicate: Some(predicate), on_match: Some(on_match) }
}

fn map(prefix: bool, entries: &[(&str, &str)]) -> pb::Matcher {
    use tree::matcher_tree::{MatchMap, TreeType};
    let map = MatchMap { map: entries.iter().map(|(key, name)| ((*key).to_owned(), action(name))).collect() };
    let tree_type = Some(if prefix { TreeType::PrefixMatchMap(map) } else { TreeType::ExactMatchMap(map) });
    let tree = tree::MatcherTree { input: Some(header("h")), tree_type };
    pb::Matcher { matcher_type: Some(tree::MatcherType::MatcherTree(tree)), on_no_match: None }
}

struct Data(&'static [(&'static str, &'static str)]);

impl MatchData<MatchInput> for Data {
    fn value(&self, input: &MatchInput) -> Option<Cow<'_, [u8]>> {
        let MatchInput::RequestHeader(name) = input else { return None };
        self.0.iter().find(|(known, _)| *known == &**name).map(|(_, value)| value.as_bytes().into())
    }

    fn in_fraction(&self, _: &RuntimeFraction, _: u64) -> bool {
        true
    }
}

fn decode(message: &pb::Matcher) -> Result<MatchTree<String>, Vec<crate::diagnostics::ConfigError>> {
    let allowed = |input: &MatchInput| !matches!(input, MatchInput::StatusCode);
    Context::default().run(|cx| MatchTree::decode(cx, message, &allowed, &mut |_, action| Some(action.name.clone())))
}

fn find(message: &pb::Matcher, data: &'static [(&'static str, &'static str)]) -> String {
    decode(message).unwrap().find(&Data(data)).cloned().unwrap_or_default()
}

#[test]
fn the_first_entry_that_holds_decides() {
    let tree = matchers(
        vec![(exact("a", "1"), action("one")), (exact("a", "1"), action("two")), (exact("b", "2"), action("three"))],
        Some(action("none")),
    );
    assert_eq!(find(&tree, &[("a", "1"), ("b", "2")]), "one");
    assert_eq!(find(&tree, &[("b", "2")]), "three");
    assert_eq!(find(&tree, &[]), "none");
}

#[test]
fn predicates_combine() {
    use list::predicate::{MatchType, PredicateList};
    let both = |list| list::Predicate { match_type: Some(list) };
    let predicate = || vec![exact("a", "1"), exact("b", "2")];
    let and = both(MatchType::AndMatcher(PredicateList { predicate: predicate() }));
    let or = both(MatchType::OrMatcher(PredicateList { predicate: predicate() }));
    let not = both(MatchType::NotMatcher(Box::new(exact("a", "1"))));
    let tree = matchers(vec![(and, action("and")), (or, action("or")), (not, action("not"))], None);
    assert_eq!(find(&tree, &[("a", "1"), ("b", "2")]), "and");
    assert_eq!(find(&tree, &[("a", "1")]), "or");
    assert_eq!(find(&tree, &[]), "not");
}

#[test]
fn a_nested_tree_without_a_match_lets_the_next_entry_try() {
    let inner = matchers(vec![(exact("b", "2"), action("inner"))], None);
    let tree = matchers(vec![(exact("a", "1"), nested(inner)), (exact("a", "1"), action("next"))], None);
    assert_eq!(find(&tree, &[("a", "1"), ("b", "2")]), "inner");
    assert_eq!(find(&tree, &[("a", "1")]), "next");
}

#[test]
fn an_action_that_keeps_matching_is_passed_over() {
    let keep = tree::OnMatch { keep_matching: true, ..action("kept") };
    let tree = matchers(vec![(exact("a", "1"), keep), (exact("a", "1"), action("next"))], None);
    assert_eq!(find(&tree, &[("a", "1")]), "next");
}

#[test]
fn maps_find_equal_keys_and_longest_prefixes() {
    let list = &[("/", "root"), ("/a", "short"), ("/a/b", "long")];
    assert_eq!(find(&map(false, list), &[("h", "/a")]), "short");
    assert_eq!(find(&map(false, list), &[("h", "/a/")]), "");
    assert_eq!(find(&map(true, list), &[("h", "/a/b/c")]), "long");
    assert_eq!(find(&map(true, list), &[("h", "/ab")]), "short");
    assert_eq!(find(&map(true, list), &[("h", "x")]), "");
}

#[test]
fn an_address_is_matched_by_its_longest_range() {
    let range = |prefix: &str, length, name, exclusive| IpRangeMatcher {
        ranges: vec![CidrRange {
            address_prefix: prefix.into(),
            prefix_len: Some(envoy_types::pb::google::protobuf::UInt32Value { value: length }),
        }],
        on_match: Some(match name {
            "" => nested(matchers(vec![], None)),
            name => action(name),
        }),
        exclusive,
    };
    let message = IpMatcher {
        range_matchers: vec![
            range("10.0.0.0", 8, "wide", false),
            range("10.1.0.0", 16, "narrow", false),
            range("10.2.0.0", 16, "", true),
            range("10.3.0.0", 16, "", false),
        ],
    };
    let custom = any("xds.type.matcher.v3.IPMatcher", &message);
    let tree_type = Some(tree::matcher_tree::TreeType::CustomMatch(custom));
    let inner = tree::MatcherTree { input: Some(header("h")), tree_type };
    let tree = pb::Matcher { matcher_type: Some(tree::MatcherType::MatcherTree(inner)), on_no_match: None };
    assert_eq!(find(&tree, &[("h", "10.1.2.3")]), "narrow");
    assert_eq!(find(&tree, &[("h", "10.9.2.3")]), "wide");
    assert_eq!(find(&tree, &[("h", "10.2.2.3")]), "");
    assert_eq!(find(&tree, &[("h", "10.3.2.3")]), "wide");
    assert_eq!(find(&tree, &[("h", "::1")]), "");
}

fn server_names(entries: Vec<(&[&str], tree::OnMatch)>) -> pb::Matcher {
    let matcher = |(domains, on_match): (&[&str], _)| DomainMatcher {
        domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
        on_match: Some(on_match),
    };
    let message = ServerNameMatcher { domain_matchers: entries.into_iter().map(matcher).collect() };
    let custom = any("xds.type.matcher.v3.ServerNameMatcher", &message);
    let tree_type = Some(tree::matcher_tree::TreeType::CustomMatch(custom));
    let inner = tree::MatcherTree { input: Some(header("h")), tree_type };
    pb::Matcher {
        matcher_type: Some(tree::MatcherType::MatcherTree(inner)),
        on_no_match: Some(Box::new(action("none"))),
    }
}

#[test]
fn server_names_match_whole_then_by_the_longest_suffix() {
    let keep = tree::OnMatch { keep_matching: true, ..action("kept") };
    let tree = server_names(vec![
        (&["a.example", "*.a.example"], action("a")),
        (&["*.b.a.example"], keep),
        (&["*.example"], action("example")),
    ]);
    for (name, expected) in [
        ("a.example", "a"),
        ("x.y.a.example", "a"),
        ("x.b.a.example", "a"),
        ("x.example", "example"),
        ("example", "none"),
        ("", "none"),
    ] {
        assert_eq!(find(&tree, Box::leak(Box::new([("h", name)]))), expected, "{name}");
    }
    let tree = server_names(vec![(&["*"], action("any")), (&["x"], action("x"))]);
    assert_eq!((find(&tree, &[("h", "x")]), find(&tree, &[("h", "y")])), ("x".to_owned(), "any".to_owned()));
}

#[test]
fn wrong_server_names_are_told_in_envoys_words() {
    let wrong = |domains: &[&str]| errors(decode(&server_names(vec![(domains, action("a"))]))).remove(0);
    let place = "matcher_tree.custom_match.typed_config.domain_matchers[0].domains";
    let invalid = "Invalid wildcard domain format";
    for (domains, expected) in [
        (&["a*"][..], format!("{place}[0]: {invalid}: a*. Only '*' and '*.domain' patterns are supported")),
        (&["*."], format!("{place}[0]: {invalid}: *.. Only '*' and '*.domain' patterns are supported")),
        (&["*.*.a"], format!("{place}[0]: {invalid}: *.*.a. Multiple wildcards are not supported")),
        (&["a", "a"], format!("{place}[1]: Duplicate domain in ServerNameMatcher: a")),
        (&[""], format!("{place}[0]: Empty domain in ServerNameMatcher")),
    ] {
        assert_eq!(wrong(domains), expected);
    }
}

#[test]
fn hashes_of_values_are_held_against_a_threshold() {
    use list::predicate::{MatchType, SinglePredicate, single_predicate::Matcher};
    let hashed = |threshold| {
        let message = ConsistentHashing { threshold, modulo: 100, seed: 7 };
        let custom = any("envoy.extensions.matching.input_matchers.consistent_hashing.v3.ConsistentHashing", &message);
        let single = SinglePredicate { input: Some(header("h")), matcher: Some(Matcher::CustomMatch(custom)) };
        let predicate = list::Predicate { match_type: Some(MatchType::SinglePredicate(single)) };
        matchers(vec![(predicate, action("high"))], Some(action("low")))
    };
    let expected = u32::try_from(xxhash_rust::xxh64::xxh64(b"value", 7) % 100).unwrap();
    assert_eq!(find(&hashed(expected), &[("h", "value")]), "high");
    assert_eq!(find(&hashed(expected + 1), &[("h", "value")]), "low");
    assert!(errors(decode(&hashed(101)))[0].ends_with("threshold cannot be greater than modulo: 101 > 100"));
}

#[test]
fn inputs_that_are_unknown_or_have_no_value_here_are_errors() {
    let mut tree = map(false, &[("a", "b")]);
    let input = |name: &str| Some(any(name, &()));
    let Some(tree::MatcherType::MatcherTree(inner)) = &mut tree.matcher_type else { panic!("no tree") };
    inner.input = input("envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput");
    let text = "input 'envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput' cannot be used here";
    assert_eq!(errors(decode(&tree)), [format!("matcher_tree.input: {text}")]);
    let Some(tree::MatcherType::MatcherTree(inner)) = &mut tree.matcher_type else { panic!("no tree") };
    inner.input = input("x.Y");
    assert_eq!(errors(decode(&tree)), ["matcher_tree.input: input 'x.Y' is not implemented"]);
}

#[test]
fn trees_may_not_be_nested_without_end() {
    let mut tree = matchers(vec![(exact("a", "1"), action("end"))], None);
    for _ in 0..40 {
        tree = matchers(vec![(exact("a", "1"), nested(tree))], None);
    }
    assert!(errors(decode(&tree))[0].ends_with("matchers may not be nested deeper than 32"));
}
