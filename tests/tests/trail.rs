//! The sealed trail of a real session: valid OCSF, whole by `auditor verify`, and no change goes unnoticed.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use auditor_tests::daemon::{Daemon, Stopped, cgroup_mount};
use auditor_tests::network::FarEnd;
use auditor_tests::postgres::{Options, Postgres};
use auditor_tests::python::{self, Python};
use auditor_tests::{UNPRIVILEGED, child, clients, place, require_root};

const LIMIT: Duration = Duration::from_secs(60);

/// A session with all kinds of statements and a refused destination.
fn session() -> (Stopped, usize) {
    let postgres = Postgres::start(&Options::default()).unwrap();
    let far = FarEnd::new().unwrap();
    let port = postgres.port();
    let daemon = Daemon::start(&format!(
        "[[agent]]\nname = \"a\"\npolicy = \"p\"\n\n[[policy]]\nname = \"p\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"127.0.0.1:{port}\"]\naction = \"allow\"\n"
    ))
    .unwrap();
    let python = Python::new(daemon.home().folder()).unwrap();
    let folder = daemon.home().folder();
    let driver = clients::write(folder, "driver.py", clients::DRIVER).unwrap();
    let attempt = clients::write(folder, "attempt.py", clients::ATTEMPT).unwrap();
    let target = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
    let denied = format!("tcp,{},443", far.v4);
    for words in [python.words(&driver, &[&target]), python.words(&attempt, &[&denied])] {
        let output = daemon.run("a", UNPRIVILEGED, &words).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    daemon.settle().unwrap();
    let records = daemon.records().unwrap().len();
    (daemon.stop().unwrap(), records)
}

fn segments(trail: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(trail).unwrap().flatten().map(|entry| entry.path());
    let mut segments: Vec<PathBuf> =
        entries.filter(|path| path.extension() == Some("jsonl".as_ref())).collect();
    segments.sort();
    segments
}

fn verify(trail: &Path) -> Output {
    child::output(Command::new(place::auditor("debug").unwrap()).arg("verify").arg(trail), LIMIT).unwrap()
}

#[test]
fn what_another_daemon_leaves_is_not_this_ones() {
    let foreign = cgroup_mount().unwrap().join(format!("auditor-of-another-{}", std::process::id()));
    let daemon = Daemon::start("").unwrap();
    fs::create_dir(&foreign).unwrap();
    let own = daemon.home().cgroup().unwrap();
    let stopped = daemon.stop();
    fs::remove_dir(&foreign).unwrap();
    stopped.unwrap();
    assert!(!own.exists());
}

#[test]
fn every_record_is_valid_ocsf() {
    require_root().unwrap();
    let (stopped, records) = session();
    let segments = segments(&stopped.trail);
    let lines: Vec<u8> = segments.iter().flat_map(|path| fs::read(path).unwrap()).collect();
    assert!(lines.split(|byte| *byte == b'\n').count() > records, "fewer lines than records");
    let input = clients::write(&stopped.trail, "all.txt", std::str::from_utf8(&lines).unwrap()).unwrap();
    let mut words: Vec<OsString> = vec![python::environment().unwrap().join("bin/python3").into()];
    words.push(place::tree().join("tests/ocsf_validate.py").into());
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "input=$1; shift; exec \"$@\" < \"$input\"", "sh"]).arg(&input).args(words);
    let output = child::output(&mut shell, LIMIT).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The command's answer, which is yes.
fn answer(arguments: &[&str]) -> String {
    let output =
        child::output(Command::new(place::auditor("debug").unwrap()).args(arguments), LIMIT).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn the_daemon_signs_what_was_done_and_each_record_can_be_proven() {
    require_root().unwrap();
    let daemon = Daemon::start(
        "[[agent]]\nname = \"a\"\npolicy = \"p\"\n\n[[policy]]\nname = \"p\"\ndefault = \"deny\"\n",
    )
    .unwrap();
    let state = daemon.home().state.to_str().unwrap().to_owned();
    let checkpoint = daemon.home().trail().join("checkpoint");
    let size = || -> u64 {
        let note = fs::read_to_string(&checkpoint).unwrap();
        note.lines().nth(1).unwrap().parse().unwrap()
    };
    let first = answer(&["key", "--state-dir", &state]).trim_end().to_owned();
    assert!(daemon.run("a", UNPRIVILEGED, &["true"]).unwrap().status.success());
    // The session's end is signed for without anybody waiting for the interval.
    let ended = || {
        let records = daemon.records().unwrap();
        let end = records.iter().find(|record| record["unmapped"]["auditor"]["kind"] == "session-ended");
        end.and_then(|record| record["metadata"]["sequence"].as_u64())
    };
    let deadline = Instant::now() + LIMIT;
    while ended().is_none_or(|sequence| sequence > size()) {
        assert!(Instant::now() < deadline, "{:?} is not under the checkpoint of {} records", ended(), size());
        thread::sleep(Duration::from_millis(50));
    }
    let proof = daemon.home().folder().join("proof");
    let sequence = ended().unwrap().to_string();
    fs::write(&proof, answer(&["prove", &sequence, "--state-dir", &state])).unwrap();
    let kept = daemon.home().folder().join("kept");
    fs::copy(&checkpoint, &kept).unwrap();
    let second = answer(&["key", "--rotate", "--state-dir", &state]).trim_end().to_owned();
    daemon.ask(&["reload"]).unwrap();
    while answer(&["key", "--state-dir", &state]).trim_end() != second {
        assert!(Instant::now() < deadline, "the daemon has not taken the new key");
        thread::sleep(Duration::from_millis(50));
    }
    let stopped = daemon.stop().unwrap();
    assert!(!stopped.said.contains("PRIVATE"));
    let trail = stopped.trail.to_str().unwrap();
    for key in [&first, &second] {
        let said = answer(&["verify", trail, "--key", key, "--checkpoint", kept.to_str().unwrap()]);
        assert!(said.contains(&format!("sealed by {second}")) && !said.contains("not sealed yet"), "{said}");
    }
    let proven = answer(&["verify", "--proof", proof.to_str().unwrap(), "--key", &first]);
    assert!(
        proven.contains(&format!("whole: record {sequence} ")) && proven.contains("session-ended"),
        "{proven}"
    );
}

/// What somebody does to the lines of a trail.
type Tampering = fn(&mut Vec<Vec<u8>>, usize);

#[test]
fn no_change_of_the_trail_goes_unnoticed() {
    require_root().unwrap();
    let (stopped, _) = session();
    let output = verify(&stopped.trail);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let segment = segments(&stopped.trail).into_iter().next().unwrap();
    let original = fs::read(&segment).unwrap();
    let lines: Vec<Vec<u8>> = original.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let middle = lines.len() / 2;
    let cases: [(&str, Tampering); 5] = [
        ("a changed byte", |lines, at| {
            let place = lines[at].len() / 3;
            lines[at][place] ^= 1;
        }),
        ("a removed record", |lines, at| drop(lines.remove(at))),
        ("two records in another order", |lines, at| lines.swap(at, at + 1)),
        ("an inserted record", |lines, at| lines.insert(at, lines[at - 1].clone())),
        ("a removed first record", |lines, _| drop(lines.remove(0))),
    ];
    for (name, tamper) in cases {
        let mut changed = lines.clone();
        tamper(&mut changed, middle);
        fs::write(&segment, changed.concat()).unwrap();
        let output = verify(&stopped.trail);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains(segment.file_name().unwrap().to_str().unwrap()), "{name}: {said}");
    }
    fs::write(&segment, original).unwrap();
    assert!(verify(&stopped.trail).status.success(), "put back, it is whole again");
}
