//! Texts that are told before they are executed, because they may be executed without being told: see [`super::table`] for what these are.

use super::conversation::Conversation;
use super::record::{Subject, Unit};
use super::request::Request;
use super::unanswered::Supposed;
use crate::clock::Boottime;
use crate::protocol::{Observation, Outcome, StatementKind};

impl Conversation {
    /// Gives out what was prepared, or sent, and may be executed without being told again.
    pub(super) fn give_out(&mut self, due: Vec<Subject>, at: Boottime, out: &mut Vec<Observation>) {
        for subject in due {
            self.sequence += 1;
            let mut sequence = self.sequence;
            if let Some(held) = &mut self.held {
                // That one comes later.
                std::mem::swap(&mut held.sequence, &mut sequence);
            }
            let statement = subject.record(Unit::default(), sequence, Outcome::Prepared, at);
            out.push(Observation::Statement(statement));
        }
    }

    /// The text of a request that is going to be without, if it is one that may be executed.
    pub(super) fn text_of(&self, request: &Request) -> Vec<Subject> {
        let subject = match request {
            Request::Query(query) => {
                let kind = self.kind_of(&query.text);
                let subject = Subject::text(kind, query.text.clone(), query.text_length);
                Subject { incomplete: !query.whole, ..subject }
            }
            Request::Parse(parse) => Subject {
                name: parse.name.text(),
                incomplete: !parse.whole,
                ..Subject::text(StatementKind::Prepared, parse.text.clone(), parse.text_length)
            },
            _ => return Vec::new(),
        };
        vec![subject]
    }

    /// What names mean is not known, or not asked, from here on.
    pub(super) fn lose_names(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        let mut supposed = self.deaf.take().unwrap_or_default();
        self.tell_all(&mut supposed, at, out);
        self.deaf = Some(supposed);
    }

    pub(super) fn tell_all(&mut self, supposed: &mut Supposed, at: Boottime, out: &mut Vec<Observation>) {
        self.names.tell_all();
        let due = self.names.due();
        self.give_out(due, at, out);
        supposed.names.tell_all();
        self.give_out_supposed(true, supposed, at, out);
    }

    pub(super) fn give_out_supposed(
        &mut self,
        hole: bool,
        supposed: &mut Supposed,
        at: Boottime,
        out: &mut Vec<Observation>,
    ) {
        let mut due = supposed.names.due();
        due.iter_mut().for_each(|subject| subject.incomplete |= hole);
        self.give_out(due, at, out);
    }
}
