//! Answers in the extended query protocol: what Parse, Bind, Describe, Execute and Close did to the names of prepared
//! statements and portals, and the record of an Execute.

use std::sync::Arc;

use super::conversation::Conversation;
use super::names::{self, Name, Portal, Prepared};
use super::record::Subject;
use super::request::{Bind, Parse, Request, Target};
use super::response::{self, Response};
use super::unanswered::Failure;
use crate::clock::Boottime;
use crate::protocol::{CommandResult, Observation, Outcome, ServerError};

impl Conversation {
    /// ParseComplete.
    pub(super) fn parsed(&mut self) {
        self.ignored_syncs = 0;
        if let Some(prepared) = self.pop().and_then(prepared) {
            self.names.statements.insert(&prepared.name.clone(), Arc::new(prepared));
        }
    }

    /// BindComplete.
    pub(super) fn bound(&mut self) {
        self.ignored_syncs = 0;
        if let Some(Request::Bind(bind)) = self.pop() {
            let prepared = self.names.statements.look_up(&bind.statement);
            let (name, portal) = portal(prepared, *bind);
            self.names.tell_portals(Some(&name));
            self.names.portals.insert(&name, Arc::new(portal));
        }
    }

    /// CloseComplete.
    pub(super) fn closed(&mut self) {
        match self.pop() {
            Some(Request::Close(Target::Statement, name)) => {
                self.names.tell_statement(&name);
                self.names.statements.remove(&name);
            }
            Some(Request::Close(Target::Portal, name)) => {
                self.names.tell_portals(Some(&name));
                self.names.portals.remove(&name);
            }
            _ => {}
        }
    }

    /// RowDescription or NoData in answer to Describe.
    pub(super) fn described(&mut self, response: Response<'_>) {
        let Some(Request::Describe(target, name)) = self.pop() else { return };
        if !self.limits.columns {
            return;
        }
        let columns = if response.head.kind == b'T' { response::columns(response.body) } else { Vec::new() };
        match target {
            Target::Statement => self.names.statements.change(&name, |prepared| prepared.columns = columns),
            Target::Portal => self.names.portals.change(&name, |portal| portal.columns = columns),
        }
    }

    /// An Execute has ended well.
    pub(super) fn executed(&mut self, response: Response<'_>, at: Boottime, out: &mut Vec<Observation>) {
        let Some(Request::Execute(name)) = self.pop() else { return };
        let result = match response.head.kind {
            b'C' => response::command(response.body),
            // The server says nothing about the rows so far, but they have been seen.
            b's' => CommandResult { tag: "PortalSuspended".into(), rows: Some(self.unit.rows) },
            _ => CommandResult { tag: String::new(), rows: None },
        };
        self.copy_in_done();
        let mut subject = self.execution(&name);
        // A text that the server contradicts is not the one that it executed.
        subject.incomplete |= contradicts(&result.tag, &subject.text);
        let text = (!subject.incomplete && subject.text.len() as u64 == subject.text_length)
            .then_some(&subject.text);
        self.forget_names(&result.tag, text.map(AsRef::as_ref));
        self.unit.result(result);
        let statement = self.record(subject, Outcome::Completed, at, out);
        if self.queue.front().is_some_and(|pending| matches!(pending.request, Request::Sync)) {
            self.held = Some(statement);
        } else {
            out.push(Observation::Statement(statement));
        }
    }

    /// What executing this portal means.
    pub(super) fn execution(&mut self, name: &Name) -> Subject {
        let Some(portal) = self.names.execute(name) else {
            return Subject { portal: name.text(), ..Subject::portal(&Portal::unknown(), true) };
        };
        let subject = Subject::portal(&portal, !portal.executed || portal.values.are_short());
        if !portal.executed {
            self.names.portals.change(name, |portal| portal.executed = true);
        }
        subject
    }

    /// The request at the head, which is no Execute, has failed.
    pub(super) fn fail(&mut self, error: ServerError, at: Boottime) {
        let Some(request) = self.pop() else { return };
        // The server lets go of the unnamed statement or portal before it makes a new one, even if that fails; but not before all that fails.
        let unnamed = Name::Exact(Box::default());
        match &request {
            Request::Parse(parse) if parse.name == unnamed => self.names.statements.doubt_unnamed(),
            Request::Bind(bind) if bind.portal == unnamed => self.names.portals.doubt_unnamed(),
            _ => {}
        }
        let unit = std::mem::take(&mut self.unit);
        self.skipping = Some(Some(Box::new(Failure::new(request, &self.names, error, unit, at))));
    }

    /// SQL commands that take the meaning of names away, or give them one that the protocol does not show.
    pub(super) fn forget_names(&mut self, tag: &str, text: Option<&[u8]>) {
        match tag {
            "DEALLOCATE" => match text.and_then(names::deallocated) {
                Some(name) => self.names.statements.remove(&name),
                // It could have been any.
                None => self.names.statements.doubt_named(),
            },
            // What went before in the same text may have executed them.
            "DEALLOCATE ALL" => self.names.statements.doubt_named(),
            "DISCARD ALL" => {
                self.names.statements.doubt_named();
                self.names.tell_portals(None);
                self.names.portals.clear();
            }
            // A name that SQL gives is free at that time, however it became so; which name it is takes a parser to tell.
            "PREPARE" => self.names.statements.doubt_named(),
            "DECLARE CURSOR" | "CLOSE CURSOR" | "CLOSE CURSOR ALL" => self.names.portals.doubt_named(),
            _ => {}
        }
    }
}

/// What a Parse gives its name to.
pub(super) fn prepared(request: Request) -> Option<Prepared> {
    let Request::Parse(parse) = request else { return None };
    let Parse { name, text, text_length, types, whole } = *parse;
    Some(Prepared { name, text, text_length, types, columns: Vec::new(), incomplete: !whole })
}

/// The portal that a Bind makes of a statement, and its name.
pub(super) fn portal(prepared: Option<Arc<Prepared>>, bind: Bind) -> (Name, Portal) {
    let prepared = prepared.unwrap_or_else(|| Arc::new(Prepared::unknown(bind.statement)));
    let (values, incomplete) = (bind.values, !bind.whole);
    (bind.portal, Portal { prepared, values, columns: Vec::new(), incomplete, executed: false })
}

/// Whether a statement that begins with this text cannot have ended with this tag.
///
/// Only verbs whose tag is always the same word are judged; that is enough to keep a change from being told as a SELECT.
fn contradicts(tag: &str, text: &[u8]) -> bool {
    const VERBS: [&str; 5] = ["SELECT", "INSERT", "UPDATE", "DELETE", "MERGE"];
    let text = text.trim_ascii_start();
    let end =
        text.iter().position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_').unwrap_or(text.len());
    let said = tag.split(' ').next().unwrap_or_default();
    let verb = VERBS.iter().find(|verb| verb.as_bytes().eq_ignore_ascii_case(&text[..end]));
    verb.is_some_and(|verb| *verb != said && said != "PortalSuspended")
}

#[cfg(test)]
mod tests {
    use super::contradicts;

    #[test]
    fn a_tag_may_contradict_a_text() {
        for (tag, text, expected) in [
            ("SELECT 1", "select 1", false),
            ("DELETE 1", " SELECT 1", true),
            ("SELECT 1", "delete from t", true),
            ("PortalSuspended", "select 1", false),
            ("DELETE 1", "with x as () delete", false),
            ("DELETE 1", "/* select */ delete", false),
            ("SELECT 1", "selection()", false),
            ("", "", false),
        ] {
            assert_eq!(contradicts(tag, text.as_bytes()), expected, "{tag}, {text}");
        }
    }
}
