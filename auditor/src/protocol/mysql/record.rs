//! The record of one statement while it is put together.

use bytes::Bytes;

use super::answer::{Answer, Done};
use super::request::{self, Execute, Given, Request};
use super::statements::{Prepared, columns_cost};
use crate::clock::Boottime;
use crate::protocol::{Column, CommandResult, Outcome, Parameter, ServerError, Statement, StatementKind};

/// Results kept of one command.
const MAX_RESULTS: usize = 1024;

/// What has been seen of the answers to the command that is answered now.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Unit {
    response_bytes: u64,
    results: Vec<CommandResult>,
    /// Columns of the last result.
    pub(super) columns: Vec<Column>,
    /// Rows of the result that is under way.
    pub(super) rows: u64,
    warnings: u64,
    /// The file that the server asked for.
    file: Option<String>,
    transaction: Option<char>,
    /// Something is missing.
    pub(super) incomplete: bool,
    /// Bytes that results and columns take, roughly.
    kept: usize,
}

impl Unit {
    /// Bytes that it takes beside its own size, roughly.
    pub(super) fn memory(&self) -> usize {
        self.kept + self.file.as_ref().map_or(0, String::len)
    }

    /// Adds a packet.
    #[inline]
    pub(super) fn answered(&mut self, answer: Answer<'_>) {
        self.response_bytes += answer.head.size;
    }

    /// Another result begins.
    pub(super) fn begin_columns(&mut self) {
        self.kept = self.kept.saturating_sub(columns_cost(&self.columns));
        self.columns = Vec::new();
    }

    /// Adds a column.
    pub(super) fn column(&mut self, column: Column) {
        self.kept += size_of::<Column>() + column.name.len() + column.type_name.len();
        self.columns.push(column);
    }

    /// The server asks for a file.
    pub(super) fn file(&mut self, name: String) {
        self.file = Some(name);
    }

    /// The end of one result: so many rows were returned, or affected.
    pub(super) fn result(&mut self, rows: u64, done: &Done) {
        self.rows = 0;
        self.warnings += u64::from(done.warnings);
        self.transaction = Some(done.transaction());
        if self.results.len() < MAX_RESULTS {
            self.kept += size_of::<CommandResult>();
            // The server has no name for what it has done.
            self.results.push(CommandResult { tag: String::new(), rows: Some(rows) });
        } else {
            self.incomplete = true;
        }
    }

    fn notices(&mut self) -> Vec<ServerError> {
        let notice =
            |severity: &str, message| ServerError { code: String::new(), severity: severity.into(), message };
        let mut notices = Vec::new();
        if let Some(name) = self.file.take() {
            notices.push(notice("LOCAL INFILE", name));
        }
        match self.warnings {
            0 => {}
            1 => notices.push(notice("WARNING", "1 warning".into())),
            warnings => notices.push(notice("WARNING", format!("{warnings} warnings"))),
        }
        notices
    }
}

/// What a record is about.
#[derive(Debug)]
pub(super) struct Subject {
    kind: StatementKind,
    text: Bytes,
    text_length: u64,
    name: Option<String>,
    parameters: Vec<Parameter>,
    columns: Vec<Column>,
    incomplete: bool,
}

impl Subject {
    /// What this request is about. `prepared`: what its number stands for, where it has one.
    pub(super) fn of(request: Request, prepared: Option<&Prepared>) -> Self {
        match request {
            Request::Query(query) | Request::Prepare(query) => Self {
                kind: StatementKind::Simple,
                text: query.text,
                text_length: query.text_length,
                parameters: query.attributes.parameters,
                incomplete: !query.whole,
                ..Self::admin("")
            },
            Request::Execute(execute) => Self::execution(*execute, prepared),
            Request::Statement(command, number) => {
                let name = request::name(command);
                Self { name: Some(number.to_string()), ..Self::admin(&format!("{name} {number}")) }
            }
            Request::ChangeUser(login) => {
                Self::admin(&format!("COM_CHANGE_USER {}", login.user.as_deref().unwrap_or_default()))
            }
            Request::Database(name) => {
                Self::admin(&format!("COM_INIT_DB {}", String::from_utf8_lossy(&name.kept)))
            }
            Request::Other(_, text) => Self::admin(&String::from_utf8_lossy(&text)),
            Request::LongData(_) | Request::Quit => Self::admin(""),
        }
    }

    /// A statement that is forgotten.
    pub(super) fn prepared(prepared: &Prepared) -> Self {
        Self {
            kind: StatementKind::Prepared,
            text: prepared.text.clone(),
            text_length: prepared.text_length,
            name: Some(prepared.number.to_string()),
            incomplete: prepared.incomplete,
            ..Self::admin("")
        }
    }

    /// The text of a command that is going to be without.
    pub(super) fn sent(request: &Request) -> Option<Self> {
        let (kind, query) = match request {
            Request::Query(query) => (StatementKind::Simple, query),
            Request::Prepare(query) => (StatementKind::Prepared, query),
            _ => return None,
        };
        let (text, text_length, incomplete) = (query.text.clone(), query.text_length, !query.whole);
        Some(Self { kind, text, text_length, incomplete, ..Self::admin("") })
    }

    /// A text that was to be prepared.
    pub(super) fn prepare(request: Request) -> Self {
        Self { kind: StatementKind::Prepared, ..Self::of(request, None) }
    }

    fn admin(text: &str) -> Self {
        Self {
            kind: StatementKind::Admin,
            text: Bytes::copy_from_slice(text.as_bytes()),
            text_length: text.len() as u64,
            name: None,
            parameters: Vec::new(),
            columns: Vec::new(),
            incomplete: false,
        }
    }

    fn execution(execute: Execute, prepared: Option<&Prepared>) -> Self {
        let values = match execute.values {
            Given::Read(values) => values,
            Given::Raw(..) => super::values::Values::unknown(),
        };
        // A number that stands for "the last one" is no name.
        let number = prepared.map_or(execute.number, |prepared| prepared.number);
        let name = (number != u32::MAX).then(|| number.to_string());
        let incomplete =
            !execute.whole || values.incomplete || prepared.is_none_or(|prepared| prepared.incomplete);
        Self {
            kind: StatementKind::Prepared,
            text: prepared.map(|prepared| prepared.text.clone()).unwrap_or_default(),
            text_length: prepared.map_or(0, |prepared| prepared.text_length),
            name,
            parameters: values.parameters,
            columns: prepared.map(|prepared| prepared.columns.clone()).unwrap_or_default(),
            incomplete,
        }
    }

    /// The finished record. `size`: bytes of the request.
    pub(super) fn record(
        self,
        mut unit: Unit,
        sequence: u64,
        outcome: Outcome,
        (started, size): (Boottime, u64),
        finished: Boottime,
    ) -> Box<Statement> {
        let kind = if unit.file.is_some() { StatementKind::Copy } else { self.kind };
        let notices = unit.notices();
        Box::new(Statement {
            sequence,
            kind,
            text: self.text,
            text_length: self.text_length,
            name: self.name,
            portal: None,
            parameters: self.parameters,
            columns: match outcome {
                _ if !unit.columns.is_empty() => unit.columns,
                Outcome::Completed => self.columns,
                // What was described, but never returned.
                _ => Vec::new(),
            },
            results: unit.results,
            outcome,
            notices,
            transaction: unit.transaction,
            started,
            finished,
            request_bytes: size,
            response_bytes: unit.response_bytes,
            incomplete: self.incomplete || unit.incomplete,
        })
    }
}
