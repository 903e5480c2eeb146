//! A cgroup of a test's own: a place outside of all sessions, or one to be tagged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::daemon::{Daemon, cgroup_mount};

/// It is removed when it is dropped.
#[derive(Debug)]
pub struct OwnCgroup {
    path: PathBuf,
    name: String,
}

impl OwnCgroup {
    /// Makes it.
    ///
    /// # Errors
    /// The caller is not root, or there is no cgroup2 hierarchy.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        Self::make(cgroup_mount()?.join(&name), format!("/{name}"))
    }

    /// The same, as a session of `agent`.
    ///
    /// # Errors
    /// See [`Self::new`]; or the daemon refuses.
    pub fn tagged(daemon: &Daemon, agent: &str) -> Result<Self> {
        let cgroup = Self::new()?;
        cgroup.tag(daemon, agent)?;
        Ok(cgroup)
    }

    /// Makes one below it, to be dropped before it is.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn below(&self, name: &str) -> Result<Self> {
        Self::make(self.path.join(name), format!("{}/{name}", self.name))
    }

    fn make(path: PathBuf, name: String) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path, name })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path in the hierarchy, as procfs has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes it a session of `agent`.
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn tag(&self, daemon: &Daemon, agent: &str) -> Result<()> {
        let path = self.path.to_str().context("the cgroup's path")?;
        daemon.ask(&["tag", "--agent", agent, "--cgroup", path]).map(drop)
    }

    /// Ends the session that it is.
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn untag(&self, daemon: &Daemon) -> Result<()> {
        let path = self.path.to_str().context("the cgroup's path")?;
        daemon.ask(&["untag", "--cgroup", path]).map(drop)
    }

    /// A command that moves itself into the cgroup before it becomes `program`, as root.
    pub fn command(&self, program: &str) -> Command {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&self.path).arg(program);
        shell
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn take_in(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// Removes it, once nobody lives in it any more.
    ///
    /// # Errors
    /// Somebody does, for longer than an end takes.
    pub fn remove(&self) -> io::Result<()> {
        let start = Instant::now();
        loop {
            match fs::remove_dir(&self.path) {
                // Processes that were killed take a moment to leave it; those of a failed test end with that.
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy
                        && start.elapsed() < Duration::from_secs(2) =>
                {
                    thread::sleep(Duration::from_millis(10));
                }
                result => return result,
            }
        }
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        // It stays while somebody lives in it; then there is a failure to read about already.
        let _ = self.remove();
    }
}
