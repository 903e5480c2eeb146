//! An agent that makes up secrets, probes or files harms nobody but itself.

use std::collections::BTreeMap;
use std::thread;

use auditor_tests::UNPRIVILEGED;
use auditor_tests::secrets::taken;
use serde_json::Value;

use crate::scene::{AGENT, Scene};

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
        assert!(output.status.success(), "{output:?}");
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
