//! Checkpoints: what a trail's key vouches for, by C2SP tlog-checkpoint.
//!
//! ```text
//! auditor/<trail id>
//! <records>
//! <root of the tree over them, base64>
//! key <public key>                  where the trail's key changes, the first time from none to one
//!
//! — auditor/<trail id> <signature>
//! ```
//!
//! `checkpoint` has the last one, where tlog-tiles wants it; `checkpoints` has all of them, each with an empty line behind it. **A
//! hand-over of keys is a checkpoint too**: it names the new key, is signed by both, and all after it are signed by the new one. So the
//! file tells by itself which key signed what, and who trusts any of the keys can follow.

use std::fs;
use std::io;
use std::path::Path;

use data_encoding::BASE64;

use super::super::chain::Hash;
use super::super::error::Error;
use super::super::head::is_id;
use super::note::{Note, VerifierKey};

/// The last checkpoint.
pub(in crate::trail) const LAST: &str = "checkpoint";
/// All checkpoints.
pub(in crate::trail) const ALL: &str = "checkpoints";
/// Before the trail's id in the origin.
const PREFIX: &str = "auditor/";
const KEY: &str = "key ";
/// Between a note's text and its signatures.
const SIGNATURE: &str = "\n\n— ";
/// Between two notes in the file of all.
const BETWEEN: &str = "\n\nauditor/";

/// The origin of a trail's checkpoints, and the name of its keys.
pub(in crate::trail) fn origin(trail: &str) -> String {
    format!("{PREFIX}{trail}")
}

/// The id of the trail whose origin this is.
pub(in crate::trail) fn trail_of(origin: &str) -> Option<&str> {
    origin.strip_prefix(PREFIX).filter(|id| is_id(id))
}

/// What is signed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checkpoint {
    /// `auditor/` and the trail's id.
    pub origin: String,
    /// Records.
    pub size: u64,
    /// Root of the Merkle tree over their hashes.
    pub root: Hash,
    /// The key by which what follows is signed, where it changes.
    pub key: Option<VerifierKey>,
}

impl Checkpoint {
    /// The note's text.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root.as_bytes()));
        if let Some(key) = &self.key {
            text.push_str(&format!("{KEY}{key}\n"));
        }
        text
    }

    /// Reads a note's text; `None` where it is not a checkpoint of a trail.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        let (origin, size, root) = (lines.next()?, lines.next()?, lines.next()?);
        let key = match lines.next() {
            Some(line) => Some(line.strip_prefix(KEY)?.parse().ok()?),
            None => None,
        };
        let root = BASE64.decode(root.as_bytes()).ok()?;
        let checkpoint = Self {
            origin: trail_of(origin).map(|_| origin.to_owned())?,
            size: size.parse().ok()?,
            root: Hash::from_slice(&root)?,
            key,
        };
        (checkpoint.text() == text).then_some(checkpoint)
    }
}

/// A checkpoint with its signatures.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Signed {
    /// As it is written.
    pub(in crate::trail) note: String,
    /// What it says.
    pub(in crate::trail) checkpoint: Checkpoint,
}

impl Signed {
    /// Reads a note; `None` where it is not a signed checkpoint of a trail.
    pub fn parse(note: &str) -> Option<Self> {
        let checkpoint = Checkpoint::parse(Note::parse(note)?.text())?;
        Some(Self { note: note.to_owned(), checkpoint })
    }

    /// What it says. Not to be believed before it is verified.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Whether this key has signed it.
    pub fn is_signed_by(&self, key: &VerifierKey) -> bool {
        Note::parse(&self.note).is_some_and(|note| note.is_signed_by(key))
    }
}

/// The last checkpoint of the trail in `directory`, as its file has it.
pub(in crate::trail) fn last(directory: &Path) -> Result<Option<String>, Error> {
    read(&directory.join(LAST))
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read(path) {
        // What is not UTF-8 is no note: the character that stands for it says so.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::call("read", path)(error)),
    }
}

/// The file of all checkpoints, taken apart.
#[derive(Clone, Debug, Default)]
pub(in crate::trail) struct Listed {
    /// Each note with the number of its first line, from 1.
    pub(in crate::trail) notes: Vec<(u64, Result<Signed, String>)>,
    /// Bytes of whole notes.
    pub(in crate::trail) length: usize,
    /// Bytes behind them: of a note that was never completed, or whatever else an append leaves that a power failure ends.
    pub(in crate::trail) torn: usize,
}

impl Listed {
    /// Reads the file of the trail in `directory`; `None` where there is none.
    pub(in crate::trail) fn read(directory: &Path) -> Result<Option<Self>, Error> {
        Ok(read(&directory.join(ALL))?.map(|content| Self::parse(&content)))
    }

    fn parse(content: &str) -> Self {
        let mut listed = Self { length: content.len(), ..Self::default() };
        let mut rest = content;
        let mut line = 1;
        while !rest.is_empty() {
            let Some(length) = rest.find(BETWEEN).map(|place| place + 2).or_else(|| end(rest)) else {
                // What a crash leaves of a last one.
                listed.torn = rest.len();
                listed.length -= rest.len();
                break;
            };
            let (whole, after) = rest.split_at(length);
            let note = whole.strip_suffix('\n').unwrap_or(whole);
            // Its length in the file is not known where there is a character that stands for other bytes.
            let signed = Signed::parse(note).filter(|_| !note.contains(char::REPLACEMENT_CHARACTER));
            listed.notes.push((line, signed.ok_or_else(|| note.to_owned())));
            line += whole.bytes().filter(|byte| *byte == b'\n').count() as u64;
            rest = after;
        }
        listed
    }

    /// The checkpoints that can be read.
    pub(in crate::trail) fn signed(&self) -> impl DoubleEndedIterator<Item = &Signed> {
        self.notes.iter().filter_map(|(_, note)| note.as_ref().ok())
    }

    /// The key in force at the end.
    pub(in crate::trail) fn key(&self) -> Option<&VerifierKey> {
        self.signed().rev().find_map(|signed| signed.checkpoint.key.as_ref())
    }
}

/// Where the last note ends, whatever follows: behind the empty line after its signatures.
fn end(rest: &str) -> Option<usize> {
    let signatures = rest.find(SIGNATURE)? + SIGNATURE.len();
    rest[signatures..].find("\n\n").map(|place| signatures + place + 2)
}

/// The public key in force of the trail in `directory`, as its checkpoints name it; `None` where it is not sealed.
pub fn public_key(directory: &Path) -> Result<Option<VerifierKey>, Error> {
    Ok(Listed::read(directory)?.and_then(|listed| listed.key().cloned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_that_was_cut_anywhere_is_told_from_the_whole_ones_before_it() {
        let origin = origin(&"0f".repeat(16));
        let key = VerifierKey::new(origin.clone(), [7; 32]);
        let note = |size| {
            let checkpoint =
                Checkpoint { origin: origin.clone(), size, root: Hash::new([9; 32]), key: Some(key.clone()) };
            format!("{}\n{}\n", checkpoint.text(), key.line(&[5; 64]))
        };
        let (whole, last) = ([note(1), note(20)].concat(), note(300));
        for cut in (0..=last.len()).filter(|cut| last.is_char_boundary(*cut)) {
            let listed = Listed::parse(&format!("{whole}{}", &last[..cut]));
            let (notes, torn) = if cut == last.len() { (3, 0) } else { (2, cut) };
            assert_eq!((listed.signed().count(), listed.notes.len()), (notes, notes), "{cut}");
            assert_eq!((listed.torn, listed.length), (torn, whole.len() + cut - torn), "{cut}");
        }
        // A power failure makes a file longer without what was to be in it.
        for junk in ["\0", "x", "\n", "auditorx", "\u{fffd}", "\n\n", "\n\nx", "a\n\n"] {
            for length in [1, 2, 7, 119, 4096, 5000] {
                let tail = junk.repeat(length);
                let listed = Listed::parse(&format!("{whole}{last}{tail}"));
                assert_eq!((listed.signed().count(), listed.notes.len()), (3, 3), "{junk:?} {length}");
                let bytes = (listed.length, listed.torn);
                assert_eq!(bytes, (whole.len() + last.len(), tail.len()), "{junk:?} {length}");
                // Also behind one that was cut.
                let listed = Listed::parse(&format!("{whole}{}{tail}", &last[..60]));
                assert_eq!((listed.signed().count(), listed.notes.len()), (2, 2), "{junk:?} {length}");
                assert_eq!(listed.length, whole.len(), "{junk:?} {length}");
            }
        }
        // The last one was whole once too, whatever is behind it.
        for tail in ["", "\0", "x"] {
            let damaged = Listed::parse(&format!("{whole}{}{tail}", last.replace("\n300\n", "\n3OO\n")));
            assert_eq!((damaged.notes.len(), damaged.signed().count()), (3, 2), "{tail:?}");
        }
        // One that is not the last was whole once.
        let damaged = Listed::parse(&format!("{}{}", note(1).replace("\n\n— ", "\n— "), note(20)));
        assert_eq!((damaged.notes.len(), damaged.signed().count()), (2, 1));
    }
}
