//! Giving up capabilities, by the calls of capabilities(7). They belong to a thread; threads that it starts afterwards have no
//! more than it.

use std::io;

/// Numbers of capabilities, from linux/capability.h.
pub mod number {
    /// Bypass permission checks of files.
    pub const CAP_DAC_OVERRIDE: u32 = 1;
    /// Network administration; attach programs to cgroups.
    pub const CAP_NET_ADMIN: u32 = 12;
    /// Look at any process.
    pub const CAP_SYS_PTRACE: u32 = 19;
    /// Performance events, tracing programs.
    pub const CAP_PERFMON: u32 = 38;
    /// Load BPF programs, make maps.
    pub const CAP_BPF: u32 = 39;
    /// Open what other processes have mapped, by its place in their memory.
    pub const CAP_CHECKPOINT_RESTORE: u32 = 40;
}

/// Name of one of [`number`]'s.
pub fn name(capability: u32) -> String {
    match capability {
        number::CAP_DAC_OVERRIDE => "CAP_DAC_OVERRIDE".to_owned(),
        number::CAP_NET_ADMIN => "CAP_NET_ADMIN".to_owned(),
        number::CAP_SYS_PTRACE => "CAP_SYS_PTRACE".to_owned(),
        number::CAP_PERFMON => "CAP_PERFMON".to_owned(),
        number::CAP_BPF => "CAP_BPF".to_owned(),
        number::CAP_CHECKPOINT_RESTORE => "CAP_CHECKPOINT_RESTORE".to_owned(),
        other => format!("capability {other}"),
    }
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION_3: u32 = 0x2008_0522;
/// More capabilities than any kernel has; the kernel says EINVAL after its last one.
const END: libc::c_ulong = 64;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    /// 0 is the calling thread.
    pid: libc::c_int,
}

/// `struct __user_cap_data_struct`; version 3 takes two, for the low and the high 32 capabilities.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Forbids this thread, and whatever it executes, to gain a privilege by executing a file.
///
/// # Errors
/// prctl(2) failed.
pub fn set_no_new_privileges() -> io::Result<()> {
    // SAFETY: PR_SET_NO_NEW_PRIVS takes integers and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Empties the bounding set: no program executed from here on can hand out a capability.
///
/// This itself takes CAP_SETPCAP. A caller without it keeps the bounding set, and gains nothing by that where
/// no_new_privs makes execve(2) ignore file capabilities and set-user-id bits.
///
/// # Errors
/// prctl(2) failed for another reason.
pub fn drop_bounding() -> io::Result<()> {
    for capability in 0..END {
        // SAFETY: PR_CAPBSET_DROP takes an integer and touches no memory of ours.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if result != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                // Behind the kernel's last capability.
                Some(libc::EINVAL) if capability > 0 => Ok(()),
                Some(libc::EPERM) => Ok(()),
                _ => Err(error),
            };
        }
    }
    Ok(())
}

/// The sets of the calling thread: low and high 32 capabilities.
fn held() -> io::Result<[Data; 2]> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut held = [Data::default(); 2];
    // SAFETY: capget(2) of version 3 reads one header and writes two data elements; both outlive the call and have the
    // kernel's layout (`repr(C)`, 32-bit fields only).
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, held.as_mut_ptr()) };
    if result == 0 { Ok(held) } else { Err(io::Error::last_os_error()) }
}

const fn place(capability: u32) -> (usize, u32) {
    ((capability / 32) as usize, 1 << (capability % 32))
}

/// Those of `needed` that this thread is not permitted: root in a container, or under a unit that bounds it, may lack some.
///
/// # Errors
/// capget(2) failed.
pub fn lacking(needed: &[u32]) -> io::Result<Vec<u32>> {
    let held = held()?;
    let permitted = |capability: &&u32| {
        let (word, bit) = place(**capability);
        held[word].permitted & bit != 0
    };
    Ok(needed.iter().filter(|capability| !permitted(capability)).copied().collect())
}

/// Leaves this thread what it has of `kept`, permitted and effective; its inheritable and ambient sets are empty then.
///
/// # Errors
/// prctl(2), capget(2) or capset(2) failed.
pub fn keep_only(kept: &[u32]) -> io::Result<()> {
    // SAFETY: PR_CAP_AMBIENT takes integers and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let have = held()?;
    let mut sets = [Data::default(); 2];
    for &capability in kept {
        let (word, bit) = place(capability);
        // In a container there may be less than all.
        sets[word].permitted |= have[word].permitted & bit;
        sets[word].effective |= have[word].permitted & bit;
    }
    let mut header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: as for capget(2); capset(2) reads both.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
