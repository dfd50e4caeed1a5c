//! The only file with `unsafe`: system calls that no safe wrapper offers.
//!
//! Each function is small, takes typed arguments and checks what the kernel returns.
#![allow(unsafe_code)]

use std::mem::{MaybeUninit, size_of};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Smoothed round-trip time of a TCP socket (`TCP_INFO`).
pub(crate) fn round_trip_time(socket: &impl AsRawFd) -> Option<Duration> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` is valid for writes of `length` bytes, and the kernel writes at most that many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: all-zero bytes are a valid `tcp_info` (integers only), whatever part of it the kernel has written.
    let info = unsafe { info.assume_init() };
    Some(Duration::from_micros(u64::from(info.tcpi_rtt)))
}
