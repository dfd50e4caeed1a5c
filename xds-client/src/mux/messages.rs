//! What a machine takes and gives: responses, decoded, and requests, ready to be encoded.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use prost::Message;

use super::Protocol;

/// A response, decoded.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// State of the world.
    Sotw(DiscoveryResponse),
    /// Incremental.
    Delta(DeltaDiscoveryResponse),
}

impl Response {
    /// Decodes a message of that protocol.
    pub fn decode(protocol: Protocol, message: Bytes) -> Result<Response, prost::DecodeError> {
        Ok(match protocol {
            Protocol::Sotw => Response::Sotw(DiscoveryResponse::decode(message)?),
            Protocol::Delta => Response::Delta(DeltaDiscoveryResponse::decode(message)?),
        })
    }
}

/// A request that is due. The node is not in it.
#[derive(Debug, PartialEq)]
pub struct Request<'a> {
    /// What it says.
    pub body: RequestBody<'a>,
    /// The node goes with it.
    pub with_node: bool,
    /// The names in `body`, encoded: of thousands this is done when they change, not for each acknowledgement.
    pub(super) names: &'a [u8],
}

/// The message of a [`Request`].
#[derive(Debug, PartialEq)]
pub enum RequestBody<'a> {
    /// State of the world.
    Sotw(&'a DiscoveryRequest),
    /// Incremental.
    Delta(Box<DeltaDiscoveryRequest>),
}

impl Request<'_> {
    /// The message in binary. `node` is an encoded `Node`, which need not be encoded again for each message: a field that
    /// is appended to a message is part of it.
    pub fn encode(&self, node: &[u8]) -> Bytes {
        let room = self.names.len() + if self.with_node { node.len() + 8 } else { 0 };
        // A BytesMut grows: encoding into it cannot fail.
        let (mut out, tag, _) = match &self.body {
            RequestBody::Sotw(request) => {
                let head = DiscoveryRequest {
                    version_info: request.version_info.clone(),
                    type_url: request.type_url.clone(),
                    response_nonce: request.response_nonce.clone(),
                    error_detail: request.error_detail.clone(),
                    ..DiscoveryRequest::default()
                };
                let mut out = BytesMut::with_capacity(head.encoded_len() + room);
                let encoded = head.encode(&mut out);
                out.extend_from_slice(self.names);
                (out, 2, encoded)
            }
            RequestBody::Delta(request) => {
                let mut out = BytesMut::with_capacity(request.encoded_len() + room);
                let encoded = request.encode(&mut out);
                (out, 1, encoded)
            }
        };
        if self.with_node {
            prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut out);
            prost::encoding::encode_varint(node.len() as u64, &mut out);
            out.extend_from_slice(node);
        }
        out.freeze()
    }
}

/// What there is to send.
#[derive(Debug, PartialEq)]
pub enum Due<'a> {
    /// This.
    Send(Request<'a>),
    /// Nothing before then: the rate limit.
    Wait(Instant),
    /// Nothing.
    Nothing,
}
