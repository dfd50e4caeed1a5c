//! Matcher trees decoded from `xds.type.matcher.v3`.

use envoy_types::pb::envoy::extensions::matching::common_inputs::environment_variable::v3::Config as Variable;
use envoy_types::pb::envoy::extensions::matching::common_inputs::network::v3 as network;
use envoy_types::pb::envoy::extensions::matching::common_inputs::transport_socket::v3 as socket;
use envoy_types::pb::envoy::extensions::matching::input_matchers::consistent_hashing::v3::ConsistentHashing;
use envoy_types::pb::envoy::extensions::matching::input_matchers::ip::v3::Ip;
use envoy_types::pb::envoy::extensions::matching::input_matchers::runtime_fraction::v3::RuntimeFraction as Fraction;
use envoy_types::pb::envoy::r#type::matcher::v3 as envoy;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::xds::core::v3::{CidrRange, TypedExtensionConfig};
use envoy_types::pb::xds::r#type::matcher::v3 as pb;
use ipnet::IpNet;
use pb::matcher as tree;
use pb::matcher::matcher_list as list;
use prost::Message;
use rustc_hash::FxHashMap;

use super::{Condition, Entry, MatchInput, MatchKind, MatchTree, Names, OnMatch, Predicate, Then};
use crate::decode::{Context, lower, sorted, type_name};
use crate::matchers::{RuntimeFraction, StringMatcher, cidr_range, xds_cidr_range};

/// Trees in trees, at most.
const MAX_DEPTH: usize = 32;

/// Decodes the configuration of an action at the current path; errors are reported to the context.
pub(super) type ActionDecoder<'a, A> = dyn FnMut(&mut Context, &TypedExtensionConfig) -> Option<A> + 'a;

impl<A> MatchTree<A> {
    /// Decodes the tree at the current path; errors are reported to `cx`. `allowed` says which inputs the user has.
    pub fn decode(
        cx: &mut Context,
        message: &pb::Matcher,
        allowed: &dyn Fn(&MatchInput) -> bool,
        action: &mut ActionDecoder<'_, A>,
    ) -> Option<Self> {
        Decoder { allowed, action, keeps: true, depth: 0 }.tree(cx, message)
    }

    /// The same where `keep_matching` is an error.
    pub fn decode_final(
        cx: &mut Context,
        message: &pb::Matcher,
        allowed: &dyn Fn(&MatchInput) -> bool,
        action: &mut ActionDecoder<'_, A>,
    ) -> Option<Self> {
        Decoder { allowed, action, keeps: false, depth: 0 }.tree(cx, message)
    }
}

/// `xds.type.matcher.v3.IPMatcher`, which the package of messages lacks.
#[derive(Clone, PartialEq, Message)]
struct IpMatcher {
    #[prost(message, repeated, tag = "1")]
    range_matchers: Vec<IpRangeMatcher>,
}

#[derive(Clone, PartialEq, Message)]
struct IpRangeMatcher {
    #[prost(message, repeated, tag = "1")]
    ranges: Vec<CidrRange>,
    #[prost(message, optional, tag = "2")]
    on_match: Option<tree::OnMatch>,
    #[prost(bool, tag = "3")]
    exclusive: bool,
}

/// `xds.type.matcher.v3.ServerNameMatcher`, which it lacks too.
#[derive(Clone, PartialEq, Message)]
struct ServerNameMatcher {
    #[prost(message, repeated, tag = "1")]
    domain_matchers: Vec<DomainMatcher>,
}

#[derive(Clone, PartialEq, Message)]
struct DomainMatcher {
    #[prost(string, repeated, tag = "1")]
    domains: Vec<String>,
    #[prost(message, optional, tag = "2")]
    on_match: Option<tree::OnMatch>,
}

struct Decoder<'a, 'b, A> {
    allowed: &'a dyn Fn(&MatchInput) -> bool,
    action: &'a mut ActionDecoder<'b, A>,
    /// Whether matching may go on after a match.
    keeps: bool,
    depth: usize,
}

impl<A> Decoder<'_, '_, A> {
    fn tree(&mut self, cx: &mut Context, message: &pb::Matcher) -> Option<MatchTree<A>> {
        if self.depth == MAX_DEPTH {
            cx.error(format!("matchers may not be nested deeper than {MAX_DEPTH}"));
            return None;
        }
        self.depth += 1;
        let kind = match &message.matcher_type {
            Some(tree::MatcherType::MatcherList(list)) => cx.at("matcher_list", |cx| self.list(cx, list)),
            Some(tree::MatcherType::MatcherTree(tree)) => cx.at("matcher_tree", |cx| self.map(cx, tree)),
            None => Some(MatchKind::Empty),
        };
        let on_no_match = match &message.on_no_match {
            Some(then) => cx.at("on_no_match", |cx| self.on_match(cx, then)).map(Box::new).map(Some),
            None => Some(None),
        };
        self.depth -= 1;
        Some(MatchTree { kind: kind?, on_no_match: on_no_match? })
    }

    fn list(&mut self, cx: &mut Context, message: &tree::MatcherList) -> Option<MatchKind<A, MatchInput>> {
        let entries = cx.each("matchers", &message.matchers, |cx, matcher| {
            let predicate = cx.required("predicate", &matcher.predicate, |cx, predicate| self.predicate(cx, predicate));
            let then = cx.required("on_match", &matcher.on_match, |cx, then| self.on_match(cx, then));
            Some((predicate?, then?))
        });
        Some(MatchKind::List(entries.into()))
    }

    fn on_match(&mut self, cx: &mut Context, message: &tree::OnMatch) -> Option<OnMatch<A, MatchInput>> {
        let then = match message.on_match.as_ref() {
            Some(tree::on_match::OnMatch::Matcher(inner)) => {
                Then::Matcher(Box::new(cx.at("matcher", |cx| self.tree(cx, inner))?))
            }
            Some(tree::on_match::OnMatch::Action(action)) => {
                Then::Action(cx.at("action", |cx| (self.action)(cx, action))?)
            }
            None => {
                cx.error("Field 'on_match' is missing: one of matcher, action");
                return None;
            }
        };
        if message.keep_matching && !self.keeps {
            cx.error_at("keep_matching", "keep_matching is not supported in this context");
        }
        Some(OnMatch { keep_matching: message.keep_matching, then })
    }

    fn predicate(&mut self, cx: &mut Context, message: &list::Predicate) -> Option<Predicate<MatchInput>> {
        use list::predicate::MatchType;
        Some(match message.match_type.as_ref()? {
            MatchType::SinglePredicate(single) => cx.at("single_predicate", |cx| self.single(cx, single))?,
            MatchType::OrMatcher(or) => Predicate::Or(cx.at("or_matcher", |cx| self.predicates(cx, or))),
            MatchType::AndMatcher(and) => Predicate::And(cx.at("and_matcher", |cx| self.predicates(cx, and))),
            MatchType::NotMatcher(not) => Predicate::Not(Box::new(cx.at("not_matcher", |cx| self.predicate(cx, not))?)),
        })
    }

    fn predicates(
        &mut self,
        cx: &mut Context,
        message: &list::predicate::PredicateList,
    ) -> Box<[Predicate<MatchInput>]> {
        cx.each("predicate", &message.predicate, |cx, predicate| self.predicate(cx, predicate)).into()
    }

    fn single(
        &mut self,
        cx: &mut Context,
        message: &list::predicate::SinglePredicate,
    ) -> Option<Predicate<MatchInput>> {
        use list::predicate::single_predicate::Matcher;
        let input = cx.required("input", &message.input, |cx, input| self.input(cx, input));
        let condition = match message.matcher.as_ref()? {
            Matcher::ValueMatch(matcher) => cx.at("value_match", |cx| string(cx, matcher)).map(Condition::String),
            Matcher::CustomMatch(custom) => cx.at("custom_match", |cx| custom_match(cx, custom)),
        };
        Some(Predicate::Single(input?, condition?))
    }

    fn map(&mut self, cx: &mut Context, message: &tree::MatcherTree) -> Option<MatchKind<A, MatchInput>> {
        use tree::matcher_tree::TreeType;
        let input = cx.required("input", &message.input, |cx, input| self.input(cx, input));
        match message.tree_type.as_ref()? {
            TreeType::ExactMatchMap(map) => {
                let entries = cx.at("exact_match_map", |cx| self.entries(cx, map));
                let map: FxHashMap<_, _> = entries.into_iter().collect();
                Some(MatchKind::Exact(input?, map))
            }
            TreeType::PrefixMatchMap(map) => {
                let mut entries = cx.at("prefix_match_map", |cx| self.entries(cx, map));
                entries.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
                Some(MatchKind::Prefix(input?, entries.into()))
            }
            TreeType::CustomMatch(custom) => cx.at("custom_match", |cx| {
                let any = custom.typed_config.as_ref();
                match which(custom) {
                    "xds.type.matcher.v3.IPMatcher" => cx.at("typed_config", |cx| self.ip(cx, input?, any?)),
                    "xds.type.matcher.v3.ServerNameMatcher" => cx.at("typed_config", |cx| self.names(cx, input?, any?)),
                    other => {
                        cx.error(format!("matcher '{other}' is not implemented"));
                        None
                    }
                }
            }),
        }
    }

    fn ip(&mut self, cx: &mut Context, input: MatchInput, any: &Any) -> Option<MatchKind<A, MatchInput>> {
        let message: IpMatcher = cx.unpack(any)?;
        let mut ranges = Vec::new();
        let actions = cx.each("range_matchers", &message.range_matchers, |cx, matcher| {
            let own: Vec<IpNet> = cx.each("ranges", &matcher.ranges, xds_cidr_range);
            let then = cx.required("on_match", &matcher.on_match, |cx, then| self.on_match(cx, then))?;
            Some((own, then, matcher.exclusive))
        });
        let mut out = Vec::with_capacity(actions.len());
        for (at, (own, then, exclusive)) in actions.into_iter().enumerate() {
            ranges.extend(own.into_iter().map(|range| (range, at)));
            out.push((then, exclusive));
        }
        ranges.sort_by_key(|(range, _)| std::cmp::Reverse(range.prefix_len()));
        Some(MatchKind::Ip(input, ranges.into(), out.into()))
    }

    fn names(&mut self, cx: &mut Context, input: MatchInput, any: &Any) -> Option<MatchKind<A, MatchInput>> {
        let message: ServerNameMatcher = cx.unpack(any)?;
        let mut names = Names::default();
        let mut at = 0;
        let actions = cx.each("domain_matchers", &message.domain_matchers, |cx, matcher| {
            cx.each("domains", &matcher.domains, |cx, domain| {
                if let Err(problem) = names.add(domain, at) {
                    cx.error(problem);
                }
                Some(())
            });
            at += 1;
            cx.required("on_match", &matcher.on_match, |cx, then| self.on_match(cx, then))
        });
        Some(MatchKind::Names(input, names, actions.into()))
    }

    fn entries(&mut self, cx: &mut Context, message: &tree::matcher_tree::MatchMap) -> Vec<Entry<A, MatchInput>> {
        cx.at("map", |cx| {
            let entries = sorted(&message.map).into_iter();
            entries
                .filter_map(|(key, then)| Some((key.as_bytes().into(), cx.at_key(key, |cx| self.on_match(cx, then))?)))
                .collect()
        })
    }

    fn input(&mut self, cx: &mut Context, message: &TypedExtensionConfig) -> Option<MatchInput> {
        let any = message.typed_config.as_ref();
        let name = which(message);
        let input = cx.at("typed_config", |cx| any.and_then(|any| known_input(cx, name, any)));
        match input {
            Some(input) if (self.allowed)(&input) => Some(input),
            Some(_) => {
                cx.error(format!("input '{name}' cannot be used here"));
                None
            }
            None => {
                cx.error(format!("input '{name}' is not implemented"));
                None
            }
        }
    }
}

impl Names {
    /// Adds a name or wildcard.
    fn add(&mut self, domain: &str, at: usize) -> Result<(), String> {
        let invalid = |why: &str| Err(format!("Invalid wildcard domain format: {domain}. {why}"));
        let old = match (domain, domain.strip_prefix("*.")) {
            ("", _) => return Err("Empty domain in ServerNameMatcher".to_owned()),
            ("*", _) => self.any.replace(at),
            (_, Some(suffix)) if suffix.contains('*') => return invalid("Multiple wildcards are not supported"),
            (_, Some(suffix)) if !suffix.is_empty() => self.suffixes.insert(suffix.as_bytes().into(), at),
            _ if domain.contains('*') => return invalid("Only '*' and '*.domain' patterns are supported"),
            _ => self.exact.insert(domain.as_bytes().into(), at),
        };
        match old {
            Some(_) => Err(format!("Duplicate domain in ServerNameMatcher: {domain}")),
            None => Ok(()),
        }
    }
}

fn known_input(cx: &mut Context, name: &str, any: &Any) -> Option<MatchInput> {
    if name == "envoy.extensions.matching.common_inputs.environment_variable.v3.Config" {
        let variable: Variable = cx.unpack(any)?;
        return Some(MatchInput::Fixed(std::env::var(variable.name).ok().map(Into::into)));
    }
    let short = name.strip_prefix("envoy.type.matcher.v3.").or_else(|| {
        let name = name.strip_prefix("envoy.extensions.matching.common_inputs.")?;
        let network = name.strip_prefix("network.v3.").or_else(|| name.strip_prefix("ssl.v3."));
        network.or_else(|| name.strip_prefix("transport_socket.v3.").filter(|name| name.ends_with("MetadataInput")))
    })?;
    Some(match short {
        "HttpRequestHeaderMatchInput" => {
            MatchInput::RequestHeader(lower(&cx.unpack::<envoy::HttpRequestHeaderMatchInput>(any)?.header_name))
        }
        "HttpRequestTrailerMatchInput" => {
            MatchInput::RequestTrailer(lower(&cx.unpack::<envoy::HttpRequestTrailerMatchInput>(any)?.header_name))
        }
        "HttpResponseHeaderMatchInput" => {
            MatchInput::ResponseHeader(lower(&cx.unpack::<envoy::HttpResponseHeaderMatchInput>(any)?.header_name))
        }
        "HttpResponseTrailerMatchInput" => {
            MatchInput::ResponseTrailer(lower(&cx.unpack::<envoy::HttpResponseTrailerMatchInput>(any)?.header_name))
        }
        "HttpRequestQueryParamMatchInput" => {
            let message: envoy::HttpRequestQueryParamMatchInput = cx.unpack(any)?;
            MatchInput::QueryParameter(message.query_param.into())
        }
        "HttpResponseStatusCodeMatchInput" => MatchInput::StatusCode,
        "HttpResponseStatusCodeClassMatchInput" => MatchInput::StatusCodeClass,
        "DestinationIPInput" => MatchInput::DestinationIp,
        "DestinationPortInput" => MatchInput::DestinationPort,
        "SourceIPInput" => MatchInput::SourceIp,
        "SourcePortInput" => MatchInput::SourcePort,
        "DirectSourceIPInput" => MatchInput::DirectSourceIp,
        "SourceTypeInput" => MatchInput::SourceType,
        "ServerNameInput" => MatchInput::ServerName,
        "TransportProtocolInput" => MatchInput::TransportProtocol,
        "ApplicationProtocolInput" => MatchInput::ApplicationProtocol,
        "NetworkNamespaceInput" => MatchInput::NetworkNamespace,
        "UriSanInput" => MatchInput::UriSan,
        "DnsSanInput" => MatchInput::DnsSan,
        "SubjectInput" => MatchInput::Subject,
        "FilterStateInput" => MatchInput::FilterState(cx.unpack::<network::FilterStateInput>(any)?.key.into()),
        "DynamicMetadataInput" => {
            use network::dynamic_metadata_input::path_segment::Segment;
            let message: network::DynamicMetadataInput = cx.unpack(any)?;
            let segments = message.path.iter().filter_map(|segment| segment.segment.as_ref());
            let path = segments.map(|Segment::Key(key)| key.as_str().into()).collect();
            MatchInput::DynamicMetadata(message.filter.as_str().into(), path)
        }
        "EndpointMetadataInput" => {
            use socket::endpoint_metadata_input::path_segment::Segment;
            let message: socket::EndpointMetadataInput = cx.unpack(any)?;
            let segments = message.path.iter().filter_map(|segment| segment.segment.as_ref());
            let path = segments.map(|Segment::Key(key)| key.as_str().into()).collect();
            MatchInput::EndpointMetadata(of_lb(&message.filter), path)
        }
        "LocalityMetadataInput" => {
            use socket::locality_metadata_input::path_segment::Segment;
            let message: socket::LocalityMetadataInput = cx.unpack(any)?;
            let segments = message.path.iter().filter_map(|segment| segment.segment.as_ref());
            let path = segments.map(|Segment::Key(key)| key.as_str().into()).collect();
            MatchInput::LocalityMetadata(of_lb(&message.filter), path)
        }
        _ => return None,
    })
}

/// The namespace of metadata, that of load balancing where none is named.
fn of_lb(filter: &str) -> Box<str> {
    if filter.is_empty() { "envoy.lb".into() } else { filter.into() }
}

/// Type of an extension's configuration.
fn which(message: &TypedExtensionConfig) -> &str {
    message.typed_config.as_ref().map_or(&*message.name, |any| type_name(&any.type_url))
}

fn custom_match(cx: &mut Context, message: &TypedExtensionConfig) -> Option<Condition> {
    let any = message.typed_config.as_ref();
    match which(message) {
        "envoy.extensions.matching.input_matchers.ip.v3.Ip" => cx.at("typed_config", |cx| {
            let config: Ip = cx.unpack(any?)?;
            let ranges: Vec<IpNet> = cx.each("cidr_ranges", &config.cidr_ranges, cidr_range);
            Some(Condition::Ip(ranges.into()))
        }),
        "envoy.extensions.matching.input_matchers.runtime_fraction.v3.RuntimeFraction" => cx.at("typed_config", |cx| {
            let config: Fraction = cx.unpack(any?)?;
            let fraction = config.runtime_fraction.as_ref().map(RuntimeFraction::decode)?;
            Some(Condition::Fraction(fraction, config.seed))
        }),
        "envoy.extensions.matching.input_matchers.consistent_hashing.v3.ConsistentHashing" => {
            cx.at("typed_config", |cx| {
                let config: ConsistentHashing = cx.unpack(any?)?;
                let (modulo, threshold) = (config.modulo.into(), config.threshold.into());
                if threshold > modulo {
                    cx.error(format!("threshold cannot be greater than modulo: {threshold} > {modulo}"));
                }
                Some(Condition::Hash { seed: config.seed, modulo, threshold })
            })
        }
        other => {
            cx.error(format!("matcher '{other}' is not implemented"));
            None
        }
    }
}

/// `xds.type.matcher.v3.StringMatcher` is Envoy's under another name.
fn string(cx: &mut Context, message: &pb::StringMatcher) -> Option<StringMatcher> {
    let same = envoy::StringMatcher::decode(&message.encode_to_vec()[..]).ok()?;
    StringMatcher::decode(cx, &same)
}

#[cfg(test)]
mod tests;
