//! What may become a session at somebody's request.
//!
//! What watches must not be watched: a daemon inside a session of its own would be bound by an agent's policy, and refuse its
//! own callers. So the daemon, whatever started it, process 1, kernel threads, and every cgroup that contains the daemon are
//! refused, to root too. Beyond that a process is its owner's or root's to tag, and a cgroup root's.
//!
//! All of it is read from `/proc`, before the pipeline is asked; whoever is root and wants to can race it.

use std::path::{Component, Path, PathBuf};

use super::error::ApiError;
use super::guard::{Connected, Context};
use super::peer::{is_within, unified_cgroup};
use super::types::SessionTarget;
use crate::daemon::command::Target;

/// `PF_KTHREAD` of linux/sched.h, in the ninth field of `/proc/<pid>/stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;
/// More ancestors than a process has.
const MAX_ANCESTORS: usize = 1024;

/// The target in the pipeline's terms, if it may become a session.
pub(super) fn target(
    context: &Context,
    connected: &Connected,
    target: SessionTarget,
) -> Result<Target, ApiError> {
    let is_root = connected.peer.uid() == 0;
    match target {
        SessionTarget::Caller {} => Ok(Target::Process(connected.peer.pid())),
        SessionTarget::Process { pid } => {
            let process = Process::read(&context.proc_root, pid)?;
            if let Some(what) = process.protected(&context.proc_root) {
                return Err(ApiError::invalid(format!(
                    "process {pid} is {what}: it cannot become an agent's session"
                )));
            }
            if !is_root && process.owner != connected.peer.uid() {
                let owner = process.owner;
                return Err(ApiError::forbidden(
                    "not-owner",
                    format!("process {pid} belongs to user {owner}: tagging it is for that user or root"),
                ));
            }
            Ok(Target::Process(process.pid))
        }
        SessionTarget::Cgroup { path } => {
            if !is_root {
                return Err(ApiError::forbidden("root-required", "tagging a cgroup is for root"));
            }
            if path.trim_matches('/').is_empty() || path.split('/').any(|part| part == "..") {
                return Err(ApiError::invalid(format!(
                    "{path:?} cannot be a session: name a cgroup below the root, without `..`"
                )));
            }
            let path = PathBuf::from(path);
            if contains_the_daemon(&context.proc_root, &path)? {
                return Err(ApiError::invalid(format!(
                    "{path:?} contains the auditor's daemon, which would be bound by the agent's policy: name a cgroup of \
                     the agent's own, or start the daemon in another one"
                )));
            }
            Ok(Target::Cgroup(path))
        }
    }
}

/// A process as `/proc` shows it.
struct Process {
    /// Of the whole process, where a thread was named.
    pid: u32,
    parent: u32,
    owner: u32,
    is_kernel_thread: bool,
}

impl Process {
    fn read(proc_root: &Path, pid: u32) -> Result<Self, ApiError> {
        let directory = proc_root.join(pid.to_string());
        let missing = |error| ApiError::not_found(format!("process {pid}: {error}"));
        let read = |name| std::fs::read_to_string(directory.join(name)).map_err(missing);
        let (status, stat) = (read("status")?, read("stat")?);
        let number = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok())
                .ok_or_else(|| ApiError::not_found(format!("process {pid}: /proc does not tell its {name}")))
        };
        // The name, in parentheses, may hold anything. The field after it is the third.
        let flags = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_ascii_whitespace().nth(6));
        let flags: u64 = flags
            .and_then(|flags| flags.parse().ok())
            .ok_or_else(|| ApiError::not_found(format!("process {pid}: /proc does not tell its flags")))?;
        Ok(Self {
            pid: number("Tgid:")?,
            parent: number("PPid:")?,
            owner: number("Uid:")?,
            is_kernel_thread: flags & KERNEL_THREAD != 0,
        })
    }

    /// What it is, if it must not be tagged.
    fn protected(&self, proc_root: &Path) -> Option<&'static str> {
        let daemon = std::process::id();
        if self.pid == daemon {
            return Some("the auditor's daemon itself");
        }
        if self.pid == 1 {
            return Some("the first process of this host");
        }
        if self.is_kernel_thread {
            return Some("a kernel thread");
        }
        ancestors(proc_root, daemon)
            .any(|pid| pid == self.pid)
            .then_some("an ancestor of the auditor's daemon")
    }
}

/// The parent of `pid`, its parent, and so on.
fn ancestors(proc_root: &Path, pid: u32) -> impl Iterator<Item = u32> {
    let parent = |pid: u32| Process::read(proc_root, pid).ok().map(|process| process.parent);
    std::iter::successors(parent(pid), move |pid| parent(*pid)).take_while(|pid| *pid > 0).take(MAX_ANCESTORS)
}

/// Whether the daemon lives in the cgroup `path` or below it. `path` is below the cgroup2 mount, or whole: both readings count.
fn contains_the_daemon(proc_root: &Path, path: &Path) -> Result<bool, ApiError> {
    let own = proc_root.join(std::process::id().to_string());
    let memberships = std::fs::read_to_string(own.join("cgroup"))
        .map_err(|error| ApiError::invalid(format!("the daemon's own cgroup is not known: {error}")))?;
    let Some(own_cgroup) = unified_cgroup(&memberships) else {
        return Ok(false);
    };
    let mounts = std::fs::read_to_string(own.join("mountinfo")).unwrap_or_default();
    let path = Path::new("/").join(path);
    let below = cgroup2_mounts(&mounts).filter_map(|mount| path.strip_prefix(mount).ok());
    Ok(below.chain([path.as_path()]).any(|path| is_within(own_cgroup, &plain(path))))
}

/// Where cgroup2 is mounted, see proc_pid_mountinfo(5).
fn cgroup2_mounts(mountinfo: &str) -> impl Iterator<Item = &Path> {
    mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4).map(Path::new))?
    })
}

/// Without `.` and doubled slashes.
fn plain(path: &Path) -> String {
    let parts = path.components().filter(|part| matches!(part, Component::Normal(_)));
    parts.collect::<PathBuf>().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A /proc in which `processes` (pid, parent, flags) are.
    fn proc_root(processes: &[(u32, u32, u64)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (pid, parent, flags) in processes {
            let directory = root.path().join(pid.to_string());
            std::fs::create_dir_all(&directory).unwrap();
            let status = format!("Name:\tx\nTgid:\t{pid}\nPid:\t{pid}\nPPid:\t{parent}\nUid:\t7\t7\t7\t7\n");
            std::fs::write(directory.join("status"), status).unwrap();
            let stat = format!("{pid} (a) b) S {parent} 1 1 0 -1 {flags} 0 0\n");
            std::fs::write(directory.join("stat"), stat).unwrap();
        }
        root
    }

    #[test]
    fn what_watches_is_not_watched() {
        let own = std::process::id();
        let (shell, sibling, thread) = (own + 1, own + 2, own + 3);
        let root = proc_root(&[
            (1, 0, 0),
            (shell, 1, 0),
            (own, shell, 0),
            (sibling, shell, 0x40_0000),
            (thread, 2, KERNEL_THREAD | 0x40),
        ]);
        let protected = |pid| Process::read(root.path(), pid).unwrap().protected(root.path());
        assert_eq!(protected(1), Some("the first process of this host"));
        assert_eq!(protected(own), Some("the auditor's daemon itself"));
        assert_eq!(protected(shell), Some("an ancestor of the auditor's daemon"));
        assert_eq!(protected(thread), Some("a kernel thread"));
        assert_eq!(protected(sibling), None);
        assert_eq!(Process::read(root.path(), sibling).unwrap().owner, 7);
        assert!(Process::read(root.path(), own + 4).is_err());
    }

    #[test]
    fn a_cgroup_around_the_daemon_is_known_however_it_is_written() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join(std::process::id().to_string());
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join("cgroup"), "0::/system.slice/auditor.service\n").unwrap();
        std::fs::write(
            own.join("mountinfo"),
            "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n31 25 0:27 / /proc rw - proc proc rw\n",
        )
        .unwrap();
        let contains = |path: &str| contains_the_daemon(root.path(), Path::new(path)).unwrap();
        for around in [
            "/system.slice",
            "system.slice/",
            "/system.slice/./auditor.service",
            "//system.slice//auditor.service/",
            "/sys/fs/cgroup/system.slice",
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/.",
        ] {
            assert!(contains(around), "{around}");
        }
        for elsewhere in ["/system.slice/app.service", "/system", "/sys/fs/cgroup/user.slice", "/proc"] {
            assert!(!contains(elsewhere), "{elsewhere}");
        }
    }
}
