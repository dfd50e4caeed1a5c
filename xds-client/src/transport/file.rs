//! Watching files by their directories, so that a file that is replaced, or reached through a symlink that is swapped
//! (Kubernetes' `..data`), is seen to change.
//!
//! Like Envoy, this reacts to something being moved into place, not to a file being written: a reader then never sees half
//! a file.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use notify::event::{ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// The entry that Kubernetes swaps when a mounted ConfigMap or Secret changes.
const KUBERNETES_DATA: &str = "..data";

/// A watch on one file, or on all of one directory.
#[derive(Debug)]
pub struct FileWatch {
    /// Holds the watch: dropped, it ends.
    _watcher: RecommendedWatcher,
    changes: mpsc::Receiver<()>,
}

impl FileWatch {
    /// Reports when `path`, or the `..data` link beside it, is moved into place.
    pub fn file(path: &Path) -> notify::Result<FileWatch> {
        let name = path.file_name().map(OsStr::to_owned);
        FileWatch::new(directory_of(path), false, move |entry| {
            entry == name.as_deref() || entry == Some(OsStr::new(KUBERNETES_DATA))
        })
    }

    /// Reports when anything is moved into `directory`; where `modify` says so, also when something in it is written.
    pub fn directory(directory: &Path, modify: bool) -> notify::Result<FileWatch> {
        FileWatch::new(directory.to_owned(), modify, |_| true)
    }

    fn new(
        directory: PathBuf,
        modify: bool,
        concerns: impl Fn(Option<&OsStr>) -> bool + Send + 'static,
    ) -> notify::Result<FileWatch> {
        // One place is enough: a change that is not yet taken stands for all that follow.
        let (sender, changes) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let concerned = match &event {
                Ok(event) => {
                    let change = moved(event.kind) || (modify && written(event.kind));
                    event.need_rescan() || (change && event.paths.iter().any(|p| concerns(p.file_name())))
                }
                // Events may have been lost.
                Err(_) => true,
            };
            if concerned {
                let _ = sender.try_send(());
            }
        })?;
        watcher.watch(&directory, RecursiveMode::NonRecursive)?;
        Ok(FileWatch { _watcher: watcher, changes })
    }

    /// Waits for a change. Changes that come before it is called again are one.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

fn moved(kind: EventKind) -> bool {
    matches!(kind, EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both | RenameMode::Any)))
}

fn written(kind: EventKind) -> bool {
    matches!(kind, EventKind::Modify(ModifyKind::Data(_)))
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn changes(watch: &mut FileWatch) -> bool {
        tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_and_a_data_link_that_is_swapped_are_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        std::fs::write(&path, "1").unwrap();
        let mut watch = FileWatch::file(&path).unwrap();
        std::fs::write(dir.path().join("new"), "2").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(changes(&mut watch).await);
        std::os::unix::fs::symlink("..2026", dir.path().join("..data_tmp")).unwrap();
        std::fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        assert!(changes(&mut watch).await);
    }

    #[tokio::test]
    async fn a_write_and_another_file_are_no_changes_but_any_file_of_a_watched_directory_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        std::fs::write(&path, "1").unwrap();
        let mut file = FileWatch::file(&path).unwrap();
        let mut directory = FileWatch::directory(dir.path(), false).unwrap();
        let mut eager = FileWatch::directory(dir.path(), true).unwrap();
        std::fs::write(&path, "2").unwrap();
        assert!(changes(&mut eager).await, "a write counts where it is asked for");
        std::fs::write(dir.path().join("x"), "2").unwrap();
        std::fs::rename(dir.path().join("x"), dir.path().join("b.yaml")).unwrap();
        assert!(changes(&mut directory).await);
        // Both watches saw the same events in the same order: had the write counted, it would be there by now.
        assert!(file.changes.try_recv().is_err());
        std::fs::write(dir.path().join("x"), "3").unwrap();
        std::fs::rename(dir.path().join("x"), &path).unwrap();
        assert!(changes(&mut file).await);
    }
}
