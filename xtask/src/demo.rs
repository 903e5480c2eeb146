//! The main job, end to end, on this host: an agent works on a database, and its history is written by somebody else.
//!
//! Everything it starts is its own and ends with it: a PostgreSQL, a daemon with its own folders, and another host in a
//! network namespace that policy does not name.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use auditor_tests::daemon::Daemon;
use auditor_tests::network::FarEnd;
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::python::Python;
use auditor_tests::{UNPRIVILEGED, child, clients, require_root};

use crate::build::{self, Profile};
use crate::setup;

const AGENT: &str = "demo-agent";
const TASK: &str = "backfill the payments table";
const LIMIT: Duration = Duration::from_secs(60);

/// Shows it.
pub(crate) fn demo() -> Result<()> {
    require_root()?;
    setup::setup()?;
    build::build(Profile::Dev)?;
    let start = Instant::now();

    say("starting a PostgreSQL of its own");
    let postgres = Postgres::start(&Options { log_statements: false, settings: Vec::new() })?;
    say("making another host that policy does not name");
    let far = FarEnd::new()?;
    let daemon = Daemon::start(&configuration(&postgres))?;
    say(&format!("the daemon is ready after {} ms", daemon.ready_after().as_millis()));
    let before = far.arrivals()?;

    say(&format!("{AGENT} goes to work under `auditor run`, as user {UNPRIVILEGED}"));
    let words = agent(&daemon, &postgres, &far)?;
    let mut run =
        daemon.home().client(&["run", "--agent", AGENT, "--task", TASK, "--user", UNPRIVILEGED, "--"]);
    let printed = child::succeed(run.args(words).current_dir(daemon.home().folder()), LIMIT)
        .with_context(|| format!("the daemon said: {}", daemon.said()))?;
    print!("{printed}");
    if far.arrivals()? != before {
        bail!("a packet reached the host that policy does not name");
    }
    say("not one packet reached that host, by its own kernel's count");
    daemon.settle()?;

    show(&daemon, "what it did", &["log"])?;
    show(&daemon, "the session", &["sessions"])?;
    let trail = daemon.home().trail();
    show(&daemon, "is the trail whole?", &["verify", &trail.to_string_lossy()])?;

    say("stopping everything");
    drop(daemon.stop()?);
    drop(far);
    drop(postgres);
    say(&format!("done in {} s; nothing is left behind", start.elapsed().as_secs()));
    Ok(())
}

fn configuration(postgres: &Postgres) -> String {
    format!(
        r#"[[agent]]
name = "{AGENT}"
policy = "payments"

[[policy]]
name = "payments"
default = "deny"
  [[policy.rule]]
  to = ["127.0.0.1:{}"]
  action = "allow"
  protocol = "postgres"
"#,
        postgres.port()
    )
}

/// The words of what the agent runs: psql with a script, then a program with a driver.
fn agent(daemon: &Daemon, postgres: &Postgres, far: &FarEnd) -> Result<Vec<OsString>> {
    let folder = daemon.home().folder();
    let script = clients::write(folder, "demo.sql", clients::DEMO_SQL)?;
    let program = clients::write(folder, "demo.py", clients::DEMO_PROGRAM)?;
    let target = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", postgres.port());
    let python = Python::new(folder)?;
    // $1 psql, $2 target, $3 script; then the words of the program.
    let shell = "\"$1\" -X -q -f \"$3\" \"$2\"; shift 3; exec \"$@\"";
    let mut words: Vec<OsString> = ["/bin/sh", "-c", shell, "demo"].map(Into::into).into();
    words.extend([postgres.program("psql").into(), target.clone().into(), script.into()]);
    words.extend(python.words(&program, &[&target, &far.v4.to_string(), "443"]));
    Ok(words)
}

fn show(daemon: &Daemon, title: &str, arguments: &[&str]) -> Result<()> {
    println!("\n── {title}: auditor {}", arguments.first().copied().unwrap_or_default());
    print!("{}", daemon.ask(arguments)?);
    println!();
    Ok(())
}

fn say(line: &str) {
    println!("demo: {line}");
}
