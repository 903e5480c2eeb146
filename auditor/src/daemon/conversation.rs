//! One connection of an agent, TCP or a stream between unix sockets, from its segments to its statements: both directions'
//! reassembly, how they are read, and what the connection's records have in common.

use std::sync::Arc;

use auditor_common::bulk::{LEAST, LONG, Place};
use auditor_common::event::{Closed, EGRESS, Established, INGRESS, Packet, Skipped};
use auditor_common::packet::{ACK, FIN, RST, SYN, URG};
use auditor_common::unix::{CONTENT_COPIED, STREAM_PROTOCOL, UnixData};

use super::memory::{Account, Held};
use super::reading::{Context, Reader};
use crate::clock::Boottime;
use crate::interned::Name;
use crate::protocol::{self, Limits, Observation, Outcome, Side, Statement, StatementKind, Within};
use crate::record::{Application, CloseReason, Connection, Coverage, GapRange, Process, Transport};
use crate::statement::{self, Classifier, Dialect, Dialogue, Meaning, Text};
use crate::stream::{self, Delivery, HalfStream, Segment, Skip};
use crate::tls::Keyring;

/// Bytes of history and early segments that a direction may keep. Loopback and a healthy network need next to none. But where a segment
/// found no room in the ring, all that is in flight behind it may come before it does again: a receive window, which is 6 MiB at most if
/// nobody has changed tcp_rmem (tcp(7)). What all connections keep together has a bound of its own (`memory`).
const STREAM_LIMITS: stream::Limits = stream::Limits {
    early_bytes: 8 << 20,
    early_segments: 8192,
    history_bytes: 32 << 10,
    window_bytes: 1 << 30,
};

/// What came of a segment, beside observations.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Notice {
    /// Bytes of a direction were never seen.
    Gap(GapRange),
    /// Two versions of the same bytes were seen, at this offset and of this length.
    Conflict { sent: bool, offset: u64, length: u64 },
    /// The other end sent urgent data: what the application reads may not be what was recorded.
    Urgent,
    /// Where TLS was agreed on, something else is said.
    NotTls(&'static str),
    /// A record under TLS is not what the other end has sent.
    RecordFails(Side),
    /// The client's first bytes are of no protocol that is known.
    Unrecognised,
    /// They are of this one.
    Recognised(Name),
    /// It was degraded, because connections keep more than they may.
    Degraded(Degraded),
}

/// What a connection does without, because connections keep more than they may, and its session keeps the most.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Degraded {
    /// Segments that come early are not waited for.
    Early,
    /// Statements are recorded without their answers, and no more than the beginning of long ones.
    Answers,
    /// It is not read.
    Reading,
}

/// What was done for want of memory.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Need {
    early: bool,
    answers: bool,
    reading: bool,
}

/// Early segments that are kept where memory is short: enough for a few that change places.
const EARLY_IN_NEED: (usize, usize) = (4 << 10, 4);

/// A TCP connection, or a stream between unix sockets.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Conversation {
    /// The session's number in the kernel; 0 while it is not known.
    pub(super) session: u64,
    /// Identity, ends and verdict.
    pub(super) connection: Arc<Connection>,
    /// Who connected.
    pub(super) process: Option<Arc<Process>>,
    /// What it speaks.
    pub(super) application: Arc<Application>,
    /// What it must speak, by the rule that allowed it.
    #[serde(with = "crate::interned::option")]
    pub(super) expected: Option<Name>,
    /// Statements recorded.
    pub(super) statements: u64,
    /// Whether `connection.verdict` is what the kernel said at connect(2), or was decided again here.
    pub(super) decided: bool,
    /// When it was first heard of.
    began: Boottime,
    established: bool,
    /// Bytes that the kernel's count of what was acknowledged has for SYN: 1 on the end that connected (RFC 4898).
    counted_for_syn: u64,
    sent: HalfStream,
    received: HalfStream,
    reader: Reader,
    limits: Limits,
    #[serde(with = "crate::source::saved")]
    closed: Option<Closed>,
    /// Whether the kernel programs have been told to count rows instead of copying them.
    counts_rows: bool,
    /// What passes in one direction only. Not saved: it is about what comes next.
    #[serde(skip)]
    bulk: Bulk,
    /// Whether a record waits for a secret.
    waiting: bool,
    /// Number of the library that derived its keys; 0: none is known.
    library: u64,
    /// What it is charged with.
    pub(super) account: Account,
    need: Need,
    /// Bytes that passed between unix sockets by calls whose content cannot be had.
    unreadable: u64,
    /// What its earlier statements make of later ones.
    dialogue: Dialogue,
}

/// What passes in one direction since something passed in the other one.
#[derive(Debug, Default)]
struct Bulk {
    sent: bool,
    bytes: u32,
    /// When the last of it passed.
    at: Boottime,
    /// Whether some of it was copied since the last that was counted.
    copied: bool,
}

impl Bulk {
    fn passed(&mut self, sent: bool, bytes: u32, at: Boottime) {
        if bytes == 0 {
            return;
        }
        if self.sent != sent {
            *self = Self { sent, bytes: 0, at, copied: false };
        }
        self.at = at;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl Conversation {
    pub(super) fn new(
        session: u64,
        connection: Connection,
        process: Option<Arc<Process>>,
        expected: Option<&'static str>,
        limits: Limits,
        began: Boottime,
    ) -> Self {
        Self {
            session,
            connection: Arc::new(connection),
            process,
            application: Arc::default(),
            expected,
            statements: 0,
            decided: true,
            began,
            established: false,
            counted_for_syn: 0,
            sent: HalfStream::new(STREAM_LIMITS),
            received: HalfStream::new(STREAM_LIMITS),
            reader: Reader::default(),
            limits,
            closed: None,
            counts_rows: false,
            bulk: Bulk::default(),
            waiting: false,
            library: 0,
            account: Account::default(),
            need: Need::default(),
            unreadable: 0,
            dialogue: Dialogue::default(),
        }
    }

    /// What it keeps, of all that grows with what is said on it. `None`: as little as any, and it will not be more.
    pub(super) fn held(&self) -> Option<Held> {
        let history = self.sent.history_memory() + self.received.history_memory();
        let working = self.sent.early_memory()
            + self.received.early_memory()
            + self.reader.memory()
            + self.dialogue.memory();
        (!self.need.reading).then_some(Held { history, working })
    }

    /// Forgets what was delivered.
    pub(super) fn forget_history(&mut self) {
        self.sent.forget_history();
        self.received.forget_history();
    }

    /// Keeps less: first it does without what takes most, in the end without everything.
    pub(super) fn degrade(&mut self, at: Boottime, keyring: &dyn Keyring, out: &mut Findings) {
        let early = self.sent.early_memory() + self.received.early_memory();
        let (bytes, segments) = EARLY_IN_NEED;
        let degraded = if early > self.reader.memory() && !std::mem::replace(&mut self.need.early, true) {
            self.keep_early(bytes, segments, at, keyring, out);
            Degraded::Early
        } else if !std::mem::replace(&mut self.need.answers, true) && self.reader.spare(at, out) {
            Degraded::Answers
        } else {
            self.need.reading = true;
            self.keep_early(0, 0, at, keyring, out);
            self.forget_history();
            self.dialogue = Dialogue::default();
            let (reader, mut context) = self.reader(keyring, out);
            reader.stop(at, &mut context);
            let application = Arc::make_mut(&mut self.application);
            application.opaque = Some("memory");
            application.login.iter_mut().for_each(protocol::Login::shorten);
            Degraded::Reading
        };
        out.notices.push(Notice::Degraded(degraded));
    }

    fn keep_early(
        &mut self,
        bytes: usize,
        segments: usize,
        at: Boottime,
        keyring: &dyn Keyring,
        out: &mut Findings,
    ) {
        for sent in [true, false] {
            self.feed(sent, at, keyring, out, |stream, deliver| stream.keep_early(bytes, segments, deliver));
        }
    }

    /// The decision about it arrives after its first segments did.
    pub(super) fn adopt(
        &mut self,
        connection: Connection,
        process: Option<Arc<Process>>,
        expected: Option<&'static str>,
    ) {
        let known = Arc::make_mut(&mut self.connection);
        known.verdict = connection.verdict;
        known.remote = connection.remote;
        self.process = process;
        self.expected = expected;
        self.decided = true;
    }

    /// The handshake is done.
    pub(super) fn established(&mut self, event: &Established, keyring: &dyn Keyring, out: &mut Findings) {
        self.established = true;
        // Fast Open: data may have been acknowledged with the SYN, so it is at most one.
        self.counted_for_syn = event.bytes_acked.min(1);
        let connection = Arc::make_mut(&mut self.connection);
        connection.local = Some(event.local.socket_address());
        connection.remote = Some(event.remote.socket_address());
        connection.inbound = event.passive != 0;
        let at = Boottime(event.header.time);
        self.feed(true, at, keyring, out, |stream, deliver| stream.start(event.send_next, deliver));
        self.feed(false, at, keyring, out, |stream, deliver| stream.start(event.receive_next, deliver));
    }

    /// A stream between unix sockets, whose first bytes are still to come. Places are counted from 0.
    pub(super) fn followed(&mut self, at: Boottime, keyring: &dyn Keyring, out: &mut Findings) {
        self.feed(true, at, keyring, out, |stream, deliver| stream.start(0, deliver));
        self.feed(false, at, keyring, out, |stream, deliver| stream.start(0, deliver));
    }

    /// Bytes passed on a stream between unix sockets. These come in order, so what was not told before was not seen.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "places are told by their lower half, as a sequence number's"
    )]
    pub(super) fn passed(
        &mut self,
        event: &UnixData,
        payload: &[u8],
        keyring: &dyn Keyring,
        out: &mut Findings,
    ) {
        let sent = event.direction == EGRESS;
        let at = Boottime(event.header.time);
        let (offset, passed) = (event.offset as u32, event.passed as u32);
        self.established = true;
        if event.content != CONTENT_COPIED {
            self.unreadable += u64::from(event.length);
        }
        // First, as for a segment.
        self.acknowledged(!sent, passed, true, at, keyring, out);
        self.acknowledged(sent, offset, true, at, keyring, out);
        let segment = Segment { sequence: offset, flags: 0, payload, length: event.length, at };
        self.feed(sent, at, keyring, out, |stream, deliver| stream.segment(&segment, deliver));
        self.expect_secret(sent, at, keyring, out);
        self.tell_waiting(out);
    }

    /// It is older than the audit: its streams begin with the first bytes seen.
    pub(super) fn midstream(&mut self, at: Boottime, keyring: &dyn Keyring, out: &mut Findings) {
        self.feed(true, at, keyring, out, HalfStream::start_midstream);
        self.feed(false, at, keyring, out, HalfStream::start_midstream);
    }

    /// A segment passed a hook. `lossy`: segments may have passed before it that were not copied.
    pub(super) fn segment(
        &mut self,
        packet: &Packet,
        payload: &[u8],
        lossy: bool,
        keyring: &dyn Keyring,
        out: &mut Findings,
    ) {
        let sent = packet.direction == EGRESS;
        let at = Boottime(packet.header.time);
        let segment = Segment {
            sequence: packet.sequence,
            flags: packet.flags & (FIN | SYN | RST | URG),
            payload,
            length: packet.length,
            at,
        };
        if segment.flags & URG != 0 && self.received.counters().urgent == 0 && !sent {
            out.notices.push(Notice::Urgent);
        }
        // The other direction up to here has arrived: what of it was not seen will not come again. First, because this segment
        // may be the answer to it, and an answer without a question is a violation.
        if packet.flags & ACK != 0 && packet.flags & RST == 0 {
            let unseen = lossy && !payload.is_empty();
            self.acknowledged(!sent, packet.acknowledgement, unseen, at, keyring, out);
        }
        self.feed(sent, at, keyring, out, |stream, deliver| stream.segment(&segment, deliver));
        self.bulk.passed(sent, packet.length, at);
        self.bulk.copied |= packet.length >= LEAST;
        self.expect_secret(sent, at, keyring, out);
        self.tell_waiting(out);
    }

    /// What the agent says is there: so are the secrets that it is under, or they never will be.
    fn expect_secret(&mut self, sent: bool, at: Boottime, keyring: &dyn Keyring, out: &mut Findings) {
        if sent {
            let side = self.side(sent);
            let (reader, mut context) = self.reader(keyring, out);
            reader.expect_secret(side, at, &mut context);
        }
    }

    /// A direction has arrived up to here. `unseen`: also what of it was never seen.
    fn acknowledged(
        &mut self,
        sent: bool,
        sequence: u32,
        unseen: bool,
        at: Boottime,
        keyring: &dyn Keyring,
        out: &mut Findings,
    ) {
        self.feed(sent, at, keyring, out, |stream, deliver| {
            if unseen {
                stream.acknowledged_unseen(sequence, deliver);
            } else {
                stream.acknowledged(sequence, deliver);
            }
        });
    }

    /// Rows passed a hook and were counted instead of copied. `lossy`: as for a segment.
    pub(super) fn skipped(
        &mut self,
        event: &Skipped,
        lossy: bool,
        keyring: &dyn Keyring,
        out: &mut Findings,
    ) {
        let sent = event.direction == EGRESS;
        let at = Boottime(event.header.time);
        let skip = Skip {
            length: event.length,
            first: event.first,
            messages: event.messages,
            body: event.body,
            remaining: event.remaining,
            message: event.message,
        };
        // First, as for a segment.
        self.acknowledged(!sent, event.acknowledgement, lossy, at, keyring, out);
        self.feed(sent, at, keyring, out, |stream, deliver| {
            stream.skipped(event.sequence, skip, at, deliver);
        });
        self.bulk.passed(sent, event.length, at);
        self.bulk.copied = false;
    }

    /// When something passed last that may be a part of a long transfer.
    pub(super) const fn moved(&self) -> Boottime {
        self.bulk.at
    }

    /// Whether rows are copied that the kernel programs could count, if they knew where they are.
    pub(super) fn wants_a_place(&self) -> bool {
        self.counts_rows && self.bulk.copied && self.bulk.bytes >= LONG
    }

    /// The direction of what [`Self::wants_a_place`] and the place to which its reading has come.
    pub(super) fn place(&self) -> Option<(u8, Place)> {
        if !self.wants_a_place() {
            return None;
        }
        let sent = self.bulk.sent;
        let (stream, direction) = if sent { (&self.sent, EGRESS) } else { (&self.received, INGRESS) };
        let (sequence, within) = (stream.caught_up()?, self.reader.place(self.side(sent))?);
        let Within { remaining, kind } = within;
        Some((direction, Place { sequence, remaining, kind: kind.into(), ..Place::UNKNOWN }))
    }

    /// Whether the kernel programs are to count the rows of long transfers instead of copying them, if that has changed. Only on
    /// a connection that this host has opened.
    pub(super) fn counting_changed(&mut self) -> Option<bool> {
        let counts = self.connection.transport == Transport::Tcp
            && !self.connection.inbound
            && self.closed.is_none()
            && self.reader.counts_rows();
        (std::mem::replace(&mut self.counts_rows, counts) != counts).then_some(counts)
    }

    /// Whether the kernel programs have been told to count rows.
    pub(super) const fn counts_rows(&self) -> bool {
        self.counts_rows
    }

    /// The kernel has ended it. Its last segments may still be on their way out of the ring.
    pub(super) fn closing(&mut self, event: &Closed) {
        let connection = Arc::make_mut(&mut self.connection);
        if connection.local.is_none() && event.local.port() != 0 {
            connection.local = Some(event.local.socket_address());
        }
        self.established |= event.protocol == STREAM_PROTOCOL && event.old_state != 0;
        self.closed = Some(*event);
    }

    /// Whether the kernel has ended it.
    pub(super) fn is_closing(&self) -> bool {
        self.closed.is_some()
    }

    /// When the kernel ended it.
    pub(super) fn ended(&self) -> Option<Boottime> {
        self.closed.map(|closed| Boottime(closed.header.time))
    }

    /// Whether a record under TLS waits for a secret.
    pub(super) fn waits(&self) -> bool {
        self.reader.waits()
    }

    /// The library of this number has derived its keys.
    pub(super) fn derived_by(&mut self, number: u64, name: Option<&String>) {
        self.library = number;
        if let Some(name) = name {
            self.is_called(number, name);
        }
    }

    /// The library of this number has this name.
    pub(super) fn is_called(&mut self, number: u64, name: &str) {
        if self.library == number && self.application.library.as_deref() != Some(name) {
            Arc::make_mut(&mut self.application).library = Some(name.to_owned());
        }
    }

    /// Whether nobody has said yet what the library that derived its keys is called.
    pub(super) fn waits_for_a_name(&self) -> bool {
        self.library != 0 && self.application.library.is_none()
    }

    /// Tells of it, if that has changed.
    fn tell_waiting(&mut self, out: &mut Findings) {
        let waits = self.waits();
        if std::mem::replace(&mut self.waiting, waits) != waits {
            out.waits = Some(waits);
        }
    }

    /// The session has a new secret.
    pub(super) fn offer(&mut self, at: Boottime, keyring: &dyn Keyring, out: &mut Findings) {
        let (reader, mut context) = self.reader(keyring, out);
        reader.offer(at, &mut context);
        self.tell_waiting(out);
    }

    /// Gives out what is under way and says how complete the record is.
    pub(super) fn finish(
        &mut self,
        at: Boottime,
        keyring: &dyn Keyring,
        out: &mut Findings,
    ) -> (Coverage, CloseReason, u64) {
        let closed = self.closed.filter(|_| self.established);
        let moved_in = closed.map(|closed| payload_bytes(closed.bytes_received, &self.received));
        let moved_out = closed
            .map(|closed| payload_bytes(closed.bytes_acked.saturating_sub(self.counted_for_syn), &self.sent));
        // What was sent and never acknowledged (the connection was reset) was sent all the same.
        let reach = moved_out.map(|moved| moved.max(self.sent.offset()));
        self.feed(true, at, keyring, out, |stream, deliver| stream.finish(reach, deliver));
        self.feed(false, at, keyring, out, |stream, deliver| stream.finish(moved_in, deliver));
        let (reader, mut context) = self.reader(keyring, out);
        reader.close(at, &mut context);
        let gaps = |stream: &HalfStream, sent| {
            let range = move |gap: &stream::Gap| GapRange { sent, offset: gap.offset, length: gap.length };
            stream.gaps().iter().map(range).collect::<Vec<_>>()
        };
        let mut ranges = gaps(&self.sent, true);
        ranges.extend(gaps(&self.received, false));
        let opaque = self.reader.opaque();
        let (opaque_sent, opaque_received) = match self.connection.inbound {
            false => (opaque.client, opaque.server),
            true => (opaque.server, opaque.client),
        };
        let coverage = Coverage {
            sent: moved_out,
            received: moved_in,
            audited_sent: self.sent.counters().delivered.saturating_sub(opaque_sent),
            audited_received: self.received.counters().delivered.saturating_sub(opaque_received),
            opaque_sent,
            opaque_received,
            skipped_sent: self.sent.counters().skipped,
            skipped_received: self.received.counters().skipped,
            gaps: ranges,
            method: (self.connection.transport == Transport::Unix).then_some("calls"),
            unreadable: self.unreadable,
        };
        // The event of its establishment may have been lost; bytes that were moved prove it as well.
        let moved = self.sent.counters().delivered + self.received.counters().delivered > 0;
        let reason = if self.established || moved { CloseReason::Ended } else { CloseReason::NotEstablished };
        let end = self.closed.map_or(at, |closed| Boottime(closed.header.time));
        let duration = u64::try_from(end.since(self.began).as_micros()).unwrap_or(u64::MAX);
        (coverage, reason, duration)
    }

    /// Who it is that sends in this direction.
    fn side(&self, sent: bool) -> Side {
        if sent != self.connection.inbound { Side::Client } else { Side::Server }
    }

    fn reader<'a>(
        &'a mut self,
        keyring: &'a dyn Keyring,
        out: &'a mut Findings,
    ) -> (&'a mut Reader, Context<'a>) {
        let context = Context { application: &mut self.application, limits: self.limits, keyring, out };
        (&mut self.reader, context)
    }

    fn feed(
        &mut self,
        sent: bool,
        at: Boottime,
        keyring: &dyn Keyring,
        out: &mut Findings,
        step: impl FnOnce(&mut HalfStream, &mut dyn FnMut(Delivery<'_>)),
    ) {
        let side = self.side(sent);
        let stream = if sent { &mut self.sent } else { &mut self.received };
        let reader = &mut self.reader;
        let mut context = Context { application: &mut self.application, limits: self.limits, keyring, out };
        step(stream, &mut |delivery| match delivery {
            Delivery::Bytes { bytes, at } => reader.bytes(side, at, bytes, &mut context),
            Delivery::Skipped { skip, at } => reader.skipped(side, at, &skip, &mut context),
            Delivery::Gap { offset, length } => {
                context.out.notices.push(Notice::Gap(GapRange { sent, offset, length }));
                reader.gap(side, at, length, &mut context);
            }
            Delivery::Conflict { offset, length } => {
                context.out.notices.push(Notice::Conflict { sent, offset, length });
            }
        });
    }

    /// What a statement of this connection means. To be asked for each, in their order.
    pub(super) fn understand(
        &mut self,
        classifier: &mut Classifier,
        statement: &Statement,
    ) -> Option<Arc<Meaning>> {
        let protocol = self.application.protocol?;
        let incomplete = statement.incomplete || statement.text_length > statement.text.len() as u64;
        if protocol == "redis" {
            return Some(statement::redis(&statement.text, incomplete));
        }
        let dialect = Dialect::of(protocol)?;
        if matches!(statement.kind, StatementKind::Admin | StatementKind::Function) {
            return None;
        }
        let prepared = statement.kind == StatementKind::Prepared;
        // A name that cannot be told may be any.
        let named = statement.name.as_ref().map_or(prepared, |name| !name.is_empty());
        if named && dialect == Dialect::Postgres {
            self.dialogue.named();
        }
        let text = Text {
            dialect,
            bytes: &statement.text,
            incomplete,
            session: self.session,
            at: statement.finished,
        };
        let meaning = classifier.classify(text, &mut self.dialogue);
        if statement.outcome == Outcome::Prepared {
            self.dialogue.not_executed();
            return Some(meaning);
        }
        // MySQL tells of no settings.
        let transaction = statement.transaction.filter(|_| dialect == Dialect::Postgres);
        self.dialogue.ended(statement.outcome == Outcome::Completed, transaction);
        Some(meaning)
    }

    /// Takes over what an observation says of the connection as a whole.
    pub(super) fn learn(&mut self, observation: &Observation) {
        match observation {
            Observation::Login(login) => {
                Arc::make_mut(&mut self.application).login = Some(login.clone());
                match self.application.protocol {
                    Some("mysql") => {
                        self.dialogue.database(login.database.as_deref());
                        self.dialogue.character_set(login);
                    }
                    _ => self.dialogue.login(login),
                }
            }
            Observation::Opaque(opaque) => {
                let reason = match opaque {
                    protocol::Opaque::Tls => "tls",
                    protocol::Opaque::GssEncryption => "gss-encryption",
                    protocol::Opaque::Upgraded => "upgraded",
                    protocol::Opaque::Hole => "hole",
                    protocol::Opaque::Replication => "replication",
                };
                Arc::make_mut(&mut self.application).opaque = Some(reason);
            }
            Observation::Violation(_) => {
                Arc::make_mut(&mut self.application).opaque = Some("violation");
            }
            // It counts when it is executed.
            Observation::Statement(statement) if statement.outcome == Outcome::Prepared => {}
            Observation::Statement(_) | Observation::Request(_) => self.statements += 1,
            Observation::Encrypted { .. }
            | Observation::Switched { .. }
            | Observation::Authenticated
            | Observation::Refused(_) => {}
        }
    }
}

/// RFC 4898 counts FIN as a byte. Where the direction's FIN was seen, one more than its place is that one.
fn payload_bytes(counted: u64, stream: &HalfStream) -> u64 {
    match stream.fin_offset() {
        Some(fin) if counted == fin + 1 => fin,
        _ => counted,
    }
}

/// What a step gave; kept by the caller and used again, so that a segment without findings allocates nothing.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) observations: Vec<Observation>,
    pub(super) notices: Vec<Notice>,
    /// Places of secrets that the connection has claimed (`true`), and of those that it does not need any more.
    pub(super) secrets: Vec<(u64, bool)>,
    /// Whether the connection waits for a secret, if that has changed.
    pub(super) waits: Option<bool>,
}
