//! The two rings and the failure counters: the only ways out of the kernel programs.
//!
//! Payload and lifecycle have a ring each, so that a flood of bytes cannot crowd out the verdict that matters. A record is
//! built in its reservation, never on the stack. Writes do not wake the reader, which drains on a timer; it is woken when
//! the ring is filled to the mark that the daemon has set, or when a record says that it cannot wait.
//!
//! Each record is charged to its session's share of the ring (`auditor_common::share`), whose place in an array travels with
//! the socket: for a session that is quiet that is two loads and an addition. A session that has had its share is told no, or
//! counted.

use core::mem::MaybeUninit;

use auditor_common::control::Control;
use auditor_common::counter::{
    Failure, SITE_CONNECTION, SITE_MOVE, SITE_PAYLOAD_EGRESS, SITE_PAYLOAD_INGRESS, SITE_PROCESS,
    SITE_SECRET, SITE_VERDICT, errno,
};
use auditor_common::event::{EGRESS, Header, Task};
use auditor_common::share::{SHARES as SHARE_ENTRIES, Share, Weight, admits, between, occupied_by};
use aya_ebpf::helpers::generated::{bpf_get_current_comm, bpf_ktime_get_boot_ns};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use aya_ebpf::macros::map;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::maps::{Array, PerCpuHashMap, RingBuf};

/// Segments. The daemon sets the real size before it loads the object.
#[map]
static PAYLOAD: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Verdicts, connections, processes.
#[map]
static LIFECYCLE: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// One entry; see [`Control`].
#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

/// What each session has of the rings. The daemon has it mapped.
#[map]
static SHARES: Array<Share> = Array::with_max_entries(SHARE_ENTRIES, BPF_F_MMAPABLE);

/// Failures by site and errno.
#[map]
static FAILURES: PerCpuHashMap<Failure, u64> = PerCpuHashMap::with_max_entries(64, 0);

const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
const BPF_RB_AVAIL_DATA: u64 = 0;

/// When the reader hears of a record.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Wake {
    /// At its next turn.
    InTime,
    /// At once: what it wants to look at in /proc is gone soon.
    Now,
}

/// The control entry. `None` cannot happen: an array's entries exist from the beginning.
#[inline(always)]
pub(crate) fn control() -> Option<&'static Control> {
    CONTROL.get(0)
}

/// CLOCK_BOOTTIME in nanoseconds.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper takes no argument and cannot fail (Linux 5.7).
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Whose a record is.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    /// The session's number; 0: none is known.
    pub(crate) session: u64,
    /// The session's entry in [`SHARES`].
    pub(crate) share: u32,
}

impl Owner {
    /// No session.
    pub(crate) const NOBODY: Self = Self { session: 0, share: 0 };
}

/// The header of a record that is being written now.
#[inline(always)]
pub(crate) fn header(kind: u32, owner: Owner) -> Header {
    header_at(kind, owner, now())
}

/// The header of a record of `time`, CLOCK_BOOTTIME in nanoseconds.
#[inline(always)]
pub(crate) fn header_at(kind: u32, owner: Owner, time: u64) -> Header {
    Header { kind, share: owner.share, time, session: owner.session }
}

/// Fills in the calling task, field by field, in the place where it is to stand.
///
/// Only meaningful in hooks that run in the caller's own context.
#[inline(always)]
pub(crate) fn current_task(place: &mut Task) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let uid_gid = bpf_get_current_uid_gid();
    place.pid = (pid_tgid >> 32) as u32;
    place.tid = pid_tgid as u32;
    place.uid = uid_gid as u32;
    place.gid = (uid_gid >> 32) as u32;
    // SAFETY: `comm` is sixteen writable bytes, and sixteen is what the helper is told. On failure it zeroes them.
    unsafe { bpf_get_current_comm(place.comm.as_mut_ptr().cast(), 16) };
}

/// Sorts of records on the lifecycle ring.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Sort {
    /// Attempts that are allowed, or refused.
    Decision,
    /// Beginnings and ends of connections.
    Connection,
    /// Executions, births and ends of processes.
    Process,
    /// Processes that change their session. No session's share holds them back, only a ring that is full: nothing else that a session
    /// does may hide one.
    Move,
    /// TLS secrets that were taken: like the connections that they belong to.
    Secret,
}

impl Sort {
    #[inline(always)]
    const fn site(self) -> u32 {
        match self {
            Self::Decision => SITE_VERDICT,
            Self::Connection => SITE_CONNECTION,
            Self::Process => SITE_PROCESS,
            Self::Move => SITE_MOVE,
            Self::Secret => SITE_SECRET,
        }
    }

    /// `None`: as much as there is room for.
    #[inline(always)]
    const fn weight(self) -> Option<Weight> {
        match self {
            Self::Decision => Some(Weight::DECISION),
            Self::Connection | Self::Secret => Some(Weight::CONNECTION),
            Self::Process => Some(Weight::RECORD),
            Self::Move => None,
        }
    }
}

/// An entry of the table of shares. `None`: the number is not one of the daemon's, which cannot happen.
#[inline(always)]
fn share(owner: Owner) -> Option<*mut Share> {
    SHARES.get_ptr_mut(owner.share)
}

/// Adds to a count that other processors add to at the same time.
#[inline(always)]
pub(crate) fn add(count: *mut u64, more: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: callers give a field of a map's value: aligned, and valid as long as the program runs. The target has no
    // compare-and-swap, without which `core` gives no AtomicU64::fetch_add; the addition is one instruction.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(count, more);
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above.
    unsafe {
        core::sync::atomic::AtomicU64::from_ptr(count).fetch_add(more, core::sync::atomic::Ordering::Relaxed)
    };
}

/// A count that others change.
#[inline(always)]
pub(crate) fn load(count: *const u64) -> u64 {
    // SAFETY: callers give a field of a map's value: aligned, and valid as long as the program runs. Loads of this size are
    // not torn on 64-bit machines, which are the only ones with these programs.
    unsafe { core::ptr::read_volatile(count) }
}

/// Writes a record of fixed size on the lifecycle ring: `fill` builds it in place, and must write every field. `false`: there
/// was no room, or none for this session, which has been counted.
#[inline(always)]
pub(crate) fn lifecycle<T: 'static>(
    sort: Sort,
    wake: Wake,
    owner: Owner,
    fill: impl FnOnce(&mut MaybeUninit<T>),
) -> bool {
    let (Some(control), Some(share)) = (control(), share(owner)) else { return false };
    let length = occupied_by(size_of::<T>() as u64);
    let waiting = LIFECYCLE.query(BPF_RB_AVAIL_DATA);
    // SAFETY: `share` is a value of the map; only addresses of its fields are taken.
    let (written, read) =
        unsafe { (&raw mut (*share).lifecycle_written, &raw const (*share).lifecycle_read) };
    let free = control.lifecycle_size.saturating_sub(waiting);
    if let Some(weight) = sort.weight()
        && !admits(weight, between(load(written), load(read)), length, free)
    {
        not_written(sort, share, errno::EDQUOT);
        return false;
    }
    let Some(mut entry) = LIFECYCLE.reserve::<T>(0) else {
        not_written(sort, share, errno::ENOSPC);
        return false;
    };
    fill(&mut entry);
    // Before the reader can see the record: what it has read must not be more than what was written.
    add(written, length);
    let full = waiting + length >= control.lifecycle_wake;
    entry.submit(if full || wake == Wake::Now { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP });
    true
}

/// Counts a record that is not on the lifecycle ring: for the host by site and errno, for its session by what it was. A decision is
/// for its caller to count, who knows what became of it.
#[inline(always)]
fn not_written(sort: Sort, share: *mut Share, errno: u32) {
    count(sort.site(), errno);
    // SAFETY: `share` is a value of the map; only addresses of its fields are taken.
    unsafe {
        match sort {
            // The connection will say that it could not be read.
            Sort::Decision | Sort::Secret => {}
            Sort::Connection => add(&raw mut (*share).connections, 1),
            Sort::Process => add(&raw mut (*share).processes, 1),
            Sort::Move => add(&raw mut (*share).moves, 1),
        }
    }
}

/// Whether a session may have one more secret in their table of so many entries.
#[inline(always)]
pub(crate) fn admits_secret(owner: Owner, entries: u32) -> bool {
    let (Some(all), Some(share)) = (share(Owner::NOBODY), share(owner)) else { return false };
    let (all, kept) = (secrets(all), secrets(share));
    admits(Weight::SECRET, kept, 1, u64::from(entries).saturating_sub(all))
}

#[inline(always)]
fn secrets(share: *const Share) -> u64 {
    // SAFETY: callers give a value of the map; only addresses of its fields are taken.
    unsafe { between(load(&raw const (*share).secrets_kept), load(&raw const (*share).secrets_removed)) }
}

/// Counts a secret that was put there.
#[inline(always)]
pub(crate) fn count_secret(owner: Owner) {
    if let (Some(all), Some(share)) = (share(Owner::NOBODY), share(owner)) {
        // SAFETY: values of the map; only addresses of their fields are taken.
        unsafe {
            add(&raw mut (*all).secrets_kept, 1);
            if owner.share != Owner::NOBODY.share {
                add(&raw mut (*share).secrets_kept, 1);
            }
        }
    }
}

/// Counts an attempt that policy allows and that could not be recorded.
#[inline(always)]
pub(crate) fn count_attempt(owner: Owner) {
    if let Some(share) = share(owner) {
        // SAFETY: `share` is a value of the map; only the address of its field is taken.
        add(unsafe { &raw mut (*share).attempts }, 1);
    }
}

/// A record on the payload ring that is being built.
pub(crate) struct Segment<T: 'static> {
    pub(crate) entry: RingBufEntry<T>,
    written: *mut u64,
    waiting: u64,
}

/// Takes room for a record on the payload ring. `None`: there was none, or none for this session, which has been counted.
#[inline(always)]
pub(crate) fn reserve_payload<const DIRECTION: u8, T: 'static>(
    owner: Owner,
    control: &Control,
) -> Option<Segment<T>> {
    let share = share(owner)?;
    let waiting = PAYLOAD.query(BPF_RB_AVAIL_DATA);
    // SAFETY: `share` is a value of the map; only addresses of its fields are taken.
    let (written, read) = unsafe { (&raw mut (*share).payload_written, &raw const (*share).payload_read) };
    let free = control.payload_size.saturating_sub(waiting);
    let length = occupied_by(size_of::<T>() as u64);
    let admitted = admits(Weight::SEGMENT, between(load(written), load(read)), length, free);
    if admitted && let Some(entry) = PAYLOAD.reserve::<T>(0) {
        return Some(Segment { entry, written, waiting });
    }
    count_packet::<DIRECTION>(share, if admitted { errno::ENOSPC } else { errno::EDQUOT });
    None
}

/// Counts a segment of a session that is refused because there was no room for what comes before it.
#[inline(always)]
pub(crate) fn count_held_back<const DIRECTION: u8>(owner: Owner) {
    if let Some(share) = share(owner) {
        count_packet::<DIRECTION>(share, errno::ENOSPC);
    }
}

/// Counts a segment that is not on the payload ring, for the host and for its session.
#[inline(always)]
fn count_packet<const DIRECTION: u8>(share: *mut Share, errno: u32) {
    // SAFETY: `share` is a value of the map; only the address of its field is taken.
    add(unsafe { &raw mut (*share).packets }, 1);
    count(if DIRECTION == EGRESS { SITE_PAYLOAD_EGRESS } else { SITE_PAYLOAD_INGRESS }, errno);
}

/// Hands a record on the payload ring to the reader, and wakes it when the ring is filled to the mark.
#[inline(always)]
pub(crate) fn submit_payload<T: 'static>(segment: Segment<T>, control: &Control) {
    let length = occupied_by(size_of::<T>() as u64);
    // Before the reader can see the record: see `lifecycle`.
    add(segment.written, length);
    let full = segment.waiting + length >= control.payload_wake;
    segment.entry.submit(if full { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP });
}

/// Counts a failure.
#[inline(always)]
pub(crate) fn count(site: u32, errno: u32) {
    let failure = Failure { site, errno };
    if let Some(counter) = FAILURES.get_ptr_mut(failure) {
        // SAFETY: the value belongs to this CPU, and a program on this CPU is not preempted by another one that counts
        // the same failure in the middle of an addition: at worst an interrupt's count is lost, never the map's sanity.
        unsafe { *counter += 1 };
    } else {
        // The daemon makes the entries of the likely failures; an unlikely one that finds the map full stays uncounted.
        let _ = FAILURES.insert(failure, 1, 0);
    }
}
