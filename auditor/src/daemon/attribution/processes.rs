//! Processes of sessions: what is known of them, who came and who went.
//!
//! A process that came into a session from elsewhere is remembered until the sockets that it brought were looked at ([`Joined`]).

use auditor_common::event::{Header, Moved};

use super::{Attribution, Joined};
use crate::clock::{Boottime, Clock};
use crate::daemon::journal::Item;
use crate::process::Occasion;
use crate::record::{Event as Recorded, Process};
use crate::source::Event;

impl Attribution {
    /// A process changed its cgroup, and with it its session.
    pub(super) fn moved(&mut self, event: &Moved) {
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
    pub(in crate::daemon) fn joined(&self) -> Vec<Joined> {
        self.joined.clone()
    }

    /// What must be known before an event is taken in: whether records of processes were not written since the last look. A record
    /// that could not be written is counted before any later one is read; but it may have been missed any time until now, so
    /// all that is older than this look is in doubt. Only who reads the rings may ask: the counters are of now.
    pub(in crate::daemon) fn missed(&self, event: &Event<'_>) -> Option<Item> {
        if !event.tells_of_a_process() {
            return None;
        }
        let share = event.header().share;
        let count = self.shares.processes(share);
        let known = self.missed.get(&share).map_or(0, |(known, _)| *known);
        (known != count).then(|| Item::Missed { share, count, at: Clock::now() })
    }

    /// In what light a record's word of a process is to be seen.
    pub(super) fn occasion(&self, header: &Header) -> Occasion {
        let complete_since = self.missed.get(&header.share).map_or(Boottime::default(), |(_, at)| *at);
        Occasion { at: Boottime(header.time), session: header.session, complete_since }
    }

    /// A process that lives, as far as it can be known.
    pub(in crate::daemon) fn living(&mut self, pid: u32) -> Option<Process> {
        self.processes.living(pid).map(|process| Process::clone(&process))
    }

    /// What procfs said since this was last called.
    pub(in crate::daemon) fn take_looked(&mut self) -> std::vec::Drain<'_, Process> {
        self.processes.take_looked()
    }

    /// Whether what comes next has happened before.
    pub(in crate::daemon) fn happens_again(&mut self, again: bool) {
        self.processes.happens_again(again);
    }

    /// What procfs said is not about what comes next.
    pub(in crate::daemon) fn forget_told(&mut self) {
        self.processes.forget_told();
    }
}
