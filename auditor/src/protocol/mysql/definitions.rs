//! Definitions of columns and of parameters, and where they end: they stand between the first packet of an answer and its rows, and
//! are all that follows the number of a prepared statement.

use super::answer::{self, Answer, Done};
use super::capability::{Capabilities, status};
use super::conversation::{Conversation, Expect, MAX_COLUMNS, Pending, Violation};
use super::request::Request;
use super::statements::Prepared;
use crate::clock::Boottime;
use crate::protocol::Observation;

impl Conversation {
    /// A result with rows.
    pub(super) fn begin_result(&mut self, answer: Answer<'_>) {
        let (count, follow) = answer::column_count(answer.body, self.capabilities);
        self.unit.begin_columns();
        self.expect = if follow && count > 0 { Expect::Columns(count) } else { self.after_columns() };
    }

    pub(super) fn after_columns(&self) -> Expect {
        if self.capabilities.has(Capabilities::DEPRECATE_EOF) { Expect::Rows } else { Expect::ColumnsEnd }
    }

    /// The next definition, or the end of them.
    pub(super) fn definition(
        &mut self,
        answer: Answer<'_>,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) -> Result<(), Violation> {
        let new_style = self.capabilities.has(Capabilities::DEPRECATE_EOF);
        self.expect = match self.expect {
            Expect::Columns(left) => {
                self.column(answer);
                if left > 1 { Expect::Columns(left - 1) } else { self.after_columns() }
            }
            Expect::Fields if answer.is_end(self.capabilities) => {
                self.end_of_result(answer, None, at, out);
                return Ok(());
            }
            Expect::Fields => Expect::Fields,
            Expect::Parameters(left @ 2.., columns) => Expect::Parameters(left - 1, columns),
            Expect::Parameters(_, columns) if new_style => return self.definitions_of(columns),
            Expect::Parameters(_, columns) => Expect::ParametersEnd(columns),
            Expect::PreparedColumns(left) => {
                self.column(answer);
                match left {
                    2.. => Expect::PreparedColumns(left - 1),
                    _ if new_style => return self.end_of_prepare(),
                    _ => Expect::PreparedColumnsEnd,
                }
            }
            _ if !answer.is_end(self.capabilities) => return Err("no end of definitions".into()),
            Expect::ParametersEnd(columns) => return self.definitions_of(columns),
            Expect::PreparedColumnsEnd => return self.end_of_prepare(),
            _ if answer.hole => {
                self.deafen(at, out);
                return Ok(());
            }
            // The rows wait to be fetched.
            _ if Done::read(answer, self.capabilities).status & status::CURSOR_EXISTS != 0 => {
                self.end_of_result(answer, Some(0), at, out);
                return Ok(());
            }
            _ => Expect::Rows,
        };
        Ok(())
    }

    pub(super) fn column(&mut self, answer: Answer<'_>) {
        if !self.limits.columns || self.unit.columns.len() >= MAX_COLUMNS {
            return;
        }
        match answer::column(answer.body, self.capabilities) {
            Some(column) if !answer.hole => self.unit.column(column),
            _ => self.unit.incomplete = true,
        }
    }

    /// A statement is prepared.
    pub(super) fn prepared(&mut self, answer: Answer<'_>) -> Result<(), Violation> {
        let Some((number, columns, parameters, _warnings, follow)) =
            answer::prepared(answer.body, self.capabilities)
        else {
            return Err("a prepared statement without a number".into());
        };
        let Some(Pending { request: Request::Prepare(query), .. }) = self.queue.front() else {
            return Ok(());
        };
        self.statements.insert(Prepared::new(number, query, parameters));
        self.current = self.statements.get(number).cloned();
        match (parameters, follow) {
            (_, false) => self.end_of_prepare(),
            (0, true) => self.definitions_of(columns),
            (_, true) => {
                self.expect = Expect::Parameters(parameters, columns);
                Ok(())
            }
        }
    }

    pub(super) fn definitions_of(&mut self, columns: u16) -> Result<(), Violation> {
        if columns == 0 {
            return self.end_of_prepare();
        }
        self.expect = Expect::PreparedColumns(columns);
        Ok(())
    }

    /// What was prepared is told with its executions.
    pub(super) fn end_of_prepare(&mut self) -> Result<(), Violation> {
        let unit = std::mem::take(&mut self.unit);
        if let Some(prepared) = self.current.take() {
            self.statements.describe(prepared.number, &unit.columns);
        }
        self.pop();
        self.begin();
        Ok(())
    }
}
