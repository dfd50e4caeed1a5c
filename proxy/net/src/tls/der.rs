//! Reads DER, value by value: what private keys and archives under a password are written in. The bytes are read by asn1-rs.

use x509_parser::asn1_rs::{Any, FromDer as _};

/// First byte of a value: class, form and number of its tag.
pub(super) type Tag = u8;

pub(super) const INTEGER: Tag = 0x02;
pub(super) const OCTET_STRING: Tag = 0x04;
pub(super) const OID: Tag = 0x06;
pub(super) const SEQUENCE: Tag = 0x30;
/// `[0]`, primitive and constructed.
pub(super) const IMPLICIT_0: Tag = 0x80;
pub(super) const EXPLICIT_0: Tag = 0xa0;

/// The values that are still to be read.
pub(super) struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether all have been read.
    pub(super) fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the next value has this tag.
    pub(super) fn is_next(&self, tag: Tag) -> bool {
        self.0.first() == Some(&tag)
    }

    /// The contents of the next value, which must have this tag.
    pub(super) fn expect(&mut self, tag: Tag) -> Option<&'a [u8]> {
        if !self.is_next(tag) {
            return None;
        }
        let (rest, value) = Any::from_der(self.0).ok()?;
        self.0 = rest;
        Some(value.data)
    }

    /// The values inside the next one, which must have this tag.
    pub(super) fn enter(&mut self, tag: Tag) -> Option<Der<'a>> {
        self.expect(tag).map(Der)
    }

    /// The next value, a number that is not below zero.
    pub(super) fn number(&mut self) -> Option<u32> {
        let bytes = self.expect(INTEGER)?;
        bytes.iter().try_fold(0u32, |sum, byte| sum.checked_mul(256)?.checked_add((*byte).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_in_their_order_and_nothing_beyond_the_end() {
        let mut outer = Der::new(&[0x30, 5, 2, 1, 7, 4, 0]);
        let mut inner = outer.enter(SEQUENCE).expect("a sequence");
        assert!(outer.is_at_end() && inner.is_next(INTEGER) && inner.expect(OID).is_none());
        assert_eq!((inner.number(), inner.expect(OCTET_STRING)), (Some(7), Some(&[][..])));
        assert!(inner.is_at_end() && inner.expect(INTEGER).is_none());
        for bad in [&[0x30][..], &[0x30, 2, 1], &[0x30, 0x80, 0, 0], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]] {
            assert!(Der::new(bad).enter(SEQUENCE).is_none(), "{bad:02x?}");
        }
        assert_eq!(Der::new(&[2, 5, 1, 0, 0, 0, 0]).number(), None);
    }
}
