//! Programs on tagged cgroups whose session no daemon knows any more: what that one knew was lost, or it was killed before it
//! had written the session down.
//!
//! The rule: their cgroup stays closed, in either fail mode, because nobody knows whose rules would be in force. This daemon's
//! programs take the place of the old ones, so that none goes on with rules and rings that nobody keeps, and without a session
//! they refuse. A tag of the cgroup takes the links over, without a moment in between; else they go with the cgroup, or when a
//! daemon stops in good order and takes everything down.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::bpffs;
use super::cgroup::Cgroup;
use super::link;
use super::object::hook_names;

const PREFIX: &str = "session-";

/// Where the links of a tagged cgroup's session are pinned. `id`: the session's.
pub fn session_pins(pins: &Path, id: &str) -> PathBuf {
    pins.join(format!("{PREFIX}{id}"))
}

/// Ids of all sessions whose links are pinned.
///
/// # Errors
/// The directory cannot be read.
pub fn pinned_sessions(pins: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(pins)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| name.strip_prefix(PREFIX)).map(str::to_owned));
    }
    found.sort_unstable();
    Ok(found)
}

/// Makes the links that a session of another time left on `cgroup` those of session `id`. Answers whether there were any.
///
/// # Errors
/// A directory cannot be read or renamed.
pub fn inherit(pins: &Path, cgroup: &Cgroup, id: &str) -> io::Result<bool> {
    let mut inherited = false;
    for left in pinned_sessions(pins)?.iter().filter(|left| *left != id) {
        let directory = session_pins(pins, left);
        if cgroup_of(&directory)? != Some(cgroup.id()) {
            continue;
        }
        let own = session_pins(pins, id);
        if own.exists() {
            // Two sessions' on one cgroup: what there was of the first is enough.
            bpffs::remove_all(&directory)?;
        } else {
            fs::rename(&directory, &own)?;
        }
        inherited = true;
    }
    Ok(inherited)
}

/// The cgroup that the links of a directory are on; `None` where it is gone, or where there are none.
///
/// # Errors
/// The directory cannot be read, or the kernel does not tell.
pub(super) fn cgroup_of(directory: &Path) -> io::Result<Option<u64>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().and_then(OsStr::to_str).is_none_or(|name| !hook_names().any(|hook| hook == name))
        {
            continue;
        }
        match link::cgroup_of(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    Ok(None)
}
