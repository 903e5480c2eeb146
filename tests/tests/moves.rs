//! Processes that change their cgroup: out of a session, into one, from one to another, and where nothing is to be told.
//!
//! Who moves is this test, which is root and nobody's session; where a process is, is read in /proc.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use auditor_tests::agent::{self, Agent};
use auditor_tests::daemon::{Daemon, cgroup_mount};
use auditor_tests::{UNPRIVILEGED, child, require_root};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(10);
const KINDS: [&str; 3] = ["cgroup-escape", "session-change", "cgroup-joined"];

/// Two agents, of whom the second may connect to a port of this host.
fn configuration(port: u16) -> String {
    format!(
        "[[agent]]\nname = \"first\"\npolicy = \"none\"\n\n[[agent]]\nname = \"second\"\npolicy = \"one\"\n\n\
         [[policy]]\nname = \"none\"\ndefault = \"deny\"\n\n[[policy]]\nname = \"one\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"127.0.0.1:{port}\"]\naction = \"allow\"\n"
    )
}

/// A cgroup of the test's own.
struct OwnCgroup(PathBuf);

impl OwnCgroup {
    fn new(name: &str) -> Self {
        let path = cgroup_mount().unwrap().join(format!("test-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn name(&self) -> String {
        format!("/{}", self.0.strip_prefix(cgroup_mount().unwrap()).unwrap().display())
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let start = Instant::now();
        while fs::remove_dir(&self.0).is_err() && start.elapsed() < Duration::from_secs(1) {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The path of a process's cgroup in the hierarchy.
fn cgroup_of(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned()
}

fn move_to(pid: u32, cgroup: &str) {
    let procs = cgroup_mount().unwrap().join(cgroup.trim_start_matches('/')).join("cgroup.procs");
    fs::write(procs, pid.to_string()).unwrap();
    assert_eq!(cgroup_of(pid), cgroup);
}

/// Findings of one of the kinds about moves: kind, agent, message.
fn moves(records: &[Value]) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for record in records {
        let own = &record["unmapped"]["auditor"];
        let kind = own["finding"]["kind"].as_str().unwrap_or_default();
        if KINDS.contains(&kind) {
            let agent = own["agent"]["name"].as_str().unwrap_or_default();
            found.push((kind.to_owned(), agent.to_owned(), record["message"].as_str().unwrap().to_owned()));
        }
    }
    found
}

/// The trail, once it tells of this many moves.
fn records_with(daemon: &Daemon, count: usize) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let records = daemon.records().unwrap();
        if moves(&records).len() >= count {
            return records;
        }
        assert!(start.elapsed() < LIMIT, "{:?}", moves(&records));
        thread::sleep(Duration::from_millis(20));
    }
}

/// One that is a session's: it answers, so it has come so far as to be in its cgroup.
fn inside(daemon: &Daemon, name: &str) -> Agent {
    let mut agent = Agent::run(daemon.home(), name, UNPRIVILEGED).unwrap();
    assert_eq!(agent.tell("attempt 127.0.0.1 1").unwrap(), "EPERM");
    agent
}

/// An agent that is no session's.
fn outside(daemon: &Daemon) -> Agent {
    let words = agent::words(daemon.home()).unwrap();
    let user = child::find_user(&[UNPRIVILEGED]).unwrap();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir(daemon.home().folder());
    Agent::start(child::as_user(&mut command, &user)).unwrap()
}

#[test]
fn a_process_that_leaves_its_session_is_told_of() {
    require_root().unwrap();
    let daemon = Daemon::start(&configuration(9)).unwrap();
    let elsewhere = OwnCgroup::new("elsewhere");
    let agent = inside(&daemon, "first");
    let (pid, home) = (agent.id(), cgroup_of(agent.id()));
    move_to(pid, &elsewhere.name());
    let records = records_with(&daemon, 1);
    let found = moves(&records);
    assert_eq!(found.len(), 1, "{found:?}");
    let (kind, of, message) = &found[0];
    assert_eq!((kind.as_str(), of.as_str()), ("cgroup-escape", "first"));
    for part in [format!("process {pid} "), format!(" {home} "), format!(" to {},", elsewhere.name())] {
        assert!(message.contains(&part), "no {part:?} in {message:?}");
    }
    assert!(message.contains(&format!("by process {} ", std::process::id())), "{message:?}");
    // Where it goes from there is nobody's business.
    move_to(pid, "/");
    daemon.settle().unwrap();
    assert_eq!(moves(&daemon.records().unwrap()).len(), 1);
    agent.end().unwrap();
    daemon.stop().unwrap();
}

#[test]
fn a_process_that_comes_into_a_session_is_its_process() {
    require_root().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let daemon = Daemon::start(&configuration(port)).unwrap();
    let attempt = format!("attempt 127.0.0.1 {port}");
    // From outside, with a connection that is older.
    let resident = inside(&daemon, "second");
    let home = cgroup_of(resident.id());
    let mut newcomer = outside(&daemon);
    assert_eq!(newcomer.tell(&format!("connect old 127.0.0.1 {port}")).unwrap(), "ok");
    move_to(newcomer.id(), &home);
    // From another session, whose policy allowed it nothing.
    let mut changer = inside(&daemon, "first");
    assert_eq!(changer.tell(&attempt).unwrap(), "EPERM");
    move_to(changer.id(), &home);
    let found = moves(&records_with(&daemon, 3));
    let kinds: Vec<_> = found.iter().map(|(kind, agent, _)| (kind.as_str(), agent.as_str())).collect();
    assert_eq!(
        kinds,
        [("cgroup-joined", "second"), ("session-change", "first"), ("cgroup-joined", "second")],
        "{found:?}"
    );
    for ((_, _, message), pid) in found.iter().zip([newcomer.id(), changer.id(), changer.id()]) {
        assert!(message.contains(&format!("process {pid} ")), "{message:?} is not of {pid}");
    }
    assert!(found[1].2.contains("of second"), "{}", found[1].2);

    assert_ne!(newcomer.tell("send old after").unwrap(), "ok", "a connection that is older goes on");
    assert_eq!(changer.tell(&attempt).unwrap(), "ok");
    let pid = changer.id();
    for agent in [newcomer, changer, resident] {
        agent.end().unwrap();
    }
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let opened: Vec<_> = records
        .iter()
        .filter(|record| record["unmapped"]["auditor"]["kind"] == "connection-opened")
        .map(|record| (&record["unmapped"]["auditor"]["agent"]["name"], &record["actor"]["process"]["pid"]))
        .collect();
    assert_eq!(opened, [(&Value::from("second"), &Value::from(pid))]);
    daemon.stop().unwrap();
}

#[test]
fn moves_of_the_auditors_own_and_within_a_session_are_none() {
    require_root().unwrap();
    let daemon = Daemon::start(&configuration(9)).unwrap();
    assert!(daemon.run("first", UNPRIVILEGED, &["/bin/true"]).unwrap().status.success());
    // To and fro by its process id.
    let agent = outside(&daemon);
    let pid = agent.id().to_string();
    let before = cgroup_of(agent.id());
    daemon.ask(&["tag", "--agent", "first", "--pid", &pid]).unwrap();
    assert_ne!(cgroup_of(agent.id()), before);
    daemon.ask(&["untag", "--pid", &pid]).unwrap();
    assert_eq!(cgroup_of(agent.id()), before);
    // Down and up again in a cgroup that was tagged with it inside.
    let cgroup = OwnCgroup::new("tagged");
    move_to(agent.id(), &cgroup.name());
    daemon.ask(&["tag", "--agent", "first", "--cgroup", cgroup.0.to_str().unwrap()]).unwrap();
    let below = OwnCgroup(cgroup.0.join("below"));
    fs::create_dir(&below.0).unwrap();
    move_to(agent.id(), &below.name());
    move_to(agent.id(), &cgroup.name());
    // One that is told, so that the others have been by then.
    move_to(agent.id(), &before);
    let found = moves(&records_with(&daemon, 1));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "cgroup-escape");
    agent.end().unwrap();
    daemon.settle().unwrap();
    drop(below);
    daemon.stop().unwrap();
}
