//! The secrets of agents' connections are in nothing that the daemon writes, and in its memory no longer than it needs them.
//!
//! The needles come from the clients' own key logs.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use auditor_tests::certificates::{Key, SERVER};
use auditor_tests::child::Child;
use auditor_tests::daemon::{Daemon, Home};
use auditor_tests::python::Python;
use auditor_tests::tls::secrets::Needles;
use auditor_tests::tls::{AGENT, Server, with_variables};
use auditor_tests::{UNPRIVILEGED, clients, place};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(30);

/// A client in Python whose library keeps a key log, and the folder of its logs.
struct Client {
    words: Vec<OsString>,
    logs: PathBuf,
}

impl Client {
    fn new(server: &Server, folder: &Path, driver: &str, connections: &str, statements: &str) -> Self {
        let logs = folder.join("logs");
        if !logs.is_dir() {
            fs::create_dir(&logs).unwrap();
            fs::set_permissions(&logs, Permissions::from_mode(0o777)).unwrap();
        }
        let python = Python::with_drivers(folder).unwrap();
        let script = clients::write(folder, "tls_client.py", clients::TLS).unwrap();
        let (port, authority) = (server.postgres.port().to_string(), server.certificates.authority());
        let authority = authority.display().to_string();
        let arguments = [driver, "storm", SERVER, &port, &authority, connections, statements, "secret"];
        let path = logs.join(driver).display().to_string();
        let variables = [("SSLKEYLOGFILE", path.as_str()), ("LIBPQ_KEYLOG", "1"), ("PSYCOPG_IMPL", "binary")];
        Self { words: with_variables(&variables, &python.words(&script, &arguments)), logs }
    }
}

/// A daemon that writes everything that it can write: with a capture, and as much as it says when asked for more.
fn talkative(server: &Server, capture: &Path) -> Home {
    let mut home = Home::new(place::auditor("debug").unwrap(), &server.configuration("")).unwrap();
    home.daemon_arguments = vec!["--record-capture".into(), capture.into()];
    home
}

fn start(daemon: &Daemon, client: &Client) -> Child {
    let mut command = daemon.home().run(AGENT, UNPRIVILEGED, &client.words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Child::start(&mut command, Signal::SIGKILL).unwrap()
}

/// Nothing was found, in at least so many bytes.
fn nothing(name: &str, least: u64, (found, looked_at): (Vec<String>, u64)) {
    eprintln!("secrets, {name}: {looked_at} bytes");
    assert!(looked_at >= least, "{name}: only {looked_at} bytes: the search did not do its work");
    assert!(found.is_empty(), "{name}: {} found: {:#?}", found.len(), &found[..found.len().min(5)]);
}

#[test]
fn secrets_are_in_nothing_that_is_written() {
    auditor_tests::require_root().unwrap();
    let server = Server::start(Key::Ec, true, &[]).unwrap();
    let folder = place::scratch().unwrap();
    let capture = folder.path().join("capture");
    let daemon = Daemon::start_in(talkative(&server, &capture)).unwrap();
    let mut needles = Needles::default();
    for version in ["TLSv1.3", "TLSv1.2"] {
        server.postgres.set("ssl_max_protocol_version", version).unwrap();
        for driver in ["asyncpg", "psycopg"] {
            let client = Client::new(&server, daemon.home().folder(), driver, "20", "3");
            let output = daemon.run(AGENT, UNPRIVILEGED, &client.words).unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            needles.add_logs(&client.logs).unwrap();
            fs::remove_dir_all(&client.logs).unwrap();
        }
    }
    // 40 connections with one secret, 40 with five and more, most of these with two lengths of keys and an IV.
    assert!(needles.count() >= 600, "{} secrets", needles.count());
    daemon.settle().unwrap();
    let home = daemon.home();
    nothing("runtime directory", 10_000, needles.search(&home.runtime).unwrap());
    let inquiries = [&["log", "--json"][..], &["log"], &["sessions", "--json"], &["status", "--json"]];
    for arguments in inquiries {
        let printed = daemon.ask(arguments).unwrap();
        nothing(&format!("auditor {}", arguments.join(" ")), 1, in_text(&needles, &printed));
    }
    // All connections are closed by now.
    nothing("memory", 1_000_000, needles.search_memory(daemon.id()).unwrap());
    let state = home.state.clone();
    let stopped = daemon.stop().unwrap();
    nothing("state", 100_000, needles.search(&state).unwrap());
    nothing("capture", 100_000, needles.search(&capture).unwrap());
    nothing("what it says", 1, in_text(&needles, &stopped.said));
}

/// A daemon that is killed leaves its journal, with connections in it that still live.
#[test]
fn secrets_are_not_in_the_journal_of_a_daemon_that_was_killed() {
    auditor_tests::require_root().unwrap();
    let server = Server::start(Key::Ec, true, &[]).unwrap();
    let daemon = Daemon::start(&server.configuration("")).unwrap();
    let client = Client::new(&server, daemon.home().folder(), "asyncpg", "4000", "2");
    let worker = start(&daemon, &client);
    std::thread::sleep(Duration::from_millis(2500));
    daemon.kill().unwrap();
    let next = daemon.home().next().unwrap();
    let mut needles = Needles::default();
    needles.add_logs(&client.logs).unwrap();
    assert!(needles.count() > 100, "{} secrets", needles.count());
    nothing("journal", 10_000, needles.search(&next.runtime).unwrap());
    nothing("state", 10_000, needles.search(&next.state).unwrap());
    let next = Daemon::start_in(next).unwrap();
    worker.signal(Signal::SIGTERM).unwrap();
    drop(worker);
    next.settle().unwrap();
    needles.add_logs(&client.logs).unwrap();
    nothing("state of the next", 10_000, needles.search(&next.home().state).unwrap());
    nothing("runtime directory of the next", 1, needles.search(&next.home().runtime).unwrap());
    nothing("memory of the next", 1_000_000, needles.search_memory(next.id()).unwrap());
    next.stop().unwrap();
}

fn in_text(needles: &Needles, text: &str) -> (Vec<String>, u64) {
    (needles.find(text.as_bytes()).keys().map(ToString::to_string).collect(), text.len() as u64)
}

/// Lets a process dump core if it may be let, and ends it so that it would.
fn crash(pid: u32, wait: impl FnOnce() -> std::process::ExitStatus) -> std::process::ExitStatus {
    let mut set = Command::new("prlimit");
    set.args(["--core=unlimited:unlimited", "--pid", &pid.to_string()]).stderr(Stdio::null());
    if !set.status().unwrap().success() {
        // A limit that the process has set itself, and that nobody without CAP_SYS_RESOURCE may raise.
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), Signal::SIGABRT).unwrap();
    wait()
}

/// A core dump is where secrets would be that are in memory while connections live. A process of our own shows that this kernel
/// writes one.
#[test]
fn a_daemon_that_crashes_leaves_no_secret_in_a_core_dump() {
    auditor_tests::require_root().unwrap();
    setrlimit(Resource::RLIMIT_CORE, RLIM_INFINITY, RLIM_INFINITY).unwrap();
    let folder = place::scratch().unwrap();
    let mut command = Command::new("/bin/sleep");
    let mut control = Child::start(command.arg("60").current_dir(folder.path()), Signal::SIGKILL).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let status = crash(control.id(), || control.wait(LIMIT).unwrap());
    assert!(status.core_dumped(), "this host writes no core dumps: {status}; see core(5)");

    let server = Server::start(Key::Ec, true, &[]).unwrap();
    let mut daemon = Daemon::start(&server.configuration("")).unwrap();
    let client = Client::new(&server, daemon.home().folder(), "asyncpg", "4000", "2");
    let worker = start(&daemon, &client);
    std::thread::sleep(Duration::from_millis(1500));
    let id = daemon.id();
    let folder = fs::read_link(format!("/proc/{id}/cwd")).unwrap();
    let status = crash(id, || daemon.wait(LIMIT).unwrap());
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32));
    worker.signal(Signal::SIGKILL).unwrap();
    let mut needles = Needles::default();
    needles.add_logs(&client.logs).unwrap();
    assert!(needles.count() > 100);
    if status.core_dumped() {
        // The name is the kernel's setting; these are the places of its default.
        for name in ["core".to_owned(), format!("core.{id}")] {
            let path = folder.join(name);
            if path.is_file() {
                let found = needles.search(&path).unwrap();
                fs::remove_file(&path).unwrap();
                nothing("core dump", 1_000_000, found);
                return;
            }
        }
        panic!("a core dump was written, and not found in {}", folder.display());
    }
}
