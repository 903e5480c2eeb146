//! The rows of large transfers are counted instead of copied, and everything said of them is still right: rows and outcomes by the client's and
//! the server's account, bytes by the kernel's.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::ffi::OsString;

use auditor_tests::daemon::Daemon;
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::python::Python;
use auditor_tests::{UNPRIVILEGED, clients, oracle, require_root};
use serde_json::Value;

const AGENT: &str = "transfer-agent";

/// Loads rows, half of them such that they say themselves what a client says to end the loading and to drop the table; then statements
/// in what psycopg calls a pipeline.
const LOAD: &str = r#"
import struct, sys, psycopg
forged = b"c\0\0\0\4Q\0\0\0\30drop table loaded;\0" * 40
with psycopg.connect(host="127.0.0.1", port=sys.argv[1], user="postgres", dbname="postgres", autocommit=True) as c:
    for round in range(20):
        with c.cursor().copy("copy loaded from stdin (format binary)") as copy:
            copy.write(b"PGCOPY\n\377\r\n\0" + bytes(8))
            for number in range(5000):
                value = forged if round % 2 else b"r" * (1000 + (number * 7919 + round) % 3000)
                copy.write(struct.pack(">hi", 1, len(value)) + value)
            copy.write(b"\377\377")
        with c.pipeline():
            for number in range(3):
                c.execute("insert into loaded values ('after %d of %d')" % (number, round))
"#;

fn configuration(postgres: &Postgres) -> String {
    format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"database\"\n\n[[policy]]\nname = \"database\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"127.0.0.1:{}\"]\naction = \"allow\"\nprotocol = \"postgres\"\n",
        postgres.port()
    )
}

/// A session of psql that runs these commands one after the other; what it prints goes to `/dev/null`.
fn run(daemon: &Daemon, postgres: &Postgres, commands: &[&str]) {
    let port = postgres.port().to_string();
    let mut words = vec![postgres.program("psql").into_os_string()];
    words.extend(
        ["-X", "-q", "-A", "-t", "-o", "/dev/null", "-h", "127.0.0.1", "-p", &port].map(OsString::from),
    );
    words.extend(["-U", "postgres", "-d", "postgres", "-v", "FETCH_COUNT=0"].map(OsString::from));
    for command in commands {
        words.extend(["-c", command].map(OsString::from));
    }
    let output = daemon.run(AGENT, UNPRIVILEGED, &words).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    // A statement that fails ends psql's call with 1, as the commands here want it.
    assert!(output.status.code().is_some_and(|code| code <= 1), "{}\n{stderr}", output.status);
}

/// What the trail says, once the server's log has the same statements with the same outcomes.
fn records(daemon: &Daemon, postgres: &Postgres) -> Vec<Value> {
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let report = oracle::compare(&postgres.log().unwrap(), &records).unwrap();
    assert!(report.is_equal(), "{report}\ndaemon: {}", daemon.said());
    let status = daemon.status().unwrap();
    let full = |failure: &Value| {
        // A full ring holds TCP back, and is no loss.
        !matches!(failure["site"].as_str(), Some("payload-egress" | "payload-ingress"))
    };
    let failures: Vec<&Value> =
        status["failures"].as_array().unwrap().iter().filter(|failure| full(failure)).collect();
    eprintln!("transfer: failures {}", status["failures"]);
    assert!(failures.is_empty(), "{failures:?}");
    records
}

/// Rows, outcome and completeness of the statements that begin so, in order.
fn statements<'a>(records: &'a [Value], beginning: &str) -> Vec<&'a Value> {
    let begins = |record: &&Value| {
        oracle::is_statement(record)
            && record["query_info"]["query_string"].as_str().is_some_and(|text| text.starts_with(beginning))
    };
    records.iter().filter(begins).map(|record| &record["unmapped"]["auditor"]["statement"]).collect()
}

fn check(statement: &Value, outcome: &str, rows: Option<u64>) {
    assert_eq!(statement["outcome"], outcome, "{statement}");
    assert_eq!(statement["rows"].as_u64(), rows, "{statement}");
    assert_ne!(statement["incomplete"], true, "{statement}");
}

/// Each connection's audited and skipped bytes are exactly what the kernel moved; answers how many were skipped, and moved.
fn check_coverage(records: &[Value]) -> (u64, u64) {
    let (mut skipped, mut moved) = (0, 0);
    for record in records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "connection-closed")
    {
        let coverage = &record["unmapped"]["auditor"]["connection"]["coverage"];
        let count = |name: &str| coverage[name].as_u64().unwrap();
        assert_eq!(count("sent"), count("audited_sent") + count("skipped_sent"), "{coverage}");
        assert_eq!(count("received"), count("audited_received") + count("skipped_received"), "{coverage}");
        assert_eq!((count("opaque_sent"), count("opaque_received")), (0, 0), "{coverage}");
        assert_eq!(coverage["gaps"].as_array().map(Vec::len), Some(0), "{coverage}");
        skipped += count("skipped_received") + count("skipped_sent");
        moved += count("received") + count("sent");
    }
    eprintln!("transfer: {skipped} of {moved} bytes skipped");
    (skipped, moved)
}

#[test]
fn a_gigabyte_of_rows_is_counted() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&configuration(&postgres)).unwrap();
    let select = "select g, repeat('x', 900 + g % 200) from generate_series(1, 500000) g";
    let copy = format!("copy ({select}) to stdout");
    let binary = format!("copy ({select}) to stdout (format binary)");
    // Small statements between them, which also give the daemon its turn.
    run(
        &daemon,
        &postgres,
        &[
            "select pg_sleep(0.2)",
            &copy,
            "select 1 as small",
            &binary,
            "select 2 as small",
            "values (1), (2)",
        ],
    );
    let records = records(&daemon, &postgres);
    let copies = statements(&records, "copy");
    assert_eq!(copies.len(), 2);
    for copy in copies {
        check(copy, "completed", Some(500_000));
        assert_eq!(copy["kind"], "copy", "{copy}");
    }
    for small in statements(&records, "select 1").into_iter().chain(statements(&records, "select 2")) {
        check(small, "completed", Some(1));
    }
    check(statements(&records, "values")[0], "completed", Some(2));
    let (skipped, moved) = check_coverage(&records);
    // Nearly all of it, unless this machine is so busy that the daemon never comes to the end of the ring: then the rest is copied.
    assert!(moved > 1_000_000_000 && skipped > 0, "{skipped} of {moved}");
    daemon.stop().unwrap();
}

#[test]
fn an_error_and_several_statements_amid_many_rows_are_told() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&configuration(&postgres)).unwrap();
    let failing = "select g, repeat('y', 100), 1 / (300000 - g) from generate_series(1, 400000) g";
    let several = "select repeat('a', 30) from generate_series(1, 100000); select 7 as seven; \
                   copy (select repeat('b', 5000) from generate_series(1, 20000)) to stdout; \
                   select from generate_series(1, 50000); select 1 / 0; select 8";
    let cursor = "begin; declare many cursor for select repeat('c', 200) from generate_series(1, 200000); \
                  fetch 150000 from many; fetch all from many; commit";
    run(
        &daemon,
        &postgres,
        &["select pg_sleep(0.2)", failing, "select 1 as small", several, cursor, "select 2 as small"],
    );
    let records = records(&daemon, &postgres);
    let failed = statements(&records, failing)[0];
    check(failed, "failed", None);
    assert_eq!(failed["error_code"], "22012", "{failed}");
    let failed = statements(&records, several)[0];
    check(failed, "failed", Some(100_000 + 1 + 20_000 + 50_000));
    assert_eq!(failed["error_code"], "22012", "{failed}");
    check(statements(&records, cursor)[0], "completed", Some(200_000));
    for (text, rows) in [("select 1 as", 1), ("select 2 as", 1)] {
        check(statements(&records, text)[0], "completed", Some(rows));
    }
    check_coverage(&records);
    daemon.stop().unwrap();
}

#[test]
fn rows_that_imitate_the_end_of_an_answer_are_rows() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let daemon = Daemon::start(&configuration(&postgres)).unwrap();
    // CommandComplete "DELETE 0" and ReadyForQuery, over and over, at every distance from a segment's end; text has no zero byte,
    // so that it takes the binary form.
    let end = "43 0000000d 44454c455445203000 5a 00000005 49".replace(' ', "");
    let forged = format!(
        "copy (select repeat('x', g % 37)::bytea || decode(repeat('{end}', 1 + g % 300), 'hex') \
         from generate_series(1, 60000) g) to stdout (format binary)"
    );
    run(
        &daemon,
        &postgres,
        &["select pg_sleep(0.2)", &forged, "select 1 as small", &forged, "select 2 as small"],
    );
    let records = records(&daemon, &postgres);
    let copies = statements(&records, "copy");
    assert_eq!(copies.len(), 2);
    for copy in copies {
        check(copy, "completed", Some(60_000));
        assert_eq!(copy["verbs"], serde_json::json!(["copy", "select"]), "{copy}");
    }
    for text in ["select 1 as", "select 2 as"] {
        check(statements(&records, text)[0], "completed", Some(1));
    }
    check_coverage(&records);
    daemon.stop().unwrap();
}

#[test]
fn what_a_client_loads_is_counted() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    postgres.sql("create unlogged table loaded (line text)").unwrap();
    let daemon = Daemon::start(&configuration(&postgres)).unwrap();
    let lines = |count: u32, width: u32| {
        format!("\\copy loaded from program 'yes $(printf %0{width}d 0) | head -n {count}'")
    };
    let (narrow, wide) = (lines(3_000_000, 80), lines(60_000, 5000));
    run(
        &daemon,
        &postgres,
        &["select pg_sleep(0.2)", &narrow, "select 1 as small", &wide, "select count(*) from loaded"],
    );
    assert_eq!(postgres.sql("select count(*) from loaded").unwrap().trim(), "3060000");
    let records = records(&daemon, &postgres);
    let copies = statements(&records, "COPY");
    for (copy, rows) in copies.iter().zip([3_000_000, 60_000]) {
        check(copy, "completed", Some(rows));
        let sent = copy["request_bytes"].as_u64().unwrap();
        assert!(sent > 240_000_000, "{sent}");
    }
    assert_eq!(copies.len(), 2);
    check(statements(&records, "select count")[0], "completed", Some(1));
    check_coverage(&records);
    daemon.stop().unwrap();
}

/// Statements follow the rows without a pause, many times: each is told with its text, wherever in a segment it begins.
#[test]
fn statements_that_follow_what_is_loaded_are_told() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    postgres.sql("create unlogged table loaded (line bytea)").unwrap();
    let daemon = Daemon::start(&configuration(&postgres)).unwrap();
    let python = Python::with_drivers(daemon.home().folder()).unwrap();
    let script = clients::write(daemon.home().folder(), "load.py", LOAD).unwrap();
    let port = postgres.port().to_string();
    let output = daemon.run(AGENT, UNPRIVILEGED, &python.words(&script, &[&port])).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let records = records(&daemon, &postgres);
    assert_eq!(statements(&records, "insert into loaded").len(), 60);
    let copies = statements(&records, "copy loaded");
    assert_eq!(copies.len(), 20);
    for copy in copies {
        check(copy, "completed", Some(5000));
    }
    check_coverage(&records);
    daemon.stop().unwrap();
}
