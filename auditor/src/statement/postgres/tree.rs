//! The library's JSON as a flat list of entries, each of which knows where its own end is: walked without recursion, however deep it
//! nests, and without a copy of anything.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::ops::Range;

/// More entries than this are not read: more than the longest text that is parsed gives.
const MAX_ENTRIES: usize = 1 << 20;

/// What a value is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Object,
    Array,
    Text {
        escaped: bool,
    },
    /// A number, true, false, null.
    Word,
}

#[derive(Debug)]
struct Entry {
    key: Range<u32>,
    value: Range<u32>,
    kind: Kind,
    /// Index behind all that is within it.
    end: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    json: &'a [u8],
    entries: Vec<Entry>,
}

/// A value and its key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'t> {
    tree: &'t Tree<'t>,
    index: usize,
}

impl<'a> Tree<'a> {
    /// Reads `json`; `None` where it is none.
    pub(super) fn read(json: &'a [u8]) -> Option<Self> {
        u32::try_from(json.len()).ok()?;
        let mut tree = Self { json, entries: Vec::with_capacity(json.len() / 24) };
        let (mut at, mut open, mut key) = (0, Vec::new(), 0..0);
        while let Some(&byte) = json.get(at) {
            match byte {
                b'{' | b'[' => {
                    let kind = if byte == b'{' { Kind::Object } else { Kind::Array };
                    open.push(tree.entries.len());
                    tree.push(std::mem::take(&mut key), at..at, kind)?;
                    at += 1;
                }
                b'}' | b']' => {
                    let entry = open.pop()?;
                    tree.entries[entry].end = u32::try_from(tree.entries.len()).ok()?;
                    at += 1;
                }
                b',' | b' ' => at += 1,
                b'"' => {
                    let (text, escaped) = string(json, at + 1)?;
                    at = text.end + 1;
                    if json.get(at) == Some(&b':') {
                        at += 1;
                        key = text;
                    } else {
                        tree.push(std::mem::take(&mut key), text, Kind::Text { escaped })?;
                    }
                }
                b'-' | b'.' | b'0'..=b'9' | b'a'..=b'z' => {
                    let rest = &json[at..];
                    let length = rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']'))?;
                    tree.push(std::mem::take(&mut key), at..at + length, Kind::Word)?;
                    at += length;
                }
                _ => return None,
            }
        }
        open.is_empty().then_some(tree)
    }

    fn push(&mut self, key: Range<usize>, value: Range<usize>, kind: Kind) -> Option<()> {
        if self.entries.len() >= MAX_ENTRIES {
            return None;
        }
        let narrow =
            |range: Range<usize>| Some(u32::try_from(range.start).ok()?..u32::try_from(range.end).ok()?);
        let end = u32::try_from(self.entries.len() + 1).ok()?;
        self.entries.push(Entry { key: narrow(key)?, value: narrow(value)?, kind, end });
        Some(())
    }

    /// The outermost value.
    pub(super) fn root(&'a self) -> Option<Node<'a>> {
        (!self.entries.is_empty()).then_some(Node { tree: self, index: 0 })
    }
}

/// From behind the opening quote: the text and whether it has escapes.
fn string(json: &[u8], start: usize) -> Option<(Range<usize>, bool)> {
    let (mut at, mut escaped) = (start, false);
    loop {
        at += memchr::memchr2(b'"', b'\\', json.get(at..)?)?;
        if json[at] == b'"' {
            return Some((start..at, escaped));
        }
        escaped = true;
        at += 2;
    }
}

impl<'t> Node<'t> {
    fn entry(self) -> &'t Entry {
        &self.tree.entries[self.index]
    }

    fn bytes(self, range: &Range<u32>) -> &'t [u8] {
        &self.tree.json[range.start as usize..range.end as usize]
    }

    /// Its key; empty in an array. Keys are names of C structs and their fields.
    pub(super) fn key(self) -> &'t str {
        std::str::from_utf8(self.bytes(&self.entry().key)).unwrap_or_default()
    }

    pub(super) fn is_object(self) -> bool {
        self.entry().kind == Kind::Object
    }

    /// Members or elements.
    pub(super) fn children(self) -> impl Iterator<Item = Node<'t>> {
        let end = match self.entry().kind {
            Kind::Object | Kind::Array => self.entry().end as usize,
            Kind::Text { .. } | Kind::Word => 0,
        };
        let tree = self.tree;
        let mut index = self.index + 1;
        std::iter::from_fn(move || {
            let child = (index < end).then_some(Node { tree, index })?;
            index = child.entry().end as usize;
            Some(child)
        })
    }

    /// A member.
    pub(super) fn get(self, key: &str) -> Option<Node<'t>> {
        self.children().find(|child| child.bytes(&child.entry().key) == key.as_bytes())
    }

    /// The text of a string.
    pub(super) fn text(self) -> Option<Cow<'t, str>> {
        let raw = self.bytes(&self.entry().value);
        match self.entry().kind {
            Kind::Text { escaped: false } => std::str::from_utf8(raw).ok().map(Cow::Borrowed),
            Kind::Text { escaped: true } => {
                let quoted = [b"\"", raw, b"\""].concat();
                serde_json::from_slice(&quoted).ok().map(Cow::Owned)
            }
            Kind::Object | Kind::Array | Kind::Word => None,
        }
    }

    /// A member that is a string.
    pub(super) fn string(self, key: &str) -> Option<Cow<'t, str>> {
        self.get(key)?.text()
    }

    /// A member that is `true`.
    pub(super) fn flag(self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value.bytes(&value.entry().value) == b"true")
    }

    /// What is within a node's wrapper: `{"String":{…}}`.
    pub(super) fn inside(self) -> Option<Node<'t>> {
        self.children().next()
    }

    /// The `sval` of a String, or of a constant.
    pub(super) fn sval(self) -> Option<Cow<'t, str>> {
        let inside = self.inside()?;
        match inside.key() {
            "String" => inside.string("sval"),
            "A_Const" => inside.get("sval")?.string("sval"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_the_library_writes() {
        let json = br#"{"version":1,"a":[{"String":{"sval":"x\"y"}},{"A_Const":{"sval":{"sval":"z"}}},{}],"b":true}"#;
        let tree = Tree::read(json).unwrap();
        let root = tree.root().unwrap();
        let values: Vec<_> = root.get("a").unwrap().children().map(|node| node.sval()).collect();
        assert_eq!(values, [Some("x\"y".into()), Some("z".into()), None]);
        assert!(root.flag("b") && !root.flag("a"));
        assert_eq!(root.children().map(Node::key).collect::<Vec<_>>(), ["version", "a", "b"]);
        for broken in ["{", "}", "[1", "{\"a", "{\"a\\", "{\"a\":?}"] {
            assert!(Tree::read(broken.as_bytes()).is_none(), "{broken}");
        }
    }
}
