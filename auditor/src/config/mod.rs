//! Configuration: a TOML file, in; validated settings, or diagnostics with their place in the file, out.
//!
//! The document is walked by hand over its spans (`document`) instead of being deserialised: a deserialiser stops at its
//! first error and knows no place for an unknown key, while whoever edits a security policy should see everything that is
//! wrong at once. The walk is strict: an unknown key, a key of a later version and a value that could be read in two ways
//! are errors. Nothing is ignored and nothing repaired, because a rule that silently does not apply is a hole.
//!
//! Warnings let the file pass; they tell what is valid but hardly meant. Files are bounded ([`MAX_FILE_BYTES`]).
#![forbid(unsafe_code)]

mod confinement;
mod diagnostic;
mod document;
mod expiry;
mod guarantees;
mod overlap;
mod section;
mod sockets;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::clock::{Clock, Utc};
use crate::policy::{Action, Policy, Rule};
use crate::protocol::Limits;

pub use diagnostic::{Diagnostic, Severity};
pub use guarantees::Guarantees;

/// Largest configuration file in bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// What agents may do while the daemon is down.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FailMode {
    /// Nothing: the kernel programs stay, and hold what agents send.
    Closed,
    /// What their rules allow: verdicts stay in force, nobody has to be there to write it down, and what does not fit into the
    /// kernel's rings until the next daemon reads them is lost. Where the daemon is stopped in good order, everything.
    Open,
}

/// What happens to an audited packet whose copy finds no room.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Overload {
    /// It is dropped, and TCP sends it again: the audit slows the agent down.
    Backpressure,
    /// It passes, and the record says which bytes it lacks.
    RecordLoss,
}

/// What of responses is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Results {
    /// Nothing but the outcome.
    None,
    /// Columns and row count.
    Shape,
}

/// `[daemon]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Daemon {
    /// Default: closed.
    pub fail_mode: FailMode,
    /// Default: backpressure.
    pub overload: Overload,
    /// Room for copied segments between kernel and daemon, in bytes: a power of two from 256 KiB to 1 GiB, held in the
    /// kernel's memory. Taken at the start of the daemon; a reload leaves it as it is. Default: 8 MiB, some ten milliseconds at
    /// 800 MiB/s.
    pub ring_bytes: u32,
}

impl Default for Daemon {
    fn default() -> Self {
        Self { fail_mode: FailMode::Closed, overload: Overload::Backpressure, ring_bytes: 8 << 20 }
    }
}

/// `[capture]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capture {
    /// Default: shape.
    pub results: Results,
    /// Whether bind values of prepared statements are kept. Default: yes.
    pub parameters: bool,
    /// Statement text is kept up to this many bytes, 1 KiB to 8 MiB (a record with six bytes for each still fits a line). Default: 1 MiB.
    pub max_statement_bytes: usize,
}

impl Default for Capture {
    fn default() -> Self {
        Self { results: Results::Shape, parameters: true, max_statement_bytes: 1 << 20 }
    }
}

impl Capture {
    /// The same for dissectors.
    pub fn limits(&self) -> Limits {
        Limits {
            max_statement_bytes: self.max_statement_bytes,
            parameters: self.parameters,
            columns: self.results == Results::Shape,
        }
    }
}

/// `[trail]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Trail {
    /// Time between two signed checkpoints while there are new records, from a second to a day; there is one at each session's end besides.
    /// Taken at the start of the daemon. Default: 5 minutes.
    pub checkpoint_every: Duration,
}

impl Default for Trail {
    fn default() -> Self {
        Self { checkpoint_every: Duration::from_secs(300) }
    }
}

/// What becomes of sockets that an agent had before it was tagged.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ExistingSockets {
    /// They are ended: nothing that is not audited stays alive.
    #[default]
    Destroy,
    /// Those that were made in the cgroup that is tagged go on, and are decided and audited from there on. Others are ended.
    Adopt,
}

/// `[[agent]]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Agent {
    /// 1 to 64 of `A-Z a-z 0-9 . _ -`; unique.
    pub name: String,
    /// Name of its policy, one of [`Settings::policies`].
    pub policy: String,
    /// Default: destroy.
    pub existing_sockets: ExistingSockets,
}

/// A valid configuration.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// How the daemon behaves.
    pub daemon: Daemon,
    /// What the host must give.
    pub guarantees: Guarantees,
    /// What is kept.
    pub capture: Capture,
    /// How the trail is sealed.
    pub trail: Trail,
    /// Agents in the order of the file.
    pub agents: Vec<Agent>,
    /// Policies in the order of the file; names are unique.
    pub policies: Vec<Policy>,
}

impl Settings {
    /// The agent of this name.
    pub fn agent(&self, name: &str) -> Option<&Agent> {
        self.agents.iter().find(|agent| agent.name == name)
    }

    /// Whether any rule names a unix socket.
    pub fn names_unix_sockets(&self) -> bool {
        self.policies.iter().flat_map(|policy| &policy.rules).any(|rule| !rule.sockets.is_empty())
    }

    /// Whether any policy lets a unix socket through.
    pub fn allows_unix_sockets(&self) -> bool {
        let allows = |rule: &Rule| rule.action == Action::Allow && !rule.sockets.is_empty();
        self.policies.iter().any(|policy| policy.default == Action::Allow || policy.rules.iter().any(allows))
    }

    /// The policy of this name.
    pub fn policy(&self, name: &str) -> Option<&Policy> {
        self.policies.iter().find(|policy| policy.name == name)
    }
}

/// A configuration file that was read and is valid.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it says.
    pub settings: Settings,
    /// What in it is valid but hardly meant, in the order of the file.
    pub warnings: Vec<Diagnostic>,
    /// SHA-256 of the file's bytes in hexadecimal.
    pub digest: String,
    /// The file's text.
    pub text: String,
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error(
        "cannot read the configuration {}: {source}; name another with --config, or check its path and permissions",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What open(2) or read(2) said.
        source: io::Error,
    },
    /// It is too large to be one.
    #[error(
        "the configuration {} is larger than {MAX_FILE_BYTES} bytes; check that --config names the right file",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is not valid. Shown as one line for each diagnostic.
    #[error("{}", diagnostic::render_all(path, diagnostics))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// At least one error, and the warnings, in the order of the file.
        diagnostics: Vec<Diagnostic>,
    },
}

/// Reads and validates a configuration file.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let read_error = |source| LoadError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read_error)?;
    let mode = file.metadata().map_err(read_error)?.mode();
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(LoadError::TooLarge { path: path.to_owned() });
    }
    let (settings, mut diagnostics) = match std::str::from_utf8(&bytes) {
        Ok(text) => parse(text),
        Err(error) => (None, vec![diagnostic::not_utf8(&bytes, error.valid_up_to())]),
    };
    if mode & 0o002 != 0 {
        diagnostics.insert(0, diagnostic::world_writable());
    }
    match settings {
        Some(settings) => Ok(Loaded {
            settings,
            warnings: diagnostics,
            digest: hexadecimal(&bytes),
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }),
        None => Err(LoadError::Invalid { path: path.to_owned(), diagnostics }),
    }
}

/// Validates the text of a configuration file against the present time.
///
/// Settings are there if and only if no diagnostic is an error. Diagnostics are in the order of the file.
pub fn parse(text: &str) -> (Option<Settings>, Vec<Diagnostic>) {
    parse_at(text, Clock::now_utc())
}

/// The same at a given time, which decides what has already expired.
pub fn parse_at(text: &str, now: Utc) -> (Option<Settings>, Vec<Diagnostic>) {
    let (settings, mut diagnostics) = section::settings(text, now);
    diagnostics.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
    let valid = diagnostics.iter().all(|diagnostic| diagnostic.severity != Severity::Error);
    (settings.filter(|_| valid), diagnostics)
}

fn hexadecimal(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
