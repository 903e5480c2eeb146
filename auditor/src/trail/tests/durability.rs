//! What survives: a writer killed at any point, and a disk that fills up.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{PATIENCE, entry, lines, options, segments, verified, written};
use crate::record::Event;
use crate::trail::head::{Head, HeadFile};
use crate::trail::seal::Sealing;
use crate::trail::{Error, Options, Trail};

const DIRECTORY: &str = "AUDITOR_TEST_TRAIL";
const ROUNDS: u64 = 40;

#[test]
fn killed_at_any_point() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    let mut torn = 0;
    let mut before = 0;
    for round in 0..ROUNDS {
        let acknowledged = kill_writer(&directory, Duration::from_micros(round * 7919 % 40_000));
        let report = verified(&directory);
        assert!(report.is_whole(), "round {round}: {report}");
        let last = report.last.unwrap_or(0);
        assert!(
            last >= acknowledged.max(before),
            "round {round}: {acknowledged} was durable, {last} is there"
        );
        before = last;
        let (trail, recovery) = Trail::open(&directory, often_sealed(&directory)).unwrap();
        assert_eq!(trail.durable(), last);
        torn += u64::from(recovery.is_some());
        trail.close().unwrap();
    }
    println!("{before} records, {torn} of {ROUNDS} writers left an unfinished line");
    assert!(before > 0);
}

/// Sealed so often that a writer is killed in the midst of it.
fn often_sealed(directory: &Path) -> Options {
    let keys = directory.with_file_name("keys");
    Options { sealing: Some(Sealing { keys, every: Duration::from_millis(3) }), ..options() }
}

/// Runs a writer for a while after its first record was durable, and kills it; gives the last record that it knew to be
/// durable.
fn kill_writer(directory: &Path, after: Duration) -> u64 {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "trail::tests::durability::writer_to_be_killed", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = 0;
    let mut read = |line: &str| {
        if let Some(sequence) = line.strip_prefix("durable ").and_then(|number| number.parse().ok()) {
            acknowledged = sequence;
        }
        line.starts_with("durable ")
    };
    while !read(&lines.next().unwrap().unwrap()) {}
    thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    for line in lines.map_while(Result::ok) {
        read(&line);
    }
    acknowledged
}

#[test]
#[ignore = "the child of killed_at_any_point, which runs it"]
fn writer_to_be_killed() {
    let directory = PathBuf::from(env::var_os(DIRECTORY).unwrap());
    let options = Options {
        commit_interval: Duration::from_millis(1),
        segment_bytes: 256 << 10,
        ..often_sealed(&directory)
    };
    let (trail, _) = Trail::open(&directory, options).unwrap();
    let mut told = 0;
    // Long records make long writes, which a signal can end half-way.
    let mut long = entry(1);
    if let Event::ApiAccess { path, .. } = &mut long.event {
        *path = "x".repeat(32 << 10);
    }
    for number in 1_u64.. {
        trail.append(&if number % 16 == 0 { long.clone() } else { entry(number) }).unwrap();
        let durable = trail.durable();
        if durable > told {
            told = durable;
            println!("durable {durable}");
        }
    }
}

/// Deterministic, where the test above is a matter of luck: whatever the kernel kept of what came after HEAD, the trail
/// goes on from the last whole line, and the rest is set aside.
#[test]
fn cut_anywhere_after_head() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    let one_segment = || Options { segment_bytes: 1 << 20, ..options() };
    written(&directory, 3);
    let head = Head::read(&directory).unwrap().unwrap();
    let durable = fs::read(&segments(&directory)[0]).unwrap();
    let (trail, _) = Trail::open(&directory, one_segment()).unwrap();
    for number in 4..=6 {
        trail.append(&entry(number)).unwrap();
    }
    trail.close().unwrap();
    let [segment] = segments(&directory).try_into().unwrap();
    let all = fs::read(&segment).unwrap();
    for cut in (durable.len()..all.len()).step_by(29) {
        fs::write(&segment, &all[..cut]).unwrap();
        HeadFile::open(&directory, &head.trail).unwrap().write(head.sequence, head.hash).unwrap();
        let whole = all[..cut].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        let (trail, recovery) = Trail::open(&directory, one_segment()).unwrap();
        match recovery {
            Some(recovery) => assert_eq!(fs::read(recovery.file).unwrap(), &all[whole..cut]),
            None => assert_eq!(whole, cut),
        }
        assert_eq!(fs::read(&segment).unwrap(), &all[..whole]);
        let next = u64::try_from(lines(&directory).len()).unwrap() + 1;
        assert_eq!(trail.append(&entry(next)).unwrap(), next);
        trail.close().unwrap();
        assert!(verified(&directory).is_whole());
    }
}

/// A small file system of its own, gone at the end whatever the end is.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted =
            mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some("size=1m,mode=0700"));
        assert!(mounted.is_ok(), "this test mounts a tmpfs and so needs root (CAP_SYS_ADMIN): {mounted:?}");
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.folder.path(), MntFlags::MNT_DETACH);
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_full_disk_holds_the_writer_back_and_loses_nothing() {
    let disk = SmallDisk::new();
    let directory = disk.path().join("trail");
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![0; 512 << 10]).unwrap();
    let small = Options { buffer_bytes: 128 << 10, segment_bytes: 64 << 10, ..often_sealed(&directory) };
    let (trail, _) = Trail::open(&directory, small).unwrap();
    let records = 900;
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for number in 1..=records {
                trail.append(&entry(number)).unwrap();
            }
        });
        until("full", || trail.blocked().is_some());
        until("buffer full", || trail.waiting() >= 128 << 10);
        let reason = trail.blocked().unwrap();
        assert!(reason.contains("No space left") && reason.contains("free some space"), "{reason}");
        thread::sleep(Duration::from_millis(100));
        assert!(!writer.is_finished(), "append holds its caller back");
        let report = verified(&directory);
        assert!(report.is_whole() && report.unfinished == 0, "{report}");
        assert!(trail.flush(Duration::from_millis(10)).is_err());
        fs::remove_file(&ballast).unwrap();
        until("written", || writer.is_finished());
    });
    trail.flush(PATIENCE).unwrap();
    assert_eq!(trail.blocked(), None);
    trail.close().unwrap();
    let report = verified(&directory);
    assert!(report.is_whole(), "{report}");
    assert_eq!((report.records, report.seal.sealed), (records, records));
}

#[test]
fn closing_on_a_full_disk_says_what_is_lost() {
    let disk = SmallDisk::new();
    let directory = disk.path().join("trail");
    let (trail, _) = Trail::open(&directory, options()).unwrap();
    trail.append(&entry(1)).unwrap();
    trail.flush(PATIENCE).unwrap();
    let _ = fs::write(disk.path().join("ballast"), vec![0; 2 << 20]);
    for number in 2..=50 {
        trail.append(&entry(number)).unwrap();
    }
    let durable = trail.durable();
    // As at stopping: one after the other, until there is no room and no time.
    let wait = Duration::from_millis(100);
    let mut last = 50;
    let error = loop {
        match trail.append_within(&entry(last + 1), wait) {
            Ok(sequence) => last = sequence,
            Err(error) => break error,
        }
    };
    let Error::NoPatience { records, reason } = &error else { panic!("{error}") };
    assert_eq!(*records, last - durable);
    assert!(reason.contains("No space left"), "{error}");
    let error = trail.close().unwrap_err();
    let Error::NotDurable { records, reason } = &error else { panic!("{error}") };
    assert!(*records > 0 && *records <= last - durable, "{error}");
    assert!(reason.contains("No space left"), "{error}");
    let report = verified(&directory);
    assert!(report.is_whole(), "{report}");
    assert_eq!(report.records, last - records);
}

#[test]
fn a_full_disk_at_the_beginning_is_one_sentence_and_no_trail() {
    let disk = SmallDisk::new();
    let ballast = disk.path().join("ballast");
    let _ = fs::write(&ballast, vec![0; 2 << 20]);
    let directory = disk.path().join("trail");
    let error = Trail::open(&directory, options()).unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
    assert!(!directory.exists());
    fs::remove_file(&ballast).unwrap();
    written(&directory, 3);
    let before = fs::read_dir(&directory).unwrap().count();
    let _ = fs::write(&ballast, vec![0; 2 << 20]);
    let error = Trail::open(&directory, options()).unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), before);
    assert!(verified(&directory).is_whole());
}
