//! Tags: what is cut out of a stat's name and shown as a label, with Envoy's default rules and the user's own
//! (`stats_config.stats_tags`).
//!
//! Runs only when stats are shown. Rules are tried in Envoy's order: those that fit any first token of the name, then those
//! for the name's first token; of several rules for one tag the first that matches wins. A rule reads the whole name; what
//! all rules cut out is removed at the end.

use std::borrow::Cow;
use std::sync::{LazyLock, OnceLock};

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use self::Matcher::{Fixed, Tokens, UserRegex, WellKnownRegex};

/// One `stats_tags` entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagSpecifier {
    /// Tag name.
    pub name: String,
    /// Where its value comes from.
    pub value: TagValue,
}

/// Where a tag's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagValue {
    /// The first group of this regex is cut out of the name; its second group, if any, is the value. Look-around is allowed.
    Regex(String),
    /// The same value on every stat.
    Fixed(String),
    /// Envoy's default rules for the tag's name.
    Default,
}

/// A `stats_tags` entry that cannot be used; the texts are Envoy's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// No rule given, and no default for this name.
    #[error("No regex specified for tag specifier and no default regex for name: '{0}'")]
    NoDefault(String),
    /// The regex does not compile.
    #[error("Invalid regex '{0}': {1}")]
    Regex(String, String),
}

/// A tag of one stat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag<'a> {
    /// Name, for example `envoy.cluster_name`.
    pub name: &'a str,
    /// Value, as it stands in the name.
    pub value: &'a str,
}

/// A name split into tags and the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extracted<'a> {
    /// The name without its tags.
    pub name: Cow<'a, str>,
    /// The tags, in the order in which they are shown.
    pub tags: SmallVec<[Tag<'a>; 4]>,
}

/// The tag rules of one server.
#[derive(Debug)]
pub struct TagExtractor {
    any_prefix: Vec<Rule>,
    by_prefix: FxHashMap<String, Vec<Rule>>,
}

#[derive(Clone, Debug)]
struct Rule {
    tag: String,
    matcher: Matcher,
    /// Another rule has the same tag.
    shared: bool,
}

#[derive(Clone, Debug)]
enum Matcher {
    WellKnownRegex(&'static WellKnown),
    UserRegex(Box<fancy_regex::Regex>),
    Tokens(&'static str),
    Fixed(String),
}

#[derive(Debug)]
struct WellKnown {
    tag: &'static str,
    source: String,
    /// Compiled at the first name that may match: a process whose stats nobody reads needs none.
    regex: OnceLock<Option<regex::bytes::Regex>>,
    /// A name without this cannot match.
    substring: memchr::memmem::Finder<'static>,
    /// A value that does not count.
    except: &'static str,
}

/// Patterns of Envoy 1.40's default tags that need more than tokens: tag, pattern, required substring, excluded value.
/// Stand-ins: `<V>` one token, `<A>` an address with port, `<C>` a cipher, `<L>` a listener or cluster with its name,
/// `<R>` a route configuration's name.
const REGEXES: &[(&str, &str, &str, &str)] = &[
    ("envoy.response_code", r"_rq(_(\d{3}))$", "_rq_", ""),
    ("envoy.response_code_class", r"_rq_((\d))xx$", "_rq_", ""),
    (
        "envoy.dynamo_partition_id",
        r"^http\.<V>\.dynamodb\.table\.<V>\.capacity\.<V>(\.__partition_id=(\w{7}))$",
        ".dynamodb.table.",
        "",
    ),
    (
        "envoy.dynamo_operation",
        r"^http\.<V>\.dynamodb.(?:operation|table\.<V>\.capacity)(\.(<V>))(?:\.|$)",
        ".dynamodb.",
        "",
    ),
    ("envoy.dynamo_table", r"^http\.<V>\.dynamodb.(?:table|error)\.((<V>)\.)", ".dynamodb.", ""),
    ("envoy.ssl_cipher", r"^listener\..*?\.ssl\.ciphers(\.(<C>))$", ".ssl.ciphers.", ""),
    ("envoy.ssl_curve", r"^<L>\.ssl\.curves(\.(<C>))$", ".ssl.curves.", ""),
    ("envoy.ssl_sigalg", r"^<L>\.ssl\.sigalgs(\.(<C>))$", ".ssl.sigalgs.", ""),
    ("envoy.ssl_version", r"^<L>\.ssl\.versions(\.(TLSv\d\.\d))$", ".ssl.versions.", ""),
    ("envoy.tls_certificate", r"^<L>\.ssl\.certificate\.((<V>)\.).*$", ".ssl.certificate", ""),
    ("cipher_suite", r"^cluster\.<V>\.ssl\.ciphers(\.(<C>))$", ".ssl.ciphers.", ""),
    ("envoy.health_check_name", r"^cluster\.<V>\.health_check(\.name\.(<V>))\..+", ".health_check.name.", ""),
    ("envoy.http_conn_manager_prefix", r"^listener\..*?\.http\.((<V>)\.)", ".http.", ""),
    (
        "envoy.worker_id",
        r"^(?:listener\.(?:<A>|<V>)|server|listener_manager|thread_local_cluster_manager)\.worker_((\d+)\.)",
        ".worker_",
        "",
    ),
    ("envoy.listener_address", r"^listener\.((<A>|<V>)\.)", "", "admin"),
    ("envoy.rds_route_config", r"^http\.<V>\.rds\.((<R>)\.)\w+?$", ".rds.", ""),
    ("envoy.scoped_rds_config", r"^http\.<V>\.scoped_rds\.((<R>)\.)\w+?$", ".scoped_rds.", ""),
    (
        "envoy.rbac_policy_name",
        r"^http\.<V>\.rbac\.(?:<V>\.)?policy\.((<V>)\.)(?:allowed|shadow_allowed|denied|shadow_denied)$",
        ".rbac.",
        "",
    ),
    ("envoy.rbac_http_prefix", r"^http\.<V>\.rbac\.((<V>)\.).*?", ".rbac.", "policy"),
    ("envoy.proxy_protocol_version", r"^proxy_proto\.((?:<V>\.)?versions\.v(\d)\.)\w+$", "proxy_proto.", ""),
    ("envoy.proxy_protocol_prefix", r"^proxy_proto\.((<V>)\.).+$", "proxy_proto.", "versions"),
    ("envoy.xds_resource_name", r"^sds\.((<V>)\.).+", "sds.", ""),
];

/// Default tags by tokens: `$` is the value, `*` one token, `**` any number of tokens, but at the end at least one.
const TOKENS: &[(&str, &str)] = &[
    ("envoy.mongo_callsite", "mongo.*.collection.*.callsite.$.query.**"),
    ("envoy.mongo_collection", "mongo.*.collection.$.**.query.*"),
    ("envoy.mongo_cmd", "mongo.*.cmd.$.**"),
    ("envoy.grpc_bridge_method", "cluster.*.grpc.*.$.**"),
    ("envoy.http_user_agent", "http.*.user_agent.$.**"),
    ("envoy.virtual_cluster", "vhost.*.vcluster.$.**"),
    ("envoy.fault_downstream_cluster", "http.*.fault.$.**"),
    ("envoy.grpc_bridge_service", "cluster.*.grpc.$.**"),
    ("envoy.tcp_prefix", "tcp.$.**"),
    ("envoy.udp_prefix", "udp.$.**"),
    ("envoy.clientssl_prefix", "auth.clientssl.$.**"),
    ("envoy.ratelimit_prefix", "ratelimit.$.**"),
    ("envoy.cluster_name", "cluster.$.**"),
    ("envoy.ext_authz_prefix", "cluster.*.ext_authz.$.**"),
    ("envoy.ext_authz_prefix", "http.*.ext_authz.$.**"),
    ("envoy.http_conn_manager_prefix", "http.$.**"),
    ("envoy.virtual_host", "vhost.$.**"),
    ("envoy.mongo_prefix", "mongo.$.**"),
    ("envoy.route", "vhost.*.route.$.**"),
    ("envoy.thrift_prefix", "thrift.$.**"),
    ("envoy.redis_prefix", "redis.$.**"),
    ("envoy.local_http_ratelimit_prefix", "$.http_local_rate_limit.**"),
    ("envoy.local_network_ratelimit_prefix", "local_rate_limit.$.**"),
    ("envoy.local_listener_ratelimit_prefix", "listener_local_ratelimit.$.**"),
    ("envoy.dns_filter_prefix", "dns_filter.$.**"),
    ("envoy.connection_limit_prefix", "connection_limit.$.**"),
    ("envoy.rbac_prefix", "$.rbac.**"),
    ("envoy.google_grpc_client_prefix", "grpc.$.**"),
];

static WELL_KNOWN: LazyLock<Vec<WellKnown>> = LazyLock::new(|| {
    let rule = |&(tag, pattern, substring, except): &(&'static str, &str, &'static str, &'static str)| {
        let source = pattern
            .replace("<L>", r"(?:listener|cluster)\..*?")
            .replace("<A>", r"(?:(?:\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[[a-fA-F_\d]+\])_\d+)")
            .replace("<V>", r"[^\.]+")
            .replace("<C>", r"[\w-]+")
            .replace("<R>", r"[\w\-\.]+");
        WellKnown { tag, source, regex: OnceLock::new(), substring: memchr::memmem::Finder::new(substring), except }
    };
    REGEXES.iter().map(rule).collect()
});

impl WellKnown {
    fn regex(&self) -> Option<&regex::bytes::Regex> {
        // As in RE2, `\w` and `\d` are ASCII. The patterns are constants; a test compiles each of them.
        let compile = || regex::bytes::RegexBuilder::new(&self.source).unicode(false).build().ok();
        self.regex.get_or_init(compile).as_ref()
    }
}

impl Default for TagExtractor {
    /// Envoy's default tags.
    fn default() -> Self {
        let mut extractor = Self { any_prefix: Vec::new(), by_prefix: FxHashMap::default() };
        extractor.add_well_known(|_| true);
        extractor.mark_shared();
        extractor
    }
}

impl TagExtractor {
    /// The rules of a `stats_config`.
    ///
    /// # Errors
    /// The first entry that cannot be used.
    pub fn new(use_all_default_tags: bool, specifiers: &[TagSpecifier]) -> Result<Self, TagError> {
        Self::with_defaults(specifiers, |_| use_all_default_tags)
    }

    /// As [`TagExtractor::new`] with all defaults but those whose name a specifier has (`allow_default_tag_overrides`).
    ///
    /// # Errors
    /// The first entry that cannot be used.
    pub fn overriding(specifiers: &[TagSpecifier]) -> Result<Self, TagError> {
        Self::with_defaults(specifiers, |tag| specifiers.iter().all(|specifier| specifier.name != tag))
    }

    fn with_defaults(specifiers: &[TagSpecifier], wanted: impl Fn(&str) -> bool) -> Result<Self, TagError> {
        let mut extractor = Self { any_prefix: Vec::new(), by_prefix: FxHashMap::default() };
        extractor.add_well_known(wanted);
        for specifier in specifiers {
            let name = &specifier.name;
            match &specifier.value {
                TagValue::Fixed(value) => extractor.add("", name, Fixed(value.clone())),
                TagValue::Regex(source) if !source.is_empty() => {
                    let regex = fancy_regex::Regex::new(source)
                        .map_err(|error| TagError::Regex(source.clone(), error.to_string()))?;
                    extractor.add(regex_prefix(source), name, UserRegex(Box::new(regex)));
                }
                TagValue::Regex(_) | TagValue::Default => {
                    if extractor.add_well_known(|tag| tag == name) == 0 {
                        return Err(TagError::NoDefault(name.clone()));
                    }
                }
            }
        }
        extractor.mark_shared();
        Ok(extractor)
    }

    fn add_well_known(&mut self, wanted: impl Fn(&str) -> bool) -> usize {
        let mut added = 0;
        for known in WELL_KNOWN.iter().filter(|known| wanted(known.tag)) {
            self.add(regex_prefix(&known.source), known.tag, WellKnownRegex(known));
            added += 1;
        }
        for &(tag, tokens) in TOKENS.iter().filter(|(tag, _)| wanted(tag)) {
            let first = tokens.split('.').next().filter(|first| !first.contains(['*', '$'])).unwrap_or("");
            self.add(first, tag, Tokens(tokens));
            added += 1;
        }
        added
    }

    fn add(&mut self, prefix: &str, tag: &str, matcher: Matcher) {
        let rule = Rule { tag: tag.to_owned(), matcher, shared: false };
        match prefix {
            "" => self.any_prefix.push(rule),
            _ => self.by_prefix.entry(prefix.to_owned()).or_default().push(rule),
        }
    }

    fn mark_shared(&mut self) {
        let mut count: FxHashMap<String, usize> = FxHashMap::default();
        let rules = || self.any_prefix.iter().chain(self.by_prefix.values().flatten());
        for rule in rules() {
            *count.entry(rule.tag.clone()).or_default() += 1;
        }
        for rule in self.any_prefix.iter_mut().chain(self.by_prefix.values_mut().flatten()) {
            rule.shared = count[&rule.tag] > 1;
        }
    }

    /// Splits `name` into its tags and the rest.
    pub fn extract<'a>(&'a self, name: &'a str) -> Extracted<'a> {
        let mut tags: SmallVec<[Tag<'a>; 4]> = SmallVec::new();
        let mut cuts: SmallVec<[(usize, usize); 4]> = SmallVec::new();
        let by_prefix = name.split_once('.').and_then(|(first, _)| self.by_prefix.get(first));
        for rule in self.any_prefix.iter().chain(by_prefix.into_iter().flatten()) {
            if rule.shared && tags.iter().any(|tag| tag.name == rule.tag) {
                continue;
            }
            if let Some((value, cut)) = rule.matcher.find(name) {
                tags.push(Tag { name: &rule.tag, value });
                if cut.0 < cut.1 {
                    cuts.push(cut);
                }
            }
        }
        Extracted { name: without(name, &mut cuts), tags }
    }
}

impl Matcher {
    /// The tag's value and the range to cut out.
    fn find<'a>(&'a self, name: &'a str) -> Option<(&'a str, (usize, usize))> {
        match self {
            Fixed(value) => Some((value, (0, 0))),
            WellKnownRegex(known) => {
                // Most names with `_rq_` do not end in a code; the look at the end is cheaper than the regex.
                if known.substring.needle() == b"_rq_"
                    && name.len().checked_sub(7).and_then(|at| name.get(at..at + 4)) != Some("_rq_")
                {
                    return None;
                }
                known.substring.find(name.as_bytes())?;
                let captures = known.regex()?.captures(name.as_bytes())?;
                let (cut, value) = (captures.get(1)?, name.get(captures.get(2)?.range())?);
                if !known.except.is_empty() && value == known.except {
                    return None;
                }
                Some((value, (cut.start(), cut.end())))
            }
            UserRegex(regex) => {
                let captures = regex.captures(name).ok()??;
                let cut = captures.get(1)?;
                let value = captures.get(2).unwrap_or(cut);
                Some((value.as_str(), (cut.start(), cut.end())))
            }
            Tokens(pattern) => match_tokens(pattern, name),
        }
    }
}

/// Matches `name` against a token pattern. The cut takes the dot after the value, or before it at the end of the name.
fn match_tokens<'a>(pattern: &str, name: &'a str) -> Option<(&'a str, (usize, usize))> {
    let (start, end) = walk(Some(pattern), Some(name), 0, None)?;
    let cut = if end < name.len() { (start, end + 1) } else { (start.saturating_sub(1), end) };
    Some((&name[start..end], cut))
}

fn walk(pattern: Option<&str>, name: Option<&str>, at: usize, found: Option<(usize, usize)>) -> Option<(usize, usize)> {
    let Some(pattern) = pattern else {
        return found.filter(|_| name.is_none());
    };
    let (token, rest) = split_token(pattern);
    if token == "**" {
        if rest.is_none() {
            return found.filter(|_| name.is_some());
        }
        let (mut name, mut at) = (name, at);
        loop {
            if let Some(result) = walk(rest, name, at, found) {
                return Some(result);
            }
            let (first, next) = split_token(name?);
            (name, at) = (next, at + first.len() + 1);
        }
    }
    let (first, next) = split_token(name?);
    let end = at + first.len();
    match token {
        "$" => walk(rest, next, end + 1, Some((at, end))),
        "*" => walk(rest, next, end + 1, found),
        _ if token == first => walk(rest, next, end + 1, found),
        _ => None,
    }
}

fn split_token(text: &str) -> (&str, Option<&str>) {
    match text.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (text, None),
    }
}

/// The first token that a name must have to match, or nothing: `^word` followed by an escaped dot.
fn regex_prefix(source: &str) -> &str {
    let Some(body) = source.strip_prefix('^') else { return "" };
    let end = body.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(body.len());
    let after = &body[end..];
    if end > 0 && (after.starts_with(r"\.") || after.starts_with(r"(?=\.)") || after == "$") {
        &body[..end]
    } else {
        ""
    }
}

fn without<'a>(name: &'a str, cuts: &mut [(usize, usize)]) -> Cow<'a, str> {
    if cuts.is_empty() {
        return Cow::Borrowed(name);
    }
    cuts.sort_unstable();
    let mut out = String::with_capacity(name.len());
    let mut at = 0;
    for &mut (start, end) in cuts {
        if start > at {
            out.push_str(&name[at..start]);
        }
        at = at.max(end);
    }
    out.push_str(&name[at..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(extractor: &TagExtractor, name: &str) -> String {
        let extracted = extractor.extract(name);
        let tags: Vec<_> = extracted.tags.iter().map(|tag| format!("{}={}", tag.name, tag.value)).collect();
        format!("{}[{}]", extracted.name, tags.join(","))
    }

    #[test]
    fn all_patterns_compile() {
        assert_eq!(WELL_KNOWN.len(), REGEXES.len());
    }

    #[test]
    fn default_tags_are_envoys() {
        let extractor = TagExtractor::default();
        let cases = [
            ("cluster.foo.upstream_rq_200", "cluster.upstream_rq[envoy.response_code=200,envoy.cluster_name=foo]"),
            (
                "cluster.foo.external.upstream_rq_5xx",
                "cluster.external.upstream_rq_xx[envoy.response_code_class=5,envoy.cluster_name=foo]",
            ),
            (
                "listener.127.0.0.1_80.http.in.downstream_rq_2xx",
                "listener.http.downstream_rq_xx[envoy.response_code_class=2,envoy.http_conn_manager_prefix=in,envoy.listener_address=127.0.0.1_80]",
            ),
            (
                "listener.admin.http.admin.downstream_rq_2xx",
                "listener.admin.http.downstream_rq_xx[envoy.response_code_class=2,envoy.http_conn_manager_prefix=admin]",
            ),
            (
                "listener.[__1]_80.worker_3.downstream_cx_total",
                "listener.worker_downstream_cx_total[envoy.worker_id=3,envoy.listener_address=[__1]_80]",
            ),
            ("server.worker_0.watchdog_miss", "server.worker_watchdog_miss[envoy.worker_id=0]"),
            (
                "vhost.v.vcluster.c.upstream_rq_total",
                "vhost.vcluster.upstream_rq_total[envoy.virtual_cluster=c,envoy.virtual_host=v]",
            ),
            (
                "listener.0.0.0.0_443.ssl.ciphers.ECDHE-X",
                "listener.ssl.ciphers[envoy.ssl_cipher=ECDHE-X,envoy.listener_address=0.0.0.0_443]",
            ),
            (
                "listener.0.0.0.0_443.ssl.versions.TLSv1.3",
                "listener.ssl.versions[envoy.ssl_version=TLSv1.3,envoy.listener_address=0.0.0.0_443]",
            ),
            ("tcp.t.downstream_cx_total", "tcp.downstream_cx_total[envoy.tcp_prefix=t]"),
            ("p.http_local_rate_limit.ok", "http_local_rate_limit.ok[envoy.local_http_ratelimit_prefix=p]"),
            (
                "mongo.p.collection.c.x.query.total",
                "mongo.collection.x.query.total[envoy.mongo_collection=c,envoy.mongo_prefix=p]",
            ),
            ("server.live", "server.live[]"),
        ];
        for (name, expected) in cases {
            assert_eq!(shown(&extractor, name), expected, "{name}");
        }
    }

    #[test]
    fn the_first_rule_for_a_tag_wins() {
        let specifiers = [
            TagSpecifier { name: "zone".into(), value: TagValue::Fixed("a".into()) },
            TagSpecifier { name: "envoy.cluster_name".into(), value: TagValue::Fixed("zz".into()) },
            TagSpecifier { name: "word".into(), value: TagValue::Regex(r"(?=f)((f\w*)\.)".into()) },
        ];
        let extractor = TagExtractor::new(true, &specifiers).expect("valid");
        assert_eq!(
            shown(&extractor, "cluster.foo.upstream_rq_200"),
            "cluster.upstream_rq[envoy.response_code=200,zone=a,envoy.cluster_name=zz,word=foo]"
        );
    }

    #[test]
    fn single_defaults_can_be_asked_for_by_name() {
        let one = TagSpecifier { name: "envoy.cluster_name".into(), value: TagValue::Default };
        let extractor = TagExtractor::new(false, std::slice::from_ref(&one)).expect("valid");
        assert_eq!(shown(&extractor, "cluster.a.x_rq_200"), "cluster.x_rq_200[envoy.cluster_name=a]");
        assert_eq!(shown(&extractor, "http.a.x"), "http.a.x[]");
        let none = TagSpecifier { name: "bogus".into(), value: TagValue::Default };
        assert_eq!(TagExtractor::new(true, &[none]).err(), Some(TagError::NoDefault("bogus".into())));
        let broken = TagSpecifier { name: "x".into(), value: TagValue::Regex("(".into()) };
        assert!(matches!(TagExtractor::new(true, &[broken]), Err(TagError::Regex(..))));
    }

    #[test]
    fn a_regex_without_groups_extracts_nothing() {
        let one = TagSpecifier { name: "x".into(), value: TagValue::Regex("abc".into()) };
        let extractor = TagExtractor::new(false, &[one]).expect("valid");
        assert_eq!(shown(&extractor, "abc.def"), "abc.def[]");
    }
}
