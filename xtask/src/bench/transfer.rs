//! What the auditor costs a large transfer: COPY to a client that throws it away, and COPY of the same from a client, each with the
//! auditor beside the same without it, in turns.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use auditor_tests::daemon::{Daemon, Home};
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::{UNPRIVILEGED, child, require_root};
use serde::Serialize;

use super::load::AGENT;
use super::process;
use super::statistics::Summary;
use crate::build::{self, Profile};
use crate::setup;

/// A transfer that takes longer is not one that anybody wants to measure.
const LIMIT: Duration = Duration::from_secs(600);

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Transfer {
    /// Size of one transfer in GiB
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    gib: u64,
    /// Bytes of a row with its header
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(8..=65536))]
    row: u64,
    /// Pairs of transfers for each direction
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Write the result to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Direction {
    name: &'static str,
    /// MiB a second.
    speed: Summary,
    /// Of the transfers beside these, without the auditor.
    speed_none: Summary,
    /// Of the pairs.
    ratio: Summary,
    /// Daemon's processor time.
    cpu_s_per_gib: f64,
    /// Peak of the daemon's resident memory.
    rss_kib: u64,
    /// Part of the bytes that was counted instead of copied.
    skipped: f64,
}

/// Measures, prints a table, writes JSON.
pub(crate) fn transfer(options: &Transfer) -> Result<()> {
    require_root()?;
    setup::setup()?;
    let program = build::build(Profile::Release)?;
    let postgres = Postgres::start(&Options { log_statements: false, settings: Vec::new() })?;
    postgres.sql("create table loaded (line text)")?;
    let row = options.row;
    let rows = (options.gib << 30) / row;
    let out = format!("copy (select repeat('x', {}) from generate_series(1, {rows})) to stdout", row - 6);
    // The server reads all rows and keeps none: the way there is what is measured.
    let into = format!(
        "\\copy loaded from program 'yes {} | head -n {rows}' where false",
        "0".repeat(row as usize - 2)
    );
    let mut report = Vec::new();
    for (name, command) in [("COPY TO STDOUT", &out), ("COPY FROM STDIN", &into)] {
        report.push(measure(name, command, rows * row, options.pairs, &postgres, &program)?);
    }
    println!("transfers of {} GiB in rows of {row} bytes, {} pairs", options.gib, options.pairs);
    println!(
        "{:<18}{:>11}{:>9}{:>8}{:>17}{:>13}{:>9}{:>9}",
        "", "none MiB/s", "MiB/s", "ratio", "min to max", "CPU s/GiB", "RSS MiB", "skipped"
    );
    for Direction { name, speed, speed_none, ratio, cpu_s_per_gib, rss_kib, skipped } in &report {
        let range = format!("{:.3} to {:.3}", ratio.min, ratio.max);
        println!(
            "{name:<18}{:>11.0}{:>9.0}{:>8.3}{range:>17}{cpu_s_per_gib:>13.2}{:>9}{:>8.1} %",
            speed_none.median,
            speed.median,
            ratio.median,
            rss_kib / 1024,
            skipped * 100.0
        );
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report).context("the report as JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn measure(
    name: &'static str,
    command: &str,
    bytes: u64,
    pairs: u32,
    postgres: &Postgres,
    program: &std::path::Path,
) -> Result<Direction> {
    let port = postgres.port().to_string();
    let mut words = vec![postgres.program("psql").into_os_string()];
    words.extend(["-X", "-q", "-o", "/dev/null", "-h", "127.0.0.1", "-p", &port].map(OsString::from));
    words.extend(["-U", "postgres", "-d", "postgres", "-c", command].map(OsString::from));
    let (mut with, mut none, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut cpu, mut rss, mut moved, mut skipped) = (Duration::ZERO, 0, 0, 0);
    let speed = |elapsed: Duration| bytes as f64 / f64::from(1 << 20) / elapsed.as_secs_f64();
    let plain = || -> Result<f64> {
        let user = child::find_user(&[UNPRIVILEGED])?;
        let mut call = Command::new(&words[0]);
        call.args(&words[1..]).current_dir("/");
        let began = Instant::now();
        child::succeed(child::as_user(&mut call, &user), LIMIT)?;
        Ok(speed(began.elapsed()))
    };
    let mut audited = || -> Result<f64> {
        let configuration = super::load::configuration(postgres);
        let daemon = Daemon::start_in(Home::new(program.to_path_buf(), &configuration)?)?;
        let before = process::cpu_time(daemon.id())?;
        let mut call = daemon.home().run(AGENT, UNPRIVILEGED, &words);
        let began = Instant::now();
        child::succeed(&mut call, LIMIT)?;
        let elapsed = began.elapsed();
        daemon.settle()?;
        cpu += process::cpu_time(daemon.id())?.saturating_sub(before);
        rss = rss.max(process::resident(daemon.id())?.1);
        for record in daemon.records()? {
            let coverage = &record["unmapped"]["auditor"]["connection"]["coverage"];
            let count = |name: &str| coverage[name].as_u64().unwrap_or(0);
            moved += count("received") + count("sent");
            skipped += count("skipped_received") + count("skipped_sent");
        }
        daemon.stop()?;
        Ok(speed(elapsed))
    };
    for round in 0..pairs {
        let (one, other) = if round % 2 == 0 {
            let none = plain()?;
            (none, audited()?)
        } else {
            let with = audited()?;
            (plain()?, with)
        };
        eprintln!("bench: pair {} of {pairs}, {name}: {other:.0} to {one:.0} MiB/s", round + 1);
        none.push(one);
        with.push(other);
        ratios.push(other / one);
    }
    let gib = bytes as f64 * f64::from(pairs) / f64::from(1 << 30);
    Ok(Direction {
        name,
        speed: Summary::of(&with).context("no pairs")?,
        speed_none: Summary::of(&none).context("no pairs")?,
        ratio: Summary::of(&ratios).context("no pairs")?,
        cpu_s_per_gib: cpu.as_secs_f64() / gib,
        rss_kib: rss,
        skipped: skipped as f64 / (moved.max(1) as f64),
    })
}
