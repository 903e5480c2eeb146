//! Sessions as the trail knows them: those of daemons before this one too.
//!
//! The pipeline knows the sessions of its own life, and of these better than the trail; see [`merge`]. A session of an earlier
//! life that has no end in the trail was open when its daemon died: how and when it ended nobody saw, so its end is
//! [`LOST`] and has no time.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use serde::Deserialize;

use super::types::Session;
use crate::daemon::command::SessionState;
use crate::trail::Error;
use crate::trail::query::{Cursor, Query, scan};

/// The end of a session whose daemon did not see it.
pub const LOST: &str = "daemon-lost";
/// Digits of a session's id.
const DIGITS: usize = 16;
/// Digits that may stand for all of them, where no other session's id begins with them.
const LEAST_DIGITS: usize = 4;

/// A session of the trail.
#[derive(Clone, Debug)]
pub struct Known {
    /// As the API shows it.
    pub session: Session,
    /// When it was over at the latest; `None` where it may be open.
    pub over: Option<u64>,
    sequence: u64,
}

/// All sessions of the trail in `directory`, by their ids. What has no end is lost.
///
/// # Errors
/// The trail cannot be read.
pub fn of_trail(directory: &Path) -> Result<BTreeMap<String, Known>, Error> {
    let mut sessions: BTreeMap<String, Known> = BTreeMap::new();
    each(directory, "session-opened", |line| {
        if let Some(session) = line.opened() {
            let known = Known { session, over: None, sequence: line.metadata.sequence };
            sessions.insert(known.session.id.clone(), known);
        }
    })?;
    each(directory, "connection-closed", |line| {
        let own = line.unmapped.auditor;
        let coverage = own.connection.and_then(|connection| connection.coverage);
        let known = own.session.and_then(|session| sessions.get_mut(&session.id));
        if let (Some(Known { session, .. }), Some(coverage)) = (known, coverage) {
            session.bytes_moved += coverage.sent.unwrap_or(0) + coverage.received.unwrap_or(0);
            session.bytes_audited += coverage.audited_sent
                + coverage.audited_received
                + coverage.skipped_sent
                + coverage.skipped_received;
        }
    })?;
    each(directory, "session-ended", |line| {
        let Some(ended) = line.unmapped.auditor.session else { return };
        let Some(known) = sessions.get_mut(&ended.id) else { return };
        known.over = Some(line.time);
        let session = &mut known.session;
        session.ended = Some(line.time);
        session.end = ended.end;
        (session.connections, session.statements, session.violations) =
            (ended.connections, ended.statements, ended.violations);
    })?;
    let mut starts = Vec::new();
    each(directory, "daemon-started", |line| starts.push((line.metadata.sequence, line.time)))?;
    for known in sessions.values_mut().filter(|known| known.over.is_none()) {
        let next = starts.iter().find(|(sequence, _)| *sequence > known.sequence);
        known.over = next.map(|(_, time)| *time);
        known.session.end = Some(LOST.to_owned());
    }
    Ok(sessions)
}

/// The trail's sessions and the pipeline's, oldest first. What the pipeline says holds; it must have been asked after the
/// trail was read, so that a session that began meanwhile is not taken for lost.
pub fn merge(mut trail: BTreeMap<String, Known>, pipeline: Vec<SessionState>) -> Vec<Known> {
    for state in pipeline {
        let mut session = Session::from(state);
        let before = trail.remove(&session.id);
        let sequence = before.as_ref().map_or(u64::MAX, |known| known.sequence);
        if !session.live {
            session.end = before.and_then(|known| known.session.end).filter(|end| end != LOST);
        }
        let over = session.ended;
        trail.insert(session.id.clone(), Known { session, over, sequence });
    }
    let mut sessions: Vec<_> = trail.into_values().collect();
    sessions.sort_by_key(|known| (known.session.opened, known.sequence));
    sessions
}

/// Why the beginning of a session's id does not name it.
#[derive(Debug, thiserror::Error)]
pub enum Incomplete {
    /// Several sessions' ids begin so.
    #[error("several sessions begin with {beginning}: {candidates}; write more digits")]
    Ambiguous {
        /// What was given.
        beginning: String,
        /// The first few.
        candidates: String,
    },
    /// The trail cannot be read.
    #[error(transparent)]
    Trail(#[from] Error),
}

/// The whole id of the session in the trail whose id begins with `text`; `text` itself where it is no beginning of an id, or
/// no session's.
///
/// # Errors
/// Several sessions' ids begin so, or the trail cannot be read.
pub fn complete(directory: &Path, text: &str) -> Result<String, Incomplete> {
    if !is_beginning(text) {
        return Ok(text.to_owned());
    }
    let mut ids = Vec::new();
    each(directory, "session-opened", |line| ids.extend(line.unmapped.auditor.session.map(|own| own.id)))?;
    only(text, ids.iter().map(String::as_str))
}

/// The one of `ids` that begins with `beginning`; `beginning` itself where none does.
///
/// # Errors
/// Several do.
pub fn only<'a>(beginning: &str, ids: impl Iterator<Item = &'a str>) -> Result<String, Incomplete> {
    let lower = beginning.to_ascii_lowercase();
    let mut found: Vec<_> = ids.filter(|id| id.starts_with(&lower)).collect();
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        [] => Ok(beginning.to_owned()),
        [id] => Ok((*id).to_owned()),
        several => {
            let candidates = several.iter().take(4).copied().collect::<Vec<_>>().join(", ");
            Err(Incomplete::Ambiguous { beginning: beginning.to_owned(), candidates })
        }
    }
}

/// Whether a text can stand for a session's id without being one.
pub fn is_beginning(text: &str) -> bool {
    (LEAST_DIGITS..DIGITS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Gives each record of a kind to `visit`.
fn each(directory: &Path, kind: &str, mut visit: impl FnMut(Line)) -> Result<(), Error> {
    let query = Query { kind: Some(kind.to_owned()), ..Query::default() };
    scan(directory, &query, &mut Cursor::default(), |bytes, _| {
        // What is no record is for `auditor verify` to tell.
        if let Ok(line) = serde_json::from_slice(bytes) {
            visit(line);
        }
        ControlFlow::Continue(())
    })?;
    Ok(())
}

/// What records say of sessions.
#[derive(Deserialize)]
struct Line {
    time: u64,
    metadata: Metadata,
    unmapped: Unmapped,
}

impl Line {
    fn opened(&self) -> Option<Session> {
        let (session, agent) =
            (self.unmapped.auditor.session.as_ref()?, self.unmapped.auditor.agent.as_ref()?);
        Some(Session {
            id: session.id.clone(),
            agent: agent.name.clone(),
            labels: agent.labels.clone(),
            identity: agent.identity.clone(),
            task: session.task.clone(),
            policy: session.policy.clone(),
            cgroup: session.cgroup.clone().unwrap_or_default(),
            opened: self.time,
            live: false,
            ended: None,
            end: None,
            connections: None,
            statements: None,
            violations: None,
            bytes_moved: 0,
            bytes_audited: 0,
            confinement: None,
        })
    }
}

#[derive(Deserialize)]
struct Metadata {
    sequence: u64,
}

#[derive(Deserialize)]
struct Unmapped {
    auditor: Own,
}

#[derive(Deserialize)]
struct Own {
    agent: Option<AgentFields>,
    session: Option<SessionFields>,
    connection: Option<ConnectionFields>,
}

#[derive(Deserialize)]
struct AgentFields {
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    identity: Option<String>,
}

#[derive(Deserialize)]
struct SessionFields {
    id: String,
    task: Option<String>,
    policy: String,
    cgroup: Option<String>,
    end: Option<String>,
    connections: Option<u64>,
    statements: Option<u64>,
    violations: Option<u64>,
}

#[derive(Deserialize)]
struct ConnectionFields {
    coverage: Option<CoverageFields>,
}

#[derive(Deserialize)]
struct CoverageFields {
    sent: Option<u64>,
    received: Option<u64>,
    audited_sent: u64,
    audited_received: u64,
    #[serde(default)]
    skipped_sent: u64,
    #[serde(default)]
    skipped_received: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_names_one_session_or_none() {
        let ids = ["00aa11bb22cc33dd", "00aa11bb22cc33de", "ff00000000000000", "ff00000000000000"];
        let only = |text| only(text, ids.into_iter());
        assert_eq!(only("ff00").unwrap(), ids[2]);
        assert_eq!(only("FF00").unwrap(), ids[2]);
        assert_eq!(only("dead").unwrap(), "dead");
        let ambiguous = only("00aa").unwrap_err().to_string();
        assert!(ambiguous.contains(ids[0]) && ambiguous.contains(ids[1]), "{ambiguous}");
        assert!(is_beginning("00aa") && is_beginning("00aa11bb22cc33d"));
        for text in ["00a", "00aa11bb22cc33dd", "boot-1", "/auditor"] {
            assert!(!is_beginning(text), "{text}");
        }
    }
}
