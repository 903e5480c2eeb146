//! Sockets that are not followed: those that have ended, and those that were too many.
//!
//! A segment of a connection that nobody knows begins a conversation from there on, because it may be older than its session. It
//! must not do so for one whose end was told, of which nobody would ever tell another end, nor again and again for one that
//! there was no room for: such a one is named once, and not followed to its end, so that no part of it looks like a whole.
//!
//! Bounded in all and for each session; beyond that the record says once that further ones are not named.

use std::collections::{BTreeMap, VecDeque};

use super::by_cookie::ByCookie;
use crate::clock::Boottime;

/// Sockets of one session that are named at most.
const OF_A_SESSION: usize = 16_384;
/// The same for all sessions.
const IN_ALL: usize = 65_536;
/// Sockets that are known to have ended. Their late segments come within a few turns.
const ENDED: usize = 32_768;

/// How a socket that cannot be followed is to be told of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Telling {
    /// By its name.
    Name,
    /// With a word that further ones are not named.
    Last,
    /// It was told, or said to be one of those that are not named.
    Nothing,
}

/// See the module.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Unfollowed {
    /// Sockets that there was no room for, and their sessions.
    beyond: ByCookie<u64>,
    /// How many of them by session; [`OF_A_SESSION`] where further ones are not named.
    named: BTreeMap<u64, usize>,
    /// When sockets ended, and in which order.
    ended: ByCookie<Boottime>,
    order: VecDeque<u64>,
}

impl Unfollowed {
    /// There is no room for this one.
    pub(super) fn beyond(&mut self, cookie: u64, session: u64) -> Telling {
        if self.beyond.contains_key(&cookie) {
            return Telling::Nothing;
        }
        let full = self.beyond.len() >= IN_ALL;
        let named = self.named.entry(session).or_default();
        if *named >= OF_A_SESSION {
            return Telling::Nothing;
        }
        *named += 1;
        if full {
            *named = OF_A_SESSION;
        } else {
            self.beyond.insert(cookie, session);
        }
        if *named == OF_A_SESSION { Telling::Last } else { Telling::Name }
    }

    /// Whether no further ones of this session are named.
    pub(super) fn is_silent(&self, session: u64) -> bool {
        self.named.get(&session).is_some_and(|named| *named >= OF_A_SESSION)
    }

    /// Whether there was no room for this one.
    pub(super) fn is_beyond(&self, cookie: u64) -> bool {
        self.beyond.contains_key(&cookie)
    }

    /// A socket has ended, or its connection has.
    pub(super) fn end(&mut self, cookie: u64, at: Boottime) {
        self.beyond.remove(&cookie);
        if self.ended.insert(cookie, at).is_none() {
            self.order.push_back(cookie);
        }
        while self.order.len() > ENDED {
            if let Some(oldest) = self.order.pop_front() {
                self.ended.remove(&oldest);
            }
        }
    }

    /// When the socket ended, if it was not used again since.
    pub(super) fn ended(&self, cookie: u64) -> Option<Boottime> {
        self.ended.get(&cookie).copied()
    }

    /// The socket is used again.
    pub(super) fn begin_again(&mut self, cookie: u64) {
        self.beyond.remove(&cookie);
        // It stays in the order of ends, and leaves it in its turn.
        if let Some(ended) = self.ended.get_mut(&cookie) {
            *ended = Boottime::default();
        }
    }

    /// A session has ended.
    pub(super) fn forget_session(&mut self, session: u64) {
        if self.named.remove(&session).is_some() {
            self.beyond.retain(|_, of| *of != session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_socket_is_named_once_and_not_without_end() {
        let mut unfollowed = Unfollowed::default();
        assert_eq!(unfollowed.beyond(1, 7), Telling::Name);
        assert_eq!(unfollowed.beyond(1, 7), Telling::Nothing);
        let told: Vec<Telling> = (2..40_000).map(|cookie| unfollowed.beyond(cookie, 7)).collect();
        let count = |telling| told.iter().filter(|told| **told == telling).count();
        assert_eq!((count(Telling::Name), count(Telling::Last)), (OF_A_SESSION - 2, 1));
        assert_eq!(unfollowed.beyond(100_000, 8), Telling::Name, "another session");
        unfollowed.forget_session(7);
        assert!(unfollowed.beyond.len() == 1 && unfollowed.is_beyond(100_000));
    }

    #[test]
    fn all_sessions_together_are_bounded() {
        let mut unfollowed = Unfollowed::default();
        for cookie in 0..100_000_u64 {
            unfollowed.beyond(cookie, cookie / 10_000);
            unfollowed.end(cookie + 1_000_000, Boottime(cookie));
        }
        assert_eq!(
            (unfollowed.beyond.len(), unfollowed.ended.len(), unfollowed.order.len()),
            (IN_ALL, ENDED, ENDED)
        );
        assert_eq!(unfollowed.ended(1_000_000), None);
        assert_eq!(unfollowed.ended(1_099_999), Some(Boottime(99_999)));
        assert_eq!(unfollowed.beyond(200_000, 10), Telling::Last);
        assert_eq!(unfollowed.beyond(200_001, 10), Telling::Nothing);
    }
}
