//! Going on where an earlier daemon was: its journal is told again, its sessions and connections live on.
//!
//! Agents notice a pause at most: what they sent while there was no daemon waits in the rings until they are full, and in the
//! senders' kernels from the end of the lease on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use super::attribution::{Attribution, Saved};
use super::journal::{self, Configuration, Identity, Position, StateLost, Step};
use super::policies::Policies;
use crate::config;
use crate::kernel::bpffs;
use crate::kernel::object::{Attachment, KernelError, Object};
use crate::kernel::orphan::session_pins;
use crate::kernel::tables::{TableError, Tables};
use crate::record::Event as Recorded;
use crate::source::Event;
use crate::source::ring::Rings;
use crate::trail::Trail;

/// What an earlier daemon left.
pub(super) struct Recalled {
    /// Everything that it knew.
    pub(super) attribution: Attribution,
    /// The last generation of its journal.
    pub(super) generation: u64,
}

/// What is told again, and what comes of it.
struct Told<'a> {
    attribution: Attribution,
    position: Position,
    trail: &'a Trail,
    /// The last record that the trail had before.
    last: u64,
}

impl Told<'_> {
    fn step(&mut self, step: Step<'_>) -> Result<(), StateLost> {
        match step {
            Step::Event(bytes) => {
                let event = Event::decode(bytes).map_err(|error| StateLost::Damaged(error.to_string()))?;
                self.attribution.on(event);
            }
            Step::Item(item) => self.attribution.apply(item).map_err(StateLost::Damaged)?,
        }
        Ok(())
    }

    /// A frame is done: its records go to the trail, as far as they are not there yet.
    fn done(&mut self, position: Position) -> Result<(), StateLost> {
        self.attribution.forget_told();
        // Whose rows are counted is settled when all is told: see `put_in_force`.
        self.attribution.take_counting();
        let mut sequence = self.position.sequence;
        for entry in self.attribution.take_entries() {
            sequence += 1;
            if sequence > self.last {
                super::pipeline::append(entry, |entry| self.trail.append(entry))
                    .map_err(|error| StateLost::Damaged(format!("its records cannot be written: {error}")))?;
            }
        }
        if sequence != position.sequence {
            return Err(StateLost::Damaged(format!(
                "the same events led to {sequence} records instead of {}",
                position.sequence
            )));
        }
        self.position = position;
        Ok(())
    }
}

/// Tells the journal in `directory` to `attribution`, and leaves the rings where it ends. `None`: there is no journal.
pub(super) fn recall(
    directory: &Path,
    identity: &Identity,
    attribution: Attribution,
    trail: &Trail,
    rings: &mut Rings,
) -> Result<Option<Recalled>, StateLost> {
    let last = trail.last();
    let Some(found) = journal::find::<Saved>(directory, identity, last)? else { return Ok(None) };
    let (state, position, generation, files) = found.split();
    let mut told = Told { attribution, position, trail, last };
    told.attribution.happens_again(true);
    // What made the earlier daemon panic must not do the same to every one after it. What was told is dropped then.
    catch_unwind(AssertUnwindSafe(|| {
        told.attribution.restore(state).map_err(StateLost::Damaged)?;
        journal::replay(&files, &mut told, Told::step, Told::done)
    }))
    .map_err(|_| StateLost::Damaged("to tell it again ends in a panic".to_owned()))??;
    if last > told.position.sequence {
        return Err(StateLost::BehindTrail);
    }
    let (payload, lifecycle) = rings.positions();
    if payload > told.position.rings.0 || lifecycle > told.position.rings.1 {
        return Err(StateLost::BehindRings);
    }
    if !rings.skip_to(told.position.rings) {
        return Err(StateLost::Other("other rings"));
    }
    told.attribution.happens_again(false);
    Ok(Some(Recalled { attribution: told.attribution, generation }))
}

/// Puts the configuration in force for what was recalled, and takes everything else out of the kernel's tables.
pub(super) fn put_in_force(
    attribution: &mut Attribution,
    loaded: &config::Loaded,
    tables: &mut Tables,
) -> Result<Configuration, TableError> {
    tables.keep_shares(attribution.sessions.iter().map(|session| session.share));
    let sessions: Vec<u64> = attribution.sessions.iter().map(|session| session.cgroup.id()).collect();
    tables.keep_sessions(&sessions)?;
    for session in attribution.sessions.iter() {
        tables.resume_refusals(session.number)?;
    }
    attribution.policies.follow(tables)?;
    let configuration = attribution.put_in_force(loaded, tables)?;
    tables.keep_policies(&attribution.policies.tables())?;
    tables.keep_counting(&attribution.counted())?;
    Ok(configuration)
}

/// Puts this daemon's programs on the cgroups of sessions that have their own. Answers the findings that it led to, with the
/// sessions' numbers.
pub(super) fn attach_sessions(
    attribution: &mut Attribution,
    object: &mut Object,
    pins: &Path,
) -> Vec<(u64, Recorded)> {
    let mut findings = Vec::new();
    for session in attribution.sessions.iter_mut().filter(|session| !session.owns_cgroup) {
        let pins = session_pins(pins, &session.record.id);
        let cgroup = session.cgroup.name();
        match object.attach(&session.cgroup, &pins) {
            Ok(attachment) => session.attachment = Some(attachment),
            Err(KernelError::Cgroup(error)) if error.is_gone() => {
                // Nobody lives in it any more: the session is about to be ended, as one whose cgroup has emptied.
                tracing::info!(%error, cgroup, "a session's cgroup is gone");
                if let Err(error) = bpffs::remove_all(&pins) {
                    tracing::warn!(%error, "links of a session stay pinned");
                }
            }
            Err(error) => {
                tracing::error!(%error, cgroup, "a session's cgroup cannot be taken over");
                let left = Attachment::left_in(&pins);
                let message = format!(
                    "this daemon's programs cannot be put on the session's cgroup {cgroup} ({error}): {} of the earlier \
                     daemon's stay on it; untag the cgroup and tag it again",
                    left.programs().count()
                );
                session.attachment = Some(left);
                let kind = "session-not-taken-over";
                findings.push((session.number, Recorded::Finding { kind, message, connection: None }));
            }
        }
    }
    findings
}

/// The record of a takeover.
pub(super) fn record(attribution: &Attribution, tables: &Tables) -> Result<Recorded, TableError> {
    let alone: Duration = Policies::alone(tables)?;
    Ok(Recorded::DaemonTookOver {
        without_ms: u64::try_from(alone.as_millis()).unwrap_or(u64::MAX),
        sessions: attribution.sessions.len(),
        connections: attribution.connections(),
    })
}
