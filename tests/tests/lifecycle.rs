//! Beginnings and ends: of a daemon that is killed or stopped while agents live, of a policy, of a tag, of a session.
//!
//! What got through is asked of whoever listens at the far end; what is left behind, of the kernel's file systems.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use auditor_tests::agent::{self, Agent};
use auditor_tests::cgroup::OwnCgroup;
use auditor_tests::daemon::{Daemon, Home, cgroup_mount};
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::{UNPRIVILEGED, child, clients, oracle, place, require_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const AGENT: &str = "liver";
const LIMIT: Duration = Duration::from_secs(10);
/// Longer than a segment that was held needs to be sent again.
const SOON: Duration = Duration::from_millis(700);
/// How long what agents send may leave without a daemon, and a moment.
const LEASE: Duration = Duration::from_millis(2500);

fn configuration(allowed: &[u16]) -> String {
    let mut text = format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"narrow\"\n\n[[policy]]\nname = \"narrow\"\ndefault = \"deny\"\n"
    );
    for port in allowed {
        text.push_str(&format!("[[policy.rule]]\nto = [\"127.0.0.1:{port}\"]\naction = \"allow\"\n"));
    }
    text
}

/// Somebody who listens and hears.
struct Ear {
    listener: TcpListener,
    port: u16,
}

impl Ear {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { listener, port }
    }

    fn accept(&self) -> TcpStream {
        let start = Instant::now();
        loop {
            if let Ok((stream, _)) = self.listener.accept() {
                return stream;
            }
            assert!(start.elapsed() < LIMIT, "nobody connects");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Connections that wait.
    fn waiting(&self) -> usize {
        std::iter::from_fn(|| self.listener.accept().ok()).count()
    }

    fn attempt(&self) -> String {
        format!("attempt 127.0.0.1 {}", self.port)
    }

    fn connect(&self, name: &str) -> String {
        format!("connect {name} 127.0.0.1 {}", self.port)
    }
}

/// What arrives within `limit`, up to `length` bytes.
fn hear(stream: &mut TcpStream, length: usize, limit: Duration) -> String {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut heard = vec![0; length];
    let mut place = 0;
    while place < length {
        match stream.read(&mut heard[place..]) {
            Ok(0) => break,
            Ok(more) => place += more,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    String::from_utf8_lossy(&heard[..place]).into_owned()
}

fn records_of<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == kind).collect()
}

/// The trail, once it has at least `count` records of a kind: a record is in it a moment after what it tells of.
fn records_with(daemon: &Daemon, count: usize, kind: &str) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let records = daemon.records().unwrap();
        if records_of(&records, kind).len() >= count {
            return records;
        }
        assert!(start.elapsed() < LIMIT, "no {count} records of kind {kind}: {records:#?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// The cgroup2 path of a process.
fn cgroup_of(pid: u32) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let name = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    cgroup_mount().unwrap().join(name)
}

/// Ends a daemon, which stays as a zombie until its value is dropped, and waits for that.
fn end(daemon: &Daemon, signal: Signal) {
    kill(Pid::from_raw(daemon.id().cast_signed()), signal).unwrap();
    let start = Instant::now();
    let stat = format!("/proc/{}/stat", daemon.id());
    while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
        assert!(start.elapsed() < LIMIT, "the daemon has not ended: {}", daemon.said());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Another daemon at the same places, with the same configuration.
fn again(first: &Daemon) -> Daemon {
    let home = first.home();
    let configuration = fs::read_to_string(home.configuration()).unwrap();
    let mut next = Home::new(place::auditor("debug").unwrap(), &configuration).unwrap();
    next.state.clone_from(&home.state);
    next.runtime.clone_from(&home.runtime);
    next.pins.clone_from(&home.pins);
    Daemon::start_in(next).unwrap()
}

fn verify(trail: &Path) {
    let mut verify = Command::new(place::auditor("debug").unwrap());
    child::succeed(verify.arg("verify").arg(trail), LIMIT).unwrap();
}

/// Checks that nothing is left of a daemon: neither what it pinned nor a cgroup.
fn nothing_left(pins: &Path, session: &Path) {
    assert_eq!(entries(pins), Vec::<PathBuf>::new(), "pins are left");
    assert!(!session.exists(), "{} is left", session.display());
    let parent = session.parent().unwrap();
    assert!(!parent.exists(), "{} is left", parent.display());
}

#[test]
fn a_daemon_that_is_killed_leaves_nothing_open_and_the_next_one_takes_over() {
    require_root().unwrap();
    let (allowed, denied) = (Ear::new(), Ear::new());
    let first = Daemon::start(&configuration(&[allowed.port])).unwrap();
    let pins = first.home().pins.clone();
    let mut agent = Agent::run(first.home(), AGENT, UNPRIVILEGED).unwrap();
    assert_eq!(agent.tell(&allowed.connect("live")).unwrap(), "ok");
    let mut live = allowed.accept();
    assert_eq!(agent.tell("send live before").unwrap(), "ok");
    assert_eq!(hear(&mut live, 6, LIMIT), "before");
    let session = cgroup_of(agent.id());
    let session_id = session.file_name().unwrap().to_str().unwrap().to_owned();
    // What has happened is in the trail before the daemon goes.
    records_with(&first, 1, "connection-opened");
    let pinned = entries(&pins);
    assert!(!pinned.is_empty(), "nothing would outlive the daemon");

    end(&first, Signal::SIGKILL);
    assert_eq!(agent.tell(&denied.attempt()).unwrap(), "EPERM", "at once");
    thread::sleep(LEASE);
    assert_eq!(agent.tell(&denied.attempt()).unwrap(), "EPERM");
    assert_eq!(agent.tell(&allowed.attempt()).unwrap(), "EPERM", "nobody writes it down");
    // The kernel takes it into the socket's buffer; it does not leave.
    assert_eq!(agent.tell("send live unseen").unwrap(), "ok");
    assert_eq!(hear(&mut live, 6, SOON), "", "something arrived that nobody wrote down");
    assert_eq!((allowed.waiting(), denied.waiting()), (0, 0));

    let second = again(&first);
    assert_eq!(hear(&mut live, 6, LIMIT), "unseen", "its connection lives on");
    assert_eq!(agent.tell(&allowed.attempt()).unwrap(), "ok", "its session lives on");
    assert_eq!(agent.tell(&denied.attempt()).unwrap(), "EPERM");
    assert_eq!((allowed.waiting(), denied.waiting()), (1, 0));
    let records = records_with(&second, 2, "connection-opened");
    let findings = records_of(&records, "finding");
    let lost = |record: &&&Value| {
        let kind = &record["unmapped"]["auditor"]["finding"]["kind"];
        kind == "session-abandoned" || kind == "state-lost"
    };
    assert_eq!(findings.iter().filter(lost).count(), 0, "{findings:#?}");
    let sessions = second.ask(&["sessions", "--live", "--json"]).unwrap();
    assert!(sessions.contains(&session_id), "{sessions}");
    assert_eq!(records_of(&records, "daemon-started").len(), 2);
    assert_eq!(records_of(&records, "daemon-took-over").len(), 1);
    assert_eq!(entries(&pins), pinned, "the same pins, once");

    let mut next = Agent::run(second.home(), AGENT, UNPRIVILEGED).unwrap();
    assert_eq!(next.tell(&allowed.attempt()).unwrap(), "ok");
    assert_eq!(next.tell(&denied.attempt()).unwrap(), "EPERM");
    assert_eq!((allowed.waiting(), denied.waiting()), (1, 0));
    agent.end().unwrap();
    next.end().unwrap();
    second.settle().unwrap();
    let stopped = second.stop().unwrap();
    verify(&stopped.trail);
    nothing_left(&pins, &session);
}

#[test]
fn a_daemon_that_is_stopped_leaves_living_agents_closed() {
    require_root().unwrap();
    let allowed = Ear::new();
    let first = Daemon::start(&configuration(&[allowed.port])).unwrap();
    let pins = first.home().pins.clone();
    let mut agent = Agent::run(first.home(), AGENT, UNPRIVILEGED).unwrap();
    assert_eq!(agent.tell(&allowed.connect("live")).unwrap(), "ok");
    let session = cgroup_of(agent.id());
    let mut live = allowed.accept();
    end(&first, Signal::SIGTERM);
    assert_ne!(entries(&pins), Vec::<PathBuf>::new(), "nothing holds the agent");
    assert_eq!(agent.tell(&allowed.attempt()).unwrap(), "EPERM");
    assert_eq!(agent.tell("send live unseen").unwrap(), "ok");
    assert_eq!(hear(&mut live, 6, SOON), "");
    assert_eq!(allowed.waiting(), 0);

    let second = again(&first);
    assert_eq!(agent.tell(&allowed.attempt()).unwrap(), "EPERM", "its session is not open");
    agent.end().unwrap();
    verify(&second.stop().unwrap().trail);
    nothing_left(&pins, &session);
}

#[test]
fn a_daemon_that_fails_open_and_is_stopped_holds_nobody() {
    require_root().unwrap();
    let denied = Ear::new();
    let daemon = Daemon::start(&format!("[daemon]\nfail_mode = \"open\"\n\n{}", configuration(&[]))).unwrap();
    let pins = daemon.home().pins.clone();
    let mut agent = Agent::run(daemon.home(), AGENT, UNPRIVILEGED).unwrap();
    assert_eq!(agent.tell(&denied.attempt()).unwrap(), "EPERM");
    end(&daemon, Signal::SIGTERM);
    assert_eq!(entries(&pins), Vec::<PathBuf>::new());
    assert_eq!(agent.tell(&denied.attempt()).unwrap(), "ok");
    assert_eq!(denied.waiting(), 1);
    agent.end().unwrap();
}

fn reconfigure(daemon: &Daemon, text: &str) -> Output {
    fs::write(daemon.home().configuration(), text).unwrap();
    child::output(&mut daemon.home().client(&["reload"]), LIMIT).unwrap()
}

#[test]
fn a_reload_holds_for_connections_that_live() {
    require_root().unwrap();
    let (ear, other) = (Ear::new(), Ear::new());
    let daemon = Daemon::start(&configuration(&[ear.port, other.port])).unwrap();
    let mut agent = Agent::run(daemon.home(), AGENT, UNPRIVILEGED).unwrap();
    for (name, ear) in [("cut", &ear), ("kept", &other)] {
        assert_eq!(agent.tell(&ear.connect(name)).unwrap(), "ok");
    }
    let (mut cut, mut kept) = (ear.accept(), other.accept());
    assert_eq!(agent.tell("send cut one").unwrap(), "ok");
    assert_eq!(hear(&mut cut, 3, LIMIT), "one");

    assert!(reconfigure(&daemon, &configuration(&[other.port])).status.success());
    assert_eq!(agent.tell("send cut two").unwrap(), "ok");
    assert_eq!(agent.tell("send kept two").unwrap(), "ok");
    assert_eq!(hear(&mut kept, 3, LIMIT), "two");
    assert_eq!(hear(&mut cut, 3, SOON), "", "the rule is gone and the connection lives");
    assert_eq!(agent.tell(&ear.attempt()).unwrap(), "EPERM");

    let generation = daemon.status().unwrap()["generation"].clone();
    let invalid = reconfigure(&daemon, "[[policy]]\nname = \"narrow\"\ndefault = \"perhaps\"\n");
    let said = String::from_utf8_lossy(&invalid.stderr);
    assert!(matches!(invalid.status.code(), Some(1 | 2)), "{}: {said}", invalid.status);
    assert!(said.contains("nothing was changed") && said.contains("auditor.toml:3:"), "{said}");
    assert_eq!(daemon.status().unwrap()["generation"], generation);
    assert_eq!(agent.tell(&ear.attempt()).unwrap(), "EPERM");
    assert_eq!(agent.tell("send kept three").unwrap(), "ok");
    assert_eq!(hear(&mut kept, 5, LIMIT), "three");
    assert_eq!(ear.waiting(), 0);

    assert!(reconfigure(&daemon, &configuration(&[ear.port, other.port])).status.success());
    assert_eq!(agent.tell(&ear.connect("new")).unwrap(), "ok");
    assert_eq!(agent.tell("send new four").unwrap(), "ok");
    assert_eq!(hear(&mut ear.accept(), 4, LIMIT), "four");
    agent.end().unwrap();
    daemon.settle().unwrap();
    records_with(&daemon, 2, "daemon-reloaded");
    daemon.stop().unwrap();
}

/// An agent that lives in a cgroup, and in no session.
fn agent_in(cgroup: &OwnCgroup, home: &Home) -> Agent {
    let words = agent::words(home).unwrap();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    let user = child::find_user(&[UNPRIVILEGED]).unwrap();
    let agent = Agent::start(child::as_user(&mut command, &user)).unwrap();
    cgroup.take_in(agent.id()).unwrap();
    agent
}

#[test]
fn a_tagged_cgroup_is_bound_from_tag_to_untag() {
    require_root().unwrap();
    let (allowed, denied) = (Ear::new(), Ear::new());
    let daemon = Daemon::start(&configuration(&[allowed.port]).replacen(
        "policy =",
        "existing_sockets = \"adopt\"\npolicy =",
        1,
    ))
    .unwrap();
    let cgroup = OwnCgroup::new().unwrap();
    let mut agent = agent_in(&cgroup, daemon.home());
    assert_eq!(agent.tell(&denied.attempt()).unwrap(), "ok");
    assert_eq!(denied.waiting(), 1);
    // Older than the tag: one that policy allows and one that it denies.
    assert_eq!(agent.tell(&allowed.connect("good")).unwrap(), "ok");
    assert_eq!(agent.tell(&denied.connect("bad")).unwrap(), "ok");
    let (mut good, mut bad) = (allowed.accept(), denied.accept());

    let path = cgroup.path().to_str().unwrap();
    let session = daemon.ask(&["tag", "--agent", AGENT, "--cgroup", path]).unwrap();
    assert_eq!(agent.tell(&denied.attempt()).unwrap(), "EPERM");
    assert_eq!(agent.tell(&allowed.attempt()).unwrap(), "ok");
    assert_eq!((denied.waiting(), allowed.waiting()), (0, 1));
    assert_eq!(agent.tell("send good heard").unwrap(), "ok");
    assert_eq!(agent.tell("send bad unheard").unwrap(), "ok");
    assert_eq!(hear(&mut good, 5, LIMIT), "heard");
    assert_eq!(hear(&mut bad, 7, SOON), "");

    daemon.ask(&["untag", "--cgroup", path]).unwrap();
    assert!(cgroup.path().exists(), "it was not the daemon's to remove");
    assert_eq!(agent.tell(&denied.attempt()).unwrap(), "ok");
    assert_eq!(agent.tell("send good free").unwrap(), "ok");
    assert_eq!(hear(&mut good, 4, LIMIT), "free");
    assert_eq!(denied.waiting(), 1);

    let records = records_with(&daemon, 1, "session-ended");
    let session = session.trim();
    let refused = records_of(&records, "connection-refused");
    let calls: Vec<_> =
        refused.iter().map(|record| &record["unmapped"]["auditor"]["connection"]["call"]).collect();
    assert!(calls.contains(&&Value::from("connect")) && calls.contains(&&Value::from("packet")), "{calls:?}");
    for record in refused.iter().chain(&records_of(&records, "connection-opened")) {
        assert_eq!(record["unmapped"]["auditor"]["session"]["id"], session, "{record}");
    }
    let ended = records_of(&records, "session-ended");
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0]["unmapped"]["auditor"]["session"]["end"], "untag");
    daemon.stop().unwrap();
}

#[test]
fn a_tagged_cgroup_that_is_removed_and_made_again_is_another_one() {
    require_root().unwrap();
    let denied = Ear::new();
    let daemon = Daemon::start(&configuration(&[])).unwrap();
    let cgroup = OwnCgroup::new().unwrap();
    let agent = agent_in(&cgroup, daemon.home());
    cgroup.tag(&daemon, AGENT).unwrap();
    // As a service manager does when a service is started anew: at once.
    agent.end().unwrap();
    let start = Instant::now();
    while fs::remove_dir(cgroup.path()).is_err() {
        assert!(start.elapsed() < LIMIT, "the cgroup cannot be removed");
    }
    fs::create_dir(cgroup.path()).unwrap();
    let mut next = agent_in(&cgroup, daemon.home());
    assert_eq!(next.tell(&denied.attempt()).unwrap(), "ok", "nobody has tagged this one");
    let records = records_with(&daemon, 1, "session-ended");
    assert_eq!(records_of(&records, "session-ended")[0]["unmapped"]["auditor"]["session"]["end"], "empty");
    // And now somebody has.
    cgroup.tag(&daemon, AGENT).unwrap();
    assert_eq!(next.tell(&denied.attempt()).unwrap(), "EPERM");
    next.end().unwrap();
    daemon.stop().unwrap();
}

#[test]
fn a_cgroup_that_cannot_be_a_sessions_is_refused_and_stays_as_it_was() {
    require_root().unwrap();
    let open = Ear::new();
    let daemon = Daemon::start(&configuration(&[])).unwrap();
    let refused = |path: &Path| {
        let words = ["tag", "--agent", AGENT, "--cgroup", path.to_str().unwrap()];
        format!("{:#}", daemon.ask(&words).unwrap_err())
    };
    let cgroup = OwnCgroup::new().unwrap();
    let mut deep = cgroup.path().to_owned();
    for level in 0..16 {
        deep.push(level.to_string());
        fs::create_dir(&deep).unwrap();
    }
    assert!(refused(&deep).contains("16"), "{}", refused(&deep));
    for _ in 0..16 {
        fs::remove_dir(&deep).unwrap();
        deep.pop();
    }
    let threaded = cgroup.below("threads").unwrap();
    fs::write(threaded.path().join("cgroup.type"), "threaded").unwrap();
    assert!(refused(threaded.path()).contains("is a threaded cgroup"), "{}", refused(threaded.path()));
    // Around it there is no obstacle, and whose thread lives in it is told all the same.
    let mut agent = agent_in(&cgroup, daemon.home());
    fs::write(threaded.path().join("cgroup.threads"), agent.id().to_string()).unwrap();
    assert_eq!(agent.tell(&open.attempt()).unwrap(), "ok");
    cgroup.tag(&daemon, AGENT).unwrap();
    assert_eq!(agent.tell(&open.attempt()).unwrap(), "EPERM");
    agent.end().unwrap();
    drop(threaded);
    daemon.stop().unwrap();
}

#[test]
fn a_tagged_process_goes_back_to_its_cgroup() {
    require_root().unwrap();
    let denied = Ear::new();
    let daemon = Daemon::start(&configuration(&[])).unwrap();
    let cgroup = OwnCgroup::new().unwrap();
    let mut agent = agent_in(&cgroup, daemon.home());
    let pid = agent.id().to_string();
    assert_eq!(cgroup_of(agent.id()), cgroup.path());
    assert_eq!(agent.tell(&denied.attempt()).unwrap(), "ok");

    daemon.ask(&["tag", "--agent", AGENT, "--pid", &pid]).unwrap();
    let session = cgroup_of(agent.id());
    assert_ne!(session, cgroup.path());
    assert_eq!(agent.tell(&denied.attempt()).unwrap(), "EPERM");

    daemon.ask(&["untag", "--pid", &pid]).unwrap();
    assert_eq!(cgroup_of(agent.id()), cgroup.path());
    assert!(!session.exists(), "{} is left", session.display());
    assert_eq!(agent.tell(&denied.attempt()).unwrap(), "ok");
    assert_eq!(denied.waiting(), 2);
    let records = records_with(&daemon, 1, "session-ended");
    assert_eq!(records_of(&records, "connection-refused").len(), 1);
    daemon.stop().unwrap();
}

#[test]
fn a_session_ends_with_its_last_process() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&configuration(&[postgres.port()])).unwrap();
    let port = postgres.port().to_string();
    let psql = postgres.program("psql").into_os_string();
    let arguments = ["-X", "-q", "-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-d", "postgres"];
    let mut words = vec![psql];
    words.extend(arguments.iter().map(OsString::from));
    words.extend(["-c", "select 'short-lived'", "-c", "select 'and complete'"].map(OsString::from));
    let words = clients::telling_pid(&words);
    let output = daemon.run(AGENT, UNPRIVILEGED, &words).unwrap();
    let after = Instant::now();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    daemon.settle().unwrap();
    let took = after.elapsed();
    assert!(took < Duration::from_secs(2), "its end took {took:?}");

    let records = records_with(&daemon, 1, "session-ended");
    let (opened, ended) = (records_of(&records, "session-opened"), records_of(&records, "session-ended"));
    assert_eq!((opened.len(), ended.len()), (1, 1));
    let totals = &ended[0]["unmapped"]["auditor"]["session"];
    assert_eq!(totals["end"], "empty");
    assert_eq!((&totals["connections"], &totals["statements"]), (&1.into(), &2.into()), "{totals}");
    let cgroup = opened[0]["unmapped"]["auditor"]["session"]["cgroup"].as_str().unwrap();
    assert!(!cgroup_mount().unwrap().join(cgroup.trim_start_matches('/')).exists(), "{cgroup} is left");
    let report = oracle::compare(&postgres.log().unwrap(), &records).unwrap();
    assert!(report.is_equal() && report.told == 2, "{report}");
    // Whatever it did stands before its end.
    let place = |record: &Value| record["metadata"]["sequence"].as_u64().unwrap();
    let id = &totals["id"];
    let last = records.iter().filter(|record| record["unmapped"]["auditor"]["session"]["id"] == *id);
    assert_eq!(last.map(place).max(), Some(place(ended[0])));
    daemon.stop().unwrap();
}

#[test]
fn a_daemon_in_a_pid_namespace_of_its_own_does_not_start() {
    require_root().unwrap();
    let home = Home::new(place::auditor("debug").unwrap(), &configuration(&[])).unwrap();
    let daemon = home.daemon();
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(daemon.get_program())
        .args(daemon.get_args());
    let Output { status, stderr, .. } = command.output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("PID namespace") && said.contains("--pid=host"), "{said}");
}

#[test]
fn a_daemon_keeps_only_the_privileges_that_it_uses() {
    /// DAC_OVERRIDE, NET_ADMIN, SYS_PTRACE, PERFMON, BPF, CHECKPOINT_RESTORE by linux/capability.h.
    const KEPT: u64 = 1 << 1 | 1 << 12 | 1 << 19 | 1 << 38 | 1 << 39 | 1 << 40;
    require_root().unwrap();
    let daemon = Daemon::start(&configuration(&[])).unwrap();
    // The threads that a session brings about are looked at too.
    assert!(daemon.run(AGENT, UNPRIVILEGED, &["/bin/true"]).unwrap().status.success());
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').trim().to_owned()
        };
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            let has = u64::from_str_radix(&field(set), 16).unwrap();
            assert_eq!(has & !KEPT, 0, "{set} of thread {} has {has:x}", field("Name"));
        }
        assert_eq!(field("NoNewPrivs"), "1", "thread {}", field("Name"));
        threads += 1;
    }
    assert!(threads >= 3, "{threads} threads");
    daemon.settle().unwrap();
    daemon.stop().unwrap();
}
