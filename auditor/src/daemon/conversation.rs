//! One connection of an agent, TCP or a stream between unix sockets, from its segments to its statements: both directions' reassembly, the protocol that
//! was found, and what the connection's records have in common.

use std::sync::Arc;

use auditor_common::event::{Closed, EGRESS, Established, Packet, Skipped};
use auditor_common::packet::{ACK, FIN, RST, SYN, URG};
use auditor_common::unix::{CONTENT_COPIED, STREAM_PROTOCOL, UnixData};

use crate::clock::Boottime;
use crate::interned::Name;
use crate::protocol::{self, Detection, Dissector, Limits, Observation, Side};
use crate::record::{Application, CloseReason, Connection, Coverage, GapRange, Process, Transport};
use crate::stream::{self, Delivery, HalfStream, Segment, Skip};
use crate::tls::hello::Hello;

/// Bytes of history and early segments that a direction may keep. Loopback and a healthy network need next to none.
const STREAM_LIMITS: stream::Limits = stream::Limits {
    early_bytes: 1 << 20,
    early_segments: 1024,
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
    /// The client's first bytes are of no protocol that is known.
    Unrecognised,
}

/// How the application's bytes are read.
#[derive(serde::Serialize, serde::Deserialize)]
enum Reader {
    /// Not enough of the client's bytes are there to tell the protocol.
    Detecting(Vec<u8>),
    /// It is told.
    Reading(#[serde(with = "protocol::saved")] Box<dyn Dissector>),
    /// Both ends have gone on to TLS: what its beginning says in the clear is read.
    Tls(Box<Hello>),
    /// It cannot be told, or not be read: bytes are counted only.
    Blind,
}

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
    /// Bytes of each direction that were seen and could not be read.
    opaque: Opaque,
    limits: Limits,
    #[serde(with = "crate::source::saved")]
    closed: Option<Closed>,
    /// Whether the kernel programs have been told to count rows instead of copying them.
    counts_rows: bool,
    /// Bytes that passed between unix sockets by calls whose content cannot be had.
    unreadable: u64,
}

#[derive(Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
struct Opaque {
    client: u64,
    server: u64,
}

impl Opaque {
    fn count(&mut self, side: Side, bytes: usize) {
        match side {
            Side::Client => self.client += bytes as u64,
            Side::Server => self.server += bytes as u64,
        }
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
            reader: Reader::Detecting(Vec::new()),
            opaque: Opaque::default(),
            limits,
            closed: None,
            counts_rows: false,
            unreadable: 0,
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
    pub(super) fn established(&mut self, event: &Established, out: &mut Findings) {
        self.established = true;
        // Fast Open: data may have been acknowledged with the SYN, so it is at most one.
        self.counted_for_syn = event.bytes_acked.min(1);
        let connection = Arc::make_mut(&mut self.connection);
        connection.local = Some(event.local.socket_address());
        connection.remote = Some(event.remote.socket_address());
        connection.inbound = event.passive != 0;
        let at = Boottime(event.header.time);
        self.feed(true, at, out, |stream, deliver| stream.start(event.send_next, deliver));
        self.feed(false, at, out, |stream, deliver| stream.start(event.receive_next, deliver));
    }

    /// A stream between unix sockets, whose first bytes are still to come. Places are counted from 0.
    pub(super) fn followed(&mut self, at: Boottime, out: &mut Findings) {
        self.feed(true, at, out, |stream, deliver| stream.start(0, deliver));
        self.feed(false, at, out, |stream, deliver| stream.start(0, deliver));
    }

    /// Bytes passed on a stream between unix sockets. These come in order, so what was not told before was not seen.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "places are told by their lower half, as a sequence number's"
    )]
    pub(super) fn passed(&mut self, event: &UnixData, payload: &[u8], out: &mut Findings) {
        let sent = event.direction == EGRESS;
        let at = Boottime(event.header.time);
        let (offset, passed) = (event.offset as u32, event.passed as u32);
        self.established = true;
        if event.content != CONTENT_COPIED {
            self.unreadable += u64::from(event.length);
        }
        // First, as for a segment.
        self.acknowledged(!sent, passed, true, at, out);
        self.acknowledged(sent, offset, true, at, out);
        let segment = Segment { sequence: offset, flags: 0, payload, length: event.length, at };
        self.feed(sent, at, out, |stream, deliver| stream.segment(&segment, deliver));
    }

    /// It is older than the audit: its streams begin with the first bytes seen.
    pub(super) fn midstream(&mut self, at: Boottime, out: &mut Findings) {
        self.feed(true, at, out, HalfStream::start_midstream);
        self.feed(false, at, out, HalfStream::start_midstream);
    }

    /// A segment passed a hook. `lossy`: segments may have passed before it that were not copied.
    pub(super) fn segment(&mut self, packet: &Packet, payload: &[u8], lossy: bool, out: &mut Findings) {
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
            self.acknowledged(!sent, packet.acknowledgement, lossy && !payload.is_empty(), at, out);
        }
        self.feed(sent, at, out, |stream, deliver| stream.segment(&segment, deliver));
    }

    /// A direction has arrived up to here. `unseen`: also what of it was never seen.
    fn acknowledged(&mut self, sent: bool, sequence: u32, unseen: bool, at: Boottime, out: &mut Findings) {
        if unseen {
            self.feed(sent, at, out, |stream, deliver| stream.acknowledged_unseen(sequence, deliver));
        } else {
            self.feed(sent, at, out, |stream, deliver| stream.acknowledged(sequence, deliver));
        }
    }

    /// Rows passed a hook and were counted instead of copied. `lossy`: as for a segment.
    pub(super) fn skipped(&mut self, event: &Skipped, lossy: bool, out: &mut Findings) {
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
        self.acknowledged(!sent, event.acknowledgement, lossy, at, out);
        self.feed(sent, at, out, |stream, deliver| stream.skipped(event.sequence, skip, at, deliver));
    }

    /// Whether the kernel programs are to count the rows of long answers instead of copying them, if that has changed. Only on
    /// a connection that this host has opened: they follow what comes in, and what an agent says is always copied.
    pub(super) fn counting_changed(&mut self) -> Option<bool> {
        let counts = self.connection.transport == Transport::Tcp
            && !self.connection.inbound
            && self.closed.is_none()
            && matches!(&self.reader, Reader::Reading(dissector) if dissector.counts_rows());
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

    /// Gives out what is under way and says how complete the record is.
    pub(super) fn finish(&mut self, at: Boottime, out: &mut Findings) -> (Coverage, CloseReason, u64) {
        let closed = self.closed.filter(|_| self.established);
        let moved_in = closed.map(|closed| payload_bytes(closed.bytes_received, &self.received));
        let moved_out = closed
            .map(|closed| payload_bytes(closed.bytes_acked.saturating_sub(self.counted_for_syn), &self.sent));
        // What was sent and never acknowledged (the connection was reset) was sent all the same.
        let reach = moved_out.map(|moved| moved.max(self.sent.offset()));
        self.feed(true, at, out, |stream, deliver| stream.finish(reach, deliver));
        self.feed(false, at, out, |stream, deliver| stream.finish(moved_in, deliver));
        if let Reader::Reading(dissector) = &mut self.reader {
            dissector.close(at, &mut out.observations);
        }
        let gaps = |stream: &HalfStream, sent| {
            let range = move |gap: &stream::Gap| GapRange { sent, offset: gap.offset, length: gap.length };
            stream.gaps().iter().map(range).collect::<Vec<_>>()
        };
        let mut ranges = gaps(&self.sent, true);
        ranges.extend(gaps(&self.received, false));
        let (opaque_sent, opaque_received) = match self.connection.inbound {
            false => (self.opaque.client, self.opaque.server),
            true => (self.opaque.server, self.opaque.client),
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

    fn feed(
        &mut self,
        sent: bool,
        at: Boottime,
        out: &mut Findings,
        step: impl FnOnce(&mut HalfStream, &mut dyn FnMut(Delivery<'_>)),
    ) {
        let stream = if sent { &mut self.sent } else { &mut self.received };
        let side = if sent != self.connection.inbound { Side::Client } else { Side::Server };
        let (reader, application, limits) = (&mut self.reader, &mut self.application, self.limits);
        let opaque = &mut self.opaque;
        step(stream, &mut |delivery| match delivery {
            Delivery::Bytes { bytes, at } => {
                if !reader.bytes(side, at, bytes, application, limits, out) {
                    opaque.count(side, bytes.len());
                }
            }
            Delivery::Skipped { skip, at } => match reader {
                Reader::Reading(_) if side == Side::Server => reader.skipped(at, &skip, out),
                _ => reader.gap(side, at, u64::from(skip.length), application, out),
            },
            Delivery::Gap { offset, length } => {
                out.notices.push(Notice::Gap(GapRange { sent, offset, length }));
                reader.gap(side, at, length, application, out);
            }
            Delivery::Conflict { offset, length } => {
                out.notices.push(Notice::Conflict { sent, offset, length });
            }
        });
    }

    /// Takes over what an observation says of the connection as a whole.
    pub(super) fn learn(&mut self, observation: &Observation) {
        match observation {
            Observation::Login(login) => {
                Arc::make_mut(&mut self.application).login = Some(login.clone());
            }
            Observation::Opaque(opaque) => {
                let reason = match opaque {
                    protocol::Opaque::Tls => "tls",
                    protocol::Opaque::GssEncryption => "gss-encryption",
                    protocol::Opaque::Hole => "hole",
                };
                Arc::make_mut(&mut self.application).opaque = Some(reason);
            }
            Observation::Violation(_) => {
                Arc::make_mut(&mut self.application).opaque = Some("violation");
            }
            Observation::Statement(_) => self.statements += 1,
            Observation::Authenticated | Observation::Refused(_) => {}
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

impl Reader {
    /// The next bytes. `false`: they were not read.
    fn bytes(
        &mut self,
        side: Side,
        at: Boottime,
        bytes: &[u8],
        application: &mut Arc<Application>,
        limits: Limits,
        out: &mut Findings,
    ) -> bool {
        match self {
            Self::Reading(dissector) => {
                let before = out.observations.len();
                dissector.bytes(side, at, bytes, &mut out.observations);
                if let Some(next) = out.observations[before..].iter().find_map(Self::after) {
                    *self = next;
                }
                true
            }
            Self::Tls(hello) => {
                hello.bytes(side, bytes);
                if hello.seen() != application.tls.as_ref() {
                    Arc::make_mut(application).tls = hello.seen().cloned();
                }
                if let Some(violation) = hello.violation() {
                    out.notices.push(Notice::NotTls(violation));
                    *self = Self::Blind;
                }
                false
            }
            Self::Blind => false,
            // The server speaks first: of the protocols that are known, none does.
            Self::Detecting(_) if side == Side::Server => {
                self.unrecognised(application, out);
                false
            }
            Self::Detecting(seen) => {
                seen.extend_from_slice(&bytes[..bytes.len().min(protocol::DETECTION_BYTES)]);
                match protocol::detect(seen) {
                    Detection::Incomplete => true,
                    Detection::No => {
                        self.unrecognised(application, out);
                        false
                    }
                    Detection::Yes(found) => {
                        let mut dissector = found.dissector(limits);
                        Arc::make_mut(application).protocol = Some(dissector.name());
                        // What was seen before these bytes; they themselves follow whole.
                        let before = seen.len() - bytes.len().min(protocol::DETECTION_BYTES);
                        dissector.bytes(side, at, &seen[..before], &mut out.observations);
                        *self = Self::Reading(dissector);
                        self.bytes(side, at, bytes, application, limits, out)
                    }
                }
            }
        }
    }

    /// How it goes on after an observation that ends the reading.
    fn after(observation: &Observation) -> Option<Self> {
        match observation {
            Observation::Opaque(protocol::Opaque::Tls) => Some(Self::Tls(Box::new(Hello::new()))),
            Observation::Opaque(_) | Observation::Violation(_) => Some(Self::Blind),
            _ => None,
        }
    }

    fn skipped(&mut self, at: Boottime, skip: &Skip, out: &mut Findings) {
        let Self::Reading(dissector) = self else { return };
        let before = out.observations.len();
        dissector.skipped(at, skip, &mut out.observations);
        if let Some(next) = out.observations[before..].iter().find_map(Self::after) {
            *self = next;
        }
    }

    fn gap(
        &mut self,
        side: Side,
        at: Boottime,
        length: u64,
        application: &mut Arc<Application>,
        out: &mut Findings,
    ) {
        match self {
            Self::Reading(dissector) => {
                let before = out.observations.len();
                dissector.gap(side, at, length, &mut out.observations);
                if let Some(next) = out.observations[before..].iter().find_map(Self::after) {
                    *self = next;
                }
            }
            Self::Detecting(_) => self.unrecognised(application, out),
            Self::Tls(hello) => hello.gap(side),
            Self::Blind => {}
        }
    }

    fn unrecognised(&mut self, application: &mut Arc<Application>, out: &mut Findings) {
        *self = Self::Blind;
        Arc::make_mut(application).opaque = Some("unrecognised");
        out.notices.push(Notice::Unrecognised);
    }
}

/// What a step gave; kept by the caller and used again, so that a segment without findings allocates nothing.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) observations: Vec<Observation>,
    pub(super) notices: Vec<Notice>,
}
