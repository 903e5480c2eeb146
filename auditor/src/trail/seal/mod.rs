//! Sealing: what was recorded cannot be changed unnoticed by anybody who has not the key, and a single record can be proven.
//!
//! A Merkle tree by RFC 6962 grows over the records' hashes ([`tree`]), its right edge in memory and its tiles beside the segments
//! ([`tile`]). At an interval, soon after a session's end, and when the trail is closed its root is signed ([`checkpoint`], [`note`], [`key`]).
//! All formats are the Community Cryptography Specification Project's (c2sp.org), which others' tools read too.
//!
//! **What it assumes**: checkpoints, or at least the public key, are known where the host's root cannot reach. Root has the key, and can sign
//! another trail; but not one that agrees with a checkpoint that has left the host.
//!
//! **The tree is derived.** Tiles hold nothing that the segments do not. A trail without a tree gets one over all its records when it
//! is opened; what a crash left undone is done again from the last checkpoint on, and that must agree with the tiles.
//!
//! **What it refuses**: to go on where the segments end before the last checkpoint, where its key or its checkpoints are gone, or where
//! records are not those that were signed.

pub(super) mod checkpoint;
mod key;
pub(super) mod note;
mod proof;
mod sealer;
pub(super) mod tile;
pub(super) mod tree;

pub use self::checkpoint::{Checkpoint, Signed, public_key};
pub use self::key::{KeyFile, Signer, prepare_key};
pub use self::note::{NotAKey, VerifierKey};
pub use self::proof::{NotAProof, Proof, Unproven};
pub(super) use self::sealer::Sealer;
pub use self::sealer::Sealing;
