//! `nuncio check-corpus FOLDER DIR`: loads every bootstrap and resource file of a folder of real-world configurations as the
//! server would, and prints what is accepted and why the others are not. Used by continuous integration.

use nuncio_config::corpus;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// Checks `folder/bootstraps` and `folder/resources`; `dir` takes the place of `@DIR@`. Returns the table and how many
/// files were accepted of how many.
///
/// # Errors
/// When a folder or file cannot be read.
pub fn check(folder: &Path, dir: &str) -> std::io::Result<(String, usize, usize)> {
    let mut table = String::new();
    let (mut accepted, mut all) = (0, 0);
    let program = std::env::current_exe()?;
    let scratch = std::env::temp_dir().join(format!("nuncio-corpus-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let mut paths: Vec<_> =
        std::fs::read_dir(folder.join("bootstraps"))?.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "yaml" || e == "json")) {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let copy = scratch.join(&name);
        std::fs::write(&copy, std::fs::read_to_string(path)?.replace("@DIR@", dir))?;
        let run = Command::new(&program)
            .args(["--mode", "validate", "--output", "json", "-l", "off", "-c"])
            .arg(&copy)
            .current_dir(&scratch)
            .output()?;
        all += 1;
        let verdict = if run.status.success() {
            accepted += 1;
            "accepted".to_owned()
        } else {
            reasons(&run.stderr)
        };
        // Writing to a String cannot fail.
        let _ = writeln!(table, "bootstrap  {name}: {verdict}");
    }
    let _ = std::fs::remove_dir_all(&scratch);
    for outcome in corpus::check(&folder.join("resources"), dir)? {
        all += 1;
        accepted += usize::from(outcome.accepted());
        if !outcome.accepted() {
            let _ = writeln!(table, "resources  {}: refused", outcome.path.display());
        }
    }
    Ok((table, accepted, all))
}

/// The messages of a report in JSON, on one line.
fn reasons(report: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(report).unwrap_or_default();
    let errors = value.get("errors").and_then(|e| e.as_array()).cloned().unwrap_or_default();
    let texts: Vec<_> = errors.iter().filter_map(|e| e.get("message")?.as_str()).collect();
    if texts.is_empty() { String::from_utf8_lossy(report).trim().to_owned() } else { texts.join("; ") }
}
