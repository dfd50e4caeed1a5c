//! Tells the binary which revision it is made from: `NUNCIO_REVISION` and `NUNCIO_REVISION_STATUS`.
//!
//! Packagers may set both. Else release builds ask git; where there is none, and in other builds, which would have to be
//! made again after every commit, the revision is unknown: forty zeros.

use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

fn main() {
    println!("cargo::rerun-if-env-changed=NUNCIO_REVISION");
    println!("cargo::rerun-if-env-changed=NUNCIO_REVISION_STATUS");
    println!("cargo::rerun-if-changed=build.rs");
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let mut revision = std::env::var("NUNCIO_REVISION").ok().filter(|revision| !revision.is_empty());
    let mut status = std::env::var("NUNCIO_REVISION_STATUS").ok().filter(|status| !status.is_empty());
    if revision.is_none() && release {
        revision = git(&["rev-parse", "HEAD"]);
        let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
        status =
            status.or_else(|| changed.map(|changed| if changed.is_empty() { "Clean" } else { "Modified" }.to_owned()));
        // A line is added to the log with every commit and every change of branch.
        for file in ["logs/HEAD", "index"] {
            if let Some(path) = git(&["rev-parse", "--git-path", file]) {
                println!("cargo::rerun-if-changed={path}");
            }
        }
    }
    println!("cargo::rustc-env=NUNCIO_REVISION={}", revision.unwrap_or_else(|| "0".repeat(40)));
    println!("cargo::rustc-env=NUNCIO_REVISION_STATUS={}", status.unwrap_or_else(|| "Clean".to_owned()));
}
