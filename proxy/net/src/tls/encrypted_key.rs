//! Private keys under a password: PKCS #8 with [`pbes2`](super::pbes2), which is what `openssl pkcs8 -topk8` writes.
//!
//! OpenSSL's older form (`Proc-Type: 4,ENCRYPTED`) is refused.

use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::der::{Der, OCTET_STRING, SEQUENCE};
use super::pbes2::{decrypt, unsupported};
use super::sources::base64;

const BEGIN: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
const END: &str = "-----END ENCRYPTED PRIVATE KEY-----";

/// Whether a PEM text has a key under a password.
pub(super) fn is_encrypted(pem: &[u8]) -> bool {
    memchr::memmem::find(pem, BEGIN.as_bytes()).is_some() || memchr::memmem::find(pem, b"4,ENCRYPTED").is_some()
}

/// Opens the key of a PEM text.
pub(super) fn open(pem: &[u8], password: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let text = std::str::from_utf8(pem).map_err(|_| "not a PEM text".to_owned())?;
    let body = text.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).ok_or_else(unsupported)?.0;
    let body: String = body.split_ascii_whitespace().collect();
    let der = base64(&body).ok_or("bad base64")?;
    let (algorithm, content) = encrypted_info(Der::new(&der)).ok_or_else(unsupported)?;
    Ok(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(decrypt(algorithm, content, password)?)))
}

/// Algorithm and content of an EncryptedPrivateKeyInfo (RFC 5208 6).
pub(super) fn encrypted_info(mut info: Der<'_>) -> Option<(&[u8], &[u8])> {
    let mut info = info.enter(SEQUENCE)?;
    Some((info.expect(SEQUENCE)?, info.expect(OCTET_STRING)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_with_its_password_only() {
        for pem in [include_str!("testdata/x509-v1-encrypted.key"), include_str!("testdata/encrypted-sha1.key")] {
            assert!(is_encrypted(pem.as_bytes()));
            open(pem.as_bytes(), b"secret").expect("opens");
            assert_eq!(open(pem.as_bytes(), b"wrong").err().as_deref(), Some("the password does not open it"));
        }
    }

    #[test]
    fn other_schemes_are_named_as_unsupported() {
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: DES-EDE3-CBC,0\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        assert!(is_encrypted(old.as_bytes()));
        assert!(open(old.as_bytes(), b"x").is_err_and(|error| error.contains("not supported")));
    }
}
