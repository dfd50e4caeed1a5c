//! Which worker this thread is.
//!
//! The server sets the index once, when a worker thread starts; the stat shards use it to find their own slice.
//! This module starts no threads.

use std::cell::Cell;

thread_local! {
    static INDEX: Cell<usize> = const { Cell::new(CONTROL) };
}

/// Index of the control thread, and of every thread that never called [`set_index`].
pub const CONTROL: usize = 0;

/// Makes the calling thread worker `index` (1..=N).
///
/// Two live threads that share one stats registry must not have the same index other than [`CONTROL`]: a worker's
/// stat shard has a single writer.
pub fn set_index(index: usize) {
    INDEX.with(|cell| cell.set(index));
}

/// The calling thread's shard: 0 for the control thread and by default, 1..=N for workers.
#[inline]
pub fn index() -> usize {
    INDEX.with(Cell::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_the_control_thread_until_told_otherwise() {
        std::thread::spawn(|| {
            assert_eq!(index(), CONTROL);
            set_index(3);
            assert_eq!(index(), 3);
            assert_eq!(std::thread::spawn(index).join().ok(), Some(CONTROL));
        })
        .join()
        .expect("the checks hold");
    }
}
