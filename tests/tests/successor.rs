//! What a daemon makes of another one's leftovers where they are not simply its own: cgroups that were tagged, programs whose session
//! nobody knows, rings that overflowed, processes that moved, tables of another size.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use auditor_tests::agent::{self, Agent};
use auditor_tests::cgroup::OwnCgroup;
use auditor_tests::child::{self, Child};
use auditor_tests::daemon::{Daemon, Home, cgroup_mount};
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::workload;
use auditor_tests::{UNPRIVILEGED, require_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const AGENT: &str = "heir";
const CARRIER: &str = env!("CARGO_BIN_EXE_carrier");
const LIMIT: Duration = Duration::from_secs(60);

fn configuration(daemon: &str, port: u16) -> String {
    format!(
        "[daemon]\n{daemon}\n[[agent]]\nname = \"{AGENT}\"\npolicy = \"one\"\n\n[[policy]]\nname = \"one\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"127.0.0.1:{port}\"]\naction = \"allow\"\n"
    )
}

/// The same with statements that are read.
fn speaking(daemon: &str, port: u16) -> String {
    format!("{}protocol = \"postgres\"\n", configuration(daemon, port))
}

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn successor(daemon: &Daemon) -> Daemon {
    Daemon::start_in(daemon.home().next().unwrap()).unwrap()
}

fn kind(record: &Value) -> &str {
    record["unmapped"]["auditor"]["kind"].as_str().unwrap()
}

fn count(records: &[Value], wanted: &str) -> usize {
    records.iter().filter(|record| kind(record) == wanted).count()
}

fn findings<'a>(records: &'a [Value], kind: &str) -> Vec<&'a str> {
    let of_kind = records.iter().filter(|record| record["unmapped"]["auditor"]["finding"]["kind"] == kind);
    of_kind.map(|record| record["message"].as_str().unwrap()).collect()
}

/// The trail, once it is as it should be.
fn records_until(daemon: &Daemon, done: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let records = daemon.records().unwrap();
        if done(&records) {
            return records;
        }
        let kinds: Vec<_> = records.iter().map(kind).collect();
        assert!(start.elapsed() < Duration::from_secs(10), "{kinds:?}; daemon: {}", daemon.said());
        thread::sleep(Duration::from_millis(50));
    }
}

fn journals(runtime: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(runtime).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("journal")).collect()
}

/// An agent inside of a cgroup.
fn inside(daemon: &Daemon, cgroup: &Path) -> Agent {
    let words = agent::words(daemon.home()).unwrap();
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(cgroup).args(words);
    Agent::start(&mut shell).unwrap()
}

/// A daemon that allows a port, a cgroup that was tagged, and an agent inside of it.
fn tagged(port: u16) -> (Daemon, OwnCgroup, Agent) {
    let daemon = Daemon::start(&configuration("", port)).unwrap();
    let cgroup = OwnCgroup::tagged(&daemon, AGENT).unwrap();
    let agent = inside(&daemon, cgroup.path());
    (daemon, cgroup, agent)
}

fn move_to(pid: u32, cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
}

/// Directories of links of tagged cgroups.
fn session_pins(daemon: &Daemon) -> Vec<PathBuf> {
    let own = fs::read_dir(&daemon.home().pins).unwrap().next().unwrap().unwrap().path();
    let entries = fs::read_dir(own).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("session-")).collect()
}

#[test]
fn a_tagged_cgroup_is_held_by_the_next_daemon_too() {
    require_root().unwrap();
    let ((_allowed, port), (_denied, denied)) = (listen(), listen());
    let (first, cgroup, mut agent) = tagged(port);
    let (attempt, forbidden) = (format!("attempt 127.0.0.1 {port}"), format!("attempt 127.0.0.1 {denied}"));
    assert_eq!(
        (agent.tell(&attempt).unwrap(), agent.tell(&forbidden).unwrap()),
        ("ok".into(), "EPERM".into())
    );
    first.kill().unwrap();
    assert_eq!(agent.tell(&forbidden).unwrap(), "EPERM");
    let second = successor(&first);
    assert_eq!(
        (agent.tell(&attempt).unwrap(), agent.tell(&forbidden).unwrap()),
        ("ok".into(), "EPERM".into())
    );
    cgroup.untag(&second).unwrap();
    assert_eq!(agent.tell(&forbidden).unwrap(), "ok", "it is free again");
    agent.end().unwrap();
    let records = second.records().unwrap();
    assert_eq!((count(&records, "connection-opened"), count(&records, "connection-refused")), (2, 3));
    assert_eq!((count(&records, "session-opened"), count(&records, "session-ended")), (1, 1));
    assert_eq!(session_pins(&second), Vec::<PathBuf>::new());
    second.stop().unwrap();
}

#[test]
fn another_cgroup_in_the_place_of_a_tagged_one_is_left_alone() {
    require_root().unwrap();
    let ((_allowed, port), (_denied, denied)) = (listen(), listen());
    let (first, cgroup, mut agent) = tagged(port);
    assert_eq!(agent.tell(&format!("attempt 127.0.0.1 {denied}")).unwrap(), "EPERM");
    first.kill().unwrap();
    agent.end().unwrap();
    cgroup.remove().unwrap();
    fs::create_dir(cgroup.path()).unwrap();
    let mut stranger = inside(&first, cgroup.path());
    let second = successor(&first);
    second.settle().unwrap();
    assert_eq!(stranger.tell(&format!("attempt 127.0.0.1 {denied}")).unwrap(), "ok");
    stranger.end().unwrap();
    let records = second.records().unwrap();
    assert_eq!((count(&records, "session-opened"), count(&records, "session-ended")), (1, 1));
    assert_eq!(session_pins(&second), Vec::<PathBuf>::new());
    second.stop().unwrap();
}

#[test]
fn a_tagged_cgroup_that_cannot_be_taken_over_keeps_the_programs_that_it_has() {
    require_root().unwrap();
    let ((_allowed, port), (_denied, denied)) = (listen(), listen());
    let (first, cgroup, mut agent) = tagged(port);
    let forbidden = format!("attempt 127.0.0.1 {denied}");
    assert_eq!(agent.tell(&forbidden).unwrap(), "EPERM");
    // In the place of one link is something that is none.
    let pin = session_pins(&first)[0].join("sock_release");
    first.kill().unwrap();
    fs::remove_file(&pin).unwrap();
    fs::create_dir(&pin).unwrap();
    let second = successor(&first);
    assert_eq!(agent.tell(&forbidden).unwrap(), "EPERM");
    let records = second.records().unwrap();
    let told = findings(&records, "session-not-taken-over");
    assert_eq!(told.len(), 1, "{}", second.said());
    assert!(told[0].contains(" of the earlier daemon's stay on it"), "{}", told[0]);
    agent.end().unwrap();
    fs::remove_dir(&pin).unwrap();
    cgroup.untag(&second).unwrap();
    assert_eq!(session_pins(&second), Vec::<PathBuf>::new());
    second.stop().unwrap();
}

#[test]
fn programs_of_a_session_that_nobody_knows_keep_its_cgroup_closed() {
    require_root().unwrap();
    let (_allowed, port) = listen();
    let (first, cgroup, mut agent) = tagged(port);
    let attempt = format!("attempt 127.0.0.1 {port}");
    assert_eq!(agent.tell(&attempt).unwrap(), "ok");
    first.kill().unwrap();
    journals(&first.home().runtime).iter().for_each(|journal| fs::remove_file(journal).unwrap());
    // Tables of another size: what is on the cgroup writes to rings that nobody will ever read.
    let next = first.home().next().unwrap();
    fs::write(next.configuration(), configuration("ring_bytes = 1048576", port)).unwrap();
    let second = Daemon::start_in(next).unwrap();
    assert_eq!(agent.tell(&attempt).unwrap(), "EPERM");
    let records = second.records().unwrap();
    let told = findings(&records, "session-abandoned");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("until its cgroup is tagged again"), "{told:?}");
    assert_eq!(session_pins(&second).len(), 1);
    // It is told once, and closed as long as nobody tags it.
    second.kill().unwrap();
    let third = successor(&second);
    assert_eq!(agent.tell(&attempt).unwrap(), "EPERM");
    assert_eq!(findings(&third.records().unwrap(), "session-abandoned").len(), 1);
    cgroup.tag(&third, AGENT).unwrap();
    assert_eq!(session_pins(&third).len(), 1);
    let before = count(&third.records().unwrap(), "connection-opened");
    assert_eq!(agent.tell(&attempt).unwrap(), "ok");
    cgroup.untag(&third).unwrap();
    let records = third.records().unwrap();
    assert_eq!(count(&records, "connection-opened"), before + 1, "once");
    assert_eq!(session_pins(&third), Vec::<PathBuf>::new());
    assert_eq!(agent.tell(&attempt).unwrap(), "ok", "it is free again");
    agent.end().unwrap();
    third.stop().unwrap();
}

#[test]
fn a_journal_that_is_gone_is_told_of_and_an_orderly_stop_is_not() {
    require_root().unwrap();
    let (_allowed, port) = listen();
    let first = Daemon::start(&configuration("", port)).unwrap();
    let mut agent = Agent::run(first.home(), AGENT, UNPRIVILEGED).unwrap();
    let attempt = format!("attempt 127.0.0.1 {port}");
    assert_eq!(agent.tell(&attempt).unwrap(), "ok");
    // Stopped in good order with an agent that lives on: closed, ended, and nothing is lost.
    let cgroup = first.home().cgroup().unwrap();
    let session = fs::read_dir(&cgroup).unwrap().find(|entry| entry.as_ref().unwrap().path().is_dir());
    let session = session.unwrap().unwrap().path();
    kill(Pid::from_raw(first.id().cast_signed()), Signal::SIGTERM).unwrap();
    let next = first.home().next().unwrap();
    wait_for_end(&first);
    let second = Daemon::start_in(next).unwrap();
    assert_eq!(agent.tell(&attempt).unwrap(), "EPERM");
    let records = second.records().unwrap();
    assert_eq!(findings(&records, "state-lost"), Vec::<&str>::new());
    assert_eq!(findings(&records, "session-abandoned"), Vec::<&str>::new(), "it was ended");
    second.kill().unwrap();
    journals(&second.home().runtime).iter().for_each(|journal| fs::remove_file(journal).unwrap());
    let third = successor(&second);
    let records = third.records().unwrap();
    assert_eq!(findings(&records, "state-lost").len(), 1);

    // Whoever lives below the daemon's cgroup is an agent, whether or not its session is known.
    // Where the kernel cannot refuse it the connect, the connection may also be older.
    let mut words = std::process::Command::new("/usr/bin/python3");
    words.args(["-B", "-c", FROM_WITHIN]).arg(third.home().socket()).arg(&session);
    let answer = child::succeed(&mut words, LIMIT).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("an agent may not use"), "{answer}");
    agent.end().unwrap();
    third.stop().unwrap();
}

/// Connects to a daemon's socket, enters a cgroup, and asks.
const FROM_WITHIN: &str = r#"
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
open(sys.argv[2] + "/cgroup.procs", "w").write(str(os.getpid()))
s.sendall(b"GET /v1/status HTTP/1.1\r\nHost: auditor\r\nConnection: close\r\n\r\n")
print(b"".join(iter(lambda: s.recv(65536), b"")).decode())
"#;

fn wait_for_end(daemon: &Daemon) {
    let start = Instant::now();
    while !fs::read_to_string(format!("/proc/{}/stat", daemon.id())).unwrap().contains(") Z ") {
        assert!(start.elapsed() < LIMIT, "{}", daemon.said());
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn tables_of_another_size_have_tracepoints_of_their_own() {
    require_root().unwrap();
    let (_allowed, port) = listen();
    let first = Daemon::start(&configuration("", port)).unwrap();
    assert!(first.run(AGENT, UNPRIVILEGED, &["/bin/true"]).unwrap().status.success());
    first.settle().unwrap();
    let before = count(&first.records().unwrap(), "process-started");
    assert!(before > 0);
    first.kill().unwrap();
    let next = first.home().next().unwrap();
    fs::write(next.configuration(), configuration("ring_bytes = 1048576", port)).unwrap();
    let second = Daemon::start_in(next).unwrap();
    assert!(second.run(AGENT, UNPRIVILEGED, &["/bin/true"]).unwrap().status.success());
    second.settle().unwrap();
    let records = second.records().unwrap();
    assert_eq!(count(&records, "process-started"), 2 * before);
    assert_eq!(findings(&records, "state-lost").len(), 1);
    second.stop().unwrap();
}

#[test]
fn a_daemon_that_could_not_go_on_replaces_none() {
    require_root().unwrap();
    let (_allowed, port) = listen();
    let first = Daemon::start(&configuration("", port)).unwrap();
    let mut agent = Agent::run(first.home(), AGENT, UNPRIVILEGED).unwrap();
    let attempt = format!("attempt 127.0.0.1 {port}");
    assert_eq!(agent.tell(&attempt).unwrap(), "ok");
    let mut other: Home = first.home().next().unwrap();
    fs::write(other.configuration(), configuration("ring_bytes = 1048576", port)).unwrap();
    other.replace = true;
    let refused = child::output(&mut other.daemon(), LIMIT).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("another ring_bytes"), "{said}");
    assert_eq!(agent.tell(&attempt).unwrap(), "ok", "the first one is at work");
    let mut next = first.home().next().unwrap();
    next.replace = true;
    let second = Daemon::start_in(next).unwrap();
    assert_eq!(agent.tell(&attempt).unwrap(), "ok");
    agent.end().unwrap();
    second.settle().unwrap();
    let records = second.records().unwrap();
    let asked: Vec<u64> = records
        .iter()
        .filter(|record| record["http_request"]["url"]["path"] == "/v1/hand-over")
        .map(|record| record["http_response"]["code"].as_u64().unwrap())
        .collect();
    assert_eq!(asked, [400, 204]);
    assert_eq!((count(&records, "session-opened"), count(&records, "session-ended")), (1, 1));
    second.stop().unwrap();
}

#[test]
fn a_move_that_was_followed_is_not_followed_again() {
    require_root().unwrap();
    let (allowed, port) = listen();
    let first = Daemon::start(&configuration("", port)).unwrap();
    let resident = Agent::run(first.home(), AGENT, UNPRIVILEGED).unwrap();
    let elsewhere = OwnCgroup::new().unwrap();
    let mut guest = inside(&first, elsewhere.path());
    assert_eq!(guest.tell(&format!("attempt 127.0.0.1 {port}")).unwrap(), "ok");
    let home = fs::read_to_string(format!("/proc/{}/cgroup", resident.id())).unwrap();
    let home = home.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    move_to(guest.id(), &cgroup_mount().unwrap().join(home));
    records_until(&first, |records| !findings(records, "cgroup-joined").is_empty());
    first.kill().unwrap();
    // It goes, and makes a connection that is no session's.
    move_to(guest.id(), elsewhere.path());
    assert_eq!(guest.tell(&format!("connect free 127.0.0.1 {port}")).unwrap(), "ok");
    let second = successor(&first);
    let records = records_until(&second, |records| !findings(records, "cgroup-escape").is_empty());
    thread::sleep(Duration::from_millis(100));
    assert_eq!(guest.tell("send free hello").unwrap(), "ok", "its connection was ended");
    assert_eq!(findings(&records, "cgroup-joined").len(), 1);
    assert_eq!(findings(&second.records().unwrap(), "older-socket-destroyed"), Vec::<&str>::new());
    drop(allowed);
    resident.end().unwrap();
    guest.end().unwrap();
    second.settle().unwrap();
    second.stop().unwrap();
}

#[test]
fn a_socket_that_was_adopted_is_followed_by_the_next_daemon() {
    require_root().unwrap();
    let (allowed, port) = listen();
    let settings = configuration("", port)
        .replace("policy = \"one\"\n\n", "policy = \"one\"\nexisting_sockets = \"adopt\"\n\n");
    let first = Daemon::start(&settings).unwrap();
    let cgroup = OwnCgroup::new().unwrap();
    let mut agent = inside(&first, cgroup.path());
    assert_eq!(agent.tell(&format!("connect old 127.0.0.1 {port}")).unwrap(), "ok");
    cgroup.tag(&first, AGENT).unwrap();
    assert_eq!(agent.tell("send old before").unwrap(), "ok");
    records_until(&first, |records| count(records, "connection-opened") == 1);
    first.kill().unwrap();
    let second = successor(&first);
    assert_eq!(agent.tell("send old after").unwrap(), "ok");
    assert_eq!(agent.tell("close old").unwrap(), "ok");
    let records = records_until(&second, |records| count(records, "connection-closed") == 1);
    let closed = records.iter().find(|record| kind(record) == "connection-closed").unwrap();
    let connection = &closed["unmapped"]["auditor"]["connection"];
    assert!(connection["adopted"].is_boolean() || connection["adopted_at"].is_object(), "{connection}");
    assert_eq!(findings(&records, "state-lost"), Vec::<&str>::new());
    drop(allowed);
    agent.end().unwrap();
    cgroup.untag(&second).unwrap();
    second.stop().unwrap();
}

/// Each byte that a connection moved is read, opaque, counted or in a gap.
fn accounted(records: &[Value]) -> u64 {
    let mut lost = 0;
    for end in workload::of_kind(records, "connection-closed") {
        let connection = &end["unmapped"]["auditor"]["connection"];
        let coverage = &connection["coverage"];
        for direction in ["sent", "received"] {
            let unread: u64 = workload::of_kind(records, "gap")
                .iter()
                .map(|gap| &gap["unmapped"]["auditor"])
                .filter(|own| {
                    own["connection"]["id"] == connection["id"] && own["gap"]["direction"] == direction
                })
                .map(|own| own["gap"]["length"].as_u64().unwrap())
                .sum();
            lost += unread;
            let field = |name: &str| coverage[format!("{name}_{direction}")].as_u64().unwrap_or(0);
            let told = field("audited") + field("opaque") + field("skipped") + unread;
            assert_eq!(Some(told), coverage[direction].as_u64(), "{connection}");
        }
    }
    lost
}

/// Carriers of many statements, on connections that are there before and after `during`.
fn under_load(settings: &str, during: impl FnOnce(&Daemon) -> Daemon) -> u64 {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let first = Daemon::start(&speaking(settings, postgres.port())).unwrap();
    let cgroup = OwnCgroup::tagged(&first, AGENT).unwrap();
    let to = SocketAddr::new("127.0.0.1".parse().unwrap(), postgres.port()).to_string();
    let mut carriers: Vec<Child> = ["paced:500:20000:10", "paced:250:80000:20", "paced:1200:300:4"]
        .iter()
        .map(|way| {
            let mut carrier = cgroup.command(CARRIER);
            carrier.args(["statements", &to, way]).stdout(Stdio::piped());
            Child::start(&mut carrier, Signal::SIGKILL).unwrap()
        })
        .collect();
    thread::sleep(Duration::from_millis(600));
    let last = during(&first);
    for carrier in &mut carriers {
        drop(std::io::read_to_string(carrier.take_stdout().unwrap()).unwrap());
        assert!(carrier.wait(LIMIT).unwrap().success(), "{}", last.said());
    }
    last.settle().unwrap();
    let records = last.records().unwrap();
    for kind in ["state-lost", "session-abandoned", "protocol-violation"] {
        assert_eq!(findings(&records, kind), Vec::<&str>::new(), "{kind}");
    }
    assert_eq!((count(&records, "session-opened"), count(&records, "session-ended")), (1, 1));
    let lost = accounted(&records);
    last.stop().unwrap();
    lost
}

#[test]
fn losses_of_an_earlier_daemon_are_told_again_as_they_were() {
    let lost = under_load("overload = \"record-loss\"\nring_bytes = 524288", |first| {
        let id = Pid::from_raw(first.id().cast_signed());
        kill(id, Signal::SIGSTOP).unwrap();
        thread::sleep(Duration::from_millis(900));
        kill(id, Signal::SIGCONT).unwrap();
        // What was lost is in its journal by then.
        thread::sleep(Duration::from_millis(500));
        first.kill().unwrap();
        successor(first)
    });
    assert!(lost > 0, "nothing was lost: the test did not do its work");
}

#[test]
fn what_passes_while_there_is_no_daemon_is_a_gap_and_no_violation() {
    let lost = under_load("fail_mode = \"open\"\nring_bytes = 262144", |first| {
        first.kill().unwrap();
        thread::sleep(Duration::from_millis(3500));
        successor(first)
    });
    assert!(lost > 0, "nothing was lost: the test did not do its work");
}
