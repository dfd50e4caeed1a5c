//! Every example of `configs/` is a configuration for both: Envoy and Nuncio find nothing wrong with it, and Nuncio nothing
//! without effect.

use std::path::{Path, PathBuf};
use std::process::Command;

use nuncio_tests::find;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn examples() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("configs")).unwrap();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    all.sort();
    assert!(all.len() >= 30, "only {} examples", all.len());
    all
}

/// What a binary says about each example, where it is not only that it is good.
fn complaints(binary: &Path, more: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for path in examples() {
        let name = path.strip_prefix(root()).unwrap().to_owned();
        let run = Command::new(binary)
            .args(["--mode", "validate", "-l", "error", "-c"])
            .arg(&name)
            .args(more)
            .current_dir(root())
            .output()
            .unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
        let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        // Some fields are deprecated and have no successor that both know.
        let silent = err.lines().all(|line| line.contains("deprecated"));
        if !run.status.success() || !out.contains(&format!("configuration '{}' OK", name.display())) || !silent {
            wrong.push(format!("{}: {}\n{out}{err}", name.display(), run.status));
        }
    }
    wrong
}

#[test]
fn envoy_takes_every_example() {
    let Some(envoy) = find::envoy_or_loud() else { return };
    let wrong = complaints(&envoy, &["--disable-hot-restart"]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nuncio_takes_every_example_and_all_of_it_has_an_effect() {
    let nuncio = find::nuncio().unwrap_or_else(|e| panic!("{e}"));
    let wrong = complaints(&nuncio, &[]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
