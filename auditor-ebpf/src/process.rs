//! Processes of sessions: exec, fork, exit, and moves between cgroups. The tracepoints fire for every task of the host; tasks of no session leave
//! after a few look-ups.
//!
//! A process that is moved is in its new cgroup when that is told, and where it was is not told. So processes of sessions are kept in a
//! table, from birth to their last thread's end. By process, not by thread: a thread that executes a program takes its process's
//! number over from the first one, which ends then; and a process outlives its first thread.
//!
//! Offsets differ between kernels. The daemon reads those of tracepoint fields from tracefs, and those of the kernel's own structures from its
//! type information, and sets them before it loads the object. Births and moves are told by raw tracepoints, because the others say too little:
//! not which process a new thread is of, nor where it was born (clone3(2), CLONE_INTO_CGROUP), nor what a cgroup lies below.

use core::mem::MaybeUninit;

use auditor_common::control::Member;
use auditor_common::counter::{SITE_MEMBERS, SITE_TASK, errno};
use auditor_common::event::{
    CGROUP_PATH_BYTES, EXEC_PATH_BYTES, Exec, Exit, Fork, KIND_EXEC, KIND_EXIT, KIND_FORK, KIND_MOVED, Moved,
};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel_str};
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::{RawTracePointContext, TracePointContext};

use crate::emit::{self, Owner, Sort, Wake};
use crate::memory::{follow, read, setting};
use crate::session::{self, Found};

const BPF_F_NO_PREALLOC: u32 = 1;

/// Which session a process is in. The daemon adds those that live in a cgroup that it tags. What a session leaves here when it ends
/// is not believed ([`session_of_member`]), and goes with its process.
#[map]
static MEMBERS: HashMap<u32, Member> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// Offset of `filename` (`__data_loc`: offset in the low, length in the high half) in sched_process_exec.
#[unsafe(no_mangle)]
static EXEC_FILENAME_OFFSET: u32 = 8;
/// Offset of `group_dead` in sched_process_exit; 0 where the kernel has none (before Linux 6.16).
#[unsafe(no_mangle)]
static EXIT_GROUP_DEAD_OFFSET: u32 = 0;

/// `pid` of struct task_struct.
#[unsafe(no_mangle)]
static TASK_PID_OFFSET: u32 = 0;
/// `tgid` of struct task_struct.
#[unsafe(no_mangle)]
static TASK_TGID_OFFSET: u32 = 0;
/// `signal` of struct task_struct.
#[unsafe(no_mangle)]
static TASK_SIGNAL_OFFSET: u32 = 0;
/// `live` of struct signal_struct.
#[unsafe(no_mangle)]
static SIGNAL_LIVE_OFFSET: u32 = 0;
/// `cgroups` of struct task_struct.
#[unsafe(no_mangle)]
static TASK_CGROUPS_OFFSET: u32 = 0;
/// `dfl_cgrp` of struct css_set: the cgroup in the cgroup2 hierarchy.
#[unsafe(no_mangle)]
static SET_CGROUP_OFFSET: u32 = 0;
/// `root` of struct cgroup.
#[unsafe(no_mangle)]
static CGROUP_ROOT_OFFSET: u32 = 0;
/// `hierarchy_id` of struct cgroup_root.
#[unsafe(no_mangle)]
static ROOT_HIERARCHY_OFFSET: u32 = 0;
/// `level` of struct cgroup.
#[unsafe(no_mangle)]
static CGROUP_LEVEL_OFFSET: u32 = 0;
/// `ancestors` of struct cgroup, pointers by level, itself included (Linux 6.1); 0: there are `ancestor_ids`.
#[unsafe(no_mangle)]
static CGROUP_ANCESTORS_OFFSET: u32 = 0;
/// `ancestor_ids` of struct cgroup, in their place before.
#[unsafe(no_mangle)]
static CGROUP_ANCESTOR_IDS_OFFSET: u32 = 0;
/// `kn` of struct cgroup.
#[unsafe(no_mangle)]
static CGROUP_NODE_OFFSET: u32 = 0;
/// `id` of struct kernfs_node.
#[unsafe(no_mangle)]
static NODE_ID_OFFSET: u32 = 0;
/// `name` of struct kernfs_node.
#[unsafe(no_mangle)]
static NODE_NAME_OFFSET: u32 = 0;

pub(crate) fn executed(context: &TracePointContext) {
    let Some(found) = session::of_current() else { return };
    // SAFETY: the offset is the field's, from this kernel's description of the event.
    let location = unsafe { context.read_at::<u32>(setting(&EXEC_FILENAME_OFFSET) as usize) }.unwrap_or(0);
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

pub(crate) fn forked(context: &RawTracePointContext) {
    let child = context.arg::<u64>(1) as *const u8;
    let (Some(pid), Some(process)) =
        (read::<u32>(child, setting(&TASK_PID_OFFSET)), read::<u32>(child, setting(&TASK_TGID_OFFSET)))
    else {
        emit::count(SITE_TASK, errno::EFAULT);
        return;
    };
    let found = session::of_current();
    let is_process = pid == process;
    if let Some(found) = found {
        // Before it is asked where it is: whoever moves it meanwhile finds it here, or it is found where it was moved to.
        if is_process {
            remember(process, found.id, found.cgroup);
        }
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
                fork.child = pid;
                fork._padding = 0;
            },
        );
    }
    if !is_process {
        return;
    }
    // SAFETY: the helper takes no argument.
    let parent = unsafe { bpf_get_current_task() } as *const u8;
    let (Some(home), Some(parents)) = (cgroup_of(child), cgroup_of(parent)) else {
        emit::count(SITE_TASK, errno::EFAULT);
        return;
    };
    if home == parents {
        return;
    }
    let to = session_of(home);
    let (from, into) = (owner_of(found), owner_of(to));
    if from.session == into.session {
        return;
    }
    settle(process, to);
    // Who is born into a session from outside is its process from the beginning: there was nothing before that it could have done.
    if from.session == 0 || session::current_is_daemon() {
        return;
    }
    let name = follow(home, setting(&CGROUP_NODE_OFFSET))
        .and_then(|node| follow(node, setting(&NODE_NAME_OFFSET)))
        .unwrap_or(core::ptr::null());
    tell(from, into, process, 1, name);
}

pub(crate) fn exited(context: &TracePointContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let process = (pid_tgid >> 32) as u32;
    let is_first = process == pid_tgid as u32;
    let group_dead = setting(&EXIT_GROUP_DEAD_OFFSET);
    let (last, told) = if group_dead == 0 {
        // Two threads may both be the last one here; only the first thread's end is told.
        // SAFETY: the helper takes no argument.
        let task = unsafe { bpf_get_current_task() } as *const u8;
        let live = follow(task, setting(&TASK_SIGNAL_OFFSET))
            .and_then(|signal| read::<i32>(signal, setting(&SIGNAL_LIVE_OFFSET)));
        (live.map_or(is_first, |live| live == 0), is_first)
    } else {
        // SAFETY: the offset is the field's, from this kernel's description of the event.
        let dead = unsafe { context.read_at::<u8>(group_dead as usize) }.unwrap_or(0) != 0;
        (dead, dead)
    };
    // Looked at first, without the lock that a removal takes: nearly all tasks of a host are no session's.
    if last && MEMBERS.get_ptr(process).is_some() {
        let _ = MEMBERS.remove(process);
    }
    if !told {
        return;
    }
    let Some(found) = session::of_current() else { return };
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

pub(crate) fn moved(context: &RawTracePointContext) {
    let cgroup = context.arg::<u64>(0) as *const u8;
    let path = context.arg::<u64>(1) as *const u8;
    let task = context.arg::<u64>(2) as *const u8;
    let whole = context.arg::<u64>(3) & 0xff != 0;
    let hierarchy = follow(cgroup, setting(&CGROUP_ROOT_OFFSET))
        .and_then(|root| read::<i32>(root, setting(&ROOT_HIERARCHY_OFFSET)));
    let (Some(hierarchy), Some(process)) = (hierarchy, read::<u32>(task, setting(&TASK_TGID_OFFSET))) else {
        emit::count(SITE_TASK, errno::EFAULT);
        return;
    };
    // Hierarchy 0 is cgroup2; sessions live in no other.
    if hierarchy != 0 {
        return;
    }
    let from = session_of_member(process);
    let to = session_of(cgroup);
    let into = owner_of(to);
    if from.session == into.session {
        return;
    }
    // A thread that moves alone leaves its process where it is.
    if whole {
        settle(process, to);
    }
    if !session::current_is_daemon() {
        tell(from, into, process, 0, path);
    }
}

#[inline(always)]
fn owner_of(found: Option<Found>) -> Owner {
    found.map_or(
        Owner::NOBODY,
        #[inline(always)]
        |found| found.owner(),
    )
}

/// The session that a process is known to be in.
#[inline(always)]
fn session_of_member(process: u32) -> Owner {
    let Some(member) = MEMBERS.get_ptr(process) else { return Owner::NOBODY };
    // SAFETY: an element of the table stays memory of the table as long as the program runs. If it is another process's meanwhile, that
    // process's session is named, at worst.
    let Member { session, cgroup } = unsafe { *member };
    // The session may have ended while the process lived on.
    match session::by_cgroup(cgroup) {
        Some(now) if now.id == session => Owner { session, share: now.share },
        _ => Owner::NOBODY,
    }
}

/// A task's cgroup.
#[inline(always)]
fn cgroup_of(task: *const u8) -> Option<*const u8> {
    follow(follow(task, setting(&TASK_CGROUPS_OFFSET))?, setting(&SET_CGROUP_OFFSET))
}

/// The session that a cgroup belongs to.
#[inline(always)]
fn session_of(cgroup: *const u8) -> Option<Found> {
    let Some(deepest) = read::<i32>(cgroup, setting(&CGROUP_LEVEL_OFFSET)) else {
        emit::count(SITE_TASK, errno::EFAULT);
        return None;
    };
    session::nearest(
        #[inline(always)]
        |level| if level > deepest { 0 } else { ancestor(cgroup, level as u32).unwrap_or(0) },
    )
}

/// The id of a cgroup's ancestor.
#[inline(always)]
fn ancestor(cgroup: *const u8, level: u32) -> Option<u64> {
    let ancestors = setting(&CGROUP_ANCESTORS_OFFSET);
    if ancestors == 0 {
        return read::<u64>(cgroup, setting(&CGROUP_ANCESTOR_IDS_OFFSET) + 8 * level);
    }
    let node = follow(follow(cgroup, ancestors + 8 * level)?, setting(&CGROUP_NODE_OFFSET))?;
    read::<u64>(node, setting(&NODE_ID_OFFSET))
}

/// Remembers where a process is from here on.
#[inline(always)]
fn settle(process: u32, to: Option<Found>) {
    if let Some(to) = to {
        remember(process, to.id, to.cgroup);
    } else {
        // There may be none.
        let _ = MEMBERS.remove(process);
    }
}

#[inline(always)]
fn remember(process: u32, session: u64, cgroup: u64) {
    if let Err(error) = MEMBERS.insert(process, Member { session, cgroup }, 0) {
        emit::count(SITE_MEMBERS, error.unsigned_abs());
    }
}

/// Tells of a process that changed its session. `path`: of its cgroup, in the kernel's memory.
#[inline(always)]
fn tell(from: Owner, to: Owner, process: u32, born: u32, path: *const u8) {
    let owner = if from.session != 0 { from } else { to };
    emit::lifecycle(
        Sort::Move,
        // Whose process it was is gone from /proc with the process.
        Wake::Now,
        owner,
        #[inline(always)]
        |place: &mut MaybeUninit<Moved>| {
            // SAFETY: as in `executed`.
            let moved = unsafe { place.assume_init_mut() };
            moved.header = emit::header(KIND_MOVED, owner);
            emit::current_task(&mut moved.task);
            moved.from = from.session;
            moved.to = to.session;
            moved.moved = process;
            moved.born = born;
            // SAFETY: the destination is CGROUP_PATH_BYTES long; the helper takes any source and fails where there is no memory. On
            // failure it zeroes the destination.
            unsafe {
                bpf_probe_read_kernel_str(
                    moved.path.as_mut_ptr().cast(),
                    CGROUP_PATH_BYTES as u32,
                    path.cast(),
                )
            };
        },
    );
}
