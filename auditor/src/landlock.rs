//! A Landlock domain that keeps a process, and all that it starts, to its own processes.
//!
//! The kernel measures each access to another process (ptrace(2), `/proc/PID/mem`, process_vm_writev(2), pidfd_getfd(2)) against
//! Landlock's domains, whatever entry it came by: who is in a domain reaches only who is in it too. A filter of system calls
//! cannot say that, because a file below `/proc` is opened like any other. It needs no privilege, and holds for good.
//!
//! The domain restricts nothing else: it handles no file access and no ports, only the scope of signals, because one without
//! anything in it is not to be had. That came with Linux 6.12 (ABI 6). What earlier ones offer would forbid to rename files across
//! directories, so there it is left out; `auditor doctor` says so.

use std::io;

/// The first ABI with scopes.
const ABI_WITH_SCOPES: libc::c_long = 6;
/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: u32 = 1;
/// `LANDLOCK_SCOPE_SIGNAL`.
const SCOPE_SIGNAL: u64 = 2;

/// `struct landlock_ruleset_attr` of ABI 6.
#[repr(C)]
struct Attributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// Whether this kernel can.
pub fn has_scopes() -> bool {
    // SAFETY: with this flag the call takes a null pointer and no length, and answers a number.
    let abi = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Attributes>(), 0_usize, VERSION)
    };
    abi >= ABI_WITH_SCOPES
}

/// Enters the domain, with this thread and whatever it executes or starts.
///
/// # Errors
/// The kernel cannot, or no_new_privs is not set.
pub fn keep_to_own_processes() -> io::Result<()> {
    let attributes = Attributes { handled_access_fs: 0, handled_access_net: 0, scoped: SCOPE_SIGNAL };
    // SAFETY: the kernel reads `attributes`, which lives and has the length that is given.
    let ruleset = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const attributes,
            size_of::<Attributes>(),
            0_u32,
        )
    };
    if ruleset < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call takes a descriptor, which was just made, and flags.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0_u32) };
    let error = io::Error::last_os_error();
    // SAFETY: the descriptor is this function's own, and nobody else has it.
    unsafe { libc::close(ruleset as libc::c_int) };
    if result == 0 { Ok(()) } else { Err(error) }
}
