//! From the kernel's events to entries of the trail: who it was, in which session, on which connection, by which rule.
//!
//! The owner of everything that is known about live sessions, processes and connections. Events come in one by one and in
//! order; nothing here waits for anything but the trail.

mod unix;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use auditor_common::event::{
    Closed, Decision, Established, HOOK_CONNECT, HOOK_EGRESS, HOOK_SENDMSG, HOOK_SOCKET, Header, Moved,
    Packet, Skipped,
};
use auditor_common::packet::{TCP, UDP};
use auditor_common::tls::SecretTaken;
use auditor_common::unix::STREAM_PROTOCOL;

use super::conversation::{Conversation, Degraded, Findings, Notice};
use super::journal::{AdoptedSocket, Configuration, Item, Reported};
use super::keyrings::{self, Keyrings};
use super::memory::Budget;
use super::policies::Policies;
use super::unfollowed::{Telling, Unfollowed};
use crate::clock::{Boottime, Clock, Utc};
use crate::config;
use crate::kernel::shares::Shares;
use crate::kernel::tables::{TableError, Tables};
use crate::policy;
use crate::process::{Known, Occasion, Processes};
use crate::protocol::{Limits, Observation, Opaque, Outcome, Protocol, Side};
use crate::record::{
    Application, CloseReason, Connection, Coverage, Entry, Event as Recorded, Process, Transport, Verdict,
};
use crate::session::Sessions;
use crate::source::Event;
use crate::statement::Classifier;

/// TCP connections of one session that are followed at most. Further ones are named in a finding, and not followed.
const CONVERSATIONS_OF_A_SESSION: u64 = 16_384;
/// The same for all sessions.
const CONVERSATIONS: usize = 65_536;
/// Connections that a new secret is offered to at once.
const OFFERED: usize = 16;
/// Libraries whose names are remembered.
const LIBRARIES: usize = 4096;
/// UDP sockets of one session that are followed at most. Further ones are named in a finding, and their ends are not recorded.
const DATAGRAMS_OF_A_SESSION: u64 = 16_384;
/// The same for all sessions.
const DATAGRAMS: usize = 65_536;
/// What the record says of a session whose connections lose some of what they would be compared with.
const HISTORY_LIMIT: &str = "the session's connections have delivered more than is kept to compare repetitions with: \
                             whether bytes that come again are the same is looked at for the latest ones only";
/// How the record begins of a connection that is degraded.
const MEMORY_LIMIT: &str =
    "connections keep more in memory than they may all together, and this session's the most: ";
/// What the record says of a connection that is not followed.
const NOT_FOLLOWED: &str =
    "there are more connections than can be followed: what is said on this one is not in the record";
/// The same of a UDP socket.
const DATAGRAMS_NOT_FOLLOWED: &str = "there are more UDP sockets than can be followed: neither the end nor the bytes of this one are in the record";
/// The same where the session was over when its word came.
const SESSION_OVER: &str =
    "the session ended before this was read: neither what is said on it nor its end is in the record";
/// What is added where no further ones are named.
const NOT_NAMED: &str = "; nor are further ones of the session named";
/// How long after the kernel's word that a connection has ended its last segments are waited for. They were written
/// before that word; a few turns are ample.
const LAST_SEGMENTS: Duration = Duration::from_millis(20);

/// What is known of sockets, by cookie. Cookies are the kernel's counter, not a number that anybody chooses, so a hash need
/// not be secret: it is asked for several times a segment.
pub(super) type ByCookie<T> = HashMap<u64, T, BuildHasherDefault<CookieHasher>>;

/// Fibonacci hashing: a multiplication spreads neighbours over the whole range, and the upper bits are the good ones.
#[derive(Default)]
pub(super) struct CookieHasher(u64);

impl Hasher for CookieHasher {
    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not for cookies, which come as one number: correct for all, fast for none.
        bytes.iter().for_each(|byte| self.write_u64(self.0 ^ u64::from(*byte)));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

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

/// What [`Attribution::saved`] writes, read back.
pub(super) type Saved = (
    (Sessions, Known, Vec<Configuration>, Reported),
    (ByCookie<Conversation>, ByCookie<Datagrams>, VecDeque<(Boottime, u64)>, u64, i128),
    (HashMap<u32, (u64, Boottime)>, u64, Vec<Joined>, keyrings::Saved),
    (BTreeMap<u64, u64>, Unfollowed, Budget, BTreeMap<u64, String>),
);

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

    /// Everything that is known, for [`Self::restore`].
    pub(super) fn saved(&self) -> impl serde::Serialize + '_ {
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
    pub(super) fn restore(&mut self, saved: Saved) -> Result<(), String> {
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

    /// A process that lives, as far as it can be known.
    pub(super) fn living(&mut self, pid: u32) -> Option<Process> {
        self.processes.living(pid).map(|process| Process::clone(&process))
    }

    /// What procfs said since this was last called.
    pub(super) fn take_looked(&mut self) -> std::vec::Drain<'_, Process> {
        self.processes.take_looked()
    }

    /// Whether what comes next has happened before.
    pub(super) fn happens_again(&mut self, again: bool) {
        self.processes.happens_again(again);
    }

    /// What procfs said is not about what comes next.
    pub(super) fn forget_told(&mut self) {
        self.processes.forget_told();
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

    /// Cookies of sockets whose rows are counted.
    pub(super) fn counted(&self) -> BTreeSet<u64> {
        let counted =
            |(cookie, conversation): (&u64, &Conversation)| conversation.counts_rows().then_some(*cookie);
        self.conversations.iter().filter_map(counted).collect()
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

    /// A process changed its cgroup, and with it its session.
    fn moved(&mut self, event: &Moved) {
        let at = Boottime(event.header.time);
        let pid = event.moved;
        let path = event.path.split(|byte| *byte == 0).next().unwrap_or_default();
        let to = String::from_utf8_lossy(path);
        let by = event.task.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        let by = format!("process {} ({})", event.task.pid, String::from_utf8_lossy(by));
        let process = self.processes.known(pid).or_else(|| self.processes.living(pid));
        let born = event.born != 0;
        if let Some(session) = self.sessions.get_mut(event.from) {
            let from = session.cgroup.name().to_owned();
            session.lost_a_process = true;
            session.totals.violations += 1;
            let whither = match self.sessions.record(event.to) {
                Some(other) => format!("{to}, which is session {} of {}", other.id, other.agent.name),
                None => to.to_string(),
            };
            let kind = if event.to == 0 { "cgroup-escape" } else { "session-change" };
            let message = if born {
                format!(
                    "process {pid} was born outside of the session's cgroup {from}, in the cgroup {whither}, by {by}"
                )
            } else {
                format!("process {pid} was moved out of the session's cgroup {from} to {whither}, by {by}")
            };
            let finding = Recorded::Finding { kind, message, connection: None };
            self.enter(event.from, process.clone(), at, finding);
        }
        // What was learnt of it in one session is not believed in another.
        self.processes.forget(pid);
        if event.to == 0 {
            return;
        }
        if let Some(session) = self.sessions.get_mut(event.to) {
            session.totals.violations += 1;
        }
        let how = if born { "born" } else { "moved" };
        let message = format!("process {pid} was {how} into the session's cgroup {to}, by {by}");
        let finding = Recorded::Finding { kind: "cgroup-joined", message, connection: None };
        self.enter(event.to, process, at, finding);
        self.joined.push(Joined { session: event.to, pid });
    }

    /// Processes that came into a session and are to be followed, until [`Item::Followed`] says that they were.
    pub(super) fn joined(&self) -> Vec<Joined> {
        self.joined.clone()
    }

    /// What must be known before an event is taken in: whether records of processes were not written since the last look. A record
    /// that could not be written is counted before any later one is read; but it may have been missed any time until now, so
    /// all that is older than this look is in doubt. Only who reads the rings may ask: the counters are of now.
    pub(super) fn missed(&self, event: &Event<'_>) -> Option<Item> {
        if !event.tells_of_a_process() {
            return None;
        }
        let share = event.header().share;
        let count = self.shares.processes(share);
        let known = self.missed.get(&share).map_or(0, |(known, _)| *known);
        (known != count).then(|| Item::Missed { share, count, at: Clock::now() })
    }

    /// In what light a record's word of a process is to be seen.
    fn occasion(&self, header: &Header) -> Occasion {
        let complete_since = self.missed.get(&header.share).map_or(Boottime::default(), |(_, at)| *at);
        Occasion { at: Boottime(header.time), session: header.session, complete_since }
    }

    fn enter(&mut self, session: u64, process: Option<Arc<Process>>, at: Boottime, event: Recorded) {
        let session = self.sessions.record(session);
        self.entries.push(Entry { time: self.clock.utc(at), session, process, event });
    }

    fn connection_id(&self, cookie: u64) -> String {
        format!("{}-{cookie:x}", self.boot_id)
    }

    fn decision(&mut self, decision: &Decision) {
        let at = Boottime(decision.header.time);
        let number = decision.header.session;
        let occasion = self.occasion(&decision.header);
        let process = (decision.task.pid != 0).then(|| self.processes.of(&decision.task, occasion));
        let transport = match u8::try_from(decision.protocol) {
            Ok(TCP) => Transport::Tcp,
            Ok(UDP) => Transport::Udp,
            _ => Transport::Other(decision.protocol),
        };
        let policy = self.policies.by_table(decision.table);
        let protocol = u8::try_from(decision.protocol).unwrap_or(0);
        let verdict = policy::render(policy, &decision.verdict, decision.remote, protocol);
        let expected = policy
            .and_then(|policy| policy.rule(decision.verdict.rule))
            .and_then(|rule| rule.protocol)
            .map(Protocol::name);
        let connection = Connection {
            id: self.connection_id(decision.cookie),
            transport,
            local: None,
            remote: (decision.hook != HOOK_SOCKET).then(|| decision.remote.socket_address()),
            socket: None,
            inbound: false,
            adopted: None,
            verdict,
        };
        if !decision.verdict.allows() {
            if let Some(session) = self.sessions.get_mut(number) {
                session.totals.violations += 1;
            }
            let call = match decision.hook {
                HOOK_CONNECT => "connect",
                HOOK_SENDMSG => "sendmsg",
                HOOK_SOCKET => "socket",
                HOOK_EGRESS => "packet",
                _ => "unknown",
            };
            let connection = Arc::new(connection);
            self.enter(number, process, at, Recorded::ConnectionRefused { connection, call });
        } else if transport == Transport::Tcp {
            self.connect(decision.cookie, number, connection, process, expected, at);
        } else {
            self.datagram(decision.cookie, number, connection, process, at);
        }
    }

    fn connect(
        &mut self,
        cookie: u64,
        number: u64,
        connection: Connection,
        process: Option<Arc<Process>>,
        expected: Option<&'static str>,
        at: Boottime,
    ) {
        if let Some(conversation) = self.conversations.get_mut(&cookie)
            && !conversation.decided
            && !conversation.is_closing()
        {
            // Its segments were faster than this event.
            conversation.adopt(connection, process, expected);
            return;
        }
        // A socket may be connected again after an attempt that failed.
        self.finish(cookie, at);
        self.unfollowed.begin_again(cookie);
        if !self.begin(cookie, number, connection.clone(), process.clone(), expected, at) {
            self.not_followed(cookie, number, connection, process, at);
        }
    }

    /// Names a socket that there is no room for, once.
    fn not_followed(
        &mut self,
        cookie: u64,
        number: u64,
        connection: Connection,
        process: Option<Arc<Process>>,
        at: Boottime,
    ) {
        let over = !self.sessions.follows(number);
        let telling = if over { Telling::Name } else { self.unfollowed.beyond(cookie, number) };
        if telling == Telling::Nothing {
            return;
        }
        if let Some(session) = self.sessions.get_mut(number) {
            session.totals.violations += 1;
        }
        let what = match connection.transport {
            _ if over => SESSION_OVER,
            Transport::Udp => DATAGRAMS_NOT_FOLLOWED,
            _ => NOT_FOLLOWED,
        };
        let more = if telling == Telling::Last { NOT_NAMED } else { "" };
        let finding = Recorded::Finding {
            kind: "connection-not-followed",
            message: format!("{what}{more}"),
            connection: Some(Arc::new(connection)),
        };
        self.enter(number, process, at, finding);
    }

    /// Whether one more connection of a session can be followed.
    fn has_room(&self, session: u64) -> bool {
        let open = self.sessions.get(session).map_or(0, |session| session.open_connections);
        self.conversations.len() < CONVERSATIONS
            && open < CONVERSATIONS_OF_A_SESSION
            && self.sessions.follows(session)
    }

    fn begin(
        &mut self,
        cookie: u64,
        session: u64,
        connection: Connection,
        process: Option<Arc<Process>>,
        expected: Option<&'static str>,
        at: Boottime,
    ) -> bool {
        if !self.has_room(session) {
            return false;
        }
        if let Some(session) = self.sessions.get_mut(session) {
            session.open_connections += 1;
        }
        let conversation = Conversation::new(session, connection, process, expected, self.limits, at);
        self.conversations.insert(cookie, conversation);
        true
    }

    fn datagram(
        &mut self,
        cookie: u64,
        number: u64,
        connection: Connection,
        process: Option<Arc<Process>>,
        at: Boottime,
    ) {
        let connection = Arc::new(connection);
        if let Some(datagrams) = self.datagrams.get_mut(&cookie) {
            datagrams.connection = Arc::clone(&connection);
        } else {
            if self.unfollowed.is_beyond(cookie) {
                self.enter(number, process, at, Recorded::ConnectionOpened { connection });
                return;
            }
            if let Some(session) = self.sessions.get_mut(number) {
                session.totals.connections += 1;
            }
            let followed = self.datagrams_of.get(&number).copied().unwrap_or(0);
            if self.datagrams.len() >= DATAGRAMS
                || followed >= DATAGRAMS_OF_A_SESSION
                || !self.sessions.follows(number)
            {
                self.not_followed(cookie, number, Connection::clone(&connection), process.clone(), at);
            } else {
                self.datagrams_of.insert(number, followed + 1);
                let datagrams = Datagrams {
                    session: number,
                    connection: Arc::clone(&connection),
                    process: process.clone(),
                    began: at,
                };
                self.datagrams.insert(cookie, datagrams);
            }
        }
        self.enter(number, process, at, Recorded::ConnectionOpened { connection });
    }

    /// A conversation that began without a decision of its own: accepted from outside, or older than the session. `false`: it is
    /// not followed.
    fn begin_undecided(
        &mut self,
        cookie: u64,
        session: u64,
        remote: SocketAddr,
        inbound: bool,
        at: Boottime,
    ) -> bool {
        // First what costs next to nothing: this may be asked for each segment.
        if self.unfollowed.is_beyond(cookie) || !self.sessions.follows(session) {
            return false;
        }
        let has_room = self.has_room(session);
        if !has_room && self.unfollowed.is_silent(session) {
            return false;
        }
        let verdict = self.decide_again(session, remote, at);
        let connection = Connection {
            id: self.connection_id(cookie),
            transport: Transport::Tcp,
            local: None,
            remote: Some(remote),
            socket: None,
            inbound,
            adopted: None,
            verdict,
        };
        if !has_room {
            self.not_followed(cookie, session, connection, None, at);
            return false;
        }
        let begun = self.begin(cookie, session, connection, None, None, at);
        if let Some(conversation) = self.conversations.get_mut(&cookie) {
            conversation.decided = false;
        }
        begun
    }

    /// What the packet hook decided about a peer that no connect(2) named, by the same rules and the same function.
    fn decide_again(&mut self, session: u64, remote: SocketAddr, at: Boottime) -> Verdict {
        let table = self
            .sessions
            .record(session)
            .map_or(0, |session| self.policies.session(0, 0, &session.policy).table);
        let Some(policy) = self.policies.by_table(table) else {
            let verdict = auditor_common::rule::Verdict::refuse(auditor_common::rule::REASON_NO_SESSION);
            return policy::render(None, &verdict, remote.into(), TCP);
        };
        let compiled = self.compiled.entry(table).or_insert_with(|| policy::Table::new(policy, &self.clock));
        let verdict = compiled.decide(remote.into(), TCP, at);
        policy::render(Some(policy), &verdict, remote.into(), TCP)
    }

    /// Follows a connection that is older than its session, from here on.
    fn adopt(&mut self, session: u64, cookie: u64, socket: AdoptedSocket, at: Boottime) {
        let AdoptedSocket { process, local, remote, bytes } = socket;
        let process = process.map(Arc::new);
        let connection = Connection {
            id: self.connection_id(cookie),
            transport: Transport::Tcp,
            local: Some(local),
            remote: Some(remote),
            socket: None,
            // Who connected to whom was not seen.
            inbound: false,
            adopted: Some(bytes),
            verdict: self.decide_again(session, remote, at),
        };
        if !self.begin(cookie, session, connection.clone(), process.clone(), None, at) {
            self.not_followed(cookie, session, connection, process, at);
            return;
        }
        let mut findings = mem::take(&mut self.findings);
        if let Some(conversation) = self.conversations.get_mut(&cookie) {
            conversation.midstream(at, &self.keyrings.of(conversation.session, at), &mut findings);
        }
        if let Some(session) = self.sessions.get_mut(session) {
            session.totals.connections += 1;
        }
        let connection = Arc::new(connection);
        self.enter(session, process, at, Recorded::ConnectionOpened { connection });
        self.report(cookie, at, &mut findings);
        self.findings = findings;
        self.weigh(cookie, at);
    }

    fn established(&mut self, event: &Established) {
        let at = Boottime(event.header.time);
        let cookie = event.cookie;
        if !self.conversations.contains_key(&cookie) {
            let remote = event.remote.socket_address();
            if !self.begin_undecided(cookie, event.header.session, remote, event.passive != 0, at) {
                return;
            }
        }
        let mut findings = mem::take(&mut self.findings);
        if let Some(conversation) = self.conversations.get_mut(&cookie) {
            conversation.established(event, &self.keyrings.of(conversation.session, at), &mut findings);
            let connection = Arc::clone(&conversation.connection);
            let (number, process) = (conversation.session, conversation.process.clone());
            if let Some(session) = self.sessions.get_mut(number) {
                session.totals.connections += 1;
            }
            self.enter(number, process, at, Recorded::ConnectionOpened { connection });
        }
        self.report(cookie, at, &mut findings);
        self.findings = findings;
        self.weigh(cookie, at);
    }

    fn packet(&mut self, packet: &Packet, payload: &[u8]) {
        let at = Boottime(packet.header.time);
        let cookie = packet.cookie;
        let mut midstream = false;
        if !self.conversations.contains_key(&cookie) {
            // A late one of a connection that has ended begins none.
            if self.unfollowed.ended(cookie).is_some_and(|ended| at.since(ended) < LAST_SEGMENTS) {
                return;
            }
            let remote = packet.remote.socket_address();
            if !self.begin_undecided(cookie, packet.header.session, remote, false, at) {
                return;
            }
            midstream = true;
        }
        let mut findings = mem::take(&mut self.findings);
        if let Some(conversation) = self.conversations.get_mut(&cookie) {
            let keyring = &self.keyrings.of(conversation.session, at);
            if midstream {
                conversation.midstream(at, keyring, &mut findings);
            }
            conversation.segment(packet, payload, self.policies.lossy(), keyring, &mut findings);
            self.counting.extend(conversation.counting_changed().map(|counts| (cookie, counts)));
        }
        self.report(cookie, at, &mut findings);
        self.findings = findings;
        self.weigh(cookie, at);
    }

    fn skipped(&mut self, event: &Skipped) {
        let at = Boottime(event.header.time);
        let mut findings = mem::take(&mut self.findings);
        // Only what is followed is counted.
        if let Some(conversation) = self.conversations.get_mut(&event.cookie) {
            let keyring = &self.keyrings.of(conversation.session, at);
            conversation.skipped(event, self.policies.lossy(), keyring, &mut findings);
            self.counting.extend(conversation.counting_changed().map(|counts| (event.cookie, counts)));
        }
        self.report(event.cookie, at, &mut findings);
        self.findings = findings;
        self.weigh(event.cookie, at);
    }

    /// Charges a connection with what it keeps by now, and sees to it that all of them together keep no more than they may.
    fn weigh(&mut self, cookie: u64, at: Boottime) {
        self.charge(cookie);
        while let Some((number, oldest)) = self.budget.oldest() {
            let Some(conversation) = self.conversations.get_mut(&oldest) else { break };
            conversation.forget_history();
            self.charge(oldest);
            if self.budget.tell(number) {
                if let Some(session) = self.sessions.get_mut(number) {
                    session.totals.violations += 1;
                }
                let message = HISTORY_LIMIT.to_owned();
                self.enter(
                    number,
                    None,
                    at,
                    Recorded::Finding { kind: "memory-limit", message, connection: None },
                );
            }
        }
        while let Some(largest) = self.budget.largest() {
            let mut findings = mem::take(&mut self.findings);
            let Some(conversation) = self.conversations.get_mut(&largest) else { break };
            conversation.degrade(at, &self.keyrings.of(conversation.session, at), &mut findings);
            self.counting.extend(conversation.counting_changed().map(|counts| (largest, counts)));
            self.report(largest, at, &mut findings);
            self.findings = findings;
            self.charge(largest);
        }
    }

    fn charge(&mut self, cookie: u64) {
        let Some(conversation) = self.conversations.get_mut(&cookie) else { return };
        let session = conversation.session;
        match conversation.held() {
            Some(held) => self.budget.charge(session, cookie, &mut conversation.account, held),
            None => self.budget.release(session, cookie, &mut conversation.account),
        }
    }

    /// A TLS library has derived keys from a secret: connections of its session may have waited for it.
    fn secret(&mut self, event: &SecretTaken) {
        let (session, at) = (event.header.session, Boottime(event.header.time));
        if !self.keyrings.taken(event) {
            return;
        }
        let waiting = self.waiting_for_secrets.range((session, 0)..=(session, u64::MAX));
        // The others look for it when their next bytes come; those that were made last wait for the newest.
        for cookie in waiting.rev().take(OFFERED).map(|(_, cookie)| *cookie).collect::<Vec<_>>() {
            let mut findings = mem::take(&mut self.findings);
            if let Some(conversation) = self.conversations.get_mut(&cookie) {
                conversation.offer(at, &self.keyrings.of(session, at), &mut findings);
            }
            self.report(cookie, at, &mut findings);
            self.findings = findings;
            self.weigh(cookie, at);
        }
    }

    /// What a library is called has become known, perhaps later than its first secrets.
    fn library(&mut self, number: u64, name: String) {
        if self.libraries.len() >= LIBRARIES {
            self.libraries.pop_first();
        }
        for conversation in self.conversations.values_mut() {
            conversation.is_called(number, &name);
        }
        self.libraries.insert(number, name);
    }

    /// Notes which secrets a connection has claimed and released, and whether it waits for one.
    fn account_for_secrets(&mut self, cookie: u64, findings: &mut Findings) {
        let waits = findings.waits.take();
        if waits.is_none() && findings.secrets.is_empty() {
            return;
        }
        let Some(session) = self.conversations.get(&cookie).map(|conversation| conversation.session) else {
            return;
        };
        match waits {
            Some(true) => _ = self.waiting_for_secrets.insert((session, cookie)),
            Some(false) => _ = self.waiting_for_secrets.remove(&(session, cookie)),
            None => {}
        }
        for (secret, claimed) in findings.secrets.drain(..) {
            if claimed {
                let library = self.keyrings.claim(session, secret);
                if let Some(number) = library
                    && let Some(conversation) = self.conversations.get_mut(&cookie)
                {
                    conversation.derived_by(number, self.libraries.get(&number));
                }
            } else {
                self.keyrings.release(session, secret);
            }
        }
    }

    /// Enters what a step on a conversation has found, and leaves `findings` empty.
    fn report(&mut self, cookie: u64, at: Boottime, findings: &mut Findings) {
        self.account_for_secrets(cookie, findings);
        if findings.observations.is_empty() && findings.notices.is_empty() {
            return;
        }
        let Some(conversation) = self.conversations.get_mut(&cookie) else { return };
        let number = conversation.session;
        let connection = Arc::clone(&conversation.connection);
        let expected = conversation.expected;
        let session = self.sessions.record(number);
        let (mut statements, mut violations) = (0, 0);
        let process = conversation.process.clone();
        let mut enter = |at, event| {
            match event {
                // It counts when it is executed.
                Recorded::Statement { ref statement, .. } if statement.outcome == Outcome::Prepared => {}
                Recorded::Statement { .. } | Recorded::Request { .. } => statements += 1,
                Recorded::Finding { .. } => violations += 1,
                _ => {}
            }
            let (session, process) = (session.clone(), process.clone());
            self.entries.push(Entry { time: self.clock.utc(at), session, process, event });
        };
        for observation in findings.observations.drain(..) {
            conversation.learn(&observation);
            match observation {
                Observation::Statement(statement) => {
                    let meaning = conversation.understand(&mut self.classifier, &statement);
                    let application = Arc::clone(&conversation.application);
                    let connection = Arc::clone(&connection);
                    enter(
                        statement.finished,
                        Recorded::Statement { connection, application, statement, meaning },
                    );
                }
                Observation::Request(request) => {
                    let application = Arc::clone(&conversation.application);
                    let connection = Arc::clone(&connection);
                    enter(request.finished, Recorded::Request { connection, application, request });
                }
                Observation::Violation(message) => {
                    let connection = Some(Arc::clone(&connection));
                    enter(at, Recorded::Finding { kind: "protocol-violation", message, connection });
                }
                Observation::Refused(error) => {
                    let message = format!("the server refused the client: {} {}", error.code, error.message);
                    let connection = Some(Arc::clone(&connection));
                    enter(at, Recorded::Finding { kind: "login-refused", message, connection });
                }
                Observation::Opaque(opaque) if expected.is_some() => {
                    let how = match opaque {
                        Opaque::Tls | Opaque::GssEncryption => "went on encrypted",
                        Opaque::Upgraded => "went on in a protocol that is not known",
                        Opaque::Hole => "has a hole behind which it cannot be read on",
                        Opaque::Replication => "went on as a stream of replication",
                    };
                    let message = format!(
                        "the rule names the protocol, and the connection {how}: what is said on it is not in the record"
                    );
                    let connection = Some(Arc::clone(&connection));
                    enter(at, Recorded::Finding { kind: "opaque-connection", message, connection });
                }
                Observation::Encrypted { .. }
                | Observation::Switched { .. }
                | Observation::Opaque(_)
                | Observation::Login(_)
                | Observation::Authenticated => {}
            }
        }
        for notice in findings.notices.drain(..) {
            if let Some(event) = notice_event(notice, &connection, expected) {
                enter(at, event);
            }
        }
        self.statements += statements;
        if let Some(session) = self.sessions.get_mut(number) {
            session.totals.statements += statements;
            session.totals.violations += violations;
        }
    }

    fn closed(&mut self, event: &Closed) {
        let at = Boottime(event.header.time);
        if event.protocol == u32::from(TCP) || event.protocol == STREAM_PROTOCOL {
            if let Some(conversation) = self.conversations.get_mut(&event.cookie) {
                conversation.closing(event);
                self.closing.push_back((at, event.cookie));
            } else {
                self.unfollowed.end(event.cookie, at);
            }
            return;
        }
        let Some(datagrams) = self.take_datagrams(event.cookie) else {
            self.unfollowed.end(event.cookie, at);
            return;
        };
        self.finish_datagrams(datagrams, (Some(event.sent), Some(event.received)), at);
    }

    /// Takes a UDP socket out.
    fn take_datagrams(&mut self, cookie: u64) -> Option<Datagrams> {
        let datagrams = self.datagrams.remove(&cookie)?;
        if let Some(followed) = self.datagrams_of.get_mut(&datagrams.session) {
            *followed = followed.saturating_sub(1);
            if *followed == 0 {
                self.datagrams_of.remove(&datagrams.session);
            }
        }
        Some(datagrams)
    }

    /// The bytes of datagrams are counted, over all destinations of a socket, and not read.
    fn finish_datagrams(
        &mut self,
        datagrams: Datagrams,
        (sent, received): (Option<u64>, Option<u64>),
        at: Boottime,
    ) {
        let coverage = Coverage { sent, received, ..Coverage::default() };
        let closed = Recorded::ConnectionClosed {
            connection: datagrams.connection,
            application: Arc::new(Application::default()),
            coverage,
            reason: CloseReason::Ended,
            duration_us: u64::try_from(at.since(datagrams.began).as_micros()).unwrap_or(u64::MAX),
            statements: 0,
        };
        self.enter(datagrams.session, datagrams.process, at, closed);
    }

    /// Whether there are connections whose last segments have had their time.
    pub(super) fn is_due(&self, now: Boottime) -> bool {
        self.closing.front().is_some_and(|(at, _)| now.since(*at) >= LAST_SEGMENTS)
    }

    /// Ends the connections whose last segments have had their time.
    pub(super) fn settle(&mut self, now: Boottime) {
        while let Some(&(at, cookie)) = self.closing.front()
            && now.since(at) >= LAST_SEGMENTS
        {
            self.closing.pop_front();
            // The socket may have been connected again meanwhile.
            if self.conversations.get(&cookie).is_some_and(Conversation::is_closing) {
                self.finish(cookie, now);
            }
        }
    }

    fn finish(&mut self, cookie: u64, now: Boottime) {
        let Some(conversation) = self.conversations.get_mut(&cookie) else { return };
        let mut findings = mem::take(&mut self.findings);
        let keyring = &self.keyrings.of(conversation.session, now);
        let (coverage, reason, duration_us) = conversation.finish(now, keyring, &mut findings);
        self.report(cookie, now, &mut findings);
        self.findings = findings;
        let Some(mut conversation) = self.conversations.remove(&cookie) else { return };
        self.waiting_for_secrets.remove(&(conversation.session, cookie));
        self.budget.release(conversation.session, cookie, &mut conversation.account);
        self.unfollowed.end(cookie, conversation.ended().unwrap_or(now));
        if conversation.counts_rows() {
            self.counting.push((cookie, false));
        }
        if let Some(session) = self.sessions.get_mut(conversation.session) {
            session.open_connections = session.open_connections.saturating_sub(1);
            session.bytes_moved += coverage.sent.unwrap_or(0) + coverage.received.unwrap_or(0);
            session.bytes_audited += coverage.audited_sent
                + coverage.audited_received
                + coverage.skipped_sent
                + coverage.skipped_received;
        }
        let closed = Recorded::ConnectionClosed {
            connection: conversation.connection,
            application: conversation.application,
            coverage,
            reason,
            duration_us,
            statements: conversation.statements,
        };
        self.enter(conversation.session, conversation.process, now, closed);
    }

    /// Ends all connections of a session, or of all sessions.
    pub(super) fn finish_session(&mut self, number: Option<u64>, now: Boottime) {
        let of = |session: u64| number.is_none_or(|number| number == session);
        let mut cookies: Vec<u64> = self
            .conversations
            .iter()
            .filter(|(_, conversation)| of(conversation.session))
            .map(|(cookie, _)| *cookie)
            .collect();
        cookies.sort_unstable();
        for cookie in cookies {
            self.finish(cookie, now);
        }
        let mut cookies: Vec<u64> = self
            .datagrams
            .iter()
            .filter(|(_, datagrams)| of(datagrams.session))
            .map(|(cookie, _)| *cookie)
            .collect();
        cookies.sort_unstable();
        for cookie in cookies {
            if let Some(datagrams) = self.take_datagrams(cookie) {
                self.finish_datagrams(datagrams, (None, None), now);
            }
        }
    }

    /// Whether connections that the kernel has closed wait for their last segments.
    pub(super) fn is_settled(&self) -> bool {
        self.closing.is_empty()
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

impl Degraded {
    /// As the record has it.
    const fn told(self) -> &'static str {
        match self {
            Self::Early => {
                "what is missing in front of segments that came early is not waited for on this connection"
            }
            Self::Answers => {
                "statements on this connection are recorded without their answers from here on, and only the beginnings of long \
                 ones"
            }
            Self::Reading => "what is said on this connection from here on is not in the record",
        }
    }
}

/// What a notice means to a reader of the trail.
fn notice_event(
    notice: Notice,
    connection: &Arc<Connection>,
    expected: Option<&'static str>,
) -> Option<Recorded> {
    let (kind, message) = match notice {
        Notice::Gap(range) => return Some(Recorded::Gap { connection: Arc::clone(connection), range }),
        Notice::Conflict { sent, offset, length } => (
            "stream-conflict",
            format!(
                "{length} bytes {} from offset {offset} on were seen in two versions; the record follows the first",
                if sent { "sent" } else { "received" }
            ),
        ),
        Notice::Urgent => (
            "urgent-data",
            "the other end sent urgent data: what the agent reads of it may differ from what is recorded"
                .to_owned(),
        ),
        Notice::Degraded(degraded) => ("memory-limit", format!("{MEMORY_LIMIT}{}", degraded.told())),
        Notice::NotTls(message) => ("protocol-violation", message.to_owned()),
        Notice::RecordFails(side) => (
            "tls-record-fails",
            format!(
                "a TLS record of the {} does not authenticate: it is not what the other end has sealed",
                if side == Side::Client { "client's" } else { "server's" }
            ),
        ),
        Notice::Recognised(found) => {
            let expected = expected.filter(|expected| *expected != found)?;
            (
                "protocol-mismatch",
                format!("the rule allows {expected} only, and the connection speaks {found}"),
            )
        }
        Notice::Unrecognised => (
            "protocol-mismatch",
            format!("the rule allows {} only, and the connection speaks something else", expected?),
        ),
    };
    Some(Recorded::Finding { kind, message, connection: Some(Arc::clone(connection)) })
}

#[cfg(test)]
mod tests;
