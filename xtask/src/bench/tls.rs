//! What reading TLS costs: throughput of connections that stay, and of connections that are made anew for each transaction.
//!
//! The same pairs as the benchmark of the overhead, for each version of TLS. Secrets are taken once a handshake, so connections that
//! stay should cost what plaintext does, and the price is in the handshakes. How often the probes are hit is the kernel's own
//! count, in a run of its own, because counting costs too; client and server share a library here, so hits are of both ends.

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail};
use auditor_tests::certificates::Key;
use auditor_tests::daemon::{Daemon, Home};
use auditor_tests::postgres::Postgres;
use auditor_tests::require_root;
use auditor_tests::tls::Server;
use serde::Serialize;

use super::load::{self, Throughput};
use super::statistics::Summary;
use super::{Pair, Runs, fill, process};
use crate::build::{self, Profile};
use crate::setup;

/// The kernel counts runs of programs while this is 1.
const COUNTING: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Tls {
    #[command(flatten)]
    runs: Runs,
    /// Measure these settings only
    #[arg(long = "setting", value_enum, default_values_t = SETTINGS)]
    settings: Vec<Setting>,
}

/// What is measured against none.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Setting {
    Auditor,
    ServerLog,
}

const SETTINGS: [Setting; 2] = [Setting::Auditor, Setting::ServerLog];

impl Setting {
    fn name(self) -> &'static str {
        match self {
            Self::Auditor => "auditor",
            Self::ServerLog => "log_statement=all",
        }
    }
}

/// A version, and whether each transaction has a connection of its own.
#[derive(Clone, Copy, Debug)]
struct Case {
    version: &'static str,
    connects: bool,
}

impl Case {
    const ALL: [Self; 4] = [
        Self { version: "TLSv1.3", connects: false },
        Self { version: "TLSv1.2", connects: false },
        Self { version: "TLSv1.3", connects: true },
        Self { version: "TLSv1.2", connects: true },
    ];

    fn name(self) -> String {
        format!("{}, {}", self.version, if self.connects { "handshakes" } else { "connected" })
    }

    fn arguments(self) -> &'static [&'static str] {
        if self.connects { &["-C"] } else { &[] }
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
    cases: Vec<CaseReport>,
    handshakes: Vec<HandshakeReport>,
    losses: u64,
}

#[derive(Debug, Serialize)]
struct CaseReport {
    version: &'static str,
    connects: bool,
    setting: &'static str,
    tps: Summary,
    /// Of the runs beside these, without the setting.
    tps_none: Summary,
    /// Of the pairs.
    ratio: Summary,
    /// What a transaction takes longer, in microseconds; of the pairs.
    longer_us: Summary,
}

/// What a handshake with the probes is, both ends together.
#[derive(Debug, Serialize)]
struct HandshakeReport {
    version: &'static str,
    handshakes: u64,
    hits: f64,
    /// In the programs, without the traps that lead there.
    in_programs_us: f64,
}

/// Measures, prints a table, writes JSON.
pub(crate) fn tls(options: &Tls) -> Result<()> {
    require_root()?;
    setup::setup()?;
    let program = build::build(Profile::Release)?;
    let server = Server::start(Key::Rsa, false, &[])?;
    let postgres = &server.postgres;
    fill(postgres)?;
    let mut losses = 0;
    let mut cases = Vec::new();
    for case in Case::ALL {
        for setting in &options.settings {
            cases.push((case, *setting, Vec::new()));
        }
    }
    for round in 0..options.runs.pairs {
        for (case, setting, pairs) in &mut cases {
            postgres.set("ssl_max_protocol_version", case.version)?;
            let pair = Pair::measure(round, options.runs.alternations, |with| {
                measure(*case, with.then_some(*setting), options, postgres, &program, &mut losses)
            })?;
            let Pair { none, with } = pair;
            let (name, setting) = (case.name(), setting.name());
            eprintln!(
                "bench: pair {} of {}, {name}, {setting}: {with:.0} to {none:.0}",
                round + 1,
                options.runs.pairs
            );
            pairs.push(pair);
        }
    }
    let handshakes = Case::ALL
        .into_iter()
        .filter(|case| case.connects && options.settings.contains(&Setting::Auditor))
        .map(|case| count_hits(case, options, postgres, &program))
        .collect::<Result<_>>()?;
    let cases =
        cases.iter().map(|(case, setting, pairs)| summarise(*case, *setting, pairs, options.runs.clients));
    let report = Report {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        cpus: thread::available_parallelism().map(usize::from).unwrap_or_default(),
        clients: options.runs.clients,
        seconds: options.runs.seconds,
        alternations: options.runs.alternations,
        pairs: options.runs.pairs,
        cases: cases.collect::<Result<_>>()?,
        handshakes,
        losses,
    };
    print(&report);
    if let Some(path) = &options.runs.json {
        let text = serde_json::to_string_pretty(&report).context("the report as JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// One run; `None` is without anything.
fn measure(
    case: Case,
    setting: Option<Setting>,
    options: &Tls,
    postgres: &Postgres,
    program: &Path,
    losses: &mut u64,
) -> Result<f64> {
    // libpq's own choice is TLS where the server has it.
    let words =
        load::words(postgres, postgres.port(), options.runs.clients, options.runs.seconds, case.arguments());
    let throughput = match setting {
        None => load::plain(&words, options.runs.seconds)?,
        Some(Setting::ServerLog) => load::with_server_log(postgres, &words, options.runs.seconds)?,
        Some(Setting::Auditor) => {
            let daemon = start(program, postgres)?;
            let throughput = load::audited(&daemon, &words, options.runs.seconds)?;
            *losses += finish(daemon, throughput, case)?;
            throughput
        }
    };
    Ok(throughput.tps)
}

fn start(program: &Path, postgres: &Postgres) -> Result<Daemon> {
    Daemon::start_in(Home::new(program.to_path_buf(), &load::configuration(postgres))?)
}

/// Checks that what was measured was done: a benchmark of an auditor that read nothing would be a good one. Returns losses.
fn finish(daemon: Daemon, throughput: Throughput, case: Case) -> Result<u64> {
    daemon.settle()?;
    let status = daemon.status()?;
    let failures =
        status["failures"].as_array().with_context(|| format!("no failures in the status: {status}"))?;
    let losses = failures.iter().filter_map(|failure| failure["count"].as_u64()).sum();
    let sessions = daemon.ask(&["sessions", "--json"])?;
    let session = sessions.lines().next().context("no session")?;
    let session: serde_json::Value = serde_json::from_str(session).context("a session")?;
    let statements = session["statements"].as_u64().unwrap_or_default();
    if statements < throughput.transactions {
        bail!("{}: {statements} statements were read of {}: {session}", case.name(), throughput.transactions);
    }
    daemon.stop()?;
    Ok(losses)
}

/// Lets the kernel count for a run of handshakes.
fn count_hits(case: Case, options: &Tls, postgres: &Postgres, program: &Path) -> Result<HandshakeReport> {
    postgres.set("ssl_max_protocol_version", case.version)?;
    let daemon = start(program, postgres)?;
    let words =
        load::words(postgres, postgres.port(), options.runs.clients, options.runs.seconds, case.arguments());
    let before = fs::read_to_string(COUNTING).with_context(|| format!("cannot read {COUNTING}"))?;
    fs::write(COUNTING, "1").with_context(|| format!("cannot write {COUNTING}"))?;
    let ran = load::audited(&daemon, &words, options.runs.seconds);
    let runs = process::uprobe_runs(daemon.id());
    fs::write(COUNTING, before.trim()).with_context(|| format!("cannot write {COUNTING}"))?;
    let ((hits, nanoseconds), handshakes) = (runs?, ran?.transactions.max(1));
    daemon.settle()?;
    daemon.stop()?;
    Ok(HandshakeReport {
        version: case.version,
        handshakes,
        hits: hits as f64 / handshakes as f64,
        in_programs_us: nanoseconds as f64 / 1000.0 / handshakes as f64,
    })
}

fn summarise(case: Case, setting: Setting, pairs: &[Pair], clients: u32) -> Result<CaseReport> {
    let summary = |of: &dyn Fn(&Pair) -> f64| {
        Summary::of(&pairs.iter().map(of).collect::<Vec<f64>>()).context("no pairs")
    };
    let latency = |tps: f64| f64::from(clients) * 1e6 / tps;
    Ok(CaseReport {
        version: case.version,
        connects: case.connects,
        setting: setting.name(),
        tps: summary(&|pair| pair.with)?,
        tps_none: summary(&|pair| pair.none)?,
        ratio: summary(&|pair| pair.with / pair.none)?,
        longer_us: summary(&|pair| latency(pair.with) - latency(pair.none))?,
    })
}

fn print(report: &Report) {
    let Report { kernel, cpus, clients, seconds, alternations, pairs, .. } = report;
    println!(
        "pgbench -S over TLS, {clients} client(s), {pairs} pairs of {alternations} alternations of {seconds} s; Linux {kernel}, \
         {cpus} CPUs"
    );
    println!(
        "{:<22}{:<20}{:>10}{:>10}{:>8}{:>17}{:>17}{:>12}",
        "case", "setting", "none tps", "tps", "ratio", "quartiles", "min to max", "µs longer"
    );
    for case in &report.cases {
        let CaseReport { version, connects, setting, tps, tps_none, ratio, longer_us } = case;
        let name = format!("{version}, {}", if *connects { "handshakes" } else { "connected" });
        let quartiles = format!("{:.3} to {:.3}", ratio.lower_quartile, ratio.upper_quartile);
        let range = format!("{:.3} to {:.3}", ratio.min, ratio.max);
        let (tps, none, ratio, longer) = (tps.median, tps_none.median, ratio.median, longer_us.median);
        println!(
            "{name:<22}{setting:<20}{none:>10.0}{tps:>10.0}{ratio:>8.3}{quartiles:>17}{range:>17}{longer:>12.0}"
        );
    }
    for HandshakeReport { version, handshakes, hits, in_programs_us } in &report.handshakes {
        println!(
            "{version}: {hits:.1} hits a handshake, both ends; {in_programs_us:.1} µs in the programs ({handshakes} handshakes)"
        );
    }
    println!("losses: {}", report.losses);
}
