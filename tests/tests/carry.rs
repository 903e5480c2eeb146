//! Everything that carries bytes: whatever system call, descriptor or network a statement takes, it is in the trail verbatim
//! and in order, and the record's byte counts are the kernel's.
//!
//! The judges are PostgreSQL's log, the workload's own count, and TCP_INFO as the workload read it before it closed.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use auditor_tests::cgroup::OwnCgroup;
use auditor_tests::child::{self, Child};
use auditor_tests::daemon::Daemon;
use auditor_tests::network::FarEnd;
use auditor_tests::postgres::{Options, Postgres, free_port};
use auditor_tests::workload::{self, Account};
use auditor_tests::{namespace, place, require_root};
use nix::sys::signal::Signal;
use serde_json::Value;

const AGENT: &str = "carrier";
const CARRIER: &str = env!("CARGO_BIN_EXE_carrier");
const LIMIT: Duration = Duration::from_secs(60);
/// System calls that put bytes on a connected stream socket.
const CALLS: [&str; 13] = [
    "write",
    "writev",
    "send",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "sendfile",
    "splice",
    "vmsplice",
    "zerocopy",
    "uring-send",
    "uring-send-zc",
    "uring-write",
];

fn configuration(hosts: &[IpAddr]) -> String {
    let hosts: Vec<String> = hosts.iter().map(IpAddr::to_string).collect();
    format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"hosts\"\n\n[[policy]]\nname = \"hosts\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = {hosts:?}\naction = \"allow\"\n"
    )
}

fn loopback() -> [IpAddr; 2] {
    ["127.0.0.1", "::1"].map(|host| host.parse().unwrap())
}

/// Runs the workload in a session of its own.
fn carry(daemon: &Daemon, arguments: &[&str]) -> Vec<Account> {
    let cgroup = OwnCgroup::tagged(daemon, AGENT).unwrap();
    let printed = child::succeed(cgroup.command(CARRIER).args(arguments), LIMIT).unwrap();
    daemon.settle().unwrap();
    workload::accounts(&printed).unwrap()
}

fn statements(daemon: &Daemon, to: SocketAddr, ways: &[&str]) -> Vec<Account> {
    let to = to.to_string();
    let accounts = carry(daemon, &[&["statements", to.as_str()], ways].concat());
    assert_eq!(accounts.len(), ways.len(), "{accounts:?}");
    accounts
}

fn no_failures(daemon: &Daemon) {
    let status = daemon.status().unwrap();
    assert_eq!(status["failures"].as_array().map(Vec::len), Some(0), "{}", status["failures"]);
}

fn finish(daemon: Daemon, postgres: &Postgres, accounts: &[Account], sessions: usize) {
    workload::check(postgres, &daemon.records().unwrap(), accounts, sessions).unwrap();
    no_failures(&daemon);
    let sent: u64 = accounts.iter().map(|account| account.kernel.0).sum();
    eprintln!("carry: {} connections, {sent} bytes sent, all audited", accounts.len());
    daemon.stop().unwrap();
}

#[test]
fn every_call_that_writes_over_ipv4_ipv6_and_mapped() {
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&configuration(&loopback())).unwrap();
    let mut accounts = Vec::new();
    for host in loopback() {
        accounts.extend(statements(&daemon, SocketAddr::new(host, postgres.port()), &CALLS));
    }
    accounts.extend(statements(&daemon, SocketAddr::new(loopback()[0], postgres.port()), &["mapped"]));
    finish(daemon, &postgres, &accounts, 3);
}

#[test]
fn statements_divided_at_every_place_and_hundreds_in_a_segment() {
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&configuration(&loopback())).unwrap();
    let mut accounts = Vec::new();
    for host in loopback() {
        accounts.extend(statements(&daemon, SocketAddr::new(host, postgres.port()), &["split", "many"]));
    }
    finish(daemon, &postgres, &accounts, 2);
}

#[test]
fn a_socket_with_several_owners() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let folder = place::scratch().unwrap();
    let path = folder.path().join("outsider");
    let reach = format!("[[policy.rule]]\nto = [\"unix:{}\"]\naction = \"allow\"\n", path.display());
    let daemon = Daemon::start(&(configuration(&loopback()) + &reach)).unwrap();
    let mut outsider = Command::new(CARRIER);
    outsider.arg("outsider").arg(&path).stdout(Stdio::piped());
    let mut outsider = Child::start(&mut outsider, Signal::SIGKILL).unwrap();
    listening(&mut outsider);
    let outside = format!("pass-outside:{}", path.display());
    let ways = ["dup", "fork", "exec", "crowd", "pass", &outside];
    let accounts = statements(&daemon, SocketAddr::new(loopback()[0], postgres.port()), &ways);
    assert!(outsider.wait(LIMIT).unwrap().success());
    finish(daemon, &postgres, &accounts, 1);
}

/// Waits for a workload to say that it listens.
fn listening(workload: &mut Child) -> impl BufRead + use<> {
    let mut out = BufReader::new(workload.take_stdout().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "listening\n");
    out
}

#[test]
fn an_agent_that_listens() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&configuration(&loopback())).unwrap();
    let cgroup = OwnCgroup::tagged(&daemon, AGENT).unwrap();
    let port = free_port().unwrap();
    let server = SocketAddr::new(loopback()[0], postgres.port()).to_string();
    let mut relay = cgroup.command(CARRIER);
    relay.args(["relay", &port.to_string(), &server]).stdout(Stdio::piped());
    let mut relay = Child::start(&mut relay, Signal::SIGKILL).unwrap();
    let relay_out = listening(&mut relay);
    // The clients are no agents.
    let mut outside = Vec::new();
    for (host, way) in loopback().into_iter().zip(["split", "sendmsg"]) {
        let to = SocketAddr::new(host, port).to_string();
        let printed = child::succeed(Command::new(CARRIER).args(["statements", &to, way]), LIMIT).unwrap();
        outside.extend(workload::accounts(&printed).unwrap());
    }
    let printed: Vec<String> = relay_out.lines().map(Result::unwrap).collect();
    assert!(relay.wait(LIMIT).unwrap().success());
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let accounts = workload::accounts(&printed.join("\n")).unwrap();
    assert_eq!(accounts.len(), 4, "{printed:?}");
    for account in &accounts {
        workload::check_coverage(&records, account).unwrap();
    }
    for (client, accounts) in outside.iter().zip(accounts.chunks(2)) {
        let [accepted, relayed] = accounts else { panic!("{accounts:?}") };
        assert_eq!(accepted.client, client.client);
        assert_eq!(
            (accepted.kernel.1, accepted.kernel.0),
            client.kernel,
            "the client's kernel counts otherwise"
        );
        // What the agent was told, what it told the server, and what the server was told are the same.
        let told = texts(&records, accepted.client);
        assert_eq!(told.len(), client.statements);
        assert!(told == texts(&records, relayed.client), "relayed statements differ");
        let log = auditor_tests::oracle::told(&postgres.log().unwrap());
        assert!(
            log[&relayed.client].iter().map(|told| &told.text).eq(&told),
            "the server was told otherwise"
        );
    }
    no_failures(&daemon);
    daemon.stop().unwrap();
}

/// Texts of the statements of a connection, by its client.
fn texts(records: &[Value], client: SocketAddr) -> Vec<String> {
    let recorded = auditor_tests::oracle::recorded(records).unwrap();
    recorded.get(&client).map(|told| told.iter().map(|told| told.text.clone()).collect()).unwrap_or_default()
}

/// Answers each datagram with half of it, and counts.
struct Echo {
    address: SocketAddr,
    received: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Echo {
    fn start(host: IpAddr) -> Self {
        let socket = UdpSocket::bind((host, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let address = socket.local_addr().unwrap();
        let (received, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let done = Arc::new(AtomicBool::new(false));
        let counts = (Arc::clone(&received), Arc::clone(&answered), Arc::clone(&done));
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while !counts.2.load(Ordering::Relaxed) {
                let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
                counts.0.fetch_add(length as u64, Ordering::Relaxed);
                let sent = socket.send_to(&buffer[..length / 2], peer).unwrap();
                counts.1.fetch_add(sent as u64, Ordering::Relaxed);
            }
        });
        Self { address, received, answered, done, thread: Some(thread) }
    }

    fn counts(&self) -> (u64, u64) {
        (self.received.load(Ordering::Relaxed), self.answered.load(Ordering::Relaxed))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and the counts tell.
            let _ = thread.join();
        }
    }
}

/// UDP between an agent here and receivers at `ends`; compares the receivers' counts with the records'.
fn datagrams(daemon: Daemon, ends: &[Echo; 2]) {
    let cgroup = OwnCgroup::tagged(&daemon, AGENT).unwrap();
    let [first, second] = ends.each_ref().map(|end| end.address.to_string());
    let printed =
        child::succeed(cgroup.command(CARRIER).args(["datagrams", &first, &second]), LIMIT).unwrap();
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let mut recorded: Vec<(u64, u64)> = workload::of_kind(&records, "connection-closed")
        .iter()
        .map(|record| {
            let coverage = &record["unmapped"]["auditor"]["connection"]["coverage"];
            (coverage["sent"].as_u64().unwrap(), coverage["received"].as_u64().unwrap())
        })
        .collect();
    let mut own: Vec<(u64, u64)> = printed
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            (words[3].parse().unwrap(), words[4].parse().unwrap())
        })
        .collect();
    assert_eq!(own.len(), 3, "{printed}");
    own.sort_unstable();
    recorded.sort_unstable();
    assert_eq!(recorded, own, "the records and the workload");
    let total = |counts: &[(u64, u64)]| counts.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let arrived = total(&ends.each_ref().map(Echo::counts));
    assert_eq!(total(&recorded), arrived, "the records and the far end");
    no_failures(&daemon);
    daemon.stop().unwrap();
}

#[test]
fn datagrams_with_and_without_connect() {
    let daemon = Daemon::start(&configuration(&loopback())).unwrap();
    datagrams(daemon, &loopback().map(Echo::start));
}

/// A far end behind a link with the smallest MTU that IPv4 hosts must take; IPv6 has its own minimum.
fn narrow(mtu: &str) -> FarEnd {
    let far = FarEnd::new().unwrap();
    for command in [
        &mut Command::new("ip").args(["link", "set", far.interface(), "mtu", mtu]),
        &mut far.command("ip").args(["link", "set", "eth0", "mtu", mtu]),
    ] {
        child::succeed(command, LIMIT).unwrap();
    }
    far
}

/// PostgreSQL in another network namespace, which takes connections to `hosts`.
fn postgres_at(far: &FarEnd, folder: &std::path::Path) -> Postgres {
    let access = folder.join("pg_hba.conf");
    std::fs::write(&access, "local all all trust\nhost all all all trust\n").unwrap();
    let settings = [("listen_addresses", "*"), ("hba_file", access.to_str().unwrap())]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let options = Options { settings: settings.to_vec(), ..Options::default() };
    namespace::within(far.namespace(), || Postgres::start(&options)).unwrap().unwrap()
}

#[test]
fn a_narrow_link_small_segments_and_fragments() {
    let folder = place::scratch().unwrap();
    let far = narrow("576");
    let postgres = postgres_at(&far, folder.path());
    let daemon = Daemon::start(&configuration(&[far.v4])).unwrap();
    let ways = ["write", "sendfile", "zerocopy", "uring-send", "many"];
    let accounts = statements(&daemon, SocketAddr::new(far.v4, postgres.port()), &ways);
    finish(daemon, &postgres, &accounts, 1);
    let ends = namespace::within(far.namespace(), || [Echo::start(far.v4), Echo::start(far.v4)]).unwrap();
    datagrams(Daemon::start(&configuration(&[far.v4])).unwrap(), &ends);
    let counters = child::succeed(far.command("cat").arg("/proc/net/snmp"), LIMIT).unwrap();
    let fragments = counters.lines().filter(|line| line.starts_with("Ip:")).nth(1).unwrap();
    // Ip: … ReasmOKs is the 14th value.
    let reassembled: u64 = fragments.split(' ').nth(15).unwrap().parse().unwrap();
    assert!(reassembled > 0, "nothing was fragmented: {counters}");
}

#[test]
fn fast_open_and_large_packets_to_a_far_end() {
    let folder = place::scratch().unwrap();
    let far = FarEnd::new().unwrap();
    // Both ends, and for listeners that do not ask for it (TFO_SERVER_WO_SOCKOPT1): PostgreSQL does not.
    let enable = "echo 1027 > /proc/sys/net/ipv4/tcp_fastopen";
    child::succeed(far.command("/bin/sh").args(["-c", enable]), LIMIT).unwrap();
    let postgres = postgres_at(&far, folder.path());
    let daemon = Daemon::start(&configuration(&[far.v4, far.v6])).unwrap();
    let mut accounts = Vec::new();
    for host in [far.v4, far.v6] {
        let to = SocketAddr::new(host, postgres.port());
        accounts.extend(statements(
            &daemon,
            to,
            &["fast-open", "fast-open", "write", "sendfile", "zerocopy"],
        ));
    }
    finish(daemon, &postgres, &accounts, 2);
    let counters = child::succeed(far.command("cat").arg("/proc/net/netstat"), LIMIT).unwrap();
    let fast = extended(&counters, "TCPFastOpenPassive");
    assert!(fast >= 2, "data on a SYN was taken {fast} times");
}

/// A counter of /proc/net/netstat's `TcpExt`: a line of names, then one of values.
fn extended(counters: &str, name: &str) -> u64 {
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let place = names.split(' ').position(|found| found == name).unwrap();
    values.split(' ').nth(place).unwrap().parse().unwrap()
}
