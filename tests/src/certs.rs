//! The certificates that a case file asks for, made at start and shared by both proxies.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::case::CertSpec;

/// The made certificates: PEM files in a folder.
#[derive(Debug)]
pub struct Certs {
    dir: PathBuf,
}

impl Certs {
    /// Makes the certificates; each becomes `NAME.pem` and `NAME.key`.
    ///
    /// # Errors
    /// An authority that is not in the list, a bad name, a file that cannot be written.
    pub fn make(dir: &Path, specs: &BTreeMap<String, CertSpec>) -> Result<Self> {
        let mut authorities = BTreeMap::new();
        for (name, spec) in specs.iter().filter(|(_, s)| s.ca.is_none()) {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name.as_str());
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.subject_alt_names = sans(spec)?;
            let key = KeyPair::generate()?;
            let cert = params.self_signed(&key)?;
            write(dir, name, &cert.pem(), &key.serialize_pem())?;
            authorities.insert(name.clone(), Issuer::new(params, key));
        }
        for (name, spec) in specs {
            let Some(ca) = &spec.ca else { continue };
            let issuer = authorities.get(ca).with_context(|| format!("{name}: no authority {ca}"))?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name.as_str());
            params.subject_alt_names = sans(spec)?;
            let key = KeyPair::generate()?;
            let cert = params.signed_by(&key, issuer)?;
            write(dir, name, &cert.pem(), &key.serialize_pem())?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Path of a certificate.
    pub fn cert(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.pem"))
    }

    /// Path of a key.
    pub fn key(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.key"))
    }

    /// A certificate with its key.
    ///
    /// # Errors
    /// No such certificate.
    pub fn pair(&self, name: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let certs = CertificateDer::pem_file_iter(self.cert(name))?.collect::<Result<Vec<_>, _>>()?;
        Ok((certs, PrivateKeyDer::from_pem_file(self.key(name))?))
    }

    /// A store that trusts one authority.
    ///
    /// # Errors
    /// No such certificate.
    pub fn roots(&self, name: &str) -> Result<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        for cert in self.pair(name)?.0 {
            roots.add(cert)?;
        }
        Ok(roots)
    }
}

fn sans(spec: &CertSpec) -> Result<Vec<SanType>> {
    spec.sans
        .iter()
        .map(|san| {
            Ok(if let Ok(ip) = san.parse::<IpAddr>() {
                SanType::IpAddress(ip)
            } else if san.contains("://") {
                SanType::URI(san.as_str().try_into()?)
            } else {
                SanType::DnsName(san.as_str().try_into()?)
            })
        })
        .collect()
}

fn write(dir: &Path, name: &str, cert: &str, key: &str) -> Result<()> {
    std::fs::write(dir.join(format!("{name}.pem")), cert)?;
    std::fs::write(dir.join(format!("{name}.key")), key)?;
    Ok(())
}
