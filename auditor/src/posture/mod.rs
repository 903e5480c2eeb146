//! Posture: which guarantees hold on this host, now.
//!
//! Each check looks at one thing, says what it found, what that means for the audit, and how to mend it. Nothing is changed
//! and nothing is loaded; what the kernel finally accepts shows when the daemon starts. Where a check cannot see (a missing
//! file, no permission), it says so and counts that as the guarantee being absent.
//!
//! File-system roots come in as arguments, so that tests bring hosts of their own.

mod containers;
mod host;
mod kernel;
pub mod paths;
pub mod session;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

pub use host::clock_synchronised;
use serde::Serialize;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Host {
    /// Mount point of procfs.
    pub proc: PathBuf,
    /// Mount point of sysfs.
    pub sys: PathBuf,
    /// Runtime state, /run.
    pub run: PathBuf,
    /// Group database, /etc/group.
    pub groups: PathBuf,
    /// User database, /etc/passwd.
    pub users: PathBuf,
    /// Whether the kernel says that the clock is synchronised; `None` where it was not asked.
    pub clock_synchronised: Option<bool>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            sys: "/sys".into(),
            run: "/run".into(),
            groups: "/etc/group".into(),
            users: "/etc/passwd".into(),
            clock_synchronised: None,
        }
    }
}

impl Host {
    /// The text of a file below `root`, trimmed; `None` where it cannot be read.
    fn text(root: &Path, path: &str) -> Option<String> {
        fs::read_to_string(root.join(path)).ok().map(|text| text.trim().to_owned())
    }

    /// File-system types that the kernel knows.
    fn knows_filesystem(&self, name: &str) -> bool {
        Self::text(&self.proc, "filesystems")
            .is_some_and(|text| text.lines().any(|line| line.split_whitespace().next_back() == Some(name)))
    }

    /// Where a file system of this type is mounted, if it is.
    fn mount_of(&self, filesystem: &str) -> Option<String> {
        Self::text(&self.proc, "self/mountinfo")?.lines().find_map(|line| {
            let (mount, source) = line.split_once(" - ")?;
            (source.split(' ').next() == Some(filesystem))
                .then(|| mount.split(' ').nth(4).map(str::to_owned))?
        })
    }
}

/// Whether a guarantee holds.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It holds.
    Ok,
    /// The auditor works, with a guarantee less.
    Degraded,
    /// The auditor does not work without it.
    Missing,
}

/// The result of one check.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Check {
    /// Short, stable name.
    pub name: &'static str,
    /// Whether the guarantee holds.
    pub status: State,
    /// What was found.
    pub found: String,
    /// What it is for, and what is lost without it.
    pub meaning: &'static str,
    /// What to do; absent where there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, meaning: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: State::Ok, found: found.into(), meaning, remedy: None }
    }

    fn degraded(
        name: &'static str,
        meaning: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name, status: State::Degraded, found: found.into(), meaning, remedy: Some(remedy.into()) }
    }

    fn missing(
        name: &'static str,
        meaning: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name, status: State::Missing, found: found.into(), meaning, remedy: Some(remedy.into()) }
    }

    /// The guarantee that is lost, as one sentence; `None` where none is.
    pub fn loss(&self) -> Option<String> {
        (self.status != State::Ok).then(|| format!("{}: {}; {}", self.name, self.found, self.meaning))
    }
}

/// Names of all checks.
pub fn names() -> Vec<&'static str> {
    // A host without anything: the names do not depend on what is found.
    let nowhere = PathBuf::from("/nonexistent");
    let host = Host {
        proc: nowhere.clone(),
        sys: nowhere.clone(),
        run: nowhere.clone(),
        groups: nowhere.clone(),
        users: nowhere,
        clock_synchronised: None,
    };
    examine(&host).iter().map(|check| check.name).collect()
}

/// Of the guarantees that are `wanted` by their checks' names, those that the host does not give: one sentence each.
pub fn not_given(checks: &[Check], wanted: &BTreeSet<&'static str>) -> Vec<String> {
    let lacking = checks.iter().filter(|check| check.status != State::Ok && wanted.contains(check.name));
    lacking
        .map(|check| {
            let remedy = check.remedy.as_deref().unwrap_or("see `auditor doctor`");
            format!("{} is asked for and not given: {}; {remedy}", check.name, check.found)
        })
        .collect()
}

/// All checks, in the order in which they are worth mending.
pub fn examine(host: &Host) -> Vec<Check> {
    vec![
        host::privileges(host),
        kernel::release(host),
        kernel::cgroup2(host),
        kernel::bpffs(host),
        kernel::tracefs(host),
        kernel::lockdown(host),
        kernel::security_modules(host),
        kernel::ptrace_scope(host),
        kernel::type_information(host),
        kernel::unix_sockets(host),
        kernel::unprivileged_bpf(host),
        kernel::terminal_injection(host),
        containers::sockets(host),
        host::clock(host),
    ]
}

#[cfg(test)]
mod tests;
