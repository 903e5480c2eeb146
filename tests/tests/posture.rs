//! What a session does not have is in the record of its beginning; what was asked for and cannot be given is no session, and no daemon.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::process::{Command, Stdio};
use std::time::Duration;

use auditor_tests::cgroup::OwnCgroup;
use auditor_tests::child::{self, Child};
use auditor_tests::daemon::{Daemon, Home};
use auditor_tests::{UNPRIVILEGED, place, require_root};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const AGENT: &str = "asked";
const LIMIT: Duration = Duration::from_secs(60);

fn configuration(daemon: &str, policy: &str) -> String {
    format!(
        "[daemon]\n{daemon}\n[[agent]]\nname = \"{AGENT}\"\npolicy = \"p\"\n\n[[policy]]\nname = \"p\"\n{policy}\n"
    )
}

/// What sessions were opened without, by the guarantees' names.
fn opened_without(daemon: &Daemon) -> Vec<Vec<String>> {
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let own = records.iter().map(|record| &record["unmapped"]["auditor"]);
    let opened = own.filter(|own| own["kind"] == "session-opened");
    let name = |sentence: &Value| sentence.as_str().unwrap().split(':').next().unwrap().to_owned();
    opened
        .map(|own| {
            own["session"]["degraded"].as_array().map_or_else(Vec::new, |all| all.iter().map(name).collect())
        })
        .collect()
}

/// A process that waits, in a cgroup of its own.
fn waiting(cgroup: &OwnCgroup) -> Child {
    let mut command = cgroup.command("/bin/sleep");
    let child = Child::start(command.arg("600").stdin(Stdio::null()), Signal::SIGKILL).unwrap();
    // It goes there by itself.
    while std::fs::read_to_string(cgroup.path().join("cgroup.procs")).unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
fn a_session_says_what_it_does_not_have() {
    require_root().unwrap();
    let daemon = Daemon::start(&configuration("", "")).unwrap();
    assert!(daemon.run(AGENT, UNPRIVILEGED, &["/bin/true"]).unwrap().status.success());
    assert!(daemon.run(AGENT, "root", &["/bin/true"]).unwrap().status.success());
    let cgroup = OwnCgroup::new().unwrap();
    let _root = waiting(&cgroup);
    cgroup.tag(&daemon, AGENT).unwrap();
    cgroup.untag(&daemon).unwrap();
    let without = opened_without(&daemon);
    // Whether there are engines on this host is not this test's.
    let without: Vec<Vec<_>> = without
        .iter()
        .map(|names| names.iter().map(String::as_str).filter(|name| *name != "no-container-engine").collect())
        .collect();
    let root = vec!["unprivileged", "kept-in-cgroup"];
    assert_eq!(without, [vec![], root.clone(), [vec!["confined"], root].concat()]);
    daemon.stop().unwrap();
}

#[test]
fn a_session_that_lacks_what_its_policy_asks_for_does_not_begin() {
    require_root().unwrap();
    let policy = "guarantees = [\"confined\", \"unprivileged\", \"kept-in-cgroup\"]";
    let daemon = Daemon::start(&configuration("", policy)).unwrap();
    let output = daemon.run(AGENT, "root", &["/bin/true"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("asks for unprivileged") && said.contains("degraded = \"allow\""), "{said}");
    let cgroup = OwnCgroup::new().unwrap();
    let _waiting = waiting(&cgroup);
    let refused = cgroup.tag(&daemon, AGENT).unwrap_err();
    assert!(format!("{refused:#}").contains("asks for confined"), "{refused:#}");
    assert!(daemon.run(AGENT, UNPRIVILEGED, &["/bin/true"]).unwrap().status.success());
    assert_eq!(opened_without(&daemon).len(), 1);
    daemon.stop().unwrap();

    let daemon = Daemon::start(&configuration("degraded = \"allow\"", policy)).unwrap();
    assert!(daemon.run(AGENT, "root", &["/bin/true"]).unwrap().status.success());
    assert!(opened_without(&daemon)[0].contains(&"unprivileged".to_owned()));
    daemon.stop().unwrap();
}

/// The daemon's command where the kernel's security file system is hidden: nobody can say there what lockdown there is.
fn without_securityfs(home: &Home) -> Command {
    let daemon = home.daemon();
    let hide = "mount -t tmpfs none /sys/kernel/security && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", hide, "sh"]);
    command.arg(daemon.get_program()).args(daemon.get_args()).env_remove("NOTIFY_SOCKET");
    command
}

#[test]
fn a_daemon_whose_host_does_not_give_what_is_asked_for_does_not_start() {
    require_root().unwrap();
    let text =
        |degraded: &str| configuration(&format!("guarantees = [\"kernel\", \"lockdown\"]\n{degraded}"), "");
    let home = Home::new(place::auditor("debug").unwrap(), &text("")).unwrap();
    let output = child::output(&mut without_securityfs(&home), LIMIT).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(
        said.contains("lockdown is asked for and not given") && !said.contains("kernel is asked"),
        "{said}"
    );
    assert!(!home.socket().exists());

    let home = Home::new(place::auditor("debug").unwrap(), &text("degraded = \"allow\"")).unwrap();
    let mut child = Child::start(without_securityfs(&home).stdout(Stdio::null()), Signal::SIGTERM).unwrap();
    let answers = || Ok(child::output(&mut home.client(&["status"]), LIMIT)?.status.success());
    assert!(child.comes_up(LIMIT, answers).unwrap());
    let log =
        child::succeed(&mut home.client(&["log", "--json", "--kind", "daemon-started"]), LIMIT).unwrap();
    child.signal(Signal::SIGTERM).unwrap();
    assert!(child.wait(LIMIT).unwrap().success());
    let record: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    let degraded = record["unmapped"]["auditor"]["daemon"]["degraded"].as_array().unwrap();
    let told = degraded.iter().filter(|one| one.as_str().unwrap().contains("is asked for and not given"));
    assert_eq!(told.count(), 1, "{degraded:?}");
    assert_ne!(record["severity_id"], json!(1), "{record}");
}
