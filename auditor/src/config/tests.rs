//! What users see: exact messages with their places, and what valid files become.

use std::fmt::Write as _;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::clock::Boottime;
use crate::policy::{Action, explain};
use crate::protocol::Protocol;
use crate::record::Transport;

/// 2026-07-01T00:00:00Z.
const NOW: Utc = Utc(1_782_864_000 * 1_000_000_000);

fn report(text: &str) -> String {
    let (_, diagnostics) = parse_at(text, NOW);
    diagnostics.iter().fold(String::new(), |mut report, diagnostic| {
        writeln!(report, "{}", diagnostic.render(Path::new("f"))).unwrap();
        report
    })
}

#[track_caller]
fn reports(text: &str, expected: &str) {
    let report = report(text);
    assert_eq!(report, expected, "\n--- reported ---\n{report}--- expected ---\n{expected}");
}

/// Prefixed by an agent and a policy with one rule, whose body this is: reports begin at line 6.
#[track_caller]
fn rule_reports(body: &str, expected: &str) {
    let text = format!(
        "agent = [{{ name = \"a\", policy = \"p\" }}]\n[[policy]]\nname = \"p\"\n\n[[policy.rule]]\n{body}"
    );
    reports(&text, expected);
}

const VALID: &str = r#"
[daemon]
fail_mode = "open"
overload = "record-loss"
ring_bytes = 262_144

[capture]
results = "none"
parameters = false
max_statement_bytes = 65_536

[[agent]]
name = "agent-backfill"
policy = "backfill"
existing_sockets = "adopt"

[[policy]]
name = "backfill"
default = "deny"
  [[policy.rule]]
  to = ["10.20.0.0/16:5432", "[2001:db8::/32]:3306"]
  action = "allow"
  protocol = "postgres"
  [[policy.rule]]
  to = ["10.20.9.0/24"]
  action = "deny"
  [[policy.rule]]
  to = ["udp:10.0.0.53:53"]
  action = "allow"
  expires = 2026-12-01T00:00:00Z
"#;

#[test]
fn existing_sockets_are_destroyed_or_adopted() {
    let text = |word: &str| {
        format!(
            "agent = [{{ name = \"a\", policy = \"p\"{word} }}]\n[[policy]]\nname = \"p\"\n\
             [[policy.rule]]\nto = [\"10.0.0.0/8\"]\naction = \"allow\"\n"
        )
    };
    reports(
        &text(", existing_sockets = \"keep\""),
        "f:1:57: error: `existing_sockets` = \"keep\" is not known: write \"destroy\" or \"adopt\"\n",
    );
    let (settings, _) = parse_at(&text(""), NOW);
    assert_eq!(settings.unwrap().agent("a").unwrap().existing_sockets, ExistingSockets::Destroy);
}

#[test]
fn a_valid_file_becomes_settings() {
    let (settings, diagnostics) = parse_at(VALID, NOW);
    let [only] = diagnostics.as_slice() else { panic!("{diagnostics:?}") };
    assert!(only.severity == Severity::Warning && only.message.contains("the longer prefix wins"));
    let settings = settings.unwrap();
    assert_eq!(
        settings.daemon,
        Daemon { fail_mode: FailMode::Open, overload: Overload::RecordLoss, ring_bytes: 1 << 18 }
    );
    assert_eq!(settings.capture.limits().max_statement_bytes, 65_536);
    assert!(!settings.capture.limits().columns && !settings.capture.limits().parameters);
    assert_eq!(settings.agent("agent-backfill").unwrap().policy, "backfill");
    assert_eq!(settings.agent("agent-backfill").unwrap().existing_sockets, ExistingSockets::Adopt);
    let policy = settings.policy("backfill").unwrap();
    assert_eq!(policy.default, Action::Deny);
    assert_eq!(policy.rules.iter().map(|rule| rule.number).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(policy.rules[0].protocol, Some(Protocol::Postgres));
    assert_eq!(policy.rules[2].expires, Some(Utc(1_796_083_200 * 1_000_000_000)));
    assert_eq!(policy.rules[1].place.line, 24);
}

#[test]
fn an_explanation_names_the_rule() {
    let settings = parse_at(VALID, NOW).0.unwrap();
    let clock = Clock::fixed(i128::from(NOW.0));
    let ask = |to: &str, transport, now| {
        let remote = to.parse::<std::net::SocketAddr>().unwrap().into();
        explain(&settings, "agent-backfill", remote, transport, &clock, now).unwrap()
    };
    let allowed = ask("[::ffff:10.20.1.1]:5432", Transport::Tcp, Boottime(0));
    assert_eq!(allowed.rule.as_deref(), Some("backfill#1: 10.20.0.0/16:5432 allow (postgres)"));
    assert!(allowed.allowed && allowed.protocol == Some(Protocol::Postgres));
    assert!(!ask("10.20.1.1:5432", Transport::Udp, Boottime(0)).allowed);
    let denied = ask("10.20.9.1:5432", Transport::Tcp, Boottime(0));
    assert_eq!((denied.allowed, denied.rule.as_deref()), (false, Some("backfill#2: 10.20.9.0/24 deny")));
    assert!(ask("10.0.0.53:53", Transport::Udp, Boottime(0)).allowed);
    let expired = ask("10.0.0.53:53", Transport::Udp, Boottime(u64::MAX));
    assert_eq!((expired.allowed, expired.reason), (false, "expired"));
    assert_eq!(ask("8.8.8.8:53", Transport::Udp, Boottime(0)).reason, "default");
    assert_eq!(ask("8.8.8.8:0", Transport::Other(1), Boottime(0)).reason, "socket-type");
    let remote = auditor_common::endpoint::Endpoint::v4([8, 8, 8, 8], 53);
    let unknown = explain(&settings, "nobody", remote, Transport::Tcp, &clock, Boottime(0)).unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "no agent is named \"nobody\": name one of the [[agent]] sections (agent-backfill)"
    );
}

#[test]
fn an_empty_file_is_the_defaults_and_a_warning() {
    let (settings, _) = parse_at("", NOW);
    let settings = settings.unwrap();
    assert_eq!(
        (settings.daemon.fail_mode, settings.daemon.overload),
        (FailMode::Closed, Overload::Backpressure)
    );
    assert_eq!(settings.capture.max_statement_bytes, 1 << 20);
    reports(
        "",
        r#"f:1:1: warning: no agent is declared, so nothing is audited: add an [[agent]] section
"#,
    );
}

#[test]
fn checkpoints_are_made_between_each_second_and_each_day() {
    let every = |seconds: &str| {
        let text = format!("[trail]\ncheckpoint_every = {seconds}\n");
        parse_at(&text, NOW).0.map(|settings| settings.trail.checkpoint_every.as_secs())
    };
    assert_eq!(parse_at("", NOW).0.unwrap().trail.checkpoint_every.as_secs(), 300);
    assert_eq!((every("1"), every("60"), every("86_400")), (Some(1), Some(60), Some(86_400)));
    assert_eq!((every("0"), every("86_401"), every("-1"), every("\"5m\"")), (None, None, None, None));
}

#[test]
fn a_ring_has_a_size_that_the_kernel_takes() {
    let reported = |bytes: &str, expected: &str| {
        let text = format!("[daemon]\nring_bytes = {bytes}\n");
        let warning =
            "f:1:1: warning: no agent is declared, so nothing is audited: add an [[agent]] section\n";
        reports(&text, &format!("{warning}f:2:14: error: `ring_bytes` must be {expected}\n"));
    };
    reported("131072", "from 262144 to 1073741824");
    reported("2147483648", "from 262144 to 1073741824");
    reported("300000", "a power of two, such as 262144 or 524288");
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    reports(
        r#"daemn = 1
[daemon]
fail_mode = "maybe"
overlod = "x"
overload = 3
[capture]
results = "sample:10"
parameters = "yes"
max_statement_bytes = 10
[masking]
detectors = []
[[sink]]
type = "syslog"
[[agent]]
name = "a b"
policy = "backfil"
match = ["uid:1"]
[[agent]]
policy = 7
[[agent]]
name = "x"
[[policy]]
name = "backfill"
default = "ask"
  [[policy.rule]]
  to = []
  action = "guard"
  [[policy.rule]]
  action = "allow"
  protocol = "smtp"
  [[policy.statement]]
  action = "ask"
[[policy]]
name = "backfill"
"#,
        r#"f:1:1: error: unknown key "daemn": did you mean `daemon`?
f:3:13: error: `fail_mode` = "maybe" is not known: write "closed" or "open"
f:4:1: error: unknown key "overlod" in [daemon]: did you mean `overload`?
f:5:12: error: `overload` holds an integer: write a string in quotation marks
f:7:11: error: `results` = "sample:10": keeping rows is not supported by this version, write "shape" or "none"
f:8:14: error: `parameters` is a string: write true or false
f:9:23: error: `max_statement_bytes` must be from 1024 to 8388608
f:10:2: error: [masking] is not supported by this version: remove it; to keep no bind values, write `parameters = false` in [capture]
f:12:3: error: [[sink]] is not supported by this version: remove it; records are in the trail
f:15:8: error: "a b" is not a name: write 1 to 64 of the characters A-Z a-z 0-9 . _ -
f:16:10: error: no policy is named "backfil": did you mean "backfill"?
f:17:1: error: `match` is not supported by this version: remove it, and start the agent with `auditor run` or `auditor tag`
f:18:1: error: [[agent]] has no `name`: add `name = "NAME"`
f:19:10: error: `policy` holds an integer: write a string in quotation marks
f:20:1: error: [[agent]] has no `policy`: add `policy = "NAME"`
f:23:8: warning: no agent uses policy "backfill": name it in an [[agent]], or remove it
f:24:11: error: `default` = "ask": holding for approval is not supported by this version, write "allow" or "deny"
f:26:8: error: `to` is empty, so the rule can never match: add a destination or remove the rule
f:27:12: error: `action` = "guard": holding for approval is not supported by this version, write "allow" or "deny"
f:28:3: error: [[policy.rule]] has no `to`: add the destinations, `to = ["10.20.0.0/16:5432"]`
f:30:14: error: `protocol` = "smtp" is not known: write "postgres" or "mysql" or "http" or "redis"
f:31:12: error: [[policy.statement]] is not supported by this version: remove it, and decide by destination
f:33:1: warning: policy "backfill" has no rules and denies everything: add a [[policy.rule]]
f:34:8: error: policy "backfill" is named on line 23 already: give each its own name
f:34:8: warning: no agent uses policy "backfill": name it in an [[agent]], or remove it
"#,
    );
}

#[test]
fn what_is_wrong_with_rules_is_told_with_what_to_write() {
    rule_reports(
        r#"
to = ["db.internal:5432", "unix:/x", "10.0.0.1/8", 7, "udp:10.0.0.1:5432", "\u0000", "10.1.0.0/16"]
action = "allow"
protocol = "postgres"
expires = "tomorrow"
[[policy.rule]]
to = ["tcp:10.1.0.0/16"]
action = "deny"
expires = "2020-01-01T00:00:00Z"
[[policy.rule]]
to = ["10.1.0.0/16"]
action = "deny"
protocol = "postgres"
[[policy.rule]]
to = "10.2.0.0/16"
actoin = "deny"
"#,
        r#"f:7:7: error: destination "db.internal:5432": rules by name are not supported by this version: use the address
f:7:38: error: destination "10.0.0.1/8": the address has bits set beyond its prefix: write 10.0.0.0/8 for the network, 10.0.0.1 for the host alone
f:7:52: error: `to` holds an integer: write a string in quotation marks
f:7:55: error: destination "udp:10.0.0.1:5432": postgres is spoken over TCP only: remove "udp:"
f:7:76: error: destination "\0": it holds the character '\0': write the address without white space and control characters
f:10:11: error: `expires`: not a point in time: write it as in RFC 3339, "2026-12-01T00:00:00Z"
f:12:7: error: overlap with a different action: "tcp:10.1.0.0/16" is named by rule 1 (line 7) too: remove one of the two or narrow its prefix
f:14:11: warning: the rule has expired, so it denies what it names: remove it, or set a later end
f:16:7: error: overlap with a different action: "10.1.0.0/16" is named by rule 1 (line 7) too: remove one of the two or narrow its prefix
f:18:12: error: a rule that denies cannot ask for a protocol: remove `protocol`, or allow postgres only
f:19:1: error: [[policy.rule]] has no `action`: add `action = "allow"` or `action = "deny"`
f:20:6: error: `to` is a string: write a list of strings, ["…"]
f:21:1: error: unknown key "actoin" in [[policy.rule]]: did you mean `action`?
"#,
    );
    reports(
        "[[agent]\n",
        r#"f:1:9: error: not valid TOML: unclosed array table, expected `]`
"#,
    );
    reports(
        "a = 1\na = 2\n",
        r#"f:2:1: error: not valid TOML: duplicate key
"#,
    );
}

#[test]
fn what_is_valid_but_hardly_meant_is_a_warning() {
    reports(
        r#"[[policy]]
name = "p"
[[policy]]
name = "q"
default = "allow"
[[policy.rule]]
to = ["10.0.0.1", "10.0.0.1"]
action = "allow"
"#,
        r#"f:1:1: warning: policy "p" has no rules and denies everything: add a [[policy.rule]]
f:1:1: warning: no agent is declared, so nothing is audited: add an [[agent]] section
f:2:8: warning: no agent uses policy "p": name it in an [[agent]], or remove it
f:4:8: warning: no agent uses policy "q": name it in an [[agent]], or remove it
f:6:1: warning: rule 1 of policy "q" allows what the default allows already: remove it, or write `default = "deny"`
f:7:19: warning: "10.0.0.1" is named on line 7 already: remove one of the two
"#,
    );
}

#[test]
fn a_restricting_rule_under_an_allowing_default_is_meant() {
    let text = |rule: &str| {
        format!(
            "agent = [{{ name = \"a\", policy = \"p\" }}]\n[[policy]]\nname = \"p\"\ndefault = \"allow\"\n{rule}"
        )
    };
    let rule = "[[policy.rule]]\nto = [\"10.0.0.0/8\"]\naction = \"allow\"\n";
    reports(&text(&format!("{rule}protocol = \"postgres\"\n")), "");
    reports(&text(&format!("{rule}[[policy.rule]]\nto = [\"::1\"]\naction = \"deny\"\n")), "");
    reports(&text(""), "");
}

#[test]
fn overlaps_are_by_transport_and_differ_in_any_respect() {
    let rules = |first: &str, second: &str| {
        report(&format!(
            "agent = [{{ name = \"a\", policy = \"p\" }}]\n[[policy]]\nname = \"p\"\n\
             [[policy.rule]]\n{first}\n[[policy.rule]]\n{second}\n"
        ))
    };
    let allow = "action = \"allow\"\nto = [\"10.0.0.0/8:80\"]";
    assert_eq!(rules(allow, "action = \"deny\"\nto = [\"10.0.0.0/8\", \"10.0.0.0/8:81\"]"), "");
    assert_eq!(
        rules("action = \"allow\"\nto = [\"tcp:10.0.0.1\"]", "action = \"deny\"\nto = [\"udp:10.0.0.1\"]"),
        ""
    );
    assert_eq!(
        rules(allow, &format!("{allow}\nprotocol = \"postgres\"")),
        "f:9:7: error: overlap with a different protocol: \"10.0.0.0/8:80\" is named by rule 1 (line 6) too: \
         remove one of the two or narrow its prefix\n"
    );
    assert_eq!(
        rules(allow, &format!("{allow}\nexpires = 2030-01-01T00:00:00Z")),
        "f:9:7: error: overlap with a different end of validity: \"10.0.0.0/8:80\" is named by rule 1 (line 6) too: \
         remove one of the two or narrow its prefix\n"
    );
}

#[test]
fn a_destination_within_one_with_another_action_says_which_wins() {
    let nested = |outer: &str, inner: &str| {
        let rule = |line: &str| format!("[[policy.rule]]\n{line}\n");
        let head = "agent = [{ name = \"a\", policy = \"p\" }]\n[[policy]]\nname = \"p\"\n";
        report(&format!("{head}{}{}", rule(outer), rule(inner)))
    };
    // The one that is least expected: no port is named, and a denied port opens.
    assert_eq!(
        nested(
            "action = \"deny\"\nto = [\"10.20.0.0/16:5432\"]",
            "action = \"allow\"\nto = [\"10.20.5.0/24\", \"10.21.0.0/24\"]"
        ),
        "f:9:7: warning: \"10.20.5.0/24\" lies within \"10.20.0.0/16:5432\" of rule 1 (line 6, deny): the longer prefix wins, \
         so traffic to \"10.20.5.0/24\", port 5432 included, is allowed; if that port is to stay denied, name it in a rule \
         for the narrower network too\n"
    );
    assert_eq!(
        nested("action = \"allow\"\nto = [\"10.0.0.0/8\"]", "action = \"deny\"\nto = [\"10.0.0.1\"]"),
        "f:9:7: warning: \"10.0.0.1\" lies within \"10.0.0.0/8\" of rule 1 (line 6, allow): the longer prefix wins, so \
         traffic to \"10.0.0.1\" is denied\n"
    );
    for (outer, inner) in [
        // Other ports, other transports, the same action.
        ("action = \"allow\"\nto = [\"10.0.0.0/8:80\"]", "action = \"deny\"\nto = [\"10.0.0.1:81\"]"),
        ("action = \"allow\"\nto = [\"tcp:10.0.0.0/8\"]", "action = \"deny\"\nto = [\"udp:10.0.0.1\"]"),
        ("action = \"deny\"\nto = [\"10.0.0.0/8\"]", "action = \"deny\"\nto = [\"10.0.0.1\"]"),
        // The port is named for the narrower network too, which settles it.
        (
            "action = \"deny\"\nto = [\"10.0.0.0/8:80\", \"10.0.0.1:80\"]",
            "action = \"allow\"\nto = [\"10.0.0.1\"]",
        ),
        // The network between the two has the same action as the inner one, and would decide without it.
        (
            "action = \"deny\"\nto = [\"10.0.0.0/8\"]\n[[policy.rule]]\naction = \"deny\"\nto = [\"2000::/3\"]",
            "action = \"allow\"\nto = [\"172.16.0.0/12\", \"172.16.0.1\"]",
        ),
    ] {
        assert_eq!(nested(outer, inner), "", "{outer} {inner}");
    }
}

#[test]
fn thousands_of_nested_destinations_are_checked_at_once() {
    let mut text = "agent = [{ name = \"a\", policy = \"p\" }]\n[[policy]]\nname = \"p\"\n".to_owned();
    for (action, suffix) in [("deny", "0/24:1"), ("allow", "7")] {
        write!(text, "[[policy.rule]]\naction = \"{action}\"\nto = [").unwrap();
        (0..4_000).for_each(|n| write!(text, "\"10.{}.{}.{suffix}\",", n / 250, n % 250).unwrap());
        text.push_str("]\n");
    }
    let begun = std::time::Instant::now();
    assert_eq!(report(&text).lines().count(), 4_000);
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}

#[test]
fn numbers_and_names_have_bounds() {
    let bytes = |number: &str| report(&format!("agent = []\n[capture]\nmax_statement_bytes = {number}\n"));
    for number in ["1024", "8388608", "0x1000", "1_000_000", "+4096"] {
        assert_eq!(bytes(number), "", "{number}");
    }
    for number in ["1023", "16777217", "-4096", "99999999999999999999999"] {
        assert_eq!(
            bytes(number),
            "f:3:23: error: `max_statement_bytes` must be from 1024 to 8388608\n",
            "{number}"
        );
    }
    let name = |name: &str| {
        report(&format!(
            "[[agent]]\nname = \"{name}\"\npolicy = \"p\"\n[[policy]]\nname = \"p\"\nrule = []\n"
        ))
    };
    assert_eq!(name(&"a".repeat(64)).matches("is not a name").count(), 0);
    for bad in ["", "a/b", "\u{e4}", "a\\n", &"a".repeat(65)] {
        assert!(name(bad).starts_with("f:2:8: error: "), "{bad}");
    }
}

#[test]
fn columns_count_characters() {
    assert!(
        report("agent = [{ name = \"\u{e4}\u{e4}\", policy = 1 }]").contains("f:1:34: error: `policy` holds")
    );
}

#[test]
fn a_file_is_read_with_its_digest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("auditor.toml");
    std::fs::write(&path, VALID).unwrap();
    let loaded = load(&path).unwrap();
    assert_eq!(loaded.settings.agents.len(), 1);
    assert_eq!(loaded.digest, hexadecimal(VALID.as_bytes()));
    std::fs::write(&path, "").unwrap();
    assert_eq!(
        load(&path).unwrap().digest,
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
}

#[test]
fn a_file_that_cannot_be_used_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("auditor.toml");
    let file = path.display().to_string();
    let error = || load(&path).unwrap_err().to_string();
    assert_eq!(
        error(),
        format!(
            "cannot read the configuration {file}: No such file or directory (os error 2); \
             name another with --config, or check its path and permissions"
        )
    );
    std::fs::write(&path, "a = 1\n[daemon]\nb = 2").unwrap();
    assert_eq!(
        error(),
        format!(
            "{file}:1:1: error: unknown key \"a\": known are daemon, capture, trail, agent, policy\n\
             {file}:1:1: warning: no agent is declared, so nothing is audited: add an [[agent]] section\n\
             {file}:3:1: error: unknown key \"b\" in [daemon]: known are fail_mode, overload, ring_bytes, guarantees, degraded"
        )
    );
    std::fs::write(&path, b"\n# \xff").unwrap();
    assert_eq!(error(), format!("{file}:2:3: error: not UTF-8 from here on: save the file as UTF-8"));
    std::fs::write(&path, vec![b'#'; 1 << 20]).unwrap();
    assert!(load(&path).is_ok());
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert_eq!(
        error(),
        format!(
            "the configuration {file} is larger than 1048576 bytes; check that --config names the right file"
        )
    );
}

#[test]
fn a_file_that_every_user_may_change_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("auditor.toml");
    std::fs::write(&path, VALID).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(load(&path).unwrap().warnings[0].message.contains("chmod o-w"));
}

#[test]
fn depth_is_bounded() {
    let text = format!("a = {}", "[".repeat(100_000));
    assert!(report(&text).contains("error: not valid TOML"));
}

proptest! {
    #[test]
    fn no_text_panics_and_settings_mean_no_error(
        text in prop_oneof![
            any::<String>(),
            prop::collection::vec(
                prop::sample::select(vec![
                    "[daemon]\n", "[[agent]]\n", "[[policy]]\n", "[[policy.rule]]\n", "name = \"a\"\n",
                    "policy = \"a\"\n", "to = [\"10.0.0.1\"]\n", "to = [\"10.0.0.0/8:5432\", 1]\n",
                    "action = \"allow\"\n", "action = 1.5\n", "default = \"allow\"\n", "rule = 3\n",
                    "expires = 2020-01-01\n", "protocol = \"postgres\"\n", "policy.rule = [{}]\n", "\u{e4}",
                ]),
                0..14,
            ).prop_map(|lines| lines.concat()),
        ],
    ) {
        let (settings, diagnostics) = parse_at(&text, NOW);
        let errors = diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count();
        prop_assert_eq!(settings.is_some(), errors == 0);
        prop_assert!(diagnostics.iter().all(|diagnostic| diagnostic.line > 0 && diagnostic.column > 0));
        prop_assert!(diagnostics.iter().all(|diagnostic| !diagnostic.message.contains('\n')));
    }
}
