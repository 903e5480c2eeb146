//! Peers that mean harm: broken and endless messages, connections without end. The daemon's memory stays bounded, findings are
//! made where they are due, and what another session says at the same time is in the record as ever.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use auditor_tests::cgroup::OwnCgroup;
use auditor_tests::child::{self, Child};
use auditor_tests::daemon::Daemon;
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::shaper::Tunnel;
use auditor_tests::workload;
use auditor_tests::{clients, namespace, oracle, require_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const AGENT: &str = "hostile";
const BYSTANDER: &str = "bystander";
const CARRIER: &str = env!("CARGO_BIN_EXE_carrier");
const LIMIT: Duration = Duration::from_secs(60);
/// Statements of a session that nobody means harm.
const PACE: &str = "paced:300:2000:10";

fn configuration(hosts: &[IpAddr]) -> String {
    let hosts: Vec<String> = hosts.iter().map(IpAddr::to_string).collect();
    format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"hosts\"\n\n[[agent]]\nname = \"{BYSTANDER}\"\npolicy = \"hosts\"\n\n\
         [[policy]]\nname = \"hosts\"\ndefault = \"deny\"\n[[policy.rule]]\nto = {hosts:?}\naction = \"allow\"\n\
         protocol = \"postgres\"\n"
    )
}

/// Somebody else's session, which works meanwhile.
struct Bystander {
    carrier: Child,
    postgres: Postgres,
    _cgroup: OwnCgroup,
}

impl Bystander {
    fn start(daemon: &Daemon) -> Self {
        let postgres = Postgres::start(&Options::default()).unwrap();
        let cgroup = OwnCgroup::tagged(daemon, BYSTANDER).unwrap();
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), postgres.port()).to_string();
        let mut carrier = cgroup.command(CARRIER);
        carrier.args(["statements", &to, PACE]).stdout(Stdio::piped());
        Self { carrier: Child::start(&mut carrier, Signal::SIGKILL).unwrap(), postgres, _cgroup: cgroup }
    }

    /// Waits for its end, and checks that all it said is in the record.
    fn check(mut self, daemon: &Daemon) -> Vec<Value> {
        let printed = std::io::read_to_string(self.carrier.take_stdout().unwrap()).unwrap();
        assert!(self.carrier.wait(LIMIT).unwrap().success());
        daemon.settle().unwrap();
        let accounts = workload::accounts(&printed).unwrap();
        let records = daemon.records().unwrap();
        let own = |record: &&Value| record["unmapped"]["auditor"]["agent"]["name"] == BYSTANDER;
        let of_bystander: Vec<Value> = records.iter().filter(own).cloned().collect();
        workload::check(&self.postgres, &of_bystander, &accounts, 1).unwrap();
        records
    }
}

/// What the daemon has resident, and the most that it will have had from here on: loading programs takes more than working.
struct Memory {
    id: u32,
    before: u64,
}

impl Memory {
    fn from_here(daemon: &Daemon) -> Self {
        let id = daemon.id();
        // proc(5): 5 resets the peak resident set size to the current one.
        fs::write(format!("/proc/{id}/clear_refs"), "5").unwrap();
        Self { id, before: resident(id, "VmRSS:") }
    }

    /// KiB that came on top of what was there, at the worst moment.
    fn grown(&self) -> u64 {
        resident(self.id, "VmHWM:") - self.before
    }
}

fn resident(id: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn findings<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    let of_that_kind = |record: &&Value| record["unmapped"]["auditor"]["finding"]["kind"] == kind;
    workload::of_kind(records, "finding").into_iter().filter(of_that_kind).collect()
}

/// Runs the workload in a session of the hostile agent's.
fn run(daemon: &Daemon, script: &str) -> String {
    let cgroup = OwnCgroup::tagged(daemon, AGENT).unwrap();
    child::succeed(cgroup.command("/bin/sh").args(["-c", script]), LIMIT).unwrap()
}

/// A server that says to the n-th client what the n-th of `answers` is, and then reads to the end.
fn serve(answers: Vec<Answer>) -> (SocketAddr, thread::JoinHandle<Vec<SocketAddr>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let accept = |answer: Answer| {
            let (mut stream, client) = listener.accept().unwrap();
            // The client may leave in the middle of it.
            let _ = answer.give(&mut stream);
            client
        };
        answers.into_iter().map(accept).collect()
    });
    (address, server)
}

/// What a server says.
enum Answer {
    /// Nothing; it reads to the end.
    Silence,
    /// It lets the client in and reads to the end.
    Welcome,
    /// It lets the client in, says this so many times, and hangs up.
    Says(Vec<u8>, usize),
}

impl Answer {
    fn give(self, stream: &mut TcpStream) -> std::io::Result<()> {
        const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
        let mut buffer = vec![0; 1 << 16];
        match self {
            Self::Silence => {}
            Self::Welcome => {
                // A server that speaks first is not PostgreSQL.
                stream.read_exact(&mut [0; 1])?;
                stream.write_all(WELCOME)?;
            }
            Self::Says(words, times) => {
                stream.read_exact(&mut [0; 1])?;
                stream.write_all(WELCOME)?;
                (0..times).try_for_each(|_| stream.write_all(&words))?;
                stream.shutdown(std::net::Shutdown::Write)?;
            }
        }
        while stream.read(&mut buffer)? > 0 {}
        Ok(())
    }
}

/// How a connection's reading ended, by its client: as the trail has it.
fn verdict(records: &[Value], client: SocketAddr) -> (String, Vec<String>) {
    let end = workload::closed(records, client).unwrap();
    let connection = &end["unmapped"]["auditor"]["connection"];
    let coverage = &connection["coverage"];
    let count = |name: &str| coverage[name].as_u64().unwrap();
    assert_eq!(count("audited_sent") + count("opaque_sent"), count("sent"), "{coverage}");
    let received = count("audited_received") + count("opaque_received") + count("skipped_received");
    assert_eq!(received, count("received"), "{coverage}");
    let of_connection =
        |record: &&&Value| record["unmapped"]["auditor"]["connection"]["id"] == connection["id"];
    let found = workload::of_kind(records, "finding");
    let kind = |record: &&Value| {
        record["unmapped"]["auditor"]["finding"]["kind"].as_str().unwrap_or_default().to_owned()
    };
    let kinds = found.iter().filter(of_connection).map(kind).collect();
    (connection["opaque"].as_str().unwrap_or_default().to_owned(), kinds)
}

#[test]
fn broken_and_endless_messages() {
    require_root().unwrap();
    let daemon = Daemon::start(&configuration(&[Ipv4Addr::LOCALHOST.into()])).unwrap();
    let bystander = Bystander::start(&daemon);
    let memory = Memory::from_here(&daemon);
    // What the client does, and what is to be said of it.
    let clients = [
        ("startup-length", Answer::Silence, "unrecognised", "protocol-mismatch"),
        ("startup-endless", Answer::Silence, "unrecognised", "protocol-mismatch"),
        ("no-end", Answer::Silence, "", ""),
        ("length-too-small", Answer::Welcome, "violation", "protocol-violation"),
        ("length-too-large", Answer::Welcome, "violation", "protocol-violation"),
        ("unknown-type", Answer::Welcome, "violation", "protocol-violation"),
        ("endless", Answer::Welcome, "", ""),
        ("endless-bind", Answer::Welcome, "", ""),
    ];
    // What the server does.
    let says = |words: &[u8], times: usize| Answer::Says(words.to_vec(), times);
    let endless = [b"D\x3f\xff\xff\xff".as_slice(), &[b'd'; 65_531]].concat();
    let servers = [
        (says(b"C\0\0\0\x03", 1), "violation", "protocol-violation"),
        (says(b"C\xff\xff\xff\xff", 1), "violation", "protocol-violation"),
        (says(b"\x02\0\0\0\x04", 1), "violation", "protocol-violation"),
        (says(&endless, 1000), "", ""),
        (says(b"N\0\0\0\x05\0", 200_000), "", ""),
        (says(b"Z\0\0\0\x05I", 1000), "violation", "protocol-violation"),
    ];
    let mut script = Vec::new();
    let mut expected = Vec::new();
    let mut answers = Vec::new();
    for (way, answer, opaque, finding) in clients {
        script.push(format!("spew ADDRESS {way}"));
        answers.push(answer);
        expected.push((opaque, finding));
    }
    for (answer, opaque, finding) in servers {
        script.push("swallow ADDRESS".to_owned());
        answers.push(answer);
        expected.push((opaque, finding));
    }
    let (address, server) = serve(answers);
    let script: Vec<String> = script
        .iter()
        .map(|words| format!("{CARRIER} {} 2>&1 || true", words.replace("ADDRESS", &address.to_string())))
        .collect();
    run(&daemon, &script.join("; "));
    let peers = server.join().unwrap();
    let records = bystander.check(&daemon);
    for (client, (opaque, finding)) in peers.iter().zip(expected) {
        let number = peers.iter().position(|peer| peer == client).unwrap();
        let (as_opaque, kinds) = verdict(&records, *client);
        assert_eq!(as_opaque, opaque, "connection {number}: {}", script[number]);
        let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
        assert_eq!(
            kinds,
            [finding][usize::from(finding.is_empty())..],
            "connection {number}: {}",
            script[number]
        );
    }
    let grown = memory.grown();
    eprintln!("hostile: broken and endless messages cost {grown} KiB");
    assert!(grown < 32 << 10, "the daemon has grown by {grown} KiB");
    daemon.stop().unwrap();
}

/// A SYN from an address and port of nobody (RFC 9293), with its checksums.
fn syn(from: Ipv4Addr, from_port: u16, to: Ipv4Addr, to_port: u16) -> [u8; 40] {
    let mut packet = [0; 40];
    packet[0] = 0x45;
    packet[3] = 40;
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet[20..22].copy_from_slice(&from_port.to_be_bytes());
    packet[22..24].copy_from_slice(&to_port.to_be_bytes());
    packet[32] = 0x50;
    packet[33] = 0x02;
    packet[34..36].copy_from_slice(&[0xff, 0xff]);
    // The pseudo header: addresses, protocol, length of the segment.
    let pseudo = [&packet[12..20], &[0, 6, 0, 20], &packet[20..]].concat();
    let checksum = internet_checksum(&pseudo);
    packet[36..38].copy_from_slice(&checksum);
    let checksum = internet_checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&checksum);
    packet
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

/// Writes packets; a device that is full is given a moment to empty.
fn inject(device: &mut File, packet: &[u8]) {
    while device.write(packet).is_err() {
        drain(device);
        thread::yield_now();
    }
}

/// Takes off what the other side has answered; returns how many packets that were.
fn drain(device: &mut File) -> usize {
    let mut buffer = [0; 2048];
    std::iter::from_fn(|| device.read(&mut buffer).ok()).count()
}

#[test]
fn half_open_connections_without_end() {
    /// SYNs from outside.
    const SYNS: u32 = 100_000;
    /// Connections that the agent begins itself: more than are followed of one session (16,384).
    const BEGUN: usize = 17_000;
    require_root().unwrap();
    let (tunnel, mut device) = Tunnel::new(0).unwrap();
    let IpAddr::V4(near) = tunnel.addresses()[0] else { panic!("IPv4 comes first") };
    let far = tunnel.other_addresses()[0];
    let hosts = [Ipv4Addr::LOCALHOST.into(), IpAddr::V4(near), far];
    // Half of the strangers are allowed, the others are not.
    let configuration =
        configuration(&hosts) + "[[policy.rule]]\nto = [\"10.0.0.0/9\"]\naction = \"allow\"\n";
    let daemon = Daemon::start(&configuration).unwrap();
    let bystander = Bystander::start(&daemon);
    let memory = Memory::from_here(&daemon);

    let cgroup = OwnCgroup::tagged(&daemon, AGENT).unwrap();
    let mut listener = cgroup.command(CARRIER);
    listener.args(["listen", &format!("{near}:7000")]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut listener =
        namespace::within(tunnel.name(), || Child::start(&mut listener, Signal::SIGKILL)).unwrap().unwrap();
    listener.take_stdout().unwrap().read_exact(&mut [0; 10]).unwrap();
    let start = Instant::now();
    let mut answered = 0;
    for number in 0..SYNS {
        let stranger = Ipv4Addr::from(0x0a00_0000 | (number.wrapping_mul(2_654_435_761) & 0x00ff_ffff));
        let port = 1024 + (number % 60_000) as u16;
        inject(&mut device, &syn(stranger, port, near, 7000));
        answered += drain(&mut device);
    }
    eprintln!("hostile: {SYNS} SYNs in {} ms, {answered} answered", start.elapsed().as_millis());
    // Also to strangers that are not allowed: the kernel answers a flood with SYN cookies, which belong to no socket
    // (tcp_make_synack, TCP_SYNACK_COOKIE), so no hook sees them. They hold nothing of the agent's.
    assert!(answered > 100, "the SYNs did not arrive");
    drop(listener);
    daemon.settle().unwrap();
    let refused = workload::of_kind(&daemon.records().unwrap(), "connection-refused").len();
    assert!((1..5000).contains(&refused), "{refused} answers refused: none, or a flood in the record");
    let after_syns = memory.grown();

    let cgroup = OwnCgroup::tagged(&daemon, AGENT).unwrap();
    let mut flood = cgroup.command(CARRIER);
    flood.args(["half-open", &format!("{far}:5432"), &BEGUN.to_string()]);
    let printed = namespace::within(tunnel.name(), || child::succeed(&mut flood, LIMIT)).unwrap().unwrap();
    assert_eq!(printed, format!("opened {BEGUN}\n"));
    let records = bystander.check(&daemon);
    let grown = memory.grown();
    let not_followed = findings(&records, "connection-not-followed").len();
    let mut attempts: BTreeSet<&str> = BTreeSet::new();
    let mut followed = 0;
    for record in records.iter() {
        let connection = &record["unmapped"]["auditor"]["connection"];
        let is_followed = connection["end"] == "not-established";
        followed += usize::from(is_followed);
        if is_followed || record["unmapped"]["auditor"]["finding"]["kind"] == "connection-not-followed" {
            attempts.insert(connection["id"].as_str().unwrap());
        }
    }
    eprintln!(
        "hostile: {BEGUN} begun, {followed} followed, {not_followed} not at first; {after_syns} KiB after the SYNs, {grown} KiB in all"
    );
    assert_eq!(attempts.len(), BEGUN, "each attempt is in the record");
    assert!(not_followed > 0);
    assert!(grown < 96 << 10, "the daemon has grown by {grown} KiB");
    daemon.stop().unwrap();
}

/// A server of this many connections, one after the other, which answers each twice with more than is kept of any.
fn answer_twice(listener: &TcpListener, count: usize) {
    let row = [&b"D\0\0\0\xc8\0\x01\0\0\0\xbe"[..], &[b'r'; 190]].concat();
    let answer = [row.repeat(300), b"C\0\0\0\x0fSELECT 300\0Z\0\0\0\x05I".to_vec()].concat();
    let mut buffer = [0; 1024];
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut buffer).unwrap() > 0);
        stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").unwrap();
        assert!(stream.read(&mut buffer).unwrap() > 0);
        stream.write_all(&answer).unwrap();
        streams.push(stream);
    }
    for stream in &mut streams {
        assert!(stream.read(&mut buffer).unwrap() > 0);
        stream.write_all(&answer).unwrap();
    }
    streams.iter_mut().for_each(|stream| assert_eq!(stream.read(&mut buffer).unwrap(), 0));
}

/// `AUDITOR_TEST_LONG=1` makes 10,000 of a thousand.
#[test]
fn open_connections_by_the_thousand_take_little_memory() {
    require_root().unwrap();
    let (count, most) = match std::env::var_os("AUDITOR_TEST_LONG") {
        None => (1000, 128 << 10),
        Some(_) => (10_000, 200 << 10),
    };
    let descriptors = count as u64 + 256;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, descriptors, descriptors)
        .unwrap();
    let daemon = Daemon::start(&configuration(&[Ipv4Addr::LOCALHOST.into()])).unwrap();
    let memory = Memory::from_here(&daemon);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || answer_twice(&listener, count));
    let cgroup = OwnCgroup::tagged(&daemon, AGENT).unwrap();
    let mut client = cgroup.command(CARRIER);
    client.args(["hold", &address.to_string(), &count.to_string()]);
    client.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = Child::start(&mut client, Signal::SIGKILL).unwrap();
    let mut opened = vec![0; format!("opened {count}\n").len()];
    client.take_stdout().unwrap().read_exact(&mut opened).unwrap();
    assert_eq!(opened, format!("opened {count}\n").into_bytes());
    let until = Instant::now() + LIMIT;
    while daemon.status().unwrap()["statements"] != 2 * count {
        assert!(Instant::now() < until, "{}", daemon.status().unwrap());
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(daemon.status().unwrap()["connections"], count);
    let (now, at_most) = (resident(memory.id, "VmRSS:"), resident(memory.id, "VmHWM:"));
    eprintln!(
        "hostile: {count} open connections: {now} KiB resident, {at_most} KiB at most, {} KiB before",
        memory.before
    );
    drop(client.take_stdin());
    assert!(client.wait(LIMIT).unwrap().success());
    server.join().unwrap();
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    // More was delivered than is kept: a finding, and no more than that.
    assert_eq!(findings(&records, "memory-limit").len(), 1);
    assert_eq!(findings(&records, "connection-not-followed").len(), 0);
    let statements = workload::of_kind(&records, "statement");
    assert_eq!(statements.len(), 2 * count);
    for statement in statements {
        let own = &statement["unmapped"]["auditor"]["statement"];
        assert_eq!((&own["incomplete"], &own["rows"]), (&Value::Null, &Value::from(300)), "{own}");
    }
    for end in workload::of_kind(&records, "connection-closed") {
        let coverage = &end["unmapped"]["auditor"]["connection"]["coverage"];
        assert_eq!(coverage["received"], coverage["audited_received"], "{coverage}");
    }
    let (now, at_most) = (resident(memory.id, "VmRSS:"), resident(memory.id, "VmHWM:"));
    eprintln!("hostile: {now} KiB after they were closed, {at_most} KiB at most");
    assert!(at_most < most, "the daemon had {at_most} KiB resident");
    daemon.stop().unwrap();
}

/// A server of so many connections that are all open at the same time. Answers with how many bytes each client sent.
fn serve_all(count: usize) -> (SocketAddr, thread::JoinHandle<Vec<(SocketAddr, usize)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let streams: Vec<(TcpStream, SocketAddr)> = (0..count).map(|_| listener.accept().unwrap()).collect();
        let read = |(mut stream, peer): (TcpStream, SocketAddr)| {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            (peer, bytes.len())
        };
        streams.into_iter().map(read).collect()
    });
    (address, server)
}

/// Connections while the daemon does not get to read, and tasks of the same session fill its share of the ring: they wait until there
/// is room again. None is refused, none is unknown, and each has the process that asked for it.
#[test]
fn connections_that_find_no_room_wait_until_there_is_some() {
    const COUNT: usize = 500;
    const FLOOD_SECONDS: &str = "5";
    /// The daemon's lease, without which all are refused, is two seconds long.
    const STILL: Duration = Duration::from_millis(1300);
    const AT_WORK: Duration = Duration::from_millis(700);
    require_root().unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 8192, 8192).unwrap();
    let daemon = Daemon::start(&configuration(&[Ipv4Addr::LOCALHOST.into()])).unwrap();
    let cgroup = OwnCgroup::tagged(&daemon, AGENT).unwrap();
    let script = clients::write(daemon.home().folder(), "flood.py", clients::FLOOD).unwrap();
    let mut flood = cgroup.command("/usr/bin/python3");
    flood.arg("-B").arg(script).args(["forks", FLOOD_SECONDS]);
    flood.stdout(Stdio::null()).stderr(Stdio::null());
    let mut flood = Child::start(&mut flood, Signal::SIGKILL).unwrap();
    thread::sleep(AT_WORK);
    let (address, server) = serve_all(COUNT);
    let mut burst = cgroup.command(CARRIER);
    burst.args(["one-byte", &address.to_string(), &COUNT.to_string()]);
    let id = Pid::from_raw(i32::try_from(daemon.id()).unwrap());
    let printed = thread::scope(|scope| {
        // The first ones come when the ring is full already.
        let burst = scope.spawn(|| {
            thread::sleep(STILL - AT_WORK);
            child::succeed(&mut burst, LIMIT)
        });
        while !burst.is_finished() {
            kill(id, Signal::SIGSTOP).unwrap();
            thread::sleep(STILL);
            kill(id, Signal::SIGCONT).unwrap();
            thread::sleep(AT_WORK);
        }
        burst.join().unwrap()
    });
    assert_eq!(printed.unwrap(), format!("opened {COUNT}\n"));
    assert!(flood.wait(LIMIT).unwrap().success());
    let mut clients: Vec<SocketAddr> = server.join().unwrap().into_iter().map(|(client, _)| client).collect();
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let overruns: Vec<&str> = findings(&records, "ring-overrun")
        .into_iter()
        .filter_map(|finding| finding["message"].as_str())
        .collect();
    assert!(overruns.iter().any(|message| message.contains("held back")), "none was held: {overruns:?}");
    assert!(!overruns.iter().any(|message| message.contains("refused")), "{overruns:?}");
    let opened = workload::of_kind(&records, "connection-opened");
    let mut recorded: Vec<SocketAddr> = opened.iter().map(|record| oracle::client(record).unwrap()).collect();
    clients.sort_unstable();
    recorded.sort_unstable();
    assert!(clients == recorded, "{} clients, {} recorded", clients.len(), recorded.len());
    let processes: BTreeSet<u64> =
        opened.iter().map(|record| record["actor"]["process"]["pid"].as_u64().unwrap_or(0)).collect();
    assert!(processes.len() == 1 && !processes.contains(&0), "{processes:?}");
    daemon.stop().unwrap();
}

#[test]
fn thousands_of_connections_that_send_one_byte() {
    // As many as can end at once: their ends find room on the ring together.
    const COUNT: usize = 3000;
    require_root().unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 8192, 8192).unwrap();
    let daemon = Daemon::start(&configuration(&[Ipv4Addr::LOCALHOST.into()])).unwrap();
    let bystander = Bystander::start(&daemon);
    let memory = Memory::from_here(&daemon);
    let (address, server) = serve_all(COUNT);
    run(&daemon, &format!("{CARRIER} one-byte {address} {COUNT}"));
    let peers = server.join().unwrap();
    let records = bystander.check(&daemon);
    assert!(peers.iter().all(|(_, length)| *length == 1));
    let mut clients: Vec<SocketAddr> = peers.into_iter().map(|(peer, _)| peer).collect();
    let mut recorded = Vec::new();
    for record in workload::of_kind(&records, "connection-closed") {
        let own = &record["unmapped"]["auditor"];
        if own["agent"]["name"] == AGENT {
            let coverage = &own["connection"]["coverage"];
            assert_eq!(
                (coverage["sent"].as_u64(), coverage["received"].as_u64()),
                (Some(1), Some(0)),
                "{coverage}"
            );
            recorded.push(oracle::client(record).unwrap());
        }
    }
    clients.sort_unstable();
    recorded.sort_unstable();
    assert!(clients == recorded, "{} clients, {} recorded", clients.len(), recorded.len());
    let grown = memory.grown();
    eprintln!("hostile: {COUNT} connections of one byte cost {grown} KiB");
    assert!(grown < 32 << 10, "the daemon has grown by {grown} KiB");
    daemon.stop().unwrap();
}
