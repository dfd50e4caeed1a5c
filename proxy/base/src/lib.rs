//! Ground floor: stats, time, drain signal, randomness and other things that every floor uses.
//!
//! Nothing in this crate knows about sockets, protocols or configuration messages. What is per worker lives in
//! thread-locals, so that the data path takes no lock.

pub mod worker;

pub mod stats;

pub mod clock;
pub mod date;
pub mod timer;

pub mod drain;

pub mod buffer_pool;
pub mod random;
