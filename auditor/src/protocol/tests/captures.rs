//! Real conversations, recorded between real clients and real servers, and what is to come of each; see the README.md beside them in
//! `testdata`. With `AUDITOR_BLESS` in the environment, what comes of them is written down instead.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::clock::Boottime;
use crate::protocol::{Detection, First, Limits, Observation, Parameter, Protocol, Side, Statement, detect};

/// The recordings of one protocol.
pub(in crate::protocol) struct Captures {
    pub(in crate::protocol) protocol: Protocol,
    pub(in crate::protocol) limits: Limits,
    /// How many there are at least.
    pub(in crate::protocol) at_least: usize,
    /// Writes down what has come of one.
    pub(in crate::protocol) line: fn(&Observation) -> String,
}

/// A recording: who said what, and when.
struct Capture {
    path: PathBuf,
    entries: Vec<(Side, Boottime, Vec<u8>)>,
}

impl Captures {
    pub(in crate::protocol) fn give_what_is_expected(&self) {
        for capture in self.all() {
            let lines: String =
                self.replay(&capture, usize::MAX).iter().map(|one| (self.line)(one) + "\n").collect();
            let expected = capture.path.with_extension("txt");
            if env::var_os("AUDITOR_BLESS").is_some() {
                fs::write(&expected, &lines).unwrap();
            }
            assert_eq!(
                lines,
                fs::read_to_string(&expected).unwrap_or_default(),
                "{}",
                capture.path.display()
            );
        }
    }

    pub(in crate::protocol) fn may_be_cut_anywhere(&self) {
        for capture in self.all() {
            let whole = self.replay(&capture, usize::MAX);
            for cut in [1, 2, 3, 5, 64, 1000] {
                let pieces = self.replay(&capture, cut);
                assert_eq!(whole, pieces, "{} in pieces of {cut}", capture.path.display());
            }
        }
    }

    /// By what was said first alone.
    pub(in crate::protocol) fn are_detected(&self) {
        for capture in self.all() {
            let (side, _, bytes) = &capture.entries[0];
            let first = match side {
                Side::Client => First { client: bytes, server: b"" },
                Side::Server => First { client: b"", server: bytes },
            };
            assert_eq!(detect(first), Detection::Yes(self.protocol), "{}", capture.path.display());
        }
    }

    fn all(&self) -> Vec<Capture> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(self.protocol.name());
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut captures: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|end| end == "bin")).collect();
        captures.sort();
        assert!(captures.len() >= self.at_least, "recordings are missing");
        captures.into_iter().map(Capture::read).collect()
    }

    fn replay(&self, capture: &Capture, cut: usize) -> Vec<Observation> {
        let mut dissector = self.protocol.dissector(self.limits);
        let mut out = Vec::new();
        for (side, at, bytes) in &capture.entries {
            bytes.chunks(cut).for_each(|piece| dissector.bytes(*side, *at, piece, &mut out));
        }
        dissector.close(capture.entries.last().unwrap().1, &mut out);
        out
    }
}

impl Capture {
    fn read(path: PathBuf) -> Self {
        let bytes = fs::read(&path).unwrap();
        let (mut bytes, mut entries) = (&bytes[..], Vec::new());
        while let Some((head, rest)) = bytes.split_first_chunk::<13>() {
            let side = if head[0] == 0 { Side::Client } else { Side::Server };
            let at = Boottime(u64::from_le_bytes(head[1..9].try_into().unwrap()));
            let length = u32::from_le_bytes(head[9..].try_into().unwrap()) as usize;
            entries.push((side, at, rest[..length].to_vec()));
            bytes = &rest[length..];
        }
        Self { path, entries }
    }
}

/// What has come of a connection to a database, in a line.
pub(in crate::protocol) fn line(observation: &Observation) -> String {
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
