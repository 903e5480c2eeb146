//! How a command that did not succeed ends: a sentence on stderr and an exit status.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use auditor::api::client::ClientError;
use auditor::config::LoadError;

/// The answer is no.
const NO: u8 = 1;
/// Wrong usage or configuration.
const USAGE: u8 = 2;
/// The daemon cannot be reached.
const UNREACHABLE: u8 = 3;
/// The kernel lacks something.
const UNSUPPORTED: u8 = 4;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    /// `None`: what there is to say has been said, or nobody listens any more.
    message: Option<String>,
    /// The message names a file and a place, and nothing stands before it.
    names_place: bool,
}

impl Failure {
    fn new(status: u8, message: Option<String>) -> Self {
        Self { status, message, names_place: false }
    }

    /// The configuration cannot be used.
    pub(crate) fn configuration(error: &LoadError) -> Self {
        let names_place = matches!(error, LoadError::Invalid { .. });
        Self { names_place, ..Self::usage(error) }
    }

    /// It was understood, and the answer is no.
    pub(crate) fn refused(message: impl Display) -> Self {
        Self::new(NO, Some(message.to_string()))
    }

    /// Wrong usage or configuration.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self::new(USAGE, Some(message.to_string()))
    }

    /// The answer is no, and stdout says it already.
    pub(crate) fn told() -> Self {
        Self::new(NO, None)
    }

    /// The kernel lacks something, and stdout says what.
    pub(crate) fn unsupported() -> Self {
        Self::new(UNSUPPORTED, None)
    }

    /// What went wrong, for a command with exit statuses of its own.
    pub(crate) fn message(&self) -> &str {
        self.message.as_deref().unwrap_or("the output is closed")
    }

    /// Says it and gives the exit status.
    pub(crate) fn report(self) -> ExitCode {
        match self.message {
            Some(message) if self.names_place => complain_of_place(message),
            Some(message) => complain(message),
            None => {}
        }
        ExitCode::from(self.status)
    }
}

/// A sentence on stderr, in the auditor's name.
pub(crate) fn complain(message: impl Display) {
    // There is nowhere to report that stderr is closed.
    let _ = writeln!(io::stderr(), "auditor: {message}");
}

/// What a file has wrong and where, as compilers say it: each line begins with the place, for editors.
pub(crate) fn complain_of_place(message: impl Display) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// Help and version are successes; everything else is wrong usage.
pub(crate) fn of_usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let status = match &error {
            ClientError::Unreachable { .. } | ClientError::Broken { .. } => UNREACHABLE,
            ClientError::Refused { status: 400, .. } => USAGE,
            ClientError::Refused { status: 503, .. } => UNREACHABLE,
            ClientError::Refused { .. } => NO,
        };
        Self::new(status, Some(error.to_string()))
    }
}

/// Writing to stdout failed. A closed pipe is how `| head` says that it has enough.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe {
            return Self::new(0, None);
        }
        Self::refused(format!("cannot write to stdout: {error}"))
    }
}
