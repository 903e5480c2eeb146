//! What a command in a session cannot do beside the network, and what holds without the filter too.
//!
//! Each way is first gone outside of any session, by the same user: only where it leads somewhere is its end in a session worth
//! anything. The far end is the test: a process whose memory it looks at, sockets that must hear nothing.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::FileExt;
use std::process::{Command, Output};
use std::time::Duration;

use auditor_tests::cgroup::OwnCgroup;
use auditor_tests::child::{self, Child};
use auditor_tests::daemon::Daemon;
use auditor_tests::{UNPRIVILEGED, clients, require_root};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const AGENT: &str = "confined";
const LIMIT: Duration = Duration::from_secs(60);

/// A policy with these lines of its own that denies what `allowed` does not name.
fn configuration(own: &str, allowed: &[String]) -> String {
    let rule = match allowed {
        [] => String::new(),
        allowed => format!("[[policy.rule]]\nto = {allowed:?}\naction = \"allow\"\n"),
    };
    format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"narrow\"\n\n[[policy]]\nname = \"narrow\"\ndefault = \"deny\"\n{own}\n{rule}"
    )
}

fn words(daemon: &Daemon, arguments: &[&str]) -> Vec<OsString> {
    let script = clients::write(daemon.home().folder(), "confined.py", clients::CONFINED).unwrap();
    let mut words: Vec<OsString> = vec!["/usr/bin/python3".into(), "-B".into(), script.into()];
    words.extend(arguments.iter().map(OsString::from));
    words
}

fn result(output: &Output, daemon: &Daemon) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stderr}\ndaemon: {}", output.status, daemon.said());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// In a session of `auditor run`.
fn inside(daemon: &Daemon, user: &str, arguments: &[&str]) -> Value {
    result(&daemon.run(AGENT, user, &words(daemon, arguments)).unwrap(), daemon)
}

/// By nobody's agent.
fn outside(daemon: &Daemon, user: &str, arguments: &[&str]) -> Value {
    let words = words(daemon, arguments);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    let user = child::find_user(&[user]).unwrap();
    result(&child::output(child::as_user(&mut command, &user), LIMIT).unwrap(), daemon)
}

/// By root in a cgroup that was tagged: without any filter.
fn tagged(cgroup: &OwnCgroup, daemon: &Daemon, arguments: &[&str]) -> Value {
    let mut command = cgroup.command("/usr/bin/env");
    result(&child::output(command.args(words(daemon, arguments)), LIMIT).unwrap(), daemon)
}

fn of_kind<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == kind).collect()
}

/// A process of the agent's own user, outside of its session.
struct Victim {
    child: Child,
    address: u64,
}

impl Victim {
    const UNTOUCHED: &[u8; 8] = b"\0\0\0\0\0\0\0\0";

    fn start() -> Self {
        let user = child::find_user(&[UNPRIVILEGED]).unwrap();
        let mut command = Command::new("/bin/sleep");
        let child = Child::start(child::as_user(command.arg("600"), &user), Signal::SIGKILL).unwrap();
        // It has executed its program once it sleeps under that program's name.
        let path = format!("/proc/{}/stat", child.id());
        let since = std::time::Instant::now();
        while !fs::read_to_string(&path).unwrap().contains("(sleep) S ") {
            assert!(since.elapsed() < LIMIT, "{:?}", fs::read_to_string(&path));
            std::thread::sleep(Duration::from_millis(5));
        }
        // The lowest page of its stack that is mapped: nothing has got there yet.
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
        let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
        let address = u64::from_str_radix(stack.split('-').next().unwrap(), 16).unwrap();
        let victim = Self { child, address };
        assert_eq!(&victim.memory(), Self::UNTOUCHED);
        victim
    }

    fn memory(&self) -> [u8; 8] {
        let mut memory = [0; 8];
        let file = fs::File::open(format!("/proc/{}/mem", self.child.id())).unwrap();
        file.read_exact_at(&mut memory, self.address).unwrap();
        memory
    }

    fn arguments(&self) -> [String; 3] {
        [self.child.id().to_string(), self.address.to_string(), "attacked".to_owned()]
    }
}

#[test]
fn processes_outside_of_the_session_are_out_of_reach() {
    require_root().unwrap();
    let daemon = Daemon::start(&configuration("", &[])).unwrap();
    let victim = Victim::start();
    let arguments = victim.arguments();
    let attack = ["other-process", &arguments[0], &arguments[1], &arguments[2]];
    let seen = inside(&daemon, UNPRIVILEGED, &attack);
    assert_eq!(&victim.memory(), Victim::UNTOUCHED, "{seen}");
    for way in ["ptrace", "process_vm_writev", "pidfd_getfd"] {
        assert_eq!(seen[way], "EPERM", "{seen}");
    }
    // What no filter of system calls can tell from any other file.
    for way in ["mem", "environ", "kill"] {
        assert!(seen[way] == "EACCES" || seen[way] == "EPERM", "{way}: {seen}");
    }
    // What was refused works for the same user outside of a session.
    let seen = outside(&daemon, UNPRIVILEGED, &attack);
    assert_eq!(&victim.memory(), b"attacked", "{seen}");
    assert!(seen.as_object().unwrap().values().all(|outcome| outcome == "ok"), "{seen}");
    daemon.settle().unwrap();
    daemon.stop().unwrap();
}

#[test]
fn a_debugger_that_is_permitted_is_kept_to_its_session() {
    require_root().unwrap();
    let daemon = Daemon::start(&configuration("permit = [\"ptrace\"]", &[])).unwrap();
    let own = inside(&daemon, UNPRIVILEGED, &["own-process"]);
    assert_eq!(own, json!({"ptrace": "ok", "mem": "ok", "kill": "ok"}));
    let victim = Victim::start();
    let arguments = victim.arguments();
    let seen = inside(&daemon, UNPRIVILEGED, &["other-process", &arguments[0], &arguments[1], &arguments[2]]);
    assert_eq!(&victim.memory(), Victim::UNTOUCHED, "{seen}");
    assert!(seen.as_object().unwrap().values().all(|outcome| outcome != "ok"), "{seen}");
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let confinement =
        &of_kind(&records, "session-opened")[0]["unmapped"]["auditor"]["session"]["confinement"];
    assert_eq!(confinement["permitted"], json!(["ptrace"]));
    assert_eq!(confinement["sockets"], json!(["tcp", "udp", "unix", "netlink"]));
    let refused = confinement["refused"].as_array().unwrap();
    assert!(
        refused.contains(&json!("other-processes")) && !refused.contains(&json!("ptrace")),
        "{refused:?}"
    );
    daemon.stop().unwrap();
}

/// A tun device that belongs to root, with an address of each family.
struct Tun(String);

impl Tun {
    fn new() -> Self {
        let device = Self(format!("at{}", std::process::id()));
        let name = device.0.as_str();
        for words in [
            &["tuntap", "add", "dev", name, "mode", "tun", "user", "root"][..],
            &["addr", "add", "198.18.117.1/24", "dev", name],
            &["addr", "add", "2001:db8:a0d2::1/64", "dev", name, "nodad"],
            &["link", "set", name, "up"],
        ] {
            child::succeed(Command::new("ip").args(words), LIMIT).unwrap();
        }
        device
    }
}

impl Drop for Tun {
    fn drop(&mut self) {
        let _ = child::succeed(Command::new("ip").args(["link", "del", &self.0]), LIMIT);
    }
}

#[test]
fn packets_are_not_put_into_a_tun_device() {
    require_root().unwrap();
    let daemon = Daemon::start(&configuration("", &[])).unwrap();
    let device = Tun::new();
    let (v4, v6) = (UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("[::]:0").unwrap());
    let ports = [&v4, &v6].map(|socket| socket.local_addr().unwrap().port());
    let ways = [
        format!("198.18.117.2,198.18.117.1,{}", ports[0]),
        format!("2001:db8:a0d2::2,2001:db8:a0d2::1,{}", ports[1]),
    ];
    let heard = |limit: Duration| {
        [&v4, &v6].map(|socket| {
            socket.set_read_timeout(Some(limit)).unwrap();
            socket.recv(&mut [0; 64]).is_ok()
        })
    };
    // As root, who owns the device: the filter is all that is in the way.
    let seen = inside(&daemon, "root", &["tun", &device.0, &ways[0], &ways[1]]);
    assert_eq!(seen["attached"], "EPERM", "{seen}");
    assert_eq!(heard(Duration::from_millis(300)), [false; 2], "{seen}");
    let seen = outside(&daemon, "root", &["tun", &device.0, &ways[0], &ways[1]]);
    assert_eq!(seen, json!({"attached": "ok", "sent": ["ok", "ok"]}));
    assert_eq!(heard(LIMIT), [true; 2], "the way leads nowhere without the filter");
    daemon.settle().unwrap();
    daemon.stop().unwrap();
}

/// Listens on both loopback addresses.
struct Ears {
    listeners: [TcpListener; 2],
}

impl Ears {
    fn new() -> Self {
        let addresses =
            [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))];
        let listeners = addresses.map(|address| TcpListener::bind(address).unwrap());
        listeners.iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
        Self { listeners }
    }

    fn names(&self) -> [String; 2] {
        self.listeners.each_ref().map(|listener| {
            let address = listener.local_addr().unwrap();
            format!("{},{}", address.ip(), address.port())
        })
    }

    fn destinations(&self) -> Vec<String> {
        self.listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
    }

    fn heard(&self) -> [usize; 2] {
        self.listeners.each_ref().map(|listener| std::iter::from_fn(|| listener.accept().ok()).count())
    }
}

/// Connections by `way` to what is denied and what is allowed, IPv4 and IPv6; answers what came of it.
fn connections(denied: &Ears, allowed: &Ears, way: &str, go: impl Fn(&[&str]) -> Value) -> Value {
    let names = [denied.names(), allowed.names()].concat();
    let mut arguments = vec![way];
    arguments.extend(names.iter().map(String::as_str));
    go(&arguments)["results"].clone()
}

#[test]
fn no_decision_hangs_on_the_number_of_a_system_call() {
    require_root().unwrap();
    let (denied, allowed) = (Ears::new(), Ears::new());
    let daemon = Daemon::start(&configuration("permit = [\"io-uring\"]", &allowed.destinations())).unwrap();
    let decided = json!(["EPERM", "EPERM", "ok", "ok"]);
    let ways: &[&str] = if cfg!(target_arch = "x86_64") { &["ring", "thirty-two-bit"] } else { &["ring"] };
    for way in ways {
        let results = connections(&denied, &allowed, way, |words| outside(&daemon, "root", words));
        assert_eq!(results, json!(["ok", "ok", "ok", "ok"]), "{way} leads nowhere on this host");
        assert_eq!((denied.heard(), allowed.heard()), ([1; 2], [1; 2]), "{way}");
        // Its session ends with it.
        let cgroup = OwnCgroup::new().unwrap();
        cgroup.tag(&daemon, AGENT).unwrap();
        let results = connections(&denied, &allowed, way, |words| tagged(&cgroup, &daemon, words));
        assert_eq!(results, decided, "{way}");
        assert_eq!((denied.heard(), allowed.heard()), ([0; 2], [1; 2]), "{way}");
    }
    // In a session of `auditor run` io_uring is there only because the policy permits it.
    let results = connections(&denied, &allowed, "ring", |words| inside(&daemon, UNPRIVILEGED, words));
    assert_eq!(results, decided);
    assert_eq!((denied.heard(), allowed.heard()), ([0; 2], [1; 2]));
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let refused = of_kind(&records, "connection-refused");
    let ports: Vec<u64> =
        denied.listeners.iter().map(|listener| u64::from(listener.local_addr().unwrap().port())).collect();
    for port in ports {
        let attempts = refused.iter().filter(|record| record["dst_endpoint"]["port"] == port).count();
        assert_eq!(attempts, ways.len() + 1, "port {port}");
    }
    daemon.stop().unwrap();

    let daemon = Daemon::start(&configuration("", &allowed.destinations())).unwrap();
    assert_eq!(inside(&daemon, UNPRIVILEGED, &["ring", "::1,1"]), json!({"ring": "EPERM"}));
    if cfg!(target_arch = "x86_64") {
        let words = words(&daemon, &["thirty-two-bit", &allowed.names()[0]]);
        let output = daemon.run(AGENT, UNPRIVILEGED, &words).unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert_eq!(signal, Some(libc::SIGSYS), "{output:?}");
        assert_eq!(allowed.heard(), [0; 2]);
    }
    daemon.settle().unwrap();
    daemon.stop().unwrap();
}

#[test]
fn a_policy_says_which_sockets_are_made() {
    require_root().unwrap();
    let daemon = Daemon::start(&configuration("", &["127.0.0.1".to_owned()])).unwrap();
    let bare = outside(&daemon, UNPRIVILEGED, &["sockets"]);
    assert_eq!((&bare["vsock"], &bare["udp6"]), (&json!("ok"), &json!("ok")), "{bare}");
    let usual = inside(&daemon, UNPRIVILEGED, &["sockets"]);
    for sort in ["tcp", "tcp6", "udp", "udp6", "unix", "netlink", "pair"] {
        assert_eq!(usual[sort], "ok", "{sort}: {usual}");
    }
    for sort in ["vsock", "packet"] {
        assert_eq!(usual[sort], "EAFNOSUPPORT", "{sort}: {usual}");
    }
    daemon.settle().unwrap();
    daemon.stop().unwrap();

    let own = "sockets = [\"tcp\", \"vsock\"]";
    let daemon = Daemon::start(&configuration(own, &["127.0.0.1".to_owned()])).unwrap();
    let fewer = inside(&daemon, UNPRIVILEGED, &["sockets"]);
    for sort in ["tcp", "tcp6", "vsock", "pair"] {
        assert_eq!(fewer[sort], "ok", "{sort}: {fewer}");
    }
    for (sort, errno) in
        [("udp", "EPERM"), ("udp6", "EPERM"), ("unix", "EAFNOSUPPORT"), ("netlink", "EAFNOSUPPORT")]
    {
        assert_eq!(fewer[sort], errno, "{sort}: {fewer}");
    }
    // Without the filter, too, and recorded: internet sockets are the kernel programs' matter.
    let cgroup = OwnCgroup::new().unwrap();
    cgroup.tag(&daemon, AGENT).unwrap();
    let root = tagged(&cgroup, &daemon, &["sockets"]);
    assert_eq!((&root["tcp"], &root["udp"], &root["udp6"]), (&json!("ok"), &json!("EPERM"), &json!("EPERM")));
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let refused = of_kind(&records, "connection-refused");
    let udp = refused.iter().filter(|record| record["connection_info"]["protocol_num"] == 17);
    let reasons: Vec<_> = udp
        .map(|record| {
            let connection = &record["unmapped"]["auditor"]["connection"];
            (connection["reason"].as_str().unwrap(), connection["call"].as_str().unwrap())
        })
        .collect();
    assert_eq!(reasons, [("socket-type", "socket"); 4]);
    daemon.stop().unwrap();
}

#[test]
fn a_user_namespace_that_is_permitted_is_no_way_out() {
    require_root().unwrap();
    let (denied, allowed) = (Ears::new(), Ears::new());
    let own = "permit = [\"user-namespaces\", \"mounts\"]";
    let daemon = Daemon::start(&configuration(own, &allowed.destinations())).unwrap();
    // unshare(1) does as browsers and container tools do: namespaces of its own, root in them, mounts.
    let script = words(&daemon, &["sockets"]);
    let in_namespaces = |words: &[OsString]| -> Vec<OsString> {
        let unshare = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--"];
        unshare.into_iter().map(OsString::from).chain(words.iter().cloned()).collect()
    };
    let seen = result(&daemon.run(AGENT, UNPRIVILEGED, &in_namespaces(&script)).unwrap(), &daemon);
    // Root there may make packet sockets, and does not get any.
    assert_eq!((&seen["packet"], &seen["vsock"]), (&json!("EAFNOSUPPORT"), &json!("EAFNOSUPPORT")), "{seen}");
    let names = [denied.names(), allowed.names()].concat();
    let attempts: Vec<OsString> = names.iter().map(|name| format!("tcp,{name}").into()).collect();
    let script = clients::write(daemon.home().folder(), "attempt.py", clients::ATTEMPT).unwrap();
    let attempt: Vec<OsString> =
        ["/usr/bin/python3".into(), "-B".into(), script.into()].into_iter().chain(attempts).collect();
    let seen = result(&daemon.run(AGENT, UNPRIVILEGED, &in_namespaces(&attempt)).unwrap(), &daemon);
    let results: Vec<_> =
        seen.as_array().unwrap().iter().map(|one| one["result"].as_str().unwrap()).collect();
    assert_eq!(results[..2], ["EPERM", "EPERM"], "{seen}");
    assert!(results[2..].iter().all(|result| !["sent", "EPERM"].contains(result)), "{seen}");
    // The same user's namespace, with the host's network: what policy allows is reached.
    let unshare = ["unshare", "--user", "--map-root-user", "--"].into_iter().map(OsString::from);
    let here: Vec<OsString> = unshare.chain(attempt.iter().cloned()).collect();
    let seen = result(&daemon.run(AGENT, UNPRIVILEGED, &here).unwrap(), &daemon);
    let results: Vec<_> =
        seen.as_array().unwrap().iter().map(|one| one["result"].as_str().unwrap()).collect();
    assert_eq!(results, ["EPERM", "EPERM", "sent", "sent"]);
    assert_eq!((denied.heard(), allowed.heard()), ([0; 2], [1; 2]));
    daemon.settle().unwrap();
    daemon.stop().unwrap();

    let daemon = Daemon::start(&configuration("", &allowed.destinations())).unwrap();
    let output = daemon.run(AGENT, UNPRIVILEGED, &in_namespaces(&attempt)).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("Operation not permitted"), "{said}");
    daemon.settle().unwrap();
    daemon.stop().unwrap();
}
