//! What is followed and what is not, told event by event.

use auditor_common::endpoint::Endpoint;
use auditor_common::event::{
    Closed, Decision, EGRESS, Established, HOOK_CONNECT, Header, INGRESS, KIND_CLOSED, KIND_DECISION,
    KIND_ESTABLISHED, KIND_PACKET, Packet, Task,
};
use auditor_common::packet::{TCP, UDP};
use auditor_common::rule;

use super::bounds::{DATAGRAMS_NOT_FOLLOWED, HISTORY_LIMIT, NOT_FOLLOWED, SESSION_OVER};
use super::connections::CONVERSATIONS;
use super::datagrams::DATAGRAMS_OF_A_SESSION;
use super::findings::MEMORY_LIMIT;
use super::*;
use crate::daemon::command::SessionState;
use crate::daemon::conversation::Degraded;
use crate::daemon::memory::{MOST, MOST_HISTORY};
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
            Keyrings::default(),
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

/// A client's first packet (StartupMessage 3.0).
const STARTUP: &[u8] = b"\0\0\0\x10\0\x03\0\0user\0a\0\0";
/// AuthenticationOk and ReadyForQuery.
const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";

/// A PostgreSQL connection of a client's that was accepted, as the server's host has it: what is sent is the server's.
struct Peer {
    cookie: u64,
    session: u64,
    said: u32,
    answered: u32,
}

impl Peer {
    fn new(fixture: &mut Fixture, cookie: u64, session: u64) -> Self {
        fixture.accepted(cookie, session);
        let mut peer = Self { cookie, session, said: 0, answered: 0 };
        peer.say(fixture, STARTUP);
        peer.answer(fixture, WELCOME);
        peer
    }

    fn say(&mut self, fixture: &mut Fixture, bytes: &[u8]) {
        fixture.segment(self.cookie, self.session, INGRESS, self.said, bytes);
        self.said += bytes.len() as u32;
    }

    fn answer(&mut self, fixture: &mut Fixture, bytes: &[u8]) {
        fixture.segment(self.cookie, self.session, EGRESS, self.answered, bytes);
        self.answered += bytes.len() as u32;
    }

    fn query(text: &[u8]) -> Vec<u8> {
        let length = (text.len() as u32 + 5).to_be_bytes();
        [b"Q", &length[..], text, b"\0"].concat()
    }

    /// A statement with its answer, which must be recorded whole.
    fn whole_statement(&mut self, fixture: &mut Fixture) {
        self.say(fixture, &Self::query(b"SELECT 1"));
        self.answer(fixture, b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I");
        let (events, _) = fixture.told();
        let [.., Recorded::Statement { statement, .. }] = &events[..] else { panic!("{events:?}") };
        assert_eq!((&statement.text[..], statement.incomplete), (&b"SELECT 1"[..], false));
        assert_eq!(statement.results.len(), 1);
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
        confinement: None,
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

/// Cookies of connections that were degraded.
fn degraded(events: &[Recorded]) -> Vec<usize> {
    let degraded = events.iter().filter_map(|event| match event {
        Recorded::Finding { kind: "memory-limit", connection: Some(connection), .. } => {
            usize::from_str_radix(connection.id.strip_prefix("boot-")?, 16).ok()
        }
        _ => None,
    });
    degraded.collect()
}

/// Findings that say that something is kept in memory no more.
fn limits(messages: &[String]) -> Vec<&str> {
    messages.iter().filter_map(|message| message.strip_prefix(MEMORY_LIMIT)).collect()
}

#[test]
fn early_segments_of_all_connections_are_bounded_and_one_session_pays() {
    let mut fixture = Fixture::new(&[1, 2]);
    let mut quiet = Peer::new(&mut fixture, 1000, 2);
    // The quiet one waits for a hole as well.
    let late = quiet.said;
    quiet.said += 14;
    quiet.say(&mut fixture, &Peer::query(b"SELECT 3"));
    let mut loud: Vec<Peer> = (0..150).map(|cookie| Peer::new(&mut fixture, cookie, 1)).collect();
    fixture.told();
    let piece = vec![b'x'; 60_000];
    for peer in &mut loud {
        peer.said += 1;
        for _ in 0..15 {
            peer.say(&mut fixture, &piece);
            assert!(fixture.attribution.budget.held().working <= MOST);
        }
    }
    let (_, messages) = fixture.told();
    let told = limits(&messages);
    assert!(told.len() > 50, "{told:?}");
    assert!(told.iter().all(|told| *told == Degraded::Early.told()), "{told:?}");
    quiet.say(&mut fixture, b"");
    fixture.segment(quiet.cookie, 2, INGRESS, late, &Peer::query(b"SELECT 2"));
    assert_eq!(quiet.said, late + 28);
    quiet.answer(&mut fixture, b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05IC\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I");
    let texts: Vec<Vec<u8>> =
        statements(&fixture.told().0).map(|statement| statement.text.to_vec()).collect();
    assert_eq!(texts, [b"SELECT 2", b"SELECT 3"]);
}

fn statements(events: &[Recorded]) -> impl Iterator<Item = &crate::protocol::Statement> {
    events.iter().filter_map(|event| match event {
        Recorded::Statement { statement, .. } => Some(&**statement),
        _ => None,
    })
}

#[test]
fn requests_without_an_answer_are_bounded_and_told_without_it() {
    let mut fixture = Fixture::new(&[1, 2]);
    let mut quiet = Peer::new(&mut fixture, 1000, 2);
    let mut loud: Vec<Peer> = (0..10).map(|cookie| Peer::new(&mut fixture, cookie, 1)).collect();
    fixture.told();
    let query = Peer::query(&[b'y'; 100_000]);
    for peer in &mut loud {
        for _ in 0..150 {
            peer.say(&mut fixture, &query);
            assert!(fixture.attribution.budget.held().working <= MOST);
        }
    }
    let (events, messages) = fixture.told();
    let told = limits(&messages);
    assert!(!told.is_empty() && told.iter().all(|told| *told == Degraded::Answers.told()), "{told:?}");
    let without: Vec<_> = statements(&events).collect();
    assert!(without.len() > 100, "{} statements", without.len());
    assert!(without.iter().all(|statement| statement.incomplete && statement.text.len() >= 4 << 10));
    // What the others say goes on being told, and so does what is said on a degraded one.
    quiet.whole_statement(&mut fixture);
    loud[degraded(&events)[0]].say(&mut fixture, &Peer::query(b"DROP TABLE t"));
    let events = fixture.told().0;
    assert_eq!(
        statements(&events).map(|statement| &statement.text[..]).collect::<Vec<_>>(),
        [b"DROP TABLE t"]
    );
}

#[test]
fn messages_under_way_are_bounded_and_their_beginning_is_told() {
    let mut fixture = Fixture::new(&[1, 2]);
    let mut quiet = Peer::new(&mut fixture, 1000, 2);
    let mut loud: Vec<Peer> = (0..200).map(|cookie| Peer::new(&mut fixture, cookie, 1)).collect();
    fixture.told();
    let query = Peer::query(&[b'z'; 900_000]);
    let (most, rest) = query.split_at(800_000);
    for peer in &mut loud {
        for piece in most.chunks(50_000) {
            peer.say(&mut fixture, piece);
            assert!(fixture.attribution.budget.held().working <= MOST);
        }
    }
    let degraded = degraded(&fixture.told().0);
    quiet.whole_statement(&mut fixture);
    for peer in &mut loud {
        peer.say(&mut fixture, rest);
    }
    let events = fixture.told().0;
    let cut: Vec<_> = statements(&events).collect();
    let lengths: Vec<_> = cut.iter().map(|statement| (statement.text.len(), statement.incomplete)).collect();
    // Some were whole when their turn came.
    let whole = lengths.iter().filter(|length| **length == (900_000, true)).count();
    let begun = lengths.iter().filter(|length| **length == (4 << 10, true)).count();
    assert!(begun > 50 && begun + whole == lengths.len(), "{lengths:?}");
    loud[degraded[0]].say(&mut fixture, &Peer::query(b"SELECT 4"));
    let events = fixture.told().0;
    assert_eq!(statements(&events).map(|statement| &statement.text[..]).collect::<Vec<_>>(), [b"SELECT 4"]);
}

#[test]
fn names_of_prepared_statements_are_bounded() {
    let mut fixture = Fixture::new(&[1]);
    let mut loud: Vec<Peer> = (0..20).map(|cookie| Peer::new(&mut fixture, cookie, 1)).collect();
    let text = vec![b'p'; 50_000];
    for peer in &mut loud {
        for number in 0..100_u32 {
            let body = [format!("s{number}").as_bytes(), b"\0", &text, b"\0\0\0"].concat();
            let length = (body.len() as u32 + 4).to_be_bytes();
            peer.say(&mut fixture, &[b"P", &length[..], &body].concat());
            peer.answer(&mut fixture, b"1\0\0\0\x04");
            assert!(fixture.attribution.budget.held().working <= MOST);
        }
    }
    assert!(!limits(&fixture.told().1).is_empty());
}

#[test]
fn what_is_kept_of_what_was_delivered_is_bounded_and_told_once() {
    let mut fixture = Fixture::new(&[1, 2]);
    let mut quiet = Peer::new(&mut fixture, 1000, 2);
    quiet.whole_statement(&mut fixture);
    let mut loud: Vec<Peer> = (0..1000).map(|cookie| Peer::new(&mut fixture, cookie, 1)).collect();
    fixture.told();
    let notice = [b"N\0\0\x9c\x44".as_slice(), &[b'n'; 40_000]].concat();
    for peer in &mut loud {
        peer.answer(&mut fixture, &notice);
        assert!(fixture.attribution.budget.held().history <= MOST_HISTORY);
    }
    let (_, messages) = fixture.told();
    assert_eq!(messages, [HISTORY_LIMIT]);
    // The quiet one still knows what it was sent.
    let again = quiet.answered - 1;
    fixture.segment(quiet.cookie, 2, EGRESS, again, b"X");
    assert_eq!(fixture.told().1.len(), 1, "a conflict");
}

#[test]
fn in_the_end_a_connection_is_not_read() {
    let mut fixture = Fixture::new(&[1]);
    let mut peer = Peer::new(&mut fixture, 1, 1);
    peer.say(&mut fixture, &Peer::query(b"SELECT 1"));
    for expected in [Degraded::Answers, Degraded::Reading] {
        let mut findings = Findings::default();
        fixture.attribution.conversations.get_mut(&1).unwrap().degrade(
            Boottime(0),
            &Vec::<crate::tls::Secret>::new(),
            &mut findings,
        );
        fixture.attribution.report(1, Boottime(0), &mut findings);
        let (events, messages) = fixture.told();
        assert_eq!(limits(&messages), [expected.told()]);
        assert_eq!(statements(&events).count(), usize::from(expected == Degraded::Answers));
    }
    peer.say(&mut fixture, &Peer::query(b"SELECT 2"));
    fixture.closed(1, 1, TCP);
    fixture.wait(100);
    let (events, _) = fixture.told();
    let [Recorded::ConnectionClosed { application, .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!(application.opaque, Some("memory"));
    assert_eq!(fixture.attribution.budget.held(), Default::default());
}

#[test]
fn a_connection_that_is_over_waits_for_its_library_s_name() {
    let mut fixture = Fixture::new(&[1]);
    let library = |events: Vec<Recorded>| {
        let [.., Recorded::ConnectionClosed { application, .. }] = &events[..] else { panic!("{events:?}") };
        application.library.clone()
    };
    for cookie in [1, 2, 3] {
        Peer::new(&mut fixture, cookie, 1);
        let number = if cookie == 3 { 0 } else { cookie };
        fixture.attribution.conversations.get_mut(&cookie).unwrap().derived_by(number, None);
        fixture.told();
        fixture.closed(cookie, 1, TCP);
    }
    fixture.wait(30);
    assert_eq!(library(fixture.told().0), None, "without a library none is waited for");
    fixture.wait(500);
    assert!(fixture.told().0.is_empty() && !fixture.attribution.is_settled());
    fixture.attribution.library(2, "GnuTLS 3.8.3".to_owned());
    fixture.wait(30);
    assert_eq!(library(fixture.told().0).as_deref(), Some("GnuTLS 3.8.3"));
    fixture.wait(2000);
    assert_eq!(library(fixture.told().0), None, "nor for longer than it takes to find one");
    assert!(fixture.attribution.is_settled());
}

#[test]
fn the_next_daemon_degrades_the_same() {
    let steps = |fixture: &mut Fixture, peers: &mut [Peer], rounds: std::ops::Range<u32>| {
        let query = Peer::query(&[b'q'; 70_000]);
        for round in rounds {
            for (index, peer) in peers.iter_mut().enumerate() {
                match (index as u32 + round) % 3 {
                    0 => peer.say(fixture, &query),
                    1 => peer.answer(fixture, &[b"N\0\0\x9c\x44".as_slice(), &[b'n'; 40_000]].concat()),
                    _ => {
                        peer.said += 1;
                        peer.say(fixture, &query[..30_000]);
                    }
                }
            }
        }
    };
    let mut first = Fixture::new(&[1, 2]);
    let mut peers: Vec<Peer> = (0..90).map(|cookie| Peer::new(&mut first, cookie, 1 + cookie % 2)).collect();
    steps(&mut first, &mut peers, 0..12);
    let state = postcard::to_stdvec(&first.attribution.saved()).unwrap();
    let mut second = Fixture::new(&[1, 2]);
    second.attribution.restore(postcard::from_bytes(&state).unwrap()).unwrap();
    second.now = first.now;
    first.told();
    let mut of_second: Vec<Peer> = peers.iter().map(|peer| Peer { ..*peer }).collect();
    steps(&mut first, &mut peers, 12..40);
    steps(&mut second, &mut of_second, 12..40);
    let (one, other) = (first.told().0, second.told().0);
    assert!(degraded(&one).len() > 5);
    assert_eq!(one.len(), other.len());
    assert!(format!("{one:?}") == format!("{other:?}"));
    assert_eq!(first.attribution.budget.held(), second.attribution.budget.held());
}

#[test]
fn what_the_protocol_has_prepared_is_not_taken_for_what_sql_had() {
    let mut fixture = Fixture::new(&[1]);
    let mut peer = Peer::new(&mut fixture, 1, 1);
    let message = |kind: u8, body: &[u8]| {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind], &length[..], body].concat()
    };
    let ready = message(b'Z', b"I");
    let sync = message(b'S', b"");
    for (said, answered) in [
        (Peer::query(b"PREPARE p AS SELECT 1"), message(b'C', b"PREPARE\0")),
        (Peer::query(b"EXECUTE p"), message(b'C', b"SELECT 1\0")),
        ([message(b'C', b"Sp\0"), sync.clone()].concat(), message(b'3', b"")),
        ([message(b'P', b"p\0DELETE FROM t\0\0\0"), sync].concat(), message(b'1', b"")),
        (Peer::query(b"EXECUTE p"), message(b'C', b"DELETE 1\0")),
    ] {
        peer.say(&mut fixture, &said);
        peer.answer(&mut fixture, &[answered, ready.clone()].concat());
    }
    let told: Vec<String> = fixture
        .told()
        .0
        .iter()
        .filter_map(|event| match event {
            Recorded::Statement { statement, meaning: Some(meaning), .. } => {
                let verbs: Vec<_> = meaning.commands.iter().flat_map(|command| &command.verbs).collect();
                let text = statement.text.escape_ascii();
                Some(format!("{text} | {:?} | {verbs:?} | {:?}", statement.outcome, meaning.unclassified))
            }
            _ => None,
        })
        .collect();
    assert_eq!(
        told,
        [
            r#"PREPARE p AS SELECT 1 | Completed | ["prepare", "select"] | None"#,
            r#"EXECUTE p | Completed | ["execute", "select"] | None"#,
            r#"DELETE FROM t | Prepared | ["delete"] | None"#,
            r#"EXECUTE p | Completed | ["execute"] | Some("prepared")"#,
        ]
    );
}
