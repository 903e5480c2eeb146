//! PostgreSQL over its unix socket: what it was told and what it answered is in the trail as over TCP. The server's own log is the judge
//! of statements, what the programs moved of bytes.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use auditor_tests::cgroup::OwnCgroup;
use auditor_tests::daemon::{Daemon, Home};
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::python::Python;
use auditor_tests::{UNPRIVILEGED, child, clients, oracle, place, require_root};
use nix::sys::signal::Signal;
use serde_json::Value;

const AGENT: &str = "unix-agent";
/// By this name the server knows connections of agents.
const APPLICATION: &str = "agent";
const LIMIT: Duration = Duration::from_secs(60);

fn configuration(postgres: &Postgres, more: &str) -> String {
    let socket = format!("unix:{}/*", postgres.socket_folder().display());
    format!(
        "{more}[[agent]]\nname = \"{AGENT}\"\npolicy = \"database\"\n\n[[policy]]\nname = \"database\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"{socket}\"]\naction = \"allow\"\nprotocol = \"postgres\"\n"
    )
}

/// Where libpq finds the server, and under which name.
fn target(postgres: &Postgres) -> String {
    format!(
        "host={} port={} user=postgres dbname=postgres application_name={APPLICATION}",
        postgres.socket_folder().display(),
        postgres.port()
    )
}

fn words(program: OsString, arguments: &[&str]) -> Vec<OsString> {
    let mut words = vec![program];
    words.extend(arguments.iter().map(OsString::from));
    clients::telling_pid(&words)
}

/// Runs a client in a session; returns its process id and what it printed.
fn run(daemon: &Daemon, words: &[OsString]) -> (u32, String) {
    let output = daemon.run(AGENT, UNPRIVILEGED, words).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {}\n{stderr}\ndaemon: {}", output.status, daemon.said());
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    (clients::pid_told(&output.stderr).unwrap(), printed)
}

fn closed(records: &[Value]) -> Vec<&Value> {
    let closed = |record: &&Value| record["unmapped"]["auditor"]["kind"] == "connection-closed";
    records.iter().filter(closed).map(|record| &record["unmapped"]["auditor"]["connection"]).collect()
}

/// What is missing of a direction by the records of gaps: a connection's own list holds the first of them only.
fn missing(records: &[Value], connection: &Value, direction: &str) -> u64 {
    records
        .iter()
        .map(|record| &record["unmapped"]["auditor"])
        .filter(|own| own["kind"] == "gap" && own["connection"]["id"] == connection["id"])
        .filter(|own| own["gap"]["direction"] == direction)
        .map(|own| own["gap"]["length"].as_u64().unwrap())
        .sum()
}

/// Every byte that a call has moved is audited, opaque, or in a gap.
fn check_sums(records: &[Value], connection: &Value) {
    let coverage = &connection["coverage"];
    assert_eq!(coverage["method"], "calls", "{connection}");
    for direction in ["sent", "received"] {
        let count = |name: String| coverage[name].as_u64().unwrap();
        let seen = count(format!("audited_{direction}")) + count(format!("opaque_{direction}"));
        let missing = missing(records, connection, direction);
        assert_eq!(count(direction.to_owned()), seen + missing, "{direction}: {connection}");
        let listed = coverage["gaps"].as_array().unwrap().iter().filter(|gap| gap["direction"] == direction);
        assert!(listed.map(|gap| gap["length"].as_u64().unwrap()).sum::<u64>() <= missing, "{connection}");
    }
}

/// Nothing is missing anywhere.
fn check_whole(daemon: &Daemon, records: &[Value]) {
    for connection in closed(records) {
        check_sums(records, connection);
        assert_eq!(connection["coverage"]["gaps"].as_array().map(Vec::len), Some(0), "{connection}");
        assert_eq!(connection["coverage"]["unreadable"], 0, "{connection}");
        assert_eq!(connection["coverage"]["opaque_sent"], 0, "{connection}");
    }
    let status = daemon.status().unwrap();
    assert_eq!(status["failures"].as_array().map(Vec::len), Some(0), "{status}");
}

/// The records of the n-th session are of the n-th client's process.
fn check_attribution(records: &[Value], pids: &[u32]) {
    let opened = records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "session-opened");
    let sessions: Vec<&str> =
        opened.map(|record| record["unmapped"]["auditor"]["session"]["id"].as_str().unwrap()).collect();
    assert_eq!(sessions.len(), pids.len(), "one session a client");
    for record in records.iter().filter(|record| oracle::is_statement(record)) {
        let own = &record["unmapped"]["auditor"];
        let number = sessions.iter().position(|id| own["session"]["id"] == *id).unwrap();
        assert_eq!(record["actor"]["process"]["pid"], pids[number], "{record}");
        assert_eq!(own["agent"]["name"], AGENT, "{record}");
        assert_eq!(own["connection"]["user"], "postgres", "{record}");
        assert_eq!(own["connection"]["socket"], record["dst_endpoint"]["name"], "{record}");
        assert!(own["connection"]["rule"].as_str().unwrap().starts_with("database#1: unix:"), "{record}");
    }
}

fn compare(daemon: Daemon, postgres: &Postgres, pids: &[u32], least: usize) {
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let report = oracle::compare_local(&postgres.log().unwrap(), &records, APPLICATION).unwrap();
    eprintln!("{report}");
    assert!(report.is_equal(), "{report}\ndaemon: {}", daemon.said());
    assert!(report.told >= least, "only {} statements: the test did not do its work", report.told);
    check_attribution(&records, pids);
    check_whole(&daemon, &records);
    daemon.stop().unwrap();
}

#[test]
fn psql_scripts() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&configuration(&postgres, "")).unwrap();
    let long = format!("{}select '{}' as long;\n", clients::STATEMENTS, "0123456789abcdef".repeat(6400));
    let script = clients::write(daemon.home().folder(), "statements.sql", &long).unwrap();
    let psql = postgres.program("psql").into_os_string();
    let script = script.to_str().unwrap();
    let (pid, _) = run(&daemon, &words(psql, &["-X", "-q", "-d", &target(&postgres), "-f", script]));
    // Whoever is no agent is not read.
    postgres.sql("select 'a bystander'").unwrap();
    compare(daemon, &postgres, &[pid], 40);
}

#[test]
fn pgbench_with_eight_clients() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&configuration(&postgres, "")).unwrap();
    let pgbench = || postgres.program("pgbench").into_os_string();
    let target = target(&postgres);
    let mut pids = vec![run(&daemon, &words(pgbench(), &["-i", "-q", &target])).0];
    for mode in ["simple", "extended", "prepared"] {
        let arguments = ["-n", "-c", "8", "-j", "2", "-t", "140", "-M", mode, &target];
        pids.push(run(&daemon, &words(pgbench(), &arguments)).0);
    }
    compare(daemon, &postgres, &pids, 20_000);
}

#[test]
fn a_driver_with_parameters_pipeline_copy_and_cursor() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&configuration(&postgres, "")).unwrap();
    let python = Python::new(daemon.home().folder()).unwrap();
    let script = clients::write(daemon.home().folder(), "driver.py", clients::DRIVER).unwrap();
    let (pid, _) = run(&daemon, &python.words(&script, &[&target(&postgres)]));
    compare(daemon, &postgres, &[pid], 150);
}

#[test]
fn every_way_to_say_something_is_heard() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&configuration(&postgres, "")).unwrap();
    let script = clients::write(daemon.home().folder(), "unix_ways.py", clients::UNIX_WAYS).unwrap();
    let path = format!("{}/.s.PGSQL.{}", postgres.socket_folder().display(), postgres.port());
    let words: Vec<OsString> =
        vec!["/usr/bin/python3".into(), "-B".into(), script.into_os_string(), path.into()];
    let said = |printed: &str| printed.lines().filter(|line| line.contains("said ")).count();
    let (pid, printed) = run(&daemon, &words);
    // What `auditor run` starts may not use io_uring.
    assert_eq!(said(&printed), 10, "{printed}");
    assert!(printed.contains("by_io_uring not here: [Errno 1]"), "{printed}");
    daemon.settle().unwrap();
    // What was tagged may.
    let cgroup = OwnCgroup::tagged(&daemon, AGENT).unwrap();
    let mut command = cgroup.command("/usr/bin/python3");
    let output = child::output(command.args(&words[1..]), LIMIT).unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said(&printed), 11, "{printed}");
    let pids = [pid, clients::pid_told(&output.stderr).unwrap()];
    compare(daemon, &postgres, &pids, 21);
}

fn gigabytes(rows: u32) -> (String, String) {
    let text = "repeat(md5(g::text), 30)";
    (
        format!("copy (select g, {text} from generate_series(1, {rows}) g) to stdout"),
        "copy copied from stdin".to_owned(),
    )
}

/// COPY out and in of so many rows of a kilobyte. What is missing is in gaps, exactly; the statements are there.
fn copy_both_ways(more: &str, rows: u32) -> Vec<Value> {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    postgres.sql("create table copied (number int, text text)").unwrap();
    let home = Home::new(place::auditor("debug").unwrap(), &configuration(&postgres, more)).unwrap();
    let daemon = Daemon::start_in(home).unwrap();
    let (out, into) = gigabytes(rows);
    let psql = postgres.program("psql").display().to_string();
    let target = target(&postgres);
    let command = format!("{psql} -X -q -d '{target}' -c '{out}' | {psql} -X -q -d '{target}' -c '{into}'");
    let (pid, _) = run(&daemon, &words("/bin/sh".into(), &["-c", &command]));
    assert_ne!(pid, 0);
    daemon.settle().unwrap();
    assert_eq!(postgres.sql("select count(*) from copied").unwrap().trim(), rows.to_string());
    let records = daemon.records().unwrap();
    for connection in closed(&records) {
        check_sums(&records, connection);
        eprintln!("{}", connection["coverage"]);
    }
    assert_eq!(closed(&records).len(), 2);
    daemon.stop().unwrap();
    records
}

#[test]
fn a_large_copy_both_ways() {
    let rows = 100_000;
    // Room for what is still said while a busy host has not yet let the daemon hold the session back.
    let records = copy_both_ways("[daemon]\nring_bytes = 67108864\n\n", rows);
    let moved: Vec<_> = closed(&records)
        .iter()
        .map(|connection| {
            // The session was held back whenever it filled the ring.
            assert_eq!(connection["coverage"]["gaps"].as_array().map(Vec::len), Some(0), "{connection}");
            let count = |name: &str| connection["coverage"][name].as_u64().unwrap();
            count("sent").max(count("received"))
        })
        .collect();
    assert!(moved.iter().all(|moved| *moved > u64::from(rows) * 900), "{moved:?}");
    let statements: Vec<_> = records.iter().filter(|record| oracle::is_statement(record)).collect();
    assert_eq!(statements.len(), 2);
    for statement in statements {
        assert_eq!(statement["unmapped"]["auditor"]["statement"]["rows"], rows, "{statement}");
    }
}

#[test]
fn a_daemon_that_is_killed_loses_nothing_and_tells_nothing_twice() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let mut daemon = Daemon::start(&configuration(&postgres, "")).unwrap();
    let script =
        "\\set n random(1, 1000000)\nselect :n as number, 'row ' || g from generate_series(1, 30) g;\n";
    let script = clients::write(daemon.home().folder(), "bench.sql", script).unwrap();
    let pgbench = postgres.program("pgbench").into_os_string();
    let script = script.to_str().unwrap();
    let target = target(&postgres);
    let arguments = ["-n", "-c", "4", "-M", "prepared", "-R", "100", "-T", "20", "-f", script, &target];
    let mut command = daemon.home().run(AGENT, UNPRIVILEGED, &words(pgbench, &arguments));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut client = child::Child::start(&mut command, Signal::SIGKILL).unwrap();
    let mut said = BufReader::new(client.take_stderr().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let pid = clients::pid_told(line.as_bytes()).unwrap();
    // A daemon that is dropped takes down the pins of those who follow.
    let mut ended = Vec::new();
    for kill in 0..3 {
        thread::sleep(Duration::from_millis(700 + 333 * kill));
        daemon.kill().unwrap();
        let next = Daemon::start_in(daemon.home().next().unwrap()).unwrap();
        ended.push(std::mem::replace(&mut daemon, next));
    }
    assert!(client.wait(LIMIT).unwrap().success());
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let report = oracle::compare_local(&postgres.log().unwrap(), &records, APPLICATION).unwrap();
    eprintln!("{report}");
    assert!(report.is_equal(), "{report}\ndaemon: {}", daemon.said());
    assert!(report.told >= 1000, "only {} statements: the test did not do its work", report.told);
    check_attribution(&records, &[pid]);
    check_whole(&daemon, &records);
    daemon.stop().unwrap();
}

#[test]
fn what_finds_no_room_is_a_gap_with_its_exact_length() {
    let records = copy_both_ways("[daemon]\nring_bytes = 262144\n\n", 20_000);
    let lost: u64 = closed(&records)
        .iter()
        .map(|connection| missing(&records, connection, "sent") + missing(&records, connection, "received"))
        .sum();
    assert_ne!(lost, 0, "the ring was large enough: the test did not do its work");
    let gaps = records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "gap").count();
    assert_ne!(gaps, 0);
}

#[test]
fn calls_of_the_server_that_cannot_be_read_are_gaps_of_their_length() {
    require_root().unwrap();
    let folder = place::scratch().unwrap();
    let socket = folder.path().join("socket");
    let name = socket.to_str().unwrap().to_owned();
    // Reads five bytes as it should, gives ten by sendfile(2), and leaves seven.
    let server = "import os,socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\nos.chmod(sys.argv[1],0o777)\n\
        s.listen()\nprint('ready',flush=True)\nc,_=s.accept()\nc.recv(5)\nf=os.memfd_create('f')\nos.write(f,b'0123456789')\n\
        os.sendfile(c.fileno(),f,0,10)\nc.recv(1)\nprint('done',flush=True)\n";
    let client = "import os,socket,sys\nprint('pid',os.getpid(),file=sys.stderr,flush=True)\ns=socket.socket(socket.AF_UNIX)\n\
        s.connect(sys.argv[1])\ns.sendall(b'helloX1234567')\nassert s.recv(10,socket.MSG_WAITALL)==b'0123456789'\n";
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", server, &name]).stdout(Stdio::piped());
    let mut server = child::Child::start(&mut command, Signal::SIGKILL).unwrap();
    let mut said = BufReader::new(server.take_stdout().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let rules = format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"p\"\n\n[[policy]]\nname = \"p\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"unix:{name}\"]\naction = \"allow\"\n"
    );
    let daemon = Daemon::start(&rules).unwrap();
    run(&daemon, &["/usr/bin/python3".into(), "-c".into(), client.into(), name.into()]);
    server.wait(LIMIT).unwrap();
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let closed = closed(&records);
    let coverage = &closed[0]["coverage"];
    check_sums(&records, closed[0]);
    assert_eq!(
        (coverage["sent"].as_u64(), coverage["received"].as_u64()),
        (Some(13), Some(10)),
        "{coverage}"
    );
    let missing = |direction| missing(&records, closed[0], direction);
    assert_eq!((missing("sent"), missing("received")), (7, 10), "{coverage}");
    assert_eq!(coverage["unreadable"], 10, "{coverage}");
    daemon.stop().unwrap();
}
