//! Packets of agents' sockets, both ways: the last word on what leaves, and the copy of what is said.
//!
//! The verdict that connect(2) was given is looked at again for each packet, cheaply: same generation of policy, same
//! destination, not expired. Otherwise it is decided anew, from the packet's own header, which also covers sockets that
//! were opened before their cgroup was tagged and answers to connections from outside.
//!
//! A TCP segment with payload, SYN, FIN or RST is copied to the payload ring. One that finds no room is dropped, so that
//! TCP sends it again when there is some (`overload = "backpressure"`): nothing is ever said that was not written down.
//!
//! Rows of a long transfer are the exception: where the daemon has released a connection for it, they are counted instead of copied
//! (`frames`).

use core::mem::MaybeUninit;
use core::ptr::read_volatile;

use auditor_common::bulk::{self, Way};
use auditor_common::control::{Control, OVERLOAD_RECORD_LOSS};
use auditor_common::counter::{
    SITE_LEASE, SITE_PACKET_HEADERS, SITE_PACKET_LENGTH, SITE_PACKET_PAYLOAD, errno,
};
use auditor_common::endpoint::Endpoint;
use auditor_common::event::{EGRESS, HOOK_EGRESS, INGRESS, KIND_PACKET, KIND_SKIPPED, Packet, Skipped};
use auditor_common::packet::{
    FIN, IPV4_HEADER, Internet, RST, SYN, TCP, TCP_HEADER, UDP, UDP_HEADER, URG, ipv4, ipv6,
    is_ipv6_extension, tcp,
};
use auditor_common::rule::{ACTION_ALLOW, REASON_MALFORMED, REASON_NO_SESSION, REASON_URGENT, Verdict};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_sk_fullsock, bpf_skb_load_bytes};
use aya_ebpf::programs::SkBuffContext;

use crate::emit::Owner;
use crate::frames::{Passing, Rows, Segment, Walk};
use crate::session::SocketState;
use crate::verdict::Subject;
use crate::{emit, frames, session, verdict};

/// Largest payload of one record; longer segments become several.
const LARGEST: usize = 32768;
/// Records of [`LARGEST`] that one packet may become, beside a last one that is shorter. The kernel's limit for a super-packet
/// is GSO_MAX_SIZE, 8 * 65535 bytes (Linux 5.19, "BIG TCP"), and the loopback device uses more than 64 KiB by default.
///
/// The verifier walks each of these rounds, which is most of what loading the object takes.
const LARGEST_RECORDS: u32 = 16;

/// TCP_LISTEN of include/net/tcp_states.h, as `bpf_sock::state` has it.
const BPF_TCP_LISTEN: u32 = 10;

/// The loopback device of every network namespace (LOOPBACK_IFINDEX of include/net/flow.h).
const LOOPBACK: u32 = 1;

/// A record with room for `N` payload bytes.
#[repr(C)]
struct Slot<const N: usize> {
    packet: Packet,
    payload: [u8; N],
}

/// Whose packet it is, and when it was seen, CLOCK_BOOTTIME in nanoseconds: read once for all that is done with it.
#[derive(Clone, Copy)]
struct Stamp {
    owner: Owner,
    time: u64,
}

/// What the headers of a packet said.
struct Parsed {
    transport: u8,
    remote: Endpoint,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    /// Offset of the payload from the IP header.
    offset: u32,
    /// Payload bytes.
    length: u32,
}

impl Parsed {
    #[inline(always)]
    const fn segment(&self) -> Segment {
        Segment { offset: self.offset, length: self.length, sequence: self.sequence, flags: self.flags }
    }
}

#[inline(always)]
pub(crate) fn passes<const DIRECTION: u8>(context: &SkBuffContext) -> bool {
    let Some(control) = emit::control() else { return false };
    // SAFETY: the field may be read by programs of this type.
    let socket = unsafe { (*context.skb.skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        emit::count(SITE_PACKET_HEADERS, errno::ENOENT);
        return false;
    }
    // SAFETY: not null; answers null for request and time-wait sockets.
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() {
        emit::count(SITE_PACKET_HEADERS, errno::ENOENT);
        return false;
    }
    // Not recorded for each packet: TCP sends again and again, and nobody reads the ring.
    let now = emit::now();
    let alone = now > control.lease;
    if alone && control.fail_open == 0 {
        emit::count(SITE_LEASE, errno::ETIMEDOUT);
        return false;
    }
    // SAFETY: a full socket of this context.
    let Some(state) = (unsafe { session::state_or_attach(socket) }) else {
        // An audited cgroup, but no session: a socket that outlived its session.
        if DIRECTION == EGRESS {
            refuse_without_session(context, socket);
        }
        return false;
    };
    // What arrives is decided by nobody, so here it is that a socket which outlived its session is found out.
    if DIRECTION == INGRESS && state.generation != control.generation && !session::goes_on(state) {
        return false;
    }
    // SAFETY: a full socket of this context, whose fields may be read.
    let listens = unsafe { (*socket).state } == BPF_TCP_LISTEN;
    if DIRECTION == EGRESS && state.held.waits != 0 && !listens && !release(context, state, control, now) {
        return false;
    }
    let Some(parsed) = parse::<DIRECTION>(context) else {
        emit::count(SITE_PACKET_HEADERS, errno::EINVAL);
        if DIRECTION == EGRESS {
            let subject = subject(context, socket, state.owner(), Endpoint::v6([0; 16], 0));
            verdict::record_refusal(&subject, &Verdict::refuse(REASON_MALFORMED));
        }
        return false;
    };
    // A listening socket stands in for its connections until they are established.
    let remembers = parsed.transport == TCP && !listens;
    if DIRECTION == EGRESS && !may_leave(context, socket, state, &parsed, remembers, control, now) {
        return false;
    }
    if listens {
        // Data on the last segment of a handshake would be booked on the listening socket. Without it, TCP sends it again,
        // to the connection.
        return parsed.length == 0;
    }
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    let way = Way { cookie, direction: u32::from(DIRECTION), _padding: 0 };
    if parsed.transport == TCP && parsed.flags & SYN != 0 {
        state.begin::<DIRECTION>(now);
    }
    let segment = parsed.segment();
    let is_long = state.passed_alone::<DIRECTION>() >= bulk::LONG;
    // SAFETY: a part of the socket's state, or this processor's own; nobody else has it in hand, see [`frames::Walk`].
    let Some(walk) = (unsafe { state.walk::<DIRECTION>().as_mut() }) else { return false };
    let walked = parsed.transport == TCP
        && state.frames::<DIRECTION>().follow::<DIRECTION>(context, &way, &segment, (is_long, now), walk);
    let told = parsed.transport == TCP && (parsed.length != 0 || parsed.flags & (SYN | FIN | RST) != 0);
    let lossless = is_lossless(control, now);
    // A reset is sent once.
    let comes_again = told && parsed.flags & RST == 0;
    if comes_again && lossless && state.frames::<DIRECTION>().refuses(parsed.sequence, now) {
        emit::count_held_back::<DIRECTION>(state.owner());
        return false;
    }
    // SAFETY: the field may be read by programs of this type.
    let is_sure = DIRECTION == INGRESS || unsafe { (*context.skb.skb).ifindex } == LOOPBACK;
    let countable = walked && is_long && is_sure && parsed.flags & URG == 0;
    let rows = if countable && walk.rows.end >= bulk::LEAST && frames::are_released(&way) {
        walk.rows.end
    } else {
        0
    };
    let awaited = walked || comes_again && is_long && frames::are_released(&way);
    let Passing { rows, walked, told, awaited, .. } =
        walk.decide(Passing { rows, walked, told, awaited, _padding: 0 });
    let walk = if walked { Some(&*walk) } else { None };
    if told && !copy::<DIRECTION>(context, state, (now, &way), &parsed, (rows, walk), control) && lossless {
        if awaited {
            state.frames::<DIRECTION>().refuse(&segment, walk, now);
        }
        return false;
    }
    if DIRECTION == EGRESS {
        state.sent += u64::from(parsed.length);
        if parsed.length != 0 {
            state.asked = state.received as u32;
        }
    } else {
        state.received += u64::from(parsed.length);
        if parsed.length != 0 {
            state.answered = state.sent as u32;
        }
    }
    if parsed.transport == TCP && parsed.length != 0 {
        // Only now: a packet that is refused comes again.
        state.frames::<DIRECTION>().pass(&segment, walk);
    }
    true
}

/// Whether what finds no room in the rings is held back.
#[inline(always)]
fn is_lossless(control: &Control, now: u64) -> bool {
    control.overload != OVERLOAD_RECORD_LOSS && now <= control.lease
}

/// Lets a connection go on whose decision was held back, if it can be recorded now.
#[inline(always)]
fn release(context: &SkBuffContext, state: &mut SocketState, control: &Control, now: u64) -> bool {
    if !session::goes_on(state) {
        return false;
    }
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    if verdict::record_held(state, cookie) {
        return true;
    }
    if is_lossless(control, now) {
        emit::count_held_back::<EGRESS>(state.owner());
        return false;
    }
    emit::count_attempt(state.owner());
    state.held.waits = 0;
    true
}

#[inline(always)]
fn may_leave(
    context: &SkBuffContext,
    socket: *mut bpf_sock,
    state: &mut SocketState,
    parsed: &Parsed,
    remembers: bool,
    control: &Control,
    now: u64,
) -> bool {
    // A reset may leave: it ends a connection that waits in vain for its urgent data, and carries none.
    if parsed.flags & (URG | RST) == URG {
        let subject = subject(context, socket, state.owner(), parsed.remote);
        verdict::record_refusal(&subject, &Verdict::refuse(REASON_URGENT));
        return false;
    }
    let known = remembers && state.generation == control.generation && state.remote == parsed.remote;
    if known && (state.expires == 0 || state.expires > now) {
        return state.action == ACTION_ALLOW;
    }
    let (verdict, table) = verdict::on(state, parsed.transport, parsed.remote);
    if remembers {
        verdict::remember(state, &verdict, parsed.remote, control.generation);
    }
    if verdict.allows() {
        return true;
    }
    let mut subject = subject(context, socket, state.owner(), parsed.remote);
    subject.table = table;
    verdict::record_refusal(&subject, &verdict);
    false
}

#[inline(always)]
fn refuse_without_session(context: &SkBuffContext, socket: *mut bpf_sock) {
    let remote = parse::<EGRESS>(context).map_or(Endpoint::v6([0; 16], 0), |parsed| parsed.remote);
    let subject = subject(context, socket, Owner::NOBODY, remote);
    verdict::record_refusal(&subject, &Verdict::refuse(REASON_NO_SESSION));
}

#[inline(always)]
fn subject(context: &SkBuffContext, socket: *mut bpf_sock, owner: Owner, remote: Endpoint) -> Subject {
    // SAFETY: `socket` is a full socket of this context, whose fields may be read; the helper takes the context.
    unsafe {
        Subject {
            owner,
            cookie: bpf_get_socket_cookie(context.as_ptr()),
            remote,
            table: 0,
            family: (*socket).family,
            socket_type: (*socket).type_,
            protocol: (*socket).protocol,
            hook: HOOK_EGRESS,
        }
    }
}

#[inline(always)]
fn parse<const DIRECTION: u8>(context: &SkBuffContext) -> Option<Parsed> {
    let first: u8 = context.load(0).ok()?;
    let mut internet: Internet = match first >> 4 {
        4 => ipv4(&context.load(0).ok()?)?,
        6 => ipv6(&context.load(0).ok()?)?,
        _ => return None,
    };
    // Source routes are options: such a packet goes through hops that no rule has decided.
    if DIRECTION == EGRESS && first >> 4 == 4 && internet.length != IPV4_HEADER as u32 {
        return None;
    }
    if first >> 4 == 6 {
        // Two are the most that a host's own stack puts in front of TCP or UDP.
        for _ in 0..2 {
            if !is_ipv6_extension(internet.protocol) {
                break;
            }
            let extension: [u8; 2] = context.load(internet.length as usize).ok()?;
            internet.protocol = extension[0];
            internet.length += (u32::from(extension[1]) + 1) * 8;
        }
    }
    let remote_address = if DIRECTION == EGRESS { internet.destination } else { internet.source };
    let (remote_port, sequence, acknowledgement, flags, header) = match internet.protocol {
        TCP => {
            let header: [u8; TCP_HEADER] = context.load(internet.length as usize).ok()?;
            let tcp = tcp(&header)?;
            let port = if DIRECTION == EGRESS { tcp.destination } else { tcp.source };
            (port, tcp.sequence, tcp.acknowledgement, tcp.flags, tcp.length)
        }
        UDP => {
            let header: [u8; UDP_HEADER] = context.load(internet.length as usize).ok()?;
            let [source, destination] =
                [[header[0], header[1]], [header[2], header[3]]].map(u16::from_be_bytes);
            (if DIRECTION == EGRESS { destination } else { source }, 0, 0, 0, UDP_HEADER as u32)
        }
        _ => return None,
    };
    let offset = internet.length + header;
    let length = context.len().checked_sub(offset)?;
    Some(Parsed {
        transport: internet.protocol,
        remote: Endpoint::v6(remote_address, remote_port),
        sequence,
        acknowledgement,
        flags,
        offset,
        length,
    })
}

/// Copies a segment to the ring, in as many records as it needs, without the rows that need not be copied. `false`: at least
/// one found no room, or could not be read.
#[inline(always)]
fn copy<const DIRECTION: u8>(
    context: &SkBuffContext,
    state: &mut SocketState,
    (now, way): (u64, &Way),
    parsed: &Parsed,
    (end, walk): (u32, Option<&Walk>),
    control: &Control,
) -> bool {
    let stamp = Stamp { owner: state.owner(), time: now };
    // For the verifier all ways to get here are one from here on; it would walk what follows for each.
    // SAFETY: a local variable.
    let end = unsafe { read_volatile(&raw const end) };
    if (end == 0 || end < parsed.length || parsed.flags & FIN != 0)
        && !copy_from::<DIRECTION>(context, state, stamp, way.cookie, parsed, end, control)
    {
        return false;
    }
    // The rows last: if they find no room, all of it comes again, and what was copied twice is told apart by its place.
    end == 0 || walk.is_some_and(|walk| skip::<DIRECTION>(stamp, way.cookie, parsed, &walk.rows, control))
}

/// Records rows that are not copied.
#[inline(always)]
fn skip<const DIRECTION: u8>(
    stamp: Stamp,
    cookie: u64,
    parsed: &Parsed,
    rows: &Rows,
    control: &Control,
) -> bool {
    let Some(mut segment) = emit::reserve_payload::<DIRECTION, Skipped>(stamp.owner, control) else {
        return false;
    };
    segment.entry.write(Skipped {
        header: emit::header_at(KIND_SKIPPED, stamp.owner, stamp.time),
        cookie,
        remote: parsed.remote,
        sequence: parsed.sequence,
        acknowledgement: parsed.acknowledgement,
        length: rows.end,
        first: rows.first,
        messages: rows.messages,
        body: rows.body,
        remaining: rows.remaining,
        message: rows.kind,
        direction: DIRECTION,
        _padding: [0; 6],
    });
    emit::submit_payload(segment, control);
    true
}

/// Copies what a segment holds from `begin` on.
#[inline(always)]
fn copy_from<const DIRECTION: u8>(
    context: &SkBuffContext,
    state: &mut SocketState,
    stamp: Stamp,
    cookie: u64,
    parsed: &Parsed,
    begin: u32,
    control: &Control,
) -> bool {
    let mut done = begin;
    let mut told = true;
    for _ in 0..LARGEST_RECORDS {
        if parsed.length.wrapping_sub(done) <= LARGEST as u32 {
            break;
        }
        told = record::<DIRECTION, LARGEST>(context, stamp, cookie, parsed, done, LARGEST as u32, control);
        if !told {
            break;
        }
        done += LARGEST as u32;
    }
    let rest = parsed.length.wrapping_sub(done);
    told = told
        && match rest {
            0..=256 => record::<DIRECTION, 256>(context, stamp, cookie, parsed, done, rest, control),
            257..=1024 => record::<DIRECTION, 1024>(context, stamp, cookie, parsed, done, rest, control),
            1025..=2048 => record::<DIRECTION, 2048>(context, stamp, cookie, parsed, done, rest, control),
            2049..=4096 => record::<DIRECTION, 4096>(context, stamp, cookie, parsed, done, rest, control),
            4097..=16384 => record::<DIRECTION, 16384>(context, stamp, cookie, parsed, done, rest, control),
            16385..=32768 => {
                record::<DIRECTION, LARGEST>(context, stamp, cookie, parsed, done, rest, control)
            }
            _ => {
                emit::count(SITE_PACKET_LENGTH, errno::EMSGSIZE);
                false
            }
        };
    if !told && parsed.length.wrapping_sub(begin) > LARGEST as u32 {
        state.frames::<DIRECTION>().tell(parsed.sequence.wrapping_add(parsed.length));
    }
    told
}

#[inline(always)]
fn record<const DIRECTION: u8, const N: usize>(
    context: &SkBuffContext,
    stamp: Stamp,
    cookie: u64,
    parsed: &Parsed,
    done: u32,
    length: u32,
    control: &Control,
) -> bool {
    let Some(mut segment) = emit::reserve_payload::<DIRECTION, Slot<N>>(stamp.owner, control) else {
        return false;
    };
    let slot: *mut Slot<N> = MaybeUninit::as_mut_ptr(&mut segment.entry);
    // SAFETY: the reservation is exactly one slot; the record's fields are all written here, in place.
    unsafe {
        (&raw mut (*slot).packet).write(Packet {
            header: emit::header_at(KIND_PACKET, stamp.owner, stamp.time),
            cookie,
            remote: parsed.remote,
            sequence: parsed.sequence.wrapping_add(done),
            acknowledgement: parsed.acknowledgement,
            length,
            captured: length,
            flags: parsed.flags,
            direction: DIRECTION,
            _padding: [0; 2],
        });
    }
    if length != 0 {
        // The compiler knows that `length` fits and would leave the check out; the verifier does not know:
        // "R4 unbounded memory access, use 'var &= const' or 'if (var < const)'".
        // SAFETY: a local variable.
        let bounded = unsafe { read_volatile(&raw const length) };
        if bounded == 0 || bounded > N as u32 {
            segment.entry.discard(0);
            return false;
        }
        // SAFETY: `bounded` is at most N, which is the room behind the pointer.
        let result = unsafe {
            bpf_skb_load_bytes(
                context.as_ptr(),
                parsed.offset + done,
                (&raw mut (*slot).payload).cast(),
                bounded,
            )
        };
        if result != 0 {
            emit::count(SITE_PACKET_PAYLOAD, errno::EFAULT);
            segment.entry.discard(0);
            return false;
        }
    }
    emit::submit_payload(segment, control);
    true
}
