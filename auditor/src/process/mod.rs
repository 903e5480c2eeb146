//! Processes of agents: what is known of a process id, and until when.
//!
//! The kernel tells of exec, fork and exit with ids and a path; arguments, parent and user come from procfs while the
//! process is there. A field that could not be learnt stays empty. An entry is replaced at exec and removed at exit, so a
//! process id that is used again is another process.

pub mod sockets;

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use auditor_common::event::{Exec, Task};

use crate::record::Process;

/// Processes kept at most. Beyond that, the table is emptied of what came by fork alone, then altogether: a record
/// without a process is better than a table without end.
const CAPACITY: usize = 65_536;
/// Bytes of a command line that are kept.
const COMMAND_LINE_BYTES: u64 = 4096;
/// Time between two readings of the user database.
const READ_USERS: Duration = Duration::from_secs(60);

/// Names of users by number, from passwd(5).
///
/// Not from the host's name service: that may ask over the network, and whoever waits here keeps all agents waiting. A user
/// that is not in the file has no name in the record; the number is always there.
#[derive(Debug)]
struct Users {
    file: PathBuf,
    names: HashMap<u32, String>,
    read: Option<Instant>,
}

impl Users {
    fn new(file: PathBuf) -> Self {
        Self { file, names: HashMap::new(), read: None }
    }

    fn name(&mut self, uid: u32) -> Option<String> {
        if self.read.is_none_or(|read| read.elapsed() >= READ_USERS) {
            self.read = Some(Instant::now());
            // Without the file, users have numbers only.
            let text = fs::read_to_string(&self.file).unwrap_or_default();
            self.names = text
                .lines()
                .filter_map(|line| {
                    let mut fields = line.split(':');
                    let name = fields.next()?;
                    Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
                })
                .collect();
        }
        self.names.get(&uid).cloned()
    }
}

/// Processes by id.
#[derive(Debug)]
pub struct Processes {
    procfs: PathBuf,
    known: HashMap<u32, Arc<Process>>,
    /// Parents of tasks that were forked and have not executed anything. Threads stand here too.
    parents: HashMap<u32, u32>,
    users: Users,
    /// What procfs said since it was last asked for.
    looked: Vec<Process>,
    /// What procfs said when what is happening now happened for the first time, in order.
    said: VecDeque<Process>,
}

impl Processes {
    /// An empty table. `procfs`: where proc(5) is mounted; `passwd`: the user database.
    pub fn new(procfs: PathBuf, passwd: PathBuf) -> Self {
        Self {
            procfs,
            known: HashMap::new(),
            parents: HashMap::new(),
            users: Users::new(passwd),
            looked: Vec::new(),
            said: VecDeque::new(),
        }
    }

    /// What is known, for [`Self::restore`].
    pub fn known(&self) -> (&HashMap<u32, Arc<Process>>, &HashMap<u32, u32>) {
        (&self.known, &self.parents)
    }

    /// Goes on with what an earlier daemon knew.
    pub fn restore(&mut self, known: HashMap<u32, Arc<Process>>, parents: HashMap<u32, u32>) {
        (self.known, self.parents) = (known, parents);
    }

    /// What procfs said since this was last called.
    pub fn take_looked(&mut self) -> std::vec::Drain<'_, Process> {
        self.looked.drain(..)
    }

    /// What procfs said when that which comes next happened for the first time.
    pub fn tell(&mut self, said: Process) {
        self.said.push_back(said);
    }

    /// Nothing more happens for a second time.
    pub fn forget_told(&mut self) {
        self.said.clear();
        self.looked.clear();
    }

    /// A process has executed a program.
    pub fn executed(&mut self, exec: &Exec) -> Arc<Process> {
        let pid = exec.task.pid;
        let mut process = self.look(&exec.task);
        let path = until_nul(&exec.path);
        // The link is the file that runs; the path is what was asked for, a script for instance.
        process.executable = process.executable.or_else(|| (!path.is_empty()).then(|| lossy(path)));
        process.parent = process.parent.or_else(|| self.parents.get(&pid).copied());
        self.keep(process)
    }

    /// A task has created another one.
    pub fn forked(&mut self, parent: u32, child: u32) {
        if self.parents.len() >= CAPACITY {
            self.parents.clear();
        }
        self.parents.insert(child, parent);
        // The id was free a moment ago: what was known of it is of another process.
        self.known.remove(&child);
    }

    /// What was known of a process id is of another time.
    pub fn forget(&mut self, pid: u32) {
        self.known.remove(&pid);
    }

    /// A process has ended. Answers what was known of it.
    pub fn exited(&mut self, task: &Task) -> Arc<Process> {
        let process = self.of(task);
        self.known.remove(&task.pid);
        self.parents.remove(&task.pid);
        process
    }

    /// The process that a task belongs to.
    pub fn of(&mut self, task: &Task) -> Arc<Process> {
        if let Some(process) = self.known.get(&task.pid) {
            return Arc::clone(process);
        }
        let mut process = self.look(task);
        if let Some(&parent) = self.parents.get(&task.pid) {
            process.parent = Some(parent);
            if process.executable.is_none()
                && let Some(parent) = self.known.get(&parent)
            {
                // Forked, never executed anything, and gone: it ran what its parent ran.
                process.executable.clone_from(&parent.executable);
                process.command_line.clone_from(&parent.command_line);
            }
        }
        self.keep(process)
    }

    fn keep(&mut self, process: Process) -> Arc<Process> {
        if self.known.len() >= CAPACITY {
            self.known.clear();
        }
        let process = Arc::new(process);
        self.known.insert(process.pid, Arc::clone(&process));
        process
    }

    fn look(&mut self, task: &Task) -> Process {
        if self.said.front().is_some_and(|said| said.pid == task.pid)
            && let Some(said) = self.said.pop_front()
        {
            return said;
        }
        let process = self.ask_procfs(task);
        self.looked.push(process.clone());
        process
    }

    fn ask_procfs(&mut self, task: &Task) -> Process {
        let directory = self.procfs.join(task.pid.to_string());
        let command_line = fs::File::open(directory.join("cmdline")).ok().and_then(|file| {
            let mut bytes = Vec::new();
            file.take(COMMAND_LINE_BYTES).read_to_end(&mut bytes).ok()?;
            Some(arguments(&bytes)).filter(|line| !line.is_empty())
        });
        let executable =
            fs::read_link(directory.join("exe")).ok().map(|path| lossy(path.as_os_str().as_encoded_bytes()));
        let parent = fs::read_to_string(directory.join("stat")).ok().and_then(|stat| parent_in(&stat));
        Process {
            pid: task.pid,
            parent,
            name: lossy(until_nul(&task.comm)),
            executable,
            command_line,
            uid: Some(task.uid),
            user: self.users.name(task.uid),
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Arguments separated by NUL, as proc_pid_cmdline(5) has them, joined by spaces.
fn arguments(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    lossy(&bytes[..end]).replace('\0', " ")
}

/// Field 4 of proc_pid_stat(5). The name in field 2 may hold anything, so count from its closing parenthesis.
fn parent_in(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(pid: u32) -> Task {
        let mut comm = [0; 16];
        comm[..4].copy_from_slice(b"psql");
        Task { pid, tid: pid, uid: 0, gid: 0, comm }
    }

    /// A procfs of the test's own.
    fn procfs(pid: u32, command_line: &[u8], stat: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join(pid.to_string());
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("cmdline"), command_line).unwrap();
        fs::write(directory.join("stat"), stat).unwrap();
        std::os::unix::fs::symlink("/usr/bin/psql", directory.join("exe")).unwrap();
        root
    }

    #[test]
    fn a_process_is_learnt_from_procfs() {
        let root = procfs(7, b"psql\0-c\0select 1\0", "7 (a ) b) S 3 7 7 0");
        let process = Processes::new(root.path().to_owned(), "/etc/passwd".into()).of(&task(7));
        assert_eq!(process.command_line.as_deref(), Some("psql -c select 1"));
        assert_eq!((process.parent, process.executable.as_deref()), (Some(3), Some("/usr/bin/psql")));
        assert_eq!((process.name.as_str(), process.user.as_deref()), ("psql", Some("root")));
    }

    #[test]
    fn what_has_gone_is_not_guessed() {
        let root = tempfile::tempdir().unwrap();
        let process = Processes::new(root.path().to_owned(), "/etc/passwd".into()).of(&task(7));
        assert_eq!((process.parent, &process.command_line, &process.executable), (None, &None, &None));
    }

    #[test]
    fn a_process_id_that_is_used_again_is_another_process() {
        let root = procfs(7, b"first\0", "7 (first) S 3 7 7 0");
        let mut processes = Processes::new(root.path().to_owned(), "/etc/passwd".into());
        assert_eq!(processes.of(&task(7)).command_line.as_deref(), Some("first"));
        fs::write(root.path().join("7/cmdline"), b"second\0").unwrap();
        assert_eq!(processes.of(&task(7)).command_line.as_deref(), Some("first"), "it is known");
        processes.exited(&task(7));
        assert_eq!(processes.of(&task(7)).command_line.as_deref(), Some("second"));
        fs::write(root.path().join("7/cmdline"), b"third\0").unwrap();
        processes.forked(3, 7);
        assert_eq!(processes.of(&task(7)).command_line.as_deref(), Some("third"));
    }
}
