//! What is not followed, or less closely, because there is no room for it, and how that is told.

use std::mem;
use std::sync::Arc;

use super::Attribution;
use crate::clock::Boottime;
use crate::daemon::unfollowed::Telling;
use crate::record::{Connection, Event as Recorded, Process, Transport};

/// What the record says of a session whose connections lose some of what they would be compared with.
pub(super) const HISTORY_LIMIT: &str = "the session's connections have delivered more than is kept to compare repetitions with: \
                             whether bytes that come again are the same is looked at for the latest ones only";
/// What the record says of a connection that is not followed.
pub(super) const NOT_FOLLOWED: &str =
    "there are more connections than can be followed: what is said on this one is not in the record";
/// The same of a UDP socket.
pub(super) const DATAGRAMS_NOT_FOLLOWED: &str = "there are more UDP sockets than can be followed: neither the end nor the bytes of this one are in the record";
/// The same where the session was over when its word came.
pub(super) const SESSION_OVER: &str =
    "the session ended before this was read: neither what is said on it nor its end is in the record";
/// What is added where no further ones are named.
const NOT_NAMED: &str = "; nor are further ones of the session named";

impl Attribution {
    /// Names a socket that there is no room for, once.
    pub(super) fn not_followed(
        &mut self,
        cookie: u64,
        number: u64,
        connection: Connection,
        process: Option<Arc<Process>>,
        at: Boottime,
    ) {
        let over = !self.sessions.follows(number);
        let telling = if over { Telling::Name } else { self.unfollowed.beyond(cookie, number) };
        if telling == Telling::Nothing {
            return;
        }
        if let Some(session) = self.sessions.get_mut(number) {
            session.totals.violations += 1;
        }
        let what = match connection.transport {
            _ if over => SESSION_OVER,
            Transport::Udp => DATAGRAMS_NOT_FOLLOWED,
            _ => NOT_FOLLOWED,
        };
        let more = if telling == Telling::Last { NOT_NAMED } else { "" };
        let finding = Recorded::Finding {
            kind: "connection-not-followed",
            message: format!("{what}{more}"),
            connection: Some(Arc::new(connection)),
        };
        self.enter(number, process, at, finding);
    }

    /// Charges a connection with what it keeps by now, and sees to it that all of them together keep no more than they may.
    pub(super) fn weigh(&mut self, cookie: u64, at: Boottime) {
        self.charge(cookie);
        while let Some((number, oldest)) = self.budget.oldest() {
            let Some(conversation) = self.conversations.get_mut(&oldest) else { break };
            conversation.forget_history();
            self.charge(oldest);
            if self.budget.tell(number) {
                if let Some(session) = self.sessions.get_mut(number) {
                    session.totals.violations += 1;
                }
                let message = HISTORY_LIMIT.to_owned();
                self.enter(
                    number,
                    None,
                    at,
                    Recorded::Finding { kind: "memory-limit", message, connection: None },
                );
            }
        }
        while let Some(largest) = self.budget.largest() {
            let mut findings = mem::take(&mut self.findings);
            let Some(conversation) = self.conversations.get_mut(&largest) else { break };
            conversation.degrade(at, &self.keyrings.of(conversation.session, at), &mut findings);
            self.counting.extend(conversation.counting_changed().map(|counts| (largest, counts)));
            self.report(largest, at, &mut findings);
            self.findings = findings;
            self.charge(largest);
        }
    }

    fn charge(&mut self, cookie: u64) {
        let Some(conversation) = self.conversations.get_mut(&cookie) else { return };
        let session = conversation.session;
        match conversation.held() {
            Some(held) => self.budget.charge(session, cookie, &mut conversation.account, held),
            None => self.budget.release(session, cookie, &mut conversation.account),
        }
    }
}
