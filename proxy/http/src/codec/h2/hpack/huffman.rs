//! The Huffman code of RFC 7541 Appendix B.
//!
//! The code is canonical: codes of one length follow each other in the order of their symbols. So the lengths are all
//! that is written here, and the tables are made of them at compile time. Decoding looks ten bits up at a time, which
//! covers every printable character that is common; longer codes are found by their length.

/// Code lengths in bits by symbol; the last is EOS.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, //
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, //
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, //
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, //
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, //
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, //
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, //
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, //
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, //
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, //
    30,
];

const EOS: u16 = 256;
const SHORTEST: usize = 5;
const LONGEST: usize = 30;
/// Bits that one look-up decodes.
const FAST_BITS: u32 = 10;

/// The tables for one length of codes.
#[derive(Clone, Copy)]
struct Length {
    /// The first code, at the top of 32 bits.
    first: u32,
    /// What the codes of this length and of shorter ones are below, at the top of 32 bits.
    end: u64,
    /// Where its symbols begin in [`SORTED`].
    offset: u16,
}

struct Tables {
    codes: [u32; 257],
    sorted: [u16; 257],
    lengths: [Length; LONGEST + 1],
}

const TABLES: Tables = {
    let mut codes = [0; 257];
    let mut sorted = [0; 257];
    let mut lengths = [Length { first: 0, end: 0, offset: 0 }; LONGEST + 1];
    let mut code: u64 = 0;
    let mut at = 0;
    let mut length = SHORTEST;
    while length <= LONGEST {
        lengths[length].first = (code << (32 - length)) as u32;
        lengths[length].offset = at as u16;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                codes[symbol] = code as u32;
                sorted[at] = symbol as u16;
                at += 1;
                code += 1;
            }
            symbol += 1;
        }
        lengths[length].end = code << (32 - length);
        code <<= 1;
        length += 1;
    }
    Tables { codes, sorted, lengths }
};

static CODES: [u32; 257] = TABLES.codes;
static SORTED: [u16; 257] = TABLES.sorted;
static BY_LENGTH: [Length; LONGEST + 1] = TABLES.lengths;

/// The symbol (low byte) and the length (high byte) of what begins with an index' bits; 0 for longer codes.
static FAST: [u16; 1 << FAST_BITS] = {
    let mut fast = [0; 1 << FAST_BITS];
    let mut symbol = 0;
    while symbol < 256 {
        let length = LENGTHS[symbol] as u32;
        if length <= FAST_BITS {
            let first = (TABLES.codes[symbol] << (FAST_BITS - length)) as usize;
            let mut i = 0;
            while i < 1 << (FAST_BITS - length) {
                fast[first + i] = ((length as u16) << 8) | symbol as u16;
                i += 1;
            }
        }
        symbol += 1;
    }
    fast
};

/// What is not a Huffman string: EOS, or padding that is longer than seven bits or not of ones (RFC 7541 5.2).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The most bytes that `len` encoded bytes hold.
pub(super) const fn max_decoded_len(len: usize) -> usize {
    len * 8 / SHORTEST
}

/// Decodes `src` to the beginning of `out`, which has room for [`max_decoded_len`]; the number of bytes.
pub(super) fn decode(src: &[u8], out: &mut [u8]) -> Result<usize, Malformed> {
    let mut src = src;
    // The next bits stand at the top; `bits` of them count.
    let (mut acc, mut bits) = (0_u64, 0_u32);
    let mut n = 0;
    loop {
        if let Some(next) = src.first_chunk::<8>() {
            acc |= u64::from_be_bytes(*next) >> bits;
            let taken = (63 - bits) / 8;
            src = &src[taken as usize..];
            bits += taken * 8;
        } else {
            while bits <= 56 {
                let Some((&b, rest)) = src.split_first() else { break };
                acc |= u64::from(b) << (56 - bits);
                bits += 8;
                src = rest;
            }
        }
        let refill = if src.is_empty() { 1 } else { LONGEST as u32 };
        while bits >= refill {
            let fast = FAST[(acc >> (64 - FAST_BITS)) as usize];
            let (symbol, length) = match fast {
                0 => long(acc),
                _ => (fast & 0xff, u32::from(fast >> 8)),
            };
            if length > bits {
                return end(acc, bits, n);
            }
            if symbol == EOS {
                return Err(Malformed);
            }
            *out.get_mut(n).ok_or(Malformed)? = symbol as u8;
            n += 1;
            acc <<= length;
            bits -= length;
        }
        if bits == 0 && src.is_empty() {
            return Ok(n);
        }
    }
}

/// The symbol and length of a code that is longer than a look-up.
#[cold]
fn long(acc: u64) -> (u16, u32) {
    let top = (acc >> 32) as u32;
    let mut length = FAST_BITS as usize + 1;
    while length < LONGEST && u64::from(top) >= BY_LENGTH[length].end {
        length += 1;
    }
    let Length { first, offset, .. } = BY_LENGTH[length];
    let at = usize::from(offset) + ((top - first) >> (32 - length)) as usize;
    (SORTED[at], length as u32)
}

fn end(acc: u64, bits: u32, n: usize) -> Result<usize, Malformed> {
    if bits <= 7 && acc >> (64 - bits) == (1 << bits) - 1 { Ok(n) } else { Err(Malformed) }
}

/// The length of `src` when it is encoded.
#[inline]
pub(super) fn encoded_len(src: &[u8]) -> usize {
    let bits: usize = src.iter().map(|&b| usize::from(LENGTHS[usize::from(b)])).sum();
    bits.div_ceil(8)
}

/// Encodes `src` to the end of `out`.
pub(super) fn encode(src: &[u8], out: &mut Vec<u8>) {
    // The bits that are not written yet stand at the bottom.
    let (mut acc, mut bits) = (0_u64, 0_u32);
    for &b in src {
        let length = u32::from(LENGTHS[usize::from(b)]);
        acc = (acc << length) | u64::from(CODES[usize::from(b)]);
        bits += length;
        if bits >= 32 {
            bits -= 32;
            out.extend_from_slice(&((acc >> bits) as u32).to_be_bytes());
        }
    }
    let padding = (8 - bits % 8) % 8;
    acc = (acc << padding) | ((1 << padding) - 1);
    let bytes = ((bits + padding) / 8) as usize;
    out.extend_from_slice(&(acc as u32).to_be_bytes()[4 - bytes..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(src: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = vec![0; max_decoded_len(src.len())];
        let n = decode(src, &mut out)?;
        out.truncate(n);
        Ok(out)
    }

    #[test]
    fn codes_are_those_of_the_rfc() {
        for (symbol, code) in [
            (0, 0x1ff8),
            (10, 0x3fff_fffc),
            (usize::from(b' '), 0x14),
            (usize::from(b'0'), 0),
            (usize::from(b'A'), 0x21),
            (usize::from(b'`'), 0x7ffd),
            (usize::from(b'z'), 0x7b),
            (127, 0x0fff_fffc),
            (200, 0x03ff_ffe2),
            (255, 0x03ff_ffee),
            (256, 0x3fff_ffff),
        ] {
            assert_eq!(CODES[symbol], code, "{symbol}");
        }
    }

    #[test]
    fn every_pair_of_bytes_survives() {
        for a in 0..=255 {
            for b in 0..=255 {
                let mut out = Vec::new();
                encode(&[a, b], &mut out);
                assert_eq!(out.len(), encoded_len(&[a, b]));
                assert_eq!(decoded(&out), Ok(vec![a, b]), "{a} {b}");
            }
        }
    }

    #[test]
    fn strings_of_every_length_survive() {
        for n in 0..200_usize {
            let text: Vec<u8> = (0..n).map(|i| (i * 37 + n) as u8).collect();
            let mut out = Vec::new();
            encode(&text, &mut out);
            assert_eq!(decoded(&out).as_deref(), Ok(&text[..]));
        }
    }

    #[test]
    fn padding_is_of_ones_and_shorter_than_a_byte() {
        // "a" is 00011.
        assert_eq!(decoded(&[0b0001_1111]), Ok(b"a".to_vec()));
        assert_eq!(decoded(&[0b0001_1110]), Err(Malformed));
        assert_eq!(decoded(&[0b0001_1111, 0xff]), Err(Malformed));
        assert_eq!(decoded(&[0xff]), Err(Malformed));
        assert_eq!(decoded(&[]), Ok(Vec::new()));
    }

    #[test]
    fn the_end_symbol_is_refused() {
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(Malformed));
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xfc, 0x1f]), Err(Malformed));
    }
}
