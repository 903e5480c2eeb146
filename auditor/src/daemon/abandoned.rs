//! Sessions that an earlier daemon opened and nobody ended: what that daemon knew was lost.
//!
//! They are found by what they left in the kernel: cgroups below the daemon's own, and pinned links on cgroups that were tagged. The
//! trail says, in one reading, which of them were ended or told of before, and whose the others were. What such a session does is
//! refused: see [`crate::kernel::orphan`] for tagged cgroups; below the parent, the parent's programs see to it.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::attribution::Attribution;
use super::service::remove_if_empty;
use crate::clock::Clock;
use crate::kernel::bpffs;
use crate::kernel::cgroup::{Cgroup, Hierarchy};
use crate::kernel::object::Object;
use crate::kernel::orphan;
use crate::record::{self, Entry, Event as Recorded};
use crate::trail;

const KIND: &str = "session-abandoned";

/// One that no daemon knows.
#[derive(Default)]
struct Abandoned {
    /// Links on a tagged cgroup.
    tagged: bool,
    /// The trail knows how it ended.
    ended: bool,
    /// The trail knows that it was abandoned.
    told: bool,
    record: record::Session,
}

/// What was found.
pub(super) struct Found {
    /// What the trail does not tell yet.
    pub(super) entries: Vec<Entry>,
    /// Directories with links whose cgroups are to stay closed.
    orphans: Vec<PathBuf>,
}

/// Looks for them, and removes what of them nobody lives in any more.
pub(super) fn find(
    (hierarchy, parent): (&Hierarchy, &Cgroup),
    pins: &Path,
    trail: &Path,
    attribution: &Attribution,
) -> Found {
    let mut abandoned: BTreeMap<String, Abandoned> = BTreeMap::new();
    for entry in fs::read_dir(parent.path()).into_iter().flatten().flatten() {
        let Ok(cgroup) = hierarchy.existing(&entry.path()) else { continue };
        if attribution.sessions.iter().any(|session| session.cgroup == cgroup) {
            continue;
        }
        abandoned.insert(entry.file_name().to_string_lossy().into_owned(), Abandoned::default());
        match cgroup.populated() {
            Ok(true) => tracing::warn!(
                cgroup = cgroup.name(),
                "processes of a session that an earlier daemon opened are still running: what they send is refused"
            ),
            _ => remove_if_empty(&cgroup),
        }
    }
    let pinned = orphan::pinned_sessions(pins).unwrap_or_else(|error| {
        tracing::error!(%error, "links of earlier sessions are not known");
        Vec::new()
    });
    for id in pinned {
        if !attribution.sessions.iter().any(|session| session.record.id == id) {
            abandoned.insert(id, Abandoned { tagged: true, ..Abandoned::default() });
        }
    }
    if abandoned.is_empty() {
        return Found { entries: Vec::new(), orphans: Vec::new() };
    }
    if let Err(error) = ask(trail, &mut abandoned) {
        tracing::warn!(%error, "the trail does not tell whose sessions these were");
    }
    let mut found = Found { entries: Vec::new(), orphans: Vec::new() };
    for (id, abandoned) in abandoned {
        if abandoned.tagged {
            let links = orphan::session_pins(pins, &id);
            if !abandoned.ended {
                found.orphans.push(links);
            } else if let Err(error) = bpffs::remove_all(&links) {
                tracing::error!(%error, session = id, "programs of a session that has ended stay on a cgroup");
            }
        }
        if !abandoned.ended && !abandoned.told {
            found.entries.push(entry(id, abandoned));
        }
    }
    found
}

/// Reads in the trail what became of these sessions.
fn ask(trail: &Path, abandoned: &mut BTreeMap<String, Abandoned>) -> Result<(), trail::Error> {
    trail::query::sessions(trail, |view| {
        let own = view.own();
        let session = own.session.as_ref();
        if let Some(session) = session
            && let Some(known) = abandoned.get_mut(&*session.id)
        {
            known.ended |= &*own.kind == "session-ended";
            known.told |= own.finding.as_ref().is_some_and(|finding| &*finding.kind == KIND);
            if let Some(agent) = &own.agent {
                known.record.agent.name = str::to_owned(&agent.name);
            }
            known.record.task = session.task.as_deref().map(str::to_owned);
        }
        ControlFlow::Continue(())
    })
    .map(drop)
}

/// The record that a session's history has no end, with what the trail knows of the session.
fn entry(id: String, abandoned: Abandoned) -> Entry {
    let mut message = "the daemon that audited this session ended without notice: what the session did after its last record is \
                       not in the trail, and what it does from here on is refused"
        .to_owned();
    if abandoned.tagged {
        message.push_str(", until its cgroup is tagged again or the daemon is stopped in good order");
    }
    Entry {
        time: Clock::now_utc(),
        session: Some(Arc::new(record::Session { id, ..abandoned.record })),
        process: None,
        event: Recorded::Finding { kind: KIND, message, connection: None },
    }
}

impl Found {
    /// Keeps the tagged cgroups closed.
    pub(super) fn hold_closed(&self, object: &mut Object) {
        for links in &self.orphans {
            if let Err(error) = object.hold_closed(links) {
                tracing::error!(%error, links = %links.display(), "an abandoned session's cgroup keeps an earlier daemon's programs");
            }
        }
    }
}
