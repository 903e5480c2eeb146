//! Where the messages of a PostgreSQL connection begin and end, so that rows can be left uncopied and still be counted: what a long answer
//! consists of, and what a client sends for COPY FROM STDIN.
//!
//! A message is a type byte, a length of four bytes that counts itself, and a body. Following them needs nothing but their headers,
//! and gives certainty: a row may hold whatever bytes it likes, they are never taken for a message, because its length says where it
//! ends. (Looking for the end of a transfer in its last bytes would be cheaper, and whoever writes rows could forge it.)
//!
//! Where to begin the daemon says ([`RELEASED`]): it has read the stream from its first byte on, and names the place to which it has come,
//! whenever it has read all that there was. If the next segment begins just there, it is followed, and so are all behind it. Most
//! of the time there is a next try, so this needs no patience. Only DataRow and CopyData are left uncopied, only where a
//! transfer is long, and only as long as the daemon's word stands. The daemon holds what is counted here against its own reading.
//!
//! A segment that is not the next one is not looked at. If it passes before the one that is missing, the place of the next message
//! is lost, until the daemon names another. Two processors may have a segment each in hand; the later one then waits
//! for its turn ([`await_turn`]), which it knows by the sequence number, because that is written last.
//!
//! A segment that becomes several records may find room for the first ones only. It is refused and comes again, and what comes again
//! is copied, not counted: rows that are counted must begin where the daemon's reading has come to ([`Frames::tell`]).
//!
//! Whoever can have a segment lost on its way can send other bytes in its place, which the receiver takes, and nobody can compare
//! with rows that were counted. So what an agent sends is counted on the loopback device only, which loses nothing.

use core::ffi::c_void;
use core::ptr;
use core::ptr::{read_volatile, write_volatile};

use auditor_common::bulk::{LEAST, PLACE_HOLDS, Place, Way};
use auditor_common::event::INGRESS;
use auditor_common::packet::{RST, SYN};
use aya_ebpf::bindings::{__sk_buff, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::generated::{bpf_for_each_map_elem, bpf_ktime_get_boot_ns, bpf_skb_load_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::SkBuffContext;

/// Directions of sockets whose rows need not be copied, and where their messages are. Written by the daemon only.
#[map]
static RELEASED: HashMap<Way, Place> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

/// Bytes of a packet that are looked at in one go, where messages are short. It is a part of each socket's state.
const WINDOW: usize = 256;
/// Up to how many bytes of its body a message is short.
const SHORT: u32 = 120;
/// A message's header.
const HEADER: u32 = 5;
/// The longest message that PostgreSQL sends or takes.
const MAX_LENGTH: u32 = 0x3fff_ffff;
/// Messages of one step of a walk.
const MESSAGES_OF_A_STEP: u32 = 4;
/// Steps of a walk. A packet has 512 KiB at most, so that only messages of less than 16 bytes on average are too many.
const STEPS: u32 = 8192;

/// A walk over what comes in.
#[map]
static WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// Its elements are the steps of a walk; their values mean nothing. bpf_for_each_map_elem (Linux 5.13) is the loop that the verifier
/// walks once, where bpf_loop would need Linux 5.17.
#[map]
static WALK_STEPS: Array<u32> = Array::with_max_entries(STEPS, 0);

/// Where the messages of a direction are.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Frames {
    /// Sequence number of the next byte.
    next: u32,
    /// Sequence number behind the last byte that was told, also of a segment that was then refused.
    told: u32,
    /// Body bytes of the message under way that come from there on.
    remaining: u32,
    /// The first bytes of a header that came in two segments.
    header: [u8; 4],
    /// How many.
    filled: u8,
    /// Type byte of the message under way.
    kind: u8,
    /// Whether any of this is known.
    known: u8,
    /// Whether `told` says something.
    tells: u8,
    /// When the segment from `next` on found no room in the ring and was refused, in ticks, and never 0; 0: that is not so. It comes
    /// again.
    refused: u32,
    /// When the connection's numbers began, in ticks.
    began: u32,
    /// Turns that were waited for in vain, one after the other.
    vain: u8,
    _padding: [u8; 3],
}

/// For how many ticks a refused segment is waited for: a second.
const REFUSES: u32 = 1 << 10;
/// How often a processor waits in vain for a connection's segment.
const MOST_IN_VAIN: u8 = 8;

/// A time in units of 2^20 ns, a millisecond or so.
const fn ticks(time: u64) -> u32 {
    (time >> 20) as u32
}

/// The rows at the beginning of a segment.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    /// Where they end in the payload.
    pub(crate) end: u32,
    /// Bytes from the start on that belong to the body under way.
    pub(crate) first: u32,
    /// Headers among them.
    pub(crate) messages: u32,
    /// Body length of the last of these messages.
    pub(crate) body: u32,
    /// How much of the last message's body comes later.
    pub(crate) remaining: u32,
    /// Type byte.
    pub(crate) kind: u8,
}

impl Rows {
    /// There are none.
    const NONE: Self = Self { end: 0, first: 0, messages: 0, body: 0, remaining: 0, kind: 0 };
}

/// The walk over what comes in that this processor has in hand.
#[inline(always)]
pub(crate) fn incoming() -> *mut Walk {
    WALK.get_ptr_mut(0).unwrap_or(ptr::null_mut())
}

/// A segment of TCP.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    /// Place of the payload in the packet.
    pub(crate) offset: u32,
    /// Its length.
    pub(crate) length: u32,
    /// Sequence number of its first byte.
    pub(crate) sequence: u32,
    /// Flags of the header.
    pub(crate) flags: u8,
}

/// Whether the daemon wants rows of this direction counted instead of copied.
#[inline(always)]
pub(crate) fn are_released(way: &Way) -> bool {
    // SAFETY: the value is not looked at.
    unsafe { RELEASED.get(way) }.is_some()
}

/// A walk over the messages of one segment.
///
/// On the stack the verifier would follow each value that it may hold. What comes in has one for each processor ([`WALK`]): it passes in
/// softirq, which none of its kind interrupts. What leaves passes in a process's context, which others may take the processor
/// from; but one segment of a socket after the other, because the socket is locked. So that one is a part of the socket's state. (A
/// host that has its loopback device's packets judged by a program, as NFQUEUE does, lets them go on without the lock.)
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Walk {
    /// The rows that the segment begins with.
    pub(crate) rows: Rows,
    /// Where it has come to.
    after: Frames,
    /// Place of the payload in the packet.
    offset: u32,
    /// Its length.
    length: u32,
    /// Place of the next header in the payload; at the end the payload's length.
    position: u32,
    /// Something else than rows has come.
    closed: u8,
    /// It came to the end of the payload.
    whole: u8,
    /// EGRESS or INGRESS.
    direction: u8,
    /// Padding.
    _padding: u8,
    /// Place in the payload of the first byte of `window`.
    begins: u32,
    /// Bytes there.
    filled: u32,
    /// Body bytes of the last message that was met, from which the next is guessed.
    usual: u32,
    /// What becomes of the segment.
    passing: Passing,
    /// What is looked at.
    window: [u8; WINDOW],
}

/// What becomes of a segment, once that is known.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Passing {
    /// Bytes of rows at its beginning that are counted instead of copied.
    pub(crate) rows: u32,
    /// Whether it was walked over.
    pub(crate) walked: bool,
    /// Whether it is told.
    pub(crate) told: bool,
    /// Whether those behind it wait for it, if it finds no room.
    pub(crate) awaited: bool,
    pub(crate) _padding: u8,
}

/// CopyData, and of a server's DataRow: the same byte is a client's Describe.
const fn is_row(direction: u8, kind: u8) -> bool {
    kind == b'd' || kind == b'D' && direction == INGRESS
}

/// Whether there may be a message of that length.
const fn is_message(length: u32) -> bool {
    length >= 4 && length <= MAX_LENGTH
}

impl Walk {
    /// Takes note of what becomes of the segment, and answers that. For the verifier all ways to get here are one from here on, because it
    /// does not know what stands in a map; it would walk what follows for each.
    #[inline(always)]
    pub(crate) fn decide(&mut self, passing: Passing) -> Passing {
        let place = &raw mut self.passing;
        // SAFETY: a field of this value, of numbers. Each is read back as what was just written.
        unsafe {
            write_volatile(place, passing);
            read_volatile(place)
        }
    }
}

impl Frames {
    /// A segment has passed. `walk`: it was walked over. The sequence number is taken over last.
    #[inline(always)]
    pub(crate) fn pass(&mut self, segment: &Segment, walk: Option<&Walk>) {
        self.tell(segment.sequence.wrapping_add(segment.length));
        if !self.is_behind(segment.sequence) {
            self.refused = 0;
        }
        if self.known == 0 {
            // Never known, or lost meanwhile by another processor, whose segment did not wait for this one.
            return;
        }
        let Some(walk) = walk else {
            // Before the one that is missing, or once more.
            if self.is_behind(segment.sequence) {
                self.known = 0;
            }
            return;
        };
        let after = &walk.after;
        self.remaining = after.remaining;
        self.header = after.header;
        self.filled = after.filled;
        self.kind = after.kind;
        self.known = after.known;
        // SAFETY: a reference; volatile, so that it stays the last write.
        unsafe { write_volatile(&raw mut self.next, after.next) };
    }

    /// Bytes up to `end` were told, of a segment that passes or of one that was then refused.
    #[inline(always)]
    pub(crate) fn tell(&mut self, end: u32) {
        if self.tells == 0 || end.wrapping_sub(self.told).cast_signed() > 0 {
            self.told = end;
            self.tells = 1;
        }
    }

    /// Whether bytes behind that one were told.
    #[inline(always)]
    const fn has_told(&self, sequence: u32) -> bool {
        self.tells != 0 && self.told.wrapping_sub(sequence).cast_signed() > 0
    }

    /// Whether something is missing before this segment.
    #[inline(always)]
    const fn is_behind(&self, sequence: u32) -> bool {
        sequence.wrapping_sub(self.next).cast_signed() > 0
    }

    /// Whether a segment is to be refused because one before it was: if it passed, the place of the next message were lost, and the
    /// rest of a long transfer would be copied, which is what the ring had no room for. Where the place is not known, the one that comes
    /// again is the one that the daemon's reading has come to once it has emptied the ring.
    ///
    /// Not for ever: that the sender sends it again is what senders do, and nothing that this relies on.
    #[inline(always)]
    pub(crate) fn refuses(&self, sequence: u32, now: u64) -> bool {
        self.refused != 0 && ticks(now).wrapping_sub(self.refused) < REFUSES && self.is_behind(sequence)
    }

    /// A segment found no room and was refused. `walk`: it was walked over.
    #[inline(always)]
    pub(crate) fn refuse(&mut self, segment: &Segment, walk: Option<&Walk>, now: u64) {
        if walk.is_some_and(|walk| walk.after.known == 0) {
            self.known = 0;
        }
        if self.known == 0 {
            let end = segment.sequence.wrapping_add(segment.length);
            if self.tells != 0 && end.wrapping_sub(self.told).cast_signed() <= 0 {
                // Nothing of it is new, so that it may never come again.
                return;
            }
            if self.refuses(segment.sequence, now) {
                return;
            }
            self.next = if self.has_told(segment.sequence) { self.told } else { segment.sequence };
        }
        self.refused = ticks(now) | 1;
    }

    /// The connection's numbers begin anew.
    #[inline(always)]
    pub(crate) fn begin(&mut self, now: u64) {
        self.known = 0;
        self.refused = 0;
        self.tells = 0;
        self.vain = 0;
        self.began = ticks(now);
    }

    /// Goes on from where the daemon's reading has come to, if that is where this segment begins, and if it is the first that begins there.
    #[inline(always)]
    fn resume(&mut self, way: &Way, segment: &Segment, now: u64) -> bool {
        // SAFETY: an element of the map; what is read while it changes is found out by its check.
        let place = unsafe { RELEASED.get(way).map(|place| read_volatile(ptr::from_ref(place))) };
        let Some(place) = place else { return false };
        if place.sequence != segment.sequence || place.check != place.check(way) {
            return false;
        }
        // What was told before the numbers began was of other ones.
        let told = ticks(place.until.wrapping_sub(PLACE_HOLDS)).wrapping_sub(self.began).cast_signed() > 0;
        if now > place.until || !told || self.has_told(segment.sequence) {
            return false;
        }
        self.remaining = place.remaining;
        self.kind = place.kind as u8;
        self.filled = 0;
        self.next = place.sequence;
        self.known = 1;
        true
    }

    /// Walks over a segment. `false`: where its messages are is not known, or it was walked over before, or another one is missing before
    /// it. `is_long`: so is the transfer that it is a part of.
    #[inline(always)]
    pub(crate) fn follow<const DIRECTION: u8>(
        &mut self,
        context: &SkBuffContext,
        way: &Way,
        segment: &Segment,
        (is_long, now): (bool, u64),
        walk: &mut Walk,
    ) -> bool {
        let Segment { offset, length, sequence, flags } = *segment;
        if length == 0 || flags & (SYN | RST) != 0 {
            return false;
        }
        if self.known == 0 && (!is_long || length < LEAST || !self.resume(way, segment, now)) {
            return false;
        }
        if DIRECTION == INGRESS && self.vain < MOST_IN_VAIN && self.refused == 0 && self.is_behind(sequence) {
            await_turn(self, sequence);
            self.vain = if self.is_behind(sequence) { self.vain + 1 } else { 0 };
        }
        // Bytes that have passed before: the receiver had no room for them, or its answer was lost.
        let repeated = self.next.wrapping_sub(sequence);
        if repeated >= length {
            return false;
        }
        walk.rows = Rows::NONE;
        walk.after = *self;
        walk.after.next = sequence.wrapping_add(length);
        walk.offset = offset.wrapping_add(repeated);
        walk.length = length.wrapping_sub(repeated);
        walk.direction = DIRECTION;
        walk_over(context.skb.skb, walk);
        if repeated != 0 || self.has_told(sequence) {
            // Copied whole: rows that are counted begin where the daemon's reading has come to.
            walk.rows.end = 0;
        }
        true
    }
}

/// A wait for the segment before this one.
#[repr(C)]
struct Turn {
    frames: *const Frames,
    sequence: u32,
}

/// Waits while another processor has the segment before this one in hand, some ten microseconds, a hundred at most.
///
/// What a loopback connection's server sends is put on the queue of the processor that sends it, which is the server's for what
/// it writes, and the client's for what its acknowledgements let out: two at a time, and now and then in the wrong order. If it is
/// waited for in vain the segment is lost, or late, and the place of the next message with it. Where that happens again and again, nobody
/// waits any more, so that no peer can make a processor wait.
#[inline(never)]
extern "C" fn await_turn(frames: *const Frames, sequence: u32) -> u32 {
    let mut turn = Turn { frames, sequence };
    // SAFETY: a map of this object, a function of the kind that the helper calls, and a value that outlives the call.
    unsafe {
        bpf_for_each_map_elem(
            ptr::addr_of!(WALK_STEPS).cast_mut().cast(),
            look as *mut c_void,
            (&raw mut turn).cast(),
            0,
        );
    }
    0
}

/// Looks whether it is a segment's turn; 1 ends the wait.
unsafe extern "C" fn look(_map: *mut c_void, _key: *const u32, _value: *mut u32, turn: *mut Turn) -> i64 {
    // SAFETY: what `await_turn` handed to the helper: a value of the socket's, which another processor writes.
    let next = unsafe { read_volatile(&raw const (*(*turn).frames).next) };
    // SAFETY: as above. The helper takes no argument; it is what takes time here.
    unsafe {
        i64::from((*turn).sequence.wrapping_sub(next).cast_signed() <= 0 || bpf_ktime_get_boot_ns() == 0)
    }
}

/// Goes over the next segment.
///
/// A function of its own for the verifier's sake, which would otherwise walk all that follows for each way through it. Its
/// answer means nothing.
#[inline(never)]
extern "C" fn walk_over(skb: *mut __sk_buff, walk: &mut Walk) -> u32 {
    let mut packet = Packet { skb: skb.cast(), walk };
    // SAFETY: a reference until just now. None is held while the helper runs, because `step` makes its own.
    let walk = unsafe { &mut *packet.walk };
    let known = match walk.begin(packet.skb) {
        Some(true) => {
            // SAFETY: a map of this object, a function of the kind that the helper calls, and a value that outlives the call.
            unsafe {
                bpf_for_each_map_elem(
                    ptr::addr_of!(WALK_STEPS).cast_mut().cast(),
                    step as *mut c_void,
                    (&raw mut packet).cast(),
                    0,
                );
            }
            // SAFETY: as above.
            unsafe { (*packet.walk).end(packet.skb) }
        }
        Some(false) => true,
        None => false,
    };
    if !known {
        // SAFETY: as above.
        let walk = unsafe { &mut *packet.walk };
        walk.rows.end = 0;
        walk.after.known = 0;
    }
    0
}

/// A packet, and the walk over its segment.
#[repr(C)]
struct Packet {
    skb: *mut c_void,
    walk: *mut Walk,
}

impl Walk {
    /// Goes to the first header of the segment. `Some(false)`: it has none; `None`: these are no messages.
    #[inline(always)]
    fn begin(&mut self, skb: *mut c_void) -> Option<bool> {
        let mut start = 0;
        if self.after.filled != 0 {
            start = HEADER.wrapping_sub(u32::from(self.after.filled));
            if !self.complete(skb) {
                return None;
            }
        }
        let (kind, remaining) = (self.after.kind, self.after.remaining);
        let length = self.length.wrapping_sub(start);
        if remaining >= length {
            // Most segments of a long value.
            self.after.remaining = remaining - length;
            if is_row(self.direction, kind) && start == 0 {
                self.rows.end = length;
                self.rows.first = length;
                self.rows.remaining = self.after.remaining;
                self.rows.kind = kind;
            }
            return Some(false);
        }
        self.position = start + remaining;
        self.filled = 0;
        self.whole = 0;
        self.closed = 0;
        self.rows.end = self.position;
        self.rows.first = remaining;
        if start != 0 {
            // The header's rest must be copied, so that the daemon knows it too; with it, the segment.
            self.closed = 1;
        } else if remaining != 0 {
            // A message under way that is no row ends the rows before they begin.
            self.rows.kind = kind;
            self.closed = u8::from(!is_row(self.direction, kind));
        }
        Some(true)
    }

    /// Takes stock after the last header; `false`: these are no messages.
    #[inline(always)]
    fn end(&mut self, skb: *mut c_void) -> bool {
        if !is_row(self.direction, self.rows.kind) {
            self.rows.end = 0;
        }
        self.whole != 0 && self.keep_split(skb)
    }

    /// Puts a header together that came in two segments.
    #[inline(always)]
    fn complete(&mut self, skb: *mut c_void) -> bool {
        let filled = u32::from(self.after.filled);
        if filled > 4 || self.length < HEADER - filled {
            return false;
        }
        let [a, b, c, d] = self.after.header;
        let mut split = [0; 4];
        if !load(skb, self.offset, HEADER - filled, &mut split) {
            return false;
        }
        let [e, f, g, h] = split;
        let header = match filled {
            1 => [a, e, f, g, h],
            2 => [a, b, e, f, g],
            3 => [a, b, c, e, f],
            _ => [a, b, c, d, e],
        };
        let size = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        if !is_message(size) {
            return false;
        }
        self.after.kind = header[0];
        self.after.remaining = size - 4;
        self.after.filled = 0;
        true
    }

    /// Keeps the bytes of a header whose rest is in the next segment.
    #[inline(always)]
    fn keep_split(&mut self, skb: *mut c_void) -> bool {
        let split = self.length.wrapping_sub(self.position);
        self.after.filled = 0;
        if split == 0 {
            return true;
        }
        self.after.filled = split as u8;
        load(skb, self.offset + self.position, split, &mut self.after.header)
    }
}

/// Loads a part of a header; `false`: it is not one to four bytes long, or not there.
///
/// Byte by byte, which is rare and short: the compiler makes one comparison of two, after which the verifier does not know any more
/// that a length is not zero ("R4 invalid zero-sized read: u64=[0,4]").
#[inline(always)]
fn load(skb: *mut c_void, from: u32, length: u32, place: &mut [u8; 4]) -> bool {
    let mut loaded = 0;
    for (index, byte) in (0..).zip(place) {
        if index >= length {
            break;
        }
        // SAFETY: one byte.
        if unsafe { bpf_skb_load_bytes(skb, from + index, ptr::from_mut(byte).cast(), 1) } != 0 {
            return false;
        }
        loaded += 1;
    }
    length != 0 && loaded == length
}

/// Some messages of a walk; 1 ends it.
unsafe extern "C" fn step(_map: *mut c_void, _key: *const u32, _value: *mut u32, packet: *mut Packet) -> i64 {
    // SAFETY: what `walk_over` handed to the helper.
    let (skb, walk) = unsafe { ((*packet).skb, &mut *(*packet).walk) };
    for _ in 0..MESSAGES_OF_A_STEP {
        if !message(skb, walk) {
            return 1;
        }
    }
    0
}

/// One message; `false`: it was the last, or is none.
#[inline(always)]
fn message(skb: *mut c_void, walk: &mut Walk) -> bool {
    let left = walk.length.wrapping_sub(walk.position);
    if walk.position >= walk.length || left < HEADER {
        walk.whole = 1;
        return false;
    }
    let mut at = walk.position.wrapping_sub(walk.begins);
    if walk.filled == 0 || at.wrapping_add(HEADER) > walk.filled {
        let (from, place) = (walk.offset + walk.position, walk.window.as_mut_ptr().cast());
        // Two calls, because a length that varies costs the verifier much.
        // SAFETY: the room behind the pointer is as long or longer; the context is the program's.
        let loaded = unsafe {
            if walk.usual < SHORT && left >= WINDOW as u32 {
                walk.filled = WINDOW as u32;
                bpf_skb_load_bytes(skb, from, place, WINDOW as u32)
            } else {
                walk.filled = HEADER;
                bpf_skb_load_bytes(skb, from, place, HEADER)
            }
        };
        if loaded != 0 {
            return false;
        }
        walk.begins = walk.position;
        at = 0;
    }
    // SAFETY: a local variable.
    let at = unsafe { read_volatile(&raw const at) };
    if at > WINDOW as u32 - HEADER {
        return false;
    }
    // SAFETY: five bytes from `at` on are within the window.
    let (kind, length) = unsafe {
        let header = walk.window.as_ptr().add(at as usize);
        (*header, u32::from_be_bytes([*header.add(1), *header.add(2), *header.add(3), *header.add(4)]))
    };
    if !is_message(length) {
        return false;
    }
    let body = length - 4;
    walk.usual = body;
    let behind = left - HEADER;
    // `behind` is less than the packet, so neither sum can overflow.
    let (position, remaining) =
        if body > behind { (walk.length, body - behind) } else { (walk.position + HEADER + body, 0) };
    if walk.closed == 0 && is_row(walk.direction, kind) && (walk.rows.kind == 0 || walk.rows.kind == kind) {
        walk.rows.kind = kind;
        walk.rows.messages += 1;
        walk.rows.body = body;
        walk.rows.remaining = remaining;
        walk.rows.end = position;
    } else {
        walk.closed = 1;
    }
    walk.after.kind = kind;
    walk.after.remaining = remaining;
    walk.position = position;
    true
}
