//! Whose socket, whose task: sessions by cgroup, and the state that travels with each socket.
//!
//! A session is a cgroup. A task belongs to the nearest of its ancestors that is one. A socket is given its session when
//! it is made (sk_storage, cloned when a connection is accepted), so that packet hooks need one look-up and never ask
//! `current`, which in softirq is somebody else. A socket without state (made before its cgroup was tagged) gets it at
//! its first packet, from the cgroup that the kernel keeps with the socket: the one that it was made in. A socket that was
//! made outside and handed to an agent stays outside; the hooks never see it.

use core::ptr;
use core::ptr::{read_volatile, write_volatile};

use auditor_common::control::{MAX_CGROUP_DEPTH, Session};
use auditor_common::counter::{SITE_SOCKET_STORAGE, errno};
use auditor_common::endpoint::Endpoint;
use auditor_common::event::{EGRESS, INGRESS, Task};
use auditor_common::rule::Verdict;
use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type, bpf_sock};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_sk_ancestor_cgroup_id, bpf_sk_storage_get,
};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::HashMap;

use crate::emit::{self, Owner};
use crate::frames::{self, Frames, Walk};

/// Sessions by cgroup id. Written by the daemon only, while programs read: see [`by_cgroup`].
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
    pub(crate) watched: u16,
    /// UDP: where in `recorded` the next one goes.
    pub(crate) next_recorded: u16,
    /// UDP: destinations of which a record was written in this generation, the last few. Only to write each once: a verdict is
    /// never taken from here.
    pub(crate) recorded: [Endpoint; DESTINATIONS],
    /// The session's share of the rings.
    pub(crate) share: u32,
    /// The lower half of [`Self::received`] when the last payload byte left: what came since answers it.
    pub(crate) asked: u32,
    /// The lower half of [`Self::sent`] when the last payload byte came in: what left since is a request, or a part of one.
    pub(crate) answered: u32,
    /// Where the messages that leave begin, and those that come in.
    frames_out: Frames,
    frames_in: Frames,
    /// The walk over what leaves.
    walk: Walk,
    /// TCP: a decision that has not been recorded yet.
    pub(crate) held: Held,
}
const _: () = assert!(size_of::<SocketState>() == 656);

/// What the record of a connect(2) will say that was allowed and found no room for its record, beside what the socket's state says.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Held {
    /// When connect(2) was called, CLOCK_BOOTTIME in nanoseconds.
    pub(crate) time: u64,
    pub(crate) verdict: Verdict,
    pub(crate) asker: Task,
    pub(crate) table: u32,
    pub(crate) family: u32,
    pub(crate) socket_type: u32,
    /// 1: there is such a one, and nothing leaves before it is recorded.
    pub(crate) waits: u32,
}

/// UDP destinations that a socket remembers.
pub(crate) const DESTINATIONS: usize = 4;

impl SocketState {
    /// Whose its records are.
    #[inline(always)]
    pub(crate) fn owner(&self) -> Owner {
        Owner { session: self.session, share: self.share }
    }

    /// Where the messages of a direction begin.
    #[inline(always)]
    pub(crate) fn frames<const DIRECTION: u8>(&mut self) -> &mut Frames {
        if DIRECTION == EGRESS { &mut self.frames_out } else { &mut self.frames_in }
    }

    /// A connection begins: the numbers of a direction do, and nothing has passed of a transfer.
    #[inline(always)]
    pub(crate) fn begin<const DIRECTION: u8>(&mut self, now: u64) {
        self.frames::<DIRECTION>().begin(now);
        self.asked = self.received as u32;
        self.answered = self.sent as u32;
    }

    /// A connection was accepted: what its listener's socket has been is nothing of its own.
    #[inline(always)]
    pub(crate) fn accepted(&mut self, now: u64) {
        self.begin::<EGRESS>(now);
        self.begin::<INGRESS>(now);
    }

    /// The walk over a segment; never null, but for the verifier.
    #[inline(always)]
    pub(crate) fn walk<const DIRECTION: u8>(&mut self) -> *mut Walk {
        if DIRECTION == EGRESS { &raw mut self.walk } else { frames::incoming() }
    }

    /// Payload bytes that passed in a direction since the last one in the other direction.
    #[inline(always)]
    pub(crate) fn passed_alone<const DIRECTION: u8>(&self) -> u32 {
        if DIRECTION == EGRESS {
            (self.sent as u32).wrapping_sub(self.answered)
        } else {
            (self.received as u32).wrapping_sub(self.asked)
        }
    }
}

/// A session that was found, and by which cgroup.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) id: u64,
    pub(crate) cgroup: u64,
    pub(crate) share: u32,
    /// Sockets that may be made.
    pub(crate) sockets: u32,
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

/// The session of a cgroup id: a copy that is one value, whole.
///
/// Neither sort of hash table keeps an element that was replaced or removed until its readers have left: a preallocated one gives
/// it out again at once, and so does the allocator of the other (Linux 6.1). So what is found is copied, and the copy has to
/// be what was written for this cgroup ([`Session::is_of`]). One that is exchanged twice in the meantime is as good as none:
/// refused.
#[inline(always)]
pub(crate) fn by_cgroup(cgroup: u64) -> Option<Session> {
    // Not a loop, whose counter the verifier would have to follow at each level.
    read_once(cgroup).or_else(
        #[inline(always)]
        || read_once(cgroup),
    )
}

/// A copy of a session's entry, if it is whole.
#[inline(always)]
fn read_once(cgroup: u64) -> Option<Session> {
    let found = SESSIONS.get_ptr(cgroup)?;
    // SAFETY: an element of the table stays memory of the table as long as the program runs. The loads are volatile, so that what is
    // checked is what is used; any bytes are a value.
    let session = unsafe {
        Session {
            id: read_volatile(&raw const (*found).id),
            table: read_volatile(&raw const (*found).table),
            default_action: read_volatile(&raw const (*found).default_action),
            share: read_volatile(&raw const (*found).share),
            sockets: read_volatile(&raw const (*found).sockets),
            check: read_volatile(&raw const (*found).check),
        }
    };
    session.is_of(cgroup).then_some(session)
}

/// Whether a socket's session is there still. Its number is another one when the cgroup was tagged anew.
///
/// A function of its own: see [`attach_from_cgroup`].
#[inline(never)]
pub(crate) extern "C" fn goes_on(state: &mut SocketState) -> bool {
    let Some(session) = by_cgroup(state.cgroup) else {
        // Its share may be another session's by now.
        state.share = Owner::NOBODY.share;
        return false;
    };
    state.session = session.id;
    state.share = session.share;
    true
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

/// The cgroup of the calling task's session, 0 where it has none: for a program that is asked by everybody, and looks the session itself
/// up for the few that have one ([`by_cgroup`], which may find that it has ended meanwhile).
///
/// A function of its own, with little to remember at each level: the verifier follows the loop to its end wherever it stands.
#[inline(never)]
pub(crate) extern "C" fn cgroup_of_current() -> u64 {
    let mut nearest = 0;
    let mut level = 1;
    while level <= MAX_CGROUP_DEPTH as i32 {
        // SAFETY: as in `of_current`.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if cgroup == 0 {
            break;
        }
        if SESSIONS.get_ptr(cgroup).is_some() {
            nearest = cgroup;
        }
        level += 1;
    }
    nearest
}

/// The nearest session of a chain of ancestors: cgroup ids by level, 0 where there is none.
#[inline(always)]
pub(crate) fn nearest(ancestor: impl Fn(i32) -> u64) -> Option<Found> {
    // Not an Option that is set in the loop: its undefined fields are moved about before it is set, which the verifier
    // refuses ("R6 !read_ok").
    let mut found = Found { id: 0, cgroup: 0, share: 0, sockets: 0 };
    // Level 0 is the root of the hierarchy, which is never a session.
    let mut level = 1;
    while level <= MAX_CGROUP_DEPTH as i32 {
        let cgroup = ancestor(level);
        if cgroup == 0 {
            break;
        }
        if let Some(session) = by_cgroup(cgroup) {
            found = Found { id: session.id, cgroup, share: session.share, sockets: session.sockets };
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
            // Another processor is about to fill it in: see `attach_from_cgroup`.
            .filter(|state| state.session != 0)
    }
}

/// Makes the state of a socket.
///
/// It is filled in where it is to stand: a copy would have no room on the stack. Two processors may do so at once, and write the same.
/// Nobody takes the state for one before its session's number stands in it, which is written last.
///
/// # Safety
/// As for [`state`].
#[inline(always)]
pub(crate) unsafe fn attach(socket: *mut bpf_sock, session: &Found) -> Option<&'static mut SocketState> {
    // SAFETY: as in `state`; null stands for a value of zeros.
    let made = unsafe {
        bpf_sk_storage_get(
            ptr::addr_of!(SOCKETS).cast_mut().cast(),
            socket.cast(),
            ptr::null_mut(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
        .cast::<SocketState>()
        .as_mut()
    };
    let Some(state) = made else {
        emit::count(SITE_SOCKET_STORAGE, errno::ENOMEM);
        return None;
    };
    if state.session != 0 {
        // Another processor was quicker.
        return Some(state);
    }
    state.cgroup = session.cgroup;
    state.share = session.share;
    // SAFETY: a field of the map's value; volatile, so that it stays the last write.
    unsafe { write_volatile(&raw mut state.session, session.id) };
    Some(state)
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
    // SAFETY: the caller's promise is the same; what comes back is null or a value of the map.
    unsafe { attach_from_cgroup(socket).as_mut() }
}

/// Makes the state of a full socket from its cgroup's session; null where there is none.
///
/// A function of its own: its loop has no room on the packet hooks' stack ("combined stack size of 3 calls is 528. Too large").
///
/// # Safety
/// As for [`state_or_attach`].
#[inline(never)]
unsafe extern "C" fn attach_from_cgroup(socket: *mut bpf_sock) -> *mut SocketState {
    let found = nearest(
        #[inline(always)]
        // SAFETY: `socket` is a full socket that the caller holds; the helper answers 0 for a level that does not exist
        // (Linux 5.7).
        |level| unsafe { bpf_sk_ancestor_cgroup_id(socket.cast(), level) },
    );
    // SAFETY: the caller's promise is the same.
    let made = found.and_then(|found| unsafe { attach(socket, &found) });
    made.map_or(ptr::null_mut(), ptr::from_mut)
}
