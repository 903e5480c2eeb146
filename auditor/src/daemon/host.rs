//! What this host is called, for records: read once, from files whose roots are given.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::record::ocsf::Host;

/// Reads hostname, machine id, boot id, operating system and kernel release.
///
/// `root`: `/`, or a test's own. A machine without machine-id (a container image) has none; everything else that cannot be
/// read is said to be `unknown`.
pub(super) fn read(root: &Path) -> Host {
    let text = |path: &str| {
        fs::read_to_string(root.join(path))
            .ok()
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
    };
    let known = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
    Host {
        hostname: known(text("proc/sys/kernel/hostname")),
        machine_id: text("etc/machine-id"),
        boot_id: known(text("proc/sys/kernel/random/boot_id")),
        os: text("etc/os-release").as_deref().and_then(pretty_name).unwrap_or_else(|| "Linux".to_owned()),
        kernel: known(text("proc/sys/kernel/osrelease")),
    }
}

/// Whether process ids are the same here as in the kernel programs. `procfs`: where proc(5) is mounted.
///
/// The first namespace of its kind has a number of its own (include/linux/proc_ns.h, PROC_PID_INIT_INO).
///
/// # Errors
/// stat(2) failed.
pub(super) fn is_in_first_pid_namespace(procfs: &Path) -> io::Result<bool> {
    const FIRST: u64 = 0xefff_fffc;
    Ok(fs::metadata(procfs.join("self/ns/pid"))?.ino() == FIRST)
}

/// `PRETTY_NAME` of os-release(5).
fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_unknown() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/os-release"), "ID=debian\nPRETTY_NAME=\"Debian 12\"\n").unwrap();
        let host = read(root.path());
        assert_eq!(
            (host.os.as_str(), host.boot_id.as_str(), host.machine_id),
            ("Debian 12", "unknown", None)
        );
    }
}
