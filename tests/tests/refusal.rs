//! Bad input, a bad host: one clear sentence, the right exit status, no panic, nothing half-started, nothing left behind.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use auditor_tests::daemon::{Daemon, Home};
use auditor_tests::{UNPRIVILEGED, child, place, require_root};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(30);
const GOOD: &str =
    "[[agent]]\nname = \"a\"\npolicy = \"p\"\n\n[[policy]]\nname = \"p\"\ndefault = \"deny\"\n";

fn home(configuration: &str) -> Home {
    Home::new(place::auditor("debug").unwrap(), configuration).unwrap()
}

/// Checks status and manner of a refusal; returns what was said.
fn refused(output: &Output, status: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{said}");
    for ugly in ["panicked", "RUST_BACKTRACE", "stack backtrace", "Error {", "Err("] {
        assert!(!said.contains(ugly), "{said}");
    }
    assert!(!said.trim().is_empty(), "a refusal without a word");
    assert!(!said.contains("READY"), "{said}");
    said
}

fn nothing_left(home: &Home) {
    assert!(!home.socket().exists(), "a socket is left");
    let pins = fs::read_dir(&home.pins).map(|entries| entries.count()).unwrap_or_default();
    assert_eq!(pins, 0, "pins are left");
}

#[test]
fn a_wrong_configuration_names_its_place() {
    require_root().unwrap();
    let cases = [
        ("syntax", "[[agent]\nname = \"a\"\n", 1),
        (
            "unknown key",
            "[[agent]]\nname = \"a\"\npolicy = \"p\"\ncolour = \"red\"\n\n[[policy]]\nname = \"p\"\n",
            4,
        ),
        ("unknown policy", "[[agent]]\nname = \"a\"\npolicy = \"nowhere\"\n", 3),
        ("wrong action", &format!("{GOOD}[[policy.rule]]\nto = [\"192.0.2.1:1\"]\naction = \"maybe\"\n"), 10),
        (
            "wrong destination",
            &format!("{GOOD}[[policy.rule]]\nto = [\"192.0.2.1/99:1\"]\naction = \"allow\"\n"),
            9,
        ),
        ("a name", &format!("{GOOD}[[policy.rule]]\nto = [\"db.internal:5432\"]\naction = \"allow\"\n"), 9),
    ];
    for (name, text, line) in cases {
        let home = home(text);
        let said = refused(&child::output(&mut home.daemon(), LIMIT).unwrap(), 2);
        let place = format!("auditor.toml:{line}:");
        assert!(said.contains(&place), "{name}: no {place} in: {said}");
        nothing_left(&home);
        let mut check = home.client(&["policy", "check"]);
        let said = refused(&child::output(check.arg(home.configuration()), LIMIT).unwrap(), 2);
        assert!(said.contains(&place), "{name}: no {place} in: {said}");
    }
}

#[test]
fn a_missing_configuration_is_named() {
    require_root().unwrap();
    let home = home(GOOD);
    fs::remove_file(home.configuration()).unwrap();
    let said = refused(&child::output(&mut home.daemon(), LIMIT).unwrap(), 2);
    assert!(said.contains(home.configuration().to_str().unwrap()), "{said}");
}

#[test]
fn a_daemon_that_is_not_root_says_so() {
    require_root().unwrap();
    let mut home = home(GOOD);
    // The built program may be where only root can read it.
    let program = home.folder().join("auditor");
    fs::copy(place::auditor("debug").unwrap(), &program).unwrap();
    let state = home.folder().join("theirs");
    fs::create_dir(&state).unwrap();
    home.state = state.clone();
    let user = child::find_user(&[UNPRIVILEGED]).unwrap();
    std::os::unix::fs::chown(&state, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    let with_program = home.daemon();
    let mut command = Command::new(&program);
    command.args(with_program.get_args());
    let output = child::output(child::as_user(&mut command, &user), LIMIT).unwrap();
    let said = refused(&output, 2);
    assert!(said.contains("root"), "{said}");
    nothing_left(&home);
}

/// The daemon, started by `wrapper` (a program that changes the surroundings and executes the rest of its words).
fn wrapped(wrapper: &[&str], home: &Home) -> Command {
    let daemon = home.daemon();
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(daemon.get_program()).args(daemon.get_args());
    command.env_remove("NOTIFY_SOCKET");
    command
}

#[test]
fn a_host_without_cgroup2_is_told_how_to_mount_one() {
    require_root().unwrap();
    let home = home(GOOD);
    let without = "umount --all --lazy --types cgroup2 && exec \"$@\"";
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", without, "sh"];
    let said = refused(&child::output(&mut wrapped(&wrapper, &home), LIMIT).unwrap(), 4);
    assert!(said.contains("mount -t cgroup2"), "{said}");
    nothing_left(&home);
}

#[test]
fn a_daemon_without_a_capability_names_it() {
    require_root().unwrap();
    let home = home(GOOD);
    // As in a container: root, but without the right to load programs.
    let wrapper = ["setpriv", "--bounding-set", "-bpf,-sys_admin", "--"];
    let said = refused(&child::output(&mut wrapped(&wrapper, &home), LIMIT).unwrap(), 4);
    assert!(said.contains("lacks CAP_BPF"), "{said}");
    nothing_left(&home);
}

#[test]
fn what_the_kernel_answers_is_quoted() {
    require_root().unwrap();
    let home = home(GOOD);
    // Stands in for whatever reason the kernel has: too few descriptors for the tables.
    let wrapper = ["prlimit", "--nofile=16:16", "--"];
    let said = refused(&child::output(&mut wrapped(&wrapper, &home), LIMIT).unwrap(), 4);
    assert!(said.contains("Too many open files"), "{said}");
    nothing_left(&home);
}

#[test]
fn a_socket_in_use_is_left_to_its_owner() {
    let first = Daemon::start(GOOD).unwrap();
    let mut second = home(GOOD);
    second.runtime = first.home().runtime.clone();
    let output = child::output(&mut second.daemon(), LIMIT).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(1..=4)), "{}: {said}", output.status);
    assert!(said.contains("auditor.sock") && !said.contains("panicked"), "{said}");
    assert_eq!(fs::read_dir(&second.pins).map(Iterator::count).unwrap_or_default(), 0);
    // The first is as well as before.
    first.status().unwrap();
    first.stop().unwrap();
}

#[test]
fn without_a_daemon_the_command_is_not_started() {
    require_root().unwrap();
    let home = home(GOOD);
    let trace = home.folder().join("started");
    let words = ["/usr/bin/touch", trace.to_str().unwrap()];
    let said = refused(&child::output(&mut home.run("a", "root", &words), LIMIT).unwrap(), 125);
    assert!(said.contains("daemon"), "{said}");
    assert!(!trace.exists(), "the command was started");
    refused(&child::output(&mut home.client(&["status"]), LIMIT).unwrap(), 3);
}

#[test]
fn an_unknown_agent_gets_no_session() {
    let daemon = Daemon::start(GOOD).unwrap();
    let trace = daemon.home().folder().join("started");
    let words = ["/usr/bin/touch", trace.to_str().unwrap()];
    let said = refused(&daemon.run("stranger", "root", &words).unwrap(), 125);
    assert!(said.contains("stranger"), "{said}");
    assert!(!trace.exists(), "the command was started");
    // The status of a command that runs is the command's own; that of one that cannot run, a shell's.
    let status = |words: &[&str]| daemon.run("a", UNPRIVILEGED, words).unwrap().status.code();
    assert_eq!(status(&["/bin/sh", "-c", "exit 7"]), Some(7));
    assert_eq!(status(&["/nonexistent/program"]), Some(127));
    assert_eq!(status(&["/etc/passwd"]), Some(126));
    daemon.settle().unwrap();
    daemon.stop().unwrap();
}

/// A file system of one MiB.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let disk = Self(place::scratch().unwrap());
        let mut mount = Command::new("mount");
        child::succeed(mount.args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(disk.0.path()), LIMIT)
            .unwrap();
        disk
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    /// Writes until nothing more fits; returns the file.
    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("filler");
        for size in [64 << 10, 4 << 10, 1] {
            let mut file = fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
            while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a daemon that did not stop may still have it open. The folder under it goes after this.
        let _ = child::output(Command::new("umount").arg("--lazy").arg(self.0.path()), LIMIT);
    }
}

#[test]
fn a_disk_that_is_full_at_the_start_is_named() {
    require_root().unwrap();
    let mut home = home(GOOD);
    let disk = SmallDisk::mount();
    home.state = disk.state();
    disk.fill();
    let output = child::output(&mut home.daemon(), LIMIT).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(1..=4)), "{}: {said}", output.status);
    assert!(said.contains(home.state.to_str().unwrap()) && said.to_lowercase().contains("space"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    nothing_left(&home);
}

#[test]
fn a_disk_that_fills_up_holds_the_agents_up_and_loses_nothing() {
    require_root().unwrap();
    let mut home = home(GOOD);
    let disk = SmallDisk::mount();
    home.state = disk.state();
    let daemon = Daemon::start_in(home).unwrap();
    let filler = disk.fill();
    let mut agent = daemon.home().run("a", UNPRIVILEGED, &["/bin/true"]);
    // Whether a session can be opened while nothing can be written is the daemon's choice; that it says so is not.
    let _ = child::output(&mut agent, Duration::from_secs(5));
    let blocked = || !daemon.status().unwrap()["trail"]["blocked"].is_null();
    wait("the daemon to say that its disk is full", blocked);
    fs::remove_file(filler).unwrap();
    wait("the daemon to go on", || !blocked());
    assert!(daemon.run("a", UNPRIVILEGED, &["/bin/true"]).unwrap().status.success());
    daemon.settle().unwrap();
    let trail = daemon.stop().unwrap();
    let mut verify = Command::new(place::auditor("debug").unwrap());
    child::succeed(verify.arg("verify").arg(&trail.trail), LIMIT).unwrap();
}

fn wait(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
