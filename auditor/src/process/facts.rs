//! What is known of process ids, bounded in bytes and fairly between sessions.
//!
//! A session may fork without end, and hardly any of it is told to have ended (threads never are). So each fact is charged to
//! the session that it was learnt in. Where all of them take more than they may, the session with the most loses its oldest:
//! others keep theirs. And what nobody believes any more, because something of the session was missed since, is dropped.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};

use super::Occasion;
use crate::clock::Boottime;

/// What a fact takes beside what its owner says: itself, its places in the table and in the order.
const FACT: usize = 96;

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Known<T> {
    session: u64,
    at: Boottime,
    /// Which of several that the same id had.
    stamp: u64,
    bytes: usize,
    fact: T,
}

#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct OfSession {
    bytes: usize,
    facts: usize,
    /// Stamps and ids, oldest first; a stamp that is not the fact's is of an earlier one.
    order: VecDeque<(u64, u32)>,
}

/// Facts about process ids.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Facts<T> {
    most: usize,
    bytes: usize,
    known: HashMap<u32, Known<T>>,
    sessions: BTreeMap<u64, OfSession>,
    stamp: u64,
}

impl<T> Facts<T> {
    /// None yet, and never more than `most` bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { most, bytes: 0, known: HashMap::new(), sessions: BTreeMap::new(), stamp: 0 }
    }

    /// Learns a fact of so many bytes, instead of any other of that id.
    pub(super) fn insert(&mut self, pid: u32, fact: T, occasion: Occasion, bytes: usize) {
        self.remove(pid);
        self.drop_unbelievable(occasion);
        self.stamp += 1;
        let known = Known {
            session: occasion.session,
            at: occasion.at,
            stamp: self.stamp,
            bytes: bytes + FACT,
            fact,
        };
        let of = self.sessions.entry(occasion.session).or_default();
        of.order.push_back((self.stamp, pid));
        of.bytes += known.bytes;
        of.facts += 1;
        self.bytes += known.bytes;
        self.known.insert(pid, known);
        while self.bytes > self.most {
            let most = self.sessions.iter().max_by_key(|(number, of)| (of.bytes, Reverse(**number)));
            let Some(session) = most.map(|(number, _)| *number) else { return };
            if !self.drop_oldest(session) {
                return;
            }
        }
    }

    /// What is known of an id, whether or not anything was missed since.
    pub(super) fn get(&self, pid: u32) -> Option<&T> {
        self.known.get(&pid).map(|known| &known.fact)
    }

    /// What is known of an id, if it is of this session and nothing has been missed since.
    pub(super) fn believed(&self, pid: u32, now: Occasion) -> Option<&T> {
        let known = self.known.get(&pid)?;
        (known.session == now.session && known.at > now.complete_since).then_some(&known.fact)
    }

    /// Forgets what is known of an id.
    pub(super) fn remove(&mut self, pid: u32) {
        let Some(known) = self.known.remove(&pid) else { return };
        self.bytes -= known.bytes;
        let Some(of) = self.sessions.get_mut(&known.session) else { return };
        of.bytes -= known.bytes;
        of.facts -= 1;
        if of.facts == 0 {
            self.sessions.remove(&known.session);
        } else if of.order.len() > 2 * of.facts + 64 {
            let facts = &self.known;
            of.order.retain(|(stamp, pid)| facts.get(pid).is_some_and(|known| known.stamp == *stamp));
        }
    }

    fn drop_unbelievable(&mut self, now: Occasion) {
        while let Some((stamp, pid)) =
            self.sessions.get(&now.session).and_then(|of| of.order.front().copied())
        {
            let known = self.known.get(&pid).filter(|known| known.stamp == stamp);
            if known.is_some_and(|known| known.at > now.complete_since) {
                return;
            }
            self.drop_oldest(now.session);
        }
    }

    /// Drops the first in a session's order. `false`: there is none.
    fn drop_oldest(&mut self, session: u64) -> bool {
        let first = self.sessions.get_mut(&session).and_then(|of| of.order.pop_front());
        let Some((stamp, pid)) = first else { return false };
        if self.known.get(&pid).is_some_and(|known| known.stamp == stamp) {
            self.remove(pid);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occasion(session: u64, at: u64, complete_since: u64) -> Occasion {
        Occasion { at: Boottime(at), session, complete_since: Boottime(complete_since) }
    }

    #[test]
    fn the_session_with_the_most_loses_its_oldest() {
        let mut facts = Facts::new(100 * FACT);
        (0..10).for_each(|pid| facts.insert(pid, pid, occasion(1, 10, 0), 0));
        for pid in 1000..100_000 {
            facts.insert(pid, pid, occasion(2, pid.into(), 0), 3 * FACT);
            assert!(facts.bytes <= facts.most);
        }
        assert!((0..10).all(|pid| facts.get(pid) == Some(&pid)), "another session's");
        assert_eq!((facts.get(1000), facts.get(99_999)), (None, Some(&99_999)));
        let kept: usize = facts.sessions.values().map(|of| of.order.len()).sum();
        assert!(kept < 200, "{kept} places");
    }

    #[test]
    fn one_id_that_is_used_over_and_over_takes_one_place() {
        let mut facts = Facts::new(1 << 20);
        facts.insert(1, 0, occasion(1, 1, 0), 0);
        (0..10_000).for_each(|fact| facts.insert(7, fact, occasion(1, 1, 0), 10));
        assert_eq!((facts.get(7), facts.known.len()), (Some(&9999), 2));
        assert!(facts.sessions[&1].order.len() < 100);
        facts.remove(1);
        facts.remove(7);
        assert_eq!((facts.bytes, facts.sessions.len()), (0, 0));
    }

    #[test]
    fn what_nobody_believes_any_more_is_dropped() {
        let mut facts = Facts::new(1 << 20);
        (0..50).for_each(|pid| facts.insert(pid, pid, occasion(1, 10, 0), 0));
        facts.insert(100, 100, occasion(2, 10, 0), 0);
        assert_eq!(facts.believed(3, occasion(1, 20, 10)), None);
        facts.insert(50, 50, occasion(1, 20, 10), 0);
        assert_eq!((facts.known.len(), facts.get(3)), (2, None));
        assert_eq!(facts.believed(100, occasion(2, 20, 0)), Some(&100), "of another session");
        assert_eq!(facts.believed(100, occasion(1, 20, 0)), None);
    }
}
