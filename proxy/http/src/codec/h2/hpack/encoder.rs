//! Writes header blocks.
//!
//! Fields that come again are found in the static table by their interned name, or in the dynamic table by a hash.
//! What goes into the table:
//! - fields that are alike in most messages, such as `:authority` and `user-agent`, at once;
//! - credentials never, and marked so that no proxy behind this one does either (RFC 7541 7.1.3);
//! - identifiers, lengths and dates of documents never, but for their name;
//! - any other field the second time that it is seen, so that values that never come again push nothing out.

use super::table::{DEFAULT_SIZE, Entry, OVERHEAD, Table};
use super::{huffman, static_table};
use crate::headers::{HeaderName, HeaderValue, Headers, Known};

/// Cookies below this length can be guessed.
const SHORT_COOKIE: usize = 20;

/// Writes the header blocks of one connection, in their order.
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// The largest table that we want.
    cap: usize,
    /// The smallest table that the peer asked for since the last block.
    update: Option<usize>,
    /// Counts insertions.
    inserted: u16,
    /// Made with the first insertion.
    index: Option<Box<Index>>,
}

impl Default for Encoder {
    fn default() -> Encoder {
        Encoder::new()
    }
}

impl Encoder {
    /// An encoder with a table of at most 4096 bytes.
    pub fn new() -> Encoder {
        Encoder::with_max_table_size(DEFAULT_SIZE)
    }

    /// An encoder with a table of at most `cap` bytes, should the peer allow that. Without SETTINGS it allows 4096.
    pub fn with_max_table_size(cap: usize) -> Encoder {
        let size = cap.min(DEFAULT_SIZE);
        let update = (size < DEFAULT_SIZE).then_some(size);
        Encoder { table: Table::new(size), cap, update, inserted: 0, index: None }
    }

    /// Takes the peer's SETTINGS_HEADER_TABLE_SIZE; the next block begins with the updates that follow from it.
    pub fn set_peer_table_size(&mut self, size: usize) {
        let size = size.min(self.cap);
        if size != self.table.max() {
            self.update = Some(self.update.map_or(size, |smallest| smallest.min(size)));
            self.table.set_max(size);
        }
    }

    /// Writes the block of a whole list.
    pub fn encode(&mut self, headers: &Headers, out: &mut Vec<u8>) {
        self.begin(out);
        for (name, value) in headers.iter() {
            self.field(name, value, out);
        }
    }

    /// Begins a block; its fields follow with [`Encoder::field`].
    #[inline]
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some(smallest) = self.update.take() {
            if smallest < self.table.max() {
                integer(out, 0x20, 5, smallest);
            }
            integer(out, 0x20, 5, self.table.max());
        }
    }

    /// Writes one field of a block.
    #[inline]
    pub fn field(&mut self, name: &HeaderName, value: &HeaderValue, out: &mut Vec<u8>) {
        let bytes = value.as_bytes();
        let indexing = match name.known() {
            Some(known) => {
                if let Some(index) = static_table::index_of_field(known, bytes) {
                    out.push(0x80 | index as u8);
                    return;
                }
                Indexing::of(known, bytes)
            }
            None => Indexing::IfSeen,
        };
        let name_hash = hash_of_name(name);
        match indexing {
            Indexing::Always | Indexing::IfSeen => {}
            Indexing::NameOnly => return self.name_only(name, bytes, name_hash, out),
            Indexing::Never => {
                let index = self.index_of_name(name, name_hash);
                return literal(out, 0x10, 4, index, name, bytes);
            }
        }
        let hash = hash_of_field(name_hash, bytes);
        if let Some(age) = self.find(hash, |e| e.name == *name && e.value == bytes) {
            return integer(out, 0x80, 7, static_table::LEN + 1 + age);
        }
        self.new_field(name, bytes, name_hash, hash, indexing == Indexing::Always, out);
    }

    fn new_field(
        &mut self,
        name: &HeaderName,
        value: &[u8],
        name_hash: u32,
        hash: u32,
        always: bool,
        out: &mut Vec<u8>,
    ) {
        let index = self.index_of_name(name, name_hash);
        if self.fits(name, value) && (always || index == 0 || self.index().seen(hash)) {
            literal(out, 0x40, 6, index, name, value);
            self.insert(name, value, name_hash, hash);
        } else {
            literal(out, 0, 4, index, name, value);
        }
    }

    /// A field whose value is not worth an entry. A name that would be written out is, once.
    fn name_only(&mut self, name: &HeaderName, value: &[u8], name_hash: u32, out: &mut Vec<u8>) {
        let index = self.index_of_name(name, name_hash);
        if index == 0 && self.fits(name, value) {
            literal(out, 0x40, 6, 0, name, value);
            self.insert(name, value, name_hash, hash_of_field(name_hash, value));
        } else {
            literal(out, 0, 4, index, name, value);
        }
    }

    /// Whether an entry leaves room for others.
    fn fits(&self, name: &HeaderName, value: &[u8]) -> bool {
        name.as_bytes().len() + value.len() + OVERHEAD <= self.table.max() / 4 * 3
    }

    /// The index of a name in either table; 0 when it is in none.
    fn index_of_name(&self, name: &HeaderName, hash: u32) -> usize {
        match static_table::index_of_name(name) {
            0 => self.find(hash, |e| e.name == *name).map_or(0, |age| static_table::LEN + 1 + age),
            index => index,
        }
    }

    #[inline]
    fn find(&self, hash: u32, same: impl Fn(&Entry) -> bool) -> Option<usize> {
        let index = self.index.as_ref()?;
        let inserted = self.inserted;
        index.probe(hash).filter(|slot| slot.tag == tag(hash)).find_map(|slot| {
            let age = usize::from(inserted.wrapping_sub(slot.number));
            self.table.get(age).is_some_and(&same).then_some(age)
        })
    }

    fn index(&mut self) -> &mut Index {
        self.index.get_or_insert_default()
    }

    fn insert(&mut self, name: &HeaderName, value: &[u8], name_hash: u32, hash: u32) {
        self.table.insert(Entry::owned(name, value, None));
        self.inserted = self.inserted.wrapping_add(1);
        let (number, live) = (self.inserted, self.table.len());
        let index = self.index();
        index.put(hash, number, live);
        index.put(name_hash, number, live);
    }
}

/// Whether a field goes into the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Indexing {
    Always,
    IfSeen,
    NameOnly,
    Never,
}

impl Indexing {
    fn of(known: Known, value: &[u8]) -> Indexing {
        match known {
            Known::AUTHORIZATION | Known::PROXY_AUTHORIZATION => Indexing::Never,
            Known::COOKIE if value.len() < SHORT_COOKIE => Indexing::Never,
            Known::AUTHORITY
            | Known::METHOD
            | Known::SCHEME
            | Known::STATUS
            | Known::ACCEPT
            | Known::ACCEPT_ENCODING
            | Known::ACCEPT_LANGUAGE
            | Known::CACHE_CONTROL
            | Known::CONTENT_TYPE
            | Known::DATE
            | Known::SERVER
            | Known::TE
            | Known::USER_AGENT
            | Known::VARY
            | Known::VIA => Indexing::Always,
            Known::AGE
            | Known::CONTENT_LENGTH
            | Known::ETAG
            | Known::IF_MODIFIED_SINCE
            | Known::IF_NONE_MATCH
            | Known::LAST_MODIFIED
            | Known::LOCATION
            | Known::RANGE
            | Known::SET_COOKIE
            | Known::SEC_WEBSOCKET_KEY
            | Known::SEC_WEBSOCKET_ACCEPT
            | Known::TRACEPARENT
            | Known::B3
            | Known::X_B3_TRACEID
            | Known::X_B3_SPANID
            | Known::X_B3_PARENTSPANID
            | Known::X_OT_SPAN_CONTEXT
            | Known::X_CLIENT_TRACE_ID
            | Known::X_REQUEST_ID
            | Known::X_ENVOY_UPSTREAM_SERVICE_TIME => Indexing::NameOnly,
            _ => Indexing::IfSeen,
        }
    }
}

const SLOTS: usize = 256;
const PROBES: usize = 4;
const SEEN: usize = 128;

/// Where an entry may be: the number of its insertion, under its hash.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    tag: u16,
    number: u16,
}

/// Finds entries of the table, and remembers fields that are not in it. It may forget; it does not err, as whoever asks
/// compares.
#[derive(Debug)]
struct Index {
    slots: [Slot; SLOTS],
    seen: [u16; SEEN],
}

impl Default for Index {
    fn default() -> Index {
        Index { slots: [Slot::default(); SLOTS], seen: [0; SEEN] }
    }
}

impl Index {
    #[inline]
    fn probe(&self, hash: u32) -> impl Iterator<Item = Slot> + '_ {
        (0..PROBES).map(move |i| self.slots[(hash as usize + i) % SLOTS])
    }

    /// Takes a slot for the newest entry: the first that stands for none of the `live` ones, else the oldest one's.
    fn put(&mut self, hash: u32, number: u16, live: usize) {
        let age = |slot: Slot| usize::from(number.wrapping_sub(slot.number));
        let places = (0..PROBES).map(|i| (hash as usize + i) % SLOTS);
        let oldest = places.max_by_key(|&at| {
            let age = age(self.slots[at]);
            // The same field or name again: the older entry need not be found.
            if self.slots[at].tag == tag(hash) || age >= live { usize::MAX } else { age }
        });
        if let Some(at) = oldest {
            self.slots[at] = Slot { tag: tag(hash), number };
        }
    }

    /// Whether this field was here not long ago.
    fn seen(&mut self, hash: u32) -> bool {
        let last = &mut self.seen[hash as usize % SEEN];
        std::mem::replace(last, tag(hash)) == tag(hash)
    }
}

/// What tells apart the hashes that share a slot; never 0, which is an empty slot's.
#[inline]
fn tag(hash: u32) -> u16 {
    (hash >> 16) as u16 | 1
}

const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

#[inline]
fn fold(h: u64) -> u32 {
    let h = h.wrapping_mul(MIX);
    (h >> 32) as u32 ^ (h >> 20) as u32
}

#[inline]
fn hash_of_name(name: &HeaderName) -> u32 {
    match name.known() {
        Some(known) => fold(known as u64 + 1),
        None => fold(sample(name.as_bytes())),
    }
}

#[inline]
fn hash_of_field(name_hash: u32, value: &[u8]) -> u32 {
    fold(sample(value) ^ u64::from(name_hash).rotate_left(32))
}

/// Some bytes of a text: all of a short one, the ends and the middle of a long one.
#[inline]
fn sample(text: &[u8]) -> u64 {
    let n = text.len();
    let (Some(first), Some(last)) = (text.first_chunk::<8>(), text.last_chunk::<8>()) else {
        return text.iter().fold(n as u64, |h, &b| (h << 8) | u64::from(b)).wrapping_mul(MIX);
    };
    let middle = text[n / 2 - 4..].first_chunk::<8>().copied().unwrap_or_default();
    let mut h = n as u64;
    for part in [*first, middle, *last] {
        h = (h.rotate_left(23) ^ u64::from_le_bytes(part)).wrapping_mul(MIX);
    }
    h
}

fn literal(out: &mut Vec<u8>, pattern: u8, bits: u32, index: usize, name: &HeaderName, value: &[u8]) {
    integer(out, pattern, bits, index);
    if index == 0 {
        string(out, name.as_bytes());
    }
    string(out, value);
}

/// A string (RFC 7541 5.2), in the shorter form.
fn string(out: &mut Vec<u8>, text: &[u8]) {
    let encoded = huffman::encoded_len(text);
    if encoded < text.len() {
        integer(out, 0x80, 7, encoded);
        huffman::encode(text, out);
    } else {
        integer(out, 0, 7, text.len());
        out.extend_from_slice(text);
    }
}

/// An integer with a prefix of `bits` bits (RFC 7541 5.1).
#[inline]
fn integer(out: &mut Vec<u8>, pattern: u8, bits: u32, n: usize) {
    let max = (1 << bits) - 1;
    if n < max {
        out.push(pattern | n as u8);
        return;
    }
    out.push(pattern | max as u8);
    let mut n = n - max;
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}
