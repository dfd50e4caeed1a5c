//! Path normalization of requests.

/// The path without query and fragment.
pub fn without_query(path: &[u8]) -> &[u8] {
    match memchr::memchr2(b'?', b'#', path) {
        Some(at) => &path[..at],
        None => path,
    }
}
