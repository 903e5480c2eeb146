//! A daemon that is killed in the middle of TLS connections: the next one reads on where it stopped.

use std::ffi::OsString;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use auditor_tests::certificates::{Key, SERVER};
use auditor_tests::child::Child;
use auditor_tests::daemon::Daemon;
use auditor_tests::tls::{AGENT, Expected, Server, check_connections, findings};
use auditor_tests::{UNPRIVILEGED, oracle};
use nix::sys::signal::Signal;

use crate::system_openssl;

const LIMIT: Duration = Duration::from_secs(60);

/// pgbench with connections that stay, and one with a handshake for each transaction.
fn loads(server: &Server, seconds: &str) -> [Vec<OsString>; 2] {
    let target = server.target();
    let words = |more: &[&str]| {
        let mut words = vec![server.postgres.program("pgbench").into_os_string()];
        words.extend(["-n", "-S", "-T", seconds, "-R", "100"].iter().chain(more).map(OsString::from));
        words.push(OsString::from(&target));
        words
    };
    [words(&["-c", "4"]), words(&["-c", "2", "-C"])]
}

fn start(daemon: &Daemon, words: &[OsString]) -> Child {
    let mut command = daemon.home().run(AGENT, UNPRIVILEGED, words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    Child::start(&mut command, Signal::SIGKILL).unwrap()
}

fn fill(server: &Server) {
    let mut command = std::process::Command::new(server.postgres.program("pgbench"));
    command.args(["-i", "-q", "-U", "postgres", "-p", &server.postgres.port().to_string(), "-h"]);
    auditor_tests::child::succeed(command.arg(server.postgres.socket_folder()).arg("postgres"), LIMIT)
        .unwrap();
}

/// Ends daemons in some way while agents talk; what they say is in the trail to the last statement.
fn across(name: &str, mut next: impl FnMut(Daemon, &mut Vec<Daemon>) -> Daemon) {
    auditor_tests::require_root().unwrap();
    let server = Server::start(Key::Ec, true, &[]).unwrap();
    fill(&server);
    let mut daemon = Daemon::start(&server.configuration("")).unwrap();
    let mut workers: Vec<Child> = loads(&server, "14").iter().map(|words| start(&daemon, words)).collect();
    let begun = Instant::now();
    while daemon.status().unwrap()["connections"].as_u64() < Some(4) {
        assert!(begun.elapsed() < LIMIT, "{}", daemon.said());
        thread::sleep(Duration::from_millis(20));
    }
    let mut ended = Vec::new();
    for round in 0..4 {
        thread::sleep(Duration::from_millis(700 + 130 * round));
        daemon = next(daemon, &mut ended);
    }
    for worker in &mut workers {
        assert!(worker.wait(LIMIT).unwrap().success(), "{}", daemon.said());
    }
    daemon.settle().unwrap();
    let (log, records) = (server.postgres.log().unwrap(), daemon.records().unwrap());
    let report = oracle::compare(&log, &records).unwrap();
    eprintln!("tls, {name}: {report}");
    assert!(report.is_equal(), "{report}\n{:?}\ndaemon: {}", findings(&records), daemon.said());
    assert!(report.told > 300, "only {} statements", report.told);
    let expected = Expected { library: &system_openssl(), sni: Some(SERVER) };
    let connections = check_connections(&log, &records, expected).unwrap();
    assert!(connections > 50, "only {connections} connections");
    daemon.stop().unwrap();
}

#[test]
fn a_daemon_that_is_killed_amid_tls_loses_nothing() {
    across("killed", |daemon, ended| {
        daemon.kill().unwrap();
        let home = daemon.home().next().unwrap();
        ended.push(daemon);
        // On a busy machine the next one takes most of the lease's two seconds to be there.
        thread::sleep(Duration::from_millis(20));
        Daemon::start_in(home).unwrap()
    });
}

#[test]
fn a_daemon_that_is_replaced_amid_tls_loses_nothing() {
    across("replaced", |daemon, ended| {
        let mut home = daemon.home().next().unwrap();
        home.replace = true;
        ended.push(daemon);
        Daemon::start_in(home).unwrap()
    });
}
