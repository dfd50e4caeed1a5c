//! Bytes of data sources, and the PEM in them.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nuncio_config::data_source::DataSource;
use nuncio_config::tls::{CertificateSource, CommonTlsContext, ValidationContext, ValidationSource};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};

use crate::socket::reason;

/// What was read, and where from.
pub(super) struct Source {
    pub(super) bytes: Vec<u8>,
    /// File path, or `<inline>`, as Envoy shows it.
    pub(super) label: String,
}

/// Reads a data source.
pub(super) fn read(source: &DataSource) -> Result<Source, String> {
    match source {
        DataSource::Inline(bytes) => Ok(Source { bytes: bytes.clone(), label: "<inline>".to_owned() }),
        DataSource::File { path, .. } => match std::fs::read(path) {
            Ok(bytes) => Ok(Source { bytes, label: path.display().to_string() }),
            Err(error) => Err(format!("cannot read file {}: {}", path.display(), reason(&error))),
        },
        DataSource::Environment(name) => match std::env::var(name) {
            Ok(text) => Ok(Source { bytes: text.into_bytes(), label: format!("<environment {name}>") }),
            Err(std::env::VarError::NotPresent) => Err(format!("Environment variable doesn't exist: {name}")),
            Err(std::env::VarError::NotUnicode(_)) => Err(format!("environment variable {name} is not text")),
        },
    }
}

/// The folder to watch for a data source and the file in it.
pub(super) fn watched(source: &DataSource) -> Option<(PathBuf, PathBuf)> {
    let DataSource::File { path, watched_directory } = source else { return None };
    let folder = match watched_directory {
        Some(folder) => folder.clone(),
        None => match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        },
    };
    Some((folder, path.clone()))
}

/// All certificates of a PEM text.
pub(super) fn certificates(source: &Source, what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(&source.bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("Failed to load {what} from {}: {error}", source.label))?;
    if found.is_empty() {
        return Err(format!("Failed to load {what} from {}: no CERTIFICATE section in PEM form", source.label));
    }
    Ok(found)
}

/// All revocation lists of a PEM text.
pub(super) fn revocation_lists(
    source: &Source,
    what: &str,
) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    CertificateRevocationListDer::pem_slice_iter(&source.bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("Failed to load {what} from {}: {error}", source.label))
}

/// The first private key of a PEM text.
pub(super) fn private_key(source: &Source) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(&source.bytes).map_err(|error| {
        let encrypted = memchr::memmem::find(&source.bytes, b"ENCRYPTED").is_some();
        let hint =
            if encrypted { "the key is encrypted, which is not supported".to_owned() } else { error.to_string() };
        format!("Failed to load private key from {}: {hint}", source.label)
    })
}

/// Every data source that a context reads.
pub(super) fn of_context(common: &CommonTlsContext) -> Vec<&DataSource> {
    let mut all = Vec::new();
    for certificate in &common.certificates {
        if let CertificateSource::Static(certificate) = certificate {
            all.extend([&certificate.chain, &certificate.key]);
            all.extend(certificate.password.iter().chain(&certificate.ocsp_staple));
        }
    }
    if let Some(context) = static_validation(common) {
        all.extend(context.trusted_ca.iter().chain(&context.crl));
    }
    all
}

/// The validation context that is known without SDS.
pub(super) fn static_validation(common: &CommonTlsContext) -> Option<&ValidationContext> {
    match &common.validation {
        Some(ValidationSource::Static(context)) => Some(context),
        _ => None,
    }
}

/// A digest over the files among `sources`, to see whether one has changed.
pub(super) fn digest(sources: &[&DataSource]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for source in sources {
        if let DataSource::File { path, .. } = source {
            match std::fs::read(path) {
                Ok(bytes) => {
                    digest.update((bytes.len() as u64).to_be_bytes());
                    digest.update(&bytes);
                }
                Err(_) => digest.update([0xff; 8]),
            }
        }
    }
    digest.finalize().into()
}

/// Secrets of sessions, appended to a file in NSS key log format.
pub(super) struct KeyLogFile {
    file: Mutex<std::fs::File>,
}

impl KeyLogFile {
    pub(super) fn open(path: &str) -> Result<Self, String> {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        match file {
            Ok(file) => Ok(Self { file: Mutex::new(file) }),
            Err(error) => Err(format!("cannot open key log {path}: {}", reason(&error))),
        }
    }
}

impl std::fmt::Debug for KeyLogFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyLogFile")
    }
}

impl rustls::KeyLog for KeyLogFile {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        use std::io::Write as _;
        let line = format!("{label} {} {}\n", super::info::hex(client_random), super::info::hex(secret));
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(line.as_bytes()) {
            tracing::warn!(%error, "the TLS key log cannot be written");
        }
    }
}
