//! Handshakes and traffic on all cores with the probes in, for a while: nothing leaks, and no connection is missed.
//!
//! Twenty seconds as a matter of course; `AUDITOR_TEST_LONG=1` makes it `AUDITOR_TEST_MINUTES` (30 unless told), with the profile `long`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use auditor_tests::certificates::{Key, SERVER};
use auditor_tests::child::{self, Child};
use auditor_tests::daemon::Daemon;
use auditor_tests::tls::{AGENT, Server};
use auditor_tests::{UNPRIVILEGED, require_root};
use nix::sys::signal::Signal;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);
/// What the daemon's memory may grow by from the first quarter's peak to the last one's.
const GROWTH_KIB: u64 = 24 << 10;

/// As many secrets that are done with make the daemon begin its journal anew.
const LOT: usize = 4096;

fn length() -> Duration {
    if std::env::var_os("AUDITOR_TEST_LONG").is_none() {
        return Duration::from_secs(20);
    }
    let minutes = std::env::var("AUDITOR_TEST_MINUTES").map_or(30, |minutes| minutes.parse().unwrap());
    Duration::from_secs(60 * minutes)
}

/// What a daemon holds: its descriptors, and its resident memory in KiB.
fn held(daemon: &Daemon) -> (usize, u64) {
    let process = PathBuf::from(format!("/proc/{}", daemon.id()));
    let status = fs::read_to_string(process.join("status")).unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let memory = memory.trim().trim_end_matches("kB").trim().parse().unwrap();
    (fs::read_dir(process.join("fd")).unwrap().count(), memory)
}

fn start(command: &mut std::process::Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    Child::start(command, Signal::SIGKILL).unwrap()
}

/// Counts in the trail, read by lines: a long soak's trail does not fit into memory as values.
#[derive(Debug, Default)]
struct Counts {
    statements: u64,
    connections: u64,
    unread: Vec<String>,
    findings: Vec<String>,
}

fn count(trail: &Path) -> Counts {
    let mut counts = Counts::default();
    let mut segments: Vec<PathBuf> =
        fs::read_dir(trail).unwrap().flatten().map(|entry| entry.path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    assert!(!segments.is_empty(), "no segments in {}", trail.display());
    for segment in segments {
        for line in std::io::BufRead::lines(std::io::BufReader::new(fs::File::open(segment).unwrap())) {
            let line = line.unwrap();
            // Cheap, before parsing: nearly all lines are statements.
            if line.contains("\"kind\":\"statement\"") {
                counts.statements += 1;
                continue;
            }
            let record: Value = serde_json::from_str(&line).unwrap();
            let own = &record["unmapped"]["auditor"];
            if own["kind"] == "connection-closed" {
                counts.connections += 1;
                let (tls, coverage) = (&own["connection"]["tls"], &own["connection"]["coverage"]);
                if tls["decrypted"] != true || coverage["gaps"].as_array().map(Vec::len) != Some(0) {
                    counts.unread.push(line);
                }
            } else if record["class_uid"] == 2004 {
                counts.findings.push(line);
            }
        }
    }
    counts
}

#[test]
fn handshakes_and_traffic_for_a_while() {
    require_root().unwrap();
    let length = length();
    let server = Server::start(Key::Ec, false, &[]).unwrap();
    let folder = server.postgres.socket_folder();
    let port = server.postgres.port().to_string();
    let mut fill = std::process::Command::new(server.postgres.program("pgbench"));
    fill.args(["-i", "-q", "-U", "postgres", "-p", &port, "-h"]).arg(folder).arg("postgres");
    child::succeed(&mut fill, LIMIT).unwrap();
    let daemon = Daemon::start(&server.configuration("")).unwrap();
    let seconds = length.as_secs().to_string();
    let target = server.target();
    let pgbench = |more: &[&str]| {
        let mut words = vec![server.postgres.program("pgbench").into_os_string()];
        words.extend(["-n", "-S", "-T", &seconds].iter().chain(more).map(OsString::from));
        words.push(OsString::from(&target));
        words
    };
    // Handshakes as fast as they go, and traffic; and a stranger, who hits the same probes on the same cores.
    let mut workers: Vec<Child> =
        [pgbench(&["-C", "-c", "4", "-j", "2"]), pgbench(&["-c", "4", "-j", "2", "-R", "400"])]
            .iter()
            .map(|words| start(&mut daemon.home().run(AGENT, UNPRIVILEGED, words)))
            .collect();
    let user = child::find_user(&[UNPRIVILEGED]).unwrap();
    let words = pgbench(&["-C", "-c", "2"]);
    let mut stranger = std::process::Command::new(&words[0]);
    child::as_user(stranger.args(&words[1..]).current_dir("/").env("HOME", "/nonexistent"), &user);
    workers.push(start(&mut stranger));

    let begun = Instant::now();
    let mut samples = Vec::new();
    while workers.iter_mut().any(|worker| worker.ended().unwrap().is_none()) {
        assert!(begun.elapsed() < length + LIMIT, "{}", daemon.said());
        samples.push(held(&daemon));
        thread::sleep((length / 100).max(Duration::from_millis(100)));
    }
    for worker in &mut workers {
        assert!(worker.wait(LIMIT).unwrap().success(), "{}", daemon.said());
    }
    daemon.settle().unwrap();
    let counts = count(&daemon.home().trail());
    eprintln!("soak: {length:?}, {} connections, {} statements", counts.connections, counts.statements);
    let first = |series: &[Value]| series.first().map(ToString::to_string);
    assert!(
        counts.unread.is_empty(),
        "{} connections were not read, such as {}",
        counts.unread.len(),
        counts.unread[0]
    );
    assert!(counts.findings.is_empty(), "{} findings, such as {}", counts.findings.len(), counts.findings[0]);
    assert!(
        counts.connections > 5 * length.as_secs(),
        "only {} connections: the soak did not do its work",
        counts.connections
    );
    assert!(counts.statements > counts.connections, "{counts:?}");
    let status = daemon.status().unwrap();
    assert_eq!(status["failures"].as_array().and_then(|failures| first(failures)), None, "{status}");

    // What connections are done with waits for the journal to begin anew, twice, in lots of this many.
    let left = auditor_tests::secrets::taken(daemon.home()).unwrap().len();
    eprintln!("soak: {left} secrets wait in the kernel's table");
    assert!(left <= 3 * LOT, "{left} secrets are still in the kernel's table");
    let peak =
        |samples: &[(usize, u64)]| samples.iter().copied().fold((0, 0), |a, b| (a.0.max(b.0), a.1.max(b.1)));
    let quarter = samples.len() / 4;
    let ((files_first, memory_first), (files_last, memory_last)) =
        (peak(&samples[..=quarter]), peak(&samples[samples.len() - quarter..]));
    eprintln!(
        "soak: descriptors {files_first} to {files_last}, memory {memory_first} to {memory_last} KiB at the peak; {SERVER}"
    );
    assert!(files_last <= files_first + 2, "descriptors: {files_first}, then {files_last}");
    assert!(memory_last <= memory_first + GROWTH_KIB, "KiB: {memory_first}, then {memory_last}");
    daemon.stop().unwrap();
}
