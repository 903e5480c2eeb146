//! Every command that a Redis server executed is in the trail: verbatim, in order, attributed; what it refused is there with its error.
//! The server's own MONITOR is the judge of commands, its error statistics of outcomes.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use auditor_tests::child::{self, Child};
use auditor_tests::daemon::Daemon;
use auditor_tests::postgres::free_port;
use auditor_tests::python::Python;
use auditor_tests::{UNPRIVILEGED, clients, place, require_root, runtimes};
use nix::sys::signal::Signal;
use serde_json::Value;

const AGENT: &str = "redis-agent";
const LIMIT: Duration = Duration::from_secs(120);

/// A server, and what it says that it is told.
struct Redis {
    // Dropped first: it ends before its folder goes.
    _server: Child,
    port: u16,
    monitor: BufReader<TcpStream>,
    _folder: tempfile::TempDir,
}

impl Redis {
    fn start() -> Self {
        let folder = place::scratch().unwrap();
        let port = free_port().unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "::1", "--save", "", "--dir"]);
        command.arg(folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
        let server = Child::start(&mut command, Signal::SIGTERM).unwrap();
        let start = Instant::now();
        let mut monitor = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(error) => assert!(start.elapsed() < LIMIT, "redis-server does not start: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        monitor.set_read_timeout(Some(LIMIT)).unwrap();
        monitor.write_all(b"MONITOR\r\n").unwrap();
        let mut monitor = BufReader::new(monitor);
        let mut line = String::new();
        monitor.read_line(&mut line).unwrap();
        assert_eq!(line, "+OK\r\n");
        Self { _server: server, port, monitor, _folder: folder }
    }

    fn ask(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]).args(words);
        child::succeed(&mut command, LIMIT).unwrap()
    }

    /// Commands by client, up to now.
    fn told(&mut self) -> BTreeMap<String, Vec<Vec<Vec<u8>>>> {
        self.ask(&["ECHO", "the end"]);
        let mut told: BTreeMap<String, Vec<Vec<Vec<u8>>>> = BTreeMap::new();
        loop {
            let mut line = Vec::new();
            self.monitor.read_until(b'\n', &mut line).unwrap();
            let line = String::from_utf8(line).unwrap();
            let (_, rest) = line.split_once(" [").unwrap();
            let (client, words) = rest.split_once("] ").unwrap();
            let (_, client) = client.split_once(' ').unwrap();
            let words = unquote(words.trim_end());
            if words == [b"ECHO".to_vec(), b"the end".to_vec()] {
                return told;
            }
            if client != "lua" {
                told.entry(client.to_owned()).or_default().push(words);
            }
        }
    }

    /// Errors that it answered, by their first word.
    fn errors(&self) -> BTreeMap<String, u64> {
        let statistics = self.ask(&["INFO", "errorstats"]);
        let lines = statistics
            .lines()
            .filter_map(|line| line.trim().strip_prefix("errorstat_")?.split_once(":count="));
        lines.map(|(code, count)| (code.to_owned(), count.parse().unwrap())).collect()
    }
}

/// Words as MONITOR and the trail write them: plain, or in quotes with escapes.
fn unquote(line: &str) -> Vec<Vec<u8>> {
    let (mut words, mut rest) = (Vec::new(), line.as_bytes());
    while let [first, ..] = rest {
        let mut word = Vec::new();
        if *first == b' ' {
            rest = &rest[1..];
            continue;
        } else if *first == b'"' {
            rest = &rest[1..];
            loop {
                match rest {
                    [b'"', after @ ..] => {
                        rest = after;
                        break;
                    }
                    [b'\\', b'x', high, low, after @ ..] => {
                        let digits = [*high, *low];
                        word.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                        rest = after;
                    }
                    [b'\\', letter, after @ ..] => {
                        word.push(match letter {
                            b'n' => b'\n',
                            b'r' => b'\r',
                            b't' => b'\t',
                            b'a' => 7,
                            b'b' => 8,
                            letter => *letter,
                        });
                        rest = after;
                    }
                    [byte, after @ ..] => {
                        word.push(*byte);
                        rest = after;
                    }
                    [] => panic!("no end: {line}"),
                }
            }
        } else {
            let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
            word.extend_from_slice(&rest[..end]);
            rest = &rest[end..];
        }
        words.push(word);
    }
    words
}

/// What MONITOR does not show: commands of administrators, and what was not executed.
fn is_hidden(words: &[Vec<u8>], statement: &Value) -> bool {
    let name = String::from_utf8_lossy(&words[0]).to_uppercase();
    let message = statement["error_message"].as_str().unwrap_or_default();
    ["CONFIG", "ACL", "MONITOR"].contains(&name.as_str())
        || statement["outcome"] == "skipped"
        || ["unknown command", "unknown subcommand", "wrong number of arguments"]
            .iter()
            .any(|why| message.contains(why))
}

struct Scene {
    redis: Redis,
    daemon: Daemon,
}

impl Scene {
    fn new() -> Self {
        require_root().unwrap();
        let redis = Redis::start();
        let port = redis.port;
        let configuration = format!(
            "[[agent]]\nname = \"{AGENT}\"\npolicy = \"cache\"\n\n[[policy]]\nname = \"cache\"\ndefault = \"deny\"\n\
             [[policy.rule]]\nto = [\"127.0.0.1:{port}\", \"[::1]:{port}\"]\naction = \"allow\"\nprotocol = \"redis\"\n"
        );
        Self { redis, daemon: Daemon::start(&configuration).unwrap() }
    }

    fn run(&self, words: &[OsString]) {
        let output = self.daemon.run(AGENT, UNPRIVILEGED, words).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{words:?}: {}\n{stderr}\ndaemon: {}",
            output.status,
            self.daemon.said()
        );
    }

    /// Holds both accounts against each other; returns the trail's statements.
    fn judge(mut self, least: usize) -> Vec<Value> {
        let mut told = self.redis.told();
        let errors = self.redis.errors();
        self.daemon.settle().unwrap();
        let records = self.daemon.records().unwrap();
        let statements: Vec<Value> = records
            .iter()
            .filter(|record| record["unmapped"]["auditor"]["kind"] == "statement")
            .cloned()
            .collect();
        let mut matched = 0;
        let mut failed: BTreeMap<String, u64> = BTreeMap::new();
        let mut by_client: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
        for record in &statements {
            let end = &record["src_endpoint"];
            let (ip, port) = (end["ip"].as_str().unwrap(), end["port"].as_u64().unwrap());
            let client = if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
            by_client.entry(client).or_default().push(record);
        }
        for (client, records) in by_client {
            let mut executed = told.remove(&client).unwrap_or_default().into_iter();
            for (number, record) in records.iter().enumerate() {
                let own = &record["unmapped"]["auditor"];
                let statement = &own["statement"];
                assert_eq!(statement["seq"], number + 1, "{record}");
                assert_eq!(own["agent"]["name"], AGENT, "{record}");
                assert_eq!(own["connection"]["protocol"], "redis", "{record}");
                assert_ne!(statement["outcome"], "unknown", "{record}");
                if statement["outcome"] == "failed" {
                    *failed.entry(statement["error_code"].as_str().unwrap().to_owned()).or_default() += 1;
                }
                let mut words = unquote(record["query_info"]["query_string"].as_str().unwrap());
                if words[0] == b"AUTH" {
                    // MONITOR leaves out the user's name, too.
                    words.iter_mut().skip(1).for_each(|word| *word = b"(redacted)".to_vec());
                }
                if !is_hidden(&words, statement) {
                    assert_eq!(executed.next().as_ref(), Some(&words), "{client}: {record}");
                    matched += 1;
                }
            }
            assert_eq!(executed.next(), None, "{client}");
        }
        // The daemon's own questions come from nowhere else than here.
        told.retain(|_, commands| commands.iter().any(|words| !words[0].eq_ignore_ascii_case(b"COMMAND")));
        let asked = |commands: &Vec<Vec<Vec<u8>>>| {
            commands.iter().all(|words| words[0] == b"INFO" || words[0] == b"ECHO")
        };
        told.retain(|_, commands| !asked(commands));
        assert!(told.is_empty(), "not in the trail: {told:?}");
        assert_eq!(failed, errors, "errors by code");
        assert!(matched >= least, "only {matched} commands: the test did not do its work");
        eprintln!("oracle, redis: {matched} commands matched, {} in the trail, {errors:?}", statements.len());
        for record in
            records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "connection-closed")
        {
            let coverage = &record["unmapped"]["auditor"]["connection"]["coverage"];
            assert_eq!(coverage["sent"], coverage["audited_sent"], "{record}");
            assert_eq!(coverage["received"], coverage["audited_received"], "{record}");
        }
        self.daemon.stop().unwrap();
        statements
    }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[test]
fn redis_cli_with_a_script() {
    let scene = Scene::new();
    let script = clients::write(scene.daemon.home().folder(), "redis.txt", clients::REDIS_CLI).unwrap();
    let port = scene.redis.port.to_string();
    for host in ["127.0.0.1", "::1"] {
        let line = format!("exec redis-cli -h {host} -p {port} < {} > /dev/null", script.display());
        scene.run(&words(&["/bin/sh", "-c", &line]));
    }
    let statements = scene.judge(40);
    let text = serde_json::to_string(&statements).unwrap();
    assert!(!text.contains("secret-") && text.contains("(redacted)"), "{text}");
    let meaning = |query: &str| {
        let found = statements.iter().find(|record| record["query_info"]["query_string"] == query);
        found.unwrap()["unmapped"]["auditor"]["statement"].clone()
    };
    assert_eq!(meaning("DEL x y")["objects"], serde_json::json!(["x", "y"]));
    assert_eq!(meaning("DEL x y")["verb"], "del");
    assert_eq!(meaning("DEL x y")["classes"], serde_json::json!(["writes"]));
}

#[test]
fn redis_benchmark_with_pipelines() {
    let scene = Scene::new();
    let port = scene.redis.port.to_string();
    let load = ["-p", &port, "-n", "2000", "-c", "8", "-P", "16", "-q", "-t", "set,get,lpush,mset"];
    scene.run(&words(&[&["redis-benchmark"][..], &load].concat()));
    scene.judge(8000);
}

#[test]
fn redis_py_over_both_versions_of_the_protocol() {
    let scene = Scene::new();
    let folder = scene.daemon.home().folder();
    let script = clients::write(folder, "redis_client.py", clients::REDIS_PY).unwrap();
    let python = Python::with_redis(folder).unwrap();
    scene.run(&python.words(&script, &["127.0.0.1", &scene.redis.port.to_string()]));
    scene.judge(8000);
}

#[test]
fn ioredis() {
    let scene = Scene::new();
    let folder = scene.daemon.home().folder();
    let script = clients::write(folder, "redis_client.js", clients::IOREDIS).unwrap();
    let mut words = runtimes::node_with_redis(folder, &script).unwrap();
    words.extend(["127.0.0.1".into(), scene.redis.port.to_string().into()]);
    scene.run(&words);
    scene.judge(1000);
}
