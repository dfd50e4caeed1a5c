//! Memory of the process, from the kernel's accounting.

use crate::admin::MemoryStatus;

/// What is in use now. The allocator keeps no running total of live bytes, so `allocated` is the private resident memory.
pub(crate) fn status() -> MemoryStatus {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |field: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(field));
        value.and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let (resident, private) = (bytes("VmRSS:"), bytes("RssAnon:"));
    let data = bytes("VmData:") + bytes("VmStk:");
    MemoryStatus {
        allocated: private,
        heap_size: data,
        pageheap_unmapped: data.saturating_sub(resident),
        pageheap_free: 0,
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
        assert!(status.allocated > 0 && status.heap_size > 0, "{status:?}");
        assert!(status.total_physical_bytes >= status.allocated, "{status:?}");
    }
}
