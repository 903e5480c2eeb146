//! `auditor run`: opens a session, enters it, gives up what the command must not have, and becomes the command.
//!
//! It does not stay behind as a parent: the command's exit status, signals and terminal are its own. It fails closed:
//! whatever goes wrong before the command begins ends in status 125, and the command does not begin.
//!
//! The order matters. The daemon moves this very process into the session's cgroup before it answers; that it did is checked
//! here in `/proc/self/cgroup` and not merely believed. From then on the kernel decides about each destination. Only
//! then are privileges dropped, because until then they may be needed to reach the socket.

mod harden;
mod seccomp;
mod user;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use auditor::api::peer::{is_within, unified_cgroup};
use auditor::api::types::{OpenSession, Session, SessionTarget};

use super::failure::complain;
use super::{Connection, Places};
use user::User;

/// Bytes of the command that go into the session's record. A request to the daemon is bounded, and JSON may make six of one.
const RECORDED_BYTES: usize = 8 << 10;
/// The session could not be opened or the process not be hardened; the command was not started.
const NOT_STARTED: u8 = 125;
/// The command was found and could not be executed.
const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
const NOT_FOUND: u8 = 127;
/// Tells the command in which session it runs.
const SESSION_VARIABLE: &str = "AUDITOR_SESSION";

/// Arguments of `auditor run`.
#[derive(clap::Args, Debug)]
pub(crate) struct Run {
    /// Agent, by its name in the configuration
    #[arg(long, value_name = "NAME")]
    agent: String,
    /// What the session is for
    #[arg(long, value_name = "TEXT")]
    task: Option<String>,
    /// Label for the session's records; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = super::label)]
    labels: Vec<(String, String)>,
    /// User to run the command as, by name or number
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    #[arg(long = "identity-token-file", hide = true, value_name = "FILE", value_parser = crate::cli::absent::option)]
    _identity_token_file: Option<crate::cli::absent::Never>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Run {
    /// Becomes the command; returns only if that was not possible.
    pub(crate) fn execute(self, places: &Places) -> ExitCode {
        let session_and_user = self.user.as_deref().map(User::find).transpose().and_then(|user| {
            harden::refuse_foreign_sockets().map_err(|error| error.to_string())?;
            let session = self.enter_session(places, user.as_ref())?;
            // A daemon that knows of none leaves the least.
            let confinement = session.confinement.clone().unwrap_or_default();
            harden::harden(user.as_ref(), &confinement).map_err(|error| error.to_string())?;
            Ok((session, user))
        });
        let (session, user) = match session_and_user {
            Ok(entered) => entered,
            Err(message) => {
                complain(format_args!("{message}; the command was not started"));
                return ExitCode::from(NOT_STARTED);
            }
        };
        if nix::unistd::geteuid().is_root() {
            complain(
                "warning: the command runs as root, who owns the files by which processes change cgroups, and could leave its \
                 session; use --user",
            );
        }
        self.become_command(&session, user.as_ref())
    }

    fn enter_session(&self, places: &Places, user: Option<&User>) -> Result<Session, String> {
        let Connection { mut client, runtime } =
            Connection::open(places).map_err(|failure| failure.message().to_owned())?;
        let request = OpenSession {
            agent: self.agent.clone(),
            task: self.task.clone(),
            labels: self.labels.iter().cloned().collect(),
            target: SessionTarget::Caller {},
            command: Some(shortened(&self.command)),
            confines: true,
            user: user.map(User::number),
        };
        let session = runtime
            .block_on(client.open_session(&request))
            .map_err(|error| format!("no session for agent {:?}: {error}", self.agent))?;
        let own = std::fs::read_to_string("/proc/self/cgroup")
            .map_err(|error| format!("/proc/self/cgroup: {error}"))?;
        let cgroup = unified_cgroup(&own).unwrap_or("none");
        if !is_within(cgroup, &session.cgroup) {
            return Err(format!(
                "session {} has cgroup {}, but this process is in {cgroup}; `auditor doctor` shows what is amiss",
                session.id, session.cgroup
            ));
        }
        Ok(session)
    }

    fn become_command(&self, session: &Session, user: Option<&User>) -> ExitCode {
        let Some((program, arguments)) = self.command.split_first() else {
            // clap has required it.
            return ExitCode::from(NOT_STARTED);
        };
        let mut command = Command::new(program);
        command.args(arguments).env(SESSION_VARIABLE, &session.id);
        if let Some(user) = user {
            command.envs(user.environment());
        }
        let error = command.exec();
        complain(format_args!("{}: {error}", program.display()));
        ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE })
    }
}

/// The command for the session's record: where it is too long for that, its beginning, and how much is missing.
fn shortened(command: &[OsString]) -> Vec<String> {
    let (mut left, mut missing) = (RECORDED_BYTES, 0);
    let mut kept = Vec::new();
    for argument in command {
        let whole = argument.to_string_lossy();
        let end = if missing == 0 { whole.floor_char_boundary(left) } else { 0 };
        if missing == 0 {
            kept.push(whole[..end].to_owned());
        }
        left -= end;
        missing += whole.len() - end;
    }
    if missing > 0 {
        kept.push(format!("({missing} bytes more)"));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_of_any_length_fits_its_record() {
        let short = ["psql", "", "-c", "select 1"].map(OsString::from);
        assert_eq!(shortened(&short), ["psql", "", "-c", "select 1"]);
        let long = ["psql".to_owned(), "\u{e9}".repeat(RECORDED_BYTES), "-X".to_owned()].map(OsString::from);
        let kept = shortened(&long);
        let bytes = 2 * RECORDED_BYTES + 2 - (RECORDED_BYTES - 4);
        assert_eq!(kept[1].len() + 4, RECORDED_BYTES);
        assert_eq!(kept[2..], [format!("({bytes} bytes more)")]);
    }
}
