//! Pinned links: replacing the program behind one, which aya does not do for programs on cgroups.
//!
//! bpf(2), BPF_OBJ_GET and BPF_LINK_UPDATE (Linux 5.7). The kernel exchanges the program in one step: each packet and each
//! call meets either the old or the new one, and never none.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::Path;

use super::bpf;

const BPF_LINK_UPDATE: libc::c_long = 29;

/// `union bpf_attr` of BPF_LINK_UPDATE.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Puts a program behind the link that is pinned at `path`.
///
/// # Errors
/// Nothing is pinned there ([`io::ErrorKind::NotFound`]), what the link was on is gone (ENOLINK), or bpf(2) refused.
pub(super) fn replace_program(path: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = bpf::get(path)?;
    let mut update = LinkUpdate {
        link_fd: link.as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: numbers only.
    unsafe { bpf::call(BPF_LINK_UPDATE, &mut update) }.map(drop)
}
