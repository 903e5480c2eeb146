//! Every statement that the server was told is in the trail: verbatim, in order, with its outcome, attributed; none is
//! invented. The server's own log is the judge.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::ffi::OsString;

use auditor_tests::daemon::Daemon;
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::python::Python;
use auditor_tests::{UNPRIVILEGED, clients, oracle, require_root};
use serde_json::Value;

const AGENT: &str = "oracle-agent";

fn configuration(postgres: &Postgres) -> String {
    let port = postgres.port();
    format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"database\"\n\n[[policy]]\nname = \"database\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"127.0.0.1:{port}\", \"[::1]:{port}\"]\naction = \"allow\"\nprotocol = \"postgres\"\n"
    )
}

fn words(program: OsString, arguments: &[&str]) -> Vec<OsString> {
    let mut words = vec![program];
    words.extend(arguments.iter().map(OsString::from));
    clients::telling_pid(&words)
}

/// Runs a client in a session and returns its process id.
fn run(daemon: &Daemon, words: &[OsString]) -> u32 {
    let output = daemon.run(AGENT, UNPRIVILEGED, words).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {}\n{stderr}\ndaemon: {}", output.status, daemon.said());
    clients::pid_told(&output.stderr).unwrap()
}

/// Every connection's bytes were audited to the last, rows of long transfers by their count, and none was lost anywhere.
fn check_coverage(daemon: &Daemon, records: &[Value]) {
    let closed = records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "connection-closed");
    for record in closed {
        let coverage = &record["unmapped"]["auditor"]["connection"]["coverage"];
        let count = |name: &str| coverage[name].as_u64().unwrap();
        // Rows of a long transfer are counted instead of copied.
        assert_eq!(count("sent"), count("audited_sent") + count("skipped_sent"), "{record}");
        assert_eq!(count("received"), count("audited_received") + count("skipped_received"), "{record}");
        assert_eq!(coverage["gaps"].as_array().map(Vec::len), Some(0), "{record}");
    }
    let status = daemon.status().unwrap();
    assert_eq!(status["failures"].as_array().map(Vec::len), Some(0), "{status}");
}

fn compare(name: &str, daemon: Daemon, postgres: &Postgres, pids: &[u32], least: usize) {
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let report = oracle::compare(&postgres.log().unwrap(), &records).unwrap();
    eprintln!("oracle, {name}: {report}");
    assert!(report.is_equal(), "{report}\ndaemon: {}", daemon.said());
    assert!(report.told >= least, "only {} statements: the test did not do its work", report.told);
    oracle::check_attribution(&records, AGENT, pids).unwrap();
    check_coverage(&daemon, &records);
    daemon.stop().unwrap();
}

#[test]
fn psql_scripts() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&configuration(&postgres)).unwrap();
    let long = format!("{}select '{}' as long;\n", clients::STATEMENTS, "0123456789abcdef".repeat(6400));
    let script = clients::write(daemon.home().folder(), "statements.sql", &long).unwrap();
    let port = postgres.port().to_string();
    let mut pids = Vec::new();
    for host in ["127.0.0.1", "::1"] {
        let psql = postgres.program("psql").into_os_string();
        let arguments = ["-X", "-q", "-h", host, "-p", &port, "-U", "postgres", "-d", "postgres", "-f"];
        let mut words = words(psql, &arguments);
        words.push(script.clone().into());
        pids.push(run(&daemon, &words));
    }
    compare("psql", daemon, &postgres, &pids, 80);
}

#[test]
fn pgbench_with_eight_clients() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&configuration(&postgres)).unwrap();
    let port = postgres.port().to_string();
    let tables = ["-i", "-q", "-h", "127.0.0.1", "-p", &port, "-U", "postgres", "postgres"];
    let pgbench = || postgres.program("pgbench").into_os_string();
    let mut pids = vec![run(&daemon, &words(pgbench(), &tables))];
    for mode in ["simple", "extended", "prepared"] {
        let arguments = ["-n", "-c", "8", "-j", "2", "-t", "140", "-M", mode, "-h", "127.0.0.1", "-p", &port];
        let mut words = words(pgbench(), &arguments);
        words.extend(["-U", "postgres", "postgres"].map(OsString::from));
        pids.push(run(&daemon, &words));
    }
    compare("pgbench", daemon, &postgres, &pids, 20_000);
}

#[test]
fn a_driver_with_parameters_pipeline_copy_and_cursor() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&configuration(&postgres)).unwrap();
    let python = Python::new(daemon.home().folder()).unwrap();
    let script = clients::write(daemon.home().folder(), "driver.py", clients::DRIVER).unwrap();
    let target = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", postgres.port());
    let pids = [run(&daemon, &python.words(&script, &[&target]))];
    compare("psycopg", daemon, &postgres, &pids, 150);
}
