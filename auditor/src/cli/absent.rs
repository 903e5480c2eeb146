//! What the interface names and this version does not have: told in a sentence, with status 2, instead of a guess at what
//! might have been misspelt. Nothing of it is shown in the help.

use std::ffi::OsString;

use super::failure::Failure;

/// Commands of later versions.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Absent {
    #[command(hide = true)]
    Replay(Anything),
    #[command(hide = true)]
    Requests(Anything),
    #[command(hide = true)]
    Approve(Anything),
    #[command(hide = true)]
    Deny(Anything),
    #[command(hide = true)]
    Grant(Anything),
    #[command(hide = true)]
    Grants(Anything),
    #[command(hide = true)]
    Revoke(Anything),
}

/// Whatever stands behind the command.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Anything {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _arguments: Vec<OsString>,
}

impl Absent {
    pub(crate) fn execute(&self) -> Result<(), Failure> {
        let (name, instead) = match self {
            Self::Replay(_) => ("replay", "`auditor show SESSION` lists what a session did"),
            Self::Requests(_) => ("requests", NOTHING_WAITS),
            Self::Approve(_) => ("approve", NOTHING_WAITS),
            Self::Deny(_) => ("deny", NOTHING_WAITS),
            Self::Grant(_) => ("grant", EXPIRES),
            Self::Grants(_) => ("grants", EXPIRES),
            Self::Revoke(_) => ("revoke", EXPIRES),
        };
        Err(Failure::usage(format!("`auditor {name}` is not in this version: {instead}")))
    }
}

const NOTHING_WAITS: &str = "policies allow or deny, and nothing waits for a human";
const EXPIRES: &str = "write a [[policy.rule]] with `expires` and run `auditor reload`";

/// The value of an option that this version does not have; there is none.
#[derive(Clone, Debug)]
pub(crate) enum Never {}

/// For clap: refuses any value.
pub(crate) fn option(_: &str) -> Result<Never, &'static str> {
    Err("this option is not in this version")
}
