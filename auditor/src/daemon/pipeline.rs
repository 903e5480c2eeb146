//! The pipeline thread: it drains the rings, answers commands, looks after sessions, and writes the trail.
//!
//! One thread owns all state, so there is no lock and no question of order. It sleeps until the next turn (10 ms), a
//! wake-up from the kernel programs or a command.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::attribution::Attribution;
use super::command::{
    Command, CommandError, Commands, DaemonState, OpenSession, Reply, SessionState, Target,
};
use crate::clock::{Boottime, Clock};
use crate::config::{self, Settings};
use crate::kernel::cgroup::{Cgroup, Hierarchy};
use crate::kernel::object::{Attachment, Object, RingSizes};
use crate::kernel::tables::Tables;
use crate::record::{self, Agent, Event as Recorded, Loss};
use crate::session::{self, Session};
use crate::source::Source as _;
use crate::source::ring::{Rings, Waiter};
use crate::trail::Trail;

/// Longest time between two looks at the rings.
const TURN: Duration = Duration::from_millis(10);
/// Events that are taken in one go before commands and sessions have their turn.
const EVENTS_IN_ONE_GO: usize = 8192;
/// Bytes of records that wait for the disk, from which on no more are made. Half of what the trail takes before it makes
/// its writer wait, so that one more turn's records fit.
const TRAIL_BACKLOG: usize = 4 << 20;
/// Time between two looks at whether the cgroup of a session that lost a process has emptied.
const LOOK_AT_SESSIONS: Duration = Duration::from_millis(50);
/// Time between two looks at all sessions: a process can also leave its cgroup alive.
const LOOK_AT_ALL_SESSIONS: Duration = Duration::from_secs(1);
/// How long a session without processes waits for its connections to end.
const LAST_CONNECTIONS: Duration = Duration::from_secs(5);
/// Time between two signs of life in the trail.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// How long the last records may take to reach the disk when the daemon stops.
const LAST_RECORDS: Duration = Duration::from_secs(10);

/// Why the pipeline cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// Waiting for events failed.
    #[error("wait for events: {0}")]
    Wait(std::io::Error),
    /// The kernel programs wrote what this daemon does not know.
    #[error(transparent)]
    Malformed(#[from] crate::source::Malformed),
    /// The trail cannot be written.
    #[error(transparent)]
    Trail(#[from] crate::trail::Error),
}

/// What the pipeline starts with.
pub(super) struct Parts {
    pub(super) configuration: PathBuf,
    pub(super) settings: Settings,
    pub(super) hierarchy: Hierarchy,
    /// The cgroup below which sessions are made.
    pub(super) parent: Cgroup,
    /// The programs on it.
    pub(super) attachment: Attachment,
    pub(super) object: Object,
    pub(super) tables: Tables,
    pub(super) rings: Rings,
    pub(super) sizes: RingSizes,
    pub(super) attribution: Attribution,
    pub(super) trail: Trail,
    pub(super) commands: Commands,
    pub(super) degraded: Vec<String>,
}

/// See the module.
pub(super) struct Pipeline {
    parts: Parts,
    started: Boottime,
    looked_at_sessions: Boottime,
    looked_at_all_sessions: Boottime,
    heartbeat: Boottime,
    reported: HashMap<(&'static str, u32), u64>,
}

impl Pipeline {
    pub(super) fn new(parts: Parts) -> Self {
        let now = Clock::now();
        Self {
            parts,
            started: now,
            looked_at_sessions: now,
            looked_at_all_sessions: now,
            heartbeat: now,
            reported: HashMap::new(),
        }
    }

    /// Runs until it is told to stop; what it started with comes back.
    pub(super) fn run(mut self) -> Result<Parts, PipelineError> {
        let waiter = Waiter::new(&self.parts.rings, self.parts.commands.wake_descriptor().as_fd())
            .map_err(PipelineError::Wait)?;
        loop {
            waiter.wait(TURN).map_err(PipelineError::Wait)?;
            // Before commands: whoever asks for the state of things gets it as of now. While the disk does not take what
            // there is, events stay in the rings, whose fill holds agents back, and commands are answered all the same.
            let more = self.parts.trail.waiting() > TRAIL_BACKLOG || self.drain()?;
            self.parts.commands.clear_wake();
            while let Some(command) = self.parts.commands.take() {
                if let Command::Stop(reply) = command {
                    self.stop()?;
                    // The asker may be gone; the daemon stops all the same.
                    let _ = reply.send(Ok(()));
                    return Ok(self.parts);
                }
                self.command(command);
            }
            if !more {
                self.parts.attribution.settle(Clock::now());
            }
            self.look_after_sessions();
            self.beat();
            self.write()?;
        }
    }

    /// Takes events off the rings. Answers whether there may be more.
    fn drain(&mut self) -> Result<bool, PipelineError> {
        let Parts { rings, attribution, .. } = &mut self.parts;
        let given = rings.drain(EVENTS_IN_ONE_GO, &mut |event| attribution.on(event))?;
        self.write()?;
        Ok(given >= EVENTS_IN_ONE_GO)
    }

    fn write(&mut self) -> Result<(), PipelineError> {
        for entry in self.parts.attribution.take_entries() {
            self.parts.trail.append(&entry)?;
        }
        Ok(())
    }

    fn command(&mut self, command: Command) {
        // Whoever asked may be gone by now; what was done stays done, so answers may go nowhere.
        match command {
            Command::Open(request, reply) => answer(reply, self.open(*request)),
            Command::Close(session, reply) => {
                let result = match self.parts.attribution.sessions.find(&session) {
                    Some(number) => self.end(number, "untag"),
                    None => Err(CommandError::NotFound(format!(
                        "no open session {session}: `auditor sessions --live` lists them"
                    ))),
                };
                answer(reply, result);
            }
            Command::Sessions(reply) => answer(reply, Ok(self.parts.attribution.sessions.states())),
            Command::Settle(reply) => answer(reply, Ok(0)),
            Command::State(reply) => answer(reply, self.state()),
            Command::Reload(reply) => answer(reply, self.reload()),
            Command::Access(entry) => self.parts.attribution.enter_made(entry),
            // Handled by the loop.
            Command::Stop(reply) => answer(reply, Ok(())),
        }
    }

    fn open(&mut self, request: OpenSession) -> Result<SessionState, CommandError> {
        let Some(agent) = self.parts.settings.agent(&request.agent) else {
            return Err(CommandError::NotFound(format!(
                "no agent {:?} in {}: add an [[agent]] with that name and reload",
                request.agent,
                self.parts.configuration.display()
            )));
        };
        let policy = agent.policy.clone();
        let number = session::new_number()
            .map_err(|error| CommandError::Failed(format!("read /dev/urandom: {error}")))?;
        let id = session::id(number);
        let mut origin = None;
        let (cgroup, owns_cgroup) = match &request.target {
            Target::Process(pid) => {
                let before = self.origin(*pid)?;
                // A command that was started for the session has nothing to go back to.
                origin = request.command.is_none().then_some(before);
                let name = Path::new(self.parts.parent.name().trim_start_matches('/')).join(&id);
                (self.parts.hierarchy.make(&name).map_err(failed)?, true)
            }
            Target::Cgroup(path) => {
                let cgroup = self
                    .parts
                    .hierarchy
                    .existing(path)
                    .map_err(|error| CommandError::Invalid(error.to_string()))?;
                self.refuse_overlap(&cgroup)?;
                (cgroup, false)
            }
        };
        let attachment = match self.admit(&request.target, &cgroup, number, &policy) {
            Ok(attachment) => attachment,
            Err(error) => {
                self.withdraw(&cgroup, owns_cgroup);
                return Err(error);
            }
        };
        let record = Arc::new(record::Session {
            id,
            agent: Agent { name: request.agent, labels: request.labels, identity: None },
            task: request.task,
            policy,
        });
        let opened = Session {
            number,
            record,
            cgroup: cgroup.clone(),
            owns_cgroup,
            origin,
            attachment,
            totals: record::SessionTotals::default(),
            open_connections: 0,
            bytes_moved: 0,
            bytes_audited: 0,
            opened: Clock::now(),
            opened_utc: Clock::now_utc(),
            lost_a_process: false,
            empty_since: None,
        };
        let state = opened.state(None);
        self.parts.attribution.sessions.insert(opened);
        let event = Recorded::SessionOpened {
            by: request.caller,
            cgroup: cgroup.name().to_owned(),
            command: request.command,
        };
        self.parts.attribution.enter_now(number, event);
        Ok(state)
    }

    /// Where a process lives. One that belongs to a session does not become another one's: its history would have two
    /// owners.
    fn origin(&self, pid: u32) -> Result<Cgroup, CommandError> {
        let path = format!("/proc/{pid}/cgroup");
        let memberships = std::fs::read_to_string(&path)
            .map_err(|error| CommandError::NotFound(format!("no process {pid}: {path}: {error}")))?;
        let origin = self.parts.hierarchy.of_process(&memberships).map_err(failed)?;
        let owner = self
            .parts
            .attribution
            .sessions
            .iter()
            .find(|session| origin.path().starts_with(session.cgroup.path()));
        match owner {
            Some(session) => Err(CommandError::Invalid(format!(
                "process {pid} belongs to session {} of {} already",
                session.record.id, session.record.agent.name
            ))),
            None => Ok(origin),
        }
    }

    /// A cgroup inside of a session, or around one, would make it unclear whose a process is.
    fn refuse_overlap(&self, cgroup: &Cgroup) -> Result<(), CommandError> {
        let parent = &self.parts.parent;
        let overlaps = |other: &Cgroup| {
            cgroup.path().starts_with(other.path()) || other.path().starts_with(cgroup.path())
        };
        if overlaps(parent) {
            return Err(CommandError::Invalid(format!(
                "{} overlaps the auditor's own cgroup {}: name another",
                cgroup.name(),
                parent.name()
            )));
        }
        match self.parts.attribution.sessions.iter().find(|session| overlaps(&session.cgroup)) {
            Some(session) => Err(CommandError::Invalid(format!(
                "{} overlaps {}, which is session {} of {}: untag that first",
                cgroup.name(),
                session.cgroup.name(),
                session.record.id,
                session.record.agent.name
            ))),
            None => Ok(()),
        }
    }

    /// Puts the session in force: first its policy, then its programs, then its process.
    fn admit(
        &mut self,
        target: &Target,
        cgroup: &Cgroup,
        number: u64,
        policy: &str,
    ) -> Result<Option<Attachment>, CommandError> {
        let entry = self.parts.attribution.policies.session(number, policy);
        self.parts.tables.set_session(cgroup.id(), entry).map_err(failed)?;
        match target {
            Target::Process(pid) => {
                cgroup.admit(*pid).map_err(failed)?;
                Ok(None)
            }
            Target::Cgroup(_) => Ok(Some(self.parts.object.attach(cgroup, None).map_err(failed)?)),
        }
    }

    fn withdraw(&mut self, cgroup: &Cgroup, owns_cgroup: bool) {
        if let Err(error) = self.parts.tables.remove_session(cgroup.id()) {
            tracing::error!(%error, cgroup = cgroup.name(), "a session's entry stays in the kernel's table");
        }
        if owns_cgroup && let Err(error) = cgroup.remove() {
            tracing::warn!(%error, "a session's cgroup stays");
        }
    }

    fn end(&mut self, number: u64, reason: &'static str) -> Result<SessionState, CommandError> {
        let now = Clock::now();
        self.parts.attribution.finish_session(Some(number), now);
        let Some(session) = self.parts.attribution.sessions.get_mut(number) else {
            return Err(CommandError::NotFound("the session has ended already".to_owned()));
        };
        let (cgroup, owns_cgroup) = (session.cgroup.clone(), session.owns_cgroup);
        let origin = session.origin.clone().filter(|_| reason == "untag");
        let totals = session.totals;
        let duration_us = u64::try_from(now.since(session.opened).as_micros()).unwrap_or(u64::MAX);
        let state = session.state(Some(Clock::now_utc()));
        self.parts.attribution.enter_now(number, Recorded::SessionEnded { reason, totals, duration_us });
        let session = self.parts.attribution.sessions.remove(number);
        if let Some(attachment) = session.and_then(|session| session.attachment)
            && let Err(error) = attachment.detach()
        {
            tracing::error!(%error, cgroup = cgroup.name(), "programs stay on a cgroup");
        }
        if let Some(origin) = origin {
            release(&cgroup, &origin);
        }
        self.withdraw(&cgroup, owns_cgroup);
        // Sockets that outlive their session are decided again at their next packet, and refused.
        self.parts
            .attribution
            .policies
            .advance(&self.parts.settings, &mut self.parts.tables)
            .map_err(failed)?;
        self.parts.attribution.sessions.remember(state.clone());
        Ok(state)
    }

    fn look_after_sessions(&mut self) {
        let now = Clock::now();
        if now.since(self.looked_at_sessions) < LOOK_AT_SESSIONS {
            return;
        }
        self.looked_at_sessions = now;
        let all = now.since(self.looked_at_all_sessions) >= LOOK_AT_ALL_SESSIONS;
        if all {
            self.looked_at_all_sessions = now;
        }
        let mut over = Vec::new();
        for session in self.parts.attribution.sessions.iter_mut() {
            if !all && !session.lost_a_process && session.empty_since.is_none() {
                continue;
            }
            session.lost_a_process = false;
            match session.cgroup.populated() {
                Ok(true) => session.empty_since = None,
                // Somebody else removed the cgroup, which only works when it is empty.
                Ok(false) | Err(_) => {
                    let since = *session.empty_since.get_or_insert(now);
                    // One look later at the earliest: what its last process did is still on its way.
                    let settled = now.since(since) >= LOOK_AT_SESSIONS && session.open_connections == 0;
                    if settled || now.since(since) >= LAST_CONNECTIONS {
                        over.push(session.number);
                    }
                }
            }
        }
        for number in over {
            if let Err(error) = self.end(number, "empty") {
                tracing::error!(%error, session = session::id(number), "end a session");
            }
        }
    }

    fn reload(&mut self) -> Result<(), CommandError> {
        let loaded = config::load(&self.parts.configuration)
            .map_err(|error| CommandError::Invalid(format!("nothing was changed: {error}")))?;
        for warning in &loaded.warnings {
            tracing::warn!("{}", warning.render(&self.parts.configuration));
        }
        let Parts { attribution, tables, .. } = &mut self.parts;
        let clock = Clock::read();
        let sessions: Vec<_> = attribution
            .sessions
            .iter()
            .map(|session| {
                // The agent's policy may be another one by now.
                let agent = loaded.settings.agent(&session.record.agent.name);
                let policy = agent.map_or(String::new(), |agent| agent.policy.clone());
                (session.cgroup.id(), session.number, policy)
            })
            .collect();
        attribution
            .policies
            .replace(
                &loaded.settings,
                tables,
                &clock,
                sessions.iter().map(|(cgroup, number, policy)| (*cgroup, *number, policy.as_str())),
            )
            .map_err(failed)?;
        attribution.limits = loaded.settings.capture.limits();
        self.parts.settings = loaded.settings;
        self.parts.attribution.enter_now(0, Recorded::DaemonReloaded { configuration: loaded.digest });
        Ok(())
    }

    fn state(&self) -> Result<DaemonState, CommandError> {
        let failures = self.parts.tables.failures().map_err(failed)?;
        let tagged =
            self.parts.attribution.sessions.iter().filter(|session| session.attachment.is_some()).count();
        let mut programs: Vec<_> =
            self.parts.attachment.programs().map(|name| (name.to_owned(), tagged as u64 + 1)).collect();
        programs.extend(self.parts.object.tracepoints().map(|name| (name.to_owned(), 1)));
        let head = self.parts.trail.head();
        let (payload, lifecycle) = self.parts.rings.waiting();
        Ok(DaemonState {
            programs,
            sessions: self.parts.attribution.sessions.len(),
            connections: self.parts.attribution.connections(),
            statements: self.parts.attribution.statements(),
            payload_ring: (payload, u64::from(self.parts.sizes.payload)),
            lifecycle_ring: (lifecycle, u64::from(self.parts.sizes.lifecycle)),
            failures: failures
                .into_iter()
                .map(|(site, errno, count)| (site.to_owned(), errno, count))
                .collect(),
            head: (head.sequence, head.hash.to_string()),
            trail_blocked: self.parts.trail.blocked(),
            degraded: self.parts.degraded.clone(),
            started: Clock::read().utc(self.started).epoch_millis(),
            generation: self.parts.attribution.policies.generation(),
        })
    }

    fn beat(&mut self) {
        let now = Clock::now();
        if now.since(self.heartbeat) < HEARTBEAT {
            return;
        }
        self.heartbeat = now;
        self.parts.attribution.set_clock(Clock::read());
        self.heartbeat_record();
    }

    fn heartbeat_record(&mut self) {
        let losses = match self.parts.tables.failures() {
            Ok(failures) => failures
                .into_iter()
                .filter_map(|(site, errno, count)| {
                    let before = self.reported.insert((site, errno), count).unwrap_or(0);
                    (count > before).then(|| Loss {
                        site: site.to_owned(),
                        error: nix::Error::from_raw(errno.cast_signed()).to_string(),
                        count: count - before,
                    })
                })
                .collect(),
            Err(error) => {
                vec![Loss { site: "failure counters".to_owned(), error: error.to_string(), count: 1 }]
            }
        };
        let sessions = self.parts.attribution.sessions.len();
        self.parts.attribution.enter_now(0, Recorded::Heartbeat { losses, sessions });
    }

    fn stop(&mut self) -> Result<(), PipelineError> {
        while self.drain()? {}
        self.parts.attribution.finish_session(None, Clock::now());
        let numbers: Vec<u64> =
            self.parts.attribution.sessions.iter().map(|session| session.number).collect();
        for number in numbers {
            if let Err(error) = self.end(number, "shutdown") {
                tracing::error!(%error, session = session::id(number), "end a session");
            }
        }
        self.heartbeat_record();
        self.parts.attribution.enter_now(0, Recorded::DaemonStopped);
        self.write()?;
        self.parts.trail.flush(LAST_RECORDS)?;
        Ok(())
    }
}

/// Moves what was tagged back to where it came from.
fn release(cgroup: &Cgroup, origin: &Cgroup) {
    let moved =
        cgroup.members().and_then(|members| members.into_iter().try_for_each(|pid| origin.admit(pid)));
    if let Err(error) = moved {
        tracing::warn!(%error, "a process that was untagged stays in its session's cgroup, where its network is closed");
    }
}

fn answer<T>(reply: Reply<T>, result: Result<T, CommandError>) {
    // The asker may be gone.
    let _ = reply.send(result);
}

fn failed(error: impl std::fmt::Display) -> CommandError {
    CommandError::Failed(error.to_string())
}
