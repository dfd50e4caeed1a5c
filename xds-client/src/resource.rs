//! What a consumer sees: resources, updates, its verdict on them, and the trait through which it is told.
//!
//! A resource stays bytes here. Whoever subscribes decodes and judges it, and answers with a [`Verdict`], from which the
//! machines make the ACK or the NACK.

use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::google::protobuf::Any;

use crate::TypeUrl;
use crate::names::{canonical, is_xdstp};

/// One resource as the server sent it.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// The name by which it was asked for. State of the world: the name in the message itself; delta: the outer name.
    pub name: String,
    /// The other names of it, with the aliases of a delta resource.
    pub aliases: Vec<String>,
    /// Delta: the version of this resource; state of the world: the version of the response.
    pub version: String,
    /// The type of `body`.
    pub type_url: TypeUrl,
    /// The message, in binary. Empty if `unresolved`.
    pub body: Bytes,
    /// The server knows the aliases, but has nothing behind them (delta, virtual hosts on demand).
    pub unresolved: bool,
    /// How long it lives unless it is sent again or a heartbeat arrives.
    pub ttl: Option<Duration>,
    /// The server said that it must not be cached (`cache_control.do_not_cache`).
    pub do_not_cache: bool,
}

impl Resource {
    /// The resource as the `Any` that it was.
    pub fn to_any(&self) -> Any {
        Any { type_url: self.type_url.as_str().to_owned(), value: self.body.to_vec() }
    }
}

/// One update for one subscription.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// The type subscribed to.
    pub type_url: TypeUrl,
    /// `version_info` of the response, or `system_version_info` of a delta. Empty for a removal by expiry, and where the
    /// server leaves it empty.
    pub version: String,
    /// New and changed resources, in the order of the response. With `full_state`, all there are.
    pub added: Vec<Resource>,
    /// What is gone: named by a delta, left out of a full state, or expired. Only names that this subscription asked for
    /// or has been given; with a full state only names that it was given before.
    pub removed: Vec<String>,
    /// `added` is everything that exists: a state of the world for a wildcard subscription.
    pub full_state: bool,
    /// No response says so: the time to live of what is `removed` is over.
    pub expired: bool,
    /// Who sent it, if the server says.
    pub control_plane: String,
}

/// What is wrong with one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceError {
    /// The name of the resource.
    pub name: String,
    /// Why it was not taken.
    pub message: String,
}

/// A consumer's answer to an update. What is good in an update has been applied even if the verdict carries an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    error: Option<String>,
    resources: Vec<ResourceError>,
}

impl Verdict {
    /// All was taken.
    pub fn accept() -> Verdict {
        Verdict::default()
    }

    /// Something was not taken. `message` is the text of the NACK as a whole.
    pub fn reject(message: impl Into<String>) -> Verdict {
        Verdict { error: Some(message.into()), resources: Vec::new() }
    }

    /// The resources named were not taken; all others were. `message` is the text of the NACK as a whole.
    pub fn reject_resources(message: impl Into<String>, resources: Vec<ResourceError>) -> Verdict {
        Verdict { error: Some(message.into()), resources }
    }

    /// Whether all was taken.
    pub fn is_accepted(&self) -> bool {
        self.error.is_none()
    }

    /// The text of the NACK.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// The resources that were not taken. Empty in a rejection that concerns the whole update.
    pub fn resources(&self) -> &[ResourceError] {
        &self.resources
    }

    /// Why the resource `name` was not taken, if it was not.
    pub fn error_of(&self, name: &str) -> Option<&str> {
        let error = self.error.as_deref()?;
        if self.resources.is_empty() {
            return Some(error);
        }
        self.resources.iter().find(|r| r.name == name).map(|r| r.message.as_str())
    }
}

/// Why nothing came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchFailure {
    /// The stream ended, or could not be opened. It is opened again; the subscription lives on.
    ConnectionFailure,
    /// `initial_fetch_timeout` went by before the first update. The subscription lives on.
    FetchTimedOut,
    /// A response could not be understood at all, so that no handler was asked.
    UpdateRejected,
}

/// A consumer of one subscription. Called on the thread of the client, never while another handler runs. A handler may
/// subscribe, change names, unsubscribe, pause and resume from within.
pub trait ResourceHandler {
    /// Takes an update and says what was wrong with it.
    fn on_update(&self, update: Update) -> Verdict;

    /// Nothing came.
    fn on_failure(&self, _why: FetchFailure) {}
}

/// What a subscription asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interest {
    /// All that exists for this node.
    Wildcard,
    /// These names. An empty list asks for nothing.
    Names(Vec<String>),
    /// All of a collection (`xdstp://.../*`, or a name under which a server gives many). State of the world: a response in
    /// which there is anything of it is all there is of it.
    Collection(String),
    /// Delta only: all whose name begins with this and a slash (virtual hosts of one route configuration). Nothing is
    /// named to the server until `Subscription::request_on_demand`.
    Namespace(String),
}

impl Interest {
    /// With names as they are sent and compared.
    pub(crate) fn canonical(self) -> Interest {
        match self {
            Interest::Names(mut names) => {
                for name in names.iter_mut().filter(|name| is_xdstp(name)) {
                    *name = canonical(name).into_owned();
                }
                Interest::Names(names)
            }
            Interest::Collection(name) => Interest::Collection(canonical(&name).into_owned()),
            other => other,
        }
    }
}

/// How a subscription is made.
#[derive(Clone, Debug)]
pub struct SubscriptionOptions {
    /// The type asked for.
    pub type_url: TypeUrl,
    /// What of it.
    pub interest: Interest,
    /// How long to wait for the first update before the handler is told. Zero waits for ever. Envoy's default is 15 s.
    pub initial_fetch_timeout: Duration,
}

impl SubscriptionOptions {
    /// A subscription with Envoy's `initial_fetch_timeout` of 15 s.
    pub fn new(type_url: TypeUrl, interest: Interest) -> SubscriptionOptions {
        SubscriptionOptions { type_url, interest, initial_fetch_timeout: Duration::from_secs(15) }
    }
}

/// The name inside a resource. In every message that discovery serves it is the string with field number 1.
pub(crate) fn name_of(body: &[u8]) -> String {
    use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
    let mut buf = body;
    let mut name = "";
    while !buf.is_empty() {
        let Ok((tag, wire)) = decode_key(&mut buf) else { break };
        if tag == 1 && wire == WireType::LengthDelimited {
            let Ok(len) = decode_varint(&mut buf) else { break };
            let Some((value, rest)) = usize::try_from(len).ok().and_then(|len| buf.split_at_checked(len)) else {
                break;
            };
            name = std::str::from_utf8(value).unwrap_or_default();
            buf = rest;
        } else if skip_field(wire, tag, &mut buf, DecodeContext::default()).is_err() {
            break;
        }
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
    use envoy_types::pb::envoy::config::listener::v3::Listener;
    use prost::Message;

    #[test]
    fn the_name_is_read_without_decoding_the_rest() {
        let cluster = Cluster { name: "c".into(), alt_stat_name: "other".into(), ..Cluster::default() };
        assert_eq!(name_of(&cluster.encode_to_vec()), "c");
        let eds = ClusterLoadAssignment { cluster_name: "e".into(), ..ClusterLoadAssignment::default() };
        assert_eq!(name_of(&eds.encode_to_vec()), "e");
        let listener = Listener { name: "l".into(), stat_prefix: "p".into(), ..Listener::default() };
        assert_eq!(name_of(&listener.encode_to_vec()), "l");
        assert_eq!(name_of(b"\xff\xff\xff"), "");
        assert_eq!(name_of(b"\x0a\xff\xff\xff\xff\x0f"), "");
    }

    #[test]
    fn a_verdict_says_which_resources_failed() {
        let verdict =
            Verdict::reject_resources("2 bad", vec![ResourceError { name: "a".into(), message: "no".into() }]);
        assert_eq!(verdict.error_of("a"), Some("no"));
        assert_eq!(verdict.error_of("b"), None);
        assert_eq!(Verdict::reject("all").error_of("b"), Some("all"));
        assert!(Verdict::accept().is_accepted());
    }
}
