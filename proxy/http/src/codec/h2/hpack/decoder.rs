//! Reads header blocks.
//!
//! Names that the proxy knows become interned ones, fields of the tables are shared with the table, and all literals of
//! one block are copied into one allocation of their own: the read buffer is never held.

use std::ops::ControlFlow;

use bytes::{Bytes, BytesMut};

use super::table::{DEFAULT_SIZE, Entry, Table};
use super::{Fault, Field, HpackError, huffman, static_table};
use crate::headers::{HeaderName, HeaderValue};

/// The longest literal in its encoded form; nghttp2's bound.
const MAX_LITERAL: usize = 65_536;

/// Reads the header blocks of one connection, in their order.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    limit: usize,
    /// The longest literal in its encoded form.
    max_literal: usize,
    /// The limit fell below the table's size: the next block says so first.
    update_due: bool,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new(DEFAULT_SIZE)
    }
}

impl Decoder {
    /// A decoder with an empty table of this size. Without SETTINGS it is 4096 bytes.
    pub fn new(max_table_size: usize) -> Decoder {
        Decoder {
            table: Table::new(max_table_size),
            limit: max_table_size,
            max_literal: MAX_LITERAL,
            update_due: false,
        }
    }

    /// Takes what our SETTINGS_HEADER_TABLE_SIZE allows, from the moment that the peer acknowledged it.
    pub fn set_max_table_size(&mut self, size: usize) {
        self.limit = size;
        self.update_due = size < self.table.max();
    }

    /// Takes longer literals than 64 KiB.
    pub fn set_max_literal(&mut self, size: usize) {
        self.max_literal = size;
    }

    /// Reads a whole block and hands each field with its size, which is the length of the name and the value.
    ///
    /// When `sink` breaks, the rest is read without it, so that the table is right for the next block. After an error
    /// the decoder is of no more use.
    pub fn decode(
        &mut self,
        block: &[u8],
        mut sink: impl FnMut(Field<'_>, usize) -> ControlFlow<()>,
    ) -> Result<(), HpackError> {
        let mut block = self.size_updates(block)?;
        // Made for the first literal; literals of the rest of the block always fit.
        let mut arena = BytesMut::new();
        let mut wanted = true;
        while let Some(&first) = block.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                if wanted {
                    wanted = self.indexed(index, &mut sink)?.is_continue();
                } else {
                    self.name(index)?;
                }
                continue;
            }
            if first & 0xe0 == 0x20 {
                return Err(HpackError::MisplacedTableSizeUpdate);
            }
            let indexing = first & 0x40 != 0;
            let index = integer(&mut block, if indexing { 6 } else { 4 })?;
            if arena.capacity() == 0 {
                arena.reserve(huffman::max_decoded_len(block.len()));
            }
            let literal = self.literal(index, &mut block, &mut arena)?;
            if !indexing {
                if wanted {
                    wanted = literal.hand_over(&mut arena, &mut sink).is_continue();
                }
                arena.clear();
                continue;
            }
            let entry = match literal.name {
                Some(name) => Entry::owned(&name, &arena, literal.fault),
                None => Entry::of_unknown(&arena, literal.name_len, literal.fault),
            };
            arena.clear();
            if wanted {
                wanted = hand_over(&entry, &mut sink).is_continue();
            }
            self.table.insert(entry);
        }
        Ok(())
    }

    /// Takes the size updates at a block's beginning; what follows them.
    fn size_updates<'b>(&mut self, mut block: &'b [u8]) -> Result<&'b [u8], HpackError> {
        while block.first().is_some_and(|b| b & 0xe0 == 0x20) {
            let size = integer(&mut block, 5)?;
            if size > self.limit {
                return Err(HpackError::TableSizeTooLarge);
            }
            self.table.set_max(size);
            self.update_due = false;
        }
        if self.update_due && !block.is_empty() {
            return Err(HpackError::MissingTableSizeUpdate);
        }
        Ok(block)
    }

    #[inline]
    fn indexed(
        &self,
        index: usize,
        sink: &mut impl FnMut(Field<'_>, usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, HpackError> {
        if let Some((name, value)) = index.checked_sub(1).and_then(|i| static_table::ENTRIES.get(i)) {
            let size = name.as_bytes().len() + value.as_bytes().len();
            return Ok(sink(Field::Valid(name.clone(), value.clone()), size));
        }
        Ok(hand_over(self.entry(index)?, sink))
    }

    /// The dynamic table's entry of an index beyond the static table's.
    fn entry(&self, index: usize) -> Result<&Entry, HpackError> {
        let age = index.checked_sub(static_table::LEN + 1).ok_or(HpackError::InvalidIndex)?;
        self.table.get(age).ok_or(HpackError::InvalidIndex)
    }

    /// The name of an index, and whether it is malformed.
    fn name(&self, index: usize) -> Result<(&HeaderName, Option<Fault>), HpackError> {
        match index.checked_sub(1).and_then(|i| static_table::ENTRIES.get(i)) {
            Some((name, _)) => Ok((name, None)),
            None => {
                let entry = self.entry(index)?;
                Ok((&entry.name, entry.fault.filter(|f| *f == Fault::Name)))
            }
        }
    }

    /// Reads a literal field; what is not in the name is in `arena`.
    #[inline]
    fn literal(&self, index: usize, block: &mut &[u8], arena: &mut BytesMut) -> Result<Literal, HpackError> {
        let (name, mut fault) = if index == 0 {
            string(block, arena, self.max_literal)?;
            match HeaderName::from_known(arena) {
                Some(name) => {
                    arena.clear();
                    (Some(name), None)
                }
                None => (None, (!is_name(arena)).then_some(Fault::Name)),
            }
        } else {
            let (name, fault) = self.name(index)?;
            (Some(name.clone()), fault)
        };
        let name_len = arena.len();
        string(block, arena, self.max_literal)?;
        if fault.is_none() && !is_value(&arena[name_len..]) {
            fault = Some(Fault::Value);
        }
        Ok(Literal { name, name_len, fault })
    }
}

/// A literal field. The arena holds the name, where it is none that is known, and then the value.
struct Literal {
    name: Option<HeaderName>,
    name_len: usize,
    fault: Option<Fault>,
}

impl Literal {
    #[inline]
    fn hand_over(
        self,
        arena: &mut BytesMut,
        sink: &mut impl FnMut(Field<'_>, usize) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut size = arena.len();
        if let Some(fault) = self.fault {
            let (name, value) = match &self.name {
                Some(name) => (name.as_bytes(), &arena[..]),
                None => arena.split_at(self.name_len),
            };
            return sink(Field::Malformed { name, value, fault }, name.len() + value.len());
        }
        let name = match self.name {
            Some(name) => {
                size += name.as_bytes().len();
                name
            }
            None => HeaderName::from_unknown(arena.split_to(self.name_len).freeze()),
        };
        let value = if arena.is_empty() { Bytes::new() } else { arena.split().freeze() };
        sink(Field::Valid(name, HeaderValue::from_checked(value)), size)
    }
}

#[inline]
fn hand_over(entry: &Entry, sink: &mut impl FnMut(Field<'_>, usize) -> ControlFlow<()>) -> ControlFlow<()> {
    let field = match entry.fault {
        None => Field::Valid(entry.name.clone(), HeaderValue::from_checked(entry.value.clone())),
        Some(fault) => Field::Malformed { name: entry.name.as_bytes(), value: &entry.value, fault },
    };
    sink(field, entry.len())
}

/// RFC 9113 8.2.1: a token without upper-case letters; pseudo-headers begin with a colon.
fn is_name(name: &[u8]) -> bool {
    let token = name.strip_prefix(b":").unwrap_or(name);
    !token.is_empty() && token.iter().all(|&b| crate::headers::is_token(b) && !b.is_ascii_uppercase())
}

/// Visible characters, spaces, tabs and what is not ASCII.
fn is_value(value: &[u8]) -> bool {
    // Without a branch for each byte.
    value.iter().fold(true, |ok, &b| ok & ((b >= 0x20) | (b == b'\t')) & (b != 0x7f))
}

/// An integer with a prefix of `bits` bits (RFC 7541 5.1), of at most 32 bits.
#[inline]
fn integer(block: &mut &[u8], bits: u32) -> Result<usize, HpackError> {
    let (&first, mut rest) = block.split_first().ok_or(HpackError::Truncated)?;
    let max = (1_u8 << bits) - 1;
    let mut n = u64::from(first & max);
    if n == u64::from(max) {
        let mut shift = 0;
        loop {
            let (&b, after) = rest.split_first().ok_or(HpackError::Truncated)?;
            rest = after;
            n += u64::from(b & 0x7f) << shift;
            if n > u64::from(u32::MAX) {
                return Err(HpackError::IntegerOverflow);
            }
            if b & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 28 {
                return Err(HpackError::IntegerOverflow);
            }
        }
    }
    *block = rest;
    usize::try_from(n).map_err(|_| HpackError::IntegerOverflow)
}

/// A string (RFC 7541 5.2), decoded to the end of `arena`.
#[inline]
fn string(block: &mut &[u8], arena: &mut BytesMut, most: usize) -> Result<(), HpackError> {
    let huffman = block.first().is_some_and(|b| b & 0x80 != 0);
    let len = integer(block, 7)?;
    if len > most {
        return Err(HpackError::LiteralTooLong);
    }
    let (text, rest) = block.split_at_checked(len).ok_or(HpackError::Truncated)?;
    *block = rest;
    if !huffman {
        arena.extend_from_slice(text);
        return Ok(());
    }
    let begin = arena.len();
    arena.resize(begin + huffman::max_decoded_len(len), 0);
    let n = huffman::decode(text, &mut arena[begin..]).map_err(|_| HpackError::InvalidHuffman)?;
    arena.truncate(begin + n);
    Ok(())
}
