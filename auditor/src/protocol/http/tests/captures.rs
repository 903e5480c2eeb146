//! Real conversations, recorded between real clients and real servers; see `testdata/http/README.md`.

use std::path::{Path, PathBuf};
use std::{env, fs};

use super::script::{LIMITS, line};
use crate::clock::Boottime;
use crate::protocol::http::{Http, detect, detect_server};
use crate::protocol::{Detection, Dissector, Observation, Side};

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
    let mut dissector = Http::new(LIMITS);
    let mut out = Vec::new();
    for (side, at, bytes) in entries {
        bytes.chunks(cut).for_each(|piece| dissector.bytes(*side, *at, piece, &mut out));
    }
    dissector.close(entries.last().unwrap().1, &mut out);
    out
}

fn captures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/http");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut captures: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|end| end == "bin")).collect();
    captures.sort();
    assert!(captures.len() > 5, "the recordings are missing");
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
        let (side, _, first) = &entries[0];
        let found = if *side == Side::Client { detect(first) } else { detect_server(first) };
        assert_eq!(found, Detection::Yes(()), "{}", capture.display());
    }
}
