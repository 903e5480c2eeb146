//! `auditor run`, the real binary: what it refuses to start, and what the command it starts can no longer do.
//!
//! The daemon in front of it only pretends, so what is tested here is the launcher; that the kernel decides about
//! destinations is tested where there is a kernel side.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod pipeline;

use std::collections::BTreeMap;
use std::io;
use std::process::{Command, Output};

use pipeline::Daemon;

/// Set for the copy of this program that runs inside.
const INSIDE: &str = "AUDITOR_TEST_INSIDE";

fn auditor() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_auditor"));
    command.env_remove("AUDITOR_SOCKET");
    command
}

fn run(daemon: &Daemon, options: &[&str], command: &[&str]) -> Output {
    let mut line = auditor();
    line.arg("run").arg("--socket").arg(daemon.socket()).args(["--agent", "agent-backfill"]);
    line.args(options).arg("--").args(command).output().unwrap()
}

/// A daemon that opens sessions where this process, and thus its children, are.
fn daemon() -> Daemon {
    let daemon = Daemon::start_with_real_proc();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    daemon.place_sessions_in(auditor::api::peer::unified_cgroup(&own).unwrap());
    daemon
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn without_a_daemon_the_command_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let proof = directory.path().join("started");
    let output = auditor()
        .args(["run", "--socket", "/nonexistent/auditor.sock", "--agent", "a", "--", "touch"])
        .arg(&proof)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("/nonexistent/auditor.sock"), "{}", stderr(&output));
    assert!(!proof.exists());
}

#[test]
fn a_process_that_is_not_where_the_daemon_says_does_not_start_the_command() {
    let daemon = Daemon::start_with_real_proc();
    daemon.place_sessions_in("/auditor/somewhere-else");
    let directory = tempfile::tempdir().unwrap();
    let proof = directory.path().join("started");
    let output = run(&daemon, &[], &["touch", proof.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("/auditor/somewhere-else"), "{}", stderr(&output));
    assert!(!proof.exists());
}

#[test]
fn the_exit_status_is_the_commands_own() {
    // A daemon for each, because the first session makes an agent of everything in this cgroup.
    let status = |command: &[&str]| run(&daemon(), &[], command).status.code();
    assert_eq!(status(&["true"]), Some(0));
    assert_eq!(status(&["sh", "-c", "exit 42"]), Some(42));
    assert_eq!(status(&["/nonexistent/command"]), Some(127));
    assert_eq!(status(&["/etc/passwd"]), Some(126));
    assert_eq!(run(&daemon(), &["--user", "no-such-user"], &["true"]).status.code(), Some(125));
}

#[test]
fn the_command_knows_its_session_and_the_daemon_knows_the_command() {
    let daemon = daemon();
    let output =
        run(&daemon, &["--task", "count", "--label", "k=v=w"], &["sh", "-c", "echo $AUDITOR_SESSION"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0000000000000001\n", "{}", stderr(&output));
    let opened = daemon.opened();
    assert_eq!(opened[0].command.as_deref().unwrap()[..2], ["sh", "-c"]);
    assert_eq!(opened[0].task.as_deref(), Some("count"));
    assert_eq!(opened[0].labels["k"], "v=w");
}

#[test]
fn another_user_is_assumed_completely() {
    assert!(nix::unistd::geteuid().is_root(), "this test changes the user and must run as root");
    let script = "id -u; id -ru; id -g; id -G; echo $HOME $USER";
    let output = run(&daemon(), &["--user", "nobody"], &["sh", "-c", script]);
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let (uid, gid, home) = (nobody.uid, nobody.gid, nobody.dir.display());
    let expected = format!("{uid}\n{uid}\n{gid}\n{gid}\n{home} nobody\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    assert!(stderr(&run(&daemon(), &[], &["true"])).contains("use --user"), "root is warned");
}

#[test]
fn inherited_descriptors_do_not_reach_the_command() {
    let daemon = daemon();
    let script = "exec 7</etc/passwd 9<>/dev/null; exec \"$0\" \"$@\"";
    let output = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_auditor"), "run", "--socket"])
        .arg(daemon.socket())
        .args([
            "--agent",
            "a",
            "--",
            "sh",
            "-c",
            "for fd in 3 4 5 6 7 8 9 10 11 12; do test -e /proc/$$/fd/$fd && echo $fd; done; true",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

#[test]
fn a_socket_from_outside_is_not_handed_in() {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp: OwnedFd = TcpStream::connect(listener.local_addr().unwrap()).unwrap().into();
    let udp: OwnedFd = UdpSocket::bind("[::1]:0").unwrap().into();
    let unix: OwnedFd = UnixStream::pair().unwrap().0.into();
    let run = |daemon: &Daemon, stdin: OwnedFd| {
        let mut line = auditor();
        line.arg("run").arg("--socket").arg(daemon.socket()).args(["--agent", "a", "--", "true"]);
        line.stdin(stdin).output().unwrap()
    };
    for (socket, kind) in [(tcp, "TCP"), (udp, "UDP")] {
        let daemon = daemon();
        let output = run(&daemon, socket);
        assert_eq!(output.status.code(), Some(125));
        assert!(stderr(&output).contains(&format!("stdin is a {kind} socket")), "{}", stderr(&output));
        assert!(daemon.opened().is_empty(), "no session was opened for it");
    }
    assert_eq!(run(&daemon(), unix).status.code(), Some(0));
}

#[test]
fn a_hardened_command_has_lost_what_it_must_not_have() {
    let daemon = daemon();
    let this = std::env::current_exe().unwrap();
    let output = auditor()
        .args(["run", "--socket"])
        .arg(daemon.socket())
        .args(["--agent", "a", "--"])
        .arg(this)
        .args(["--exact", "inside", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}\n{}", stderr(&output), String::from_utf8_lossy(&output.stdout));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let seen: BTreeMap<_, _> =
        text.lines().filter_map(|line| line.strip_prefix("inside: ")?.split_once(" = ")).collect();
    let expected = [
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("socket unix", "ok"),
        ("socket inet", "ok"),
        ("socket inet6", "ok"),
        ("socket netlink raw", "ok"),
        ("socket vsock", "EAFNOSUPPORT"),
        ("socket vsock, high bits set", "EAFNOSUPPORT"),
        ("socket alg", "EAFNOSUPPORT"),
        ("socket packet", "EAFNOSUPPORT"),
        ("socketpair tipc", "EAFNOSUPPORT"),
        ("socket inet raw", "EPERM"),
        ("socket inet raw, close on exec", "EPERM"),
        ("socket inet6 raw", "EPERM"),
        ("socket inet packet", "EPERM"),
        ("io_uring_setup", "EPERM"),
        ("ptrace", "EPERM"),
        ("process_vm_readv", "EPERM"),
        ("process_vm_writev", "EPERM"),
        ("pidfd_getfd", "EPERM"),
        ("bpf", "EPERM"),
        ("perf_event_open", "EPERM"),
        ("setns", "EPERM"),
        ("mount", "EPERM"),
        ("umount2", "EPERM"),
        ("unshare user", "EPERM"),
        ("clone user", "EPERM"),
        ("clone3", "ENOSYS"),
        ("userfaultfd", "EPERM"),
        ("ioctl TIOCSTI", "EPERM"),
        ("ioctl TIOCSTI, high bits set", "EPERM"),
        ("ioctl TUNSETIFF", "EPERM"),
        ("open_tree_attr", "EPERM"),
        ("thread", "ok"),
        #[cfg(target_arch = "x86_64")]
        ("x32 getpid", "ENOSYS"),
        #[cfg(target_arch = "x86_64")]
        ("32-bit getpid", "SIGSYS"),
    ];
    for (what, outcome) in expected {
        assert_eq!(seen.get(what).copied(), Some(outcome), "{what}; all: {seen:#?}");
    }
    if nix::unistd::geteuid().is_root() {
        assert_eq!(seen["CapBnd"], "0000000000000000");
    }
}

/// Not a test: the command of the test above. Started by the test runner it does nothing.
#[test]
fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    for (name, value) in status.lines().filter_map(|line| line.split_once(":\t")) {
        tell(name, value);
    }
    let flags = libc::SOCK_CLOEXEC;
    for (name, family, kind) in [
        ("socket unix", libc::AF_UNIX, libc::SOCK_STREAM),
        ("socket inet", libc::AF_INET, libc::SOCK_STREAM | flags),
        ("socket inet6", libc::AF_INET6, libc::SOCK_DGRAM),
        ("socket netlink raw", libc::AF_NETLINK, libc::SOCK_RAW | flags),
        ("socket vsock", libc::AF_VSOCK, libc::SOCK_STREAM),
        ("socket alg", libc::AF_ALG, libc::SOCK_SEQPACKET),
        ("socket packet", libc::AF_PACKET, libc::SOCK_RAW),
        ("socket inet raw", libc::AF_INET, libc::SOCK_RAW),
        ("socket inet raw, close on exec", libc::AF_INET, libc::SOCK_RAW | flags),
        ("socket inet6 raw", libc::AF_INET6, libc::SOCK_RAW),
        ("socket inet packet", libc::AF_INET, 10),
    ] {
        attempt(name, libc::SYS_socket, [i64::from(family), i64::from(kind), 0, 0, 0]);
    }
    let high = 1 << 32;
    attempt("socket vsock, high bits set", libc::SYS_socket, [i64::from(libc::AF_VSOCK) | high, 1, 0, 0, 0]);
    attempt("socketpair tipc", libc::SYS_socketpair, [i64::from(libc::AF_TIPC), 1, 0, 0, 0]);
    for (name, call) in [
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("ptrace", libc::SYS_ptrace),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("process_vm_writev", libc::SYS_process_vm_writev),
        ("pidfd_getfd", libc::SYS_pidfd_getfd),
        ("bpf", libc::SYS_bpf),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("setns", libc::SYS_setns),
        ("mount", libc::SYS_mount),
        ("umount2", libc::SYS_umount2),
        ("open_tree_attr", 467),
        ("userfaultfd", libc::SYS_userfaultfd),
    ] {
        // Arguments that the kernel would refuse otherwise: EFAULT, EINVAL, EBADF, ESRCH.
        attempt(name, call, [-1, -1, -1, -1, -1]);
    }
    let new_user = i64::from(libc::CLONE_NEWUSER);
    attempt("unshare user", libc::SYS_unshare, [new_user, 0, 0, 0, 0]);
    attempt("clone user", libc::SYS_clone, [new_user | i64::from(libc::SIGCHLD), 0, 0, 0, 0]);
    attempt("clone3", libc::SYS_clone3, [0, 0, 0, 0, 0]);
    let tiocsti = i64::try_from(libc::TIOCSTI).unwrap();
    attempt("ioctl TIOCSTI", libc::SYS_ioctl, [0, tiocsti, 0, 0, 0]);
    attempt("ioctl TIOCSTI, high bits set", libc::SYS_ioctl, [0, tiocsti | high, 0, 0, 0]);
    attempt("ioctl TUNSETIFF", libc::SYS_ioctl, [0, 0x4004_54ca, 0, 0, 0]);
    tell("thread", if std::thread::spawn(|| ()).join().is_ok() { "ok" } else { "failed" });
    #[cfg(target_arch = "x86_64")]
    {
        attempt("x32 getpid", 0x4000_0000 | libc::SYS_getpid, [0; 5]);
        tell("32-bit getpid", &thirty_two_bit_getpid());
    }
}

fn tell(name: &str, value: &str) {
    println!("inside: {name} = {}", value.trim());
}

fn attempt(name: &str, call: libc::c_long, arguments: [i64; 5]) {
    let [a, b, c, d, e] = arguments;
    // SAFETY: pointer arguments are null or -1, which the kernel refuses (EFAULT) without touching our memory; a clone that
    // succeeded against expectation would continue in a child with a copy of this memory, as fork does.
    let result = unsafe { libc::syscall(call, a, b, c, d, e) };
    let outcome = match nix::errno::Errno::result(result) {
        Ok(_) => "ok".to_owned(),
        Err(errno) => format!("{errno:?}"),
    };
    tell(name, &outcome);
}

/// getpid by the 32-bit entry, in a child: it ends it.
#[cfg(target_arch = "x86_64")]
fn thirty_two_bit_getpid() -> String {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    // SAFETY: the child makes one system call and ends.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Signaled(_, signal, _) => signal.to_string(),
            other => format!("{other:?}"),
        },
        ForkResult::Child => {
            // SAFETY: int 0x80 with number 20 is getpid of the 32-bit table: no arguments, a result in eax; the entry
            // code may clobber r8 to r11. _exit ends the child at once.
            unsafe {
                std::arch::asm!("int 0x80", inlateout("eax") 20 => _, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
                libc::_exit(0)
            }
        }
    }
}

#[test]
fn wrong_usage_is_told_apart() -> io::Result<()> {
    for arguments in [
        &["run"][..],
        &["run", "--agent", "a"],
        &["nonsense"],
        &["run", "--label", "x", "--agent", "a", "--", "true"],
    ] {
        assert_eq!(auditor().args(arguments).output()?.status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(auditor().arg("--version").output()?.status.code(), Some(0));
    Ok(())
}
