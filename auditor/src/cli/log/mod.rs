//! `auditor log` and `auditor show`: the trail, read through the daemon, or with `--offline` from its files.
//!
//! As a table for people; with `--json` the records themselves, one a line, the bytes unchanged, so that what is piped into
//! a file can still be verified.

mod row;

use std::io::{Write, stdout};
use std::ops::ControlFlow;
use std::path::Path;

use auditor::api::records;
use auditor::api::sessions::complete;
use auditor::api::types::RecordFilter;
use auditor::trail::query::find;
use jiff::Timestamp;
use serde_json::Value;

use super::failure::{Failure, complain};
use super::terminal::{Cell, Table, colours_wanted};
use super::{Connection, Places, json, time};

/// Arguments of `auditor log`.
#[derive(clap::Args, Debug)]
pub(crate) struct Log {
    /// Only this session, by its id or enough of its first digits
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Only this agent
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Only this destination: 10.20.0.9, 10.20.0.9:5432, [2001:db8::1]:443, unix:/run/docker.sock
    #[arg(long, value_name = "DESTINATION")]
    to: Option<String>,
    /// Only this protocol, e.g. postgres
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<String>,
    /// Only statements and requests with this verb, e.g. delete
    #[arg(long, value_name = "VERB")]
    verb: Option<String>,
    /// Only statements that name this table, function or key, e.g. orders, shop.orders or shop.*
    #[arg(long, value_name = "OBJECT")]
    object: Option<String>,
    /// Only what was decided so: allowed, denied
    #[arg(long, value_name = "DECISION")]
    decision: Option<String>,
    /// Only this kind of record: statement, connection-refused, finding, …
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Not before then: a time, or 15m, 2h, 7d ago
    #[arg(long, value_name = "TIME", value_parser = time::parse_argument)]
    since: Option<Timestamp>,
    /// Before then: a time, or 15m, 2h, 7d ago
    #[arg(long, value_name = "TIME", value_parser = time::parse_argument)]
    until: Option<Timestamp>,
    /// Only statements whose text matches this regular expression, and other records whose line does
    #[arg(long, value_name = "REGEX")]
    grep: Option<String>,
    /// Go on with records as they are written
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    form: Form,
}

/// Arguments of `auditor show`.
#[derive(clap::Args, Debug)]
pub(crate) struct Show {
    /// A record's uid or number, a connection's id, a statement or request (CONNECTION/POSITION), or a session's id or its first digits
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    form: Form,
}

/// Where records come from, and how they are printed.
#[derive(clap::Args, Debug)]
struct Form {
    /// The records themselves, one JSON object a line, unchanged
    #[arg(long)]
    json: bool,
    /// Read the trail in the state directory, without a daemon
    #[arg(long)]
    offline: bool,
}

impl Log {
    pub(crate) fn execute(self, places: &Places) -> Result<(), Failure> {
        let mut printer = Printer::new(self.form.json);
        let filter = RecordFilter {
            session: self.session,
            agent: self.agent,
            to: self.to,
            protocol: self.protocol,
            verb: self.verb,
            object: self.object,
            decision: self.decision,
            kind: self.kind,
            since: self.since.map(|time| time.to_string()),
            until: self.until.map(|time| time.to_string()),
            grep: self.grep,
            follow: self.follow,
        };
        // Before a daemon is asked, so that a misspelt filter is told as such where there is none.
        filter.query().map_err(Failure::usage)?;
        if self.form.offline {
            return offline(&places.trail_dir(), &filter, &mut printer);
        }
        let Connection { mut client, runtime } = Connection::open(places)?;
        runtime.block_on(async {
            let mut lines = client.records(&filter).await?;
            while let Some(line) = lines.next().await? {
                printer.print(&line)?;
                if filter.follow {
                    printer.flush()?;
                }
            }
            printer.flush()
        })?;
        printer.tell_if_nothing_matched();
        Ok(())
    }
}

fn offline(trail: &Path, filter: &RecordFilter, printer: &mut Printer) -> Result<(), Failure> {
    let mut query = filter.query().map_err(Failure::usage)?;
    if let Some(session) = query.session {
        query.session = Some(complete(trail, &session).map_err(Failure::usage)?);
    }
    let printer = std::cell::RefCell::new(printer);
    let mut failed = Ok(());
    records::read(
        trail,
        &query,
        filter.follow,
        |line| {
            failed = printer.borrow_mut().print(line.trim_ascii_end());
            if failed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        },
        || match printer.borrow_mut().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        },
    )
    .map_err(Failure::usage)?;
    failed?;
    let printer = printer.into_inner();
    printer.flush()?;
    printer.tell_if_nothing_matched();
    Ok(())
}

impl Show {
    pub(crate) fn execute(self, places: &Places) -> Result<(), Failure> {
        let mut shown = Shown {
            only: None,
            several: false,
            printer: Printer::new(self.form.json),
            as_json: self.form.json,
        };
        if self.form.offline {
            let trail = places.trail_dir();
            shown.add_offline(&trail, &self.id)?;
            if shown.only.is_none() && !shown.several {
                shown.add_offline(&trail, &complete(&trail, &self.id).map_err(Failure::usage)?)?;
            }
        } else {
            let Connection { mut client, runtime } = Connection::open(places)?;
            runtime.block_on(async {
                let mut lines = client.records_of(&self.id).await?;
                while let Some(line) = lines.next().await? {
                    shown.add(&line)?;
                }
                Ok::<_, Failure>(())
            })?;
        }
        shown.end(&self.id)
    }
}

/// One record is shown with everything in it, several as a log. Which it is shows with the second one, so no more than one is
/// ever kept: a session may have millions.
struct Shown {
    only: Option<Vec<u8>>,
    several: bool,
    printer: Printer,
    as_json: bool,
}

impl Shown {
    fn add(&mut self, line: &[u8]) -> Result<(), Failure> {
        if !self.several && self.only.is_none() {
            self.only = Some(line.to_vec());
            return Ok(());
        }
        self.several = true;
        if let Some(first) = self.only.take() {
            self.printer.print(&first)?;
        }
        self.printer.print(line)
    }

    fn add_offline(&mut self, trail: &Path, id: &str) -> Result<(), Failure> {
        let mut failed = Ok(());
        find(trail, id, |line, _| {
            failed = self.add(line.trim_ascii_end());
            if failed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .map_err(Failure::usage)?;
        failed
    }

    fn end(mut self, id: &str) -> Result<(), Failure> {
        match self.only {
            Some(line) if !self.as_json => everything(&line),
            Some(line) => {
                self.printer.print(&line)?;
                self.printer.flush()
            }
            None if self.several => self.printer.flush(),
            None => Err(Failure::refused(format!("the trail names no record, connection or session {id:?}"))),
        }
    }
}

/// All fields of one record, by their paths.
fn everything(line: &[u8]) -> Result<(), Failure> {
    let record = parse(line)?;
    let mut fields = Vec::new();
    flatten(String::new(), &record, &mut fields);
    let mut out = stdout().lock();
    Table::new(["FIELD", "VALUE"], colours_wanted()).write(&mut out, &fields)?;
    out.flush()?;
    Ok(())
}

fn flatten(path: String, value: &Value, fields: &mut Vec<[Cell; 2]>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(object) if !object.is_empty() => {
            object.iter().for_each(|(name, value)| flatten(below(name), value, fields));
        }
        Value::Array(array) if !array.is_empty() => {
            array
                .iter()
                .enumerate()
                .for_each(|(index, value)| flatten(below(&index.to_string()), value, fields));
        }
        Value::String(text) => fields.push([Cell::new(path), Cell::new(text)]),
        Value::Number(number) if path == "time" => {
            let shown = number.as_u64().map_or_else(|| number.to_string(), time::show);
            fields.push([Cell::new(path), Cell::new(shown)]);
        }
        other => fields.push([Cell::new(path), Cell::new(other)]),
    }
}

fn parse(line: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(line).map_err(|error| {
        Failure::refused(format!("a line of the trail is no record ({error}): run `auditor verify`"))
    })
}

/// Prints records one after the other.
struct Printer {
    table: Option<Table<9>>,
    out: std::io::BufWriter<std::io::Stdout>,
    printed: bool,
}

impl Printer {
    fn new(as_json: bool) -> Self {
        Self {
            table: (!as_json).then(|| Table::new(row::HEADER, colours_wanted()).at_least(row::WIDTHS)),
            out: std::io::BufWriter::new(stdout()),
            printed: false,
        }
    }

    fn print(&mut self, line: &[u8]) -> Result<(), Failure> {
        self.printed = true;
        match &mut self.table {
            Some(table) => table.write(&mut self.out, &[row::row(&parse(line)?)])?,
            None => json::raw_line(&mut self.out, line)?,
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush()?;
        Ok(())
    }

    /// An empty answer is an answer; on stderr, so that what is piped stays what it is.
    fn tell_if_nothing_matched(&self) {
        if !self.printed {
            complain("no records match");
        }
    }
}
