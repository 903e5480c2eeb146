//! Directories on a bpffs: what is pinned there outlives the daemon.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::mount::{MsFlags, mount};

/// Mounts bpffs where it is missing.
///
/// # Errors
/// mount(2) failed.
pub fn ensure_mounted(path: &Path) -> nix::Result<()> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    if nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type().0 == BPF_FS_MAGIC) {
        return Ok(());
    }
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
}

/// Makes a directory for pins, for root only.
///
/// # Errors
/// mkdir(2) failed.
pub fn make_directory(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Takes down all that is pinned in a directory, and removes it.
///
/// # Errors
/// unlink(2) or rmdir(2) failed.
pub fn remove_all(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Directories whose names begin with `prefix`; none where they cannot be listed.
pub(super) fn directories(within: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(within).into_iter().flatten().flatten();
    let named =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)));
    named.map(|entry| entry.path()).collect()
}

/// Removes a pin that may be there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
