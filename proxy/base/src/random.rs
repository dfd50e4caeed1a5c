//! Per-thread randomness for load balancing, jitter and request ids. Not for secrets.

use std::cell::RefCell;

use fastrand::Rng;

thread_local! {
    static RNG: RefCell<Rng> = RefCell::new(Rng::new());
}

/// Makes the calling thread's sequence repeatable; for tests.
pub fn seed(seed: u64) {
    RNG.with_borrow_mut(|rng| rng.seed(seed));
}

/// A random 64-bit number.
#[inline]
pub fn u64() -> u64 {
    RNG.with_borrow_mut(|rng| rng.u64(..))
}

/// A random number below `bound`; 0 if `bound` is 0.
#[inline]
pub fn below(bound: u64) -> u64 {
    if bound == 0 { 0 } else { RNG.with_borrow_mut(|rng| rng.u64(..bound)) }
}

/// A random (version 4) UUID in its 36-character form, for request ids.
pub fn uuid_v4() -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bytes = RNG.with_borrow_mut(|rng| rng.u128(..)).to_be_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut out = [b'-'; 36];
    let mut at = 0;
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            at += 1;
        }
        out[at] = HEX[usize::from(byte >> 4)];
        out[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_sequence_repeatable() {
        seed(7);
        let first = (u64(), below(10), uuid_v4());
        seed(7);
        assert_eq!((u64(), below(10), uuid_v4()), first);
        assert!(first.1 < 10);
        assert_eq!(below(0), 0);
    }

    #[test]
    fn uuids_have_version_and_variant() {
        for _ in 0..100 {
            let text = uuid_v4();
            assert_eq!([text[8], text[13], text[18], text[23]], [b'-'; 4]);
            assert_eq!(text[14], b'4');
            assert!(b"89ab".contains(&text[19]));
            assert_eq!(text.iter().filter(|byte| byte.is_ascii_hexdigit()).count(), 32);
        }
    }
}
