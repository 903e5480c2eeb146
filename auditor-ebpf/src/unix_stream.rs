//! What is said on streams between unix sockets, read where the agent has no hand in it: at the other end.
//!
//! The kernel tells of each call that has moved bytes on a socket, with the socket and the call's answer, whatever the call was
//! (tracepoints sock/sock_send_length and sock/sock_recv_length, Linux 6.3; as raw tracepoints they give the struct sock itself). Three
//! facts follow from there.
//!
//! - What the other end *takes* is what the agent said, as its server reads it. The agent's own memory is never asked: another
//!   thread of the agent could have changed it meanwhile, and io_uring, sendfile(2) or a descriptor that was passed on
//!   would be ways around. The server's memory holds what the kernel has just copied there.
//! - What the other end *gives* is what the agent was told, in the memory that the server has just had copied.
//! - The server takes a question before it answers, so that questions come before answers here, too.
//!
//! What went in at both ends is counted besides, so that there is a count of the kernel's to hold the rest against. Not read: other
//! calls of the other end than read, readv, recvfrom, recvmsg, write, writev, sendto, sendmsg of 64-bit programs, and what is behind the
//! first pieces of a very long one; that is told with its exact length. Nothing tells of splice(2) *from* a unix socket: the
//! place of what a server takes so is not known, its length is, from the count at the agent's end.
//!
//! A call that has happened cannot be refused: what finds no room in the ring is a hole, and the next record's place says how long.
//!
//! The end of a unix socket is told by no hook either. The daemon asks ([`look`]): the struct sock of the agent's end is kept
//! as a number, and its memory says whether there still is a socket with that cookie and an owner. It stays while the other end is
//! there, which holds it.

use core::mem::MaybeUninit;
use core::ptr::{addr_of, read_volatile};

use auditor_common::control::Control;
use auditor_common::endpoint::Endpoint;
use auditor_common::event::{Closed, EGRESS, INGRESS, KIND_CLOSED};
use auditor_common::unix::{
    CONTENT_COPIED, CONTENT_OTHER_CALL, CONTENT_TOO_LONG, CONTENT_UNREADABLE, KIND_UNIX_DATA,
    STREAM_PROTOCOL, UnixData, UnixStream,
};
use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_current_task_btf, bpf_probe_read_user, bpf_task_pt_regs,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::RawTracePointContext;

use crate::emit::{self, Owner, Sort, Wake};
use crate::memory::{follow, read, setting};

const BPF_F_NO_PREALLOC: u32 = 1;

/// Streams of agents by the cookie of their end.
#[map]
static UNIX_STREAMS: HashMap<u64, UnixStream> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// Whose programs read: see [`PROGRAM`].
#[map]
static UNIX_IN_CHARGE: Array<u32> = Array::with_max_entries(1, 0);

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* #[unsafe(no_mangle)] static $name: u32 = 0;)*
    };
}

offsets! {
    /// `sk` of struct bpf_sock_addr_kern.
    UNIX_SOCKET_OFFSET;
    /// `skc_family` of struct sock_common, with which struct sock begins.
    SOCK_FAMILY_OFFSET;
    /// `skc_state` of struct sock_common.
    SOCK_STATE_OFFSET;
    /// `skc_cookie` of struct sock_common.
    SOCK_COOKIE_OFFSET;
    /// `sk_socket` of struct sock.
    SOCK_OWNER_OFFSET;
    /// `peer` of struct unix_sock, which begins with struct sock.
    UNIX_PEER_OFFSET;
    /// `files` of struct task_struct.
    TASK_FILES_OFFSET;
    /// `fdt` of struct files_struct.
    FILES_TABLE_OFFSET;
    /// `max_fds` of struct fdtable.
    TABLE_LENGTH_OFFSET;
    /// `fd` of struct fdtable.
    TABLE_FILES_OFFSET;
    /// `private_data` of struct file.
    FILE_DATA_OFFSET;
    /// `sk` of struct socket.
    SOCKET_SOCK_OFFSET;
    /// Number of this object: while another version takes over there are two of these programs on each tracepoint.
    PROGRAM;
    /// 1: the calls of programs of this machine can be read.
    CALLS_READABLE;
}

const AF_UNIX: u16 = 1;
/// TCP_ESTABLISHED of include/net/tcp_states.h, which unix sockets have while they are connected.
const CONNECTED: u8 = 1;
const MSG_OOB: i32 = 1;
const MSG_PEEK: i32 = 2;
/// How long the other end's last call may take to be told of after the agent's end is gone.
const LAST_CALL: u64 = 1_000_000_000;

/// Largest piece of one record.
const LARGEST: u32 = 32768;
/// Largest piece of a call that is done with one record of a fitting size.
const ORDINARY: u32 = 8192;
/// Pieces that another call may become: of [`LARGEST`], or of memory that was given. The verifier walks each of them.
const PIECES: u32 = 16;

/// What became of a wish to follow a socket.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Following {
    Begun,
    NoRoom,
    Connected,
}

/// Begins to follow a socket that is about to be connected. `kernel`: the struct bpf_sock_addr_kern.
#[inline(always)]
pub(crate) fn begin(kernel: *const u8, cookie: u64, owner: Owner) -> Following {
    let Some(socket) = follow(kernel, setting(&UNIX_SOCKET_OFFSET)) else { return Following::NoRoom };
    if read::<u8>(socket, setting(&SOCK_STATE_OFFSET)) == Some(CONNECTED) {
        return Following::Connected;
    }
    let stream = UnixStream {
        session: owner.session,
        socket: socket as u64,
        other: 0,
        sent: 0,
        taken: 0,
        received: 0,
        ended: 0,
        share: owner.share,
        connected: 0,
    };
    match UNIX_STREAMS.insert(cookie, stream, 0) {
        Ok(()) => Following::Begun,
        Err(_) => Following::NoRoom,
    }
}

/// It is not to be connected after all.
#[inline(always)]
pub(crate) fn forget(cookie: u64) {
    let _ = UNIX_STREAMS.remove(cookie);
}

/// A call has put bytes in at an end: TP_PROTO(struct sock *sk, int ret, int flags).
pub(crate) fn put_in(context: &RawTracePointContext) {
    let socket = context.arg::<u64>(0) as *const u8;
    let answer = context.arg::<i32>(1);
    if !concerns(socket, answer) {
        return;
    }
    let cookie = read::<u64>(socket, setting(&SOCK_COOKIE_OFFSET)).unwrap_or(0);
    if cookie != 0
        && let Some(stream) = UNIX_STREAMS.get_ptr_mut(cookie)
    {
        // SAFETY: a value of the map; only the address of its field is taken.
        emit::add(unsafe { &raw mut (*stream).sent }, answer as u64);
    }
    moved::<INGRESS>(socket, answer as u32);
}

/// A call has taken bytes out at an end: TP_PROTO(struct sock *sk, int ret, int flags).
pub(crate) fn took_out(context: &RawTracePointContext) {
    let socket = context.arg::<u64>(0) as *const u8;
    let answer = context.arg::<i32>(1);
    if !concerns(socket, answer) {
        return;
    }
    // What is only looked at is taken later; a byte out of band has no place in the stream.
    if context.arg::<i32>(2) & (MSG_PEEK | MSG_OOB) != 0 {
        return;
    }
    moved::<EGRESS>(socket, answer as u32);
}

/// All that a stranger's call costs.
#[inline(always)]
fn concerns(socket: *const u8, answer: i32) -> bool {
    answer > 0
        && read::<u16>(socket, setting(&SOCK_FAMILY_OFFSET)) == Some(AF_UNIX)
        && UNIX_IN_CHARGE.get(0) == Some(&setting(&PROGRAM))
}

/// Memory of the calling process: a piece, and the vector from which the next ones are read.
#[derive(Clone, Copy)]
struct Memory {
    base: u64,
    length: u64,
    vector: u64,
    count: u64,
}

/// Bytes have moved at `socket`, which is the other end of an agent's if its peer is followed.
#[inline(always)]
fn moved<const DIRECTION: u8>(socket: *const u8, length: u32) {
    // The other end holds the agent's until it is gone itself, so this is a struct sock.
    let Some(agent) = follow(socket, setting(&UNIX_PEER_OFFSET)) else { return };
    let cookie = read::<u64>(agent, setting(&SOCK_COOKIE_OFFSET)).unwrap_or(0);
    if cookie == 0 {
        return;
    }
    let Some(stream) = UNIX_STREAMS.get_ptr_mut(cookie) else { return };
    let Some(control) = emit::control() else { return };
    // SAFETY: a value of the map, whose fields are aligned integers; only addresses are taken of those that others add to.
    let (here, there, owner) = unsafe {
        (*stream).other = socket as u64;
        let (taken, received) = (&raw mut (*stream).taken, &raw mut (*stream).received);
        let owner = Owner { session: (*stream).session, share: (*stream).share };
        if DIRECTION == EGRESS { (taken, received, owner) } else { (received, taken, owner) }
    };
    let passed = emit::load(there);
    let offset = emit::load(here);
    emit::add(here, u64::from(length));
    if emit::load(here) != offset + u64::from(length) {
        // Two calls at the same end and in the same direction at once: which bytes were whose is not known. The next record's
        // place says how many there were. (To add and to know what was there before is one instruction, which the target this is
        // compiled for does not have: "Invalid usage of the XADD return value".)
        emit::count_held_back::<DIRECTION>(owner);
        return;
    }
    let mut told = Told { owner, time: emit::now(), cookie, passed, offset };
    let Some(mut memory) = memory::<DIRECTION>(socket) else {
        tell_of::<DIRECTION>(&told, length, CONTENT_OTHER_CALL, control);
        return;
    };
    if length <= ORDINARY && memory.length >= u64::from(length) {
        match length {
            0..=256 => record::<DIRECTION, 256>(&told, memory.base, length, control),
            257..=1024 => record::<DIRECTION, 1024>(&told, memory.base, length, control),
            _ => record::<DIRECTION, { ORDINARY as usize }>(&told, memory.base, length, control),
        }
        return;
    }
    let mut left = length;
    for _ in 0..PIECES {
        if left == 0 {
            return;
        }
        if memory.length == 0 {
            if memory.count == 0 {
                break;
            }
            let Some(next) = piece(memory.vector) else { break };
            memory = Memory { vector: memory.vector + 16, count: memory.count - 1, ..next };
            continue;
        }
        let part = bounded(memory.length, left);
        if part <= 1024 {
            record::<DIRECTION, 1024>(&told, memory.base, part, control);
        } else {
            record::<DIRECTION, { LARGEST as usize }>(&told, memory.base, part, control);
        }
        told.offset += u64::from(part);
        memory.base += u64::from(part);
        memory.length -= u64::from(part);
        left -= part;
    }
    if left != 0 {
        tell_of::<DIRECTION>(&told, left, CONTENT_TOO_LONG, control);
    }
}

#[inline(always)]
fn bounded(memory: u64, left: u32) -> u32 {
    let most = if left > LARGEST { LARGEST } else { left };
    if memory < u64::from(most) { memory as u32 } else { most }
}

/// An entry of a vector (struct iovec).
#[inline(always)]
fn piece(at: u64) -> Option<Memory> {
    let [base, length] = read_user::<[u64; 2]>(at)?;
    Some(Memory { base, length, vector: 0, count: 0 })
}

/// The memory that the system call under way was given for `socket`. `None`: it is none of those that are read.
///
/// The registers are those of the call as long as its answer is not there (-ENOSYS until then): io_uring completes requests of its
/// own behind other calls' ends, and in threads that make no call.
#[inline(always)]
fn memory<const DIRECTION: u8>(socket: *const u8) -> Option<Memory> {
    if setting(&CALLS_READABLE) == 0 {
        return None;
    }
    // SAFETY: the first helper gives the running task, which the second takes.
    let registers = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const u8;
    let registers = read::<Registers>(registers, REGISTERS)?;
    if registers.answer != -ENOSYS || !is_at(registers.first as u32, socket) {
        return None;
    }
    let call = if DIRECTION == EGRESS { TAKING } else { GIVING };
    let [one, vector, from, message] = call;
    if registers.call == one || registers.call == from {
        return Some(Memory { base: registers.second, length: registers.third, vector: 0, count: 0 });
    }
    let (vector, count) = if registers.call == vector {
        (registers.second, registers.third)
    } else if registers.call == message {
        let [vector, count] = read_user::<[u64; 2]>(registers.second + MESSAGE_VECTOR)?;
        (vector, count)
    } else {
        return None;
    };
    Some(Memory { base: 0, length: 0, vector, count })
}

/// From `ax` to `orig_ax` of struct pt_regs (arch/x86/include/asm/ptrace.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Registers {
    answer: i64,
    _cx: u64,
    third: u64,
    second: u64,
    first: u64,
    call: u64,
}
/// Where it begins.
const REGISTERS: u32 = 80;
const ENOSYS: i64 = 38;
/// read, readv, recvfrom, recvmsg; write, writev, sendto, sendmsg (arch/x86/entry/syscalls/syscall_64.tbl). None of these numbers is
/// one of the same calls of 32-bit programs.
const TAKING: [u64; 4] = [0, 19, 45, 47];
const GIVING: [u64; 4] = [1, 20, 44, 46];
/// `msg_iov` of struct user_msghdr, before `msg_iovlen`.
const MESSAGE_VECTOR: u64 = 16;

/// Whether a descriptor of the running task is this socket's: a file may use a socket of its own on the way.
#[inline(always)]
fn is_at(descriptor: u32, socket: *const u8) -> bool {
    at(descriptor) == Some(socket as u64)
}

#[inline(always)]
fn at(descriptor: u32) -> Option<u64> {
    // SAFETY: the helper takes no argument.
    let task = unsafe { bpf_get_current_task() } as *const u8;
    let files = follow(task, setting(&TASK_FILES_OFFSET))?;
    let table = follow(files, setting(&FILES_TABLE_OFFSET))?;
    if descriptor >= read::<u32>(table, setting(&TABLE_LENGTH_OFFSET))? {
        return None;
    }
    let files = follow(table, setting(&TABLE_FILES_OFFSET))?;
    let file = follow(files.wrapping_add(descriptor as usize * 8), 0)?;
    let socket = follow(file, setting(&FILE_DATA_OFFSET))?;
    read::<u64>(socket, setting(&SOCKET_SOCK_OFFSET))
}

#[inline(always)]
fn read_user<T: Copy + Default>(from: u64) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the destination is as long as is said; the helper takes any address and fails where there is no memory.
    let result =
        unsafe { bpf_probe_read_user((&raw mut value).cast(), size_of::<T>() as u32, from as *const _) };
    (result == 0).then_some(value)
}

/// Of which bytes a record is.
struct Told {
    owner: Owner,
    time: u64,
    cookie: u64,
    passed: u64,
    offset: u64,
}

impl Told {
    #[inline(always)]
    fn record<const DIRECTION: u8>(&self, length: u32, captured: u32, content: u8) -> UnixData {
        UnixData {
            header: emit::header_at(KIND_UNIX_DATA, self.owner, self.time),
            cookie: self.cookie,
            offset: self.offset,
            passed: self.passed,
            length,
            captured,
            direction: DIRECTION,
            content,
            _padding: [0; 6],
        }
    }
}

/// Tells of bytes that are not copied.
#[inline(always)]
fn tell_of<const DIRECTION: u8>(told: &Told, length: u32, content: u8, control: &Control) {
    let Some(mut segment) = emit::reserve_payload::<DIRECTION, UnixData>(told.owner, control) else {
        return;
    };
    segment.entry.write(told.record::<DIRECTION>(length, 0, content));
    emit::submit_payload(segment, control);
}

/// A record with room for `N` bytes.
#[repr(C)]
struct Slot<const N: usize> {
    data: UnixData,
    bytes: [u8; N],
}

#[inline(always)]
fn record<const DIRECTION: u8, const N: usize>(told: &Told, from: u64, length: u32, control: &Control) {
    let Some(mut segment) = emit::reserve_payload::<DIRECTION, Slot<N>>(told.owner, control) else {
        return;
    };
    let slot: *mut Slot<N> = MaybeUninit::as_mut_ptr(&mut segment.entry);
    // The compiler knows that `length` fits, the verifier does not: see `packet::record`.
    // SAFETY: a local variable.
    let bounded = unsafe { read_volatile(&raw const length) };
    if bounded == 0 || bounded > N as u32 {
        segment.entry.discard(0);
        return;
    }
    // SAFETY: `bounded` is at most N, which is the room behind the pointer; any source is taken, and none that faults.
    let result = unsafe { bpf_probe_read_user((&raw mut (*slot).bytes).cast(), bounded, from as *const _) };
    let (captured, content) = if result == 0 { (bounded, CONTENT_COPIED) } else { (0, CONTENT_UNREADABLE) };
    // SAFETY: the reservation is exactly one slot.
    unsafe { (&raw mut (*slot).data).write(told.record::<DIRECTION>(bounded, captured, content)) };
    emit::submit_payload(segment, control);
}

/// The stream goes on.
const GOES_ON: i32 = 0;
/// It has ended, which is recorded, or nobody follows it.
const ENDED: i32 = 1;
/// It has ended, and there was no room to record that: to be asked again.
const NOT_RECORDED: i32 = 2;

/// The daemon asks whether a stream goes on: its cookie, and whether its end is to be recorded in any case.
pub(crate) fn look(context: &RawTracePointContext) -> i32 {
    let (cookie, forced) = (context.arg::<u64>(0), context.arg::<u64>(1) != 0);
    let Some(stream) = UNIX_STREAMS.get_ptr_mut(cookie) else { return ENDED };
    // SAFETY: a value of the map, valid as long as the program runs; the fields that others add to are read by `load`.
    let stream = unsafe { &mut *stream };
    if goes_on(stream, cookie) && !forced {
        return GOES_ON;
    }
    let (sent, received) = (emit::load(addr_of!(stream.sent)), emit::load(addr_of!(stream.received)));
    let owner = Owner { session: stream.session, share: stream.share };
    let connected = stream.connected != 0 || stream.other != 0 || sent != 0;
    let recorded = emit::lifecycle(
        Sort::Connection,
        Wake::InTime,
        owner,
        #[inline(always)]
        |place: &mut MaybeUninit<Closed>| {
            place.write(Closed {
                header: emit::header(KIND_CLOSED, owner),
                cookie,
                local: Endpoint::v6([0; 16], 0),
                remote: Endpoint::v6([0; 16], 0),
                bytes_acked: sent,
                bytes_received: received,
                round_trip_us: 0,
                old_state: u32::from(connected),
                retransmits: 0,
                protocol: STREAM_PROTOCOL,
                sent,
                received,
            });
        },
    );
    if !recorded {
        return NOT_RECORDED;
    }
    forget(cookie);
    ENDED
}

#[inline(always)]
fn goes_on(stream: &mut UnixStream, cookie: u64) -> bool {
    let socket = stream.socket as *const u8;
    let there = read::<u64>(socket, setting(&SOCK_COOKIE_OFFSET)) == Some(cookie);
    if there && follow(socket, setting(&SOCK_OWNER_OFFSET)).is_some() {
        if read::<u8>(socket, setting(&SOCK_STATE_OFFSET)) == Some(CONNECTED) {
            stream.connected = 1;
        }
        if stream.other == 0 {
            stream.other = read::<u64>(socket, setting(&UNIX_PEER_OFFSET)).unwrap_or(0);
        }
        return true;
    }
    let now = emit::now();
    if stream.ended == 0 {
        stream.ended = now;
    }
    // The other end holds the memory of the agent's, so that nobody else can have been given it meanwhile.
    let other = stream.other as *const u8;
    let other_lives = there
        && stream.other != 0
        && read::<u64>(other, setting(&UNIX_PEER_OFFSET)) == Some(stream.socket)
        && follow(other, setting(&SOCK_OWNER_OFFSET)).is_some();
    let all_taken = emit::load(addr_of!(stream.taken)) >= emit::load(addr_of!(stream.sent));
    other_lives && !(all_taken && now - stream.ended > LAST_CALL)
}
