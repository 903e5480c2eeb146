//! From the kernel's events to entries of the trail: who it was, in which session, on which connection, by which rule.
//!
//! The owner of everything that is known about live sessions, processes and connections. Events come in one by one and in
//! order; nothing here waits for anything but the trail.

mod bounds;
mod connections;
mod datagrams;
mod decisions;
mod findings;
mod processes;
mod saved;
mod secrets;
mod unix;

pub(super) use saved::Saved;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use auditor_common::bulk::{PLACE_HOLDS, Place, Way};

use super::by_cookie::ByCookie;
use super::conversation::{Conversation, Findings};
use super::journal::{Configuration, Item, Reported};
use super::keyrings::Keyrings;
use super::memory::Budget;
use super::policies::Policies;
use super::unfollowed::Unfollowed;
use crate::clock::{Boottime, Clock, Utc};
use crate::config;
use crate::kernel::shares::Shares;
use crate::kernel::tables::{TableError, Tables};
use crate::policy;
use crate::process::Processes;
use crate::protocol::Limits;
use crate::record::{Connection, Entry, Event as Recorded, Process};
use crate::session::Sessions;
use crate::source::Event;
use crate::statement::Classifier;

/// A UDP socket with the last destination that it was allowed.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Datagrams {
    session: u64,
    connection: Arc<Connection>,
    process: Option<Arc<Process>>,
    began: Boottime,
}

/// A process that came into a session from elsewhere, and has sockets that may be older than that.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Joined {
    /// Into which.
    pub(super) session: u64,
    /// Its process id.
    pub(super) pid: u32,
}

/// See the module.
pub(super) struct Attribution {
    pub(super) sessions: Sessions,
    pub(super) policies: Policies,
    pub(super) limits: Limits,
    clock: Clock,
    boot_id: String,
    processes: Processes,
    shares: Arc<Shares>,
    /// By share of the rings: how many records of processes were not written, and when that was last found to have changed.
    missed: HashMap<u32, (u64, Boottime)>,
    conversations: ByCookie<Conversation>,
    datagrams: ByCookie<Datagrams>,
    /// UDP sockets that are followed, by session.
    datagrams_of: BTreeMap<u64, u64>,
    unfollowed: Unfollowed,
    budget: Budget,
    /// Compiled policies by their numbers, of this generation and the last one.
    compiled: BTreeMap<u32, policy::Table>,
    closing: VecDeque<(Boottime, u64)>,
    /// Secrets of TLS connections.
    pub(super) keyrings: Keyrings,
    /// Connections that wait for one, by session and cookie.
    waiting_for_secrets: BTreeSet<(u64, u64)>,
    /// What libraries are called, by their numbers.
    libraries: BTreeMap<u64, String>,
    findings: Findings,
    /// Sockets whose rows are to be counted from now on, or no longer.
    counting: Vec<(u64, bool)>,
    /// Those whose rows could be counted if the kernel programs knew where they are.
    placing: BTreeMap<u64, Place>,
    /// Entries that wait to be written, oldest first.
    entries: Vec<Entry>,
    statements: u64,
    /// Keeps what statements mean. Not saved: what it says is a function of what it is asked.
    classifier: Classifier,
    joined: Vec<Joined>,
    /// Failures of the kernel programs that were reported.
    pub(super) reported: Reported,
    /// Refusals of what belongs to no session that are known to have been counted and not recorded.
    pub(super) folded_of_nobody: u64,
}

/// How long after its last segment a transfer has its place told, each turn anew: what found no room in the ring comes again when TCP
/// finds it time.
const PLACE_WANTED: Duration = Duration::from_secs(2);

impl Attribution {
    pub(super) fn new(
        boot_id: String,
        clock: Clock,
        policies: Policies,
        processes: Processes,
        shares: Arc<Shares>,
        keyrings: Keyrings,
        limits: Limits,
    ) -> Self {
        Self {
            sessions: Sessions::default(),
            policies,
            limits,
            clock,
            boot_id,
            processes,
            shares,
            missed: HashMap::new(),
            conversations: ByCookie::default(),
            datagrams: ByCookie::default(),
            datagrams_of: BTreeMap::new(),
            unfollowed: Unfollowed::default(),
            budget: Budget::default(),
            compiled: BTreeMap::new(),
            closing: VecDeque::new(),
            keyrings,
            waiting_for_secrets: BTreeSet::new(),
            libraries: BTreeMap::new(),
            findings: Findings::default(),
            counting: Vec::new(),
            placing: BTreeMap::new(),
            entries: Vec::new(),
            statements: 0,
            classifier: Classifier::default(),
            joined: Vec::new(),
            reported: Reported::new(),
            folded_of_nobody: 0,
        }
    }

    /// Something beside the kernel's events. Whoever calls this has written it into the journal, or read it there.
    pub(super) fn apply(&mut self, item: Item) -> Result<(), String> {
        match item {
            Item::Entered(session, at, event) => self.enter(session, None, at, event),
            Item::Made(entry) => self.entries.push(entry),
            Item::Settled(now) => self.settle(now),
            Item::Opened(session) => self.sessions.insert(*session),
            Item::Ended { number, at, utc, reason } => self.end_session(number, at, utc, reason),
            Item::Folded(number, count, at) => self.folded(number, count, at),
            Item::Adopted { number, cookie, socket, at } => self.adopt(number, cookie, *socket, at),
            Item::Overrun { number, unwritten, message, at } => {
                if let Some(session) = self.sessions.get_mut(number) {
                    session.unwritten = unwritten;
                    session.totals.violations += 1;
                }
                self.enter(
                    number,
                    None,
                    at,
                    Recorded::Finding { kind: "ring-overrun", message, connection: None },
                );
            }
            Item::Violations(number, more) => {
                if let Some(session) = self.sessions.get_mut(number) {
                    session.totals.violations += more;
                }
            }
            Item::Forgotten(pid) => self.processes.forget(pid),
            Item::Followed => self.joined.clear(),
            Item::Missed { share, count, at } => {
                self.missed.insert(share, (count, at));
            }
            Item::Clock(offset) => {
                self.clock = Clock::fixed(offset);
                // When rules expire is wall-clock time.
                self.compiled.clear();
            }
            Item::Looked(process) => self.processes.tell(process),
            Item::Reported(reported) => self.reported = reported,
            Item::Library(number, name) => self.library(number, name),
            Item::Reloaded(configuration) => {
                let settings = self.policies.recall(configuration, &self.clock)?;
                self.compiled.clear();
                self.limits = settings.capture.limits();
            }
        }
        Ok(())
    }

    fn end_session(&mut self, number: u64, at: Boottime, utc: Utc, reason: &'static str) {
        self.finish_session(Some(number), at);
        self.keyrings.end(number);
        self.unfollowed.forget_session(number);
        self.budget.forget_session(number);
        let Some(session) = self.sessions.remove(number) else { return };
        let totals = session.totals;
        let duration_us = u64::try_from(at.since(session.opened).as_micros()).unwrap_or(u64::MAX);
        self.sessions.remember(number, session.state(Some(utc)));
        self.enter(number, None, at, Recorded::SessionEnded { reason, totals, duration_us });
    }

    /// Tells of refusals that were too many to be recorded one by one.
    fn folded(&mut self, number: u64, count: u64, at: Boottime) {
        let more = match self.sessions.get_mut(number) {
            Some(session) => {
                let more = count.saturating_sub(session.folded_refusals);
                session.folded_refusals = count;
                session.totals.violations += more;
                more
            }
            None if number == 0 => count.saturating_sub(mem::replace(&mut self.folded_of_nobody, count)),
            None => return,
        };
        let finding = Recorded::Finding {
            kind: "refusals-folded",
            message: format!("{more} further attempts were refused, too many to be recorded one by one"),
            connection: None,
        };
        self.enter(number, None, at, finding);
    }

    /// Puts a configuration in force, for the open sessions too. Answers what the journal needs to know of it.
    pub(super) fn put_in_force(
        &mut self,
        loaded: &config::Loaded,
        tables: &mut Tables,
    ) -> Result<Configuration, TableError> {
        let sessions: Vec<_> = self
            .sessions
            .iter()
            .map(|session| {
                // The agent's policy may be another one by now.
                let agent = loaded.settings.agent(&session.record.agent.name);
                let policy = agent.map_or(String::new(), |agent| agent.policy.clone());
                (session.cgroup.id(), session.number, session.share, policy)
            })
            .collect();
        let configuration = self.policies.replace(
            (&loaded.settings, &loaded.text),
            tables,
            &Clock::read(),
            sessions
                .iter()
                .map(|(cgroup, number, share, policy)| (*cgroup, *number, *share, policy.as_str())),
        )?;
        self.compiled.clear();
        self.limits = loaded.settings.capture.limits();
        Ok(configuration)
    }

    /// Hands over what is to be written.
    pub(super) fn take_entries(&mut self) -> std::vec::Drain<'_, Entry> {
        self.entries.drain(..)
    }

    /// Hands over the cookies of sockets whose rows the kernel programs are to count from now on (`true`), or no longer.
    pub(super) fn take_counting(&mut self) -> std::vec::Drain<'_, (u64, bool)> {
        self.counting.drain(..)
    }

    /// Hands over where rows are that the kernel programs copy and could count: to be asked when all that they have written was taken in.
    pub(super) fn take_places(&mut self, now: Boottime) -> Vec<(Way, Place)> {
        let mut places = Vec::new();
        let conversations = &self.conversations;
        self.placing.retain(|&cookie, last| {
            let wanting = conversations.get(&cookie).filter(|conversation| conversation.wants_a_place());
            let Some(conversation) = wanting else { return false };
            if let Some((direction, place)) = conversation.place() {
                let stands = place.sequence == last.sequence && now.0 + PLACE_HOLDS / 2 < last.until;
                let way = Way { cookie, direction: direction.into(), _padding: 0 };
                let place = Place { until: now.0 + PLACE_HOLDS, ..place };
                if !stands {
                    *last = Place { check: place.check(&way), ..place };
                    places.push((way, *last));
                }
            }
            now.since(conversation.moved()) < PLACE_WANTED
        });
        places
    }

    /// TCP and UDP conversations that are open.
    pub(super) fn connections(&self) -> u64 {
        (self.conversations.len() + self.datagrams.len()) as u64
    }

    /// Statements since the start.
    pub(super) fn statements(&self) -> u64 {
        self.statements
    }

    /// One event.
    pub(super) fn on(&mut self, event: Event<'_>) {
        match event {
            Event::Packet(packet, payload) => self.packet(&packet, payload),
            Event::Skipped(skipped) => self.skipped(&skipped),
            Event::Decision(decision) => self.decision(&decision),
            Event::UnixDecision(decision) => self.unix_decision(&decision),
            Event::UnixData(data, payload) => self.unix_data(&data, payload),
            Event::Established(established) => self.established(&established),
            Event::Closed(closed) => self.closed(&closed),
            Event::Exec(exec) => {
                let occasion = self.occasion(&exec.header);
                let process = self.processes.executed(&exec, occasion);
                self.enter(
                    exec.header.session,
                    Some(process),
                    Boottime(exec.header.time),
                    Recorded::ProcessStarted,
                );
            }
            Event::Fork(fork) => {
                let occasion = self.occasion(&fork.header);
                self.processes.forked(fork.task.pid, fork.child, occasion);
            }
            Event::Moved(moved) => self.moved(&moved),
            Event::SecretTaken(taken) => self.secret(&taken),
            Event::Exit(exit) => {
                let occasion = self.occasion(&exit.header);
                let process = self.processes.exited(&exit.task, occasion);
                if let Some(session) = self.sessions.get_mut(exit.header.session) {
                    session.lost_a_process = true;
                }
                self.enter(
                    exit.header.session,
                    Some(process),
                    Boottime(exit.header.time),
                    Recorded::ProcessEnded,
                );
            }
        }
    }

    fn enter(&mut self, session: u64, process: Option<Arc<Process>>, at: Boottime, event: Recorded) {
        let session = self.sessions.record(session);
        self.entries.push(Entry { time: self.clock.utc(at), session, process, event });
    }

    fn connection_id(&self, cookie: u64) -> String {
        format!("{}-{cookie:x}", self.boot_id)
    }

    /// Entries that wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.entries.len()
    }

    /// Enters something that is not an event of the kernel's.
    pub(super) fn enter_now(&mut self, session: u64, event: Recorded) {
        self.enter(session, None, Clock::now(), event);
    }
}

#[cfg(test)]
mod tests;
