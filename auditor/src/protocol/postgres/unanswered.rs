//! Requests that the server does not answer: those it skips after an error, and those whose answer was never seen.
//!
//! No answer settles what their names mean, so it is supposed, apart from what is known: that a Parse would have given its
//! name a new meaning. Where the name had one already the server may have refused to, and then the text is unknown, not
//! one of the two.

use std::sync::Arc;

use super::STATEMENT_IN_NEED;
use super::conversation::{Conversation, MAX_QUEUED_BYTES};
use super::extended::{portal, prepared};
use super::names::{Name, Names, Portal, Prepared};
use super::record::{Subject, Unit};
use super::request::{Request, Target};
use super::table::Kept as _;
use crate::clock::Boottime;
use crate::protocol::{Observation, Outcome, ServerError};

/// A Parse, Bind, Describe or Close that failed, until it is known which Execute it was for.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Failure {
    error: ServerError,
    unit: Unit,
    at: Boottime,
    meant: Meant,
}

/// What a failed request was about.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum Meant {
    Statement(#[serde(with = "crate::shared")] Arc<Prepared>),
    Portal(Name, #[serde(with = "crate::shared")] Arc<Portal>),
}

/// What names would have meant had the server answered.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Supposed {
    pub(super) names: Names,
    /// Bytes of values that were shown.
    shown: usize,
}

impl Supposed {
    /// For where memory is short.
    fn in_need() -> Self {
        Self { names: Names::in_need(), shown: 0 }
    }

    /// Bytes that it takes, roughly.
    pub(super) fn memory(&self) -> usize {
        self.names.memory()
    }

    /// Whether values of this size may still be shown. One portal may be executed any number of times, and all of it is
    /// told at once; what the queue can hold is enough to show every value once.
    fn afford(&mut self, size: usize) -> bool {
        self.shown = self.shown.saturating_add(size);
        self.shown <= 2 * MAX_QUEUED_BYTES
    }
}

impl Failure {
    /// The failure of `request`, which `unit` counts already.
    pub(super) fn new(request: Request, names: &Names, error: ServerError, unit: Unit, at: Boottime) -> Self {
        let statement = |name: Name| {
            let known = names.statements.get(&name).cloned();
            Meant::Statement(known.unwrap_or_else(|| Arc::new(Prepared::unknown(name))))
        };
        let meant = match request {
            Request::Bind(bind) => {
                let prepared = names.statements.get(&bind.statement).cloned();
                let (name, portal) = portal(prepared, *bind);
                Meant::Portal(name, Arc::new(portal))
            }
            Request::Describe(Target::Statement, name) | Request::Close(Target::Statement, name) => {
                statement(name)
            }
            Request::Describe(Target::Portal, name) | Request::Close(Target::Portal, name) => {
                let known = names.portals.get(&name).cloned();
                Meant::Portal(name, known.unwrap_or_else(|| Arc::new(Portal::unknown())))
            }
            request => match prepared(request) {
                Some(prepared) => Meant::Statement(Arc::new(prepared)),
                None => statement(Name::Unknown),
            },
        };
        Self { error, unit, at, meant }
    }

    /// Bytes that it takes, roughly.
    pub(super) fn memory(&self) -> usize {
        let meant = match &self.meant {
            Meant::Statement(prepared) => prepared.cost(),
            Meant::Portal(_, portal) => portal.cost(),
        };
        meant + self.unit.memory() + self.error.memory()
    }

    /// Whether executing this portal would have needed what failed.
    fn prevents(&self, portal: &Arc<Portal>) -> bool {
        match &self.meant {
            Meant::Statement(prepared) => Arc::ptr_eq(prepared, &portal.prepared),
            Meant::Portal(_, failed) => Arc::ptr_eq(failed, portal),
        }
    }

    fn subject(&self) -> Subject {
        match &self.meant {
            Meant::Statement(prepared) => Subject::prepared(prepared),
            Meant::Portal(_, portal) => Subject::portal(portal, true),
        }
    }
}

impl Conversation {
    /// Gives out what the server has skipped, up to the Sync and with it.
    pub(super) fn skip_to_sync(
        &mut self,
        mut failure: Option<Box<Failure>>,
        transaction: Option<char>,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) {
        self.release(transaction, out);
        let mut supposed = Supposed::default();
        match failure.as_deref().map(|failure| &failure.meant) {
            Some(Meant::Statement(prepared)) => {
                supposed.names.statements.insert(&prepared.name, Arc::clone(prepared))
            }
            Some(Meant::Portal(name, portal)) => supposed.names.portals.insert(name, Arc::clone(portal)),
            None => {}
        }
        while let Some(request) = self.pop() {
            if matches!(request, Request::Sync) {
                break;
            }
            let Some((subject, portal)) = self.supposedly(request, &mut supposed) else { continue };
            let mut outcome = (Outcome::Skipped, at);
            if let Some(failure) = failure.take() {
                if portal.is_some_and(|portal| failure.prevents(&portal)) {
                    self.unit.precede(failure.unit);
                    outcome = (Outcome::Failed(failure.error), failure.at);
                } else {
                    self.tell(*failure, transaction, out);
                }
            }
            self.held = Some(self.record(subject, outcome.0, outcome.1, out));
            self.release(transaction, out);
        }
        if let Some(failure) = failure {
            self.tell(*failure, transaction, out);
        }
        self.unit = Unit::default();
    }

    /// A failure that no Execute was sent for.
    fn tell(&mut self, failure: Failure, transaction: Option<char>, out: &mut Vec<Observation>) {
        let subject = failure.subject();
        let later = std::mem::replace(&mut self.unit, failure.unit);
        self.held = Some(self.record(subject, Outcome::Failed(failure.error), failure.at, out));
        self.unit = later;
        self.release(transaction, out);
    }

    /// Gives out everything that is under way: no more answers will be seen. `hole` tells that there may have been some.
    pub(super) fn give_up(&mut self, hole: bool, at: Boottime, out: &mut Vec<Observation>) {
        if let Some(failure) = self.skipping.take() {
            self.skip_to_sync(failure, None, at, out);
        }
        if let Some(held) = &mut self.held {
            // Done, but whether it was committed is not known.
            held.incomplete |= hole;
        }
        self.release(None, out);
        self.unit.incomplete |= hole;
        let mut supposed = self.deaf.take().unwrap_or_default();
        self.without_answers(hole, &mut supposed, at, out);
        if hole {
            self.tell_all(&mut supposed, at, out);
        }
        self.deaf = Some(supposed);
    }

    /// The server's side was lost: from here on requests are told as they come.
    pub(super) fn deafen(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        self.give_up(true, at, out);
    }

    /// Memory is short: everything that waits for an answer is told without, and so is what comes. What names meant is forgotten.
    pub(super) fn spare(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        self.deafen(at, out);
        self.deaf = Some(Box::new(Supposed::in_need()));
        self.names = Names::in_need();
        self.unit = Unit::default();
        self.limits.max_statement_bytes = self.limits.max_statement_bytes.min(STATEMENT_IN_NEED);
    }

    /// Tells a request without waiting for an answer.
    pub(super) fn suppose(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        if let Some(mut supposed) = self.deaf.take() {
            supposed.shown = 0;
            self.without_answers(true, &mut supposed, at, out);
            self.deaf = Some(supposed);
        }
    }

    fn without_answers(
        &mut self,
        hole: bool,
        supposed: &mut Supposed,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) {
        while let Some(request) = self.pop() {
            if matches!(request, Request::Sync) {
                self.unit = Unit::default();
            }
            let Some((subject, _)) = self.supposedly(request, supposed) else {
                self.give_out_supposed(hole, supposed, at, out);
                continue;
            };
            supposed.names.tell_named();
            self.give_out_supposed(hole, supposed, at, out);
            let outcome = self.unit.error.take().map_or(Outcome::Unknown, Outcome::Failed);
            self.unit.incomplete |= hole;
            let statement = self.record(subject, outcome, at, out);
            out.push(Observation::Statement(statement));
        }
    }

    /// What the request would have been about, if it makes a record.
    fn supposedly(
        &mut self,
        request: Request,
        supposed: &mut Supposed,
    ) -> Option<(Subject, Option<Arc<Portal>>)> {
        match request {
            Request::Query(_) | Request::Function(_) => Some((self.immediate(request)?, None)),
            Request::Parse(_) => {
                let mut prepared = prepared(request)?;
                let named = !matches!(&prepared.name, Name::Exact(name) if name.is_empty());
                let taken = |names: &Names| names.statements.get(&prepared.name).is_some();
                if named && (taken(&supposed.names) || taken(&self.names)) {
                    let unknown = Prepared::unknown(prepared.name.clone());
                    let doubtful = Arc::new(std::mem::replace(&mut prepared, unknown));
                    supposed.names.statements.tell_named();
                    supposed.names.statements.doubt(&doubtful.name, Arc::clone(&doubtful));
                }
                supposed.names.statements.insert(&prepared.name.clone(), Arc::new(prepared));
                None
            }
            Request::Bind(bind) => {
                let known = supposed.names.statements.look_up(&bind.statement);
                let known = known.or_else(|| self.names.statements.get(&bind.statement).cloned());
                let (name, portal) = portal(known, *bind);
                if supposed.names.portals.get(&name).is_some() {
                    // Or the server refuses, and it is what it was.
                    supposed.names.portals.tell_named();
                }
                supposed.names.portals.insert(&name, Arc::new(portal));
                None
            }
            Request::Execute(name) => {
                let known = supposed.names.execute(&name);
                let known = known.or_else(|| self.names.portals.get(&name).cloned());
                let Some(portal) = known else {
                    let unknown = Arc::new(Portal::unknown());
                    let subject = Subject { portal: name.text(), ..Subject::portal(&unknown, true) };
                    return Some((subject, Some(unknown)));
                };
                self.names.portals.told_with(&name, &portal);
                self.names.statements.told_with(&portal.prepared.name, &portal.prepared);
                let values = supposed.afford(portal.values.cost());
                Some((Subject::portal(&portal, values), Some(portal)))
            }
            _ => None,
        }
    }
}
