//! A capture, replayed: the daemon's own attribution, reassembly and protocols, without a kernel and without waiting.
//!
//! What the capture does not hold is not made up: verdicts of connections that no connect(2) named (the policies are not in
//! it) and what procfs said of a process, apart from its id, name and user id. Time is the capture's.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use auditor_common::event::INGRESS;

use super::attribution::Attribution;
use super::command::SessionState;
use super::keyrings::Keyrings;
use super::policies::Policies;
use crate::clock::Boottime;
use crate::kernel::object::RingSizes;
use crate::kernel::shares::Shares;
use crate::process::Processes;
use crate::protocol::Limits;
use crate::record::{Entry, SessionTotals};
use crate::source::capture::{Capture, CaptureError};
use crate::source::{Event, Source as _};

/// Events that are taken in one go.
const EVENTS_IN_ONE_GO: usize = 8192;
/// Entries that wait at most before they are handed out, as in the pipeline.
const ENTRIES_IN_ONE_GO: usize = 16;
/// Longer than closed connections wait for their last segments.
const AFTER_THE_END: Duration = Duration::from_secs(1);
/// Nothing can be found below it, neither processes nor users: those of this host now are not those of the capture.
const NOWHERE: &str = "/dev/null";

/// What a replay came across.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Replayed {
    /// Events in the capture.
    pub events: u64,
    /// Statements.
    pub statements: u64,
    /// Payload bytes that went out.
    pub sent: u64,
    /// Payload bytes that came in and were copied.
    pub received: u64,
}

/// Replays a capture from where it stands to its end; `on` gets what the daemon would append to its trail, in that order.
///
/// # Errors
/// The capture cannot be read to its end. What came before was handed out, and is counted.
pub fn replay<R: Read>(
    capture: &mut Capture<R>,
    limits: Limits,
    on: &mut dyn FnMut(Entry),
) -> (Replayed, Result<(), CaptureError>) {
    let header = capture.header();
    let processes = Processes::new(NOWHERE.into(), NOWHERE.into());
    let shares = match Shares::detached() {
        Ok(shares) => Arc::new(shares),
        Err(error) => return (Replayed::default(), Err(error.into())),
    };
    let mut policies = Policies::new(RingSizes { payload: 0, lifecycle: 0 });
    policies.keep_up_as(header.overload, header.fail_mode);
    let (boot_id, clock, keyrings) = (header.boot_id.clone(), header.clock(), Keyrings::default());
    let mut attribution = Attribution::new(boot_id, clock, policies, processes, shares, keyrings, limits);
    let mut replayed = Replayed::default();
    let mut last = Boottime::default();
    let end = loop {
        let drained = capture.drain(EVENTS_IN_ONE_GO, &mut |event| {
            replayed.events += 1;
            let copied = match &event {
                Event::Packet(packet, payload) => Some((packet.direction, payload.len() as u64)),
                Event::UnixData(data, payload) => Some((data.direction, payload.len() as u64)),
                _ => None,
            };
            if let Some((direction, bytes)) = copied {
                if direction == INGRESS { replayed.received += bytes } else { replayed.sent += bytes }
            }
            last = event.time();
            attribution.settle(last);
            attribution.on(event);
            if attribution.waiting() >= ENTRIES_IN_ONE_GO {
                attribution.take_entries().for_each(&mut *on);
            }
        });
        // There is no kernel that could be told.
        attribution.take_counting();
        let mut sessions = 0;
        for (number, session) in capture.take_sessions() {
            sessions += 1;
            let state = SessionState {
                session: Arc::new(session),
                cgroup: String::new(),
                opened: 0,
                ended: None,
                totals: SessionTotals::default(),
                bytes_moved: 0,
                bytes_audited: 0,
                confinement: None,
            };
            attribution.sessions.remember(number, state);
        }
        match drained {
            Err(error) => break Err(error),
            Ok(0) if sessions == 0 => break Ok(()),
            Ok(_) => {}
        }
    };
    let after = Boottime(last.0.saturating_add(u64::try_from(AFTER_THE_END.as_nanos()).unwrap_or(0)));
    attribution.settle(after);
    attribution.finish_session(None, after);
    attribution.take_entries().for_each(on);
    replayed.statements = attribution.statements();
    (replayed, end)
}
