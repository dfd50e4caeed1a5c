//! The dynamic table of RFC 7541 2.3.2: entries that go in at the front and out at the back.
//!
//! Entries own small storage of their own, so that none of them keeps a read buffer alive.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Fault;
use crate::headers::HeaderName;

/// What an entry counts beside its name and value (RFC 7541 4.1).
pub(super) const OVERHEAD: usize = 32;

/// The size that both sides begin with (RFC 9113 6.5.2).
pub(super) const DEFAULT_SIZE: usize = 4096;

/// One field.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: HeaderName,
    pub(super) value: Bytes,
    pub(super) fault: Option<Fault>,
}

impl Entry {
    /// A field with storage of its own.
    pub(super) fn owned(name: &HeaderName, value: &[u8], fault: Option<Fault>) -> Entry {
        if name.is_interned() {
            return Entry { name: name.clone(), value: Bytes::copy_from_slice(value), fault };
        }
        Entry::of_unknown(&[name.as_bytes(), value].concat(), name.as_bytes().len(), fault)
    }

    /// A field whose name is not interned, from both, one after the other.
    pub(super) fn of_unknown(field: &[u8], name_len: usize, fault: Option<Fault>) -> Entry {
        let field = Bytes::copy_from_slice(field);
        Entry { name: HeaderName::from_unknown(field.slice(..name_len)), value: field.slice(name_len..), fault }
    }

    /// Its name and value in bytes.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.name.as_bytes().len() + self.value.len()
    }

    fn size(&self) -> usize {
        self.len() + OVERHEAD
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Table {
    entries: VecDeque<Entry>,
    size: usize,
    max: usize,
}

impl Table {
    /// An empty one, which allocates nothing.
    pub(super) fn new(max: usize) -> Table {
        Table { entries: VecDeque::new(), size: 0, max }
    }

    /// The size that it may have.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// The number of entries.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The sum of the entries' sizes.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The entry that `age` others came after.
    #[inline]
    pub(super) fn get(&self, age: usize) -> Option<&Entry> {
        self.entries.get(age)
    }

    /// Changes the size that it may have.
    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
        self.evict(0);
        if max == 0 {
            self.entries = VecDeque::new();
        }
    }

    /// Puts an entry in front; one that is larger than the table empties it (RFC 7541 4.4).
    pub(super) fn insert(&mut self, entry: Entry) {
        let size = entry.size();
        self.evict(size);
        if size <= self.max {
            self.size += size;
            self.entries.push_front(entry);
        }
    }

    fn evict(&mut self, room: usize) {
        while self.size + room > self.max {
            let Some(entry) = self.entries.pop_back() else { break };
            self.size -= entry.size();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(value: &str) -> Entry {
        Entry::owned(&HeaderName::from_static("x-name"), value.as_bytes(), None)
    }

    #[test]
    fn the_oldest_entries_make_room() {
        let mut table = Table::new(100);
        table.insert(entry("a"));
        table.insert(entry("bb"));
        assert_eq!((table.len(), table.size()), (2, 39 + 40));
        table.insert(entry("ccc"));
        assert_eq!((table.len(), table.size()), (2, 40 + 41));
        assert_eq!(table.get(0).map(|e| &e.value[..]), Some(&b"ccc"[..]));
        assert_eq!(table.get(1).map(|e| &e.value[..]), Some(&b"bb"[..]));
        assert!(table.get(2).is_none());
        table.set_max(41);
        assert_eq!((table.len(), table.size()), (1, 41));
    }

    #[test]
    fn an_entry_larger_than_the_table_empties_it() {
        let mut table = Table::new(100);
        table.insert(entry("a"));
        table.insert(entry(&"x".repeat(100)));
        assert_eq!((table.len(), table.size()), (0, 0));
    }
}
