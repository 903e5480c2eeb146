//! The harness itself: an oracle that is wrong proves nothing.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test panics")]

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use auditor_tests::network::{Arrivals, FarEnd};
use auditor_tests::pgbouncer::Pgbouncer;
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::python::Python;
use auditor_tests::{UNPRIVILEGED, child, clients, oracle, place, require_root};
use nix::sys::signal::Signal;

fn psql(postgres: &Postgres, host: &str, port: u16, sql: &str) -> std::process::Output {
    let mut command = Command::new(postgres.program("psql"));
    command.args(["-X", "-U", "postgres", "-d", "postgres", "-h", host, "-p", &port.to_string(), "-c", sql]);
    child::output(&mut command, Duration::from_secs(20)).unwrap()
}

#[test]
fn the_server_logs_each_statement_with_the_clients_port() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    for host in ["127.0.0.1", "::1"] {
        let sql =
            format!("select '{host}', \"relname\"\nfrom pg_class where false -- \"quoted\", and a comma");
        assert!(psql(&postgres, host, postgres.port(), &sql).status.success());
        assert!(!psql(&postgres, host, postgres.port(), "selct 'ä'").status.success());
        let log = postgres.log().unwrap();
        let entry = log.iter().find(|entry| entry.statement().is_some_and(|logged| logged.text == sql));
        let client = entry.expect("the statement is in the log").client.unwrap();
        assert_eq!(client.ip().to_string(), host);
        let error = log.iter().find(|entry| entry.is_error() && entry.query == "selct 'ä'").unwrap();
        assert_eq!(error.sqlstate, "42601");
    }
}

#[test]
fn a_server_ends_with_the_value_that_owns_it() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let bouncer = Pgbouncer::start(&postgres).unwrap();
    assert!(psql(&postgres, "127.0.0.1", bouncer.port(), "select 1").status.success());
    let (pid, folder) = (postgres.id(), postgres.socket_folder());
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(bouncer);
    drop(postgres);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!folder.exists());
}

#[test]
fn a_setting_can_be_changed_while_the_server_runs() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options { log_statements: false, settings: Vec::new() }).unwrap();
    postgres.sql("select 'silent'").unwrap();
    postgres.set("log_statement", "all").unwrap();
    postgres.sql("select 'logged'").unwrap();
    let log = postgres.log().unwrap();
    let logged =
        |text: &str| log.iter().any(|entry| entry.statement().is_some_and(|logged| logged.text == text));
    assert!(logged("select 'logged'"));
    assert!(!logged("select 'silent'"));
}

#[test]
fn the_far_end_counts_what_arrives() {
    let far = FarEnd::new().unwrap();
    assert_eq!(far.arrivals().unwrap(), Arrivals::default());
    for address in [far.v4, far.v6] {
        let before = far.arrivals().unwrap();
        // Nobody listens there; the segment arrives all the same and is answered with a reset.
        TcpStream::connect_timeout(&SocketAddr::new(address, 9), Duration::from_secs(2)).unwrap_err();
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        UdpSocket::bind(any).unwrap().send_to(b"x", SocketAddr::new(address, 9)).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let after = far.arrivals().unwrap();
        assert_eq!(after, Arrivals { tcp: before.tcp + 1, udp: before.udp + 1 }, "{address}");
    }
}

#[test]
fn a_child_that_hangs_is_ended_and_what_it_said_is_in_the_error() {
    let mut command = Command::new("sh");
    let error = child::output(command.args(["-c", "echo waiting >&2; sleep 60"]), Duration::from_millis(300));
    assert!(format!("{:#}", error.unwrap_err()).contains("waiting"));
    let sleeper = child::Child::start(Command::new("sleep").arg("60"), Signal::SIGTERM).unwrap();
    let pid = sleeper.id();
    drop(sleeper);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn the_clients_do_their_work_without_an_auditor() {
    require_root().unwrap();
    let postgres = Postgres::start(&Options::default()).unwrap();
    let user = child::find_user(&[UNPRIVILEGED]).unwrap();
    let folder = place::scratch().unwrap();
    let port = postgres.port().to_string();
    let script = clients::write(folder.path(), "statements.sql", clients::STATEMENTS).unwrap();
    let mut psql = Command::new(postgres.program("psql"));
    psql.args(["-X", "-q", "-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-d", "postgres", "-f"])
        .arg(script);
    child::succeed(child::as_user(&mut psql, &user), Duration::from_secs(20)).unwrap();

    let python = Python::new(folder.path()).unwrap();
    let driver = clients::write(folder.path(), "driver.py", clients::DRIVER).unwrap();
    let words =
        python.words(&driver, &[&format!("host=127.0.0.1 port={port} user=postgres dbname=postgres")]);
    let mut command = Command::new(&words[0]);
    let command = child::as_user(command.args(&words[1..]), &user);
    let printed = child::succeed(command, Duration::from_secs(20)).unwrap();
    assert_eq!(printed, "copied out 2120\nfetched 550\n");

    let told = oracle::told(&postgres.log().unwrap());
    assert_eq!(told.len(), 2, "one connection a client");
    let statements: Vec<_> = told.values().flatten().collect();
    let failed: Vec<_> = statements.iter().filter_map(|told| told.failed.as_deref()).collect();
    for sqlstate in ["42601", "42P01", "22012", "23505", "25P02", "22P02"] {
        assert!(failed.contains(&sqlstate), "{sqlstate} is not among {failed:?}");
    }
    assert!(statements.len() > 180, "{}", statements.len());
    assert!(statements.iter().any(|told| told.text.contains("☃")));
    let values = statements.iter().filter_map(|told| told.parameters.as_ref()).map(Vec::len).sum::<usize>();
    assert!(values > 300, "{values} bind values");
}
