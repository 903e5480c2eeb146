//! What the auditor costs: throughput of a database client against none, beside the two usual ways of getting the same record.
//!
//! Machines drift, and a single run's throughput depends on where the scheduler happens to put client and server. So each run of a
//! setting has a run without it right before or right after, a pair is the mean of several such alternations, and only the
//! ratios of pairs are compared. The daemon runs only while it is measured: the other run is on a host without an auditor.

pub(crate) mod decode;
mod load;
mod process;
mod statistics;
mod tls;
mod transfer;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use auditor_tests::child::Child;
use auditor_tests::daemon::{Daemon, Home};
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::{UNPRIVILEGED, require_root};
use nix::sys::signal::Signal;
use serde::Serialize;

use self::load::AGENT;
use self::statistics::Summary;
pub(crate) use self::tls::{Tls, tls};
pub(crate) use self::transfer::{Transfer, transfer};
use crate::build::{self, Profile};
use crate::invocation::{cargo, run};
use crate::setup;

/// Starts of the daemon that its start-up time is the median of.
const STARTS: usize = 10;
/// Connections that its memory is measured with.
const MANY: u32 = 100;

/// What statements mean, and reading Redis, from memory (`auditor/benches/classify.rs`).
pub(crate) fn classify() -> Result<()> {
    setup::build_tools()?;
    build::build_kernel_programs()?;
    run(cargo().args(["bench", "--package", "auditor", "--bench", "classify"]))
}

/// Records appended, sealed, verified, proven and searched, with the disk (`auditor/benches/trail.rs`).
pub(crate) fn trail() -> Result<()> {
    setup::build_tools()?;
    build::build_kernel_programs()?;
    run(cargo().args(["bench", "--package", "auditor", "--bench", "trail"]))
}

/// Decryption of what OpenSSL's server and client said to each other, from memory (`auditor/benches/decrypt.rs`).
pub(crate) fn decrypt() -> Result<()> {
    // The library carries the kernel programs.
    setup::build_tools()?;
    build::build_kernel_programs()?;
    run(cargo().args(["bench", "--package", "auditor", "--bench", "decrypt"]))
}

/// How often and how long to measure.
#[derive(Clone, Debug, clap::Args)]
struct Runs {
    /// Pairs of runs for each that is measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Runs with and runs without the setting that make a pair, in turns
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    alternations: u32,
    /// Length of one run in seconds
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Connections of one run
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=200))]
    clients: u32,
    /// Write the result to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Overhead {
    #[command(flatten)]
    runs: Runs,
    /// Measure these settings only
    #[arg(long = "setting", value_enum, default_values_t = SETTINGS)]
    settings: Vec<Setting>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Setting {
    #[value(skip)]
    None,
    Auditor,
    ServerLog,
    Pgbouncer,
}

/// What is measured against none.
const SETTINGS: [Setting; 3] = [Setting::Auditor, Setting::ServerLog, Setting::Pgbouncer];

impl Setting {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Auditor => "auditor",
            Self::ServerLog => "log_statement=all",
            Self::Pgbouncer => "pgbouncer",
        }
    }
}

/// Transactions a second, without a setting and with it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pair {
    none: f64,
    with: f64,
}

impl Pair {
    /// Means of runs in turns; who begins changes with each turn.
    fn measure(round: u32, alternations: u32, mut run: impl FnMut(bool) -> Result<f64>) -> Result<Self> {
        let mut pair = Self { none: 0.0, with: 0.0 };
        for alternation in 0..alternations {
            let with_first = (round + alternation) % 2 == 1;
            for with in [with_first, !with_first] {
                let mean = if with { &mut pair.with } else { &mut pair.none };
                *mean += run(with)? / f64::from(alternations);
            }
        }
        Ok(pair)
    }
}

#[derive(Debug, Serialize)]
struct Report {
    kernel: String,
    cpus: usize,
    clients: u32,
    seconds: u32,
    alternations: u32,
    pairs: u32,
    settings: Vec<SettingReport>,
    daemon: DaemonReport,
}

#[derive(Debug, Serialize)]
struct SettingReport {
    name: &'static str,
    tps: Summary,
    /// Of the runs beside these, without the setting.
    tps_none: Summary,
    /// Of the pairs.
    ratio: Summary,
}

#[derive(Debug, Default, Serialize)]
struct DaemonReport {
    ready_ms: Summary,
    statements: u64,
    cpu_us_per_statement: f64,
    rss_kib: u64,
    rss_kib_100_connections: u64,
    losses: u64,
}

/// What is gathered of the daemon while it is measured.
#[derive(Debug, Default)]
struct DaemonFigures {
    ready: Vec<f64>,
    cpu: Duration,
    statements: u64,
    rss: u64,
    losses: u64,
}

/// Measures, prints a table, writes JSON.
pub(crate) fn overhead(options: &Overhead) -> Result<()> {
    require_root()?;
    setup::setup()?;
    let program = build::build(Profile::Release)?;
    let postgres = Postgres::start(&Options { log_statements: false, settings: Vec::new() })?;
    fill(&postgres)?;
    let mut figures = DaemonFigures::default();
    let mut measured: Vec<(Setting, Vec<Pair>)> =
        options.settings.iter().map(|setting| (*setting, Vec::new())).collect();
    for round in 0..options.runs.pairs {
        for (setting, pairs) in &mut measured {
            let pair = Pair::measure(round, options.runs.alternations, |with| {
                let setting = if with { *setting } else { Setting::None };
                measure(setting, options, &postgres, &program, &mut figures)
            })?;
            let Pair { none, with } = pair;
            eprintln!(
                "bench: pair {} of {}, {}: {with:.0} to {none:.0}",
                round + 1,
                options.runs.pairs,
                setting.name()
            );
            pairs.push(pair);
        }
    }
    while figures.ready.len() < STARTS {
        start(&program, &postgres, &mut figures)?.stop()?;
    }
    let rss_many = memory_with_many_connections(&program, &postgres, &mut figures)?;
    let report = report(options, &measured, &figures, rss_many)?;
    print(&report);
    if let Some(path) = &options.runs.json {
        let text = serde_json::to_string_pretty(&report).context("the report as JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Ten branches' worth of accounts, read once so that they are in memory.
fn fill(postgres: &Postgres) -> Result<()> {
    let mut command = std::process::Command::new(postgres.program("pgbench"));
    command.args(["-i", "-q", "-s", "10", "-U", "postgres", "-p", &postgres.port().to_string(), "-h"]);
    command.arg(postgres.socket_folder()).arg("postgres");
    auditor_tests::child::succeed(&mut command, Duration::from_secs(120))?;
    postgres.sql("select count(abalance) from pgbench_accounts").map(drop)
}

fn measure(
    setting: Setting,
    options: &Overhead,
    postgres: &Postgres,
    program: &Path,
    figures: &mut DaemonFigures,
) -> Result<f64> {
    let Runs { clients, seconds, .. } = options.runs;
    let words = load::words(postgres, postgres.port(), clients, seconds, &[]);
    let throughput = match setting {
        Setting::None => load::plain(&words, seconds),
        Setting::ServerLog => load::with_server_log(postgres, &words, seconds),
        Setting::Pgbouncer => load::through_pgbouncer(postgres, clients, seconds),
        Setting::Auditor => {
            let daemon = start(program, postgres, figures)?;
            let before = process::cpu_time(daemon.id())?;
            let throughput = load::audited(&daemon, &words, seconds)?;
            daemon.settle()?;
            figures.cpu += process::cpu_time(daemon.id())?.saturating_sub(before);
            figures.statements += throughput.transactions;
            finish(daemon, figures)?;
            Ok(throughput)
        }
    };
    throughput.map(|throughput| throughput.tps).with_context(|| format!("setting {}", setting.name()))
}

fn start(program: &Path, postgres: &Postgres, figures: &mut DaemonFigures) -> Result<Daemon> {
    let daemon = Daemon::start_in(Home::new(program.to_path_buf(), &load::configuration(postgres))?)?;
    figures.ready.push(daemon.ready_after().as_secs_f64() * 1000.0);
    Ok(daemon)
}

/// Takes the daemon's own account of losses and its peak memory, then stops it.
fn finish(daemon: Daemon, figures: &mut DaemonFigures) -> Result<()> {
    let status = daemon.status()?;
    let failures =
        status["failures"].as_array().with_context(|| format!("no failures in the status: {status}"))?;
    figures.losses += failures.iter().filter_map(|failure| failure["count"].as_u64()).sum::<u64>();
    figures.rss = figures.rss.max(process::resident(daemon.id())?.1);
    daemon.stop().map(drop)
}

fn memory_with_many_connections(
    program: &Path,
    postgres: &Postgres,
    figures: &mut DaemonFigures,
) -> Result<u64> {
    let daemon = start(program, postgres, figures)?;
    // One statement a second on each connection: they are open, and not much more.
    let words = load::words(postgres, postgres.port(), MANY, 4, &["-R", &MANY.to_string()]);
    let mut command = daemon.home().run(AGENT, UNPRIVILEGED, &words);
    let mut client = Child::start(command.stdout(std::process::Stdio::null()), Signal::SIGTERM)?;
    let mut resident = 0;
    while client.ended()?.is_none() {
        resident = resident.max(process::resident(daemon.id())?.0);
        thread::sleep(Duration::from_millis(100));
    }
    drop(client);
    daemon.settle()?;
    daemon.stop()?;
    Ok(resident)
}

fn report(
    options: &Overhead,
    measured: &[(Setting, Vec<Pair>)],
    figures: &DaemonFigures,
    rss_many: u64,
) -> Result<Report> {
    let summary = |pairs: &[Pair], of: fn(&Pair) -> f64| {
        Summary::of(&pairs.iter().map(of).collect::<Vec<f64>>()).context("no pairs")
    };
    let mut settings = Vec::new();
    for (setting, pairs) in measured {
        settings.push(SettingReport {
            name: setting.name(),
            tps: summary(pairs, |pair| pair.with)?,
            tps_none: summary(pairs, |pair| pair.none)?,
            ratio: summary(pairs, |pair| pair.with / pair.none)?,
        });
    }
    let per_statement = figures.cpu.as_secs_f64() * 1e6 / (figures.statements.max(1) as f64);
    Ok(Report {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        cpus: thread::available_parallelism().map(usize::from).unwrap_or_default(),
        clients: options.runs.clients,
        seconds: options.runs.seconds,
        alternations: options.runs.alternations,
        pairs: options.runs.pairs,
        settings,
        daemon: DaemonReport {
            ready_ms: Summary::of(&figures.ready).context("no starts")?,
            statements: figures.statements,
            cpu_us_per_statement: per_statement,
            rss_kib: figures.rss,
            rss_kib_100_connections: rss_many,
            losses: figures.losses,
        },
    })
}

fn print(report: &Report) {
    let Report { kernel, cpus, clients, seconds, alternations, pairs, .. } = report;
    println!(
        "pgbench -S, {clients} client(s), {pairs} pairs of {alternations} alternations of {seconds} s; Linux {kernel}, \
         {cpus} CPUs"
    );
    println!(
        "{:<20}{:>10}{:>10}{:>8}{:>17}{:>17}",
        "setting", "none tps", "tps", "ratio", "quartiles", "min to max"
    );
    for SettingReport { name, tps, tps_none, ratio } in &report.settings {
        let quartiles = format!("{:.3} to {:.3}", ratio.lower_quartile, ratio.upper_quartile);
        let range = format!("{:.3} to {:.3}", ratio.min, ratio.max);
        let (tps, none, ratio) = (tps.median, tps_none.median, ratio.median);
        println!("{name:<20}{none:>10.0}{tps:>10.0}{ratio:>8.3}{quartiles:>17}{range:>17}");
    }
    let daemon = &report.daemon;
    let ready = daemon.ready_ms;
    println!("start to READY: {:.0} ms ({:.0} to {:.0})", ready.median, ready.min, ready.max);
    println!(
        "daemon's CPU: {:.1} µs a statement ({} statements)",
        daemon.cpu_us_per_statement, daemon.statements
    );
    let mib = |kib: u64| kib / 1024;
    println!(
        "daemon's memory: {} MiB at most; {} MiB with {MANY} connections",
        mib(daemon.rss_kib),
        mib(daemon.rss_kib_100_connections)
    );
    println!("losses: {}", daemon.losses);
}
