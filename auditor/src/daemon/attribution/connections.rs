//! Connections that are followed, from the first word of each to its end.
//!
//! TCP's, and those between unix sockets once they are open. One begins with a decision, with a word of its own, or in the middle.

use std::collections::BTreeSet;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use auditor_common::bulk::Place;
use auditor_common::event::{Closed, Established, Packet, Skipped};
use auditor_common::packet::TCP;
use auditor_common::unix::STREAM_PROTOCOL;

use super::Attribution;
use crate::clock::Boottime;
use crate::daemon::conversation::Conversation;
use crate::daemon::journal::AdoptedSocket;
use crate::record::{Connection, Event as Recorded, Process, Transport};

/// TCP connections of one session that are followed at most. Further ones are named in a finding, and not followed.
const CONVERSATIONS_OF_A_SESSION: u64 = 16_384;
/// The same for all sessions.
pub(super) const CONVERSATIONS: usize = 65_536;
/// How long after the kernel's word that a connection has ended its last segments are waited for. They were written
/// before that word; a few turns are ample.
const LAST_SEGMENTS: Duration = Duration::from_millis(20);
/// How long after it the name of the library is waited for that derived the connection's keys. Nobody is held while a library's file is
/// searched for its version, so a short connection may be over first.
const NAME_OF_LIBRARY: Duration = Duration::from_secs(2);

impl Attribution {
    pub(super) fn connect(
        &mut self,
        cookie: u64,
        number: u64,
        connection: Connection,
        process: Option<Arc<Process>>,
        expected: Option<&'static str>,
        at: Boottime,
    ) {
        if let Some(conversation) = self.conversations.get_mut(&cookie)
            && !conversation.decided
            && !conversation.is_closing()
        {
            // Its segments were faster than this event.
            conversation.adopt(connection, process, expected);
            return;
        }
        // A socket may be connected again after an attempt that failed.
        self.finish(cookie, at);
        self.unfollowed.begin_again(cookie);
        if !self.begin(cookie, number, connection.clone(), process.clone(), expected, at) {
            self.not_followed(cookie, number, connection, process, at);
        }
    }

    /// Whether one more connection of a session can be followed.
    pub(super) fn has_room(&self, session: u64) -> bool {
        let open = self.sessions.get(session).map_or(0, |session| session.open_connections);
        self.conversations.len() < CONVERSATIONS
            && open < CONVERSATIONS_OF_A_SESSION
            && self.sessions.follows(session)
    }

    pub(super) fn begin(
        &mut self,
        cookie: u64,
        session: u64,
        connection: Connection,
        process: Option<Arc<Process>>,
        expected: Option<&'static str>,
        at: Boottime,
    ) -> bool {
        if !self.has_room(session) {
            return false;
        }
        if let Some(session) = self.sessions.get_mut(session) {
            session.open_connections += 1;
        }
        let conversation = Conversation::new(session, connection, process, expected, self.limits, at);
        self.conversations.insert(cookie, conversation);
        true
    }

    /// A conversation that began without a decision of its own: accepted from outside, or older than the session. `false`: it is
    /// not followed.
    fn begin_undecided(
        &mut self,
        cookie: u64,
        session: u64,
        remote: SocketAddr,
        inbound: bool,
        at: Boottime,
    ) -> bool {
        // First what costs next to nothing: this may be asked for each segment.
        if self.unfollowed.is_beyond(cookie) || !self.sessions.follows(session) {
            return false;
        }
        let has_room = self.has_room(session);
        if !has_room && self.unfollowed.is_silent(session) {
            return false;
        }
        let verdict = self.decide_again(session, remote, at);
        let connection = Connection {
            id: self.connection_id(cookie),
            transport: Transport::Tcp,
            local: None,
            remote: Some(remote),
            socket: None,
            inbound,
            adopted: None,
            verdict,
        };
        if !has_room {
            self.not_followed(cookie, session, connection, None, at);
            return false;
        }
        let begun = self.begin(cookie, session, connection, None, None, at);
        if let Some(conversation) = self.conversations.get_mut(&cookie) {
            conversation.decided = false;
        }
        begun
    }

    /// Follows a connection that is older than its session, from here on.
    pub(super) fn adopt(&mut self, session: u64, cookie: u64, socket: AdoptedSocket, at: Boottime) {
        let AdoptedSocket { process, local, remote, bytes } = socket;
        let process = process.map(Arc::new);
        let connection = Connection {
            id: self.connection_id(cookie),
            transport: Transport::Tcp,
            local: Some(local),
            remote: Some(remote),
            socket: None,
            // Who connected to whom was not seen.
            inbound: false,
            adopted: Some(bytes),
            verdict: self.decide_again(session, remote, at),
        };
        if !self.begin(cookie, session, connection.clone(), process.clone(), None, at) {
            self.not_followed(cookie, session, connection, process, at);
            return;
        }
        let mut findings = mem::take(&mut self.findings);
        if let Some(conversation) = self.conversations.get_mut(&cookie) {
            conversation.midstream(at, &self.keyrings.of(conversation.session, at), &mut findings);
        }
        if let Some(session) = self.sessions.get_mut(session) {
            session.totals.connections += 1;
        }
        let connection = Arc::new(connection);
        self.enter(session, process, at, Recorded::ConnectionOpened { connection });
        self.report(cookie, at, &mut findings);
        self.findings = findings;
        self.weigh(cookie, at);
    }

    pub(super) fn established(&mut self, event: &Established) {
        let at = Boottime(event.header.time);
        let cookie = event.cookie;
        if !self.conversations.contains_key(&cookie) {
            let remote = event.remote.socket_address();
            if !self.begin_undecided(cookie, event.header.session, remote, event.passive != 0, at) {
                return;
            }
        }
        let mut findings = mem::take(&mut self.findings);
        if let Some(conversation) = self.conversations.get_mut(&cookie) {
            conversation.established(event, &self.keyrings.of(conversation.session, at), &mut findings);
            let connection = Arc::clone(&conversation.connection);
            let (number, process) = (conversation.session, conversation.process.clone());
            if let Some(session) = self.sessions.get_mut(number) {
                session.totals.connections += 1;
            }
            self.enter(number, process, at, Recorded::ConnectionOpened { connection });
        }
        self.report(cookie, at, &mut findings);
        self.findings = findings;
        self.weigh(cookie, at);
    }

    pub(super) fn packet(&mut self, packet: &Packet, payload: &[u8]) {
        let at = Boottime(packet.header.time);
        let cookie = packet.cookie;
        let mut midstream = false;
        if !self.conversations.contains_key(&cookie) {
            // A late one of a connection that has ended begins none.
            if self.unfollowed.ended(cookie).is_some_and(|ended| at.since(ended) < LAST_SEGMENTS) {
                return;
            }
            let remote = packet.remote.socket_address();
            if !self.begin_undecided(cookie, packet.header.session, remote, false, at) {
                return;
            }
            midstream = true;
        }
        let mut findings = mem::take(&mut self.findings);
        if let Some(conversation) = self.conversations.get_mut(&cookie) {
            let keyring = &self.keyrings.of(conversation.session, at);
            if midstream {
                conversation.midstream(at, keyring, &mut findings);
            }
            conversation.segment(packet, payload, self.policies.lossy(), keyring, &mut findings);
            if conversation.wants_a_place() {
                self.placing.entry(cookie).or_insert(Place::UNKNOWN);
            }
            self.counting.extend(conversation.counting_changed().map(|counts| (cookie, counts)));
        }
        self.report(cookie, at, &mut findings);
        self.findings = findings;
        self.weigh(cookie, at);
    }

    pub(super) fn skipped(&mut self, event: &Skipped) {
        let at = Boottime(event.header.time);
        let mut findings = mem::take(&mut self.findings);
        // Only what is followed is counted.
        if let Some(conversation) = self.conversations.get_mut(&event.cookie) {
            let keyring = &self.keyrings.of(conversation.session, at);
            conversation.skipped(event, self.policies.lossy(), keyring, &mut findings);
            self.counting.extend(conversation.counting_changed().map(|counts| (event.cookie, counts)));
        }
        self.report(event.cookie, at, &mut findings);
        self.findings = findings;
        self.weigh(event.cookie, at);
    }

    pub(super) fn closed(&mut self, event: &Closed) {
        let at = Boottime(event.header.time);
        if event.protocol == u32::from(TCP) || event.protocol == STREAM_PROTOCOL {
            if let Some(conversation) = self.conversations.get_mut(&event.cookie) {
                conversation.closing(event);
                self.closing.push_back((at, event.cookie));
            } else {
                self.unfollowed.end(event.cookie, at);
            }
            return;
        }
        let Some(datagrams) = self.take_datagrams(event.cookie) else {
            self.unfollowed.end(event.cookie, at);
            return;
        };
        self.finish_datagrams(datagrams, (Some(event.sent), Some(event.received)), at);
    }

    /// Whether there are connections whose last segments have had their time.
    pub(in crate::daemon) fn is_due(&self, now: Boottime) -> bool {
        self.closing.front().is_some_and(|(at, _)| now.since(*at) >= LAST_SEGMENTS)
    }

    /// Ends the connections whose last segments have had their time.
    pub(in crate::daemon) fn settle(&mut self, now: Boottime) {
        while let Some(&(at, cookie)) = self.closing.front()
            && now.since(at) >= LAST_SEGMENTS
        {
            self.closing.pop_front();
            let Some(conversation) = self.conversations.get(&cookie) else { continue };
            // `None`: the socket has been connected again meanwhile.
            let Some(ended) = conversation.ended() else { continue };
            if conversation.waits_for_a_name() && now.since(ended) < NAME_OF_LIBRARY {
                self.closing.push_back((now, cookie));
            } else {
                self.finish(cookie, now);
            }
        }
    }

    /// Whether connections that the kernel has closed wait for their last segments.
    pub(in crate::daemon) fn is_settled(&self) -> bool {
        self.closing.is_empty()
    }

    pub(super) fn finish(&mut self, cookie: u64, now: Boottime) {
        let Some(conversation) = self.conversations.get_mut(&cookie) else { return };
        let mut findings = mem::take(&mut self.findings);
        let keyring = &self.keyrings.of(conversation.session, now);
        let (coverage, reason, duration_us) = conversation.finish(now, keyring, &mut findings);
        self.report(cookie, now, &mut findings);
        self.findings = findings;
        let Some(mut conversation) = self.conversations.remove(&cookie) else { return };
        self.waiting_for_secrets.remove(&(conversation.session, cookie));
        self.budget.release(conversation.session, cookie, &mut conversation.account);
        self.unfollowed.end(cookie, conversation.ended().unwrap_or(now));
        if conversation.counts_rows() {
            self.counting.push((cookie, false));
        }
        if let Some(session) = self.sessions.get_mut(conversation.session) {
            session.open_connections = session.open_connections.saturating_sub(1);
            session.bytes_moved += coverage.sent.unwrap_or(0) + coverage.received.unwrap_or(0);
            session.bytes_audited += coverage.audited_sent
                + coverage.audited_received
                + coverage.skipped_sent
                + coverage.skipped_received;
        }
        let closed = Recorded::ConnectionClosed {
            connection: conversation.connection,
            application: conversation.application,
            coverage,
            reason,
            duration_us,
            statements: conversation.statements,
        };
        self.enter(conversation.session, conversation.process, now, closed);
    }

    /// Ends all connections of a session, or of all sessions.
    pub(in crate::daemon) fn finish_session(&mut self, number: Option<u64>, now: Boottime) {
        let of = |session: u64| number.is_none_or(|number| number == session);
        let mut cookies: Vec<u64> = self
            .conversations
            .iter()
            .filter(|(_, conversation)| of(conversation.session))
            .map(|(cookie, _)| *cookie)
            .collect();
        cookies.sort_unstable();
        for cookie in cookies {
            self.finish(cookie, now);
        }
        let mut cookies: Vec<u64> = self
            .datagrams
            .iter()
            .filter(|(_, datagrams)| of(datagrams.session))
            .map(|(cookie, _)| *cookie)
            .collect();
        cookies.sort_unstable();
        for cookie in cookies {
            if let Some(datagrams) = self.take_datagrams(cookie) {
                self.finish_datagrams(datagrams, (None, None), now);
            }
        }
    }

    /// Cookies of sockets whose rows are counted.
    pub(in crate::daemon) fn counted(&self) -> BTreeSet<u64> {
        let counted =
            |(cookie, conversation): (&u64, &Conversation)| conversation.counts_rows().then_some(*cookie);
        self.conversations.iter().filter_map(counted).collect()
    }
}
