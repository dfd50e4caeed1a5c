//! `request_headers_to_add` and its relatives. Values are format strings, compiled by the HTTP floor.

/// `HeaderValueOption.append_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendAction {
    /// Append if it exists (as a further line), add otherwise. Envoy's default.
    AppendIfExistsOrAdd,
    /// Add only where absent.
    AddIfAbsent,
    /// Overwrite where present, add otherwise.
    OverwriteIfExistsOrAdd,
    /// Overwrite only where present.
    OverwriteIfExists,
}

/// One header to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderValueOption {
    /// Lower-cased name.
    pub name: Box<str>,
    /// Format string with command operators such as `%DOWNSTREAM_REMOTE_ADDRESS%`.
    pub value: Box<str>,
    /// What happens when the header exists.
    pub append_action: AppendAction,
    /// Keep a header whose formatted value is empty (`keep_empty_value`).
    pub keep_empty_value: bool,
}

/// Mutations of one level (route, virtual host, route configuration, weighted cluster).
/// Envoy applies removals of a level before its additions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderMutations {
    /// Request headers to add.
    pub request_add: Vec<HeaderValueOption>,
    /// Request headers to remove, lower-cased.
    pub request_remove: Vec<Box<str>>,
    /// Response headers to add.
    pub response_add: Vec<HeaderValueOption>,
    /// Response headers to remove, lower-cased.
    pub response_remove: Vec<Box<str>>,
}
