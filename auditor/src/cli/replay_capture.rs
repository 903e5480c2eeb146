//! `auditor replay-capture`: what the daemon would write of a capture, printed, or how fast it gets there. For developers.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write, stdout};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use auditor::config;
use auditor::daemon::replay::{Replayed, replay};
use auditor::protocol::Limits;
use auditor::record::Entry;
use auditor::record::ocsf::{Host, Identity, Renderer};
use auditor::source::capture::Capture;
use auditor::trail::{Options, Trail};
use serde::Serialize;

use super::failure::Failure;

#[derive(clap::Args, Debug)]
pub(crate) struct ReplayCapture {
    /// The capture
    file: PathBuf,
    /// Print totals instead of records
    #[arg(long, conflicts_with = "measure")]
    count: bool,
    /// Measure how long it takes up to here, and print that as JSON
    #[arg(long, value_enum, value_name = "STAGE")]
    measure: Option<Stage>,
    /// How often to measure
    #[arg(long, value_name = "N", default_value_t = 1, requires = "measure")]
    passes: u32,
    /// Directory of the trail that is measured: it is made, and removed afterwards; one that exists is refused
    #[arg(long, value_name = "DIR", required_if_eq("measure", "trail"))]
    trail: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Stage {
    /// Reassembly, protocol and attribution
    Decode,
    /// The same, and records rendered
    Render,
    /// The same, and appended to a trail until they are on the disk
    Trail,
}

/// One pass over a capture.
#[derive(Debug, Serialize)]
struct Pass {
    events: u64,
    statements: u64,
    sent: u64,
    received: u64,
    /// Of the thread that decodes.
    cpu_seconds: f64,
    /// Of the whole process, the trail's thread included.
    process_cpu_seconds: f64,
    wall_seconds: f64,
}

impl ReplayCapture {
    pub(crate) fn execute(&self) -> Result<(), Failure> {
        if let Some(stage) = self.measure {
            let bytes = fs::read(&self.file).map_err(|error| self.unreadable(&error))?;
            for _ in 0..self.passes {
                let pass = self.pass(stage, &bytes)?;
                let json = serde_json::to_string(&pass).map_err(Failure::refused)?;
                writeln!(stdout().lock(), "{json}")?;
            }
            return Ok(());
        }
        let file = File::open(&self.file).map_err(|error| self.unreadable(&error))?;
        let mut capture = Capture::open(file).map_err(|error| self.unreadable(&error))?;
        let mut out = BufWriter::new(stdout().lock());
        let renderer = renderer(&capture.header().boot_id)?;
        let (mut line, mut sequence, mut written) = (Vec::new(), 0, Ok(()));
        let (replayed, end) = replay(&mut capture, limits(), &mut |entry| {
            sequence += 1;
            if !self.count && written.is_ok() {
                written = render(&renderer, &entry, sequence, &mut line).and_then(|()| {
                    line.push(b'\n');
                    out.write_all(&line)
                });
            }
        });
        written?;
        if self.count {
            let Replayed { events, statements, sent, received } = replayed;
            writeln!(
                out,
                "{events} events, {sequence} records, {statements} statements, {sent} bytes sent, {received} received"
            )?;
        }
        out.flush()?;
        end.map_err(|error| self.unreadable(&error))
    }

    fn pass(&self, stage: Stage, bytes: &[u8]) -> Result<Pass, Failure> {
        let mut capture = Capture::open(bytes).map_err(|error| self.unreadable(&error))?;
        let boot_id = capture.header().boot_id.clone();
        let renderer = renderer(&boot_id)?;
        let trail = match (stage, &self.trail) {
            (Stage::Trail, Some(directory)) => {
                // What is removed at the end must be this pass's own.
                fs::DirBuilder::new().mode(0o700).create(directory).map_err(|error| {
                    Failure::refused(format!("make {}, which must not exist: {error}", directory.display()))
                })?;
                Some(Trail::open(directory, Options::new(host(&boot_id))).map_err(Failure::refused)?.0)
            }
            _ => None,
        };
        let (mut line, mut sequence, mut failed) = (Vec::new(), 0, None);
        let (began, cpu, process_cpu) = (Instant::now(), clock(Cpu::Thread), clock(Cpu::Process));
        let (replayed, end) = replay(&mut capture, limits(), &mut |entry| {
            sequence += 1;
            if let Some(trail) = &trail {
                failed = trail.append(&entry).err().map(|error| error.to_string()).or(failed.take());
            } else if stage == Stage::Render {
                let rendered = render(&renderer, &entry, sequence, &mut line);
                failed = rendered.err().map(|error| error.to_string()).or(failed.take());
            }
        });
        if let Some(trail) = trail {
            trail.close().map_err(Failure::refused)?;
        }
        let pass = Pass {
            events: replayed.events,
            statements: replayed.statements,
            sent: replayed.sent,
            received: replayed.received,
            cpu_seconds: clock(Cpu::Thread).saturating_sub(cpu).as_secs_f64(),
            process_cpu_seconds: clock(Cpu::Process).saturating_sub(process_cpu).as_secs_f64(),
            wall_seconds: began.elapsed().as_secs_f64(),
        };
        if let Some(directory) = self.trail.as_ref().filter(|_| stage == Stage::Trail) {
            fs::remove_dir_all(directory)
                .map_err(|error| Failure::refused(format!("remove {}: {error}", directory.display())))?;
        }
        end.map_err(|error| self.unreadable(&error))?;
        failed.map_or(Ok(pass), |error| Err(Failure::refused(error)))
    }

    fn unreadable(&self, error: &dyn ToString) -> Failure {
        Failure::refused(format!("{}: {}", self.file.display(), error.to_string()))
    }
}

fn limits() -> Limits {
    config::Capture::default().limits()
}

/// The host is the capture's, of which only the boot id is known.
fn host(boot_id: &str) -> Host {
    Host {
        hostname: "replayed".to_owned(),
        machine_id: None,
        boot_id: boot_id.to_owned(),
        os: "unknown".to_owned(),
        kernel: "unknown".to_owned(),
    }
}

fn renderer(boot_id: &str) -> Result<Renderer, Failure> {
    Renderer::new(&host(boot_id)).map_err(Failure::refused)
}

fn render(renderer: &Renderer, entry: &Entry, sequence: u64, line: &mut Vec<u8>) -> io::Result<()> {
    line.clear();
    let uid = format!("replayed-{sequence}");
    Ok(renderer.render(entry, Identity { sequence, uid: &uid }, line)?)
}

enum Cpu {
    Thread,
    Process,
}

/// CPU time used so far; zero where the kernel does not say.
fn clock(of: Cpu) -> Duration {
    let id = match of {
        Cpu::Thread => nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID,
        Cpu::Process => nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID,
    };
    nix::time::clock_gettime(id).map_or(Duration::ZERO, Duration::from)
}
