//! A listener's `filter_chain_matcher`: the tree that chooses a filter chain in place of the chains' own matches.
//!
//! Built with the listener's table; asked once per connection, after the listener filters. The tree itself is
//! `nuncio_config::matching`; here are the values of its inputs.

use std::borrow::Cow;
use std::sync::Arc;

use nuncio_config::matchers::RuntimeFraction;
use nuncio_config::matching::{MatchData, MatchInput, MatchTree};

use crate::connection::{ConnectionInfo, TransportProtocol};

/// Whether a share, which a runtime key may override, includes what has this hash.
pub type FractionCheck = Arc<dyn Fn(&RuntimeFraction, u64) -> bool + Send + Sync>;

/// The tree of a listener.
pub(crate) struct ChainMatcher {
    tree: Arc<MatchTree<Option<usize>>>,
    in_fraction: FractionCheck,
}

impl ChainMatcher {
    pub(crate) fn new(tree: Arc<MatchTree<Option<usize>>>, in_fraction: FractionCheck) -> Self {
        Self { tree, in_fraction }
    }

    /// The position of the chain for a connection; `otherwise` where nothing matches. None closes the connection: also
    /// when the tree names a chain that does not exist.
    pub(crate) fn find(&self, info: &ConnectionInfo, otherwise: Option<usize>) -> Option<usize> {
        match self.tree.find(&Inputs { info, in_fraction: &self.in_fraction }) {
            Some(chosen) => *chosen,
            None => otherwise,
        }
    }
}

struct Inputs<'a> {
    info: &'a ConnectionInfo,
    in_fraction: &'a FractionCheck,
}

impl MatchData<MatchInput> for Inputs<'_> {
    fn value<'a>(&'a self, input: &'a MatchInput) -> Option<Cow<'a, [u8]>> {
        let info = self.info;
        let text = |text: String| Some(Cow::Owned(text.into_bytes()));
        match input {
            MatchInput::DestinationIp => text(info.local_address.ip()?.to_string()),
            MatchInput::DestinationPort => text(info.local_address.port()?.to_string()),
            MatchInput::SourceIp => text(info.remote_address.ip()?.to_string()),
            MatchInput::SourcePort => text(info.remote_address.port()?.to_string()),
            MatchInput::DirectSourceIp => text(info.direct_remote_address.ip()?.to_string()),
            MatchInput::SourceType => info.is_local().then_some(Cow::Borrowed(b"local")),
            MatchInput::ServerName => {
                let name = info.requested_server_name.as_deref().filter(|name| !name.is_empty())?;
                Some(name.as_bytes().into())
            }
            MatchInput::TransportProtocol => match info.detected_transport_protocol {
                TransportProtocol::Unknown => None,
                known => Some(known.as_str().as_bytes().into()),
            },
            MatchInput::ApplicationProtocol => quoted(info),
            MatchInput::NetworkNamespace => Some(info.network_namespace()?.as_bytes().into()),
            MatchInput::Fixed(value) => Some(value.as_ref()?.as_bytes().into()),
            // There is no TLS session yet, and no listener filter that sets filter state.
            _ => None,
        }
    }

    fn in_fraction(&self, fraction: &RuntimeFraction, hash: u64) -> bool {
        (self.in_fraction)(fraction, hash)
    }
}

/// `'h2','http/1.1'`
fn quoted(info: &ConnectionInfo) -> Option<Cow<'static, [u8]>> {
    let mut out = Vec::new();
    for name in info.application_protocols.iter() {
        out.extend_from_slice(if out.is_empty() { b"'" } else { b",'" });
        out.extend_from_slice(name);
        out.push(b'\'');
    }
    (!out.is_empty()).then_some(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::connection::{ListenerInfo, ProtocolList};

    fn ip(text: &str) -> Address {
        Address::Ip(text.parse().expect("an address"))
    }

    fn value(info: &ConnectionInfo, input: &MatchInput) -> Option<String> {
        let in_fraction: FractionCheck = Arc::new(|_, _| false);
        let inputs = Inputs { info, in_fraction: &in_fraction };
        let value = inputs.value(input)?;
        Some(String::from_utf8_lossy(&value).into_owned())
    }

    #[test]
    fn inputs_have_envoys_texts() {
        let mut info = ConnectionInfo::new(ip("10.0.0.1:443"), ip("192.0.2.7:5000"));
        for (input, expected) in [
            (MatchInput::DestinationIp, Some("10.0.0.1")),
            (MatchInput::DestinationPort, Some("443")),
            (MatchInput::SourceIp, Some("192.0.2.7")),
            (MatchInput::SourcePort, Some("5000")),
            (MatchInput::DirectSourceIp, Some("192.0.2.7")),
            (MatchInput::SourceType, None),
            (MatchInput::ServerName, None),
            (MatchInput::TransportProtocol, None),
            (MatchInput::ApplicationProtocol, None),
            (MatchInput::NetworkNamespace, None),
            (MatchInput::UriSan, None),
            (MatchInput::Fixed(Some("x".into())), Some("x")),
        ] {
            assert_eq!(value(&info, &input).as_deref(), expected, "{input:?}");
        }
        info.remote_address = ip("127.0.0.1:1");
        info.requested_server_name = Some("a.example".into());
        info.detected_transport_protocol = TransportProtocol::Tls;
        info.application_protocols = ProtocolList::new([&b"h2"[..], b"http/1.1"]);
        info.listener = Some(Arc::new(ListenerInfo {
            name: "l".into(),
            direction: Default::default(),
            metadata: None,
            buffer_limit: 0,
            network_namespace: Some("/ns".into()),
        }));
        for (input, expected) in [
            (MatchInput::SourceIp, "127.0.0.1"),
            (MatchInput::DirectSourceIp, "192.0.2.7"),
            (MatchInput::SourceType, "local"),
            (MatchInput::ServerName, "a.example"),
            (MatchInput::TransportProtocol, "tls"),
            (MatchInput::ApplicationProtocol, "'h2','http/1.1'"),
            (MatchInput::NetworkNamespace, "/ns"),
        ] {
            assert_eq!(value(&info, &input).as_deref(), Some(expected), "{input:?}");
        }
        info.local_address = Address::Pipe("/s".into());
        assert_eq!(value(&info, &MatchInput::DestinationIp), None);
    }

    #[test]
    fn a_name_that_no_chain_has_is_not_the_default_chain() {
        let info = ConnectionInfo::new(ip("10.0.0.1:443"), ip("192.0.2.7:5000"));
        let find = |tree: MatchTree<Option<usize>>| {
            ChainMatcher::new(Arc::new(tree), Arc::new(|_, _| false)).find(&info, Some(9))
        };
        assert_eq!(find(MatchTree::always(Some(1))), Some(1));
        assert_eq!(find(MatchTree::always(None)), None);
        assert_eq!(find(MatchTree::never()), Some(9));
    }
}
