//! When the daemon's threads run, beside those whom it audits.
//!
//! **What waits gives way.** A statement's client and server wake each other some ten thousand times a second; the daemon looks at the
//! rings a hundred times a second, and what it has to do then can wait for a moment. So its threads ask for long slices
//! (`sched_attr::sched_runtime` of a fair task, Linux 6.12): their share of the processor is what it would be, but whoever
//! wakes with a shorter slice goes first, instead of waiting until a batch of records is rendered. Older kernels take no notice.
//!
//! **What races goes first.** The thread that looks at libraries has to be there before a handshake is.

use std::io;
use std::mem::size_of;
use std::time::Duration;

/// The longest and the shortest slice that Linux gives a fair task (`sched_setattr(2)`).
const LONG: Duration = Duration::from_millis(100);
const SHORT: Duration = Duration::from_micros(100);

/// `struct sched_attr`, the first version (linux/sched/types.h).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Lets the threads that the caller starts from here on, and itself, take their turn late and in one go.
pub(super) fn give_way() {
    if let Err(error) = take_slices_of(LONG) {
        tracing::debug!(%error, "how the daemon is scheduled stays as it is");
    }
}

/// How long the calling thread runs in one go, where it is a fair task: a service manager may have given it another policy, which
/// has no slices.
fn take_slices_of(slice: Duration) -> io::Result<()> {
    let mut attributes = Attributes::default();
    let size = size_of::<Attributes>();
    // SAFETY: the structure is as long as the call is told; 0 is the caller.
    if unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if attributes.policy != libc::SCHED_OTHER.cast_unsigned() {
        return Ok(());
    }
    attributes.runtime = slice.as_nanos() as u64;
    // SAFETY: as above; the size that the kernel has filled in is that of its first version.
    if unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets threads of this process be real-time, which takes privileges that the daemon is about to give up.
pub(super) fn may_go_first() {
    use nix::sys::resource::{Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_RTPRIO, 1, 1) {
        tracing::debug!(%error, "no thread will be real-time");
    }
}

/// Puts the calling thread before all that are not real-time: it works for microseconds, and races. Where that is not permitted it
/// takes short slices, so that it goes before those with longer ones when it wakes.
pub(super) fn go_first() {
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: a thread of ours (0: the caller), and a parameter that outlives the call.
    if unsafe {
        libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const parameter)
    } != 0
    {
        tracing::debug!(error = %io::Error::last_os_error(), "the thread that watches libraries has no priority");
        if let Err(error) = take_slices_of(SHORT) {
            tracing::debug!(%error, "nor short slices");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_way_and_so_do_those_that_it_starts() {
        let slice = || {
            let mut attributes = Attributes::default();
            let size = size_of::<Attributes>();
            // SAFETY: the structure is as long as the call is told; 0 is the caller.
            let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            assert_eq!(attributes.policy, libc::SCHED_OTHER.cast_unsigned());
            Duration::from_nanos(attributes.runtime)
        };
        let given = std::thread::spawn(move || {
            give_way();
            (slice(), std::thread::spawn(slice).join().unwrap())
        });
        assert_eq!(given.join().unwrap(), (LONG, LONG), "Linux before 6.12 takes no notice");
    }
}
