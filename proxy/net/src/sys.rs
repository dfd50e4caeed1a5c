//! The only file with `unsafe`: system calls that no safe wrapper offers.
//!
//! Each function is small, takes typed arguments and checks what the kernel returns.
#![allow(unsafe_code)]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Gives memory that the calling thread has freed back to the system. After the start this is most of what reading the
/// configuration took. Without effect where the process has another allocator than mimalloc.
pub fn release_free_memory() {
    // SAFETY: takes no pointers; the allocator's own state is initialised on first use, and any thread may call it.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

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

/// setsockopt(2) with an int.
pub(crate) fn set_int_option(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(socket, level, name, &value.to_ne_bytes())
}

/// setsockopt(2) with raw bytes.
pub(crate) fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: `value` is valid for reads of `length` bytes, and the kernel only reads it.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The address that a connection had before the firewall redirected it (`SO_ORIGINAL_DST`); none when it was not.
pub(crate) fn original_destination(socket: &impl AsRawFd, ipv6: bool) -> Option<SocketAddr> {
    const SO_ORIGINAL_DST: i32 = 80;
    let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    let level = if ipv6 { libc::SOL_IPV6 } else { libc::SOL_IP };
    // SAFETY: `storage` is valid for writes of `length` bytes, and the kernel writes at most that many.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, SO_ORIGINAL_DST, storage.as_mut_ptr().cast(), &raw mut length)
    };
    if result != 0 {
        return None;
    }
    // SAFETY: all-zero bytes are a valid `sockaddr_storage`; the kernel has written `length` bytes of it.
    let storage = unsafe { storage.assume_init() };
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is a `sockaddr_in`, which is smaller than and aligned as the storage.
            let v4 = unsafe { &*std::ptr::from_ref(&storage).cast::<libc::sockaddr_in>() };
            Some(SocketAddr::from((v4.sin_addr.s_addr.to_ne_bytes(), u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for a `sockaddr_in6`.
            let v6 = unsafe { &*std::ptr::from_ref(&storage).cast::<libc::sockaddr_in6>() };
            Some(SocketAddr::from((v6.sin6_addr.s6_addr, u16::from_be(v6.sin6_port))))
        }
        _ => None,
    }
}
