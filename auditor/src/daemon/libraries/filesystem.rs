//! Whether a file can be read without asking anybody who may not answer.
//!
//! An agent can be a file system itself (FUSE, in a user namespace of its own). Whoever opens or reads a file there waits for the agent, in
//! a way that no signal ends, and the daemon's end would wait for it too. Such a file is not touched.

use std::fs;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::linux::fs::MetadataExt as _;

/// Looks at where a device is mounted, in the process's and in this one's namespace. `Err`: why its files are left alone.
pub(super) fn is_readable(device: (u32, u32), process: u32) -> Result<(), String> {
    // A device with a number of its own is a disk, which nobody but root mounts.
    if device.0 != 0 {
        return Ok(());
    }
    for of in [process.to_string(), "self".to_owned()] {
        let mounts = fs::read_to_string(format!("/proc/{of}/mountinfo")).unwrap_or_default();
        match kind(&mounts, device) {
            Some(kind) if kind == "fuse" || kind.starts_with("fuse.") => {
                return Err(format!("its file system ({kind}) is a program's, for which nobody can wait"));
            }
            Some(_) => return Ok(()),
            None => {}
        }
    }
    // Files that are memory only (memfd_create(2)) are on one that is mounted nowhere.
    if memory().is_some_and(|memory| memory == device) {
        return Ok(());
    }
    Err("its file system is not mounted where this can be seen".to_owned())
}

/// The type of a file system among the lines of mountinfo (proc_pid_mountinfo(5)): `id parent major:minor root place options
/// fields - type source options`.
fn kind(mounts: &str, (major, minor): (u32, u32)) -> Option<&str> {
    let device = format!("{major}:{minor}");
    let mut mounted = mounts.lines().filter(|line| line.split(' ').nth(2) == Some(&device));
    mounted.next()?.split_once(" - ")?.1.split(' ').next()
}

/// The device of files that are memory only.
fn memory() -> Option<(u32, u32)> {
    // SAFETY: a name that ends with NUL.
    let descriptor = unsafe { libc::memfd_create(c"device".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return None;
    }
    // SAFETY: the kernel has just made it for us.
    let file = fs::File::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    let device = file.metadata().ok()?.st_dev();
    Some((libc::major(device), libc::minor(device)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                          37 35 0:52 / /agent rw - fuse.sshfs agent rw,user_id=7\n\
                          38 35 0:5 / /tmp rw shared:3 - tmpfs none rw\n";

    #[test]
    fn the_type_of_a_file_system_is_found_by_its_device() {
        assert_eq!(kind(MOUNTS, (98, 0)), Some("ext3"));
        assert_eq!(kind(MOUNTS, (0, 52)), Some("fuse.sshfs"));
        assert_eq!(kind(MOUNTS, (0, 5)), Some("tmpfs"));
        assert_eq!(kind(MOUNTS, (0, 2)), None);
        assert_eq!(kind("0:5", (0, 5)), None);
    }

    #[test]
    fn files_that_are_memory_can_be_read_and_what_nobody_knows_is_left_alone() {
        assert_eq!(is_readable(memory().unwrap(), std::process::id()), Ok(()));
        assert!(is_readable((0, 999_999), std::process::id()).is_err());
        assert_eq!(is_readable((254, 1), 0), Ok(()));
    }
}
