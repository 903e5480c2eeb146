//! `auditor tag` and `auditor untag`: sessions for what is running already, and their end.

use std::io::{Write, stdout};
use std::path::PathBuf;

use auditor::api::peer::{is_within, unified_cgroup};
use auditor::api::types::{OpenSession, SessionFilter, SessionTarget};

use super::failure::Failure;
use super::{Connection, Places};

/// Arguments of `auditor tag`.
#[derive(clap::Args, Debug)]
pub(crate) struct Tag {
    /// Agent, by its name in the configuration
    #[arg(long, value_name = "NAME")]
    agent: String,
    /// What the session is for
    #[arg(long, value_name = "TEXT")]
    task: Option<String>,
    /// Label for the session's records; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = super::label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    running: Running,
}

/// Something that runs.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct Running {
    /// A cgroup with everything in it, by its path
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// A process, which is moved into a cgroup of its own
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

impl Tag {
    pub(crate) fn execute(self, places: &Places) -> Result<(), Failure> {
        let target = match (self.running.cgroup, self.running.pid) {
            (Some(path), _) => SessionTarget::Cgroup { path: path.to_string_lossy().into_owned() },
            (None, Some(pid)) => SessionTarget::Process { pid },
            (None, None) => return Err(Failure::usage("name what to tag with --cgroup or --pid")),
        };
        let Connection { mut client, runtime } = Connection::open(places)?;
        let request = OpenSession {
            agent: self.agent,
            task: self.task,
            labels: self.labels.into_iter().collect(),
            target,
            command: None,
            confines: false,
            user: None,
        };
        let session = runtime.block_on(client.open_session(&request))?;
        writeln!(stdout(), "{}", session.id)?;
        Ok(())
    }
}

/// Arguments of `auditor untag`.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct Untag {
    /// The session to end, by its id or enough of its first digits
    #[arg(value_name = "SESSION")]
    session: Option<String>,
    /// The cgroup whose session to end, by its path
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// A process of the session to end
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

impl Untag {
    pub(crate) fn execute(self, places: &Places) -> Result<(), Failure> {
        let Connection { mut client, runtime } = Connection::open(places)?;
        let id = match (self.session, self.cgroup, self.pid) {
            (Some(id), _, _) => id,
            (None, cgroup, pid) => {
                let filter = SessionFilter { live: true, ..SessionFilter::default() };
                let sessions = runtime.block_on(client.sessions(&filter))?;
                let named = match (cgroup, pid) {
                    (Some(path), _) => places.below_mount(&path)?,
                    (None, Some(pid)) => cgroup_of(pid)?,
                    (None, None) => return Err(Failure::usage("name a session, --cgroup or --pid")),
                };
                let found = sessions.into_iter().find(|session| {
                    // A process may be in a cgroup below the session's; a cgroup is named exactly.
                    is_within(&named, &session.cgroup)
                        && (pid.is_some() || is_within(&session.cgroup, &named))
                });
                found.ok_or_else(|| Failure::refused(format!("no session is open in {named:?}")))?.id
            }
        };
        let session = runtime.block_on(client.close_session(&id))?;
        writeln!(stdout(), "{}", session.id)?;
        Ok(())
    }
}

fn cgroup_of(pid: u32) -> Result<String, Failure> {
    let path = format!("/proc/{pid}/cgroup");
    let text =
        std::fs::read_to_string(&path).map_err(|error| Failure::refused(format!("{path}: {error}")))?;
    let cgroup = unified_cgroup(&text).ok_or_else(|| Failure::refused(format!("{path}: no cgroup2 line")))?;
    Ok(cgroup.to_owned())
}
