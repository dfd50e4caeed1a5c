//! Memory of the process, from the allocator and the kernel.

use crate::admin::MemoryStatus;

/// What is in use now. The allocator knows what it has committed, but keeps no running total of live bytes: `allocated` is
/// the private memory that is resident.
pub(crate) fn status() -> MemoryStatus {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |field: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(field));
        value.and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let (resident, private) = (bytes("VmRSS:"), bytes("RssAnon:"));
    let reserved = bytes("VmData:") + bytes("VmStk:");
    let heap_size = match nuncio_net::committed_memory() as u64 {
        // Another allocator.
        0 => reserved,
        committed => committed.max(private),
    };
    MemoryStatus {
        allocated: private,
        heap_size,
        pageheap_unmapped: reserved.saturating_sub(heap_size),
        pageheap_free: heap_size.saturating_sub(private),
        total_thread_cache: 0,
        total_physical_bytes: resident,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_is_in_use() {
        let status = status();
        assert!(status.allocated > 0 && status.heap_size >= status.allocated, "{status:?}");
        assert!(status.total_physical_bytes >= status.allocated, "{status:?}");
        assert_eq!(status.pageheap_free, status.heap_size - status.allocated);
    }
}
