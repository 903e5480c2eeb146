//! A sealed trail: written, interrupted, taken up again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{PATIENCE, entry, lines, options, verified};
use crate::record::{Event, SessionTotals};
use crate::trail::seal::checkpoint::Listed;
use crate::trail::seal::{Sealing, Signed, VerifierKey, prepare_key, public_key};
use crate::trail::{Check, Error, Options, Trail};

/// Seals when asked only.
pub(super) fn sealed_options(directory: &Path) -> Options {
    let keys = directory.with_file_name("keys");
    Options { sealing: Some(Sealing { keys, every: Duration::from_secs(3600) }), ..options() }
}

pub(super) fn open_sealed(directory: &Path) -> Trail {
    Trail::open(directory, sealed_options(directory)).unwrap().0
}

/// A sealed trail with `records` more records, in checkpoints of `each`.
pub(super) fn sealed(directory: &Path, records: u64, each: u64) {
    let mut trail = open_sealed(directory);
    for number in 1..=records {
        trail.append(&entry(number)).unwrap();
        if number % each == 0 && number < records {
            trail.close().unwrap();
            trail = open_sealed(directory);
        }
    }
    trail.close().unwrap();
}

fn notes(directory: &Path) -> Vec<Signed> {
    let listed = Listed::read(directory).unwrap().unwrap();
    assert!(listed.notes.iter().all(|(_, note)| note.is_ok()));
    listed.signed().cloned().collect()
}

/// Whoever takes up a trail hashes all that is behind the last checkpoint, and agents wait for it.
#[test]
fn many_records_are_sealed_out_of_turn() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    let trail = open_sealed(&directory);
    for number in 1..=5000 {
        trail.append(&entry(number)).unwrap();
    }
    let begun = Instant::now();
    while trail.sealed() < 4096 {
        assert!(begun.elapsed() < PATIENCE, "{} of 5000 records are sealed", trail.sealed());
        std::thread::sleep(Duration::from_millis(10));
    }
    trail.close().unwrap();
}

fn key(directory: &Path) -> VerifierKey {
    public_key(directory).unwrap().unwrap()
}

fn tiles(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![directory.join("tile")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => files.push((path.clone(), fs::read(&path).unwrap())),
            }
        }
    }
    files.sort();
    files
}

#[test]
fn a_trail_is_sealed_at_its_beginning_and_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    sealed(&directory, 600, 300);
    let notes = notes(&directory);
    let sizes: Vec<u64> = notes.iter().map(|signed| signed.checkpoint().size).collect();
    assert_eq!(sizes, [0, 300, 600]);
    let key = key(&directory);
    assert!(notes.iter().all(|signed| signed.is_signed_by(&key)));
    assert_eq!(fs::read_to_string(directory.join("checkpoint")).unwrap(), notes[2].note);
    let names: Vec<String> = tiles(&directory)
        .iter()
        .map(|(path, _)| path.strip_prefix(&directory).unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        names,
        ["tile/0/000", "tile/0/001", "tile/0/002.p/88", "tile/1/000.p/1", "tile/1/000.p/2"],
        "partial tiles stay until they are full"
    );
    let private: Vec<_> = fs::read_dir(folder.path().join("keys")).unwrap().flatten().collect();
    assert_eq!(private.len(), 1, "{private:?}");
    assert_eq!(private[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let secret = fs::read_to_string(private[0].path()).unwrap();
    assert!(secret.starts_with("PRIVATE+KEY+auditor/"));
}

#[test]
fn the_interval_and_a_sessions_end_make_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let until = |trail: &Trail, size| {
        let deadline = Instant::now() + 4 * PATIENCE;
        while trail.sealed() < size {
            assert!(Instant::now() < deadline, "not sealed");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let directory = folder.path().join("often");
    let often = Sealing { keys: folder.path().join("keys"), every: Duration::from_millis(1) };
    let options = Options { sealing: Some(often), ..options() };
    let (trail, _) = Trail::open(&directory, options).unwrap();
    trail.append(&entry(1)).unwrap();
    until(&trail, 1);
    let directory = folder.path().join("seldom");
    let trail = open_sealed(&directory);
    trail.append(&entry(1)).unwrap();
    let totals = SessionTotals::default();
    let event = Event::SessionEnded { reason: "empty", totals, duration_us: 1 };
    trail.append(&crate::record::Entry { event, ..entry(2) }).unwrap();
    until(&trail, 2);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(file.file_name());
        match file.path().is_dir() {
            true => copy(&file.path(), &to),
            false => {
                fs::copy(file.path(), to).unwrap();
            }
        }
    }
}

/// What is there after a crash is that of an uninterrupted trail, whatever the crash left of the tree.
#[test]
fn the_tree_is_taken_up_again_whatever_a_crash_left_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let uninterrupted = folder.path().join("uninterrupted/trail");
    fs::create_dir(folder.path().join("uninterrupted")).unwrap();
    sealed(&uninterrupted, 300, 10_000);
    // A trail whose checkpoint is at 300, and whose last 500 records no checkpoint has.
    let trail = open_sealed(&uninterrupted);
    (301..=800).for_each(|number| assert_eq!(trail.append(&entry(number)).unwrap(), number));
    trail.flush(PATIENCE).unwrap();
    copy(&folder.path().join("uninterrupted"), &folder.path().join("crashed"));
    trail.append(&entry(801)).unwrap();
    trail.close().unwrap();
    let crashed = notes(&folder.path().join("crashed/trail"));
    let sizes: Vec<u64> = crashed.iter().map(|signed| signed.checkpoint().size).collect();
    assert_eq!(sizes, [0, 300]);
    let root = |directory: &Path| notes(directory).last().unwrap().checkpoint().root;
    let first = &crashed[0].note;
    let append = |directory: &Path, tail: &[u8]| {
        let path = directory.join("checkpoints");
        fs::write(&path, [fs::read(&path).unwrap(), tail.to_vec()].concat()).unwrap();
    };
    type Crash<'a> = (&'a str, usize, &'a dyn Fn(&Path));
    // With how many checkpoints are left.
    let crashes: [Crash; 11] = [
        ("nothing", 2, &|_| {}),
        ("no-tiles", 2, &|directory| fs::remove_dir_all(directory.join("tile")).unwrap()),
        ("torn-tile", 2, &|directory| fs::write(directory.join("tile/0/001"), [1, 2, 3]).unwrap()),
        ("tile-without-content", 2, &|directory| {
            fs::write(directory.join("tile/0/001"), [0; 8192]).unwrap();
        }),
        ("no-partial", 2, &|directory| fs::remove_dir_all(directory.join("tile/0/001.p")).unwrap()),
        ("torn-partial", 2, &|directory| fs::write(directory.join("tile/0/001.p/44"), [0; 32 * 44]).unwrap()),
        ("no-checkpoint", 1, &|directory| {
            fs::write(directory.join("checkpoints"), format!("{first}\n")).unwrap();
            fs::write(directory.join("checkpoint"), first).unwrap();
            fs::remove_dir_all(directory.join("tile")).unwrap();
        }),
        ("torn-checkpoint", 1, &|directory| {
            fs::write(directory.join("checkpoint"), first).unwrap();
            let content = format!("{first}\n{}", &first[..first.len() - 9]);
            fs::write(directory.join("checkpoints"), content).unwrap();
        }),
        ("torn-checkpoint-behind", 2, &|directory| append(directory, &first.as_bytes()[..50])),
        ("length-without-content", 2, &|directory| append(directory, &[0; 4096])),
        ("a-stray-byte", 2, &|directory| append(directory, b"x")),
    ];
    for (name, kept, crash) in crashes {
        copy(&folder.path().join("crashed"), &folder.path().join(name));
        let directory = folder.path().join(name).join("trail");
        crash(&directory);
        let trail = open_sealed(&directory);
        trail.append(&entry(801)).unwrap();
        trail.close().unwrap();
        assert_eq!(root(&directory), root(&uninterrupted), "{name}");
        let notes = notes(&directory);
        assert_eq!(notes.last().unwrap().checkpoint().size, 801);
        assert_eq!((&notes[..kept], notes.len()), (&crashed[..kept], kept + 1), "{name}");
        let report = verified(&directory);
        assert!(report.is_whole(), "{name}: {report}");
    }
}

#[test]
fn a_trail_without_a_tree_gets_one() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    super::written(&directory, 700);
    assert_eq!(public_key(&directory).unwrap(), None);
    let trail = open_sealed(&directory);
    assert_eq!(trail.sealed(), 700);
    trail.close().unwrap();
    assert_eq!(notes(&directory).len(), 1);
    assert_eq!(fs::read(directory.join("tile/0/001")).unwrap().len(), 8192);
}

#[test]
fn a_trail_without_its_first_segments_gets_no_tree() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    super::written(&directory, 30);
    let (first, aside) = (super::segments(&directory).remove(0), folder.path().join("aside"));
    fs::rename(&first, &aside).unwrap();
    let error = Trail::open(&directory, sealed_options(&directory)).unwrap_err();
    assert!(matches!(error, Error::Damaged { check: Check::Sequence, .. }), "{error}");
    fs::rename(&aside, &first).unwrap();
    assert_eq!(open_sealed(&directory).sealed(), 30);
    assert!(verified(&directory).is_whole());
}

#[test]
fn a_key_is_handed_over_by_both() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    let keys = folder.path().join("keys");
    sealed(&directory, 10, 100);
    let old = key(&directory);
    let trail = open_sealed(&directory);
    let new = prepare_key(&directory, &keys, Path::new("/dev/urandom")).unwrap();
    assert_ne!(old, new);
    assert_eq!(key(&directory), old, "not before it is taken");
    trail.append(&entry(11)).unwrap();
    trail.renew_key();
    let deadline = Instant::now() + 4 * PATIENCE;
    while key(&directory) != new {
        assert!(Instant::now() < deadline, "not handed over");
        std::thread::sleep(Duration::from_millis(5));
    }
    trail.append(&entry(12)).unwrap();
    trail.close().unwrap();
    let notes = notes(&directory);
    let hand_over = notes.iter().find(|signed| signed.checkpoint().key.as_ref() == Some(&new)).unwrap();
    assert!(hand_over.is_signed_by(&old) && hand_over.is_signed_by(&new));
    let last = notes.last().unwrap();
    assert!(last.is_signed_by(&new) && !last.is_signed_by(&old));
    // The same at a start, and after a crash between the hand-over and the renaming.
    let newer = prepare_key(&directory, &keys, Path::new("/dev/urandom")).unwrap();
    let files = || fs::read_dir(&keys).unwrap().flatten().map(|file| file.path()).collect::<Vec<_>>();
    let made = files().into_iter().find(|path| path.to_str().unwrap().ends_with(".new.key")).unwrap();
    let secret = fs::read(&made).unwrap();
    drop(open_sealed(&directory));
    assert_eq!((key(&directory), files().len()), (newer.clone(), 1));
    fs::rename(&files()[0], &made).unwrap();
    assert_eq!(fs::read(&made).unwrap(), secret);
    drop(open_sealed(&directory));
    assert_eq!((key(&directory), files().len()), (newer, 1));
}

#[test]
fn a_trail_whose_seal_was_damaged_is_not_sealed_anew() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("trail");
    let keys = folder.path().join("keys");
    let refused = |damage: &dyn Fn()| {
        let _ = fs::remove_dir_all(&directory);
        let _ = fs::remove_dir_all(&keys);
        sealed(&directory, 20, 10);
        damage();
        Trail::open(&directory, sealed_options(&directory)).unwrap_err()
    };
    let change = |name: &str, from: &str, to: &str| {
        let text = fs::read_to_string(directory.join(name)).unwrap();
        fs::write(directory.join(name), text.replace(from, to)).unwrap();
    };
    let error = refused(&|| fs::remove_file(directory.join("checkpoints")).unwrap());
    assert!(matches!(error, Error::SealMissing { .. }), "{error}");
    let error = refused(&|| change("checkpoints", "\n20\n", "\n19\n"));
    assert!(matches!(error, Error::SealDamaged { .. }), "{error}");
    let error = refused(&|| fs::remove_dir_all(&keys).unwrap());
    assert!(matches!(error, Error::KeyMissing { .. }), "{error}");
    // Rewritten by somebody who knows how, with HEAD and all hashes.
    let error = refused(&|| {
        let other = folder.path().join("other");
        let _ = fs::remove_dir_all(&other);
        let id = fs::read_to_string(directory.join("HEAD")).unwrap()[..32].to_owned();
        fs::create_dir_all(&other).unwrap();
        fs::write(folder.path().join("id"), u128::from_str_radix(&id, 16).unwrap().to_be_bytes()).unwrap();
        let options = Options { randomness: folder.path().join("id"), ..options() };
        let (trail, _) = Trail::open(&other, options).unwrap();
        for number in 1..=20 {
            trail.append(&entry(number + 1)).unwrap();
        }
        trail.close().unwrap();
        for (path, _, _) in lines(&directory) {
            let _ = fs::remove_file(path);
        }
        for file in fs::read_dir(&other).unwrap().flatten() {
            fs::copy(file.path(), directory.join(file.file_name())).unwrap();
        }
        fs::remove_dir_all(directory.join("tile")).unwrap();
    });
    assert!(matches!(error, Error::Rewritten { size: 20, .. }), "{error}");
    let error = refused(&|| {
        let trail = folder.path().join("short/trail");
        let _ = fs::remove_dir_all(folder.path().join("short"));
        fs::create_dir_all(&trail).unwrap();
        fs::write(folder.path().join("id"), [7; 16]).unwrap();
        let keep = lines(&directory)[..12].concat_lines();
        for path in super::segments(&directory) {
            fs::remove_file(path).unwrap();
        }
        fs::write(directory.join(format!("{:020}.jsonl", 1)), &keep).unwrap();
        let id = fs::read_to_string(directory.join("HEAD")).unwrap()[..32].to_owned();
        let seal =
            crate::trail::chain::Seal::read(keep.split_inclusive(|byte| *byte == b'\n').next_back().unwrap());
        fs::write(directory.join("HEAD"), format!("{id} {:020} {}\n", 12, seal.unwrap().hash)).unwrap();
    });
    assert!(matches!(error, Error::Shortened { head: 20, last: 12, .. }), "{error}");
}

trait Concatenated {
    fn concat_lines(&self) -> Vec<u8>;
}

impl Concatenated for [(PathBuf, u64, Vec<u8>)] {
    fn concat_lines(&self) -> Vec<u8> {
        self.iter().flat_map(|(_, _, line)| line.clone()).collect()
    }
}
