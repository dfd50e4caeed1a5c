//! JA3 and JA4: what a ClientHello says about the software that sent it.
//!
//! JA3 is the MD5 of versions and lists in the client's order, JA4 a readable part and two SHA-256 of sorted lists. Both
//! leave out the values that clients make up to keep servers tolerant (GREASE, RFC 8701).

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};

/// The parts of a ClientHello that fingerprints are made of.
#[derive(Default)]
pub(super) struct Parts<'a> {
    /// `legacy_version`.
    pub(super) version: u16,
    /// Cipher suites as they came.
    pub(super) ciphers: &'a [u8],
    /// Extensions in their order.
    pub(super) extensions: Vec<(u16, &'a [u8])>,
}

const SERVER_NAME: u16 = 0;
const SUPPORTED_GROUPS: u16 = 10;
const POINT_FORMATS: u16 = 11;
const SIGNATURE_ALGORITHMS: u16 = 13;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;

fn is_grease(value: u16) -> bool {
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}

/// Numbers of two bytes; an odd last byte is left out.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}

/// What follows a length of `size` bytes.
fn list(content: &[u8], size: usize) -> &[u8] {
    content.get(size..).unwrap_or_default()
}

impl Parts<'_> {
    fn extension(&self, kind: u16) -> Option<&[u8]> {
        self.extensions.iter().find(|(found, _)| *found == kind).map(|(_, content)| *content)
    }

    /// Hexadecimal MD5 of `version,ciphers,extensions,groups,point formats`, numbers decimal and joined by `-`.
    pub(super) fn ja3(&self) -> Box<str> {
        let kinds = self.extensions.iter().map(|(kind, _)| *kind);
        let groups = list(self.extension(SUPPORTED_GROUPS).unwrap_or_default(), 2);
        let formats = list(self.extension(POINT_FORMATS).unwrap_or_default(), 1);
        let mut text = self.version.to_string();
        for values in [
            numbers(self.ciphers).collect::<Vec<_>>(),
            kinds.collect(),
            numbers(groups).collect(),
            formats.iter().map(|format| u16::from(*format)).collect(),
        ] {
            text.push(',');
            let mut first = true;
            for value in values.into_iter().filter(|value| !is_grease(*value)) {
                let separator = if std::mem::take(&mut first) { "" } else { "-" };
                // Writing to a string cannot fail.
                let _ = write!(text, "{separator}{value}");
            }
        }
        hex(&md5(text.as_bytes()))
    }

    /// `t13d1516h2_<ciphers>_<extensions and signature algorithms>`.
    pub(super) fn ja4(&self) -> Box<str> {
        let mut ciphers: Vec<u16> = numbers(self.ciphers).filter(|value| !is_grease(*value)).collect();
        let mut kinds: Vec<u16> =
            self.extensions.iter().map(|(kind, _)| *kind).filter(|value| !is_grease(*value)).collect();
        let counts = (ciphers.len().min(99), kinds.len().min(99));
        ciphers.sort_unstable();
        kinds.retain(|kind| !matches!(*kind, SERVER_NAME | ALPN));
        kinds.sort_unstable();
        let name = if self.extension(SERVER_NAME).is_some() { 'd' } else { 'i' };
        let mut extensions = hex_list(&kinds);
        let signatures: Vec<u16> = numbers(list(self.extension(SIGNATURE_ALGORITHMS).unwrap_or_default(), 2)).collect();
        if !signatures.is_empty() {
            extensions.push('_');
            extensions.push_str(&hex_list(&signatures));
        }
        format!(
            "t{}{name}{:02}{:02}{}_{}_{}",
            self.highest_version(),
            counts.0,
            counts.1,
            self.first_protocol(),
            short_hash(&ciphers, &hex_list(&ciphers)),
            short_hash(&kinds, &extensions)
        )
        .into()
    }

    fn highest_version(&self) -> &'static str {
        let offered = self.extension(SUPPORTED_VERSIONS).map(|content| list(content, 1)).unwrap_or_default();
        match numbers(offered).filter(|version| !is_grease(*version)).max().unwrap_or(self.version) {
            0x0304 => "13",
            0x0303 => "12",
            0x0302 => "11",
            0x0301 => "10",
            _ => "00",
        }
    }

    /// First and last character of the first ALPN name, or half a byte of each where they are not letters or digits.
    fn first_protocol(&self) -> String {
        let names = list(self.extension(ALPN).unwrap_or_default(), 2);
        let name = names.split_first().and_then(|(length, rest)| rest.get(..usize::from(*length)));
        let (Some(first), Some(last)) = (name.and_then(<[u8]>::first), name.and_then(<[u8]>::last)) else {
            return "00".into();
        };
        match first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
            true => format!("{}{}", char::from(*first), char::from(*last)),
            false => format!("{:x}{:x}", first >> 4, last & 15),
        }
    }
}

fn hex(bytes: &[u8]) -> Box<str> {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text.into()
}

fn hex_list(values: &[u16]) -> String {
    values.iter().map(|value| format!("{value:04x}")).collect::<Vec<_>>().join(",")
}

/// Twelve digits of the text's SHA-256; zeros where there are no values.
fn short_hash(values: &[u16], text: &str) -> Box<str> {
    if values.is_empty() {
        return "000000000000".into();
    }
    hex(&digest(&SHA256, text.as_bytes()).as_ref()[..6])
}

/// RFC 1321. Nothing here relies on its strength: it is the name of a fingerprint.
fn md5(input: &[u8]) -> [u8; 16] {
    const SHIFTS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];
    // 3.4: the integer part of 2^32 times the absolute sine of 1, 2, ... in radians.
    let sines: [u32; 64] = std::array::from_fn(|i| ((i as f64 + 1.0).sin().abs() * 4_294_967_296.0) as u32);
    let mut padded = input.to_vec();
    padded.push(0x80);
    padded.resize((padded.len() + 8).next_multiple_of(64), 0);
    let end = padded.len() - 8;
    padded[end..].copy_from_slice(&(8 * input.len() as u64).to_le_bytes());
    let mut state: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    for block in padded.chunks_exact(64) {
        let words: [u32; 16] = std::array::from_fn(|i| {
            u32::from_le_bytes([block[4 * i], block[4 * i + 1], block[4 * i + 2], block[4 * i + 3]])
        });
        let [mut a, mut b, mut c, mut d] = state;
        for i in 0..64 {
            let (mixed, word) = match i / 16 {
                0 => ((b & c) | (!b & d), i),
                1 => ((d & b) | (!d & c), (5 * i + 1) % 16),
                2 => (b ^ c ^ d, (3 * i + 5) % 16),
                _ => (c ^ (b | !d), (7 * i) % 16),
            };
            let sum = a.wrapping_add(mixed).wrapping_add(sines[i]).wrapping_add(words[word]);
            (a, d, c, b) = (d, c, b, b.wrapping_add(sum.rotate_left(SHIFTS[i / 16][i % 4])));
        }
        for (total, value) in state.iter_mut().zip([a, b, c, d]) {
            *total = total.wrapping_add(value);
        }
    }
    let mut out = [0; 16];
    for (place, value) in out.chunks_exact_mut(4).zip(state) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn md5_is_that_of_the_rfc() {
        for (text, sum) in [
            ("", "d41d8cd98f00b204e9800998ecf8427e"),
            ("abc", "900150983cd24fb0d6963f7d28e17f72"),
            ("message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
            ("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", "d174ab98d277d9f5a5611c2c9f419d9f"),
            (
                "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
                "57edf4a22be3c955ac49da2e2107b67a",
            ),
        ] {
            assert_eq!(&*hex(&md5(text.as_bytes())), sum, "{text}");
        }
        // Lengths around the place of the length field.
        assert_eq!(&*hex(&md5(&[b'a'; 55])), "ef1772b6dff9a122358552954ad0df65");
        assert_eq!(&*hex(&md5(&[b'a'; 56])), "3b0c8ac703f828b04c6c197006d17218");
        assert_eq!(&*hex(&md5(&[b'a'; 64])), "014842d480b571495a4a0363793f7367");
    }

    #[test]
    fn grease_is_left_out_and_lists_are_counted() {
        let ciphers = [0x1a, 0x1a, 0x13, 0x02, 0x13, 0x01];
        let parts = Parts {
            version: 0x0303,
            ciphers: &ciphers,
            extensions: vec![
                (0x2a2a, &[][..]),
                (SERVER_NAME, &[0, 0][..]),
                (ALPN, &[0, 3, 2, b'h', b'2'][..]),
                (SUPPORTED_GROUPS, &[0, 4, 0x3a, 0x3a, 0, 29][..]),
                (SUPPORTED_VERSIONS, &[4, 0x0a, 0x0a, 3, 4][..]),
            ],
        };
        assert_eq!(parts.ja3(), hex(&md5(b"771,4866-4865,0-16-10-43,29,")));
        assert!(parts.ja4().starts_with("t13d0204h2_"), "{}", parts.ja4());
        let empty = Parts { version: 0x0301, ..Parts::default() };
        assert_eq!(&*empty.ja4(), "t10i000000_000000000000_000000000000");
        assert_eq!(empty.ja3(), hex(&md5(b"769,,,,")));
    }
}
