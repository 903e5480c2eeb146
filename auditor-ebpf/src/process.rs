//! Processes of sessions: exec, fork, exit, and moves between cgroups. The tracepoints fire for every task of the host; tasks of no session leave
//! after a few look-ups.
//!
//! Offsets of tracepoint fields differ between kernels. The daemon reads them from tracefs and sets them before it loads
//! the object.
//!
//! A task that is moved is in its new cgroup when that is told, and where it was is not told. So tasks of sessions are kept in a
//! table, from fork to exit.

use core::mem::MaybeUninit;
use core::ptr::read_volatile;

use auditor_common::control::Member;
use auditor_common::counter::SITE_MEMBERS;
use auditor_common::event::{
    CGROUP_PATH_BYTES, EXEC_PATH_BYTES, Exec, Exit, Fork, KIND_EXEC, KIND_EXIT, KIND_FORK, KIND_MOVED, Moved,
};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::TracePointContext;

use crate::emit::{self, Owner, Sort, Wake};
use crate::session;

const BPF_F_NO_PREALLOC: u32 = 1;

/// Which session a task is in. The daemon adds those that live in a cgroup that it tags.
#[map]
static MEMBERS: HashMap<u32, Member> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// Offset of `filename` (`__data_loc`: offset in the low, length in the high half) in sched_process_exec.
#[unsafe(no_mangle)]
static EXEC_FILENAME_OFFSET: u32 = 8;
/// Offset of `child_pid` in sched_process_fork.
#[unsafe(no_mangle)]
static FORK_CHILD_PID_OFFSET: u32 = 44;
/// Offset of `group_dead` in sched_process_exit; 0 where the kernel has none (before Linux 6.16).
#[unsafe(no_mangle)]
static EXIT_GROUP_DEAD_OFFSET: u32 = 0;

/// Offset of `dst_root` in cgroup_attach_task.
#[unsafe(no_mangle)]
static MOVE_ROOT_OFFSET: u32 = 8;
/// Offset of `dst_id` in cgroup_attach_task.
#[unsafe(no_mangle)]
static MOVE_CGROUP_OFFSET: u32 = 16;
/// Offset of `pid` in cgroup_attach_task.
#[unsafe(no_mangle)]
static MOVE_PID_OFFSET: u32 = 24;
/// Offset of `dst_path` (`__data_loc`) in cgroup_attach_task.
#[unsafe(no_mangle)]
static MOVE_PATH_OFFSET: u32 = 28;

#[inline(always)]
fn offset(place: &'static u32) -> usize {
    // SAFETY: a static; volatile, because the loader changes what the compiler thinks constant.
    unsafe { read_volatile(place) as usize }
}

pub(crate) fn executed(context: &TracePointContext) {
    let Some(found) = session::of_current() else { return };
    // SAFETY: the offset is the field's, from this kernel's description of the event.
    let location = unsafe { context.read_at::<u32>(offset(&EXEC_FILENAME_OFFSET)) }.unwrap_or(0);
    emit::lifecycle(
        Sort::Process,
        Wake::Now,
        found.owner(),
        #[inline(always)]
        |place: &mut MaybeUninit<Exec>| {
            // SAFETY: every field is written below before the reservation is submitted; integers and byte arrays have
            // no invalid values in the meantime.
            let exec = unsafe { place.assume_init_mut() };
            exec.header = emit::header(KIND_EXEC, found.owner());
            emit::current_task(&mut exec.task);
            // SAFETY: the destination is EXEC_PATH_BYTES long; the source lies within the event, whose bounds the helper
            // checks as kernel memory. On failure it zeroes the destination.
            unsafe {
                bpf_probe_read_kernel_str(
                    exec.path.as_mut_ptr().cast(),
                    EXEC_PATH_BYTES as u32,
                    context.as_ptr().byte_add((location & 0xffff) as usize),
                )
            };
        },
    );
}

pub(crate) fn forked(context: &TracePointContext) {
    let Some(found) = session::of_current() else { return };
    // SAFETY: the offset is the field's, from this kernel's description of the event.
    let child = unsafe { context.read_at::<u32>(offset(&FORK_CHILD_PID_OFFSET)) }.unwrap_or(0);
    remember(child, found.id, found.cgroup);
    emit::lifecycle(
        Sort::Process,
        Wake::InTime,
        found.owner(),
        #[inline(always)]
        |place: &mut MaybeUninit<Fork>| {
            // SAFETY: as in `executed`.
            let fork = unsafe { place.assume_init_mut() };
            fork.header = emit::header(KIND_FORK, found.owner());
            emit::current_task(&mut fork.task);
            fork.child = child;
            fork._padding = 0;
        },
    );
}

pub(crate) fn exited(context: &TracePointContext) {
    let task = bpf_get_current_pid_tgid() as u32;
    // Looked at first, without the lock that a removal takes: nearly all tasks of a host are no session's.
    // SAFETY: the value is not looked at.
    if unsafe { MEMBERS.get(task) }.is_some() {
        let _ = MEMBERS.remove(task);
    }
    let Some(found) = session::of_current() else { return };
    let group_dead = offset(&EXIT_GROUP_DEAD_OFFSET);
    let last = if group_dead == 0 {
        let pid_tgid = bpf_get_current_pid_tgid();
        (pid_tgid >> 32) as u32 == pid_tgid as u32
    } else {
        // SAFETY: the offset is the field's, from this kernel's description of the event.
        unsafe { context.read_at::<u8>(group_dead) }.unwrap_or(0) != 0
    };
    if !last {
        return;
    }
    emit::lifecycle(
        Sort::Process,
        Wake::InTime,
        found.owner(),
        #[inline(always)]
        |place: &mut MaybeUninit<Exit>| {
            // SAFETY: as in `executed`.
            let exit = unsafe { place.assume_init_mut() };
            exit.header = emit::header(KIND_EXIT, found.owner());
            emit::current_task(&mut exit.task);
        },
    );
}

#[inline(always)]
fn remember(task: u32, session: u64, cgroup: u64) {
    if let Err(error) = MEMBERS.insert(task, Member { session, cgroup }, 0) {
        emit::count(SITE_MEMBERS, error.unsigned_abs());
    }
}

pub(crate) fn moved(context: &TracePointContext) {
    // SAFETY: the offsets are the fields', from this kernel's description of the event.
    let (root, cgroup, task) = unsafe {
        (
            context.read_at::<u32>(offset(&MOVE_ROOT_OFFSET)).unwrap_or(1),
            context.read_at::<u64>(offset(&MOVE_CGROUP_OFFSET)).unwrap_or(0),
            context.read_at::<u32>(offset(&MOVE_PID_OFFSET)).unwrap_or(0),
        )
    };
    // Hierarchy 0 is cgroup2; sessions live in no other.
    if root != 0 {
        return;
    }
    let (mut from, mut to) = (Owner::NOBODY, Owner::NOBODY);
    // SAFETY: whole values are replaced; a reader sees one or the other.
    if let Some(member) = unsafe { MEMBERS.get(task) } {
        // The session may have ended while the task lived on.
        if let Some(session) = session::by_cgroup(member.cgroup)
            && session.id == member.session
        {
            from = Owner { session: session.id, share: session.share };
        }
    }
    if let Some(session) = session::by_cgroup(cgroup) {
        to = Owner { session: session.id, share: session.share };
    }
    if from.session == to.session {
        return;
    }
    if to.session != 0 {
        remember(task, to.session, cgroup);
    }
    if session::current_is_daemon() {
        if to.session == 0 {
            let _ = MEMBERS.remove(task);
        }
        return;
    }
    // SAFETY: as above.
    let location = unsafe { context.read_at::<u32>(offset(&MOVE_PATH_OFFSET)) }.unwrap_or(0);
    emit::lifecycle(
        Sort::Move,
        // Whose process it was is gone from /proc with the process.
        Wake::Now,
        if from.session != 0 { from } else { to },
        #[inline(always)]
        |place: &mut MaybeUninit<Moved>| {
            // SAFETY: as in `executed`.
            let moved = unsafe { place.assume_init_mut() };
            moved.header = emit::header(KIND_MOVED, if from.session != 0 { from } else { to });
            emit::current_task(&mut moved.task);
            moved.from = from.session;
            moved.to = to.session;
            moved.moved = task;
            moved._padding = 0;
            // SAFETY: the destination is CGROUP_PATH_BYTES long; the source lies within the event, whose bounds the helper
            // checks as kernel memory. On failure it zeroes the destination.
            unsafe {
                bpf_probe_read_kernel_str(
                    moved.path.as_mut_ptr().cast(),
                    CGROUP_PATH_BYTES as u32,
                    context.as_ptr().byte_add((location & 0xffff) as usize),
                )
            };
        },
    );
}
