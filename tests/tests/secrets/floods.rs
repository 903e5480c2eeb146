//! An agent that makes up secrets, probes or files harms nobody but itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use auditor_tests::child::{self, Child};
use auditor_tests::secrets::taken;
use auditor_tests::{UNPRIVILEGED, clients};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::MAPPER;
use crate::scene::{AGENT, LIMIT, Scene, words};

/// What became of the TLS connections of each session, by its id: how many were read, and why others were not.
fn connections(records: &[Value]) -> BTreeMap<String, BTreeMap<String, usize>> {
    let mut sessions: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for record in records {
        let own = &record["unmapped"]["auditor"];
        if own["kind"] == "connection-closed" {
            let tls = &own["connection"]["tls"];
            let fate =
                if tls["decrypted"] == true { "read" } else { tls["reason"].as_str().unwrap_or("untold") };
            let session = own["session"]["id"].to_string();
            *sessions.entry(session).or_default().entry(fate.to_owned()).or_default() += 1;
        }
    }
    sessions
}

#[test]
fn secrets_that_are_made_up_cost_their_own_session_only() {
    const CONNECTIONS: u32 = 100;
    let scene = Scene::new("TLSv1_3");
    let (flood, client) = (scene.flood(20_000, CONNECTIONS, 10), scene.python(20));
    // Whoever is quiet, before and meanwhile.
    scene.run(&client);
    let made = thread::scope(|scope| {
        let flood = scope.spawn(|| scene.daemon.run(AGENT, UNPRIVILEGED, &flood).unwrap());
        for _ in 0..3 {
            scene.run(&client);
        }
        while !flood.is_finished() {
            scene.run(&client);
        }
        let output = flood.join().unwrap();
        let status = scene.daemon.status().unwrap();
        assert!(output.status.success(), "{output:?}, {}\n{}", status["failures"], scene.daemon.said());
        String::from_utf8(output.stdout).unwrap()
    });
    scene.daemon.settle().unwrap();
    let records = scene.daemon.records().unwrap();
    let sessions = connections(&records);
    eprintln!("{} secrets made up; {sessions:?}", made.trim());
    let hostile: Vec<_> = sessions.values().filter(|fates| !fates.contains_key("read")).collect();
    assert_eq!(hostile.len(), 1, "{sessions:?}");
    assert_eq!(hostile[0].values().sum::<usize>(), CONNECTIONS as usize, "{sessions:?}");
    assert!(hostile[0].contains_key("too-many-secrets"), "{sessions:?}");
    // Everybody else was read whole.
    for fates in sessions.values().filter(|fates| fates.contains_key("read")) {
        assert_eq!(
            fates,
            &BTreeMap::from([("read".to_owned(), 20)]),
            "{sessions:?}; {}",
            scene.daemon.said()
        );
    }
    assert!(sessions.len() >= 5);
    // The table of secrets is the kernel's, for all sessions: half of it at most is one's.
    let left = taken(scene.daemon.home()).unwrap().len();
    assert!(left <= 16_384 + 256, "{left} secrets");
}

/// Why files were not probed.
fn errors(records: &[Value]) -> Vec<String> {
    let own = records.iter().map(|record| &record["unmapped"]["auditor"]);
    let errors = own.filter_map(|own| own["library"]["error"].as_str().map(str::to_owned));
    errors.collect()
}

/// Those that there are, as soon as there are some.
fn first_errors(scene: &Scene) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let errors = errors(&scene.daemon.records().unwrap());
        if !errors.is_empty() {
            return errors;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{}", scene.daemon.said());
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn files_that_are_made_up_leave_room_for_others() {
    const FILES: usize = 700;
    let scene = Scene::new("TLSv1_3");
    let library = scene.folder().join("library.so");
    let source =
        clients::write(scene.folder(), "library.c", "int EVP_KDF_derive(void) { return 0; }\n").unwrap();
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source);
    child::succeed(&mut command, LIMIT).unwrap();
    let mut line = words(&["/usr/bin/python3", "-B"]);
    // It stays until all was looked through.
    let until = "while not os.path.exists(sys.argv[0] + '.done'): time.sleep(0.1)";
    let mapper =
        clients::write(scene.folder(), "mapper.py", &MAPPER.replace("time.sleep(1)", until)).unwrap();
    let done = scene.folder().join("mapper.py.done");
    line.push(mapper.into());
    for number in 0..FILES {
        let path = scene.folder().join(format!("library-{number}.so"));
        fs::copy(&library, &path).unwrap();
        line.push(path.into());
    }
    thread::scope(|scope| {
        scope.spawn(|| scene.run(&line));
        first_errors(&scene);
        thread::sleep(Duration::from_secs(1));
        fs::write(&done, "").unwrap();
    });
    scene.daemon.settle().unwrap();
    let refused = errors(&scene.daemon.records().unwrap());
    eprintln!("{} of {FILES} refused", refused.len());
    assert!(!refused.is_empty() && refused.len() < FILES, "{} refused", refused.len());
    let why: BTreeSet<&String> = refused.iter().collect();
    assert!(why.iter().all(|error| error.contains("as its session may have")), "{why:?}");
    // Neither a new file of somebody else's, nor one that the first has been refused.
    scene.run(&scene.fast(&scene.fast_client()));
    let before = errors(&scene.daemon.records().unwrap()).len();
    let last = line.len() - 1;
    scene.run(&[line[..3].to_vec(), vec![line[last].clone()]].concat());
    scene.daemon.settle().unwrap();
    assert_eq!(errors(&scene.daemon.records().unwrap()).len(), before);
    assert_eq!(scene.told().difference(&scene.taken()).count(), 0, "{}", scene.daemon.said());
}

/// A mount that lasts as long as the value.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        umount2(self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Shows the client in C in a file system that never answers the daemon.
fn shun_the_daemon(scene: &Scene, place: &Path) -> Child {
    fs::create_dir(place).unwrap();
    let script =
        clients::write(scene.folder(), "file_system.py", include_str!("../../src/file_system.py")).unwrap();
    let mut command = Command::new("/usr/bin/python3");
    command
        .arg(script)
        .arg(place)
        .arg(scene.fast_client())
        .arg(scene.daemon.id().to_string())
        .stdout(Stdio::piped());
    let mut file_system = Child::start(&mut command, Signal::SIGKILL).unwrap();
    let mut ready = String::new();
    BufReader::new(file_system.take_stdout().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready, "READY\n");
    file_system
}

#[test]
fn a_file_system_that_does_not_answer_holds_nobody() {
    let scene = Scene::new("TLSv1_3");
    let place = scene.folder().join("agents");
    let file_system = shun_the_daemon(&scene, &place);
    let _mounted = Mounted(&place);
    for _ in 0..3 {
        scene.run(&scene.fast(&place.join("program")));
    }
    let told = scene.told();
    assert_eq!(told.len(), 12);
    // Nobody else waits for it.
    let other = scene.folder().join("other");
    fs::copy(scene.fast_client(), &other).unwrap();
    scene.run(&scene.fast(&other));
    assert!(
        scene.told().difference(&told).all(|secret| scene.taken().contains(secret)),
        "{}",
        scene.daemon.said()
    );
    scene.daemon.settle().unwrap();
    let errors = errors(&scene.daemon.records().unwrap());
    // Once for each session.
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(errors.iter().all(|error| error.contains("fuse.test")), "{errors:?}");
    let Scene { daemon, .. } = scene;
    daemon.stop().unwrap();
    drop(file_system);
}

#[test]
fn a_file_that_takes_too_long_holds_its_session_for_a_moment_and_nobody_else() {
    let scene = Scene::new("TLSv1_3");
    let (place, over) = (scene.folder().join("slow"), scene.folder().join("over"));
    let file_system = shun_the_daemon(&scene, &place);
    let _mounted = Mounted(&place);
    fs::create_dir(&over).unwrap();
    let empty = scene.folder().join("empty");
    fs::create_dir(&empty).unwrap();
    fs::set_permissions(&empty, fs::Permissions::from_mode(0o755)).unwrap();
    let options = format!("lowerdir={}:{}", place.display(), empty.display());
    mount(Some("overlay"), &over, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let _over = Mounted(&over);
    scene.run(&scene.fast(&over.join("program")));
    let told = scene.told();
    let other = scene.folder().join("other");
    fs::copy(scene.fast_client(), &other).unwrap();
    scene.run(&scene.fast(&other));
    assert!(
        scene.told().difference(&told).all(|secret| scene.taken().contains(secret)),
        "{}",
        scene.daemon.said()
    );
    let errors = first_errors(&scene);
    assert!(errors.len() == 1 && errors[0].contains("within 1s"), "{errors:?}");
    drop(file_system);
    scene.daemon.stop().unwrap();
}
