//! Errors of the daemon as a whole, each with what to do about it.

use std::io;
use std::path::PathBuf;

use super::pipeline::PipelineError;
use crate::api::server::BindError;
use crate::config;
use crate::kernel::cgroup::CgroupError;
use crate::kernel::object::KernelError;
use crate::kernel::tables::TableError;
use crate::trail;

/// Why the daemon did not start, or did not go on. Each message is one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Not root.
    #[error("the daemon loads programs into the kernel: run it as root")]
    NotRoot,
    /// Root, but not all of it.
    #[error(
        "the daemon lacks {0}: give them to its container or unit (CapabilityBoundingSet=), or run it on the host"
    )]
    Capabilities(String),
    /// Process ids mean something else here than in the kernel programs.
    #[error(
        "the daemon runs in a PID namespace of its own, where processes have other numbers than in the kernel's records: run it in the \
         host's (docker run --pid=host; hostPID: true)"
    )]
    PidNamespace,
    /// The configuration.
    #[error(transparent)]
    Configuration(#[from] config::LoadError),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// The trail.
    #[error(transparent)]
    Trail(#[from] trail::Error),
    /// The cgroup hierarchy.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// What the configuration asks for.
    #[error("{}; or write `degraded = \"allow\"` in [daemon] to start without, which is recorded", .0.join("; "))]
    Guarantees(Vec<String>),
    /// The programs.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The tables.
    #[error(transparent)]
    Table(#[from] TableError),
    /// bpffs.
    #[error(
        "bpffs is not mounted at {path} and mounting it failed: {error}; mount it with `mount -t bpf bpf {path}`"
    )]
    Bpffs {
        /// Where it belongs.
        path: PathBuf,
        /// mount(2)'s error.
        error: nix::Error,
    },
    /// A call that failed.
    #[error("{call}: {error}")]
    Call {
        /// What was tried.
        call: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// The daemon that is to be replaced goes on.
    #[error("the running daemon does not hand over: {0}")]
    HandOver(String),
    /// The pipeline stopped on its own.
    #[error(
        "the pipeline stopped: {0}; what agents do is refused or waits in the kernel until the daemon runs again"
    )]
    Pipeline(#[from] PipelineError),
    /// The pipeline has a defect.
    #[error("the pipeline panicked: this is a defect of the auditor, please report it with the log")]
    Panicked,
}

impl StartError {
    /// Exit status: 4 where the kernel lacks something, 2 where usage, configuration or the file system is at fault, 1
    /// where a daemon that ran could not go on.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Cgroup(CgroupError::NoHierarchy)
            | Self::Kernel(_)
            | Self::Table(_)
            | Self::Capabilities(_)
            | Self::Guarantees(_)
            | Self::Bpffs { .. } => 4,
            Self::Pipeline(_) | Self::Panicked => 1,
            Self::NotRoot
            | Self::PidNamespace
            | Self::Configuration(_)
            | Self::Socket(_)
            | Self::Trail(_)
            | Self::HandOver(_)
            | Self::Cgroup(_)
            | Self::Call { .. } => 2,
        }
    }
}

pub(super) fn call(call: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let call = call.into();
    move |error| StartError::Call { call, error }
}
