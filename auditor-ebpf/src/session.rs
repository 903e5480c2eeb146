//! Whose socket, whose task: sessions by cgroup, and the state that travels with each socket.
//!
//! A session is a cgroup. A task belongs to the nearest of its ancestors that is one. A socket is given its session when
//! it is made (sk_storage, cloned when a connection is accepted), so that packet hooks need one look-up and never ask
//! `current`, which in softirq is somebody else. A socket without state (made before its cgroup was tagged) gets it at
//! its first packet, from the cgroup that the kernel keeps with the socket: the one that it was made in. A socket that was
//! made outside and handed to an agent stays outside; the hooks never see it.

use core::ptr;

use auditor_common::control::{MAX_CGROUP_DEPTH, Session};
use auditor_common::counter::{SITE_SOCKET_STORAGE, errno};
use auditor_common::endpoint::Endpoint;
use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type, bpf_sock};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_sk_ancestor_cgroup_id, bpf_sk_storage_get,
};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::HashMap;

use crate::emit::{self, Owner};

/// Sessions by cgroup id. Written by the daemon only.
#[map]
static SESSIONS: HashMap<u64, Session> = HashMap::with_max_entries(16384, 0);

/// BPF_F_NO_PREALLOC, which the map type demands, and BPF_F_CLONE.
const STORAGE_FLAGS: usize = 1 | 512;

/// Definition of a socket storage map that is cloned to accepted sockets. aya's own has the flags fixed without that.
#[repr(C)]
struct SocketStorage {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const SocketState,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; STORAGE_FLAGS],
}

// SAFETY: the fields are placeholders that the loader replaces; nothing reads them.
unsafe impl Sync for SocketStorage {}

#[btf_map]
static SOCKETS: SocketStorage = SocketStorage {
    r#type: ptr::null(),
    key: ptr::null(),
    value: ptr::null(),
    max_entries: ptr::null(),
    map_flags: ptr::null(),
};

/// What the programs know of a socket.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SocketState {
    /// Session's number; 0: none is known.
    pub(crate) session: u64,
    /// The session's cgroup: key of [`SESSIONS`].
    pub(crate) cgroup: u64,
    /// Until when the verdict holds, CLOCK_BOOTTIME in nanoseconds; 0: no end.
    pub(crate) expires: u64,
    /// Payload bytes that passed on the way out.
    pub(crate) sent: u64,
    /// Payload bytes that passed on the way in.
    pub(crate) received: u64,
    /// Generation of policy that the verdict is of; 0: none yet.
    pub(crate) generation: u32,
    /// The verdict's action.
    pub(crate) action: u32,
    /// The destination that was decided.
    pub(crate) remote: Endpoint,
    /// Whether sockops will tell of the connection's end.
    pub(crate) watched: u32,
    /// UDP: destinations of which a record was written in this generation, the last few. Only to write each once: a verdict is
    /// never taken from here.
    pub(crate) recorded: [Endpoint; DESTINATIONS],
    /// UDP: where the next one goes.
    pub(crate) next_recorded: u32,
    /// The session's share of the rings.
    pub(crate) share: u32,
}
const _: () = assert!(size_of::<SocketState>() == 160);

/// UDP destinations that a socket remembers.
pub(crate) const DESTINATIONS: usize = 4;

impl SocketState {
    #[inline(always)]
    pub(crate) fn of(session: &Found) -> Self {
        Self {
            session: session.id,
            cgroup: session.cgroup,
            expires: 0,
            sent: 0,
            received: 0,
            generation: 0,
            action: 0,
            remote: Endpoint::v6([0; 16], 0),
            watched: 0,
            recorded: [Endpoint::v6([0; 16], 0); DESTINATIONS],
            next_recorded: 0,
            share: session.share,
        }
    }

    /// Whose its records are.
    #[inline(always)]
    pub(crate) fn owner(&self) -> Owner {
        Owner { session: self.session, share: self.share }
    }
}

/// A session that was found, and by which cgroup.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) id: u64,
    pub(crate) cgroup: u64,
    pub(crate) share: u32,
}

impl Found {
    /// Whose its records are.
    #[inline(always)]
    pub(crate) fn owner(&self) -> Owner {
        Owner { session: self.id, share: self.share }
    }
}

/// Whether the caller is the daemon.
#[inline(always)]
pub(crate) fn current_is_daemon() -> bool {
    emit::control().is_some_and(|control| (bpf_get_current_pid_tgid() >> 32) as u32 == control.daemon)
}

/// The session of a cgroup id.
#[inline(always)]
pub(crate) fn by_cgroup(cgroup: u64) -> Option<&'static Session> {
    // SAFETY: the daemon replaces whole values; a reader that meets a replacement sees the old or the new one, because
    // htab_map_update_elem puts a new element in front of the old one and frees that after a grace period.
    unsafe { SESSIONS.get(cgroup) }
}

/// The session of the calling task.
#[inline(always)]
pub(crate) fn of_current() -> Option<Found> {
    nearest(
        #[inline(always)]
        // SAFETY: the helper takes a number and answers 0 for a level that does not exist (Linux 5.6).
        |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) },
    )
}

/// The session of the cgroup that the socket was made in.
#[inline(always)]
fn of_socket(socket: *mut bpf_sock) -> Option<Found> {
    nearest(
        #[inline(always)]
        // SAFETY: `socket` is a full socket that the caller holds; the helper answers 0 for a level that does not exist
        // (Linux 5.7).
        |level| unsafe { bpf_sk_ancestor_cgroup_id(socket.cast(), level) },
    )
}

#[inline(always)]
fn nearest(ancestor: impl Fn(i32) -> u64) -> Option<Found> {
    // Not an Option that is set in the loop: its undefined fields are moved about before it is set, which the verifier
    // refuses ("R6 !read_ok").
    let mut found = Found { id: 0, cgroup: 0, share: 0 };
    // Level 0 is the root of the hierarchy, which is never a session.
    let mut level = 1;
    while level <= MAX_CGROUP_DEPTH as i32 {
        let cgroup = ancestor(level);
        if cgroup == 0 {
            break;
        }
        if let Some(session) = by_cgroup(cgroup) {
            found = Found { id: session.id, cgroup, share: session.share };
        }
        level += 1;
    }
    if found.id == 0 { None } else { Some(found) }
}

/// The state of a socket, if it has one.
///
/// # Safety
/// `socket` must be a socket pointer of the running program's context that was checked for null.
#[inline(always)]
pub(crate) unsafe fn state(socket: *mut bpf_sock) -> Option<&'static mut SocketState> {
    // SAFETY: the map is a socket storage map, the socket is the caller's promise; without the flag nothing is made.
    unsafe {
        bpf_sk_storage_get(ptr::addr_of!(SOCKETS).cast_mut().cast(), socket.cast(), ptr::null_mut(), 0)
            .cast::<SocketState>()
            .as_mut()
    }
}

/// Makes the state of a socket.
///
/// # Safety
/// As for [`state`].
#[inline(always)]
pub(crate) unsafe fn attach(socket: *mut bpf_sock, session: &Found) -> Option<&'static mut SocketState> {
    let mut initial = SocketState::of(session);
    // SAFETY: as in `state`; `initial` is copied by the helper.
    let made = unsafe {
        bpf_sk_storage_get(
            ptr::addr_of!(SOCKETS).cast_mut().cast(),
            socket.cast(),
            ptr::from_mut(&mut initial).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
        .cast::<SocketState>()
        .as_mut()
    };
    if made.is_none() {
        emit::count(SITE_SOCKET_STORAGE, errno::ENOMEM);
    }
    made
}

/// The state of a full socket, made from its cgroup's session where there is none yet.
///
/// # Safety
/// As for [`state`], and `socket` must be a full socket (`bpf_sk_fullsock`).
#[inline(always)]
pub(crate) unsafe fn state_or_attach(socket: *mut bpf_sock) -> Option<&'static mut SocketState> {
    // SAFETY: the caller's promise is the same.
    if let Some(state) = unsafe { state(socket) } {
        return Some(state);
    }
    let session = of_socket(socket)?;
    // SAFETY: the caller's promise is the same.
    unsafe { attach(socket, &session) }
}
