//! What the kernel programs decided about IP sockets, and by which rule.

use std::net::SocketAddr;
use std::sync::Arc;

use auditor_common::event::{Decision, HOOK_CONNECT, HOOK_EGRESS, HOOK_SENDMSG, HOOK_SOCKET};
use auditor_common::packet::{TCP, UDP};

use super::Attribution;
use crate::clock::Boottime;
use crate::policy;
use crate::protocol::Protocol;
use crate::record::{Connection, Event as Recorded, Transport, Verdict};

impl Attribution {
    pub(super) fn decision(&mut self, decision: &Decision) {
        let at = Boottime(decision.header.time);
        let number = decision.header.session;
        let occasion = self.occasion(&decision.header);
        let process = (decision.task.pid != 0).then(|| self.processes.of(&decision.task, occasion));
        let transport = match u8::try_from(decision.protocol) {
            Ok(TCP) => Transport::Tcp,
            Ok(UDP) => Transport::Udp,
            _ => Transport::Other(decision.protocol),
        };
        let policy = self.policies.by_table(decision.table);
        let protocol = u8::try_from(decision.protocol).unwrap_or(0);
        let verdict = policy::render(policy, &decision.verdict, decision.remote, protocol);
        let expected = policy
            .and_then(|policy| policy.rule(decision.verdict.rule))
            .and_then(|rule| rule.protocol)
            .map(Protocol::name);
        let connection = Connection {
            id: self.connection_id(decision.cookie),
            transport,
            local: None,
            remote: (decision.hook != HOOK_SOCKET).then(|| decision.remote.socket_address()),
            socket: None,
            inbound: false,
            adopted: None,
            verdict,
        };
        if !decision.verdict.allows() {
            if let Some(session) = self.sessions.get_mut(number) {
                session.totals.violations += 1;
            }
            let call = match decision.hook {
                HOOK_CONNECT => "connect",
                HOOK_SENDMSG => "sendmsg",
                HOOK_SOCKET => "socket",
                HOOK_EGRESS => "packet",
                _ => "unknown",
            };
            let connection = Arc::new(connection);
            self.enter(number, process, at, Recorded::ConnectionRefused { connection, call });
        } else if transport == Transport::Tcp {
            self.connect(decision.cookie, number, connection, process, expected, at);
        } else {
            self.datagram(decision.cookie, number, connection, process, at);
        }
    }

    /// What the packet hook decided about a peer that no connect(2) named, by the same rules and the same function.
    pub(super) fn decide_again(&mut self, session: u64, remote: SocketAddr, at: Boottime) -> Verdict {
        let table = self
            .sessions
            .record(session)
            .map_or(0, |session| self.policies.session(0, 0, &session.policy).table);
        let Some(policy) = self.policies.by_table(table) else {
            let verdict = auditor_common::rule::Verdict::refuse(auditor_common::rule::REASON_NO_SESSION);
            return policy::render(None, &verdict, remote.into(), TCP);
        };
        let compiled = self.compiled.entry(table).or_insert_with(|| policy::Table::new(policy, &self.clock));
        let verdict = compiled.decide(remote.into(), TCP, at);
        policy::render(Some(policy), &verdict, remote.into(), TCP)
    }
}
