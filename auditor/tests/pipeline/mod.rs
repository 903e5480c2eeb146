//! A daemon whose pipeline thread answers commands from a list, and whose /proc is a directory of the test's own.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use auditor::api::client::Client;
use auditor::api::server::{ApiOptions, Listener};
use auditor::daemon::command::{
    self, Command, CommandError, Commands, DaemonState, OpenSession, SessionState,
};
use auditor::record::ocsf::Host;
use auditor::record::{Agent, Entry, Session, SessionTotals};
use auditor::trail::{Options, Trail};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// What the pipeline has been told and answers with.
#[derive(Default)]
struct Memory {
    sessions: Vec<SessionState>,
    opened: Vec<OpenSession>,
    accesses: Vec<Entry>,
    /// Where new sessions are said to be.
    cgroup: Option<String>,
    /// What has happened and is written down only when somebody asks for it.
    unsettled: Option<Box<dyn FnOnce() + Send>>,
}

/// A running API.
pub(crate) struct Daemon {
    directory: TempDir,
    memory: Arc<Mutex<Memory>>,
    shutdown: Option<oneshot::Sender<()>>,
    server: Option<thread::JoinHandle<()>>,
}

/// The host that records name.
pub(crate) fn host() -> Host {
    Host {
        hostname: "host".to_owned(),
        machine_id: None,
        boot_id: "boot".to_owned(),
        os: "Linux".to_owned(),
        kernel: "6.12".to_owned(),
    }
}

/// An open session.
pub(crate) fn session(id: &str, agent: &str, cgroup: &str) -> SessionState {
    SessionState {
        session: Arc::new(Session {
            id: id.to_owned(),
            agent: Agent { name: agent.to_owned(), labels: BTreeMap::new(), identity: None },
            task: None,
            policy: "backfill".to_owned(),
        }),
        cgroup: cgroup.to_owned(),
        opened: 1_000,
        ended: None,
        totals: SessionTotals::default(),
        bytes_moved: 0,
        bytes_audited: 0,
        confinement: None,
    }
}

impl Daemon {
    /// With a /proc of the test's own, in which this process is in no session.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let proc_root = directory.path().join("proc");
        let daemon = Self::start_in(directory, proc_root);
        daemon.pretend_cgroup("0::/user.slice\n");
        daemon
    }

    /// With the host's /proc.
    pub(crate) fn start_with_real_proc() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), PathBuf::from("/proc"))
    }

    fn start_in(directory: TempDir, proc_root: PathBuf) -> Self {
        let memory = Arc::new(Mutex::new(Memory::default()));
        let (commander, commands) = command::channel().unwrap();
        let answering = Arc::clone(&memory);
        thread::spawn(move || answer(commands, &answering));
        std::fs::create_dir(directory.path().join("trail")).unwrap();
        let listener = Listener::bind(directory.path()).unwrap();
        let options = ApiOptions {
            trail_dir: directory.path().join("trail"),
            proc_root,
            agents: "/auditor".to_owned(),
        };
        let (shutdown, stopped) = oneshot::channel::<()>();
        let server = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(listener.serve(commander, options, async { drop(stopped.await) })).unwrap();
        });
        Self { directory, memory, shutdown: Some(shutdown), server: Some(server) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join(auditor::api::SOCKET_NAME)
    }

    pub(crate) fn trail_dir(&self) -> PathBuf {
        self.directory.path().join("trail")
    }

    /// The trail, to be written to and closed by the test.
    pub(crate) fn trail(&self) -> Trail {
        Trail::open(&self.trail_dir(), Options::new(host())).unwrap().0
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.socket()).await.unwrap()
    }

    fn process_directory(&self) -> PathBuf {
        self.directory.path().join("proc").join(std::process::id().to_string())
    }

    /// What /proc tells of the cgroup of this process.
    pub(crate) fn pretend_cgroup(&self, text: &str) {
        let directory = self.process_directory();
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("cgroup"), text).unwrap();
        for name in ["status", "stat"] {
            std::fs::copy(Path::new("/proc/self").join(name), directory.join(name)).unwrap();
        }
    }

    /// Has /proc show a process that is this one's twin.
    pub(crate) fn pretend_process(&self, pid: u32) {
        let directory = self.directory.path().join("proc").join(pid.to_string());
        std::fs::create_dir_all(&directory).unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let own = std::process::id().to_string();
        let lines = status.lines().map(|line| match line.strip_prefix("Tgid:") {
            Some(number) if number.trim() == own => format!("Tgid:\t{pid}\n"),
            _ => format!("{line}\n"),
        });
        std::fs::write(directory.join("status"), lines.collect::<String>()).unwrap();
        std::fs::copy("/proc/self/stat", directory.join("stat")).unwrap();
    }

    pub(crate) fn forget_cgroup(&self) {
        std::fs::remove_dir_all(self.process_directory()).unwrap();
    }

    pub(crate) fn add(&self, session: SessionState) {
        self.memory.lock().unwrap().sessions.push(session);
    }

    /// Has new sessions said to be in this cgroup, so that a caller in it finds itself where it should be.
    pub(crate) fn place_sessions_in(&self, cgroup: &str) {
        self.memory.lock().unwrap().cgroup = Some(cgroup.to_owned());
    }

    /// Has `write` done when the pipeline is asked to settle.
    pub(crate) fn leave_unsettled(&self, write: impl FnOnce() + Send + 'static) {
        self.memory.lock().unwrap().unsettled = Some(Box::new(write));
    }

    pub(crate) fn opened(&self) -> Vec<OpenSession> {
        self.memory.lock().unwrap().opened.clone()
    }

    pub(crate) fn accesses(&self) -> Vec<Entry> {
        // They are told, not asked: give the thread a moment.
        thread::sleep(Duration::from_millis(100));
        self.memory.lock().unwrap().accesses.clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.shutdown.take());
        if let Some(server) = self.server.take() {
            let ended = server.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

fn answer(mut commands: Commands, memory: &Mutex<Memory>) {
    loop {
        let Some(command) = commands.take() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let mut memory = memory.lock().unwrap();
        match command {
            Command::Open(open, reply) => {
                let id = format!("{:016x}", memory.opened.len() + 1);
                // Outside the cgroup that /proc pretends, so that the caller stays no agent.
                let cgroup = memory.cgroup.clone().unwrap_or_else(|| format!("/auditor/{id}"));
                let mut state = session(&id, &open.agent, &cgroup);
                if let Some(session) = Arc::get_mut(&mut state.session) {
                    session.agent.labels.clone_from(&open.labels);
                    session.task.clone_from(&open.task);
                }
                memory.opened.push(*open);
                memory.sessions.push(state.clone());
                let _ = reply.send(Ok(state));
            }
            Command::Close(id, reply) => {
                let found = memory.sessions.iter_mut().find(|state| state.session.id == id);
                let _ = reply.send(match found {
                    Some(state) => {
                        state.ended = Some(5_000);
                        Ok(state.clone())
                    }
                    None => Err(CommandError::NotFound(format!("there is no session {id}"))),
                });
            }
            Command::Sessions(reply) => drop(reply.send(Ok(memory.sessions.clone()))),
            Command::Settle(reply) => {
                if let Some(write) = memory.unsettled.take() {
                    write();
                }
                let _ = reply.send(Ok(0));
            }
            Command::State(reply) => drop(reply.send(Ok(DaemonState::default()))),
            Command::Reload(reply) => drop(reply.send(Ok(()))),
            Command::Access(entry) => memory.accesses.push(entry),
            Command::HandOver(_, reply) | Command::Stop(reply) => {
                let _ = reply.send(Ok(()));
                return;
            }
        }
    }
}
