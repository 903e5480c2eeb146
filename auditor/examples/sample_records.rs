//! Prints records of every kind, one a line, as the trail would have them without the chain: what the OCSF schema test
//! validates, and what somebody who writes a SIEM's parser wants to see.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use auditor::clock::{Boottime, Utc};
use auditor::protocol::{
    Column, CommandResult, Login, Outcome, Parameter, ServerError, Statement, StatementKind,
};
use auditor::record::ocsf::{Host, Identity, Renderer};
use auditor::record::{
    Agent, Application, Caller, Certificate, CloseReason, Connection, Coverage, Entry, Event, GapRange, Loss,
    Process, Session, SessionTotals, Tls, Transport, Verdict,
};
use auditor::statement::{Classifier, Dialect, Dialogue, Meaning, Text};

fn means(statement: &Statement) -> Arc<Meaning> {
    let (dialect, at) = (Dialect::Postgres, statement.finished);
    let incomplete = statement.text_length > statement.text.len() as u64;
    let text = Text { dialect, bytes: &statement.text, incomplete, session: 1, at };
    Classifier::default().classify(text, &mut Dialogue::default())
}

fn main() -> anyhow::Result<()> {
    let renderer = Renderer::new(&Host {
        hostname: "build-7.example.com".to_owned(),
        machine_id: Some("0f3c8d1e5b7a4c2f9d6e8b1a3c5f7e90".to_owned()),
        boot_id: "4f2b8c1a-93d7-4e5f-a1b6-0c8d7e9f1a2b".to_owned(),
        os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        kernel: "6.12.9".to_owned(),
    })?;
    let mut out = Vec::new();
    for (entry, sequence) in entries().iter().zip(1..) {
        let uid = format!("6f1d2c3b4a5968778695a4b3c2d1e0ff-{sequence}");
        renderer.render(entry, Identity { sequence, uid: &uid }, &mut out)?;
        out.push(b'\n');
    }
    io::stdout().write_all(&out)?;
    Ok(())
}

fn entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    for event in statements().into_iter().chain(connections()).chain(others()) {
        entries.push(entry(event.clone(), Some(session()), Some(process())));
        // The same where nothing is known of who did it.
        entries.push(entry(event, None, None));
    }
    entries
}

fn entry(event: Event, session: Option<Session>, process: Option<Process>) -> Entry {
    Entry {
        time: Utc(1_790_000_000_123_456_789),
        session: session.map(Arc::new),
        process: process.map(Arc::new),
        event,
    }
}

fn session() -> Session {
    Session {
        id: "5b0c7e1f9a2d4c38".to_owned(),
        agent: Agent {
            name: "agent-backfill".to_owned(),
            labels: BTreeMap::from([("team".to_owned(), "payments".to_owned())]),
            identity: Some("spiffe://example.com/agents/backfill".to_owned()),
        },
        task: Some("backfill \"orders\"\nfor 2026".to_owned()),
        policy: "backfill".to_owned(),
    }
}

fn process() -> Process {
    Process {
        pid: 4711,
        parent: Some(4700),
        name: "psql".to_owned(),
        executable: Some("/usr/lib/postgresql/17/bin/psql".to_owned()),
        command_line: Some("psql -h db.internal orders".to_owned()),
        uid: Some(2001),
        user: Some("backfill".to_owned()),
    }
}

fn caller() -> Caller {
    Caller { pid: 900, uid: 0, user: Some("root".to_owned()) }
}

fn connection() -> Connection {
    Connection {
        id: "4f2b8c1a-93d7-4e5f-a1b6-0c8d7e9f1a2b-1f2e".to_owned(),
        transport: Transport::Tcp,
        local: Some(SocketAddr::from(([10, 20, 0, 7], 49152))),
        remote: Some(SocketAddr::from(([10, 20, 0, 9], 5432))),
        socket: None,
        inbound: false,
        adopted: None,
        verdict: Verdict {
            allowed: true,
            rule: Some("backfill#1: 10.20.0.0/16:5432".to_owned()),
            reason: "rule",
            policy: Some("backfill".to_owned()),
        },
    }
}

fn refused() -> Connection {
    Connection {
        local: None,
        remote: Some(SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 443))),
        socket: None,
        verdict: Verdict {
            allowed: false,
            rule: None,
            reason: "default",
            policy: Some("backfill".to_owned()),
        },
        ..connection()
    }
}

fn application() -> Application {
    Application {
        protocol: Some("postgres"),
        login: Some(Login {
            user: Some("backfill".to_owned()),
            database: Some("orders".to_owned()),
            application: Some("psql".to_owned()),
            parameters: vec![("client_encoding".to_owned(), "UTF8".to_owned())],
        }),
        ..Application::default()
    }
}

fn statement(text: &[u8]) -> Statement {
    Statement {
        sequence: 3,
        kind: StatementKind::Simple,
        text: text.to_vec().into(),
        text_length: u64::try_from(text.len()).unwrap_or(u64::MAX),
        name: None,
        portal: None,
        parameters: Vec::new(),
        results: vec![CommandResult { tag: "SELECT 2".to_owned(), rows: Some(2) }],
        columns: vec![Column { name: "id".to_owned(), type_name: "int8".to_owned() }],
        outcome: Outcome::Completed,
        notices: Vec::new(),
        transaction: Some('I'),
        started: Boottime(1_000_000_000),
        finished: Boottime(1_002_345_678),
        request_bytes: 64,
        response_bytes: 128,
        incomplete: false,
    }
}

fn statements() -> Vec<Event> {
    let prepared = Statement {
        kind: StatementKind::Prepared,
        name: Some("s1".to_owned()),
        parameters: vec![
            Parameter::Null,
            Parameter::Text("4 \"quoted\" \u{1f600}".to_owned()),
            Parameter::Binary(vec![0, 0xff, 0x10]),
            Parameter::Cut { head: b"long".to_vec(), length: 1 << 20 },
            Parameter::Cut { head: vec![0xff], length: 1 << 20 },
        ],
        ..statement(b"insert into orders values ($1, $2, $3, $4, $5)")
    };
    let failed = Statement {
        outcome: Outcome::Failed(error("42P01", "relation \"nosuch\" does not exist")),
        notices: vec![error("00000", "hello")],
        results: Vec::new(),
        ..statement(b"update nosuch set a = 1")
    };
    let cut =
        Statement { text_length: 2 << 20, incomplete: true, ..statement(b"/* long */ delete from orders") };
    [
        statement(b"select * from orders"),
        prepared,
        failed,
        cut,
        Statement { outcome: Outcome::Skipped, ..statement(b"drop table orders") },
        Statement {
            kind: StatementKind::Prepared,
            name: Some("s2".to_owned()),
            portal: Some("c".to_owned()),
            outcome: Outcome::Prepared,
            results: Vec::new(),
            ..statement(b"delete from orders")
        },
        Statement { outcome: Outcome::Unknown, ..statement(b"\xff\\x00 not UTF-8") },
        Statement { kind: StatementKind::Copy, ..statement(b"COPY orders FROM STDIN") },
        Statement { kind: StatementKind::Function, name: None, ..statement(b"") },
        Statement { kind: StatementKind::Admin, ..statement(b"IDENTIFY_SYSTEM") },
    ]
    .into_iter()
    .map(|statement| Event::Statement {
        connection: Arc::new(connection()),
        application: Arc::new(application()),
        meaning: Some(means(&statement)),
        statement: Box::new(statement),
    })
    .chain([Event::Statement {
        connection: Arc::new(Connection { local: None, remote: None, inbound: true, ..connection() }),
        application: Arc::new(Application::default()),
        statement: Box::new(statement(b"select 1")),
        meaning: None,
    }])
    .collect()
}

fn error(code: &str, message: &str) -> ServerError {
    ServerError { code: code.to_owned(), severity: "ERROR".to_owned(), message: message.to_owned() }
}

fn connections() -> Vec<Event> {
    let gaps = vec![GapRange { sent: true, offset: 100, length: 50 }];
    let whole = Coverage {
        sent: Some(4096),
        received: Some(81920),
        audited_sent: 4096,
        audited_received: 81920,
        ..Coverage::default()
    };
    let holed = Coverage {
        sent: None,
        received: Some(10),
        audited_sent: 3,
        audited_received: 1,
        opaque_sent: 0,
        opaque_received: 9,
        gaps,
        ..Coverage::default()
    };
    let closed = |application, coverage, reason| Event::ConnectionClosed {
        connection: Arc::new(connection()),
        application: Arc::new(application),
        coverage,
        reason,
        duration_us: 1_234_567,
        statements: 12,
    };
    let tls = Tls {
        version: Some("1.3".to_owned()),
        cipher: Some("TLS_AES_256_GCM_SHA384".to_owned()),
        offered: Some("1.3".to_owned()),
        sni: Some("db.example.com".to_owned()),
        alpn: vec!["postgresql".to_owned()],
        reason: Some("no-secret"),
        ..Tls::default()
    };
    let certificate = Certificate {
        sha256: "5f".repeat(32),
        subject: "CN=db.example.com".to_owned(),
        issuer: "CN=Example CA, O=Example".to_owned(),
        serial: "0a1b2c".to_owned(),
        names: ["db.example.com", "10.20.0.7", "email:dba@example.com"].map(str::to_owned).to_vec(),
        not_before: Some(1_700_000_000),
        not_after: Some(1_800_000_000),
    };
    let read = Tls {
        protocol: Some("postgresql".to_owned()),
        ja4: Some("t13d1516h2_8daaf6152771_e5627efa2ab1".to_owned()),
        server: Some(certificate),
        client: Some(Certificate { sha256: "c3".repeat(32), ..Certificate::default() }),
        early_data: Some("rejected"),
        server_alert: Some("unknown_ca"),
        decrypted: true,
        reason: None,
        ..tls.clone()
    };
    let read = Application { tls: Some(read), ..application() };
    let unparsed = Tls {
        server: Some(Certificate { sha256: "c3".repeat(32), ..Certificate::default() }),
        ..Tls::default()
    };
    let unparsed = Application { tls: Some(unparsed), ..application() };
    let opaque = Application { opaque: Some("tls"), tls: Some(tls), ..application() };
    vec![
        Event::ConnectionOpened { connection: Arc::new(connection()) },
        Event::ConnectionOpened { connection: Arc::new(Connection { inbound: true, ..connection() }) },
        closed(application(), whole, CloseReason::Ended),
        closed(opaque, holed, CloseReason::Ended),
        closed(read, Coverage::default(), CloseReason::Ended),
        closed(unparsed, Coverage::default(), CloseReason::Ended),
        closed(Application::default(), Coverage::default(), CloseReason::NotEstablished),
        Event::ConnectionRefused { connection: Arc::new(refused()), call: "connect" },
        Event::ConnectionRefused {
            connection: Arc::new(Connection { remote: None, transport: Transport::Other(132), ..refused() }),
            call: "socket",
        },
    ]
}

fn others() -> Vec<Event> {
    let api = |method: &str, path: &str, status| Event::ApiAccess {
        by: caller(),
        method: method.to_owned(),
        path: path.to_owned(),
        status,
    };
    let loss = Loss { site: "ring".to_owned(), error: "ENOSPC".to_owned(), count: 3 };
    let finding = |connection| Event::Finding {
        kind: "protocol-mismatch",
        message: "port 5432 speaks TLS, the rule says postgres".to_owned(),
        connection,
    };
    vec![
        Event::ProcessStarted,
        Event::ProcessEnded,
        Event::SessionOpened {
            by: caller(),
            cgroup: "auditor/5b0c7e1f9a2d4c38".to_owned(),
            command: Some(vec!["psql".to_owned(), "orders".to_owned()]),
            confinement: Some(auditor::policy::Confinement::default()),
            degraded: vec!["unprivileged: the command is user 0 with the capabilities 0x0".to_owned()],
        },
        Event::SessionEnded {
            reason: "empty",
            totals: SessionTotals { connections: 2, statements: 12, violations: 1 },
            duration_us: 60_000_000,
        },
        finding(Some(Arc::new(connection()))),
        finding(None),
        Event::DaemonStarted {
            configuration: "ab".repeat(32),
            degraded: vec!["BPF LSM is not available".to_owned()],
            kernel: "6.12.9".to_owned(),
        },
        Event::DaemonStopped,
        Event::DaemonTookOver { without_ms: 1_250, sessions: 2, connections: 5 },
        Event::DaemonReloaded { configuration: "cd".repeat(32) },
        Event::Gap {
            connection: Arc::new(connection()),
            range: GapRange { sent: true, offset: 4096, length: 512 },
        },
        Event::Heartbeat { losses: vec![loss], sessions: 1 },
        Event::Heartbeat { losses: Vec::new(), sessions: 0 },
        Event::TrailRecovered { segment: "00000000000000000001.jsonl".to_owned(), bytes: 17 },
        api("GET", "/v1/log?session=5b0c7e1f9a2d4c38", 200),
        api("POST", "/v1/sessions", 403),
        api("PURGE", "/", 405),
    ]
}
