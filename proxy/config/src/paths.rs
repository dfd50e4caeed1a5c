//! Where in a configuration something stands: `static_resources.clusters[2].load_assignment.endpoints[0]`.
//!
//! The ingest, the constraint checks and every decoder extend a [`FieldPath`] as they descend and put it into the
//! errors that they raise. Cloning and extending are one small allocation; nothing is formatted until a path is shown.
//! The contents of a `typed_config` simply continue the path. This file does not know about positions in a file: the
//! source map of the ingest turns a path into one.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// One step of a [`FieldPath`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Segment {
    /// A field by its name in the `.proto` file.
    Field(Cow<'static, str>),
    /// An element of a repeated field.
    Index(u32),
    /// An entry of a map field or of a `google.protobuf.Struct`.
    Key(Arc<str>),
}

struct Node {
    parent: FieldPath,
    segment: Segment,
}

/// A persistent path into a configuration; the root is the message that was loaded (most often the bootstrap).
#[derive(Clone, Default)]
pub struct FieldPath(Option<Arc<Node>>);

impl FieldPath {
    /// The path of the whole message.
    pub fn root() -> Self {
        FieldPath(None)
    }

    /// The field `name` of the message at this path.
    pub fn field(&self, name: impl Into<Cow<'static, str>>) -> Self {
        self.push(Segment::Field(name.into()))
    }

    /// Element `index` of the repeated field at this path.
    pub fn index(&self, index: usize) -> Self {
        self.push(Segment::Index(u32::try_from(index).unwrap_or(u32::MAX)))
    }

    /// Entry `key` of the map at this path.
    pub fn key(&self, key: &str) -> Self {
        self.push(Segment::Key(Arc::from(key)))
    }

    /// Extends the path by one step.
    pub fn push(&self, segment: Segment) -> Self {
        FieldPath(Some(Arc::new(Node { parent: self.clone(), segment })))
    }

    /// This path, continued by the steps of `below`.
    pub fn join(&self, below: &FieldPath) -> Self {
        below.segments().into_iter().fold(self.clone(), |path, segment| path.push(segment.clone()))
    }

    /// Reads the text that [`FieldPath`]'s `Display` writes. What does not look like a path becomes one field.
    pub fn parse(text: &str) -> Self {
        let mut path = FieldPath::root();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix("[\"") {
                let end = after.find("\"]").unwrap_or(after.len());
                path = path.key(&after[..end]);
                rest = after.get(end + 2..).unwrap_or("");
            } else if let Some((index, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']'))
                && let Ok(index) = index.parse()
            {
                path = path.index(index);
                rest = after;
            } else {
                let start = rest.strip_prefix('.').unwrap_or(rest);
                let end = start.find(['.', '[']).filter(|end| *end > 0).unwrap_or(start.len());
                path = path.field(start[..end].to_owned());
                rest = &start[end..];
            }
        }
        path
    }

    /// Whether this is the path of the whole message.
    pub fn is_root(&self) -> bool {
        self.0.is_none()
    }

    /// The path of the message, list or map that this path is in; `None` for the root.
    pub fn parent(&self) -> Option<&FieldPath> {
        self.0.as_ref().map(|node| &node.parent)
    }

    /// Whether this path is `other` or lies below it.
    pub fn is_within(&self, other: &FieldPath) -> bool {
        let (own, other) = (self.segments(), other.segments());
        own.len() >= other.len() && own.iter().zip(&other).all(|(a, b)| a == b)
    }

    /// The steps from the root down.
    pub fn segments(&self) -> Vec<&Segment> {
        let mut segments = Vec::new();
        let mut at = self;
        while let Some(node) = &at.0 {
            segments.push(&node.segment);
            at = &node.parent;
        }
        segments.reverse();
        segments
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_segments(f, self.segments())
    }
}

/// The text of a path from the root that is held as its steps.
pub fn text(segments: &[Segment]) -> String {
    let mut text = String::with_capacity(segments.len() * 12);
    // Writing to a String cannot fail.
    let _ = write_segments(&mut text, segments);
    text
}

fn write_segments<'a>(out: &mut impl fmt::Write, segments: impl IntoIterator<Item = &'a Segment>) -> fmt::Result {
    for (i, segment) in segments.into_iter().enumerate() {
        match segment {
            Segment::Field(name) if i == 0 => write!(out, "{name}")?,
            Segment::Field(name) => write!(out, ".{name}")?,
            Segment::Index(index) => write!(out, "[{index}]")?,
            Segment::Key(key) => write!(out, "[{key:?}]")?,
        }
    }
    Ok(())
}

impl fmt::Debug for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FieldPath({self})")
    }
}

impl PartialEq for FieldPath {
    fn eq(&self, other: &Self) -> bool {
        self.segments() == other.segments()
    }
}

impl Eq for FieldPath {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_back_from_its_text() {
        for text in ["static_resources.clusters[2].name", "a", "", "x.map[\"k.v\"].y[0]"] {
            assert_eq!(FieldPath::parse(text).to_string(), text);
        }
    }

    #[test]
    fn a_path_reads_like_the_configuration() {
        let cluster = FieldPath::root().field("static_resources").field("clusters").index(2);
        let endpoint = cluster.field("load_assignment").field("endpoints").index(0);
        assert_eq!(endpoint.to_string(), "static_resources.clusters[2].load_assignment.endpoints[0]");
        let options = cluster.field("typed_extension_protocol_options").key("envoy.http \"x\"");
        assert_eq!(
            options.to_string(),
            r#"static_resources.clusters[2].typed_extension_protocol_options["envoy.http \"x\""]"#
        );
        assert_eq!(FieldPath::root().to_string(), "");
    }

    #[test]
    fn paths_built_apart_are_equal() {
        let a = FieldPath::root().field("a").index(1);
        let b = FieldPath::root().field(String::from("a")).index(1);
        assert_eq!(a, b);
        assert_ne!(a, b.field("c"));
        assert!(b.field("c").is_within(&a) && !a.is_within(&b.field("c")));
        assert_eq!(a.parent(), Some(&FieldPath::root().field("a")));
    }
}
