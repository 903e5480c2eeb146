//! A bound on what all connections together keep in memory, and whose turn it is when it is reached.
//!
//! Each direction and each dissector has bounds of its own, which one connection may need. Times tens of thousands they are no
//! bound. So what connections keep is charged here, by session, as it changes: nothing is ever counted over all of them. Beyond
//! [`MOST_HISTORY`] the session with the most history loses its oldest; beyond [`MOST`] the largest connection of the
//! session that keeps the most is degraded, and the record says so. Others do not notice.
//!
//! What is charged follows from the events alone (lengths, never capacities), and it is part of what outlives a daemon: the next
//! one degrades the same connections at the same events.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Bytes that early segments, requests without an answer, names and unfinished messages of all connections may take.
pub(super) const MOST: usize = 64 << 20;
/// Bytes that delivered data may take that is kept to hold repetitions against.
pub(super) const MOST_HISTORY: usize = 16 << 20;
/// What is charged is a multiple of this, so that most steps change nothing.
const GRAIN: usize = 256;
/// What may be given back before the charge is lowered: a statement and its answer change nothing either.
const SLACK: usize = 1 << 10;

/// What a connection keeps, in bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Held {
    /// Delivered bytes.
    pub(super) history: usize,
    /// All else that what is said on it can make grow.
    pub(super) working: usize,
}

/// What a connection is charged with. Its owner keeps it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Account {
    charged: Held,
    /// Its place among those with history; meaningful while it has some.
    age: u64,
}

#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct OfSession {
    held: Held,
    /// Connections with history, by when they began to have some.
    by_age: BTreeMap<u64, u64>,
    /// Connections by what they keep.
    by_size: BTreeSet<(usize, u64)>,
    /// Its record says that it keeps less history than it would.
    told: bool,
}

/// See the module.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Budget {
    most: Held,
    held: Held,
    ages: u64,
    sessions: BTreeMap<u64, OfSession>,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(Held { history: MOST_HISTORY, working: MOST })
    }
}

impl Budget {
    /// Nothing charged.
    pub(super) fn new(most: Held) -> Self {
        Self { most, held: Held::default(), ages: 0, sessions: BTreeMap::new() }
    }

    /// What is charged in all.
    #[cfg(test)]
    pub(super) fn held(&self) -> Held {
        self.held
    }

    /// Charges a connection of a session with what it keeps now.
    pub(super) fn charge(&mut self, session: u64, cookie: u64, account: &mut Account, held: Held) {
        let before = account.charged.working;
        let slack = held.working <= before && before - held.working <= SLACK;
        let working = if slack { before } else { held.working.next_multiple_of(GRAIN) };
        self.set(session, cookie, account, Held { working, ..held });
    }

    /// A connection is gone, or keeps nothing worth a charge any more.
    pub(super) fn release(&mut self, session: u64, cookie: u64, account: &mut Account) {
        self.set(session, cookie, account, Held::default());
    }

    fn set(&mut self, session: u64, cookie: u64, account: &mut Account, now: Held) {
        let before = std::mem::replace(&mut account.charged, now);
        if now == before {
            return;
        }
        let of = self.sessions.entry(session).or_default();
        for held in [&mut self.held, &mut of.held] {
            held.history = held.history + now.history - before.history;
            held.working = held.working + now.working - before.working;
        }
        if now.working != before.working {
            of.by_size.remove(&(before.working, cookie));
            if now.working != 0 {
                of.by_size.insert((now.working, cookie));
            }
        }
        if before.history == 0 && now.history != 0 {
            self.ages += 1;
            account.age = self.ages;
            of.by_age.insert(self.ages, cookie);
        } else if before.history != 0 && now.history == 0 {
            of.by_age.remove(&account.age);
        }
        if of.by_size.is_empty() && of.by_age.is_empty() && !of.told {
            self.sessions.remove(&session);
        }
    }

    /// Where there is too much history: the session with the most, and its connection that has had some for the longest time.
    pub(super) fn oldest(&self) -> Option<(u64, u64)> {
        if self.held.history <= self.most.history {
            return None;
        }
        let most = self.sessions.iter().max_by_key(|(number, of)| (of.held.history, Reverse(**number)));
        most.and_then(|(number, of)| Some((*number, *of.by_age.values().next()?)))
    }

    /// Where too much is kept: the largest connection of the session that keeps the most.
    pub(super) fn largest(&self) -> Option<u64> {
        if self.held.working <= self.most.working {
            return None;
        }
        let most = self.sessions.iter().max_by_key(|(number, of)| (of.held.working, Reverse(**number)));
        most.and_then(|(_, of)| Some(of.by_size.last()?.1))
    }

    /// Whether it is yet to be told that a session keeps less history than it would. It is told by now.
    pub(super) fn tell(&mut self, session: u64) -> bool {
        self.sessions.get_mut(&session).is_some_and(|of| !std::mem::replace(&mut of.told, true))
    }

    /// A session is gone, and with it all of its connections.
    pub(super) fn forget_session(&mut self, session: u64) {
        if let Some(of) = self.sessions.remove(&session) {
            self.held.history -= of.held.history;
            self.held.working -= of.held.working;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_largest_connection_of_the_session_that_keeps_the_most_is_next() {
        let mut budget = Budget::new(Held { history: 1000, working: 10_000 });
        let mut accounts = [Account::default(); 4];
        let working = |working| Held { history: 0, working };
        budget.charge(1, 10, &mut accounts[0], working(6000));
        budget.charge(2, 20, &mut accounts[1], working(3500));
        assert_eq!(budget.largest(), None);
        // Session 2 keeps more in all, though no connection of it is the largest.
        budget.charge(2, 21, &mut accounts[2], working(3800));
        assert_eq!(budget.largest(), Some(21));
        budget.release(2, 21, &mut accounts[2]);
        assert_eq!(budget.largest(), None);
        budget.charge(1, 11, &mut accounts[3], working(5000));
        assert_eq!(budget.largest(), Some(10));
        budget.forget_session(1);
        assert_eq!(budget.largest(), None);
    }

    #[test]
    fn the_oldest_history_goes_first_and_is_told_once() {
        let mut budget = Budget::new(Held { history: 1000, working: 0 });
        let mut accounts = [Account::default(); 3];
        let history = |history| Held { history, working: 0 };
        for (account, cookie) in accounts.iter_mut().zip(10..) {
            budget.charge(1, cookie, account, history(400));
        }
        assert_eq!(budget.oldest(), Some((1, 10)));
        assert!(budget.tell(1) && !budget.tell(1));
        budget.charge(1, 10, &mut accounts[0], history(0));
        assert_eq!(budget.oldest(), None);
        budget.charge(1, 10, &mut accounts[0], history(400));
        assert_eq!(budget.oldest(), Some((1, 11)), "the first has it for a shorter time now");
    }

    #[test]
    fn small_changes_are_not_charged_and_do_not_add_up() {
        let mut budget = Budget::new(Held { history: 0, working: 1 << 20 });
        let mut account = Account::default();
        for working in [100, 200, 0, 250, 1, 256] {
            budget.charge(1, 1, &mut account, Held { history: 0, working });
            assert_eq!(budget.held.working, 256);
        }
        budget.charge(1, 1, &mut account, Held { history: 0, working: 5000 });
        budget.charge(1, 1, &mut account, Held { history: 0, working: 0 });
        assert_eq!((budget.held, budget.sessions.len()), (Held::default(), 0));
    }

    proptest! {
        /// However connections come and go, the sums are those of the connections, and whoever is next is one of them.
        #[test]
        fn the_sums_are_those_of_the_connections(
            steps in prop::collection::vec((0..4_u64, 0..6_u64, 0..3000_usize, 0..20_000_usize, 0..10_u8), 0..200)
        ) {
            let mut budget = Budget::new(Held { history: 4000, working: 30_000 });
            let mut accounts: HashMap<(u64, u64), (Account, Held)> = HashMap::new();
            for (session, connection, history, working, action) in steps {
                let cookie = session * 100 + connection;
                if action == 0 {
                    budget.forget_session(session);
                    accounts.retain(|(of, _), _| *of != session);
                } else if action == 1 {
                    if let Some((mut account, _)) = accounts.remove(&(session, cookie)) {
                        budget.release(session, cookie, &mut account);
                    }
                } else {
                    let (account, held) = accounts.entry((session, cookie)).or_default();
                    *held = Held { history, working };
                    budget.charge(session, cookie, account, *held);
                }
                let history: usize = accounts.values().map(|(_, held)| held.history).sum();
                prop_assert_eq!(budget.held.history, history);
                let working: usize = accounts.values().map(|(_, held)| held.working).sum();
                prop_assert!(budget.held.working >= working);
                prop_assert!(budget.held.working <= working + accounts.len() * (GRAIN + SLACK));
                prop_assert_eq!(budget.oldest().is_some(), history > 4000);
                prop_assert_eq!(budget.largest().is_some(), budget.held.working > 30_000);
                if let Some(cookie) = budget.largest() {
                    prop_assert!(accounts.contains_key(&(cookie / 100, cookie)));
                }
            }
        }
    }
}
