//! Descriptors of requests for rate-limit filters, from the `rate_limits` of routes and virtual hosts.
//!
//! A filter asks for the descriptors of its stage ([`ActiveRoute::descriptors`](super::ActiveRoute::descriptors)) and shows
//! them to whoever counts. Which action yields which entry, and when one is missing, is Envoy's `RateLimitPolicyEntryImpl`.

use nuncio_config::matchers::{CidrRange, QueryParameterMatcher};
use nuncio_config::route::{MetadataSource, RateLimit, RateLimitAction, RateLimitOverride};
use std::net::IpAddr;

use super::table::BuildError;
use crate::formatter::{FormatContext, Formatter};
use crate::headers::{HeaderName, Headers, names};
use crate::matchers::{HeaderMatch, Runtime, build_header_matches, header_name, query_matches, query_parameter};
use crate::stream_info::StreamInfo;

/// Most that a request may count.
const MAX_HITS: u64 = 1_000_000_000;

/// What a request is counted under.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Keys and values, in order.
    pub entries: Vec<(Box<str>, String)>,
    /// Requests per unit, and the number of the unit; None leaves it to whoever counts.
    pub limit: Option<(u32, i32)>,
    /// How much the request counts; None for what the filter says.
    pub hits_addend: Option<u64>,
    /// The hits are given back.
    pub negative_hits: bool,
    /// Whether response headers tell of it; None for what the filter says.
    pub x_ratelimit_headers: Option<bool>,
}

/// What descriptors are made of.
#[derive(Clone, Copy)]
pub struct DescriptorInputs<'a> {
    /// Cluster of this proxy's node.
    pub local_cluster: &'a str,
    /// Request headers.
    pub headers: &'a Headers,
    /// What is known about the stream.
    pub info: &'a StreamInfo,
    /// Runtime, which may switch entries off.
    pub runtime: &'a dyn Runtime,
}

/// The `rate_limits` of one level, compiled.
#[derive(Debug, Default)]
pub struct RateLimits(Box<[Entry]>);

#[derive(Debug)]
struct Entry {
    config: RateLimit,
    disable_key: Option<Box<str>>,
    actions: Box<[Action]>,
    hits: Option<Formatter>,
}

/// What an action needs beyond its configuration.
#[derive(Debug)]
enum Action {
    Plain,
    Header(HeaderName),
    HeaderMatch(Box<[HeaderMatch]>),
    Format(Formatter),
}

impl RateLimits {
    pub(super) fn build(list: &[RateLimit], errors: &mut Vec<BuildError>) -> Self {
        Self(list.iter().filter_map(|config| Entry::build(config, errors)).collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the descriptors for `stage`: those that are asked about with the request, or `on_stream_done`.
    pub fn descriptors(
        &self,
        stage: u32,
        on_stream_done: bool,
        inputs: &DescriptorInputs<'_>,
        out: &mut Vec<Descriptor>,
    ) {
        let wanted = |entry: &&Entry| {
            entry.config.stage == stage && entry.config.apply_on_stream_done == on_stream_done && entry.is_on(inputs)
        };
        out.extend(self.0.iter().filter(wanted).filter_map(|entry| entry.descriptor(inputs)));
    }
}

impl Entry {
    fn build(config: &RateLimit, errors: &mut Vec<BuildError>) -> Option<Entry> {
        let mut actions = Vec::with_capacity(config.actions.len());
        for (at, action) in config.actions.iter().enumerate() {
            match Action::build(action) {
                Ok(action) => actions.push(action),
                Err(text) => errors.push((format!("{}.actions[{at}]", config.path), text)),
            }
        }
        let format = config.hits_addend.as_ref().filter(|hits| hits.number.is_none() && !hits.format.is_empty());
        let hits = format.map(|hits| Formatter::new(&hits.format, true)).transpose();
        let hits = hits.map_err(|error| errors.push((format!("{}.hits_addend.format", config.path), error.0)));
        let key = &config.disable_key;
        Some(Entry {
            disable_key: (!key.is_empty()).then(|| format!("ratelimit.{key}.http_filter_enabled").into()),
            actions: actions.into(),
            hits: hits.ok()?,
            config: config.clone(),
        })
    }

    /// Whether the runtime lets it be; a key holds percents.
    fn is_on(&self, inputs: &DescriptorInputs<'_>) -> bool {
        let share = self.disable_key.as_ref().and_then(|key| inputs.runtime.integer(key));
        share.is_none_or(|percent| nuncio_base::random::below(100) < percent)
    }

    fn descriptor(&self, inputs: &DescriptorInputs<'_>) -> Option<Descriptor> {
        let mut descriptor =
            Descriptor { x_ratelimit_headers: self.config.x_ratelimit_headers, ..Descriptor::default() };
        for (config, action) in self.config.actions.iter().zip(&self.actions) {
            match entry(config, action, inputs) {
                Outcome::Entry(key, value) => descriptor.entries.push((key.into(), value)),
                Outcome::LeftOut => {}
                Outcome::NoDescriptor => return None,
            }
        }
        if descriptor.entries.is_empty() {
            return None;
        }
        descriptor.limit = self.config.limit.as_ref().and_then(|limit| match limit {
            RateLimitOverride::Fixed(requests, unit) => Some((*requests, *unit)),
            RateLimitOverride::Metadata(key) => limit_of(key.find(inputs.info.dynamic_metadata.as_deref()?)?),
        });
        if let Some(hits) = &self.config.hits_addend {
            descriptor.negative_hits = hits.negative;
            descriptor.hits_addend = hits.number;
            if let Some(format) = &self.hits {
                let mut text = Vec::new();
                let cx = FormatContext { request: Some(inputs.headers), ..FormatContext::new(inputs.info) };
                format.write(&cx, &mut text);
                // What is no number makes no descriptor.
                let number: u64 = std::str::from_utf8(&text).ok()?.trim().parse().ok()?;
                descriptor.hits_addend = Some(number).filter(|number| *number <= MAX_HITS);
                descriptor.hits_addend?;
            }
        }
        Some(descriptor)
    }
}

/// `{requests_per_unit: 3, unit: HOUR}` of dynamic metadata.
fn limit_of(value: &serde_json::Value) -> Option<(u32, i32)> {
    const UNITS: [&str; 7] = ["UNKNOWN", "SECOND", "MINUTE", "HOUR", "DAY", "MONTH", "YEAR"];
    let requests = value.get("requests_per_unit")?.as_f64()?;
    let unit = value.get("unit")?.as_str()?;
    let number = UNITS.iter().position(|known| *known == unit)?;
    Some((requests as u32, number as i32))
}

/// What came of an action.
enum Outcome<'a> {
    Entry(&'a str, String),
    /// There is nothing to say, and that is no obstacle.
    LeftOut,
    NoDescriptor,
}

impl Outcome<'_> {
    fn absent(skip: bool) -> Self {
        if skip { Outcome::LeftOut } else { Outcome::NoDescriptor }
    }
}

impl Action {
    fn build(config: &RateLimitAction) -> Result<Self, String> {
        Ok(match config {
            RateLimitAction::RequestHeader { header, .. } => {
                Action::Header(header_name(header).ok_or_else(|| format!("invalid header name: {header:?}"))?)
            }
            RateLimitAction::HeaderMatch { headers, .. } => Action::HeaderMatch(build_header_matches(headers)?),
            RateLimitAction::RemoteAddressMatch { value, .. } => {
                Action::Format(Formatter::new(value, true).map_err(|error| error.0)?)
            }
            _ => Action::Plain,
        })
    }
}

fn entry<'a>(config: &'a RateLimitAction, action: &Action, inputs: &DescriptorInputs<'_>) -> Outcome<'a> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let found = |key: &'a str, value: Option<String>, skip: bool| match value {
        Some(value) => Outcome::Entry(key, value),
        None => Outcome::absent(skip),
    };
    let address = || inputs.info.remote_address.as_ref().unwrap_or(&inputs.info.connection.remote_address).ip();
    match (config, action) {
        (RateLimitAction::SourceCluster, _) => Outcome::Entry("source_cluster", inputs.local_cluster.to_owned()),
        (RateLimitAction::DestinationCluster, _) => {
            let cluster = inputs.info.upstream.cluster.as_ref();
            found("destination_cluster", cluster.map(|name| name.to_string()), false)
        }
        (RateLimitAction::RequestHeader { key, skip_if_absent, .. }, Action::Header(name)) => {
            found(key, inputs.headers.bytes(name).map(text), *skip_if_absent)
        }
        (RateLimitAction::QueryParameter { parameter, key, skip_if_absent }, _) => {
            let value = inputs.headers.bytes(&names::PATH).and_then(|path| query_parameter(path, parameter.as_bytes()));
            found(key, value.map(text), *skip_if_absent)
        }
        (RateLimitAction::RemoteAddress, _) => found("remote_address", address().map(|ip| ip.to_string()), false),
        (RateLimitAction::MaskedRemoteAddress(v4, v6), _) => {
            let masked = address().map(|ip| match ip {
                IpAddr::V4(_) => masked(ip, *v4),
                IpAddr::V6(_) => masked(ip, *v6),
            });
            found("masked_remote_address", masked, false)
        }
        (RateLimitAction::GenericKey { key, value }, _) => Outcome::Entry(key, value.to_string()),
        (RateLimitAction::HeaderMatch { key, value, expect, .. }, Action::HeaderMatch(matchers)) => {
            let matches = matchers.iter().all(|matcher| matcher.matches(inputs.headers));
            found(key, (matches == *expect).then(|| value.to_string()), false)
        }
        (RateLimitAction::QueryMatch { key, value, expect, parameters }, _) => {
            let path = inputs.headers.path();
            let matches = parameters.iter().all(|matcher: &QueryParameterMatcher| query_matches(matcher, path));
            found(key, (matches == *expect).then(|| value.to_string()), false)
        }
        (RateLimitAction::Metadata { key, at, default, source, skip_if_absent }, _) => {
            let metadata = match source {
                MetadataSource::Dynamic => inputs.info.dynamic_metadata.as_deref(),
                MetadataSource::Route => inputs.info.route_metadata.as_ref().and_then(|all| all.as_object()),
                MetadataSource::Cluster => {
                    inputs.info.upstream.cluster_metadata.as_ref().and_then(|all| all.as_object())
                }
                // Localities have none here.
                MetadataSource::Locality => None,
            };
            let value = metadata.and_then(|metadata| at.find(metadata)?.as_str()).filter(|text| !text.is_empty());
            let value = value.or(Some(&**default)).filter(|text| !text.is_empty());
            found(key, value.map(str::to_owned), *skip_if_absent)
        }
        (RateLimitAction::RemoteAddressMatch { key, default, ranges, invert, .. }, Action::Format(format)) => {
            let matches =
                address().is_some_and(|ip| ranges.iter().any(|range: &CidrRange| range.contains(&ip)) != *invert);
            if !matches {
                return Outcome::NoDescriptor;
            }
            let mut value = Vec::new();
            let cx = FormatContext { request: Some(inputs.headers), ..FormatContext::new(inputs.info) };
            format.write(&cx, &mut value);
            let value = if value.is_empty() { default.to_string() } else { text(&value) };
            found(key, Some(value).filter(|value| !value.is_empty()), false)
        }
        _ => Outcome::NoDescriptor,
    }
}

/// `192.168.1.0/24`
fn masked(ip: IpAddr, bits: u32) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - bits.min(32)).unwrap_or(0);
            format!("{}/{bits}", std::net::Ipv4Addr::from(u32::from(ip) & mask))
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - bits.min(128)).unwrap_or(0);
            format!("{}/{bits}", std::net::Ipv6Addr::from(u128::from(ip) & mask))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formatter::tests::{headers, info};
    use crate::matchers::NoRuntime;
    use envoy_types::pb::envoy::config::route::v3 as pb;
    use nuncio_config::decode::Context;
    use serde_json::json;

    /// Every descriptor of stage 0 of entries written as JSON of Envoy's messages: the decoder's part is tested with it.
    fn limits(list: Vec<pb::RateLimit>) -> RateLimits {
        let decoded: Vec<RateLimit> =
            list.iter().map(|limit| Context::default().run(|cx| RateLimit::decode(cx, limit)).unwrap()).collect();
        let mut errors = Vec::new();
        let built = RateLimits::build(&decoded, &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        built
    }

    use pb::rate_limit::action::ActionSpecifier as A;
    use pb::rate_limit::{Action as PbAction, action};

    fn of(actions: Vec<A>) -> pb::RateLimit {
        let actions = actions.into_iter().map(|action| PbAction { action_specifier: Some(action) }).collect();
        pb::RateLimit { actions, ..Default::default() }
    }

    fn key(value: &str) -> A {
        A::GenericKey(action::GenericKey { descriptor_value: value.into(), ..Default::default() })
    }

    fn shown(limits: &RateLimits, list: &[(&str, &str)], info: &StreamInfo) -> Vec<String> {
        let headers = headers(list);
        let inputs = DescriptorInputs { local_cluster: "here", headers: &headers, info, runtime: &NoRuntime };
        let mut out = Vec::new();
        limits.descriptors(0, false, &inputs, &mut out);
        let entry = |(key, value): &(Box<str>, String)| format!("{key}={value}");
        out.iter().map(|d| d.entries.iter().map(entry).collect::<Vec<_>>().join(",")).collect()
    }

    #[test]
    fn entries_are_put_together_in_the_order_of_the_actions() {
        let mut info = info();
        info.upstream.cluster = Some("there".into());
        let header = |skip| {
            A::RequestHeaders(action::RequestHeaders {
                header_name: "X-User".into(),
                descriptor_key: "user".into(),
                skip_if_absent: skip,
            })
        };
        let limits = limits(vec![
            of(vec![A::SourceCluster(Default::default()), A::DestinationCluster(Default::default()), key("k")]),
            of(vec![key("needs"), header(false)]),
            of(vec![key("wants"), header(true)]),
            of(vec![header(true)]),
        ]);
        let first = "source_cluster=here,destination_cluster=there,generic_key=k";
        assert_eq!(shown(&limits, &[], &info), [first, "generic_key=wants"]);
        let all = [first, "generic_key=needs,user=me", "generic_key=wants,user=me", "user=me"];
        assert_eq!(shown(&limits, &[("x-user", "me")], &info), all);
    }

    #[test]
    fn addresses_can_be_masked_and_matched() {
        let mut info = info();
        let wrapped = |value| Some(envoy_types::pb::google::protobuf::UInt32Value { value });
        let mask = |v4, v6| {
            A::MaskedRemoteAddress(action::MaskedRemoteAddress { v4_prefix_mask_len: v4, v6_prefix_mask_len: v6 })
        };
        let limits = limits(vec![
            of(vec![A::RemoteAddress(Default::default())]),
            of(vec![mask(wrapped(24), wrapped(64))]),
            of(vec![mask(None, None)]),
            of(vec![mask(wrapped(0), wrapped(0))]),
        ]);
        let at =
            |text: &str| Some(nuncio_net::address::Address::from(std::net::SocketAddr::new(text.parse().unwrap(), 1)));
        info.remote_address = at("192.168.1.7");
        let masked = |text: &str| format!("masked_remote_address={text}");
        assert_eq!(
            shown(&limits, &[], &info),
            [
                "remote_address=192.168.1.7".into(),
                masked("192.168.1.0/24"),
                masked("192.168.1.7/32"),
                masked("0.0.0.0/0")
            ]
        );
        info.remote_address = at("2001:abcd:ef01:2345:6789:abcd:ef01:234");
        let whole = "2001:abcd:ef01:2345:6789:abcd:ef01:234";
        assert_eq!(
            shown(&limits, &[], &info)[1..],
            [masked("2001:abcd:ef01:2345::/64"), masked(&format!("{whole}/128")), masked("::/0")]
        );
    }

    #[test]
    fn headers_and_parameters_that_match_or_do_not_have_entries() {
        let info = info();
        let matcher = pb::HeaderMatcher {
            name: "x-a".into(),
            header_match_specifier: Some(pb::header_matcher::HeaderMatchSpecifier::PresentMatch(true)),
            ..Default::default()
        };
        let expect = |value| Some(envoy_types::pb::google::protobuf::BoolValue { value });
        let header = |wanted| {
            A::HeaderValueMatch(action::HeaderValueMatch {
                descriptor_value: "v".into(),
                expect_match: wanted,
                headers: vec![matcher.clone()],
                ..Default::default()
            })
        };
        let parameter = pb::QueryParameterMatcher {
            name: "q".into(),
            query_parameter_match_specifier: Some(
                pb::query_parameter_matcher::QueryParameterMatchSpecifier::PresentMatch(true),
            ),
        };
        let query = A::QueryParameterValueMatch(action::QueryParameterValueMatch {
            descriptor_value: "w".into(),
            descriptor_key: "own".into(),
            query_parameters: vec![parameter],
            ..Default::default()
        });
        let value = A::QueryParameters(action::QueryParameters {
            query_parameter_name: "q".into(),
            descriptor_key: "q".into(),
            skip_if_absent: false,
        });
        let limits =
            limits(vec![of(vec![header(None)]), of(vec![header(expect(false))]), of(vec![query]), of(vec![value])]);
        assert_eq!(shown(&limits, &[(":path", "/")], &info), ["header_match=v"]);
        let both = [(":path", "/?q=1"), ("x-a", "")];
        assert_eq!(shown(&limits, &both, &info), ["header_match=v", "own=w", "q=1"]);
    }

    #[test]
    fn metadata_gives_values_limits_and_defaults() {
        use envoy_types::pb::envoy::r#type::metadata::v3::{MetadataKey, metadata_key};
        let mut info = info();
        let at = |key: &str| {
            let segment = metadata_key::path_segment::Segment::Key(key.into());
            let path = vec![metadata_key::PathSegment { segment: Some(segment) }];
            Some(MetadataKey { key: "ns".into(), path })
        };
        let metadata = |key: &str, default: &str, source| {
            A::Metadata(action::MetaData {
                descriptor_key: "m".into(),
                metadata_key: at(key),
                default_value: default.into(),
                source,
                skip_if_absent: false,
            })
        };
        let mut limited = of(vec![key("k")]);
        limited.limit = Some(pb::rate_limit::Override {
            override_specifier: Some(pb::rate_limit::r#override::OverrideSpecifier::DynamicMetadata(
                pb::rate_limit::r#override::DynamicMetadata { metadata_key: at("limit") },
            )),
        });
        let limits = limits(vec![
            of(vec![metadata("text", "", 0)]),
            of(vec![metadata("none", "default", 0)]),
            of(vec![metadata("none", "", 0)]),
            of(vec![metadata("text", "", 1)]),
            limited,
        ]);
        assert_eq!(shown(&limits, &[], &info), ["m=default", "generic_key=k"]);
        let dynamic = json!({"ns": {"text": "a", "limit": {"requests_per_unit": 42, "unit": "HOUR"}}});
        info.dynamic_metadata = dynamic.as_object().cloned().map(Box::new);
        info.route_metadata = Some(std::sync::Arc::new(json!({"ns": {"text": "b"}})));
        assert_eq!(shown(&limits, &[], &info), ["m=a", "m=default", "m=b", "generic_key=k"]);
        let empty = Headers::new();
        let inputs = DescriptorInputs { local_cluster: "", headers: &empty, info: &info, runtime: &NoRuntime };
        let mut out = Vec::new();
        limits.descriptors(0, false, &inputs, &mut out);
        assert_eq!(out.last().unwrap().limit, Some((42, 3)));
    }

    #[test]
    fn stages_and_moments_are_kept_apart_and_hits_are_read_from_the_stream() {
        let mut info = info();
        info.bytes_received = 7;
        let wrapped = |value| Some(envoy_types::pb::google::protobuf::UInt32Value { value });
        let hits =
            |format: &str, number| pb::rate_limit::HitsAddend { number, format: format.into(), is_negative_hits: true };
        let fixed = Some(envoy_types::pb::google::protobuf::UInt64Value { value: 5 });
        let limits = limits(vec![
            pb::RateLimit { stage: wrapped(1), ..of(vec![key("one")]) },
            pb::RateLimit { apply_on_stream_done: true, ..of(vec![key("done")]) },
            pb::RateLimit { hits_addend: Some(hits("%BYTES_RECEIVED%", None)), ..of(vec![key("bytes")]) },
            pb::RateLimit { hits_addend: Some(hits("%REQ(none)%", None)), ..of(vec![key("bad")]) },
            pb::RateLimit { hits_addend: Some(hits("", fixed)), x_ratelimit_option: 2, ..of(vec![key("five")]) },
        ]);
        assert_eq!(shown(&limits, &[], &info), ["generic_key=bytes", "generic_key=five"]);
        let empty = Headers::new();
        let inputs = DescriptorInputs { local_cluster: "", headers: &empty, info: &info, runtime: &NoRuntime };
        let of = |stage, done| {
            let mut out = Vec::new();
            limits.descriptors(stage, done, &inputs, &mut out);
            out
        };
        assert_eq!((of(1, false).len(), of(0, true).len(), of(1, true).len()), (1, 1, 0));
        let first = &of(0, false)[0];
        assert_eq!((first.hits_addend, first.negative_hits, first.x_ratelimit_headers), (Some(7), true, None));
        let second = &of(0, false)[1];
        assert_eq!((second.hits_addend, second.x_ratelimit_headers), (Some(5), Some(true)));
    }
}
