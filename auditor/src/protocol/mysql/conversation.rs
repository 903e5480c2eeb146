//! Which answer belongs to which command.
//!
//! The server answers in the order of the commands, so commands wait in a queue and each packet is held against its head; what
//! the packet is follows from that and from what came before it. What numbers of prepared statements mean is settled as the answers
//! come, see [`super::statements`]. One record comes out of each command, except of those that are steps to another's: preparing what
//! was then prepared, sending a value in pieces, closing. A record ends with the packet that says that no other result follows.
//!
//! What the client sends is a command, unless the server has asked for something else: a file, or a proof of identity. Outside
//! of compressed frames servers hold packets against their numbers, so one that is neither is a violation.
//!
//! Memory is bounded: texts and values beyond [`MAX_QUEUED_BYTES`] of unanswered commands are let go of (and their records say so), and
//! more than [`MAX_QUEUED`] unanswered commands are a violation.

use std::collections::VecDeque;
use std::sync::Arc;

use super::answer::{self, Answer, Done};
use super::body::ExecuteBody;
use super::capability::Capabilities;
use super::field;
use super::packet::Head;
use super::record::{Subject, Unit};
use super::request::{self, Execute, Given, Request};
use super::statements::{Prepared, Statements};
use crate::clock::Boottime;
use crate::protocol::{Limits, Login, Observation, Opaque, Outcome};

/// Commands that may wait for an answer.
const MAX_QUEUED: usize = 1 << 16;
/// Bytes that they may take.
const MAX_QUEUED_BYTES: usize = 16 << 20;
/// Columns kept of one result.
pub(super) const MAX_COLUMNS: usize = 128;
/// Bytes kept of OK, which may list what has changed in the session.
const OK_BYTES: usize = 4 << 10;
const ERROR_BYTES: usize = 2 << 10;
const COLUMN_BYTES: usize = 2 << 10;

/// What does not follow the protocol.
pub(super) type Violation = String;

/// A command that waits for its answer.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Pending {
    pub(super) request: Request,
    started: Boottime,
    size: u64,
}

/// What the next packet of the answer is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) enum Expect {
    /// The first of a result.
    #[default]
    First,
    /// Definitions of so many columns.
    Columns(u64),
    /// The EOF behind them.
    ColumnsEnd,
    Rows,
    /// Definitions, up to an EOF.
    Fields,
    /// Definitions of a prepared statement's parameters, then of so many columns.
    Parameters(u16, u16),
    ParametersEnd(u16),
    PreparedColumns(u16),
    PreparedColumnsEnd,
}

/// The state of one session.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Conversation {
    pub(super) limits: Limits,
    pub(super) capabilities: Capabilities,
    login: Login,
    /// Bytes that it takes, here and in what is kept of the connection for its records.
    login_bytes: usize,
    pub(super) queue: VecDeque<Pending>,
    queued_bytes: usize,
    pub(super) statements: Statements,
    /// What the number of the command that is answered now stands for.
    #[serde(with = "crate::shared::option")]
    pub(super) current: Option<Arc<Prepared>>,
    pub(super) expect: Expect,
    pub(super) unit: Unit,
    /// The server reads a file, up to an empty packet.
    pub(super) file: bool,
    /// The server has asked for a proof of identity.
    pub(super) asked: bool,
    /// The server's side cannot be read any more.
    pub(super) deaf: bool,
    sequence: u64,
}

impl Conversation {
    /// The session of this client.
    pub(super) fn new(limits: Limits, capabilities: Capabilities, login: Login) -> Self {
        Self {
            limits,
            capabilities,
            login_bytes: 2 * login.memory(),
            login,
            queue: VecDeque::new(),
            queued_bytes: 0,
            statements: Statements::default(),
            current: None,
            expect: Expect::First,
            unit: Unit::default(),
            file: false,
            asked: false,
            deaf: false,
            sequence: 0,
        }
    }

    /// Whether the client's next message is what the server has asked for, and not a command.
    pub(super) fn takes_data(&self, sequence: u8, compressed: bool) -> Result<bool, Violation> {
        if self.file || (self.asked && sequence != 0) {
            return Ok(true);
        }
        match (sequence, compressed) {
            (0, _) | (_, true) => Ok(false),
            // What was asked for is not known.
            _ if self.deaf => Ok(true),
            _ => Err(format!("packet number {sequence} where a command begins")),
        }
    }

    /// What the server has asked for.
    pub(super) fn data(&mut self, head: Head) {
        if let Some(pending) = self.queue.front_mut() {
            pending.size = pending.size.saturating_add(head.size);
        }
        if self.file {
            self.file = head.size > 4;
        } else {
            self.asked = false;
        }
    }

    /// What a statement's number stands for, if nothing that may change it is under way.
    pub(super) fn known(&self, number: u32) -> Option<Arc<Prepared>> {
        self.statements.get(number).filter(|_| self.queue.is_empty()).cloned()
    }

    /// Takes a command.
    pub(super) fn request(
        &mut self,
        mut request: Request,
        head: Head,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        if self.queue.len() >= MAX_QUEUED {
            return Err(format!("more than {MAX_QUEUED} commands without an answer"));
        }
        // One statement of the longest kind always fits.
        let room = MAX_QUEUED_BYTES.max(2 * self.limits.max_statement_bytes);
        if self.queued_bytes + request.cost() > room {
            if let Some(subject) = Subject::sent(&request) {
                self.give_out(subject, at, out);
            }
            request.strip();
        }
        self.queued_bytes += request.cost();
        self.queue.push_back(Pending { request, started: head.started, size: head.size });
        if self.deaf {
            self.without_answers(true, at, out);
        } else if self.queue.len() == 1 {
            self.begin();
        }
        Ok(())
    }

    /// Takes the head of the queue, and begins with the next.
    pub(super) fn pop(&mut self) -> Option<Pending> {
        let pending = self.queue.pop_front()?;
        self.queued_bytes = self.queued_bytes.saturating_sub(pending.request.cost());
        // What is charged for it is its length.
        if self.queue.capacity() > 64.max(4 * self.queue.len()) {
            self.queue.shrink_to(2 * self.queue.len());
        }
        Some(pending)
    }

    /// The head of the queue is answered next; those that are not answered are over at once.
    pub(super) fn begin(&mut self) {
        self.expect = Expect::First;
        while let Some(Pending { request, .. }) = self.queue.front() {
            match request {
                Request::LongData(_) | Request::Statement(request::STMT_CLOSE, _) | Request::Quit => {
                    let Some(pending) = self.pop() else { return };
                    self.silent(&pending);
                }
                Request::Execute(_) => return self.resolve(),
                Request::Statement(request::STMT_FETCH, _) => {
                    self.expect = Expect::Rows;
                    return;
                }
                Request::Other(request::FIELD_LIST, _) => {
                    self.expect = Expect::Fields;
                    return;
                }
                _ => return,
            }
        }
    }

    /// A command that the server does not answer.
    pub(super) fn silent(&mut self, pending: &Pending) {
        match &pending.request {
            Request::LongData(data) => {
                let (number, place, limits) = (data.number, data.place, self.limits);
                self.statements.send(number, place, &data.head, data.length, pending.size, limits);
            }
            Request::Statement(_, number) => self.statements.remove(*number),
            _ => {}
        }
    }

    /// What the execution at the queue's head executes, now that everything before it is answered.
    pub(super) fn resolve(&mut self) {
        let (limits, capabilities) = (self.limits, self.capabilities);
        let Some(Pending { request, size, .. }) = self.queue.front_mut() else { return };
        let before = request.cost();
        let Request::Execute(execute) = request else { return };
        let number = execute.number;
        self.current = self.statements.execute(number);
        let Some(prepared) = &self.current else { return };
        if let Given::Raw(raw, whole) = &execute.values {
            let values = ExecuteBody::values(raw, *whole, execute.bulk, prepared, capabilities, limits);
            execute.values = Given::Read(values);
        }
        if let Execute { values: Given::Read(values), bulk: false, .. } = &mut **execute
            && let Some(types) = values.types.take()
        {
            self.statements.typed(number, types);
        }
        *size += self.statements.forget_sent(number);
        self.queued_bytes = self.queued_bytes.saturating_sub(before) + request.cost();
    }

    /// How much matters of a packet of the answer that begins with this byte.
    #[inline]
    pub(super) fn keep(&self, first: u8) -> usize {
        match (self.expect, first) {
            (_, answer::ERR) => ERROR_BYTES,
            (Expect::Rows | Expect::Fields, answer::EOF) => OK_BYTES,
            (Expect::Rows | Expect::Fields | Expect::Parameters(..), _) => 0,
            (Expect::Columns(_) | Expect::PreparedColumns(_), _) => {
                if self.limits.columns && self.unit.columns.len() < MAX_COLUMNS { COLUMN_BYTES } else { 0 }
            }
            _ => OK_BYTES,
        }
    }

    /// Takes a packet of the server's. What it answers is why nothing can be read from here on, if so.
    pub(super) fn answer(
        &mut self,
        answer: Answer<'_>,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<Option<Opaque>, Violation> {
        let failed = if answer.first == Some(answer::ERR) { Some(answer::error(answer.body)) } else { None };
        let Some(front) = self.queue.front() else {
            // A session that is ended from elsewhere is told so.
            let Some(Some(error)) = failed else { return Err("an answer to no command".into()) };
            out.push(Observation::Refused(error));
            return Ok(None);
        };
        self.unit.answered(answer);
        match failed {
            // How far a long command is.
            Some(None) => return Ok(None),
            Some(Some(error)) => {
                self.unit.incomplete |= answer.hole;
                self.finish(Outcome::Failed(error), at, out);
                return Ok(None);
            }
            None => {}
        }
        if self.expect == Expect::Rows {
            if answer.is_end(self.capabilities) {
                self.end_of_result(answer, Some(self.unit.rows), at, out);
            } else {
                self.unit.rows += 1;
            }
            return Ok(None);
        }
        if self.expect != Expect::First {
            return self.definition(answer, at, out).map(|()| None);
        }
        match (&front.request, answer.first) {
            (Request::Other(request::BINLOG_DUMP | request::BINLOG_DUMP_GTID | request::CLONE, _), first) => {
                let over = first == Some(answer::EOF) && answer.is_end(self.capabilities);
                self.finish(Outcome::Completed, at, out);
                return Ok((!over).then_some(Opaque::Replication));
            }
            // Any packet is the answer.
            (Request::Other(request::STATISTICS, _), _) => self.finish(Outcome::Completed, at, out),
            (Request::ChangeUser(_), Some(answer::OK)) | (Request::Prepare(_), _) if answer.hole => {
                self.deafen(at, out);
            }
            (Request::ChangeUser(_), first) if first != Some(answer::OK) => self.ask(answer)?,
            (Request::Prepare(_), Some(answer::OK)) => {
                self.prepared(answer)?;
                self.give_out_due(at, out);
            }
            (Request::Prepare(_), _) => return Err("neither a statement nor an error".into()),
            (_, Some(answer::OK)) => self.end_of_result(answer, None, at, out),
            (_, Some(answer::EOF)) if answer.is_end(self.capabilities) => {
                self.end_of_result(answer, None, at, out);
            }
            (Request::Query(_) | Request::Execute(_), Some(answer::LOCAL_INFILE)) => {
                if self.queue.len() > 1 {
                    return Err("a command where the server waits for a file".into());
                }
                let name = answer.body.get(1..).unwrap_or_default();
                self.unit.file(field::text(&name[..name.len().min(COLUMN_BYTES)]));
                self.file = true;
            }
            _ if answer.hole => self.deafen(at, out),
            (_, Some(_)) => self.begin_result(answer),
            (_, None) => return Err("an empty packet for an answer".into()),
        }
        Ok(None)
    }

    /// The end of one result, of so many rows or with what it affected; and of the command, unless another follows.
    pub(super) fn end_of_result(
        &mut self,
        answer: Answer<'_>,
        rows: Option<u64>,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) {
        if answer.hole {
            // Whether another follows is not known.
            return self.deafen(at, out);
        }
        let mut done = Done::read(answer, self.capabilities);
        self.unit.result(rows.unwrap_or(done.affected), &done);
        if let Some(database) = done.database.take() {
            self.changed_database(database, out);
        }
        if done.goes_on() {
            self.expect = Expect::First;
        } else {
            self.finish(Outcome::Completed, at, out);
        }
    }

    /// The server wants something else for a proof of identity, or says more.
    fn ask(&mut self, answer: Answer<'_>) -> Result<(), Violation> {
        if self.queue.len() > 1 {
            return Err("a command where the server waits for a proof of identity".into());
        }
        self.asked = !super::is_accepted_already(answer.body);
        Ok(())
    }

    /// The end of the command that is answered.
    fn finish(&mut self, outcome: Outcome, at: Boottime, out: &mut Vec<Observation>) {
        let Some(mut pending) = self.pop() else { return };
        let unit = std::mem::take(&mut self.unit);
        let current = self.current.take();
        self.asked = false;
        let mut login = None;
        if outcome == Outcome::Completed {
            match &mut pending.request {
                Request::ChangeUser(user) => {
                    self.statements.clear();
                    login = Some((**user).clone());
                }
                Request::Database(name) => self.changed_database(field::text(&name.kept), out),
                Request::Query(query) if !self.capabilities.has(Capabilities::SESSION_TRACK) => {
                    if let Some(database) = used(&query.text) {
                        self.changed_database(database, out);
                    }
                }
                Request::Statement(request::STMT_RESET, number) => {
                    self.statements.forget_sent(*number);
                }
                Request::Other(request::RESET_CONNECTION, _) => self.statements.clear(),
                Request::Execute(execute) => self.statements.describe(execute.number, &unit.columns),
                _ => {}
            }
        }
        self.record(pending, current, unit, outcome, at, out);
        if let Some(login) = login {
            self.login = login;
            self.tell_login(out);
            out.push(Observation::Authenticated);
        }
        self.begin();
    }

    /// Gives out what was forgotten, and may be executed without being told again.
    pub(super) fn give_out_due(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        for prepared in self.statements.due() {
            self.give_out(Subject::prepared(&prepared), at, out);
        }
    }

    fn give_out(&mut self, subject: Subject, at: Boottime, out: &mut Vec<Observation>) {
        self.sequence += 1;
        let statement = subject.record(Unit::default(), self.sequence, Outcome::Prepared, (at, 0), at);
        out.push(Observation::Statement(statement));
    }

    pub(super) fn record(
        &mut self,
        pending: Pending,
        current: Option<Arc<Prepared>>,
        unit: Unit,
        outcome: Outcome,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) {
        let subject = match pending.request {
            Request::Prepare(_) => Subject::prepare(pending.request),
            request => Subject::of(request, current.as_deref()),
        };
        self.sequence += 1;
        let request = (pending.started, pending.size);
        out.push(Observation::Statement(subject.record(unit, self.sequence, outcome, request, at)));
    }

    fn changed_database(&mut self, name: String, out: &mut Vec<Observation>) {
        let name = (!name.is_empty()).then_some(name);
        if self.login.database != name {
            self.login.database = name;
            self.tell_login(out);
        }
    }

    fn tell_login(&mut self, out: &mut Vec<Observation>) {
        self.login_bytes = 2 * self.login.memory();
        out.push(Observation::Login(self.login.clone()));
    }

    /// Whether the server's side was lost.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// Bytes that it keeps, roughly.
    pub(super) fn memory(&self) -> usize {
        self.queue.len() * size_of::<Pending>()
            + self.queued_bytes
            + self.statements.memory()
            + self.unit.memory()
            + self.login_bytes
    }
}

/// The database that a text which is nothing but `USE name` makes the current one.
fn used(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?.trim().trim_end_matches(';').trim_end();
    let (word, name) = text.split_once(|c: char| c.is_ascii_whitespace())?;
    let name = name.trim_start();
    let plain = |name: &str| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..))
    };
    match name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) {
        _ if !word.eq_ignore_ascii_case("use") || name.is_empty() => None,
        Some(name) => (!name.contains('`')).then(|| name.to_owned()),
        None => plain(name).then(|| name.to_owned()),
    }
}
