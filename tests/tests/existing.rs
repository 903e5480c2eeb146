//! Sockets that are older than their session: what the far end hears of them, and what the trail says.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use auditor_tests::agent::{self, Agent};
use auditor_tests::cgroup::OwnCgroup;
use auditor_tests::daemon::Daemon;
use auditor_tests::{UNPRIVILEGED, child, require_root};
use serde_json::{Value, json};

const AGENT: &str = "older";
const SOON: Duration = Duration::from_secs(3);

fn configuration(port: u16, existing: &str) -> String {
    format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"p\"\n{existing}\n[[policy]]\nname = \"p\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"127.0.0.1:{port}\"]\naction = \"allow\"\n"
    )
}

/// An agent that is no session's, as an unprivileged user.
fn agent(daemon: &Daemon) -> Agent {
    let words = agent::words(daemon.home()).unwrap();
    let user = child::find_user(&[UNPRIVILEGED]).unwrap();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir(daemon.home().folder());
    Agent::start(child::as_user(&mut command, &user)).unwrap()
}

/// A connection of the agent's, under a name, with the end that it leads to.
fn connect(agent: &mut Agent, listener: &TcpListener, name: &str) -> TcpStream {
    let port = listener.local_addr().unwrap().port();
    assert_eq!(agent.tell(&format!("connect {name} 127.0.0.1 {port}")).unwrap(), "ok");
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn hear(stream: &mut TcpStream, length: usize) -> Result<String, ErrorKind> {
    let mut heard = vec![0; length];
    stream.read_exact(&mut heard).map_err(|error| error.kind())?;
    Ok(String::from_utf8(heard).unwrap())
}

fn findings<'a>(records: &'a [Value], kind: &str) -> Vec<&'a str> {
    records
        .iter()
        .filter(|record| record["unmapped"]["auditor"]["finding"]["kind"] == kind)
        .map(|record| record["message"].as_str().unwrap())
        .collect()
}

#[test]
fn what_a_process_had_open_ends_when_it_is_tagged() {
    require_root().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let daemon = Daemon::start(&configuration(port, "")).unwrap();
    let mut agent = agent(&daemon);
    let mut far = connect(&mut agent, &listener, "old");
    let near = far.peer_addr().unwrap();
    assert_eq!(agent.tell("send old before").unwrap(), "ok");
    assert_eq!(hear(&mut far, 6).as_deref(), Ok("before"));

    let pid = agent.id().to_string();
    daemon.ask(&["tag", "--agent", AGENT, "--pid", &pid]).unwrap();
    assert_eq!(hear(&mut far, 1), Err(ErrorKind::ConnectionReset));
    assert_ne!(agent.tell("send old after").unwrap(), "ok");
    // What it makes from here on is a session's.
    let mut new = connect(&mut agent, &listener, "new");
    assert_eq!(agent.tell("send new audited").unwrap(), "ok");
    assert_eq!(hear(&mut new, 7).as_deref(), Ok("audited"));

    agent.end().unwrap();
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let destroyed = findings(&records, "older-socket-destroyed");
    assert_eq!(destroyed.len(), 1, "{destroyed:?}");
    assert!(destroyed[0].contains(&format!("from {near} to 127.0.0.1:{port}")), "{destroyed:?}");
    assert_eq!(findings(&records, "older-socket"), Vec::<&str>::new());
    daemon.stop().unwrap();
}

#[test]
fn a_connection_of_a_cgroup_goes_on_audited_and_one_from_elsewhere_ends() {
    require_root().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let daemon = Daemon::start(&configuration(port, "existing_sockets = \"adopt\"\n")).unwrap();
    let cgroup = OwnCgroup::new().unwrap();
    let mut agent = agent(&daemon);
    let mut from_elsewhere = connect(&mut agent, &listener, "elsewhere");
    cgroup.take_in(agent.id()).unwrap();
    let mut of_cgroup = connect(&mut agent, &listener, "own");
    assert_eq!(agent.tell("send own before").unwrap(), "ok");
    assert_eq!(hear(&mut of_cgroup, 6).as_deref(), Ok("before"));
    let near = of_cgroup.peer_addr().unwrap();

    cgroup.tag(&daemon, AGENT).unwrap();
    assert_eq!(hear(&mut from_elsewhere, 1), Err(ErrorKind::ConnectionReset));
    assert_eq!(agent.tell("send own and-after").unwrap(), "ok");
    assert_eq!(hear(&mut of_cgroup, 9).as_deref(), Ok("and-after"));
    assert_eq!(agent.tell("close own").unwrap(), "ok");
    drop(of_cgroup);
    let pid = agent.id();
    agent.end().unwrap();
    daemon.settle().unwrap();

    let records = daemon.records().unwrap();
    assert_eq!(findings(&records, "older-socket-destroyed").len(), 1);
    assert_eq!(findings(&records, "older-socket-adopted").len(), 1);
    for kind in ["connection-opened", "connection-closed"] {
        let of_kind: Vec<_> =
            records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == kind).collect();
        assert_eq!(of_kind.len(), 1, "{kind}");
        let (record, connection) = (of_kind[0], &of_kind[0]["unmapped"]["auditor"]["connection"]);
        assert_eq!(connection["adopted"], true, "{kind}");
        assert_eq!(connection["adopted_at"], json!({"sent": 6, "received": 0}), "{kind}");
        assert_eq!(record["src_endpoint"]["port"], near.port(), "{kind}");
        assert_eq!(record["actor"]["process"]["pid"], pid, "{kind}");
        if kind == "connection-closed" {
            let coverage = &connection["coverage"];
            let count = |name: &str| coverage[name].as_u64().unwrap_or(0);
            assert_eq!(count("audited_sent") + count("opaque_sent"), 9, "{coverage}");
        }
    }
    daemon.stop().unwrap();
}

/// Whether those who live in a cgroup stand still.
fn stands_still(cgroup: &OwnCgroup) -> bool {
    fs::read_to_string(cgroup.path().join("cgroup.events")).unwrap().contains("frozen 1")
}

#[test]
fn sockets_that_no_table_lists_are_found() {
    require_root().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let daemon = Daemon::start(&configuration(port, "")).unwrap();
    let words = agent::words(daemon.home()).unwrap();
    let mut agent =
        Agent::start(Command::new(&words[0]).args(&words[1..]).current_dir(daemon.home().folder())).unwrap();
    for order in ["hold raw raw", "hold packet packet", "hold udp udp", &format!("hide 127.0.0.1 {port}")] {
        assert_eq!(agent.tell(order).unwrap(), "ok", "{order}");
    }
    let (mut hidden, _) = listener.accept().unwrap();
    hidden.set_read_timeout(Some(SOON)).unwrap();
    let cgroup = OwnCgroup::new().unwrap();
    cgroup.take_in(agent.id()).unwrap();
    cgroup.tag(&daemon, AGENT).unwrap();
    assert!(!stands_still(&cgroup));
    assert_eq!(hear(&mut hidden, 1), Err(ErrorKind::ConnectionReset));
    agent.end().unwrap();
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let destroyed = findings(&records, "older-socket-destroyed");
    let outside = findings(&records, "older-socket");
    for (told, wanted) in [
        (&destroyed, "has a udp socket from"),
        (&destroyed, &format!("to 127.0.0.1:{port} ")),
        (&outside, "has a raw (protocol 1) socket"),
        (&outside, "has a packet socket"),
    ] {
        assert_eq!(told.iter().filter(|told| told.contains(wanted)).count(), 1, "{wanted}: {told:?}");
    }
    assert_eq!((destroyed.len(), outside.len()), (2, 2), "{destroyed:?} {outside:?}");
    daemon.stop().unwrap();
}

#[test]
fn a_datagram_socket_with_a_fixed_destination_is_ended_and_one_without_goes_on() {
    require_root().unwrap();
    let heard = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    heard.set_read_timeout(Some(SOON)).unwrap();
    let port = heard.local_addr().unwrap().port();
    let daemon = Daemon::start(&configuration(port, "existing_sockets = \"adopt\"\n")).unwrap();
    let cgroup = OwnCgroup::new().unwrap();
    let mut agent = agent(&daemon);
    cgroup.take_in(agent.id()).unwrap();
    assert_eq!(agent.tell(&format!("udp fixed 127.0.0.1 {port}")).unwrap(), "ok");
    assert_eq!(agent.tell("hold free udp").unwrap(), "ok");
    cgroup.tag(&daemon, AGENT).unwrap();
    assert_ne!(agent.tell("send fixed unrecorded").unwrap(), "ok");
    assert_eq!(agent.tell(&format!("datagram free recorded 127.0.0.1 {port}")).unwrap(), "ok");
    let mut bytes = [0; 16];
    assert_eq!(heard.recv(&mut bytes).unwrap(), 8);
    assert_eq!(&bytes[..8], b"recorded");
    agent.end().unwrap();
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    assert_eq!(findings(&records, "older-socket-destroyed").len(), 1);
    assert_eq!(findings(&records, "older-socket-adopted").len(), 1);
    let opened = records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "connection-opened");
    assert_eq!(opened.count(), 1);
    daemon.stop().unwrap();
}

#[test]
fn who_stood_still_before_does_so_afterwards_and_whom_a_killed_daemon_stopped_goes_on() {
    require_root().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let first = Daemon::start(&configuration(listener.local_addr().unwrap().port(), "")).unwrap();
    let cgroup = OwnCgroup::new().unwrap();
    let agent = agent(&first);
    cgroup.take_in(agent.id()).unwrap();
    fs::write(cgroup.path().join("cgroup.freeze"), "1").unwrap();
    cgroup.tag(&first, AGENT).unwrap();
    assert!(stands_still(&cgroup), "the daemon has let go whom somebody else had stopped");
    cgroup.untag(&first).unwrap();
    // As a daemon leaves it that is killed in between.
    let own = json!({
        "path": cgroup.path(),
        "name": cgroup.name(),
        "id": std::os::unix::fs::MetadataExt::ino(&fs::metadata(cgroup.path()).unwrap()),
    });
    fs::write(first.home().runtime.join("frozen"), own.to_string()).unwrap();
    let mut home = first.home().next().unwrap();
    home.replace = true;
    let second = Daemon::start_in(home).unwrap();
    let start = std::time::Instant::now();
    while stands_still(&cgroup) {
        assert!(start.elapsed() < SOON, "nobody lets them go on");
        std::thread::sleep(Duration::from_millis(5));
    }
    agent.end().unwrap();
    second.stop().unwrap();
}
