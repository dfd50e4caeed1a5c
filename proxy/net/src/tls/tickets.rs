//! Session tickets under keys given in the configuration.
//!
//! Keys have OpenSSL's layout of 80 bytes: name 16, HMAC key 32, AES key 32. The first key seals new tickets, all open
//! old ones. What a ticket holds is rustls' own, so that only instances of this proxy can resume it; it is sealed with
//! AES-256-GCM under a key made from all 64 secret bytes, and bound to the context that made it. Without given keys,
//! rustls' own ticket keys are used, which change every six hours.

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use rustls::server::ProducesTickets;
use sha2::{Digest as _, Sha256};

const NAME: usize = 16;
const NONCE: usize = 12;
const KEY: usize = 80;

struct Key {
    name: [u8; NAME],
    seal: RandomizedNonceKey,
}

/// Tickets under given keys.
pub(super) struct GivenKeys {
    keys: Vec<Key>,
    /// What a ticket is bound to: a ticket of another context does not open.
    context: [u8; 32],
    lifetime: u32,
}

impl std::fmt::Debug for GivenKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GivenKeys").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl GivenKeys {
    /// From the bytes of the keys, each with a label for errors.
    pub(super) fn new(keys: &[(Vec<u8>, String)], context: [u8; 32], lifetime: u32) -> Result<Self, String> {
        let keys = keys.iter().map(|(bytes, label)| {
            let problem = || {
                format!(
                    "Incorrect TLS session ticket key length in {label}. Length {}, expected length {KEY}.",
                    bytes.len()
                )
            };
            let (name, secret) = bytes.split_first_chunk::<NAME>().ok_or_else(problem)?;
            if bytes.len() != KEY {
                return Err(problem());
            }
            let key = Sha256::digest(secret);
            let seal = RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(|_| format!("unusable key in {label}"))?;
            Ok(Key { name: *name, seal })
        });
        Ok(Self { keys: keys.collect::<Result<_, _>>()?, context, lifetime })
    }

    fn aad(&self, key: &Key) -> Aad<Vec<u8>> {
        Aad::from([&self.context[..], &key.name].concat())
    }
}

impl ProducesTickets for GivenKeys {
    fn enabled(&self) -> bool {
        !self.keys.is_empty()
    }

    fn lifetime(&self) -> u32 {
        self.lifetime
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let key = self.keys.first()?;
        let mut sealed = plain.to_vec();
        let nonce = key.seal.seal_in_place_append_tag(self.aad(key), &mut sealed).ok()?;
        Some([&key.name[..], nonce.as_ref(), &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        let key = self.keys.iter().find(|key| key.name == *name)?;
        let mut buffer = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key.seal.open_in_place(nonce, self.aad(key), &mut buffer).ok()?.len();
        buffer.truncate(length);
        Some(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(fill: u8) -> (Vec<u8>, String) {
        (vec![fill; KEY], "<inline>".to_owned())
    }

    #[test]
    fn tickets_open_under_any_given_key_in_the_same_context() {
        let old = GivenKeys::new(&[key(1)], [0; 32], 60).expect("keys");
        let ticket = old.encrypt(b"state").expect("sealed");
        let new = GivenKeys::new(&[key(2), key(1)], [0; 32], 60).expect("keys");
        assert_eq!(new.decrypt(&ticket).as_deref(), Some(&b"state"[..]));
        let other = GivenKeys::new(&[key(1)], [1; 32], 60).expect("keys");
        assert_eq!(other.decrypt(&ticket), None);
        let fresh = new.encrypt(b"state").expect("sealed");
        assert_eq!(old.decrypt(&fresh), None);
        for length in 0..ticket.len() {
            assert_eq!(old.decrypt(&ticket[..length]), None);
        }
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        let error = GivenKeys::new(&[(vec![0; 79], "f".to_owned())], [0; 32], 60).expect_err("too short");
        assert_eq!(error, "Incorrect TLS session ticket key length in f. Length 79, expected length 80.");
    }
}
