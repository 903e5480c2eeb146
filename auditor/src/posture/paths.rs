//! Rules that allow a unix socket by its path, where others than root decide to which socket the path leads.
//!
//! The kernel decides by the name that is given. Whoever may write in a directory on the way, or owns it, can put another socket or a
//! link there under the same name.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::config::Settings;
use crate::policy::Action;

/// One sentence for each path that is allowed and not in root's hands alone. A directory that does not exist is not looked at.
pub fn doubts(settings: &Settings) -> Vec<String> {
    let rules = settings.policies.iter().flat_map(|policy| &policy.rules);
    let allowed = rules.filter(|rule| rule.action == Action::Allow).flat_map(|rule| &rule.sockets);
    let mut doubts: Vec<String> = allowed
        .filter(|socket| socket.is_path())
        .filter_map(|socket| {
            let path = Path::new(std::ffi::OsStr::from_bytes(socket.bytes()));
            let directory = if socket.is_directory() { path } else { path.parent()? };
            let open = open_directory(directory)?;
            Some(format!(
                "{socket} is allowed by its path, and others than root may put another socket there: {open}"
            ))
        })
        .collect();
    doubts.sort_unstable();
    doubts.dedup();
    doubts
}

/// The first directory on the way that others than root may change, links followed.
fn open_directory(directory: &Path) -> Option<String> {
    let resolved = fs::canonicalize(directory).ok()?;
    // Both ways: the one that is written, whose links can be exchanged, and the one that it leads to.
    let ways =
        [directory, &resolved].map(|way| way.ancestors().map(Path::to_owned).collect::<Vec<PathBuf>>());
    ways.iter().flatten().find_map(|directory| {
        let metadata = fs::metadata(directory).ok()?;
        (metadata.uid() != 0 || metadata.mode() & 0o022 != 0).then(|| {
            let (uid, gid, mode) = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
            format!("{} is of user {uid}, group {gid}, mode {mode:04o}", directory.display())
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_directory_that_others_may_write_in_is_named() {
        assert!(nix::unistd::geteuid().is_root(), "this test makes directories of root and must run as root");
        // Not in /tmp, which everybody may write in.
        let scratch = tempfile::tempdir_in("/run").unwrap();
        let directory = scratch.path().join("sockets");
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(open_directory(&directory), None);
        let link = scratch.path().join("link");
        symlink(&directory, &link).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o2775)).unwrap();
        for way in [&directory, &link] {
            let open = open_directory(way).unwrap();
            assert!(open.contains("mode 2775"), "{open}");
        }
    }
}
