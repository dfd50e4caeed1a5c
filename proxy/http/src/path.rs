//! Path normalization: `normalize_path`, `merge_slashes`, `path_with_escaped_slashes_action`.
//!
//! Called by the connection manager before routing. Pure; what needs no change is not copied. Normalization is Envoy's (dot
//! segments, also escaped or with a `;parameter`; backslashes; unreserved characters unescaped, unsafe ones escaped), and
//! idempotent where Envoy's is not: a second proxy with the same rules sees the same path.

use std::borrow::Cow;

use nuncio_config::hcm::EscapedSlashesAction;

/// What is done to paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathRules {
    /// `normalize_path`
    pub normalize: bool,
    /// `merge_slashes`
    pub merge_slashes: bool,
    /// `path_with_escaped_slashes_action`
    pub escaped_slashes: EscapedSlashesAction,
}

/// The outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Normalized {
    /// Nothing to change.
    Same,
    /// Go on with this path.
    Changed(Vec<u8>),
    /// Answer 307 to this path.
    Redirect(Vec<u8>),
    /// Answer 400 (`path_normalization_failed`); logs show this path, where there is one.
    Rejected(Option<Vec<u8>>),
}

/// The path without query and fragment.
#[inline]
pub fn without_query(path: &[u8]) -> &[u8] {
    match memchr::memchr2(b'?', b'#', path) {
        Some(at) => &path[..at],
        None => path,
    }
}

/// A path without query as `ignore_path_parameters_in_path_matching` sees it: each segment up to its semicolon.
pub fn without_parameters(path: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b';', path).is_none() {
        return Cow::Borrowed(path);
    }
    let mut out = Vec::with_capacity(path.len());
    let mut within = false;
    for &byte in path {
        within = byte == b';' || (within && byte != b'/');
        if !within {
            out.push(byte);
        }
    }
    Cow::Owned(out)
}

/// Applies the rules to a path with its query, which is left as it is.
pub fn normalize(path: &[u8], rules: PathRules) -> Normalized {
    let (mut plain, query) = path.split_at(memchr::memchr(b'?', path).unwrap_or(path.len()));
    let unescaped;
    let (mut canonical, mut merged) = (None, None);
    let (mut redirect, mut changed) = (false, false);
    if rules.escaped_slashes != EscapedSlashesAction::KeepUnchanged {
        unescaped = unescape_slashes(plain);
        if let Some(new) = &unescaped {
            match rules.escaped_slashes {
                EscapedSlashesAction::RejectRequest => {
                    return Normalized::Rejected(Some([new.as_slice(), query].concat()));
                }
                EscapedSlashesAction::UnescapeAndRedirect => redirect = true,
                EscapedSlashesAction::UnescapeAndForward | EscapedSlashesAction::KeepUnchanged => {}
            }
            plain = new;
            changed = true;
        }
    }
    if rules.normalize && needs_normalization(plain) {
        let Some(new) = canonicalize(plain) else { return Normalized::Rejected(None) };
        plain = canonical.insert(new);
        changed = true;
    }
    if rules.merge_slashes && memchr::memmem::find(plain, b"//").is_some() {
        plain = merged.insert(merge_slashes(plain));
        changed = true;
    }
    if !changed {
        return Normalized::Same;
    }
    let new = [plain, query].concat();
    match (redirect, new == path) {
        (true, _) => Normalized::Redirect(new),
        (false, true) => Normalized::Same,
        (false, false) => Normalized::Changed(new),
    }
}

/// Slashes and backslashes instead of their escapes; None where there are none.
fn unescape_slashes(path: &[u8]) -> Option<Vec<u8>> {
    let slash = |at: usize| match path.get(at..at + 3) {
        Some([b'%', b'2', b'f' | b'F']) => Some(b'/'),
        Some([b'%', b'5', b'c' | b'C']) => Some(b'\\'),
        _ => None,
    };
    let first = memchr::memchr_iter(b'%', path).find(|at| slash(*at).is_some())?;
    let mut out = Vec::with_capacity(path.len());
    out.extend_from_slice(&path[..first]);
    let mut at = first;
    while at < path.len() {
        match slash(at) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(path[at]);
                at += 1;
            }
        }
    }
    Some(out)
}

/// Runs of slashes become one. A path of slashes alone keeps two: Envoy joins the empty rest to a first and a last slash.
fn merge_slashes(path: &[u8]) -> Vec<u8> {
    if path.iter().all(|byte| *byte == b'/') {
        return b"//".to_vec();
    }
    let mut out = Vec::with_capacity(path.len());
    for &byte in path {
        if byte != b'/' || out.last() != Some(&b'/') {
            out.push(byte);
        }
    }
    out
}

/// What stands for itself in a path.
const PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0x21;
    while byte < 0x7f {
        table[byte] =
            !matches!(byte as u8, b'"' | b'#' | b'<' | b'>' | b'?' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}');
        byte += 1;
    }
    table
};

fn needs_normalization(path: &[u8]) -> bool {
    let mut before = 0;
    if path.first() != Some(&b'/') {
        return true;
    }
    path.iter().any(|&byte| {
        let odd = !PLAIN[usize::from(byte)] || byte == b'%' || (byte == b'.' && before == b'/');
        before = byte;
        odd
    })
}

/// The canonical path; None where it holds a NUL.
fn canonicalize(path: &[u8]) -> Option<Vec<u8>> {
    let path = match path.first() {
        Some(b'/' | b'\\') => &path[1..],
        _ => path,
    };
    let mut out = Vec::with_capacity(path.len() + 8);
    out.push(b'/');
    let mut segments = path.split(|byte| matches!(byte, b'/' | b'\\')).peekable();
    while let Some(segment) = segments.next() {
        let start = out.len();
        push_segment(segment, &mut out)?;
        let name = &out[start..];
        let name = &name[..memchr::memchr(b';', name).unwrap_or(name.len())];
        match name {
            // A parameter does not hide a dot segment from upstreams that strip parameters.
            b"." => out.truncate(start),
            b".." => {
                out.truncate(start - 1);
                let parent = memchr::memrchr(b'/', &out).map_or(0, |at| at + 1);
                out.truncate(parent);
                if out.is_empty() {
                    out.push(b'/');
                }
            }
            _ => {
                if segments.peek().is_some() {
                    out.push(b'/');
                }
            }
        }
    }
    Some(out)
}

/// Appends a segment with its escapes normalized; None for a NUL.
fn push_segment(segment: &[u8], out: &mut Vec<u8>) -> Option<()> {
    // Where a `%` that begins no escape was written: what follows must not make it one.
    let mut lone = usize::MAX;
    let mut at = 0;
    while at < segment.len() {
        let byte = match (segment[at], escape(&segment[at..])) {
            (_, Some(0)) | (0, None) => return None,
            (_, Some(decoded)) if is_unreserved(decoded) => {
                at += 3;
                decoded
            }
            (_, Some(_)) => {
                out.extend_from_slice(&segment[at..at + 3]);
                at += 3;
                continue;
            }
            (b'%', None) => {
                lone = out.len();
                out.push(b'%');
                at += 1;
                continue;
            }
            (byte, None) => {
                at += 1;
                byte
            }
        };
        if !PLAIN[usize::from(byte)] {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            continue;
        }
        out.push(byte);
        if lone.saturating_add(3) == out.len() && escape(&out[lone..]).is_some() {
            out.splice(lone + 1..lone + 1, *b"25");
            lone = usize::MAX;
        }
    }
    Some(())
}

/// The byte that an escape at the start of `text` stands for.
fn escape(text: &[u8]) -> Option<u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16);
    match text {
        [b'%', high, low, ..] => Some((hex(*high)? << 4 | hex(*low)?) as u8),
        _ => None,
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: PathRules =
        PathRules { normalize: true, merge_slashes: false, escaped_slashes: EscapedSlashesAction::KeepUnchanged };

    fn show(path: &[u8], rules: PathRules) -> String {
        match normalize(path, rules) {
            Normalized::Same => String::from_utf8_lossy(path).into_owned(),
            Normalized::Changed(new) => String::from_utf8(new).expect("ASCII"),
            Normalized::Redirect(new) => format!("307 {}", String::from_utf8(new).expect("ASCII")),
            Normalized::Rejected(_) => "400".into(),
        }
    }

    #[test]
    fn normalized_paths_are_envoys() {
        let table: &[(&[u8], &str)] = &[
            (b"/a/./b", "/a/b"),
            (b"/a/../b", "/b"),
            (b"/a/b/..", "/a/"),
            (b"/a/b/.", "/a/b/"),
            (b"/..", "/"),
            (b"/../a", "/a"),
            (b"/a/%2e/b", "/a/b"),
            (b"/a/%2E%2e/b", "/b"),
            (b"/a/.%2e/b", "/b"),
            (b"/a/%2e", "/a/"),
            (b"/a//b", "/a//b"),
            (b"/a\\b", "/a/b"),
            (b"/a/..\\b", "/b"),
            (b"/a\\..\\b", "/b"),
            (b"/a\\..\\..\\b", "/b"),
            (b"/a%5cb", "/a%5cb"),
            (b"/a%2Fb%2fc", "/a%2Fb%2fc"),
            (b"/a/.../b", "/a/.../b"),
            (b"/a/..b/c", "/a/..b/c"),
            (b"/a/b../c", "/a/b../c"),
            (b"/a?x=/../y", "/a?x=/../y"),
            (b"/a/../b?x=%2e", "/b?x=%2e"),
            (b"/a;p/../b", "/b"),
            (b"/./", "/"),
            (b"/..;/a", "/a"),
            (b"/x/..;/a", "/a"),
            (b"/..;a", "/"),
            (b"/.;/a", "/a"),
            (b"/..%3b/a", "/..%3b/a"),
            (b"/a%zz", "/a%zz"),
            (b"/a%", "/a%"),
            (b"/a%4", "/a%4"),
            (b"/a%00b", "400"),
            (b"/%%342e", "/%2542e"),
            (b"/a;../b", "/a;../b"),
            (b"//.//", "///"),
            (b"/a|b{}\"<>^`", "/a%7Cb%7B%7D%22%3C%3E%5E%60"),
            (b"/!$&'()*+,;=:@-._~[]", "/!$&'()*+,;=:@-._~[]"),
            (b"/%7ea%41%2D%5F%2d", "/~aA-_-"),
            (b"/%3f%23%25%2541%252e%7f%80", "/%3f%23%25%2541%252e%7f%80"),
            (b"/a/b/../../..//c/./d/", "//c/d/"),
            (b"/%2e%2e/%2e%2e", "/"),
            (b"//", "//"),
            (b"///a///b//", "///a///b//"),
            (b"/a//../b", "/a/b"),
            (b"/a/..//b", "//b"),
            (b"//..//a", "//a"),
            (b"//..", "/"),
            (b"/a%2e%2e/b", "/a../b"),
            (b"/..%2f", "/..%2f"),
            (b"/a/%2f/../b", "/a/b"),
            (b"/a/..?x", "/?x"),
        ];
        for (path, wanted) in table {
            assert_eq!(show(path, ALL), *wanted, "{}", path.escape_ascii());
        }
    }

    #[test]
    fn what_envoy_leaves_for_a_second_pass_is_done_in_the_first() {
        assert_eq!(show(b"/%2e%2e;/a", ALL), "/a");
    }

    #[test]
    fn escaped_slashes_are_kept_refused_or_unescaped() {
        use EscapedSlashesAction as E;
        let rules = |escaped_slashes, normalize, merge_slashes| PathRules { normalize, merge_slashes, escaped_slashes };
        let table: &[(&str, PathRules, &str)] = &[
            ("/a%2fb", rules(E::RejectRequest, false, false), "400"),
            ("/a%252fb?%2f", rules(E::RejectRequest, false, false), "/a%252fb?%2f"),
            ("/a%2Fb%5cc?x=%2f//", rules(E::UnescapeAndRedirect, false, false), "307 /a/b\\c?x=%2f//"),
            ("/a%2Fb%5cc?x=%2f//", rules(E::UnescapeAndRedirect, true, false), "307 /a/b/c?x=%2f//"),
            ("/..%2f..%5c/a", rules(E::UnescapeAndForward, false, false), "/../..\\/a"),
            ("/..%2f..%5c/a", rules(E::UnescapeAndForward, true, true), "/a"),
            ("/a?b//c", rules(E::UnescapeAndForward, true, true), "/a?b//c"),
            ("///a///b//", rules(E::KeepUnchanged, true, true), "/a/b/"),
            ("/a//?x", rules(E::KeepUnchanged, false, true), "/a/?x"),
            ("///", rules(E::KeepUnchanged, false, true), "//"),
            ("//?q", rules(E::KeepUnchanged, false, true), "//?q"),
            ("//.//", rules(E::KeepUnchanged, false, true), "/./"),
            ("/%2f//", rules(E::UnescapeAndForward, true, true), "//"),
        ];
        for (path, rules, wanted) in table {
            assert_eq!(show(path.as_bytes(), *rules), *wanted, "{path} {rules:?}");
        }
    }

    #[test]
    fn normalizing_twice_changes_nothing() {
        let pieces: &[&[u8]] = &[
            b"/",
            b"/",
            b".",
            b"..",
            b"%",
            b"%2e",
            b"%2E",
            b"%25",
            b"%3",
            b"4",
            b"2",
            b"e",
            b"f",
            b";",
            b"\\",
            b"%5c",
            b"%2f",
            b"a",
            b"?",
            b"{",
            b"\xc3\xa9",
            b"%41",
            b"#",
            b"0",
        ];
        let mut rng = fastrand::Rng::with_seed(5);
        for round in 0..20_000 {
            let count = rng.usize(..12);
            let mut path = vec![b'/'];
            (0..count).for_each(|_| path.extend_from_slice(pieces[rng.usize(..pieces.len())]));
            let rules = PathRules { merge_slashes: round % 2 == 0, ..ALL };
            if let Normalized::Changed(once) = normalize(&path, rules) {
                assert_eq!(
                    normalize(&once, rules),
                    Normalized::Same,
                    "{} -> {}",
                    path.escape_ascii(),
                    once.escape_ascii()
                );
                let plain = without_query(&once);
                assert!(plain.split(|byte| *byte == b'/').all(|segment| segment != b"." && segment != b".."));
            }
        }
    }
}
