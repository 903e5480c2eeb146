//! How fast the daemon reads what agents say: captures of real clients, replayed in one thread without a kernel.
//!
//! Three figures for each capture: decoding alone (reassembly, protocol, attribution: what must keep up with the network), the
//! same with records rendered, and the same appended to a trail until it is on the disk. Decoding and rendering are told by the
//! CPU time of the one thread that does them, so that a busy machine does not slow them; appending has a second thread and a
//! disk, so it is told by the CPU time of the whole process and by the clock on the wall.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use auditor_tests::daemon::{Daemon, Home};
use auditor_tests::mariadb::{self, MariaDb};
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::{UNPRIVILEGED, child, place, require_root};
use serde::Serialize;
use serde_json::Value;

use super::fill;
use super::load::{AGENT, configuration};
use super::statistics::Summary;
use crate::build::{self, Profile};
use crate::setup;

/// What one client, or one replay, may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Captures may grow to this.
const CAPTURE_LIMIT: &str = "4294967296";

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Decode {
    /// Replays of each capture for each figure
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    passes: u32,
    /// Statements in the captures of short ones
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(100..))]
    statements: u32,
    /// MiB of the captures of large results
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..2048))]
    mebibytes: u32,
    /// Folder of the trail that is measured, which is made and removed: on a tmpfs or on a disk
    #[arg(long, default_value = "/dev/shm/auditor-bench-decode")]
    trail: PathBuf,
    /// Write the result to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    kernel: String,
    passes: u32,
    trail: PathBuf,
    captures: Vec<CaptureReport>,
}

#[derive(Debug, Serialize)]
struct CaptureReport {
    name: &'static str,
    capture_bytes: u64,
    events: u64,
    statements: u64,
    response_bytes: u64,
    /// CPU seconds of the decoding thread.
    decode: Summary,
    /// The same with records rendered.
    render: Summary,
    /// CPU seconds of the process with a trail written.
    trail_cpu: Summary,
    /// Seconds on the wall with a trail written.
    trail_wall: Summary,
}

/// Measures, prints a table, writes JSON.
pub(crate) fn decode(options: &Decode) -> Result<()> {
    require_root()?;
    setup::setup()?;
    let program = build::build(Profile::Release)?;
    let postgres = Postgres::start(&Options { log_statements: false, settings: Vec::new() })?;
    fill(&postgres)?;
    let mut captures = Vec::new();
    let mut capture = |name, configuration: &str, words: &[OsString]| -> Result<()> {
        eprintln!("bench: recording {name}");
        let folder = place::scratch()?;
        let capture = folder.path().join("capture");
        record(&program, configuration, words, &capture)?;
        captures.push(measure(name, options, &program, &capture)?);
        Ok(())
    };
    for (name, words) in loads(options, &postgres) {
        capture(name, &configuration(&postgres), &words)?;
    }
    drop(postgres);
    let mariadb = MariaDb::start(false)?;
    for (name, words) in mysql_loads(options, &mariadb) {
        capture(name, &mysql_configuration(&mariadb), &words)?;
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let report = Report { kernel, passes: options.passes, trail: options.trail.clone(), captures };
    print(&report);
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report).context("the report as JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Names and the clients' words.
fn loads(options: &Decode, postgres: &Postgres) -> [(&'static str, Vec<OsString>); 4] {
    let port = postgres.port().to_string();
    let end = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
    let client = |program: &str, words: &[&str]| {
        let mut all = vec![postgres.program(program).into_os_string()];
        all.extend(words.iter().chain(&end).map(OsString::from));
        all.push("postgres".into());
        all
    };
    let each = (options.statements / 4).to_string();
    let pgbench =
        |mode: &str| client("pgbench", &["-n", "-S", "-c", "4", "-j", "1", "-M", mode, "-t", &each]);
    let result = |width: u32| {
        // A DataRow of one column has 11 bytes beside the value.
        let rows = u64::from(options.mebibytes) * (1 << 20) / u64::from(width);
        let query = format!("select repeat('x', {}) from generate_series(1, {rows})", width - 11);
        client("psql", &["-X", "-q", "-A", "-t", "-o", "/dev/null", "-c", &query])
    };
    [
        ("short, simple", pgbench("simple")),
        ("short, prepared", pgbench("prepared")),
        ("rows of 1 KiB", result(1024)),
        ("rows of 100 bytes", result(100)),
    ]
}

/// The same for MariaDB.
fn mysql_loads(options: &Decode, mariadb: &MariaDb) -> [(&'static str, Vec<OsString>); 1] {
    let (port, queries) = (format!("--port={}", mariadb.port()), options.statements.to_string());
    let slap = |name, concurrency: &str, query: &str| {
        let password = format!("MYSQL_PWD={}", mariadb::PASSWORD);
        let user = format!("--user={}", mariadb::USER);
        let words =
            ["/usr/bin/env", &password, "mariadb-slap", "--no-defaults", "--host=127.0.0.1", &port, &user];
        let more = [
            "--skip-ssl",
            "--create-schema=slap",
            concurrency,
            "--number-of-queries",
            &queries,
            "--query",
            query,
        ];
        (name, words.iter().chain(&more).map(OsString::from).collect())
    };
    [slap(
        "mysql, short",
        "--concurrency=4",
        "select abalance, 'x' from (select 17 as abalance) a where abalance = 17",
    )]
}

fn mysql_configuration(mariadb: &MariaDb) -> String {
    let port = mariadb.port();
    format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"mysql\"\n\n[[policy]]\nname = \"mysql\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"127.0.0.1:{port}\"]\naction = \"allow\"\nprotocol = \"mysql\"\n"
    )
}

/// Has a client at work in an agent's session, and a daemon that records it.
fn record(program: &Path, configuration: &str, words: &[OsString], capture: &Path) -> Result<()> {
    let mut home = Home::new(program.to_path_buf(), configuration)?;
    home.daemon_arguments =
        vec!["--record-capture".into(), capture.into(), "--capture-limit".into(), CAPTURE_LIMIT.into()];
    let daemon = Daemon::start_in(home)?;
    child::succeed(&mut daemon.home().run(AGENT, UNPRIVILEGED, words), LIMIT)
        .with_context(|| format!("the daemon said: {}", daemon.said()))?;
    daemon.settle()?;
    let stopped = daemon.stop()?;
    if stopped.said.contains("capture") {
        bail!("the capture is not whole: {}", stopped.said);
    }
    Ok(())
}

fn measure(name: &'static str, options: &Decode, program: &Path, capture: &Path) -> Result<CaptureReport> {
    let passes = |stage: &str| -> Result<Vec<Value>> {
        let mut command = Command::new(program);
        command.arg("replay-capture").arg(capture).args(["--measure", stage, "--passes"]);
        command.arg(options.passes.to_string());
        if stage == "trail" {
            command.arg("--trail").arg(&options.trail);
        }
        let printed = child::succeed(&mut command, LIMIT)?;
        printed.lines().map(|line| serde_json::from_str(line).context("a pass")).collect()
    };
    let summary = |passes: &[Value], field: &str| {
        let series: Option<Vec<f64>> = passes.iter().map(|pass| pass[field].as_f64()).collect();
        series.as_deref().and_then(Summary::of).with_context(|| format!("no {field} in {passes:?}"))
    };
    let (decoded, rendered, trail) = (passes("decode")?, passes("render")?, passes("trail")?);
    let count = |field: &str| decoded[0][field].as_u64().with_context(|| format!("no {field}"));
    Ok(CaptureReport {
        name,
        capture_bytes: fs::metadata(capture).context("the capture")?.len(),
        events: count("events")?,
        statements: count("statements")?,
        response_bytes: count("received")?,
        decode: summary(&decoded, "cpu_seconds")?,
        render: summary(&rendered, "cpu_seconds")?,
        trail_cpu: summary(&trail, "process_cpu_seconds")?,
        trail_wall: summary(&trail, "wall_seconds")?,
    })
}

fn print(report: &Report) {
    println!(
        "decoding in one thread, medians of {}; Linux {}; trail in {}",
        report.passes,
        report.kernel,
        report.trail.display()
    );
    println!(
        "{:<20}{:>12}{:>14}{:>8}{:>16}{:>10}{:>10}",
        "capture", "statements", "response MiB", "stage", "statements/s", "GiB/s", "µs each"
    );
    for capture in &report.captures {
        let (statements, bytes) = (capture.statements as f64, capture.response_bytes as f64);
        let stages = [
            ("decode", capture.decode),
            ("render", capture.render),
            ("cpu", capture.trail_cpu),
            ("wall", capture.trail_wall),
        ];
        for (stage, seconds) in stages {
            let seconds = seconds.median;
            println!(
                "{:<20}{:>12}{:>14.0}{:>8}{:>16.0}{:>10.2}{:>10.2}",
                capture.name,
                capture.statements,
                bytes / f64::from(1 << 20),
                stage,
                statements / seconds,
                bytes / seconds / f64::from(1 << 30),
                seconds * 1e6 / statements
            );
        }
    }
    println!("(cpu, wall: with the trail written: CPU time of all threads, and time on the wall)");
}
