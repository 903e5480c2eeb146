//! Commands whose answer was never seen: they are told all the same.
//!
//! No answer settles what they did, so it is supposed to have been done. What was prepared then has no number, and is known as the last
//! one only; its text is told when it is prepared.

use super::STATEMENT_IN_NEED;
use super::conversation::{Conversation, Expect};
use super::request::{self, Request};
use super::statements::Statements;
use crate::clock::Boottime;
use crate::protocol::{Observation, Outcome};

impl Conversation {
    /// Gives out everything that is under way: no more answers will be seen. `hole` tells that there may have been some.
    pub(super) fn give_up(&mut self, hole: bool, at: Boottime, out: &mut Vec<Observation>) {
        self.unit.incomplete |= hole;
        self.without_answers(hole, at, out);
        (self.file, self.asked) = (false, false);
        if hole {
            self.lose_statements(at, out);
        }
    }

    /// What was prepared cannot be told of later executions, or these cannot be read.
    pub(super) fn lose_statements(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        self.statements.tell_all();
        self.give_out_due(at, out);
    }

    /// The server's side was lost: from here on commands are told as they come.
    pub(super) fn deafen(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        self.deaf = true;
        self.give_up(true, at, out);
    }

    /// Memory is short: everything that waits for an answer is told without, and so is what comes. What was prepared is forgotten.
    pub(super) fn spare(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        self.deafen(at, out);
        self.statements = Statements::in_need();
        self.limits.max_statement_bytes = self.limits.max_statement_bytes.min(STATEMENT_IN_NEED);
    }

    /// Tells what is in the queue. Where no answer settles what it did, it is supposed to have been done.
    pub(super) fn without_answers(&mut self, hole: bool, at: Boottime, out: &mut Vec<Observation>) {
        while let Some(front) = self.queue.front() {
            if matches!(front.request, Request::Execute(_)) && self.current.is_none() {
                self.resolve();
            }
            let Some(pending) = self.pop() else { return };
            match &pending.request {
                Request::LongData(_) | Request::Statement(request::STMT_CLOSE, _) | Request::Quit => {
                    self.silent(&pending);
                    continue;
                }
                Request::Prepare(query) => self.statements.suppose(query),
                Request::ChangeUser(_) | Request::Other(request::RESET_CONNECTION, _) => {
                    // Or the server refused to.
                    self.statements.tell_all();
                    self.statements.clear();
                }
                Request::Statement(request::STMT_RESET, number) => {
                    self.statements.forget_sent(*number);
                }
                _ => {}
            }
            self.give_out_due(at, out);
            let mut unit = std::mem::take(&mut self.unit);
            unit.incomplete |= hole;
            let current = self.current.take();
            self.record(pending, current, unit, Outcome::Unknown, at, out);
        }
        self.expect = Expect::First;
    }
}
