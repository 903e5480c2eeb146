//! Unix sockets: what policy does not name is not reached, by whatever name, and each attempt is in the record.
//!
//! The far end is this test, which is no agent: it listens where nothing may arrive, or is a PostgreSQL whose own socket is used.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use auditor_tests::agent::Agent;
use auditor_tests::child::{self, Child};
use auditor_tests::daemon::{Daemon, Home};
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::{UNPRIVILEGED, clients, place, python, require_root};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const AGENT: &str = "unix-agent";
const LIMIT: Duration = Duration::from_secs(20);
/// How long what agents ask for may pass without a daemon, and a moment.
const LEASE: Duration = Duration::from_millis(2500);

fn configuration(default: &str, rules: &str) -> String {
    format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"narrow\"\n\n[[policy]]\nname = \"narrow\"\ndefault = \"{default}\"\n{rules}"
    )
}

fn allow(sockets: &[String]) -> String {
    configuration("deny", &format!("[[policy.rule]]\nto = {sockets:?}\naction = \"allow\"\n"))
}

/// A folder that everybody may enter and write in, so that only the verdict can refuse.
fn open_folder() -> tempfile::TempDir {
    let folder = place::scratch().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    folder
}

/// A stream socket that somebody may reach or not.
struct Far {
    listener: UnixListener,
}

impl Far {
    fn at(path: &Path) -> Self {
        let far = Self::of(UnixListener::bind(path).unwrap());
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
        far
    }

    fn named(name: &str) -> Self {
        let address = SocketAddr::from_abstract_name(name).unwrap();
        Self::of(UnixListener::bind_addr(&address).unwrap())
    }

    fn of(listener: UnixListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        Self { listener }
    }

    /// What each connection that has arrived has said.
    fn heard(&self) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            match self.listener.accept() {
                Ok((mut stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(LIMIT)).unwrap();
                    let mut text = String::new();
                    stream.read_to_string(&mut text).unwrap();
                    heard.push(text);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return heard,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn datagrams(socket: &UnixDatagram) -> usize {
    socket.set_nonblocking(true).unwrap();
    std::iter::from_fn(|| socket.recv(&mut [0; 64]).ok()).count()
}

fn datagrams_at(path: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    socket
}

fn words(home: &Home, attempts: &[String]) -> Vec<OsString> {
    let script = clients::write(home.folder(), "unix.py", clients::UNIX).unwrap();
    let mut words: Vec<OsString> = vec!["/usr/bin/python3".into(), "-B".into(), script.into()];
    words.extend(attempts.iter().map(OsString::from));
    words
}

/// Runs attempts in a session; returns what the kernel said, and the process id.
fn attempt(daemon: &Daemon, attempts: &[String]) -> (Value, u32) {
    let output = daemon.run(AGENT, UNPRIVILEGED, &words(daemon.home(), attempts)).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stderr}\ndaemon: {}", output.status, daemon.said());
    (serde_json::from_slice(&output.stdout).unwrap(), clients::pid_told(&output.stderr).unwrap())
}

/// Records of connections that name a unix socket which begins so; the C library's own attempts (nscd) are not among them.
fn about<'a>(records: &'a [Value], kind: &str, prefix: &str) -> Vec<&'a Value> {
    let of_kind = |record: &&Value| record["unmapped"]["auditor"]["kind"] == kind;
    let named = |record: &&Value| {
        record["dst_endpoint"]["name"].as_str().is_some_and(|name| name.starts_with(prefix))
    };
    records.iter().filter(of_kind).filter(named).collect()
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

#[test]
fn what_policy_does_not_name_is_not_reached_and_is_recorded() {
    require_root().unwrap();
    let folder = open_folder();
    let name = format!("auditor-test-{}", std::process::id());
    let far = Far::at(&folder.path().join("denied"));
    let abstract_far = Far::named(&name);
    let far_datagrams = datagrams_at(&folder.path().join("datagrams"));
    let daemon = Daemon::start(&configuration("deny", "")).unwrap();
    let (denied, datagram) = (path(folder.path(), "denied"), path(folder.path(), "datagrams"));
    let attempts = [
        format!("stream,{denied}"),
        format!("stream,@{name}"),
        format!("datagram,{datagram}"),
        format!("connected,{datagram}"),
        format!("stream,{}>denied", folder.path().display()),
        format!("stream,{}/../{}", folder.path().display(), denied.trim_start_matches('/')),
        "pair,-".to_owned(),
    ];
    let (results, pid) = attempt(&daemon, &attempts);
    daemon.settle().unwrap();
    assert_eq!(results, json!(["EPERM", "EPERM", "EPERM", "EPERM", "EPERM", "EPERM", "ok"]));
    assert_eq!(far.heard(), Vec::<String>::new(), "the denied socket was reached");
    assert_eq!(abstract_far.heard(), Vec::<String>::new(), "the denied name was reached");
    assert_eq!(datagrams(&far_datagrams), 0, "the denied datagram socket was reached");
    // Whoever is no agent is not touched.
    std::os::unix::net::UnixStream::connect(&denied).unwrap().write_all(b"the test").unwrap();
    assert_eq!(far.heard(), ["the test"]);

    let records = daemon.records().unwrap();
    let scratch = format!("unix:{}", folder.path().display());
    let refused = about(&records, "connection-refused", &scratch);
    let names: Vec<_> =
        refused.iter().map(|record| record["dst_endpoint"]["name"].as_str().unwrap()).collect();
    let shown = |path: &str| format!("unix:{path}");
    let roundabout = format!("{}/../{}", folder.path().display(), denied.trim_start_matches('/'));
    assert_eq!(names, [shown(&denied), shown(&datagram), shown(&datagram), shown(&roundabout)]);
    for (record, call) in refused.iter().zip(["connect", "sendmsg", "connect", "connect"]) {
        let own = &record["unmapped"]["auditor"];
        assert_eq!(record["class_uid"], 4001, "{record}");
        assert_eq!(own["connection"]["call"], call, "{record}");
        assert_eq!(own["connection"]["verdict"], "deny", "{record}");
        assert_eq!(own["connection"]["reason"], "default", "{record}");
        assert_eq!(own["connection"]["socket"], record["dst_endpoint"]["name"], "{record}");
        assert_eq!(own["agent"]["name"], AGENT, "{record}");
        assert_eq!(record["actor"]["process"]["pid"], pid, "{record}");
    }
    assert_eq!(about(&records, "connection-refused", &format!("unix:@{name}")).len(), 1);
    assert_eq!(about(&records, "connection-refused", "unix:denied").len(), 1, "the relative path");

    // The filter of the command line is the record's name.
    let logged = daemon.ask(&["log", "--json", "--to", &format!("unix:{denied}")]).unwrap();
    assert_eq!(logged.lines().count(), 1, "{logged}");
    validate(&daemon);
    daemon.stop().unwrap();
}

/// Holds the whole trail against OCSF's own schema.
fn validate(daemon: &Daemon) {
    let file = daemon.home().folder().join("trail.jsonl");
    fs::write(&file, daemon.ask(&["log", "--json"]).unwrap()).unwrap();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "input=$1; shift; exec \"$@\" < \"$input\"", "sh"]).arg(&file);
    shell.arg(python::environment().unwrap().join("bin/python3"));
    child::succeed(shell.arg(place::tree().join("tests/ocsf_validate.py")), LIMIT).unwrap();
}

#[test]
fn what_policy_names_is_reached_and_recorded_once() {
    require_root().unwrap();
    let folder = open_folder();
    fs::create_dir(folder.path().join("all")).unwrap();
    fs::create_dir(folder.path().join("all/deeper")).unwrap();
    let name = format!("auditor-test-{}", std::process::id());
    let far = Far::at(&folder.path().join("one"));
    let other = Far::at(&folder.path().join("one-more"));
    let within = Far::at(&folder.path().join("all/any"));
    let deeper = Far::at(&folder.path().join("all/deeper/any"));
    let abstract_far = Far::named(&name);
    let far_datagrams = datagrams_at(&folder.path().join("all/datagrams"));
    let at = |name: &str| path(folder.path(), name);
    let rules = [format!("unix:{}", at("one")), format!("unix:{}", at("all/*")), format!("unix:@{name}")];
    let daemon = Daemon::start(&allow(&rules)).unwrap();
    let attempts = [
        format!("stream,{}", at("one")),
        format!("stream,{}", at("one-more")),
        format!("stream,{}", at("all/any")),
        format!("stream,{}", at("all/deeper/any")),
        format!("stream,{}", at("all/../one")),
        format!("stream,{}", at("all//any")),
        format!("stream,@{name}"),
        format!("stream,@{name}x"),
        format!("datagram,{}", at("all/datagrams")),
        format!("connected,{}", at("all/datagrams")),
        format!("stream,{}", at("all/nobody")),
    ];
    let (results, _) = attempt(&daemon, &attempts);
    daemon.settle().unwrap();
    let expected = ["ok", "EPERM", "ok", "EPERM", "EPERM", "EPERM", "ok", "EPERM", "ok", "ok", "ENOENT"];
    assert_eq!(results, json!(expected));
    for (socket, times) in [(&far, 1), (&other, 0), (&within, 1), (&deeper, 0), (&abstract_far, 1)] {
        assert_eq!(socket.heard(), vec!["from the agent"; times]);
    }
    assert_eq!(datagrams(&far_datagrams), 6);
    let records = daemon.records().unwrap();
    let scratch = format!("unix:{}", folder.path().display());
    let opened = about(&records, "connection-opened", &scratch);
    let names: Vec<_> =
        opened.iter().map(|record| record["dst_endpoint"]["name"].as_str().unwrap()).collect();
    // Five datagrams on one socket are one record.
    let each = ["one", "all/any", "all/datagrams", "all/datagrams", "all/nobody"];
    assert_eq!(names, each.map(|name| format!("unix:{}", at(name))));
    let rule = opened[1]["unmapped"]["auditor"]["connection"]["rule"].as_str().unwrap();
    assert_eq!(rule, format!("narrow#1: unix:{} allow", at("all/*")));
    let daemon_says = |to: &str| {
        let mut test = daemon.home().client(&["--config"]);
        test.arg(daemon.home().configuration()).args(["policy", "test", "--agent", AGENT, "--to", to]);
        child::output(&mut test, LIMIT).unwrap().status.code()
    };
    assert_eq!(daemon_says(&format!("unix:{}", at("all/any"))), Some(0));
    assert_eq!(daemon_says(&format!("unix:{}", at("one-more"))), Some(1));
    assert_eq!(daemon_says("unix:relative"), Some(2));
    validate(&daemon);
    daemon.stop().unwrap();
}

/// Starts the attempts outside, tags the process, lets it go on: an agent without the filters of `auditor run`.
fn tagged(daemon: &Daemon, prepare: impl FnOnce(Command) -> Command, attempts: &[String]) -> Value {
    let attempts = [&["wait".to_owned()], attempts].concat();
    let words = words(daemon.home(), &attempts);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir(daemon.home().folder());
    let mut command = prepare(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let (reader, writer) = std::io::pipe().unwrap();
    command.stdin(reader);
    let mut agent = Child::start(&mut command, Signal::SIGKILL).unwrap();
    drop(command);
    daemon.ask(&["tag", "--agent", AGENT, "--pid", &agent.id().to_string()]).unwrap();
    let mut writer = writer;
    writer.write_all(b"go\n").unwrap();
    let mut said = String::new();
    agent.take_stdout().unwrap().read_to_string(&mut said).unwrap();
    agent.wait(LIMIT).unwrap();
    daemon.settle().unwrap();
    serde_json::from_str(&said).unwrap()
}

fn as_nobody(mut command: Command) -> Command {
    let user = child::find_user(&[UNPRIVILEGED]).unwrap();
    child::as_user(&mut command, &user);
    command
}

#[test]
fn a_path_in_another_root_is_not_the_path_that_is_allowed() {
    require_root().unwrap();
    let folder = open_folder();
    // The agent's jail has a socket under the very path that the host's policy allows.
    let jail = folder.path().join("jail");
    fs::create_dir(&jail).unwrap();
    fs::set_permissions(&jail, Permissions::from_mode(0o777)).unwrap();
    // A name of this run's own: one that was killed leaves it behind.
    let name = format!("allowed-by-path-{}", std::process::id());
    let wrong = Far::at(&jail.join(&name));
    let right = Path::new("/").join(&name);
    let right_far = Far::at(&right);
    let removed = Removed(right.clone());
    let daemon = Daemon::start(&allow(&[format!("unix:{}", right.display())])).unwrap();
    let attempts = [
        format!("stream,{}", right.display()),
        format!("unmapped,{}/{name}", jail.display()),
        // Still in the user namespace that could change its root at any time.
        format!("stream,{}", right.display()),
    ];
    assert_eq!(tagged(&daemon, as_nobody, &attempts), json!(["ok", "EPERM", "EPERM"]));
    assert_eq!(wrong.heard(), Vec::<String>::new(), "the socket in the jail was reached");
    assert_eq!(right_far.heard(), ["from the agent"]);
    let records = daemon.records().unwrap();
    let refused = about(&records, "connection-refused", &format!("unix:{}", right.display()));
    assert_eq!(refused.len(), 2);
    for record in refused {
        let connection = &record["unmapped"]["auditor"]["connection"];
        assert_eq!(connection["reason"], "other-root", "{record}");
        assert!(connection["rule"].as_str().is_some_and(|rule| rule.starts_with("narrow#1")), "{record}");
    }
    // The same by a mount namespace, in which another directory lies over the allowed one.
    let shown = path(folder.path(), "shown");
    fs::create_dir(&shown).unwrap();
    let hidden = path(folder.path(), "hidden");
    fs::create_dir(&hidden).unwrap();
    let behind = Far::at(&Path::new(&hidden).join("socket"));
    fs::write(daemon.home().configuration(), allow(&[format!("unix:{shown}/socket")])).unwrap();
    daemon.ask(&["reload"]).unwrap();
    let in_namespace = |command: Command| {
        let mut unshared = Command::new("unshare");
        unshared.args(["--mount", "--propagation", "private", "sh", "-c"]);
        unshared.arg(format!("mount --bind {hidden} {shown} && exec \"$@\"")).arg("sh");
        unshared.arg(command.get_program()).args(command.get_args());
        unshared.current_dir("/");
        unshared
    };
    let attempts = [format!("stream,{shown}/socket")];
    assert_eq!(tagged(&daemon, in_namespace, &attempts), json!(["EPERM"]));
    assert_eq!(behind.heard(), Vec::<String>::new(), "the socket behind the mount was reached");
    daemon.stop().unwrap();
    drop(removed);
}

/// A file that goes with the test.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A directory of a user's session, with what a manager would have there.
struct UserSession(PathBuf);

impl UserSession {
    fn new() -> Self {
        // Of no user that there is.
        let directory = PathBuf::from(format!("/run/user/{}", 3_000_000_000_u32 + std::process::id()));
        fs::create_dir_all(directory.join("systemd")).unwrap();
        for path in [directory.clone(), directory.join("systemd")] {
            fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
        }
        Self(directory)
    }
}

impl Drop for UserSession {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        // Where there was none before, and nobody else's is in it.
        let _ = fs::remove_dir("/run/user");
    }
}

#[test]
fn sockets_of_managers_and_engines_are_denied_where_all_else_is_allowed() {
    require_root().unwrap();
    let session = UserSession::new();
    let at = |name: &str| path(&session.0, name);
    let private = Far::at(&session.0.join("systemd/private"));
    let engine = Far::at(&session.0.join("docker.sock"));
    let named = Far::at(&session.0.join("named"));
    let folder = open_folder();
    let other = Far::at(&folder.path().join("other"));
    let rule = format!("[[policy.rule]]\nto = [\"unix:{}\"]\naction = \"allow\"\n", at("named"));
    let daemon = Daemon::start(&configuration("allow", &rule)).unwrap();
    let attempts = [
        format!("stream,{}", at("systemd/private")),
        format!("stream,{}", at("docker.sock")),
        format!("stream,/var{}", at("docker.sock")),
        format!("stream,{}", at("systemd/../docker.sock")),
        format!("stream,{}", at("named")),
        format!("stream,{}", path(folder.path(), "other")),
        // Nobody listens there, or not to a test's agent: what is asked is whether it gets that far.
        "stream,/run/docker.sock".to_owned(),
        "stream,/var/run/docker.sock".to_owned(),
        "stream,/run/containerd/containerd.sock".to_owned(),
        "stream,/run/systemd/private".to_owned(),
        "datagram,/run/dbus/system_bus_socket".to_owned(),
    ];
    let (results, _) = attempt(&daemon, &attempts);
    daemon.settle().unwrap();
    let denied = ["EPERM"; 4].into_iter().chain(["ok", "ok"]).chain(["EPERM"; 5]);
    assert_eq!(results, json!(denied.collect::<Vec<_>>()));
    assert_eq!((private.heard().len(), engine.heard().len()), (0, 0), "a manager was reached");
    assert_eq!((named.heard().len(), other.heard().len()), (1, 1));
    let records = daemon.records().unwrap();
    let refused = about(&records, "connection-refused", "unix:/");
    let rules = refused.iter().map(|record| {
        let connection = &record["unmapped"]["auditor"]["connection"];
        assert_eq!(connection["reason"], "rule", "{record}");
        connection["rule"].as_str().unwrap()
    });
    let tree = |run: &str| format!("narrow#built-in: unix:{run}/user/** deny");
    let one = |path: &str| format!("narrow#built-in: unix:{path} deny");
    let expected = [
        tree("/run"),
        tree("/run"),
        tree("/var/run"),
        tree("/run"),
        one("/run/docker.sock"),
        one("/var/run/docker.sock"),
        one("/run/containerd/containerd.sock"),
        one("/run/systemd/private"),
        one("/run/dbus/system_bus_socket"),
    ];
    assert_eq!(rules.collect::<Vec<_>>(), expected);
    validate(&daemon);
    daemon.stop().unwrap();
}

#[test]
fn a_link_to_a_denied_socket_does_not_lead_there() {
    require_root().unwrap();
    let folder = open_folder();
    let far = Far::at(&folder.path().join("docker.sock"));
    symlink(folder.path().join("docker.sock"), folder.path().join("link")).unwrap();
    let daemon = Daemon::start(&allow(&["unix:/nowhere".to_owned()])).unwrap();
    let attempts = [
        format!("stream,{}", path(folder.path(), "link")),
        format!("datagram,{}", path(folder.path(), "link")),
    ];
    assert_eq!(attempt(&daemon, &attempts).0, json!(["EPERM", "EPERM"]));
    assert_eq!(far.heard(), Vec::<String>::new());
    daemon.settle().unwrap();
    daemon.stop().unwrap();
}

#[test]
fn a_new_policy_is_in_force_at_the_next_attempt() {
    require_root().unwrap();
    let folder = open_folder();
    let far = Far::at(&folder.path().join("socket"));
    let name = path(folder.path(), "socket");
    let daemon = Daemon::start(&allow(&[format!("unix:{name}")])).unwrap();
    let attempts = [format!("stream,{name}")];
    assert_eq!(attempt(&daemon, &attempts).0, json!(["ok"]));
    fs::write(daemon.home().configuration(), configuration("deny", "")).unwrap();
    daemon.ask(&["reload"]).unwrap();
    assert_eq!(attempt(&daemon, &attempts).0, json!(["EPERM"]));
    fs::write(daemon.home().configuration(), configuration("allow", "")).unwrap();
    daemon.ask(&["reload"]).unwrap();
    assert_eq!(attempt(&daemon, &attempts).0, json!(["ok"]));
    assert_eq!(far.heard().len(), 2);
    daemon.settle().unwrap();
    daemon.stop().unwrap();
}

#[test]
fn ordinary_programs_work_without_their_unix_sockets() {
    require_root().unwrap();
    let server = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&allow(&[format!("127.0.0.1:{}", server.port())])).unwrap();
    // The C library asks nscd before it reads /etc/passwd.
    assert_eq!(attempt(&daemon, &["lookup,nobody".to_owned()]).0, json!(["ok"]));
    for words in [["/usr/bin/getent", "hosts", "localhost"], ["/usr/bin/id", "-n", "-u"]] {
        let output = daemon.run(AGENT, UNPRIVILEGED, &words).unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let output = daemon.run(AGENT, UNPRIVILEGED, &psql(&server, "127.0.0.1", "select 'over TCP'")).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    daemon.settle().unwrap();
    daemon.stop().unwrap();
}

fn psql(server: &Postgres, host: &str, statement: &str) -> Vec<OsString> {
    let port = server.port().to_string();
    let arguments = ["-X", "-U", "postgres", "-d", "postgres", "-h", host, "-p", &port, "-c", statement];
    let mut words = vec![server.program("psql").into_os_string()];
    words.extend(arguments.map(OsString::from));
    words
}

#[test]
fn a_server_is_reached_by_its_socket_only_where_policy_names_it() {
    require_root().unwrap();
    let server = Postgres::start(&Options::default()).unwrap();
    let folder = server.socket_folder();
    let host = folder.to_str().unwrap();
    let socket = format!("unix:{host}/.s.PGSQL.{}", server.port());
    let told = |text: &str| server.log().unwrap().iter().filter(|entry| entry.message.contains(text)).count();
    let daemon = Daemon::start(&configuration("deny", "")).unwrap();
    let denied = daemon.run(AGENT, UNPRIVILEGED, &psql(&server, host, "select 'was denied'")).unwrap();
    assert!(!denied.status.success(), "psql got through");
    assert!(String::from_utf8_lossy(&denied.stderr).contains("Operation not permitted"));
    assert_eq!(told("was denied"), 0);
    for rule in [socket.clone(), format!("unix:{host}/*")] {
        fs::write(daemon.home().configuration(), allow(&[rule])).unwrap();
        daemon.ask(&["reload"]).unwrap();
        let before = told("was allowed");
        let output = daemon.run(AGENT, UNPRIVILEGED, &psql(&server, host, "select 'was allowed'")).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(told("was allowed"), before + 1);
    }
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    assert_eq!(about(&records, "connection-refused", &socket).len(), 1);
    assert_eq!(about(&records, "connection-opened", &socket).len(), 2);
    daemon.stop().unwrap();
}

#[test]
fn a_daemon_that_is_killed_leaves_no_unix_socket_open_and_the_next_goes_on() {
    require_root().unwrap();
    let folder = open_folder();
    let (allowed, denied) = (Far::at(&folder.path().join("allowed")), Far::at(&folder.path().join("denied")));
    let order = |name: &str| format!("unix {}", path(folder.path(), name));
    let first = Daemon::start(&allow(&[format!("unix:{}", path(folder.path(), "allowed"))])).unwrap();
    let mut agent = Agent::run(first.home(), AGENT, UNPRIVILEGED).unwrap();
    assert_eq!(agent.tell(&order("allowed")).unwrap(), "ok");
    assert_eq!(agent.tell(&order("denied")).unwrap(), "EPERM");
    first.kill().unwrap();
    assert_eq!(agent.tell(&order("denied")).unwrap(), "EPERM", "at once");
    thread::sleep(LEASE);
    assert_eq!(agent.tell(&order("allowed")).unwrap(), "EPERM", "nobody writes it down");
    assert_eq!(agent.tell(&order("denied")).unwrap(), "EPERM");
    assert_eq!((allowed.heard().len(), denied.heard().len()), (1, 0));

    let second = Daemon::start_in(first.home().next().unwrap()).unwrap();
    assert_eq!(agent.tell(&order("allowed")).unwrap(), "ok");
    assert_eq!(agent.tell(&order("denied")).unwrap(), "EPERM");
    assert_eq!((allowed.heard().len(), denied.heard().len()), (1, 0));
    agent.end().unwrap();
    second.settle().unwrap();
    let session: Value = serde_json::from_str(second.ask(&["sessions", "--json"]).unwrap().trim()).unwrap();
    // Without a daemon two were held back. What the default refused is no violation.
    assert_eq!(session["violations"], 2, "{session}");
    let records = second.records().unwrap();
    let reasons = |name: &str| -> Vec<String> {
        let refused = about(&records, "connection-refused", &format!("unix:{}", path(folder.path(), name)));
        let reason = |record: &&Value| record["unmapped"]["auditor"]["connection"]["reason"].to_string();
        refused.iter().map(reason).collect()
    };
    assert_eq!(reasons("allowed"), ["\"lease\""]);
    assert_eq!(reasons("denied"), ["\"default\"", "\"default\"", "\"lease\"", "\"default\""]);
    let opened = about(&records, "connection-opened", &format!("unix:{}", path(folder.path(), "allowed")));
    assert_eq!(opened.len(), 2, "before and after");
    let pins = second.home().pins.clone();
    second.stop().unwrap();
    assert!(!pins.exists(), "pins are left");
}

#[test]
fn a_daemon_that_fails_open_lets_go_on_what_rules_allow() {
    require_root().unwrap();
    let folder = open_folder();
    let (allowed, denied) = (Far::at(&folder.path().join("allowed")), Far::at(&folder.path().join("denied")));
    let order = |name: &str| format!("unix {}", path(folder.path(), name));
    let rules = allow(&[format!("unix:{}", path(folder.path(), "allowed"))]);
    let first = Daemon::start(&format!("[daemon]\nfail_mode = \"open\"\n\n{rules}")).unwrap();
    let mut agent = Agent::run(first.home(), AGENT, UNPRIVILEGED).unwrap();
    assert_eq!(agent.tell(&order("denied")).unwrap(), "EPERM");
    first.kill().unwrap();
    thread::sleep(LEASE);
    assert_eq!(agent.tell(&order("allowed")).unwrap(), "ok");
    assert_eq!(agent.tell(&order("denied")).unwrap(), "EPERM");
    assert_eq!((allowed.heard().len(), denied.heard().len()), (1, 0));
    let second = Daemon::start_in(first.home().next().unwrap()).unwrap();
    agent.end().unwrap();
    second.settle().unwrap();
    let records = second.records().unwrap();
    let opened = about(&records, "connection-opened", &format!("unix:{}", path(folder.path(), "allowed")));
    assert_eq!(opened.len(), 1, "recorded by the next");
    second.stop().unwrap();
}
