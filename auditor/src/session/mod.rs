//! Sessions: which run of which agent lives in which cgroup, from when to when.
//!
//! A session's cgroup is either made for it, below the parent that carries the kernel programs (`auditor run`), or was
//! there before and gets programs of its own (`auditor tag`). A session ends when its cgroup has emptied and its
//! connections are gone, or when it is untagged.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::Read as _;
use std::sync::Arc;

use crate::clock::{Boottime, Utc};
use crate::daemon::command::SessionState;
use crate::kernel::cgroup::Cgroup;
use crate::kernel::object::Attachment;
use crate::kernel::shares::Unwritten;
use crate::policy::Confinement;
use crate::record::{self, SessionTotals};

/// Ended sessions that can still be listed, and that late events are still attributed to. The trail knows all.
const REMEMBERED: usize = 1024;

/// A session that is open.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Session {
    /// Its number in the kernel, never zero.
    pub number: u64,
    /// Who and what for.
    pub record: Arc<record::Session>,
    /// Where it lives.
    pub cgroup: Cgroup,
    /// Whether the cgroup was made for it and goes with it.
    pub owns_cgroup: bool,
    /// Where its process was before it was tagged, and goes back to when it is untagged.
    pub origin: Option<Cgroup>,
    /// Programs of its own, for a cgroup that is not below the parent.
    #[serde(skip)]
    pub attachment: Option<Attachment>,
    /// What it has done.
    pub totals: SessionTotals,
    /// Connections that are open.
    pub open_connections: u64,
    /// Payload bytes that the kernel moved on connections that have closed.
    pub bytes_moved: u64,
    /// Payload bytes of these that were audited, rows that were counted instead of copied included.
    pub bytes_audited: u64,
    /// Beginning.
    pub opened: Boottime,
    /// Beginning in wall-clock time.
    pub opened_utc: Utc,
    /// A process of it has ended since its cgroup was last looked at.
    pub lost_a_process: bool,
    /// Since when its cgroup has had no process.
    pub empty_since: Option<Boottime>,
    /// Its entry among the shares of the rings.
    pub share: u32,
    /// What had not been written for want of room when it was last looked at.
    pub unwritten: Unwritten,
    /// Refusals that are known to have been counted and not recorded.
    pub folded_refusals: u64,
    /// What its command was left beside destinations; `None` where it was running already.
    pub confinement: Option<Confinement>,
}

impl Session {
    /// As the API shows it.
    pub fn state(&self, ended: Option<Utc>) -> SessionState {
        SessionState {
            session: Arc::clone(&self.record),
            cgroup: self.cgroup.name().to_owned(),
            opened: self.opened_utc.epoch_millis(),
            ended: ended.map(Utc::epoch_millis),
            totals: self.totals,
            bytes_moved: self.bytes_moved,
            bytes_audited: self.bytes_audited,
            confinement: self.confinement.clone(),
        }
    }
}

/// All sessions of a daemon's life.
#[derive(Default, serde::Serialize, serde::Deserialize)]
pub struct Sessions {
    open: BTreeMap<u64, Session>,
    ended: VecDeque<(u64, SessionState)>,
}

impl Sessions {
    /// Takes a session in.
    pub fn insert(&mut self, session: Session) {
        self.open.insert(session.number, session);
    }

    /// The open session with this number.
    pub fn get(&self, number: u64) -> Option<&Session> {
        self.open.get(&number)
    }

    /// An open session, to be changed.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut Session> {
        self.open.get_mut(&number)
    }

    /// The session's identity for records, also a little after its end.
    pub fn record(&self, number: u64) -> Option<Arc<record::Session>> {
        if let Some(session) = self.open.get(&number) {
            return Some(Arc::clone(&session.record));
        }
        let (_, state) = self.ended.iter().rev().find(|(ended, _)| *ended == number)?;
        Some(Arc::clone(&state.session))
    }

    /// Whether what is said in this session is followed: it is open, or one of a capture's, which have no end of their own.
    pub fn follows(&self, number: u64) -> bool {
        let remembered = || self.ended.iter().rev().find(|(ended, _)| *ended == number);
        self.open.contains_key(&number) || remembered().is_some_and(|(_, state)| state.ended.is_none())
    }

    /// All that are open.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.open.values_mut()
    }

    /// All that are open.
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.open.values()
    }

    /// The number of the open session with this id, or in this cgroup.
    pub fn find(&self, id_or_cgroup: &str) -> Option<u64> {
        self.open
            .values()
            .find(|session| {
                session.record.id == id_or_cgroup
                    || session.cgroup.name() == id_or_cgroup
                    || session.cgroup.path().as_os_str() == id_or_cgroup
            })
            .map(|session| session.number)
    }

    /// Takes a session out.
    pub fn remove(&mut self, number: u64) -> Option<Session> {
        self.open.remove(&number)
    }

    /// Remembers how a session ended.
    pub fn remember(&mut self, number: u64, state: SessionState) {
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((number, state));
    }

    /// How a session ended, if that is remembered.
    pub fn ended(&self, number: u64) -> Option<SessionState> {
        self.ended.iter().rev().find(|(ended, _)| *ended == number).map(|(_, state)| state.clone())
    }

    /// Ended and open ones, by their beginning.
    pub fn states(&self) -> Vec<SessionState> {
        let mut states: Vec<_> = self.ended.iter().map(|(_, state)| state.clone()).collect();
        states.extend(self.open.values().map(|session| session.state(None)));
        states.sort_by_key(|state| state.opened);
        states
    }

    /// How many are open.
    pub fn len(&self) -> u64 {
        self.open.len() as u64
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// A new session's number: unpredictable, so that two daemons and two boots do not give the same one.
///
/// # Errors
/// The kernel's random number generator cannot be read.
pub fn new_number() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    loop {
        fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let number = u64::from_ne_bytes(bytes);
        if number != 0 {
            return Ok(number);
        }
    }
}

/// The id of a session as records have it.
pub fn id(number: u64) -> String {
    format!("{number:016x}")
}
