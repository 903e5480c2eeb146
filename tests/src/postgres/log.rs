//! PostgreSQL's CSV log: the server's own account of what it was told.
//!
//! Columns as of PostgreSQL 13 to 18 (those that are read have kept their places since 9.0).

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};

/// One line of the log.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Entry {
    /// The server process that wrote it.
    pub pid: u32,
    /// The client's end of the connection, where there is a TCP client.
    pub client: Option<SocketAddr>,
    /// One connection's life; process ids come again, this does not.
    pub session: String,
    /// Database user.
    pub user: String,
    /// `LOG`, `ERROR`, `FATAL` and so on.
    pub severity: String,
    /// SQLSTATE.
    pub sqlstate: String,
    /// Message, verbatim.
    pub message: String,
    /// Detail; bind parameters are here.
    pub detail: String,
    /// The statement that led to an error.
    pub query: String,
    /// `application_name`, by which a test tells its clients apart.
    pub application: String,
}

/// A statement as the log has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Statement<'a> {
    /// Text, verbatim.
    pub text: &'a str,
    /// Name of the prepared statement; `None` for a simple query.
    pub prepared: Option<&'a str>,
}

impl Entry {
    /// The statement that this line tells of, if it does.
    pub fn statement(&self) -> Option<Statement<'_>> {
        if self.severity != "LOG" {
            return None;
        }
        if let Some(text) = self.message.strip_prefix("statement: ") {
            return Some(Statement { text, prepared: None });
        }
        // A portal's name follows the statement's after a slash. Neither may hold ": " in what the tests send.
        let (name, text) = self.message.strip_prefix("execute ")?.split_once(": ")?;
        Some(Statement { text, prepared: Some(name.split('/').next().unwrap_or(name)) })
    }

    /// Bind values as text, where this line tells them; `None` for NULL.
    pub fn parameters(&self) -> Option<Vec<Option<String>>> {
        // "parameters: " up to PostgreSQL 15, "Parameters: " since.
        let mut rest = self.detail.strip_prefix(['P', 'p'])?.strip_prefix("arameters: ")?;
        let mut values = Vec::new();
        while rest.starts_with('$') {
            rest = rest.split_once(" = ")?.1;
            if let Some(after) = rest.strip_prefix("NULL") {
                values.push(None);
                rest = after;
            } else {
                let (value, after) = quoted(rest)?;
                values.push(Some(value));
                rest = after;
            }
            rest = rest.strip_prefix(", ").unwrap_or(rest);
        }
        Some(values)
    }

    /// Whether this line reports that a statement failed.
    pub fn is_error(&self) -> bool {
        matches!(self.severity.as_str(), "ERROR" | "FATAL")
    }
}

/// Reads a whole log. A last line that is still being written is left out.
///
/// # Errors
/// It is not what PostgreSQL writes.
pub fn parse(bytes: &[u8]) -> Result<Vec<Entry>> {
    let text = std::str::from_utf8(bytes).context("the CSV log is not UTF-8")?;
    rows(text).iter().map(|row| entry(row)).collect()
}

fn entry(row: &[String]) -> Result<Entry> {
    let column = |index: usize| row.get(index).map(String::as_str).unwrap_or_default();
    if row.len() < 23 {
        bail!("a line of the CSV log has {} columns: {row:?}", row.len());
    }
    Ok(Entry {
        user: column(1).to_owned(),
        pid: column(3).parse().with_context(|| format!("process id {:?}", column(3)))?,
        client: client(column(4)),
        session: column(5).to_owned(),
        severity: column(11).to_owned(),
        sqlstate: column(12).to_owned(),
        message: column(13).to_owned(),
        detail: column(14).to_owned(),
        query: column(19).to_owned(),
        application: column(22).to_owned(),
    })
}

/// `connection_from` is address, colon, port, without brackets around an IPv6 address; `[local]` for a unix socket.
fn client(column: &str) -> Option<SocketAddr> {
    let (address, port) = column.rsplit_once(':')?;
    Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
}

/// A value in single quotes, quotes in it doubled, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text.strip_prefix('\'')?;
    loop {
        let (part, after) = rest.split_once('\'')?;
        value.push_str(part);
        match after.strip_prefix('\'') {
            Some(after) => {
                value.push('\'');
                rest = after;
            }
            None => return Some((value, after)),
        }
    }
}

/// CSV with quoted fields that may hold commas, line feeds and doubled quotes.
fn rows(text: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut row = Vec::new();
    let mut field = String::new();
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut field)),
            '\n' if !quoted => {
                row.push(std::mem::take(&mut field));
                rows.push(std::mem::take(&mut row));
            }
            other => field.push(other),
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(from: &str, severity: &str, message: &str, query: &str) -> String {
        format!(
            "2026-01-01 00:00:00.000 UTC,\"u\",\"d\",42,\"{from}\",6a.2a,1,\"SELECT\",2026-01-01 00:00:00 UTC,3/1,0,\
             {severity},00000,\"{message}\",,,,,,\"{query}\",,,\"psql\",\"client backend\",,0\n"
        )
    }

    #[test]
    fn a_statement_with_quotes_commas_and_line_feeds_is_verbatim() {
        let log = line("127.0.0.1:5555", "LOG", "statement: select \"\"a\"\",\n'b'", "");
        let entries = parse(log.as_bytes()).unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].pid, 42);
        assert_eq!(entries[0].client, Some("127.0.0.1:5555".parse().unwrap()));
        let statement = entries[0].statement().unwrap();
        assert_eq!(statement, Statement { text: "select \"a\",\n'b'", prepared: None });
    }

    #[test]
    fn an_executed_prepared_statement_tells_its_name() {
        let log = line("::1:5555", "LOG", "execute P0_1/portal: select 1: 2", "");
        let entries = parse(log.as_bytes()).unwrap();
        assert_eq!(entries[0].client, Some("[::1]:5555".parse().unwrap()));
        let statement = entries[0].statement().unwrap();
        assert_eq!(statement, Statement { text: "select 1: 2", prepared: Some("P0_1") });
    }

    #[test]
    fn parameters_are_told_apart_from_null_and_unquoted() {
        let detail = "parameters: $1 = '7', $2 = NULL, $3 = 'it''s, $4 = x'".to_owned();
        let entry = Entry { detail, ..Entry::default() };
        let expected = vec![Some("7".to_owned()), None, Some("it's, $4 = x".to_owned())];
        assert_eq!(entry.parameters(), Some(expected));
        assert_eq!(Entry::default().parameters(), None);
    }

    #[test]
    fn an_error_is_no_statement_and_names_its_query() {
        let log = line("[local]", "ERROR", "syntax error", "selct");
        let entries = parse(log.as_bytes()).unwrap();
        assert_eq!(entries[0].client, None);
        assert_eq!(entries[0].statement(), None);
        assert!(entries[0].is_error());
        assert_eq!(entries[0].query, "selct");
    }

    #[test]
    fn a_line_that_is_still_being_written_is_left_out() {
        let whole = line("[local]", "LOG", "statement: a", "");
        let torn = format!("{whole}2026-01-01,\"u");
        assert_eq!(parse(torn.as_bytes()).unwrap().len(), 1);
    }

    #[test]
    fn a_line_of_another_shape_is_an_error() {
        assert!(parse(b"a,b,c\n").is_err());
    }
}
