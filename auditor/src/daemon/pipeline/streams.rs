//! Streams between unix sockets: their ends, which no hook tells, so that the kernel programs are asked after each from time to time;
//! and holding back who says more on them than can be recorded.
//!
//! A packet that finds no room is dropped and comes again. A system call that has happened cannot be taken back. So a session
//! with streams that fills the payload ring stands still (cgroup.freeze) until the ring has been read: its
//! servers stop for want of something to read, or of room in its sockets. What is still in those then must fit into the rest of the
//! ring. Only with `overload = "backpressure"` and `fail_mode = "closed"`: whom a daemon leaves standing when it is killed stands until the next
//! one runs. Cgroups that were tagged are somebody else's, and never stopped.
//!
//! Others of the daemon freeze too, see [`Cgroup::freeze`].

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Parts, Pipeline};
use crate::clock::{Boottime, Clock};
use crate::config::{FailMode, Overload};
use crate::kernel::cgroup::Cgroup;

/// A session is stopped when the ring is filled to one part in so many, and with one part in [`ITS_PART`] by the session itself.
const STOPPED_AT: u64 = 4;
const ITS_PART: u64 = 8;
/// All go on when it is filled less than one part in so many.
const GO_ON_AT: u64 = 8;
/// Time between two looks at who is to be stopped.
const BETWEEN_STOPS: Duration = Duration::from_millis(2);

/// Sessions that stand still.
#[derive(Default)]
pub(super) struct Stopped {
    cgroups: BTreeMap<u64, Cgroup>,
    looked: Boottime,
}

impl Stopped {
    /// Stops who fills the ring, or lets all go on.
    pub(super) fn follow(&mut self, parts: &Parts) {
        if !parts.object.reads_streams() {
            // Nobody fills the ring any more by what holds them back here.
            return self.go_on();
        }
        let (size, waiting) = (u64::from(parts.sizes.payload), parts.rings.waiting().0);
        if waiting < size / GO_ON_AT {
            return self.go_on();
        }
        let daemon = &parts.settings.daemon;
        let holds = daemon.overload == Overload::Backpressure && daemon.fail_mode == FailMode::Closed;
        let now = Clock::now();
        if waiting < size / STOPPED_AT || !holds || now.since(self.looked) < BETWEEN_STOPS {
            return;
        }
        self.looked = now;
        for number in parts.attribution.streaming() {
            let Some(session) = parts.attribution.sessions.get(number) else { continue };
            let fills = parts.tables.shares().payload(session.share) >= size / ITS_PART;
            if !fills || !session.owns_cgroup {
                continue;
            }
            // Stopped here before; or by somebody else, and then it is not for us to let it go on. Asked each time: whoever stopped
            // it in the same moment may have let it go on since.
            if session.cgroup.is_to_freeze().unwrap_or(true) {
                continue;
            }
            match session.cgroup.freeze(true) {
                Ok(()) => drop(self.cgroups.insert(number, session.cgroup.clone())),
                Err(error) => tracing::warn!(%error, "a session is not held back"),
            }
        }
    }

    /// All go on.
    pub(super) fn go_on(&mut self) {
        for cgroup in std::mem::take(&mut self.cgroups).into_values() {
            // One that has gone needs nothing.
            let _ = cgroup.freeze(false);
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.go_on();
    }
}

/// Time between two looks at all streams.
const LOOK_AT_STREAMS: Duration = Duration::from_millis(50);
/// How many times longer than a look the time between two of them is at least.
const REST: u32 = 20;

impl Pipeline {
    /// Has the ends of streams recorded. Where there are none and no policy lets one begin, they are not listened to any more.
    pub(super) fn look_at_streams(&mut self) {
        let now = Clock::now();
        if now < self.look_at_streams || !self.parts.object.reads_streams() {
            return;
        }
        let known = self.look(None, false);
        if known == Some(0)
            && !self.parts.settings.allows_unix_sockets()
            && let Err(error) = self.parts.object.read_streams(&mut self.parts.tables, false)
        {
            tracing::error!(%error, "programs stay on tracepoints");
        }
        let rest = LOOK_AT_STREAMS.max(Clock::now().since(now) * REST);
        let rest = u64::try_from(rest.as_nanos()).unwrap_or(u64::MAX);
        self.look_at_streams = Boottime(now.0.saturating_add(rest));
    }

    /// Has the streams of a session that is about to end recorded as they are.
    pub(super) fn end_streams(&mut self, session: u64) {
        if self.parts.object.reads_streams() {
            self.look(Some(session), true);
        }
    }

    /// Asks after streams. Answers how many there were; `None`: that cannot be known.
    fn look(&mut self, session: Option<u64>, forced: bool) -> Option<usize> {
        let parts = &self.parts;
        let cookies = parts.tables.unix_streams(session);
        let cookies = cookies.inspect_err(|error| tracing::error!(%error, "look at unix sockets")).ok()?;
        for cookie in &cookies {
            if let Err(error) = parts.object.look_at_stream(*cookie, forced) {
                tracing::error!(%error, "look at a unix socket");
                return None;
            }
        }
        Some(cookies.len())
    }
}
