//! Errors of a configuration, and how they are shown.
//!
//! Whoever finds something wrong (ingest, constraints, support table, decoders) makes a [`ConfigError`] with the path
//! and, where it knows it, the position. [`Report`] collects all errors of one run and renders them as text with a
//! caret line or as JSON. Finding the position that belongs to a path is the work of the ingest's source map.

use std::fmt;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Element, Level, Renderer, Snippet};
use serde_json::{Map, Value, json};

use crate::paths::FieldPath;

/// A place in one of the texts of a [`Report`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Which text: 0 is the file, 1 the text laid over it (`--config-yaml`).
    pub source: u32,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Length in characters of what is underlined, at least 1.
    pub length: u32,
}

/// Something wrong in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The field that is wrong.
    pub path: FieldPath,
    /// What is wrong with it, without the path.
    pub message: String,
    /// What was probably meant, when something close is known.
    pub suggestion: Option<String>,
    /// Where it stands; decoders leave it out, the report looks it up by the path.
    pub position: Option<Position>,
}

impl ConfigError {
    /// An error at `path`.
    pub fn new(path: FieldPath, message: impl Into<String>) -> Self {
        ConfigError { path, message: message.into(), suggestion: None, position: None }
    }

    /// Adds what was probably meant: the word itself, as in `did you mean 'WORD'?`.
    pub fn with_suggestion(mut self, suggestion: Option<impl Into<String>>) -> Self {
        self.suggestion = suggestion.map(Into::into);
        self
    }

    /// Adds where it stands.
    pub fn at(mut self, position: Position) -> Self {
        self.position = Some(position);
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_root() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(suggestion) = &self.suggestion {
            write!(f, "; did you mean '{suggestion}'?")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// A text that a configuration was read from.
#[derive(Clone, Debug)]
pub struct SourceText {
    /// The name shown: the path as the user gave it, or `--config-yaml`.
    pub name: String,
    /// The text; empty for binary files.
    pub text: Arc<str>,
}

/// All errors of one run, in the order in which they stand in the file.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The errors; never empty when a load failed.
    pub errors: Vec<ConfigError>,
    /// The texts that positions point into.
    pub sources: Vec<SourceText>,
}

impl Report {
    /// A report of errors that already carry their positions.
    pub fn new(mut errors: Vec<ConfigError>, sources: Vec<SourceText>) -> Self {
        errors.sort_by_key(|e| e.position.map_or((0, 0, 0), |p| (p.source, p.line, p.column)));
        errors.dedup();
        Report { errors, sources }
    }

    /// A report of one error that has no place in a file, such as a file that cannot be read.
    pub fn general(message: impl Into<String>) -> Self {
        Report { errors: vec![ConfigError::new(FieldPath::root(), message)], sources: Vec::new() }
    }

    /// The text form: for each error its message, `file:line:column`, the line with a caret below, the path and a
    /// did-you-mean; at the end the number of errors.
    pub fn to_text(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for error in &self.errors {
            let path = format!("in {}", error.path);
            let help = error.suggestion.as_ref().map(|s| format!("did you mean '{s}'?"));
            let mut group = Level::ERROR.primary_title(error.message.as_str()).elements(Vec::<Element<'_>>::new());
            if let Some((source, position, line)) = self.locate(error) {
                let (start, end) = underline(line, position);
                let (line, start, end) = cut(line, start, end);
                group = group.element(
                    Snippet::source(line)
                        .line_start(position.line as usize)
                        .path(source.name.as_str())
                        .fold(false)
                        .annotation(AnnotationKind::Primary.span(start..end)),
                );
            } else if let Some(source) = self.sources.first() {
                group = group.element(annotate_snippets::Origin::path(source.name.as_str()));
            }
            if !error.path.is_root() {
                group = group.element(Level::NOTE.message(path.as_str()));
            }
            if let Some(help) = &help {
                group = group.element(Level::HELP.message(help.as_str()));
            }
            text.push_str(&renderer.render(&[group]));
            text.push_str("\n\n");
        }
        text.push_str(&match self.errors.len() {
            1 => "1 error".to_owned(),
            n => format!("{n} errors"),
        });
        text
    }

    /// The form for machines: `{"errors": [{"message", "path", "file", "line", "column", "suggestion"}]}`; what is not
    /// known is left out.
    pub fn to_json(&self) -> Value {
        let errors: Vec<Value> = self
            .errors
            .iter()
            .map(|error| {
                let mut object = Map::new();
                object.insert("message".into(), json!(error.message));
                if !error.path.is_root() {
                    object.insert("path".into(), json!(error.path.to_string()));
                }
                let source = error.position.map_or(0, |p| p.source as usize);
                if let Some(source) = self.sources.get(source) {
                    object.insert("file".into(), json!(source.name));
                }
                if let Some(position) = error.position {
                    object.insert("line".into(), json!(position.line));
                    object.insert("column".into(), json!(position.column));
                }
                if let Some(suggestion) = &error.suggestion {
                    object.insert("suggestion".into(), json!(suggestion));
                }
                Value::Object(object)
            })
            .collect();
        json!({ "errors": errors })
    }

    fn locate<'a>(&'a self, error: &ConfigError) -> Option<(&'a SourceText, Position, &'a str)> {
        let position = error.position?;
        let source = self.sources.get(position.source as usize)?;
        let wanted = position.line.checked_sub(1)? as usize;
        if let Some(line) = source.text.lines().nth(wanted) {
            return Some((source, position, line));
        }
        // The end of the file: show where its last line ends.
        let line = source.text.lines().last()?;
        let last = Position {
            line: u32::try_from(source.text.lines().count()).ok()?,
            column: u32::try_from(line.chars().count() + 1).ok()?,
            ..position
        };
        Some((source, last, line))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text(false))
    }
}

impl std::error::Error for Report {}

/// The byte range of `line` to underline; never beyond the line.
fn underline(line: &str, position: Position) -> (usize, usize) {
    let byte = |chars: usize| line.char_indices().nth(chars).map_or(line.len(), |(at, _)| at);
    let first = position.column.saturating_sub(1) as usize;
    let start = byte(first);
    let end = byte(first.saturating_add(position.length.max(1) as usize));
    (start, end.max(start))
}

/// What to show of a line that is longer than a screen (JSON is often one line): the part around what is underlined.
fn cut(line: &str, start: usize, end: usize) -> (&str, usize, usize) {
    const BEFORE: usize = 60;
    const WHOLE: usize = 240;
    if line.len() <= WHOLE {
        return (line, start, end);
    }
    let from = (0..=start.saturating_sub(BEFORE)).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
    let to = (from + WHOLE).min(line.len());
    let to = (to..=line.len()).find(|at| line.is_char_boundary(*at)).unwrap_or(line.len());
    (&line[from..to], start - from, end.min(to).max(start) - from)
}

/// The word of `candidates` that is closest to `word`, if one is close enough to be meant.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&lower, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(score, _)| *score >= 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let error = ConfigError::new(FieldPath::root().field("admin").field("adress"), "no such field 'adress'")
            .with_suggestion(Some("address"))
            .at(Position { source: 0, line: 2, column: 3, length: 6 });
        let sources = vec![SourceText { name: "envoy.yaml".into(), text: "admin:\n  adress: {}\n".into() }];
        Report::new(vec![error], sources)
    }

    #[test]
    fn the_text_form_has_a_place_a_caret_and_a_suggestion() {
        let expected = "\
error: no such field 'adress'
 --> envoy.yaml:2:3
  |
2 |   adress: {}
  |   ^^^^^^
  |
  = note: in admin.adress
  = help: did you mean 'address'?

1 error";
        assert_eq!(report().to_text(false), expected);
    }

    #[test]
    fn the_machine_form_has_the_same_facts() {
        let expected = json!({"errors": [{
            "message": "no such field 'adress'", "path": "admin.adress", "file": "envoy.yaml",
            "line": 2, "column": 3, "suggestion": "address",
        }]});
        assert_eq!(report().to_json(), expected);
    }

    #[test]
    fn of_a_long_line_only_the_part_around_the_error_is_shown() {
        let line = format!("{{{}\"adress\": {{}}{}}}", "\"ä\": 1, ".repeat(1000), ", \"b\": 2".repeat(1000));
        let column = line.chars().position(|c| c == 'd').map_or(0, |at| at as u32 - 1);
        let error = ConfigError::new(FieldPath::root(), "x").at(Position { source: 0, line: 1, column, length: 8 });
        let report = Report::new(vec![error], vec![SourceText { name: "a.json".into(), text: line.into() }]);
        let text = report.to_text(false);
        assert!(text.len() < 1000 && text.contains("\"adress\"") && text.contains("^^^^^^^^"), "{text}");
    }

    #[test]
    fn the_end_of_a_file_is_a_place() {
        let error = ConfigError::new(FieldPath::root(), "x").at(Position { source: 0, line: 2, column: 1, length: 1 });
        let report = Report::new(vec![error], vec![SourceText { name: "a.json".into(), text: "{ab\n".into() }]);
        assert!(report.to_text(false).contains("1 | {ab\n  |    ^"), "{}", report.to_text(false));
    }

    #[test]
    fn only_close_words_are_suggested() {
        assert_eq!(closest("adress", ["address", "access_log_path"]), Some("address"));
        assert_eq!(closest("ROUND_ROBBIN", ["ROUND_ROBIN", "RANDOM"]), Some("ROUND_ROBIN"));
        assert_eq!(closest("zzz", ["address"]), None);
    }
}
