//! What the API asks of the pipeline thread, which owns sessions, policies and the trail's writing end.
//!
//! Commands travel over a bounded channel; each carries the way back. The pipeline is woken by an eventfd, so a command
//! does not wait for the drain timer.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;
use tokio::sync::{mpsc, oneshot};

use crate::policy::Confinement;
use crate::record::Caller;

/// What shall become a session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// A process that is to be moved into a cgroup of its own, made for the session: the caller of `auditor run`.
    Process(u32),
    /// A cgroup that exists, by its path below the cgroup2 mount or by its whole path.
    Cgroup(PathBuf),
}

/// A request for a session.
#[derive(Clone, Debug)]
pub struct OpenSession {
    /// Name of an agent in the configuration.
    pub agent: String,
    /// What for.
    pub task: Option<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// What is to be watched.
    pub target: Target,
    /// Arguments of the command that is about to run.
    pub command: Option<Vec<String>>,
    /// Whether whoever asks takes from the command what the policy says, before it begins.
    pub confines: bool,
    /// As which user the command will run, if another than who asks.
    pub user: Option<u32>,
    /// Who asks.
    pub caller: Caller,
}

/// What the next daemon can go on with, and who asks for it.
#[derive(Clone, Debug)]
pub struct HandOver {
    /// Version of the journal that it reads.
    pub journal: u32,
    /// Layout of the kernel's tables that it uses.
    pub layout: String,
    /// Who asks.
    pub caller: Caller,
}

/// A session as the API shows it.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SessionState {
    /// Identity.
    pub session: Arc<crate::record::Session>,
    /// Path of its cgroup below the cgroup2 mount.
    pub cgroup: String,
    /// Beginning, epoch milliseconds.
    pub opened: u64,
    /// End, epoch milliseconds; `None` while it lives.
    pub ended: Option<u64>,
    /// What it has done so far.
    pub totals: crate::record::SessionTotals,
    /// Payload bytes that the kernel moved on its connections that have closed.
    pub bytes_moved: u64,
    /// Of these, bytes that were audited, rows that were counted instead of copied included.
    pub bytes_audited: u64,
    /// What its command was left beside destinations; `None` where it was running already.
    pub confinement: Option<Confinement>,
}

/// The daemon's state of health.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DaemonState {
    /// Names of attached kernel programs with the number of cgroups (or 1 for a tracepoint) they are attached to.
    pub programs: Vec<(String, u64)>,
    /// Sessions open now.
    pub sessions: u64,
    /// Connections open now.
    pub connections: u64,
    /// Statements recorded since the start.
    pub statements: u64,
    /// Bytes waiting in the payload ring, and its size.
    pub payload_ring: (u64, u64),
    /// Bytes waiting in the lifecycle ring, and its size.
    pub lifecycle_ring: (u64, u64),
    /// Failures counted by the kernel programs since the start: site, errno, count.
    pub failures: Vec<(String, u32, u64)>,
    /// Sequence number and hash of the last record.
    pub head: (u64, String),
    /// Why nothing is written at the moment, e.g. a full disk; `None` when all is well.
    pub trail_blocked: Option<String>,
    /// Guarantees that this host does not give.
    pub degraded: Vec<String>,
    /// Epoch milliseconds of the start.
    pub started: u64,
    /// Number of the policy generation in force.
    pub generation: u32,
}

/// Why a command was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// What was named does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The request contradicts the state or the configuration.
    #[error("{0}")]
    Invalid(String),
    /// The kernel or the file system refused; what and why.
    #[error("{0}")]
    Failed(String),
}

/// The way back.
pub type Reply<T> = oneshot::Sender<Result<T, CommandError>>;

/// One command.
#[derive(Debug)]
pub enum Command {
    /// Open a session.
    Open(Box<OpenSession>, Reply<SessionState>),
    /// End a session: by its id, or by the path of its cgroup.
    Close(String, Reply<SessionState>),
    /// All sessions of this daemon's life, oldest first.
    Sessions(Reply<Vec<SessionState>>),
    /// Take in all that has happened, and answer the sequence of the last record when it is durable.
    Settle(Reply<u64>),
    /// State of health.
    State(Reply<DaemonState>),
    /// Read the configuration file again; an invalid one changes nothing.
    Reload(Reply<()>),
    /// Write down a use of the API.
    Access(crate::record::Entry),
    /// Write down everything for the next daemon, and end.
    HandOver(Box<HandOver>, Reply<()>),
    /// Stop in good order.
    Stop(Reply<()>),
}

/// The sending end.
#[derive(Clone, Debug)]
pub struct Commander {
    sender: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
}

/// The receiving end, owned by the pipeline thread.
#[derive(Debug)]
pub struct Commands {
    receiver: mpsc::Receiver<Command>,
    wake: Arc<EventFd>,
}

/// Commands under way at most; further callers wait.
const CAPACITY: usize = 64;

/// Makes the channel.
///
/// # Errors
/// eventfd(2) failed.
pub fn channel() -> nix::Result<(Commander, Commands)> {
    use nix::sys::eventfd::EfdFlags;
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let (sender, receiver) = mpsc::channel(CAPACITY);
    Ok((Commander { sender, wake: Arc::clone(&wake) }, Commands { receiver, wake }))
}

impl Commander {
    /// Sends a command made by `build` and waits for the answer.
    ///
    /// # Errors
    /// What the pipeline answered, or [`CommandError::Failed`] when it has stopped.
    pub async fn ask<T>(&self, build: impl FnOnce(Reply<T>) -> Command) -> Result<T, CommandError> {
        let stopped = || CommandError::Failed("the daemon is stopping".to_owned());
        let (reply, answer) = oneshot::channel();
        self.sender.send(build(reply)).await.map_err(|_| stopped())?;
        self.wake();
        answer.await.map_err(|_| stopped())?
    }

    /// Sends a command that has no answer.
    pub async fn tell(&self, command: Command) {
        if self.sender.send(command).await.is_ok() {
            self.wake();
        }
    }

    fn wake(&self) {
        // A full counter (EAGAIN) means that a wake-up is pending already.
        let _ = self.wake.write(1);
    }
}

impl Commands {
    /// The next command, if there is one.
    pub fn take(&mut self) -> Option<Command> {
        self.receiver.try_recv().ok()
    }

    /// Takes no more: whoever waits, or asks from here on, is told that the daemon is stopping.
    pub fn close(&mut self) {
        self.receiver.close();
        while self.take().is_some() {}
    }

    /// Becomes readable when a command waits.
    pub fn wake_descriptor(&self) -> impl AsFd + use<'_> {
        self.wake.as_ref()
    }

    /// Takes pending wake-ups back, before [`Self::take`] is asked.
    pub fn clear_wake(&self) {
        // EAGAIN: nothing was pending.
        let _ = self.wake.read();
    }
}
