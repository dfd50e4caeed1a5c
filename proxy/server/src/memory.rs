//! Memory of the process, from the kernel's accounting.

use crate::admin::MemoryStatus;

/// What is in use now. The allocator keeps no running total of live bytes, so `allocated` is the private resident memory.
pub(crate) fn status() -> MemoryStatus {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Vec<u64> = text.split_whitespace().filter_map(|p| p.parse().ok()).collect();
    let page = rustix::param::page_size() as u64;
    let at = |i: usize| pages.get(i).copied().unwrap_or(0) * page;
    let (resident, shared, data) = (at(1), at(2), at(5));
    MemoryStatus {
        allocated: resident.saturating_sub(shared),
        heap_size: data,
        pageheap_unmapped: data.saturating_sub(resident),
        pageheap_free: 0,
        total_thread_cache: 0,
        total_physical_bytes: resident,
    }
}
