//! Every request that a server was sent is in the trail: in order, with its status and its sizes, attributed; none is invented, and no
//! secret is in any record of one. nginx's own log is the judge, and for gRPC the server's account of its calls.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use auditor_tests::certificates::SERVER;
use auditor_tests::child::{self, Child};
use auditor_tests::daemon::Daemon;
use auditor_tests::nginx::Nginx;
use auditor_tests::python::{self, Python};
use auditor_tests::{UNPRIVILEGED, clients, oracle, place, require_root};
use nix::sys::signal::Signal;
use serde_json::Value;

const AGENT: &str = "web-agent";
const LIMIT: Duration = Duration::from_secs(60);

/// A daemon whose agent may speak HTTP to these.
fn daemon(allowed: &[String]) -> Daemon {
    let allowed: Vec<String> = allowed.iter().map(|to| format!("{to:?}")).collect();
    Daemon::start(&format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"web\"\n\n[[policy]]\nname = \"web\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [{}]\naction = \"allow\"\nprotocol = \"http\"\n",
        allowed.join(", ")
    ))
    .unwrap()
}

fn nginx() -> (Nginx, Daemon) {
    require_root().unwrap();
    let nginx = Nginx::start().unwrap();
    let ports = nginx.ports();
    let allowed = [ports.plain, ports.two, ports.tls].map(|port| format!("127.0.0.1:{port}"));
    (nginx, daemon(&allowed))
}

/// Runs a client in a session; gives what it printed.
fn run(daemon: &Daemon, words: &[OsString]) -> String {
    let output = daemon.run(AGENT, UNPRIVILEGED, words).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {}\n{stderr}\ndaemon: {}", output.status, daemon.said());
    String::from_utf8(output.stdout).unwrap()
}

fn words(program: &str, arguments: &[&str]) -> Vec<OsString> {
    [program].iter().chain(arguments).map(OsString::from).collect()
}

/// What the trail has once all sessions have ended.
fn settled(daemon: Daemon) -> Vec<Value> {
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    check_trail(&daemon, &records);
    daemon.stop().unwrap();
    records
}

/// Nothing was lost, nothing broke a rule, no secret is in a record, and each is valid OCSF.
fn check_trail(daemon: &Daemon, records: &[Value]) {
    let mut lines = String::new();
    for record in records {
        let own = &record["unmapped"]["auditor"];
        match own["kind"].as_str().unwrap() {
            "finding" | "gap" => panic!("{record}"),
            "connection-closed" => {
                let coverage = &own["connection"]["coverage"];
                assert_eq!(coverage["gaps"].as_array().map(Vec::len), Some(0), "{record}");
                assert_eq!(own["connection"]["protocol"], "http", "{record}");
                if own["connection"]["tls"].is_null() {
                    assert_eq!(coverage["sent"], coverage["audited_sent"], "{record}");
                    assert_eq!(coverage["received"], coverage["audited_received"], "{record}");
                }
            }
            "request" => {
                let line = record.to_string();
                assert!(!line.contains("s3cret"), "{record}");
                assert_eq!(
                    (&record["class_uid"], &own["agent"]["name"]),
                    (&6003.into(), &AGENT.into()),
                    "{record}"
                );
                lines.push_str(&line);
                lines.push('\n');
            }
            _ => {}
        }
    }
    let input = clients::write(daemon.home().folder(), "requests.txt", &lines).unwrap();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "exec \"$1\" \"$2\" < \"$3\"", "sh"]);
    shell
        .arg(python::environment().unwrap().join("bin/python3"))
        .arg(place::tree().join("tests/ocsf_validate.py"));
    let output = child::output(shell.arg(input), LIMIT).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn requests(records: &[Value]) -> Vec<&Value> {
    records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "request").collect()
}

/// One request as both accounts have it: what cannot be told apart must be equal.
#[derive(Debug, Eq, PartialEq)]
struct Told {
    method: String,
    target: String,
    host: String,
    version: String,
    agent: String,
    status: u64,
    /// Bytes of the answer, head and framing included.
    sent: u64,
    /// Bytes of its body; `None` where the server counts them with their chunks.
    body: Option<u64>,
    /// Bytes of the whole request; `None` where the server counts other ones.
    asked: Option<u64>,
    /// Bytes of its body, where it says so.
    content: Option<u64>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn told_by_nginx(row: &Value) -> Told {
    let number = |name: &str| row[name].as_str().and_then(|text| text.parse::<u64>().ok());
    let two = row["protocol"] == "HTTP/2.0";
    Told {
        method: text(&row["method"]),
        target: text(&row["uri"]).replace("s3cret", "***"),
        host: text(&row["host"]),
        version: if two { "2".to_owned() } else { text(&row["protocol"]).replace("HTTP/", "") },
        agent: text(&row["agent"]),
        status: number("status").unwrap(),
        sent: number("sent").unwrap(),
        body: number("body").filter(|_| row["encoding"] != "chunked"),
        // Of HTTP/2 it counts fields without their frames.
        asked: number("length").filter(|_| !two),
        content: number("content"),
    }
}

fn told_by_trail(record: &Value, judge: &Told) -> Told {
    let request = &record["unmapped"]["auditor"]["request"];
    let number = |name: &str| request[name].as_u64();
    assert_eq!(request["outcome"], "answered", "{record}");
    assert_eq!(record["http_response"]["code"], request["status"], "{record}");
    let told = Told {
        method: text(&request["method"]),
        target: text(&request["path"]),
        host: text(&request["authority"]),
        version: text(&request["version"]),
        agent: text(&request["user_agent"]),
        status: number("status").unwrap(),
        sent: number("response_bytes").unwrap(),
        body: number("response_body_bytes").filter(|_| judge.body.is_some()),
        asked: number("request_bytes").filter(|_| judge.asked.is_some()),
        content: number("request_body_bytes").filter(|_| judge.content.is_some()),
    };
    // nginx has no $http_host where HTTP/2 has :authority only.
    let host = if judge.host.is_empty() { String::new() } else { told.host.clone() };
    Told { host, ..told }
}

/// Compares the two accounts, connection by connection. `name`: of the client.
fn compare(name: &str, rows: &[Value], records: &[Value], least: usize) {
    let mut judged: BTreeMap<u16, Vec<&Value>> = BTreeMap::new();
    for row in rows {
        judged.entry(text(&row["port"]).parse().unwrap()).or_default().push(row);
    }
    let mut recorded: BTreeMap<u16, Vec<&Value>> = BTreeMap::new();
    for record in requests(records) {
        recorded.entry(oracle::client(record).unwrap().port()).or_default().push(record);
    }
    assert_eq!(
        judged.keys().collect::<Vec<_>>(),
        recorded.keys().collect::<Vec<_>>(),
        "{name}: other connections"
    );
    let mut matched = 0;
    for (port, rows) in &mut judged {
        // By their place on the connection, which both count from 1.
        rows.sort_by_key(|row| text(&row["number"]).parse::<u64>().unwrap());
        let found = recorded.get_mut(port).unwrap();
        let sequence = |record: &&Value| record["unmapped"]["auditor"]["request"]["seq"].as_u64().unwrap();
        if found[0]["unmapped"]["auditor"]["request"]["version"] != "2" {
            assert!(found.is_sorted_by_key(sequence), "{name}: out of order");
        }
        found.sort_by_key(sequence);
        for (row, record) in rows.iter().zip(found.iter()) {
            let judge = told_by_nginx(row);
            assert_eq!(told_by_trail(record, &judge), judge, "{name}: {record}\n{row}");
            matched += 1;
        }
        assert_eq!(rows.len(), found.len(), "{name}");
    }
    eprintln!("http, {name}: {} connections, {matched} requests matched, 0 lost, 0 invented", judged.len());
    assert!(matched >= least, "{name}: only {matched} requests: the test did not do its work");
}

/// Runs curl with arguments in a file: what stands on a command line is in the trail as the process's. `together`: all URLs on one
/// connection. Answers how many there were.
fn curl(nginx: &Nginx, daemon: &Daemon, together: bool, options: &[&str], urls: &[String]) -> usize {
    let authority = format!("cacert = \"{}\"", nginx.certificates().authority().display());
    let options =
        ["silent", "show-error", "noproxy = \"*\"", &authority].into_iter().chain(options.iter().copied());
    let options = options.collect::<Vec<_>>().join("\n");
    for urls in urls.chunks(if together { urls.len() } else { 1 }) {
        let urls: String =
            urls.iter().map(|url| format!("url = \"{url}\"\noutput = \"/dev/null\"\n")).collect();
        let file = clients::write(daemon.home().folder(), "curlrc", &format!("{options}\n{urls}")).unwrap();
        run(daemon, &words("curl", &["--config", file.to_str().unwrap()]));
    }
    urls.len()
}

#[test]
fn curl_with_both_versions_in_the_clear_and_under_tls() {
    let (nginx, daemon) = nginx();
    let ports = nginx.ports();
    let plain = format!("http://127.0.0.1:{}", ports.plain);
    let two = format!("http://127.0.0.1:{}", ports.two);
    let tls = format!("https://{SERVER}:{}", ports.tls);
    let long = clients::write(daemon.home().folder(), "body.bin", &"b".repeat(200_000)).unwrap();
    let body = format!("data-binary = \"@{}\"", long.display());
    let secrets =
        ["header = \"Authorization: Bearer s3cret\"", "header = \"X-Api-Key: s3cret\"", "compressed"];
    let chunked = "header = \"Transfer-Encoding: chunked\"";
    let mut made = 0;
    for (base, version) in
        [(&plain, "http1.1"), (&two, "http2-prior-knowledge"), (&tls, "http1.1"), (&tls, "http2")]
    {
        let urls = ["short.txt?x=1&sig=s3cret", "long.txt", "gone", "nothing", "away"];
        let urls = urls.map(|path| format!("{base}/{path}"));
        let take = [format!("{base}/take"), format!("{base}/take?again=1")];
        // curl 7.88 cannot use a connection again for which it had prior knowledge.
        let together = version != "http2-prior-knowledge";
        made += curl(&nginx, &daemon, together, &[&secrets[..], &[version]].concat(), &urls);
        made += curl(&nginx, &daemon, together, &[version, "head"], &urls);
        made += curl(&nginx, &daemon, together, &[version, &body], &take);
        made += curl(&nginx, &daemon, together, &[version, &body, chunked], &take);
    }
    // An upgrade that nobody takes up.
    made += curl(&nginx, &daemon, true, &["http2"], &[format!("{plain}/gone"), format!("{plain}/short.txt")]);
    let rows = nginx.log(made).unwrap();
    compare("curl", &rows, &settled(daemon), made);
}

#[test]
fn httpx_with_both_versions_in_the_clear_and_under_tls() {
    let (nginx, daemon) = nginx();
    let ports = nginx.ports();
    let python = Python::with_http(daemon.home().folder()).unwrap();
    let script = clients::write(daemon.home().folder(), "http_client.py", clients::HTTPX).unwrap();
    let authority = nginx.certificates().authority();
    let authority = authority.to_str().unwrap();
    let mut made = 0;
    for (base, version) in [
        (format!("http://127.0.0.1:{}", ports.plain), "1"),
        (format!("http://127.0.0.1:{}", ports.two), "2"),
        (format!("https://{SERVER}:{}", ports.tls), "1"),
        (format!("https://{SERVER}:{}", ports.tls), "2"),
    ] {
        let said = run(&daemon, &python.words(&script, &[&base, version, "6", authority]));
        made += said.trim().parse::<usize>().unwrap();
    }
    let rows = nginx.log(made).unwrap();
    compare("httpx", &rows, &settled(daemon), made);
}

#[test]
fn node_with_fetch_and_http2() {
    let (nginx, daemon) = nginx();
    let ports = nginx.ports();
    let script = clients::write(daemon.home().folder(), "http_client.js", clients::NODE_HTTP).unwrap();
    let mut made = 0;
    for (way, base) in [
        ("fetch", format!("http://127.0.0.1:{}", ports.plain)),
        ("http2", format!("http://127.0.0.1:{}", ports.two)),
        ("fetch", format!("https://{SERVER}:{}", ports.tls)),
        ("http2", format!("https://{SERVER}:{}", ports.tls)),
    ] {
        let mut trusted = OsString::from("NODE_EXTRA_CA_CERTS=");
        trusted.push(nginx.certificates().authority());
        let mut words = vec!["/usr/bin/env".into(), trusted, "node".into(), script.clone().into()];
        words.extend([way, &base, "6"].map(OsString::from));
        made += run(&daemon, &words).trim().parse::<usize>().unwrap();
    }
    let rows = nginx.log(made).unwrap();
    compare("node", &rows, &settled(daemon), made);
}

/// A server in Python that prints its port first, and then lines.
fn script(python: &[OsString]) -> (Child, u16, Arc<Mutex<Vec<String>>>) {
    let mut command = Command::new(&python[0]);
    command.args(&python[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = Child::start(&mut command, Signal::SIGKILL).unwrap();
    let mut lines = BufReader::new(child.take_stdout().unwrap()).lines();
    let port = lines.next().unwrap().unwrap().parse().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    thread::spawn(move || lines.map_while(Result::ok).for_each(|line| telling.lock().unwrap().push(line)));
    (child, port, told)
}

fn wait_for(told: &Mutex<Vec<String>>, count: usize) -> Vec<String> {
    let start = Instant::now();
    loop {
        let lines = told.lock().unwrap().clone();
        if lines.len() >= count {
            return lines;
        }
        assert!(start.elapsed() < LIMIT, "{} of {count} lines", lines.len());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn grpc_calls_have_their_method_and_status() {
    require_root().unwrap();
    let folder = place::scratch().unwrap();
    let python = Python::with_http(folder.path()).unwrap();
    let write = |name, content| clients::write(folder.path(), name, content).unwrap();
    let (_server, port, told) = script(&python.words(&write("grpc_server.py", clients::GRPC_SERVER), &[]));
    let daemon = daemon(&[format!("127.0.0.1:{port}")]);
    let client = write("grpc_client.py", clients::GRPC_CLIENT);
    let rounds = 30;
    run(&daemon, &python.words(&client, &[&port.to_string(), &rounds.to_string()]));
    let told = wait_for(&told, 3 * rounds);
    let records = settled(daemon);
    let mut judged: Vec<_> = told
        .iter()
        .map(|line| {
            let call: Value = serde_json::from_str(line).unwrap();
            let number = |name: &str| call[name].as_u64().unwrap();
            (text(&call["method"]), number("code"), number("taken"), number("given"))
        })
        .collect();
    let mut recorded: Vec<_> = requests(&records)
        .into_iter()
        .map(|record| {
            let request = &record["unmapped"]["auditor"]["request"];
            let grpc = &request["grpc"];
            assert_eq!(grpc["message"].as_str(), (grpc["status"] == 5).then_some("no such thing: \u{e4}"));
            assert_eq!(record["status_id"], if grpc["status"] == 0 { 1 } else { 2 }, "{record}");
            let number = |name: &str| request[name].as_u64().unwrap();
            let method = format!("/{}/{}", text(&grpc["service"]), text(&grpc["method"]));
            let (taken, given) = (number("request_body_bytes"), number("response_body_bytes"));
            (method, grpc["status"].as_u64().unwrap(), taken, given)
        })
        .collect();
    judged.sort();
    recorded.sort();
    eprintln!("http, gRPC: {} calls told, {} recorded", judged.len(), recorded.len());
    assert_eq!(judged, recorded);
}

#[test]
fn what_is_in_a_tunnel_is_read_and_so_is_what_is_under_tls_in_it() {
    let (nginx, _) = nginx();
    let folder = place::scratch().unwrap();
    let proxy = clients::write(folder.path(), "http_proxy.py", clients::HTTP_PROXY).unwrap();
    let (_proxy, port, _) = script(&words("/usr/bin/python3", &["-B", proxy.to_str().unwrap()]));
    let daemon = daemon(&[format!("127.0.0.1:{port}")]);
    let ports = nginx.ports();
    let through = |target: &str| {
        let mut words = words("curl", &["--silent", "--show-error", "--proxytunnel", "--noproxy", ""]);
        words.extend(["--proxy".into(), format!("http://127.0.0.1:{port}").into()]);
        words.extend(["--cacert".into(), nginx.certificates().authority().into(), target.into()]);
        run(&daemon, &words);
    };
    through(&format!("http://127.0.0.1:{}/gone", ports.plain));
    through(&format!("https://{SERVER}:{}/gone", ports.tls));
    let records = settled(daemon);
    let told: Vec<_> = requests(&records)
        .into_iter()
        .map(|record| {
            let own = &record["unmapped"]["auditor"];
            let (request, tls) = (&own["request"], &own["connection"]["tls"]);
            (
                text(&request["method"]),
                request["status"].as_u64(),
                text(&request["upgrade"]),
                tls["decrypted"].as_bool(),
            )
        })
        .collect();
    let tunnel = ("CONNECT".to_owned(), Some(200), "tunnel".to_owned(), None);
    let inside = |tls| ("GET".to_owned(), Some(410), String::new(), tls);
    assert_eq!(told, [tunnel.clone(), inside(None), tunnel, inside(Some(true))]);
}

#[test]
fn docker_s_api_on_a_unix_socket() {
    require_root().unwrap();
    let nginx = Nginx::start().unwrap();
    let socket = nginx.socket();
    let daemon = daemon(&[format!("unix:{}", socket.display())]);
    let base = "http://localhost/v1.43";
    let socket = |socket: &Path| socket.to_str().unwrap().to_owned();
    let mut words =
        words("curl", &["--silent", "--unix-socket", &socket(&nginx.socket()), "--request", "POST"]);
    words.extend(
        [format!("{base}/containers/create?name=web"), format!("{base}/containers/web/start")]
            .map(OsString::from),
    );
    run(&daemon, &words);
    let records = settled(daemon);
    let told: Vec<_> = requests(&records)
        .into_iter()
        .map(|record| {
            let api = &record["unmapped"]["auditor"]["request"]["api"];
            [&api["service"], &api["verb"], &api["resource"], &api["name"]].map(text)
        })
        .collect();
    assert_eq!(told, [["docker", "create", "containers", "web"], ["docker", "start", "containers", "web"]]);
    assert_eq!(nginx.log(2).unwrap().len(), 2);
}

#[test]
fn the_log_shows_requests_and_finds_them() {
    let (nginx, daemon) = nginx();
    let base = format!("http://127.0.0.1:{}", nginx.ports().plain);
    curl(&nginx, &daemon, true, &[], &[format!("{base}/gone?token=s3cret")]);
    daemon.settle().unwrap();
    let shown = daemon.ask(&["log", "--kind", "request", "--protocol", "http"]).unwrap();
    let host = base.strip_prefix("http://").unwrap();
    assert!(shown.contains(&format!("410        GET {host}/gone?token=***")), "{shown}");
    let record = requests(&daemon.records().unwrap())[0].clone();
    let id = record["http_request"]["uid"].as_str().unwrap();
    let one = daemon.ask(&["show", id]).unwrap();
    assert!(one.contains("/gone") && !one.contains("s3cret"), "{one}");
    let sessions: Value = serde_json::from_str(&daemon.ask(&["sessions", "--json"]).unwrap()).unwrap();
    assert_eq!(sessions["statements"], 1, "{sessions}");
    daemon.stop().unwrap();
}
