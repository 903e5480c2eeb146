//! `auditor sessions`: sessions with what they did and how much of it was audited.

use std::io::{Write, stdout};

use auditor::api::types::{Session, SessionFilter};
use jiff::Timestamp;

use super::failure::Failure;
use super::terminal::{Cell, Ink, Table, colours_wanted};
use super::{Connection, Places, json, time};

/// Arguments of `auditor sessions`.
#[derive(clap::Args, Debug)]
pub(crate) struct Sessions {
    /// Only this agent's
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Only those that were open then or later: a time, or 15m, 2h, 7d ago
    #[arg(long, value_name = "TIME", value_parser = time::parse_argument)]
    since: Option<Timestamp>,
    /// Only those that are open now
    #[arg(long)]
    live: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Sessions {
    pub(crate) fn execute(self, places: &Places) -> Result<(), Failure> {
        let Connection { mut client, runtime } = Connection::open(places)?;
        let filter = SessionFilter {
            agent: self.agent,
            since: self.since.map(|time| time.to_string()),
            live: self.live,
        };
        let sessions = runtime.block_on(client.sessions(&filter))?;
        let mut out = stdout().lock();
        if self.json {
            return sessions.iter().try_for_each(|session| json::line(&mut out, session));
        }
        let header = [
            "SESSION",
            "AGENT",
            "OPENED",
            "ENDED",
            "CONNECTIONS",
            "STATEMENTS",
            "VIOLATIONS",
            "COVERAGE",
            "TASK",
        ];
        let rows: Vec<_> = sessions.iter().map(row).collect();
        Table::new(header, colours_wanted()).write(&mut out, &rows)?;
        out.flush()?;
        Ok(())
    }
}

fn row(session: &Session) -> [Cell; 9] {
    let violations = Cell::or_dash(session.violations);
    let covered = session.bytes_audited >= session.bytes_moved;
    [
        Cell::new(&session.id),
        Cell::new(&session.agent),
        Cell::new(time::show(session.opened)),
        ended(session),
        Cell::or_dash(session.connections),
        Cell::or_dash(session.statements),
        if session.violations.is_some_and(|count| count > 0) {
            violations.with(Ink::Bad)
        } else {
            violations
        },
        Cell::new(coverage(session)).with(if covered { Ink::Plain } else { Ink::Bad }),
        Cell::or_dash(session.task.as_deref()),
    ]
}

fn ended(session: &Session) -> Cell {
    match (session.live, session.ended) {
        (true, _) => Cell::new("live").with(Ink::Good),
        (false, Some(ended)) => Cell::new(time::show(ended)),
        (false, None) => Cell::new(session.end.as_deref().unwrap_or("unknown")).with(Ink::Warning),
    }
}

/// The audited part of the bytes that the kernel moved. Rounded down: only the whole is 100 %.
fn coverage(session: &Session) -> String {
    if session.bytes_moved == 0 {
        return "-".to_owned();
    }
    let audited = u128::from(session.bytes_audited.min(session.bytes_moved));
    let tenths = audited * 1000 / u128::from(session.bytes_moved);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(moved: u64, audited: u64) -> Session {
        Session {
            id: "00000000000000aa".to_owned(),
            agent: "a".to_owned(),
            labels: [].into(),
            identity: None,
            task: Some("x\x1b[2J".to_owned()),
            policy: "p".to_owned(),
            cgroup: "/auditor/1".to_owned(),
            opened: 1_000,
            live: true,
            ended: None,
            end: None,
            connections: Some(1),
            statements: Some(2),
            violations: Some(0),
            bytes_moved: moved,
            bytes_audited: audited,
            confinement: None,
        }
    }

    #[test]
    fn coverage_is_never_rounded_up() {
        assert_eq!(coverage(&session(0, 0)), "-");
        assert_eq!(coverage(&session(1_000_000, 999_999)), "99.9 %");
        assert_eq!(coverage(&session(7, 7)), "100.0 %");
    }

    #[test]
    fn a_task_cannot_clear_the_screen() {
        let mut out = Vec::new();
        Table::new([""; 9], false).write(&mut out, &[row(&session(1, 1))]).unwrap();
        assert!(!out.contains(&0x1b));
    }
}
