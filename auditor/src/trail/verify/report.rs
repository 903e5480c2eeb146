//! What a verification found, for people and for scripts.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::super::chain::Hash;

/// Which check failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// The line is not a sealed record: it was cut, split, joined or overwritten.
    Form,
    /// The line's hash is not that of its bytes: the record was changed.
    Hash,
    /// The line does not follow from the one before it: either of them was replaced.
    Previous,
    /// The record's number is not the next one.
    Sequence,
    /// Records that belong here are gone.
    Missing,
    /// The record stands here again, or out of order.
    Misplaced,
    /// The record's uid is not of this trail and this sequence.
    Uid,
    /// The segment's name is not the sequence of its first record.
    Name,
    /// The segment is empty although others follow it.
    Empty,
    /// The last records are gone: HEAD names a later one.
    Tail,
    /// HEAD is damaged, or names a record with another hash.
    Head,
    /// There is no HEAD.
    HeadMissing,
    /// The trail has no checkpoints although it must.
    CheckpointsMissing,
    /// A checkpoint cannot be read: it was changed.
    CheckpointForm,
    /// A checkpoint is out of order.
    CheckpointOrder,
    /// The file of the last checkpoint is not one of the newest.
    CheckpointLast,
    /// A checkpoint is another trail's.
    Origin,
    /// A checkpoint is not signed by the key that must have signed it.
    Signature,
    /// The trail is sealed by another key than the one that is known.
    Key,
    /// The records are not those that a checkpoint was signed for.
    Root,
    /// Two checkpoints of one trail have different histories: both cannot be.
    Forked,
    /// The last records are gone: a checkpoint has more.
    Truncated,
    /// A tile has other hashes than the records.
    Tile,
    /// A tile is missing.
    TileMissing,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => "the line is not a sealed record (cut, split, joined or overwritten)",
            Self::Hash => "its hash is not that of its bytes: the record was changed",
            Self::Previous => {
                "it does not follow from the record before it: one of the two was replaced, or something between \
                 them removed"
            }
            Self::Sequence => "its number is not the next one",
            Self::Missing => "records that belong here are gone",
            Self::Misplaced => "the record stands here again or out of order",
            Self::Uid => "its uid is not of this trail and number",
            Self::Name => "the segment's name is not the number of its first record",
            Self::Empty => "the segment is empty although others follow it",
            Self::Tail => "the last records are gone: HEAD names a later one",
            Self::Head => "HEAD is damaged or names the record with another hash",
            Self::HeadMissing => "HEAD is missing, so that nothing shows which record was the last",
            Self::CheckpointsMissing => "the trail must be sealed and its checkpoints are missing",
            Self::CheckpointForm => "the checkpoint cannot be read: it was changed, joined or cut",
            Self::CheckpointOrder => "the checkpoint has fewer records than the one before it",
            Self::CheckpointLast => {
                "the last checkpoint is not among the newest of all checkpoints: one of the two files was changed or put back"
            }
            Self::Origin => "the checkpoint is another trail's",
            Self::Signature => "the checkpoint is not signed by the trail's key",
            Self::Key => {
                "the checkpoints are signed by another key than the one given: the key was replaced, or it is another trail's"
            }
            Self::Root => {
                "the records up to the checkpoint are not those that it was signed for: one of them was replaced, and what follows \
                 sealed anew"
            }
            Self::Forked => "two checkpoints of this trail were signed for different records: the trail was forked",
            Self::Truncated => "the last records are gone: the checkpoint was signed for more",
            Self::Tile => "the tile's hashes are not those of the records",
            Self::TileMissing => "the tile is missing",
        })
    }
}

/// One finding: what, and where exactly.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Line in it, from 1; 0 where it concerns the file.
    pub line: u64,
    /// Offset of the line's first byte.
    pub offset: u64,
    /// The record that it is about: the one that belongs here, the first missing one, or the one that is misplaced.
    /// `None` where that is not known.
    pub sequence: Option<u64>,
    /// The last missing record, where more than one is.
    pub until: Option<u64>,
    /// What failed.
    pub check: Check,
}

impl Damage {
    pub(super) fn of_file(path: &Path, check: Check) -> Self {
        Self { file: path.to_owned(), line: 0, offset: 0, sequence: None, until: None, check }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ", line {}, byte {}", self.line, self.offset)?;
        }
        match (self.sequence, self.until) {
            (Some(first), Some(last)) => write!(f, ", records {first} to {last}")?,
            (Some(sequence), None) => write!(f, ", record {sequence}")?,
            (None, _) => {}
        }
        write!(f, ": {}", self.check)
    }
}

/// What the checkpoints of a trail were found to be.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SealReport {
    /// Those whose signatures hold.
    pub checkpoints: u64,
    /// Records under the last one whose root is that of the records.
    pub sealed: u64,
    /// The key in force; `None` where the trail is not sealed.
    pub key: Option<String>,
    /// A key was given to compare it with.
    pub key_given: bool,
}

/// The outcome of a verification. As JSON: these fields, and `whole`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Nothing is damaged.
    whole: bool,
    /// The trail's id, as its records say; `None` where there are none.
    pub trail: Option<String>,
    /// Lines that hold by themselves.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Files read.
    pub files: u64,
    /// Sequence of the first record.
    pub first: Option<u64>,
    /// Sequence of the last record.
    pub last: Option<u64>,
    /// Hash of the last record, to compare with what left the host.
    #[serde(serialize_with = "as_text")]
    pub hash: Option<Hash>,
    /// What HEAD names as the last durable record; `None` where there was no HEAD, and then the end is not checked.
    pub head: Option<u64>,
    /// Bytes of a line that is being written, or that a crash left, after the last record that HEAD names.
    pub unfinished: u64,
    /// What checkpoints say of it.
    pub seal: SealReport,
    /// The findings, in order, as many as the limit allows.
    pub damages: Vec<Damage>,
    /// Findings in all.
    pub found: u64,
    #[serde(skip)]
    limit: usize,
}

impl Report {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            whole: true,
            trail: None,
            records: 0,
            bytes: 0,
            files: 0,
            first: None,
            last: None,
            hash: None,
            head: None,
            unfinished: 0,
            seal: SealReport::default(),
            damages: Vec::new(),
            found: 0,
            limit,
        }
    }

    /// Whether nothing is damaged, as far as it was checked.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    fn write_seal(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SealReport { checkpoints, sealed, key, key_given } = &self.seal;
        let Some(key) = key else {
            return writeln!(f, "not checked: signatures; there are no checkpoints");
        };
        writeln!(f, "{checkpoints} checkpoints, records up to {sealed} are sealed by {key}")?;
        if !key_given {
            writeln!(f, "not checked: whose key that is; give the one that you know with --key")?;
        }
        match self.last {
            Some(last) if last > *sealed => writeln!(f, "not sealed yet: records {} to {last}", sealed + 1),
            _ => Ok(()),
        }
    }

    pub(super) fn damage(&mut self, damage: Damage) {
        self.whole = false;
        self.found += 1;
        if self.damages.len() < self.limit {
            self.damages.push(damage);
        }
    }
}

fn as_text<S: serde::Serializer>(hash: &Option<Hash>, serializer: S) -> Result<S::Ok, S::Error> {
    match hash {
        Some(hash) => serializer.collect_str(hash),
        None => serializer.serialize_none(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.whole { "whole" } else { "DAMAGED" };
        write!(f, "{state}: {} records, {} bytes, {} files", self.records, self.bytes, self.files)?;
        if let (Some(first), Some(last)) = (self.first, self.last) {
            write!(f, ", records {first} to {last}")?;
        }
        writeln!(f)?;
        if let Some(trail) = &self.trail {
            writeln!(f, "trail {trail}")?;
        }
        if let Some(hash) = &self.hash {
            writeln!(f, "last hash {hash}")?;
        }
        if self.first.is_some_and(|first| first > 1) {
            writeln!(f, "not checked: what was before the first record")?;
        }
        match self.head {
            Some(head) => writeln!(f, "HEAD names record {head} as the last durable one")?,
            None => {
                writeln!(f, "not checked: the end; without HEAD nothing shows which record was the last")?
            }
        }
        self.write_seal(f)?;
        if self.unfinished > 0 {
            writeln!(
                f,
                "{} bytes of an unfinished line at the end: being written, or left by a crash",
                self.unfinished
            )?;
        }
        for damage in &self.damages {
            writeln!(f, "{damage}")?;
        }
        let listed = u64::try_from(self.damages.len()).unwrap_or(u64::MAX);
        if self.found > listed {
            writeln!(f, "and {} more", self.found - listed)?;
        }
        Ok(())
    }
}
