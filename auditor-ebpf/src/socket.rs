//! socket(2) and the end of a socket: which types an agent may have, and the binding of socket to session.
//!
//! Only TCP and UDP can be audited and decided, so nothing else is made: no raw sockets, no ICMP, no SCTP, and no MPTCP,
//! whose later subflows belong to no caller. Of the two, those that the policy names. This hook sees the internet families only; others are the launcher's matter.

use core::mem::MaybeUninit;

use auditor_common::control::{SOCKET_TCP, SOCKET_UDP};
use auditor_common::endpoint::Endpoint;
use auditor_common::event::{Closed, HOOK_SOCKET, KIND_CLOSED};
use auditor_common::packet::{TCP, UDP};
use auditor_common::rule::{REASON_NO_SESSION, REASON_SOCKET_TYPE, Verdict};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::programs::{SockContext, SockoptContext};

use crate::emit::{self, Owner, Sort, Wake};
use crate::verdict::Subject;
use crate::{session, verdict};

const SOL_SOCKET: i32 = 1;
const SO_INCOMING_CPU: i32 = 49;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;

pub(crate) fn created(context: &SockContext) -> bool {
    let socket = context.sock;
    // SAFETY: the context is the socket; these fields may be read by programs of this type.
    let (family, socket_type, protocol) = unsafe { ((*socket).family, (*socket).type_, (*socket).protocol) };
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    let mut subject = Subject {
        owner: Owner::NOBODY,
        cookie,
        remote: Endpoint::v6([0; 16], 0),
        table: 0,
        family,
        socket_type,
        protocol,
        hook: HOOK_SOCKET,
    };
    let Some(found) = session::of_current() else {
        verdict::record_refusal(&subject, &Verdict::refuse(REASON_NO_SESSION));
        return false;
    };
    subject.owner = found.owner();
    let kind = if socket_type == SOCK_STREAM && protocol == u32::from(TCP) {
        SOCKET_TCP
    } else if socket_type == SOCK_DGRAM && protocol == u32::from(UDP) {
        SOCKET_UDP
    } else {
        0
    };
    if found.sockets & kind == 0 {
        verdict::record_refusal(&subject, &Verdict::refuse(REASON_SOCKET_TYPE));
        return false;
    }
    // SAFETY: the context is a socket.
    unsafe { session::attach(socket, &found) }.is_some()
}

/// Whether the daemon asks with getsockopt(2), on a descriptor that it holds for that, if a socket was made in the cgroup that this
/// program is attached to, or below it. Programs of this type run by the socket's cgroup, so that they run is the answer; it is
/// given as EPERM, in place of an answer that the daemon has no use for.
pub(crate) fn is_asked_for(context: &SockoptContext) -> bool {
    // SAFETY: the kernel gives a valid context; both fields may be read by programs of this type.
    let (level, name) = unsafe { ((*context.sockopt).level, (*context.sockopt).optname) };
    level == SOL_SOCKET && name == SO_INCOMING_CPU && session::current_is_daemon()
}

/// The end of a socket, where nobody else tells of it: UDP, and TCP whose connection failed before it began (no free local
/// port, no route). A connection that began ends in sockops, with the kernel's counts.
pub(crate) fn released(context: &SockContext) {
    let socket = context.sock;
    // SAFETY: the context is the socket; the field may be read by programs of this type.
    let protocol = unsafe { (*socket).protocol };
    // SAFETY: the context is a socket.
    let Some(state) = (unsafe { session::state(socket) }) else { return };
    verdict::give_up_held(state);
    // Without a generation it never had a destination.
    if state.generation == 0 || state.watched != 0 {
        return;
    }
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    emit::lifecycle(
        Sort::Connection,
        Wake::InTime,
        state.owner(),
        #[inline(always)]
        |place: &mut MaybeUninit<Closed>| {
            place.write(Closed {
                header: emit::header(KIND_CLOSED, state.owner()),
                cookie,
                local: Endpoint::v6([0; 16], 0),
                remote: state.remote,
                bytes_acked: 0,
                bytes_received: 0,
                round_trip_us: 0,
                old_state: 0,
                retransmits: 0,
                protocol,
                sent: state.sent,
                received: state.received,
            });
        },
    );
}
