//! Bytes of data sources, and the PEM in them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nuncio_config::data_source::DataSource;
use nuncio_config::matchers::CidrRange;
use nuncio_config::tls::{CertificateSource, CommonTlsContext, KeyLogConfig, ValidationContext, ValidationSource};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};

use super::encrypted_key;
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

/// The first private key of a PEM text, opened with the password if it has one.
pub(super) fn private_key(source: &Source, password: Option<&Source>) -> Result<PrivateKeyDer<'static>, String> {
    let fail = |why: String| format!("Failed to load private key from {}: {why}", source.label);
    if !encrypted_key::is_encrypted(&source.bytes) {
        return PrivateKeyDer::from_pem_slice(&source.bytes).map_err(|error| fail(error.to_string()));
    }
    let Some(password) = password else { return Err(fail("it needs a password".to_owned())) };
    encrypted_key::open(&source.bytes, self::password(password)).map_err(fail)
}

/// A password without blanks at its end, as Envoy has it; a file often ends with a newline that is not meant.
pub(super) fn password(source: &Source) -> &[u8] {
    source.bytes.trim_ascii_end()
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
    if let Ok(Some(context)) = validation(common) {
        all.extend(context.trusted_ca.iter().chain(&context.crl));
    }
    all
}

/// The validation context, if there is one. Where it is a secret, the secret has to be in its place.
pub(super) fn validation(common: &CommonTlsContext) -> Result<Option<&ValidationContext>, String> {
    match &common.validation {
        None => Ok(None),
        Some(ValidationSource::Static(context)) => Ok(Some(context)),
        Some(_) => Err("the secret of the validation context has not come".to_owned()),
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
    config: KeyLogConfig,
}

impl KeyLogFile {
    pub(super) fn open(config: &KeyLogConfig) -> Result<Self, String> {
        let path = &*config.path;
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        match file {
            Ok(file) => Ok(Self { file: Mutex::new(file), config: config.clone() }),
            Err(error) => Err(format!("cannot open key log {path}: {}", reason(&error))),
        }
    }
}

impl KeyLogFile {
    /// Whether the secrets of connections between these addresses are written.
    pub(super) fn concerns(&self, local: Option<IpAddr>, remote: Option<IpAddr>) -> bool {
        let within = |ranges: &[CidrRange], ip: Option<IpAddr>| {
            ranges.is_empty() || ip.is_some_and(|ip| ranges.iter().any(|range| range.contains(&ip)))
        };
        within(&self.config.local, local) && within(&self.config.remote, remote)
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
        if !super::handshake::logs_keys() {
            return;
        }
        let line = format!("{label} {} {}\n", super::info::hex(client_random), super::info::hex(secret));
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(line.as_bytes()) {
            tracing::warn!(%error, "the TLS key log cannot be written");
        }
    }
}

/// RFC 4648 4, with padding.
pub(super) fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    let body = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    if !text.len().is_multiple_of(4) || body.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(body.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for byte in body {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_log_has_the_connections_of_its_ranges_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let ranges = |text: &str| text.split_terminator(' ').map(|range| range.parse().unwrap()).collect();
        let log = |local: &str, remote: &str| {
            let path = path.to_string_lossy().into();
            KeyLogFile::open(&KeyLogConfig { path, local: ranges(local), remote: ranges(remote) }).unwrap()
        };
        let (here, there) = ("127.0.0.1".parse().ok(), "10.1.2.3".parse().ok());
        assert!(log("", "").concerns(here, there) && log("", "").concerns(None, None));
        assert!(log("127.0.0.0/8", "10.0.0.0/8 11.0.0.0/8").concerns(here, there));
        assert!(!log("127.0.0.0/8", "11.0.0.0/8").concerns(here, there));
        assert!(!log("10.0.0.0/8", "").concerns(here, there) && !log("127.0.0.0/8", "").concerns(None, there));
    }
}
