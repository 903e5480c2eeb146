//! What outlives a daemon: all that is known, written and read again.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::{Attribution, Datagrams, Joined};
use crate::clock::{Boottime, Clock};
use crate::daemon::by_cookie::ByCookie;
use crate::daemon::conversation::Conversation;
use crate::daemon::journal::{Configuration, Item, Reported};
use crate::daemon::keyrings;
use crate::daemon::memory::Budget;
use crate::daemon::unfollowed::Unfollowed;
use crate::process::Known;
use crate::session::Sessions;

/// What [`Attribution::saved`] writes, read back.
pub(in crate::daemon) type Saved = (
    (Sessions, Known, Vec<Configuration>, Reported),
    (ByCookie<Conversation>, ByCookie<Datagrams>, VecDeque<(Boottime, u64)>, u64, i128),
    (HashMap<u32, (u64, Boottime)>, u64, Vec<Joined>, keyrings::Saved),
    (BTreeMap<u64, u64>, Unfollowed, Budget, BTreeMap<u64, String>),
);

impl Attribution {
    /// Everything that is known, for [`Self::restore`].
    pub(in crate::daemon) fn saved(&self) -> impl serde::Serialize + '_ {
        (
            (&self.sessions, self.processes.all(), self.policies.configurations(), &self.reported),
            (&self.conversations, &self.datagrams, &self.closing, self.statements, self.clock.offset()),
            (&self.missed, self.folded_of_nobody, &self.joined, self.keyrings.saved()),
            (&self.datagrams_of, &self.unfollowed, &self.budget, &self.libraries),
        )
    }

    /// Goes on with what an earlier daemon knew.
    ///
    /// # Errors
    /// A configuration of that time cannot be read.
    pub(in crate::daemon) fn restore(&mut self, saved: Saved) -> Result<(), String> {
        let ((sessions, known, configurations, reported), connections, uncounted, bounds) = saved;
        let secrets;
        (self.missed, self.folded_of_nobody, self.joined, secrets) = uncounted;
        self.keyrings.restore(secrets)?;
        (self.datagrams_of, self.unfollowed, self.budget, self.libraries) = bounds;
        (self.sessions, self.reported) = (sessions, reported);
        self.processes.restore(known);
        let offset;
        (self.conversations, self.datagrams, self.closing, self.statements, offset) = connections;
        let waiting = self.conversations.iter().filter(|(_, conversation)| conversation.waits());
        self.waiting_for_secrets =
            waiting.map(|(cookie, conversation)| (conversation.session, *cookie)).collect();
        self.clock = Clock::fixed(offset);
        for configuration in configurations {
            self.apply(Item::Reloaded(configuration))?;
        }
        Ok(())
    }
}
