//! A session stands still while its library is probed, and never for longer than somebody watches.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::kernel::cgroup::Hierarchy;

/// How the names of files in the runtime directory begin that say whom a thread holds. Not the pipeline's (`pipeline/still.rs`), which holds
/// sessions too.
const NOTE: &str = "held-for-probes-";

/// A session that is held while its library is probed: by whoever looks through the library, and let go by that one or by whoever has waited
/// long enough for it, from when on nobody holds it any more.
///
/// A daemon that is killed meanwhile would leave it held. So which cgroup it is stands in a file, and the next daemon lets it go.
pub(super) struct Hold {
    hierarchy: Hierarchy,
    note: PathBuf,
    state: Mutex<State>,
    /// When somebody began to look through the library.
    begun: OnceLock<Instant>,
}

enum State {
    /// Id of the session's cgroup, and a process in it or below it.
    Free(u64, u32),
    /// By this file, since then.
    Held(PathBuf, Instant),
    Over,
}

impl Hold {
    /// Of nobody, where there is nobody to hold.
    pub(super) fn new(hierarchy: &Hierarchy, notes: &Path, number: u64, whom: Option<(u64, u32)>) -> Self {
        let note = notes.join(format!("{NOTE}{number}"));
        let state = whom.map_or(State::Over, |(cgroup, process)| State::Free(cgroup, process));
        Self { hierarchy: hierarchy.clone(), note, state: Mutex::new(state), begun: OnceLock::new() }
    }

    /// Somebody begins to look through the library.
    pub(super) fn begin(&self) {
        let _ = self.begun.set(Instant::now());
    }

    /// For how long somebody has looked.
    pub(super) fn lasts(&self) -> Duration {
        self.begun.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    pub(super) fn take(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State::Free(cgroup, process) = *state else { return };
        *state = match self.switch(cgroup, process) {
            Ok(Some(switch)) => State::Held(switch, Instant::now()),
            // Somebody else holds it, and it does nothing.
            Ok(None) => State::Over,
            Err(error) => {
                tracing::warn!(%error, process, "a session is not held while its library is probed");
                State::Over
            }
        };
    }

    /// Freezes the cgroup of that id among those that the process lives in. Answers what thaws it; `None`: it was frozen already.
    fn switch(&self, cgroup: u64, process: u32) -> io::Result<Option<PathBuf>> {
        let memberships = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
        let lives = self.hierarchy.of_process(&memberships).map_err(io::Error::other)?;
        let path = lives
            .path()
            .ancestors()
            .take_while(|path| *path != self.hierarchy.mount())
            .find(|path| fs::metadata(path).is_ok_and(|status| status.ino() == cgroup))
            .ok_or(io::ErrorKind::NotFound)?;
        let switch = path.join("cgroup.freeze");
        if fs::read_to_string(&switch)?.trim() != "0" {
            return Ok(None);
        }
        fs::write(&self.note, switch.as_os_str().as_bytes())?;
        fs::write(&switch, "1")?;
        Ok(Some(switch))
    }

    /// Lets go, for good. Answers how long it was held.
    pub(super) fn let_go(&self) -> Option<Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State::Held(switch, since) = std::mem::replace(&mut *state, State::Over) else { return None };
        if let Err(error) = fs::write(&switch, "0")
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(%error, path = %switch.display(), "a session stays frozen: write 0 there");
        }
        let pause = since.elapsed();
        let _ = fs::remove_file(&self.note);
        Some(pause)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Lets those sessions go that an earlier daemon held when it was killed, as notes in a directory say.
pub(super) fn thaw_what_was_left(notes: &Path) {
    for note in fs::read_dir(notes).into_iter().flatten().flatten() {
        if note.file_name().as_encoded_bytes().starts_with(NOTE.as_bytes()) {
            thaw(&note.path());
        }
    }
}

fn thaw(note: &Path) {
    let Ok(switch) = fs::read(note) else { return };
    let switch = Path::new(OsStr::from_bytes(&switch));
    if switch.file_name() == Some(OsStr::new("cgroup.freeze")) && switch.exists() {
        match fs::write(switch, "0") {
            Ok(()) => {
                tracing::info!(path = %switch.display(), "a session that an earlier daemon held goes on")
            }
            Err(error) => {
                tracing::error!(%error, path = %switch.display(), "a session stays frozen: write 0 there")
            }
        }
    }
    let _ = fs::remove_file(note);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_frozen_is_thawed_and_nothing_else_written() {
        let directory = tempfile::tempdir().unwrap();
        let switch = directory.path().join("cgroup.freeze");
        let other = directory.path().join("other");
        for (named, note, expected) in [
            (&switch, format!("{NOTE}7"), "0"),
            (&other, format!("{NOTE}8"), "1"),
            (&switch, "else".to_owned(), "1"),
        ] {
            let note = directory.path().join(note);
            fs::write(named, "1").unwrap();
            fs::write(&note, named.as_os_str().as_bytes()).unwrap();
            thaw_what_was_left(directory.path());
            assert_eq!(fs::read_to_string(named).unwrap(), expected);
            assert_eq!(note.exists(), note.ends_with("else"));
        }
    }
}
