//! The pipeline thread: it drains the rings, answers commands, looks after sessions, and writes the trail.
//!
//! One thread owns all state, so there is no lock and no question of order. It sleeps until the next turn (10 ms), a
//! wake-up from the kernel programs or a command.

mod existing;
mod safekeeping;
mod sessions;
mod still;
mod streams;

pub(super) use still::release_left;

use std::mem;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use super::attribution::Attribution;
use super::command::{Command, CommandError, Commands, DaemonState, Reply, SessionState};
use super::journal::{Item, Journal};
use super::libraries::{Found, Libraries};
use super::recorder::Recorder;
use crate::clock::{Boottime, Clock};
use crate::config::{self, Settings};
use crate::kernel::cgroup::{Cgroup, Hierarchy};
use crate::kernel::object::{Attachment, KernelError, Object, RingSizes};
use crate::kernel::tables::Tables;
use crate::posture;
use crate::record::{Entry, Event as Recorded, Loss};
use crate::session;
use crate::source::ring::{Next, Rings, Waiter};
use crate::trail::{self, Trail};

/// Longest time between two looks at the rings.
const TURN: Duration = Duration::from_millis(10);
/// The same while somebody waits for a session to be open.
const SHORT_TURN: Duration = Duration::from_millis(1);
/// Events that are taken in one go before commands and sessions have their turn.
const EVENTS_IN_ONE_GO: usize = 8192;
/// Events that are taken before the lease and the disk are looked at again: under a flood, what is taken in one go takes longer
/// than the lease lasts.
const EVENTS_IN_ONE_STEP: usize = 256;
/// Events between two looks at whether the lease is to be renewed.
const EVENTS_BETWEEN_LEASES: usize = 16;
/// Bytes of a statement's text that are kept when its record is longer than a line may be.
const SHORTENED_TEXT: usize = 1 << 20;
/// Entries that are written before more events are taken. Few, so that they are still in the processor's cache, and so is the
/// memory that they give back for the next ones.
const ENTRIES_IN_ONE_GO: usize = 16;
/// Time between two renewals of the lease, a fraction of its length.
const RENEW_LEASE: Duration = Duration::from_millis(200);
/// How long somebody waits at most until what has happened is in the trail.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the last events are read when the daemon stops.
const LAST_EVENTS: Duration = Duration::from_secs(5);
/// Bytes of records that wait for the disk, from which on no more are made. Half of what the trail takes before it makes
/// its writer wait, so that one more turn's records fit.
const TRAIL_BACKLOG: usize = 4 << 20;
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
    Trail(#[from] trail::Error),
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
    /// `None` where nothing can be probed.
    pub(super) libraries: Option<Libraries>,
    pub(super) rings: Rings,
    pub(super) recorder: Option<Recorder>,
    pub(super) sizes: RingSizes,
    pub(super) attribution: Attribution,
    /// `None` where it could not be written.
    pub(super) journal: Option<Journal>,
    /// Directory of it.
    pub(super) runtime_dir: PathBuf,
    /// Directory of pinned links and tables.
    pub(super) pins: PathBuf,
    pub(super) trail: Trail,
    pub(super) commands: Commands,
    pub(super) degraded: Vec<String>,
    /// The next daemon goes on with everything.
    pub(super) handed_over: bool,
}

/// See the module.
pub(super) struct Pipeline {
    parts: Parts,
    started: Boottime,
    looked_at_sessions: Boottime,
    looked_at_all_sessions: Boottime,
    look_at_streams: Boottime,
    stopped: streams::Stopped,
    heartbeat: Boottime,
    leased: Boottime,
    opening: Vec<Opening>,
    settling: Vec<Settling>,
}

/// Somebody who waits for a session that is open, and whose beginning is not on the disk yet.
struct Opening {
    since: Boottime,
    /// The last record when it was opened, once that has been written.
    sequence: Option<u64>,
    number: u64,
    state: SessionState,
    reply: Reply<SessionState>,
}

/// Somebody who waits until what has happened is in the trail.
struct Settling {
    since: Boottime,
    /// The last record of it, once it has been written.
    sequence: Option<u64>,
    reply: Reply<u64>,
}

impl Pipeline {
    pub(super) fn new(parts: Parts) -> Self {
        let now = Clock::now();
        Self {
            parts,
            started: now,
            looked_at_sessions: now,
            looked_at_all_sessions: now,
            look_at_streams: now,
            stopped: streams::Stopped::default(),
            heartbeat: now,
            leased: Boottime::default(),
            opening: Vec::new(),
            settling: Vec::new(),
        }
    }

    /// Runs until it is told to stop; what it started with comes back.
    pub(super) fn run(mut self) -> Result<Parts, PipelineError> {
        let waiter = Waiter::new(&self.parts.rings, self.parts.commands.wake_descriptor().as_fd())
            .map_err(PipelineError::Wait)?;
        loop {
            let turn = if self.opening.is_empty() { TURN } else { SHORT_TURN };
            waiter.wait(turn).map_err(PipelineError::Wait)?;
            self.renew_lease();
            self.parts.attribution.policies.sweep(&mut self.parts.tables);
            // Before commands: whoever asks for the state of things gets it as of now. While the disk does not take what
            // there is, events stay in the rings, whose fill holds agents back, and commands are answered all the same.
            let more = !self.trail_takes() || self.drain()?;
            self.parts.commands.clear_wake();
            while let Some(command) = self.parts.commands.take() {
                if let Command::HandOver(next, reply) = command {
                    match self.parts.hand_over(&next) {
                        Ok(()) => {
                            self.parts.handed_over = true;
                            answer(reply, Ok(()));
                            self.parts.commands.close();
                            return Ok(self.parts);
                        }
                        Err(error) => answer(reply, Err(error)),
                    }
                    continue;
                }
                if let Command::Stop(reply) = command {
                    self.stop()?;
                    // The asker may be gone; the daemon stops all the same.
                    let _ = reply.send(Ok(()));
                    return Ok(self.parts);
                }
                self.command(command);
            }
            let now = Clock::now();
            if !more && self.parts.attribution.is_due(now) {
                self.parts.record(Item::Settled(now));
            }
            self.look_at_streams();
            self.follow_moves();
            self.take_libraries();
            self.look_after_sessions();
            self.beat();
            self.parts.commit()?;
            self.answer_opened();
            self.answer_settled(more);
        }
    }

    /// Whether the disk takes records as fast as they come.
    fn trail_takes(&self) -> bool {
        self.parts.trail.waiting() <= TRAIL_BACKLOG && self.parts.trail.blocked().is_none()
    }

    fn renew_lease(&mut self) {
        let now = Clock::now();
        if now.since(self.leased) < RENEW_LEASE {
            return;
        }
        self.leased = now;
        self.parts.attribution.policies.renew_lease(&mut self.parts.tables);
    }

    /// Answers those whose session's beginning is on the disk: a session that a crash could make unknown has not begun.
    fn answer_opened(&mut self) {
        if self.opening.is_empty() {
            return;
        }
        let now = Clock::now();
        let last = self.parts.trail.last();
        // Asks for a commit now rather than in its time. That it is not done at once is no error.
        let _ = self.parts.trail.flush(Duration::ZERO);
        let durable = self.parts.trail.durable();
        for mut opening in mem::take(&mut self.opening) {
            let sequence = *opening.sequence.get_or_insert(last);
            if durable >= sequence {
                answer(opening.reply, Ok(opening.state));
            } else if now.since(opening.since) < SETTLE {
                self.opening.push(opening);
            } else {
                let reason = self.parts.trail.blocked().unwrap_or_else(|| "the disk is slow".to_owned());
                if let Err(error) = self.end(opening.number, "not-recorded") {
                    tracing::error!(%error, "end a session");
                }
                let refusal =
                    format!("the session's beginning could not be recorded ({reason}), so it was ended");
                answer(opening.reply, Err(CommandError::Failed(refusal)));
            }
        }
    }

    /// Answers those who wait until what has happened is in the trail.
    fn answer_settled(&mut self, more: bool) {
        let now = Clock::now();
        let Parts { attribution, trail, .. } = &self.parts;
        let settled = !more && attribution.is_settled();
        let (last, durable) = (trail.last(), trail.durable());
        let waiting = mem::take(&mut self.settling);
        self.settling = waiting
            .into_iter()
            .filter_map(|mut settling| {
                // A turn later at the earliest: what had happened before it was asked has been taken off the rings.
                if settled && settling.sequence.is_none() && now.since(settling.since) >= TURN {
                    settling.sequence = Some(last);
                }
                if settling.sequence.is_some_and(|sequence| durable >= sequence) {
                    answer(settling.reply, Ok(durable));
                } else if now.since(settling.since) >= SETTLE {
                    let reason = trail.blocked().unwrap_or_else(|| "there is too much of it".to_owned());
                    answer(
                        settling.reply,
                        Err(CommandError::Failed(format!(
                            "what has happened is not in the trail yet: {reason}"
                        ))),
                    );
                } else {
                    return Some(settling);
                }
                None
            })
            .collect();
    }

    /// Takes events off the rings. Answers whether there may be more.
    fn drain(&mut self) -> Result<bool, PipelineError> {
        for _ in 0..EVENTS_IN_ONE_GO / EVENTS_IN_ONE_STEP {
            for event in 0..EVENTS_IN_ONE_STEP {
                // One may take milliseconds: a secret that many connections try.
                if event % EVENTS_BETWEEN_LEASES == 0 {
                    self.renew_lease();
                }
                let next = self.parts.next_event()?;
                if next != Next::Event {
                    if next == Next::Nothing {
                        // Before anything else: it is of use only until more is written.
                        self.parts.tell_places();
                    }
                    self.parts.commit()?;
                    self.stopped.follow(&self.parts);
                    // One that is still being written is there in a moment.
                    return Ok(next == Next::Busy);
                }
                self.stopped.follow(&self.parts);
                let full = self.parts.journal.as_ref().is_some_and(Journal::is_full);
                if full || self.parts.attribution.waiting() >= ENTRIES_IN_ONE_GO {
                    self.parts.commit()?;
                }
            }
            self.parts.count_rows();
            if !self.trail_takes() {
                break;
            }
        }
        self.parts.commit()?;
        Ok(true)
    }

    fn command(&mut self, command: Command) {
        // Whoever asked may be gone by now; what was done stays done, so answers may go nowhere.
        match command {
            Command::Open(request, reply) => match self.open(*request) {
                Ok((number, state)) => {
                    self.opening.push(Opening { since: Clock::now(), sequence: None, number, state, reply });
                }
                Err(error) => answer(reply, Err(error)),
            },
            Command::Close(session, reply) => {
                let result = match self.parts.attribution.sessions.find(&session) {
                    Some(number) => self.end(number, "untag"),
                    None => Err(CommandError::NotFound(format!(
                        "no open session {session}: `auditor sessions --live` lists them"
                    ))),
                };
                // What the asker is told is done, whatever becomes of this daemon.
                match self.parts.commit() {
                    Ok(()) => answer(reply, result),
                    Err(error) => answer(reply, Err(failed(error))),
                }
            }
            Command::Sessions(reply) => answer(reply, Ok(self.parts.attribution.sessions.states())),
            Command::State(reply) => answer(reply, self.state()),
            Command::Reload(reply) => {
                let result = self.reload();
                match self.parts.commit() {
                    Ok(()) => answer(reply, result),
                    Err(error) => answer(reply, Err(failed(error))),
                }
            }
            Command::Settle(reply) => {
                self.settling.push(Settling { since: Clock::now(), sequence: None, reply });
            }
            Command::Access(entry) => self.parts.record(Item::Made(entry)),
            // Handled by the loop.
            Command::Stop(reply) | Command::HandOver(_, reply) => answer(reply, Ok(())),
        }
    }

    fn reload(&mut self) -> Result<(), CommandError> {
        let loaded = config::load(&self.parts.configuration)
            .map_err(|error| CommandError::Invalid(format!("nothing was changed: {error}")))?;
        for warning in &loaded.warnings {
            tracing::warn!("{}", warning.render(&self.parts.configuration));
        }
        if let Some(error) =
            self.parts.object.unix_unsupported().filter(|_| loaded.settings.names_unix_sockets())
        {
            let error = KernelError::UnixRules(error.to_string());
            return Err(CommandError::Invalid(format!("nothing was changed: {error}")));
        }
        if loaded.settings.allows_unix_sockets() {
            // Before the first of them can be connected.
            self.parts.object.read_streams(&mut self.parts.tables, true).map_err(failed)?;
        }
        let configuration =
            self.parts.attribution.put_in_force(&loaded, &mut self.parts.tables).map_err(failed)?;
        self.parts.note(&Item::Reloaded(configuration));
        if posture::paths::renew(&mut self.parts.degraded, &loaded.settings) != 0 {
            tracing::warn!(
                "others than root may exchange sockets that are allowed by their paths: see `auditor status`"
            );
        }
        self.parts.settings = loaded.settings;
        self.parts.trail.renew_key();
        self.parts.enter_now(0, Recorded::DaemonReloaded { configuration: loaded.digest });
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

    /// What the thread that watches libraries has found.
    fn take_libraries(&mut self) {
        if !self.trail_takes() {
            return;
        }
        let Some(libraries) = &self.parts.libraries else { return };
        for found in libraries.take_found().collect::<Vec<_>>() {
            let Found { library, path, name, by, pause, error } = found;
            let (session, pid) = by.unwrap_or((0, 0));
            if let Some(name) = &name {
                self.parts.record(Item::Library(library, name.clone()));
            }
            // The host's own at the start are no event of anybody's.
            if by.is_none() && error.is_none() {
                continue;
            }
            let probed = Recorded::LibraryProbed {
                library: name,
                path: path.display().to_string(),
                pid: (pid != 0).then_some(pid),
                pause_us: pause.map(|pause| u64::try_from(pause.as_micros()).unwrap_or(u64::MAX)),
                error,
            };
            self.parts.enter_now(session, probed);
        }
    }

    fn beat(&mut self) {
        let now = Clock::now();
        if now.since(self.heartbeat) < HEARTBEAT {
            return;
        }
        self.heartbeat = now;
        // While the trail takes nothing, words of secrets wait on the ring, however old.
        if self.trail_takes() {
            self.parts.attribution.keyrings.sweep(now);
        }
        self.parts.record(Item::Clock(Clock::read().offset()));
        self.heartbeat_record();
    }

    fn heartbeat_record(&mut self) {
        let mut reported = self.parts.attribution.reported.clone();
        let losses = match self.parts.tables.failures() {
            Ok(failures) => failures
                .into_iter()
                .filter_map(|(site, errno, count)| {
                    let before = reported.insert((site.to_owned(), errno), count).unwrap_or(0);
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
        self.parts.record(Item::Reported(reported));
        self.parts.enter_now(0, Recorded::Heartbeat { losses, sessions });
    }

    fn stop(&mut self) -> Result<(), PipelineError> {
        let sessions: Vec<(u64, Cgroup)> = self
            .parts
            .attribution
            .sessions
            .iter()
            .map(|session| (session.number, session.cgroup.clone()))
            .collect();
        // Nobody sends any more, so that the rings come to an end.
        self.count_what_is_not_recorded();
        for (number, cgroup) in &sessions {
            self.revoke(*number, cgroup);
        }
        let began = Clock::now();
        while self.trail_takes() && Clock::now().since(began) < LAST_EVENTS && self.drain()? {}
        for (number, _) in sessions {
            if let Err(error) = self.end(number, "shutdown") {
                tracing::error!(%error, session = session::id(number), "end a session");
            }
        }
        self.heartbeat_record();
        self.parts.enter_now(0, Recorded::DaemonStopped);
        // Else a daemon that is killed from here on would be followed by one that does not know that these sessions have ended.
        self.parts.commit_journal();
        // The disk may take nothing: the end comes all the same, and what is lost by it is told.
        let began = Clock::now();
        for entry in self.parts.attribution.take_entries() {
            let left = LAST_RECORDS.saturating_sub(Clock::now().since(began));
            append(entry, |entry| self.parts.trail.append_within(entry, left))?;
        }
        self.parts.rings.release();
        self.parts.trail.flush(LAST_RECORDS)?;
        Ok(())
    }
}

/// Appends the entries that wait.
fn write(attribution: &mut Attribution, trail: &Trail) -> Result<(), PipelineError> {
    for entry in attribution.take_entries() {
        append(entry, |entry| trail.append(entry))?;
    }
    Ok(())
}

/// Appends an entry with `to`, or what can be said of it.
pub(super) fn append(
    entry: Entry,
    to: impl Fn(&Entry) -> Result<u64, trail::Error>,
) -> Result<u64, trail::Error> {
    match to(&entry) {
        Err(trail::Error::TooLong { bytes }) => to(&shortened(entry, bytes)),
        result => result,
    }
}

/// What an entry says when it is longer than a line may be: escaping can make six bytes of one.
fn shortened(mut entry: Entry, bytes: u64) -> Entry {
    match &mut entry.event {
        Recorded::Statement { statement, .. } => {
            statement.text.truncate(SHORTENED_TEXT);
            statement.parameters.clear();
            statement.notices.clear();
            statement.incomplete = true;
        }
        Recorded::Request { request, .. } => {
            if let Some(target) = &mut request.target {
                let whole = request.target_length.unwrap_or(target.len() as u64);
                target.truncate(SHORTENED_TEXT);
                request.target_length = Some(whole);
            }
            request.incomplete = true;
        }
        event => {
            *event = Recorded::Finding {
                kind: "record-too-long",
                message: format!("a record of {bytes} bytes was longer than a line of the trail may be"),
                connection: None,
            };
        }
    }
    entry
}

fn answer<T>(reply: Reply<T>, result: Result<T, CommandError>) {
    // The asker may be gone.
    let _ = reply.send(result);
}

fn failed(error: impl std::fmt::Display) -> CommandError {
    CommandError::Failed(error.to_string())
}
