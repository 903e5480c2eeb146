//! connect(2) and sendmsg(2) with a destination: the verdict in the context of the task that asks.

use auditor_common::control::OVERLOAD_RECORD_LOSS;
use auditor_common::endpoint::Endpoint;
use auditor_common::event::{HOOK_CONNECT, HOOK_SENDMSG};
use auditor_common::packet::{TCP, UDP};
use auditor_common::rule::{REASON_LEASE, REASON_NO_SESSION, REASON_SOCKET_TYPE, Verdict};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::programs::SockAddrContext;

use crate::emit::Owner;
use crate::session::{DESTINATIONS, SocketState};
use crate::verdict::Subject;
use crate::{emit, session, verdict};

pub(crate) fn connect4(context: &SockAddrContext) -> bool {
    decide(context, v4(context.sock_addr), HOOK_CONNECT)
}

pub(crate) fn connect6(context: &SockAddrContext) -> bool {
    decide(context, v6(context.sock_addr), HOOK_CONNECT)
}

pub(crate) fn sendmsg4(context: &SockAddrContext) -> bool {
    decide(context, v4(context.sock_addr), HOOK_SENDMSG)
}

pub(crate) fn sendmsg6(context: &SockAddrContext) -> bool {
    decide(context, v6(context.sock_addr), HOOK_SENDMSG)
}

#[inline(always)]
fn v4(address: *mut bpf_sock_addr) -> Endpoint {
    // SAFETY: the kernel gives a valid context; both fields may be read by programs of this type. They are in network
    // byte order, the port in the low half.
    unsafe { Endpoint::v4((*address).user_ip4.to_ne_bytes(), u16::from_be((*address).user_port as u16)) }
}

#[inline(always)]
fn v6(address: *mut bpf_sock_addr) -> Endpoint {
    // Word by word with volatile reads. Anything that lets the compiler form a pointer into the context meets
    // "dereference of modified ctx ptr R1 off=8 disallowed".
    // SAFETY: as in `v4`.
    unsafe {
        let words = [
            core::ptr::read_volatile(&raw const (*address).user_ip6[0]),
            core::ptr::read_volatile(&raw const (*address).user_ip6[1]),
            core::ptr::read_volatile(&raw const (*address).user_ip6[2]),
            core::ptr::read_volatile(&raw const (*address).user_ip6[3]),
        ];
        Endpoint::v6(from_words(words), u16::from_be((*address).user_port as u16))
    }
}

/// Four words in network byte order, as the context has them, to sixteen bytes.
#[inline(always)]
pub(crate) fn from_words(words: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = words.map(u32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

#[inline(always)]
fn decide(context: &SockAddrContext, remote: Endpoint, hook: u8) -> bool {
    let address = context.sock_addr;
    // SAFETY: the kernel gives a valid context; these fields may be read by programs of this type.
    let (socket, family, socket_type, protocol) =
        unsafe { ((*address).__bindgen_anon_1.sk, (*address).family, (*address).type_, (*address).protocol) };
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    let mut subject =
        Subject { owner: Owner::NOBODY, cookie, remote, table: 0, family, socket_type, protocol, hook };
    let Some(control) = emit::control() else { return false };
    if socket.is_null() {
        return false;
    }
    // SAFETY: `socket` is the context's and not null.
    let state = match unsafe { session::state(socket) } {
        Some(state) => Some(state),
        // Made before its cgroup was tagged: it is the caller's now.
        // SAFETY: as above.
        None => session::of_current().and_then(|found| unsafe { session::attach(socket, &found) }),
    };
    let Some(state) = state else {
        verdict::record_refusal(&subject, &Verdict::refuse(REASON_NO_SESSION));
        return false;
    };
    // The socket is used for another one.
    verdict::give_up_held(state);
    subject.owner = state.owner();
    if protocol != u32::from(TCP) && protocol != u32::from(UDP) {
        verdict::record_refusal(&subject, &Verdict::refuse(REASON_SOCKET_TYPE));
        return false;
    }
    let alone = emit::now() > control.lease;
    if alone && control.fail_open == 0 {
        verdict::record_refusal(&subject, &Verdict::refuse(REASON_LEASE));
        return false;
    }
    let (verdict, table) = verdict::on(state, protocol as u8, remote);
    subject.owner = state.owner();
    subject.table = table;
    if !verdict.allows() {
        if protocol == u32::from(TCP) {
            verdict::remember(state, &verdict, remote, control.generation);
        }
        verdict::record_refusal(&subject, &verdict);
        return false;
    }
    if protocol == u32::from(UDP) && is_recorded(state, remote, control.generation) {
        return true;
    }
    // What is allowed without a record would be a connection that nobody knows of.
    let must_be_recorded = control.overload != OVERLOAD_RECORD_LOSS && !alone;
    let recorded = verdict::record(&subject, &verdict);
    if !recorded {
        if must_be_recorded && protocol == u32::from(TCP) {
            verdict::hold(state, &subject, &verdict);
            return true;
        }
        emit::count_attempt(subject.owner);
        if must_be_recorded {
            return false;
        }
    }
    if protocol == u32::from(TCP) {
        verdict::remember(state, &verdict, remote, control.generation);
    } else if recorded {
        mark_recorded(state, remote, control.generation);
    }
    true
}

/// Whether a UDP socket's use of a destination was recorded in this generation of policy.
#[inline(always)]
fn is_recorded(state: &SocketState, remote: Endpoint, generation: u32) -> bool {
    if state.generation != generation {
        return false;
    }
    let mut index = 0;
    while index < DESTINATIONS {
        if state.recorded[index] == remote {
            return true;
        }
        index += 1;
    }
    false
}

/// Two processors may mark at once; then a destination is recorded once more.
#[inline(always)]
fn mark_recorded(state: &mut SocketState, remote: Endpoint, generation: u32) {
    if state.generation != generation {
        state.generation = generation;
        state.recorded = [Endpoint::v6([0; 16], 0); DESTINATIONS];
    }
    state.recorded[state.next_recorded as usize % DESTINATIONS] = remote;
    state.next_recorded = state.next_recorded.wrapping_add(1);
    state.remote = remote;
}
