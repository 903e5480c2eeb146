//! Whatever is done to a trail is found, and named by its place.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proptest::prelude::*;
use proptest::sample::Index;

use super::{lines, segments, verified, written};
use crate::trail::{Check, Damage, HeadRule, Limits, Trust, verify};

const RECORDS: usize = 30;

type Placed = Vec<(PathBuf, u64, Vec<u8>)>;

/// Writes lines back into the segments that they are said to be in.
fn rewrite(directory: &Path, lines: &Placed) {
    for path in segments(directory) {
        let content: Vec<u8> =
            lines.iter().filter(|(of, _, _)| *of == path).flat_map(|line| line.2.clone()).collect();
        fs::write(path, content).unwrap();
    }
}

fn offset(lines: &Placed, index: usize) -> u64 {
    let before = lines[..index].iter().filter(|(of, _, _)| *of == lines[index].0);
    before.map(|line| u64::try_from(line.2.len()).unwrap()).sum()
}

/// A trail whose lines `damage` has changed, and what is found first; with what the lines were.
fn found(damage: impl FnOnce(&mut Placed)) -> (Placed, Damage) {
    static WHOLE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let whole = WHOLE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        written(&folder.path().join("trail"), u64::try_from(RECORDS).unwrap());
        assert!(verified(&folder.path().join("trail")).is_whole());
        folder
    });
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path();
    for file in fs::read_dir(whole.path().join("trail")).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, directory.join(path.file_name().unwrap())).unwrap();
    }
    let before = lines(directory);
    let mut after = before.clone();
    damage(&mut after);
    rewrite(directory, &after);
    let report = verified(directory);
    assert!(!report.is_whole(), "not found");
    assert!(report.found < 8, "one change is not many findings: {report}");
    // Places are compared by name: the folder is gone when this returns.
    let mut damage = report.damages[0].clone();
    damage.file = name(&damage.file);
    let before = before.into_iter().map(|(path, number, line)| (name(&path), number, line)).collect();
    (before, damage)
}

fn name(path: &Path) -> PathBuf {
    PathBuf::from(path.file_name().unwrap())
}

fn sequence(index: usize) -> Option<u64> {
    Some(u64::try_from(index).unwrap() + 1)
}

fn assert_at(before: &Placed, damage: &Damage, index: usize) {
    let at = (&damage.file, damage.line, damage.offset, damage.sequence);
    assert_eq!(at, (&before[index].0, before[index].1, offset(before, index), sequence(index)), "{damage}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_changed_byte(at in 0..RECORDS, byte in any::<Index>(), bits in 1..=255_u8) {
        let (before, damage) = found(|lines| {
            let line = &mut lines[at].2;
            let byte = byte.index(line.len());
            line[byte] ^= bits;
        });
        assert_at(&before, &damage, at);
        prop_assert!(matches!(damage.check, Check::Hash | Check::Form), "{}", damage);
    }

    #[test]
    fn a_removed_line(at in 0..RECORDS) {
        let (before, damage) = found(|lines| drop(lines.remove(at)));
        prop_assert_eq!(damage.sequence, sequence(at));
        prop_assert_eq!(damage.until, None);
        if at == RECORDS - 1 {
            prop_assert_eq!(damage.check, Check::Tail);
        } else {
            prop_assert_eq!(damage.check, Check::Missing);
            // The last line of a segment is missed where the next segment begins.
            if before[at].0 == before[at + 1].0 {
                assert_at(&before, &damage, at);
            }
        }
    }

    #[test]
    fn swapped_lines(one in 0..RECORDS, other in 0..RECORDS) {
        prop_assume!(one != other);
        let (first, second) = (one.min(other), one.max(other));
        let (before, damage) = found(|lines| {
            let line = lines[first].2.clone();
            lines[first].2 = std::mem::replace(&mut lines[second].2, line);
        });
        prop_assert_eq!((&damage.file, damage.line), (&before[first].0, before[first].1));
        prop_assert!(damage.check == Check::Missing, "{}", damage);
    }

    #[test]
    fn an_inserted_copy(of in 0..RECORDS, at in 0..RECORDS) {
        let (before, damage) = found(|lines| {
            let copy = (lines[at].0.clone(), 0, lines[of].2.clone());
            lines.insert(at, copy);
        });
        // A record inserted before itself stands there rightly; its original is then the one too many.
        let place = if of == at { (at, before[at].1 + 1) } else { (at, before[at].1) };
        prop_assert_eq!((&damage.file, damage.line), (&before[place.0].0, place.1), "{}", damage);
    }

    #[test]
    fn a_cut_line(at in 0..RECORDS, left in any::<Index>()) {
        let (before, damage) = found(|lines| {
            let line = &mut lines[at].2;
            let left = left.index(line.len() - 1) + 1;
            line.truncate(left);
        });
        assert_at(&before, &damage, at);
        // What is left runs on into the next line, and so ends with a seal that is not its own.
        prop_assert!(matches!(damage.check, Check::Hash | Check::Form), "{}", damage);
    }
}

#[test]
fn a_removed_tail_is_named_whole() {
    let (_, damage) = found(|lines| lines.truncate(RECORDS - 3));
    assert_eq!((damage.check, damage.sequence, damage.until), (Check::Tail, Some(28), Some(30)));
}

#[test]
fn a_replaced_and_newly_sealed_record_is_found_at_the_next() {
    let (before, damage) = found(|lines| {
        let seal = crate::trail::chain::Seal::read(&lines[10].2).unwrap();
        let text = String::from_utf8(lines[10].2.clone()).unwrap().replace("\"GET\"", "\"PUT\"");
        let (record, _) = text.split_once(",\"chain\"").unwrap();
        let mut line = format!("{record}}}}}}}").into_bytes();
        crate::trail::chain::seal(&mut line, seal.prev);
        lines[10].2 = line;
    });
    assert_at(&before, &damage, 11);
    assert_eq!(damage.check, Check::Previous);
}

#[test]
fn another_trails_record_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    written(&other, 30);
    let foreign = lines(&other).swap_remove(12).2;
    let (before, damage) = found(|lines| lines[12].2 = foreign);
    assert_at(&before, &damage, 12);
    assert_eq!(damage.check, Check::Uid);
}

#[test]
fn a_missing_segment_and_a_missing_head_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    written(&directory, 30);
    let all = segments(&directory);
    let third = super::super::segment::first_of(&all[2]).unwrap();
    let fourth = super::super::segment::first_of(&all[3]).unwrap();
    fs::remove_file(&all[2]).unwrap();
    fs::remove_file(directory.join("HEAD")).unwrap();
    let report = verified(&directory);
    assert_eq!(report.found, 2, "{report}");
    assert_eq!(report.damages[0].check, Check::HeadMissing);
    let missing = &report.damages[1];
    assert_eq!(
        (missing.check, missing.sequence, missing.until),
        (Check::Missing, Some(third), Some(fourth - 1))
    );
    assert_eq!(missing.file, all[3]);
}

#[test]
fn copies_verify_without_their_end() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    written(&directory, 30);
    let copy =
        |paths: &[PathBuf]| verify(paths, HeadRule::IfPresent, Limits::default(), &Trust::default()).unwrap();
    let all = segments(&directory);

    let part = copy(&[all[3].clone(), all[2].clone()]);
    assert!(part.is_whole(), "{part}");
    assert_eq!(part.head, None);
    assert!(part.to_string().contains("not checked: the end"), "{part}");

    let export = folder.path().join("export.jsonl");
    let content: Vec<u8> = lines(&directory)[5..20].iter().flat_map(|line| line.2.clone()).collect();
    fs::write(&export, &content).unwrap();
    let report = copy(std::slice::from_ref(&export));
    assert!(report.is_whole(), "{report}");
    assert_eq!((report.first, report.last), (Some(6), Some(20)));
    fs::write(&export, &content[..content.len() - 1]).unwrap();
    assert!(!copy(&[export]).is_whole());

    fs::remove_file(directory.join("HEAD")).unwrap();
    assert!(copy(std::slice::from_ref(&directory)).is_whole());
    assert!(!verified(&directory).is_whole());
    let json = serde_json::to_value(verified(&directory)).unwrap();
    assert_eq!(json["whole"], false);
    assert_eq!(json["damages"][0]["check"], "head-missing");
}
