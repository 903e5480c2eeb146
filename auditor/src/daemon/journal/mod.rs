//! What a daemon knows, kept where the next one finds it, however this one ends.
//!
//! The kernel keeps maps, rings, links and cgroups across the death of a daemon. What the daemon itself knows (sessions,
//! processes, the state of each connection) is a function of what it was told, in order. So that is written down before it
//! takes effect anywhere else, and the next daemon tells it to the very same code again:
//!
//! 1. events are read from the rings, their room is not given back; they and everything else that changes state
//!    ([`Item`]) are gathered in memory while they are processed;
//! 2. [`Journal::commit`] writes what was gathered with one write(2), as one frame with the rings' positions behind it;
//! 3. the records that came of it are appended to the trail;
//! 4. the room in the rings is given back, commands are answered.
//!
//! A daemon that is killed between any two of these leaves either no frame, and the events in the rings, or a whole frame,
//! and in the trail a part of what comes of it. A frame also says how many records the trail has when it is done. Records are
//! appended in order, so the next daemon makes them all again and appends those that the trail does not have: nothing is
//! lost, and nothing is there twice.
//!
//! **Bounded**: a journal that has grown is begun anew with the whole state as its first frame (a *generation*). The one before is
//! removed when the trail has all records up to there on the disk.
//!
//! **Not synced**: the page cache survives the daemon. It does not survive the host, and neither do sessions.
//!
//! **Refused**: another version's journal, another boot's, one whose frames do not check, one that is behind the rings or ahead of
//! the trail. The daemon then says so in the trail, and starts without.
//!
//! It holds what agents said: files are for their owner only, and are removed when the daemon is stopped in good
//! order.

mod read;
mod write;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crc32fast::Hasher;
use serde::{Deserialize, Serialize};

use crate::clock::{Boottime, Utc};
use crate::interned::Name;
use crate::kernel::shares::Unwritten;
use crate::record::{Adopted, Entry, Event as Recorded, Process};
use crate::session::Session;

pub(super) use read::{StateLost, Step, discard, find, replay};
pub(super) use write::Journal;

/// First bytes of a file; the last four are the version of what is in it, to be raised with every change of a type that is.
const MAGIC: [u8; 8] = *b"AUDJ\0\0\0\x0a";
/// The version, as a number.
pub(super) const VERSION: u32 = u32::from_be_bytes([MAGIC[4], MAGIC[5], MAGIC[6], MAGIC[7]]);
/// A frame's head: length of its body, and the CRC-32 of that length and the body.
const FRAME_HEAD: usize = 12;
/// An item that is an event as the kernel wrote it.
const EVENT: u8 = 0;
/// An item that is an [`Item`].
const ITEM: u8 = 1;

/// Something beside the kernel's events that changes what the daemon knows.
#[derive(Serialize, Deserialize)]
pub(super) enum Item {
    /// A record of the daemon's own, for a session's number or 0.
    Entered(u64, Boottime, Recorded),
    /// A record that was made elsewhere.
    Made(Entry),
    /// Connections whose last segments had their time until then were ended.
    Settled(Boottime),
    /// A session was opened.
    Opened(Box<Session>),
    /// A session was ended.
    Ended {
        /// Its number.
        number: u64,
        /// When.
        at: Boottime,
        /// When, in wall-clock time.
        utc: Utc,
        /// Why, as its record says.
        #[serde(with = "crate::interned")]
        reason: Name,
    },
    /// A session's refusals that were counted and not recorded are so many by now.
    Folded(u64, u64, Boottime),
    /// A connection that is older than its session is followed from here on.
    Adopted {
        /// The session's number.
        number: u64,
        /// The socket's cookie.
        cookie: u64,
        /// The socket.
        socket: Box<AdoptedSocket>,
        /// When.
        at: Boottime,
    },
    /// A session did more than its share of the rings holds: counts since the object was loaded, and what its record says.
    Overrun {
        /// Its number.
        number: u64,
        /// What was not written by now.
        unwritten: Unwritten,
        /// Of the finding.
        message: String,
        /// When.
        at: Boottime,
    },
    /// A session has done so many more things that its rules exclude.
    Violations(u64, u64),
    /// What was known of a process id is of another time.
    Forgotten(u32),
    /// What the moves of processes up to here ask for was done.
    Followed,
    /// So many records of processes are known by now not to have been written, for a share of the rings.
    Missed {
        /// Its number.
        share: u32,
        /// Since the object was loaded.
        count: u64,
        /// When that was found.
        at: Boottime,
    },
    /// The wall clock's offset, see [`crate::clock::Clock::fixed`].
    Clock(i128),
    /// What procfs said of a process.
    Looked(Process),
    /// Failures of the kernel programs that were reported, by site and errno.
    Reported(Reported),
    /// What a library is called, by the number that its probes tell.
    Library(u64, String),
    /// Another configuration is in force.
    Reloaded(Configuration),
}

/// A socket that is older than its session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct AdoptedSocket {
    /// Who holds it.
    pub(super) process: Option<Process>,
    /// This end.
    pub(super) local: SocketAddr,
    /// The other end.
    pub(super) remote: SocketAddr,
    /// What it had moved.
    pub(super) bytes: Adopted,
}

/// Failures by site and errno.
pub(super) type Reported = BTreeMap<(String, u32), u64>;

/// A configuration and the number of the first table that its policies were compiled to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Configuration {
    pub(super) text: String,
    pub(super) first_table: u32,
}

/// What a journal belongs to.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The kernel's boot.
    pub(super) boot_id: String,
    /// The trail's id.
    pub(super) trail: String,
    /// The maps' numbers of payload and lifecycle ring.
    pub(super) rings: (u32, u32),
}

/// How far a journal is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Positions in the payload and the lifecycle ring.
    pub(super) rings: (u64, u64),
    /// Sequence of the last record of the trail.
    pub(super) sequence: u64,
}

/// Name of a generation's file.
fn file_name(generation: u64) -> String {
    format!("journal-{generation:020}")
}

/// The generation that a file's name gives.
fn generation(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("journal-")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

/// CRC-32 of a frame: of its length, and of its body, which may have been hashed before its length was known.
fn checksum(length: u64, body: &Hasher) -> u32 {
    let mut hasher = hashed(&length.to_le_bytes());
    hasher.combine(body);
    hasher.finalize()
}

fn hashed(bytes: &[u8]) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.update(bytes);
    hasher
}

#[cfg(test)]
mod tests;
