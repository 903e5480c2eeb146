//! The one writer of a trail: renders, chains, and hands over to the committer.
//!
//! Rendering and chaining happen in the caller's thread under one lock, because each line needs the hash of the line
//! before. Nothing under that lock touches the disk.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::mem;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::chain::{Hash, seal};
use super::committer::{self, Files};
use super::error::Error;
use super::head::Head;
use super::recovery::{Position, Recovery, recover};
use super::seal::{Sealer, Sealing};
use super::segment::LONGEST_LINE;
use crate::record::ocsf::{Host, Identity, Renderer};
use crate::record::{Entry, Event};

/// A chunk is handed over as a whole, written with one call and made durable with one.
const CHUNK_BYTES: usize = 1 << 20;

/// Buffers of chunks that are durable, kept for the next ones: fresh memory costs more than what is written into it.
const SPARES: usize = 4;

/// Written and taken away again at open: a trail that can hold its first records is worth beginning.
const TRIAL_BYTES: usize = 64 << 10;

/// How a trail is written.
#[derive(Clone, Debug)]
pub struct Options {
    /// The host that records name.
    pub host: Host,
    /// A segment that has this many bytes is followed by a new one.
    pub segment_bytes: u64,
    /// So many bytes may wait for the disk; then [`Trail::append`] blocks.
    pub buffer_bytes: usize,
    /// So many waiting bytes are committed at once.
    pub commit_bytes: usize,
    /// A record waits no longer than this for its commit to begin.
    pub commit_interval: Duration,
    /// Where the trail's id and its keys are drawn from.
    pub randomness: PathBuf,
    /// How it is sealed; `None` for one that is not.
    pub sealing: Option<Sealing>,
}

impl Options {
    /// Segments of 64 MiB, 8 MiB of buffer, commits at 1 MiB or 50 ms, ids from `/dev/urandom`, not sealed.
    pub fn new(host: Host) -> Self {
        Self {
            host,
            segment_bytes: 64 << 20,
            buffer_bytes: 8 << 20,
            commit_bytes: 1 << 20,
            commit_interval: Duration::from_millis(50),
            randomness: PathBuf::from("/dev/urandom"),
            sealing: None,
        }
    }
}

/// Sealed lines that go to one segment.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Sequence of the first record of the segment that these lines belong to.
    pub(super) segment: u64,
    pub(super) bytes: Vec<u8>,
    /// Last line's sequence and hash.
    pub(super) sequence: u64,
    pub(super) hash: Hash,
    /// Of each line, where the trail is sealed.
    pub(super) hashes: Vec<Hash>,
    /// The lines are durable; what remains is HEAD and the tree.
    pub(super) durable: bool,
    /// They are in the tree.
    pub(super) sealed: bool,
}

/// What the writer and its committer share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) chunks: VecDeque<Chunk>,
    spares: Vec<Vec<u8>>,
    /// Bytes not yet durable: waiting or being written.
    pub(super) waiting: usize,
    /// When the first of the waiting chunks began.
    pub(super) since: Option<Instant>,
    pub(super) durable: u64,
    /// Somebody waits for all that was appended up to here.
    pub(super) flush: u64,
    pub(super) blocked: Option<String>,
    pub(super) closing: bool,
    pub(super) ended: bool,
    /// Records under the last checkpoint.
    pub(super) sealed: u64,
    /// A checkpoint is to have this record soon.
    pub(super) seal: u64,
    /// A new key may be there.
    pub(super) renew_key: bool,
    sealing: bool,
    sequence: u64,
    hash: Hash,
    /// The segment that the next record goes to, and its length with all that waits; `None` for a new one.
    segment: Option<(u64, u64)>,
    line: Vec<u8>,
    uid: String,
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// The committer waits here for something to do.
    pub(super) work: Condvar,
    /// Everybody else waits here for the committer.
    pub(super) progress: Condvar,
    pub(super) commit_bytes: usize,
    pub(super) commit_interval: Duration,
}

impl Shared {
    /// No invariant spans an unlock, so the state of a thread that panicked is as good as any.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open trail. Dropping it commits what waits, once, and lets the lock go; [`Trail::close`] also tells whether that
/// worked.
#[derive(Debug)]
pub struct Trail {
    shared: Arc<Shared>,
    renderer: Renderer,
    id: String,
    directory: PathBuf,
    segment_bytes: u64,
    buffer_bytes: usize,
    committer: Option<JoinHandle<()>>,
    /// Held until the end, then let go by the kernel, whatever the end is.
    _lock: File,
}

impl Trail {
    /// Opens the trail in `directory` for writing, or begins one there.
    ///
    /// What a killed writer left of an unfinished line is set aside and told; it is the caller's duty to record it.
    /// Everything else that does not check is an error, and the trail is left as it is: see [`Error`].
    pub fn open(directory: &Path, options: Options) -> Result<(Self, Option<Recovery>), Error> {
        let created = create_directory(directory)?;
        let lock = match lock(directory) {
            Err(error) if created => {
                // Best effort: the folder was made a moment ago and the error matters more.
                let _ = fs::remove_dir(directory);
                return Err(error);
            }
            lock => lock?,
        };
        if let Err(source) = trial_write(directory) {
            if created {
                let _ = fs::remove_file(directory.join(LOCK));
                let _ = fs::remove_dir(directory);
            }
            return Err(no_room_or("write", directory, source));
        }
        sign_lock(&lock, directory)?;
        let position = recover(directory, || fresh_id(&options.randomness))?;
        let sealer = match &options.sealing {
            Some(sealing) => Some(Sealer::open(directory, &position, sealing, &options.randomness)?),
            None => None,
        };
        let (sealing, sealed) = (sealer.is_some(), sealer.as_ref().map_or(0, Sealer::sealed));
        let files = Files::open(directory, &position, sealer)?;
        let renderer = Renderer::new(&options.host)?;
        let Position { trail: id, sequence, hash, segment, recovery } = position;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                chunks: VecDeque::new(),
                spares: Vec::new(),
                waiting: 0,
                since: None,
                durable: sequence,
                flush: 0,
                blocked: None,
                closing: false,
                ended: false,
                sealed,
                seal: 0,
                renew_key: false,
                sealing,
                sequence,
                hash,
                segment: segment.map(|(segment, length)| (segment.first, length)),
                line: Vec::new(),
                uid: String::new(),
            }),
            work: Condvar::new(),
            progress: Condvar::new(),
            commit_bytes: options.commit_bytes,
            commit_interval: options.commit_interval,
        });
        let committer = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("trail".to_owned())
                .spawn(move || committer::run(&shared, files))
                .map_err(Error::call("start the thread that writes", directory))?
        };
        let trail = Self {
            shared,
            renderer,
            id,
            directory: directory.to_owned(),
            segment_bytes: options.segment_bytes,
            buffer_bytes: options.buffer_bytes,
            committer: Some(committer),
            _lock: lock,
        };
        Ok((trail, recovery))
    }

    /// The trail's id: 32 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Adds a record and gives its sequence. It is durable later: see [`Trail::flush`] and [`Trail::durable`].
    ///
    /// Blocks while [`Options::buffer_bytes`] wait for the disk, for as long as that takes: [`Trail::blocked`] tells why.
    pub fn append(&self, entry: &Entry) -> Result<u64, Error> {
        let mut state = self.shared.state();
        while state.has_no_room(self.buffer_bytes) {
            state = self.shared.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.append_now(&mut state, entry)
    }

    /// Like [`Trail::append`], but blocks for `patience` at most. Without room by then the record is lost, and the error says
    /// so: for whoever must come to an end, and for nobody else.
    pub fn append_within(&self, entry: &Entry, patience: Duration) -> Result<u64, Error> {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state();
        while state.has_no_room(self.buffer_bytes) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let records = state.sequence.saturating_sub(state.durable);
                return Err(Error::NoPatience { records, reason: state.reason() });
            }
            (state, _) =
                self.shared.progress.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        self.append_now(&mut state, entry)
    }

    fn append_now(&self, state: &mut State, entry: &Entry) -> Result<u64, Error> {
        if state.closing || state.ended {
            return Err(Error::Closed);
        }
        let sequence = state.sequence + 1;
        write_uid(&mut state.uid, &self.id, sequence);
        state.line.clear();
        self.renderer.render(entry, Identity { sequence, uid: &state.uid }, &mut state.line)?;
        let hash = seal(&mut state.line, state.hash);
        let bytes = u64::try_from(state.line.len()).unwrap_or(u64::MAX);
        if bytes > LONGEST_LINE {
            return Err(Error::TooLong { bytes });
        }
        let (before, after) = state.push(sequence, hash, self.segment_bytes);
        if matches!(entry.event, Event::SessionEnded { .. }) {
            state.seal = sequence;
        }
        let commit = self.shared.commit_bytes;
        if before == 0 || (before < commit && after >= commit) {
            self.shared.work.notify_one();
        }
        Ok(sequence)
    }

    /// Waits until all that was appended before is durable, at most for `patience`.
    pub fn flush(&self, patience: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state();
        let target = state.sequence;
        state.flush = state.flush.max(target);
        self.shared.work.notify_one();
        while state.durable < target {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return Err(state.not_durable(target));
            }
            (state, _) =
                self.shared.progress.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Records under the last checkpoint.
    pub fn sealed(&self) -> u64 {
        self.shared.state().sealed
    }

    /// Asks for a checkpoint over all that was appended before, at once or five seconds after the one before.
    pub fn seal_soon(&self) {
        let mut state = self.shared.state();
        state.seal = state.sequence;
        self.shared.work.notify_one();
    }

    /// Hands over to the key that [`super::seal::prepare_key`] has made, if it has.
    pub fn renew_key(&self) {
        self.shared.state().renew_key = true;
        self.shared.work.notify_one();
    }

    /// Sequence of the last record that is on the disk, 0 before the first.
    pub fn durable(&self) -> u64 {
        self.shared.state().durable
    }

    /// Sequence of the last record that was appended, 0 before the first.
    pub fn last(&self) -> u64 {
        self.shared.state().sequence
    }

    /// The last record that was appended, on the disk or not.
    pub fn head(&self) -> Head {
        let state = self.shared.state();
        Head { trail: self.id.clone(), sequence: state.sequence, hash: state.hash }
    }

    /// Bytes that wait for the disk.
    pub fn waiting(&self) -> usize {
        self.shared.state().waiting
    }

    /// Why nothing can be written at the moment; `None` while all is well.
    pub fn blocked(&self) -> Option<String> {
        self.shared.state().blocked.clone()
    }

    /// Commits what waits and closes the trail. Where that fails, the error says how many records are lost, and why.
    pub fn close(mut self) -> Result<(), Error> {
        self.end();
        let state = self.shared.state();
        if state.durable < state.sequence { Err(state.not_durable(state.sequence)) } else { Ok(()) }
    }

    fn end(&mut self) {
        self.shared.state().closing = true;
        self.shared.work.notify_all();
        self.shared.progress.notify_all();
        if let Some(committer) = self.committer.take() {
            // A committer that panicked has marked the trail as ended; there is nothing to add.
            let _ = committer.join();
        }
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        self.end();
    }
}

impl State {
    /// Puts the line that was just sealed into its chunk; gives the bytes that waited before and wait now.
    fn push(&mut self, sequence: u64, hash: Hash, segment_bytes: u64) -> (usize, usize) {
        let length = u64::try_from(self.line.len()).unwrap_or(u64::MAX);
        let hashes = self.sealing.then_some(hash);
        let segment = match &mut self.segment {
            Some((first, bytes)) if *bytes < segment_bytes => {
                *bytes += length;
                *first
            }
            segment => {
                *segment = Some((sequence, length));
                sequence
            }
        };
        match self.chunks.back_mut() {
            Some(chunk) if chunk.segment == segment && chunk.bytes.len() < CHUNK_BYTES => {
                chunk.bytes.extend_from_slice(&self.line);
                chunk.hashes.extend(hashes);
                (chunk.sequence, chunk.hash) = (sequence, hash);
            }
            _ => {
                let mut bytes = self.spares.pop().unwrap_or_default();
                bytes.extend_from_slice(&self.line);
                let hashes = hashes.into_iter().collect();
                let (durable, sealed) = (false, false);
                self.chunks.push_back(Chunk { segment, bytes, sequence, hash, hashes, durable, sealed });
            }
        }
        (self.sequence, self.hash) = (sequence, hash);
        self.since.get_or_insert_with(Instant::now);
        let before = self.waiting;
        self.waiting += self.line.len();
        (before, self.waiting)
    }

    /// A chunk is durable: its buffer is for another.
    pub(super) fn reuse(&mut self, mut bytes: Vec<u8>) {
        // A line of many MiB is rare; its memory is given back.
        if self.spares.len() < SPARES && bytes.capacity() <= 2 * CHUNK_BYTES {
            bytes.clear();
            self.spares.push(bytes);
        }
    }

    pub(super) fn take(&mut self) -> VecDeque<Chunk> {
        self.since = None;
        mem::take(&mut self.chunks)
    }

    /// Nothing more may wait, and it is worth waiting for that to change.
    fn has_no_room(&self, buffer_bytes: usize) -> bool {
        self.waiting >= buffer_bytes && !self.closing && !self.ended
    }

    fn not_durable(&self, target: u64) -> Error {
        Error::NotDurable { records: target.saturating_sub(self.durable), reason: self.reason() }
    }

    /// Why records are not durable yet, as far as it is known.
    fn reason(&self) -> String {
        self.blocked.clone().unwrap_or_else(|| "the disk is slow".to_owned())
    }
}

const LOCK: &str = "LOCK";
const TRIAL: &str = "trial";

/// Whether it was made now.
fn create_directory(directory: &Path) -> Result<bool, Error> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(no_room_or("mkdir", directory, error)),
    }
}

fn lock(directory: &Path) -> Result<File, Error> {
    let path = directory.join(LOCK);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = file.map_err(|error| no_room_or("open", directory, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let known = (&mut file).take(64).read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if known { holder.trim().to_owned() } else { "which one is not known".to_owned() };
            Err(Error::Locked { path: directory.to_owned(), holder })
        }
        Err(TryLockError::Error(error)) => Err(Error::call("flock", &path)(error)),
    }
}

/// Says in LOCK who holds it, for the error message that the next one gets.
fn sign_lock(mut lock: &File, directory: &Path) -> Result<(), Error> {
    let sign = |lock: &mut &File| {
        lock.set_len(0)?;
        lock.write_all(format!("pid {}\n", std::process::id()).as_bytes())
    };
    sign(&mut lock).map_err(Error::call("write", &directory.join(LOCK)))
}

fn trial_write(directory: &Path) -> io::Result<()> {
    let path = directory.join(TRIAL);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    let written = file.write_all(&[0; TRIAL_BYTES]).and_then(|()| file.sync_all());
    fs::remove_file(&path)?;
    written
}

fn no_room_or(call: &'static str, directory: &Path, source: io::Error) -> Error {
    if is_full(&source) {
        Error::NoRoom { path: directory.to_owned(), source }
    } else {
        Error::call(call, directory)(source)
    }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn fresh_id(randomness: &Path) -> Result<String, Error> {
    let mut bytes = [0; 16];
    File::open(randomness)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(Error::call("read", randomness))?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// `<trail id>-<sequence>`, without an allocation of its own.
fn write_uid(uid: &mut String, trail: &str, sequence: u64) {
    use std::fmt::Write as _;
    uid.clear();
    // Writing to a String does not fail.
    let _ = write!(uid, "{trail}-{sequence}");
}
