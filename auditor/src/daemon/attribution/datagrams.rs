//! UDP sockets: each with the last destination that it was allowed.

use std::sync::Arc;

use super::{Attribution, Datagrams};
use crate::clock::Boottime;
use crate::record::{Application, CloseReason, Connection, Coverage, Event as Recorded, Process};

/// UDP sockets of one session that are followed at most. Further ones are named in a finding, and their ends are not recorded.
pub(super) const DATAGRAMS_OF_A_SESSION: u64 = 16_384;
/// The same for all sessions.
const DATAGRAMS: usize = 65_536;

impl Attribution {
    pub(super) fn datagram(
        &mut self,
        cookie: u64,
        number: u64,
        connection: Connection,
        process: Option<Arc<Process>>,
        at: Boottime,
    ) {
        let connection = Arc::new(connection);
        if let Some(datagrams) = self.datagrams.get_mut(&cookie) {
            datagrams.connection = Arc::clone(&connection);
        } else {
            if self.unfollowed.is_beyond(cookie) {
                self.enter(number, process, at, Recorded::ConnectionOpened { connection });
                return;
            }
            if let Some(session) = self.sessions.get_mut(number) {
                session.totals.connections += 1;
            }
            let followed = self.datagrams_of.get(&number).copied().unwrap_or(0);
            if self.datagrams.len() >= DATAGRAMS
                || followed >= DATAGRAMS_OF_A_SESSION
                || !self.sessions.follows(number)
            {
                self.not_followed(cookie, number, Connection::clone(&connection), process.clone(), at);
            } else {
                self.datagrams_of.insert(number, followed + 1);
                let datagrams = Datagrams {
                    session: number,
                    connection: Arc::clone(&connection),
                    process: process.clone(),
                    began: at,
                };
                self.datagrams.insert(cookie, datagrams);
            }
        }
        self.enter(number, process, at, Recorded::ConnectionOpened { connection });
    }

    /// Takes a UDP socket out.
    pub(super) fn take_datagrams(&mut self, cookie: u64) -> Option<Datagrams> {
        let datagrams = self.datagrams.remove(&cookie)?;
        if let Some(followed) = self.datagrams_of.get_mut(&datagrams.session) {
            *followed = followed.saturating_sub(1);
            if *followed == 0 {
                self.datagrams_of.remove(&datagrams.session);
            }
        }
        Some(datagrams)
    }

    /// The bytes of datagrams are counted, over all destinations of a socket, and not read.
    pub(super) fn finish_datagrams(
        &mut self,
        datagrams: Datagrams,
        (sent, received): (Option<u64>, Option<u64>),
        at: Boottime,
    ) {
        let coverage = Coverage { sent, received, ..Coverage::default() };
        let closed = Recorded::ConnectionClosed {
            connection: datagrams.connection,
            application: Arc::new(Application::default()),
            coverage,
            reason: CloseReason::Ended,
            duration_us: u64::try_from(at.since(datagrams.began).as_micros()).unwrap_or(u64::MAX),
            statements: 0,
        };
        self.enter(datagrams.session, datagrams.process, at, closed);
    }
}
