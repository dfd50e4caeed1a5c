//! What a client knows about each resource at one moment: for an admin view, `/config_dump` and CSDS.

use std::time::SystemTime;

use crate::TypeUrl;

/// Where a resource stands (`envoy.admin.v3.ClientResourceStatus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResourceStatus {
    /// Asked for, and not answered yet.
    Requested,
    /// The server said that it does not exist, or removed it.
    DoesNotExist,
    /// Taken.
    Acked,
    /// The latest version was not taken. What was taken before, if anything, still holds.
    Nacked,
    /// Asked for, and not there when `initial_fetch_timeout` went by.
    Timeout,
}

impl ResourceStatus {
    /// The name of the enum value in `envoy.admin.v3`.
    pub fn name(self) -> &'static str {
        match self {
            ResourceStatus::Requested => "REQUESTED",
            ResourceStatus::DoesNotExist => "DOES_NOT_EXIST",
            ResourceStatus::Acked => "ACKED",
            ResourceStatus::Nacked => "NACKED",
            ResourceStatus::Timeout => "TIMEOUT",
        }
    }
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceState {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub status: ResourceStatus,
    /// The version that was last taken. Empty if none was.
    pub version: String,
    /// When it was first asked for by name. None if only a wildcard brought it.
    pub requested: Option<SystemTime>,
    /// When a version of it last arrived.
    pub received: Option<SystemTime>,
    /// When a version of it was last taken.
    pub accepted: Option<SystemTime>,
    /// When a version of it was last refused.
    pub rejected: Option<SystemTime>,
    /// Why it was refused. Empty unless the latest version was.
    pub error: String,
    /// The version that was refused. Empty unless the latest version was.
    pub rejected_version: String,
}

/// One type on one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeState {
    /// The type.
    pub type_url: TypeUrl,
    /// State of the world: the last version that was taken. Delta: `system_version_info` of the last response.
    pub version: String,
    /// The nonce of the last response on this stream.
    pub nonce: String,
    /// The text of the last NACK. Empty once a later response was taken whole.
    pub error: String,
    /// When it was asked for on this stream, or by the last poll. None of a file.
    pub requested: Option<SystemTime>,
    /// When the last response arrived.
    pub received: Option<SystemTime>,
    /// When the last response was taken whole.
    pub accepted: Option<SystemTime>,
    /// When the last response was refused, wholly or in part.
    pub rejected: Option<SystemTime>,
    /// How many subscriptions there are.
    pub subscriptions: usize,
    /// Requests of this type are held back now.
    pub paused: bool,
    /// The resources, by name.
    pub resources: Vec<ResourceState>,
}

/// One source: a stream, a poll or a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// What it is: `ads`, `grpc`, `rest` or `path`.
    pub kind: &'static str,
    /// What the owner calls it: a cluster, a target, a path.
    pub name: String,
    /// Delta rather than state of the world.
    pub delta: bool,
    /// There is a stream, or the last poll succeeded.
    pub connected: bool,
    /// `control_plane.identifier` of the last response that had one.
    pub control_plane: String,
    /// The last reason why there was no stream. Empty if there was none.
    pub last_failure: String,
    /// The types that it serves, in the order in which they were first subscribed to.
    pub types: Vec<TypeState>,
}
