//! From a file to a message: YAML, JSON, binary and text protobuf, with all of Envoy's leniencies.
//!
//! The server calls [`load`] once for the bootstrap; [`parse`] reads any other message, such as a file of resources.
//! A text becomes a position-keeping tree (`yaml`, `json`, `tree`), the tree a message (`walk`), and every message is
//! inspected (`inspect`): constraints and support table. All errors of a run are reported at once. What the fields mean
//! is for the decoders.

mod inspect;
mod json;
mod scalars;
mod source_map;
mod tree;
mod typed_struct;
mod walk;
mod wire;
mod yaml;

use std::fs;
use std::path::Path;

use bytes::Bytes;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor};

use crate::descriptors;
use crate::diagnostics::{ConfigError, Report};
use crate::paths::FieldPath;

pub use inspect::{Findings, IgnoredField, Inspector, inspect};
pub use source_map::SourceMap;
pub use typed_struct::{Unwrapped, unwrap_typed_struct, unwrap_typed_structs};
pub use walk::UnknownField;
pub(crate) use wire::Shallow;

/// What to load.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source<'a> {
    /// The file (`--config-path`); read once to its end, so it may be a FIFO.
    pub path: Option<&'a Path>,
    /// YAML or JSON text (`--config-yaml`), merged over the file.
    pub overlay_yaml: Option<&'a str>,
    /// Whether unknown fields are passed over (`--allow-unknown-static-fields`).
    pub allow_unknown: bool,
}

/// A configuration that was loaded and keeps all constraints.
#[derive(Debug)]
pub struct Loaded {
    /// The bootstrap.
    pub bootstrap: Bootstrap,
    /// The same, encoded: what `config_dump` serves.
    pub bytes: Bytes,
    /// Finds the place of a field, for the errors of decoders.
    pub source_map: SourceMap,
    /// Fields that are set and have no effect, with the reason.
    pub ignored: Vec<IgnoredField>,
    /// Fields that are set and that Envoy calls deprecated.
    pub deprecated: Vec<FieldPath>,
    /// Unknown fields that were passed over.
    pub unknown: Vec<UnknownField>,
    /// What is legal and yet hardly meant, such as a key that stands twice; each with its place.
    pub warnings: Vec<ConfigError>,
}

/// How a text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// YAML in Envoy's dialect.
    Yaml,
    /// JSON as protobuf reads it.
    Json,
}

/// A text that was read into a message, and what was passed over on the way.
#[derive(Debug)]
pub struct Parsed {
    /// The message, encoded; fields with errors are left out.
    pub bytes: Vec<u8>,
    /// Everything that is wrong.
    pub errors: Vec<ConfigError>,
    /// Unknown fields, if they are allowed.
    pub unknown: Vec<UnknownField>,
    /// Keys that stand twice.
    pub warnings: Vec<ConfigError>,
}

/// Loads a bootstrap: the file, the text over it, constraints, support table.
///
/// # Errors
/// A report of everything that is wrong.
pub fn load(source: &Source<'_>) -> Result<Loaded, Report> {
    let Some(descriptor) = descriptors::message(descriptors::BOOTSTRAP) else {
        return Err(Report::general("the bootstrap message is not known"));
    };
    let mut source_map = SourceMap::default();
    let mut parts = Vec::new();
    if let Some(path) = source.path {
        parts.push(read_file(path, &descriptor, source.allow_unknown, &mut source_map)?);
    }
    if let Some(text) = source.overlay_yaml {
        let number = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        // JSON is nearly a part of YAML; what YAML does not take (tabs, say) may still be JSON.
        let syntax = if yaml::read(text, number).is_err() && json::read(text, number).is_ok() {
            Syntax::Json
        } else {
            Syntax::Yaml
        };
        source_map.push("--config-yaml", text, Some(syntax));
        parts.push(parse(&descriptor, text, syntax, number, source.allow_unknown));
    }
    if parts.is_empty() {
        return Err(Report::general(
            "At least one of --config-path or --config-yaml or Options::configProto() should be non-empty",
        ));
    }

    finish(&descriptor, parts, source_map, source.allow_unknown)
}

/// Loads a bootstrap from a text that was read already; `name` is what errors call it.
///
/// # Errors
/// A report of everything that is wrong.
pub fn load_text(name: &str, text: &str, syntax: Syntax, allow_unknown: bool) -> Result<Loaded, Report> {
    let Some(descriptor) = descriptors::message(descriptors::BOOTSTRAP) else {
        return Err(Report::general("the bootstrap message is not known"));
    };
    let mut source_map = SourceMap::default();
    source_map.push(name, text, Some(syntax));
    let part = parse(&descriptor, text, syntax, 0, allow_unknown);
    finish(&descriptor, vec![part], source_map, allow_unknown)
}

/// Merges the parts, checks the whole and decodes it.
fn finish(
    descriptor: &MessageDescriptor,
    parts: Vec<Parsed>,
    source_map: SourceMap,
    allow_unknown: bool,
) -> Result<Loaded, Report> {
    let (mut errors, mut unknown, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    // The encodings of two messages, one after the other, are the encoding of the two merged.
    let mut bytes = Vec::new();
    for part in parts {
        errors.extend(part.errors);
        unknown.extend(part.unknown);
        warnings.extend(part.warnings);
        if bytes.is_empty() {
            bytes = part.bytes;
        } else {
            bytes.extend(part.bytes);
        }
    }
    let mut findings = inspect(descriptor, &bytes, allow_unknown);
    unknown.append(&mut findings.unknown);
    let faulty = faulty_paths(&errors);
    errors.extend(findings.errors.drain(..).filter(|e| !is_known(e, &faulty)));
    if !errors.is_empty() {
        return Err(source_map.report(errors));
    }
    let bootstrap = Bootstrap::decode(bytes.as_slice()).map_err(|e| Report::general(e.to_string()))?;
    let Findings { ignored, deprecated, .. } = findings;
    Ok(Loaded { bootstrap, bytes: bytes.into(), source_map, ignored, deprecated, unknown, warnings })
}

/// Reads `text` into a message; `number` is its place among the sources of a report.
pub fn parse(descriptor: &MessageDescriptor, text: &str, syntax: Syntax, number: u32, allow_unknown: bool) -> Parsed {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let tree = match syntax {
        Syntax::Yaml => yaml::read(text, number),
        Syntax::Json => json::read(text, number),
    };
    let tree = match tree {
        Ok(tree) => tree,
        Err(error) => {
            return Parsed { bytes: Vec::new(), errors: vec![error], unknown: Vec::new(), warnings: Vec::new() };
        }
    };
    let mut walk = walk::Walk::new(&tree, number, allow_unknown);
    let bytes = walk.root(descriptor);
    let warnings = tree.overridden.iter().map(|key| {
        let name = tree.text(*key).unwrap_or_default();
        let message = format!("the key '{name}' stands twice in this mapping; the last one counts");
        ConfigError::new(FieldPath::root(), message).at(tree.position(*key, number))
    });
    Parsed { bytes, warnings: warnings.collect(), errors: walk.errors, unknown: walk.unknown }
}

/// Where the walk has found fault already: a violation there would say the same thing twice, less clearly. A misspelt
/// field counts for the field that was meant, too.
fn faulty_paths(errors: &[ConfigError]) -> Vec<FieldPath> {
    let meant = errors.iter().filter_map(|e| Some(e.path.parent()?.field(e.suggestion.clone()?)));
    errors.iter().filter(|e| !e.path.is_root()).map(|e| e.path.clone()).chain(meant).collect()
}

/// Whether an error follows from one of the faults: it stands there or below, or misses what the fault left out.
fn is_known(error: &ConfigError, faulty: &[FieldPath]) -> bool {
    let misses = error.message.contains("reason: is required");
    faulty.iter().any(|path| error.path.is_within(path) || (misses && path.is_within(&error.path)))
}

fn read_file(
    path: &Path,
    descriptor: &MessageDescriptor,
    allow_unknown: bool,
    source_map: &mut SourceMap,
) -> Result<Parsed, Report> {
    let name = path.display().to_string();
    let bytes = fs::read(path).map_err(|e| Report::general(format!("unable to read file: {name}: {e}")))?;
    let lower = name.to_ascii_lowercase();
    if lower.ends_with(".pb") {
        source_map.push(&name, "", None);
        return Ok(binary(&name, descriptor, bytes, allow_unknown));
    }
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) => {
            let line = bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            return Err(Report::general(format!("{name}:{line}: the file is not valid UTF-8")));
        }
    };
    if lower.ends_with(".pb_text") {
        source_map.push(&name, text, None);
        return Ok(text_format(&name, descriptor, text, allow_unknown));
    }
    let syntax = if lower.ends_with(".yaml") || lower.ends_with(".yml") {
        Syntax::Yaml
    } else if lower.ends_with(".json") || text.trim_start_matches('\u{feff}').trim_start().starts_with('{') {
        Syntax::Json
    } else {
        Syntax::Yaml
    };
    source_map.push(&name, text, Some(syntax));
    Ok(parse(descriptor, text, syntax, 0, allow_unknown))
}

fn binary(name: &str, descriptor: &MessageDescriptor, bytes: Vec<u8>, allow_unknown: bool) -> Parsed {
    match DynamicMessage::decode(descriptor.clone(), bytes.as_slice()) {
        Ok(_) => unwrapped(descriptor, bytes, allow_unknown),
        Err(error) => unparsable(name, descriptor, "binary", &error.to_string()),
    }
}

fn text_format(name: &str, descriptor: &MessageDescriptor, text: &str, allow_unknown: bool) -> Parsed {
    match DynamicMessage::parse_text_format(descriptor.clone(), text) {
        Ok(message) => unwrapped(descriptor, message.encode_to_vec(), allow_unknown),
        Err(error) => unparsable(name, descriptor, "text", &error.to_string()),
    }
}

/// What was not read by [`parse`], which unwraps each `TypedStruct` on its way.
fn unwrapped(descriptor: &MessageDescriptor, bytes: Vec<u8>, allow_unknown: bool) -> Parsed {
    let done = unwrap_typed_structs(descriptor, &bytes, allow_unknown);
    let bytes = done.bytes.unwrap_or(bytes);
    Parsed { bytes, errors: done.errors, unknown: done.unknown, warnings: Vec::new() }
}

fn unparsable(name: &str, descriptor: &MessageDescriptor, form: &str, why: &str) -> Parsed {
    let message =
        format!("Unable to parse file \"{name}\" as a {form} protobuf (type {}): {why}", descriptor.full_name());
    let errors = vec![ConfigError::new(FieldPath::root(), message)];
    Parsed { bytes: Vec::new(), errors, unknown: Vec::new(), warnings: Vec::new() }
}

#[cfg(test)]
mod tests;
