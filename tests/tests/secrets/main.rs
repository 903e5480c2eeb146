//! TLS secrets of agents are taken from their libraries, all of them and nobody else's.
//!
//! The judge is the key log of the server that they talk to, which is no agent.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test panics")]

mod floods;
mod scene;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use auditor_tests::child;
use auditor_tests::daemon::Daemon;
use auditor_tests::python::Python;
use auditor_tests::secrets::taken;
use auditor_tests::{clients, place};

use crate::scene::{LIMIT, Scene, words};

/// psycopg brings a libpq and a libcrypto of its own. What it is answered is not PostgreSQL.
const PSYCOPG: &str = r#"
import psycopg, sys
try:
    psycopg.connect(f"host=127.0.0.1 port={sys.argv[1]} sslmode=require user=x", connect_timeout=5)
except psycopg.OperationalError:
    pass
"#;
/// Maps what it is given as code, and waits for the daemon to look at it.
const MAPPER: &str = r#"
import mmap, os, sys, time
maps = []
for name in sys.argv[1:]:
    file = os.open(name, os.O_RDONLY)
    maps.append(mmap.mmap(file, os.path.getsize(name), mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))
time.sleep(1)
"#;

/// A copy is another file, which nobody has seen yet.
fn copy(file: &Path, name: &str) -> PathBuf {
    let copied = file.with_file_name(name);
    fs::copy(file, &copied).unwrap();
    copied
}

/// Pauses that the records of probed libraries tell, in microseconds.
fn pauses(daemon: &Daemon) -> Vec<u64> {
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let own = records.iter().map(|record| &record["unmapped"]["auditor"]);
    own.filter(|own| own["kind"] == "library-probed")
        .filter_map(|own| own["library"]["pause_us"].as_u64())
        .collect()
}

fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

#[test]
fn the_secrets_of_agents_are_those_of_the_servers_key_log() {
    for (version, each) in [("TLSv1_3", 4), ("TLSv1_2", 1)] {
        let scene = Scene::new(version);
        let port = &scene.port;
        let python = Python::new(scene.folder()).unwrap();
        let psycopg = clients::write(scene.folder(), "psycopg_client.py", PSYCOPG).unwrap();
        let fetch = format!(
            "require('https').get({{port: {port}, rejectUnauthorized: false}}, r => {{ r.resume(); r.on('end', () => process.exit(0)) }})"
        );
        let clients: [(&str, Vec<OsString>); 7] = [
            ("python", scene.python(1)),
            (
                "openssl",
                words(&[
                    "/bin/sh",
                    "-c",
                    &format!("echo hello | openssl s_client -quiet -connect 127.0.0.1:{port}"),
                ]),
            ),
            ("curl", words(&["curl", "-sk", &format!("https://127.0.0.1:{port}/")])),
            (
                "wget (GnuTLS)",
                words(&["wget", "--no-check-certificate", "-qO-", &format!("https://127.0.0.1:{port}/")]),
            ),
            (
                "psql",
                words(&[
                    "/bin/sh",
                    "-c",
                    &format!("psql 'host=127.0.0.1 port={port} sslmode=require user=x' || true"),
                ]),
            ),
            ("psycopg", python.words(&psycopg, &[port])),
            ("node", words(&["node", "-e", &fetch])),
        ];
        let mut told = BTreeSet::new();
        for (client, line) in &clients {
            scene.run(line);
            let now = scene.told();
            let new: Vec<&String> = now.difference(&told).collect();
            assert_eq!(new.len(), each, "{version}, {client}: the server has told {new:?}");
            let taken = scene.taken();
            let missed = new.iter().filter(|secret| !taken.contains(**secret)).count();
            assert_eq!(
                missed,
                0,
                "{version}, {client}: {missed} of {each} are missing; {}",
                scene.daemon.said()
            );
            told = now;
        }
        // Nothing else: the server is nobody's.
        let taken = scene.taken();
        let more: Vec<&String> = taken.difference(&told).collect();
        assert!(more.is_empty(), "{version}: {more:?}");
        let said = scene.daemon.said();
        assert!(taken.iter().all(|secret| !said.contains(secret.as_str())), "a secret is in the log");
    }
}

#[test]
fn of_strangers_nothing_is_taken() {
    let scene = Scene::new("TLSv1_3");
    let line = scene.python(3);
    child::succeed(Command::new(&line[0]).args(&line[1..]), LIMIT).unwrap();
    assert_eq!(scene.told().len(), 12);
    assert_eq!(taken(scene.daemon.home()).unwrap(), []);
    // The probe was there: an agent's are taken.
    scene.run(&scene.python(1));
    let taken = scene.taken();
    assert_eq!((taken.len(), scene.told().len()), (4, 16));
    assert!(taken.is_subset(&scene.told()));
}

#[test]
fn a_library_that_nobody_has_seen_is_probed_before_its_first_handshake() {
    let scene = Scene::new("TLSv1_3");
    let program = scene.fast_client();
    for number in 0..20 {
        scene.run(&scene.fast(&copy(&program, &format!("client-{number}"))));
    }
    let system = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/aarch64-linux-gnu"];
    let system =
        system.into_iter().map(Path::new).find(|folder| folder.join("libssl.so.3").exists()).unwrap();
    for number in 0..5 {
        let libraries = scene.folder().join(format!("libraries-{number}"));
        fs::create_dir(&libraries).unwrap();
        for name in ["libssl.so.3", "libcrypto.so.3"] {
            fs::copy(system.join(name), libraries.join(name)).unwrap();
        }
        let mut line = words(&["/usr/bin/env"]);
        line.push(format!("LD_LIBRARY_PATH={}", libraries.display()).into());
        line.extend(scene.python(1));
        scene.run(&line);
    }
    let (told, taken) = (scene.told(), scene.taken());
    assert_eq!(told.len(), 100);
    let missed = told.difference(&taken).count();
    let mut pauses = pauses(&scene.daemon);
    let median = median(&mut pauses);
    eprintln!(
        "{missed} of {} secrets missed; {} pauses, median {median} us: {pauses:?}",
        told.len(),
        pauses.len()
    );
    assert_eq!(missed, 0, "{}", scene.daemon.said());
    // Most of it is a grace period of the kernel's, which is as long as the machine is busy.
    assert!(median < 40_000, "{pauses:?}");
}

#[test]
fn files_that_are_replaced_written_to_or_deleted_are_probed_anew() {
    const DELETED: &str = "import os, sys\nfile = os.open(sys.argv[1], os.O_RDONLY)\nos.unlink(sys.argv[1])\n\
                           os.execve(file, sys.argv[1:], os.environ)\n";
    let scene = Scene::new("TLSv1_3");
    let original = scene.fast_client();
    let program = copy(&original, "client");
    scene.run(&scene.fast(&program));
    // As a package manager does it.
    fs::rename(copy(&original, "new"), &program).unwrap();
    scene.run(&scene.fast(&program));
    // As cp does it.
    fs::write(&program, fs::read(&original).unwrap()).unwrap();
    scene.run(&scene.fast(&program));
    let open = scene.folder().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    fs::copy(&original, open.join("client")).unwrap();
    let script = clients::write(scene.folder(), "deleted.py", DELETED).unwrap();
    let mut line = words(&["/usr/bin/python3", "-B"]);
    line.push(script.into());
    line.extend(scene.fast(&open.join("client")));
    scene.run(&line);
    assert_eq!(scene.told().len(), 16);
    let missed = scene.told().difference(&scene.taken()).count();
    assert_eq!(missed, 0, "{}", scene.daemon.said());
}

#[test]
fn files_that_lie_about_themselves_do_no_harm() {
    let scene = Scene::new("TLSv1_3");
    let program = fs::read(scene.fast_client()).unwrap();
    let mut files = Vec::new();
    for length in [0, 1, 63, 64, 100, 4096, program.len() / 2, program.len() - 1] {
        files.push(program[..length].to_vec());
    }
    // Headers with numbers of all kinds in the place of their own.
    for at in (16..64).step_by(2) {
        for value in [0_u8, 0x7f, 0xff] {
            let mut file = program.clone();
            file[at] = value;
            file[at + 1] = value;
            files.push(file);
        }
    }
    let mut line = words(&["/usr/bin/python3", "-B"]);
    line.push(clients::write(scene.folder(), "mapper.py", MAPPER).unwrap().into());
    for (number, bytes) in files.iter().enumerate().filter(|(_, bytes)| !bytes.is_empty()) {
        let path = scene.folder().join(format!("liar-{number}"));
        fs::write(&path, bytes).unwrap();
        line.push(path.into());
    }
    scene.run(&line);
    scene.daemon.settle().unwrap();
    let records = scene.daemon.records().unwrap();
    let not_probed =
        records.iter().filter(|record| record["unmapped"]["auditor"]["library"]["error"].is_string());
    assert!(not_probed.count() > 0, "{}", scene.daemon.said());
    // It goes on.
    scene.run(&scene.python(1));
    assert!(scene.told().is_subset(&scene.taken()));
}

#[test]
fn what_handshakes_cost() {
    const TIMES: u32 = 50;
    let scene = Scene::new("TLSv1_3");
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        let line = scene.python(TIMES);
        let began = Instant::now();
        child::succeed(Command::new(&line[0]).args(&line[1..]), LIMIT).unwrap();
        took[0].push(began.elapsed().as_micros() as u64);
        let began = Instant::now();
        scene.run(&line);
        took[1].push(began.elapsed().as_micros() as u64);
    }
    let [stranger, agent] = &mut took;
    let (stranger, agent) = (median(stranger), median(agent));
    eprintln!(
        "{TIMES} handshakes: a stranger's process {stranger} us, an agent's {agent} us (with its session): {} us each more",
        (agent.saturating_sub(stranger)) / u64::from(TIMES)
    );
    assert_eq!(scene.taken().len(), 3 * TIMES as usize * 4);
}

/// A client of Go's own TLS; the toolchain is the one that `cargo xtask setup` has installed.
fn go_client(folder: &Path, flags: &[&str]) -> PathBuf {
    const CLIENT: &str = "package main\n\nimport (\n\"crypto/tls\"\n\"io\"\n\"os\"\n)\n\nfunc main() {\nconnection, err := tls.Dial(\"tcp\", \
                          \"127.0.0.1:\"+os.Args[1], &tls.Config{InsecureSkipVerify: true})\nif err != nil {\npanic(err)\n}\n\
                          connection.Write([]byte(\"hello\\n\"))\nio.ReadAll(connection)\n}\n";
    let installed =
        fs::read_dir(place::cache().unwrap()).unwrap().flatten().map(|entry| entry.path().join("go/bin/go"));
    let go = installed.into_iter().find(|go| go.is_file()).expect("no Go: run `cargo xtask setup`");
    let source = folder.join("go-client");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("main.go"), CLIENT).unwrap();
    fs::write(source.join("go.mod"), "module client\ngo 1.23\n").unwrap();
    let program = folder.join("go_client");
    let mut command = Command::new(go);
    command.arg("build").args(flags).arg("-o").arg(&program).arg(".").current_dir(&source);
    command.env("GOTOOLCHAIN", "local").env("GOCACHE", place::target().join("go-cache"));
    child::succeed(&mut command, Duration::from_secs(240)).unwrap();
    program
}

fn check_go(flags: &[&str]) {
    for (version, each) in [("TLSv1_3", 4), ("TLSv1_2", 1)] {
        let scene = Scene::new(version);
        let program = go_client(scene.folder(), flags);
        scene.run(&scene.fast(&program));
        assert_eq!(scene.told().len(), each, "{version}");
        let missed = scene.told().difference(&scene.taken()).count();
        assert_eq!(missed, 0, "{version}: {}", scene.daemon.said());
    }
}

#[test]
fn the_secrets_of_go_programs_are_taken_too() {
    check_go(&[]);
}

#[test]
fn and_those_of_go_programs_without_symbols() {
    check_go(&["-ldflags=-s -w"]);
}
