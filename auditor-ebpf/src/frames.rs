//! Where the messages of a PostgreSQL server's answer begin and end, so that rows can be left uncopied and still be counted.
//!
//! A message is a type byte, a length of four bytes that counts itself, and a body. Following them from the first byte of the
//! connection on needs nothing but their headers, and gives certainty: a row may hold whatever bytes it likes, they are never
//! taken for a message, because its length says where it ends. (Looking for the end of an answer in its last bytes would be
//! cheaper, and whoever writes rows could forge it.)
//!
//! It is done for all connections that an agent opens, whatever they speak, because the daemon learns only later what it is: a
//! byte that cannot be such a message ends it for this connection. Nothing is left uncopied before the daemon has said so
//! ([`RELEASED`]), and then only DataRow and CopyData, only of an answer that is long. The daemon holds what is counted here
//! against its own reading.
//!
//! A segment that is not the next one is not looked at. If it passes before the one that is missing, the place of the next message
//! is lost, and the rest of the connection is copied whole. Two processors may have a segment each in hand; the later one then waits
//! for its turn ([`await_turn`]), which it knows by the sequence number, because that is written last. It waits in vain once in a
//! connection at most, so that no peer can make a processor wait.
//!
//! A segment that becomes several records may find room for the first ones only. It is refused and comes again, and what comes again
//! is copied, not counted: rows that are counted must begin where the daemon's reading has come to ([`Frames::partly_told`]).

use core::ffi::c_void;
use core::ptr;
use core::ptr::{read_volatile, write_volatile};

use auditor_common::packet::SYN;
use aya_ebpf::bindings::{__sk_buff, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::generated::{bpf_for_each_map_elem, bpf_ktime_get_boot_ns, bpf_skb_load_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::SkBuffContext;

/// Cookies of sockets whose rows need not be copied. Written by the daemon only.
#[map]
static RELEASED: HashMap<u64, u32> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// Bytes of an answer that are copied in any case.
pub(crate) const ANSWER_BEGINS: u32 = 64 << 10;
/// Rows of fewer bytes than this are copied: a record of them would be no shorter.
pub(crate) const LEAST: u32 = 512;

/// Bytes of a packet that are looked at in one go.
const WINDOW: usize = 4096;
/// The same where messages are long: there is one header in it at best.
const NARROW: u32 = 64;
/// From how many bytes on a message is long.
const LONG: u32 = 512;
/// A message's header.
const HEADER: u32 = 5;
/// The longest message that PostgreSQL sends.
const MAX_LENGTH: u32 = 0x3fff_ffff;
/// Messages of one step of a walk.
const MESSAGES_OF_A_STEP: u32 = 4;
/// Steps of a walk. A packet has 512 KiB at most, so that only messages of less than 16 bytes on average are too many.
const STEPS: u32 = 8192;

/// Not at a beginning.
const UNKNOWN: u8 = 0;
/// Before the server's first message: its answer to a request for encryption, one byte, may come.
const FIRST: u8 = 1;
/// Within the messages.
const WITHIN: u8 = 2;

/// What a walk needs. One for each processor: ingress runs in softirq, which none of its kind interrupts; the stack has no room.
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
    /// Sequence number behind the last byte that was copied of a segment that was then refused; never behind `next`.
    told: u32,
    /// Body bytes of the message under way that come from there on.
    remaining: u32,
    /// The first bytes of a header that came in two segments.
    header: [u8; 4],
    /// How many.
    filled: u8,
    /// Type byte of the message under way.
    kind: u8,
    /// [`UNKNOWN`], [`FIRST`] or [`WITHIN`].
    phase: u8,
    /// Whether the segment from `next` on found no room in the ring and was refused: then it comes again.
    refused: u8,
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
    /// There are none. Field by field: a constant would be copied byte by byte, in a loop.
    #[inline(always)]
    fn clear(&mut self) {
        self.end = 0;
        self.first = 0;
        self.messages = 0;
        self.body = 0;
        self.remaining = 0;
        self.kind = 0;
    }
}

/// Whether the daemon wants rows of this socket counted instead of copied.
#[inline(always)]
pub(crate) fn are_released(cookie: u64) -> bool {
    // SAFETY: the value is not looked at.
    unsafe { RELEASED.get(cookie) }.is_some()
}

/// A walk over the messages of one segment.
#[repr(C)]
struct Walk {
    /// The rows that the segment begins with.
    rows: Rows,
    /// Where it has come to.
    after: Frames,
    /// Place of the payload in the packet.
    offset: u32,
    /// Its length.
    length: u32,
    /// Place of the next header in the payload; at the end the payload's length.
    position: u32,
    /// Place in the payload of the first byte of `window`.
    begins: u32,
    /// Bytes there.
    filled: u32,
    /// Body bytes of the last message that any walk has met, from which the next is guessed.
    usual: u32,
    /// Something else than rows has come.
    closed: u8,
    /// It came to the end of the payload.
    whole: u8,
    /// Padding.
    _padding: [u8; 2],
    /// The rest of a header that came in two segments.
    split: [u8; 4],
    /// What is looked at.
    window: [u8; WINDOW],
}

const fn is_row(kind: u8) -> bool {
    kind == b'D' || kind == b'd'
}

/// Whether a server sends such a message.
const fn is_message(kind: u8, length: u32) -> bool {
    length >= 4
        && length <= MAX_LENGTH
        && matches!(
            kind,
            b'1' | b'2'
                | b'3'
                | b'A'
                | b'C'
                | b'D'
                | b'E'
                | b'G'
                | b'H'
                | b'I'
                | b'K'
                | b'N'
                | b'R'
                | b'S'
                | b'T'
                | b'V'
                | b'W'
                | b'Z'
                | b'c'
                | b'd'
                | b'n'
                | b's'
                | b't'
                | b'v'
        )
}

impl Frames {
    /// Of a socket of which nothing is known.
    pub(crate) const UNKNOWN: Self = Self {
        next: 0,
        told: 0,
        remaining: 0,
        header: [0; 4],
        filled: 0,
        kind: 0,
        phase: UNKNOWN,
        refused: 0,
    };

    /// Takes over where [`Self::follow`] has come to, the sequence number last.
    #[inline(always)]
    pub(crate) fn advance(&mut self) {
        let Some(walk) = walk() else { return };
        let after = &walk.after;
        if self.phase == UNKNOWN && after.phase != FIRST {
            // Lost meanwhile by another processor, whose segment did not wait for this one.
            return;
        }
        if after.phase == FIRST || self.told.wrapping_sub(after.next).cast_signed() < 0 {
            self.told = after.next;
        }
        self.remaining = after.remaining;
        self.header = after.header;
        self.filled = after.filled;
        self.kind = after.kind;
        self.phase = after.phase;
        self.refused = after.refused;
        // SAFETY: a reference; volatile, so that it stays the last write.
        unsafe { write_volatile(&raw mut self.next, after.next) };
    }

    /// Whether a segment is to be refused because one before it was: if it passed, the place of the next message were lost, and the
    /// rest of a long answer would be copied, which is what the ring had no room for.
    #[inline(always)]
    pub(crate) fn refuses(&self, sequence: u32) -> bool {
        self.refused != 0 && self.phase != UNKNOWN && self.is_behind(sequence)
    }

    /// Whether something is missing before this segment.
    #[inline(always)]
    const fn is_behind(&self, sequence: u32) -> bool {
        sequence.wrapping_sub(self.next).cast_signed() > 0
    }

    /// The segment of [`Self::follow`] found no room and was refused. Only the next one is sure to come again, see
    /// [`Self::refuses`].
    #[inline(always)]
    pub(crate) fn refuse(&mut self) {
        if walk().is_none_or(|walk| walk.after.phase == UNKNOWN) {
            self.phase = UNKNOWN;
        }
        self.refused = 1;
    }

    /// A segment was copied up to `end` when the ring was full.
    #[inline(always)]
    pub(crate) fn partly_told(&mut self, end: u32) {
        if end.wrapping_sub(self.told).cast_signed() > 0 {
            self.told = end;
        }
    }

    /// Goes over a segment; [`rows`] answers what it begins with. `false`: it has no payload. (An array's entries exist from the
    /// beginning.)
    #[inline(always)]
    pub(crate) fn follow(
        &self,
        context: &SkBuffContext,
        offset: u32,
        length: u32,
        sequence: u32,
        flags: u8,
    ) -> bool {
        if length == 0 && flags & SYN == 0 {
            return false;
        }
        if self.phase == WITHIN && self.refused == 0 && self.is_behind(sequence) {
            await_turn(self, sequence);
        }
        let Some(walk) = WALK.get_ptr_mut(0) else { return false };
        // SAFETY: this processor's own, see `WALK`. No reference is held while `segment` runs, which makes its own.
        unsafe {
            (*walk).rows.clear();
            (*walk).after = *self;
            if self.is_behind(sequence) {
                (*walk).after.phase = UNKNOWN;
            }
            if flags & SYN != 0 {
                // The answer to our SYN. Data on it (Fast Open) is nothing that a PostgreSQL server sends.
                (*walk).after = Self::UNKNOWN;
                (*walk).after.next = sequence.wrapping_add(1);
                (*walk).after.phase = if length == 0 { FIRST } else { UNKNOWN };
                return true;
            }
            // Bytes that have passed before: the receiver had no room for them, or its answer was lost.
            let repeated = self.next.wrapping_sub(sequence);
            if self.phase != UNKNOWN && repeated < length {
                (*walk).after.next = sequence.wrapping_add(length);
                (*walk).after.refused = 0;
                (*walk).offset = offset.wrapping_add(repeated);
                (*walk).length = length.wrapping_sub(repeated);
                segment(context.skb.skb);
                if repeated != 0 || self.told.wrapping_sub(sequence).cast_signed() > 0 {
                    // Copied whole, so that what came twice can be compared.
                    (*walk).rows.clear();
                }
            }
        }
        true
    }
}

/// This processor's walk over the segment that it has in hand.
#[inline(always)]
fn walk() -> Option<&'static Walk> {
    // SAFETY: this processor's own, see `WALK`; nothing changes it between one segment's `follow` and the next.
    unsafe { WALK.get_ptr(0)?.as_ref() }
}

/// The rows that the segment in hand begins with.
#[inline(always)]
pub(crate) fn rows() -> Option<&'static Rows> {
    walk().map(|walk| &walk.rows)
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
/// it writes, and the client's for what its acknowledgements let out: two at a time, and now and then in the wrong order. It is waited
/// for once; if that was in vain the segment is lost, or late, and the place of the next message with it.
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

/// Goes over the next segment, of which [`WALK`] knows place, length and what was under way before.
///
/// A function of its own for the verifier's sake, which would otherwise walk all that follows for each way through it. Its
/// answer means nothing.
#[inline(never)]
extern "C" fn segment(skb: *mut __sk_buff) -> u32 {
    let Some(pointer) = WALK.get_ptr_mut(0) else { return 0 };
    // SAFETY: as in `follow`; no reference is held while the helper runs, because `step` makes its own.
    let walk = unsafe { &mut *pointer };
    let mut skb: *mut c_void = skb.cast();
    let begun = if walk.after.phase == FIRST && walk.length == 1 {
        // Encryption is refused; or it is agreed on, and what follows is no message.
        (load(skb, walk.offset, 1, &mut walk.split) && walk.split[0] == b'N').then_some(false)
    } else {
        walk.after.phase = WITHIN;
        walk.begin(skb)
    };
    let known = match begun {
        Some(true) => {
            // SAFETY: a map of this object, a function of the kind that the helper calls, and a value that outlives the call.
            unsafe {
                bpf_for_each_map_elem(
                    ptr::addr_of!(WALK_STEPS).cast_mut().cast(),
                    step as *mut c_void,
                    (&raw mut skb).cast(),
                    0,
                );
            }
            // SAFETY: as above.
            unsafe { (*pointer).end(skb) }
        }
        Some(false) => true,
        None => false,
    };
    if !known {
        // SAFETY: as above.
        let walk = unsafe { &mut *pointer };
        walk.rows.clear();
        walk.after.phase = UNKNOWN;
    }
    0
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
            if is_row(kind) && start == 0 {
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
            self.closed = u8::from(!is_row(kind));
        }
        Some(true)
    }

    /// Takes stock after the last header; `false`: these are no messages.
    #[inline(always)]
    fn end(&mut self, skb: *mut c_void) -> bool {
        if !is_row(self.rows.kind) {
            self.rows.clear();
        }
        self.whole != 0 && self.keep_split(skb)
    }

    /// Puts a header together that came in two segments; answers how many of its bytes are in this one.
    #[inline(always)]
    fn complete(&mut self, skb: *mut c_void) -> bool {
        let filled = u32::from(self.after.filled);
        if filled > 4 || self.length < HEADER - filled {
            return false;
        }
        let [a, b, c, d] = self.after.header;
        if !load(skb, self.offset, HEADER - filled, &mut self.split) {
            return false;
        }
        let [e, f, g, h] = self.split;
        let header = match filled {
            1 => [a, e, f, g, h],
            2 => [a, b, e, f, g],
            3 => [a, b, c, e, f],
            _ => [a, b, c, d, e],
        };
        let size = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        if !is_message(header[0], size) {
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
unsafe extern "C" fn step(
    _map: *mut c_void,
    _key: *const u32,
    _value: *mut u32,
    skb: *mut *mut c_void,
) -> i64 {
    let Some(walk) = WALK.get_ptr_mut(0) else { return 1 };
    // SAFETY: this processor's own; `skb` is what `segment` handed to the helper.
    let (walk, skb) = unsafe { (&mut *walk, *skb) };
    for _ in 0..MESSAGES_OF_A_STEP {
        if !message(walk, skb) {
            return 1;
        }
    }
    0
}

/// One message; `false`: it was the last, or is none.
#[inline(always)]
fn message(walk: &mut Walk, skb: *mut c_void) -> bool {
    let left = walk.length.wrapping_sub(walk.position);
    if walk.position >= walk.length || left < HEADER {
        walk.whole = 1;
        return false;
    }
    let mut at = walk.position.wrapping_sub(walk.begins);
    if walk.filled == 0 || at.wrapping_add(HEADER) > walk.filled {
        let wanted = if walk.usual < LONG { WINDOW as u32 } else { NARROW };
        let size = if left > wanted { wanted } else { left };
        // The verifier does not know what the compiler knows: "R4 unbounded memory access".
        // SAFETY: a local variable.
        let size = unsafe { read_volatile(&raw const size) };
        if size < HEADER || size > WINDOW as u32 {
            return false;
        }
        let place = walk.window.as_mut_ptr().cast();
        // SAFETY: `size` is at most the room behind the pointer; the context is the program's.
        if unsafe { bpf_skb_load_bytes(skb, walk.offset + walk.position, place, size) } != 0 {
            return false;
        }
        walk.begins = walk.position;
        walk.filled = size;
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
    if !is_message(kind, length) {
        return false;
    }
    let body = length - 4;
    walk.usual = body;
    let behind = left - HEADER;
    // `behind` is less than the packet, so neither sum can overflow.
    let (position, remaining) =
        if body > behind { (walk.length, body - behind) } else { (walk.position + HEADER + body, 0) };
    if walk.closed == 0 && is_row(kind) && (walk.rows.kind == 0 || walk.rows.kind == kind) {
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
