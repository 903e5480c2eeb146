//! `auditor doctor`: what this host guarantees, and how to mend what it does not.

use std::io::{Write, stdout};

use auditor::posture::{self, Check, Host, State};

use super::failure::Failure;
use super::json;
use super::terminal::{Cell, Ink, Table, colours_wanted};

/// Arguments of `auditor doctor`.
#[derive(clap::Args, Debug)]
pub(crate) struct Doctor {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        let checks =
            posture::examine(&Host { clock_synchronised: posture::clock_synchronised(), ..Host::default() });
        let mut out = stdout().lock();
        if self.json {
            checks.iter().try_for_each(|check| json::line(&mut out, check))?;
        } else {
            let rows: Vec<_> = checks.iter().flat_map(rows).collect();
            Table::new(["STATUS", "CHECK", "FOUND"], colours_wanted()).write(&mut out, &rows)?;
        }
        out.flush()?;
        if checks.iter().any(|check| check.status == State::Missing) {
            return Err(Failure::unsupported());
        }
        Ok(())
    }
}

fn rows(check: &Check) -> Vec<[Cell; 3]> {
    let status = match check.status {
        State::Ok => Cell::new("ok").with(Ink::Good),
        State::Degraded => Cell::new("degraded").with(Ink::Warning),
        State::Missing => Cell::new("missing").with(Ink::Bad),
    };
    let mut rows = vec![[status, Cell::new(check.name), Cell::new(&check.found)]];
    if check.status != State::Ok {
        rows.push([Cell::new(""), Cell::new(""), Cell::new(check.meaning)]);
    }
    let remedy = check.remedy.iter();
    rows.extend(remedy.map(|remedy| [Cell::new(""), Cell::new(""), Cell::new(format_args!("→ {remedy}"))]));
    rows
}
