//! Keeping what is in this process's memory, TLS secrets among it, from getting out of it: into swap, into a core dump, to another
//! process of the same user.

use std::io;

/// What may happen where a call fails, and the call.
type Step = (&'static str, fn() -> io::Result<()>);

/// What could not be had of it, in words for a record.
///
/// Locked are pages that have been used, now and from here on (`MCL_ONFAULT`, Linux 4.4), so that this costs no memory. Needs CAP_IPC_LOCK,
/// and CAP_SYS_RESOURCE where the limit on locked memory is low; so it is to be called before capabilities are given up.
pub fn protect() -> Vec<String> {
    let steps: [Step; 2] = [
        ("memory of the daemon, TLS secrets in it, may be swapped to disk", lock),
        ("memory of the daemon, TLS secrets in it, may be in a core dump", forbid_dumps),
    ];
    let failed = |(what, step): Step| {
        step()
            .err()
            .map(|error| format!("{what}: {error}; give it CAP_IPC_LOCK and CAP_SYS_RESOURCE at start"))
    };
    steps.into_iter().filter_map(failed).collect()
}

fn lock() -> io::Result<()> {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the call reads the limits, which outlive it.
    done(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) })?;
    // SAFETY: integers only; locked pages are used as any others.
    done(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) })
}

/// Also keeps other processes without CAP_SYS_PTRACE from looking into this one (ptrace(2), "ptrace access mode checking").
fn forbid_dumps() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call reads the limits, which outlive it.
    done(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) })?;
    // SAFETY: PR_SET_DUMPABLE takes integers and touches no memory of ours.
    done(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
