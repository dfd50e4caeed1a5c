//! Per-thread randomness for load balancing, jitter and request ids. Not for secrets.

use std::cell::RefCell;
use std::time::Duration;

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

/// `length` made longer by up to `most` of itself; `random` says by how much.
pub fn jittered(length: Duration, most: f64, random: u64) -> Duration {
    if most <= 0.0 {
        return length;
    }
    // The upper half of a mixed number is even where the numbers follow each other.
    let share = (random.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as f64 / f64::from(u32::MAX);
    Duration::try_from_secs_f64(length.as_secs_f64() * (1.0 + most * share)).unwrap_or(length)
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
    fn jitter_makes_longer_by_a_share_at_most() {
        let (length, most) = (Duration::from_secs(10), Duration::from_secs(15));
        assert_eq!(jittered(length, 0.0, 77), length);
        let all: Vec<_> = (0..1000).map(|random| jittered(length, 0.5, random)).collect();
        assert!(all.iter().all(|one| (length..=most).contains(one)));
        let mean: f64 = all.iter().map(Duration::as_secs_f64).sum::<f64>() / 1000.0;
        assert!((12.0..13.0).contains(&mean), "{mean}");
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
