//! What the trail costs: records appended and sealed, verified, proven and searched, each with the disk.
//!
//! Rates are by the CPU time of the whole process, all its threads together: what one core does. By the clock they depend on the disk.
#![allow(clippy::unwrap_used, reason = "a benchmark panics")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use auditor::clock::{Boottime, Utc};
use auditor::protocol::{Column, CommandResult, Login, Outcome, Statement, StatementKind};
use auditor::record::ocsf::{Host, Identity, Renderer};
use auditor::record::{Agent, Application, Connection, Entry, Event, Process, Session, Transport, Verdict};
use auditor::trail::query::{Cursor, Query, find, scan};
use auditor::trail::seal::{Proof, Sealing, public_key};
use auditor::trail::{HeadRule, Limits, Options, Trail, Trust, verify};
use nix::time::{ClockId, clock_gettime};

const RECORDS: u32 = 1_000_000;
const FEW: u32 = 200_000;
const PASSES: usize = 3;

/// CPU time and time by the clock.
fn measured<T>(work: impl FnOnce() -> T) -> (T, Duration, Duration) {
    let cpu = || Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap());
    let (began, clock) = (cpu(), Instant::now());
    let done = work();
    (done, cpu() - began, clock.elapsed())
}

fn tell(what: &str, records: u32, cpu: Duration, clock: Duration) {
    let rate = |took: Duration| f64::from(records) / took.as_secs_f64();
    println!("{what:<46}{:>12.0} records/s of CPU{:>12.0} by the clock", rate(cpu), rate(clock));
}

fn host() -> Host {
    Host {
        hostname: "build-7.example.com".to_owned(),
        machine_id: Some("0f3c8d1e5b7a4c2f9d6e8b1a3c5f7e90".to_owned()),
        boot_id: "4f2b8c1a-93d7-4e5f-a1b6-0c8d7e9f1a2b".to_owned(),
        os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        kernel: "6.12.9".to_owned(),
    }
}

fn append(name: &str, options: Options, directory: &Path, entry: &Entry, records: u32) {
    let ((), cpu, clock) = measured(|| {
        let (trail, _) = Trail::open(directory, options).unwrap();
        for _ in 0..records {
            trail.append(entry).unwrap();
        }
        trail.close().unwrap();
    });
    tell(name, records, cpu, clock);
}

fn main() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let entry = statement();
    let renderer = Renderer::new(&host()).unwrap();
    let mut line = Vec::new();
    let ((), cpu, clock) = measured(|| {
        for sequence in 1..=u64::from(FEW) {
            line.clear();
            let uid = "6f1d2c3b4a5968778695a4b3c2d1e0ff-123456";
            renderer.render(&entry, Identity { sequence, uid }, &mut line).unwrap();
        }
    });
    tell("rendered", FEW, cpu, clock);
    let sealing = |every| Some(Sealing { keys: folder.path().join("keys"), every });
    for pass in 0..PASSES {
        let directory = folder.path().join(format!("chained-{pass}"));
        append("appended, chained only", Options::new(host()), &directory, &entry, FEW);
        let directory = folder.path().join(format!("sealed-{pass}"));
        let options = Options { sealing: sealing(Duration::from_secs(300)), ..Options::new(host()) };
        append("appended and sealed", options, &directory, &entry, FEW);
    }
    let directory = folder.path().join("trail");
    let options = Options { sealing: sealing(Duration::from_secs(1)), ..Options::new(host()) };
    append("appended and sealed, a checkpoint a second", options, &directory, &entry, RECORDS);
    let trust = Trust { key: public_key(&directory).unwrap(), ..Trust::default() };
    for _ in 0..PASSES {
        let (report, cpu, clock) = measured(|| {
            verify(std::slice::from_ref(&directory), HeadRule::Required, Limits::default(), &trust).unwrap()
        });
        assert!(report.is_whole(), "{report}");
        tell("verified, with its key", RECORDS, cpu, clock);
        println!(
            "{:>46} bytes a record, {} checkpoints",
            report.bytes / report.records,
            report.seal.checkpoints
        );
    }
    let mut record = Vec::new();
    find(&directory, "654321", |line, _| {
        record = line.to_vec();
        ControlFlow::Break(())
    })
    .unwrap();
    let (text, _, clock) = measured(|| Proof::of(&directory, &record).unwrap().to_string());
    println!("{:<46}{clock:>12.0?}, {} bytes", "proof of one record", text.len());
    let key = trust.key.unwrap();
    let ((), _, clock) = measured(|| Proof::parse(&text).unwrap().verify(&key).unwrap());
    println!("{:<46}{clock:>12.0?}", "proof verified");
    let searched = |name, query: Query| {
        let (_, cpu, clock) = measured(|| {
            scan(&directory, &query, &mut Cursor::default(), |_, _| ControlFlow::Continue(())).unwrap()
        });
        tell(name, RECORDS, cpu, clock);
    };
    searched("searched, no line has the bytes", Query { session: Some("f".repeat(16)), ..Query::default() });
    searched("searched, every line is parsed", Query::default());
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
