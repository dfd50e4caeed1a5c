//! What PROXY protocol headers tell beside addresses: TLVs that are passed on and TLVs that are added
//! (`envoy.config.core.v3.ProxyProtocolConfig` and its parts).
//!
//! Used by the listener filter, by transport sockets towards upstreams and by the TCP proxy. Nothing is written here.

use envoy_types::pb::envoy::config::core::v3 as pb;
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;

use crate::access_log::LogFormat;
use crate::decode::{Context, type_name};
use crate::listener::ProxyProtocolVersion;

/// A TLV: type and value.
pub type Tlv = (u8, Box<[u8]>);

/// `ProxyProtocolPassThroughTLVs`: which TLVs of the header that came are passed on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PassThroughTlvs {
    /// None: the field is not set.
    #[default]
    None,
    /// INCLUDE_ALL.
    All,
    /// INCLUDE: those of these types.
    Types(Box<[u8]>),
}

impl PassThroughTlvs {
    /// Whether TLVs of this type are passed on.
    pub fn includes(&self, kind: u8) -> bool {
        match self {
            PassThroughTlvs::None => false,
            PassThroughTlvs::All => true,
            PassThroughTlvs::Types(types) => types.contains(&kind),
        }
    }

    pub(crate) fn decode(message: &Option<pb::ProxyProtocolPassThroughTlVs>) -> Self {
        use pb::proxy_protocol_pass_through_tl_vs::PassTlVsMatchType as Match;
        match message {
            None => PassThroughTlvs::None,
            Some(message) => match message.match_type() {
                Match::IncludeAll => PassThroughTlvs::All,
                Match::Include => PassThroughTlvs::Types(message.tlv_type.iter().map(|kind| *kind as u8).collect()),
            },
        }
    }
}

/// TLVs that are added to a header.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AddedTlvs {
    /// Those with a `value`.
    pub fixed: Vec<Tlv>,
    /// Those with a `format_string`, written after the others.
    pub formats: Vec<(u8, LogFormat)>,
}

impl AddedTlvs {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.fixed.is_empty() && self.formats.is_empty()
    }

    /// Decodes `TlvEntry` messages; errors are in Envoy's words.
    pub(crate) fn decode(cx: &mut Context, field: &'static str, messages: &[pb::TlvEntry]) -> Self {
        let mut added = AddedTlvs::default();
        cx.each(field, messages, |cx, message| {
            let kind = message.r#type as u8;
            match (&message.format_string, message.value.is_empty()) {
                (Some(_), false) => {
                    cx.error("Invalid TLV configuration: only one of 'value' or 'format_string' may be set.");
                }
                (None, true) => cx.error("Invalid TLV configuration: one of 'value' or 'format_string' must be set."),
                (None, false) => added.fixed.push((kind, message.value.as_slice().into())),
                (Some(format), true) => {
                    let format = cx.at("format_string", |cx| LogFormat::decode(cx, format));
                    added.formats.extend(format.map(|format| (kind, format)));
                }
            }
            Some(())
        });
        added
    }
}

/// `ProxyProtocolConfig` of a transport socket: the header that goes before everything else.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamProxyProtocol {
    /// Version of the header.
    pub version: ProxyProtocolVersion,
    /// TLVs of the client's header that are sent on.
    pub pass_through: PassThroughTlvs,
    /// TLVs that are sent beside them, in place of those of their types.
    pub added: AddedTlvs,
}

impl UpstreamProxyProtocol {
    pub(crate) fn decode(cx: &mut Context, message: &pb::ProxyProtocolConfig) -> Self {
        UpstreamProxyProtocol {
            version: ProxyProtocolVersion::decode(message),
            pass_through: PassThroughTlvs::decode(&message.pass_through_tlvs),
            added: AddedTlvs::decode(cx, "added_tlvs", &message.added_tlvs),
        }
    }
}

impl ProxyProtocolVersion {
    pub(crate) fn decode(message: &pb::ProxyProtocolConfig) -> Self {
        match message.version() {
            pb::proxy_protocol_config::Version::V1 => ProxyProtocolVersion::V1,
            pb::proxy_protocol_config::Version::V2 => ProxyProtocolVersion::V2,
        }
    }
}

/// Namespace of `typed_filter_metadata` in which an endpoint has TLVs of its own.
const NAMESPACE: &str = "envoy.transport_sockets.proxy_protocol";

/// The TLVs that the metadata of an endpoint adds. As in Envoy, they have fixed values, an empty one where only a format is
/// given, and what is no `PerHostConfig` adds nothing.
pub(crate) fn of_endpoint(metadata: &Option<pb::Metadata>) -> Option<Box<[Tlv]>> {
    let any: &Any = metadata.as_ref()?.typed_filter_metadata.get(NAMESPACE)?;
    if type_name(&any.type_url) != "envoy.config.core.v3.PerHostConfig" {
        return None;
    }
    let message = pb::PerHostConfig::decode(any.value.as_slice()).ok()?;
    Some(message.added_tlvs.iter().map(|tlv| (tlv.r#type as u8, tlv.value.as_slice().into())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;

    fn tlv(kind: u32, value: &[u8], format: Option<&str>) -> pb::TlvEntry {
        use pb::substitution_format_string::Format;
        let format = format.map(|text| pb::SubstitutionFormatString {
            format: Some(Format::TextFormat(text.into())),
            ..Default::default()
        });
        pb::TlvEntry { r#type: kind, value: value.into(), format_string: format }
    }

    #[test]
    fn a_tlv_has_a_value_or_a_format() {
        let message = pb::ProxyProtocolConfig {
            added_tlvs: vec![tlv(2, b"", Some("x")), tlv(1, b"a", None)],
            ..Default::default()
        };
        let config = UpstreamProxyProtocol::decode(&mut Context::default(), &message);
        assert_eq!((config.version, config.pass_through), (ProxyProtocolVersion::V1, PassThroughTlvs::None));
        assert_eq!(config.added.fixed, [(1, b"a"[..].into())]);
        assert_eq!(config.added.formats[0].0, 2);
        let message = pb::ProxyProtocolConfig {
            added_tlvs: vec![tlv(2, b"", None), tlv(1, b"a", Some("x"))],
            ..Default::default()
        };
        let result = Context::default().run(|cx| Some(UpstreamProxyProtocol::decode(cx, &message)));
        assert_eq!(
            errors(result),
            [
                "added_tlvs[0]: Invalid TLV configuration: one of 'value' or 'format_string' must be set.",
                "added_tlvs[1]: Invalid TLV configuration: only one of 'value' or 'format_string' may be set.",
            ]
        );
    }

    #[test]
    fn tlvs_pass_by_type_or_all_or_none() {
        use pb::proxy_protocol_pass_through_tl_vs::PassTlVsMatchType as Match;
        let decode = |kind: Match, types: &[u32]| {
            let message = pb::ProxyProtocolPassThroughTlVs { match_type: kind.into(), tlv_type: types.to_vec() };
            PassThroughTlvs::decode(&Some(message))
        };
        assert!(decode(Match::IncludeAll, &[]).includes(7));
        let some = decode(Match::Include, &[7, 9]);
        assert!(some.includes(9) && !some.includes(8));
        assert!(!PassThroughTlvs::decode(&None).includes(7));
    }

    #[test]
    fn an_endpoint_brings_tlvs_in_typed_metadata() {
        let host = pb::PerHostConfig { added_tlvs: vec![tlv(0xd1, b"h", None), tlv(0xd4, b"", Some("x"))] };
        let any = |name: &str| Any { type_url: format!("x/envoy.config.core.v3.{name}"), value: host.encode_to_vec() };
        let metadata = |name: &str| {
            let typed = [(NAMESPACE.to_owned(), any(name))].into();
            Some(pb::Metadata { typed_filter_metadata: typed, ..Default::default() })
        };
        let found = of_endpoint(&metadata("PerHostConfig")).expect("found");
        assert_eq!(*found, [(0xd1, b"h"[..].into()), (0xd4, b""[..].into())]);
        assert_eq!(of_endpoint(&metadata("Address")), None);
        assert_eq!(of_endpoint(&None), None);
    }
}
