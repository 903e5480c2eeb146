//! The command line: parse low, build high, one file a command.
//!
//! This file knows the commands' names and what is common to them; what a command takes and does stands in its own
//! file. Exit statuses are a contract with scripts and are given out in [`failure`] alone.

mod absent;
mod daemon;
mod doctor;
mod failure;
mod json;
mod key;
mod log;
mod openapi;
mod policy;
mod prove;
mod reload;
mod replay_capture;
mod run;
mod sessions;
mod status;
mod tag;
mod terminal;
mod time;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use auditor::api::SOCKET_NAME;
use auditor::api::client::Client;
use auditor::kernel::cgroup::Hierarchy;
use clap::{Args, Parser, Subcommand};

use failure::Failure;

/// Audits what AI agents do over the network, from the kernel.
#[derive(Debug, Parser)]
#[command(name = "auditor", version, disable_help_subcommand = true, subcommand_required = true)]
struct CommandLine {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    command: Command,
}

/// Where things are. Two daemons with different places do not disturb each other.
#[derive(Args, Debug)]
#[command(next_help_heading = "Places")]
struct Places {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/auditor/auditor.toml")]
    config: PathBuf,
    /// Directory of trail, spool and keys
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/auditor")]
    state_dir: PathBuf,
    /// Directory of the API socket
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/auditor")]
    runtime_dir: PathBuf,
    /// Directory of pinned kernel programs and maps
    #[arg(long, global = true, value_name = "DIR", default_value = "/sys/fs/bpf/auditor")]
    pin_dir: PathBuf,
    /// Mount point of cgroup2 [default: found in /proc/self/mountinfo]
    #[arg(long, global = true, value_name = "DIR")]
    cgroup_root: Option<PathBuf>,
    /// API socket of the daemon [default: auditor.sock in the runtime directory]
    #[arg(long, global = true, value_name = "FILE", env = "AUDITOR_SOCKET")]
    socket: Option<PathBuf>,
}

impl Places {
    fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.runtime_dir.join(SOCKET_NAME))
    }

    /// A cgroup's path below the cgroup2 mount, whether it was given so or as a whole.
    fn below_mount(&self, cgroup: &Path) -> Result<String, Failure> {
        let mount = match &self.cgroup_root {
            Some(root) => root.clone(),
            None => {
                let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")
                    .map_err(|error| Failure::refused(format!("/proc/self/mountinfo: {error}")))?;
                Hierarchy::find(&mountinfo).map_err(Failure::refused)?.mount().to_owned()
            }
        };
        Ok(cgroup.strip_prefix(&mount).unwrap_or(cgroup).to_string_lossy().into_owned())
    }

    fn trail_dir(&self) -> PathBuf {
        self.state_dir.join("trail")
    }

    fn keys_dir(&self) -> PathBuf {
        self.state_dir.join("keys")
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch and decide, in the foreground
    Daemon(daemon::Daemon),
    /// Open a session and run a command in it
    Run(run::Run),
    /// Open a session for something that is running already
    Tag(tag::Tag),
    /// End a session: what is in it is no longer watched nor bound
    Untag(tag::Untag),
    /// List sessions
    Sessions(sessions::Sessions),
    /// Read the trail
    Log(log::Log),
    /// Show one record, connection or session: everything that is known
    Show(log::Show),
    /// Check the configuration, and ask what it would decide
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Verify that the trail is whole
    Verify(verify::Verify),
    /// Print a record with the proof that it is in the trail, to be verified anywhere
    Prove(prove::Prove),
    /// Print the public key that verifies the trail, or change the key
    Key(key::Key),
    /// Show the daemon's state of health
    Status(status::Status),
    /// Show which guarantees this host gives, and how to mend the others
    Doctor(doctor::Doctor),
    /// Have the daemon read its configuration again
    Reload,
    /// Print the description of the API
    #[command(hide = true)]
    Openapi,
    /// Replay what `daemon --record-capture` kept, and print the records
    #[command(hide = true)]
    ReplayCapture(replay_capture::ReplayCapture),
    #[command(flatten)]
    Absent(absent::Absent),
}

/// Parses the arguments, does what they say, and tells how it went.
pub(crate) fn main() -> ExitCode {
    let CommandLine { places, command } = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => return failure::of_usage(&error),
    };
    let done = match command {
        Command::Daemon(daemon) => return daemon.execute(places),
        // Its exit status is the command's own.
        Command::Run(run) => return run.execute(&places),
        Command::Tag(tag) => tag.execute(&places),
        Command::Untag(untag) => untag.execute(&places),
        Command::Sessions(sessions) => sessions.execute(&places),
        Command::Log(log) => log.execute(&places),
        Command::Show(show) => show.execute(&places),
        Command::Policy(policy) => policy.execute(&places),
        Command::Verify(verify) => verify.execute(&places),
        Command::Prove(prove) => prove.execute(&places),
        Command::Key(key) => key.execute(&places),
        Command::Status(status) => status.execute(&places),
        Command::Doctor(doctor) => doctor.execute(),
        Command::Reload => reload::execute(&places),
        Command::Openapi => openapi::execute(),
        Command::ReplayCapture(replay) => replay.execute(),
        Command::Absent(absent) => absent.execute(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// A connection to the daemon, and the runtime that drives it.
struct Connection {
    // Dropped before the runtime.
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Connection {
    fn open(places: &Places) -> Result<Self, Failure> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
                Failure::refused(format!("the runtime for the client does not start: {error}"))
            })?;
        let client = runtime.block_on(Client::connect(&places.socket()))?;
        Ok(Self { client, runtime })
    }
}

/// A label as `KEY=VALUE`.
fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}
