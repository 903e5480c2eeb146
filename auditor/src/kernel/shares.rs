//! The sessions' shares of the rings and of the table of TLS secrets, as the kernel programs and the daemon both have them mapped.
//!
//! What was read is told to the programs by a store, not by a system call: see [`auditor_common::share`] for what they make of
//! it. An entry outlives its session. What a session leaves on the rings is taken off its entry when it is read, whoever the
//! entry belongs to by then, so nothing has to be waited for; entries are given out in turn, the one that was given back
//! longest ago first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::mem::offset_of;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use auditor_common::share::{SHARES, Share, between};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Records that were not written for want of room, since the object was loaded.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Unwritten {
    /// Parts of packets.
    pub packets: u64,
    /// Attempts that policy allows.
    pub attempts: u64,
    /// Beginnings and ends of connections.
    pub connections: u64,
    /// Executions, births and ends of processes.
    pub processes: u64,
    /// Changes of a process's session.
    pub moves: u64,
}

impl Unwritten {
    /// What has come since an earlier look.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            packets: self.packets.saturating_sub(earlier.packets),
            attempts: self.attempts.saturating_sub(earlier.attempts),
            connections: self.connections.saturating_sub(earlier.connections),
            processes: self.processes.saturating_sub(earlier.processes),
            moves: self.moves.saturating_sub(earlier.moves),
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// The mapped table.
#[derive(Debug)]
pub struct Shares {
    entries: NonNull<libc::c_void>,
}

/// Bytes of the mapping.
const LENGTH: usize = SHARES as usize * size_of::<Share>();

// SAFETY: the mapping is used with atomic operations only, and lives until it is dropped, on whatever thread.
unsafe impl Send for Shares {}
// SAFETY: as above.
unsafe impl Sync for Shares {}

impl Shares {
    /// Maps the table of this descriptor.
    ///
    /// # Errors
    /// mmap(2) failed.
    pub fn map(table: BorrowedFd<'_>) -> io::Result<Self> {
        let Some(length) = NonZeroUsize::new(LENGTH) else { return Err(io::ErrorKind::Unsupported.into()) };
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let entries = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, table, 0) }?;
        Ok(Self { entries })
    }

    /// A table that no program knows, for events that no kernel of this host gives.
    ///
    /// # Errors
    /// mmap(2) failed.
    pub fn detached() -> io::Result<Self> {
        let Some(length) = NonZeroUsize::new(LENGTH) else { return Err(io::ErrorKind::Unsupported.into()) };
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses, of zeros.
        let entries = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?;
        Ok(Self { entries })
    }

    /// A field of an entry. Numbers that no entry has are the first one's: nothing else could be meant.
    fn field(&self, share: u32, offset: usize) -> &AtomicU64 {
        let entry = if share < SHARES { share as usize } else { 0 };
        // SAFETY: within the mapping, because `entry` is less than SHARES and `offset` a field's; aligned, because the mapping
        // is to a page and entries are a multiple of eight; the kernel programs use the same fields atomically.
        unsafe { self.entries.byte_add(entry * size_of::<Share>() + offset).cast::<AtomicU64>().as_ref() }
    }

    /// Takes bytes of records off what their session occupies of the payload ring.
    pub fn read_payload(&self, share: u32, bytes: u64) {
        add(self.field(share, offset_of!(Share, payload_read)), bytes);
    }

    /// The same for the lifecycle ring.
    pub fn read_lifecycle(&self, share: u32, bytes: u64) {
        add(self.field(share, offset_of!(Share, lifecycle_read)), bytes);
    }

    /// What was written of each share on the payload ring.
    pub fn payload_written(&self) -> Vec<u64> {
        self.all(offset_of!(Share, payload_written))
    }

    /// The same for the lifecycle ring.
    pub fn lifecycle_written(&self) -> Vec<u64> {
        self.all(offset_of!(Share, lifecycle_written))
    }

    /// Says anew how much of a share was read from the payload ring.
    pub fn set_payload_read(&self, share: u32, bytes: u64) {
        set(self.field(share, offset_of!(Share, payload_read)), bytes);
    }

    /// The same for the lifecycle ring.
    pub fn set_lifecycle_read(&self, share: u32, bytes: u64) {
        set(self.field(share, offset_of!(Share, lifecycle_read)), bytes);
    }

    /// A TLS secret was removed from their table.
    pub fn removed_secret(&self, share: u32) {
        for share in BTreeSet::from([0, share]) {
            add(self.field(share, offset_of!(Share, secrets_removed)), 1);
        }
    }

    /// Says anew how many TLS secrets are in their table, of each share.
    pub fn set_secrets(&self, of: &BTreeMap<u32, u64>) {
        let all: u64 = of.values().sum();
        for (share, kept) in (0..).zip(self.all(offset_of!(Share, secrets_kept))) {
            let there = if share == 0 { all } else { of.get(&share).copied().unwrap_or(0) };
            set(self.field(share, offset_of!(Share, secrets_removed)), kept.saturating_sub(there));
        }
    }

    /// How many TLS secrets a share's sessions have in their table; of the first share: how many there are.
    pub fn secrets(&self, share: u32) -> u64 {
        let load = |offset| self.field(share, offset).load(Ordering::Relaxed);
        between(load(offset_of!(Share, secrets_kept)), load(offset_of!(Share, secrets_removed)))
    }

    fn all(&self, offset: usize) -> Vec<u64> {
        (0..SHARES).map(|share| self.field(share, offset).load(Ordering::Acquire)).collect()
    }

    /// What an entry's sessions occupy of the payload ring.
    pub fn payload(&self, share: u32) -> u64 {
        let load = |offset| self.field(share, offset).load(Ordering::Relaxed);
        between(load(offset_of!(Share, payload_written)), load(offset_of!(Share, payload_read)))
    }

    /// What could not be written of an entry's sessions.
    pub fn unwritten(&self, share: u32) -> Unwritten {
        let load = |offset| self.field(share, offset).load(Ordering::Relaxed);
        Unwritten {
            packets: load(offset_of!(Share, packets)),
            attempts: load(offset_of!(Share, attempts)),
            connections: load(offset_of!(Share, connections)),
            processes: self.processes(share),
            moves: load(offset_of!(Share, moves)),
        }
    }

    /// [`Unwritten::processes`] alone. What was written after one of these was left out is read after it is counted.
    pub fn processes(&self, share: u32) -> u64 {
        self.field(share, offset_of!(Share, processes)).load(Ordering::Acquire)
    }
}

/// Only the thread that reads the rings adds to these, so that a load and a store are enough.
fn add(count: &AtomicU64, bytes: u64) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Release);
}

/// Leaves the line alone where nothing changes: there are many.
fn set(count: &AtomicU64, bytes: u64) {
    if count.load(Ordering::Relaxed) != bytes {
        count.store(bytes, Ordering::Release);
    }
}

impl Drop for Shares {
    fn drop(&mut self) {
        // SAFETY: this mapping and no other, of which no reference is left. A failure leaves it mapped.
        let _ = unsafe { munmap(self.entries, LENGTH) };
    }
}

/// Entries that belong to nobody.
#[derive(Debug)]
pub struct Free(VecDeque<u32>);

impl Default for Free {
    fn default() -> Self {
        // The first is for what belongs to no session.
        Self((1..SHARES).collect())
    }
}

impl Free {
    /// Takes the entry that was given back longest ago.
    pub fn take(&mut self) -> Option<u32> {
        self.0.pop_front()
    }

    /// Takes these out.
    pub fn keep(&mut self, taken: &BTreeSet<u32>) {
        self.0.retain(|share| !taken.contains(share));
    }

    /// Gives an entry back.
    pub fn give_back(&mut self, share: u32) {
        self.0.push_back(share);
    }
}
