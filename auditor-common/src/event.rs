//! Records on the rings. Each begins with a [`Header`]; `kind` tells which one it is.

use crate::endpoint::Endpoint;
use crate::rule::Verdict;

/// [`Packet`], on the payload ring, followed by the captured bytes.
pub const KIND_PACKET: u32 = 1;
/// [`Decision`]: a destination was decided.
pub const KIND_DECISION: u32 = 2;
/// [`Established`]: a TCP connection was established.
pub const KIND_ESTABLISHED: u32 = 3;
/// [`Closed`]: a socket that had a decision or a connection is gone, with the kernel's own byte counts.
pub const KIND_CLOSED: u32 = 4;
/// [`Exec`]: a process executed a program.
pub const KIND_EXEC: u32 = 5;
/// [`Fork`]: a process was created.
pub const KIND_FORK: u32 = 6;
/// [`Exit`]: a process ended.
pub const KIND_EXIT: u32 = 7;
/// [`Moved`]: a process came into a session's cgroup, or left one.
pub const KIND_MOVED: u32 = 8;
/// [`Skipped`], on the payload ring: bytes that passed and were not copied.
pub const KIND_SKIPPED: u32 = 9;
/// [`crate::unix::UnixDecision`]: a unix socket's destination was decided.
pub const KIND_UNIX: u32 = 20;

/// What every record begins with.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Header {
    /// One of the `KIND_*` constants.
    pub kind: u32,
    /// Entry of [`crate::share::Share`] that the record's bytes are charged to.
    pub share: u32,
    /// CLOCK_BOOTTIME in nanoseconds.
    pub time: u64,
    /// [`crate::control::Session::id`]; 0 where the kernel knew none.
    pub session: u64,
}
crate::assert_layout!(Header, size = 24, align = 8);

/// The task that made a call. Only records from hooks in the caller's own context have one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Task {
    /// Process id (thread group) in the initial PID namespace; 0: not known.
    pub pid: u32,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Real group id in the initial user namespace.
    pub gid: u32,
    /// Name of the thread, padded with NUL.
    pub comm: [u8; 16],
}
crate::assert_layout!(Task, size = 32, align = 4);

/// connect(2).
pub const HOOK_CONNECT: u8 = 1;
/// sendto(2), sendmsg(2) with a destination.
pub const HOOK_SENDMSG: u8 = 2;
/// socket(2).
pub const HOOK_SOCKET: u8 = 3;
/// A packet on its way out.
pub const HOOK_EGRESS: u8 = 4;

/// A destination, or a socket's type, was decided.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Decision {
    /// `kind` is [`KIND_DECISION`].
    pub header: Header,
    /// Socket cookie.
    pub cookie: u64,
    /// The caller; `pid` is 0 for [`HOOK_EGRESS`], where `current` may be anyone.
    pub task: Task,
    /// What was decided, and by which rule.
    pub verdict: Verdict,
    /// The destination as the caller gave it; port and address zero for [`HOOK_SOCKET`].
    pub remote: Endpoint,
    /// The compiled policy that decided; 0 where there was none.
    pub table: u32,
    /// Address family (2 AF_INET, 10 AF_INET6).
    pub family: u32,
    /// Socket type (1 SOCK_STREAM, 2 SOCK_DGRAM, 3 SOCK_RAW …).
    pub socket_type: u32,
    /// IP protocol number; 262 is IPPROTO_MPTCP.
    pub protocol: u32,
    /// One of the `HOOK_*` constants.
    pub hook: u8,
    /// Padding.
    pub _padding: [u8; 3],
}
crate::assert_layout!(Decision, size = 128, align = 8);

/// A TCP connection was established (BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Established {
    /// `kind` is [`KIND_ESTABLISHED`].
    pub header: Header,
    /// Socket cookie.
    pub cookie: u64,
    /// This end.
    pub local: Endpoint,
    /// The other end.
    pub remote: Endpoint,
    /// First sequence number that this end will send, as far as nothing was sent yet.
    pub send_next: u32,
    /// First sequence number that the other end will send.
    pub receive_next: u32,
    /// bytes_acked at this moment: what the handshake itself counted (RFC 4898).
    pub bytes_acked: u64,
    /// bytes_received at this moment.
    pub bytes_received: u64,
    /// 1 where the other end connected to this one.
    pub passive: u32,
    /// Padding.
    pub _padding: u32,
}
crate::assert_layout!(Established, size = 104, align = 8);

/// A TCP connection, or an attempt at one, came to its end.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Closed {
    /// `kind` is [`KIND_CLOSED`].
    pub header: Header,
    /// Socket cookie.
    pub cookie: u64,
    /// This end.
    pub local: Endpoint,
    /// The other end.
    pub remote: Endpoint,
    /// Bytes that the other end acknowledged, with one each for SYN and FIN where those were (RFC 4898).
    pub bytes_acked: u64,
    /// Bytes received in order, with one for FIN (RFC 4898).
    pub bytes_received: u64,
    /// Smoothed round-trip time in microseconds.
    pub round_trip_us: u32,
    /// TCP state before the end (1 ESTABLISHED, 2 SYN_SENT …).
    pub old_state: u32,
    /// Segments sent again.
    pub retransmits: u32,
    /// IP protocol number.
    pub protocol: u32,
    /// Payload bytes that passed the egress hook, every transmission counted (UDP: the only count there is).
    pub sent: u64,
    /// Payload bytes that passed the ingress hook.
    pub received: u64,
}
crate::assert_layout!(Closed, size = 120, align = 8);

/// The segment leaves this host.
pub const EGRESS: u8 = 0;
/// The segment arrives.
pub const INGRESS: u8 = 1;

/// A TCP segment, or a part of one: a segment longer than the largest record becomes several, each with its own sequence
/// number.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    /// `kind` is [`KIND_PACKET`].
    pub header: Header,
    /// Socket cookie.
    pub cookie: u64,
    /// The other end.
    pub remote: Endpoint,
    /// Sequence number of the first payload byte, or of SYN.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Payload bytes in this part, as the network has them.
    pub length: u32,
    /// Payload bytes that follow this record; the rest of the ring slot is undefined.
    pub captured: u32,
    /// TCP flags byte (FIN 0x01, SYN 0x02, RST 0x04, PSH 0x08, ACK 0x10, URG 0x20).
    pub flags: u8,
    /// [`EGRESS`] or [`INGRESS`].
    pub direction: u8,
    /// Padding.
    pub _padding: [u8; 2],
}
crate::assert_layout!(Packet, size = 72, align = 8);

/// A part of a TCP segment that holds rows of a PostgreSQL server's answer, or CopyData of a client's, and was not copied, because the daemon
/// has asked for that: only where its messages begin and end was looked at.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Skipped {
    /// `kind` is [`KIND_SKIPPED`].
    pub header: Header,
    /// Socket cookie.
    pub cookie: u64,
    /// The other end.
    pub remote: Endpoint,
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Bytes, never zero.
    pub length: u32,
    /// Bytes at the beginning that belong to the body of the message under way there.
    pub first: u32,
    /// Messages whose header lies within.
    pub messages: u32,
    /// Body bytes of the last of these messages, also those behind this part; 0 where there is none.
    pub body: u32,
    /// Body bytes of the last message that are still to come behind this part.
    pub remaining: u32,
    /// Type byte of all messages within, the one under way at the beginning included: `D` or `d`.
    pub message: u8,
    /// [`EGRESS`] or [`INGRESS`].
    pub direction: u8,
    /// Padding.
    pub _padding: [u8; 6],
}
crate::assert_layout!(Skipped, size = 88, align = 8);

/// Bytes of the path in [`Exec`], including the terminating NUL.
pub const EXEC_PATH_BYTES: usize = 256;

/// A process executed a program (tracepoint sched/sched_process_exec).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Exec {
    /// `kind` is [`KIND_EXEC`].
    pub header: Header,
    /// The process, with its new name.
    pub task: Task,
    /// The path that was executed, NUL-terminated, cut at the end.
    pub path: [u8; EXEC_PATH_BYTES],
}
crate::assert_layout!(Exec, size = 56 + EXEC_PATH_BYTES, align = 8);

/// A process or a thread was created (raw tracepoint sched_process_fork).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Fork {
    /// `kind` is [`KIND_FORK`].
    pub header: Header,
    /// The parent.
    pub task: Task,
    /// Task id of the child in the initial PID namespace.
    pub child: u32,
    /// Padding.
    pub _padding: u32,
}
crate::assert_layout!(Fork, size = 64, align = 8);

/// A process ended with its last thread; before Linux 6.16, its first thread did (tracepoint sched/sched_process_exit).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Exit {
    /// `kind` is [`KIND_EXIT`].
    pub header: Header,
    /// The process.
    pub task: Task,
}
crate::assert_layout!(Exit, size = 56, align = 8);

/// Bytes of the path in [`Moved`], including the terminating NUL.
pub const CGROUP_PATH_BYTES: usize = 256;

/// A process was moved into a session, or out of one (raw tracepoint cgroup_attach_task), or was born elsewhere than its parent lives
/// (clone3(2), CLONE_INTO_CGROUP).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Moved {
    /// `kind` is [`KIND_MOVED`]. `session` is the one that it left; where there is none, the one that it came into.
    pub header: Header,
    /// Who moved it, or its parent.
    pub task: Task,
    /// The session that it belonged to, or its parent does; 0: none.
    pub from: u64,
    /// The session that it belongs to now; 0: none.
    pub to: u64,
    /// Process id (thread group) in the initial PID namespace of what was moved.
    pub moved: u32,
    /// 1: it was born there; then `path` is the name of the cgroup alone.
    pub born: u32,
    /// Where it is now: path in the cgroup2 hierarchy, NUL-terminated, cut at the end.
    pub path: [u8; CGROUP_PATH_BYTES],
}
crate::assert_layout!(Moved, size = 80 + CGROUP_PATH_BYTES, align = 8);
