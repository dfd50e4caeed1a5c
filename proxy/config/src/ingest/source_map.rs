//! Finds the place in the text that belongs to a [`FieldPath`].
//!
//! Nothing is indexed while loading: the map keeps the texts, and the first question reads them again. Only errors ask,
//! so a good configuration pays nothing but the texts, and those only as long as the map lives.

use std::sync::Arc;

use super::tree::{NodeId, Tree, View};
use super::{Syntax, json, yaml};
use crate::diagnostics::{ConfigError, Position, Report, SourceText};
use crate::paths::{FieldPath, Segment};

/// The texts of a configuration, and what is needed to find a field in them.
#[derive(Clone, Debug, Default)]
pub struct SourceMap {
    texts: Vec<(SourceText, Option<Syntax>)>,
}

impl SourceMap {
    /// Adds a text; `None` for a file that is not YAML or JSON, in which nothing can be found.
    pub(super) fn push(&mut self, name: &str, text: &str, syntax: Option<Syntax>) {
        self.texts.push((SourceText { name: name.to_owned(), text: Arc::from(text) }, syntax));
    }

    /// The texts, in the order in which positions number them.
    pub fn sources(&self) -> Vec<SourceText> {
        self.texts.iter().map(|(source, _)| source.clone()).collect()
    }

    /// Where `path` stands, or the nearest field around it that the text has.
    pub fn locate(&self, path: &FieldPath) -> Option<Position> {
        locate(&self.trees(), path)
    }

    /// A report of `errors`, each with its place.
    pub fn report(&self, mut errors: Vec<ConfigError>) -> Report {
        let trees = self.trees();
        for error in &mut errors {
            if error.position.is_none() {
                error.position = locate(&trees, &error.path);
            }
        }
        Report::new(errors, self.sources())
    }

    fn trees(&self) -> Vec<Option<Tree<'_>>> {
        let read = |(i, (source, syntax)): (usize, &'_ (SourceText, Option<Syntax>))| {
            let number = u32::try_from(i).ok()?;
            // Borrowing from self through the closure's argument would shorten the lifetime, so look it up again.
            let _ = source;
            let text = &*self.texts[i].0.text;
            match (*syntax)? {
                Syntax::Yaml => yaml::read(text, number).ok(),
                Syntax::Json => json::read(text, number).ok(),
            }
        };
        self.texts.iter().enumerate().map(read).collect()
    }
}

/// Follows the path in all trees at once: where the message was merged from several, each may hold a part of it.
fn locate(trees: &[Option<Tree<'_>>], path: &FieldPath) -> Option<Position> {
    let mut at: Vec<Option<NodeId>> = trees.iter().map(|tree| tree.as_ref().map(|tree| tree.root)).collect();
    let mut best = None;
    for segment in path.segments() {
        let mut offset = 0;
        let mut found = false;
        for (i, tree) in trees.iter().enumerate() {
            let (Some(tree), Some(node)) = (tree, at[i]) else { continue };
            let step = match segment {
                Segment::Field(name) => field(tree, node, name),
                Segment::Key(key) => tree.get(node, key),
                Segment::Index(index) => {
                    let index = *index as usize;
                    let length = length(tree, node);
                    let item = index.checked_sub(offset).and_then(|index| item(tree, node, index));
                    offset += length;
                    item.map(|item| (item, item))
                }
            };
            at[i] = step.map(|(_, value)| value);
            if let Some((key, _)) = step {
                // A later text lies over an earlier one.
                best = u32::try_from(i).ok().map(|source| tree.position(key, source));
                found = true;
            }
        }
        if !found {
            break;
        }
    }
    best
}

/// The entry of a field, in either case of its name, also inside the `value` of an `Any` or a `TypedStruct`.
fn field(tree: &Tree<'_>, node: NodeId, name: &str) -> Option<(NodeId, NodeId)> {
    if let Some(found) = tree.get(node, name).or_else(|| tree.get(node, &camel_case(name))) {
        return Some(found);
    }
    let (_, value) = tree.get(node, "@type").and(tree.get(node, "value"))?;
    field(tree, value, name)
}

/// Element `index`, as protobuf counts: nested lists are flattened, and anything else is a list of one.
fn item(tree: &Tree<'_>, node: NodeId, index: usize) -> Option<NodeId> {
    match tree.view(node) {
        View::Sequence(items) => {
            let mut index = index;
            for &item_node in items {
                let length = match tree.view(item_node) {
                    View::Sequence(_) => length(tree, item_node),
                    _ => 1,
                };
                if index < length {
                    return item(tree, item_node, index);
                }
                index -= length;
            }
            None
        }
        _ => (index == 0).then_some(node),
    }
}

fn length(tree: &Tree<'_>, node: NodeId) -> usize {
    match tree.view(node) {
        View::Sequence(items) => items
            .iter()
            .map(|item| match tree.view(*item) {
                View::Sequence(_) => length(tree, *item),
                _ => 1,
            })
            .sum(),
        _ => 1,
    }
}

fn camel_case(name: &str) -> String {
    let mut camel = String::with_capacity(name.len());
    let mut upper = false;
    for character in name.chars() {
        match character {
            '_' => upper = true,
            c if upper => {
                camel.push(c.to_ascii_uppercase());
                upper = false;
            }
            c => camel.push(c),
        }
    }
    camel
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(texts: &[&str]) -> SourceMap {
        let mut map = SourceMap::default();
        for text in texts {
            map.push("a.yaml", text, Some(Syntax::Yaml));
        }
        map
    }

    fn place(map: &SourceMap, path: &FieldPath) -> Option<(u32, u32, u32)> {
        map.locate(path).map(|p| (p.source, p.line, p.column))
    }

    #[test]
    fn a_path_leads_to_its_field_or_the_nearest_one_around_it() {
        let map = map(&["staticResources:\n  clusters:\n  - name: a\n  - {name: b, loadAssignment: {x: 1}}\n"]);
        let clusters = FieldPath::root().field("static_resources").field("clusters");
        assert_eq!(place(&map, &clusters), Some((0, 2, 3)));
        assert_eq!(place(&map, &clusters.index(1).field("load_assignment")), Some((0, 4, 15)));
        assert_eq!(place(&map, &clusters.index(1).field("type")), Some((0, 4, 5)));
        assert_eq!(place(&map, &clusters.index(7)), Some((0, 2, 3)));
        assert_eq!(place(&map, &FieldPath::root()), None);
    }

    #[test]
    fn one_object_stands_for_a_list_and_typed_struct_is_looked_through() {
        let map = map(&["filters:\n  typed_config:\n    '@type': x/TypedStruct\n    value: {stat_prefix: a}\n"]);
        let filter = FieldPath::root().field("filters").index(0);
        assert_eq!(place(&map, &filter.field("typed_config").field("stat_prefix")), Some((0, 4, 13)));
    }

    #[test]
    fn lists_of_a_text_laid_over_another_are_counted_on() {
        let map = map(&["clusters: [{name: a}, {name: b}]\n", "clusters: {name: c}\n"]);
        let clusters = FieldPath::root().field("clusters");
        assert_eq!(place(&map, &clusters.index(1).field("name")), Some((0, 1, 24)));
        assert_eq!(place(&map, &clusters.index(2).field("name")), Some((1, 1, 12)));
    }
}
