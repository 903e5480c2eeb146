//! Measures the trail on this machine: rendering and sealing a statement, appending with the disk, verifying, searching.
//!
//! `cargo run --release --example trail_throughput [-- FOLDER [RECORDS]]`; the folder is made and removed again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use auditor::clock::{Boottime, Utc};
use auditor::protocol::{Column, CommandResult, Login, Outcome, Statement, StatementKind};
use auditor::record::ocsf::{Host, Identity, Renderer};
use auditor::record::{Agent, Application, Connection, Entry, Event, Process, Session, Transport, Verdict};
use auditor::trail::query::{Cursor, Query, scan};
use auditor::trail::{HeadRule, Limits, Options, Trail, Trust, verify};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().map_or_else(
        || std::env::temp_dir().join(format!("trail-throughput-{}", std::process::id())),
        PathBuf::from,
    );
    let records = arguments.next().map_or(Ok(200_000), |text| text.parse()).context("RECORDS is a number")?;
    ensure!(!folder.exists(), "{} exists: name a folder that does not", folder.display());
    let measured = measure(&folder, records);
    std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    measured
}

fn measure(folder: &Path, records: u32) -> anyhow::Result<()> {
    let host = Host {
        hostname: "build-7.example.com".to_owned(),
        machine_id: Some("0f3c8d1e5b7a4c2f9d6e8b1a3c5f7e90".to_owned()),
        boot_id: "4f2b8c1a-93d7-4e5f-a1b6-0c8d7e9f1a2b".to_owned(),
        os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        kernel: "6.12.9".to_owned(),
    };
    let entry = statement();

    let renderer = Renderer::new(&host)?;
    let mut line = Vec::new();
    let began = Instant::now();
    for sequence in 1..=u64::from(records) {
        line.clear();
        let uid = "6f1d2c3b4a5968778695a4b3c2d1e0ff-123456";
        renderer.render(&entry, Identity { sequence, uid }, &mut line)?;
    }
    tell("render", records, began.elapsed());

    let unbounded = Options { buffer_bytes: usize::MAX, ..Options::new(host.clone()) };
    let (trail, _) = Trail::open(folder, unbounded)?;
    let few = records.min(20_000);
    let began = Instant::now();
    for _ in 0..few {
        trail.append(&entry)?;
    }
    tell("append, never held back (render, seal, hand over)", few, began.elapsed());
    trail.close()?;

    let (trail, _) = Trail::open(folder, Options::new(host))?;
    let began = Instant::now();
    for _ in 0..records {
        trail.append(&entry)?;
    }
    tell("append, held back by the disk", records, began.elapsed());
    trail.flush(Duration::from_secs(600))?;
    tell("append and flush", records, began.elapsed());
    trail.close()?;

    let began = Instant::now();
    let report = verify(&[folder.to_owned()], HeadRule::Required, Limits::default(), &Trust::default())?;
    tell("verify", records, began.elapsed());
    ensure!(report.is_whole(), "{report}");
    println!("{} bytes a record", report.bytes / report.records.max(1));

    let searched = |name, query: Query| -> anyhow::Result<()> {
        let began = Instant::now();
        let scanned = scan(folder, &query, &mut Cursor::default(), |_, _| ControlFlow::Continue(()))?;
        tell(name, records, began.elapsed());
        println!("  {} lines, {} match", scanned.lines, scanned.matched);
        Ok(())
    };
    searched(
        "search, no line has the session's bytes",
        Query { session: Some("f".repeat(16)), ..Query::default() },
    )?;
    searched("search, out of the time", Query { until: Some(1), ..Query::default() })?;
    searched("search, every line is parsed", Query::default())
}

fn tell(what: &str, records: u32, took: Duration) {
    let each = took / records;
    let rate = f64::from(records) / took.as_secs_f64();
    println!("{what}: {:.2} µs each, {rate:.0}/s", each.as_nanos() as f64 / 1000.0);
}

fn statement() -> Entry {
    let text = "SELECT o.id, o.total, c.email FROM orders o JOIN customers c ON c.id = o.customer_id \
                WHERE o.created_at > '2026-01-01' AND o.state = 'open' ORDER BY o.id LIMIT 100";
    let column =
        |name: &str, type_name: &str| Column { name: name.to_owned(), type_name: type_name.to_owned() };
    Entry {
        time: Utc(1_790_000_000_123_456_789),
        session: Some(Arc::new(Session {
            id: "5b0c7e1f9a2d4c38".to_owned(),
            agent: Agent { name: "agent-backfill".to_owned(), labels: BTreeMap::new(), identity: None },
            task: Some("backfill orders".to_owned()),
            policy: "backfill".to_owned(),
        })),
        process: Some(Arc::new(Process {
            pid: 4711,
            parent: Some(4700),
            name: "psql".to_owned(),
            executable: Some("/usr/lib/postgresql/17/bin/psql".to_owned()),
            command_line: Some("psql -h db.internal orders".to_owned()),
            uid: Some(2001),
            user: Some("backfill".to_owned()),
        })),
        event: Event::Statement {
            connection: Arc::new(Connection {
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
            }),
            application: Arc::new(Application {
                protocol: Some("postgres"),
                login: Some(Login {
                    user: Some("backfill".to_owned()),
                    database: Some("orders".to_owned()),
                    application: Some("psql".to_owned()),
                    parameters: Vec::new(),
                }),
                ..Application::default()
            }),
            meaning: None,
            statement: Box::new(Statement {
                sequence: 3,
                kind: StatementKind::Simple,
                text: text.as_bytes().to_vec().into(),
                text_length: u64::try_from(text.len()).unwrap_or(u64::MAX),
                name: None,
                portal: None,
                parameters: Vec::new(),
                results: vec![CommandResult { tag: "SELECT 100".to_owned(), rows: Some(100) }],
                columns: vec![column("id", "int8"), column("total", "numeric"), column("email", "text")],
                outcome: Outcome::Completed,
                notices: Vec::new(),
                transaction: Some('I'),
                started: Boottime(1_000_000_000),
                finished: Boottime(1_002_345_678),
                request_bytes: 180,
                response_bytes: 4200,
                incomplete: false,
            }),
        },
    }
}
