//! TCP connections: established and closed, with the kernel's own byte counts (sockops).

use core::mem::MaybeUninit;
use core::ptr::read_volatile;

use auditor_common::counter::SITE_SOCKOPS_FLAGS;
use auditor_common::endpoint::Endpoint;
use auditor_common::event::{Closed, Established, KIND_CLOSED, KIND_ESTABLISHED};
use auditor_common::packet::TCP;
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::programs::SockOpsContext;

use crate::connect::from_words;
use crate::emit::{self, Owner, Sort, Wake};
use crate::session::{self, SocketState};
use crate::verdict;

const AF_INET: u32 = 2;
const BPF_TCP_CLOSE: u32 = 7;
const BPF_TCP_LISTEN: u32 = 10;

pub(crate) fn operation(context: &SockOpsContext) {
    match context.op() {
        // The first moment of a connection of this side: from here on its end is told, also if it is never established.
        BPF_SOCK_OPS_TCP_CONNECT_CB => watch_state(context),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(context, 0),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            watch_state(context);
            established(context, 1);
        }
        BPF_SOCK_OPS_STATE_CB if context.arg(1) == BPF_TCP_CLOSE => closed(context),
        _ => {}
    }
}

#[inline(always)]
fn watch_state(context: &SockOpsContext) {
    if let Err(error) = context.set_cb_flags((context.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32) {
        emit::count(SITE_SOCKOPS_FLAGS, error.unsigned_abs());
    } else if let Some(state) = state(context.ops) {
        state.watched = 1;
    }
}

#[inline(always)]
fn state(ops: *mut bpf_sock_ops) -> Option<&'static mut SocketState> {
    // SAFETY: the field may be read by programs of this type; it is null for what is no full socket.
    let socket = unsafe { (*ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    // SAFETY: the context's socket, not null.
    unsafe { session::state(socket) }
}

#[inline(always)]
fn local(ops: *mut bpf_sock_ops) -> Endpoint {
    // SAFETY: the fields may be read by programs of this type. Addresses are in network, the port in host byte order.
    unsafe {
        let port = (*ops).local_port as u16;
        if (*ops).family == AF_INET {
            return Endpoint::v4((*ops).local_ip4.to_ne_bytes(), port);
        }
        // Word by word: see `connect::v6`.
        let words = [
            read_volatile(&raw const (*ops).local_ip6[0]),
            read_volatile(&raw const (*ops).local_ip6[1]),
            read_volatile(&raw const (*ops).local_ip6[2]),
            read_volatile(&raw const (*ops).local_ip6[3]),
        ];
        Endpoint::v6(from_words(words), port)
    }
}

#[inline(always)]
fn remote(ops: *mut bpf_sock_ops) -> Endpoint {
    // SAFETY: the fields may be read by programs of this type. All are in network byte order, the port in the half that
    // comes first in memory order of a big-endian u32.
    unsafe {
        let port = u32::from_be((*ops).remote_port) as u16;
        if (*ops).family == AF_INET {
            return Endpoint::v4((*ops).remote_ip4.to_ne_bytes(), port);
        }
        let words = [
            read_volatile(&raw const (*ops).remote_ip6[0]),
            read_volatile(&raw const (*ops).remote_ip6[1]),
            read_volatile(&raw const (*ops).remote_ip6[2]),
            read_volatile(&raw const (*ops).remote_ip6[3]),
        ];
        Endpoint::v6(from_words(words), port)
    }
}

#[inline(always)]
fn established(context: &SockOpsContext, passive: u32) {
    let ops = context.ops;
    let state = state(ops);
    let owner = state.as_ref().map_or(Owner::NOBODY, |state| state.owner());
    if passive != 0
        && let Some(state) = state
    {
        state.accepted(emit::now());
    }
    // SAFETY: the helper takes the context; the fields may be read by programs of this type.
    let (cookie, send_next, receive_next, bytes_acked, bytes_received) = unsafe {
        (
            bpf_get_socket_cookie(context.as_ptr()),
            (*ops).snd_nxt,
            (*ops).rcv_nxt,
            (*ops).bytes_acked,
            (*ops).bytes_received,
        )
    };
    emit::lifecycle(
        Sort::Connection,
        Wake::InTime,
        owner,
        #[inline(always)]
        |place: &mut MaybeUninit<Established>| {
            place.write(Established {
                header: emit::header(KIND_ESTABLISHED, owner),
                cookie,
                local: local(ops),
                remote: remote(ops),
                send_next,
                receive_next,
                bytes_acked,
                bytes_received,
                passive,
                _padding: 0,
            });
        },
    );
}

#[inline(always)]
fn closed(context: &SockOpsContext) {
    let ops = context.ops;
    let old_state = context.arg(0);
    if old_state == BPF_TCP_LISTEN {
        return;
    }
    let mut state = state(ops);
    if let Some(state) = &mut state
        && state.held.waits != 0
    {
        // Nobody knows that it began, and nothing of it has left.
        verdict::give_up_held(state);
        return;
    }
    let (owner, sent, received) =
        state.map_or((Owner::NOBODY, 0, 0), |state| (state.owner(), state.sent, state.received));
    // SAFETY: the helper takes the context; the fields may be read by programs of this type.
    let (cookie, bytes_acked, bytes_received, round_trip, retransmits) = unsafe {
        (
            bpf_get_socket_cookie(context.as_ptr()),
            (*ops).bytes_acked,
            (*ops).bytes_received,
            // srtt_us holds eight times the value.
            (*ops).srtt_us >> 3,
            (*ops).total_retrans,
        )
    };
    emit::lifecycle(
        Sort::Connection,
        Wake::InTime,
        owner,
        #[inline(always)]
        |place: &mut MaybeUninit<Closed>| {
            place.write(Closed {
                header: emit::header(KIND_CLOSED, owner),
                cookie,
                local: local(ops),
                remote: remote(ops),
                bytes_acked,
                bytes_received,
                round_trip_us: round_trip,
                old_state,
                retransmits,
                protocol: TCP as u32,
                sent,
                received,
            });
        },
    );
}
