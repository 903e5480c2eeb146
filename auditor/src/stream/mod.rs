//! TCP reassembly: segments as they passed the packet hooks, in; each direction's bytes in order, out.
//!
//! One [`HalfStream`] holds one direction of one connection. It is sans-IO and told everything: segments, the sequence
//! number that the kernel itself began with, the acknowledgements of the other direction, the kernel's byte count at the
//! end. In-order data is handed on as the slice it came in; only what arrives early is copied.
//!
//! **What it promises.** Deliveries tile the direction: bytes, rows that were counted instead of copied, and gaps, in order,
//! without overlap, from offset 0 to the end. A byte that was never seen is in exactly one gap. Memory is bounded by [`Limits`], whatever arrives.
//!
//! **Whose bytes win.** Where segments overlap, the receiving kernel's choice is followed, else a reader of the record
//! could be shown other bytes than the application got (the oldest trick against a passive observer). For Linux: bytes
//! already delivered win over all that comes later (`tcp_data_queue`); among early segments see `queue`. Where the two
//! versions differ, [`Delivery::Conflict`] says so, because either may be a lie. Our own end can do it too: with
//! MSG_ZEROCOPY or sendfile a program may change a page between a transmission and its repetition. So delivered bytes are
//! kept for a while ([`Limits::history_bytes`]) and repetitions are held against them.
//!
//! **When a hole becomes a gap.** A hole may yet be filled by a retransmission, so it waits, until one of these proves that
//! it will not, or that waiting costs too much: the other end has acknowledged it; a segment that spans it passed, but its
//! copy was cut; the early segments behind it exceed their bound; the connection ended.
//!
//! **What it refuses to believe.** FIN and RST come from the network and may be forged: they never end delivery, and bytes
//! beyond a FIN are delivered all the same. Segments beyond [`Limits::window_bytes`] in either direction are ignored and
//! counted. Checksums are not verified here.
//!
//! **Known limits.** Linux hides an urgent byte (URG, MSG_OOB) from the normal stream. The urgent pointer is not part of
//! what the hooks report, so such a byte is delivered in place; [`Counters::urgent`] tells that it happened. And whoever can
//! inject segments can fill the bound on early ones with data far ahead, so that what truly comes is skipped: as a gap that
//! the record shows, never as other bytes than those that passed. Where copies may be missing by choice
//! ([`HalfStream::acknowledged_unseen`]), a forged acknowledgement of up to a window makes such a gap too: what this end has sent
//! by then, only its kernel knows, and to wait for a later segment would let answers come before their questions.
#![forbid(unsafe_code)]

mod history;
mod queue;
#[cfg(test)]
mod tests;

use crate::clock::Boottime;
use history::History;
use queue::{Piece, Queue};

/// TCP flag FIN: the sender has no more data.
pub const FIN: u8 = 0x01;
/// TCP flag SYN: the sequence number is the initial one; data begins one later.
pub const SYN: u8 = 0x02;
/// TCP flag RST.
pub const RST: u8 = 0x04;
/// TCP flag URG.
pub const URG: u8 = 0x20;

/// Gap ranges that [`HalfStream::gaps`] keeps; [`Counters::gap_bytes`] counts all.
pub const MAX_GAP_RANGES: usize = 64;

/// Position of the first sequence number seen. Positions are 64-bit sequence numbers; far from both ends, so that
/// neither data that precedes the first segment seen nor a flood of contradicting SYNs can leave the range.
const ANCHOR: u64 = 1 << 62;

/// More bytes than a connection can move; larger totals are taken as this, so that positions cannot overflow.
const MAX_TOTAL: u64 = 1 << 62;

/// Writes bytes in one go. What is read is the same as if they had been written one by one.
fn bytes<S: serde::Serializer>(bytes: &impl AsRef<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes.as_ref())
}

/// A TCP segment, or a part of one, as it passed a hook.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Sequence number of the first payload byte, or of SYN where [`SYN`] is set.
    pub sequence: u32,
    /// The TCP flags byte.
    pub flags: u8,
    /// The payload as far as it was captured, from its beginning.
    pub payload: &'a [u8],
    /// Payload bytes that passed the hook. Less than `payload.len()` is taken as that.
    pub length: u32,
    /// When it passed.
    pub at: Boottime,
}

/// What comes out, in stream order. Offsets count payload bytes of this direction from its beginning.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Delivery<'a> {
    /// The next bytes, never empty.
    Bytes {
        /// The bytes.
        bytes: &'a [u8],
        /// When the segment that brought them passed the hook.
        at: Boottime,
    },
    /// The next bytes passed and were not copied, because nobody needs them.
    Skipped {
        /// What is known of them.
        skip: Skip,
        /// When they passed the hook.
        at: Boottime,
    },
    /// The next bytes were never seen.
    Gap {
        /// Offset of the first.
        offset: u64,
        /// How many, never zero.
        length: u64,
    },
    /// Two versions of the same bytes were seen. Not a part of the stream's tiling: it may concern bytes already
    /// delivered, or bytes still to come.
    Conflict {
        /// Offset of the first byte that differs.
        offset: u64,
        /// Bytes from there to the last one that differs.
        length: u64,
    },
}

/// A range of rows that the kernel programs counted instead of copying them: what they found where its messages begin and end.
/// See [`auditor_common::event::Skipped`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Skip {
    /// Bytes, never zero.
    pub length: u32,
    /// Bytes at its beginning that belong to the body of the message under way there.
    pub first: u32,
    /// Messages whose header lies within.
    pub messages: u32,
    /// Body bytes of the last of them, also those behind the range.
    pub body: u32,
    /// Body bytes of the last message that come behind the range.
    pub remaining: u32,
    /// Type byte of all of its messages, the one under way at its beginning included.
    pub message: u8,
}

/// A range of a direction that was never seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Gap {
    /// Offset of its first byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Bounds on what one direction may cost.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Bytes of early segments that wait for a hole to be filled.
    pub early_bytes: usize,
    /// Early segments that wait; each costs about 100 bytes beside its payload.
    pub early_segments: usize,
    /// Delivered bytes that are kept to hold retransmissions against; 0 turns the comparison off.
    pub history_bytes: usize,
    /// How far from the next expected byte a segment may lie and be believed, in bytes, at most 2^31 - 1.
    pub window_bytes: u32,
}

impl Default for Limits {
    /// 1 MiB and 1,024 early segments, 32 KiB of history, and the largest window that TCP knows (RFC 7323: 1 GiB).
    fn default() -> Self {
        Self { early_bytes: 1 << 20, early_segments: 1024, history_bytes: 32 << 10, window_bytes: 1 << 30 }
    }
}

/// What one direction amounted to so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    /// Bytes delivered.
    pub delivered: u64,
    /// Bytes counted instead of copied.
    pub skipped: u64,
    /// Bytes in gaps.
    pub gap_bytes: u64,
    /// Gaps announced.
    pub gaps: u64,
    /// Captured bytes that came again after their place had been passed (as bytes or as a gap).
    pub repeated: u64,
    /// Segments too far from what is expected, ignored.
    pub out_of_window: u64,
    /// Conflicts announced.
    pub conflicts: u64,
    /// Beginnings (SYN, [`HalfStream::start`]) that contradict the one in force, ignored.
    pub contradicting_starts: u64,
    /// Segments with URG set: their streams may read differently at the application.
    pub urgent: u64,
    /// Segments with RST set; their payload, if any, is not part of the stream.
    pub resets: u64,
    /// Bytes seen early that the kernel never counted as moved, dropped at the end.
    pub uncounted: u64,
}

/// How the beginning of the stream was learnt.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
enum Origin {
    /// Not yet.
    Unknown,
    /// From a SYN: good enough to deliver, overruled by the kernel while nothing was.
    Syn(u64),
    /// The kernel said so.
    Kernel(u64),
    /// Not learnt, and waiting was no longer possible: the first byte seen.
    Assumed(u64),
}

/// One direction of one TCP connection.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct HalfStream {
    limits: Limits,
    /// Sequence number that lies at [`ANCHOR`]; `None` before the first one was seen.
    anchor: Option<u32>,
    origin: Origin,
    /// Position of the next byte to deliver.
    next: u64,
    /// Position up to which the bytes are known to have passed: a hole before it is a gap.
    passed: u64,
    /// Position past the last byte known of.
    highest: u64,
    /// Position of FIN, as far as one was seen.
    fin: Option<u64>,
    queue: Queue,
    history: History,
    gaps: Vec<Gap>,
    counters: Counters,
}

impl HalfStream {
    /// A direction of which nothing is known yet. Allocates nothing.
    pub fn new(limits: Limits) -> Self {
        let limits = Limits { window_bytes: limits.window_bytes.min(i32::MAX.unsigned_abs()), ..limits };
        Self {
            limits,
            anchor: None,
            origin: Origin::Unknown,
            next: ANCHOR,
            passed: 0,
            highest: 0,
            fin: None,
            queue: Queue::default(),
            history: History::new(limits.history_bytes),
            gaps: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// The kernel's word on where the stream begins: sequence number of its first payload byte.
    ///
    /// Segments that came before it waited; they are delivered now. Once bytes were delivered, a contradicting
    /// beginning is counted and ignored.
    pub fn start(&mut self, sequence: u32, deliver: &mut dyn FnMut(Delivery<'_>)) {
        let position = self.position(sequence);
        match self.origin {
            Origin::Unknown => self.begin(Origin::Kernel(position), position),
            Origin::Syn(origin) | Origin::Kernel(origin) | Origin::Assumed(origin) if origin == position => {
                self.origin = Origin::Kernel(origin);
            }
            // Fast Open: data left with the SYN, so the kernel's next number is already past the first one.
            Origin::Syn(origin) if origin < position && position <= self.highest => {
                self.origin = Origin::Kernel(origin);
            }
            Origin::Syn(origin) if self.next == origin => self.begin(Origin::Kernel(position), position),
            _ => {
                self.counters.contradicting_starts += 1;
                return;
            }
        }
        self.drain(deliver);
    }

    /// Declares that nobody will say where the stream began (the connection is older than the audit): it begins with the
    /// first byte seen. Offsets then count from there.
    pub fn start_midstream(&mut self, deliver: &mut dyn FnMut(Delivery<'_>)) {
        if self.origin != Origin::Unknown {
            return;
        }
        if let Some(first) = self.queue.first() {
            self.begin(Origin::Assumed(first), first);
            self.drain(deliver);
        } else {
            self.origin = Origin::Assumed(self.next);
        }
    }

    /// A segment passed the hook.
    pub fn segment(&mut self, segment: &Segment<'_>, deliver: &mut dyn FnMut(Delivery<'_>)) {
        if segment.flags & RST != 0 {
            self.counters.resets += 1;
            return;
        }
        if segment.flags & URG != 0 {
            self.counters.urgent += 1;
        }
        let mut sequence = segment.sequence;
        if segment.flags & SYN != 0 {
            sequence = sequence.wrapping_add(1);
            if !self.syn(sequence) {
                return;
            }
        }
        let length = u64::from(segment.length).max(segment.payload.len() as u64);
        if length == 0 && segment.flags & FIN == 0 {
            return;
        }
        let start = self.position(sequence);
        if start.abs_diff(self.next) > u64::from(self.limits.window_bytes) {
            self.counters.out_of_window += 1;
            return;
        }
        let end = start.saturating_add(length);
        if segment.flags & FIN != 0 {
            // The parts of a divided segment may each carry its flags: the last part's end is the stream's.
            self.fin = self.fin.max(Some(end));
        }
        if length == 0 {
            return;
        }
        self.highest = self.highest.max(end);
        if self.origin == Origin::Unknown || start > self.next {
            self.early(start, end, segment, deliver);
        } else {
            self.in_order(start, end, segment, deliver);
        }
    }

    /// Rows passed the hook and were counted instead of copied. Anywhere but next in order that count is of no use to a reader, and
    /// the bytes become a gap.
    pub fn skipped(
        &mut self,
        sequence: u32,
        skip: Skip,
        at: Boottime,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) {
        let start = self.position(sequence);
        if self.origin == Origin::Unknown || start != self.next {
            let segment = Segment { sequence, flags: 0, payload: &[], length: skip.length, at };
            return self.segment(&segment, deliver);
        }
        let end = start.saturating_add(u64::from(skip.length));
        self.highest = self.highest.max(end);
        deliver(Delivery::Skipped { skip, at });
        self.counters.skipped += u64::from(skip.length);
        self.next = end;
        self.passed = self.passed.max(end);
        self.history.clear();
        self.drain(deliver);
    }

    /// The other end has acknowledged everything before `sequence`: those bytes will not be sent again, so a hole among
    /// them is final. Never looks beyond what was seen, because an acknowledgement from the network may be forged.
    pub fn acknowledged(&mut self, sequence: u32, deliver: &mut dyn FnMut(Delivery<'_>)) {
        if self.queue.is_empty() || self.origin == Origin::Unknown {
            return;
        }
        let position = self.position(sequence).min(self.highest);
        if position > self.next {
            self.passed = self.passed.max(position);
            self.drain(deliver);
        }
    }

    /// As [`Self::acknowledged`], where copies may be missing by choice (`overload = "record-loss"`): bytes that were never seen
    /// have passed as well, up to `sequence`. An acknowledgement that was forged makes a gap that the record shows.
    pub fn acknowledged_unseen(&mut self, sequence: u32, deliver: &mut dyn FnMut(Delivery<'_>)) {
        if self.origin == Origin::Unknown {
            return;
        }
        let position = self.position(sequence);
        // FIN is acknowledged as if it were a byte.
        let position = self.fin.map_or(position, |fin| position.min(fin));
        if position > self.next && position - self.next <= u64::from(self.limits.window_bytes) {
            self.highest = self.highest.max(position);
            self.passed = self.passed.max(position);
            self.drain(deliver);
        }
    }

    /// The connection has ended. `kernel_total`: payload bytes that the kernel says it moved in this direction.
    ///
    /// Early segments are delivered with gaps before them, but only as far as the kernel's count reaches: what lies beyond
    /// was sent, not received. Bytes that the kernel counted and nobody saw are a last gap. Call it once.
    pub fn finish(&mut self, kernel_total: Option<u64>, deliver: &mut dyn FnMut(Delivery<'_>)) {
        if self.origin == Origin::Unknown {
            let first = self.queue.first().unwrap_or(self.next);
            // With the end and the length, the beginning follows.
            let computed = self.fin.zip(kernel_total).and_then(|(fin, total)| fin.checked_sub(total));
            let origin = computed.filter(|origin| *origin <= first).unwrap_or(first);
            self.begin(Origin::Assumed(origin), origin);
        }
        let end = match kernel_total {
            Some(total) => self.origin().saturating_add(total.min(MAX_TOTAL)),
            None => self.highest.max(self.fin.unwrap_or(0)),
        };
        self.counters.uncounted += self.queue.cut(end);
        self.passed = self.passed.max(end);
        self.drain(deliver);
    }

    /// What this direction amounted to so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The first [`MAX_GAP_RANGES`] gaps; adjacent ones are one.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// Payload bytes passed so far, delivered or lost: the offset of the next byte.
    pub fn offset(&self) -> u64 {
        self.next.saturating_sub(self.origin())
    }

    /// Whether the beginning is known, from the kernel or a SYN. Where it is not, offsets count from the first byte seen.
    pub const fn start_known(&self) -> bool {
        matches!(self.origin, Origin::Kernel(_) | Origin::Syn(_))
    }

    /// Whether a FIN was seen and everything before it was passed. Informative: a FIN can be forged.
    pub fn at_fin(&self) -> bool {
        self.origin != Origin::Unknown && self.fin.is_some_and(|fin| self.next >= fin)
    }

    /// Payload offset of the FIN, if one was seen: so many bytes the stream has, whether they were seen or not. Informative: a
    /// FIN can be forged. `None` too where the beginning is not known yet.
    pub fn fin_offset(&self) -> Option<u64> {
        if self.origin == Origin::Unknown { None } else { self.fin?.checked_sub(self.origin()) }
    }

    /// Bytes that early segments and the list of gaps take, roughly. Follows from what was told alone, not from how it is stored.
    pub fn early_memory(&self) -> usize {
        self.queue.memory() + self.gaps.len() * size_of::<Gap>()
    }

    /// Bytes that delivered data takes that is kept to hold repetitions against.
    pub fn history_memory(&self) -> usize {
        self.history.memory()
    }

    /// Forgets what was delivered: repetitions of it are not held against it any more.
    pub fn forget_history(&mut self) {
        self.history.clear();
    }

    /// From here on no more than this is kept of early segments; what is missing in front of what must go becomes gaps.
    pub fn keep_early(&mut self, bytes: usize, segments: usize, deliver: &mut dyn FnMut(Delivery<'_>)) {
        self.limits.early_bytes = self.limits.early_bytes.min(bytes);
        self.limits.early_segments = self.limits.early_segments.min(segments);
        self.bound_early(deliver);
    }

    fn origin(&self) -> u64 {
        match self.origin {
            Origin::Syn(origin) | Origin::Kernel(origin) | Origin::Assumed(origin) => origin,
            Origin::Unknown => self.next,
        }
    }

    fn begin(&mut self, origin: Origin, position: u64) {
        self.origin = origin;
        self.next = position;
        self.passed = position;
        self.highest = self.queue.highest().max(position);
    }

    /// Takes a SYN's beginning; `false` where it contradicts what is in force.
    fn syn(&mut self, sequence: u32) -> bool {
        let position = self.position(sequence);
        match self.origin {
            Origin::Unknown => self.begin(Origin::Syn(position), position),
            Origin::Syn(origin) | Origin::Kernel(origin) | Origin::Assumed(origin) if origin == position => {}
            // A second attempt to connect, or a forged answer before the true one.
            Origin::Syn(origin) if self.next == origin => self.begin(Origin::Syn(position), position),
            _ => {
                self.counters.contradicting_starts += 1;
                return false;
            }
        }
        true
    }

    /// Sequence number of the next byte, where nothing waits for one that is missing.
    pub fn caught_up(&self) -> Option<u32> {
        let anchor =
            self.anchor.filter(|_| self.origin != Origin::Unknown && self.queue.first().is_none())?;
        Some(anchor.wrapping_add((self.next & u64::from(u32::MAX)) as u32))
    }

    /// The 64-bit position of a sequence number: of all candidates, the one nearest to the next byte.
    fn position(&mut self, sequence: u32) -> u64 {
        let anchor = *self.anchor.get_or_insert(sequence);
        // Positions differ from sequence numbers by a constant, modulo 2^32.
        let expected = anchor.wrapping_add((self.next & u64::from(u32::MAX)) as u32);
        let distance = sequence.wrapping_sub(expected).cast_signed();
        self.next.saturating_add_signed(i64::from(distance))
    }

    fn in_order(
        &mut self,
        start: u64,
        end: u64,
        segment: &Segment<'_>,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) {
        let known = usize::try_from(self.next - start).map_or(segment.payload.len(), |known| known);
        let (old, new) = segment.payload.split_at(known.min(segment.payload.len()));
        if !old.is_empty() {
            self.counters.repeated += old.len() as u64;
            if let Some(conflict) = self.history.contradiction(start, old) {
                self.conflict(conflict, deliver);
            }
        }
        if let Some(conflict) = self.queue.contradiction(self.next, new) {
            self.conflict(conflict, deliver);
        }
        self.bytes(new, segment.at, deliver);
        self.passed = self.passed.max(end);
        self.drain(deliver);
    }

    fn early(&mut self, start: u64, end: u64, segment: &Segment<'_>, deliver: &mut dyn FnMut(Delivery<'_>)) {
        if let Some(conflict) = self.queue.contradiction(start, segment.payload) {
            self.conflict(conflict, deliver);
        }
        self.queue.insert(start, Piece { bytes: segment.payload.into(), reach: end, at: segment.at });
        self.bound_early(deliver);
    }

    /// Gives up holes in front of early segments until those keep within their bounds.
    fn bound_early(&mut self, deliver: &mut dyn FnMut(Delivery<'_>)) {
        while self.queue.bytes() > self.limits.early_bytes || self.queue.len() > self.limits.early_segments {
            let Some(first) = self.queue.first() else { break };
            if self.origin == Origin::Unknown {
                self.begin(Origin::Assumed(first), first);
            }
            self.passed = self.passed.max(first);
            self.drain(deliver);
        }
    }

    /// Delivers what has become deliverable: early segments that are no longer early, and holes that are final.
    fn drain(&mut self, deliver: &mut dyn FnMut(Delivery<'_>)) {
        loop {
            while let Some((start, piece)) = self.queue.take_until(self.next) {
                self.passed = self.passed.max(piece.reach);
                let skip = usize::try_from(self.next - start).unwrap_or(usize::MAX);
                if let Some(bytes) = piece.bytes.get(skip..) {
                    self.bytes(bytes, piece.at, deliver);
                }
            }
            let hole_end = self.queue.first().map_or(self.passed, |first| first.min(self.passed));
            if hole_end <= self.next {
                return;
            }
            self.gap(hole_end, deliver);
        }
    }

    fn bytes(&mut self, bytes: &[u8], at: Boottime, deliver: &mut dyn FnMut(Delivery<'_>)) {
        if bytes.is_empty() {
            return;
        }
        deliver(Delivery::Bytes { bytes, at });
        self.next = self.next.saturating_add(bytes.len() as u64);
        self.counters.delivered += bytes.len() as u64;
        self.history.push(bytes, self.next);
    }

    fn gap(&mut self, to: u64, deliver: &mut dyn FnMut(Delivery<'_>)) {
        let gap = Gap { offset: self.offset(), length: to - self.next };
        deliver(Delivery::Gap { offset: gap.offset, length: gap.length });
        self.counters.gaps += 1;
        self.counters.gap_bytes = self.counters.gap_bytes.saturating_add(gap.length);
        let adjacent = self.gaps.last_mut().filter(|last| last.offset + last.length == gap.offset);
        if let Some(last) = adjacent {
            last.length += gap.length;
        } else if self.gaps.len() < MAX_GAP_RANGES {
            self.gaps.push(gap);
        }
        self.next = to;
        self.history.clear();
    }

    fn conflict(&mut self, (from, to): (u64, u64), deliver: &mut dyn FnMut(Delivery<'_>)) {
        self.counters.conflicts += 1;
        let offset = from.saturating_sub(self.origin());
        deliver(Delivery::Conflict { offset, length: to - from });
    }
}
