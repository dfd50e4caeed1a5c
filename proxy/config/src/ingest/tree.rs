//! The position-keeping tree that YAML and JSON are read into before anything knows about messages.
//!
//! Nodes lie in one vector and borrow from the text; an alias is a second reference to the node of its anchor. The
//! readers (`yaml`, `json`) build it, the walk over the descriptors and the source map read it.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::diagnostics::Position;

/// How deep a text may nest; protobuf's JSON reader, and with it Envoy, stops at the same depth.
pub(crate) const MAX_DEPTH: usize = 100;

/// Index of a node in its tree.
pub(crate) type NodeId = u32;

/// A YAML or JSON text as a tree.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    nodes: Vec<Node<'a>>,
    items: Vec<NodeId>,
    entries: Vec<(NodeId, NodeId)>,
    pub(crate) root: NodeId,
    /// Keys that stand twice in a YAML mapping; the last one counts, as in Envoy.
    pub(crate) overridden: Vec<NodeId>,
}

#[derive(Debug)]
struct Node<'a> {
    kind: Kind<'a>,
    line: u32,
    column: u32,
}

/// Small on purpose: a configuration of ten thousand clusters has a million nodes.
#[derive(Debug)]
enum Kind<'a> {
    Plain(&'a str),
    Quoted(&'a str),
    OwnedPlain(Box<str>),
    OwnedQuoted(Box<str>),
    JsonNumber(&'a str),
    JsonBool(bool),
    JsonNull,
    Sequence { start: u32, length: u32 },
    Mapping { start: u32, length: u32 },
}

/// A leaf that a reader hands to the builder.
#[derive(Debug)]
pub(crate) enum Leaf<'a> {
    /// A YAML scalar without quotes, whose type depends on its text.
    Plain(Cow<'a, str>),
    /// A string for sure.
    Quoted(Cow<'a, str>),
    /// A JSON number as written.
    JsonNumber(&'a str),
    /// A JSON boolean.
    JsonBool(bool),
    /// A JSON null.
    JsonNull,
}

/// What a leaf means, by the rules of Envoy's YAML reader (yaml-cpp) or of JSON.
#[derive(Debug, PartialEq)]
pub(crate) enum Scalar<'t> {
    Null,
    Bool(bool),
    /// An integer of YAML that fits 32 bits.
    Int(i64),
    /// A number of JSON as written.
    Number(&'t str),
    Str(Cow<'t, str>),
}

/// A node by its shape.
#[derive(Debug)]
pub(crate) enum View<'t> {
    Scalar(Scalar<'t>),
    Sequence(&'t [NodeId]),
    Mapping(&'t [(NodeId, NodeId)]),
}

impl<'a> Tree<'a> {
    pub(crate) fn view(&self, id: NodeId) -> View<'_> {
        match &self.node(id).kind {
            Kind::Plain(text) => View::Scalar(plain(text)),
            Kind::OwnedPlain(text) => View::Scalar(plain(text)),
            Kind::Quoted(text) => View::Scalar(Scalar::Str(Cow::Borrowed(text))),
            Kind::OwnedQuoted(text) => View::Scalar(Scalar::Str(Cow::Borrowed(text))),
            Kind::JsonNumber(text) => View::Scalar(Scalar::Number(text)),
            Kind::JsonBool(value) => View::Scalar(Scalar::Bool(*value)),
            Kind::JsonNull => View::Scalar(Scalar::Null),
            Kind::Sequence { start, length } => View::Sequence(&self.items[range(*start, *length)]),
            Kind::Mapping { start, length } => View::Mapping(&self.entries[range(*start, *length)]),
        }
    }

    /// How many nodes there are.
    pub(crate) fn size(&self) -> u32 {
        u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)
    }

    /// The text of a leaf as written, whatever its type; `None` for sequences and mappings.
    pub(crate) fn text(&self, id: NodeId) -> Option<&str> {
        match &self.node(id).kind {
            Kind::Plain(text) | Kind::Quoted(text) | Kind::JsonNumber(text) => Some(text),
            Kind::OwnedPlain(text) | Kind::OwnedQuoted(text) => Some(text),
            Kind::JsonBool(value) => Some(if *value { "true" } else { "false" }),
            Kind::JsonNull => Some("null"),
            Kind::Sequence { .. } | Kind::Mapping { .. } => None,
        }
    }

    pub(crate) fn is_null(&self, id: NodeId) -> bool {
        matches!(self.view(id), View::Scalar(Scalar::Null))
    }

    pub(crate) fn position(&self, id: NodeId, source: u32) -> Position {
        let node = self.node(id);
        let length = match &node.kind {
            Kind::Sequence { .. } | Kind::Mapping { .. } => 1,
            kind => {
                // A text of several lines is underlined at its start only.
                let text = self.text(id).filter(|text| !text.contains('\n')).unwrap_or_default();
                let quotes = if matches!(kind, Kind::Quoted(_) | Kind::OwnedQuoted(_)) { 2 } else { 0 };
                u32::try_from(text.chars().count() + quotes).unwrap_or(u32::MAX)
            }
        };
        Position { source, line: node.line, column: node.column, length: length.max(1) }
    }

    /// The value of `key` in the mapping `id`; the last one if there are several.
    pub(crate) fn get(&self, id: NodeId, key: &str) -> Option<(NodeId, NodeId)> {
        match self.view(id) {
            View::Mapping(entries) => entries.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).copied(),
            _ => None,
        }
    }

    fn node(&self, id: NodeId) -> &Node<'a> {
        &self.nodes[id as usize]
    }
}

fn range(start: u32, length: u32) -> std::ops::Range<usize> {
    start as usize..start as usize + length as usize
}

/// The type of an unquoted YAML scalar: null, one of the YAML 1.1 booleans, an integer (also `0x10` and `010`), and a
/// string for all else, numbers with a fraction and integers beyond 32 bits among them.
fn plain(text: &str) -> Scalar<'_> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Scalar::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Scalar::Bool(false);
        }
        _ => {}
    }
    match integer(text) {
        Some(value) if i32::try_from(value).is_ok() => Scalar::Int(value),
        Some(value) => Scalar::Str(Cow::Owned(value.to_string())),
        None => Scalar::Str(Cow::Borrowed(text)),
    }
}

/// Decimal, `0x` hexadecimal or `0` octal, with a sign.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if !digits.as_bytes().first()?.is_ascii_digit() {
        return None;
    }
    let magnitude = if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        if hex.starts_with('+') {
            return None;
        }
        i128::from_str_radix(hex, 16).ok()?
    } else if digits.len() > 1 && digits.starts_with('0') {
        i128::from_str_radix(&digits[1..], 8).ok().filter(|_| digits[1..].bytes().all(|b| b.is_ascii_digit()))?
    } else {
        digits.parse::<i128>().ok()?
    };
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// Where a node begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

enum Frame {
    Sequence { id: NodeId, items: Vec<NodeId> },
    Mapping { id: NodeId, entries: Vec<(NodeId, NodeId)>, key: Option<(NodeId, bool)> },
}

/// Why a tree cannot be built further.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BuildError {
    TooDeep,
    KeyNotScalar,
    TooLarge,
}

/// Builds a [`Tree`] from the events of a reader.
pub(crate) struct Builder<'a> {
    tree: Tree<'a>,
    frames: Vec<Frame>,
    done: bool,
    keep_duplicates: bool,
}

impl<'a> Builder<'a> {
    /// `keep_duplicates`: a JSON object keeps keys that stand twice, since protobuf merges them; YAML keeps the last.
    pub(crate) fn new(keep_duplicates: bool) -> Self {
        let tree = Tree { nodes: Vec::new(), items: Vec::new(), entries: Vec::new(), root: 0, overridden: Vec::new() };
        Builder { tree, frames: Vec::new(), done: false, keep_duplicates }
    }

    pub(crate) fn leaf(&mut self, leaf: Leaf<'a>, place: Place, ignored: bool) -> Result<NodeId, BuildError> {
        let kind = match leaf {
            Leaf::Plain(Cow::Borrowed(text)) => Kind::Plain(text),
            Leaf::Plain(Cow::Owned(text)) => Kind::OwnedPlain(text.into()),
            Leaf::Quoted(Cow::Borrowed(text)) => Kind::Quoted(text),
            Leaf::Quoted(Cow::Owned(text)) => Kind::OwnedQuoted(text.into()),
            Leaf::JsonNumber(text) => Kind::JsonNumber(text),
            Leaf::JsonBool(value) => Kind::JsonBool(value),
            Leaf::JsonNull => Kind::JsonNull,
        };
        let id = self.push(kind, place)?;
        self.place(id, ignored)?;
        Ok(id)
    }

    /// A second reference to the finished node `id`.
    pub(crate) fn alias(&mut self, id: NodeId) -> Result<(), BuildError> {
        self.place(id, false)
    }

    pub(crate) fn start_sequence(&mut self, place: Place) -> Result<NodeId, BuildError> {
        self.check_container()?;
        let id = self.push(Kind::Sequence { start: 0, length: 0 }, place)?;
        self.frames.push(Frame::Sequence { id, items: Vec::new() });
        Ok(id)
    }

    pub(crate) fn start_mapping(&mut self, place: Place) -> Result<NodeId, BuildError> {
        self.check_container()?;
        let id = self.push(Kind::Mapping { start: 0, length: 0 }, place)?;
        self.frames.push(Frame::Mapping { id, entries: Vec::new(), key: None });
        Ok(id)
    }

    /// Ends the innermost sequence or mapping.
    pub(crate) fn end(&mut self) -> Result<(), BuildError> {
        let id = match self.frames.pop() {
            Some(Frame::Sequence { id, items }) => {
                let start = index(self.tree.items.len())?;
                let length = index(items.len())?;
                self.tree.items.extend(items);
                self.tree.nodes[id as usize].kind = Kind::Sequence { start, length };
                id
            }
            Some(Frame::Mapping { id, mut entries, .. }) => {
                if !self.keep_duplicates {
                    self.drop_overridden(&mut entries);
                }
                let start = index(self.tree.entries.len())?;
                let length = index(entries.len())?;
                self.tree.entries.extend(entries);
                self.tree.nodes[id as usize].kind = Kind::Mapping { start, length };
                id
            }
            None => return Ok(()),
        };
        self.place(id, false)
    }

    /// Whether the next node is the key of a mapping.
    pub(crate) fn expects_key(&self) -> bool {
        matches!(self.frames.last(), Some(Frame::Mapping { key: None, .. }))
    }

    /// Whether `id` is still being built, so that an alias to it would be a loop.
    pub(crate) fn is_open(&self, id: NodeId) -> bool {
        self.frames.iter().any(|frame| match frame {
            Frame::Sequence { id: open, .. } | Frame::Mapping { id: open, .. } => *open == id,
        })
    }

    /// The tree, if a whole document was read.
    pub(crate) fn finish(self) -> Option<Tree<'a>> {
        self.done.then_some(self.tree)
    }

    fn push(&mut self, kind: Kind<'a>, place: Place) -> Result<NodeId, BuildError> {
        let id = index(self.tree.nodes.len())?;
        self.tree.nodes.push(Node { kind, line: place.line, column: place.column });
        Ok(id)
    }

    fn check_container(&self) -> Result<(), BuildError> {
        if self.frames.len() >= MAX_DEPTH {
            Err(BuildError::TooDeep)
        } else if self.expects_key() {
            Err(BuildError::KeyNotScalar)
        } else {
            Ok(())
        }
    }

    fn place(&mut self, id: NodeId, ignored: bool) -> Result<(), BuildError> {
        let is_leaf = !matches!(self.tree.node(id).kind, Kind::Sequence { .. } | Kind::Mapping { .. });
        match self.frames.last_mut() {
            None => {
                self.tree.root = id;
                self.done = true;
            }
            Some(Frame::Sequence { items, .. }) => items.push(id),
            Some(Frame::Mapping { entries, key, .. }) => match key.take() {
                None if !is_leaf => return Err(BuildError::KeyNotScalar),
                None => *key = Some((id, ignored)),
                Some((_, true)) => {}
                Some((key, false)) => entries.push((key, id)),
            },
        }
        Ok(())
    }

    fn drop_overridden(&mut self, entries: &mut Vec<(NodeId, NodeId)>) {
        let tree = &self.tree;
        let mut dropped = Vec::new();
        if entries.len() <= 8 {
            for (i, (key, _)) in entries.iter().enumerate() {
                if entries[i + 1..].iter().any(|(later, _)| tree.text(*later) == tree.text(*key)) {
                    dropped.push(*key);
                }
            }
        } else {
            let mut last = HashMap::with_capacity(entries.len());
            for (key, _) in entries.iter() {
                dropped.extend(last.insert(tree.text(*key), *key));
            }
        }
        if !dropped.is_empty() {
            entries.retain(|(key, _)| !dropped.contains(key));
            self.tree.overridden.extend(dropped);
        }
    }
}

fn index(length: usize) -> Result<u32, BuildError> {
    u32::try_from(length).map_err(|_| BuildError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unquoted_scalars_have_the_types_that_envoy_gives_them() {
        for text in ["y", "Yes", "ON", "true"] {
            assert_eq!(plain(text), Scalar::Bool(true), "{text}");
        }
        for text in ["n", "No", "OFF", "false"] {
            assert_eq!(plain(text), Scalar::Bool(false), "{text}");
        }
        for (text, value) in [("5", 5), ("0x10", 16), ("010", 8), ("+1", 1), ("-1", -1), ("-0x10", -16), ("0", 0)] {
            assert_eq!(plain(text), Scalar::Int(value), "{text}");
        }
        for text in ["1e3", ".5", "1.5", "0o10", "2020-01-01", "tRue", "1_000", "08", "0x", "-", "+", "NaN", "5s"] {
            assert_eq!(plain(text), Scalar::Str(text.into()), "{text}");
        }
        assert_eq!(plain("12345678901"), Scalar::Str("12345678901".into()));
        assert_eq!(plain("~"), Scalar::Null);
    }
}
