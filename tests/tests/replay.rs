//! A capture that was recorded while real clients were at work says, replayed without a kernel, what the trail says: the same
//! statements in the same order, with the same texts, values, rows and errors. What the server's log says is compared too.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use auditor_tests::daemon::{Daemon, Home};
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::{UNPRIVILEGED, child, clients, oracle, place, require_root};
use serde_json::Value;

const AGENT: &str = "replay-agent";
const LIMIT: Duration = Duration::from_secs(60);

/// A daemon that records into `capture` of its home, with these further arguments.
fn start(postgres: &Postgres, arguments: &[&str]) -> Daemon {
    let configuration = format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"database\"\n\n[[policy]]\nname = \"database\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"127.0.0.1:{}\"]\naction = \"allow\"\nprotocol = \"postgres\"\n",
        postgres.port()
    );
    let mut home = Home::new(place::auditor("debug").unwrap(), &configuration).unwrap();
    let capture = home.folder().join("capture");
    home.daemon_arguments = vec!["--record-capture".into(), capture.into()];
    home.daemon_arguments.extend(arguments.iter().map(OsString::from));
    Daemon::start_in(home).unwrap()
}

fn psql(daemon: &Daemon, postgres: &Postgres) {
    let script = clients::write(daemon.home().folder(), "statements.sql", clients::STATEMENTS).unwrap();
    let port = postgres.port().to_string();
    let mut words = vec![postgres.program("psql").into_os_string()];
    words.extend(
        ["-X", "-q", "-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-f"].iter().map(OsString::from),
    );
    words.push(script.into());
    words.push("postgres".into());
    succeed(daemon, &words);
}

fn pgbench(daemon: &Daemon, postgres: &Postgres, arguments: &[&str]) {
    let port = postgres.port().to_string();
    let mut words = vec![postgres.program("pgbench").into_os_string()];
    words.extend(arguments.iter().map(OsString::from));
    words.extend(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "postgres"].map(OsString::from));
    succeed(daemon, &words);
}

fn succeed(daemon: &Daemon, words: &[OsString]) {
    let output = daemon.run(AGENT, UNPRIVILEGED, words).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}\ndaemon: {}", daemon.said());
}

fn replay(capture: &Path, arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new(place::auditor("debug").unwrap());
    child::output(command.arg("replay-capture").arg(capture).args(arguments), LIMIT).unwrap()
}

fn records(replayed: &Output) -> Vec<Value> {
    let lines = replayed.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

/// What a record says that does not hang on the host, on procfs or on the record's place in a trail.
fn essence(record: &Value) -> Value {
    let own = &record["unmapped"]["auditor"];
    serde_json::json!([
        own["kind"],
        own["agent"],
        own["session"]["id"],
        own["connection"]["id"],
        own["connection"]["protocol"],
        own["connection"]["user"],
        own["connection"]["database"],
        own["connection"]["verdict"],
        own["connection"]["coverage"],
        own["statement"],
        record["query_info"],
        record["status_id"],
        record["status_detail"],
        record["src_endpoint"]["ip"],
        record["src_endpoint"]["port"],
        record["dst_endpoint"]["port"],
        record["actor"]["process"]["pid"],
    ])
}

/// Of the kinds that come from the rings alone: what did not fit into them is counted elsewhere.
fn essences(records: &[Value], kind: &str) -> Vec<Value> {
    let own = |record: &&Value| {
        let own = &record["unmapped"]["auditor"];
        own["kind"] == kind && own["finding"]["kind"] != "ring-overrun"
    };
    records.iter().filter(own).map(essence).collect()
}

#[test]
fn a_replayed_capture_says_what_the_trail_says() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = start(&postgres, &[]);
    psql(&daemon, &postgres);
    pgbench(&daemon, &postgres, &["-i", "-q"]);
    for mode in ["simple", "extended", "prepared"] {
        pgbench(&daemon, &postgres, &["-n", "-c", "4", "-t", "50", "-M", mode]);
    }
    daemon.settle().unwrap();
    let trail = daemon.records().unwrap();
    let capture = daemon.home().folder().join("capture");
    assert_eq!(fs::metadata(&capture).unwrap().mode() & 0o777, 0o600, "it holds what agents said");
    let stopped = daemon.stop().unwrap();
    assert!(!stopped.said.contains("capture"), "{}", stopped.said);

    let replayed = replay(&capture, &[]);
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    let replayed = records(&replayed);
    for kind in ["statement", "connection-opened", "connection-closed", "finding"] {
        let (live, again) = (essences(&trail, kind), essences(&replayed, kind));
        if let Some((live, again)) = live.iter().zip(&again).find(|(live, again)| live != again) {
            panic!("{kind}:\n  trail  {live}\n  replay {again}");
        }
        assert_eq!(live.len(), again.len(), "{kind}");
        eprintln!("replay: {} records of kind {kind} equal", live.len());
    }
    // pgbench's transactions have seven statements each.
    assert!(essences(&trail, "statement").len() > 3 * 4 * 50 * 7, "the clients did their work");
    let report = oracle::compare(&postgres.log().unwrap(), &replayed).unwrap();
    eprintln!("replay, against the server's log: {report}");
    assert!(report.is_equal(), "{report}");
}

#[test]
fn a_capture_at_its_limit_ends_and_auditing_goes_on() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = start(&postgres, &["--capture-limit", "20000"]);
    psql(&daemon, &postgres);
    // More than is gathered before it is handed over, so that the limit is met while the daemon runs.
    pgbench(&daemon, &postgres, &["-i", "-q"]);
    pgbench(&daemon, &postgres, &["-n", "-c", "4", "-t", "400"]);
    daemon.settle().unwrap();
    let trail = daemon.records().unwrap();
    let capture = daemon.home().folder().join("capture");
    let report = oracle::compare(&postgres.log().unwrap(), &trail).unwrap();
    assert!(report.is_equal(), "{report}");
    let stopped = daemon.stop().unwrap();
    assert!(stopped.said.contains("limit"), "{}", stopped.said);

    let length = fs::metadata(&capture).unwrap().len();
    assert!((15_000..=20_000).contains(&length), "{length} bytes");
    let replayed = replay(&capture, &[]);
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    let (live, again) = (essences(&trail, "statement"), essences(&records(&replayed), "statement"));
    assert!(again.len() > 10, "{} statements", again.len());
    // The last one may have been cut off in the middle.
    assert_eq!(live[..again.len() - 1], again[..again.len() - 1]);

    // A capture that lost its end gives its beginning, and the command says so.
    let bytes = fs::read(&capture).unwrap();
    let cut = stopped.trail.with_file_name("cut");
    fs::write(&cut, &bytes[..bytes.len() - 3]).unwrap();
    let output = replay(&cut, &["--count"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("in the middle of a frame"));
    assert!(String::from_utf8_lossy(&output.stdout).contains(" statements"));
    fs::write(&cut, b"{\"time\":1}").unwrap();
    assert_eq!(replay(&cut, &[]).status.code(), Some(1));
}

#[test]
fn a_file_that_is_there_is_left_alone_and_auditing_goes_on() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let folder = place::scratch().unwrap();
    let taken = clients::write(folder.path(), "taken", "mine").unwrap();
    let mut home = Home::new(
        place::auditor("debug").unwrap(),
        &format!(
            "[[agent]]\nname = \"{AGENT}\"\npolicy = \"database\"\n\n[[policy]]\nname = \"database\"\n\
             default = \"deny\"\n[[policy.rule]]\nto = [\"127.0.0.1:{}\"]\naction = \"allow\"\n",
            postgres.port()
        ),
    )
    .unwrap();
    home.daemon_arguments = vec!["--record-capture".into(), taken.clone().into()];
    let daemon = Daemon::start_in(home).unwrap();
    psql(&daemon, &postgres);
    daemon.settle().unwrap();
    let report = oracle::compare(&postgres.log().unwrap(), &daemon.records().unwrap()).unwrap();
    assert!(report.is_equal() && report.told > 10, "{report}");
    assert_eq!(fs::read(&taken).unwrap(), b"mine");
    let stopped = daemon.stop().unwrap();
    assert!(stopped.said.contains("nothing is captured"), "{}", stopped.said);
}
