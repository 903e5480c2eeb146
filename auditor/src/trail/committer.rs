//! The thread that makes records durable: whole chunks in order, one write and one fdatasync each, then HEAD.
//!
//! A chunk stays in memory until it is durable. Where writing or syncing fails, whatever reached the file is cut off
//! again and the chunk is written anew from memory, never synced a second time: after a failed fdatasync the kernel may
//! take the pages for clean that it has lost.
//!
//! Behind them it grows the tree of a trail that is sealed. A tile that cannot be written stops everything, as a line does; a checkpoint that
//! cannot be made is made later.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::error::Error;
use super::head::{HeadFile, sync_directory};
use super::recovery::Position;
use super::seal::Sealer;
use super::segment::Segment;
use super::writer::{Chunk, Shared, is_full};

/// The end of a segment that stays in the page cache, for those who follow the trail.
const CACHED_BYTES: u64 = 4 << 20;
/// What is let go of at once.
const UNCACHED_BYTES: u64 = 1 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The files that the committer writes.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    head: HeadFile,
    current: Option<Current>,
    sealer: Option<Sealer>,
}

#[derive(Debug)]
struct Current {
    segment: Segment,
    file: File,
    /// Bytes that are durable.
    length: u64,
    /// Bytes of these that were given back to the page cache.
    uncached: u64,
    /// Bytes beyond that may be in the file and are to be cut off.
    dirty: bool,
    /// The file's name is durable.
    named: bool,
}

impl Files {
    pub(super) fn open(directory: &Path, position: &Position, sealer: Option<Sealer>) -> Result<Self, Error> {
        let head = HeadFile::open(directory, &position.trail)?;
        let current = match &position.segment {
            Some((segment, length)) => {
                let file = OpenOptions::new()
                    .append(true)
                    .open(&segment.path)
                    .map_err(Error::call("open", &segment.path))?;
                Some(Current {
                    segment: segment.clone(),
                    file,
                    length: *length,
                    uncached: 0,
                    dirty: false,
                    // The recovery made it so.
                    named: true,
                })
            }
            None => None,
        };
        head.write(position.sequence, position.hash)?;
        head.sync()?;
        Ok(Self { directory: directory.to_owned(), head, current, sealer })
    }

    /// Makes one chunk durable, then HEAD. May be called again for the same chunk after an error.
    fn commit(&mut self, chunk: &mut Chunk) -> Result<(), Error> {
        if !chunk.durable {
            let current = self.segment(chunk.segment)?;
            current.restore()?;
            current.dirty = true;
            current.file.write_all(&chunk.bytes).map_err(Error::call("write", &current.segment.path))?;
            current.file.sync_data().map_err(Error::call("fdatasync", &current.segment.path))?;
            current.dirty = false;
            current.length += u64::try_from(chunk.bytes.len()).unwrap_or(u64::MAX);
            chunk.durable = true;
            current.uncache();
        }
        self.head.write(chunk.sequence, chunk.hash)?;
        if let Some(sealer) = &mut self.sealer {
            if !chunk.sealed {
                sealer.add(&chunk.hashes);
                chunk.sealed = true;
            }
            sealer.write()?;
        }
        Ok(())
    }

    /// Signs a checkpoint, and takes a new key first where there is one.
    fn seal(&mut self, shared: &Shared) {
        let Some(sealer) = &mut self.sealer else { return };
        let renew = std::mem::take(&mut shared.state().renew_key);
        if renew && let Err(error) = sealer.renew_key() {
            tracing::error!(%error, "the trail's key stays what it was until the next reload");
        }
        if let Err(error) = sealer.checkpoint() {
            tracing::error!(%error, "the trail goes on without a new checkpoint; the next one is tried later");
        }
        shared.state().sealed = sealer.sealed();
        shared.progress.notify_all();
    }

    fn segment(&mut self, first: u64) -> Result<&mut Current, Error> {
        let current = match self.current.take() {
            Some(current) if current.segment.first == first => current,
            previous => {
                // From here on HEAD is never older than the beginning of the last segment.
                let begun = self.head.sync().and_then(|()| begin(&self.directory, first));
                match begun {
                    Ok(current) => current,
                    Err(error) => {
                        self.current = previous;
                        return Err(error);
                    }
                }
            }
        };
        let current = self.current.insert(current);
        if !current.named {
            sync_directory(&self.directory)?;
            current.named = true;
        }
        Ok(current)
    }
}

impl Current {
    /// Lets go of pages that are on the disk, all but the last ones. A trail is written much and read little; its pages
    /// would crowd out what the host's other programs read. And the kernel hands out next what was given back last: memory
    /// that is at hand, where fresh memory costs a virtual machine more than the whole rest of the write.
    fn uncache(&mut self) {
        let Some(end) = self.length.checked_sub(CACHED_BYTES) else { return };
        if end.saturating_sub(self.uncached) < UNCACHED_BYTES {
            return;
        }
        let (Ok(from), Ok(length)) = (i64::try_from(self.uncached), i64::try_from(end - self.uncached))
        else {
            return;
        };
        // Advice: where the file system does not take it, the pages stay.
        let _ = posix_fadvise(self.file.as_fd(), from, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        self.uncached = end;
    }

    /// Back to the last durable whole line, if more may be there.
    fn restore(&mut self) -> Result<(), Error> {
        if self.dirty {
            self.file.set_len(self.length).map_err(Error::call("truncate", &self.segment.path))?;
            self.dirty = false;
        }
        Ok(())
    }
}

fn begin(directory: &Path, first: u64) -> Result<Current, Error> {
    let segment = Segment::new(directory, first);
    let file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(&segment.path)
        .map_err(Error::call("create", &segment.path))?;
    Ok(Current { segment, file, length: 0, uncached: 0, dirty: false, named: false })
}

/// What is to be done next.
enum Work {
    /// Make these durable.
    Commit(VecDeque<Chunk>),
    /// Sign a checkpoint.
    Seal,
}

/// Runs until the trail is closed and nothing waits, or closing finds the disk blocked.
pub(super) fn run(shared: &Shared, mut files: Files) {
    let _ended = Ended(shared);
    let mut pause = FIRST_PAUSE;
    while let Some(work) = next(shared, files.sealer.as_ref()) {
        let Work::Commit(mut chunks) = work else {
            files.seal(shared);
            continue;
        };
        while let Some(chunk) = chunks.front_mut() {
            match files.commit(chunk) {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    if let Some(chunk) = chunks.pop_front() {
                        done(shared, chunk);
                    }
                }
                Err(error) => {
                    if !wait_blocked(shared, &mut files, &error, pause) {
                        return;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
    files.seal(shared);
    if let Err(error) = files.head.sync() {
        tracing::warn!(%error, "HEAD may be behind after a power failure; the next start puts that right");
    }
}

/// Waits until a commit or a checkpoint is due and takes what waits; `None` when the trail is closed and nothing does.
fn next(shared: &Shared, sealer: Option<&Sealer>) -> Option<Work> {
    let mut state = shared.state();
    loop {
        if state.since.is_none() && state.closing {
            return None;
        }
        let commit = state.since.map(|since| {
            let at_once =
                state.closing || state.flush > state.durable || state.waiting >= shared.commit_bytes;
            if at_once { Duration::ZERO } else { shared.commit_interval.saturating_sub(since.elapsed()) }
        });
        let seal = sealer
            .and_then(|sealer| if state.renew_key { Some(Duration::ZERO) } else { sealer.due(state.seal) });
        if seal.is_some_and(|left| left.is_zero()) {
            return Some(Work::Seal);
        }
        if commit.is_some_and(|left| left.is_zero()) {
            return Some(Work::Commit(state.take()));
        }
        state = match commit.into_iter().chain(seal).min() {
            Some(left) => shared.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            None => shared.work.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
    }
}

fn done(shared: &Shared, chunk: Chunk) {
    let mut state = shared.state();
    state.durable = chunk.sequence;
    state.waiting = state.waiting.saturating_sub(chunk.bytes.len());
    if state.blocked.take().is_some() {
        tracing::info!(sequence = chunk.sequence, "the trail is written again");
    }
    state.reuse(chunk.bytes);
    shared.progress.notify_all();
}

/// Tells why nothing is written and waits a while; `false` when the trail is being closed.
fn wait_blocked(shared: &Shared, files: &mut Files, error: &Error, pause: Duration) -> bool {
    // Whole lines only, also while we wait: somebody may copy the file.
    if let Some(current) = &mut files.current
        && let Err(error) = current.restore()
    {
        tracing::warn!(%error, "the trail's last line is incomplete until this works");
    }
    let mut state = shared.state();
    if state.blocked.is_none() {
        tracing::error!(%error, "the trail cannot be written: records wait in memory");
    }
    state.blocked = Some(reason(error));
    shared.progress.notify_all();
    let until = Instant::now() + pause;
    loop {
        if state.closing {
            return false;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        (state, _) = shared.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
    }
}

fn reason(error: &Error) -> String {
    match error {
        Error::Call { source, .. } if is_full(source) => {
            format!("{error}; free some space on that file system and writing goes on by itself")
        }
        error => error.to_string(),
    }
}

/// Whatever ends the thread, nobody waits for it for ever.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.progress.notify_all();
    }
}
