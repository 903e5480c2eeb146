//! Giving up what the daemon needs only to start.
//!
//! What stays is what a running daemon uses: loading and attaching programs for a cgroup that is tagged later (CAP_BPF,
//! CAP_NET_ADMIN, CAP_PERFMON), looking at processes of other users in procfs (CAP_SYS_PTRACE), and removing its cgroup from
//! the root of the hierarchy, which not even its owner may write to (CAP_DAC_OVERRIDE).

use std::io;

/// Numbers of the capabilities that stay (linux/capability.h).
const KEPT: [u32; 5] = [CAP_DAC_OVERRIDE, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_PERFMON, CAP_BPF];
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// _LINUX_CAPABILITY_VERSION_3: two words of 32 capabilities.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Drops all capabilities of this thread but [`KEPT`]; threads that are started afterwards have no more. Also forbids to
/// gain any by executing a file.
///
/// # Errors
/// prctl(2) or capset(2) failed.
pub(super) fn drop_unneeded() -> io::Result<()> {
    // SAFETY: plain numbers, no pointers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut header = Header { version: VERSION, pid: 0 };
    let mut have = [Sets::default(); 2];
    // SAFETY: version 3 reads one header and writes two sets, which is what the pointers point to.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, have.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut sets = [Sets::default(); 2];
    for capability in KEPT {
        let (word, bit) = ((capability / 32) as usize, 1 << (capability % 32));
        // A container may have been given less than all.
        sets[word].permitted |= have[word].permitted & bit;
        sets[word].effective |= have[word].permitted & bit;
    }
    // SAFETY: version 3 reads one header and two sets, which is what the pointers point to.
    if unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
