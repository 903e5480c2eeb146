//! The record of one statement while it is put together.

use bytes::Bytes;

use super::names::{Portal, Prepared, columns_cost};
use super::response::Response;
use crate::clock::Boottime;
use crate::protocol::{Column, CommandResult, Outcome, Parameter, ServerError, Statement, StatementKind};

/// Results kept of one Query message; a megabyte of text can hold 100,000 commands.
const MAX_RESULTS: usize = 1024;
/// Notices kept of one statement.
const MAX_NOTICES: usize = 8;

/// What has been seen of the messages that lead up to the next record, and of their answers.
///
/// For a Query that is the message itself. For an Execute it is everything since the last record or Sync: its Parse, Bind
/// and Describe where they come in the same batch.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Unit {
    /// When the first request's first byte passed.
    pub(super) started: Option<Boottime>,
    /// Bytes of the requests.
    pub(super) request_bytes: u64,
    /// Bytes of the responses.
    pub(super) response_bytes: u64,
    /// Completed commands.
    pub(super) results: Vec<CommandResult>,
    /// Columns of the last RowDescription.
    pub(super) columns: Vec<Column>,
    /// Notices.
    pub(super) notices: Vec<ServerError>,
    /// The first error.
    pub(super) error: Option<ServerError>,
    /// DataRow messages.
    pub(super) rows: u64,
    /// Bulk data moves, or has moved.
    pub(super) copy: bool,
    /// A replication stream.
    pub(super) stream: bool,
    /// The server has answered, not only noticed something.
    pub(super) answered: bool,
    /// Something is missing.
    pub(super) incomplete: bool,
    /// Bytes that results, columns, notices and the error take, roughly.
    pub(super) kept: usize,
}

impl Unit {
    /// Bytes that it takes beside its own size, roughly.
    pub(super) fn memory(&self) -> usize {
        self.kept
    }

    /// The columns of a result, instead of any before.
    pub(super) fn describe(&mut self, columns: Vec<Column>) {
        self.kept += columns_cost(&columns);
        self.kept = self.kept.saturating_sub(columns_cost(&self.columns));
        self.columns = columns;
    }

    /// Adds a notice.
    pub(super) fn notice(&mut self, notice: ServerError) {
        self.kept += add_notice(&mut self.notices, notice);
    }

    /// Takes the first error.
    pub(super) fn fail(&mut self, error: ServerError) {
        if self.error.is_none() {
            self.kept += error.memory();
            self.error = Some(error);
        }
    }

    /// Adds a request.
    pub(super) fn request(&mut self, started: Boottime, size: u64) {
        self.started.get_or_insert(started);
        self.request_bytes += size;
    }

    /// Adds a response.
    pub(super) fn response(&mut self, response: Response<'_>) {
        self.response_bytes += response.head.size();
        self.incomplete |= response.hole;
    }

    /// Adds a completed command.
    pub(super) fn result(&mut self, result: CommandResult) {
        if self.results.len() < MAX_RESULTS {
            self.kept += size_of::<CommandResult>() + result.tag.len();
            self.results.push(result);
        } else {
            self.incomplete = true;
        }
    }

    /// Puts what came before this unit in front of it.
    pub(super) fn precede(&mut self, before: Self) {
        self.started = before.started.or(self.started);
        self.request_bytes += before.request_bytes;
        self.response_bytes += before.response_bytes;
        self.incomplete |= before.incomplete;
        for notice in before.notices {
            self.notice(notice);
        }
    }
}

/// Keeps a notice, if there are not enough of them. Answers the bytes that it takes.
pub(super) fn add_notice(notices: &mut Vec<ServerError>, notice: ServerError) -> usize {
    if notices.len() >= MAX_NOTICES {
        return 0;
    }
    let memory = notice.memory();
    notices.push(notice);
    memory
}

/// What a record is about.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Subject {
    pub(super) kind: StatementKind,
    pub(super) text: Bytes,
    pub(super) text_length: u64,
    pub(super) name: Option<String>,
    /// Where the execution is told without its text, or the text without its execution.
    pub(super) portal: Option<String>,
    pub(super) parameters: Vec<Parameter>,
    pub(super) columns: Vec<Column>,
    pub(super) incomplete: bool,
}

impl Subject {
    /// Something without names and values.
    pub(super) fn text(kind: StatementKind, text: Bytes, text_length: u64) -> Self {
        let (name, portal, parameters, columns) = (None, None, Vec::new(), Vec::new());
        Self { kind, text, text_length, name, portal, parameters, columns, incomplete: false }
    }

    /// A prepared statement, not bound.
    pub(super) fn prepared(prepared: &Prepared) -> Self {
        Self {
            name: prepared.name.text(),
            incomplete: prepared.incomplete,
            ..Self::text(StatementKind::Prepared, prepared.text.clone(), prepared.text_length)
        }
    }

    /// A portal, with its values or, so that a short Execute does not buy another copy of long ones, without.
    pub(super) fn portal(portal: &Portal, values: bool) -> Self {
        let columns = if portal.columns.is_empty() { &portal.prepared.columns } else { &portal.columns };
        Self {
            parameters: if values { portal.values.parameters(&portal.prepared.types) } else { Vec::new() },
            columns: columns.clone(),
            incomplete: portal.incomplete || portal.prepared.incomplete || !values,
            ..Self::prepared(&portal.prepared)
        }
    }

    /// The finished record.
    pub(super) fn record(
        self,
        unit: Unit,
        sequence: u64,
        outcome: Outcome,
        finished: Boottime,
    ) -> Box<Statement> {
        let kind = match self.kind {
            StatementKind::Simple | StatementKind::Prepared if unit.stream => StatementKind::Admin,
            StatementKind::Simple | StatementKind::Prepared if unit.copy => StatementKind::Copy,
            kind => kind,
        };
        Box::new(Statement {
            sequence,
            kind,
            text: self.text,
            text_length: self.text_length,
            name: self.name,
            portal: self.portal,
            parameters: self.parameters,
            results: unit.results,
            columns: match outcome {
                _ if !unit.columns.is_empty() => unit.columns,
                Outcome::Completed => self.columns,
                // What was described, but never returned.
                _ => Vec::new(),
            },
            outcome,
            notices: unit.notices,
            transaction: None,
            started: unit.started.unwrap_or(finished),
            finished,
            request_bytes: unit.request_bytes,
            response_bytes: unit.response_bytes,
            incomplete: self.incomplete || unit.incomplete,
        })
    }
}
