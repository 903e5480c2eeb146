//! A cgroup whose processes stand still for a moment, so that what they hold can be looked at: whoever opens, passes on and closes all the
//! time would never be seen whole.
//!
//! The kernel has no freezing that ends with who asked for it. So before, the cgroup's name is written down in the runtime directory; a
//! daemon that finds it there lets them go on, which one that was killed meanwhile could not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::kernel::cgroup::{Cgroup, CgroupError};

/// How long it is waited for.
const WAIT: Duration = Duration::from_millis(250);
/// Between two looks.
const LOOK: Duration = Duration::from_micros(500);
/// Name of the file in the runtime directory.
const MARK: &str = "frozen";

/// See the module. They go on when it is dropped.
pub(super) struct Still {
    /// `None`: somebody else had them stand still before.
    ours: Option<(Cgroup, PathBuf)>,
}

/// Why they do not stand still.
#[derive(Debug, thiserror::Error)]
pub(super) enum StillError {
    /// The cgroup's files.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The mark.
    #[error("write {path}: {error}")]
    Mark {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// One of them waits for something that cannot be interrupted.
    #[error("they did not within {} ms", WAIT.as_millis())]
    Slow,
}

impl Still {
    /// Has all who live in a cgroup and below it stand still, and waits until they do.
    ///
    /// # Errors
    /// They do not. They go on then.
    pub(super) fn begin(cgroup: &Cgroup, runtime_dir: &Path) -> Result<Self, StillError> {
        let ours = if cgroup.is_to_freeze()? {
            None
        } else {
            let path = runtime_dir.join(MARK);
            let mark = serde_json::to_vec(cgroup).map_err(io::Error::other);
            mark.and_then(|mark| fs::write(&path, mark))
                .map_err(|error| StillError::Mark { path: path.clone(), error })?;
            Some((cgroup.clone(), path))
        };
        // From here on it is undone in any case.
        let still = Self { ours };
        if still.ours.is_some() {
            cgroup.freeze(true)?;
        }
        let start = Instant::now();
        while !cgroup.is_frozen()? {
            if start.elapsed() > WAIT {
                return Err(StillError::Slow);
            }
            thread::sleep(LOOK);
        }
        Ok(still)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        if let Some((cgroup, mark)) = &self.ours {
            go_on(cgroup, mark);
        }
    }
}

/// Lets those go on whom a daemon that was killed left standing.
pub(in crate::daemon) fn release_left(runtime_dir: &Path) {
    let mark = runtime_dir.join(MARK);
    let text = match fs::read(&mark) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            tracing::error!(%error, path = %mark.display(), "whether a cgroup was left standing still is not known");
            return;
        }
    };
    match serde_json::from_slice::<Cgroup>(&text) {
        Ok(cgroup) => go_on(&cgroup, &mark),
        // It is written before anybody is stopped: half of it means that nobody was.
        Err(_) => remove(&mark),
    }
}

fn go_on(cgroup: &Cgroup, mark: &Path) {
    match cgroup.freeze(false) {
        Ok(()) => remove(mark),
        // With all who lived in it.
        Err(error) if error.is_gone() => remove(mark),
        Err(error) => tracing::error!(%error, "processes stand still: write 0 to cgroup.freeze"),
    }
}

fn remove(mark: &Path) {
    if let Err(error) = fs::remove_file(mark) {
        tracing::warn!(%error, path = %mark.display(), "a note of a cgroup that stood still stays");
    }
}
