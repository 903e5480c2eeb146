//! Processes of sessions: exec, fork, exit. The tracepoints fire for every task of the host; tasks of no session leave
//! after a few look-ups.
//!
//! Offsets of tracepoint fields differ between kernels. The daemon reads them from tracefs and sets them before it loads
//! the object.

use core::mem::MaybeUninit;
use core::ptr::read_volatile;

use auditor_common::event::{EXEC_PATH_BYTES, Exec, Exit, Fork, KIND_EXEC, KIND_EXIT, KIND_FORK};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_ebpf::programs::TracePointContext;

use crate::emit::{self, Sort, Wake};
use crate::session;

/// Offset of `filename` (`__data_loc`: offset in the low, length in the high half) in sched_process_exec.
#[unsafe(no_mangle)]
static EXEC_FILENAME_OFFSET: u32 = 8;
/// Offset of `child_pid` in sched_process_fork.
#[unsafe(no_mangle)]
static FORK_CHILD_PID_OFFSET: u32 = 44;
/// Offset of `group_dead` in sched_process_exit; 0 where the kernel has none (before Linux 6.16).
#[unsafe(no_mangle)]
static EXIT_GROUP_DEAD_OFFSET: u32 = 0;

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
