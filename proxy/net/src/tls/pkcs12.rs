//! A certificate, its chain and its key in one file: PKCS #12 (RFC 7292), as `openssl pkcs12 -export` and keytool write it.
//!
//! Encryption is that of [`pbes2`](super::pbes2), or none. Archives of old tools (RC2, 3DES) are refused with words that say
//! so, as are files in BER that is not DER.

use aws_lc_rs::{digest, hmac};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::der::{Der, EXPLICIT_0, IMPLICIT_0, INTEGER, OCTET_STRING, OID, SEQUENCE};
use super::encrypted_key::encrypted_info;
use super::pbes2::{MAX_ITERATIONS, decrypt, too_many_iterations};

const DATA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01";
const ENCRYPTED_DATA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x06";
const KEY_BAG: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x01";
const SHROUDED_KEY_BAG: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x02";
const CERTIFICATE_BAG: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x03";
const X509_CERTIFICATE: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x16\x01";
const SHA1: &[u8] = b"\x2b\x0e\x03\x02\x1a";
const SHA256: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02\x01";
const SHA384: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02\x02";
const SHA512: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02\x03";

/// What an archive holds.
pub(super) struct Archive {
    /// The private key.
    pub(super) key: PrivateKeyDer<'static>,
    /// All certificates, in the order of the archive.
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

/// Opens an archive.
pub(super) fn open(der: &[u8], password: &[u8]) -> Result<Archive, String> {
    let bad = || "it is not a PKCS #12 archive in DER".to_owned();
    let mut archive = Der::new(der).enter(SEQUENCE).ok_or_else(bad)?;
    archive.expect(INTEGER).ok_or_else(bad)?;
    let contents = archive.enter(SEQUENCE).and_then(|info| content(info, DATA));
    let contents = contents.and_then(|mut contents| contents.expect(OCTET_STRING)).ok_or_else(bad)?;
    if !archive.is_at_end() {
        let mac = archive.enter(SEQUENCE).and_then(Mac::parse).ok_or_else(bad)?;
        mac.verify(contents, password)?;
    }
    let (mut key, mut certificates) = (None, Vec::new());
    let mut safes = Der::new(contents).enter(SEQUENCE).ok_or_else(bad)?;
    while !safes.is_at_end() {
        let safe = safes.expect(SEQUENCE).ok_or_else(bad)?;
        let opened;
        let bags = if let Some(mut plain) = content(Der::new(safe), DATA) {
            plain.expect(OCTET_STRING).ok_or_else(bad)?
        } else {
            let sealed = content(Der::new(safe), ENCRYPTED_DATA).and_then(encrypted_data);
            let (algorithm, sealed) = sealed.ok_or_else(bad)?;
            opened = decrypt(algorithm, sealed, password)?;
            &opened
        };
        let mut bags = Der::new(bags).enter(SEQUENCE).ok_or_else(bad)?;
        while !bags.is_at_end() {
            let mut bag = bags.enter(SEQUENCE).ok_or_else(bad)?;
            let (kind, value) = (bag.expect(OID).ok_or_else(bad)?, bag.expect(EXPLICIT_0).ok_or_else(bad)?);
            match kind {
                KEY_BAG => key = key.or_else(|| Some(value.to_vec())),
                SHROUDED_KEY_BAG if key.is_none() => {
                    let (algorithm, sealed) = encrypted_info(Der::new(value)).ok_or_else(bad)?;
                    key = Some(decrypt(algorithm, sealed, password)?);
                }
                CERTIFICATE_BAG => certificates.extend(certificate(value)),
                _ => {}
            }
        }
    }
    let key = key.ok_or("it holds no private key")?;
    if certificates.is_empty() {
        return Err("it holds no certificate".to_owned());
    }
    Ok(Archive { key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)), certificates })
}

/// What is in a ContentInfo of this kind.
fn content<'a>(mut info: Der<'a>, kind: &[u8]) -> Option<Der<'a>> {
    if info.expect(OID)? != kind {
        return None;
    }
    info.enter(EXPLICIT_0)
}

/// Algorithm and ciphertext of an EncryptedData.
fn encrypted_data(mut data: Der<'_>) -> Option<(&[u8], &[u8])> {
    let mut data = data.enter(SEQUENCE)?;
    data.expect(INTEGER)?;
    let mut info = data.enter(SEQUENCE)?;
    info.expect(OID)?;
    Some((info.expect(SEQUENCE)?, info.expect(IMPLICIT_0)?))
}

fn certificate(bag: &[u8]) -> Option<CertificateDer<'static>> {
    let mut bag = Der::new(bag).enter(SEQUENCE)?;
    if bag.expect(OID)? != X509_CERTIFICATE {
        return None;
    }
    let der = bag.enter(EXPLICIT_0)?.expect(OCTET_STRING)?;
    Some(CertificateDer::from(der.to_vec()))
}

/// `MacData`: shows that the password is right and the archive whole.
struct Mac<'a> {
    algorithm: &'a [u8],
    digest: &'a [u8],
    salt: &'a [u8],
    iterations: u32,
}

impl<'a> Mac<'a> {
    fn parse(mut data: Der<'a>) -> Option<Self> {
        let mut info = data.enter(SEQUENCE)?;
        let algorithm = info.enter(SEQUENCE)?.expect(OID)?;
        let digest = info.expect(OCTET_STRING)?;
        let salt = data.expect(OCTET_STRING)?;
        let iterations = if data.is_at_end() { 1 } else { data.number()? };
        Some(Mac { algorithm, digest, salt, iterations })
    }

    fn verify(&self, contents: &[u8], password: &[u8]) -> Result<(), String> {
        let (digest, hmac, block) = match self.algorithm {
            SHA1 => (&digest::SHA1_FOR_LEGACY_USE_ONLY, hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, 64),
            SHA256 => (&digest::SHA256, hmac::HMAC_SHA256, 64),
            SHA384 => (&digest::SHA384, hmac::HMAC_SHA384, 128),
            SHA512 => (&digest::SHA512, hmac::HMAC_SHA512, 128),
            _ => return Err("the kind of its checksum is not supported (SHA-1 and SHA-2 are)".to_owned()),
        };
        if self.iterations > MAX_ITERATIONS {
            return Err(too_many_iterations());
        }
        let text = String::from_utf8_lossy(password);
        let mut wide: Vec<u8> = text.encode_utf16().chain([0]).flat_map(u16::to_be_bytes).collect();
        loop {
            let key = hmac::Key::new(hmac, &self.derive(digest, block, &wide));
            if hmac::verify(&key, contents, self.digest).is_ok() {
                return Ok(());
            }
            // An empty password is written with its end mark, or not at all.
            if wide.len() != 2 {
                return Err("the password does not open it".to_owned());
            }
            wide.clear();
        }
    }

    /// RFC 7292 B.2 for a key of the digest's size, so that there is one block.
    fn derive(&self, algorithm: &'static digest::Algorithm, block: usize, password: &[u8]) -> Vec<u8> {
        /// Keys for checksums.
        const PURPOSE: u8 = 3;
        let repeated = |bytes: &[u8]| -> Vec<u8> {
            bytes.iter().copied().cycle().take(bytes.len().div_ceil(block) * block).collect()
        };
        let mut input = vec![PURPOSE; block];
        input.extend(repeated(self.salt));
        input.extend(repeated(password));
        let mut key = digest::digest(algorithm, &input).as_ref().to_vec();
        for _ in 1..self.iterations {
            key = digest::digest(algorithm, &key).as_ref().to_vec();
        }
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = include_bytes!("testdata/archive.p12");

    #[test]
    fn an_archive_opens_with_its_password_only() {
        let archive = open(SECRET, b"secret").expect("opens");
        assert_eq!(archive.certificates.len(), 2);
        for password in [&b"wrong"[..], b""] {
            assert_eq!(open(SECRET, password).err().as_deref(), Some("the password does not open it"));
        }
    }

    #[test]
    fn an_empty_password_and_none_are_the_same() {
        open(include_bytes!("testdata/archive-plain.p12"), b"").expect("opens");
    }

    #[test]
    fn what_is_no_archive_is_said() {
        for input in [&b""[..], b"-----BEGIN CERTIFICATE-----", &SECRET[..SECRET.len() - 9], &[0x30, 0x80, 0, 0]] {
            assert_eq!(open(input, b"").err().as_deref(), Some("it is not a PKCS #12 archive in DER"));
        }
    }

    #[test]
    fn a_derivation_without_end_is_not_begun() {
        // 2048 rounds for the checksum, in the last value of the archive.
        let end = SECRET.len() - 4;
        assert_eq!(SECRET[end..], [2, 2, 8, 0]);
        let mut endless = SECRET.to_vec();
        endless.truncate(end);
        endless.extend([2, 4, 0x7f, 0xff, 0xff, 0xff]);
        let length = u16::from_be_bytes([endless[2], endless[3]]) + 2;
        endless[2..4].copy_from_slice(&length.to_be_bytes());
        let mac = endless.windows(2).rposition(|pair| pair == [0x30, 0x41]).expect("the checksum");
        endless[mac + 1] += 2;
        assert!(open(&endless, b"secret").is_err_and(|error| error.contains("iterations")));
    }

    #[test]
    fn archives_of_old_tools_are_named_as_unsupported() {
        let error = open(include_bytes!("testdata/archive-legacy.p12"), b"secret").err().unwrap_or_default();
        assert!(error.contains("not supported"), "{error}");
    }
}
