//! Errors of the kernel side, each with what to do about it.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::programs::ProgramError;

use crate::kernel::cgroup::CgroupError;
use crate::kernel::tables::TableError;
use crate::kernel::tasks::TasksError;
use crate::kernel::tracefs::TracefsError;

/// Why the kernel side could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// tracefs.
    #[error(transparent)]
    Tracefs(#[from] TracefsError),
    /// The kernel's type information.
    #[error(transparent)]
    Tasks(#[from] TasksError),
    /// The object as a whole was refused.
    #[error(
        "the kernel refused the auditor's tables or types: {}; `auditor doctor` says what this kernel lacks",
        with_causes(.0)
    )]
    Object(EbpfError),
    /// One program was refused.
    #[error("the kernel refused the program {name} (it needs Linux {kernel}): {error}")]
    Program {
        /// Which.
        name: &'static str,
        /// Oldest kernel.
        kernel: &'static str,
        /// The kernel's answer, with the verifier's words.
        error: ProgramError,
    },
    /// A program is not in the object.
    #[error("the object has no program {0}: daemon and programs are of different versions")]
    Missing(&'static str),
    /// A table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The configuration has rules about unix sockets, and this host cannot decide them.
    #[error(
        "the configuration has rules for unix sockets, which cannot be decided here: {0}; boot a kernel of 6.7 or later, or remove them"
    )]
    UnixRules(String),
    /// A map is in the object and not in the list of those that are pinned.
    #[error("the object's map {0} is not pinned: this is a defect of the auditor, please report it")]
    NotPinned(String),
    /// The directory for pins.
    #[error("make {path}: {error}; name a directory on a bpffs with --pin-dir")]
    Pins {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// A cgroup is gone, or its directory could not be opened.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A link could not be kept in bpffs.
    #[error("keep the program {name} in {path}: {error}")]
    Pin {
        /// Which.
        name: &'static str,
        /// Where.
        path: PathBuf,
        /// What failed.
        error: String,
    },
}

impl KernelError {
    /// What the kernel itself answered, as an errno value.
    pub fn os_error(&self) -> Option<i32> {
        use std::error::Error as _;
        let mut cause: Option<&dyn std::error::Error> = match self {
            Self::Program { error, .. } => Some(error),
            other => other.source(),
        };
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return error.raw_os_error();
            }
            cause = error.source();
        }
        None
    }
}

/// An error and what caused it, in one line: the kernel's own answer is the last of aya's causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Some of aya's errors say their cause themselves.
        let text = error.to_string();
        if !said.ends_with(&text) {
            said = format!("{said}: {text}");
        }
        cause = error.source();
    }
    said
}
