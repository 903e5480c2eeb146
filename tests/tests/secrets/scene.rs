//! Agents that talk to a TLS server which is nobody's and keeps a key log.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use auditor_tests::child::{self, Child};
use auditor_tests::daemon::Daemon;
use auditor_tests::secrets::{logged, taken};
use auditor_tests::{UNPRIVILEGED, clients, place, require_root};
use nix::sys::signal::Signal;

pub(crate) const AGENT: &str = "talker";
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
const CONFIGURATION: &str =
    "[[agent]]\nname = \"talker\"\npolicy = \"open\"\n\n[[policy]]\nname = \"open\"\ndefault = \"allow\"\n";

/// Connects, asks, and is answered. Arguments: port, times.
const CLIENT: &str = r#"
import socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
for _ in range(int(sys.argv[2])):
    with context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1])))) as tls:
        tls.sendall(b"hello\n")
        assert tls.recv(100) == b"yes\n"
"#;
const SERVER: &str = include_str!("../../src/tls_server.py");

/// A server that is no agent's, and its key log.
pub(crate) struct Scene {
    pub(crate) daemon: Daemon,
    pub(crate) _server: Child,
    pub(crate) port: String,
    log: PathBuf,
}

impl Scene {
    pub(crate) fn new(version: &str) -> Self {
        require_root().unwrap();
        let daemon = Daemon::start(CONFIGURATION).unwrap();
        let folder = daemon.home().folder().to_owned();
        let log = folder.join("keys");
        fs::write(&log, "").unwrap();
        let script = clients::write(&folder, "server.py", SERVER).unwrap();
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script).arg(certificate(&folder)).arg(version).arg(&log).stdout(Stdio::piped());
        let mut server = Child::start(&mut command, Signal::SIGKILL).unwrap();
        let mut port = String::new();
        BufReader::new(server.take_stdout().unwrap()).read_line(&mut port).unwrap();
        Self { daemon, _server: server, port: port.trim().to_owned(), log }
    }

    /// The daemon's folder, which agents may read.
    pub(crate) fn folder(&self) -> &Path {
        self.daemon.home().folder()
    }

    /// Runs a program in a session; it must succeed.
    pub(crate) fn run(&self, words: &[OsString]) {
        let output = self.daemon.run(AGENT, UNPRIVILEGED, words).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {}: {said}", output.status);
    }

    pub(crate) fn told(&self) -> BTreeSet<String> {
        logged(&self.log).unwrap()
    }

    pub(crate) fn taken(&self) -> BTreeSet<String> {
        taken(self.daemon.home()).unwrap().into_iter().map(|taken| taken.secret).collect()
    }

    pub(crate) fn python(&self, times: u32) -> Vec<OsString> {
        let script = clients::write(self.folder(), "client.py", CLIENT).unwrap();
        let mut line = words(&["/usr/bin/python3", "-B"]);
        line.extend([script.into(), OsString::from(&self.port), times.to_string().into()]);
        line
    }

    /// The client in C, linked statically.
    pub(crate) fn fast_client(&self) -> PathBuf {
        let source = place::tree().join("tests/src/tls_client.c");
        let program = self.folder().join("tls_client");
        let mut command = Command::new("cc");
        command.args(["-O2", "-static", "-w", "-o"]).arg(&program).arg(source);
        // What libcrypto itself is linked against differs between distributions.
        command.args(["-lssl", "-lcrypto", "-lzstd", "-lz"]);
        child::succeed(&mut command, LIMIT).unwrap();
        program
    }

    /// What makes secrets up (tests/src/tls_flood.c), with the system's library.
    pub(crate) fn flood(&self, secrets: u32, connections: u32, seconds: u32) -> Vec<OsString> {
        let program = self.folder().join("tls_flood");
        let mut command = Command::new("cc");
        command.args(["-O2", "-w", "-o"]).arg(&program).arg(place::tree().join("tests/src/tls_flood.c"));
        child::succeed(command.args(["-lssl", "-lcrypto"]), LIMIT).unwrap();
        let numbers = [secrets, connections, seconds].map(|number| OsString::from(number.to_string()));
        [program.into(), OsString::from(&self.port)].into_iter().chain(numbers).collect()
    }

    pub(crate) fn fast(&self, program: &Path) -> Vec<OsString> {
        vec![program.into(), OsString::from(&self.port)]
    }
}

fn certificate(folder: &Path) -> PathBuf {
    let (path, only) = (folder.join("certificate.pem"), folder.join("only"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    command.args(["-days", "2", "-subj", "/CN=localhost", "-keyout"]).arg(&path).arg("-out").arg(&only);
    child::succeed(&mut command, LIMIT).unwrap();
    let mut both = fs::read(&path).unwrap();
    both.extend(fs::read(only).unwrap());
    fs::write(&path, both).unwrap();
    path
}

pub(crate) fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}
