//! TLS secrets of agents are taken from their libraries, all of them and nobody else's.
//!
//! The judge is the key log (SSLKEYLOGFILE) that the programs themselves write.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use auditor_tests::child::{self, Child};
use auditor_tests::daemon::Daemon;
use auditor_tests::secrets::{logged, taken};
use auditor_tests::{UNPRIVILEGED, clients, place, require_root};
use nix::sys::signal::Signal;

const AGENT: &str = "talker";
const LIMIT: Duration = Duration::from_secs(30);
const CONFIGURATION: &str =
    "[[agent]]\nname = \"talker\"\npolicy = \"open\"\n\n[[policy]]\nname = \"open\"\ndefault = \"allow\"\n";

/// Connects, asks, and is answered; with a key log of its own. Arguments: port, log, times.
const CLIENT: &str = r#"
import socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.keylog_filename = sys.argv[2]
for _ in range(int(sys.argv[3])):
    with context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1])))) as tls:
        tls.sendall(b"hello\n")
        assert tls.recv(100) == b"yes\n"
"#;

const SERVER: &str = include_str!("../src/tls_server.py");

/// A server that is no agent's, and a folder for key logs.
struct Scene {
    daemon: Daemon,
    _server: Child,
    port: String,
    logs: PathBuf,
}

impl Scene {
    fn new(version: &str) -> Self {
        require_root().unwrap();
        let daemon = Daemon::start(CONFIGURATION).unwrap();
        let folder = daemon.home().folder().to_owned();
        let certificate = certificate(&folder);
        let script = clients::write(&folder, "server.py", SERVER).unwrap();
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script).arg(certificate).arg(version).stdout(Stdio::piped());
        let mut server = Child::start(&mut command, Signal::SIGKILL).unwrap();
        let mut port = String::new();
        BufReader::new(server.take_stdout().unwrap()).read_line(&mut port).unwrap();
        let logs = folder.join("logs");
        std::fs::create_dir(&logs).unwrap();
        std::fs::set_permissions(&logs, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        Self { daemon, _server: server, port: port.trim().to_owned(), logs }
    }

    /// Runs a program in a session; it must succeed. Answers what its key log has.
    fn run(&self, name: &str, words: impl FnOnce(&str, &Path) -> Vec<OsString>) -> BTreeSet<String> {
        let log = self.logs.join(name);
        let words = words(&self.port, &log);
        let output = self.daemon.run(AGENT, UNPRIVILEGED, &words).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {}: {said}", output.status);
        logged(&log).unwrap()
    }

    fn taken(&self) -> BTreeSet<String> {
        taken(self.daemon.home()).unwrap().into_iter().map(|taken| taken.secret).collect()
    }
}

fn certificate(folder: &Path) -> PathBuf {
    let path = folder.join("certificate.pem");
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    command
        .args(["-days", "2", "-subj", "/CN=localhost", "-keyout"])
        .arg(&path)
        .arg("-out")
        .arg(folder.join("only"));
    child::succeed(&mut command, LIMIT).unwrap();
    let mut both = std::fs::read(&path).unwrap();
    both.extend(std::fs::read(folder.join("only")).unwrap());
    std::fs::write(&path, both).unwrap();
    path
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn python(scene: &Scene, times: u32) -> impl FnOnce(&str, &Path) -> Vec<OsString> {
    let script = clients::write(scene.daemon.home().folder(), "client.py", CLIENT).unwrap();
    move |port, log| {
        let mut line = words(&["/usr/bin/python3", "-B"]);
        line.extend([script.into(), port.into(), log.into(), times.to_string().into()]);
        line
    }
}

fn with_log(log: &Path, rest: &[&str]) -> Vec<OsString> {
    let mut setting = OsString::from("SSLKEYLOGFILE=");
    setting.push(log);
    let mut line = vec!["/usr/bin/env".into(), setting];
    line.extend(words(rest));
    line
}

#[test]
fn the_secrets_of_agents_are_those_of_their_key_logs() {
    for (version, each) in [("TLSv1_3", 4), ("TLSv1_2", 1)] {
        let scene = Scene::new(version);
        let mut told = scene.run("python", python(&scene, 3));
        assert_eq!(told.len(), 3 * each, "{version}: {told:?}");
        let address = format!("127.0.0.1:{}", scene.port);
        told.extend(scene.run("openssl", |_, log| {
            let log = log.display().to_string();
            let line = format!("echo hello | openssl s_client -quiet -connect {address} -keylogfile {log}");
            words(&["/bin/sh", "-c", &line])
        }));
        let curl = scene
            .run("curl", |port, log| with_log(log, &["curl", "-sk", &format!("https://127.0.0.1:{port}/")]));
        told.extend(curl);
        assert_eq!(told.len(), 5 * each, "{version}: {told:?}");
        let taken = scene.taken();
        let missed: Vec<&String> = told.difference(&taken).collect();
        assert!(missed.is_empty(), "{version}: {missed:?} of {}, {} taken", told.len(), taken.len());
        // Nothing else than what the clients used: the server is nobody's.
        let more: Vec<&String> = taken.difference(&told).collect();
        assert!(more.is_empty(), "{version}: {more:?}");
    }
}

#[test]
fn of_strangers_nothing_is_taken() {
    let scene = Scene::new("TLSv1_3");
    let script = clients::write(scene.daemon.home().folder(), "client.py", CLIENT).unwrap();
    let log = scene.logs.join("stranger");
    let mut stranger = Command::new("/usr/bin/python3");
    stranger.arg(script).arg(&scene.port).arg(&log).arg("3");
    child::succeed(&mut stranger, LIMIT).unwrap();
    assert_eq!(logged(&log).unwrap().len(), 12);
    assert_eq!(taken(scene.daemon.home()).unwrap(), []);
    // The probe was there: an agent's are taken.
    let told = scene.run("python", python(&scene, 1));
    assert_eq!(scene.taken(), told);
}

/// The client in C, linked statically.
fn fast_client(folder: &Path) -> PathBuf {
    let source = place::tree().join("tests/src/tls_client.c");
    let program = folder.join("tls_client");
    let mut command = Command::new("cc");
    command.args(["-O2", "-static", "-w", "-o"]).arg(&program).arg(source);
    // What libcrypto itself may be linked against differs between distributions.
    command.args(["-lssl", "-lcrypto", "-lzstd", "-lz"]);
    child::succeed(&mut command, LIMIT).unwrap();
    program
}

/// A copy is another file, which nobody has seen yet.
fn copy(file: &Path, name: &str) -> PathBuf {
    let copied = file.with_file_name(name);
    std::fs::copy(file, &copied).unwrap();
    copied
}

/// Pauses that the daemon has told, in microseconds.
fn pauses(daemon: &Daemon) -> Vec<u64> {
    let said = daemon.said();
    let pause = |line: &str| line.split("pause=").nth(1)?.split(' ').next()?.parse().ok();
    said.lines().filter(|line| line.contains("is probed")).filter_map(pause).collect()
}

fn spread(mut values: Vec<u64>) -> String {
    values.sort_unstable();
    let at = |part: usize| values.get((values.len().max(1) - 1) * part / 100).copied().unwrap_or(0);
    format!("{} of them, median {} us, most {} us", values.len(), at(50), at(100))
}

#[test]
fn a_library_that_nobody_has_seen_is_probed_before_its_first_handshake() {
    let scene = Scene::new("TLSv1_3");
    let folder = scene.daemon.home().folder().to_owned();
    let program = fast_client(&folder);
    let (mut told, mut files) = (BTreeSet::new(), 0);
    for number in 0..20 {
        let copied = copy(&program, &format!("client-{number}"));
        told.extend(
            scene.run(&format!("log-{number}"), |port, log| vec![copied.into(), port.into(), log.into()]),
        );
        files += 1;
    }
    let system = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/aarch64-linux-gnu"];
    let system =
        system.into_iter().map(Path::new).find(|folder| folder.join("libssl.so.3").exists()).unwrap();
    for number in 0..5 {
        let libraries = folder.join(format!("libraries-{number}"));
        std::fs::create_dir(&libraries).unwrap();
        for name in ["libssl.so.3", "libcrypto.so.3"] {
            std::fs::copy(system.join(name), libraries.join(name)).unwrap();
        }
        told.extend(scene.run(&format!("shared-{number}"), |port, log| {
            let mut line = words(&["/usr/bin/env"]);
            line.push(format!("LD_LIBRARY_PATH={}", libraries.display()).into());
            line.extend(python(&scene, 1)(port, log));
            line
        }));
        files += 1;
    }
    assert_eq!(told.len(), 4 * files);
    let taken = scene.taken();
    let missed = told.difference(&taken).count();
    eprintln!(
        "{missed} of {} secrets missed; sessions were held: {}",
        told.len(),
        spread(pauses(&scene.daemon))
    );
    assert_eq!(missed, 0, "{}", scene.daemon.said());
    assert!(pauses(&scene.daemon).iter().all(|pause| *pause < 20_000), "{:?}", pauses(&scene.daemon));
}

#[test]
fn files_that_are_replaced_written_to_or_deleted_are_probed_anew() {
    const DELETED: &str = "import os, sys\nfile = os.open(sys.argv[1], os.O_RDONLY)\nos.unlink(sys.argv[1])\n\
                           os.execve(file, sys.argv[1:], os.environ)\n";
    let scene = Scene::new("TLSv1_3");
    let folder = scene.daemon.home().folder().to_owned();
    let original = fast_client(&folder);
    let program = copy(&original, "client");
    let run = |name: &str| scene.run(name, |port, log| vec![program.clone().into(), port.into(), log.into()]);
    let mut told = run("first");
    // As a package manager does it.
    std::fs::rename(copy(&original, "new"), &program).unwrap();
    told.extend(run("renamed"));
    // As cp does it.
    std::fs::write(&program, std::fs::read(&original).unwrap()).unwrap();
    told.extend(run("written"));
    let open = folder.join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::copy(&original, open.join("client")).unwrap();
    let script = clients::write(&folder, "deleted.py", DELETED).unwrap();
    told.extend(scene.run("deleted", |port, log| {
        let mut line = words(&["/usr/bin/python3", "-B"]);
        line.extend([script.into(), open.join("client").into(), port.into(), log.into()]);
        line
    }));
    assert_eq!(told.len(), 16);
    let missed = told.difference(&scene.taken()).count();
    assert_eq!(missed, 0, "{}", scene.daemon.said());
}
