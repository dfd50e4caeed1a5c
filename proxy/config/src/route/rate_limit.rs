//! `RateLimit`: what a route tells rate-limit filters about its requests.

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::RateLimitUnit;

use crate::cluster::MetadataKey;
use crate::decode::{Context, bool_value, lower, u32_value};
use crate::extensions::{check_ignored, type_of};
use crate::matchers::{CidrRange, HeaderMatcher, QueryParameterMatcher, xds_cidr_range};

/// One `rate_limits` entry.
#[derive(Debug, Clone)]
pub struct RateLimit {
    /// The filters that it is for; default 0.
    pub stage: u32,
    /// Runtime key that switches it off; empty for none.
    pub disable_key: Box<str>,
    /// Each adds an entry to the descriptor.
    pub actions: Vec<RateLimitAction>,
    /// Where the limit itself is found (`limit.dynamic_metadata`).
    pub limit: Option<RateLimitOverride>,
    /// How much a request counts.
    pub hits_addend: Option<HitsAddend>,
    /// It is asked about when the stream is over.
    pub apply_on_stream_done: bool,
    /// Headers that tell of it; None leaves that to the filter.
    pub x_ratelimit_headers: Option<bool>,
    /// Path in the configuration.
    pub path: Box<str>,
}

/// One `actions` entry.
#[derive(Debug, Clone)]
pub enum RateLimitAction {
    /// `source_cluster`
    SourceCluster,
    /// `destination_cluster`
    DestinationCluster,
    /// `request_headers`
    RequestHeader {
        /// Lower-cased name.
        header: Box<str>,
        /// Key of the entry.
        key: Box<str>,
        /// Without it the entry is left out, not the descriptor.
        skip_if_absent: bool,
    },
    /// `query_parameters`
    QueryParameter {
        /// Name.
        parameter: Box<str>,
        /// Key of the entry.
        key: Box<str>,
        /// Without it the entry is left out, not the descriptor.
        skip_if_absent: bool,
    },
    /// `remote_address`
    RemoteAddress,
    /// `masked_remote_address`: bits kept of IPv4 and IPv6 addresses.
    MaskedRemoteAddress(u32, u32),
    /// `generic_key`
    GenericKey {
        /// Key of the entry.
        key: Box<str>,
        /// Its value.
        value: Box<str>,
    },
    /// `header_value_match`
    HeaderMatch {
        /// Key of the entry.
        key: Box<str>,
        /// Its value.
        value: Box<str>,
        /// Whether the headers have to match, or not to.
        expect: bool,
        /// All of them.
        headers: Vec<HeaderMatcher>,
    },
    /// `query_parameter_value_match`
    QueryMatch {
        /// Key of the entry.
        key: Box<str>,
        /// Its value.
        value: Box<str>,
        /// Whether the parameters have to match, or not to.
        expect: bool,
        /// All of them.
        parameters: Vec<QueryParameterMatcher>,
    },
    /// `metadata` and `dynamic_metadata`
    Metadata {
        /// Key of the entry.
        key: Box<str>,
        /// Where its value is.
        at: MetadataKey,
        /// Its value where there is none; empty for none.
        default: Box<str>,
        /// Whose metadata.
        source: MetadataSource,
        /// Without it the entry is left out, not the descriptor.
        skip_if_absent: bool,
    },
    /// `remote_address_match`
    RemoteAddressMatch {
        /// Key of the entry.
        key: Box<str>,
        /// A format string: its value.
        value: Box<str>,
        /// Its value where the format yields none; empty for none.
        default: Box<str>,
        /// Ranges of which one has the address.
        ranges: Vec<CidrRange>,
        /// None of them has it.
        invert: bool,
    },
    /// `extension`: a type that is not known here; there is no descriptor with it.
    Extension(Box<str>),
}

/// `MetaData.source`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataSource {
    /// `DYNAMIC`
    Dynamic,
    /// `ROUTE_ENTRY`
    Route,
    /// `CLUSTER_ENTRY`
    Cluster,
    /// `CLUSTER_LOCALITY_ENTRY`
    Locality,
}

/// `RateLimit.Override`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RateLimitOverride {
    /// In dynamic metadata.
    Metadata(MetadataKey),
    /// In place: requests per unit, and the unit's number.
    Fixed(u32, i32),
}

/// `HitsAddend`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HitsAddend {
    /// `number`; None where `format` says it.
    pub number: Option<u64>,
    /// One operator; empty where there is none.
    pub format: Box<str>,
    /// The hits are given back.
    pub negative: bool,
}

impl RateLimit {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &pb::RateLimit) -> Option<Self> {
        use pb::rate_limit::r#override::OverrideSpecifier as Limit;
        let limit = message.limit.as_ref().and_then(|limit| limit.override_specifier.as_ref());
        Some(RateLimit {
            stage: u32_value(&message.stage).unwrap_or(0),
            disable_key: message.disable_key.as_str().into(),
            actions: cx.each("actions", &message.actions, RateLimitAction::decode),
            limit: limit.and_then(|limit| match limit {
                Limit::DynamicMetadata(metadata) => {
                    Some(RateLimitOverride::Metadata(MetadataKey::decode(metadata.metadata_key.as_ref()?)))
                }
                Limit::RateLimit(fixed) => {
                    let unit = RateLimitUnit::try_from(fixed.unit).unwrap_or_default();
                    Some(RateLimitOverride::Fixed(fixed.requests_per_unit, unit as i32))
                }
            }),
            hits_addend: message.hits_addend.as_ref().map(|hits| HitsAddend {
                number: hits.number.as_ref().map(|number| number.value),
                format: hits.format.as_str().into(),
                negative: hits.is_negative_hits,
            }),
            apply_on_stream_done: message.apply_on_stream_done,
            x_ratelimit_headers: match message.x_ratelimit_option() {
                pb::rate_limit::XRateLimitOption::Unspecified => None,
                pb::rate_limit::XRateLimitOption::Off => Some(false),
                pb::rate_limit::XRateLimitOption::DraftVersion03 => Some(true),
            },
            path: cx.path_text(),
        })
    }
}

impl RateLimitAction {
    fn decode(cx: &mut Context, message: &pb::rate_limit::Action) -> Option<Self> {
        use pb::rate_limit::action::ActionSpecifier as Action;
        use pb::rate_limit::action::meta_data::Source;
        let or = |key: &str, default: &str| -> Box<str> { if key.is_empty() { default.into() } else { key.into() } };
        Some(match message.action_specifier.as_ref()? {
            Action::SourceCluster(_) => Self::SourceCluster,
            Action::DestinationCluster(_) => Self::DestinationCluster,
            Action::RequestHeaders(action) => Self::RequestHeader {
                header: lower(&action.header_name),
                key: action.descriptor_key.as_str().into(),
                skip_if_absent: action.skip_if_absent,
            },
            Action::QueryParameters(action) => Self::QueryParameter {
                parameter: action.query_parameter_name.as_str().into(),
                key: action.descriptor_key.as_str().into(),
                skip_if_absent: action.skip_if_absent,
            },
            Action::RemoteAddress(_) => Self::RemoteAddress,
            Action::MaskedRemoteAddress(action) => Self::MaskedRemoteAddress(
                u32_value(&action.v4_prefix_mask_len).unwrap_or(32),
                u32_value(&action.v6_prefix_mask_len).unwrap_or(128),
            ),
            Action::GenericKey(action) => Self::GenericKey {
                key: or(&action.descriptor_key, "generic_key"),
                value: action.descriptor_value.as_str().into(),
            },
            Action::HeaderValueMatch(action) => Self::HeaderMatch {
                key: or(&action.descriptor_key, "header_match"),
                value: action.descriptor_value.as_str().into(),
                expect: bool_value(&action.expect_match).unwrap_or(true),
                headers: cx.at("header_value_match", |cx| cx.each("headers", &action.headers, HeaderMatcher::decode)),
            },
            Action::QueryParameterValueMatch(action) => Self::QueryMatch {
                key: or(&action.descriptor_key, "query_match"),
                value: action.descriptor_value.as_str().into(),
                expect: bool_value(&action.expect_match).unwrap_or(true),
                parameters: cx.at("query_parameter_value_match", |cx| {
                    cx.each("query_parameters", &action.query_parameters, QueryParameterMatcher::decode)
                }),
            },
            Action::DynamicMetadata(action) => Self::Metadata {
                key: action.descriptor_key.as_str().into(),
                at: MetadataKey::decode(action.metadata_key.as_ref()?),
                default: action.default_value.as_str().into(),
                source: MetadataSource::Dynamic,
                skip_if_absent: false,
            },
            Action::Metadata(action) => Self::Metadata {
                key: action.descriptor_key.as_str().into(),
                at: MetadataKey::decode(action.metadata_key.as_ref()?),
                default: action.default_value.as_str().into(),
                source: match action.source() {
                    Source::Dynamic => MetadataSource::Dynamic,
                    Source::RouteEntry => MetadataSource::Route,
                    Source::ClusterEntry => MetadataSource::Cluster,
                    Source::ClusterLocalityEntry => MetadataSource::Locality,
                },
                skip_if_absent: action.skip_if_absent,
            },
            Action::RemoteAddressMatch(action) => {
                let matcher = action.address_matcher.as_ref();
                Self::RemoteAddressMatch {
                    key: or(&action.descriptor_key, "remote_address_match"),
                    value: action.descriptor_value.as_str().into(),
                    default: action.default_value.as_str().into(),
                    ranges: cx.at("remote_address_match", |cx| {
                        cx.at("address_matcher", |cx| {
                            cx.each("ranges", matcher.map_or(&[][..], |matcher| &matcher.ranges), xds_cidr_range)
                        })
                    }),
                    invert: matcher.is_some_and(|matcher| matcher.invert_match),
                }
            }
            Action::Extension(extension) => {
                let kind = type_of(extension);
                if let Err(error) = check_ignored("envoy.rate_limit_descriptors", &extension.name, kind) {
                    cx.error_at("extension", error);
                }
                Self::Extension(kind.into())
            }
        })
    }
}
