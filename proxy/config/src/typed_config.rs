//! An extension's configuration before the extension itself decodes it.

use bytes::Bytes;
use std::sync::Arc;

/// A `google.protobuf.Any` (with `TypedStruct` already unwrapped where the message is known) and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypedConfig {
    /// The extension's configured name; informative only: extensions are found by type, as in Envoy.
    pub name: Arc<str>,
    /// Full message name, without the `type.googleapis.com/` prefix. Empty when no typed_config was given.
    pub type_name: Arc<str>,
    /// The serialized message.
    pub value: Bytes,
    /// Path of the `typed_config` field in the configuration, for errors.
    pub path: Arc<str>,
}
