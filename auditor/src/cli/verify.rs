//! `auditor verify`: is the trail whole? Needs no daemon, and no trust in one.

use std::io::{self, ErrorKind, Write, stdout};
use std::path::{Path, PathBuf};

use auditor::trail::{self, HeadRule, Limits, Trust};

use super::failure::Failure;
use super::terminal::escape;
use super::{Places, json};

/// Arguments of `auditor verify`.
#[derive(clap::Args, Debug)]
pub(crate) struct Verify {
    /// Directories of trails, segments or exported lines [default: the trail in the state directory]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[arg(long = "key", hide = true, value_name = "FILE", value_parser = super::absent::option)]
    _key: Option<super::absent::Never>,
    #[arg(long = "from-siem", hide = true, value_name = "FILE", value_parser = super::absent::option)]
    _from_siem: Option<super::absent::Never>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) fn execute(self, places: &Places) -> Result<(), Failure> {
        let paths = if self.paths.is_empty() { vec![places.trail_dir()] } else { self.paths };
        paths.iter().try_for_each(|path| check(path))?;
        // A directory without HEAD may lack its last records and look whole, so the absence is damage; files go without.
        let report = trail::verify(&paths, HeadRule::Required, Limits::default(), &Trust::default())
            .map_err(|error| unreadable(&error))?;
        let mut out = stdout().lock();
        if self.json {
            json::line(&mut out, &report)?;
        } else {
            for line in report.to_string().lines() {
                writeln!(out, "{}", escape(line))?;
            }
        }
        out.flush()?;
        if !report.is_whole() {
            return Err(Failure::told());
        }
        if report.records == 0 && report.head.is_none() {
            return Err(Failure::usage("no record is in what was named: name a trail's directory or a file"));
        }
        Ok(())
    }
}

/// Refuses what is no trail before anything is said of its state.
fn check(path: &Path) -> Result<(), Failure> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotADirectory => return Ok(()),
        Err(error) => return Err(unopened(path, &error)),
    };
    let names: Vec<_> = entries.flatten().map(|entry| PathBuf::from(entry.file_name())).collect();
    if names
        .iter()
        .any(|name| name == Path::new("HEAD") || name.extension().is_some_and(|end| end == "jsonl"))
    {
        return Ok(());
    }
    let meant = path.join("trail");
    let hint = if meant.is_dir() {
        format!("did you mean {}?", meant.display())
    } else {
        "name the directory that has HEAD and the segments, or the state directory with --state-dir"
            .to_owned()
    };
    Err(Failure::usage(format!("there is no trail in {}: {hint}", path.display())))
}

fn unreadable(error: &trail::Error) -> Failure {
    match error {
        trail::Error::Call { path, source, .. } => unopened(path, source),
        error => Failure::usage(error),
    }
}

fn unopened(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    Failure::usage(match error.kind() {
        ErrorKind::NotFound => format!(
            "there is no trail at {path}: name its directory or a file, or the state directory with --state-dir"
        ),
        ErrorKind::PermissionDenied => {
            format!("{path} may not be read: run this as root, or name a copy that you may read")
        }
        _ => format!("{path}: {error}"),
    })
}
