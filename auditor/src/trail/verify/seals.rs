//! The seals of a trail against its records: signatures, roots, tiles.
//!
//! First the checkpoints are verified by themselves, from the first one on, which names the first key. Then the tree grows beside the walk over
//! the records, and each checkpoint's root is compared as its size comes by, each tile as it is full. Where a record's hash is not known, the
//! tree cannot be followed any further: that record is a finding already.

use std::path::{Path, PathBuf};

use super::super::chain::Hash;
use super::super::error::Error;
use super::super::seal::checkpoint::{self, Listed, origin, trail_of};
use super::super::seal::tile;
use super::super::seal::tree::{Tile, Tree, WIDTH, leaf_of};
use super::super::seal::{Signed, VerifierKey};
use super::{Check, Damage, Report};

/// What somebody knows who verifies, from a place that the host's root cannot reach.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The key that signs the trail's checkpoints, or one before it.
    pub key: Option<VerifierKey>,
    /// Checkpoints that have left the host, and the files that they are in.
    pub checkpoints: Vec<(PathBuf, Signed)>,
}

/// A root that the tree must have at a size.
#[derive(Debug)]
struct Due {
    size: u64,
    root: Hash,
    file: PathBuf,
    line: u64,
    /// It has left the host: another root is another history.
    known: bool,
}

/// The seals of one trail during a walk over its records.
#[derive(Debug)]
pub(super) struct Seals {
    directory: PathBuf,
    due: std::collections::VecDeque<Due>,
    /// Records under the last checkpoint of the trail itself.
    last: u64,
    /// Records under the last checkpoint that was found to hold.
    holds: u64,
    tree: Tree,
    full: Vec<Tile>,
    following: bool,
    /// A tile of leaves is wrong, and so those above it.
    leaves_differ: bool,
}

impl Seals {
    /// Verifies the checkpoints in `directory` by themselves; `None` where there is nothing to compare records with.
    pub(super) fn open(
        directory: &Path,
        trail: Option<&str>,
        trust: &Trust,
        report: &mut Report,
    ) -> Result<Option<Self>, Error> {
        let all = directory.join(checkpoint::ALL);
        let (last, listed) = read(directory)?;
        let Some(listed) = listed else {
            if last.is_some() || trust.key.is_some() || !trust.checkpoints.is_empty() {
                report.damage(Damage::of_file(&all, Check::CheckpointsMissing));
            }
            return Ok(None);
        };
        let expected = trail.map(origin).or_else(|| {
            let first = listed.signed().next()?;
            trail_of(&first.checkpoint.origin).map(origin)
        });
        let mut signatures = Signatures { keys: Vec::new(), lost: false, given: trust.key.as_ref() };
        let mut due: Vec<Due> = Vec::new();
        for (line, note) in &listed.notes {
            let at = |check| Damage { line: *line, ..Damage::of_file(&all, check) };
            let Ok(signed) = note else {
                signatures.lost = true;
                report.damage(at(Check::CheckpointForm));
                continue;
            };
            let Signed { checkpoint, .. } = signed;
            let holds = signatures.hold(signed);
            if !holds && signatures.lost {
                // By whom it must be signed was in a note that cannot be read, which is a finding already.
                continue;
            }
            let wrong = match due.last() {
                _ if expected.as_ref() != Some(&checkpoint.origin) => Some(Check::Origin),
                _ if !holds => Some(Check::Signature),
                Some(before) if before.size == checkpoint.size && before.root != checkpoint.root => {
                    Some(Check::Forked)
                }
                Some(before) if before.size > checkpoint.size => Some(Check::CheckpointOrder),
                _ => None,
            };
            if let Some(check) = wrong {
                report.damage(Damage { sequence: Some(checkpoint.size), ..at(check) });
                continue;
            }
            let (size, root) = (checkpoint.size, checkpoint.root);
            due.push(Due { size, root, file: all.clone(), line: *line, known: false });
        }
        if let Some(key) = &trust.key
            && !signatures.keys.contains(key)
            && !signatures.lost
        {
            report.damage(Damage::of_file(&all, Check::Key));
        }
        // What is wrong there is said already, and the two of them differ by that.
        if !is_among_newest(last.as_deref(), &listed) && !signatures.lost {
            report.damage(Damage::of_file(&directory.join(checkpoint::LAST), Check::CheckpointLast));
        }
        let own = due.last().map_or(0, |due| due.size);
        report.seal.checkpoints = due.len() as u64;
        report.seal.key = signatures.keys.last().map(VerifierKey::to_string);
        report.seal.key_given = trust.key.is_some();
        for (file, signed) in &trust.checkpoints {
            let Signed { checkpoint, .. } = signed;
            if expected.as_ref() != Some(&checkpoint.origin) {
                report.damage(Damage::of_file(file, Check::Origin));
            } else if !signatures.keys.iter().chain(&trust.key).any(|key| signed.is_signed_by(key)) {
                report.damage(Damage::of_file(file, Check::Signature));
            } else {
                let (size, root) = (checkpoint.size, checkpoint.root);
                due.push(Due { size, root, file: file.clone(), line: 0, known: true });
            }
        }
        due.sort_by_key(|due| due.size);
        let mut seals = Self {
            directory: directory.to_owned(),
            due: due.into(),
            last: own,
            holds: 0,
            tree: Tree::default(),
            full: Vec::new(),
            following: true,
            leaves_differ: false,
        };
        seals.compare_roots(report)?;
        Ok(Some(seals))
    }

    /// The next record of the trail has this hash.
    pub(super) fn follow(&mut self, sequence: u64, hash: Hash, report: &mut Report) -> Result<(), Error> {
        if !self.following {
            return Ok(());
        }
        if sequence != self.tree.size() + 1 {
            self.following = false;
            return Ok(());
        }
        self.tree.push(leaf_of(hash), &mut self.full);
        if !self.full.is_empty() {
            for tile in std::mem::take(&mut self.full) {
                if tile.end() <= self.last {
                    self.compare_tile(&tile, report)?;
                }
            }
        }
        self.compare_roots(report)
    }

    fn compare_roots(&mut self, report: &mut Report) -> Result<(), Error> {
        let mut root = None;
        while self.following
            && let Some(due) = self.due.pop_front_if(|due| due.size == self.tree.size())
        {
            if *root.get_or_insert_with(|| self.tree.root()) != due.root {
                let check = if due.known { Check::Forked } else { Check::Root };
                report.damage(Damage {
                    line: due.line,
                    sequence: Some((self.holds + 1).min(due.size)),
                    until: (due.size > self.holds + 1).then_some(due.size),
                    ..Damage::of_file(&due.file, check)
                });
                self.following = false;
                return Ok(());
            }
            self.holds = due.size;
            report.seal.sealed = due.size;
            if !due.known {
                for tile in self.tree.edge().collect::<Vec<_>>() {
                    self.compare_tile(&tile, report)?;
                }
            }
        }
        Ok(())
    }

    fn compare_tile(&mut self, tile: &Tile, report: &mut Report) -> Result<(), Error> {
        let below = tile::path(tile.level, tile.index, tile.hashes.len());
        let stored = match tile::bytes(&self.directory, &below)? {
            // Partial tiles may be gone once there is the full one, which is looked at in its turn.
            None if tile.hashes.len() < WIDTH => {
                let full = tile::path(tile.level, tile.index, WIDTH);
                tile::bytes(&self.directory, &full)?.map(|mut bytes| {
                    bytes.truncate(32 * tile.hashes.len());
                    bytes
                })
            }
            stored => stored,
        };
        let first = tile.index * WIDTH as u64 + 1;
        let file = self.directory.join(below);
        let Some(stored) = stored else {
            report.damage(Damage::of_file(&file, Check::TileMissing));
            return Ok(());
        };
        let expected = tile.bytes();
        if stored == expected || self.leaves_differ && tile.level > 0 {
            return Ok(());
        }
        let same = stored.iter().zip(&expected).take_while(|(stored, expected)| stored == expected).count();
        let hash = (same / 32) as u64;
        self.leaves_differ |= tile.level == 0;
        report.damage(Damage {
            offset: hash * 32,
            sequence: (tile.level == 0).then_some(first + hash),
            ..Damage::of_file(&file, Check::Tile)
        });
        Ok(())
    }

    /// After the last record; `accounted` is its number, with those that are damaged.
    pub(super) fn end(mut self, accounted: u64, report: &mut Report) {
        let seen = accounted.max(self.tree.size());
        self.due.retain(|due| due.size > seen);
        // The one that has left the host says more than the trail's own.
        let Some(due) = self.due.iter().rev().find(|due| due.known).or(self.due.back()) else { return };
        report.damage(Damage {
            line: due.line,
            sequence: Some(seen + 1),
            until: (due.size > seen + 1).then_some(due.size),
            ..Damage::of_file(&due.file, Check::Truncated)
        });
    }
}

/// Reads the last checkpoint and then all of them, of which it is one unless several were made in between.
fn read(directory: &Path) -> Result<(Option<String>, Option<Listed>), Error> {
    let mut read = (checkpoint::last(directory)?, Listed::read(directory)?);
    for _ in 0..3 {
        match &read {
            (last, Some(listed)) if !is_among_newest(last.as_deref(), listed) => {}
            _ => break,
        }
        read = (checkpoint::last(directory)?, Listed::read(directory)?);
    }
    Ok(read)
}

/// A crash can leave the last checkpoint's file one behind, or not made yet where there is only one.
fn is_among_newest(last: Option<&str>, listed: &Listed) -> bool {
    match last {
        Some(last) => listed.signed().rev().take(2).any(|signed| signed.note == last),
        None => listed.notes.len() <= 1,
    }
}

/// Which key must have signed what.
struct Signatures<'a> {
    /// All keys so far; the last one is in force.
    keys: Vec<VerifierKey>,
    /// A note could not be read: a key may have been in it.
    lost: bool,
    given: Option<&'a VerifierKey>,
}

impl Signatures<'_> {
    fn hold(&mut self, signed: &Signed) -> bool {
        let new = signed.checkpoint.key.as_ref();
        let Some(by) = self.keys.last().or(new).or(self.given.filter(|_| self.lost)) else { return false };
        if !signed.is_signed_by(by) || new.is_some_and(|new| !signed.is_signed_by(new)) {
            return false;
        }
        if let Some(new) = new {
            self.keys.push(new.clone());
        }
        true
    }
}
