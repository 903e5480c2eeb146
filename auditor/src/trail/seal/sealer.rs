//! The writing end: grows the tree behind the records, and signs checkpoints.
//!
//! It belongs to the committer's thread and takes a record's hash once the record is on the disk, so that nothing is ever signed that a crash
//! could take back. **Order on the disk**: records, then tiles, then `checkpoints`, then `checkpoint`. So a checkpoint has its tiles, and all
//! that a crash can leave undone is behind the last checkpoint and is done again from the segments.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::chain::{Hash, Seal};
use super::super::error::Error;
use super::super::head::sync_directory;
use super::super::recovery::Position;
use super::super::segment::{Lines, Segment};
use super::super::verify::Check;
use super::checkpoint::{self, Checkpoint, Listed, origin};
use super::key::{Keys, Signer};
use super::tile::{self, Tiles};
use super::tree::{Tile, Tree, leaf_of};

/// Checkpoints that are asked for are made no more often than this: a host on which sessions end all the time would have more of them than
/// anybody wants to keep and to verify.
const SOONEST: Duration = Duration::from_secs(5);

/// Records behind the last checkpoint from which on one is made out of turn: the next daemon hashes them all before it begins, and
/// agents wait for it.
const MOST_UNSEALED: u64 = 4096;
/// Such checkpoints are made no more often than this.
const OUT_OF_TURN: Duration = Duration::from_secs(1);

/// How a trail is sealed.
#[derive(Clone, Debug)]
pub struct Sealing {
    /// Directory of the private keys.
    pub keys: PathBuf,
    /// Time between two checkpoints, while there are new records.
    pub every: Duration,
}

/// See the module.
#[derive(Debug)]
pub(in crate::trail) struct Sealer {
    directory: PathBuf,
    origin: String,
    every: Duration,
    keys: Keys,
    key: Box<dyn Signer>,
    tree: Tree,
    /// Full tiles that are not written yet.
    full: Vec<Tile>,
    tiles: Tiles,
    /// The file of all checkpoints, and its durable length.
    all: File,
    length: u64,
    /// Size of the last checkpoint, and when it was made.
    sealed: u64,
    since: Instant,
}

impl Sealer {
    /// Takes up the tree of the trail that goes on at `position`; begins one, over all records that there are, where there is none.
    pub(in crate::trail) fn open(
        directory: &Path,
        position: &Position,
        sealing: &Sealing,
        randomness: &Path,
    ) -> Result<Self, Error> {
        let keys = Keys::new(&sealing.keys, &position.trail, randomness);
        let listed = Listed::read(directory)?;
        let last = match &listed {
            Some(listed) => last_of(directory, listed)?,
            None => None,
        };
        let current = keys.current()?;
        let key = match (&last, current) {
            // Whoever takes the checkpoints away must not get new ones.
            (None, Some(_)) => return Err(Error::SealMissing { path: directory.join(checkpoint::ALL) }),
            (None, None) => keys.make_next()?,
            (Some((_, public)), current) => match current.filter(|key| key.public() == public) {
                Some(key) => key,
                // A crash came between the hand-over and this.
                None => match keys.next()?.filter(|key| key.public() == public) {
                    Some(key) => {
                        keys.promote()?;
                        key
                    }
                    None => {
                        return Err(Error::KeyMissing { path: keys.path(), public: public.to_string() });
                    }
                },
            },
        };
        let path = directory.join(checkpoint::ALL);
        let all = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let all = all.map_err(Error::call("open", &path))?;
        let length = listed.as_ref().map_or(0, |listed| listed.length as u64);
        let mut sealer = Self {
            directory: directory.to_owned(),
            origin: origin(&position.trail),
            every: sealing.every,
            keys,
            key: Box::new(key),
            tree: Tree::default(),
            full: Vec::new(),
            tiles: Tiles::new(directory),
            all,
            length,
            sealed: 0,
            since: Instant::now(),
        };
        sealer.cut()?;
        match last {
            Some((last, _)) => {
                let sealed = listed.iter().flat_map(Listed::signed).map(|signed| signed.checkpoint.size);
                sealer.resume(&last, &sealed.collect(), position)?;
                // What had to be made again, so that no commit waits for it.
                sealer.tiles.sync()?;
                sealer.publish_again()?;
                sealer.renew_key()?;
            }
            None => {
                if position.sequence > 0 {
                    tracing::info!(records = position.sequence, "the trail has no tree yet: it is built");
                }
                sealer.follow(position)?;
                sealer.introduce()?;
                sealer.keys.promote()?;
            }
        }
        Ok(sealer)
    }

    /// Goes on from the last checkpoint; `sealed` are the sizes of all.
    fn resume(
        &mut self,
        last: &Checkpoint,
        sealed: &BTreeSet<u64>,
        position: &Position,
    ) -> Result<(), Error> {
        if position.sequence < last.size {
            return Err(Error::Shortened {
                path: self.directory.clone(),
                head: last.size,
                last: position.sequence,
            });
        }
        self.sealed = last.size;
        let trail = self.directory.clone();
        let edge = Tree::resume(last.size, |level, index, width| {
            tile::read(&trail, (level, index), width, last.size).map_err(Some)?.ok_or(None)
        });
        match edge {
            Ok(tree) if tree.root() == last.root => self.tree = tree,
            Ok(_) | Err(None) => {
                tracing::error!("tiles of the trail's tree are damaged: they are made anew from its records");
                self.tree = Tree::default();
            }
            Err(Some(error)) => return Err(error),
        }
        let begun = self.tree.size();
        let root = self.follow_to(position, last.size, begun, sealed)?;
        if root.is_some_and(|root| root != last.root) {
            return Err(Error::Rewritten { path: self.directory.clone(), size: last.size });
        }
        Ok(())
    }

    fn follow(&mut self, position: &Position) -> Result<(), Error> {
        self.follow_to(position, 0, 0, &BTreeSet::new()).map(drop)
    }

    /// Adds the records behind `begun` from the segments, with the partial tiles of the checkpoints that come by, and gives the root at
    /// `size` where it does.
    fn follow_to(
        &mut self,
        position: &Position,
        size: u64,
        begun: u64,
        sealed: &BTreeSet<u64>,
    ) -> Result<Option<Hash>, Error> {
        let segments = Segment::list(&self.directory)?;
        let first = segments.iter().rposition(|segment| segment.first <= begun + 1).unwrap_or(0);
        let mut root = None;
        let mut before: Option<Hash> = None;
        for segment in &segments[first.min(segments.len())..] {
            let mut sequence = segment.first - 1;
            let mut lines = Lines::open(&segment.path)?;
            while let Some(line) = lines.next_line()? {
                if sequence == position.sequence {
                    break;
                }
                sequence += 1;
                let damaged =
                    |check| Error::Damaged { path: segment.path.clone(), line: line.number, sequence, check };
                let seal = Seal::read(line.bytes).ok_or_else(|| damaged(Check::Form))?;
                if before.is_some_and(|before| before != seal.prev) {
                    return Err(damaged(Check::Previous));
                }
                before = Some(seal.hash);
                if sequence <= begun {
                    continue;
                }
                if !seal.holds(line.bytes) {
                    return Err(damaged(Check::Hash));
                }
                if sequence != self.tree.size() + 1 {
                    return Err(damaged(Check::Sequence));
                }
                self.add(&[seal.hash]);
                self.write()?;
                if sealed.contains(&sequence) {
                    self.write_edge()?;
                }
                if sequence == size {
                    root = Some(self.tree.root());
                }
            }
        }
        if self.tree.size() != position.sequence {
            return Err(Error::Shortened {
                path: self.directory.clone(),
                head: position.sequence,
                last: self.tree.size(),
            });
        }
        Ok(root)
    }

    /// Adds records that are durable, by their hashes.
    pub(in crate::trail) fn add(&mut self, records: &[Hash]) {
        for record in records {
            self.tree.push(leaf_of(*record), &mut self.full);
        }
    }

    /// Writes the tiles that are full. After an error it is called again.
    pub(in crate::trail) fn write(&mut self) -> Result<(), Error> {
        while let Some(tile) = self.full.first() {
            self.tiles.write(tile)?;
            self.full.remove(0);
        }
        Ok(())
    }

    /// Writes the partial tiles that a checkpoint of this size has.
    fn write_edge(&mut self) -> Result<(), Error> {
        let edge: Vec<Tile> = self.tree.edge().collect();
        edge.iter().try_for_each(|tile| self.tiles.write(tile))
    }

    /// Records under the last checkpoint.
    pub(in crate::trail) fn sealed(&self) -> u64 {
        self.sealed
    }

    /// Time until a checkpoint is due, if one will be; `asked` is the last record that somebody wants to be under one.
    pub(in crate::trail) fn due(&self, asked: u64) -> Option<Duration> {
        let mut every = if asked > self.sealed { SOONEST.min(self.every) } else { self.every };
        if self.tree.size() - self.sealed >= MOST_UNSEALED {
            every = OUT_OF_TURN.min(every);
        }
        (self.tree.size() > self.sealed).then(|| every.saturating_sub(self.since.elapsed()))
    }

    /// Seals all records that were added, if there are new ones.
    pub(in crate::trail) fn checkpoint(&mut self) -> Result<(), Error> {
        // Also after a failure, so that it is not tried without a pause.
        self.since = Instant::now();
        if self.tree.size() == self.sealed {
            return Ok(());
        }
        let checkpoint = self.of_now(None);
        let note = signed(&checkpoint, &[&*self.key])?;
        self.publish(&note)
    }

    /// Hands over to the key that was made for it, if there is one.
    pub(in crate::trail) fn renew_key(&mut self) -> Result<(), Error> {
        let Some(next) = self.keys.next()? else { return Ok(()) };
        if next.public() != self.key.public() {
            let checkpoint = self.of_now(Some(&next));
            let note = signed(&checkpoint, &[&*self.key, &next])?;
            self.publish(&note)?;
            tracing::info!(key = %next.public(), "checkpoints of the trail are signed by a new key");
        }
        self.keys.promote()?;
        self.key = Box::new(next);
        Ok(())
    }

    /// The first checkpoint, which names the first key.
    fn introduce(&mut self) -> Result<(), Error> {
        let checkpoint = self.of_now(Some(&*self.key));
        let note = signed(&checkpoint, &[&*self.key])?;
        self.publish(&note)
    }

    fn of_now(&self, key: Option<&dyn Signer>) -> Checkpoint {
        Checkpoint {
            origin: self.origin.clone(),
            size: self.tree.size(),
            root: self.tree.root(),
            key: key.map(|key| key.public().clone()),
        }
    }

    fn publish(&mut self, note: &str) -> Result<(), Error> {
        self.write()?;
        self.write_edge()?;
        self.tiles.sync()?;
        let path = self.directory.join(checkpoint::ALL);
        self.cut()?;
        let line = format!("{note}\n");
        self.all.write_all(line.as_bytes()).map_err(Error::call("write", &path))?;
        self.all.sync_all().map_err(Error::call("fsync", &path))?;
        if self.length == 0 {
            sync_directory(&self.directory)?;
        }
        self.length += line.len() as u64;
        self.sealed = self.tree.size();
        replace(&self.directory, note)
    }

    /// Cuts off what a crash or an error left of a checkpoint.
    fn cut(&self) -> Result<(), Error> {
        let path = self.directory.join(checkpoint::ALL);
        let found = self.all.metadata().map_err(Error::call("stat", &path))?.len();
        if found > self.length {
            let bytes = found - self.length;
            tracing::warn!(bytes, file = %path.display(), "what a crash or an error left behind the last checkpoint is cut off");
            self.all.set_len(self.length).map_err(Error::call("truncate", &path))?;
        }
        Ok(())
    }

    /// The file of the last checkpoint may be one behind.
    fn publish_again(&self) -> Result<(), Error> {
        let Some(listed) = Listed::read(&self.directory)? else { return Ok(()) };
        let Some(signed) = listed.signed().next_back() else { return Ok(()) };
        if checkpoint::last(&self.directory)?.as_ref() == Some(&signed.note) {
            return Ok(());
        }
        replace(&self.directory, &signed.note)
    }
}

fn signed(checkpoint: &Checkpoint, keys: &[&dyn Signer]) -> Result<String, Error> {
    let text = checkpoint.text();
    let mut note = format!("{text}\n");
    for key in keys {
        note.push_str(&key.public().line(&key.sign(text.as_bytes()).map_err(Error::Sign)?));
    }
    Ok(note)
}

/// Puts a note in the place of the last checkpoint, whole or not at all.
fn replace(directory: &Path, note: &str) -> Result<(), Error> {
    let new = directory.join(format!("{}.new", checkpoint::LAST));
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
    let mut file = file.map_err(Error::call("create", &new))?;
    file.write_all(note.as_bytes()).map_err(Error::call("write", &new))?;
    file.sync_all().map_err(Error::call("fsync", &new))?;
    fs::rename(&new, directory.join(checkpoint::LAST)).map_err(Error::call("rename", &new))
}

/// The last checkpoint and the key in force; an error where any cannot be read or the last is not signed by that key.
fn last_of(
    directory: &Path,
    listed: &Listed,
) -> Result<Option<(Checkpoint, super::note::VerifierKey)>, Error> {
    let path = directory.join(checkpoint::ALL);
    if listed.notes.iter().any(|(_, note)| note.is_err()) {
        return Err(Error::SealDamaged { path });
    }
    let Some(last) = listed.signed().next_back() else { return Ok(None) };
    match listed.key() {
        Some(key) if last.is_signed_by(key) => Ok(Some((last.checkpoint.clone(), key.clone()))),
        _ => Err(Error::SealDamaged { path }),
    }
}
