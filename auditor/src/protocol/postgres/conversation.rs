//! Which response answers which request.
//!
//! The server answers in the order of the requests, so requests wait in a queue and each response is held against its
//! head. What names mean is settled as the answers come, see [`super::names`]. One record comes out of each Query, each
//! FunctionCall and each Execute:
//!
//! - A Query ends with ReadyForQuery, because only that says that no further command of it follows.
//! - An Execute ends with its CommandComplete, EmptyQueryResponse, PortalSuspended or ErrorResponse. If the Sync behind it
//!   has been sent, the record waits for that Sync's ReadyForQuery, which tells the transaction's state and is already on
//!   its way; committing at the Sync may also fail the statement after the fact.
//! - After an error in the extended protocol the server skips to the next Sync. Executes in between become records that say
//!   `Skipped`. A Parse, Bind or Describe that fails is told with the Execute that it was meant for, or alone.
//! - During COPY FROM STDIN the server ignores Sync, so those that were sent are not waited for.
//!
//! Memory is bounded: texts and values beyond [`MAX_QUEUED_BYTES`] of unanswered requests are let go of (and their records
//! say so), and more than [`MAX_QUEUED`] unanswered requests are a violation. A response that answers nothing is one, too.

use std::collections::VecDeque;

use super::frame::{Ended, Head};
use super::names::{Name, Names};
use super::record::{Subject, Unit, add_notice};
use super::request::{Request, Target};
use super::response::{self, Response};
use super::startup::Replication;
use super::unanswered::{Failure, Supposed};
use crate::clock::Boottime;
use crate::protocol::{CommandResult, Limits, Login, Observation, Outcome, Statement, StatementKind};

/// Requests that may wait for an answer. A driver that loads rows through a pipeline has as many under way as the buffers of
/// the sockets hold, which is some hundred thousand.
const MAX_QUEUED: usize = 1 << 19;
/// Bytes that they may take.
pub(super) const MAX_QUEUED_BYTES: usize = 16 << 20;

/// What does not follow the protocol.
pub(super) type Violation = String;

/// A request that waits for its answer.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Pending {
    pub(super) request: Request,
    pub(super) started: Boottime,
    pub(super) size: u64,
}

/// The state of one session.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Conversation {
    pub(super) limits: Limits,
    replication: Replication,
    login: Login,
    /// Bytes that it takes, here and in what is kept of the connection for its records.
    login_bytes: usize,
    authenticated: bool,
    /// What the server said about authentication fell into a hole.
    authentication_lost: bool,
    /// The first ReadyForQuery has come.
    ready: bool,
    pub(super) queue: VecDeque<Pending>,
    queued_bytes: usize,
    pub(super) queued_syncs: usize,
    /// Requests that have left the queue since the beginning.
    left: u64,
    /// Which request, counted from the beginning, COPY data belongs to.
    last_statement: Option<u64>,
    pub(super) names: Names,
    pub(super) unit: Unit,
    /// The record of the Execute in front of a Sync.
    pub(super) held: Option<Box<Statement>>,
    /// The server skips to the next Sync; and the failure that no record tells of yet.
    pub(super) skipping: Option<Option<Box<Failure>>>,
    /// The server reads COPY data.
    copy_in: bool,
    /// Syncs that the server ignored, or may have, because it was reading COPY data.
    pub(super) ignored_syncs: u64,
    /// The server's side cannot be read any more: what names mean is a supposition from here on.
    pub(super) deaf: Option<Box<Supposed>>,
    pub(super) sequence: u64,
}

impl Conversation {
    /// The session of this client.
    pub(super) fn new(limits: Limits, login: Login, replication: Replication) -> Self {
        Self {
            limits,
            replication,
            login_bytes: 2 * login.memory(),
            login,
            authenticated: false,
            authentication_lost: false,
            ready: false,
            queue: VecDeque::new(),
            queued_bytes: 0,
            queued_syncs: 0,
            left: 0,
            last_statement: None,
            names: Names::default(),
            unit: Unit::default(),
            held: None,
            skipping: None,
            copy_in: false,
            ignored_syncs: 0,
            deaf: None,
            sequence: 0,
        }
    }

    /// Takes a request.
    pub(super) fn request(
        &mut self,
        request: Request,
        head: Head,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        match &request {
            Request::Flush | Request::Terminate => return Ok(()),
            Request::Credentials if self.authenticated => {
                return Err("credentials after authentication".into());
            }
            Request::Credentials => return Ok(()),
            Request::CopyData => {
                self.count_copy_data(head.size());
                return Ok(());
            }
            Request::CopyEnd => {
                self.count_copy_data(head.size());
                if std::mem::take(&mut self.copy_in) || self.queue.is_empty() {
                    return Ok(());
                }
            }
            Request::Sync if self.copy_in => {
                self.ignored_syncs += 1;
                return Ok(());
            }
            Request::Sync => self.queued_syncs += 1,
            Request::Query(_) | Request::Execute(_) | Request::Function(_) => {
                self.last_statement = Some(self.left + self.queue.len() as u64);
            }
            _ => {}
        }
        self.push(Pending { request, started: head.started, size: head.size() }, at, out)?;
        if self.deaf.is_some() {
            self.suppose(at, out);
        }
        Ok(())
    }

    fn push(
        &mut self,
        mut pending: Pending,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        if self.queue.len() >= MAX_QUEUED {
            return Err(format!("more than {MAX_QUEUED} requests without an answer"));
        }
        // One statement of the longest kind always fits.
        let room = MAX_QUEUED_BYTES.max(2 * self.limits.max_statement_bytes);
        if self.queued_bytes + pending.request.cost() > room {
            let text = self.text_of(&pending.request);
            self.give_out(text, at, out);
            pending.request.strip();
        }
        self.queued_bytes += pending.request.cost();
        self.queue.push_back(pending);
        Ok(())
    }

    /// Takes the head of the queue and counts it towards the next record.
    pub(super) fn pop(&mut self) -> Option<Request> {
        let pending = self.queue.pop_front()?;
        self.left += 1;
        self.queued_bytes = self.queued_bytes.saturating_sub(pending.request.cost());
        match pending.request {
            Request::Sync => self.queued_syncs -= 1,
            Request::CopyEnd => {}
            _ => self.unit.request(pending.started, pending.size),
        }
        // What is charged for it is its length.
        if self.queue.capacity() > 64.max(4 * self.queue.len()) {
            self.queue.shrink_to(2 * self.queue.len());
        }
        Some(pending.request)
    }

    pub(super) fn count_copy_data(&mut self, bytes: u64) {
        let index = self.last_statement.and_then(|number| number.checked_sub(self.left));
        let statement = index.and_then(|index| self.queue.get_mut(usize::try_from(index).ok()?));
        if let Some(statement) = statement {
            statement.size += bytes;
        }
    }

    /// Takes a response.
    pub(super) fn response(
        &mut self,
        response: Response<'_>,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        let result = self.turn(response, at, out);
        let due = self.names.due();
        self.give_out(due, at, out);
        result
    }

    fn turn(
        &mut self,
        response: Response<'_>,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        // Asynchronous messages may come anywhere, and those of the start-up only there.
        match response.head.kind {
            b'A' => return Ok(()),
            b'S' => return self.parameter_status(response, out),
            b'N' => return self.notice(response),
            b'R' | b'K' | b'v' if !self.ready => return self.authentication(response, out),
            _ => {}
        }
        // The end of COPY data that the server did not ask for is ignored by it.
        while self.queue.front().is_some_and(|pending| matches!(pending.request, Request::CopyEnd)) {
            self.pop();
        }
        match response.head.kind {
            b'E' => self.error(response, at, out),
            b'Z' => self.ready_for_query(response, at, out),
            _ if !self.ready || self.skipping.is_some() => Err(out_of_turn(response)),
            _ => self.answer(response, at, out),
        }
    }

    /// Takes rows that nobody has looked at, as if they had come one by one.
    pub(super) fn rows(
        &mut self,
        ended: Ended,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        let Some(further) = ended.messages.checked_sub(1) else { return Ok(()) };
        // The first decides whether there may be any here; no row changes that.
        let head = Head { kind: ended.kind, body: 0, started: at };
        let first = Response { head, body: &[], hole: false };
        self.response(first, at, out)?;
        self.unit.response_bytes += ended.bytes.saturating_sub(head.size());
        if ended.kind == b'D' {
            self.unit.rows += further;
        }
        Ok(())
    }

    /// Bytes that it keeps, roughly.
    pub(super) fn memory(&self) -> usize {
        let held = self.held.as_deref().map_or(0, |held| {
            // Its text and values are no longer than what they came in, or its text is that of a name.
            let most = self.limits.max_statement_bytes.saturating_mul(2);
            held.text.len() + usize::try_from(held.request_bytes).unwrap_or(most).min(most)
        });
        let failure = self.skipping.iter().flatten().map(|failure| failure.memory()).sum::<usize>();
        self.queue.len() * size_of::<Pending>()
            + self.queued_bytes
            + self.names.memory()
            + self.unit.memory()
            + self.deaf.as_deref().map_or(0, Supposed::memory)
            + self.login_bytes
            + held
            + failure
    }

    /// Whether answers are read: the session has begun, and the place of the next message is known.
    pub(super) fn follows_answers(&self) -> bool {
        self.ready && self.deaf.is_none()
    }

    fn authentication(
        &mut self,
        response: Response<'_>,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        if response.head.kind == b'R' {
            self.authentication_lost |= response.hole;
            if response.body == [0; 4] {
                self.accepted(out);
            }
        }
        Ok(())
    }

    fn accepted(&mut self, out: &mut Vec<Observation>) {
        if !std::mem::replace(&mut self.authenticated, true) {
            out.push(Observation::Authenticated);
        }
    }

    fn parameter_status(
        &mut self,
        response: Response<'_>,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        let Some((name, value)) = response::parameter_status(response.body) else { return Ok(()) };
        let current = match name {
            b"application_name" => &mut self.login.application,
            b"session_authorization" => &mut self.login.user,
            // What statements mean hangs on these. Of the others, only what is not the default is worth a word.
            b"client_encoding" if self.is_known_encoding(value) => return Ok(()),
            b"search_path" | b"standard_conforming_strings" | b"client_encoding" => {
                let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
                let default = match &*name {
                    "search_path" => "",
                    "client_encoding" => "UTF8",
                    _ => "on",
                };
                if self.login.set(&name, &value, default) {
                    self.login_bytes = 2 * self.login.memory();
                    out.push(Observation::Login(self.login.clone()));
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        let value = String::from_utf8_lossy(value);
        if current.as_deref().unwrap_or_default() != value {
            *current = Some(value.into_owned());
            self.login_bytes = 2 * self.login.memory();
            out.push(Observation::Login(self.login.clone()));
        }
        Ok(())
    }

    /// Whether what the client said of its character set is as good as what the server says.
    fn is_known_encoding(&self, value: &[u8]) -> bool {
        let known = self.login.parameters.iter().find(|(name, _)| name == "client_encoding");
        let is_safe = |value: &str| crate::statement::is_safe_encoding(value);
        known.is_none_or(|(_, known)| is_safe(known)) && std::str::from_utf8(value).is_ok_and(is_safe)
    }

    fn notice(&mut self, response: Response<'_>) -> Result<(), Violation> {
        if let Some(held) = &mut self.held {
            add_notice(&mut held.notices, response::error(response.body));
        } else if self.ready && !self.queue.is_empty() {
            self.unit.response(response);
            self.unit.notice(response::error(response.body));
        }
        Ok(())
    }

    /// Holds a response against the request that it must answer.
    fn answer(
        &mut self,
        response: Response<'_>,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        let Some(front) = self.queue.front() else { return Err(out_of_turn(response)) };
        self.unit.response(response);
        self.unit.answered = true;
        match (response.head.kind, &front.request) {
            (b'D', Request::Query(_) | Request::Execute(_)) => self.unit.rows += 1,
            (b'd' | b'c', Request::Query(_) | Request::Execute(_)) => {}
            (b'T', Request::Query(_)) => self.unit.describe(response::columns(response.body)),
            (b'C', Request::Query(query)) => {
                let whole = query.whole && query.text.len() as u64 == query.text_length;
                let text = whole.then(|| query.text.clone());
                let result = response::command(response.body);
                self.copy_in_done();
                self.forget_names(&result.tag, text.as_deref());
                self.unit.result(result);
            }
            (b'I', Request::Query(_)) => {
                self.unit.result(CommandResult { tag: String::new(), rows: None });
            }
            (b'C' | b'I' | b's', Request::Execute(_)) => self.executed(response, at, out),
            (b'1', Request::Parse(_)) => self.parsed(),
            (b'2', Request::Bind(_)) => self.bound(),
            (b'3', Request::Close(..)) => self.closed(),
            (b't', Request::Describe(Target::Statement, name)) => {
                if self.limits.parameters && !response.hole {
                    let types = response::types(response.body);
                    self.names.statements.change(name, |prepared| prepared.types = types);
                }
            }
            (b'T' | b'n', Request::Describe(..)) => self.described(response),
            (b'G', Request::Query(_) | Request::Execute(_)) => {
                self.unit.copy = true;
                self.copy_in_begun();
            }
            (b'H', Request::Query(_) | Request::Execute(_)) => self.unit.copy = true,
            (b'W', Request::Query(_) | Request::Execute(_)) => self.unit.stream = true,
            (b'V', Request::Function(_)) => {}
            _ => return Err(out_of_turn(response)),
        }
        Ok(())
    }

    /// Makes a record of the subject and of all that was counted for it. Whatever else has a name may have been executed within, by SQL or
    /// by a function, so that is given out first.
    pub(super) fn record(
        &mut self,
        subject: Subject,
        outcome: Outcome,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Box<Statement> {
        self.names.tell_named();
        let due = self.names.due();
        self.give_out(due, at, out);
        self.sequence += 1;
        subject.record(std::mem::take(&mut self.unit), self.sequence, outcome, at)
    }

    pub(super) fn kind_of(&self, text: &[u8]) -> StatementKind {
        match self.replication {
            Replication::Physical => StatementKind::Admin,
            Replication::Logical if is_replication_command(text) => StatementKind::Admin,
            _ => StatementKind::Simple,
        }
    }

    fn error(
        &mut self,
        response: Response<'_>,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        let error = response::error(response.body);
        let Some(front) = self.queue.front().filter(|_| self.ready) else {
            out.push(Observation::Refused(error));
            return Ok(());
        };
        if self.skipping.is_some() {
            // The server is going down while it skips; the statement that failed has its own error.
            return Ok(());
        }
        self.copy_in = false;
        if let (Request::Sync, Some(held)) = (&front.request, &mut self.held) {
            // The statement was done, but committing it failed.
            held.outcome = Outcome::Failed(error);
            held.finished = at;
            held.response_bytes += response.head.size();
            return Ok(());
        }
        self.unit.response(response);
        match &front.request {
            Request::Query(_) | Request::Function(_) => {
                self.unit.answered = true;
                self.unit.fail(error);
            }
            Request::Sync => {
                self.unit.request(front.started, front.size);
                let subject = Subject::text(StatementKind::Admin, "Sync".into(), 4);
                let statement = self.record(subject, Outcome::Failed(error), at, out);
                out.push(Observation::Statement(statement));
            }
            Request::Execute(_) => {
                if let Some(Request::Execute(portal)) = self.pop() {
                    let subject = self.execution(&portal);
                    self.held = Some(self.record(subject, Outcome::Failed(error), at, out));
                }
                self.skipping = Some(None);
            }
            _ => self.fail(error, at),
        }
        Ok(())
    }

    fn ready_for_query(
        &mut self,
        response: Response<'_>,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        let transaction = match response.body {
            &[state @ (b'I' | b'T' | b'E')] if response.head.body == 1 => Some(char::from(state)),
            [] if response.hole => None,
            _ => return Err("ReadyForQuery without a transaction state".into()),
        };
        if !self.ready {
            if self.authentication_lost {
                // Nothing but AuthenticationOk leads here.
                self.accepted(out);
            }
            self.ready = self.authenticated;
            return if self.ready { Ok(()) } else { Err(out_of_turn(response)) };
        }
        if let Some(failure) = self.skipping.take() {
            if self.queued_syncs > 0 {
                self.skip_to_sync(failure, transaction, at, out);
            } else if self.ignored_syncs > 0 {
                self.ignored_syncs -= 1;
                self.release(transaction, out);
            } else {
                return Err(out_of_turn(response));
            }
        } else {
            self.end_batch(response, transaction, at, out)?;
        }
        if transaction == Some('I') {
            self.names.tell_portals(None);
            self.names.portals.clear();
        }
        self.unit = Unit::default();
        Ok(())
    }

    /// ReadyForQuery in answer to Query, FunctionCall or Sync.
    fn end_batch(
        &mut self,
        response: Response<'_>,
        transaction: Option<char>,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        match self.queue.front().map(|pending| &pending.request) {
            Some(Request::Sync) => {
                self.pop();
                self.release(transaction, out);
            }
            // Nothing is answered by ReadyForQuery alone, except a Sync.
            Some(Request::Query(_) | Request::Function(_)) if self.unit.answered => {
                self.unit.response(response);
                let Some(request) = self.pop() else { return Ok(()) };
                if matches!(request, Request::Query(_)) {
                    // A Query takes the place of the unnamed statement and portal.
                    let unnamed = Name::Exact(Box::default());
                    self.names.statements.remove(&unnamed);
                    self.names.tell_portals(Some(&unnamed));
                    self.names.portals.remove(&unnamed);
                }
                let outcome = self.unit.error.take().map_or(Outcome::Completed, Outcome::Failed);
                if let Some(subject) = self.immediate(request) {
                    self.held = Some(self.record(subject, outcome, at, out));
                    self.release(transaction, out);
                }
            }
            _ if self.ignored_syncs > 0 => self.ignored_syncs -= 1,
            _ => return Err(out_of_turn(response)),
        }
        Ok(())
    }

    /// What a Query or FunctionCall is about.
    pub(super) fn immediate(&self, request: Request) -> Option<Subject> {
        match request {
            Request::Query(query) => {
                let kind = self.kind_of(&query.text);
                let subject = Subject::text(kind, query.text, query.text_length);
                Some(Subject { incomplete: !query.whole, ..subject })
            }
            Request::Function(function) => {
                let text = format!("function {}", function.oid);
                let length = text.len() as u64;
                let subject = Subject::text(StatementKind::Function, text.into(), length);
                let parameters = function.values.parameters(&[]);
                Some(Subject { parameters, incomplete: !function.whole, ..subject })
            }
            _ => None,
        }
    }

    /// Gives out the record that waited for ReadyForQuery.
    pub(super) fn release(&mut self, transaction: Option<char>, out: &mut Vec<Observation>) {
        if let Some(mut statement) = self.held.take() {
            statement.transaction = transaction;
            out.push(Observation::Statement(statement));
        }
    }

    /// The server reads COPY data now: up to their end it ignores every Sync, also those that it has been sent already.
    fn copy_in_begun(&mut self) {
        self.copy_in = true;
        self.ignored_syncs = 0;
        while let Some(pending) = self.queue.get(1) {
            match pending.request {
                Request::Sync => {
                    self.queued_syncs -= 1;
                    self.ignored_syncs += 1;
                }
                Request::CopyEnd => self.copy_in = false,
                _ => return,
            }
            self.queue.remove(1);
            // The queue's first request keeps its number; those behind it move up.
            self.last_statement =
                self.last_statement.map(|number| if number > self.left { number - 1 } else { number });
            if !self.copy_in {
                return;
            }
        }
    }

    pub(super) fn copy_in_done(&mut self) {
        self.copy_in = false;
        self.ignored_syncs = 0;
    }
}

/// Whether the walsender reads this as one of its own commands rather than as SQL: it goes by the first word.
fn is_replication_command(text: &[u8]) -> bool {
    const COMMANDS: [&str; 9] = [
        "ALTER_REPLICATION_SLOT",
        "BASE_BACKUP",
        "CREATE_REPLICATION_SLOT",
        "DROP_REPLICATION_SLOT",
        "IDENTIFY_SYSTEM",
        "READ_REPLICATION_SLOT",
        "START_REPLICATION",
        "TIMELINE_HISTORY",
        "UPLOAD_MANIFEST",
    ];
    let text = text.trim_ascii_start();
    let end =
        text.iter().position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_').unwrap_or(text.len());
    COMMANDS.iter().any(|command| command.as_bytes().eq_ignore_ascii_case(&text[..end]))
}

fn out_of_turn(response: Response<'_>) -> Violation {
    format!("server message '{}' answers no request", response.head.kind.escape_ascii())
}
