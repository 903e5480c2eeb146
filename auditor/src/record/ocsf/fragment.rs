//! What all statements of a connection have in common, rendered once.
//!
//! Half of a statement's record is who did it, where to, and by which rule: the same bytes until the connection's login or
//! its process changes. They are found by the identity of what they were rendered from. That is safe because nothing behind
//! an [`Arc`] changes while somebody else holds it, and the cache does: `Arc::make_mut` gives a new identity.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::object::{Actor, Control, Database, Endpoint};
use super::own::{AgentFields, ConnectionFields, SessionFields};
use super::{Renderer, VERSION, json};
use crate::record::{Application, Connection, Entry, Process, Session};

/// More connections than this that are busy at once render more than once.
const MAX_KEPT: usize = 256;

/// The parts of a statement's record that are the connection's, in the order in which they stand in it. What is the
/// statement's stands between them.
#[derive(Debug)]
pub(super) struct Fragments {
    /// From `action_id` to the value of `metadata.uid`.
    pub(super) control: Vec<u8>,
    /// From `metadata.product` to `metadata.profiles`.
    pub(super) product: Vec<u8>,
    /// From the end of `metadata` to the value of `query_info.uid`, as far as that is the connection's.
    pub(super) who: Vec<u8>,
    /// From the end of `query_info` to the value of `unmapped.auditor.statement`.
    pub(super) own: Vec<u8>,
}

impl Fragments {
    fn new(
        entry: &Entry,
        connection: &Connection,
        application: &Application,
        renderer: &Renderer,
    ) -> Result<Self, serde_json::Error> {
        let (source, destination) = Endpoint::both(connection, &renderer.hostname);
        let verdict = Control::new(&connection.verdict);
        let session = entry.session.as_deref();

        let mut control = Vec::new();
        let mut members = json::Object::within(&mut control);
        members.number("action_id", verdict.action_id.into());
        members.number("disposition_id", verdict.disposition_id.into());
        members.optional("policy", verdict.policy.as_ref())?;
        members.optional("firewall_rule", verdict.firewall_rule.as_ref())?;
        members.key("metadata");
        json::Object::open(&mut control).word("version", VERSION);
        control.extend_from_slice(b",\"uid\":\"");

        let mut product = Vec::new();
        let mut members = json::Object::within(&mut product);
        members.value("product", &renderer.product)?;
        members.value("profiles", &["host", "security_control"])?;

        let mut who = b"}".to_vec();
        let mut members = json::Object::within(&mut who);
        members.value("device", &renderer.device)?;
        members.value("actor", &Actor::of(entry))?;
        members.value("src_endpoint", &source)?;
        members.value("dst_endpoint", &destination)?;
        members.number("type_id", 1); // Database
        members.value("database", &Database::of(application))?;
        members.key("query_info");
        let mut query = json::Object::open(&mut who);
        query.string("uid", &connection.id)?;
        // The statement's number is still to come.
        who.pop();
        who.push(b'/');

        let mut own = b"}".to_vec();
        let mut members = json::Object::within(&mut own);
        members.key("unmapped").extend_from_slice(b"{\"auditor\":");
        let mut auditor = json::Object::open(&mut own);
        auditor.word("kind", "statement");
        auditor.optional("agent", session.map(|session| AgentFields::new(&session.agent)).as_ref())?;
        auditor.optional("session", session.map(SessionFields::new).as_ref())?;
        auditor.value("connection", &ConnectionFields::new(connection, Some(application)))?;
        auditor.key("statement");

        Ok(Self { control, product, who, own })
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
        renderer: &Renderer,
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
        let fragments = Arc::new(Fragments::new(entry, connection, application, renderer)?);
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
