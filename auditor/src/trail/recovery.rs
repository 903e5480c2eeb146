//! Opening a trail: what is there, does it hold, and where to go on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::chain::{Hash, Seal};
use super::error::Error;
use super::head::{Head, sync_directory};
use super::segment::{Line, Lines, Segment, last_line};
use super::verify::{Check, Identified};

/// Bytes of a line that was never completed, and where they were put.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Recovery {
    /// Name of the segment.
    pub segment: String,
    /// Bytes set aside.
    pub bytes: u64,
    /// The file that has them now.
    pub file: PathBuf,
}

/// Where a writer goes on.
#[derive(Debug)]
pub(super) struct Position {
    pub(super) trail: String,
    /// The last whole record, and its hash.
    pub(super) sequence: u64,
    pub(super) hash: Hash,
    /// The segment to go on with and its length in bytes; `None` before the first.
    pub(super) segment: Option<(Segment, u64)>,
    pub(super) recovery: Option<Recovery>,
}

/// Finds the end of the trail in `directory`, or begins one whose id is `fresh`.
///
/// The last segment is checked record by record; earlier ones were when they were written, and `auditor verify` does it
/// again. All that the position has is durable: a checkpoint may be signed over it. The caller holds the lock.
pub(super) fn recover(
    directory: &Path,
    fresh: impl FnOnce() -> Result<String, Error>,
) -> Result<Position, Error> {
    let segments = Segment::list(directory)?;
    let head = match Head::read(directory)? {
        Some(head) => head,
        None if segments.is_empty() => {
            let head = Head::genesis(fresh()?);
            head.create(directory)?;
            head
        }
        None => return Err(Error::HeadMissing { path: Head::path(directory) }),
    };
    let Some((last, earlier)) = segments.split_last() else {
        return match head.sequence {
            0 => Ok(Position {
                hash: head.hash,
                trail: head.trail,
                sequence: 0,
                segment: None,
                recovery: None,
            }),
            sequence => Err(shortened(directory, sequence, 0)),
        };
    };
    let before = match earlier.last() {
        Some(segment) => Seal::read(&last_line(&segment.path)?).map(|seal| seal.hash),
        None => Some(Hash::genesis(&head.trail)).filter(|_| last.first == 1),
    };
    let Some(before) = before else {
        return Err(damaged(&last.path, 1, last.first, Check::Previous));
    };
    let mut walk = Walk { head: &head, segment: last, sequence: last.first - 1, hash: before, length: 0 };
    walk.pass_head(0)?;
    let torn = walk.segment()?;
    if walk.sequence < head.sequence {
        return Err(shortened(directory, head.sequence, walk.sequence));
    }
    let Walk { sequence, hash, length, .. } = walk;
    // Lines that a killed writer had not synced yet are part of the trail now, and so is the file's name.
    let synced = File::open(&last.path).and_then(|file| file.sync_all());
    synced.map_err(Error::call("fsync", &last.path))?;
    sync_directory(directory)?;
    let recovery = match torn {
        Some(bytes) => Some(set_aside(directory, last, length, sequence + 1, &bytes)?),
        None => None,
    };
    Ok(Position { trail: head.trail, sequence, hash, segment: Some((last.clone(), length)), recovery })
}

struct Walk<'a> {
    head: &'a Head,
    segment: &'a Segment,
    sequence: u64,
    hash: Hash,
    length: u64,
}

impl Walk<'_> {
    /// Checks every line; gives the bytes of an unfinished last one.
    fn segment(&mut self) -> Result<Option<Vec<u8>>, Error> {
        if self.head.sequence < self.sequence {
            // HEAD is made durable before a segment is begun, so an older one was put there by somebody.
            return Err(damaged(&self.segment.path, 1, self.segment.first, Check::Head));
        }
        let mut lines = Lines::open(&self.segment.path)?;
        while let Some(line) = lines.next_line()? {
            if !line.is_whole() && !line.is_too_long() {
                return Ok(Some(line.bytes.to_vec()));
            }
            self.line(&line)
                .map_err(|check| damaged(&self.segment.path, line.number, self.sequence + 1, check))?;
            self.sequence += 1;
            self.length = line.offset + line.length;
            self.pass_head(line.number)?;
        }
        Ok(None)
    }

    fn line(&mut self, line: &Line<'_>) -> Result<(), Check> {
        let seal = Seal::read(line.bytes).ok_or(Check::Form)?;
        if !seal.holds(line.bytes) {
            return Err(Check::Hash);
        }
        if seal.prev != self.hash {
            return Err(Check::Previous);
        }
        let identified = Identified::read(line.bytes).ok_or(Check::Form)?;
        if identified.sequence != self.sequence + 1 {
            return Err(Check::Sequence);
        }
        if !identified.belongs_to(&self.head.trail) {
            return Err(Check::Uid);
        }
        self.hash = seal.hash;
        Ok(())
    }

    fn pass_head(&self, line: u64) -> Result<(), Error> {
        if self.sequence == self.head.sequence && self.hash != self.head.hash {
            return Err(damaged(&self.segment.path, line, self.sequence, Check::Head));
        }
        Ok(())
    }
}

/// Copies the torn bytes to a file of their own, makes that durable, and only then cuts them off.
fn set_aside(
    directory: &Path,
    segment: &Segment,
    length: u64,
    sequence: u64,
    bytes: &[u8],
) -> Result<Recovery, Error> {
    let (path, mut file) = create_torn(directory, sequence)?;
    file.write_all(bytes).map_err(Error::call("write", &path))?;
    file.sync_all().map_err(Error::call("fsync", &path))?;
    sync_directory(directory)?;
    let cut =
        OpenOptions::new().write(true).open(&segment.path).map_err(Error::call("open", &segment.path))?;
    cut.set_len(length).map_err(Error::call("truncate", &segment.path))?;
    cut.sync_all().map_err(Error::call("fsync", &segment.path))?;
    Ok(Recovery {
        segment: segment.name(),
        bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        file: path,
    })
}

/// A record can be torn more than once, so the name ends in a number that is free.
fn create_torn(directory: &Path, sequence: u64) -> Result<(PathBuf, File), Error> {
    let mut number = 1_u64;
    loop {
        let path = directory.join(format!("torn-{sequence:020}.{number}"));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(Error::call("create", &path)(error)),
        }
    }
}

fn damaged(path: &Path, line: u64, sequence: u64, check: Check) -> Error {
    Error::Damaged { path: path.to_owned(), line, sequence, check }
}

fn shortened(path: &Path, head: u64, last: u64) -> Error {
    Error::Shortened { path: path.to_owned(), head, last }
}
