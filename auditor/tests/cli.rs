//! The command line as scripts see it: what is printed, and the exit status.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod pipeline;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use auditor::clock::Utc;
use auditor::record::{Entry, Event};
use pipeline::{Daemon, session};

fn auditor(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_auditor"));
    command.args(arguments).env_remove("AUDITOR_SOCKET").env_remove("NO_COLOR");
    command
}

fn output(arguments: &[&str]) -> Output {
    auditor(arguments).output().unwrap()
}

/// Of a client of this daemon.
fn ask(daemon: &Daemon, arguments: &[&str]) -> Output {
    auditor(arguments).env("AUDITOR_SOCKET", daemon.socket()).output().unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn write(directory: &Path, name: &str, content: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

const CONFIGURATION: &str = r#"
[[agent]]
name = "agent-backfill"
policy = "backfill"

[[policy]]
name = "backfill"
default = "deny"
  [[policy.rule]]
  to = ["10.20.0.0/16:5432"]
  action = "allow"
  protocol = "postgres"
"#;

#[test]
fn wrong_usage_is_2() {
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["sessions", "--since", "yesterday"],
        &["tag", "--agent", "a"],
        &["tag", "--agent", "a", "--pid", "1", "--cgroup", "/a"],
        &["untag"],
        &["policy", "test", "--agent", "a", "--to", "example.com:443"],
        &["policy", "check", "/nonexistent.toml"],
        &["verify", "/nonexistent"],
    ] {
        let output = output(arguments);
        assert_eq!(status(&output), 2, "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
    assert_eq!(status(&output(&["--help"])), 0);
}

#[test]
fn what_this_version_lacks_is_told_in_a_sentence() {
    for arguments in [
        &["replay", "0123456789abcdef", "--to", "postgres://x"][..],
        &["requests"],
        &["approve", "--help"],
        &["deny", "7", "--reason", "no"],
        &["grant", "--agent", "a", "--to", "10.0.0.1:5432", "--reason", "r"],
        &["grants", "--json"],
        &["revoke", "7"],
        &["run", "--agent", "a", "--identity-token-file", "/token", "--", "true"],
        &["verify", "--from-siem", "/export"],
        &["policy", "test", "--agent", "a", "--to", "10.0.0.1:5432", "--statement", "select 1"],
    ] {
        let output = output(arguments);
        assert_eq!(status(&output), 2, "{arguments:?}");
        let said = text(&output.stderr);
        assert!(said.contains("not in this version") && !said.contains("similar"), "{said}");
    }
    assert!(!text(&output(&["--help"]).stdout).contains("replay"));
}

#[test]
fn no_daemon_is_3_and_says_what_to_do() {
    for arguments in [
        &["status"][..],
        &["sessions"],
        &["reload"],
        &["untag", "0000000000000001"],
        &["tag", "--agent", "a", "--pid", "2"],
    ] {
        let output = auditor(arguments).args(["--socket", "/nonexistent/auditor.sock"]).output().unwrap();
        assert_eq!(status(&output), 3, "{arguments:?}");
        assert!(text(&output.stderr).contains("auditor daemon"), "{}", text(&output.stderr));
    }
}

#[test]
fn the_description_of_the_api_is_printed() {
    let output = output(&["openapi"]);
    let description: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(description["openapi"].as_str().unwrap().starts_with("3.1"));
}

#[test]
fn sessions_are_listed_for_people_and_for_programs() {
    let daemon = Daemon::start_with_real_proc();
    let mut hostile = session("00000000000000aa", "agent\x1b[31m", "/auditor/1");
    hostile.totals.violations = 3;
    daemon.add(hostile);
    daemon.add(session("00000000000000bb", "b", "/auditor/2"));
    let table = ask(&daemon, &["sessions"]);
    assert_eq!(status(&table), 0, "{}", text(&table.stderr));
    let table = text(&table.stdout);
    assert!(!table.contains('\x1b'), "neither colours nor what the agent wrote: {table:?}");
    assert!(table.contains("agent\\u{1b}[31m") && table.contains("1970-01-01T00:00:01.000Z"), "{table}");
    let lines = text(&ask(&daemon, &["sessions", "--json", "--agent", "b"]).stdout);
    let only: serde_json::Value = serde_json::from_str(lines.trim_end()).unwrap();
    assert_eq!(only["id"], "00000000000000bb");
}

#[test]
fn status_reload_tag_and_untag_reach_the_daemon() {
    assert!(nix::unistd::geteuid().is_root(), "tagging a cgroup is for root: run this test as root");
    let daemon = Daemon::start_with_real_proc();
    let state: serde_json::Value =
        serde_json::from_slice(&ask(&daemon, &["status", "--json"]).stdout).unwrap();
    assert_eq!(state["trail"]["sequence"], 0);
    assert!(text(&ask(&daemon, &["status"]).stdout).contains("policy generation"));
    assert_eq!(status(&ask(&daemon, &["reload"])), 0);
    let tagged =
        ask(&daemon, &["tag", "--agent", "a", "--label", "k=v", "--cgroup", "/system.slice/x.service"]);
    assert_eq!(text(&tagged.stdout), "0000000000000001\n", "{}", text(&tagged.stderr));
    for other in ["/elsewhere", "/x/auditor/0000000000000001", "/auditor", "/auditor/0000000000000001/child"]
    {
        assert_eq!(status(&ask(&daemon, &["untag", "--cgroup", other])), 1, "{other}");
    }
    let whole = ["untag", "--cgroup-root", "/mnt/cgroup", "--cgroup", "/mnt/cgroup/auditor/0000000000000001"];
    let untagged = ask(&daemon, &whole);
    assert_eq!(text(&untagged.stdout), "0000000000000001\n", "{}", text(&untagged.stderr));
    assert_eq!(status(&ask(&daemon, &["untag", "no-such-session"])), 1);
    assert_eq!(status(&ask(&daemon, &["tag", "--agent", "a", "--cgroup", "/"])), 2);
}

#[test]
fn policies_are_checked_and_tested_without_a_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let valid = write(directory.path(), "valid.toml", CONFIGURATION);
    let check = output(&["policy", "check", &valid]);
    assert_eq!(status(&check), 0, "{}", text(&check.stderr));
    assert!(text(&check.stdout).contains("1 agent, 1 policy, 0 warnings"), "{}", text(&check.stdout));

    let broken = write(directory.path(), "broken.toml", &CONFIGURATION.replace("action", "acton"));
    let check = output(&["policy", "check", &broken]);
    assert_eq!(status(&check), 2);
    assert!(
        text(&check.stderr).contains("broken.toml:11:"),
        "file, line and column: {}",
        text(&check.stderr)
    );

    let test = |to: &str, more: &[&str]| {
        let mut line = vec!["--config", &valid, "policy", "test", "--agent", "agent-backfill", "--to", to];
        line.extend(more);
        output(&line)
    };
    let allowed = test("10.20.0.9:5432", &[]);
    assert_eq!(status(&allowed), 0, "{}", text(&allowed.stderr));
    assert!(text(&allowed.stdout).starts_with("allowed by backfill#1"), "{}", text(&allowed.stdout));
    assert!(
        text(&allowed.stdout).ends_with(
            "it must speak postgres: anything else on it is recorded as a violation (not stopped)\n"
        ),
        "{}",
        text(&allowed.stdout)
    );
    assert_eq!(status(&test("[::ffff:10.20.0.9]:5432", &[])), 0, "the same host, written otherwise");
    let denied = test("10.21.0.9:5432", &["--json"]);
    assert_eq!(status(&denied), 1);
    let answer: serde_json::Value = serde_json::from_slice(&denied.stdout).unwrap();
    assert_eq!((&answer["allowed"], &answer["reason"]), (&false.into(), &"default".into()));
    assert!(denied.stderr.is_empty(), "the answer is no, and that is no error");
    let unknown = output(&["--config", &valid, "policy", "test", "--agent", "x", "--to", "10.0.0.1:1"]);
    assert_eq!(status(&unknown), 2);
}

#[test]
fn diagnostics_begin_with_their_place_and_concern_who_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let two = format!(
        "{CONFIGURATION}[[agent]]\nname = \"other\"\npolicy = \"empty\"\n[[policy]]\nname = \"empty\"\n"
    );
    let path = write(directory.path(), "two.toml", &two);
    let test = |agent: &str| {
        output(&["--config", &path, "policy", "test", "--agent", agent, "--to", "10.20.0.9:5432"])
    };
    assert_eq!(text(&test("agent-backfill").stderr), "", "the other policy's warnings are not this agent's");
    let other = text(&test("other").stderr);
    assert!(other.starts_with(&format!("{path}:16:1: warning: policy \"empty\" has no rules")), "{other}");
    let check = output(&["policy", "check", &path]);
    assert!(text(&check.stdout).contains("2 agents, 2 policies, 1 warning;"), "{}", text(&check.stdout));

    let broken = write(directory.path(), "broken.toml", "agent = 1\npolicy = 2\n");
    for arguments in [
        &["policy", "check", &broken][..],
        &["--config", &broken, "policy", "test", "--agent", "a", "--to", "10.0.0.1:1"],
    ] {
        let said = text(&output(arguments).stderr);
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(said.lines().all(|line| line.starts_with(&format!("{broken}:"))), "{said}");
    }
    for (to, reason) in [
        ("localhost:5432", "names are not supported by this version"),
        ("10.0.0.1", "one address and one port"),
        ("::1:5432", "write [::1]:5432"),
    ] {
        let said = output(&["--config", &path, "policy", "test", "--agent", "other", "--to", to]);
        assert_eq!(status(&said), 2);
        assert!(text(&said.stderr).contains(reason), "{}", text(&said.stderr));
    }
}

#[test]
fn doctor_reports_every_check_with_a_status() {
    let doctor = output(&["doctor", "--json"]);
    assert!(matches!(status(&doctor), 0 | 4));
    let checks: Vec<serde_json::Value> =
        text(&doctor.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(checks.len() > 10);
    let is_missing = checks.iter().any(|check| check["status"] == "missing");
    assert_eq!(status(&doctor) == 4, is_missing);
    for check in &checks {
        assert!(check["status"] == "ok" || check["remedy"].is_string(), "{check}");
    }
}

#[test]
fn verify_tells_an_absent_trail_from_a_whole_one() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().to_str().unwrap();
    let refused = |arguments: &[&str]| {
        let output = output(arguments);
        assert_eq!(status(&output), 2, "{arguments:?}");
        assert!(output.stdout.is_empty(), "nothing is said of the state of what is not there");
        let said = text(&output.stderr);
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    };
    assert!(refused(&["verify", "--state-dir", state]).contains("there is no trail at"));
    assert!(refused(&["verify", state]).contains("there is no trail in"));
    std::fs::create_dir(directory.path().join("trail")).unwrap();
    assert!(refused(&["verify", state]).contains(&format!("did you mean {state}/trail?")));
    assert!(refused(&["verify", "--state-dir", state]).contains("there is no trail in"));
    let forged = write(directory.path(), "export.jsonl", "{\"time\":1}\n");
    let damaged = output(&["verify", &forged]);
    assert_eq!(status(&damaged), 1);
    assert!(text(&damaged.stdout).contains("DAMAGED"), "{}", text(&damaged.stdout));
}

#[test]
fn a_directory_without_head_is_damaged_however_it_is_named() {
    let daemon = Daemon::start();
    let trail = daemon.trail();
    let event = Event::DaemonStopped;
    trail.append(&Entry { time: Utc(1), session: None, process: None, event }).unwrap();
    trail.close().unwrap();
    let trail = daemon.trail_dir();
    std::fs::remove_file(trail.join("HEAD")).unwrap();
    let damaged = output(&["verify", trail.to_str().unwrap()]);
    assert_eq!(status(&damaged), 1, "{}", text(&damaged.stderr));
    assert!(text(&damaged.stdout).contains("HEAD is missing"), "{}", text(&damaged.stdout));
}

/// A sealed trail in a state directory, its public key and its last checkpoint.
fn sealed(state: &Path, records: u64) -> (String, String) {
    use auditor::trail::{Options, Trail, seal};

    let sealing = seal::Sealing { keys: state.join("keys"), every: Duration::from_secs(3600) };
    let options = Options { sealing: Some(sealing), ..Options::new(pipeline::host()) };
    let (trail, _) = Trail::open(&state.join("trail"), options).unwrap();
    for _ in 0..records {
        let event = Event::DaemonStopped;
        trail.append(&Entry { time: Utc(1), session: None, process: None, event }).unwrap();
    }
    trail.close().unwrap();
    let printed = output(&["key", "--state-dir", state.to_str().unwrap()]);
    assert_eq!(status(&printed), 0, "{}", text(&printed.stderr));
    let checkpoint = std::fs::read_to_string(state.join("trail/checkpoint")).unwrap();
    (text(&printed.stdout).trim_end().to_owned(), checkpoint)
}

#[test]
fn a_trail_is_verified_with_its_key_and_with_a_checkpoint_that_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let (key, kept) = sealed(folder.path(), 300);
    let verified = |more: &[&str]| {
        let output = output(&[&["verify", "--state-dir", state], more].concat());
        (status(&output), text(&output.stdout) + &text(&output.stderr))
    };
    let (code, said) = verified(&[]);
    assert!(code == 0 && said.contains("not checked: whose key that is"), "{said}");
    let (code, said) = verified(&["--key", &key]);
    assert!(code == 0 && said.contains(&format!("records up to 300 are sealed by {key}")), "{said}");
    let file = write(folder.path(), "key", &format!("{key}\n"));
    let checkpoint = write(folder.path(), "kept", &kept);
    let (code, said) = verified(&["--key", &file, "--checkpoint", &checkpoint, "--json"]);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (code, &report["seal"]["sealed"], &report["seal"]["key_given"]),
        (0, &300.into(), &true.into())
    );
    // Begun anew by somebody who has the host and not this key.
    std::fs::remove_dir_all(folder.path().join("trail")).unwrap();
    std::fs::remove_dir_all(folder.path().join("keys")).unwrap();
    sealed(folder.path(), 300);
    let (code, said) = verified(&["--key", &key]);
    assert!(code == 1 && said.contains("another key than the one given"), "{said}");
    let (code, said) = verified(&["--checkpoint", &checkpoint]);
    assert!(code == 1 && said.contains("is another trail's"), "{said}");
    for wrong in [["--key", "nonsense"], ["--key", "a+b+c"], ["--checkpoint", &file]] {
        assert_eq!(verified(&wrong).0, 2, "{wrong:?}");
    }
    assert_eq!(status(&output(&["key", folder.path().join("keys").to_str().unwrap()])), 2);
}

#[test]
fn one_record_is_proven_to_somebody_who_has_the_key_only() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let (key, _) = sealed(folder.path(), 300);
    let proof = output(&["prove", "42", "--state-dir", state]);
    assert_eq!(status(&proof), 0, "{}", text(&proof.stderr));
    let file = write(folder.path(), "42.tlog-proof", &text(&proof.stdout));
    std::fs::remove_dir_all(folder.path().join("trail")).unwrap();
    let proven = output(&["verify", "--proof", &file, "--key", &key]);
    let said = text(&proven.stdout);
    assert_eq!(status(&proven), 0, "{}", text(&proven.stderr));
    let (sentence, record) = said.trim_end().split_once('\n').unwrap();
    assert!(sentence.starts_with("whole: record 42 is one of the 300 of auditor/"), "{said}");
    let record: serde_json::Value = serde_json::from_str(record).unwrap();
    assert_eq!(record["metadata"]["sequence"], 42);
    let changed = text(&proof.stdout).replace("index 41", "index 40");
    let changed = write(folder.path(), "changed", &changed);
    let refused = output(&["verify", "--proof", &changed, "--key", &key]);
    assert_eq!(status(&refused), 1);
    assert!(
        text(&refused.stderr).contains("is not the one that the proof is for"),
        "{}",
        text(&refused.stderr)
    );
    assert_eq!(status(&output(&["verify", "--proof", &file])), 2, "without a key there is nothing to verify");
}

#[test]
fn a_key_is_changed_by_a_reload_and_the_old_one_leads_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let (old, _) = sealed(folder.path(), 3);
    let rotated = output(&["key", "--rotate", "--state-dir", state]);
    assert!(text(&rotated.stderr).contains("auditor reload"), "{}", text(&rotated.stderr));
    let (new, _) = sealed(folder.path(), 3);
    assert_eq!(text(&rotated.stdout).trim_end(), new);
    assert_ne!(old, new);
    for key in [old, new] {
        let verified = output(&["verify", "--state-dir", state, "--key", &key]);
        assert_eq!(status(&verified), 0, "{}", text(&verified.stdout));
    }
}

#[test]
fn whoever_may_not_read_the_trail_is_told_what_to_do() {
    use std::os::unix::process::CommandExt;

    assert!(nix::unistd::geteuid().is_root(), "this test changes the user: run it as root");
    let daemon = Daemon::start();
    daemon.trail().close().unwrap();
    let trail = daemon.trail_dir();
    let output = auditor(&["verify", trail.to_str().unwrap()]).uid(65_534).gid(65_534).output().unwrap();
    assert_eq!(status(&output), 2);
    assert!(text(&output.stderr).contains("run this as root"), "{}", text(&output.stderr));
}

#[test]
fn a_closed_pipe_is_a_quiet_end() {
    let mut child = auditor(&["openapi"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((status(&output), text(&output.stderr)), (0, String::new()));
}
