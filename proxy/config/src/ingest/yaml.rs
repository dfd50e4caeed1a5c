//! Reads YAML into a [`Tree`], in the dialect of Envoy's reader: the first document counts, a key tagged `!ignore` is
//! dropped (a home for anchors), aliases are followed, `<<` is a key like any other.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};

use super::tree::{BuildError, Builder, Leaf, MAX_DEPTH, NodeId, Place, Tree};
use crate::diagnostics::{ConfigError, Position};
use crate::paths::FieldPath;

/// The tree of `text`; `source` says which text of the report it is.
pub(crate) fn read(text: &str, source: u32) -> Result<Tree<'_>, ConfigError> {
    let fail = |mark: Marker, message: String| {
        let position = Position { source, line: to_u32(mark.line()), column: to_u32(mark.col() + 1), length: 1 };
        ConfigError::new(FieldPath::root(), message).at(position)
    };
    let mut parser = Parser::new_from_str(text);
    let mut builder = Builder::new(false);
    let mut anchors: HashMap<usize, NodeId> = HashMap::new();
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|e| fail(*e.marker(), format!("invalid YAML: {}", e.info())))?;
        let place = place(&span);
        let built = match event {
            Event::Scalar(value, style, anchor, tag) => {
                let ignored = builder.expects_key() && tag.as_ref().is_some_and(|t| t.suffix == "ignore");
                let string = style != ScalarStyle::Plain
                    || tag.as_ref().is_some_and(|tag| tag.suffix.is_empty() && matches!(tag.handle.as_str(), "" | "!"));
                let leaf = if string { Leaf::Quoted(value) } else { Leaf::Plain(value) };
                builder.leaf(leaf, place, ignored).map(|id| (anchor, Some(id)))
            }
            Event::SequenceStart(anchor, _) => builder.start_sequence(place).map(|id| (anchor, Some(id))),
            Event::MappingStart(anchor, _) => builder.start_mapping(place).map(|id| (anchor, Some(id))),
            Event::SequenceEnd | Event::MappingEnd => builder.end().map(|()| (0, None)),
            Event::Alias(anchor) => {
                let target = anchors.get(&anchor).copied();
                match target.filter(|id| !builder.is_open(*id)) {
                    Some(id) => builder.alias(id).map(|()| (0, None)),
                    None => return Err(fail(span.start, "invalid YAML: an anchor contains itself".to_owned())),
                }
            }
            Event::DocumentEnd | Event::StreamEnd => break,
            Event::Nothing | Event::StreamStart | Event::DocumentStart(_) => Ok((0, None)),
        };
        match built {
            Ok((anchor, Some(id))) if anchor != 0 => {
                anchors.insert(anchor, id);
            }
            Ok(_) => {}
            Err(BuildError::TooDeep) => {
                return Err(fail(span.start, format!("invalid YAML: nested deeper than {MAX_DEPTH} levels")));
            }
            Err(BuildError::KeyNotScalar) => {
                return Err(fail(span.start, "invalid YAML: the key of a mapping must be a scalar".to_owned()));
            }
            Err(BuildError::TooLarge) => return Err(fail(span.start, "the file is too large".to_owned())),
        }
    }
    builder.finish().ok_or_else(|| {
        ConfigError::new(FieldPath::root(), "the file is empty: expected a mapping with the configuration")
    })
}

fn place(span: &Span) -> Place {
    Place { line: to_u32(span.start.line()), column: to_u32(span.start.col() + 1) }
}

fn to_u32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::tree::{Scalar, View};
    use super::*;

    fn keys<'t>(tree: &'t Tree<'_>, id: NodeId) -> Vec<&'t str> {
        match tree.view(id) {
            View::Mapping(entries) => entries.iter().filter_map(|(k, _)| tree.text(*k)).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn ignored_keys_are_dropped_and_aliases_followed() {
        let tree = read("!ignore templates: &node\n  id: a\nnode: *node\n", 0).unwrap();
        assert_eq!(keys(&tree, tree.root), ["node"]);
        let (_, node) = tree.get(tree.root, "node").unwrap();
        assert_eq!(keys(&tree, node), ["id"]);
    }

    #[test]
    fn the_last_of_equal_keys_counts_and_is_remembered() {
        let tree = read("a: 1\nb: 2\na: 3\n", 0).unwrap();
        assert_eq!(keys(&tree, tree.root), ["b", "a"]);
        let (_, a) = tree.get(tree.root, "a").unwrap();
        assert!(matches!(tree.view(a), View::Scalar(Scalar::Int(3))));
        assert_eq!(tree.overridden.len(), 1);
    }

    #[test]
    fn only_the_first_document_counts() {
        let tree = read("a: 1\n---\nb: [\n", 0).unwrap();
        assert_eq!(keys(&tree, tree.root), ["a"]);
    }

    #[test]
    fn positions_are_those_of_the_text() {
        let tree = read("ä: {bö: 'x y'}\n", 3).unwrap();
        let (_, inner) = tree.get(tree.root, "ä").unwrap();
        let (key, value) = tree.get(inner, "bö").unwrap();
        assert_eq!(tree.position(key, 3), Position { source: 3, line: 1, column: 5, length: 2 });
        assert_eq!(tree.position(value, 3), Position { source: 3, line: 1, column: 9, length: 5 });
    }

    #[test]
    fn loops_depth_and_syntax_are_errors_with_a_place() {
        let error = read("a: &x [*x]\n", 0).unwrap_err();
        assert_eq!(error.message, "invalid YAML: an anchor contains itself");
        assert_eq!(error.position.map(|p| (p.line, p.column)), Some((1, 8)));
        assert!(read(&"[".repeat(5000), 0).is_err());
        assert!(read("a: [1\n", 0).unwrap_err().message.starts_with("invalid YAML: "));
        assert!(read("", 0).unwrap_err().message.starts_with("the file is empty"));
    }
}
