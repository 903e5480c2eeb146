//! What is followed and what is not, told event by event.

use auditor_common::endpoint::Endpoint;
use auditor_common::event::{EGRESS, KIND_CLOSED, KIND_DECISION, KIND_ESTABLISHED, KIND_PACKET, Task};
use auditor_common::rule;

use super::*;
use crate::daemon::command::SessionState;
use crate::kernel::object::RingSizes;
use crate::record::SessionTotals;
use crate::record::{Agent, Session};

const MILLISECOND: u64 = 1_000_000;

/// Attribution without a kernel, with sessions that are open.
struct Fixture {
    attribution: Attribution,
    now: u64,
}

impl Fixture {
    fn new(sessions: &[u64]) -> Self {
        let limits = Limits { max_statement_bytes: 1 << 20, parameters: true, columns: true };
        let rings = RingSizes { payload: 0, lifecycle: 0 };
        let mut attribution = Attribution::new(
            "boot".to_owned(),
            Clock::fixed(0),
            Policies::new(rings),
            Processes::new("/dev/null".into(), "/dev/null".into()),
            Arc::new(Shares::detached().unwrap()),
            limits,
        );
        for number in sessions {
            attribution.sessions.remember(*number, state(*number, None));
        }
        Self { attribution, now: 1_000 * MILLISECOND }
    }

    fn header(&mut self, kind: u32, session: u64) -> Header {
        self.now += 1;
        Header { kind, share: 0, time: self.now, session }
    }

    fn accepted(&mut self, cookie: u64, session: u64) {
        let event = Established {
            header: self.header(KIND_ESTABLISHED, session),
            cookie,
            local: Endpoint::v4([127, 0, 0, 1], 5432),
            remote: Endpoint::v4([127, 0, 0, 2], 40_000),
            send_next: 0,
            receive_next: 0,
            bytes_acked: 0,
            bytes_received: 0,
            passive: 1,
            _padding: 0,
        };
        self.attribution.on(Event::Established(event));
    }

    fn decided(&mut self, cookie: u64, session: u64, protocol: u8) {
        let event = Decision {
            header: self.header(KIND_DECISION, session),
            cookie,
            task: Task { pid: 0, tid: 0, uid: 0, gid: 0, comm: [0; 16] },
            verdict: rule::decide(None, None, rule::ACTION_ALLOW, 0),
            remote: Endpoint::v4([127, 0, 0, 2], 5432),
            table: 0,
            family: 2,
            socket_type: 1,
            protocol: protocol.into(),
            hook: HOOK_CONNECT,
            _padding: [0; 3],
        };
        self.attribution.on(Event::Decision(event));
    }

    fn segment(&mut self, cookie: u64, session: u64, direction: u8, sequence: u32, payload: &[u8]) {
        let event = Packet {
            header: self.header(KIND_PACKET, session),
            cookie,
            remote: Endpoint::v4([127, 0, 0, 2], 5432),
            sequence,
            acknowledgement: 0,
            length: payload.len() as u32,
            captured: payload.len() as u32,
            flags: 0,
            direction,
            _padding: [0; 2],
        };
        self.attribution.on(Event::Packet(event, payload));
    }

    fn closed(&mut self, cookie: u64, session: u64, protocol: u8) {
        let event = Closed {
            header: self.header(KIND_CLOSED, session),
            cookie,
            local: Endpoint::v4([127, 0, 0, 1], 40_000),
            remote: Endpoint::v4([127, 0, 0, 2], 5432),
            bytes_acked: 0,
            bytes_received: 0,
            round_trip_us: 0,
            old_state: 1,
            retransmits: 0,
            protocol: protocol.into(),
            sent: 0,
            received: 0,
        };
        self.attribution.on(Event::Closed(event));
    }

    fn wait(&mut self, milliseconds: u64) {
        self.now += milliseconds * MILLISECOND;
        self.attribution.settle(Boottime(self.now));
    }

    /// What was recorded since the last call: the events, and the messages of the findings among them.
    fn told(&mut self) -> (Vec<Recorded>, Vec<String>) {
        let events: Vec<Recorded> = self.attribution.take_entries().map(|entry| entry.event).collect();
        let message = |event: &Recorded| match event {
            Recorded::Finding { message, .. } => Some(message.clone()),
            _ => None,
        };
        let messages = events.iter().filter_map(message).collect();
        (events, messages)
    }
}

fn state(number: u64, ended: Option<u64>) -> SessionState {
    let agent =
        Agent { name: "agent".to_owned(), labels: Vec::default().into_iter().collect(), identity: None };
    SessionState {
        session: Arc::new(Session {
            id: crate::session::id(number),
            agent,
            task: None,
            policy: "policy".to_owned(),
        }),
        cgroup: String::new(),
        opened: 0,
        ended,
        totals: SessionTotals::default(),
        bytes_moved: 0,
        bytes_audited: 0,
    }
}

#[test]
fn a_connection_from_outside_that_there_is_no_room_for_is_named_once() {
    let mut fixture = Fixture::new(&[1]);
    for cookie in 0..CONVERSATIONS as u64 {
        fixture.accepted(cookie, 1);
    }
    assert_eq!(fixture.told().1.len(), 0);
    fixture.accepted(1 << 20, 1);
    assert_eq!(fixture.told().1, [NOT_FOLLOWED]);
    for sequence in 0..10 {
        fixture.segment(1 << 20, 1, EGRESS, sequence, b"x");
    }
    // A midstream one, met by a segment.
    fixture.segment(2 << 20, 1, EGRESS, 0, b"x");
    fixture.segment(2 << 20, 1, EGRESS, 1, b"x");
    assert_eq!(fixture.told().1, [NOT_FOLLOWED]);
    // Room again: what was not followed from its beginning is not followed from its middle.
    fixture.closed(0, 1, TCP);
    fixture.wait(100);
    fixture.told();
    fixture.segment(1 << 20, 1, EGRESS, 100, b"x");
    assert_eq!(fixture.told().0.len(), 0);
    fixture.closed(1 << 20, 1, TCP);
    fixture.accepted(3 << 20, 1);
    assert!(matches!(fixture.told().0[..], [Recorded::ConnectionOpened { .. }]));
}

#[test]
fn late_segments_begin_nothing() {
    let mut fixture = Fixture::new(&[1]);
    fixture.accepted(7, 1);
    fixture.closed(7, 1, TCP);
    let late = fixture.now;
    fixture.wait(100);
    let opened = fixture.attribution.connections();
    assert_eq!((opened, fixture.told().0.len()), (0, 2));
    fixture.now = late;
    fixture.segment(7, 1, EGRESS, 0, b"late");
    assert_eq!((fixture.attribution.connections(), fixture.told().0.len()), (0, 0));
    // The socket is connected again, by a word of the kernel's or, where that was lost, by what it says much later.
    fixture.accepted(7, 1);
    assert_eq!(fixture.attribution.connections(), 1);
    fixture.closed(7, 1, TCP);
    fixture.wait(100);
    fixture.segment(7, 1, EGRESS, 0, b"new");
    assert_eq!(fixture.attribution.connections(), 1);
}

#[test]
fn a_session_that_is_over_begins_nothing() {
    let mut fixture = Fixture::new(&[]);
    fixture.attribution.sessions.remember(1, state(1, Some(1)));
    fixture.segment(7, 1, EGRESS, 0, b"late");
    fixture.segment(8, 2, EGRESS, 0, b"never heard of");
    fixture.accepted(9, 1);
    assert_eq!((fixture.attribution.connections(), fixture.told().0.len()), (0, 0));
    fixture.decided(10, 1, TCP);
    fixture.decided(11, 1, UDP);
    assert_eq!(fixture.attribution.connections(), 0);
    assert_eq!(fixture.told().1, [SESSION_OVER, SESSION_OVER]);
}

#[test]
fn one_session_cannot_have_all_datagram_sockets() {
    let mut fixture = Fixture::new(&[1, 2]);
    let most = DATAGRAMS_OF_A_SESSION;
    for cookie in 0..most {
        fixture.decided(cookie, 1, UDP);
    }
    assert_eq!(fixture.told().1.len(), 0);
    fixture.decided(most, 1, UDP);
    fixture.decided(most, 1, UDP);
    let (events, findings) = fixture.told();
    assert_eq!((events.len(), findings), (3, vec![DATAGRAMS_NOT_FOLLOWED.to_owned()]));
    fixture.decided(most + 1, 2, UDP);
    assert_eq!(fixture.told().1.len(), 0, "another session has room");
    fixture.closed(0, 1, UDP);
    fixture.decided(most + 2, 1, UDP);
    assert_eq!(fixture.told().1.len(), 0, "there is room again");
    assert_eq!(fixture.attribution.connections(), most + 1);
}
