//! A daemon is killed, replaced, or finds its journal damaged while agents work: nothing that they say is lost or told twice, what
//! is blocked stays blocked, and their connections live on.
//!
//! The judges are PostgreSQL's own log, and a listener that must never be reached.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use auditor_tests::agent::Agent;
use auditor_tests::child::Child;
use auditor_tests::daemon::{Daemon, Home};
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::{UNPRIVILEGED, child, clients, oracle, place, require_root};
use nix::sys::signal::Signal;
use serde_json::Value;

const AGENT: &str = "survivor";
const LIMIT: Duration = Duration::from_secs(60);
/// How often the daemon is killed; the long run sets more by `AUDITOR_TEST_KILLS`.
const KILLS: u64 = 6;
/// Statements a second, so that a long run's trail can be read in one go.
const RATE: &str = "150";

/// Connects again and again, and says at its end how often it was answered what.
const PROBE: &str = r#"
import collections, errno, signal, socket, sys, time
seen, over = collections.Counter(), []
signal.signal(signal.SIGTERM, lambda *_: over.append(1))
while not over:
    s = socket.socket()
    s.settimeout(0.2)
    try:
        s.connect(("127.0.0.1", int(sys.argv[1])))
        seen["connected"] += 1
    except OSError as e:
        seen[errno.errorcode.get(e.errno, "timeout")] += 1
    s.close()
    time.sleep(0.005)
print(" ".join(f"{k}={v}" for k, v in sorted(seen.items())), flush=True)
"#;

fn configuration(port: u16, fail_mode: &str) -> String {
    format!(
        "[daemon]\nfail_mode = \"{fail_mode}\"\n\n[[agent]]\nname = \"{AGENT}\"\npolicy = \"database\"\n\n[[policy]]\nname = \
         \"database\"\ndefault = \"deny\"\n[[policy.rule]]\nto = [\"127.0.0.1:{port}\"]\naction = \"allow\"\nprotocol = \"postgres\"\n"
    )
}

/// Pauses of different lengths, the same for the same seed.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let seed = match std::env::var("AUDITOR_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64,
        };
        eprintln!("AUDITOR_TEST_SEED={seed}");
        Self(seed | 1)
    }

    /// xorshift64
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// A server, agents that talk to it without end, and one who tries what is forbidden.
struct Scene {
    postgres: Postgres,
    forbidden: TcpListener,
    /// Each with its process id told; all in sessions.
    workers: Vec<Child>,
    prober: Child,
    daemon: Option<Daemon>,
    /// Ended, and not yet dropped: that would take down the pins of those who follow.
    ended: Vec<Daemon>,
    started: Instant,
}

impl Scene {
    fn new(fail_mode: &str, seconds: u64) -> Self {
        require_root().unwrap();
        let postgres = Postgres::start(&Options::default()).unwrap();
        let daemon = Daemon::start(&configuration(postgres.port(), fail_mode)).unwrap();
        let forbidden = TcpListener::bind("127.0.0.1:0").unwrap();
        forbidden.set_nonblocking(true).unwrap();
        let home = daemon.home();
        let select = "\\set n random(1, 1000000)\nselect :n as number, 'row ' || g as text from generate_series(1, 30) g;\n\
                      begin;\nselect 'in a transaction', :n;\ncommit;\n";
        let script = clients::write(home.folder(), "bench.sql", select).unwrap();
        let seconds = seconds.to_string();
        let workers = ["simple", "prepared"].map(|mode| {
            let port = postgres.port().to_string();
            let mut words = vec![postgres.program("pgbench").into_os_string()];
            let arguments = [
                "-n",
                "-c",
                "4",
                "-M",
                mode,
                "-R",
                RATE,
                "-T",
                &seconds,
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-f",
            ];
            words.extend(arguments.map(OsString::from));
            words.push(script.clone().into());
            words.extend(["-U", "postgres", "postgres"].map(OsString::from));
            start(home, &words)
        });
        let probe = clients::write(home.folder(), "probe.py", PROBE).unwrap();
        let port = forbidden.local_addr().unwrap().port().to_string();
        let prober = start(home, &["/usr/bin/python3".into(), "-B".into(), probe.into(), port.into()]);
        let scene = Self {
            postgres,
            forbidden,
            workers: workers.into(),
            prober,
            daemon: Some(daemon),
            ended: Vec::new(),
            started: Instant::now(),
        };
        scene.wait_for_sessions();
        scene
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    /// Ids of the live sessions.
    fn sessions(&self) -> HashSet<String> {
        let text = self.daemon().ask(&["sessions", "--live", "--json"]).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .map(|session| session["id"].as_str().unwrap().to_owned())
            .collect()
    }

    fn wait_for_sessions(&self) {
        let start = Instant::now();
        while self.daemon().status().unwrap()["connections"].as_u64() < Some(8) {
            assert!(start.elapsed() < LIMIT, "{}", self.daemon().said());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        let daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        self.ended.push(daemon);
    }

    /// Another daemon at the same places, while this one runs.
    fn replace(&mut self) {
        let before = self.daemon.take().unwrap();
        let mut next = before.home().next().unwrap();
        next.replace = true;
        self.ended.push(before);
        self.daemon = Some(Daemon::start_in(next).unwrap());
    }

    /// Another daemon at the same places.
    fn restart(&mut self) {
        let next = self.ended.last().unwrap().home().next().unwrap();
        self.daemon = Some(Daemon::start_in(next).unwrap());
    }

    /// Waits until the agents are done, and compares the accounts.
    fn judge(mut self) {
        for worker in &mut self.workers {
            let status = worker.wait(LIMIT).unwrap();
            assert!(status.success(), "pgbench: {status}; daemon: {}", self.daemon.as_ref().unwrap().said());
        }
        eprintln!("agents worked for {:?}", self.started.elapsed());
        let mut out = self.prober.take_stdout().unwrap();
        // The command that opened the session passes the signal on.
        self.prober.signal(Signal::SIGTERM).unwrap();
        self.prober.wait(LIMIT).unwrap();
        let mut probed = String::new();
        std::io::Read::read_to_string(&mut out, &mut probed).unwrap();
        eprintln!("probe: {}", probed.trim());
        let attempts =
            probed.trim().strip_prefix("EPERM=").unwrap_or_else(|| panic!("not only EPERM: {probed}"));
        assert!(attempts.parse::<u64>().unwrap() > 100, "{probed}");
        assert!(self.forbidden.accept().is_err(), "somebody got through");

        let daemon = self.daemon.take().unwrap();
        daemon.settle().unwrap();
        let records = daemon.records().unwrap();
        let report = oracle::compare(&self.postgres.log().unwrap(), &records).unwrap();
        eprintln!("takeover: {report}");
        assert!(report.is_equal(), "{report}\ndaemon: {}", daemon.said());
        assert!(report.told > 500, "only {} statements: the test did not do its work", report.told);
        in_order_and_once(&records);
        // One session each, from its beginning to its end.
        for kind in ["session-opened", "session-ended"] {
            let of_kind = records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == kind);
            assert_eq!(of_kind.count(), 3, "{kind}");
        }
        let findings: Vec<&str> = findings(&records);
        assert!(
            !findings.contains(&"state-lost") && !findings.contains(&"session-abandoned"),
            "{findings:?}"
        );
        let (pins, runtime) = (daemon.home().pins.clone(), daemon.home().runtime.clone());
        let stopped = daemon.stop().unwrap();
        assert!(!pins.exists(), "pins are left");
        assert_eq!(journals(&runtime), Vec::<PathBuf>::new(), "what agents said is left");
        let mut verify = Command::new(place::auditor("debug").unwrap());
        child::succeed(verify.arg("verify").arg(&stopped.trail), LIMIT).unwrap();
    }
}

/// A home at the same places, with the same configuration.
fn start(home: &Home, words: &[OsString]) -> Child {
    let mut command = home.run(AGENT, UNPRIVILEGED, words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    Child::start(&mut command, Signal::SIGKILL).unwrap()
}

fn journals(runtime: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(runtime).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<_> =
        entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("journal")).collect();
    found.sort();
    found
}

fn findings(records: &[Value]) -> Vec<&str> {
    records.iter().filter_map(|record| record["unmapped"]["auditor"]["finding"]["kind"].as_str()).collect()
}

/// Statements of each connection stand in the trail in the order in which they were said, each once.
fn in_order_and_once(records: &[Value]) {
    let mut last = std::collections::HashMap::new();
    for record in records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "statement") {
        let own = &record["unmapped"]["auditor"];
        let sequence = own["statement"]["seq"].as_u64().unwrap();
        let before = last.insert(own["connection"]["id"].as_str().unwrap(), sequence).unwrap_or(0);
        assert_eq!(sequence, before + 1, "{}", own["connection"]["id"]);
    }
}

#[test]
fn a_daemon_that_is_killed_under_load_loses_nothing() {
    let kills = std::env::var("AUDITOR_TEST_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let mut chance = Chance::new();
    let mut scene = Scene::new("closed", 10 + 5 * kills);
    let sessions = scene.sessions();
    assert_eq!(sessions.len(), 3);
    for _ in 0..kills {
        thread::sleep(Duration::from_millis(chance.below(700)));
        scene.kill();
        // Most are started again at once; some after the lease has run out.
        thread::sleep(Duration::from_millis(if chance.below(5) == 0 { 2500 } else { chance.below(300) }));
        scene.restart();
        eprintln!("ready after {:?}", scene.daemon().ready_after());
        // A worker may have come to its end; whoever probes has not.
        let live = scene.sessions();
        assert!(!live.is_empty() && live.is_subset(&sessions), "{live:?} instead of {sessions:?}");
    }
    let takeovers = scene
        .daemon()
        .records()
        .unwrap()
        .iter()
        .filter(|record| record["unmapped"]["auditor"]["kind"] == "daemon-took-over")
        .count();
    assert_eq!(takeovers as u64, kills);
    scene.judge();
}

#[test]
fn a_daemon_that_is_replaced_under_load_loses_nothing() {
    let mut chance = Chance::new();
    let mut scene = Scene::new("closed", 25);
    let sessions = scene.sessions();
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(500 + chance.below(700)));
        scene.replace();
        eprintln!("ready after {:?}", scene.daemon().ready_after());
        // A worker may have come to its end; whoever probes has not.
        let live = scene.sessions();
        assert!(!live.is_empty() && live.is_subset(&sessions), "{live:?} instead of {sessions:?}");
        let before = scene.ended.last_mut().unwrap();
        assert!(before.wait(LIMIT).unwrap().success(), "{}", before.said());
    }
    scene.judge();
}

/// Somebody who listens and hears.
fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn waiting(listener: &TcpListener) -> usize {
    std::iter::from_fn(|| listener.accept().ok()).count()
}

/// The trail, once it has a finding of this kind.
fn records_with_finding(daemon: &Daemon, kind: &str) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let records = daemon.records().unwrap();
        if findings(&records).contains(&kind) {
            return records;
        }
        assert!(start.elapsed() < LIMIT, "no finding {kind}: {}", daemon.said());
        thread::sleep(Duration::from_millis(50));
    }
}

/// What happens to the journal of a daemon that was killed, and what the next one makes of it.
fn damaged(damage: impl Fn(&Path)) {
    require_root().unwrap();
    let (allowed, port) = listen();
    let first = Daemon::start(&configuration(port, "closed")).unwrap();
    let mut agent = Agent::run(first.home(), AGENT, UNPRIVILEGED).unwrap();
    let attempt = format!("attempt 127.0.0.1 {port}");
    for _ in 0..20 {
        assert_eq!(agent.tell(&attempt).unwrap(), "ok");
    }
    assert_eq!(waiting(&allowed), 20);
    // What was said is off the rings, and in the trail, the record of this question too.
    first.ask(&["log", "--json"]).unwrap();
    thread::sleep(Duration::from_millis(500));
    first.kill().unwrap();
    damage(journals(&first.home().runtime).last().unwrap());
    let second = Daemon::start_in(first.home().next().unwrap()).unwrap();
    let records = records_with_finding(&second, "session-abandoned");
    assert!(findings(&records).contains(&"state-lost"), "{:?}", findings(&records));
    assert_eq!(agent.tell(&attempt).unwrap(), "EPERM", "nobody knows whose it is");
    assert_eq!(waiting(&allowed), 0);
    let mut next = Agent::run(second.home(), AGENT, UNPRIVILEGED).unwrap();
    assert_eq!(next.tell(&attempt).unwrap(), "ok");
    assert_eq!(waiting(&allowed), 1);
    // It is lost once: the daemon after this one takes over again.
    second.kill().unwrap();
    let third = Daemon::start_in(second.home().next().unwrap()).unwrap();
    assert_eq!(next.tell(&attempt).unwrap(), "ok");
    let records = third.records().unwrap();
    assert_eq!(findings(&records).iter().filter(|kind| **kind == "state-lost").count(), 1);
    agent.end().unwrap();
    next.end().unwrap();
    third.settle().unwrap();
    let pins = third.home().pins.clone();
    third.stop().unwrap();
    assert!(!pins.exists(), "pins are left");
}

#[test]
fn a_journal_whose_bytes_are_wrong_is_not_believed() {
    damaged(|journal| {
        let mut bytes = fs::read(journal).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(journal, bytes).unwrap();
    });
}

#[test]
fn a_journal_that_is_cut_is_not_believed() {
    damaged(|journal| {
        let length = fs::metadata(journal).unwrap().len();
        fs::OpenOptions::new().write(true).open(journal).unwrap().set_len(length - 1).unwrap();
    });
}

#[test]
fn a_daemon_that_fails_open_lets_go_on_what_its_rules_allow() {
    require_root().unwrap();
    let ((allowed, port), (denied, denied_port)) = (listen(), listen());
    let first = Daemon::start(&configuration(port, "open")).unwrap();
    let mut agent = Agent::run(first.home(), AGENT, UNPRIVILEGED).unwrap();
    let attempt = |port: u16| format!("attempt 127.0.0.1 {port}");
    assert_eq!(agent.tell(&attempt(port)).unwrap(), "ok");
    first.kill().unwrap();
    // Behind the end of the lease.
    thread::sleep(Duration::from_millis(2500));
    for _ in 0..5 {
        assert_eq!(agent.tell(&attempt(port)).unwrap(), "ok");
        assert_eq!(agent.tell(&attempt(denied_port)).unwrap(), "EPERM");
    }
    let second = Daemon::start_in(first.home().next().unwrap()).unwrap();
    agent.end().unwrap();
    second.settle().unwrap();
    let records = second.records().unwrap();
    let count =
        |kind: &str| records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == kind).count();
    // It waited in the rings.
    assert_eq!((count("connection-opened"), count("connection-refused")), (6, 5));
    assert_eq!((count("session-opened"), count("session-ended")), (1, 1));
    let took_over = records.iter().find(|record| record["unmapped"]["auditor"]["kind"] == "daemon-took-over");
    let without = took_over.unwrap()["unmapped"]["auditor"]["daemon"]["without_ms"].as_u64().unwrap();
    assert!((2300..20_000).contains(&without), "{without} ms");
    assert_eq!((waiting(&allowed), waiting(&denied)), (6, 0));
    let pins = second.home().pins.clone();
    second.stop().unwrap();
    assert!(!pins.exists(), "pins are left");
}

#[test]
fn a_session_that_ended_while_there_was_no_daemon_is_ended_by_the_next() {
    require_root().unwrap();
    let (allowed, port) = listen();
    let first = Daemon::start(&configuration(port, "closed")).unwrap();
    let mut agent = Agent::run(first.home(), AGENT, UNPRIVILEGED).unwrap();
    assert_eq!(agent.tell(&format!("connect live 127.0.0.1 {port}")).unwrap(), "ok");
    first.kill().unwrap();
    agent.end().unwrap();
    let second = Daemon::start_in(first.home().next().unwrap()).unwrap();
    second.settle().unwrap();
    let records = second.records().unwrap();
    for kind in ["session-opened", "session-ended", "connection-opened", "connection-closed"] {
        let of_kind = records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == kind);
        assert_eq!(of_kind.count(), 1, "{kind}");
    }
    assert_eq!(waiting(&allowed), 1);
    second.stop().unwrap();
}

/// What a daemon holds of the kernel: descriptors, memory of its maps in bytes, cgroups, pins; and its own memory in KiB.
fn held(daemon: &Daemon) -> ((usize, u64, usize, usize), u64) {
    let process = PathBuf::from(format!("/proc/{}", daemon.id()));
    let count = |path: &Path| fs::read_dir(path).unwrap().count();
    let maps = fs::read_dir(process.join("fdinfo"))
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok())
        .filter_map(|text| {
            text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse::<u64>().ok())
        })
        .sum::<u64>();
    let cgroups = count(&daemon.home().cgroup().unwrap());
    let pins = count(&fs::read_dir(&daemon.home().pins).unwrap().next().unwrap().unwrap().path());
    let status = fs::read_to_string(process.join("status")).unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let memory = memory.trim().trim_end_matches("kB").trim().parse().unwrap();
    ((count(&process.join("fd")), maps, cgroups, pins), memory)
}

/// The same once it does not change any more: a client's connection ends a moment after the client.
fn steady(daemon: &Daemon) -> ((usize, u64, usize, usize), u64) {
    let start = Instant::now();
    let mut last = held(daemon);
    let mut same = 0;
    while same < 10 {
        assert!(start.elapsed() < LIMIT, "{last:?}");
        thread::sleep(Duration::from_millis(20));
        let now = held(daemon);
        same = if now.0 == last.0 { same + 1 } else { 0 };
        last = now;
    }
    last
}

#[test]
fn sessions_that_have_ended_leave_nothing_in_the_kernel() {
    require_root().unwrap();
    let sessions = std::env::var("AUDITOR_TEST_SESSIONS").map_or(300, |sessions| sessions.parse().unwrap());
    let (_allowed, port) = listen();
    let daemon = Daemon::start(&configuration(port, "closed")).unwrap();
    let some = |count: u32| {
        for _ in 0..count {
            assert!(daemon.run(AGENT, UNPRIVILEGED, &["/bin/true"]).unwrap().status.success());
        }
        daemon.settle().unwrap();
    };
    // What is made once is made by then.
    some(20);
    let (before, memory_before) = steady(&daemon);
    some(sessions);
    let (after, memory_after) = steady(&daemon);
    assert_eq!(before, after, "descriptors, maps, cgroups, pins");
    // The ended sessions that can still be listed, at most 1,024, are what it may keep.
    let grown = memory_after.saturating_sub(memory_before);
    eprintln!("{sessions} sessions: {grown} KiB more");
    assert!(grown < 16 << 10, "{grown} KiB more");
    daemon.stop().unwrap();
}
