//! Which guarantees hold for one session, at its beginning.
//!
//! A command of `auditor run` is looked at before it begins: whoever opens the session says as which user it will run, and that all else is
//! taken from it. What was running already is looked at as procfs shows it. Later changes are not seen: what a process without a
//! filter may do, it may do at any time, and its session is told to be so from its beginning.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::Host;
use super::containers;

/// What can be asked for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Guarantee {
    /// The filter of `auditor run` is on all of its processes.
    Confined,
    /// None of its processes is root or has a capability.
    Unprivileged,
    /// Its user cannot move its processes to another cgroup.
    KeptInCgroup,
    /// Its user may not use the socket of a container engine.
    NoContainerEngine,
}

impl Guarantee {
    /// All.
    pub const ALL: [Self; 4] =
        [Self::Confined, Self::Unprivileged, Self::KeptInCgroup, Self::NoContainerEngine];

    /// As the configuration has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Confined => "confined",
            Self::Unprivileged => "unprivileged",
            Self::KeptInCgroup => "kept-in-cgroup",
            Self::NoContainerEngine => "no-container-engine",
        }
    }
}

/// A guarantee that a session does not have, and why: one sentence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lack {
    /// Which.
    pub guarantee: Guarantee,
    /// Why not.
    pub sentence: String,
}

/// Whom a session is made of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Who<'a> {
    /// A command that is about to begin, as this user, and with nothing that can be taken from it.
    Command(u32),
    /// Processes that are running.
    Running(&'a [u32]),
}

/// More processes than these are not looked at one by one.
const LOOKED_AT: usize = 256;

/// A process, or what will be one.
struct Process {
    pid: Option<u32>,
    uid: u32,
    groups: Vec<u32>,
    capabilities: u64,
    is_filtered: bool,
}

impl Process {
    fn name(&self) -> String {
        self.pid.map_or_else(|| "the command".to_owned(), |pid| format!("process {pid}"))
    }
}

/// What a session in `cgroup`, below the mount `hierarchy`, does not have.
pub fn lacks(host: &Host, who: &Who<'_>, hierarchy: &Path, cgroup: &Path) -> Vec<Lack> {
    let processes: Vec<Process> = match who {
        Who::Command(uid) => {
            let groups = containers::groups_of(host, *uid);
            vec![Process { pid: None, uid: *uid, groups, capabilities: 0, is_filtered: true }]
        }
        Who::Running(pids) => pids.iter().take(LOOKED_AT).filter_map(|pid| read(host, *pid)).collect(),
    };
    let mut lacks = Vec::new();
    let mut lack = |guarantee, sentence| lacks.push(Lack { guarantee, sentence });
    if matches!(who, Who::Running(_)) {
        let bare = processes.iter().find(|process| !process.is_filtered);
        let whose =
            bare.map_or_else(String::new, |process| format!(": {} has no filter at all", process.name()));
        lack(
            Guarantee::Confined,
            format!(
                "it was not started by `auditor run`, so that packet sockets, vsock, other processes' memory and user namespaces are \
                 what its privileges make them{whose}"
            ),
        );
    }
    if let Some(process) = processes.iter().find(|process| process.uid == 0 || process.capabilities != 0) {
        let (name, uid, capabilities) = (process.name(), process.uid, process.capabilities);
        lack(
            Guarantee::Unprivileged,
            format!("{name} is user {uid} with the capabilities {capabilities:#x}"),
        );
    }
    let mover = processes.iter().find_map(|process| Some((process, movable(process, hierarchy, cgroup)?)));
    if let Some((process, file)) = mover {
        let (name, uid) = (process.name(), process.uid);
        lack(
            Guarantee::KeptInCgroup,
            format!("{name} is user {uid}, who may write {file} and by that leave the session's cgroup"),
        );
    }
    let reached = processes
        .iter()
        .find_map(|process| Some((process, containers::within_reach(host, process.uid, &process.groups)?)));
    if let Some((process, socket)) = reached {
        let (name, uid) = (process.name(), process.uid);
        lack(
            Guarantee::NoContainerEngine,
            format!("{name} is user {uid}, whom only the session's rules keep from {socket}"),
        );
    }
    lacks
}

/// What procfs says; `None` where the process has gone.
fn read(host: &Host, pid: u32) -> Option<Process> {
    let status = Host::text(&host.proc, &format!("{pid}/status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let numbers = |name: &str| {
        let words = field(name).unwrap_or_default().split_whitespace();
        words.filter_map(|word| word.parse().ok()).collect::<Vec<u32>>()
    };
    // Real, effective, saved, file system: whoever has root among them can be root.
    let uids = numbers("Uid:");
    let uid = if uids.contains(&0) { 0 } else { uids.first().copied()? };
    let mut groups = numbers("Groups:");
    groups.extend(numbers("Gid:"));
    Some(Process {
        pid: Some(pid),
        uid,
        groups,
        // What it is permitted it can make effective.
        capabilities: field("CapPrm:").and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0),
        is_filtered: field("Seccomp:") == Some("2"),
    })
}

/// The file by which a process can leave the session. To move one takes the right to write there for both cgroups and the one
/// that is around both, so the nearest around the session decides.
fn movable(process: &Process, hierarchy: &Path, cgroup: &Path) -> Option<String> {
    let around = cgroup.ancestors().skip(1).take_while(|around| around.starts_with(hierarchy));
    for around in around {
        let file = around.join("cgroup.procs");
        let Ok(metadata) = fs::metadata(&file) else { continue };
        let mode = metadata.mode();
        let may = process.uid == 0
            || (metadata.uid() == process.uid && mode & 0o200 != 0)
            || (process.groups.contains(&metadata.gid()) && mode & 0o020 != 0)
            || mode & 0o002 != 0;
        if may {
            return Some(file.display().to_string());
        }
    }
    None
}
