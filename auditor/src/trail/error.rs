//! What can go wrong with a trail, each with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use super::verify::Check;

/// An error of the trail.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to the operating system failed.
    #[error("{call} {path}: {source}")]
    Call {
        /// The call.
        call: &'static str,
        /// Its subject.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process writes this trail.
    #[error(
        "the trail in {path} is locked by another process ({holder}): only one auditor may write a trail; stop the \
         other one or give this one its own --state-dir"
    )]
    Locked {
        /// The trail's folder.
        path: PathBuf,
        /// What the holder wrote into LOCK about itself.
        holder: String,
    },
    /// The trial write at open found no room.
    #[error(
        "no room for the trail in {path}: {source}; free some space on that file system (nothing was changed there)"
    )]
    NoRoom {
        /// The trail's folder.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// There are records, but not the file that says which is the last.
    #[error("{path} is missing although there are segments: run `auditor verify` and restore it from a copy")]
    HeadMissing {
        /// Where HEAD belongs.
        path: PathBuf,
    },
    /// HEAD is not what this program writes.
    #[error("{path} is damaged: run `auditor verify` and restore it from a copy")]
    HeadMalformed {
        /// The file.
        path: PathBuf,
    },
    /// HEAD names a record that the segments do not have, or have with another hash.
    #[error(
        "records are missing from the trail in {path}: HEAD says that record {head} was the last, the segments end \
         with record {last}: run `auditor verify`, then move the folder away to start a new trail"
    )]
    Shortened {
        /// The trail's folder.
        path: PathBuf,
        /// HEAD's sequence.
        head: u64,
        /// The last whole record's.
        last: u64,
    },
    /// A record does not check.
    #[error(
        "record {sequence} ({path}, line {line}) does not check: {check}; run `auditor verify`, then move the folder \
         away to start a new trail"
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Line in the segment, from 1.
        line: u64,
        /// The record that belongs there.
        sequence: u64,
        /// What failed.
        check: Check,
    },
    /// A key file is not what this program writes, or another trail's.
    #[error("{path} is not the key of this trail: restore it from a copy")]
    KeyMalformed {
        /// The file.
        path: PathBuf,
    },
    /// Others than the daemon may have read a key.
    #[error(
        "{path} is not a key that only this program's user can read: {reason}; put it there as a file with mode 0600 that \
         this user owns, start, and change the key with `auditor key --rotate` if others may have read it"
    )]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: &'static str,
    },
    /// The trail is sealed and its key is not there.
    #[error(
        "the key that seals this trail is not in {path} (its public half is {public}): restore it from a copy, or move \
         the trail's folder away to start a new trail"
    )]
    KeyMissing {
        /// Where it belongs.
        path: PathBuf,
        /// Its public half.
        public: String,
    },
    /// The key cannot be used.
    #[error("a checkpoint of the trail cannot be signed: {0}")]
    Sign(io::Error),
    /// The trail was sealed and its checkpoints are gone.
    #[error(
        "{path} is missing although this trail was sealed: run `auditor verify` and restore it from a copy, or move the \
         folder away to start a new trail"
    )]
    SealMissing {
        /// Where they belong.
        path: PathBuf,
    },
    /// A checkpoint cannot be read, or is not signed by the trail's key.
    #[error(
        "{path} is damaged: run `auditor verify` and restore it from a copy, or move the folder away to start a new trail"
    )]
    SealDamaged {
        /// The file.
        path: PathBuf,
    },
    /// The records are not those that were sealed.
    #[error(
        "records up to {size} of the trail in {path} are not those that its last checkpoint was signed for: run `auditor \
         verify`, then move the folder away to start a new trail"
    )]
    Rewritten {
        /// The trail's folder.
        path: PathBuf,
        /// Records under the checkpoint.
        size: u64,
    },
    /// The record is in no checkpoint yet.
    #[error(
        "record {sequence} is in no checkpoint yet, the last one has {sealed} records: ask again after the next one"
    )]
    NotSealed {
        /// The record.
        sequence: u64,
        /// Records under the last checkpoint.
        sealed: u64,
    },
    /// No proof can be made.
    #[error("there is no proof for record {sequence}: {reason}; run `auditor verify`")]
    NoProof {
        /// The record.
        sequence: u64,
        /// What does not fit.
        reason: &'static str,
    },
    /// The record could not be rendered.
    #[error("cannot render a record: {0}")]
    Render(#[from] serde_json::Error),
    /// The record is longer than a reader of the trail takes.
    #[error(
        "a record of {bytes} bytes is more than the trail takes (64 MiB): lower capture.max_statement_bytes"
    )]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// The trail is being closed, or its writer has ended.
    #[error("the trail is closed: no more records are taken")]
    Closed,
    /// There was no room for a record in time: it is lost.
    #[error("a record is lost, {records} more are not durable yet: {reason}")]
    NoPatience {
        /// How many wait before it.
        records: u64,
        /// Why, as far as it is known.
        reason: String,
    },
    /// Records were not durable in time.
    #[error("{records} records are not durable yet: {reason}")]
    NotDurable {
        /// How many wait.
        records: u64,
        /// Why, as far as it is known.
        reason: String,
    },
    /// A pattern for a search is not valid.
    #[error("{0}")]
    Pattern(#[from] regex::Error),
}

impl Error {
    pub(super) fn call(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Call { call, path: path.to_owned(), source }
    }
}
