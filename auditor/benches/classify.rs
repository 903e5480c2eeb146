//! What it costs to know what a statement means, and to read Redis: one thread, no kernel.
//!
//! Uncached: the corpus' statements, each told to a classifier that has never seen one. Cached: the same again. And the slowest texts
//! that an agent could send, which is what bounds a turn of the pipeline.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark panics")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use auditor::clock::Boottime;
use auditor::protocol::redis::Redis;
use auditor::protocol::{Dissector, Limits, Side};
use auditor::statement::{Classifier, Dialect, Dialogue, Text, redis};
use nix::time::{ClockId, clock_gettime};

const PASSES: usize = 21;

fn took(classifier: &mut Classifier, dialect: Dialect, sql: &str) -> Duration {
    let text = Text { dialect, bytes: sql.as_bytes(), incomplete: false, session: 1, at: Boottime(0) };
    let mut dialogue = Dialogue::default();
    let began = Instant::now();
    black_box(classifier.classify(text, &mut dialogue));
    began.elapsed()
}

/// Nanoseconds at a part of the sorted times.
fn at(times: &mut [Duration], part: f64) -> f64 {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * part) as usize].as_nanos() as f64
}

fn statements(name: &str, dialect: Dialect, statements: &[&str]) {
    let (mut uncached, mut cached) = (Vec::new(), Vec::new());
    for _ in 0..PASSES {
        for sql in statements {
            let mut classifier = Classifier::default();
            uncached.push(took(&mut classifier, dialect, sql));
            took(&mut classifier, dialect, sql);
            cached.push(took(&mut classifier, dialect, sql));
        }
    }
    for (what, mut times) in [("uncached", uncached), ("cached", cached)] {
        let (median, most) = (at(&mut times, 0.5) / 1e3, at(&mut times, 0.99) / 1e3);
        println!("{name:<34}{what:<10}{median:>10.2} µs median{most:>12.2} µs 99 %");
    }
}

fn main() {
    let corpus = |cases: &'static str| -> Vec<&'static str> {
        cases.split("\n\n").map(|case| case.split_once("\n->").map_or(case, |(sql, _)| sql)).collect()
    };
    let postgres = corpus(include_str!("../src/statement/corpus/postgres.sql"));
    statements("PostgreSQL, the corpus", Dialect::Postgres, &postgres);
    let usual = [
        "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;",
        "UPDATE pgbench_accounts SET abalance = abalance + 10 WHERE aid = 12345;",
        "INSERT INTO history (tid, bid, aid, delta, mtime) VALUES (1, 2, 3, 4, CURRENT_TIMESTAMP);",
        "SELECT o.id, o.total, u.name FROM orders o JOIN users u ON u.id = o.user_id WHERE o.created_at > now() - \
         interval '1 day' AND u.status IN ('a', 'b') ORDER BY o.total DESC LIMIT 50",
    ];
    statements("PostgreSQL, usual statements", Dialect::Postgres, &usual);
    statements(
        "MySQL, the corpus",
        Dialect::MySql,
        &corpus(include_str!("../src/statement/corpus/mysql.sql")),
    );
    let most = 32 << 10;
    let chain = |head: &str, part: &str| head.to_owned() + &part.repeat((most - head.len()) / part.len());
    let worst = [
        chain("select a", ",a"),
        chain("select 1", "+a"),
        chain("select * from a", ",b"),
        chain("", "begin;"),
        chain("select ", "not ") + "true",
    ];
    statements("PostgreSQL, 32 KiB of the worst", Dialect::Postgres, &worst.each_ref().map(String::as_str));
    let rows = format!("insert into t values {}", vec!["(1, 'some text', 2.5)"; 40_000].join(", "));
    statements("PostgreSQL, 40,000 rows to insert", Dialect::Postgres, &[&rows]);
    read_redis();
}

/// Commands a second that one core reads, by its CPU time.
fn read_redis() {
    const COMMANDS: usize = 1_000_000;
    let limits = Limits { max_statement_bytes: 1 << 20, parameters: true, columns: true };
    let commands = b"*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000001\r\n$3\r\nxxx\r\n".repeat(32);
    let replies = b"+OK\r\n".repeat(32);
    for means in [false, true] {
        let mut dissector = Redis::new(limits);
        let mut out = Vec::new();
        let began = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
        for _ in 0..COMMANDS / 32 {
            dissector.bytes(Side::Client, Boottime(0), &commands, &mut out);
            dissector.bytes(Side::Server, Boottime(0), &replies, &mut out);
            for observation in out.drain(..) {
                if let (true, auditor::protocol::Observation::Statement(statement)) = (means, &observation) {
                    black_box(redis(&statement.text, false));
                }
                black_box(observation);
            }
        }
        let seconds =
            (Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap()) - began).as_secs_f64();
        let what = if means { "read and classified" } else { "read" };
        println!(
            "{:<34}{what:<20}{:>12.0} commands/s",
            "Redis, SET in pipelines of 32",
            COMMANDS as f64 / seconds
        );
    }
}
