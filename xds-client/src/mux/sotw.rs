//! State of the world: one type on one stream.
//!
//! Its memory is the request that would be sent next: the last version that was taken, the last nonce that was received,
//! all names, and the error of the last response until it has been sent.
//!
//! ```text
//!   response --parse--> resources --(handlers)--> taken    version := response's   \
//!                     \                       \-> refused  error := text            > nonce := response's; one request
//!                      \--malformed--------------> refused  error := text          /
//!   stream reset: nonce := ''     (version and names stay)
//! ```

use envoy_types::pb::envoy::service::discovery::v3::{
    DiscoveryRequest, DiscoveryResponse, Resource as DiscoveryResource,
};
use envoy_types::pb::google::protobuf::Duration as ProtoDuration;
use envoy_types::pb::google::rpc::Status;
use prost::Message;

use super::{Heartbeat, Parsed, nack_message};
use crate::resource::name_of;
use crate::transport::GrpcStatus;
use crate::{Resource, TypeUrl};

/// The number of the field `resource_names`.
const NAMES: u32 = 3;
const WRAPPED: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

#[derive(Debug)]
pub(crate) struct Sotw {
    request: DiscoveryRequest,
    /// The names in `request` as bytes of the message.
    names: Vec<u8>,
    /// The names in `request` are not those that are asked for now.
    stale: bool,
    /// The type has been asked for on this stream.
    asked: bool,
    error_sent: bool,
}

impl Sotw {
    pub(crate) fn new(type_url: &TypeUrl) -> Sotw {
        let request = DiscoveryRequest { type_url: type_url.as_str().to_owned(), ..DiscoveryRequest::default() };
        Sotw { request, names: Vec::new(), stale: true, asked: false, error_sent: false }
    }

    pub(crate) fn version(&self) -> &str {
        &self.request.version_info
    }

    /// Whether the server was asked on this stream.
    pub(crate) fn asked(&self) -> bool {
        self.asked
    }

    pub(crate) fn interest_changed(&mut self) {
        self.stale = true;
    }

    pub(crate) fn stream_opened(&mut self) {
        self.request.response_nonce.clear();
        self.request.error_detail = None;
        self.asked = false;
    }

    /// The request to be sent now, and its names as bytes of the message. `names` is asked only if they have changed.
    pub(crate) fn request(&mut self, names: impl FnOnce() -> Vec<String>) -> (&DiscoveryRequest, &[u8]) {
        if self.stale {
            self.request.resource_names = names();
            self.names.clear();
            prost::encoding::string::encode_repeated(NAMES, &self.request.resource_names, &mut self.names);
            self.names.shrink_to_fit();
            self.stale = false;
        }
        if std::mem::replace(&mut self.error_sent, self.request.error_detail.is_some()) {
            self.request.error_detail = None;
            self.error_sent = false;
        }
        self.asked = true;
        (&self.request, &self.names)
    }

    pub(crate) fn received(&mut self, nonce: &str) {
        nonce.clone_into(&mut self.request.response_nonce);
    }

    pub(crate) fn accepted(&mut self, version: &str) {
        version.clone_into(&mut self.request.version_info);
        self.request.error_detail = None;
        self.error_sent = false;
    }

    pub(crate) fn rejected(&mut self, error: &str) {
        self.request.error_detail =
            Some(Status { code: GrpcStatus::INTERNAL as i32, message: nack_message(error), ..Status::default() });
        self.error_sent = false;
    }

    /// Takes a response apart. An error refuses all of it.
    pub(crate) fn parse(&self, type_url: &TypeUrl, response: &mut DiscoveryResponse) -> Result<Parsed, String> {
        let mut parsed = Parsed::default();
        for any in std::mem::take(&mut response.resources) {
            if any.type_url == type_url.as_str() {
                let body = bytes::Bytes::from(any.value);
                parsed.resources.push(Resource {
                    name: name_of(&body),
                    aliases: Vec::new(),
                    version: response.version_info.clone(),
                    type_url: type_url.clone(),
                    body,
                    unresolved: false,
                    ttl: None,
                    do_not_cache: false,
                });
                continue;
            }
            if any.type_url != WRAPPED {
                return Err(format!(
                    "{} does not match the message-wide type URL {type_url} in DiscoveryResponse {}",
                    any.type_url, response.version_info
                ));
            }
            let wrapped = DiscoveryResource::decode(any.value.as_slice())
                .map_err(|e| format!("Unable to unpack as envoy.service.discovery.v3.Resource: {e}"))?;
            let ttl = wrapped.ttl.as_ref().and_then(ttl);
            let Some(inner) = wrapped.resource else {
                parsed.heartbeats.push(Heartbeat { name: wrapped.name, ttl });
                continue;
            };
            if inner.type_url != type_url.as_str() {
                return Err(format!(
                    "{} does not match the message-wide type URL {type_url} in DiscoveryResponse {}",
                    inner.type_url, response.version_info
                ));
            }
            let body = bytes::Bytes::from(inner.value);
            let name = match name_of(&body) {
                name if name.is_empty() => wrapped.name,
                name => name,
            };
            parsed.resources.push(Resource {
                name,
                aliases: wrapped.aliases,
                version: response.version_info.clone(),
                type_url: type_url.clone(),
                body,
                unresolved: false,
                ttl,
                do_not_cache: wrapped.cache_control.is_some_and(|c| c.do_not_cache),
            });
        }
        Ok(parsed)
    }
}

/// A TTL as a duration. None if it is negative.
pub(crate) fn ttl(ttl: &ProtoDuration) -> Option<std::time::Duration> {
    Some(std::time::Duration::new(u64::try_from(ttl.seconds).ok()?, u32::try_from(ttl.nanos).ok()?))
}
