//! The writing end of the journal.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crc32fast::Hasher;
use serde::Serialize;

use super::{EVENT, FRAME_HEAD, ITEM, Identity, Item, MAGIC, Position, checksum, file_name, hashed};

/// Bytes that are gathered before they are written.
const GATHERED: usize = 256 << 10;
/// Bytes from which on a generation is followed by the next.
const GENERATION: u64 = 32 << 20;
/// A state that is large is written less often: a generation is at least so many times as long as its state.
const STATE_SHARE: u64 = 4;

/// See [`super`].
pub(in crate::daemon) struct Journal {
    directory: PathBuf,
    identity: Identity,
    generation: u64,
    file: File,
    /// Bytes in the file, and from how many on the next generation is due.
    length: u64,
    due: u64,
    /// The generation before may go when the trail is durable up to here.
    obsolete: Option<u64>,
    /// The frame that is gathered: room for its head and position, then items.
    frame: Vec<u8>,
    /// Where items begin in it.
    items: usize,
    /// The rings' positions of the last frame.
    rings: (u64, u64),
}

impl Journal {
    /// Begins a generation with the state as it is. Earlier generations stay until [`Self::settle`].
    pub(in crate::daemon) fn begin(
        directory: &Path,
        identity: Identity,
        generation: u64,
        position: Position,
        state: &impl Serialize,
    ) -> io::Result<Self> {
        let (file, length) = write_state(directory, &identity, generation, position, state, &mut || ())?;
        let mut journal = Self {
            directory: directory.to_owned(),
            identity,
            generation,
            file,
            length,
            due: length.saturating_mul(STATE_SHARE).max(GENERATION),
            obsolete: Some(position.sequence),
            frame: Vec::with_capacity(2 * GATHERED),
            items: 0,
            rings: position.rings,
        };
        journal.clear();
        Ok(journal)
    }

    /// Gathers an event, as the kernel wrote it.
    pub(in crate::daemon) fn event(&mut self, bytes: &[u8]) {
        self.frame.push(EVENT);
        // A record on a ring is shorter than the ring, which is shorter than 4 GiB.
        self.frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.frame.extend_from_slice(bytes);
    }

    /// Gathers something else.
    pub(in crate::daemon) fn item(&mut self, item: &Item) -> io::Result<()> {
        self.frame.push(ITEM);
        let place = self.frame.len();
        self.frame.extend_from_slice(&[0; 4]);
        self.frame = postcard::to_extend(item, std::mem::take(&mut self.frame)).map_err(io::Error::other)?;
        let length = u32::try_from(self.frame.len() - place - 4).map_err(io::Error::other)?;
        self.frame[place..place + 4].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    /// Whether enough is gathered to be written.
    pub(in crate::daemon) fn is_full(&self) -> bool {
        self.frame.len() >= GATHERED
    }

    /// Writes what was gathered. `position`: behind it.
    pub(in crate::daemon) fn commit(&mut self, position: Position) -> io::Result<()> {
        // Without an item the rings move on over records that the kernel programs have thrown away; their room is given back too.
        if self.frame.len() == self.items && self.rings == position.rings {
            return Ok(());
        }
        self.rings = position.rings;
        let (payload, lifecycle) = position.rings;
        for (index, number) in [payload, lifecycle, position.sequence].into_iter().enumerate() {
            let place = FRAME_HEAD + 8 * index;
            self.frame[place..place + 8].copy_from_slice(&number.to_le_bytes());
        }
        let body = (self.frame.len() - FRAME_HEAD) as u64;
        let crc = checksum(body, &hashed(&self.frame[FRAME_HEAD..]));
        self.frame[..8].copy_from_slice(&body.to_le_bytes());
        self.frame[8..FRAME_HEAD].copy_from_slice(&crc.to_le_bytes());
        self.file.write_all(&self.frame)?;
        self.length += self.frame.len() as u64;
        self.clear();
        Ok(())
    }

    /// Whether the next generation is due.
    pub(in crate::daemon) fn is_long(&self) -> bool {
        self.length >= self.due && self.may_turn()
    }

    /// Whether there is no generation but this one, so that another may begin.
    pub(in crate::daemon) const fn may_turn(&self) -> bool {
        self.obsolete.is_none()
    }

    /// Begins the next generation; nothing may be gathered.
    ///
    /// A state can be hundreds of megabytes: `at_work` is called after every [`PIECE`] of it.
    pub(in crate::daemon) fn next(
        &mut self,
        position: Position,
        state: &impl Serialize,
        at_work: &mut dyn FnMut(),
    ) -> io::Result<()> {
        let generation = self.generation + 1;
        let (file, length) =
            write_state(&self.directory, &self.identity, generation, position, state, at_work)?;
        (self.file, self.length, self.generation) = (file, length, generation);
        self.rings = position.rings;
        self.due = length.saturating_mul(STATE_SHARE).max(GENERATION);
        self.obsolete = Some(position.sequence);
        Ok(())
    }

    /// Removes earlier generations, once the trail is durable up to where this one begins.
    pub(in crate::daemon) fn settle(&mut self, durable: u64) -> io::Result<()> {
        if self.obsolete.is_some_and(|sequence| durable >= sequence) {
            self.obsolete = None;
            remove(&self.directory, self.generation)?;
        }
        Ok(())
    }

    /// Ends it: there is nothing that the next daemon would have to know.
    pub(in crate::daemon) fn remove(self) -> io::Result<()> {
        remove(&self.directory, u64::MAX)
    }

    fn clear(&mut self) {
        // A single large frame is rare; its memory is given back.
        self.frame.truncate(0);
        self.frame.shrink_to(4 * GATHERED);
        self.items = FRAME_HEAD + 3 * 8;
        self.frame.resize(self.items, 0);
    }
}

/// Removes all generations before `until`, and what was left half-written.
pub(super) fn remove(directory: &Path, until: u64) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let old = super::generation(name).is_some_and(|generation| generation < until);
        if old || name == NEW {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Where a generation's beginning is written before it gets its name.
const NEW: &str = "journal-new";

/// Makes a generation's file with its first frame, whole or not at all. Answers its length in bytes.
fn write_state(
    directory: &Path,
    identity: &Identity,
    generation: u64,
    position: Position,
    state: &impl Serialize,
    at_work: &mut dyn FnMut(),
) -> io::Result<(File, u64)> {
    let new = directory.join(NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(&new)?;
    let mut head = [0; MAGIC.len() + FRAME_HEAD];
    head[..MAGIC.len()].copy_from_slice(&MAGIC);
    file.write_all(&head)?;
    let body = Body { file: &mut file, hasher: Hasher::new(), length: 0, at_work };
    let mut body = BufWriter::with_capacity(PIECE, body);
    postcard::to_io(&(identity, position, state), &mut body).map_err(io::Error::other)?;
    let Body { hasher, length, .. } = body.into_inner().map_err(io::IntoInnerError::into_error)?;
    head[MAGIC.len()..MAGIC.len() + 8].copy_from_slice(&length.to_le_bytes());
    head[MAGIC.len() + 8..].copy_from_slice(&checksum(length, &hasher).to_le_bytes());
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&head)?;
    file.seek(SeekFrom::End(0))?;
    fs::rename(&new, directory.join(file_name(generation)))?;
    Ok((file, head.len() as u64 + length))
}

/// Bytes of a state that are written at a time.
const PIECE: usize = 1 << 20;

/// The body of a generation's first frame, on its way to the file.
struct Body<'a> {
    file: &'a mut File,
    hasher: Hasher,
    length: u64,
    at_work: &'a mut dyn FnMut(),
}

impl Write for Body<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.length += written as u64;
        (self.at_work)();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
