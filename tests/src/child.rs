//! Processes that end with the value that owns them.
//!
//! Drop ends a child by its id. In case the owner is killed and nothing is dropped, the kernel does it
//! (PR_SET_PDEATHSIG). That signal follows the *thread* that started the child, so a child must be started from a thread that
//! outlives it; tests and the xtask do so from the only thread they have.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, User};

/// How often a child is asked whether it has ended.
const POLL: Duration = Duration::from_millis(5);
/// What a child gets to end in good order when it is dropped.
const DROP_LIMIT: Duration = Duration::from_secs(5);

/// A running process.
#[derive(Debug)]
pub struct Child {
    inner: std::process::Child,
    name: String,
    farewell: Signal,
}

impl Child {
    /// Starts `command`. On drop it gets `farewell`, and SIGKILL if it has not ended five seconds later.
    ///
    /// # Errors
    /// The program could not be started.
    pub fn start(command: &mut Command, farewell: Signal) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let inner = die_with_parent(command).spawn().with_context(|| format!("{name} did not start"))?;
        Ok(Self { inner, name, farewell })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.inner.id()
    }

    /// What the process reads from, if it is a pipe and was not taken yet.
    pub fn take_stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.inner.stdin.take()
    }

    /// What it writes to stdout, if that was piped; the first caller gets it.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.inner.stdout.take()
    }

    /// What it writes to stderr, if that was piped; the first caller gets it.
    pub fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.inner.stderr.take()
    }

    /// Its status, if it has ended.
    ///
    /// # Errors
    /// waitpid(2) failed.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.inner.try_wait().with_context(|| format!("waiting for {}", self.name))
    }

    /// Waits until a server answers. `false`: it has ended instead, as it does when its port is taken.
    ///
    /// # Errors
    /// It has not answered within `limit`, or cannot be asked.
    pub fn comes_up(&mut self, limit: Duration, mut answers: impl FnMut() -> Result<bool>) -> Result<bool> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if self.ended()?.is_some() {
                return Ok(false);
            }
            if answers()? {
                return Ok(true);
            }
            // Whoever asks may start a program for it.
            thread::sleep(Duration::from_millis(20));
        }
        bail!("{} is not ready after {} s", self.name, limit.as_secs())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It has not ended within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!("{} has not ended after {} s", self.name, limit.as_secs());
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.ended(), Ok(Some(_))) {
            return;
        }
        // An error here means that it has just ended.
        let _ = self.signal(self.farewell);
        if self.wait(DROP_LIMIT).is_err() {
            let _ = self.inner.kill();
            let _ = self.inner.wait();
        }
    }
}

/// Runs `command` to its end and returns what it wrote.
///
/// # Errors
/// It could not be started, or has not ended within `limit`; then it is killed.
pub fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    // A process group of its own: what the program has started holds our pipes too and must end with it.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = Child::start(command, Signal::SIGKILL)?;
    let out = child.take_stdout().map(collect);
    let err = child.take_stderr().map(collect);
    let status = child.wait(limit);
    if status.is_err() {
        let group = Pid::from_raw(i32::try_from(child.id()).context("process id")?);
        killpg(group, Signal::SIGKILL).context("ending a process group")?;
    }
    drop(child);
    let read = |reader: Option<thread::JoinHandle<io::Result<Vec<u8>>>>| match reader
        .map(thread::JoinHandle::join)
    {
        Some(Ok(bytes)) => bytes.context("a pipe"),
        Some(Err(_)) => Err(anyhow!("a reader of a pipe has panicked")),
        None => Ok(Vec::new()),
    };
    let (stdout, stderr) = (read(out)?, read(err)?);
    let status = status.with_context(|| format!("stderr so far: {}", String::from_utf8_lossy(&stderr)))?;
    Ok(Output { status, stdout, stderr })
}

/// Like [`output`], and a status other than 0 is an error that tells what was written.
///
/// # Errors
/// See [`output`].
pub fn succeed(command: &mut Command, limit: Duration) -> Result<String> {
    let done = output(command, limit)?;
    let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    if !done.status.success() {
        bail!("{command:?} failed, {}\nstdout: {stdout}\nstderr: {stderr}", done.status);
    }
    Ok(stdout.into_owned())
}

/// Lets `command` run as `user` with that user's group and no other.
pub fn as_user<'a>(command: &'a mut Command, user: &User) -> &'a mut Command {
    command.uid(user.uid.as_raw()).gid(user.gid.as_raw())
}

/// The first of `names` that this host has.
///
/// # Errors
/// It has none of them.
pub fn find_user(names: &[&str]) -> Result<User> {
    for name in names {
        if let Some(user) = User::from_name(name).with_context(|| format!("looking up user {name}"))? {
            return Ok(user);
        }
    }
    bail!("this host has none of the users {}", names.join(", "))
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<io::Result<Vec<u8>>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes)?;
        Ok(bytes)
    })
}

/// The standard library changes the user before it runs this hook; the other way round the kernel would clear the wish.
fn die_with_parent(command: &mut Command) -> &mut Command {
    let hook = || prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from);
    // SAFETY: between fork and exec the hook makes one system call, prctl(2), and touches neither memory nor locks of the
    // parent.
    unsafe { command.pre_exec(hook) }
}
