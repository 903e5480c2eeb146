//! connect(2) and sendmsg(2) with a destination: the verdict in the context of the task that asks.

use auditor_common::endpoint::Endpoint;
use auditor_common::event::{HOOK_CONNECT, HOOK_SENDMSG};
use auditor_common::packet::{TCP, UDP};
use auditor_common::rule::{ACTION_ALLOW, REASON_NO_SESSION, REASON_SOCKET_TYPE, Verdict};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::programs::SockAddrContext;

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
    let mut subject = Subject { session: 0, cookie, remote, table: 0, family, socket_type, protocol, hook };
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
        verdict::record(&subject, &Verdict::refuse(REASON_NO_SESSION));
        return false;
    };
    subject.session = state.session;
    if protocol != u32::from(TCP) && protocol != u32::from(UDP) {
        verdict::record(&subject, &Verdict::refuse(REASON_SOCKET_TYPE));
        return false;
    }
    // One record for a destination that an unconnected socket sends to again and again, one for each refusal.
    let known = hook == HOOK_SENDMSG
        && state.generation == control.generation
        && state.action == ACTION_ALLOW
        && state.remote == remote
        && (state.expires == 0 || state.expires > emit::now());
    if known {
        return true;
    }
    let (verdict, table) = verdict::on(state, protocol as u8, remote, control.generation);
    subject.table = table;
    verdict::record(&subject, &verdict);
    verdict.allows()
}
