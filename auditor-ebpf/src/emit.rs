//! The two rings and the failure counters: the only ways out of the kernel programs.
//!
//! Payload and lifecycle have a ring each, so that a flood of bytes cannot crowd out the verdict that matters. A record is
//! built in its reservation, never on the stack. Writes do not wake the reader, which drains on a timer; it is woken when
//! the ring is filled to the mark that the daemon has set, or when a record says that it cannot wait.

use core::mem::MaybeUninit;

use auditor_common::control::Control;
use auditor_common::counter::{Failure, errno};
use auditor_common::event::{Header, Task};
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

/// Failures by site and errno.
#[map]
static FAILURES: PerCpuHashMap<Failure, u64> = PerCpuHashMap::with_max_entries(64, 0);

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

/// The header of a record that is being written now.
#[inline(always)]
pub(crate) fn header(kind: u32, session: u64) -> Header {
    Header { kind, _padding: 0, time: now(), session }
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

/// Writes a record of fixed size on the lifecycle ring: `fill` builds it in place, and must write every field. `false`: there
/// was no room, which has been counted.
#[inline(always)]
pub(crate) fn lifecycle<T: 'static>(site: u32, wake: Wake, fill: impl FnOnce(&mut MaybeUninit<T>)) -> bool {
    let Some(mut entry) = LIFECYCLE.reserve::<T>(0) else {
        count(site, errno::ENOSPC);
        return false;
    };
    fill(&mut entry);
    let full = control().is_some_and(|control| LIFECYCLE.query(BPF_RB_AVAIL_DATA) >= control.lifecycle_wake);
    entry.submit(if full || wake == Wake::Now { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP });
    true
}

/// Whether the lifecycle ring has room for a record of what can be refused; that it has not is counted. The ring's last quarter
/// is for what cannot: ends of connections, and processes.
#[inline(always)]
pub(crate) fn has_room(site: u32, control: &Control) -> bool {
    // The mark is at a quarter.
    let room = LIFECYCLE.query(BPF_RB_AVAIL_DATA) < control.lifecycle_wake * 3;
    if !room {
        count(site, errno::ENOSPC);
    }
    room
}

/// Takes room for a record on the payload ring.
#[inline(always)]
pub(crate) fn reserve_payload<T: 'static>() -> Option<RingBufEntry<T>> {
    PAYLOAD.reserve::<T>(0)
}

/// Hands a record on the payload ring to the reader, and wakes it when the ring is filled to the mark.
#[inline(always)]
pub(crate) fn submit_payload<T: 'static>(entry: RingBufEntry<T>, control: &Control) {
    let full = PAYLOAD.query(BPF_RB_AVAIL_DATA) >= control.payload_wake;
    entry.submit(if full { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP });
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
