//! Pinned links: replacing the program behind one, and telling what cgroup it is on, which aya does not do.
//!
//! bpf(2), BPF_OBJ_GET, BPF_LINK_UPDATE (Linux 5.7) and BPF_OBJ_GET_INFO_BY_FD for links (5.8). When a program is replaced, the kernel exchanges the program in one step: each packet and each
//! call meets either the old or the new one, and never none.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::Path;

use super::bpf;

const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;

/// `union bpf_attr` of BPF_LINK_UPDATE.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// `union bpf_attr` of BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`, as it is for a link on a cgroup.
#[repr(C)]
#[derive(Default)]
struct CgroupLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    _padding: u32,
    cgroup: u64,
    attach_type: u32,
    _end: u32,
}

/// BPF_LINK_TYPE_CGROUP.
const ON_A_CGROUP: u32 = 3;

/// The kernel's number for the cgroup that the link pinned at `path` is on; `None` where that is gone.
///
/// # Errors
/// Nothing is pinned there ([`io::ErrorKind::NotFound`]), it is no link on a cgroup, or bpf(2) refused.
pub(super) fn cgroup_of(path: &Path) -> io::Result<Option<u64>> {
    let link = bpf::get(path)?;
    let mut info = CgroupLinkInfo::default();
    let length = u32::try_from(size_of::<CgroupLinkInfo>()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut get = GetInfo {
        bpf_fd: link.as_raw_fd().cast_unsigned(),
        info_len: length,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, which is as long and outlives the call; any bytes are a value.
    unsafe { bpf::call(BPF_OBJ_GET_INFO_BY_FD, &mut get) }?;
    if info.kind != ON_A_CGROUP {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok((info.cgroup != 0).then_some(info.cgroup))
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
