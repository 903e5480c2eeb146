//! Tests of the trail as a whole: written, damaged, killed, starved.

mod damage;
mod durability;
mod sealing;
mod searching;
mod tampering;
mod writing;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::segment::Segment;
use super::{HeadRule, Limits, Options, Report, Trail, Trust, verify};
use crate::clock::Utc;
use crate::record::ocsf::Host;
use crate::record::{Caller, Entry, Event};

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn options() -> Options {
    Options {
        segment_bytes: 4096,
        ..Options::new(Host {
            hostname: "host".to_owned(),
            machine_id: None,
            boot_id: "boot".to_owned(),
            os: "Linux".to_owned(),
            kernel: "6.12".to_owned(),
        })
    }
}

pub(super) fn entry(number: u64) -> Entry {
    let width = usize::try_from(number % 37).unwrap();
    Entry {
        time: Utc(1_790_000_000_000_000_000 + number * 1_000_000),
        session: None,
        process: None,
        event: Event::ApiAccess {
            by: Caller { pid: 1, uid: 0, user: None },
            method: "GET".to_owned(),
            path: format!("/v1/{number:0width$}"),
            status: 200,
        },
    }
}

pub(super) fn open(directory: &Path) -> Trail {
    let (trail, recovery) = Trail::open(directory, options()).unwrap();
    assert_eq!(recovery, None);
    trail
}

/// A trail with `records` records in segments of about four.
pub(super) fn written(directory: &Path, records: u64) {
    let trail = open(directory);
    for number in 1..=records {
        assert_eq!(trail.append(&entry(number)).unwrap(), number);
    }
    trail.close().unwrap();
}

pub(super) fn verified(directory: &Path) -> Report {
    verify(&[directory.to_owned()], HeadRule::Required, Limits::default(), &Trust::default()).unwrap()
}

pub(super) fn segments(directory: &Path) -> Vec<PathBuf> {
    Segment::list(directory).unwrap().into_iter().map(|segment| segment.path).collect()
}

/// All lines with their newlines, over all segments.
pub(super) fn lines(directory: &Path) -> Vec<(PathBuf, u64, Vec<u8>)> {
    let mut lines = Vec::new();
    for path in segments(directory) {
        let bytes = fs::read(&path).unwrap();
        let split = bytes.split_inclusive(|byte| *byte == b'\n');
        lines.extend(split.zip(1..).map(|(line, number)| (path.clone(), number, line.to_vec())));
    }
    lines
}
