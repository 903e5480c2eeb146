//! The state of one verification: which record is due, and what is known of the one before.

use std::path::{Path, PathBuf};

use super::super::chain::{Hash, Seal};
use super::super::head::Head;
use super::super::segment::Line;
use super::seals::Seals;
use super::{Check, Damage, Identified, Report};
use crate::trail::Error;

/// A walk over the lines of one piece: a trail, or a copy of a part of one.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    report: &'a mut Report,
    head: Option<Head>,
    trail: Option<String>,
    /// The highest record so far; `None` at the beginning of a piece that may begin anywhere and whose name does not say
    /// where it does.
    highest: Option<u64>,
    /// Its hash; `None` where it is not known, because that record is damaged.
    hash: Option<Hash>,
    /// Damaged lines since the highest record: each may have been one of those that are due.
    broken: u64,
    /// The record of the line before, where that is out of place: a run of such lines is one finding.
    misplaced: Option<(u64, Hash)>,
    file: PathBuf,
    /// The segment's name promises this record in its first line.
    named: Option<u64>,
    lines: u64,
    /// An unfinished line, damage unless it is the end of a live trail.
    unfinished: Option<(Damage, u64)>,
    /// The place after the last line.
    end: (u64, u64),
    seals: Option<Seals>,
}

impl<'a> Walk<'a> {
    /// With `anywhere`, the piece may begin with any record; else it must with the first.
    pub(super) fn new(
        head: Option<Head>,
        anywhere: bool,
        seals: Option<Seals>,
        report: &'a mut Report,
    ) -> Self {
        report.head = head.as_ref().map(|head| head.sequence).or(report.head);
        let trail = head.as_ref().map(|head| head.trail.clone());
        if report.trail.is_none() {
            report.trail.clone_from(&trail);
        }
        Self {
            report,
            highest: (!anywhere).then_some(0),
            hash: trail.as_deref().map(Hash::genesis),
            head,
            trail,
            broken: 0,
            misplaced: None,
            file: PathBuf::new(),
            named: None,
            lines: 0,
            unfinished: None,
            end: (0, 0),
            seals,
        }
    }

    /// The lines that follow are of this file.
    pub(super) fn begin(&mut self, path: &Path, named: Option<u64>) {
        self.report.files += 1;
        self.file = path.to_owned();
        self.named = named;
        if self.highest.is_none() {
            self.highest = named.map(|named| named.saturating_sub(1));
        }
        self.lines = 0;
        self.end = (0, 0);
    }

    /// Another segment comes after the one that has just ended.
    pub(super) fn followed(&mut self) {
        if let Some((damage, _)) = self.unfinished.take() {
            self.broken += 1;
            self.report.damage(damage);
        }
        if self.lines == 0 {
            self.report.damage(Damage::of_file(&self.file, Check::Empty));
        }
    }

    pub(super) fn line(&mut self, line: &Line<'_>) -> Result<(), Error> {
        self.report.bytes += line.length;
        self.lines += 1;
        self.end = (line.number + 1, line.offset + line.length);
        if !line.is_whole() && !line.is_too_long() {
            let damage = self.at(line, self.due(), Check::Form);
            self.unfinished = Some((damage, line.length));
            return Ok(());
        }
        match (Seal::read(line.bytes), Identified::read(line.bytes)) {
            (Some(seal), Some(identified)) if seal.holds(line.bytes) => {
                return self.sound(line, seal, &identified);
            }
            (Some(seal), _) if !seal.holds(line.bytes) => self.broken(line, Check::Hash),
            _ => self.broken(line, Check::Form),
        }
        Ok(())
    }

    /// The record that belongs at this place, as far as that is known.
    fn due(&self) -> Option<u64> {
        self.highest.map(|highest| highest + 1 + self.broken)
    }

    fn at(&self, line: &Line<'_>, sequence: Option<u64>, check: Check) -> Damage {
        Damage {
            file: self.file.clone(),
            line: line.number,
            offset: line.offset,
            sequence,
            until: None,
            check,
        }
    }

    fn broken(&mut self, line: &Line<'_>, check: Check) {
        let damage = self.at(line, self.due(), check);
        self.report.damage(damage);
        self.broken += 1;
        self.misplaced = None;
    }

    /// A line that holds by itself; now for its place.
    fn sound(&mut self, line: &Line<'_>, seal: Seal, identified: &Identified<'_>) -> Result<(), Error> {
        let sequence = identified.sequence;
        self.report.records += 1;
        self.belongs(line, identified);
        let Some(highest) = self.highest else {
            return self.advance(line, seal, sequence);
        };
        if sequence <= highest {
            self.out_of_place(line, seal, sequence);
            return Ok(());
        }
        let between = sequence - highest - 1;
        if between > self.broken {
            let until = sequence - 1;
            let first = highest + 1 + self.broken;
            let damage = Damage {
                until: (until > first).then_some(until),
                ..self.at(line, Some(first), Check::Missing)
            };
            self.report.damage(damage);
        } else if between == 0 && self.hash.is_some_and(|hash| hash != seal.prev) {
            let damage = self.at(line, Some(sequence), Check::Previous);
            self.report.damage(damage);
        } else if self.lines == 1 && self.named.is_some_and(|named| named != sequence) {
            let damage = self.at(line, Some(sequence), Check::Name);
            self.report.damage(damage);
        }
        if (between, self.broken) == (1, 1)
            && let Some(seals) = &mut self.seals
        {
            // The hash that the damaged one had is known from here, and so the tree goes on.
            seals.follow(highest + 1, seal.prev, self.report)?;
        }
        self.advance(line, seal, sequence)
    }

    fn advance(&mut self, line: &Line<'_>, seal: Seal, sequence: u64) -> Result<(), Error> {
        if sequence == 1
            && self.hash.is_none()
            && self.trail.as_deref().is_some_and(|trail| Hash::genesis(trail) != seal.prev)
        {
            let damage = self.at(line, Some(sequence), Check::Previous);
            self.report.damage(damage);
        }
        self.highest = Some(sequence);
        self.hash = Some(seal.hash);
        self.broken = 0;
        self.misplaced = None;
        self.report.first.get_or_insert(sequence);
        self.report.last = Some(sequence);
        self.report.hash = self.hash;
        if self.head.as_ref().is_some_and(|head| head.sequence == sequence && head.hash != seal.hash) {
            let damage = self.at(line, Some(sequence), Check::Head);
            self.report.damage(damage);
        }
        match &mut self.seals {
            Some(seals) => seals.follow(sequence, seal.hash, self.report),
            None => Ok(()),
        }
    }

    fn out_of_place(&mut self, line: &Line<'_>, seal: Seal, sequence: u64) {
        let goes_on =
            self.misplaced.is_some_and(|(before, hash)| before + 1 == sequence && hash == seal.prev);
        if !goes_on {
            let damage = self.at(line, Some(sequence), Check::Misplaced);
            self.report.damage(damage);
        }
        self.misplaced = Some((sequence, seal.hash));
    }

    fn belongs(&mut self, line: &Line<'_>, identified: &Identified<'_>) {
        match (&self.trail, identified.trail()) {
            (Some(trail), Some(of)) if trail == of => {}
            (None, Some(of)) => {
                self.trail = Some(of.to_owned());
                self.report.trail.get_or_insert_with(|| of.to_owned());
            }
            (_, _) => {
                let damage = self.at(line, Some(identified.sequence), Check::Uid);
                self.report.damage(damage);
            }
        }
    }

    /// After the last line: is the end where it belongs?
    pub(super) fn end(self) {
        let last = self.highest.unwrap_or(0);
        let mut accounted = last + self.broken;
        let head = self.head.as_ref().map(|head| head.sequence);
        if let Some((damage, length)) = self.unfinished {
            if head.is_some_and(|head| head <= accounted) {
                self.report.unfinished = length;
            } else {
                // Of a copy, or before what HEAD names: the line was whole once.
                self.report.damage(damage);
                accounted += 1;
            }
        }
        if let Some(head) = head.filter(|head| *head > accounted) {
            let (line, offset) = self.end;
            let first = accounted + 1;
            self.report.damage(Damage {
                file: self.file,
                line,
                offset,
                sequence: Some(first),
                until: (head > first).then_some(head),
                check: Check::Tail,
            });
        }
        if let Some(seals) = self.seals {
            seals.end(accounted, self.report);
        }
    }
}
