//! Processes of agents: what is known of a process id, and until when.
//!
//! The kernel tells of exec, fork and exit with ids and a path; arguments, parent and user come from procfs while the
//! process is there. A field that could not be learnt stays empty: what procfs shows is taken only from a process that was
//! there when the event happened.
//!
//! An entry is replaced at exec and removed at exit, so a process id that is used again is another process. It is not believed
//! any more once an event of its session that could have ended it was not written (see [`Occasion::complete_since`]).

mod facts;
pub mod held;
pub mod sockets;

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use auditor_common::event::{Exec, Task};

use crate::clock::Boottime;
use crate::record::Process;
pub use facts::Facts;

/// Bytes that what is known of processes may take. Beyond that the session with the most loses its oldest: a record whose process
/// is asked for again, or is not known any more, is better than a table without end.
const BYTES: usize = 16 << 20;
/// The same for parents of tasks that have not executed anything.
const PARENT_BYTES: usize = 4 << 20;
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

/// When something was said of a process, and by whom.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Occasion {
    /// When it happened.
    pub at: Boottime,
    /// The session that it happened in.
    pub session: u64,
    /// Since when, as far as is known, all that the session's processes did was written. What was learnt before may be of a
    /// process whose end nobody has told.
    pub complete_since: Boottime,
}

/// What is known of processes, and the parents of those that have not executed anything: of what outlives a daemon.
pub type Known = (Facts<Arc<Process>>, Facts<u32>);

/// Processes by id.
#[derive(Debug)]
pub struct Processes {
    procfs: PathBuf,
    known: Facts<Arc<Process>>,
    /// Parents of tasks that were forked and have not executed anything. Threads stand here too, and nobody tells their end.
    parents: Facts<u32>,
    /// Nanoseconds of a tick of proc(5)'s clock.
    tick: u64,
    users: Users,
    /// What procfs said since it was last asked for.
    looked: Vec<Process>,
    /// What procfs said when what is happening now happened for the first time, in order.
    said: VecDeque<Process>,
    /// What happens now has happened before: procfs is of another time.
    again: bool,
}

impl Processes {
    /// An empty table. `procfs`: where proc(5) is mounted; `passwd`: the user database.
    pub fn new(procfs: PathBuf, passwd: PathBuf) -> Self {
        // SAFETY: a plain number in, a plain number out.
        let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        let tick = 1_000_000_000 / u64::try_from(ticks).unwrap_or(0).max(1);
        Self {
            procfs,
            known: Facts::new(BYTES),
            parents: Facts::new(PARENT_BYTES),
            tick,
            users: Users::new(passwd),
            looked: Vec::new(),
            said: VecDeque::new(),
            again: false,
        }
    }

    /// What is known, for [`Self::restore`].
    pub fn all(&self) -> (&Facts<Arc<Process>>, &Facts<u32>) {
        (&self.known, &self.parents)
    }

    /// Goes on with what an earlier daemon knew.
    pub fn restore(&mut self, known: Known) {
        (self.known, self.parents) = known;
    }

    /// What procfs said since this was last called.
    pub fn take_looked(&mut self) -> std::vec::Drain<'_, Process> {
        self.looked.drain(..)
    }

    /// What procfs said when that which comes next happened for the first time.
    pub fn tell(&mut self, said: Process) {
        self.said.push_back(said);
    }

    /// Whether what comes next happens for a second time: then what was not said of a process cannot be known any more.
    pub fn happens_again(&mut self, again: bool) {
        self.again = again;
    }

    /// Nothing more of what was said is about what comes next.
    pub fn forget_told(&mut self) {
        self.said.clear();
        self.looked.clear();
    }

    /// A process has executed a program.
    pub fn executed(&mut self, exec: &Exec, occasion: Occasion) -> Arc<Process> {
        let pid = exec.task.pid;
        let mut process = self.look(&exec.task, occasion.at);
        let path = until_nul(&exec.path);
        // The link is the file that runs; the path is what was asked for, a script for instance.
        process.executable = process.executable.or_else(|| (!path.is_empty()).then(|| lossy(path)));
        process.parent = process.parent.or_else(|| self.parent(pid, occasion));
        self.keep(process, occasion)
    }

    /// A task has created another one.
    pub fn forked(&mut self, parent: u32, child: u32, occasion: Occasion) {
        self.parents.insert(child, parent, occasion, 0);
        // The id was free a moment ago: what was known of it is of another process.
        self.known.remove(child);
    }

    /// What was known of a process id is of another time.
    pub fn forget(&mut self, pid: u32) {
        self.known.remove(pid);
        self.parents.remove(pid);
    }

    /// A process has ended. Answers what was known of it.
    pub fn exited(&mut self, task: &Task, occasion: Occasion) -> Arc<Process> {
        let process = self.of(task, occasion);
        self.forget(task.pid);
        process
    }

    /// The process that a task belongs to.
    pub fn of(&mut self, task: &Task, occasion: Occasion) -> Arc<Process> {
        if let Some(process) = self.believed(task.pid, occasion) {
            return Arc::clone(process);
        }
        let mut process = self.look(task, occasion.at);
        if let Some(parent) = self.parent(task.pid, occasion) {
            process.parent = Some(parent);
            if process.executable.is_none()
                && let Some(parent) = self.believed(parent, occasion)
            {
                // Forked, never executed anything, and gone: it ran what its parent ran.
                process.executable.clone_from(&parent.executable);
                process.command_line.clone_from(&parent.command_line);
            }
        }
        self.keep(process, occasion)
    }

    /// What was last known of a process id, whether or not anything was missed since.
    pub fn known(&self, pid: u32) -> Option<Arc<Process>> {
        self.known.get(pid).map(Arc::clone)
    }

    /// A process that is there, by what procfs says of it alone.
    pub fn living(&mut self, pid: u32) -> Option<Arc<Process>> {
        use std::os::unix::fs::MetadataExt as _;
        if let Some(said) = self.said_of(pid) {
            return Some(Arc::new(said));
        }
        if self.again {
            return None;
        }
        let directory = self.procfs.join(pid.to_string());
        let owner = fs::metadata(&directory).ok()?;
        let mut comm = [0; 16];
        let name = fs::read(directory.join("comm")).ok()?;
        let name = name.strip_suffix(b"\n").unwrap_or(&name);
        comm.iter_mut().zip(name).for_each(|(place, byte)| *place = *byte);
        let task = Task { pid, tid: pid, uid: owner.uid(), gid: owner.gid(), comm };
        Some(Arc::new(self.look(&task, crate::clock::Clock::now())))
    }

    fn believed(&self, pid: u32, occasion: Occasion) -> Option<&Arc<Process>> {
        self.known.believed(pid, occasion)
    }

    fn parent(&self, pid: u32, occasion: Occasion) -> Option<u32> {
        self.parents.believed(pid, occasion).copied()
    }

    fn keep(&mut self, process: Process, occasion: Occasion) -> Arc<Process> {
        let process = Arc::new(process);
        let texts = [&process.executable, &process.command_line, &process.user];
        let bytes = size_of::<Process>() + texts.into_iter().flatten().map(String::len).sum::<usize>();
        self.known.insert(process.pid, Arc::clone(&process), occasion, bytes);
        process
    }

    /// What the kernel told of a task, with what procfs shows of its process, if that is still the one that was there at `at`.
    fn look(&mut self, task: &Task, at: Boottime) -> Process {
        if let Some(said) = self.said_of(task.pid) {
            return said;
        }
        let process = self.ask_procfs(task, at);
        self.looked.push(process.clone());
        process
    }

    /// What was said of a process when what is happening now happened for the first time.
    fn said_of(&mut self, pid: u32) -> Option<Process> {
        let place = self.said.iter().position(|said| said.pid == pid)?;
        self.said.remove(place)
    }

    fn ask_procfs(&mut self, task: &Task, at: Boottime) -> Process {
        let directory = self.procfs.join(task.pid.to_string());
        let mut process = Process {
            pid: task.pid,
            parent: None,
            name: lossy(until_nul(&task.comm)),
            executable: None,
            command_line: None,
            uid: Some(task.uid),
            user: self.users.name(task.uid),
        };
        let Some(stat) = Stat::read(&directory) else { return process };
        // Started after the event: the id is another process's by now. The clock of proc(5) has ticks of 10 ms, rounded down;
        // an id does not come round within one.
        if stat.start.saturating_mul(self.tick) > at.0 {
            return process;
        }
        let command_line = fs::File::open(directory.join("cmdline")).ok().and_then(|file| {
            let mut bytes = Vec::new();
            file.take(COMMAND_LINE_BYTES).read_to_end(&mut bytes).ok()?;
            Some(arguments(&bytes)).filter(|line| !line.is_empty())
        });
        let executable =
            fs::read_link(directory.join("exe")).ok().map(|path| lossy(path.as_os_str().as_encoded_bytes()));
        // All of it is one process's, if the same one is there at the end.
        if Stat::read(&directory).is_some_and(|end| end.start == stat.start) {
            process.parent = Some(stat.parent);
            process.command_line = command_line;
            process.executable = executable;
        }
        process
    }
}

/// What proc_pid_stat(5) says of a process for as long as it lives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stat {
    /// Field 4.
    parent: u32,
    /// Field 22: ticks from the boot to its start.
    start: u64,
}

impl Stat {
    fn read(directory: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(directory.join("stat")).ok()?)
    }

    /// The name in field 2 may hold anything, so fields are counted from its closing parenthesis.
    fn parse(stat: &str) -> Option<Self> {
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        Some(Self { parent, start: fields.nth(17)?.parse().ok()? })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn task(pid: u32) -> Task {
        let mut comm = [0; 16];
        comm[..4].copy_from_slice(b"psql");
        Task { pid, tid: pid, uid: 0, gid: 0, comm }
    }

    /// Line of proc_pid_stat(5) of a process that started `start` ticks after the boot.
    fn stat(name: &str, start: u64) -> String {
        format!("7 ({name}) S 3 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 {start} 0 0")
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

    fn processes(root: &tempfile::TempDir) -> Processes {
        Processes::new(root.path().to_owned(), "/etc/passwd".into())
    }

    const SECOND: u64 = 1_000_000_000;
    const NOW: Occasion = Occasion { at: Boottime(100 * SECOND), session: 1, complete_since: Boottime(0) };

    #[test]
    fn a_process_is_learnt_from_procfs() {
        let root = procfs(7, b"psql\0-c\0select 1\0", &stat("a ) b", 1));
        let process = processes(&root).of(&task(7), NOW);
        assert_eq!(process.command_line.as_deref(), Some("psql -c select 1"));
        assert_eq!((process.parent, process.executable.as_deref()), (Some(3), Some("/usr/bin/psql")));
        assert_eq!((process.name.as_str(), process.user.as_deref()), ("psql", Some("root")));
    }

    #[test]
    fn the_kernel_says_when_a_process_started() {
        let stat = Stat::read(Path::new("/proc/self")).unwrap();
        let start = stat.start * processes(&tempfile::tempdir().unwrap()).tick;
        let now = crate::clock::Clock::now().0;
        assert!(start <= now && now - start < 600 * SECOND, "{start}, now {now}");
        assert_eq!(stat.parent, std::os::unix::process::parent_id());
    }

    #[test]
    fn what_was_said_once_is_said_again_whoever_is_there_now() {
        let root = procfs(7, b"another\0", &stat("another", 1));
        let mut processes = processes(&root);
        let said = |pid, line: &str| Process {
            pid,
            name: "psql".to_owned(),
            command_line: Some(line.to_owned()),
            ..Process::default()
        };
        // One of which nothing comes again, and one that has gone.
        for process in [said(9, "nobody asks"), said(7, "first"), said(7, "second"), said(8, "gone")] {
            processes.tell(process);
        }
        let mut line = |process: Arc<Process>| process.command_line.clone().unwrap_or_default();
        assert_eq!(line(processes.of(&task(7), NOW)), "first");
        assert_eq!(processes.living(7).map(&mut line).as_deref(), Some("second"));
        assert_eq!(processes.living(8).map(&mut line).as_deref(), Some("gone"));
        assert!(processes.living(8).is_none());
        assert_eq!(processes.take_looked().len(), 0);
        processes.happens_again(true);
        assert!(processes.living(7).is_none(), "it was not there then");
    }

    #[test]
    fn what_has_gone_is_not_guessed() {
        let root = tempfile::tempdir().unwrap();
        let process = processes(&root).of(&task(7), NOW);
        assert_eq!((process.parent, &process.command_line, &process.executable), (None, &None, &None));
    }

    #[test]
    fn a_process_that_started_after_the_event_is_another_one() {
        let root = procfs(7, b"later\0", &stat("later", 101 * 100));
        let process = processes(&root).of(&task(7), NOW);
        assert_eq!((process.parent, &process.command_line, &process.executable), (None, &None, &None));
        assert_eq!(process.name, "psql", "the kernel's own word stands");
    }

    #[test]
    fn a_process_id_that_is_used_again_is_another_process() {
        let root = procfs(7, b"first\0", &stat("first", 1));
        let mut processes = processes(&root);
        let line = |processes: &mut Processes| processes.of(&task(7), NOW).command_line.clone();
        assert_eq!(line(&mut processes).as_deref(), Some("first"));
        fs::write(root.path().join("7/cmdline"), b"second\0").unwrap();
        assert_eq!(line(&mut processes).as_deref(), Some("first"), "it is known");
        processes.exited(&task(7), NOW);
        assert_eq!(line(&mut processes).as_deref(), Some("second"));
        fs::write(root.path().join("7/cmdline"), b"third\0").unwrap();
        processes.forked(3, 7, NOW);
        assert_eq!(line(&mut processes).as_deref(), Some("third"));
    }

    #[test]
    fn what_is_known_ends_with_an_event_that_was_missed() {
        let root = procfs(7, b"first\0", &stat("first", 1));
        let mut processes = processes(&root);
        processes.forked(3, 8, NOW);
        assert_eq!(processes.of(&task(7), NOW).command_line.as_deref(), Some("first"));
        fs::write(root.path().join("7/cmdline"), b"second\0").unwrap();
        let other = Occasion { session: 2, complete_since: NOW.at, ..NOW };
        processes.of(&task(9), other);
        assert_eq!(processes.of(&task(7), NOW).command_line.as_deref(), Some("first"), "another's loss");
        let later = Occasion { complete_since: NOW.at, ..NOW };
        assert_eq!(processes.of(&task(7), later).command_line.as_deref(), Some("second"));
        assert_eq!(processes.of(&task(8), later).parent, None, "who forked it is not known any more");
    }
}
