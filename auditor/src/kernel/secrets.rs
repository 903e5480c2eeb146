//! The table of TLS secrets: `auditor_common::tls` says what is in it, and why it is in the kernel.
//!
//! The kernel programs add to it; the daemon reads an entry when it meets the word of it on the ring, and removes it when nothing
//! can ask for it again. It must not do so earlier: the next daemon reads its journal again and with it the same numbers.
//!
//! By bpf(2) itself, because a secret is read into one place, which is overwritten before it is given back.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

use auditor_common::tls;
use aya::maps::MapData;

use super::bpf;
use super::shares::Shares;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
/// Of a hash table: Linux 5.14.
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;

/// `union bpf_attr` of the three.
#[repr(C)]
struct Element {
    map_fd: u32,
    _padding: u32,
    key: u64,
    /// Or the next key.
    value: u64,
    flags: u64,
}

/// A copy of an entry. Its memory is overwritten when it is dropped; it has no text form.
pub struct Secret(Box<tls::Secret>);

impl Secret {
    /// [`tls::TRAFFIC_SECRET`] or [`tls::MASTER_SECRET`].
    pub fn kind(&self) -> u8 {
        self.0.kind
    }

    /// The secret itself.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes[..usize::from(self.0.length).min(tls::SECRET_BYTES)]
    }

    /// The randoms of the client and of the server that a master secret is for, where they are known.
    pub fn randoms(&self) -> [Option<[u8; tls::RANDOM_BYTES]>; 2] {
        [self.0.client_random, self.0.server_random]
            .map(|random| (random != [0; tls::RANDOM_BYTES]).then_some(random))
    }

    /// The session's number.
    pub fn session(&self) -> u64 {
        self.0.session
    }

    /// The process that it was taken from.
    pub fn process(&self) -> u32 {
        self.0.process
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Secret").field("kind", &self.0.kind).finish_non_exhaustive()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        // SAFETY: a value of ours, replaced by another; volatile, because nobody reads it afterwards.
        unsafe { std::ptr::write_volatile(&raw mut *self.0, tls::Secret::BLANK) };
    }
}

/// The table.
#[derive(Debug)]
pub struct Secrets {
    map: MapData,
    shares: Arc<Shares>,
}

impl Secrets {
    pub(super) fn new(map: MapData, shares: Arc<Shares>) -> Self {
        Self { map, shares }
    }

    /// Says anew what each session has of the table. For a daemon that begins: the one before may have been killed between the removal of
    /// an entry and its account.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn count(&self) -> io::Result<()> {
        let mut of = BTreeMap::new();
        for id in self.ids()? {
            if let Some(secret) = self.get(id)? {
                *of.entry(secret.0.share).or_default() += 1;
            }
        }
        self.shares.set_secrets(&of);
        Ok(())
    }

    /// The secret of a number; `None`: it was removed.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn get(&self, id: u64) -> io::Result<Option<Secret>> {
        let mut secret = Secret(Box::new(tls::Secret::BLANK));
        let mut element = self.element(&raw const id, &raw mut *secret.0);
        // SAFETY: key and value have the sizes of the map's, which the object's layout fixes.
        found(unsafe { bpf::call(BPF_MAP_LOOKUP_ELEM, &mut element) }).map(|found| found.then_some(secret))
    }

    /// Removes entries. Those that are gone already are nothing to speak of.
    ///
    /// # Errors
    /// The kernel refused; the rest is removed all the same.
    pub fn remove(&self, ids: impl IntoIterator<Item = u64>) -> io::Result<()> {
        let mut result = Ok(());
        for id in ids {
            let mut secret = Secret(Box::new(tls::Secret::BLANK));
            let mut element = self.element(&raw const id, &raw mut *secret.0);
            // SAFETY: as in `get`.
            match found(unsafe { bpf::call(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut element) }) {
                Ok(true) => self.shares.removed_secret(secret.0.share),
                Ok(false) => {}
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// The numbers of all entries, oldest first. For a daemon that begins: what no event speaks of any more is to be removed.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn ids(&self) -> io::Result<Vec<u64>> {
        let (mut ids, mut next) = (Vec::new(), 0_u64);
        let mut key: *const u64 = std::ptr::null();
        let mut last;
        loop {
            let mut element = self.element(key, &raw mut next);
            // SAFETY: as in `get`; the next key is as long as a key.
            if !found(unsafe { bpf::call(BPF_MAP_GET_NEXT_KEY, &mut element) })?
                || ids.len() >= tls::SECRETS as usize
            {
                ids.sort_unstable();
                return Ok(ids);
            }
            ids.push(next);
            last = next;
            key = &raw const last;
        }
    }

    fn element<T>(&self, key: *const u64, value: *mut T) -> Element {
        let map_fd = self.map.fd().as_fd().as_raw_fd().cast_unsigned();
        Element { map_fd, _padding: 0, key: key as u64, value: value as u64, flags: 0 }
    }
}

/// Whether there was such an entry.
fn found(result: io::Result<libc::c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
