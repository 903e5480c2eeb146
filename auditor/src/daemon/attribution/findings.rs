//! What a step on a conversation has found, as the record has it.

use std::sync::Arc;

use super::Attribution;
use crate::clock::Boottime;
use crate::daemon::conversation::{Degraded, Findings, Notice};
use crate::protocol::{Observation, Opaque, Side};
use crate::record::{Connection, Entry, Event as Recorded};

/// How the record begins of a connection that is degraded.
pub(super) const MEMORY_LIMIT: &str =
    "connections keep more in memory than they may all together, and this session's the most: ";

impl Attribution {
    /// Enters what a step on a conversation has found, and leaves `findings` empty.
    pub(super) fn report(&mut self, cookie: u64, at: Boottime, findings: &mut Findings) {
        self.account_for_secrets(cookie, findings);
        if findings.observations.is_empty() && findings.notices.is_empty() {
            return;
        }
        let Some(conversation) = self.conversations.get_mut(&cookie) else { return };
        let number = conversation.session;
        let connection = Arc::clone(&conversation.connection);
        let expected = conversation.expected;
        let session = self.sessions.record(number);
        let (mut statements, mut violations) = (0, 0);
        let process = conversation.process.clone();
        let mut enter = |at, event| {
            match event {
                Recorded::Statement { .. } | Recorded::Request { .. } => statements += 1,
                Recorded::Finding { .. } => violations += 1,
                _ => {}
            }
            let (session, process) = (session.clone(), process.clone());
            self.entries.push(Entry { time: self.clock.utc(at), session, process, event });
        };
        for observation in findings.observations.drain(..) {
            conversation.learn(&observation);
            match observation {
                Observation::Statement(statement) => {
                    let meaning = conversation.understand(&mut self.classifier, &statement);
                    let application = Arc::clone(&conversation.application);
                    let connection = Arc::clone(&connection);
                    enter(
                        statement.finished,
                        Recorded::Statement { connection, application, statement, meaning },
                    );
                }
                Observation::Request(request) => {
                    let application = Arc::clone(&conversation.application);
                    let connection = Arc::clone(&connection);
                    enter(request.finished, Recorded::Request { connection, application, request });
                }
                Observation::Violation(message) => {
                    let connection = Some(Arc::clone(&connection));
                    enter(at, Recorded::Finding { kind: "protocol-violation", message, connection });
                }
                Observation::Refused(error) => {
                    let message = format!("the server refused the client: {} {}", error.code, error.message);
                    let connection = Some(Arc::clone(&connection));
                    enter(at, Recorded::Finding { kind: "login-refused", message, connection });
                }
                Observation::Opaque(opaque) if expected.is_some() => {
                    let how = match opaque {
                        Opaque::Tls | Opaque::GssEncryption => "went on encrypted",
                        Opaque::Upgraded => "went on in a protocol that is not known",
                        Opaque::Hole => "has a hole behind which it cannot be read on",
                        Opaque::Replication => "went on as a stream of replication",
                    };
                    let message = format!(
                        "the rule names the protocol, and the connection {how}: what is said on it is not in the record"
                    );
                    let connection = Some(Arc::clone(&connection));
                    enter(at, Recorded::Finding { kind: "opaque-connection", message, connection });
                }
                Observation::Encrypted { .. }
                | Observation::Switched { .. }
                | Observation::Opaque(_)
                | Observation::Login(_)
                | Observation::Authenticated => {}
            }
        }
        for notice in findings.notices.drain(..) {
            if let Some(event) = notice_event(notice, &connection, expected) {
                enter(at, event);
            }
        }
        self.statements += statements;
        if let Some(session) = self.sessions.get_mut(number) {
            session.totals.statements += statements;
            session.totals.violations += violations;
        }
    }
}

impl Degraded {
    /// As the record has it.
    pub(super) const fn told(self) -> &'static str {
        match self {
            Self::Early => {
                "what is missing in front of segments that came early is not waited for on this connection"
            }
            Self::Answers => {
                "statements on this connection are recorded without their answers from here on, and only the beginnings of long \
                 ones"
            }
            Self::Reading => "what is said on this connection from here on is not in the record",
        }
    }
}

/// What a notice means to a reader of the trail.
fn notice_event(
    notice: Notice,
    connection: &Arc<Connection>,
    expected: Option<&'static str>,
) -> Option<Recorded> {
    let (kind, message) = match notice {
        Notice::Gap(range) => return Some(Recorded::Gap { connection: Arc::clone(connection), range }),
        Notice::Conflict { sent, offset, length } => (
            "stream-conflict",
            format!(
                "{length} bytes {} from offset {offset} on were seen in two versions; the record follows the first",
                if sent { "sent" } else { "received" }
            ),
        ),
        Notice::Urgent => (
            "urgent-data",
            "the other end sent urgent data: what the agent reads of it may differ from what is recorded"
                .to_owned(),
        ),
        Notice::Degraded(degraded) => ("memory-limit", format!("{MEMORY_LIMIT}{}", degraded.told())),
        Notice::NotTls(message) => ("protocol-violation", message.to_owned()),
        Notice::RecordFails(side) => (
            "tls-record-fails",
            format!(
                "a TLS record of the {} does not authenticate: it is not what the other end has sealed",
                if side == Side::Client { "client's" } else { "server's" }
            ),
        ),
        Notice::Recognised(found) => {
            let expected = expected.filter(|expected| *expected != found)?;
            (
                "protocol-mismatch",
                format!("the rule allows {expected} only, and the connection speaks {found}"),
            )
        }
        Notice::Unrecognised => (
            "protocol-mismatch",
            format!("the rule allows {} only, and the connection speaks something else", expected?),
        ),
    };
    Some(Recorded::Finding { kind, message, connection: Some(Arc::clone(connection)) })
}
