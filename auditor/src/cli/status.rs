//! `auditor status`: the daemon's state of health.

use std::io::{Write, stdout};

use auditor::api::types::{RingStatus, Status as DaemonStatus};

use super::failure::Failure;
use super::terminal::{Cell, Ink, Table, colours_wanted};
use super::{Connection, Places, json, time};

/// Arguments of `auditor status`.
#[derive(clap::Args, Debug)]
pub(crate) struct Status {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn execute(self, places: &Places) -> Result<(), Failure> {
        let Connection { mut client, runtime } = Connection::open(places)?;
        let status = runtime.block_on(client.status())?;
        let mut out = stdout().lock();
        if self.json {
            return json::line(&mut out, &status);
        }
        Table::new(["WHAT", "STATE"], colours_wanted()).write(&mut out, &rows(&status))?;
        out.flush()?;
        Ok(())
    }
}

fn rows(status: &DaemonStatus) -> Vec<[Cell; 2]> {
    let row = |name: &str, value: String| [Cell::new(name), Cell::new(value)];
    let mut rows = vec![
        row("version", status.version.clone()),
        row("started", time::show(status.started)),
        row("policy generation", status.generation.to_string()),
        row("sessions", status.sessions.to_string()),
        row("connections", status.connections.to_string()),
        row("statements", status.statements.to_string()),
        [Cell::new("payload ring"), ring(&status.payload_ring)],
        [Cell::new("lifecycle ring"), ring(&status.lifecycle_ring)],
        row("last record", format!("{} {}", status.trail.sequence, status.trail.hash)),
        [
            Cell::new("trail"),
            match &status.trail.blocked {
                None => Cell::new("writing").with(Ink::Good),
                Some(reason) => Cell::new(format_args!("BLOCKED: {reason}")).with(Ink::Bad),
            },
        ],
    ];
    let programs = status.programs.iter();
    rows.extend(programs.map(|program| {
        let ink = if program.attachments == 0 { Ink::Warning } else { Ink::Plain };
        [Cell::new(format_args!("program {}", program.name)), Cell::new(program.attachments).with(ink)]
    }));
    rows.extend(status.failures.iter().map(|failure| {
        let errno = nix::errno::Errno::from_raw(i32::try_from(failure.errno).unwrap_or(0));
        let count = Cell::new(format_args!("{errno:?}: {}", failure.count)).with(Ink::Bad);
        [Cell::new(format_args!("failures at {}", failure.site)), count]
    }));
    rows.extend(
        status
            .degraded
            .iter()
            .map(|sentence| [Cell::new("degraded"), Cell::new(sentence).with(Ink::Warning)]),
    );
    rows
}

fn ring(ring: &RingStatus) -> Cell {
    let percent = (u128::from(ring.used) * 100).checked_div(u128::from(ring.size)).unwrap_or(0);
    let cell = Cell::new(format_args!("{percent} % of {} bytes", ring.size));
    cell.with(if percent >= 75 { Ink::Bad } else { Ink::Plain })
}

#[cfg(test)]
mod tests {
    use auditor::daemon::command::DaemonState;

    use super::*;

    #[test]
    fn trouble_is_in_the_table() {
        let state = DaemonState {
            payload_ring: (900, 1000),
            failures: vec![("ring".to_owned(), 28, 3)],
            trail_blocked: Some("no space left".to_owned()),
            degraded: vec!["no LSM".to_owned()],
            ..DaemonState::default()
        };
        let mut out = Vec::new();
        Table::new(["", ""], false).write(&mut out, &rows(&state.into())).unwrap();
        let text = String::from_utf8(out).unwrap();
        for expected in ["90 % of 1000 bytes", "ENOSPC: 3", "BLOCKED: no space left", "no LSM"] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
}
