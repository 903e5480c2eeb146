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
    /// Bytes of a note behind them that was never completed.
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
            // Behind the empty line, where another begins, be it with one letter.
            let begun = || rest.rfind("\n\n").filter(|place| PREFIX.starts_with(&rest[place + 2..]));
            let length = rest.find(BETWEEN).or_else(begun).map_or(rest.len(), |place| place + 2);
            let (whole, after) = rest.split_at(length);
            let note = whole.strip_suffix('\n').unwrap_or(whole);
            let ends = whole.ends_with("\n\n") && whole.contains(SIGNATURE);
            if !ends && after.is_empty() {
                // What a crash leaves of a last one.
                listed.torn = whole.len();
                listed.length -= whole.len();
                break;
            }
            listed.notes.push((line, Signed::parse(note).ok_or_else(|| note.to_owned())));
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
        // One that is not the last was whole once.
        let damaged = Listed::parse(&format!("{}{}", note(1).replace("\n\n— ", "\n— "), note(20)));
        assert_eq!((damaged.notes.len(), damaged.signed().count()), (2, 1));
    }
}
