//! A daemon of the auditor that lives as long as a value, with its own state, socket, pins and configuration.
//!
//! It is the built program, driven through its command line only: the harness knows what a user knows. Whether it left
//! anything behind is looked up in the kernel's own file systems, not asked of it; and only below the cgroup that is named
//! after its runtime directory, because other daemons may be at work on this host.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::child::{self, Child};
use crate::place;

/// How long a start may take before the test gives up; what it should take is for the test to say.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a daemon may take to stop in good order.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long a command of the auditor may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// The same for one that prints the whole trail of a long test.
const LOG_LIMIT: Duration = Duration::from_secs(600);

/// Where a daemon keeps its things.
#[derive(Debug)]
pub struct Home {
    folder: TempDir,
    /// Of `runtime`.
    _memory: TempDir,
    /// `--state-dir`; a test may put something else there, such as a small file system.
    pub state: PathBuf,
    /// `--runtime-dir`
    pub runtime: PathBuf,
    /// `--pin-dir`
    pub pins: PathBuf,
    /// Further arguments of `auditor daemon`.
    pub daemon_arguments: Vec<OsString>,
    /// `--replace`
    pub replace: bool,
    program: PathBuf,
}

impl Home {
    /// Makes the folders and writes the configuration; `program` is the daemon's.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn new(program: PathBuf, configuration: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let folder = place::scratch()?;
        let memory = place::volatile_scratch()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let home = Self {
            state: folder.path().join("state"),
            runtime: memory.path().join("run"),
            pins: PathBuf::from(format!("/sys/fs/bpf/auditor-test-{}-{number}", std::process::id())),
            daemon_arguments: Vec::new(),
            replace: false,
            folder,
            _memory: memory,
            program,
        };
        fs::write(home.configuration(), configuration).context("cannot write the configuration")?;
        Ok(home)
    }

    /// For another daemon at the same places, with the same configuration.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn next(&self) -> Result<Self> {
        let configuration =
            fs::read_to_string(self.configuration()).context("cannot read the configuration")?;
        let mut next = Self::new(self.program.clone(), &configuration)?;
        next.state.clone_from(&self.state);
        next.runtime.clone_from(&self.runtime);
        next.pins.clone_from(&self.pins);
        Ok(next)
    }

    /// `--config`
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("auditor.toml")
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.runtime.join("auditor.sock")
    }

    /// The cgroup below which the daemon makes its sessions.
    ///
    /// # Errors
    /// No cgroup2 file system is mounted.
    pub fn cgroup(&self) -> Result<PathBuf> {
        let digest = Sha256::digest(self.runtime.as_os_str().as_encoded_bytes());
        let digits: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Ok(cgroup_mount()?.join(format!("auditor-{digits}")))
    }

    /// The folder of the trail's segments.
    pub fn trail(&self) -> PathBuf {
        self.state.join("trail")
    }

    /// A folder for the test's own files, which every user may enter.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The command that starts the daemon.
    pub fn daemon(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("daemon").arg("--config").arg(self.configuration());
        command.arg("--state-dir").arg(&self.state).arg("--runtime-dir").arg(&self.runtime);
        command.arg("--pin-dir").arg(&self.pins).args(&self.daemon_arguments).env_remove("NOTIFY_SOCKET");
        if self.replace {
            command.arg("--replace");
        }
        command
    }

    /// A client command of the auditor, such as `log` or `status`.
    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("AUDITOR_SOCKET", self.socket()).env("NO_COLOR", "1");
        command
    }

    /// `auditor run` of `words` in a session of `agent`, as `user`.
    pub fn run(&self, agent: &str, user: &str, words: &[impl AsRef<std::ffi::OsStr>]) -> Command {
        let mut command = self.client(&["run", "--agent", agent, "--user", user, "--"]);
        // The place where the agent starts must be one that it may read.
        command.args(words).current_dir(self.folder());
        command
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    home: Home,
    said: Arc<Mutex<String>>,
    ready_after: Duration,
    cgroups_before: BTreeSet<PathBuf>,
}

impl Daemon {
    /// Kills it (SIGKILL), and returns when nothing of it is left: its first thread may be dead while others still hold the
    /// socket.
    ///
    /// # Errors
    /// kill(2) failed, or procfs cannot be read.
    pub fn kill(&self) -> Result<()> {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.id().cast_signed()), Signal::SIGKILL)?;
        let folder = PathBuf::from(format!("/proc/{}", self.id()));
        while !fs::read_to_string(folder.join("stat"))?.contains(") Z ")
            || fs::read_dir(folder.join("task"))?.count() > 1
        {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Starts the daemon that `cargo xtask build` left and waits until it is ready.
    ///
    /// # Errors
    /// The caller is not root, nothing is built, or the daemon does not get ready; what it said is part of the error.
    pub fn start(configuration: &str) -> Result<Self> {
        Self::start_in(Home::new(place::auditor("debug")?, configuration)?)
    }

    /// The same with folders and a program of the caller's.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub fn start_in(home: Home) -> Result<Self> {
        crate::require_root()?;
        let cgroups_before = cgroups(&home.cgroup()?);
        let mut command = home.daemon();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let said = Arc::new(Mutex::new(String::new()));
        let (sender, ready) = mpsc::channel();
        let start = Instant::now();
        let mut child = Child::start(&mut command, Signal::SIGTERM)?;
        if let Some(pipe) = child.take_stdout() {
            follow(pipe, Arc::clone(&said), sender.clone());
        }
        if let Some(pipe) = child.take_stderr() {
            follow(pipe, Arc::clone(&said), sender);
        }
        // Both readers hang up when the daemon ends: then there is nothing to wait for.
        let ready = ready.recv_timeout(START_LIMIT);
        let mut daemon = Self { child, home, said, ready_after: start.elapsed(), cgroups_before };
        match ready {
            Ok(at) => daemon.ready_after = at.duration_since(start),
            Err(_) => {
                let status =
                    daemon.child.ended()?.map_or("still running".to_owned(), |status| status.to_string());
                bail!("the daemon is not READY ({status}); it said: {}", daemon.said());
            }
        }
        // Looking for leftovers in the wrong place would find none, ever.
        let cgroup = daemon.home.cgroup()?;
        if !cgroup.is_dir() {
            bail!("the daemon has not made {}: the harness and it disagree about its name", cgroup.display());
        }
        Ok(daemon)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// It has not within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        self.child.wait(limit)
    }

    /// Where it keeps its things.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Time from its start to READY.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Everything that it has written to stdout and stderr.
    pub fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs `words` in a session of `agent` as `user`, to the end.
    ///
    /// # Errors
    /// It did not start or did not end.
    pub fn run(&self, agent: &str, user: &str, words: &[impl AsRef<std::ffi::OsStr>]) -> Result<Output> {
        child::output(&mut self.home.run(agent, user, words), COMMAND_LIMIT)
            .with_context(|| format!("the daemon said: {}", self.said()))
    }

    /// Runs a client command that must succeed; returns what it printed.
    ///
    /// # Errors
    /// It failed.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        child::succeed(&mut self.home.client(arguments), COMMAND_LIMIT)
            .with_context(|| format!("the daemon said: {}", self.said()))
    }

    /// The whole trail, oldest record first.
    ///
    /// # Errors
    /// `auditor log` failed or printed something that is not JSON.
    pub fn records(&self) -> Result<Vec<Value>> {
        let text = child::succeed(&mut self.home.client(&["log", "--json"]), LOG_LIMIT)
            .with_context(|| format!("the daemon said: {}", self.said()))?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("a record: {line}")))
            .collect()
    }

    /// The daemon's own account of its health.
    ///
    /// # Errors
    /// `auditor status` failed.
    pub fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.ask(&["status", "--json"])?).context("auditor status --json")
    }

    /// Waits until no session is open: the daemon learns of the end of a session's last process a moment after its parent does.
    ///
    /// # Errors
    /// Sessions are still open after some seconds.
    pub fn settle(&self) -> Result<()> {
        let start = Instant::now();
        while self.status()?["sessions"] != 0 {
            if start.elapsed() > Duration::from_secs(10) {
                bail!("sessions are still open: {}", self.ask(&["sessions", "--live"])?);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Stops it in good order and checks that nothing of it is left in the kernel. Its folders stay until the result is dropped.
    ///
    /// # Errors
    /// It ended with another status than 0, not in time, or something is left.
    pub fn stop(mut self) -> Result<Stopped> {
        self.child.signal(Signal::SIGTERM)?;
        let status =
            self.child.wait(STOP_LIMIT).with_context(|| format!("the daemon said: {}", self.said()))?;
        if !status.success() {
            bail!("the daemon stopped with {status}; it said: {}", self.said());
        }
        let left: Vec<String> = self.leftovers()?.iter().map(|path| path.display().to_string()).collect();
        if !left.is_empty() {
            bail!("the daemon left {} behind; it said: {}", left.join(", "), self.said());
        }
        let said = self.said();
        let socket = self.home.socket();
        if socket.exists() {
            bail!("the daemon left its socket {} behind", socket.display());
        }
        Ok(Stopped { said, trail: self.home.trail(), _daemon: self })
    }

    /// Cgroups of its own that were not there before, and pins.
    fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let mut left: Vec<PathBuf> =
            cgroups(&self.home.cgroup()?).difference(&self.cgroups_before).cloned().collect();
        if let Ok(pins) = fs::read_dir(&self.home.pins) {
            left.extend(pins.flatten().map(|entry| entry.path()));
        }
        Ok(left)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // End the process first, so that nothing is made again behind our back.
        if matches!(self.child.ended(), Ok(None)) && self.child.signal(Signal::SIGTERM).is_ok() {
            let _ = self.child.wait(STOP_LIMIT);
        }
        let _ = fs::remove_dir_all(&self.home.pins);
        // Deepest first: a cgroup with children cannot be removed. One that has processes stays and is not ours to empty.
        for path in self.leftovers().unwrap_or_default().iter().rev() {
            let _ = fs::remove_dir(path);
        }
    }
}

/// A daemon that has stopped; its trail is still there.
#[derive(Debug)]
pub struct Stopped {
    /// What it had to say in its life.
    pub said: String,
    /// The folder of the trail's segments.
    pub trail: PathBuf,
    _daemon: Daemon,
}

/// The mount point of cgroup2, wherever this host has it.
///
/// # Errors
/// There is none.
pub fn cgroup_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let point = fields.nth(1)?;
        (fields.next() == Some("cgroup2")).then(|| PathBuf::from(point))
    });
    mount.context("no cgroup2 file system is mounted")
}

/// A cgroup, if it is there, and all below it.
fn cgroups(top: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![top.to_owned()];
    while let Some(folder) = open.pop() {
        // A cgroup may go between being listed and being read.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        open.extend(directories.map(|entry| entry.path()));
        found.insert(folder);
    }
    found
}

/// Keeps what the daemon says, and tells when it says READY.
fn follow(pipe: impl Read + Send + 'static, said: Arc<Mutex<String>>, ready: Sender<Instant>) {
    thread::spawn(move || {
        let mut ready = Some(ready);
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            let is_ready = line.split(|c: char| !c.is_ascii_alphabetic()).any(|word| word == "READY");
            if is_ready && let Some(ready) = ready.take() {
                // The receiver is gone once the daemon was ready: nothing to tell then.
                let _ = ready.send(Instant::now());
            }
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push_str(&line);
            said.push('\n');
        }
    });
}
