//! A policy learnt from a session lets it do the same again, and nothing else.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::ffi::OsString;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use auditor_tests::daemon::{Daemon, Home};
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::{UNPRIVILEGED, child, clients, place, require_root};
use serde_json::{Value, json};

const AGENT: &str = "pupil";
const LIMIT: Duration = Duration::from_secs(60);

fn records(daemon: &Daemon, kind: &str) -> Vec<Value> {
    daemon.settle().unwrap();
    let of_kind = |record: &Value| record["unmapped"]["auditor"]["kind"] == kind;
    daemon.records().unwrap().into_iter().filter(of_kind).collect()
}

/// Attempts at internet destinations, as `KIND,ADDRESS,PORT`.
fn attempt(daemon: &Daemon, attempts: &[String]) -> Vec<String> {
    let script = clients::write(daemon.home().folder(), "attempt.py", clients::ATTEMPT).unwrap();
    let mut words: Vec<OsString> = vec!["/usr/bin/python3".into(), "-B".into(), script.into()];
    words.extend(attempts.iter().map(OsString::from));
    let output = daemon.run(AGENT, UNPRIVILEGED, &words).unwrap();
    let results: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    results.iter().map(|one| one["result"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_same_session_again_is_allowed_and_anything_else_refused() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let tcp6 = TcpListener::bind("[::1]:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = place::scratch().unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let path = folder.path().join("socket");
    let unix = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    unix.set_nonblocking(true).unwrap();

    let psql = "exec psql -X -q -h 127.0.0.1 -p \"$1\" -U postgres -c 'select 1' postgres";
    let port = postgres.port().to_string();
    let same = |daemon: &Daemon| {
        let output = daemon.run(AGENT, UNPRIVILEGED, &["/bin/sh", "-c", psql, "sh", &port]).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let results = attempt(
            daemon,
            &[
                format!("tcp,::1,{}", tcp6.local_addr().unwrap().port()),
                format!("udp-sendto,127.0.0.1,{}", udp.local_addr().unwrap().port()),
            ],
        );
        let script = clients::write(daemon.home().folder(), "unix.py", clients::UNIX).unwrap();
        let stream = format!("stream,{}", path.display());
        let words: [OsString; 4] = ["/usr/bin/python3".into(), "-B".into(), script.into(), stream.into()];
        let output_unix = daemon.run(AGENT, UNPRIVILEGED, &words).unwrap();
        let reached: Value = serde_json::from_slice(&output_unix.stdout).unwrap();
        (output.status.success(), said, results, reached)
    };
    let wide = format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"wide\"\n\n[[policy]]\nname = \"wide\"\ndefault = \"allow\"\n"
    );
    let daemon = Daemon::start(&wide).unwrap();
    let (worked, said, results, reached) = same(&daemon);
    assert!(
        worked && results == ["sent", "sent"] && reached == json!(["ok"]),
        "{said} {results:?} {reached}"
    );
    // Each was a session: what they did is put together from what each has taught.
    let opened = records(&daemon, "session-opened");
    let learnt: Vec<String> = opened
        .iter()
        .map(|record| {
            let id = record["unmapped"]["auditor"]["session"]["id"].as_str().unwrap();
            daemon.ask(&["policy", "learn", "--session", id]).unwrap()
        })
        .collect();
    assert_eq!(learnt.len(), 3);
    assert!(learnt[0].contains("protocol = \"postgres\""), "{}", learnt[0]);
    let unknown =
        daemon.home().client(&["policy", "learn", "--session", "0123456789abcdef"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    daemon.stop().unwrap();

    for (which, text) in learnt.iter().enumerate() {
        let home = Home::new(place::auditor("debug").unwrap(), text).unwrap();
        let mut check = home.client(&["policy", "check"]);
        let said = child::succeed(check.arg(home.configuration()), LIMIT).unwrap();
        assert!(said.contains("0 warnings"), "{said}\n{text}");
        let daemon = Daemon::start_in(home).unwrap();
        let (worked, said, results, reached) = same(&daemon);
        let expected = match which {
            0 => (true, ["EPERM", "EPERM"], json!(["EPERM"])),
            1 => (false, ["sent", "sent"], json!(["EPERM"])),
            _ => (false, ["EPERM", "EPERM"], json!(["ok"])),
        };
        assert_eq!(
            (worked, results.as_slice(), &reached),
            (expected.0, &expected.1.map(String::from)[..], &expected.2),
            "{said}\n{text}"
        );
        let else_where = attempt(&daemon, &[format!("tcp,127.0.0.1,{}", other.local_addr().unwrap().port())]);
        assert_eq!(else_where, ["EPERM"], "{text}");
        // Nothing of what the session did is a violation under its own policy.
        let refused = records(&daemon, "connection-refused");
        let refused =
            refused.iter().filter(|record| record["unmapped"]["auditor"]["connection"]["reason"] == "rule");
        assert_eq!(refused.count(), 0);
        daemon.stop().unwrap();
    }
    other.set_nonblocking(true).unwrap();
    assert!(other.accept().is_err(), "what was not learnt was reached");
}
