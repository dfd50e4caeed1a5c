//! Delta: one type on one stream.
//!
//! Each name that is asked for is either waited for or held at a version; what a wildcard brought is held beside them.
//! A name that was dropped while a wildcard is asked for is held as ambiguous until the server says which it was.
//!
//! ```text
//!   asked --response--> held(version) --removed / expired--> asked
//!     |                     |
//!     +------dropped--------+-> gone, or ambiguous beside a wildcard
//!   stream reset: all that is asked for is asked for again, with the versions held
//! ```

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::google::rpc::Status;
use indexmap::IndexSet;
use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};

use super::sotw::ttl;
use super::watches::{Change, WILDCARD};
use super::{Heartbeat, Parsed, nack_message};
use crate::names::canonical;
use crate::transport::GrpcStatus;
use crate::{Resource, TypeUrl};

type Names = IndexSet<String, FxBuildHasher>;

#[derive(Debug, Default)]
pub(crate) struct Delta {
    /// Names asked for, the wildcard among them, in order; with the version held.
    requested: indexmap::IndexMap<String, Option<String>, FxBuildHasher>,
    /// What a wildcard brought.
    wildcard: FxHashMap<String, String>,
    ambiguous: FxHashMap<String, String>,
    /// What the next request has to say.
    subscribe: Names,
    unsubscribe: Names,
    /// The type has been asked for on this stream.
    asked: bool,
    /// The server of this stream is another than the last one: what is held did not come from it.
    stranger: bool,
}

/// The answer to one response.
#[derive(Debug)]
pub(crate) struct Ack {
    pub(crate) nonce: String,
    pub(crate) error: Option<String>,
}

impl Delta {
    pub(crate) fn interest_changed(&mut self, change: Change) {
        for name in change.added {
            let held = self.wildcard.remove(&name).or_else(|| self.ambiguous.remove(&name));
            if held.is_some() || !self.requested.contains_key(&name) {
                self.requested.insert(name.clone(), held);
            }
            // Dropped and asked for again before a request went out: whoever asks may have forgotten it, so ask anew.
            self.unsubscribe.swap_remove(&name);
            self.subscribe.insert(name);
        }
        for name in change.removed {
            let Some(held) = self.requested.shift_remove(&name) else { continue };
            if name == WILDCARD {
                self.wildcard.clear();
                self.ambiguous.clear();
            } else if let Some(version) = held
                && self.requested.contains_key(WILDCARD)
            {
                self.ambiguous.insert(name.clone(), version);
            }
            self.subscribe.shift_remove(&name);
            self.unsubscribe.insert(name);
        }
    }

    /// Names that were asked for on demand are not any more. Unless a wildcard may hold them, nothing of them is kept.
    pub(crate) fn released(&mut self, names: Vec<String>, wildcard: bool) {
        if wildcard {
            return self.interest_changed(Change { added: Vec::new(), removed: names });
        }
        for name in names {
            self.ambiguous.remove(&name);
            if self.requested.shift_remove(&name).is_some() {
                self.subscribe.shift_remove(&name);
                self.unsubscribe.insert(name);
            }
        }
    }

    pub(crate) fn stream_opened(&mut self, known: bool) {
        self.asked = false;
        self.stranger = !known;
    }

    /// Whether there is something to say without an acknowledgement.
    pub(crate) fn pending(&self) -> bool {
        if self.asked { !self.subscribe.is_empty() || !self.unsubscribe.is_empty() } else { !self.requested.is_empty() }
    }

    /// The next request, with everything that there is to say.
    pub(crate) fn request(&mut self, type_url: &TypeUrl, ack: Option<Ack>) -> DeltaDiscoveryRequest {
        let mut request =
            DeltaDiscoveryRequest { type_url: type_url.as_str().to_owned(), ..DeltaDiscoveryRequest::default() };
        if !self.asked {
            self.asked = true;
            // It may be another server: it learns all that is asked for, and all that is held.
            let asked = self.requested.iter().filter_map(|(name, version)| Some((name, version.as_ref()?)));
            let held = asked.chain(&self.wildcard).chain(&self.ambiguous).filter(|_| !self.stranger);
            request.initial_resource_versions = held.map(|(name, version)| (name.clone(), version.clone())).collect();
            self.unsubscribe.clear();
            self.subscribe.clear();
            // Nothing but the wildcard: the form that every server knows is to name nothing.
            if !(self.requested.len() == 1 && self.requested.contains_key(WILDCARD)) {
                self.subscribe.extend(self.requested.keys().cloned());
            }
        }
        request.resource_names_subscribe = self.subscribe.drain(..).collect();
        request.resource_names_unsubscribe = self.unsubscribe.drain(..).collect();
        if let Some(ack) = ack {
            request.response_nonce = ack.nonce;
            request.error_detail = ack.error.map(|error| Status {
                code: GrpcStatus::INTERNAL as i32,
                message: nack_message(&error),
                ..Status::default()
            });
        }
        request
    }

    fn held(&self, name: &str) -> Option<&str> {
        match self.requested.get(&*canonical(name)) {
            Some(version) => version.as_deref(),
            None => self.wildcard.get(name).or_else(|| self.ambiguous.get(name)).map(String::as_str),
        }
    }

    /// Takes a response apart. An error refuses all of it.
    pub(crate) fn parse(&self, type_url: &TypeUrl, response: &mut DeltaDiscoveryResponse) -> Result<Parsed, String> {
        let mut parsed = Parsed::default();
        let mut names: FxHashSet<String> = FxHashSet::default();
        for resource in std::mem::take(&mut response.resources) {
            if !names.insert(resource.name.clone()) {
                return Err(format!("duplicate name {} found among added/updated resources", resource.name));
            }
            let ttl = resource.ttl.as_ref().and_then(ttl);
            let unresolved = resource.resource.is_none();
            if unresolved && self.held(&resource.name).is_some_and(|held| held == resource.version) {
                parsed.heartbeats.push(Heartbeat { name: resource.name, ttl });
                continue;
            }
            let any = resource.resource.unwrap_or_default();
            let nothing_behind_aliases = unresolved && !resource.aliases.is_empty();
            if any.type_url != type_url.as_str() && !nothing_behind_aliases {
                return Err(format!(
                    "type URL {} embedded in an individual Any does not match the message-wide type URL {type_url} in \
                     DeltaDiscoveryResponse {}",
                    any.type_url, response.system_version_info
                ));
            }
            parsed.resources.push(Resource {
                name: resource.name,
                aliases: resource.aliases,
                version: resource.version,
                type_url: type_url.clone(),
                body: bytes::Bytes::from(any.value),
                unresolved,
                ttl,
                do_not_cache: resource.cache_control.is_some_and(|c| c.do_not_cache),
            });
        }
        for name in std::mem::take(&mut response.removed_resources) {
            if !names.insert(name.clone()) {
                return Err(format!("duplicate name {name} found in the union of added+removed resources"));
            }
            parsed.removed.push(name);
        }
        Ok(parsed)
    }

    /// Whether a resource of that name counts as held once it is taken.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.requested.contains_key(WILDCARD) || self.requested.contains_key(name)
    }

    /// A resource of a response that was taken whole.
    pub(crate) fn accepted(&mut self, name: &str, version: &str) {
        if let Some(held) = self.requested.get_mut(name) {
            *held = Some(version.to_owned());
        } else if self.requested.contains_key(WILDCARD) {
            self.ambiguous.remove(name);
            self.wildcard.insert(name.to_owned(), version.to_owned());
        }
    }

    /// A resource that the server removed, or that expired.
    pub(crate) fn gone(&mut self, name: &str) {
        if let Some(held) = self.requested.get_mut(name) {
            *held = None;
        } else if self.ambiguous.remove(name).is_none() {
            self.wildcard.remove(name);
        }
    }
}
