//! Real peers: OpenSSL's server and client, with a relay between them that writes down what passes.

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use auditor::protocol::Side;
use auditor::tls::{Hash, Secret, SecretKind};

const LIMIT: Duration = Duration::from_secs(20);

/// What passed a relay, in the order in which it passed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wire(pub(crate) Vec<(Side, Vec<u8>)>);

impl Wire {
    pub(crate) fn length(&self, side: Side) -> u64 {
        self.0.iter().filter(|(of, _)| *of == side).map(|(_, bytes)| bytes.len() as u64).sum()
    }
}

/// A relay for one connection at a time.
pub(crate) struct Relay {
    pub(crate) port: u16,
    wire: Arc<Mutex<Wire>>,
    thread: JoinHandle<()>,
}

impl Relay {
    pub(crate) fn to(server: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let wire = Arc::new(Mutex::new(Wire::default()));
        let record = wire.clone();
        let thread = thread::spawn(move || {
            let (client, _) = listener.accept().unwrap();
            let end = Instant::now() + LIMIT;
            let server = loop {
                match UnixStream::connect(&server) {
                    Ok(server) => break server,
                    Err(error) => assert!(Instant::now() < end, "{}: {error}", server.display()),
                }
                thread::sleep(Duration::from_millis(3));
            };
            let back = {
                let (client, server, record) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap(), record.clone());
                thread::spawn(move || carry(Side::Server, server, client, &record))
            };
            carry(Side::Client, client, server, &record);
            back.join().unwrap();
        });
        Self { port, wire, thread }
    }

    /// Pieces that have passed.
    pub(crate) fn passed(&self) -> usize {
        self.wire.lock().unwrap().0.len()
    }

    /// Bytes of a direction that have passed.
    pub(crate) fn bytes(&self, side: Side) -> u64 {
        self.wire.lock().unwrap().length(side)
    }

    /// Something more has passed, and nothing does any more.
    pub(crate) fn wait_for_more(&self, before: usize) {
        let end = Instant::now() + LIMIT;
        let mut last = before;
        loop {
            thread::sleep(Duration::from_millis(50));
            let now = self.passed();
            if now > before && now == last {
                return;
            }
            assert!(Instant::now() < end, "nothing passes");
            last = now;
        }
    }

    pub(crate) fn finish(self) -> Wire {
        self.thread.join().unwrap();
        std::mem::take(&mut *self.wire.lock().unwrap())
    }
}

/// A stream of either family.
trait Stream: Read + Write {
    fn end(&self);
}

impl Stream for TcpStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

impl Stream for UnixStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

fn carry(side: Side, mut from: impl Stream, mut to: impl Stream, record: &Mutex<Wire>) {
    let mut buffer = vec![0; 65_536];
    loop {
        let count = from.read(&mut buffer).unwrap_or(0);
        if count == 0 {
            to.end();
            return;
        }
        // Before it is sent on: an answer cannot be written down before its question.
        record.lock().unwrap().0.push((side, buffer[..count].to_vec()));
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// A process with its streams; ended when it is dropped.
pub(crate) struct Peer {
    child: Child,
    input: ChildStdin,
    said: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Peer {
    pub(crate) fn start(folder: &Path, words: &[&str]) -> Self {
        let mut child = Command::new("openssl")
            .args(words)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the openssl program must be there");
        let said = Arc::new(Mutex::new(Vec::new()));
        let mut readers = Vec::new();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for mut stream in streams {
            let said = said.clone();
            readers.push(thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    said.lock().unwrap().extend_from_slice(&buffer[..count]);
                }
            }));
        }
        let input = child.stdin.take().unwrap();
        Self { child, input, said, readers }
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).unwrap();
        self.input.flush().unwrap();
    }

    pub(crate) fn said(&self) -> Vec<u8> {
        self.said.lock().unwrap().clone()
    }

    pub(crate) fn wait_for(&self, what: &[u8]) {
        let heard = |said: &[u8]| said.windows(what.len().max(1)).any(|window| window == what);
        let end = Instant::now() + LIMIT;
        while !heard(&self.said()) {
            assert!(
                Instant::now() < end,
                "no {:?} in: {}",
                String::from_utf8_lossy(&what[..what.len().min(60)]),
                String::from_utf8_lossy(&self.said())
            );
            thread::sleep(Duration::from_millis(3));
        }
    }
}

impl Peer {
    /// It was told to end.
    pub(crate) fn wait_end(&mut self) {
        let end = Instant::now() + LIMIT;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "does not end: {}", String::from_utf8_lossy(&self.said()));
            thread::sleep(Duration::from_millis(3));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

/// A folder with a server's and a client's key and certificate, and a key log.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    sockets: Cell<u32>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap(), sockets: Cell::new(0) };
        place.certificate("server", "/CN=db.example.com/O=Example", "DNS:db.example.com,IP:127.0.0.1");
        place.certificate("client", "/CN=agent", "email:agent@example.com");
        place
    }

    fn certificate(&self, name: &str, subject: &str, names: &str) {
        let (key, file) = (format!("{name}.key"), format!("{name}.pem"));
        let words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", subject];
        let names = format!("subjectAltName={names}");
        self.openssl(&[&words[..], &["-addext", &names, "-keyout", &key, "-out", &file]].concat());
    }

    pub(crate) fn openssl(&self, words: &[&str]) -> Output {
        let mut command = Command::new("openssl");
        let output = command.args(words).current_dir(self.path()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A name for a server's socket that nobody has had.
    pub(crate) fn socket(&self) -> String {
        let number = self.sockets.get();
        self.sockets.set(number + 1);
        format!("socket{number}")
    }

    pub(crate) fn key_log(&self) -> PathBuf {
        self.path().join("keys")
    }

    /// All secrets that the key log has.
    pub(crate) fn secrets(&self) -> KeyLog {
        KeyLog::parse(&fs::read_to_string(self.key_log()).unwrap())
    }
}

/// Secrets as a library writes them down.
#[derive(Clone)]
pub(crate) struct KeyLog(pub(crate) Vec<(SecretKind, Vec<u8>)>);

impl KeyLog {
    pub(crate) fn parse(log: &str) -> Self {
        let mut secrets = Vec::new();
        for line in log.lines().filter(|line| !line.starts_with('#')) {
            let [label, random, bytes] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let bytes = hexadecimal(bytes);
            let kind = match label {
                "CLIENT_RANDOM" => SecretKind::Master {
                    client_random: Some(hexadecimal(random).try_into().unwrap()),
                    server_random: None,
                },
                "EXPORTER_SECRET" | "EARLY_EXPORTER_SECRET" => continue,
                _ if bytes.len() == 48 => SecretKind::Traffic { hash: Hash::Sha384 },
                _ => SecretKind::Traffic { hash: Hash::Sha256 },
            };
            secrets.push((kind, bytes));
        }
        assert!(!secrets.is_empty(), "the key log is empty");
        Self(secrets)
    }

    /// On offer, beside those of others.
    pub(crate) fn offer(&self, keyring: &mut Vec<Secret>) {
        let first = keyring.last().map_or(0, |last| last.id() + 1);
        let numbered = (first..).zip(&self.0);
        keyring.extend(numbered.map(|(id, (kind, bytes))| Secret::new(id, *kind, bytes).unwrap()));
    }

    /// On offer, with nothing beside.
    pub(crate) fn alone(&self) -> Vec<Secret> {
        let mut keyring = Vec::new();
        self.offer(&mut keyring);
        keyring
    }
}

pub(crate) fn hexadecimal(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
