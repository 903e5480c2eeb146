//! Whatever is done to a sealed trail is found and named; what only a crash or a running writer does is not.
//!
//! Mutations are drawn from a seed, `AUDITOR_TAMPERING` of them (160 where it is not set), each on the same trail of several segments and
//! checkpoints, in turns by kind so that each kind has its share.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::entry;
use super::sealing::{open_sealed, sealed_options};
use crate::trail::chain::{Hash, Seal, seal};
use crate::trail::head::Head;
use crate::trail::seal::checkpoint::Listed;
use crate::trail::seal::tree::{Tree, leaf_of};
use crate::trail::seal::{Proof, Signed, Unproven, VerifierKey, prepare_key, public_key, tile};
use crate::trail::{Check, HeadRule, Limits, Options, Report, Trail, Trust, verify};

const RECORDS: u64 = 530;
const SEED: u64 = 0x7461_6d70_6572;

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((word ^ (word >> 31)) % u64::try_from(end).unwrap()).unwrap()
    }
}

/// The files of a trail, by their paths below its directory.
type Files = BTreeMap<PathBuf, Vec<u8>>;

fn read(directory: &Path) -> Files {
    let mut files = Files::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let content = fs::read(&path).unwrap();
                    files.insert(path.strip_prefix(directory).unwrap().to_owned(), content);
                }
            }
        }
    }
    files
}

/// Makes `directory` have `after`, where it has `before`.
fn write(directory: &Path, before: &Files, after: &Files) {
    for path in before.keys().filter(|path| !after.contains_key(*path)) {
        fs::remove_file(directory.join(path)).unwrap();
    }
    for (path, content) in after.iter().filter(|(path, content)| before.get(*path) != Some(content)) {
        fs::create_dir_all(directory.join(path).parent().unwrap()).unwrap();
        fs::write(directory.join(path), content).unwrap();
    }
}

/// Trails to be tampered with, made once.
struct Scene {
    folder: tempfile::TempDir,
    key: VerifierKey,
    whole: Files,
    /// The same trail by the same key from record 401 on with other records.
    fork: Files,
    /// The same records under another key.
    rekeyed: Files,
    /// The same trail when it had 400 records.
    earlier: Files,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("trail");
        let options = || Options { segment_bytes: 64 << 10, ..sealed_options(&directory) };
        let append = |from, to, shift| {
            let (trail, _) = Trail::open(&directory, options()).unwrap();
            (from..=to).for_each(|number| assert_eq!(trail.append(&entry(number + shift)).unwrap(), number));
            trail.close().unwrap();
        };
        append(1, 100, 0);
        append(101, 300, 0);
        prepare_key(&directory, &folder.path().join("keys"), Path::new("/dev/urandom")).unwrap();
        append(301, 400, 0);
        let earlier = read(&directory);
        append(401, 470, 0);
        append(471, RECORDS, 0);
        let whole = read(&directory);
        let key = public_key(&directory).unwrap().unwrap();
        write(&directory, &whole, &earlier);
        append(401, RECORDS, 1);
        let fork = read(&directory);
        let mut unsealed = whole.clone();
        unsealed.retain(|path, _| !path.starts_with("tile") && !path.starts_with("checkpoint"));
        unsealed.remove(Path::new("checkpoints"));
        write(&directory, &fork, &unsealed);
        let (keys, aside) = (folder.path().join("keys"), folder.path().join("aside"));
        fs::rename(&keys, &aside).unwrap();
        drop(Trail::open(&directory, options()).unwrap());
        let rekeyed = read(&directory);
        write(&directory, &rekeyed, &whole);
        fs::remove_dir_all(&keys).unwrap();
        fs::rename(&aside, &keys).unwrap();
        Self { folder, key, whole, fork, rekeyed, earlier }
    }

    fn directory(&self) -> PathBuf {
        self.folder.path().join("trail")
    }

    fn last(files: &Files) -> Signed {
        Signed::parse(std::str::from_utf8(&files[Path::new("checkpoint")]).unwrap()).unwrap()
    }

    /// What a verifier says who has the key and the checkpoints that he is given.
    fn verified(&self, files: &Files, known: Option<Signed>) -> Report {
        let directory = self.directory();
        write(&directory, &self.whole, files);
        let checkpoints = known.map(|known| (PathBuf::from("known"), known)).into_iter().collect();
        let trust = Trust { key: Some(self.key.clone()), checkpoints };
        let report = verify(std::slice::from_ref(&directory), HeadRule::Required, Limits::default(), &trust);
        write(&directory, files, &self.whole);
        report.unwrap()
    }
}

fn segments(files: &Files) -> Vec<PathBuf> {
    files.keys().filter(|path| path.extension().is_some_and(|end| end == "jsonl")).cloned().collect()
}

fn lines(content: &[u8]) -> Vec<Vec<u8>> {
    content.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

/// Replaces a record and seals all after it anew, HEAD included: all that can be done without the key.
fn rewrite(files: &mut Files, from: usize) {
    let mut prev: Option<Hash> = None;
    let mut number = 0;
    for path in segments(files) {
        let mut content = Vec::new();
        for line in lines(&files[&path]) {
            number += 1;
            let of_line = Seal::read(&line).unwrap();
            let text = String::from_utf8(line.clone()).unwrap();
            if number < from {
                prev = Some(of_line.hash);
                content.extend(line);
                continue;
            }
            let text = if number == from { text.replacen("\"GET\"", "\"PUT\"", 1) } else { text };
            let mut line = format!("{}}}}}}}", text.split_once(",\"chain\"").unwrap().0).into_bytes();
            prev = Some(seal(&mut line, prev.unwrap_or(of_line.prev)));
            content.extend(line);
        }
        files.insert(path, content);
    }
    write_head(files, number as u64, prev.unwrap());
}

fn write_head(files: &mut Files, sequence: u64, hash: Hash) {
    let old = String::from_utf8(files[Path::new("HEAD")].clone()).unwrap();
    files.insert("HEAD".into(), format!("{} {sequence:020} {hash}\n", &old[..32]).into_bytes());
}

/// Makes the tiles fit the records.
fn retile(files: &mut Files) {
    let listed = std::str::from_utf8(&files[Path::new("checkpoints")]).unwrap().to_owned();
    let sizes: Vec<u64> = listed.lines().filter_map(|line| line.parse().ok()).collect();
    let (mut tree, mut full) = (Tree::default(), Vec::new());
    for path in segments(files) {
        for line in lines(&files[&path].clone()) {
            tree.push(leaf_of(Seal::read(&line).unwrap().hash), &mut full);
            let edge = sizes.contains(&tree.size()).then(|| tree.edge().collect::<Vec<_>>());
            for tile in full.drain(..).chain(edge.into_iter().flatten()) {
                let path = tile::path(tile.level, tile.index, tile.hashes.len());
                if let Some(content) = files.get_mut(&path) {
                    *content = tile.bytes();
                }
            }
        }
    }
}

/// Cuts the records behind the first `keep`, with HEAD.
fn truncate(files: &mut Files, keep: usize) {
    let mut left = keep;
    let mut hash = None;
    for path in segments(files) {
        let kept: Vec<Vec<u8>> = lines(&files[&path]).into_iter().take(left).collect();
        left -= kept.len();
        hash = kept.last().map(|line| Seal::read(line).unwrap().hash).or(hash);
        if kept.is_empty() {
            files.remove(&path);
        } else {
            files.insert(path, kept.concat());
        }
    }
    write_head(files, keep as u64, hash.unwrap());
}

/// What was done, and which findings tell of it: one of them must be there.
type Done = (String, Vec<Check>, Option<Signed>);

fn tamper(kind: usize, scene: &Scene, files: &mut Files, random: &mut Random) -> Done {
    let of_line = |files: &Files, random: &mut Random| {
        let paths = segments(files);
        let path = paths[random.below(paths.len())].clone();
        let count = lines(&files[&path]).len();
        (path, random.below(count))
    };
    let flip = |content: &mut Vec<u8>, random: &mut Random| {
        let (byte, bit) = (random.below(content.len()), random.below(8));
        content[byte] ^= 1 << bit;
        format!("bit {bit} of byte {byte}")
    };
    match kind {
        0 => {
            let (path, at) = of_line(files, random);
            let mut all = lines(&files[&path]);
            let place = flip(&mut all[at], random);
            files.insert(path.clone(), all.concat());
            (format!("{place} of line {at} of {}", path.display()), vec![Check::Hash, Check::Form], None)
        }
        1 => {
            let (path, at) = of_line(files, random);
            let mut all = lines(&files[&path]);
            all.remove(at);
            files.insert(path.clone(), all.concat());
            (format!("line {at} of {} removed", path.display()), vec![Check::Missing, Check::Tail], None)
        }
        2 => {
            let (path, at) = of_line(files, random);
            let mut all = lines(&files[&path]);
            let copy = all[at].clone();
            let to = at + 1 + random.below(all.len() - at);
            all.insert(to, copy);
            files.insert(path.clone(), all.concat());
            (format!("line {at} of {} again at {to}", path.display()), vec![Check::Misplaced], None)
        }
        3 => {
            let (path, at) = of_line(files, random);
            let mut all = lines(&files[&path]);
            let to = (at + 1 + random.below(all.len() - 1)) % all.len();
            let line = all.remove(at);
            all.insert(to, line);
            files.insert(path.clone(), all.concat());
            (
                format!("line {at} of {} moved to {to}", path.display()),
                vec![Check::Missing, Check::Misplaced],
                None,
            )
        }
        4 => {
            let keep = 1 + random.below(usize::try_from(RECORDS).unwrap() - 1);
            truncate(files, keep);
            (format!("cut to {keep} records, HEAD too"), vec![Check::Truncated], None)
        }
        5 => {
            let paths = segments(files);
            let path = &paths[random.below(paths.len())];
            files.remove(path);
            (format!("{} removed", path.display()), vec![Check::Missing, Check::Tail], None)
        }
        6 => {
            *files = scene.rekeyed.clone();
            ("sealed by another key".to_owned(), vec![Check::Key], None)
        }
        7 => {
            let (one, other) = (Scene::last(&scene.whole), Scene::last(&scene.fork));
            *files = scene.fork.clone();
            if random.below(2) == 0 {
                let content = files.get_mut(Path::new("checkpoints")).unwrap();
                content.extend(format!("{}\n", one.note).bytes());
                return ("both checkpoints of a fork".to_owned(), vec![Check::Forked], None);
            }
            assert_eq!(one.checkpoint.size, other.checkpoint.size);
            ("a fork, and the other's checkpoint".to_owned(), vec![Check::Forked], Some(one))
        }
        8 => {
            *files = scene.earlier.clone();
            let known = Scene::last(&scene.whole);
            ("put back as a whole to 400 records".to_owned(), vec![Check::Truncated], Some(known))
        }
        9 => {
            let from = 1 + random.below(usize::try_from(RECORDS).unwrap());
            rewrite(files, from);
            if random.below(2) == 0 {
                return (format!("rewritten from {from} on"), vec![Check::Tile, Check::Root], None);
            }
            retile(files);
            (format!("rewritten from {from} on, tiles too"), vec![Check::Root], None)
        }
        10 => {
            let name = ["checkpoint", "checkpoints"][random.below(2)];
            let place = flip(files.get_mut(Path::new(name)).unwrap(), random);
            let checks = vec![
                Check::CheckpointForm,
                Check::CheckpointLast,
                Check::Signature,
                Check::Origin,
                Check::CheckpointOrder,
            ];
            (format!("{place} of {name}"), checks, None)
        }
        11 => {
            let tiles: Vec<PathBuf> = files.keys().filter(|path| path.starts_with("tile")).cloned().collect();
            let path = &tiles[random.below(tiles.len())];
            if random.below(3) == 0 {
                files.remove(path);
                return (format!("{} removed", path.display()), vec![Check::TileMissing], None);
            }
            let content = files.get_mut(path).unwrap();
            let place = if random.below(4) == 0 {
                content.pop();
                "the last byte".to_owned()
            } else {
                flip(content, random)
            };
            (format!("{place} of {}", path.display()), vec![Check::Tile], None)
        }
        12 => {
            let text = String::from_utf8(files[Path::new("checkpoints")].clone()).unwrap();
            let mut notes: Vec<String> = text.split("\n\nauditor/").map(str::to_owned).collect();
            let at = random.below(notes.len());
            let what = match random.below(3) {
                // The last one is then that of the file of the last one, and one in the middle may go unless it names a key.
                0 => {
                    notes.pop();
                    "the last removed, which the other file has".to_owned()
                }
                1 => {
                    notes.remove(0);
                    "the first removed, which names the key".to_owned()
                }
                _ => {
                    let to = (at + 1 + random.below(notes.len() - 1)) % notes.len();
                    notes.swap(at, to);
                    format!("{at} and {to} exchanged")
                }
            };
            let mut text = notes.join("\n\nauditor/");
            if !text.starts_with("auditor/") {
                text = format!("auditor/{text}");
            }
            text = text.replace("auditor/auditor/", "auditor/");
            files.insert("checkpoints".into(), format!("{}\n\n", text.trim_end()).into_bytes());
            let checks =
                vec![Check::CheckpointLast, Check::Signature, Check::CheckpointOrder, Check::CheckpointForm];
            (format!("checkpoints: {what}"), checks, None)
        }
        13 => {
            let names: [&[&str]; 3] = [&["checkpoints"], &["checkpoint"], &["checkpoint", "checkpoints"]];
            let gone = names[random.below(3)];
            for name in gone {
                files.remove(Path::new(name));
            }
            let checks = vec![Check::CheckpointsMissing, Check::CheckpointLast];
            (format!("{gone:?} removed"), checks, None)
        }
        14 => {
            let place = flip(files.get_mut(Path::new("HEAD")).unwrap(), random);
            (format!("{place} of HEAD"), vec![Check::Head, Check::Uid, Check::Tail, Check::Origin], None)
        }
        _ => {
            let (path, at) = of_line(files, random);
            let mut all = lines(&files[&path]);
            let left = 1 + random.below(all[at].len() - 1);
            all[at].truncate(left);
            files.insert(path.clone(), all.concat());
            (format!("line {at} of {} cut", path.display()), vec![Check::Form, Check::Hash], None)
        }
    }
}

const KINDS: usize = 16;

#[test]
fn random_mutations_are_all_found_and_named() {
    let count = std::env::var("AUDITOR_TAMPERING").map_or(160, |count| count.parse().unwrap());
    let scene = Scene::new();
    let mut random = Random(SEED);
    let mut by_check: BTreeMap<String, u64> = BTreeMap::new();
    assert!(scene.verified(&scene.whole, None).is_whole(), "{}", scene.verified(&scene.whole, None));
    for number in 0..count {
        let mut files = scene.whole.clone();
        let (what, checks, known) = tamper(number % KINDS, &scene, &mut files, &mut random);
        assert!(files != scene.whole || known.is_some(), "nothing was done: {what}");
        let report = scene.verified(&files, known);
        let named = report.damages.iter().find(|damage| checks.contains(&damage.check));
        let Some(named) = named else { panic!("mutation {number}, {what}: {report}") };
        *by_check.entry(format!("{:?}", named.check)).or_default() += 1;
    }
    println!("{count} mutations, none missed: {by_check:?}");
}

/// What crashes and running writers leave, in the same number.
#[test]
fn what_is_no_damage_is_not_called_so() {
    let count: usize = std::env::var("AUDITOR_TAMPERING").map_or(50, |count| count.parse().unwrap());
    let scene = Scene::new();
    let mut random = Random(SEED);
    for number in 0..count {
        let mut files = scene.whole.clone();
        let mut known = None;
        match number % 5 {
            0 => {
                // A line and a checkpoint that were being written.
                let last = segments(&files).pop().unwrap();
                let content = files.get_mut(&last).unwrap();
                let line = lines(content).pop().unwrap();
                content.extend(&line[..1 + random.below(line.len() - 1)]);
                let all = files.get_mut(Path::new("checkpoints")).unwrap();
                let note = Scene::last(&scene.whole).note;
                all.extend(&note.as_bytes()[..1 + random.below(note.len() - 1)]);
            }
            1 => {
                // The last checkpoint is in one file, and not yet in the other.
                let all = std::str::from_utf8(&files[Path::new("checkpoints")]).unwrap().to_owned();
                let before = all.trim_end().rsplit_once("\n\nauditor/").unwrap().0;
                let before = before.rsplit_once("\n\nauditor/").unwrap().1;
                files.insert("checkpoint".into(), format!("auditor/{before}\n").into_bytes());
            }
            2 => {
                // Records that are in no checkpoint yet, and a tile that a power failure left empty.
                files = scene.earlier.clone();
                let more = ["HEAD".into()].into_iter().chain(segments(&scene.whole));
                files.extend(more.map(|path: PathBuf| (path.clone(), scene.whole[&path].clone())));
                files.insert("tile/0/001".into(), Vec::new());
            }
            3 => known = Some(Scene::last([&scene.whole, &scene.earlier][random.below(2)])),
            _ => {
                // A removal of partial tiles that a power failure took back, what was set aside, and lengths without content.
                let partial = scene.earlier.iter().filter(|(path, _)| path.starts_with("tile"));
                let gone = partial.filter(|(path, _)| !scene.whole.contains_key(*path));
                files.extend(gone.map(|(path, content)| (path.clone(), content.clone())));
                files.insert(format!("torn-{:020}.1", RECORDS + 1).into(), vec![0; random.below(100)]);
                let all = files.get_mut(Path::new("checkpoints")).unwrap();
                all.resize(all.len() + 1 + random.below(5000), 0);
            }
        }
        assert!(files != scene.whole || known.is_some(), "{number}: nothing was done");
        let report = scene.verified(&files, known);
        assert!(report.is_whole(), "{number}: {report}");
    }
}

#[test]
fn any_key_of_the_chain_is_enough_and_no_other_is() {
    let scene = Scene::new();
    let listed = Listed::read(&scene.directory()).unwrap().unwrap();
    let keys: Vec<VerifierKey> = listed.signed().filter_map(|signed| signed.checkpoint.key.clone()).collect();
    assert_eq!(keys.len(), 2);
    let report = |key: Option<VerifierKey>| {
        let trust = Trust { key, ..Trust::default() };
        verify(&[scene.directory()], HeadRule::Required, Limits::default(), &trust).unwrap()
    };
    for key in keys.iter().cloned().map(Some).chain([None]) {
        let report = report(key);
        assert!(report.is_whole(), "{report}");
        assert_eq!((report.seal.sealed, report.seal.key), (RECORDS, Some(keys[1].to_string())));
    }
    let other = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".parse().unwrap();
    assert_eq!(report(Some(other)).damages[0].check, Check::Key);
}

#[test]
fn each_record_is_proven_without_the_trail() {
    let scene = Scene::new();
    let directory = scene.directory();
    for (_, number, line) in super::lines(&directory) {
        if number % 7 != 0 {
            continue;
        }
        let text = Proof::of(&directory, &line).unwrap().to_string();
        let proof = Proof::parse(&text).unwrap();
        assert_eq!(proof.verify(&scene.key), Ok(()));
        assert_eq!(proof.line(), line);
    }
    let line = super::lines(&directory).swap_remove(300).2;
    let text = Proof::of(&directory, &line).unwrap().to_string();
    // Whatever is changed in it.
    let mut random = Random(SEED);
    for _ in 0..2000 {
        let mut changed = text.clone().into_bytes();
        let byte = random.below(changed.len());
        changed[byte] ^= 1 << random.below(7);
        let proven = String::from_utf8(changed)
            .is_ok_and(|text| Proof::parse(&text).is_ok_and(|proof| proof.verify(&scene.key).is_ok()));
        assert!(!proven, "byte {byte}");
    }
    let another = super::lines(&directory).swap_remove(299).2;
    let exchanged = Proof::parse(
        &text.replace(&data_encoding::BASE64.encode(&line), &data_encoding::BASE64.encode(&another)),
    );
    assert_eq!(exchanged.unwrap().verify(&scene.key), Err(Unproven::Place));
    let trail = open_sealed(&directory);
    assert_eq!(trail.id(), Head::read(&directory).unwrap().unwrap().trail);
    trail.append(&entry(RECORDS + 1)).unwrap();
    trail.flush(super::PATIENCE).unwrap();
    let newest = super::lines(&directory).pop().unwrap().2;
    let unsealed = Proof::of(&directory, &newest).unwrap_err();
    assert!(matches!(unsealed, crate::trail::Error::NotSealed { sealed: RECORDS, .. }), "{unsealed}");
    drop(trail);
}
