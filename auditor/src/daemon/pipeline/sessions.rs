//! Sessions as the pipeline opens and ends them: the cgroup, the kernel's tables, the programs, the record; in the order in
//! which each step can be taken back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use auditor_common::control::{self, Member};

use super::existing::Look;
use super::{Parts, Pipeline, failed};
use crate::clock::Clock;
use crate::config::Overload;
use crate::daemon::command::{CommandError, OpenSession, SessionState, Target};
use crate::daemon::journal::Item;
use crate::kernel::cgroup::Cgroup;
use crate::kernel::object::{Attachment, KernelError};
use crate::kernel::orphan::{self, session_pins};
use crate::kernel::shares::Unwritten;
use crate::landlock;
use crate::policy::Permit;
use crate::posture;
use crate::posture::session::Who;
use crate::record::{self, Agent, Event as Recorded};
use crate::session::{self, Session};

/// Time between two looks at whether the cgroup of a session that lost a process has emptied.
const LOOK_AT_SESSIONS: Duration = Duration::from_millis(50);
/// Time between two looks at all sessions: a process can also leave its cgroup alive.
const LOOK_AT_ALL_SESSIONS: Duration = Duration::from_secs(1);
/// How long a session without processes waits for its connections to end.
const LAST_CONNECTIONS: Duration = Duration::from_secs(5);

impl Pipeline {
    /// Opens a session. Answers its number beside its state.
    pub(super) fn open(&mut self, request: OpenSession) -> Result<(u64, SessionState), CommandError> {
        let Some(agent) = self.parts.settings.agent(&request.agent) else {
            return Err(CommandError::NotFound(format!(
                "no agent {:?} in {}: add an [[agent]] with that name and reload",
                request.agent,
                self.parts.configuration.display()
            )));
        };
        let (policy, existing_sockets) = (agent.policy.clone(), agent.existing_sockets);
        let confinement = self.parts.settings.policy(&policy).filter(|_| request.confines);
        let confinement = confinement.map(|policy| {
            let mut confinement = policy.confinement.clone();
            if !landlock::has_scopes() {
                // What is recorded as refused is.
                confinement.permit.insert(Permit::OtherProcesses);
            }
            confinement
        });
        if let Some(reason) = self.parts.trail.blocked() {
            return Err(CommandError::Failed(format!(
                "nothing can be recorded at the moment ({reason}), so no session is opened"
            )));
        }
        let number = session::new_number()
            .map_err(|error| CommandError::Failed(format!("read /dev/urandom: {error}")))?;
        let id = session::id(number);
        let mut origin = None;
        let (cgroup, owns_cgroup) = match &request.target {
            Target::Process(pid) => {
                let before = self.origin(*pid)?;
                self.parts.record(Item::Forgotten(*pid));
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
                refuse_unfit(&cgroup)?;
                self.refuse_overlap(&cgroup)?;
                (cgroup, false)
            }
        };
        let degraded = match self.examined(&request, &cgroup, &policy) {
            Ok(degraded) => degraded,
            Err(error) => {
                remove(&cgroup, owns_cgroup);
                return Err(error);
            }
        };
        let share = match self.parts.tables.take_share() {
            Ok(share) => share,
            Err(error) => {
                remove(&cgroup, owns_cgroup);
                return Err(failed(error));
            }
        };
        let unwritten = self.parts.tables.shares().unwritten(share);
        let entry = self.parts.attribution.policies.session(number, share, &policy);
        let attachment = match self.admit(&request.target, &cgroup, entry) {
            Ok(attachment) => attachment,
            Err(error) => {
                self.revoke(number, &cgroup);
                self.parts.tables.give_share_back(share);
                remove(&cgroup, owns_cgroup);
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
            attachment: None,
            totals: record::SessionTotals::default(),
            open_connections: 0,
            bytes_moved: 0,
            bytes_audited: 0,
            opened: Clock::now(),
            opened_utc: Clock::now_utc(),
            lost_a_process: false,
            empty_since: None,
            share,
            unwritten,
            folded_refusals: 0,
            confinement: confinement.clone(),
        };
        let state = opened.state(None);
        self.parts.record(Item::Opened(Box::new(opened)));
        if let Some(session) = self.parts.attribution.sessions.get_mut(number) {
            session.attachment = attachment;
        }
        let wait = request.command.is_some();
        let event = Recorded::SessionOpened {
            by: request.caller,
            cgroup: cgroup.name().to_owned(),
            command: request.command,
            confinement,
            degraded,
        };
        self.parts.enter_now(number, event);
        self.see_to_existing_sockets(&Look {
            number,
            cgroup: &cgroup,
            target: &request.target,
            wanted: existing_sockets,
            wait,
        });
        Ok((number, state))
    }

    /// What the session will not have. Refused where its policy asks for it.
    fn examined(
        &self,
        request: &OpenSession,
        cgroup: &Cgroup,
        policy: &str,
    ) -> Result<Vec<String>, CommandError> {
        let settings = &self.parts.settings;
        let running = match request.target {
            Target::Process(pid) => vec![pid],
            Target::Cgroup(_) => cgroup.all_members().map_err(failed)?,
        };
        let who = match request.target {
            Target::Process(_) if request.confines => {
                Who::Command(request.user.unwrap_or(request.caller.uid))
            }
            _ => Who::Running(&running),
        };
        let mount = self.parts.hierarchy.mount();
        let lacks = posture::session::lacks(&posture::Host::default(), &who, mount, cgroup.path());
        let wanted = settings.policy(policy).map(|policy| &policy.guarantees);
        let missing = lacks.iter().find(|lack| wanted.is_some_and(|wanted| wanted.contains(&lack.guarantee)));
        if let Some(lack) = missing.filter(|_| !settings.guarantees.degraded_allowed) {
            return Err(CommandError::Invalid(format!(
                "policy {policy} asks for {}, and {}; or write `degraded = \"allow\"` in [daemon] to go on without, which is recorded",
                lack.guarantee.name(),
                lack.sentence
            )));
        }
        Ok(lacks.iter().map(|lack| format!("{}: {}", lack.guarantee.name(), lack.sentence)).collect())
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
        entry: control::Session,
    ) -> Result<Option<Attachment>, CommandError> {
        self.parts.tables.set_session(cgroup.id(), entry).map_err(failed)?;
        self.parts.tables.count_refusals(entry.id).map_err(failed)?;
        match target {
            Target::Process(pid) => {
                cgroup.admit(*pid).map_err(failed)?;
                Ok(None)
            }
            Target::Cgroup(_) => {
                let id = session::id(entry.id);
                let pins = session_pins(&self.parts.pins, &id);
                let inherited = orphan::inherit(&self.parts.pins, cgroup, &id).map_err(failed)?;
                let attachment =
                    self.parts.object.attach(cgroup, &pins).map_err(|error| cannot_attach(cgroup, &error))?;
                if let Err(error) = self.add_members(entry.id, cgroup) {
                    // They would refuse what no session allows. A cgroup that was held closed before goes on being so.
                    if !inherited && let Err(error) = attachment.detach() {
                        tracing::error!(%error, cgroup = cgroup.name(), "programs stay on a cgroup");
                    }
                    return Err(error);
                }
                Ok(Some(attachment))
            }
        }
    }

    /// Makes those known who live in a cgroup whose programs are attached: who is born in it from then on is known.
    fn add_members(&mut self, session: u64, cgroup: &Cgroup) -> Result<(), CommandError> {
        let member = Member { session, cgroup: cgroup.id() };
        for pid in cgroup.all_members().map_err(failed)? {
            self.parts.tables.add_member(pid, member).map_err(failed)?;
        }
        Ok(())
    }

    /// Takes a session's access away: its sockets are decided again at their next packet, and refused.
    pub(super) fn revoke(&mut self, number: u64, cgroup: &Cgroup) {
        let Parts { tables, attribution, settings, .. } = &mut self.parts;
        let revoked = tables
            .remove_session(cgroup.id())
            .and_then(|()| attribution.policies.advance(settings, tables))
            .and_then(|()| tables.forget_refusals(number));
        if let Err(error) = revoked {
            tracing::error!(%error, cgroup = cgroup.name(), "a session's entry stays in the kernel's tables");
        }
    }

    pub(super) fn end(&mut self, number: u64, reason: &'static str) -> Result<SessionState, CommandError> {
        let Some(session) = self.parts.attribution.sessions.get_mut(number) else {
            return Err(CommandError::NotFound("the session has ended already".to_owned()));
        };
        let cgroup = session.cgroup.clone();
        // From here on nothing of it leaves; what did is in the rings.
        self.count_what_is_not_recorded();
        self.revoke(number, &cgroup);
        self.end_streams(number);
        if self.trail_takes() {
            self.drain().map_err(failed)?;
        }
        self.tell_of_unwritten(number);
        let Some(session) = self.parts.attribution.sessions.get_mut(number) else {
            return Err(CommandError::NotFound("the session has ended already".to_owned()));
        };
        let (attachment, origin, owns_cgroup, share) =
            (session.attachment.take(), session.origin.take(), session.owns_cgroup, session.share);
        let (at, utc) = (Clock::now(), Clock::now_utc());
        self.parts.record(Item::Ended { number, at, utc, reason });
        let Some(state) = self.parts.attribution.sessions.ended(number) else {
            return Err(CommandError::NotFound("the session has ended already".to_owned()));
        };
        self.parts.tables.give_share_back(share);
        if let Some(attachment) = attachment
            && let Err(error) = attachment.detach()
        {
            tracing::error!(%error, cgroup = cgroup.name(), "programs stay on a cgroup");
        }
        if reason == "untag"
            && let Some(origin) = origin
        {
            release(&cgroup, &origin);
        }
        remove(&cgroup, owns_cgroup);
        Ok(state)
    }

    /// Tells of what happened and is not recorded one by one.
    pub(super) fn count_what_is_not_recorded(&mut self) {
        self.count_folded_refusals();
        let open: Vec<u64> = self.parts.attribution.sessions.iter().map(|session| session.number).collect();
        for number in open {
            self.tell_of_unwritten(number);
        }
    }

    /// Tells of what a session did beyond its share of the rings, or beyond what the rings hold.
    fn tell_of_unwritten(&mut self, number: u64) {
        let Parts { tables, attribution, settings, .. } = &self.parts;
        let Some(session) = attribution.sessions.get(number) else { return };
        let unwritten = tables.shares().unwritten(session.share);
        let more = unwritten.since(session.unwritten);
        if more.is_empty() {
            return;
        }
        let message = overrun(more, settings.daemon.overload);
        self.parts.record(Item::Overrun { number, unwritten, message, at: Clock::now() });
    }

    /// Tells of refusals that were too many to be recorded one by one.
    fn count_folded_refusals(&mut self) {
        let Parts { tables, attribution, .. } = &mut self.parts;
        let mut folded = Vec::new();
        for session in attribution.sessions.iter() {
            match tables.folded_refusals(session.number) {
                Ok(count) if count > session.folded_refusals => folded.push((session.number, count)),
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "count refusals"),
            }
        }
        match tables.folded_refusals(0) {
            Ok(count) if count > attribution.folded_of_nobody => folded.push((0, count)),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "count refusals"),
        }
        for (number, count) in folded {
            self.parts.record(Item::Folded(number, count, Clock::now()));
        }
    }

    pub(super) fn look_after_sessions(&mut self) {
        let now = Clock::now();
        if now.since(self.looked_at_sessions) < LOOK_AT_SESSIONS {
            return;
        }
        self.looked_at_sessions = now;
        let all = now.since(self.looked_at_all_sessions) >= LOOK_AT_ALL_SESSIONS;
        if all {
            self.looked_at_all_sessions = now;
            self.count_what_is_not_recorded();
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
}

/// Refuses a cgroup that cannot be a session's.
fn refuse_unfit(cgroup: &Cgroup) -> Result<(), CommandError> {
    if cgroup.depth() > control::MAX_CGROUP_DEPTH as usize {
        return Err(CommandError::Invalid(format!(
            "{} lies {} levels below the root of the hierarchy, and no more than {} are looked at: name one above it",
            cgroup.name(),
            cgroup.depth(),
            control::MAX_CGROUP_DEPTH
        )));
    }
    cgroup.refuse_threaded().map_err(|error| CommandError::Invalid(error.to_string()))
}

fn cannot_attach(cgroup: &Cgroup, error: &KernelError) -> CommandError {
    if error.os_error() == Some(libc::E2BIG) {
        return CommandError::Failed(format!(
            "{} has as many programs of one kind as the kernel allows: `bpftool cgroup show {}` lists them ({error})",
            cgroup.name(),
            cgroup.path().display()
        ));
    }
    failed(error)
}

/// What a session did faster than it could be recorded, in one sentence.
fn overrun(more: Unwritten, overload: Overload) -> String {
    let Unwritten { packets, attempts, connections, processes, moves } = more;
    let (packets_were, attempts_were) = match overload {
        Overload::Backpressure => ("held back", "refused or given up"),
        Overload::RecordLoss => ("lost", "let through unrecorded"),
    };
    let parts = [
        (attempts, format!("{attempts} allowed attempts were {attempts_were}")),
        (packets, format!("{packets} parts of packets were {packets_were}")),
        (connections, format!("{connections} beginnings or ends of connections are not recorded")),
        (processes, format!("{processes} executions, births or ends of processes are not recorded")),
        (moves, format!("{moves} moves of processes into or out of the session are not recorded")),
    ];
    let told: Vec<String> =
        parts.into_iter().filter(|(count, _)| *count != 0).map(|(_, text)| text).collect();
    format!("the session did more than its share of the rings holds: {}", told.join(", "))
}

/// Removes a session's cgroup, if it was made for it. The kernel refuses while processes live in it.
fn remove(cgroup: &Cgroup, owned: bool) {
    if owned && let Err(error) = cgroup.remove() {
        tracing::warn!(%error, "a session's cgroup stays");
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
