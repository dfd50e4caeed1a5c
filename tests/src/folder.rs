//! A folder that changes as Kubernetes changes the volume of a ConfigMap: the files are links into `..data`, which is a link
//! to the folder with the present contents, and is replaced by a rename.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// A folder in a temporary one.
pub struct Folder {
    root: PathBuf,
    version: u32,
    files: BTreeMap<String, String>,
}

impl Folder {
    /// An empty folder at `root`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(root: PathBuf) -> Result<Folder> {
        std::fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
        Ok(Folder { root, version: 0, files: BTreeMap::new() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Changes these files, all at once. Beside them is always a new certificate, `cert.pem` with `key.pem`.
    ///
    /// # Errors
    /// Something cannot be written.
    pub fn swap(&mut self, changed: BTreeMap<String, String>) -> Result<()> {
        self.files.extend(changed);
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(vec!["a.example".to_owned()])?.self_signed(&key)?;
        self.files.insert("cert.pem".to_owned(), certificate.pem());
        self.files.insert("key.pem".to_owned(), key.serialize_pem());
        let old = format!("..{}", self.version);
        self.version += 1;
        let new = format!("..{}", self.version);
        let folder = self.root.join(&new);
        std::fs::create_dir(&folder)?;
        for (name, text) in &self.files {
            std::fs::write(folder.join(name), text)?;
        }
        symlink(&new, self.root.join("..data_tmp"))?;
        std::fs::rename(self.root.join("..data_tmp"), self.root.join("..data"))?;
        for name in self.files.keys().filter(|name| !self.root.join(name).is_symlink()) {
            symlink(Path::new("..data").join(name), self.root.join(name))?;
        }
        match std::fs::remove_dir_all(self.root.join(old)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_seen_through_the_link_and_change_together() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(dir.path().join("volume")).unwrap();
        let with = |a: &str| BTreeMap::from([("a".to_owned(), a.to_owned())]);
        folder.swap(with("1")).unwrap();
        let cert = std::fs::read(folder.path().join("cert.pem")).unwrap();
        folder.swap(BTreeMap::from([("b".to_owned(), "2".to_owned())])).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!((read("a"), read("b")), ("1".into(), "2".into()));
        assert_ne!(std::fs::read(folder.path().join("cert.pem")).unwrap(), cert);
    }
}
