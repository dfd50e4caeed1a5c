//! A radix trie from byte strings to lists of numbers, flat in memory: all prefixes of a text in one walk.
//!
//! Used for path prefixes and, over reversed host names, for domain suffixes. Immutable once built.

/// The trie. With `fold`, keys were lower-cased by the caller and texts are compared without case.
#[derive(Debug, Default)]
pub(super) struct Trie {
    nodes: Box<[Node]>,
    labels: Box<[u8]>,
    /// First byte of a child's label, sorted within a node, and the child at the same place.
    bytes: Box<[u8]>,
    children: Box<[u32]>,
    values: Box<[u32]>,
    fold: bool,
}

#[derive(Debug)]
struct Node {
    /// Without its first byte, which led here.
    label: (u32, u32),
    edges: (u32, u32),
    values: (u32, u32),
}

#[derive(Default)]
struct Draft {
    label: Vec<u8>,
    edges: Vec<(u8, u32)>,
    values: Vec<u32>,
}

impl Trie {
    /// From pairs; values of equal keys keep the order of the pairs.
    pub(super) fn build<'a>(pairs: impl IntoIterator<Item = (&'a [u8], u32)>, fold: bool) -> Trie {
        let mut drafts = vec![Draft::default()];
        for (key, value) in pairs {
            insert(&mut drafts, key, value);
        }
        if drafts.len() == 1 && drafts[0].values.is_empty() {
            return Trie { fold, ..Trie::default() };
        }
        let (mut nodes, mut labels, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let (mut bytes, mut children) = (Vec::new(), Vec::new());
        for mut draft in drafts {
            draft.edges.sort_unstable();
            let label = draft.label.get(1..).unwrap_or_default();
            nodes.push(Node {
                label: span(labels.len(), label.len()),
                edges: span(bytes.len(), draft.edges.len()),
                values: span(values.len(), draft.values.len()),
            });
            labels.extend_from_slice(label);
            bytes.extend(draft.edges.iter().map(|edge| edge.0));
            children.extend(draft.edges.iter().map(|edge| edge.1));
            values.append(&mut draft.values);
        }
        Trie {
            nodes: nodes.into(),
            labels: labels.into(),
            bytes: bytes.into(),
            children: children.into(),
            values: values.into(),
            fold,
        }
    }

    /// True when nothing was put in.
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Calls `found` with the length and the values of every key that `text` begins with, shortest first.
    #[inline]
    pub(super) fn visit<'t>(&'t self, text: &[u8], mut found: impl FnMut(usize, &'t [u32])) {
        let Some(mut node) = self.nodes.first() else { return };
        let mut depth = 0;
        loop {
            if node.values.0 != node.values.1 {
                found(depth, &self.values[node.values.0 as usize..node.values.1 as usize]);
            }
            let Some(&byte) = text.get(depth) else { return };
            let byte = if self.fold { byte.to_ascii_lowercase() } else { byte };
            let first = node.edges.0 as usize;
            let Some(at) = memchr::memchr(byte, &self.bytes[first..node.edges.1 as usize]) else { return };
            node = &self.nodes[self.children[first + at] as usize];
            depth += 1;
            // Where keys branch a lot labels are one byte, which has been compared.
            if node.label.0 != node.label.1 {
                let label = &self.labels[node.label.0 as usize..node.label.1 as usize];
                let Some(piece) = text.get(depth..depth + label.len()) else { return };
                let same = if self.fold { piece.eq_ignore_ascii_case(label) } else { piece == label };
                if !same {
                    return;
                }
                depth += label.len();
            }
        }
    }
}

fn span(start: usize, len: usize) -> (u32, u32) {
    (start as u32, (start + len) as u32)
}

fn insert(drafts: &mut Vec<Draft>, mut key: &[u8], value: u32) {
    let mut at = 0;
    while let Some(&first) = key.first() {
        let Some(edge) = drafts[at].edges.iter().position(|edge| edge.0 == first) else {
            drafts.push(Draft { label: key.to_vec(), ..Draft::default() });
            let new = (drafts.len() - 1) as u32;
            drafts[at].edges.push((first, new));
            drafts[new as usize].values.push(value);
            return;
        };
        let child = drafts[at].edges[edge].1 as usize;
        let common = drafts[child].label.iter().zip(key).take_while(|(a, b)| a == b).count();
        if common < drafts[child].label.len() {
            // The child splits: its upper part becomes a new node between it and its parent.
            let lower = drafts[child].label.split_off(common);
            let upper = std::mem::replace(&mut drafts[child].label, lower);
            let byte = drafts[child].label[0];
            drafts.push(Draft { label: upper, edges: vec![(byte, child as u32)], values: Vec::new() });
            let new = drafts.len() - 1;
            drafts[at].edges[edge].1 = new as u32;
            at = new;
        } else {
            at = child;
        }
        key = &key[common..];
    }
    drafts[at].values.push(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(trie: &Trie, text: &str) -> Vec<(usize, Vec<u32>)> {
        let mut out = Vec::new();
        trie.visit(text.as_bytes(), |depth, values| out.push((depth, values.to_vec())));
        out
    }

    #[test]
    fn all_prefixes_are_found_shortest_first() {
        let keys = ["/a", "/", "/abc", "/abd", "/a", "/b", ""];
        let trie = Trie::build(keys.iter().enumerate().map(|(i, k)| (k.as_bytes(), i as u32)), false);
        assert_eq!(lookup(&trie, "/abcd"), [(0, vec![6]), (1, vec![1]), (2, vec![0, 4]), (4, vec![2])]);
        assert_eq!(lookup(&trie, "/ab"), [(0, vec![6]), (1, vec![1]), (2, vec![0, 4])]);
        assert_eq!(lookup(&trie, "x"), [(0, vec![6])]);
        assert!(Trie::build([], false).is_empty());
    }

    #[test]
    fn folded_tries_ignore_case() {
        let trie = Trie::build([(&b"/ab"[..], 1), (&b"/abcd"[..], 2)], true);
        assert_eq!(lookup(&trie, "/ABcDe"), [(3, vec![1]), (5, vec![2])]);
    }

    #[test]
    fn it_agrees_with_a_scan() {
        let mut rng = fastrand::Rng::with_seed(11);
        let word = |rng: &mut fastrand::Rng| -> String {
            let length = rng.usize(..6);
            (0..length).map(|_| if rng.bool() { 'a' } else { '/' }).collect()
        };
        for _ in 0..300 {
            let keys: Vec<String> = (0..rng.usize(..20)).map(|_| word(&mut rng)).collect();
            let trie = Trie::build(keys.iter().enumerate().map(|(i, k)| (k.as_bytes(), i as u32)), false);
            let text = word(&mut rng);
            let mut found: Vec<u32> = lookup(&trie, &text).into_iter().flat_map(|(_, values)| values).collect();
            found.sort_unstable();
            let scan: Vec<u32> =
                keys.iter().enumerate().filter(|(_, k)| text.starts_with(&**k)).map(|(i, _)| i as u32).collect();
            assert_eq!(found, scan);
        }
    }
}
