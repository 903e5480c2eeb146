//! Writing and opening again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::{PATIENCE, entry, lines, open, options, segments, verified, written};
use crate::trail::seal::Sealing;
use crate::trail::{Check, Error, Options, Trail};

#[test]
fn numbers_go_on_over_restarts_and_segments() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    let mut id = None;
    for round in 0..4 {
        let trail = open(&directory);
        assert_eq!(*id.get_or_insert_with(|| trail.id().to_owned()), trail.id());
        for number in 1..=10 {
            assert_eq!(trail.append(&entry(number)).unwrap(), round * 10 + number);
        }
        trail.flush(PATIENCE).unwrap();
        assert_eq!(trail.durable(), (round + 1) * 10);
        trail.close().unwrap();
    }
    assert!(segments(&directory).len() > 5);
    let id = id.unwrap();
    for ((_, _, line), number) in lines(&directory).iter().zip(1..) {
        let record: serde_json::Value = serde_json::from_slice(line).unwrap();
        assert_eq!(record["metadata"]["sequence"], number);
        assert_eq!(record["metadata"]["uid"], format!("{id}-{number}"));
    }
    let report = verified(&directory);
    assert!(report.is_whole(), "{report}");
    assert_eq!((report.records, report.first, report.last, report.head), (40, Some(1), Some(40), Some(40)));
}

#[test]
fn only_root_can_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    written(&directory, 10);
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(directory.clone()), 0o700);
    for file in fs::read_dir(&directory).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(path.clone()), 0o600, "{path:?}");
    }
}

#[test]
fn one_writer_only() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    let trail = open(&directory);
    let refused = Trail::open(&directory, options()).unwrap_err();
    assert!(refused.to_string().contains(&format!("pid {}", std::process::id())), "{refused}");
    drop(trail);
    drop(open(&directory));
}

#[test]
fn a_live_trail_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    let sealing = Sealing { keys: folder.path().join("keys"), every: Duration::from_millis(1) };
    let options = Options { segment_bytes: 1 << 20, sealing: Some(sealing), ..options() };
    let (trail, _) = Trail::open(&directory, options).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for number in 1..=20_000 {
                trail.append(&entry(number)).unwrap();
            }
        });
        while !writer.is_finished() {
            let report = verified(&directory);
            assert!(report.is_whole(), "{report}");
        }
    });
}

#[test]
fn torn_bytes_are_set_aside_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    written(&directory, 9);
    let last = segments(&directory).pop().unwrap();
    let whole = fs::read(&last).unwrap();
    fs::write(&last, [whole.as_slice(), b"{\"time\":17"].concat()).unwrap();
    assert!(verified(&directory).is_whole());
    assert_eq!(verified(&directory).unfinished, 10);
    let (trail, recovery) = Trail::open(&directory, options()).unwrap();
    let recovery = recovery.unwrap();
    assert_eq!(recovery.bytes, 10);
    assert_eq!(fs::read(&recovery.file).unwrap(), b"{\"time\":17");
    assert_eq!(fs::read(&last).unwrap(), whole);
    assert_eq!(trail.append(&entry(10)).unwrap(), 10);
    trail.close().unwrap();
    assert!(verified(&directory).is_whole());
}

#[test]
fn whole_records_after_head_belong_to_the_trail() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    written(&directory, 1);
    let head = fs::read(directory.join("HEAD")).unwrap();
    let trail = open(&directory);
    trail.append(&entry(2)).unwrap();
    trail.close().unwrap();
    assert_eq!(segments(&directory).len(), 1);
    fs::write(directory.join("HEAD"), head).unwrap();
    assert!(verified(&directory).is_whole());
    let trail = open(&directory);
    assert_eq!(trail.append(&entry(3)).unwrap(), 3);
}

#[test]
fn damage_is_never_repaired_at_open() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    let opened = |damage: &dyn Fn()| {
        let _ = fs::remove_dir_all(&directory);
        written(&directory, 10);
        damage();
        let before = lines(&directory);
        let error = Trail::open(&directory, options()).unwrap_err();
        assert_eq!(lines(&directory), before);
        assert!(error.to_string().contains("auditor verify"), "{error}");
        error
    };
    let last = || segments(&directory).pop().unwrap();

    let changed = opened(&|| {
        let text = fs::read_to_string(last()).unwrap();
        fs::write(last(), text.replacen("\"GET\"", "\"PUT\"", 1)).unwrap();
    });
    assert!(matches!(changed, Error::Damaged { line: 1, check: Check::Hash, .. }), "{changed}");

    let shortened = opened(&|| {
        let text = fs::read_to_string(last()).unwrap();
        let cut = text.trim_end().rfind('\n').map_or(0, |newline| newline + 1);
        fs::write(last(), &text[..cut]).unwrap();
    });
    assert!(matches!(shortened, Error::Shortened { head: 10, last: 9, .. }), "{shortened}");

    let torn = opened(&|| {
        let text = fs::read_to_string(last()).unwrap();
        fs::write(last(), &text[..text.len() - 1]).unwrap();
    });
    assert!(matches!(torn, Error::Shortened { head: 10, last: 9, .. }), "{torn}");

    let segment = opened(&|| fs::remove_file(last()).unwrap());
    assert!(matches!(segment, Error::Shortened { head: 10, .. }), "{segment}");

    let headless = opened(&|| fs::remove_file(directory.join("HEAD")).unwrap());
    assert!(matches!(headless, Error::HeadMissing { .. }), "{headless}");

    let behind = opened(&|| {
        let head = fs::read_to_string(directory.join("HEAD")).unwrap();
        fs::write(directory.join("HEAD"), head.replacen("00000000000000000010", "00000000000000000003", 1))
            .unwrap();
    });
    assert!(matches!(behind, Error::Damaged { check: Check::Head, .. }), "{behind}");

    let malformed = opened(&|| fs::write(directory.join("HEAD"), "x").unwrap());
    assert!(matches!(malformed, Error::HeadMalformed { .. }), "{malformed}");
}
