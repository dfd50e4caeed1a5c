//! Opens what is encrypted under a password: PBES2 (RFC 8018) with PBKDF2, HMAC-SHA-1 or SHA-2, and AES-CBC.
//!
//! Private keys ([`encrypted_key`](super::encrypted_key)) and archives ([`pkcs12`](super::pkcs12)) are. The ciphers are those
//! of aws-lc; older schemes (DES, RC2) are refused.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{AES_128, AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::pbkdf2;

use super::der::{Der, INTEGER, OCTET_STRING, OID, SEQUENCE};

const PBES2: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0d";
const PBKDF2: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0c";
const HMAC_SHA1: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x02\x07";
const HMAC_SHA256: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x02\x09";
const HMAC_SHA384: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x02\x0a";
const HMAC_SHA512: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x02\x0b";
const AES_128_CBC: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x01\x02";
const AES_256_CBC: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x01\x2a";

/// Rounds of a key's derivation, at most: some seconds. A file that asks for more would stop the control thread.
pub(super) const MAX_ITERATIONS: u32 = 10_000_000;

/// That it is not PBES2, or not with these parts.
pub(super) fn unsupported() -> String {
    "this kind of encryption is not supported (PKCS #8 with PBES2, PBKDF2 and AES-CBC is: `openssl pkcs8 -topk8`)"
        .to_owned()
}

/// That it asks for more rounds than [`MAX_ITERATIONS`].
pub(super) fn too_many_iterations() -> String {
    format!("its key takes more than {MAX_ITERATIONS} iterations")
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
    if sealed.iterations.get() > MAX_ITERATIONS {
        return Err(too_many_iterations());
    }
    let mut key = [0; 32];
    pbkdf2::derive(prf, sealed.iterations, sealed.salt, password, &mut key[..length]);
    let wrong = |_| "the password does not open it".to_owned();
    let key = UnboundCipherKey::new(cipher, &key[..length]).and_then(PaddedBlockDecryptingKey::cbc_pkcs7);
    let mut content = content.to_vec();
    let context = DecryptionContext::Iv128(FixedLength::from(sealed.iv));
    let plain = key.and_then(|key| key.decrypt(&mut content, context).map(|plain| plain.to_vec())).map_err(wrong)?;
    // A wrong password can leave valid padding; the content is then no sequence.
    if !Der::new(&plain).is_next(SEQUENCE) {
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
    let mut algorithm = Der::new(algorithm);
    if algorithm.expect(OID)? != PBES2 {
        return None;
    }
    let mut parameters = algorithm.enter(SEQUENCE)?;
    let (mut derivation, mut encryption) = (parameters.enter(SEQUENCE)?, parameters.enter(SEQUENCE)?);
    if derivation.expect(OID)? != PBKDF2 {
        return None;
    }
    let mut derivation = derivation.enter(SEQUENCE)?;
    let salt = derivation.expect(OCTET_STRING)?;
    let iterations = derivation.number()?;
    if derivation.is_next(INTEGER) {
        derivation.expect(INTEGER)?;
    }
    let prf = if derivation.is_at_end() { HMAC_SHA1 } else { derivation.enter(SEQUENCE)?.expect(OID)? };
    let cipher = encryption.expect(OID)?;
    let iv = encryption.expect(OCTET_STRING)?.try_into().ok()?;
    Some(Sealed { prf, salt, iterations: NonZeroU32::new(iterations)?, cipher, iv })
}
