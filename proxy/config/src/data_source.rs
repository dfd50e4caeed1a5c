//! `envoy.config.core.v3.DataSource`: bytes that are inline, in a file or in an environment variable.

use envoy_types::pb::envoy::config::core::v3 as core;
use std::path::PathBuf;

use crate::decode::Context;

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

impl DataSource {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &core::DataSource) -> Option<Self> {
        use core::data_source::Specifier;
        Some(match &message.specifier {
            Some(Specifier::InlineBytes(bytes)) => DataSource::Inline(bytes.clone()),
            Some(Specifier::InlineString(text)) => DataSource::Inline(text.clone().into_bytes()),
            Some(Specifier::Filename(path)) => DataSource::File {
                path: path.into(),
                watched_directory: message.watched_directory.as_ref().map(|directory| directory.path.as_str().into()),
            },
            Some(Specifier::EnvironmentVariable(name)) => DataSource::Environment(name.clone()),
            None => {
                cx.error("Unexpected DataSource::specifier_case(): 0");
                return None;
            }
        })
    }

    /// Reads the source now. Meant for texts that do not change while the process runs, such as formats.
    pub fn read(&self) -> Result<Vec<u8>, String> {
        match self {
            DataSource::Inline(bytes) => Ok(bytes.clone()),
            DataSource::File { path, .. } => match std::fs::read(path) {
                Ok(bytes) => Ok(bytes),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    Err(format!("file {} does not exist", path.display()))
                }
                Err(error) => Err(format!("unable to read file {}: {error}", path.display())),
            },
            DataSource::Environment(name) => std::env::var(name)
                .map(String::into_bytes)
                .map_err(|_| format!("Environment variable doesn't exist: {name}")),
        }
    }

    /// The same source, reloaded when `directory` changes, if it is a file without a directory of its own.
    pub fn watched_by(mut self, directory: &Option<core::WatchedDirectory>) -> Self {
        if let (DataSource::File { watched_directory: watched @ None, .. }, Some(directory)) = (&mut self, directory) {
            *watched = Some(directory.path.as_str().into());
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;

    #[test]
    fn a_file_takes_the_directory_of_its_owner_only_without_its_own() {
        let directory = |path: &str| core::WatchedDirectory { path: path.into(), ..Default::default() };
        let file = |watched| core::DataSource {
            watched_directory: watched,
            specifier: Some(Specifier::Filename("/a/b".into())),
        };
        let watched = |message: &core::DataSource| {
            let source = DataSource::decode(&mut Context::default(), message).unwrap();
            match source.watched_by(&Some(directory("/owner"))) {
                DataSource::File { watched_directory, .. } => watched_directory.unwrap(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(watched(&file(None)), PathBuf::from("/owner"));
        assert_eq!(watched(&file(Some(directory("/own")))), PathBuf::from("/own"));
    }

    #[test]
    fn a_missing_file_is_told_by_name() {
        let source = DataSource::File { path: "/nonexistent/x".into(), watched_directory: None };
        assert_eq!(source.read(), Err("file /nonexistent/x does not exist".to_owned()));
        assert_eq!(DataSource::Inline(b"a".to_vec()).read(), Ok(b"a".to_vec()));
    }

    #[test]
    fn an_empty_source_is_an_error() {
        let result = Context::default().run(|cx| DataSource::decode(cx, &core::DataSource::default()));
        assert!(result.is_err());
    }
}
