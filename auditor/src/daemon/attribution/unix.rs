//! Unix sockets: what was decided about them, and what is said on streams between them.

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;

use auditor_common::event::HOOK_SENDMSG;
use auditor_common::rule::REASON_DEFAULT;
use auditor_common::unix::{STREAM_CONNECTED, STREAM_FOLLOWED, STREAM_NONE, UnixData, UnixDecision};

use super::{Attribution, Conversation};
use crate::clock::Boottime;
use crate::policy;
use crate::protocol::Protocol;
use crate::record::{Connection, Event as Recorded, Transport, Verdict};

impl Attribution {
    /// A connection is recorded when it is allowed; a stream is followed from there, datagrams are not.
    pub(super) fn unix_decision(&mut self, event: &UnixDecision) {
        let decision = &event.decision;
        let at = Boottime(decision.header.time);
        let number = decision.header.session;
        let occasion = self.occasion(&decision.header);
        let process = (decision.task.pid != 0).then(|| self.processes.of(&decision.task, occasion));
        let name = event.name.get(..event.length as usize).unwrap_or(&event.name);
        let policy = self.policies.by_table(decision.table);
        let allowed = decision.verdict.allows();
        if allowed && event.stream == STREAM_CONNECTED {
            // Connected already: the call has failed, and nothing was opened by it.
            return;
        }
        let expected = policy
            .and_then(|policy| policy.rule(decision.verdict.rule))
            .and_then(|rule| rule.protocol)
            .map(Protocol::name);
        let connection = Connection {
            id: self.connection_id(decision.cookie),
            transport: Transport::Unix,
            local: None,
            remote: None,
            socket: (!name.is_empty()).then(|| policy::show_socket(name)),
            inbound: false,
            adopted: None,
            verdict: policy::render_socket(policy, &decision.verdict, name),
        };
        if allowed && event.stream != STREAM_NONE {
            // A socket may be connected again after an attempt that failed.
            self.finish(decision.cookie, at);
            self.unfollowed.begin_again(decision.cookie);
        }
        if let Some(session) = self.sessions.get_mut(number) {
            if allowed {
                session.totals.connections += 1;
            } else if decision.verdict.reason != REASON_DEFAULT {
                // Ordinary programs ask for nscd, and live without: what no rule names is no violation of one.
                session.totals.violations += 1;
            }
        }
        let shared = Arc::new(connection.clone());
        let recorded = if allowed {
            Recorded::ConnectionOpened { connection: shared }
        } else {
            let call = if decision.hook == HOOK_SENDMSG { "sendmsg" } else { "connect" };
            Recorded::ConnectionRefused { connection: shared, call }
        };
        self.enter(number, process.clone(), at, recorded);
        if !allowed || event.stream == STREAM_NONE {
            return;
        }
        let begun = event.stream == STREAM_FOLLOWED
            && self.begin(decision.cookie, number, connection.clone(), process.clone(), expected, at);
        if !begun {
            self.not_followed(decision.cookie, number, connection, process, at);
            return;
        }
        let mut findings = mem::take(&mut self.findings);
        if let Some(conversation) = self.conversations.get_mut(&decision.cookie) {
            conversation.followed(at, &self.keyrings.of(conversation.session, at), &mut findings);
        }
        self.findings = findings;
        self.weigh(decision.cookie, at);
    }

    /// Sessions with streams between unix sockets.
    pub(in crate::daemon) fn streaming(&self) -> BTreeSet<u64> {
        let of = |conversation: &Conversation| {
            (conversation.connection.transport == Transport::Unix).then_some(conversation.session)
        };
        self.conversations.values().filter_map(of).collect()
    }

    /// Bytes passed on a stream.
    pub(super) fn unix_data(&mut self, event: &UnixData, payload: &[u8]) {
        if !self.conversations.contains_key(&event.cookie) && !self.begin_unnamed(event) {
            return;
        }
        let at = Boottime(event.header.time);
        let mut findings = mem::take(&mut self.findings);
        if let Some(conversation) = self.conversations.get_mut(&event.cookie) {
            conversation.passed(event, payload, &self.keyrings.of(conversation.session, at), &mut findings);
        }
        self.report(event.cookie, at, &mut findings);
        self.findings = findings;
        self.weigh(event.cookie, at);
    }

    /// A stream whose beginning found no room on the ring: that it was let through is known, by which name it is not.
    fn begin_unnamed(&mut self, event: &UnixData) -> bool {
        let number = event.header.session;
        let at = Boottime(event.header.time);
        // First what costs next to nothing: this may be asked for each call.
        if self.unfollowed.is_beyond(event.cookie) || !self.sessions.follows(number) {
            return false;
        }
        let has_room = self.has_room(number);
        if !has_room && self.unfollowed.is_silent(number) {
            return false;
        }
        let Some(session) = self.sessions.get(number) else { return false };
        let verdict = Verdict {
            allowed: true,
            rule: None,
            reason: "not-recorded",
            policy: Some(session.record.policy.clone()),
        };
        let connection = Connection {
            id: self.connection_id(event.cookie),
            transport: Transport::Unix,
            local: None,
            remote: None,
            socket: None,
            inbound: false,
            adopted: None,
            verdict,
        };
        if !has_room {
            self.not_followed(event.cookie, number, connection, None, at);
            return false;
        }
        if !self.begin(event.cookie, number, connection, None, None, at) {
            return false;
        }
        let mut findings = mem::take(&mut self.findings);
        if let Some(conversation) = self.conversations.get_mut(&event.cookie) {
            conversation.followed(at, &self.keyrings.of(conversation.session, at), &mut findings);
        }
        self.findings = findings;
        true
    }
}
