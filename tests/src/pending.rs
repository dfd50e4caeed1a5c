//! Cases in which the proxy does not do what Envoy does yet, and should: `cases/PENDING`, one `FILE: CASE` a line.
//!
//! They run, and their differences are printed. Such a case fails only when it no longer differs, so that the list stays
//! true; it may only become shorter: its first line says how many there may be. What differs on purpose is a
//! `known_difference` of its case instead.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

static LIST: LazyLock<BTreeSet<String>> = LazyLock::new(|| read().1);

/// The number that the list of the cases promises, and the list.
///
/// # Panics
/// As [`read_in`].
pub fn read() -> (usize, BTreeSet<String>) {
    read_in(&crate::suite::cases_dir())
}

/// The number that the list in a folder promises, and the list.
///
/// # Panics
/// The file cannot be read or its first line is not `at most N`.
pub fn read_in(dir: &Path) -> (usize, BTreeSet<String>) {
    let text = std::fs::read_to_string(dir.join("PENDING")).expect("the list of what is pending");
    let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let most = lines.next().and_then(|line| line.strip_prefix("at most ")?.trim().parse().ok());
    (most.expect("the first line is `at most N`"), lines.map(|line| line.trim().to_owned()).collect())
}

/// Whether this case is on the list.
pub fn is_pending(file: &str, case: &str) -> bool {
    LIST.contains(&format!("{file}: {case}"))
}
