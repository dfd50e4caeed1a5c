//! Holds folders of real configurations against this crate: which load, and what is wrong with those that do not.
//!
//! Called by the corpus check of the CI with the folder's path, and by whoever wants to know how much of a set of files
//! is understood. A folder may hold bootstraps (any file that [`ingest::load`] reads) and files of resources, which are
//! JSON objects `{"type_url": ..., "resources": [...]}`. `@DIR@` in a file stands for a folder that the caller names.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::descriptors;
use crate::diagnostics::{ConfigError, Report};
use crate::ingest::{self, IgnoredField, SourceMap, Syntax};
use crate::paths::FieldPath;

/// What became of one file.
#[derive(Debug)]
pub struct Outcome {
    /// The file.
    pub path: PathBuf,
    /// What is in it.
    pub content: Content,
    /// Fields that are set and have no effect.
    pub ignored: Vec<IgnoredField>,
}

/// A file's contents, or why there are none.
#[derive(Debug)]
pub enum Content {
    /// A bootstrap.
    Bootstrap(Box<ingest::Loaded>),
    /// Resources: the type URL and each resource encoded.
    Resources(String, Vec<Vec<u8>>),
    /// It was refused.
    Refused(Report),
}

impl Outcome {
    /// Whether the file was accepted.
    pub fn accepted(&self) -> bool {
        !matches!(self.content, Content::Refused(_))
    }
}

/// Loads every file of `folder` (not of folders in it), in the order of their names; `INDEX.tsv` and other tables are
/// passed over. `dir` takes the place of `@DIR@`.
///
/// # Errors
/// When the folder or a file cannot be read.
pub fn check(folder: &Path, dir: &str) -> io::Result<Vec<Outcome>> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    paths.retain(|path| path.is_file() && path.extension().is_none_or(|e| e != "tsv" && e != "md"));
    paths.sort();
    paths.into_iter().map(|path| outcome(path, dir)).collect()
}

fn outcome(path: PathBuf, dir: &str) -> io::Result<Outcome> {
    let text = fs::read_to_string(&path)?.replace("@DIR@", dir);
    let name = path.display().to_string();
    let syntax = match path.extension() {
        Some(extension) if extension == "json" => Syntax::Json,
        _ => Syntax::Yaml,
    };
    let resources = match syntax {
        Syntax::Json => serde_json::from_str::<serde_json::Value>(&text).ok().and_then(resources),
        Syntax::Yaml => None,
    };
    let (content, ignored) = match resources {
        Some((type_url, resources)) => resource_file(&name, &type_url, &resources),
        None => match ingest::load_text(&name, &text, syntax, false) {
            Ok(mut loaded) => {
                let ignored = std::mem::take(&mut loaded.ignored);
                (Content::Bootstrap(Box::new(loaded)), ignored)
            }
            Err(report) => (Content::Refused(report), Vec::new()),
        },
    };
    Ok(Outcome { path, content, ignored })
}

/// The type URL and the resources of a file of resources.
fn resources(file: serde_json::Value) -> Option<(String, Vec<serde_json::Value>)> {
    let type_url = file.get("type_url")?.as_str()?.to_owned();
    Some((type_url, file.get("resources")?.as_array()?.clone()))
}

fn resource_file(name: &str, type_url: &str, resources: &[serde_json::Value]) -> (Content, Vec<IgnoredField>) {
    let Some(descriptor) = descriptors::message(descriptors::type_name(type_url)) else {
        let report = Report::general(format!("{name}: unknown type {type_url}"));
        return (Content::Refused(report), Vec::new());
    };
    let (mut encoded, mut ignored, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for (i, resource) in resources.iter().enumerate() {
        let mut resource = resource.clone();
        if let Some(fields) = resource.as_object_mut() {
            fields.remove("@type");
        }
        let parsed = ingest::parse(&descriptor, &resource.to_string(), Syntax::Json, 0, false);
        let findings = ingest::inspect(&descriptor, &parsed.bytes, false);
        let at = FieldPath::root().field("resources").index(i);
        for mut error in parsed.errors.into_iter().chain(findings.errors) {
            error.path = at.join(&error.path);
            // The resource was taken out of its file, so lines and columns are not those of the file.
            error.position = None;
            errors.push(error);
        }
        ignored.extend(findings.ignored.into_iter().map(|field| IgnoredField { path: at.join(&field.path), ..field }));
        encoded.push(parsed.bytes);
    }
    if errors.is_empty() {
        return (Content::Resources(type_url.to_owned(), encoded), ignored);
    }
    let errors =
        errors.into_iter().map(|e: ConfigError| ConfigError { message: format!("{name}: {}", e.message), ..e });
    (Content::Refused(SourceMap::default().report(errors.collect())), ignored)
}

/// The table of a check: a line per file, the reasons of refusals, and the sums.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        let name = outcome.path.file_name().unwrap_or_default().to_string_lossy();
        match &outcome.content {
            Content::Bootstrap(_) => {
                let _ = writeln!(text, "accepted  {name} ({} fields ignored)", outcome.ignored.len());
            }
            Content::Resources(_, resources) => {
                let (resources, ignored) = (resources.len(), outcome.ignored.len());
                let _ = writeln!(text, "accepted  {name} ({resources} resources, {ignored} fields ignored)");
            }
            Content::Refused(report) => {
                let _ = writeln!(text, "refused   {name}");
                for error in &report.errors {
                    let _ = writeln!(text, "          {error}");
                }
            }
        }
    }
    let accepted = outcomes.iter().filter(|outcome| outcome.accepted()).count();
    let _ = writeln!(text, "{accepted} of {} accepted", outcomes.len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of the test's own, removed with the value.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("nuncio-corpus-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn bootstraps_and_resources_are_told_apart_and_summed_up() {
        let folder = Folder::new("mixed");
        let write = |name: &str, text: &str| fs::write(folder.0.join(name), text).unwrap();
        write("a.yaml", "admin: {access_log: []}\nnode: {id: \"@DIR@\"}\n");
        write(
            "b.json",
            r#"{"type_url": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "resources": [{"name": "x"}]}"#,
        );
        write("c.json", r#"{"type_url": "envoy.config.cluster.v3.Cluster", "resources": [{"name": "x"}, {"nam": 1}]}"#);
        write("d.yaml", "nod: {}\n");
        write("INDEX.tsv", "a\tb\n");
        let outcomes = check(&folder.0, "/certs").unwrap();
        let table = table(&outcomes);
        assert!(table.contains("accepted  a.yaml (0 fields ignored)\n"), "{table}");
        assert!(table.contains("accepted  b.json (1 resources, 0 fields ignored)\n"), "{table}");
        assert!(
            table.contains("no such field: 'nam' in envoy.config.cluster.v3.Cluster; did you mean 'name'?"),
            "{table}"
        );
        assert!(table.contains("refused   d.yaml\n"), "{table}");
        assert!(table.ends_with("2 of 4 accepted\n"), "{table}");
        let Content::Bootstrap(loaded) = &outcomes[0].content else { panic!("a.yaml is a bootstrap") };
        assert_eq!(loaded.bootstrap.node.as_ref().map(|node| node.id.as_str()), Some("/certs"));
    }

    /// Bootstraps of the corpora that name a field which the support table refuses: HTTP/3 and UDP (4), matcher trees of
    /// filter chains and network namespaces (4). May only fall.
    const MOST_UNSUPPORTED: usize = 8;

    /// Whether all that is wrong with a file is that it asks for what the support table refuses.
    fn unsupported(outcome: &Outcome) -> bool {
        let Content::Refused(report) = &outcome.content else { return false };
        report.errors.iter().all(|error| error.message.contains(" is not supported: "))
    }

    /// The corpora of the project are not part of the repository: `CORPORA` names their folder where there are any.
    #[test]
    fn every_file_of_the_corpora_is_read_and_keeps_the_constraints() {
        let Some(corpora) = std::env::var_os("CORPORA") else {
            eprintln!("NOT TESTED: CORPORA names no folder of real configurations");
            return;
        };
        for (folder, most) in [("bootstraps", MOST_UNSUPPORTED), ("resources", 0)] {
            let outcomes = check(&Path::new(&corpora).join(folder), "/certs").unwrap();
            assert!(!outcomes.is_empty());
            let (unsupported, other): (Vec<_>, Vec<_>) =
                outcomes.iter().filter(|outcome| !outcome.accepted()).partition(|outcome| unsupported(outcome));
            assert!(other.is_empty() && unsupported.len() <= most, "{}", table(&outcomes));
        }
    }
}
