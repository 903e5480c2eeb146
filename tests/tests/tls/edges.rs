//! Where reading ends: strangers with the same library, libraries that nobody knows, rules that want to see.

use std::process::{Command, Stdio};

use auditor_tests::certificates::{Key, SERVER};
use auditor_tests::child::{self, Child};
use auditor_tests::daemon::Daemon;
use auditor_tests::python::Python;
use auditor_tests::tls::{AGENT, CLOSE_NOTIFY, Expected, Scene, Server, findings};
use auditor_tests::{UNPRIVILEGED, clients, oracle};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{psql, system_openssl};

/// The words of a stranger: the same driver, library and server as the agent's, outside of any session.
fn stranger(scene: &Scene, words: &[std::ffi::OsString]) -> Child {
    let user = child::find_user(&[UNPRIVILEGED]).unwrap();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir(scene.daemon.home().folder()).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Child::start(child::as_user(&mut command, &user), Signal::SIGKILL).unwrap()
}

#[test]
fn a_stranger_with_the_same_library_is_not_read() {
    let mut scene = Scene::new(Key::Rsa, &[]).unwrap();
    let folder = scene.daemon.home().folder().to_owned();
    let python = Python::with_drivers(&folder).unwrap();
    let script = clients::write(&folder, "tls_client.py", clients::TLS).unwrap();
    let (port, authority) = (scene.server.postgres.port().to_string(), scene.server.certificates.authority());
    let authority = authority.display().to_string();
    let words =
        |tag: &str| python.words(&script, &["asyncpg", "storm", SERVER, &port, &authority, "60", "5", tag]);
    let mut strangers = stranger(&scene, &words("the stranger"));
    scene.run(&words("the agent")).unwrap();
    assert!(strangers.wait(std::time::Duration::from_secs(60)).unwrap().success());
    scene.daemon.settle().unwrap();
    let (log, records) = (scene.server.postgres.log().unwrap(), scene.daemon.records().unwrap());
    let text = |record: &Value| record["query_info"]["query_string"].as_str().unwrap_or_default().to_owned();
    assert!(!records.iter().any(|record| record.to_string().contains("the stranger")));
    assert_eq!(records.iter().filter(|record| text(record).contains("the agent")).count(), 600);
    // All that the server was told by others than the stranger.
    let mine: std::collections::BTreeSet<_> = records
        .iter()
        .filter(|record| oracle::is_statement(record))
        .map(|r| oracle::client(r).unwrap())
        .collect();
    let theirs = log.iter().filter(|entry| entry.message.contains("the stranger"));
    assert!(
        theirs.clone().count() >= 600 && theirs.clone().all(|entry| !mine.contains(&entry.client.unwrap()))
    );
    let log: Vec<_> =
        log.into_iter().filter(|entry| entry.client.is_some_and(|client| mine.contains(&client))).collect();
    let report = oracle::compare(&log, &records).unwrap();
    assert!(report.is_equal() && report.told >= 600, "{report}");
    scene.daemon.stop().unwrap();
}

/// Runs TLS in pure Python in a session.
fn unreadable(daemon: &Daemon, server: &Server) {
    let folder = daemon.home().folder();
    let python = Python::with_drivers(folder).unwrap();
    let script = clients::write(folder, "tls_client.py", clients::TLS).unwrap();
    let (port, authority) = (server.postgres.port().to_string(), server.certificates.authority());
    let authority = authority.display().to_string();
    let words = python.words(&script, &["tlslite", "storm", SERVER, &port, &authority, "3", "2", "unseen"]);
    let output = daemon.run(AGENT, UNPRIVILEGED, &words).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn ends(records: &[Value]) -> Vec<&Value> {
    records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "connection-closed").collect()
}

#[test]
fn what_cannot_be_read_says_why() {
    auditor_tests::require_root().unwrap();
    let server = Server::start(Key::Rsa, true, &[]).unwrap();
    let daemon = Daemon::start(&server.configuration("").replace("protocol = \"postgres\"\n", "")).unwrap();
    unreadable(&daemon, &server);
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let ends = ends(&records);
    assert_eq!(ends.len(), 3);
    for end in ends {
        let connection = &end["unmapped"]["auditor"]["connection"];
        let tls = &connection["tls"];
        assert_eq!(tls["decrypted"], false, "{connection}");
        assert!(tls["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{connection}");
        assert_eq!(connection["opaque"], "tls", "{connection}");
        // What the handshake says in the clear is there all the same.
        assert_eq!((&tls["sni"], &tls["version"]), (&SERVER.into(), &"1.3".into()), "{connection}");
        assert!(tls["cipher"].is_string() && tls["ja4"].is_string(), "{connection}");
        let coverage = &connection["coverage"];
        assert!(coverage["opaque_sent"].as_u64() > Some(0), "{connection}");
        let sum = |kinds: [&str; 3]| kinds.iter().map(|kind| coverage[*kind].as_u64().unwrap()).sum::<u64>();
        let (sent, seen) =
            (coverage["sent"].as_u64().unwrap(), sum(["audited_sent", "opaque_sent", "skipped_sent"]));
        assert!((sent..=sent + CLOSE_NOTIFY).contains(&seen), "{connection}");
    }
    assert!(!findings(&records).contains("opaque-connection"), "{:?}", findings(&records));
    daemon.stop().unwrap();
}

#[test]
fn a_rule_for_postgresql_is_violated_by_what_nobody_can_see() {
    auditor_tests::require_root().unwrap();
    let server = Server::start(Key::Rsa, true, &[]).unwrap();
    let daemon = Daemon::start(&server.configuration("")).unwrap();
    unreadable(&daemon, &server);
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    for end in ends(&records) {
        let id = &end["unmapped"]["auditor"]["connection"]["id"];
        let violations = records.iter().filter(|record| {
            let own = &record["unmapped"]["auditor"];
            record["class_uid"] == 2004
                && own["connection"]["id"] == *id
                && own["finding"]["kind"] == "opaque-connection"
        });
        assert_eq!(violations.count(), 1, "violations of {id}");
    }
    daemon.stop().unwrap();
}

/// A library that is first seen after other connections, in a process that was there before it: the first handshake is read too.
#[test]
fn the_first_handshake_of_a_library_that_nobody_saw_before_is_read() {
    for _ in 0..5 {
        // A new copy, so a new inode, each time.
        let mut scene = Scene::new(Key::Rsa, &[]).unwrap();
        let folder = scene.daemon.home().folder().to_owned();
        let python = Python::with_drivers(&folder).unwrap();
        let script = clients::write(&folder, "tls_client.py", clients::TLS).unwrap();
        let (port, authority) =
            (scene.server.postgres.port().to_string(), scene.server.certificates.authority());
        let authority = authority.display().to_string();
        let words =
            python.words(&script, &["psycopg2", "together", SERVER, &port, &authority, "1", "1", "first"]);
        scene.run(&words).unwrap();
        scene.judge("first handshake", 1, Expected { library: "OpenSSL 3.", sni: Some(SERVER) }).unwrap();
        scene.daemon.stop().unwrap();
    }
}

/// An agent that exec's one program after the other, each with a handshake at once.
#[test]
fn many_short_programs_are_all_read() {
    let mut scene = Scene::new(Key::Ec, &[]).unwrap();
    for number in 0..25 {
        scene.run(&psql(&scene, "", &format!("select 'short {number}'"))).unwrap();
    }
    scene.judge("short programs", 25, Expected { library: &system_openssl(), sni: Some(SERVER) }).unwrap();
    scene.daemon.stop().unwrap();
}
