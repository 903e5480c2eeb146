//! Real conversations, recorded between real clients and a real server; see `testdata/mysql/README.md`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use super::script::LIMITS;
use crate::clock::Boottime;
use crate::protocol::mysql::{Mysql, detect};
use crate::protocol::{Detection, Dissector, First, Observation, Parameter, Side, Statement};

type Entry = (Side, Boottime, Vec<u8>);

fn entries(mut bytes: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<13>() {
        let side = if head[0] == 0 { Side::Client } else { Side::Server };
        let at = Boottime(u64::from_le_bytes(head[1..9].try_into().unwrap()));
        let length = u32::from_le_bytes(head[9..].try_into().unwrap()) as usize;
        entries.push((side, at, rest[..length].to_vec()));
        bytes = &rest[length..];
    }
    entries
}

fn replay(entries: &[Entry], cut: usize) -> Vec<Observation> {
    let mut dissector = Mysql::new(LIMITS);
    let mut out = Vec::new();
    for (side, at, bytes) in entries {
        bytes.chunks(cut).for_each(|piece| dissector.bytes(*side, *at, piece, &mut out));
    }
    dissector.close(entries.last().unwrap().1, &mut out);
    out
}

fn line(observation: &Observation) -> String {
    match observation {
        Observation::Statement(statement) => statement_line(statement),
        other => format!("{other:?}"),
    }
}

fn statement_line(statement: &Statement) -> String {
    let mut line = format!("{} {:?} {}", statement.sequence, statement.kind, statement.text.escape_ascii());
    if let Some(name) = statement.name.as_deref().filter(|name| !name.is_empty()) {
        write!(line, " | name {name}").unwrap();
    }
    for parameter in &statement.parameters {
        match parameter {
            Parameter::Null => line.push_str(" | NULL"),
            Parameter::Text(text) => write!(line, " | {text:?}").unwrap(),
            other => write!(line, " | {other:?}").unwrap(),
        }
    }
    for column in &statement.columns {
        write!(line, " | {} {}", column.name, column.type_name).unwrap();
    }
    for result in &statement.results {
        write!(line, " | {} {:?}", result.tag, result.rows).unwrap();
    }
    for notice in &statement.notices {
        write!(line, " | {notice:?}").unwrap();
    }
    if statement.text_length > statement.text.len() as u64 {
        write!(line, " | text of {}", statement.text_length).unwrap();
    }
    write!(
        line,
        " | {:?} | {:?} | {} bytes, {} bytes{}",
        statement.outcome,
        statement.transaction,
        statement.request_bytes,
        statement.response_bytes,
        if statement.incomplete { " | incomplete" } else { "" }
    )
    .unwrap();
    line
}

fn captures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/mysql");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut captures: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|end| end == "bin")).collect();
    captures.sort();
    assert!(captures.len() >= 9, "the recordings are missing");
    captures
}

#[test]
fn recordings_give_what_the_server_logged() {
    for capture in captures() {
        let entries = entries(&fs::read(&capture).unwrap());
        let lines: String =
            replay(&entries, usize::MAX).iter().map(|observation| line(observation) + "\n").collect();
        let expected = capture.with_extension("txt");
        if env::var_os("AUDITOR_BLESS").is_some() {
            fs::write(&expected, &lines).unwrap();
        }
        assert_eq!(lines, fs::read_to_string(&expected).unwrap_or_default(), "{}", capture.display());
    }
}

#[test]
fn recordings_may_be_cut_anywhere() {
    for capture in captures() {
        let entries = entries(&fs::read(&capture).unwrap());
        let whole = replay(&entries, usize::MAX);
        for cut in [1, 2, 3, 5, 64, 1000] {
            assert_eq!(whole, replay(&entries, cut), "{} in pieces of {cut}", capture.display());
        }
    }
}

#[test]
fn recordings_are_detected() {
    for capture in captures() {
        let entries = entries(&fs::read(&capture).unwrap());
        let (side, _, server) = &entries[0];
        assert_eq!(*side, Side::Server);
        assert_eq!(detect(First { client: b"", server }), Detection::Yes(()), "{}", capture.display());
    }
}
