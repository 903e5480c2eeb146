//! The secrets of live sessions' TLS connections.
//!
//! The kernel's table owns them; what is here is a copy of what connections may still need. A connection looks for its secrets
//! among those of its session, and claims what has proven to be its own. What is written down of all this is numbers.
//!
//! A secret has two: its key in the kernel's table, and its place in the order in which secrets were told of. A connection does not
//! look at a place twice, and two processors may tell of theirs in another order than that of the keys.
//!
//! An entry of the kernel's table may go when neither a connection nor the journal speaks of it any more, because the next
//! daemon reads the journal again and needs the same secrets for the same words. So what is done with waits until the journal has
//! begun anew ([`Keyrings::turned`]), and what was before is gone ([`Keyrings::settled`]).
//!
//! Bounded: a session has [`UNCLAIMED`] secrets that no connection has claimed; older ones are given up. What is claimed is bounded by
//! the number of connections. And so is the work of looking ([`Effort`]).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use auditor_common::tls::{MASTER_SECRET, SecretTaken};

use crate::clock::Boottime;
use crate::kernel::secrets::Secrets;
use crate::tls::{Hash, Keyring, Secret, SecretKind, Wanted};

/// Secrets of a session that wait for their connections. Four belong to each that is being opened.
const UNCLAIMED: usize = 4096;
/// Secrets among which one is looked for that was taken twice.
const LAST: usize = 64;
/// Keys that are done with and wait for the journal.
const RETIRED: usize = 4096;
/// Work in a second, in bytes that are decrypted: a third of a second of a processor's, or less.
const EFFORT: u64 = 512 << 20;
/// Work at once, where none was done for a while: hundreds of connections that a pool opens at the same time.
const BURST: u64 = 4 * EFFORT;
/// Age from which on a secret that nobody knows of is nobody's.
const OLD: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Default)]
pub(super) struct Keyrings {
    /// `None` where events come from a capture: there are no secrets in it.
    table: Option<Arc<Secrets>>,
    sessions: HashMap<u64, Ring>,
    /// Secrets that were told of.
    told: u64,
    effort: RefCell<Effort>,
    /// Keys that are done with, and that the journal speaks of.
    retired: Vec<u64>,
    /// The same, of which only the journal's last generation speaks.
    obsolete: Vec<u64>,
}

/// One session's, by their places.
#[derive(Default)]
pub(super) struct Ring {
    unclaimed: BTreeMap<u64, Held>,
    claimed: BTreeMap<u64, Held>,
}

struct Held {
    secret: Secret,
    /// Its key in the kernel's table.
    key: u64,
    /// Number of the file whose code derived it.
    library: u64,
    /// The process that did.
    process: u32,
}

/// Work that was done in the search for secrets. An agent can derive keys as often as it likes and keep as many connections waiting, and
/// what it makes others try is the product of the two. So there is an allowance, which grows with each second, and of which a session may
/// have as much as is still left: half of it for one that is alone, and whatever some do, there is something left for one that is
/// quiet.
///
/// By the events' own time, so that the next daemon decides the same.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Effort {
    /// The second up to which the allowance has grown.
    second: u64,
    /// Work that it does not cover yet, for all and for each session.
    all: u64,
    each: HashMap<u64, u64>,
}

impl Ring {
    /// Whether one of the last is the same, of the same process by another number of its library: a file that is mapped through several
    /// file systems (overlayfs) has as many numbers, and as many probes. (The same by the same number are both ends of a connection
    /// in one process, and each needs its own.)
    fn has(&self, secret: &Secret, event: &SecretTaken) -> bool {
        [&self.unclaimed, &self.claimed].into_iter().any(|held| {
            held.values().rev().take(LAST).any(|held| {
                held.process == event.process && held.library != event.library && held.secret.is_same(secret)
            })
        })
    }
}

impl Effort {
    fn affords(&mut self, session: u64, at: Boottime, work: u64) -> bool {
        let second = at.0 / 1_000_000_000;
        if second > self.second {
            self.recover(second);
        }
        let done = self.each.get(&session).copied().unwrap_or(0) + work;
        if done > BURST.saturating_sub(self.all) {
            return false;
        }
        self.each.insert(session, done);
        self.all += work;
        true
    }

    /// Lets the allowance grow up to a second: each session's work is forgotten in the proportion of all.
    fn recover(&mut self, second: u64) {
        let forgotten = EFFORT.saturating_mul(second - self.second).min(self.all);
        let left = self.all - forgotten;
        self.each.retain(|_, done| {
            // Both are at most BURST, so that their product fits.
            *done = *done * left / self.all.max(1);
            *done != 0
        });
        (self.second, self.all) = (second, left);
    }
}

/// What is written down: what was done; how many were told of; of each its session, its place, its key, the number of its library, its process, whether it is
/// claimed.
pub(super) type Saved = (Effort, u64, Vec<(u64, u64, u64, u64, u32, bool)>);

static EMPTY: Ring = Ring { unclaimed: BTreeMap::new(), claimed: BTreeMap::new() };

impl Keyrings {
    pub(super) fn new(table: Option<Arc<Secrets>>) -> Self {
        Self { table, ..Self::default() }
    }

    /// A session's, at this time.
    pub(super) fn of(&self, session: u64, at: Boottime) -> Offer<'_> {
        Offer { ring: self.sessions.get(&session).unwrap_or(&EMPTY), effort: &self.effort, session, at }
    }

    /// A library has derived keys. `false`: the secret is not there, or is none.
    pub(super) fn taken(&mut self, event: &SecretTaken) -> bool {
        // Counted also where the table has nothing: the next daemon counts the same.
        self.told += 1;
        let place = self.told;
        let secret = self.read(place, event.id).unwrap_or_else(|error| {
            tracing::error!(%error, "read a TLS secret");
            None
        });
        let Some(secret) = secret else { return false };
        let ring = self.sessions.entry(event.header.session).or_default();
        if ring.has(&secret, event) {
            self.retired.push(event.id);
            return false;
        }
        let held = Held { secret, key: event.id, library: event.library, process: event.process };
        ring.unclaimed.insert(place, held);
        if ring.unclaimed.len() > UNCLAIMED
            && let Some((_, held)) = ring.unclaimed.pop_first()
        {
            self.retired.push(held.key);
        }
        true
    }

    fn read(&self, place: u64, key: u64) -> io::Result<Option<Secret>> {
        let Some(table) = &self.table else { return Ok(None) };
        let Some(entry) = table.get(key)? else { return Ok(None) };
        let kind = if entry.kind() == MASTER_SECRET {
            let [client_random, server_random] = entry.randoms();
            SecretKind::Master { client_random, server_random }
        } else {
            let hash = if entry.bytes().len() == Hash::Sha256.length() { Hash::Sha256 } else { Hash::Sha384 };
            SecretKind::Traffic { hash }
        };
        Ok(Secret::new(place, kind, entry.bytes()))
    }

    /// A connection has claimed a secret. Answers the number of its library.
    pub(super) fn claim(&mut self, session: u64, place: u64) -> Option<u64> {
        let ring = self.sessions.get_mut(&session)?;
        if let Some(held) = ring.unclaimed.remove(&place) {
            ring.claimed.insert(place, held);
        }
        // By the other direction, of a master secret.
        Some(ring.claimed.get(&place)?.library)
    }

    /// A connection does not need its secret any more, in neither direction.
    pub(super) fn release(&mut self, session: u64, place: u64) {
        let Some(ring) = self.sessions.get_mut(&session) else { return };
        if let Some(held) = ring.claimed.remove(&place) {
            self.retired.push(held.key);
        }
    }

    /// A session has ended, and its connections before it.
    pub(super) fn end(&mut self, session: u64) {
        let Some(ring) = self.sessions.remove(&session) else { return };
        self.retired
            .extend(ring.unclaimed.into_values().chain(ring.claimed.into_values()).map(|held| held.key));
    }

    /// Whether so much is done with that the journal should begin anew, however short it is.
    pub(super) fn are_long(&self) -> bool {
        self.retired.len() >= RETIRED
    }

    /// The journal has begun anew.
    pub(super) fn turned(&mut self) {
        self.obsolete.append(&mut self.retired);
    }

    /// What was in the journal before it began anew is gone; or there is no journal.
    pub(super) fn settled(&mut self) {
        let obsolete = std::mem::take(&mut self.obsolete);
        self.remove(obsolete);
    }

    fn remove(&self, keys: Vec<u64>) {
        if keys.is_empty() {
            return;
        }
        if let Some(table) = &self.table
            && let Err(error) = table.remove(keys)
        {
            tracing::error!(%error, "remove TLS secrets");
        }
    }

    /// What the next daemon has to know.
    pub(super) fn saved(&self) -> Saved {
        let mut secrets = Vec::new();
        for (session, ring) in &self.sessions {
            for (held, claimed) in [(&ring.unclaimed, false), (&ring.claimed, true)] {
                let row = |(place, held): (&u64, &Held)| {
                    (*session, *place, held.key, held.library, held.process, claimed)
                };
                secrets.extend(held.iter().map(row));
            }
        }
        (self.effort.borrow().clone(), self.told, secrets)
    }

    /// Goes on with what an earlier daemon had.
    ///
    /// # Errors
    /// The kernel's table cannot be read.
    pub(super) fn restore(&mut self, saved: Saved) -> Result<(), String> {
        self.sessions.clear();
        let (effort, told, secrets) = saved;
        (self.effort, self.told) = (RefCell::new(effort), told);
        for (session, place, key, library, process, claimed) in secrets {
            let secret =
                self.read(place, key).map_err(|error| format!("cannot read TLS secrets: {error}"))?;
            let Some(secret) = secret else { continue };
            let ring = self.sessions.entry(session).or_default();
            let held = if claimed { &mut ring.claimed } else { &mut ring.unclaimed };
            held.insert(place, Held { secret, key, library, process });
        }
        Ok(())
    }

    /// Removes from the kernel's table what nothing here knows of: what earlier daemons left behind, and what the ring had no room to
    /// tell of. Only what is so old that the word of it cannot be on the ring any more; keys are times.
    pub(super) fn sweep(&self, now: Boottime) {
        let Some(table) = &self.table else { return };
        let is_old = |key: &u64| now.since(Boottime(*key)) > OLD;
        let rings = self.sessions.values();
        let known: BTreeSet<u64> = rings
            .flat_map(|ring| ring.unclaimed.values().chain(ring.claimed.values()))
            .map(|held| held.key)
            .chain(self.retired.iter().chain(&self.obsolete).copied())
            .collect();
        match table.ids() {
            Ok(keys) => {
                self.remove(keys.into_iter().filter(|key| is_old(key) && !known.contains(key)).collect())
            }
            Err(error) => tracing::error!(%error, "read the table of TLS secrets"),
        }
    }
}

/// What a session's connections may look for at one time: its secrets, and the work that there is time for.
#[derive(Clone, Copy)]
pub(super) struct Offer<'a> {
    ring: &'a Ring,
    effort: &'a RefCell<Effort>,
    session: u64,
    at: Boottime,
}

impl Keyring for Offer<'_> {
    fn candidates<'a>(
        &'a self,
        wanted: Wanted<'a>,
        numbers: RangeInclusive<u64>,
    ) -> Box<dyn Iterator<Item = &'a Secret> + 'a> {
        if numbers.is_empty() {
            return Box::new(std::iter::empty());
        }
        let of = move |held: &'a BTreeMap<u64, Held>| held.range(numbers.clone()).rev().map(|(_, held)| held);
        // A traffic secret is one direction's; a master secret is both directions', one of which may have claimed it.
        let shared = matches!(wanted, Wanted::Master { .. }).then_some(&self.ring.claimed);
        let held = std::iter::once(&self.ring.unclaimed).chain(shared).flat_map(of);
        Box::new(held.map(|held| &held.secret).filter(move |secret| secret.fits(&wanted)))
    }

    fn newest(&self) -> u64 {
        let last = |held: &BTreeMap<u64, Held>| held.last_key_value().map_or(0, |(place, _)| *place);
        last(&self.ring.unclaimed).max(last(&self.ring.claimed))
    }

    fn affords(&self, work: u64) -> bool {
        self.effort.borrow_mut().affords(self.session, self.at, work)
    }

    fn get(&self, id: u64) -> Option<&Secret> {
        let Ring { claimed, unclaimed } = self.ring;
        claimed.get(&id).or_else(|| unclaimed.get(&id)).map(|held| &held.secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn what_several_probes_took_at_once_is_one() {
        let secret =
            |id, bytes: &[u8]| Secret::new(id, SecretKind::Traffic { hash: Hash::Sha256 }, bytes).unwrap();
        let taken = |process, library| SecretTaken {
            header: auditor_common::event::Header { kind: 0, share: 0, time: 0, session: 1 },
            id: 9,
            library,
            process,
            kind: 0,
            length: 32,
            _padding: [0; 2],
        };
        let mut ring = Ring::default();
        ring.unclaimed.insert(1, Held { secret: secret(1, &[7; 32]), key: 5, library: 100, process: 42 });
        assert!(ring.has(&secret(2, &[7; 32]), &taken(42, 101)));
        // Both ends of a connection in one process; another process; another secret.
        assert!(!ring.has(&secret(2, &[7; 32]), &taken(42, 100)));
        assert!(!ring.has(&secret(2, &[7; 32]), &taken(43, 101)));
        assert!(!ring.has(&secret(2, &[8; 32]), &taken(42, 101)));
    }

    /// How much of it a session gets at a second.
    fn all_of(effort: &mut Effort, session: u64, second: u64) -> u64 {
        let step = 64 << 10;
        (0..).take_while(|_| effort.affords(session, Boottime(second * SECOND), step)).count() as u64 * step
    }

    #[test]
    fn whoever_makes_others_search_leaves_something_for_who_is_quiet() {
        let mut effort = Effort::default();
        let mut left = BURST;
        for session in 1..=8 {
            let got = all_of(&mut effort, session, 5);
            assert!(got.abs_diff(left / 2) <= 128 << 10, "{session}: {got} of {left}");
            left -= got;
        }
        // Of a time before, told late, too.
        assert!(!effort.affords(1, Boottime(4 * SECOND), 64 << 10));
        // A second later there is more, first of all for who is new; and in the end all of it.
        assert_eq!(all_of(&mut effort, 1, 6), 0);
        let got = all_of(&mut effort, 9, 6);
        assert!((EFFORT / 2..=EFFORT).contains(&got), "{got}");
        assert_eq!(all_of(&mut effort, 1, 60), BURST / 2);
        assert_eq!(effort.each.len(), 1);
    }
}
