//! bpf(2) itself, for what aya has no word for. Each structure is the part of `union bpf_attr` (linux/bpf.h) that its command takes, as far
//! as it is used.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;

/// Of BPF_OBJ_PIN and BPF_OBJ_GET.
#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Takes what is pinned in a bpffs.
///
/// # Errors
/// Nothing is pinned there ([`io::ErrorKind::NotFound`]), or the kernel refused.
pub(super) fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Object { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the path ends with NUL and outlives the call.
    unsafe { descriptor(BPF_OBJ_GET, &mut attributes) }
}

/// Keeps a link in a bpffs.
///
/// # Errors
/// The kernel refused.
pub(super) fn pin(link: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes =
        Object { pathname: path.as_ptr() as u64, bpf_fd: link.as_raw_fd().cast_unsigned(), file_flags: 0 };
    // SAFETY: the path ends with NUL and outlives the call.
    unsafe { call(BPF_OBJ_PIN, &mut attributes) }.map(drop)
}

/// bpf(2).
///
/// # Safety
/// `attributes` must be the part of union bpf_attr that `command` takes, with pointers that are valid for what it does.
pub(super) unsafe fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the caller's promise; the kernel takes no more than the size that it is told.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same for a command that answers with a new descriptor.
///
/// # Safety
/// As for [`call`]; the command must be one of those.
pub(super) unsafe fn descriptor<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise is the same.
    let descriptor = unsafe { call(command, attributes) }?;
    let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, for us. bpf(2) sets close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
