//! Verification: is this trail, or this copy of a part of it, what was written, all of it and in order?
//!
//! One pass in constant memory. Each line is first judged by itself (its form, its hash), then by its place (sequence,
//! `prev`, the trail's id, the segment's name). After damage it goes on at the next line that holds by itself, so that
//! one changed byte is one finding and not a million.
//!
//! A trail that was rewritten from some record to its end, with HEAD, is found by its checkpoints: their signatures, and the tree over the
//! records ([`seals`]). What it cannot see: a trail that was put back as a whole to what it was earlier, or sealed anew by somebody who
//! has its key. For that it takes a checkpoint that has left the host ([`Trust`]).

mod report;
mod seals;
mod walk;

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::Error;
use super::head::{Head, is_id};
use super::segment::{Lines, Segment, first_of};

pub use self::report::{Check, Damage, Report, SealReport};
use self::seals::Seals;
pub use self::seals::Trust;
use self::walk::Walk;

/// What to do about a missing HEAD.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HeadRule {
    /// A folder without one is damaged: right for the trail that a daemon writes.
    Required,
    /// Without one the end is not checked, and the report says so: right for copies and exports.
    IfPresent,
}

/// How much of a report is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Findings beyond so many are counted, not listed.
    pub damages: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { damages: 100 }
    }
}

/// Verifies each of `paths`: a folder is a trail, a file a segment or an export; files that are named like segments are
/// taken in order and as one piece, any other file is a piece of its own.
///
/// What is in a folder is compared with its checkpoints, and these with `trust`.
///
/// Damage is not an error: it is in the report. An error is a file that cannot be read.
pub fn verify(paths: &[PathBuf], rule: HeadRule, limits: Limits, trust: &Trust) -> Result<Report, Error> {
    let mut report = Report::new(limits.damages);
    let (folders, files): (Vec<_>, Vec<_>) = paths.iter().partition(|path| path.is_dir());
    for folder in folders {
        // HEAD and checkpoints before the segments: of a trail that is being written, they then have at least what is named.
        let head = Head::read(folder);
        let trail = head.as_ref().ok().and_then(|head| head.as_ref()).map(|head| head.trail.as_str());
        let seals = Seals::open(folder, trail, trust, &mut report)?;
        let segments = Segment::list(folder)?;
        piece(&segments, folder, head, rule, seals, &mut report)?;
    }
    let (mut segments, others): (Vec<_>, Vec<_>) = files
        .into_iter()
        .map(|path| (path, first_of(path)))
        .partition::<Vec<_>, _>(|(_, first)| first.is_some());
    segments.sort_by_key(|(_, first)| *first);
    let segments: Vec<_> = segments
        .into_iter()
        .map(|(path, first)| Segment { path: path.clone(), first: first.unwrap_or_default() })
        .collect();
    if !segments.is_empty() {
        piece(&segments, &PathBuf::new(), Ok(None), HeadRule::IfPresent, None, &mut report)?;
    }
    for (path, _) in others {
        let mut walk = Walk::new(None, true, None, &mut report);
        walk.begin(path, None);
        lines(path, &mut walk)?;
        walk.end();
    }
    Ok(report)
}

fn piece(
    segments: &[Segment],
    folder: &Path,
    head: Result<Option<Head>, Error>,
    rule: HeadRule,
    seals: Option<Seals>,
    report: &mut Report,
) -> Result<(), Error> {
    let head = match head {
        Ok(head) => head,
        Err(Error::HeadMalformed { path }) => {
            report.damage(Damage::of_file(&path, Check::Head));
            None
        }
        Err(error) => return Err(error),
    };
    if head.is_none() && rule == HeadRule::Required {
        report.damage(Damage::of_file(&Head::path(folder), Check::HeadMissing));
    }
    let anywhere = head.is_none() && rule == HeadRule::IfPresent;
    let mut walk = Walk::new(head, anywhere, seals, report);
    for (index, segment) in segments.iter().enumerate() {
        walk.begin(&segment.path, Some(segment.first));
        lines(&segment.path, &mut walk)?;
        if index + 1 < segments.len() {
            walk.followed();
        }
    }
    walk.end();
    Ok(())
}

fn lines(path: &Path, walk: &mut Walk<'_>) -> Result<(), Error> {
    let mut lines = Lines::open(path)?;
    while let Some(line) = lines.next_line()? {
        walk.line(&line)?;
    }
    Ok(())
}

/// What a line says of itself: its place in which trail.
#[derive(Debug)]
pub(super) struct Identified<'a> {
    pub(super) sequence: u64,
    uid: std::borrow::Cow<'a, str>,
}

impl<'a> Identified<'a> {
    /// `None` where the line is not a record.
    pub(super) fn read(line: &'a [u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Record<'a> {
            #[serde(borrow)]
            metadata: Metadata<'a>,
        }
        #[derive(Deserialize)]
        struct Metadata<'a> {
            sequence: u64,
            #[serde(borrow)]
            uid: std::borrow::Cow<'a, str>,
        }
        let Record { metadata } = serde_json::from_slice(line).ok()?;
        Some(Self { sequence: metadata.sequence, uid: metadata.uid })
    }

    /// The id of its trail; `None` where its uid is not one that a trail gives to this sequence.
    pub(super) fn trail(&self) -> Option<&str> {
        let (trail, sequence) = self.uid.split_once('-')?;
        (is_id(trail) && sequence == self.sequence.to_string()).then_some(trail)
    }

    pub(super) fn belongs_to(&self, trail: &str) -> bool {
        self.trail() == Some(trail)
    }
}
