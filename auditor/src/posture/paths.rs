//! Rules that allow a unix socket by its path, where others than root decide to which socket the path leads.
//!
//! The kernel decides by the name that is given. Whoever may write in a directory on the way, or owns it, can put another socket or a
//! link there under the same name, or make what is missing. So the way is gone as the kernel goes it, one component after the other and
//! into each link, as far as it exists.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use crate::config::Settings;
use crate::policy::Action;

/// Links that the kernel follows on one way (path_resolution(7)).
const LINKS: u32 = 40;
/// What each of the sentences says.
const DOUBT: &str = "is allowed by its path, and others than root may put another socket there";

/// One sentence for each path that is allowed and not in root's hands alone.
pub fn doubts(settings: &Settings) -> Vec<String> {
    let rules = settings.policies.iter().flat_map(|policy| &policy.rules);
    let allowed = rules.filter(|rule| rule.action == Action::Allow).flat_map(|rule| &rule.sockets);
    let mut doubts: Vec<String> = allowed
        .filter(|socket| socket.is_path())
        .filter_map(|socket| {
            let open = open_directory(Path::new(std::ffi::OsStr::from_bytes(socket.bytes())))?;
            Some(format!("{socket} {DOUBT}: {open}"))
        })
        .collect();
    doubts.sort_unstable();
    doubts.dedup();
    doubts
}

/// Puts the sentences about these settings in the place of those about earlier ones. Answers how many there are.
pub fn renew(degraded: &mut Vec<String>, settings: &Settings) -> usize {
    degraded.retain(|sentence| !sentence.contains(DOUBT));
    let doubts = doubts(settings);
    let count = doubts.len();
    degraded.extend(doubts);
    count
}

/// The first directory on the way that others than root may change.
fn open_directory(path: &Path) -> Option<String> {
    let parts = |path: &Path| -> Vec<OsString> {
        let parts =
            path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
        parts.map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut ahead = VecDeque::from(parts(path));
    let mut at = PathBuf::from("/");
    let mut links = 0;
    loop {
        match fs::symlink_metadata(&at) {
            Ok(metadata) if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 => {
                let (uid, gid, mode) = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
                return Some(format!("{} is of user {uid}, group {gid}, mode {mode:04o}", at.display()));
            }
            Ok(_) => {}
            Err(error) => return unknown(&at, &error),
        }
        // To the next directory that is none of links.
        loop {
            let next = ahead.pop_front()?;
            if next == ".." {
                at.pop();
                break;
            }
            let there = at.join(next);
            let metadata = match fs::symlink_metadata(&there) {
                Ok(metadata) => metadata,
                Err(error) => return unknown(&there, &error),
            };
            if metadata.is_dir() {
                at = there;
                break;
            }
            if !metadata.is_symlink() {
                // The socket, or what the way ends at.
                return None;
            }
            links += 1;
            if links > LINKS {
                return Some(format!("{} leads through more than {LINKS} links", path.display()));
            }
            let target = match fs::read_link(&there) {
                Ok(target) => target,
                Err(error) => return unknown(&there, &error),
            };
            for part in parts(&target).into_iter().rev() {
                ahead.push_front(part);
            }
            if target.is_absolute() {
                at = PathBuf::from("/");
                break;
            }
        }
    }
}

/// What cannot be looked at. Nobody but root makes what is missing: the directory that it would be in was looked at.
fn unknown(path: &Path, error: &io::Error) -> Option<String> {
    (error.kind() != io::ErrorKind::NotFound).then(|| format!("{} is not known: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn scratch() -> tempfile::TempDir {
        assert!(nix::unistd::geteuid().is_root(), "this test makes directories of root and must run as root");
        // Not in /tmp, which everybody may write in.
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir_in("/run").unwrap()
    }

    fn directory(path: &Path, mode: u32) {
        fs::create_dir(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_directory_that_others_may_write_in_is_named() {
        let scratch = scratch();
        let sockets = scratch.path().join("sockets");
        directory(&sockets, 0o755);
        assert_eq!(open_directory(&sockets.join("socket")), None);
        let link = scratch.path().join("link");
        symlink(&sockets, &link).unwrap();
        fs::set_permissions(&sockets, fs::Permissions::from_mode(0o2775)).unwrap();
        for way in [&sockets, &link] {
            let open = open_directory(&way.join("socket")).unwrap();
            assert!(open.contains("mode 2775"), "{open}");
        }
    }

    #[test]
    fn what_is_missing_is_in_the_hands_of_whoever_can_make_it() {
        let scratch = scratch();
        let (ours, theirs) = (scratch.path().join("ours"), scratch.path().join("theirs"));
        directory(&ours, 0o755);
        directory(&theirs, 0o777);
        assert_eq!(open_directory(&ours.join("missing/socket")), None);
        let open = open_directory(&theirs.join("missing/deeper/socket")).unwrap();
        assert!(open.contains("mode 0777"), "{open}");
    }

    #[test]
    fn links_are_followed_wherever_they_stand() {
        let scratch = scratch();
        let (ours, theirs) = (scratch.path().join("ours"), scratch.path().join("theirs"));
        directory(&ours, 0o755);
        directory(&theirs, 0o777);
        // The last component; one that leads through a directory of theirs and back; a relative one; one that leads nowhere.
        symlink(theirs.join("socket"), ours.join("last")).unwrap();
        directory(&theirs.join("back"), 0o755);
        symlink(&ours, theirs.join("back/home")).unwrap();
        symlink("../theirs/back/home", ours.join("through")).unwrap();
        for name in ["last", "through/socket", "through/through/socket"] {
            let open = open_directory(&ours.join(name)).unwrap_or_default();
            assert!(open.contains("theirs") && open.contains("mode 0777"), "{name}: {open}");
        }
        symlink("nowhere", ours.join("nothing")).unwrap();
        assert_eq!(open_directory(&ours.join("nothing")), None);
        symlink("round", ours.join("round")).unwrap();
        assert!(open_directory(&ours.join("round")).unwrap().contains("links"));
    }
}
