//! Gives up all capabilities, in all five sets, by the calls of capabilities(7).

use std::io;

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
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
#[derive(Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Empties the bounding set: no program executed from here on can hand out a capability.
///
/// This itself takes CAP_SETPCAP. A caller without it keeps the bounding set, and gains nothing by that, because
/// no_new_privs makes execve(2) ignore file capabilities and set-user-id bits.
pub(super) fn drop_bounding() -> io::Result<()> {
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

/// Empties the ambient, permitted, effective and inheritable sets of this thread.
pub(super) fn drop_all() -> io::Result<()> {
    // SAFETY: PR_CAP_AMBIENT takes integers and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let header = Header { version: VERSION_3, pid: 0 };
    let nothing = [Data::default(), Data::default()];
    // SAFETY: capset(2) of version 3 reads one header and two data elements; both outlive the call and have the kernel's layout
    // (`repr(C)`, 32-bit fields only). It writes to the header only when the version is unknown, which this one is not.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, nothing.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
