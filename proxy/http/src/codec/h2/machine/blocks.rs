//! Where bodies wait whose consumers are slow: blocks of memory that are mapped for them and belong to no allocator.
//!
//! A peer may fill a window of many megabytes before anything of it is taken. What an allocator keeps for later of blocks
//! that were freed would come on top of that, and stay for a while. A worker keeps a few blocks, so that a queue which
//! moves on reuses its own. Used by the queues of `streams`; no I/O.

use std::cell::RefCell;

use bytes::Bytes;
use nuncio_net::Mapped;

/// Size of a block.
pub(super) const BLOCK: usize = 64 * 1024;
/// Unused blocks that a worker keeps: at most 1 MiB.
const KEEP: usize = 16;

thread_local! {
    static UNUSED: RefCell<Vec<Mapped>> = const { RefCell::new(Vec::new()) };
}

/// A block that is being filled. [`BLOCK`] bytes long.
#[derive(Debug)]
pub(super) struct Block {
    /// None only while it is dropped.
    memory: Option<Mapped>,
    filled: usize,
}

impl Block {
    /// An empty block; None where the system has no memory to map.
    pub(super) fn take() -> Option<Block> {
        let memory = UNUSED.with_borrow_mut(Vec::pop).or_else(|| Mapped::new(BLOCK))?;
        Some(Block { memory: Some(memory), filled: 0 })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.filled == BLOCK
    }

    /// Copies as much of `data` as there is room for; how much that is.
    pub(super) fn put(&mut self, data: &[u8]) -> usize {
        let Some(room) = self.memory.as_mut().and_then(|memory| memory.get_mut(self.filled..)) else { return 0 };
        let n = data.len().min(room.len());
        room[..n].copy_from_slice(&data[..n]);
        self.filled += n;
        n
    }

    /// What it was filled with. The block is given back with the last part of it.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        self.memory.as_ref().and_then(|memory| memory.get(..self.filled)).unwrap_or_default()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let memory = self.memory.take();
        // At the end of a thread the list may be gone before its last block.
        let _ = UNUSED.try_with(|unused| {
            let mut unused = unused.borrow_mut();
            if unused.len() < KEEP {
                unused.extend(memory);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_takes_its_size_and_is_used_again() {
        let mut block = Block::take().expect("memory");
        let start = block.memory.as_ref().map(|memory| memory.as_ptr());
        assert_eq!(block.put(&[1; BLOCK - 1]), BLOCK - 1);
        assert!(!block.is_full());
        assert_eq!(block.put(&[2; 5]), 1);
        assert!(block.is_full());
        let mut bytes = block.freeze();
        let head = bytes.split_to(10);
        drop(bytes);
        assert_eq!(head, [1; 10][..]);
        drop(head);
        let again = Block::take().expect("memory");
        assert_eq!(again.memory.as_ref().map(|memory| memory.as_ptr()), start);
        assert!(again.is_empty() && again.as_ref().is_empty());
    }

    #[test]
    fn a_worker_keeps_only_a_few_blocks() {
        let blocks: Vec<Block> = std::iter::repeat_with(|| Block::take().expect("memory")).take(3 * KEEP).collect();
        drop(blocks);
        assert_eq!(UNUSED.with_borrow(Vec::len), KEEP);
    }
}
