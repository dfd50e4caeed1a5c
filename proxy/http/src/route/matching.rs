//! Matcher trees over requests: inputs compiled, and their values read from headers, connection and filters.
//!
//! Used by virtual hosts with a `matcher` and by routes whose cluster a tree chooses.

use std::borrow::Cow;

use nuncio_config::matchers::RuntimeFraction;
use nuncio_config::matching::{MatchData, MatchInput, MatchTree};
use nuncio_net::tls::info::CertificateInfo;

use super::table::RouteRequest;
use crate::headers::{HeaderName, names};
use crate::matchers::{header_name, in_runtime_fraction, metadata_value, query_parameter};

/// An input of requests, ready to be looked up.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Header(HeaderName),
    Other(MatchInput),
}

/// A tree over requests.
pub(crate) type RequestTree<A> = MatchTree<A, Input>;

/// The tree with its header names parsed; the error names one that is none.
pub(crate) fn compile<A: Clone>(tree: &MatchTree<A>) -> Result<RequestTree<A>, String> {
    let mut wrong = String::new();
    let compiled = tree.compile(&mut |input| match input {
        MatchInput::RequestHeader(name) => {
            let parsed = header_name(name);
            if parsed.is_none() {
                wrong = format!("invalid header name: {name:?}");
            }
            parsed.map(Input::Header)
        }
        other => Some(Input::Other(other.clone())),
    });
    compiled.ok_or(wrong)
}

impl MatchData<Input> for RouteRequest<'_> {
    fn value<'a>(&'a self, input: &'a Input) -> Option<Cow<'a, [u8]>> {
        let input = match input {
            Input::Header(name) => return self.headers.joined(name),
            Input::Other(input) => input,
        };
        if let MatchInput::QueryParameter(name) = input {
            return query_parameter(self.headers.bytes(&names::PATH)?, name.as_bytes()).map(Cow::Borrowed);
        }
        if let MatchInput::DynamicMetadata(filter, path) = input {
            let value = metadata_value(self.dynamic_metadata, filter, path)?;
            return value.as_str().map(|text| text.as_bytes().into());
        }
        if let MatchInput::FilterState(key) = input {
            let found = self.filter_state?.iter().find(|(known, _)| **known == **key)?;
            return Some(found.1.as_bytes().into());
        }
        if let MatchInput::Fixed(value) = input {
            return value.as_ref().map(|value| value.as_bytes().into());
        }
        let certificate = || self.tls?.peer_certificate();
        let names = |list: Vec<Cow<'_, str>>| (!list.is_empty()).then(|| list.join(",").into_bytes().into());
        let info = self.info?;
        let connection = &info.connection;
        let client = info.remote_address.as_ref().unwrap_or(&connection.remote_address);
        let text = |text: String| Some(Cow::Owned(text.into_bytes()));
        match input {
            MatchInput::DestinationIp => text(connection.local_address.ip()?.to_string()),
            MatchInput::DestinationPort => text(connection.local_address.port()?.to_string()),
            MatchInput::SourceIp => text(client.ip()?.to_string()),
            MatchInput::SourcePort => text(client.port()?.to_string()),
            MatchInput::DirectSourceIp => text(connection.direct_remote_address.ip()?.to_string()),
            MatchInput::SourceType => {
                let (from, to) = (connection.remote_address.ip()?, connection.local_address.ip()?);
                (from.is_loopback() || from == to).then_some(Cow::Borrowed(b"local"))
            }
            MatchInput::NetworkNamespace => Some(connection.network_namespace()?.as_bytes().into()),
            MatchInput::ServerName => Some(connection.requested_server_name.as_ref()?.as_bytes().into()),
            MatchInput::UriSan => names(certificate()?.uri_sans().collect()),
            MatchInput::DnsSan => names(certificate()?.dns_sans().collect()),
            MatchInput::Subject => Some(subject(certificate()?)),
            _ => None,
        }
    }

    fn in_fraction(&self, fraction: &RuntimeFraction, hash: u64) -> bool {
        in_runtime_fraction(fraction, self.runtime, hash)
    }
}

fn subject(certificate: &CertificateInfo) -> Cow<'_, [u8]> {
    certificate.subject.as_bytes().into()
}
