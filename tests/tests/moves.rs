//! Processes that change their cgroup: out of a session, into one, from one to another, and where nothing is to be told.
//!
//! Who moves is this test, which is root and nobody's session; where a process is, is read in /proc.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use auditor_tests::agent::{self, Agent};
use auditor_tests::cgroup::OwnCgroup;
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
    let elsewhere = OwnCgroup::new().unwrap();
    let agent = inside(&daemon, "first");
    let (pid, home) = (agent.id(), cgroup_of(agent.id()));
    move_to(pid, elsewhere.name());
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
    let cgroup = OwnCgroup::new().unwrap();
    move_to(agent.id(), cgroup.name());
    cgroup.tag(&daemon, "first").unwrap();
    let below = cgroup.below("below").unwrap();
    move_to(agent.id(), below.name());
    move_to(agent.id(), cgroup.name());
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

/// A session's agent that may be moved, and where to.
fn told_of(change: &str) {
    require_root().unwrap();
    let daemon = Daemon::start(&configuration(9)).unwrap();
    let elsewhere = OwnCgroup::new().unwrap();
    let mut agent = inside(&daemon, "first");
    let pid = agent.id();
    assert_eq!(agent.tell(change).unwrap(), "ok");
    // Of the thread that goes on, or of the program that was executed.
    assert_eq!(agent.tell("attempt 127.0.0.1 1").unwrap(), "EPERM");
    elsewhere.take_in(pid).unwrap();
    // The first thread stays where it ended.
    let of_thread = |task: &fs::DirEntry| fs::read_to_string(task.path().join("cgroup")).unwrap();
    let mut tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(Result::unwrap);
    assert!(tasks.any(|task| of_thread(&task).contains(&format!("0::{}\n", elsewhere.name()))));
    let found = moves(&records_with(&daemon, 1));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "cgroup-escape");
    assert!(found[0].2.contains(&format!("process {pid} ")), "{found:?}");
    agent.end().unwrap();
    daemon.stop().unwrap();
}

#[test]
fn a_process_whose_thread_executed_a_program_is_told_of() {
    told_of("exec");
}

#[test]
fn a_process_that_outlives_its_first_thread_is_told_of() {
    told_of("thread");
}

#[test]
fn a_process_that_was_out_for_a_moment_has_not_been_forgotten() {
    require_root().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let daemon = Daemon::start(&configuration(port)).unwrap();
    let elsewhere = OwnCgroup::new().unwrap();
    let mut agent = inside(&daemon, "second");
    let (pid, home) = (agent.id(), cgroup_of(agent.id()));
    for _ in 0..8 {
        move_to(pid, elsewhere.name());
        move_to(pid, &home);
    }
    move_to(pid, elsewhere.name());
    assert_eq!(agent.tell(&format!("connect outside 127.0.0.1 {port}")).unwrap(), "ok");
    move_to(pid, &home);
    let found = moves(&records_with(&daemon, 18));
    let kinds: Vec<_> = found.iter().map(|(kind, ..)| kind.as_str()).collect();
    assert_eq!(kinds, ["cgroup-escape", "cgroup-joined"].repeat(9));
    let start = Instant::now();
    while agent.tell("send outside after").unwrap() == "ok" {
        assert!(start.elapsed() < LIMIT, "a connection that was made outside goes on");
        thread::sleep(Duration::from_millis(20));
    }
    move_to(pid, elsewhere.name());
    assert_eq!(moves(&records_with(&daemon, 19)).len(), 19);
    agent.end().unwrap();
    daemon.stop().unwrap();
}

#[test]
fn a_child_that_is_born_outside_is_told_of_and_one_that_is_born_inside_is_a_member() {
    require_root().unwrap();
    let daemon = Daemon::start(&configuration(9)).unwrap();
    let delegated = OwnCgroup::new().unwrap();
    let [within, without] = ["within", "without"].map(|name| delegated.below(name).unwrap());
    let user = child::find_user(&[UNPRIVILEGED]).unwrap();
    for cgroup in [&delegated, &within, &without] {
        std::os::unix::fs::chown(cgroup.path().join("cgroup.procs"), Some(user.uid.as_raw()), None).unwrap();
    }
    let mut agent = outside(&daemon);
    let before = cgroup_of(agent.id());
    move_to(agent.id(), within.name());
    within.tag(&daemon, "first").unwrap();
    let born = |agent: &mut Agent, cgroup: &OwnCgroup| -> u32 {
        let pid: u32 = agent.tell(&format!("bear {}", cgroup.path().display())).unwrap().parse().unwrap();
        assert_eq!(cgroup_of(pid), cgroup.name());
        pid
    };
    let kill = |pid: u32| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::SIGKILL)
            .unwrap();
    };
    let escaped = born(&mut agent, &without);
    let found = moves(&records_with(&daemon, 1));
    assert_eq!((found.len(), found[0].0.as_str()), (1, "cgroup-escape"), "{found:?}");
    for part in [format!("process {escaped} was born outside"), " without,".to_owned()] {
        assert!(found[0].2.contains(&part), "no {part:?} in {found:?}");
    }
    kill(escaped);
    // From outside into the session, and out from there.
    let mut mother = outside(&daemon);
    move_to(mother.id(), without.name());
    let inmate = born(&mut mother, &within);
    move_to(inmate, without.name());
    let found = moves(&records_with(&daemon, 2));
    assert_eq!((found.len(), found[1].0.as_str()), (2, "cgroup-escape"), "{found:?}");
    assert!(found[1].2.contains(&format!("process {inmate} was moved out")), "{found:?}");
    kill(inmate);
    // Straight into a cgroup below the session's.
    let below = within.below("below").unwrap();
    move_to(mother.id(), below.name());
    let found = moves(&records_with(&daemon, 3));
    assert_eq!((found.len(), found[2].0.as_str()), (3, "cgroup-joined"), "{found:?}");
    for agent in [&agent, &mother] {
        move_to(agent.id(), &before);
    }
    for agent in [agent, mother] {
        agent.end().unwrap();
    }
    daemon.settle().unwrap();
    drop((below, within, without));
    drop(delegated);
    daemon.stop().unwrap();
}
