//! The trail: append-only segments of JSON lines, each chained to the one before it.
//!
//! ```text
//! trail/LOCK                              held (flock) by the one writer
//! trail/HEAD                              trail id, sequence and hash of the last durable record
//! trail/00000000000000000001.jsonl        segment; named after the sequence of its first record
//! trail/torn-00000000000000000042.1       what a crash left of a line that was never completed
//! trail/tile/<level>/<index>              the Merkle tree over the records' hashes, see [`seal`]
//! trail/checkpoint, trail/checkpoints     its root, signed: the last one, and all of them
//! ```
//!
//! **The chain is in the line, and last in it.** Every line ends with
//! `,"chain":{"prev":"<64 hex>","hash":"<64 hex>"}}}}` and a newline, where `hash` is the SHA-256 of all bytes of the line
//! before its own 64 digits, and `prev` the `hash` of the line before. Because the hash is over the bytes as they stand,
//! nobody needs to agree on a canonical form of JSON, and a copy of a line (in an export, in a SIEM that keeps the raw
//! event) can be checked with `head -c` and `sha256sum`. The first record's `prev` is the hash of the trail's id, so
//! that a beginning cannot be taken from another trail.
//!
//! **HEAD is beside the segments**, because a chain alone cannot show that its last links are gone. It is written in
//! place after the records that it names are durable, so it is never ahead of them; a HEAD that is ahead means that
//! records were removed. It lags by what was committed since the last write-back if the power fails, never further back
//! than the beginning of the last segment. Root can rewrite both: what protects against root is what has left the host.
//!
//! **Nothing is repaired silently.** An unfinished last line is what a killed writer leaves; it is set aside and
//! reported. Anything else that does not check (a complete line whose hash is wrong, a HEAD that is ahead or gone) makes
//! [`Trail::open`] fail, and the daemon does not start: whoever can damage the trail must not get it sealed anew.
//!
//! **A full disk stops, it does not lose.** What cannot be written stays in memory up to a bound; then
//! [`Trail::append`] blocks, and with it everything up to the kernel's ring. Only a daemon that was told to stop does not
//! wait for ever ([`Trail::append_within`]), and is told what it loses.

#![forbid(unsafe_code)]

mod chain;
mod committer;
mod error;
mod head;
pub mod query;
mod recovery;
pub mod seal;
mod segment;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

pub use self::chain::Hash;
pub use self::error::Error;
pub use self::head::Head;
pub use self::recovery::Recovery;
pub use self::verify::{Check, Damage, HeadRule, Limits, Report, SealReport, Trust, verify};
pub use self::writer::{Options, Trail};
