//! Private keys under a password: PKCS #8 with PBES2 (RFC 8018), which is what `openssl pkcs8 -topk8` writes.
//!
//! PBKDF2 with HMAC-SHA-1 or SHA-2, AES-CBC. Older schemes (DES, RC2, OpenSSL's `Proc-Type: 4,ENCRYPTED`) are refused.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{AES_128, AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::pbkdf2;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::sources::base64;

const BEGIN: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
const END: &str = "-----END ENCRYPTED PRIVATE KEY-----";

const PBES2: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0d";
const PBKDF2: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0c";
const HMAC_SHA1: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x02\x07";
const HMAC_SHA256: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x02\x09";
const HMAC_SHA384: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x02\x0a";
const HMAC_SHA512: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x02\x0b";
const AES_128_CBC: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x01\x02";
const AES_256_CBC: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x01\x2a";

pub(super) const INTEGER: u8 = 2;
pub(super) const OCTET_STRING: u8 = 4;
pub(super) const OID: u8 = 6;
pub(super) const SEQUENCE: u8 = 0x30;

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
    // RFC 5208 6.
    let info = |der: &'_ [u8]| {
        let mut info = Der(Der(der).expect(SEQUENCE)?);
        Some((info.expect(SEQUENCE)?.to_vec(), info.expect(OCTET_STRING)?.to_vec()))
    };
    let (algorithm, content) = info(&der).ok_or_else(unsupported)?;
    let plain = decrypt(&algorithm, &content, password)?;
    Ok(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(plain)))
}

fn unsupported() -> String {
    "this kind of encryption is not supported (PKCS #8 with PBES2, PBKDF2 and AES-CBC is: `openssl pkcs8 -topk8`)"
        .to_owned()
}

/// Opens what is encrypted with the algorithm of this AlgorithmIdentifier; the content is a SEQUENCE.
pub(super) fn decrypt(algorithm: &[u8], content: &[u8], password: &[u8]) -> Result<Vec<u8>, String> {
    let sealed = parse(algorithm).ok_or_else(unsupported)?;
    let (cipher, length) = match sealed.cipher {
        AES_128_CBC => (&AES_128, 16),
        AES_256_CBC => (&AES_256, 32),
        _ => return Err(unsupported()),
    };
    let prf = match sealed.prf {
        HMAC_SHA1 => pbkdf2::PBKDF2_HMAC_SHA1,
        HMAC_SHA256 => pbkdf2::PBKDF2_HMAC_SHA256,
        HMAC_SHA384 => pbkdf2::PBKDF2_HMAC_SHA384,
        HMAC_SHA512 => pbkdf2::PBKDF2_HMAC_SHA512,
        _ => return Err(unsupported()),
    };
    let mut key = [0; 32];
    pbkdf2::derive(prf, sealed.iterations, sealed.salt, password, &mut key[..length]);
    let wrong = |_| "the password does not open it".to_owned();
    let key = UnboundCipherKey::new(cipher, &key[..length]).and_then(PaddedBlockDecryptingKey::cbc_pkcs7);
    let mut content = content.to_vec();
    let context = DecryptionContext::Iv128(FixedLength::from(sealed.iv));
    let plain = key.and_then(|key| key.decrypt(&mut content, context).map(|plain| plain.to_vec())).map_err(wrong)?;
    // A wrong password can leave valid padding; the content is then no key.
    if plain.first() != Some(&SEQUENCE) {
        return Err("the password does not open it".to_owned());
    }
    Ok(plain)
}

struct Sealed<'a> {
    prf: &'a [u8],
    salt: &'a [u8],
    iterations: NonZeroU32,
    cipher: &'a [u8],
    iv: [u8; 16],
}

/// RFC 8018 A.
fn parse(algorithm: &[u8]) -> Option<Sealed<'_>> {
    let mut algorithm = Der(algorithm);
    if algorithm.expect(OID)? != PBES2 {
        return None;
    }
    let mut parameters = Der(algorithm.expect(SEQUENCE)?);
    let mut derivation = Der(parameters.expect(SEQUENCE)?);
    let mut encryption = Der(parameters.expect(SEQUENCE)?);
    if derivation.expect(OID)? != PBKDF2 {
        return None;
    }
    let mut derivation = Der(derivation.expect(SEQUENCE)?);
    let salt = derivation.expect(OCTET_STRING)?;
    let iterations = derivation.number()?;
    if derivation.0.first() == Some(&INTEGER) {
        derivation.expect(INTEGER)?;
    }
    let prf = if derivation.0.is_empty() { HMAC_SHA1 } else { Der(derivation.expect(SEQUENCE)?).expect(OID)? };
    let cipher = encryption.expect(OID)?;
    let iv = encryption.expect(OCTET_STRING)?.try_into().ok()?;
    Some(Sealed { prf, salt, iterations: NonZeroU32::new(iterations)?, cipher, iv })
}

/// A cursor over DER values.
pub(super) struct Der<'a>(pub(super) &'a [u8]);

impl<'a> Der<'a> {
    /// The next value, a number that is not below zero.
    pub(super) fn number(&mut self) -> Option<u32> {
        let bytes = self.expect(INTEGER)?;
        bytes.iter().try_fold(0u32, |sum, byte| sum.checked_mul(256)?.checked_add((*byte).into()))
    }

    /// The contents of the next value, which must have this tag.
    pub(super) fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_first_chunk::<2>()?;
        if head[0] != tag {
            return None;
        }
        let (length, rest) = match head[1] {
            short @ 0..=0x7f => (usize::from(short), rest),
            0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
            0x82 => {
                let (length, rest) = rest.split_first_chunk::<2>()?;
                (usize::from(u16::from_be_bytes(*length)), rest)
            }
            0x83 => {
                let (length, rest) = rest.split_first_chunk::<3>()?;
                (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(value)
    }
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
