//! `auditor verify`: is the trail whole, or a proof one? Needs no daemon, and no trust in one.

use std::io::{self, ErrorKind, Write, stdout};
use std::path::{Path, PathBuf};

use auditor::trail::seal::{NotAKey, Proof, Signed, VerifierKey};
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
    /// The public key that `auditor key` has printed, or a file with it: kept where the host's root cannot reach it, it shows
    /// who signed
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// A checkpoint that has left the host (a copy of the trail's file `checkpoint`): shows that nothing was cut off or forked since
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
    /// Verify a record that `auditor prove` has printed, without a trail
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with_all = ["paths", "checkpoint"])]
    proof: Option<PathBuf>,
    #[arg(long = "from-siem", hide = true, value_name = "FILE", value_parser = super::absent::option)]
    _from_siem: Option<super::absent::Never>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) fn execute(self, places: &Places) -> Result<(), Failure> {
        let key = self.key.as_deref().map(key).transpose()?;
        if let (Some(proof), Some(key)) = (&self.proof, &key) {
            return proven(proof, key, self.json);
        }
        let checkpoints = self.checkpoint.iter().map(|path| checkpoint(path)).collect::<Result<_, _>>()?;
        let trust = Trust { key, checkpoints };
        let paths = if self.paths.is_empty() { vec![places.trail_dir()] } else { self.paths };
        paths.iter().try_for_each(|path| check(path))?;
        if (trust.key.is_some() || !trust.checkpoints.is_empty()) && !paths.iter().any(|path| path.is_dir()) {
            return Err(Failure::usage(
                "files have no checkpoints to verify with --key or --checkpoint: name the directory of a trail",
            ));
        }
        // A directory without HEAD may lack its last records and look whole, so the absence is damage; files go without.
        let report = trail::verify(&paths, HeadRule::Required, Limits::default(), &trust)
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

/// A key as it is printed, or from a file that has it in a line.
fn key(text: &str) -> Result<VerifierKey, Failure> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    match std::fs::read_to_string(text) {
        Ok(content) => {
            content.trim().parse().map_err(|error| Failure::usage(format!("--key {text}: {error}")))
        }
        Err(_) if text.contains('+') => Err(Failure::usage(NotAKey)),
        Err(error) => Err(Failure::usage(format!("--key {text}: {error}"))),
    }
}

fn checkpoint(path: &Path) -> Result<(PathBuf, Signed), Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| unopened(path, &error))?;
    let signed = Signed::parse(&text).ok_or_else(|| {
        Failure::usage(format!(
            "{} is not a checkpoint: name a copy of a trail's file `checkpoint`",
            path.display()
        ))
    })?;
    Ok((path.to_owned(), signed))
}

/// Verifies one record by its proof, and prints it.
fn proven(path: &Path, key: &VerifierKey, as_json: bool) -> Result<(), Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    let proof =
        Proof::parse(&text).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    proof.verify(key).map_err(|error| Failure::refused(format!("{}: {error}", path.display())))?;
    let checkpoint = proof.checkpoint().checkpoint();
    let mut out = stdout().lock();
    if !as_json {
        let (sequence, size, origin) = (proof.sequence(), checkpoint.size, &checkpoint.origin);
        writeln!(out, "whole: record {sequence} is one of the {size} of {origin} that {key} has signed for")?;
    }
    json::raw_line(&mut out, proof.line().trim_ascii_end())?;
    out.flush()?;
    Ok(())
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
