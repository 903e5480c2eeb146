//! The reading end of the journal, for the next daemon.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::write::remove;
use super::{EVENT, ITEM, Identity, Item, MAGIC, Position, checksum, generation, hashed};

/// Why what an earlier daemon knew cannot be known. One sentence for the trail.
#[derive(Debug, thiserror::Error)]
pub(in crate::daemon) enum StateLost {
    /// A file cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// A daemon was at work, and has left no journal.
    #[error("there is no journal: it could not be written, or somebody removed it")]
    Missing,
    /// Another version's.
    #[error("the journal was written by another version of the auditor")]
    Version,
    /// Another boot, other rings, or another trail.
    #[error("the journal is of {0}")]
    Other(&'static str),
    /// Bytes are not what was written.
    #[error("the journal is damaged: {0}")]
    Damaged(String),
    /// The trail lacks records that it had.
    #[error("the journal begins behind the end of the trail")]
    AheadOfTrail,
    /// The trail has records that do not come of the journal.
    #[error("the journal ends before the trail does")]
    BehindTrail,
    /// The rings have given back what the journal does not have.
    #[error("the journal ends before what was taken off the rings")]
    BehindRings,
}

/// A journal that was found.
#[derive(Debug)]
pub(in crate::daemon) struct Found<S> {
    /// The state at its beginning.
    pub(in crate::daemon) state: S,
    /// How far the state is.
    pub(in crate::daemon) position: Position,
    /// The last generation that is there.
    pub(in crate::daemon) generation: u64,
    /// The bytes of the generations from there on.
    files: Vec<Vec<u8>>,
}

/// One step of what happened since the beginning of a journal.
pub(in crate::daemon) enum Step<'a> {
    /// The kernel's record.
    Event(&'a [u8]),
    /// Something else.
    Item(Item),
}

/// Looks for a journal in `directory` that leads on to a trail whose last record is `sequence`. `None`: there is none.
pub(in crate::daemon) fn find<S: DeserializeOwned>(
    directory: &Path,
    identity: &Identity,
    sequence: u64,
) -> Result<Option<Found<S>>, StateLost> {
    let mut generations = list(directory)?;
    generations.sort_unstable();
    let Some(&last) = generations.last() else { return Ok(None) };
    let mut files = Vec::new();
    for generation in generations.into_iter().rev() {
        let path = directory.join(super::file_name(generation));
        let bytes = fs::read(&path).map_err(|error| StateLost::Io { path, error })?;
        let (found, position, state, length) = beginning::<S>(&bytes)?;
        if found.boot_id != identity.boot_id {
            return Err(StateLost::Other("another boot"));
        }
        if found.trail != identity.trail {
            return Err(StateLost::Other("another trail"));
        }
        if found.rings != identity.rings {
            return Err(StateLost::Other("other rings"));
        }
        let frames = bytes.get(length..).unwrap_or_default().to_vec();
        files.push(frames);
        if position.sequence <= sequence {
            files.reverse();
            return Ok(Some(Found { state, position, generation: last, files }));
        }
    }
    Err(StateLost::AheadOfTrail)
}

impl<S> Found<S> {
    /// Takes the state and what happened since apart.
    pub(in crate::daemon) fn split(self) -> (S, Position, u64, Vec<Vec<u8>>) {
        (self.state, self.position, self.generation, self.files)
    }
}

/// Hands out all that happened since the state, frame by frame. `step` is told each of a frame's steps, what procfs said first,
/// and `done` the position behind the frame.
pub(in crate::daemon) fn replay<T>(
    files: &[Vec<u8>],
    told: &mut T,
    step: impl Fn(&mut T, Step<'_>) -> Result<(), StateLost>,
    done: impl Fn(&mut T, Position) -> Result<(), StateLost>,
) -> Result<(), StateLost> {
    let count = files.len();
    for (index, file) in files.iter().enumerate() {
        let mut rest = file.as_slice();
        while !rest.is_empty() {
            let Some((body, after)) = frame(rest)? else {
                // The daemon was killed in the middle of write(2). What it was about to write is still in the rings.
                if index + 1 == count {
                    break;
                }
                return Err(StateLost::Damaged("a generation ends in the middle of a frame".to_owned()));
            };
            rest = after;
            let (position, items) = positioned(body)?;
            for looks in [true, false] {
                for item in Items(items) {
                    match item? {
                        Step::Item(item @ Item::Looked(_)) if looks => step(told, Step::Item(item))?,
                        Step::Item(Item::Looked(_)) => {}
                        other if !looks => step(told, other)?,
                        _ => {}
                    }
                }
            }
            done(told, position)?;
        }
    }
    Ok(())
}

/// Removes all journals of a directory: they cannot be used.
pub(in crate::daemon) fn discard(directory: &Path) -> io::Result<()> {
    remove(directory, u64::MAX)
}

fn list(directory: &Path) -> Result<Vec<u64>, StateLost> {
    let failed = |error| StateLost::Io { path: directory.to_owned(), error };
    let mut generations = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        generations.extend(name.to_str().and_then(generation));
    }
    Ok(generations)
}

/// What a file begins with, and how many bytes that takes.
fn beginning<S: DeserializeOwned>(bytes: &[u8]) -> Result<(Identity, Position, S, usize), StateLost> {
    let rest = bytes.strip_prefix(&MAGIC[..]).ok_or(StateLost::Version)?;
    let Some((body, after)) = frame(rest)? else {
        return Err(StateLost::Damaged("its state is cut".to_owned()));
    };
    let (identity, position, state) = postcard::from_bytes(body)
        .map_err(|error| StateLost::Damaged(format!("its state cannot be read: {error}")))?;
    Ok((identity, position, state, bytes.len() - after.len()))
}

/// A frame's body, and what is behind the frame.
type Halves<'a> = (&'a [u8], &'a [u8]);

/// A frame's body and what is behind it; `None` where the frame is cut.
fn frame(bytes: &[u8]) -> Result<Option<Halves<'_>>, StateLost> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return Ok(None) };
    let Some((crc, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    let length = u64::from_le_bytes(*length);
    let Some((body, after)) = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length))
    else {
        return Ok(None);
    };
    if checksum(length, &hashed(body)) != u32::from_le_bytes(*crc) {
        return Err(StateLost::Damaged("a frame's checksum is wrong".to_owned()));
    }
    Ok(Some((body, after)))
}

fn positioned(body: &[u8]) -> Result<(Position, &[u8]), StateLost> {
    let short = || StateLost::Damaged("a frame is too short".to_owned());
    let (payload, rest) = body.split_first_chunk::<8>().ok_or_else(short)?;
    let (lifecycle, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let (sequence, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let rings = (u64::from_le_bytes(*payload), u64::from_le_bytes(*lifecycle));
    Ok((Position { rings, sequence: u64::from_le_bytes(*sequence) }, rest))
}

/// The items of a frame.
struct Items<'a>(&'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = Result<Step<'a>, StateLost>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&kind, rest) = self.0.split_first()?;
        // After an error there is nothing more.
        self.0 = &[];
        let item = rest.split_first_chunk::<4>().and_then(|(length, rest)| {
            rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
        });
        let Some((item, rest)) = item else {
            return Some(Err(StateLost::Damaged("an item is cut".to_owned())));
        };
        let step = match kind {
            EVENT => Step::Event(item),
            ITEM => match postcard::from_bytes(item) {
                Ok(item) => Step::Item(item),
                Err(error) => {
                    return Some(Err(StateLost::Damaged(format!("an item cannot be read: {error}"))));
                }
            },
            _ => return Some(Err(StateLost::Damaged(format!("an item of kind {kind}")))),
        };
        self.0 = rest;
        Some(Ok(step))
    }
}
