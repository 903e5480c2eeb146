//! Streams between unix sockets, whose end no hook tells: the kernel programs are asked after each from time to time.

use std::time::Duration;

use super::Pipeline;
use crate::clock::{Boottime, Clock};

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
