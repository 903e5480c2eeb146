//! `auditor verify`: is the trail whole? Needs no daemon, and no trust in one.

use std::io::{Write, stdout};
use std::path::PathBuf;

use auditor::trail::{HeadRule, Limits};

use super::failure::Failure;
use super::terminal::escape;
use super::{Places, json};

/// Arguments of `auditor verify`.
#[derive(clap::Args, Debug)]
pub(crate) struct Verify {
    /// Directories of trails, segments or exported lines [default: the trail in the state directory]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) fn execute(self, places: &Places) -> Result<(), Failure> {
        let (paths, rule) = if self.paths.is_empty() {
            (vec![places.trail_dir()], HeadRule::Required)
        } else {
            (self.paths, HeadRule::IfPresent)
        };
        let report = auditor::trail::verify(&paths, rule, Limits::default()).map_err(Failure::usage)?;
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
            return Err(Failure::usage(
                "there is no record in what was named: name a trail's directory or a file",
            ));
        }
        Ok(())
    }
}
