//! What the repository shows to people has to be true: every example loads and does what it says, and every file that
//! a page names is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nuncio_config::FieldPath;
use nuncio_config::bootstrap::BootstrapConfig;
use nuncio_config::decode::Context;
use nuncio_config::ingest::{self, Source};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Files below `folder` with this extension.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Bootstraps: all examples, and those of `deploy` (told from manifests by what they begin with).
fn bootstraps() -> Vec<PathBuf> {
    let mut all = files(&root().join("configs"), "yaml");
    let deployed = files(&root().join("deploy"), "yaml");
    all.extend(deployed.into_iter().filter(|p| fs::read_to_string(p).unwrap().contains("\nstatic_resources:")));
    all
}

#[test]
fn every_example_loads_and_all_of_it_has_an_effect() {
    let all = bootstraps();
    assert!(all.len() >= 30, "only {} examples", all.len());
    let mut wrong = Vec::new();
    for path in all {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        let loaded = match ingest::load(&Source { path: Some(&path), ..Source::default() }) {
            Ok(loaded) => loaded,
            Err(report) => {
                wrong.push(format!("{name}:\n{report}"));
                continue;
            }
        };
        wrong.extend(loaded.ignored.iter().map(|f| format!("{name}: {} has no effect: {}", f.path, f.reason)));
        wrong.extend(loaded.unknown.iter().map(|f| format!("{name}: {} is unknown", f.path)));
        if let Err(errors) = BootstrapConfig::decode(&loaded.bootstrap, &mut Context::new(FieldPath::root())) {
            wrong.push(format!("{name}:\n{}", loaded.source_map.report(errors)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_example_says_how_to_try_it() {
    for path in files(&root().join("configs"), "yaml") {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let head: String = text.lines().take_while(|l| l.starts_with('#')).collect::<Vec<_>>().join("\n");
        assert!(head.contains(&format!("nuncio -c configs/{name}")), "{name}: no command that runs it");
        assert!(head.contains("curl") || head.contains("websocat"), "{name}: nothing to try");
    }
}

/// Targets of links, and paths of files in backticks, of a page.
fn mentioned(page: &Path, text: &str) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("](") {
        let target = text[at + 2..].split(')').next().unwrap_or_default().split('#').next().unwrap_or_default();
        if !target.is_empty() && !target.contains("://") {
            found.insert(page.parent().unwrap().join(target));
        }
    }
    for word in text.split('`').skip(1).step_by(2) {
        let is_path = ["proxy/", "configs/", "docs/", "deploy/", "tests/", "benches/", "fuzz/"]
            .iter()
            .any(|folder| word.starts_with(folder));
        if is_path && !word.contains([' ', '*', '{', '<']) {
            found.insert(root().join(word));
        }
    }
    found
}

#[test]
fn every_file_that_a_page_names_is_there() {
    let mut pages = files(&root().join("docs"), "md");
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        pages.push(root().join(name));
    }
    let mut missing = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        for path in mentioned(&page, &text) {
            if !path.exists() {
                missing.push(format!("{} names {}", page.display(), path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_example_is_listed() {
    let list = fs::read_to_string(root().join("configs/README.md")).unwrap();
    for path in files(&root().join("configs"), "yaml") {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(list.contains(&format!("({name})")), "configs/README.md does not list {name}");
    }
}
