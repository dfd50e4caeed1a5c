//! Makes one `#[test]` of every case in `cases/*.yaml` and of every script in `conversations/*.yaml`, so that each counts,
//! filters and fails by its own name.

use std::fmt::Write as _;
use std::path::Path;

fn main() {
    generate("cases", "- case: ", "nuncio_tests::suite::check");
    generate("conversations", "- conversation: ", "nuncio_tests::conversation::check");
}

/// Writes `FOLDER.rs`: a call of `check` with the file and the name for each line that starts with `mark`.
fn generate(folder: &str, mark: &str, check: &str) {
    println!("cargo:rerun-if-changed={folder}");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder of the data")
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    let mut out = String::new();
    for path in files {
        println!("cargo:rerun-if-changed={}", path.display());
        let stem = path.file_stem().and_then(|s| s.to_str()).expect("a file name").to_owned();
        let text = std::fs::read_to_string(&path).expect("a file of data");
        let _ = writeln!(out, "mod {} {{", identifier(&stem));
        for line in text.lines() {
            let Some(name) = line.strip_prefix(mark) else { continue };
            let name = name.trim().trim_matches('"');
            let _ = writeln!(out, "    #[test]\n    fn {}() {{", identifier(name));
            let _ = writeln!(out, "        {check}(\"{stem}.yaml\", {name:?});\n    }}");
        }
        out.push_str("}\n");
    }
    let dir = std::env::var("OUT_DIR").expect("OUT_DIR");
    std::fs::write(Path::new(&dir).join(format!("{folder}.rs")), out).expect("the generated tests");
}

fn identifier(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        match c {
            'a'..='z' | '0'..='9' => out.push(c),
            'A'..='Z' => out.push(c.to_ascii_lowercase()),
            _ if out.ends_with('_') => {}
            _ => out.push('_'),
        }
    }
    let out = out.trim_matches('_').to_owned();
    if out.starts_with(|c: char| c.is_ascii_digit()) { format!("n{out}") } else { out }
}
