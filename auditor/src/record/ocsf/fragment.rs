//! What all statements of a connection have in common, rendered once.
//!
//! Half of a statement's record is who did it, where to, and by which rule: the same bytes until the connection's login or
//! its process changes. They are found by the identity of what they were rendered from. That is safe because nothing behind
//! an [`Arc`] changes while somebody else holds it, and the cache does: `Arc::make_mut` gives a new identity.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::object::{Actor, Control, Database, Endpoint};
use super::own::{AgentFields, ConnectionFields, SessionFields};
use crate::record::{Application, Connection, Entry, Process, Session};

/// More connections than this that are busy at once render more than once.
const MAX_KEPT: usize = 256;

/// A part of a record: rendered before, or to be rendered with it.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Part<'a, T> {
    Ready(&'a RawValue),
    Now(T),
}

impl<T> From<T> for Part<'_, T> {
    fn from(value: T) -> Self {
        Self::Now(value)
    }
}

/// The parts of a statement's record that are the connection's.
#[derive(Debug)]
pub(super) struct Fragments {
    pub(super) actor: Box<RawValue>,
    pub(super) policy: Option<Box<RawValue>>,
    pub(super) firewall_rule: Option<Box<RawValue>>,
    pub(super) src_endpoint: Box<RawValue>,
    pub(super) dst_endpoint: Box<RawValue>,
    pub(super) database: Box<RawValue>,
    pub(super) agent: Option<Box<RawValue>>,
    pub(super) session: Option<Box<RawValue>>,
    pub(super) connection: Box<RawValue>,
}

impl Fragments {
    fn new(
        entry: &Entry,
        connection: &Connection,
        application: &Application,
        hostname: &str,
    ) -> Result<Self, serde_json::Error> {
        let (source, destination) = Endpoint::both(connection, hostname);
        let control = Control::new(&connection.verdict);
        let session = entry.session.as_deref();
        Ok(Self {
            actor: to_raw_value(&Actor::of(entry))?,
            policy: control.policy.as_ref().map(to_raw_value).transpose()?,
            firewall_rule: control.firewall_rule.as_ref().map(to_raw_value).transpose()?,
            src_endpoint: to_raw_value(&source)?,
            dst_endpoint: to_raw_value(&destination)?,
            database: to_raw_value(&Database::of(application))?,
            agent: session.map(|session| to_raw_value(&AgentFields::new(&session.agent))).transpose()?,
            session: session.map(|session| to_raw_value(&SessionFields::new(session))).transpose()?,
            connection: to_raw_value(&ConnectionFields::new(connection, Some(application)))?,
        })
    }
}

/// Fragments by what they were rendered from.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<HashMap<[usize; 4], Kept>>);

#[derive(Debug)]
struct Kept {
    fragments: Arc<Fragments>,
    // As long as these are held, no others have their addresses.
    _session: Option<Arc<Session>>,
    _process: Option<Arc<Process>>,
    _connection: Arc<Connection>,
    _application: Arc<Application>,
}

impl Cache {
    pub(super) fn get(
        &self,
        entry: &Entry,
        connection: &Arc<Connection>,
        application: &Arc<Application>,
        hostname: &str,
    ) -> Result<Arc<Fragments>, serde_json::Error> {
        let key = [
            entry.session.as_ref().map_or(0, |session| Arc::as_ptr(session).addr()),
            entry.process.as_ref().map_or(0, |process| Arc::as_ptr(process).addr()),
            Arc::as_ptr(connection).addr(),
            Arc::as_ptr(application).addr(),
        ];
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.get(&key) {
            return Ok(Arc::clone(&kept.fragments));
        }
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        let fragments = Arc::new(Fragments::new(entry, connection, application, hostname)?);
        let new = Kept {
            fragments: Arc::clone(&fragments),
            _session: entry.session.clone(),
            _process: entry.process.clone(),
            _connection: Arc::clone(connection),
            _application: Arc::clone(application),
        };
        kept.insert(key, new);
        Ok(fragments)
    }
}
