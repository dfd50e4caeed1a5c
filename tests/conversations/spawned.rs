//! A proxy with a bootstrap of its own, for the tests beside the scripts.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::process::{Child, Command};

/// A process that ends when it is dropped.
pub(crate) struct Spawned {
    child: Child,
    stderr: PathBuf,
}

/// Writes the bootstrap into a folder.
pub(crate) fn write(folder: &Path, bootstrap: &Value) -> Result<PathBuf> {
    let path = folder.join("bootstrap.json");
    std::fs::write(&path, bootstrap.to_string())?;
    Ok(path)
}

impl Spawned {
    /// Starts `binary`; the folder is for its bootstrap and what it says.
    pub(crate) fn start(binary: &Path, folder: &Path, bootstrap: &Value, more: &[&str]) -> Result<Spawned> {
        let path = write(folder, bootstrap)?;
        let stderr = folder.join("stderr");
        let child = Command::new(binary)
            .arg("-c")
            .arg(&path)
            .args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&stderr)?)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Spawned { child, stderr })
    }

    /// What comes of `test`, unless the proxy ends before. A failure shows what the proxy has said.
    pub(crate) async fn during<T>(&mut self, test: impl Future<Output = Result<T>>) -> Result<T> {
        let said = || std::fs::read_to_string(&self.stderr).unwrap_or_default();
        tokio::select! {
            done = test => done.with_context(said),
            ended = self.child.wait() => bail!("the proxy ended with {}: {}", ended?, said()),
        }
    }
}
