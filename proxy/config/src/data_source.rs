//! `envoy.config.core.v3.DataSource`: bytes that are inline, in a file or in an environment variable.

use std::path::PathBuf;

/// Where bytes come from. Files are read by whoever owns the object built from them, so that they can be watched.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DataSource {
    /// `inline_bytes` or `inline_string`.
    Inline(Vec<u8>),
    /// `filename`; `watched_directory` where given.
    File {
        /// File to read.
        path: PathBuf,
        /// Directory whose renames trigger a reload; the file's own directory otherwise.
        watched_directory: Option<PathBuf>,
    },
    /// `environment_variable`, by name.
    Environment(String),
}
