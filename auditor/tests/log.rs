//! Reading the trail: over the API, with `auditor log` and `auditor show`, and without a daemon.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod pipeline;

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use auditor::api::client::ClientError;
use auditor::api::types::RecordFilter;
use auditor::clock::Utc;
use auditor::record::{
    Application, Caller, CloseReason, Connection, Coverage, Entry, Event, SessionTotals, Transport, Verdict,
};
use auditor::trail::Trail;
use pipeline::{Daemon, session};

const PATIENCE: Duration = Duration::from_secs(5);
/// A message that would clear the screen and forge a line.
const HOSTILE: &str = "odd\u{1b}[2J\nforged\u{9b}31m\u{202e}";

/// Two sessions; in each a refused connection and a finding.
fn fill(trail: &Trail) {
    for number in 1..=2_u64 {
        let session = session(&format!("{number:016x}"), &format!("agent-{number}"), "/auditor/1").session;
        let connection = Arc::new(Connection {
            id: format!("boot-{number}"),
            transport: Transport::Tcp,
            local: None,
            remote: Some(SocketAddr::from(([10, 0, 0, 1], 443))),
            socket: None,
            inbound: false,
            adopted: None,
            verdict: Verdict { allowed: false, rule: None, reason: "default", policy: Some("p".to_owned()) },
        });
        let events = [
            Event::ConnectionRefused { connection, call: "connect" },
            Event::Finding { kind: "test", message: HOSTILE.to_owned(), connection: None },
        ];
        for event in events {
            let entry = Entry {
                time: Utc(number * 1_000_000_000),
                session: Some(Arc::clone(&session)),
                process: None,
                event,
            };
            trail.append(&entry).unwrap();
        }
    }
    trail.flush(PATIENCE).unwrap();
}

fn written(daemon: &Daemon) -> Vec<u8> {
    std::fs::read(daemon.trail_dir().join("00000000000000000001.jsonl")).unwrap()
}

fn ask(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_auditor"));
    command.env("AUDITOR_SOCKET", daemon.socket()).args(arguments);
    command.arg("--state-dir").arg(daemon.trail_dir().parent().unwrap()).output().unwrap()
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn lines_are_the_bytes_of_the_trail_and_can_be_verified() {
    let daemon = Daemon::start_with_real_proc();
    let trail = daemon.trail();
    fill(&trail);
    let expected = String::from_utf8(written(&daemon)).unwrap();
    assert_eq!(expected.lines().count(), 4);
    assert_eq!(succeeded(&ask(&daemon, &["log", "--json"])), expected);
    assert_eq!(succeeded(&ask(&daemon, &["log", "--json", "--offline"])), expected);
    let export = daemon.trail_dir().join("export");
    std::fs::write(&export, expected).unwrap();
    succeeded(&ask(&daemon, &["verify", export.to_str().unwrap()]));
    trail.close().unwrap();
    succeeded(&ask(&daemon, &["verify"]));
}

#[test]
fn a_reader_sees_what_had_happened_when_it_asked() {
    for arguments in [&["log", "--json"][..], &["show", "0000000000000002", "--json"]] {
        let daemon = Daemon::start_with_real_proc();
        let trail = daemon.trail();
        daemon.leave_unsettled(move || fill(&trail));
        let lines = succeeded(&ask(&daemon, arguments));
        assert!(lines.lines().count() >= 2, "{arguments:?}: {lines}");
    }
}

#[test]
fn the_table_says_what_happened_and_obeys_nobody() {
    let daemon = Daemon::start_with_real_proc();
    fill(&daemon.trail());
    for source in [&[][..], &["--offline"]] {
        let table = succeeded(&ask(&daemon, &[&["log"], source].concat()));
        assert_eq!(table.lines().count(), 5, "a header and four records, none forged: {table}");
        assert!(table.chars().all(|character| character == '\n' || !character.is_control()), "{table:?}");
        assert!(table.contains("10.0.0.1:443") && table.contains("connect: default"), "{table}");
        assert!(table.contains("odd\\u{1b}[2J\\nforged\\u{9b}31m\\u{202e}"), "{table}");
    }
}

#[test]
fn filters_select_in_both_ways() {
    let daemon = Daemon::start_with_real_proc();
    fill(&daemon.trail());
    for (filters, records) in [
        (&["--kind", "finding"][..], 2),
        (&["--session", "0000000000000001"], 2),
        (&["--agent", "agent-2", "--kind", "connection-refused"], 1),
        (&["--to", "10.0.0.1:443"], 2),
        (&["--to", "10.0.0.1:80"], 0),
        (&["--decision", "denied"], 2),
        (&["--since", "1970-01-01T00:00:02Z"], 2),
        (&["--until", "1970-01-01T00:00:02Z"], 2),
        (&["--since", "1h"], 0),
        (&["--grep", "agent-[13]"], 2),
    ] {
        for source in [&[][..], &["--offline"]] {
            let lines = succeeded(&ask(&daemon, &[&["log", "--json"], filters, source].concat()));
            assert_eq!(lines.lines().count(), records, "{filters:?} {source:?}");
        }
    }
    for wrong in [
        &["--grep", "("][..],
        &["--to", ""],
        &["--to", "db.internal"],
        &["--since", "x"],
        &["--kind", "statment"],
        &["--protocol", "postgress"],
        &["--decision", "no"],
    ] {
        for source in [&[][..], &["--offline"], &["--socket", "/nonexistent"]] {
            let output = ask(&daemon, &[&["log"], wrong, source].concat());
            assert_eq!(output.status.code(), Some(2), "{wrong:?} {source:?}");
        }
    }
}

#[tokio::test]
async fn the_api_refuses_filters_that_would_find_nothing() {
    let daemon = Daemon::start();
    let filter = RecordFilter { kind: Some("statment".to_owned()), ..RecordFilter::default() };
    let refused = daemon.client().await.records(&filter).await;
    assert!(matches!(refused, Err(ClientError::Refused { status: 400, .. })), "{refused:?}");
}

#[test]
fn an_empty_answer_is_told_apart_from_a_failure() {
    let daemon = Daemon::start_with_real_proc();
    fill(&daemon.trail());
    for source in [&[][..], &["--offline"], &["--json"]] {
        let output = ask(&daemon, &[&["log", "--agent", "nobody"], source].concat());
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stdout.is_empty());
        assert_eq!(String::from_utf8_lossy(&output.stderr), "auditor: no records match\n");
    }
}

#[test]
fn show_tells_everything_of_one_and_lists_several() {
    let daemon = Daemon::start_with_real_proc();
    fill(&daemon.trail());
    for source in [&[][..], &["--offline"]] {
        let show = |id: &str, more: &[&str]| ask(&daemon, &[&["show", id], more, source].concat());
        let one = succeeded(&show("2", &[]));
        assert!(one.contains("unmapped.auditor.kind") && one.contains("1970-01-01T00:00:01.000Z"), "{one}");
        assert!(!one.contains('\u{1b}'));
        assert_eq!(succeeded(&show("0000000000000002", &[])).lines().count(), 3, "a header and two records");
        assert_eq!(succeeded(&show("boot-1", &["--json"])).lines().count(), 1);
        assert_eq!(show("no-such-thing", &[]).status.code(), Some(1));
    }
}

/// What two daemons leave: of the first, a session that ended and one that was open when it died; of the second, one that
/// is open.
fn fill_with_sessions(daemon: &Daemon) {
    let trail = daemon.trail();
    let caller = || Caller { pid: 1, uid: 0, user: None };
    let opened = || Event::SessionOpened {
        by: caller(),
        cgroup: "/auditor/1".to_owned(),
        command: None,
        confinement: None,
        degraded: Vec::new(),
    };
    let totals = SessionTotals { connections: 1, statements: 5, violations: 2 };
    let remote = Some(SocketAddr::from(([10, 0, 0, 1], 443)));
    let connection = Arc::new(Connection {
        id: "boot-1".to_owned(),
        transport: Transport::Tcp,
        local: None,
        remote,
        socket: None,
        inbound: false,
        adopted: None,
        verdict: Verdict { allowed: true, rule: None, reason: "default", policy: None },
    });
    let coverage = Coverage {
        sent: Some(60),
        received: Some(40),
        audited_sent: 60,
        audited_received: 30,
        ..Coverage::default()
    };
    let closed = Event::ConnectionClosed {
        connection,
        application: Arc::new(Application::default()),
        coverage,
        reason: CloseReason::Ended,
        duration_us: 1,
        statements: 5,
    };
    let started =
        Event::DaemonStarted { configuration: String::new(), degraded: vec![], kernel: String::new() };
    let events = [
        (1, Some("aaaa000000000001"), opened()),
        (2, Some("aaaa000000000001"), closed),
        (
            3,
            Some("aaaa000000000001"),
            Event::SessionEnded { reason: "empty", totals, duration_us: 2_000_000 },
        ),
        (4, Some("aaaa000000000002"), opened()),
        (10, None, started),
        (11, Some("bbbb000000000003"), opened()),
    ];
    for (seconds, id, event) in events {
        let session = id.map(|id| session(id, "agent-1", "/auditor/1").session);
        trail.append(&Entry { time: Utc(seconds * 1_000_000_000), session, process: None, event }).unwrap();
    }
    trail.close().unwrap();
    let mut live = session("bbbb000000000003", "agent-1", "/auditor/3");
    (live.opened, live.totals.statements) = (11_000, 7);
    daemon.add(live);
}

#[test]
fn sessions_of_earlier_daemons_are_listed_and_the_lost_are_not_live() {
    let daemon = Daemon::start_with_real_proc();
    fill_with_sessions(&daemon);
    let sessions = |more: &[&str]| -> Vec<serde_json::Value> {
        let lines = succeeded(&ask(&daemon, &[&["sessions", "--json"], more].concat()));
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let all = sessions(&[]);
    let fields = ["id", "live", "ended", "end", "statements", "bytes_moved", "bytes_audited"];
    let shown: Vec<_> = all
        .iter()
        .map(|session| serde_json::Value::from(fields.map(|field| session[field].clone()).to_vec()))
        .collect();
    assert_eq!(
        shown,
        [
            serde_json::json!(["aaaa000000000001", false, 3_000, "empty", 5, 100, 90]),
            serde_json::json!(["aaaa000000000002", false, null, "daemon-lost", null, 0, 0]),
            serde_json::json!(["bbbb000000000003", true, null, null, 7, 0, 0]),
        ]
    );
    assert_eq!(sessions(&["--live"]).len(), 1);
    assert_eq!(
        sessions(&["--since", "1970-01-01T00:00:09Z"]).len(),
        2,
        "the lost one was over at the next start"
    );
    assert_eq!(sessions(&["--since", "1970-01-01T00:00:11Z"]).len(), 1);
    let table = succeeded(&ask(&daemon, &["sessions"]));
    assert!(table.contains("daemon-lost") && table.contains("live"), "{table}");
}

#[test]
fn the_first_digits_name_a_session_wherever_an_id_does() {
    let daemon = Daemon::start_with_real_proc();
    fill_with_sessions(&daemon);
    for source in [&[][..], &["--offline"]] {
        let lines = succeeded(&ask(&daemon, &[&["log", "--json", "--session", "bbbb0000"], source].concat()));
        assert_eq!(lines.lines().count(), 1);
        let lines = succeeded(&ask(&daemon, &[&["show", "--json", "bbbb0000"], source].concat()));
        assert_eq!(lines.lines().count(), 1);
        for ambiguous in [&["log", "--session", "aaaa"][..], &["show", "aaaa0000"]] {
            let output = ask(&daemon, &[ambiguous, source].concat());
            assert_eq!(output.status.code(), Some(2), "{ambiguous:?} {source:?}");
            assert!(String::from_utf8_lossy(&output.stderr).contains("aaaa000000000002"));
        }
    }
    assert!(nix::unistd::geteuid().is_root(), "ending a session is for root: run this test as root");
    assert_eq!(succeeded(&ask(&daemon, &["untag", "bbbb"])), "bbbb000000000003\n");
}

#[tokio::test]
async fn a_follower_sees_what_is_written_later() {
    let daemon = Daemon::start();
    let trail = daemon.trail();
    let mut client = daemon.client().await;
    let filter = RecordFilter { follow: true, kind: Some("finding".to_owned()), ..RecordFilter::default() };
    let mut lines = client.records(&filter).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), lines.next()).await.is_err(), "nothing yet");
    fill(&trail);
    for _ in 0..2 {
        let line = tokio::time::timeout(PATIENCE, lines.next()).await.unwrap().unwrap().unwrap();
        assert!(line.windows(7).any(|window| window == b"finding"));
    }
    drop(lines);
    let accesses = daemon.accesses();
    assert!(
        matches!(&accesses[0].event, Event::ApiAccess { path, status: 200, .. } if path == "/v1/records?kind=finding&follow=true"),
        "reading is recorded: {accesses:?}"
    );
    // The daemon ends at once although somebody follows: it must not wait for its readers.
    let mut client = daemon.client().await;
    let mut lines = client.records(&RecordFilter { follow: true, ..RecordFilter::default() }).await.unwrap();
    lines.next().await.unwrap().unwrap();
    let begun = std::time::Instant::now();
    drop(daemon);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn readers_are_bounded_and_make_room_when_they_go() {
    let daemon = Daemon::start();
    fill(&daemon.trail());
    let follow = RecordFilter { follow: true, ..RecordFilter::default() };
    let mut readers = Vec::new();
    for _ in 0..16 {
        let mut client = daemon.client().await;
        let lines = client.records(&follow).await.unwrap();
        readers.push((client, lines));
    }
    let refused = daemon.client().await.records(&RecordFilter::default()).await;
    assert!(matches!(refused, Err(ClientError::Refused { status: 503, .. })), "{refused:?}");
    drop(readers);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut client = daemon.client().await;
    let mut lines = client.records(&RecordFilter::default()).await.unwrap();
    let mut count = 0;
    while lines.next().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 4);
}

#[tokio::test]
async fn a_trail_that_cannot_be_read_is_never_an_empty_answer() {
    let daemon = Daemon::start();
    std::fs::remove_dir(daemon.trail_dir()).unwrap();
    let mut client = daemon.client().await;
    let outcome = match client.records(&RecordFilter::default()).await {
        Ok(mut lines) => lines.next().await.map(drop),
        Err(error) => Err(error),
    };
    assert!(outcome.is_err(), "there is no trail directory");
}
