//! What an agent may try to get past the verdict or out of the record, and what arrives at the far end of it.
//!
//! The far end is this test, which is no agent: it listens where nothing may arrive. Counters of the auditor's own are looked at
//! only beside that.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use auditor_tests::cgroup::OwnCgroup;
use auditor_tests::daemon::Daemon;
use auditor_tests::postgres::{Options, Postgres, free_port};
use auditor_tests::python::Python;
use auditor_tests::{UNPRIVILEGED, child, clients, oracle, require_root};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

const AGENT: &str = "attacker";
const LIMIT: Duration = Duration::from_secs(10);
/// What a packet on its way is given to arrive.
const ON_ITS_WAY: Duration = Duration::from_millis(200);

/// A policy that denies what `allowed` does not name.
fn configuration(allowed: &[String]) -> String {
    format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"narrow\"\n\n[[policy]]\nname = \"narrow\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = {allowed:?}\naction = \"allow\"\n"
    )
}

/// The words of an attack, for the distribution's own interpreter.
fn words(daemon: &Daemon, arguments: &[&str]) -> Vec<OsString> {
    let script = clients::write(daemon.home().folder(), "attack.py", clients::ATTACK).unwrap();
    let mut words: Vec<OsString> = vec!["/usr/bin/python3".into(), "-B".into(), script.into()];
    words.extend(arguments.iter().map(OsString::from));
    words
}

fn result(output: &Output, daemon: &Daemon) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stderr}\ndaemon: {}", output.status, daemon.said());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs an attack in a session; returns what the kernel said to it.
fn attack(daemon: &Daemon, arguments: &[&str]) -> Value {
    result(&daemon.run(AGENT, UNPRIVILEGED, &words(daemon, arguments)).unwrap(), daemon)
}

fn of_kind<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == kind).collect()
}

fn findings<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    let of_that_kind = |record: &&Value| record["unmapped"]["auditor"]["finding"]["kind"] == kind;
    of_kind(records, "finding").into_iter().filter(of_that_kind).collect()
}

fn total(counts: &Value) -> u64 {
    counts.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}

fn port_of(address: SocketAddr) -> String {
    address.port().to_string()
}

/// UDP datagrams that have arrived, emptying the socket.
fn datagrams(socket: &UdpSocket) -> Vec<Vec<u8>> {
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 64];
    std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())).collect()
}

#[test]
fn one_udp_socket_used_for_two_destinations_at_once() {
    require_root().unwrap();
    let (allowed, denied) =
        (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let ports = [&allowed, &denied].map(|socket| port_of(socket.local_addr().unwrap()));
    let daemon = Daemon::start(&configuration(&[format!("127.0.0.1:{}", ports[0])])).unwrap();
    let results = attack(&daemon, &["udp-race", &ports[0], &ports[1], "3"]);
    thread::sleep(ON_ITS_WAY);

    assert_eq!(datagrams(&denied), Vec::<Vec<u8>>::new(), "the denied destination was reached: {results}");
    let refused = total(&results["denied"]);
    assert!(refused > 1000, "no race: {results}");
    assert_eq!(results["denied"], json!({"EPERM": refused}));
    let sent = total(&results["allowed"]);
    assert!(sent > 1000, "no race: {results}");
    assert_eq!(results["allowed"], json!({"ok": sent}), "what is allowed was held up");
    let arrived = datagrams(&allowed);
    assert!(!arrived.is_empty() && arrived.iter().all(|datagram| datagram == b"allowed"));
    daemon.settle().unwrap();
    daemon.stop().unwrap();
}

#[test]
fn urgent_data_does_not_leave() {
    require_root().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let daemon = Daemon::start(&configuration(&[address.to_string()])).unwrap();
    let far = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // Wherever the receiver would look for it: in the stream.
        setsockopt(&stream, sockopt::OobInline, &true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let mut heard = Vec::new();
        let mut buffer = [0; 64];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return (heard, None),
                Ok(length) => heard.extend_from_slice(&buffer[..length]),
                Err(error) => return (heard, Some(error.kind())),
            }
        }
    });
    let results = attack(&daemon, &["urgent", &port_of(address)]);
    assert_eq!(results["before"], "ok");
    // The connection waits for a segment that never leaves; its end does.
    let (heard, end) = far.join().unwrap();
    assert_eq!(
        (heard.as_slice(), end),
        (b"before".as_slice(), Some(ErrorKind::ConnectionReset)),
        "{results}"
    );

    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let refused = of_kind(&records, "connection-refused");
    assert!(!refused.is_empty(), "the attempt is not recorded");
    for record in refused {
        let connection = &record["unmapped"]["auditor"]["connection"];
        assert_eq!(connection["reason"], "urgent-data", "{record}");
        assert_eq!(connection["call"], "packet", "{record}");
        assert_eq!(record["dst_endpoint"]["port"], address.port(), "{record}");
    }
    daemon.stop().unwrap();
}

/// The number at the beginning of a finding's message.
fn number(record: &Value) -> u64 {
    record["message"].as_str().unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_flood_of_refusals_does_not_crowd_out_an_honest_agent() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let denied = UdpSocket::bind("127.0.0.1:0").unwrap();
    let denied_port = port_of(denied.local_addr().unwrap());
    let own = configuration(&[format!("127.0.0.1:{}", postgres.port())]);
    let daemon =
        Daemon::start(&format!("{own}\n[[agent]]\nname = \"honest\"\npolicy = \"narrow\"\n")).unwrap();
    let flood = words(&daemon, &["flood", &denied_port, "6"]);
    let python = Python::new(daemon.home().folder()).unwrap();
    let script = daemon.home().folder().join("attack.py");
    let target = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", postgres.port());
    let statements = python.words(&script, &["statements", &target, "200"]);
    let (flooded, honest) = thread::scope(|scope| {
        let flood = scope.spawn(|| daemon.run(AGENT, UNPRIVILEGED, &flood).unwrap());
        thread::sleep(Duration::from_millis(500));
        let start = Instant::now();
        let honest = daemon.run("honest", UNPRIVILEGED, &statements).unwrap();
        eprintln!("the honest agent took {:?}", start.elapsed());
        assert!(!flood.is_finished(), "the flood was over before the honest agent was");
        (flood.join().unwrap(), honest)
    });
    let results = result(&flooded, &daemon);
    let (attempts, pid) = (total(&results), clients::pid_told(&honest.stderr).unwrap());
    result(&honest, &daemon);
    assert_eq!(results, json!({"EPERM": attempts}));
    assert_eq!(datagrams(&denied).len(), 0);
    daemon.settle().unwrap();

    let records = daemon.records().unwrap();
    let report = oracle::compare(&postgres.log().unwrap(), &records).unwrap();
    assert!(report.is_equal() && report.told >= 200, "{report}");
    for kind in ["connection-opened", "connection-closed"] {
        let of_honest: Vec<_> = of_kind(&records, kind)
            .into_iter()
            .filter(|record| record["unmapped"]["auditor"]["agent"]["name"] == "honest")
            .collect();
        assert_eq!(of_honest.len(), 1, "{kind}");
        assert_eq!(of_honest[0]["actor"]["process"]["pid"], pid, "{}", of_honest[0]);
    }
    check_coverage(&records);

    // The C library of the honest agent asks for its user's name, which is a unix socket and refused too.
    let flood = |record: &&&Value| record["unmapped"]["auditor"]["connection"]["socket"].is_null();
    let recorded = of_kind(&records, "connection-refused").iter().filter(flood).count() as u64;
    let folded: u64 = findings(&records, "refusals-folded").into_iter().map(number).sum();
    eprintln!("flood: {attempts} attempts, {recorded} recorded, {folded} folded");
    assert!(folded > 1000 && recorded >= 200, "{recorded} recorded, {folded} folded");
    assert_eq!(recorded + folded, attempts, "refusals were lost");
    assert_eq!(daemon.status().unwrap()["failures"], json!([]));
    daemon.stop().unwrap();
}

/// Every connection's bytes were seen to the last: audited, or opaque where nobody could read them.
fn check_coverage(records: &[Value]) {
    for record in of_kind(records, "connection-closed") {
        let coverage = &record["unmapped"]["auditor"]["connection"]["coverage"];
        let count = |name: &str| coverage[name].as_u64().unwrap_or(0);
        assert_eq!(coverage["sent"], count("audited_sent") + count("opaque_sent"), "{record}");
        let received = count("audited_received") + count("opaque_received") + count("skipped_received");
        assert_eq!(coverage["received"], received, "{record}");
        assert_eq!(coverage["gaps"], json!([]), "{record}");
    }
}

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn connections_that_fail_before_they_begin_are_forgotten() {
    const TRIED: u64 = 20_000;
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (own, port) = (listener.local_addr().unwrap(), postgres.port());
    let daemon = Daemon::start(&configuration(&[own.to_string(), format!("127.0.0.1:{port}")])).unwrap();
    let before = resident(daemon.id());
    let results = attack(&daemon, &["stillborn", &port_of(own), &TRIED.to_string()]);
    // Where there is no room to record an attempt, it is refused.
    let room = results["EADDRNOTAVAIL"].as_u64().unwrap();
    assert!(room > 1000 && room + results["EPERM"].as_u64().unwrap_or(0) == TRIED, "{results}");
    daemon.settle().unwrap();
    let grown = resident(daemon.id()).saturating_sub(before);
    eprintln!("stillborn: {results}, resident memory grew by {grown} KiB");
    assert!(grown < 64 << 10, "resident memory grew by {grown} KiB");
    let status = daemon.status().unwrap();
    assert_eq!(status["connections"], 0);
    // What was not refused found room all the same: ends of connections, and processes.
    for failure in status["failures"].as_array().unwrap() {
        assert_eq!(failure["site"], "verdict", "{failure}");
    }

    let python = Python::new(daemon.home().folder()).unwrap();
    let script = daemon.home().folder().join("attack.py");
    let target = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
    let honest = daemon.run(AGENT, UNPRIVILEGED, &python.words(&script, &["statements", &target, "1"]));
    result(&honest.unwrap(), &daemon);
    daemon.settle().unwrap();
    // Tens of thousands of records of what never began are not asked for.
    let text = daemon.ask(&["log", "--json", "--kind", "statement"]).unwrap();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let report = oracle::compare(&postgres.log().unwrap(), &records).unwrap();
    assert!(report.is_equal() && report.told == 1, "{report}");
    daemon.stop().unwrap();
}

/// Listens for TCP and UDP, IPv4 and IPv6, on a port of its own.
struct Ear {
    tcp: [TcpListener; 2],
    udp: [UdpSocket; 2],
    port: u16,
}

impl Ear {
    fn new() -> Self {
        let (v4, v6) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        for _ in 0..20 {
            let port = free_port().unwrap();
            let tcp = (TcpListener::bind((v4, port)), TcpListener::bind((v6, port)));
            let udp = (UdpSocket::bind((v4, port)), UdpSocket::bind((v6, port)));
            if let ((Ok(tcp4), Ok(tcp6)), (Ok(udp4), Ok(udp6))) = (tcp, udp) {
                return Self { tcp: [tcp4, tcp6], udp: [udp4, udp6], port };
            }
        }
        panic!("no port is free");
    }

    /// Connections and datagrams that arrived, IPv4 and IPv6.
    fn heard(&self) -> [(usize, usize); 2] {
        let connections = |listener: &TcpListener| {
            listener.set_nonblocking(true).unwrap();
            std::iter::from_fn(|| listener.accept().ok()).count()
        };
        [0, 1].map(|family| (connections(&self.tcp[family]), datagrams(&self.udp[family]).len()))
    }
}

/// All ways to write this host, and by all kinds of calls.
fn every_way_home(port: u16) -> Vec<String> {
    let addresses = ["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0", "::ffff:0.0.0.0", "::1", "::"];
    let kinds = ["tcp", "udp", "udp-sendto"];
    let attempts = kinds
        .into_iter()
        .flat_map(|kind| addresses.iter().map(move |address| format!("{kind},{address},{port}")));
    attempts.collect()
}

#[test]
fn no_way_to_write_this_host_is_another_destination() {
    require_root().unwrap();
    let (denied, allowed, only_v6) = (Ear::new(), Ear::new(), Ear::new());
    let daemon = Daemon::start(&configuration(&[
        format!("127.0.0.1:{}", allowed.port),
        format!("[::1]:{}", allowed.port),
        format!("[::1]:{}", only_v6.port),
    ]))
    .unwrap();
    let script = clients::write(daemon.home().folder(), "attempt.py", clients::ATTEMPT).unwrap();
    let attempt = |port| {
        let mut words: Vec<OsString> = vec!["/usr/bin/python3".into(), "-B".into(), script.clone().into()];
        words.extend(every_way_home(port).into_iter().map(OsString::from));
        let results = result(&daemon.run(AGENT, UNPRIVILEGED, &words).unwrap(), &daemon);
        thread::sleep(ON_ITS_WAY);
        results.as_array().unwrap().clone()
    };
    for result in attempt(denied.port) {
        assert_eq!(result["result"], "EPERM", "{result}");
    }
    assert_eq!(denied.heard(), [(0, 0); 2], "IPv4 and IPv6: connections, datagrams");
    for result in attempt(allowed.port) {
        assert_eq!(result["result"], "sent", "{result}");
    }
    // Four ways to write the IPv4 loopback address, two for IPv6; two kinds of calls for UDP.
    assert_eq!(allowed.heard(), [(4, 8), (2, 4)], "IPv4 and IPv6: connections, datagrams");
    for result in attempt(only_v6.port) {
        let is_v6 = ["::1", "::"].contains(&result["address"].as_str().unwrap());
        assert_eq!(result["result"], if is_v6 { "sent" } else { "EPERM" }, "{result}");
    }
    // To a socket that is bound to an IPv4-mapped address the kernel reads `::` as 127.0.0.1.
    let bound = attack(&daemon, &["bound-mapped", &only_v6.port.to_string()]);
    assert_ne!(bound["bound-mapped"], "ok", "{bound}");
    assert_eq!(only_v6.heard(), [(0, 0), (2, 4)], "{bound}");
    daemon.settle().unwrap();
    daemon.stop().unwrap();
}

/// Runs an attack in a cgroup as root, with all that root may do.
fn attack_in(cgroup: &OwnCgroup, daemon: &Daemon, arguments: &[&str]) -> Value {
    let mut attack = cgroup.command("/usr/bin/env");
    result(&child::output(attack.args(words(daemon, arguments)), LIMIT).unwrap(), daemon)
}

/// Records of refused socket types, by IP protocol number.
fn refused_types(records: &[Value]) -> Vec<u64> {
    let refused = of_kind(records, "connection-refused");
    let mut protocols = Vec::new();
    for record in refused {
        let connection = &record["unmapped"]["auditor"]["connection"];
        assert_eq!((&connection["reason"], &connection["call"]), (&json!("socket-type"), &json!("socket")));
        protocols.push(record["connection_info"]["protocol_num"].as_u64().unwrap());
    }
    protocols.sort_unstable();
    protocols
}

fn protocol_number(sort: &str) -> u64 {
    match sort {
        "raw" | "raw6" => 6,
        "ping" => 1,
        "ping6" => 58,
        "mptcp" | "mptcp6" => 262,
        "sctp" | "sctp-many" => 132,
        "udp-lite" => 136,
        "dccp" => 33,
        _ => panic!("{sort} is no sort of socket that is refused"),
    }
}

#[test]
fn only_tcp_and_udp_sockets_are_made() {
    require_root().unwrap();
    let daemon = Daemon::start(&configuration(&["127.0.0.1".to_owned()])).unwrap();
    // Which of them this kernel would give to whom, without us.
    let bare = words(&daemon, &["socket-types"]);
    let mut bare_command = std::process::Command::new(&bare[0]);
    bare_command.args(&bare[1..]);
    let to_root = result(&child::output(&mut bare_command, LIMIT).unwrap(), &daemon);
    let user = child::find_user(&[UNPRIVILEGED]).unwrap();
    let bare_command = child::as_user(&mut bare_command, &user);
    let to_user = result(&child::output(bare_command, LIMIT).unwrap(), &daemon);

    // A session of `auditor run`: no privileges, and system-call filters.
    let mut expected = Vec::new();
    for (sort, got) in attack(&daemon, &["socket-types"]).as_object().unwrap() {
        match (sort.as_str(), to_user[sort] == "ok") {
            ("tcp" | "udp", _) => assert_eq!(got, "ok", "{sort}"),
            (_, true) => {
                assert_eq!(got, "EPERM", "{sort}");
                expected.push(protocol_number(sort));
            }
            (_, false) => assert_ne!(got, "ok", "{sort}"),
        }
    }
    for (sort, got) in attack(&daemon, &["families"]).as_object().unwrap() {
        assert_ne!(got, "ok", "{sort}");
    }
    daemon.settle().unwrap();
    expected.sort_unstable();
    assert!(expected.contains(&262), "this kernel has no MPTCP: {to_user}");
    let records = daemon.records().unwrap();
    assert_eq!(refused_types(&records), expected);

    // Root in a cgroup that was tagged: the cgroup hooks alone.
    let cgroup = OwnCgroup::new().unwrap();
    cgroup.tag(&daemon, AGENT).unwrap();
    for (sort, got) in attack_in(&cgroup, &daemon, &["socket-types"]).as_object().unwrap() {
        match (sort.as_str(), to_root[sort] == "ok") {
            ("tcp" | "udp", _) => assert_eq!(got, "ok", "{sort}"),
            (_, true) => {
                assert_eq!(got, "EPERM", "{sort}");
                expected.push(protocol_number(sort));
            }
            (_, false) => assert_ne!(got, "ok", "{sort}"),
        }
    }
    daemon.settle().unwrap();
    expected.sort_unstable();
    assert!(expected.contains(&6), "root cannot make raw sockets: {to_root}");
    assert_eq!(refused_types(&daemon.records().unwrap()), expected);
    daemon.stop().unwrap();
}

/// Starts a listening agent and gives a client's account of it: what came back, or why nothing did.
fn talk_to_agent(daemon: &Daemon, port: u16, said: &[u8]) -> (Result<Vec<u8>, ErrorKind>, SocketAddr, Value) {
    let words = words(daemon, &["listen", &port.to_string(), "3"]);
    thread::scope(|scope| {
        let agent = scope.spawn(|| daemon.run(AGENT, UNPRIVILEGED, &words).unwrap());
        // Whether it listens already is asked of the kernel: a connection would be the test itself.
        let listening = format!("0100007F:{port:04X} 00000000:0000 0A");
        let start = Instant::now();
        while !fs::read_to_string("/proc/net/tcp").unwrap().contains(&listening) {
            assert!(start.elapsed() < LIMIT && !agent.is_finished(), "the agent does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        let mut from = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let heard = TcpStream::connect_timeout(&address, Duration::from_millis(1500))
            .and_then(|mut stream| {
                from = stream.local_addr()?;
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                stream.write_all(said)?;
                let mut heard = vec![0; said.len()];
                stream.read_exact(&mut heard)?;
                Ok(heard)
            })
            .map_err(|error| error.kind());
        (heard, from, result(&agent.join().unwrap(), daemon))
    })
}

#[test]
fn who_connects_to_an_agent_is_decided_too() {
    const SAID: &[u8] = b"hello, agent";
    require_root().unwrap();
    let port = free_port().unwrap();
    // Its own port is not its peer's.
    let daemon = Daemon::start(&configuration(&[format!("127.0.0.1:{port}")])).unwrap();
    let (heard, _, agent) = talk_to_agent(&daemon, port, SAID);
    assert_eq!((heard, &agent["heard"]), (Err(ErrorKind::TimedOut), &Value::Null));
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    assert_eq!(of_kind(&records, "connection-opened").len(), 0);
    let refused = of_kind(&records, "connection-refused");
    assert!(refused.iter().all(|record| record["unmapped"]["auditor"]["connection"]["call"] == "packet"));
    assert!(!refused.is_empty(), "the attempt is not recorded");
    daemon.stop().unwrap();

    let port = free_port().unwrap();
    let daemon = Daemon::start(&configuration(&["127.0.0.1".to_owned()])).unwrap();
    let (heard, client, agent) = talk_to_agent(&daemon, port, SAID);
    assert_eq!(heard.as_deref(), Ok(SAID));
    assert_eq!(agent["heard"].as_str().map(str::as_bytes), Some(SAID));
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    assert_eq!(of_kind(&records, "connection-refused").len(), 0);
    for kind in ["connection-opened", "connection-closed"] {
        let of_kind = of_kind(&records, kind);
        assert_eq!(of_kind.len(), 1, "one connection, and none for the listening socket: {of_kind:#?}");
        let record = of_kind[0];
        assert_eq!(record["connection_info"]["direction_id"], 1, "inbound: {record}");
        assert_eq!(record["src_endpoint"]["ip"], "127.0.0.1", "{record}");
        assert_eq!(record["src_endpoint"]["port"], client.port(), "{record}");
        assert_eq!(record["dst_endpoint"]["ip"], "127.0.0.1", "{record}");
        assert_eq!(record["dst_endpoint"]["port"], port, "{record}");
    }
    let closed = of_kind(&records, "connection-closed")[0];
    let coverage = &closed["unmapped"]["auditor"]["connection"]["coverage"];
    assert_eq!((&coverage["sent"], &coverage["received"]), (&json!(SAID.len()), &json!(SAID.len())));
    check_coverage(&records);
    daemon.stop().unwrap();
}

#[test]
fn namespaces_and_daemons_stay_in_their_session() {
    require_root().unwrap();
    let (denied, allowed) = (Ear::new(), Ear::new());
    let daemon = Daemon::start(&configuration(&[format!("127.0.0.1:{}", allowed.port)])).unwrap();
    let ports = [denied.port.to_string(), allowed.port.to_string()];
    let results = attack(&daemon, &["namespaces", &ports[0], &ports[1]]);
    assert_eq!(
        results,
        json!({"user": "EPERM", "user and network": "EPERM", "network": "EPERM", "denied": "EPERM", "allowed": "ok"})
    );

    let output = daemon.run(AGENT, UNPRIVILEGED, &words(&daemon, &["daemonise", &ports[0]])).unwrap();
    let results = result(&output, &daemon);
    let (first, grandchild) = (clients::pid_told(&output.stderr).unwrap(), &results["pid"]);
    assert_ne!(grandchild, first);
    assert_eq!(results["denied"], "EPERM");
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let session = |record: &Value| record["unmapped"]["auditor"]["session"]["id"].clone();
    let of_first = |record: &&&Value| record["actor"]["process"]["pid"] == first;
    let its_session = session(of_kind(&records, "process-started").iter().rfind(of_first).unwrap());
    let refused = of_kind(&records, "connection-refused");
    let of_grandchild: Vec<_> =
        refused.iter().filter(|record| record["actor"]["process"]["pid"] == *grandchild).collect();
    assert_eq!(of_grandchild.len(), 1, "{refused:#?}");
    assert_eq!(session(of_grandchild[0]), its_session);

    // Root may make namespaces. In the new one the allowed destination is another host, which nobody is; the denied one is denied.
    let cgroup = OwnCgroup::new().unwrap();
    cgroup.tag(&daemon, AGENT).unwrap();
    let results = attack_in(&cgroup, &daemon, &["namespaces", &ports[0], &ports[1]]);
    assert_eq!(results["network"], "ok", "{results}");
    assert_eq!(results["denied"], "EPERM", "{results}");
    assert_eq!(results["allowed"], "ENETUNREACH", "{results}");
    assert_eq!(denied.heard(), [(0, 0); 2]);
    assert_eq!(allowed.heard(), [(1, 0), (0, 0)]);
    daemon.settle().unwrap();
    daemon.stop().unwrap();
}
