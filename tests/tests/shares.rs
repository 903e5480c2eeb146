//! One agent floods, the daemon stands still for a second at a time, and another agent is as well served as if it were alone.
//!
//! What the quiet one said is taken from the server's own log, what it was answered from itself.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Read;
use std::net::TcpListener;
use std::process::Output;
use std::thread;
use std::time::Duration;

use auditor_tests::daemon::Daemon;
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::python::Python;
use auditor_tests::{UNPRIVILEGED, clients, oracle, require_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long the agent floods.
const FLOOD_SECONDS: &str = "7";
/// How long the other one works meanwhile.
const QUIET_SECONDS: &str = "5";
/// How long the daemon stands still, and how long it runs in between. Its lease is two seconds.
const STILL: Duration = Duration::from_secs(1);
const AT_WORK: Duration = Duration::from_millis(700);

fn result(output: &Output, daemon: &Daemon) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stderr}\ndaemon: {}", output.status, daemon.said());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn agent(record: &Value) -> &str {
    record["unmapped"]["auditor"]["agent"]["name"].as_str().unwrap_or_default()
}

fn of_kind<'a>(records: &'a [Value], name: &str, kind: &str) -> Vec<&'a Value> {
    records
        .iter()
        .filter(|record| record["unmapped"]["auditor"]["kind"] == kind && agent(record) == name)
        .collect()
}

fn findings<'a>(records: &'a [Value], name: &str, kind: &str) -> Vec<&'a str> {
    of_kind(records, name, "finding")
        .into_iter()
        .filter(|record| record["unmapped"]["auditor"]["finding"]["kind"] == kind)
        .map(|record| record["message"].as_str().unwrap())
        .collect()
}

/// The number at the end of a text, or at its beginning.
fn number(text: &str) -> u64 {
    let mut words = text.trim().split(' ');
    words
        .clone()
        .next_back()
        .and_then(|word| word.parse().ok())
        .or(words.next().unwrap().parse().ok())
        .unwrap()
}

/// The sum of the numbers before `what` in the findings of an agent that say what was not recorded.
fn overrun(records: &[Value], name: &str, what: &str) -> u64 {
    findings(records, name, "ring-overrun")
        .into_iter()
        .filter_map(|message| message.find(what).map(|place| number(&message[..place])))
        .sum()
}

/// A server that takes what comes.
fn sink() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let (mut stream, mut buffer) = (stream, vec![0; 1 << 16]);
                while stream.read(&mut buffer).is_ok_and(|length| length != 0) {}
            });
        }
    });
    port
}

/// Stops and continues the daemon until `over`; it is left running.
fn stutter(daemon: &Daemon, over: impl Fn() -> bool) {
    let daemon = Pid::from_raw(i32::try_from(daemon.id()).unwrap());
    while !over() {
        kill(daemon, Signal::SIGSTOP).unwrap();
        thread::sleep(STILL);
        kill(daemon, Signal::SIGCONT).unwrap();
        thread::sleep(AT_WORK);
    }
}

struct Outcome {
    /// The flooding agent's own account.
    flood: Value,
    records: Vec<Value>,
}

/// Runs a flood and a quiet agent beside each other, and checks that the quiet one lacks nothing.
fn flood(words_of_flood: impl FnOnce(u16) -> Vec<String>) -> Outcome {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let sink = sink();
    let daemon = Daemon::start(&format!(
        "[[agent]]\nname = \"flood\"\npolicy = \"p\"\n\n[[agent]]\nname = \"quiet\"\npolicy = \"p\"\n\n\
         [[policy]]\nname = \"p\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"127.0.0.1:{}\", \"127.0.0.1:{sink}\"]\naction = \"allow\"\n",
        postgres.port()
    ))
    .unwrap();
    let python = Python::new(daemon.home().folder()).unwrap();
    let script = clients::write(daemon.home().folder(), "flood.py", clients::FLOOD).unwrap();
    let mut flooding: Vec<OsString> = vec!["/usr/bin/python3".into(), "-B".into(), script.clone().into()];
    flooding.extend(words_of_flood(sink).into_iter().map(OsString::from));
    let target = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", postgres.port());
    let quiet = python.words(&script, &["quiet", &target, QUIET_SECONDS]);
    let (flooded, quiet) = thread::scope(|scope| {
        let flood = scope.spawn(|| daemon.run("flood", UNPRIVILEGED, &flooding).unwrap());
        thread::sleep(Duration::from_millis(700));
        let quiet = scope.spawn(|| daemon.run("quiet", UNPRIVILEGED, &quiet).unwrap());
        // Sessions are opened by the daemon, so it has to be there for that.
        thread::sleep(Duration::from_millis(500));
        stutter(&daemon, || quiet.is_finished());
        (flood.join().unwrap(), quiet.join().unwrap())
    });
    let (flood, quiet) = (result(&flooded, &daemon), result(&quiet, &daemon));
    eprintln!("flood: {flood}, quiet: {quiet}");
    daemon.settle().unwrap();
    let records: Vec<Value> =
        ["connection-opened", "connection-closed", "connection-refused", "statement", "finding"]
            .into_iter()
            .flat_map(|kind| {
                let text = daemon.ask(&["log", "--json", "--kind", kind, "--agent", "quiet"]).unwrap();
                let mut records: Vec<Value> =
                    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                if kind == "finding" || kind == "connection-refused" {
                    let text = daemon.ask(&["log", "--json", "--kind", kind, "--agent", "flood"]).unwrap();
                    records.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
                }
                records
            })
            .collect();

    // The quiet one: every connection came about, each statement is there, nothing of it was left out.
    let connections = quiet["connections"]["ok"].as_u64().unwrap_or(0);
    assert!(quiet["connections"]["failed"].is_null(), "{quiet}");
    assert!(connections > 3, "{quiet}");
    let report = oracle::compare(&postgres.log().unwrap(), &records).unwrap();
    assert!(report.is_equal() && report.told as u64 >= quiet["statements"].as_u64().unwrap(), "{report}");
    let opened = of_kind(&records, "quiet", "connection-opened").len() as u64;
    assert_eq!(opened, connections);
    // The C library asks for its user's name, which is a unix socket and refused by default.
    let refused = of_kind(&records, "quiet", "connection-refused");
    assert!(
        refused.iter().all(|record| !record["unmapped"]["auditor"]["connection"]["socket"].is_null()),
        "{refused:?}"
    );
    assert_eq!(of_kind(&records, "quiet", "finding").len(), 0);
    for record in of_kind(&records, "quiet", "connection-closed") {
        assert_eq!(record["unmapped"]["auditor"]["connection"]["coverage"]["gaps"], serde_json::json!([]));
    }
    let pid = clients::pid_told(&flooded.stderr);
    assert!(pid.is_ok(), "the flood's process is not told");
    daemon.stop().unwrap();
    Outcome { flood, records }
}

#[test]
fn a_flood_of_allowed_connects_is_the_flooding_agents_loss() {
    let outcome = flood(|sink| ["connects", &sink.to_string(), FLOOD_SECONDS].map(str::to_owned).into());
    let refused = outcome.flood["EPERM"].as_u64().unwrap_or(0);
    assert!(outcome.flood["ok"].as_u64().unwrap() > 100, "{}", outcome.flood);
    assert!(refused > 100, "the ring was never full: {}", outcome.flood);
    // What the agent was refused is what the trail says it was refused: for want of room, or because the daemon, on a busy
    // machine, came too late with its lease.
    let records = &outcome.records;
    let for_want_of_room = overrun(records, "flood", "allowed attempts were refused or given up");
    let one_by_one = of_kind(records, "flood", "connection-refused").len() as u64;
    let folded: u64 = findings(records, "flood", "refusals-folded").into_iter().map(number).sum();
    eprintln!(
        "{refused} refused: {for_want_of_room} for want of room, {one_by_one} recorded, {folded} folded"
    );
    assert!(for_want_of_room > 100, "{for_want_of_room}");
    assert_eq!(for_want_of_room + one_by_one + folded, refused);
    let kinds: BTreeSet<_> = outcome.flood.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(kinds, BTreeSet::from(["EPERM", "ok"]));
}

#[test]
fn a_flood_of_processes_is_the_flooding_agents_loss() {
    let outcome = flood(|_| ["forks", FLOOD_SECONDS].map(str::to_owned).into());
    assert!(outcome.flood["programs"].as_u64().unwrap() > 10, "{}", outcome.flood);
    let folded = overrun(&outcome.records, "flood", "executions, births or ends");
    eprintln!("processes that are not recorded: {folded}");
    assert!(folded > 100, "the ring was never full");
}

#[test]
fn a_flood_of_bytes_is_the_flooding_agents_loss() {
    let outcome = flood(|sink| ["spill", &sink.to_string(), FLOOD_SECONDS].map(str::to_owned).into());
    assert!(outcome.flood["bytes"].as_u64().unwrap() > 8 << 20, "{}", outcome.flood);
    let held = overrun(&outcome.records, "flood", "parts of packets were held back");
    assert!(held > 0, "the ring was never full");
}
