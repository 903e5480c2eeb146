//! A record, that it is one of those a checkpoint was signed for, and the checkpoint: one text that needs nothing else, by C2SP tlog-proof.
//!
//! ```text
//! c2sp.org/tlog-proof@v1
//! extra <the record's line, base64>
//! index <its number less one>
//! <hashes from its sibling up, base64>
//!
//! <the checkpoint>
//! ```

use std::fmt;
use std::path::Path;

use data_encoding::BASE64;

use super::super::chain::{Hash, Seal};
use super::super::error::Error;
use super::super::verify::Identified;
use super::checkpoint::{self, Signed, trail_of};
use super::note::VerifierKey;
use super::{tile, tree};

const FIRST: &str = "c2sp.org/tlog-proof@v1";
const EXTRA: &str = "extra ";
const INDEX: &str = "index ";
/// The highest tree has 2^64 leaves.
const LONGEST_PATH: usize = 64;

/// A record that can be verified without its trail.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Proof {
    line: Vec<u8>,
    index: u64,
    path: Vec<Hash>,
    checkpoint: Signed,
}

/// The text is not a proof of a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this is not a proof of a record as `auditor prove` prints it")]
pub struct NotAProof;

/// Why a proof does not prove its record.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unproven {
    /// The line does not hold by itself.
    #[error("the record was changed: its hash is not that of its bytes")]
    Record,
    /// It is another record than the one that is proven.
    #[error("the record is not the one that the proof is for: its number or its trail is another")]
    Place,
    /// The hashes lead to another root.
    #[error("the record is not among those that the checkpoint was signed for")]
    Root,
    /// The checkpoint is not signed by the key.
    #[error(
        "the checkpoint is not signed by this key: it was changed, or it is of another trail or signed by a later key"
    )]
    Signature,
}

impl Proof {
    /// Proves a record of the trail in `directory` by its last checkpoint.
    ///
    /// # Errors
    /// The record is newer than that, or tiles and checkpoint do not fit.
    pub fn of(directory: &Path, line: &[u8]) -> Result<Self, Error> {
        let sequence = Identified::read(line).map_or(0, |identified| identified.sequence);
        let missing = |reason| Error::NoProof { sequence, reason };
        let seal = Seal::read(line).ok_or(missing("it is not a record"))?;
        let index = sequence.checked_sub(1).ok_or(missing("it is not a record"))?;
        let note = checkpoint::last(directory)?.ok_or(missing("the trail has no checkpoint"))?;
        let checkpoint = Signed::parse(&note).ok_or(missing("the last checkpoint cannot be read"))?;
        let size = checkpoint.checkpoint.size;
        if size < sequence {
            return Err(Error::NotSealed { sequence, sealed: size });
        }
        let path = tree::inclusion(index, size, |level, tile, width| {
            tile::read(directory, (level, tile), width, size)?.ok_or(missing("a tile is missing or cut"))
        })?;
        let root = tree::root_by(tree::leaf_of(seal.hash), index, size, &path);
        if root != Some(checkpoint.checkpoint.root) {
            return Err(missing("record, tiles and checkpoint do not fit"));
        }
        Ok(Self { line: line.to_owned(), index, path, checkpoint })
    }

    /// Reads what [`Proof`] displays.
    ///
    /// # Errors
    /// It is not that.
    pub fn parse(text: &str) -> Result<Self, NotAProof> {
        Self::read(text).ok_or(NotAProof)
    }

    fn read(text: &str) -> Option<Self> {
        let (proof, note) = text.split_once("\n\n")?;
        let mut lines = proof.split('\n');
        (lines.next()? == FIRST).then_some(())?;
        let line = BASE64.decode(lines.next()?.strip_prefix(EXTRA)?.as_bytes()).ok()?;
        let index = lines.next()?.strip_prefix(INDEX)?.parse().ok()?;
        let path = lines.map(|line| Hash::from_slice(&BASE64.decode(line.as_bytes()).ok()?));
        let path = path.take(LONGEST_PATH + 1).collect::<Option<Vec<_>>>()?;
        let proof = Self { line, index, path, checkpoint: Signed::parse(note)? };
        (proof.to_string() == text).then_some(proof)
    }

    /// Whether `key` has signed for this record.
    ///
    /// # Errors
    /// What does not hold.
    pub fn verify(&self, key: &VerifierKey) -> Result<(), Unproven> {
        let seal = Seal::read(&self.line).filter(|seal| seal.holds(&self.line)).ok_or(Unproven::Record)?;
        let identified = Identified::read(&self.line).ok_or(Unproven::Record)?;
        let checkpoint = &self.checkpoint.checkpoint;
        let of_trail = trail_of(&checkpoint.origin).is_some_and(|trail| identified.belongs_to(trail));
        if identified.sequence.checked_sub(1) != Some(self.index)
            || !of_trail
            || key.name() != checkpoint.origin
        {
            return Err(Unproven::Place);
        }
        let root = tree::root_by(tree::leaf_of(seal.hash), self.index, checkpoint.size, &self.path);
        if root != Some(checkpoint.root) {
            return Err(Unproven::Root);
        }
        if self.checkpoint.is_signed_by(key) { Ok(()) } else { Err(Unproven::Signature) }
    }

    /// The record's line, with its newline.
    pub fn line(&self) -> &[u8] {
        &self.line
    }

    /// The record's number.
    pub fn sequence(&self) -> u64 {
        self.index.saturating_add(1)
    }

    /// The checkpoint that it is proven by.
    pub fn checkpoint(&self) -> &Signed {
        &self.checkpoint
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FIRST}\n{EXTRA}{}\n{INDEX}{}", BASE64.encode(&self.line), self.index)?;
        for hash in &self.path {
            writeln!(f, "{}", BASE64.encode(hash.as_bytes()))?;
        }
        write!(f, "\n{}", self.checkpoint.note)
    }
}
