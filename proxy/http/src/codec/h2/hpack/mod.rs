//! HPACK (RFC 7541): header lists, compressed.
//!
//! `decoder` reads header blocks and hands each field over in the project's types; `encoder` writes them. Both keep
//! their dynamic table in `table`. Neither judges messages: which fields may stand where is for whoever reads them. All
//! errors here are of the kind that ends the connection with COMPRESSION_ERROR, as the table is lost with them.

mod decoder;
mod encoder;
mod huffman;
mod static_table;
mod table;

pub use decoder::Decoder;
pub use encoder::Encoder;

use crate::headers::{HeaderName, HeaderValue};

/// A field of a header block.
#[derive(Debug)]
pub enum Field<'a> {
    /// A name in lower case of token characters, perhaps after one `:`, and a value without control characters but tabs.
    Valid(HeaderName, HeaderValue),
    /// What HTTP does not allow, as it came. The block can be read on.
    Malformed {
        /// The name.
        name: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// Which of them it is.
        fault: Fault,
    },
}

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The name is empty, has upper-case letters, or other characters that names may not have.
    Name,
    /// The value has CR, LF, NUL or other control characters.
    Value,
}

/// Why a header block cannot be read. The connection ends with COMPRESSION_ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    /// The block ends within a field.
    #[error("a header block ends within a field")]
    Truncated,
    /// An integer of more than 32 bits.
    #[error("an integer is too large")]
    IntegerOverflow,
    /// An index of 0, or beyond both tables.
    #[error("there is no entry of this index")]
    InvalidIndex,
    /// A literal that is longer than 64 KiB.
    #[error("a literal is too long")]
    LiteralTooLong,
    /// EOS in a Huffman string, or wrong padding.
    #[error("a Huffman string is malformed")]
    InvalidHuffman,
    /// A table size above the one that was allowed.
    #[error("the dynamic table's size is above the limit")]
    TableSizeTooLarge,
    /// A table size update after a field.
    #[error("a table size update does not stand at the beginning")]
    MisplacedTableSizeUpdate,
    /// No table size update, although the limit was lowered below the table's size.
    #[error("a table size update is missing")]
    MissingTableSizeUpdate,
}

#[cfg(test)]
mod tests;
