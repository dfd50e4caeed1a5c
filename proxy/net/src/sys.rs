//! The only file with `unsafe`: system calls that no safe wrapper offers.
//!
//! Each function is small, takes typed arguments and checks what the kernel returns.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::fs::File;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::time::Duration;

/// Gives memory that the calling thread has freed back to the system. After the start this is most of what reading the
/// configuration took. Without effect where the process has another allocator than mimalloc.
pub fn release_free_memory() {
    // SAFETY: takes no pointers; the allocator's own state is initialised on first use, and any thread may call it.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// `mi_option_arena_eager_commit` of mimalloc 3, a place in its list of options; the crate has no name for it.
const ARENA_EAGER_COMMIT: libmimalloc_sys::mi_option_t = 4;

/// Has the allocator commit memory as it is used, not the whole arena beforehand: what is freed after the start then goes
/// back to the system in smaller pieces, which is 2 MB less at rest and under load. It has to be said before the first
/// allocation makes the first arena, that is, before `main`. `MIMALLOC_ARENA_EAGER_COMMIT` overrides it.
extern "C" fn commit_on_demand() {
    // SAFETY: sets a number in a static table of the allocator, which is valid before the allocator is initialised.
    unsafe { libmimalloc_sys::mi_option_set_default(ARENA_EAGER_COMMIT, 0) }
}

// SAFETY: a function without arguments or preconditions, in the list that the loader calls before `main`, where those with
// a number come before those without (such as the allocator's own).
#[used]
#[unsafe(link_section = ".init_array.00099")]
static COMMIT_ON_DEMAND: extern "C" fn() = commit_on_demand;

/// The allocator of the process: mimalloc. The crate of that name asks it for the alignment of each piece by name, which it
/// serves by a slower way, and with more memory than asked for, as soon as a piece is larger than a kilobyte; yet what it
/// gives without being asked is aligned like C's `malloc`, which is as much as nearly all types need.
#[derive(Debug, Clone, Copy)]
pub struct Allocator;

/// What `malloc` aligns to, for pieces that are at least as large.
const MALLOC_ALIGN: usize = 16;

fn is_plain(size: usize, align: usize) -> bool {
    align <= MALLOC_ALIGN && align <= size
}

// SAFETY: each function hands its arguments on to mimalloc, whose contracts are those of C. Sizes are never above
// `isize::MAX` (`Layout`), alignments are powers of two, and pieces of either kind of call may be freed and resized by either.
// `mi_malloc` aligns to 16 bytes from a size of 16, to 8 bytes below.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: see above.
        unsafe {
            match is_plain(size, align) {
                true => libmimalloc_sys::mi_malloc(size).cast(),
                false => libmimalloc_sys::mi_malloc_aligned(size, align).cast(),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: see above.
        unsafe {
            match is_plain(size, align) {
                true => libmimalloc_sys::mi_zalloc(size).cast(),
                false => libmimalloc_sys::mi_zalloc_aligned(size, align).cast(),
            }
        }
    }

    unsafe fn dealloc(&self, piece: *mut u8, _: Layout) {
        // SAFETY: `piece` is from this allocator (contract of the trait).
        unsafe { libmimalloc_sys::mi_free(piece.cast()) }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let align = layout.align();
        // SAFETY: `piece` is from this allocator (contract of the trait); else see above.
        unsafe {
            match is_plain(size, align) {
                true => libmimalloc_sys::mi_realloc(piece.cast(), size).cast(),
                false => libmimalloc_sys::mi_realloc_aligned(piece.cast(), size, align).cast(),
            }
        }
    }
}

/// Bytes that the allocator has committed: what it has taken from the system and not given back. 0 where the process has
/// another allocator than mimalloc.
pub fn committed_memory() -> usize {
    let mut committed = 0usize;
    let mut unused = [0usize; 7];
    let [elapsed, user, system, resident, peak_resident, peak_committed, faults] = &mut unused;
    // SAFETY: eight pointers to distinct, writable words, which the allocator fills in and does not keep.
    unsafe {
        libmimalloc_sys::mi_process_info(
            elapsed,
            user,
            system,
            resident,
            peak_resident,
            &raw mut committed,
            peak_committed,
            faults,
        );
    }
    committed
}

/// Lets go of the program's pages that the start has touched and serving mostly does not (parsers, descriptors, the command
/// line). They stay in the page cache and come back one by one when they are used. Without effect where the kernel
/// does not tell the mappings.
pub fn release_program_pages() {
    let exe = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, end) in maps.lines().filter_map(|line| clean_mapping(line, &exe)) {
        // SAFETY: a private mapping of the program's file that nothing writes to (see `clean_mapping`): each page that is
        // dropped is read from the file again when it is touched, with the same content. A failure changes nothing.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// The range of a line of `/proc/self/maps` if it is code or constants of `exe`. Constants are only those at the begin of
/// the file: a later read-only mapping is what the loader has relocated and then protected, and exists nowhere else.
fn clean_mapping(line: &str, exe: &Path) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (mode, offset) = (fields.next()?, fields.next()?);
    let path = fields.nth(2)?;
    let constants = mode == "r--p" && offset.bytes().all(|b| b == b'0');
    let clean = Path::new(path) == exe && (mode == "r-xp" || constants);
    let address = |text| usize::from_str_radix(text, 16).ok();
    clean.then_some((address(start)?, address(end)?))
}

/// Runs `make` in the network namespace of the file at `path`. A thread of its own enters it and ends with it: no thread
/// of the proxy is ever in another network than its own.
///
/// # Errors
/// What `make` says; an error without a code of the system when the namespace cannot be entered.
pub(crate) fn in_network_namespace<T: Send>(path: &Path, make: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let shown = path.display();
    let fail = |what: String, error: &io::Error| io::Error::other(format!("{what}: {}", crate::socket::reason(error)));
    let file = File::open(path).map_err(|error| fail(format!("failed to open netns file {shown}"), &error))?;
    let inside = || {
        // SAFETY: takes no pointers; `file` is open until after the call. It changes the calling thread alone, which is
        // this closure's own and ends with it.
        if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(fail(format!("failed to set netns to {shown}"), &io::Error::last_os_error()));
        }
        make()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, inside)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread of a network namespace panicked")))
    })
}

/// Memory that belongs to no allocator: it is the system's again as soon as this is dropped. Zeroed at first, and resident
/// only as far as it was written to.
pub struct Mapped {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: it owns its memory, as a `Box<[u8]>` does; nothing of it is bound to a thread.
unsafe impl Send for Mapped {}
// SAFETY: what is shared can only be read.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// `size` bytes; None where the system gives none, or for no bytes at all.
    pub fn new(size: usize) -> Option<Mapped> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at a place that the kernel chooses; nothing that exists is touched.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), size, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        NonNull::new(start.cast()).map(|start| Mapped { start, size })
    }
}

impl std::fmt::Debug for Mapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapped").field("size", &self.size).finish_non_exhaustive()
    }
}

impl std::ops::Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `size` bytes are mapped at `start`, readable and zeroed, as long as this lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }
}

impl std::ops::DerefMut for Mapped {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and writable; the exclusive borrow of `self` is one of the memory.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` made, which nothing borrows any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_all_sizes_and_alignments_are_aligned_and_keep_their_content() {
        for (size, align) in (0..10).flat_map(|bit| (1..3000).step_by(7).map(move |size| (size, 1usize << bit))) {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: no size is 0; each piece is resized with the layout it has, and freed once.
            unsafe {
                let piece = Allocator.alloc(layout);
                assert!(!piece.is_null() && piece.addr().is_multiple_of(align), "{layout:?}");
                piece.write_bytes(7, size);
                let other = size * 5 % 2999 + 1;
                let piece = Allocator.realloc(piece, layout, other);
                assert!(!piece.is_null() && piece.addr().is_multiple_of(align), "{layout:?} to {other}");
                let kept = std::slice::from_raw_parts(piece, size.min(other));
                assert!(kept.iter().all(|&byte| byte == 7), "{layout:?} to {other}");
                Allocator.dealloc(piece, Layout::from_size_align(other, align).unwrap());
                let zeroed = Allocator.alloc_zeroed(layout);
                assert!(!zeroed.is_null() && zeroed.addr().is_multiple_of(align), "{layout:?}");
                assert!(std::slice::from_raw_parts(zeroed, size).iter().all(|&byte| byte == 0), "{layout:?}");
                Allocator.dealloc(zeroed, layout);
            }
        }
    }

    #[test]
    fn only_what_the_file_still_holds_is_let_go() {
        let exe = Path::new("/usr/bin/nuncio");
        let range = |line: &str| clean_mapping(line, exe);
        let rest = "fe:00 9977866                    /usr/bin/nuncio";
        assert_eq!(range(&format!("1000-2000 r--p 00000000 {rest}")), Some((0x1000, 0x2000)));
        assert_eq!(range(&format!("2000-5000 r-xp 0050c000 {rest}")), Some((0x2000, 0x5000)));
        assert_eq!(range(&format!("5000-6000 r--p 013a3000 {rest}")), None, "relocated");
        assert_eq!(range(&format!("6000-7000 rw-p 0141c000 {rest}")), None, "written");
        assert_eq!(range("7000-8000 r-xp 00026000 fe:00 326269    /usr/lib/libc.so.6"), None);
        assert_eq!(range("8000-9000 rw-p 00000000 00:00 0 "), None);
    }

    #[test]
    fn a_namespace_that_cannot_be_entered_is_named() {
        let error = in_network_namespace(Path::new("/no/such/ns"), || Ok(())).expect_err("there is no such file");
        assert_eq!(error.to_string(), "failed to open netns file /no/such/ns: No such file or directory");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = in_network_namespace(file.path(), || Ok(())).expect_err("no namespace");
        assert!(error.to_string().starts_with("failed to set netns to /"), "{error}");
    }

    #[test]
    fn the_thread_that_asks_stays_in_its_network() {
        let own = || std::fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
        let before = own();
        // Without the capability to enter a namespace, even the own one, the error says so.
        match in_network_namespace(Path::new("/proc/self/ns/net"), || Ok(own())) {
            Ok(inside) => assert_eq!(inside, before),
            Err(error) => assert!(error.to_string().ends_with("Operation not permitted"), "{error}"),
        }
        assert_eq!(own(), before);
    }

    #[test]
    fn mapped_memory_is_zeroed_and_keeps_what_is_written() {
        let mut memory = Mapped::new(10_000).expect("memory");
        assert!(memory.len() == 10_000 && memory.iter().all(|&byte| byte == 0));
        memory[9_999] = 7;
        let memory = std::thread::spawn(move || memory).join().expect("moved");
        assert_eq!(memory[9_999], 7);
        assert!(Mapped::new(0).is_none());
        assert!(Mapped::new(usize::MAX).is_none());
    }

    #[test]
    fn the_program_runs_on_after_its_pages_were_let_go() {
        release_program_pages();
        assert_eq!(format!("{:?}", std::hint::black_box([1, 2])), "[1, 2]");
    }
}
