//! Broken configurations and what is said about them: `broken/NAME.yaml` (or `.json`, `.pb_text`) is refused with the text
//! in `broken/NAME.txt`. `BLESS=1` writes those texts anew; read the difference before it is committed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nuncio_config::ingest::{self, Source};

fn cases() -> BTreeMap<String, PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken");
    let mut cases = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e != "txt") {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            assert!(cases.insert(name, path).is_none(), "two cases have one name");
        }
    }
    cases
}

#[test]
fn every_broken_configuration_is_refused_with_the_expected_text() {
    let cases = cases();
    assert!(cases.len() >= 40, "only {} cases", cases.len());
    let mut wrong = Vec::new();
    for (name, path) in cases {
        let Err(mut report) = ingest::load(&Source { path: Some(&path), ..Source::default() }) else {
            wrong.push(format!("{name} was accepted"));
            continue;
        };
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        for source in &mut report.sources {
            source.name.clone_from(&file);
        }
        for error in &mut report.errors {
            error.message = error.message.replace(&path.display().to_string(), &file);
        }
        let text = report.to_text(false) + "\n";
        let expected = path.with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, &text).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        if text != expected {
            wrong.push(format!("{name}:\n{text}\nexpected:\n{expected}"));
        }
        // The form for machines has the same errors.
        let json = report.to_json();
        assert_eq!(json["errors"].as_array().map(Vec::len), Some(report.errors.len()), "{name}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_error_of_a_text_has_its_place() {
    for (name, path) in cases() {
        let whole_file = name == "text-protobuf" || name == "yaml-empty";
        let Err(report) = ingest::load(&Source { path: Some(&path), ..Source::default() }) else { continue };
        for error in &report.errors {
            assert!(whole_file || error.position.is_some(), "{name}: {error} has no place");
        }
    }
}
