//! What policy does not name does not leave: EPERM at the call, not one packet at the far end, a record of the attempt.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use std::net::IpAddr;

use auditor_tests::daemon::Daemon;
use auditor_tests::network::FarEnd;
use auditor_tests::python::Python;
use auditor_tests::{UNPRIVILEGED, clients, require_root};
use serde_json::Value;

const AGENT: &str = "verdict-agent";
/// Named by no rule: the policy's default decides.
const UNNAMED: u16 = 4001;
/// Denied by a rule of its own, in the middle of a range that is allowed.
const DENIED: u16 = 4002;
/// Allowed; nobody listens there.
const ALLOWED: u16 = 4003;

fn configuration(far: &FarEnd) -> String {
    let (v4, v6) = (far.v4, far.v6);
    format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"narrow\"\n\n[[policy]]\nname = \"narrow\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"{v4}:{DENIED}\", \"[{v6}]:{DENIED}\"]\naction = \"deny\"\n\
         [[policy.rule]]\nto = [\"{v4}:{ALLOWED}\", \"[{v6}]:{ALLOWED}\"]\naction = \"allow\"\n"
    )
}

/// Runs the attempts in a session; returns their results and the process id.
fn attempt(daemon: &Daemon, attempts: &[String]) -> (Vec<Value>, u32) {
    let python = Python::new(daemon.home().folder()).unwrap();
    let script = clients::write(daemon.home().folder(), "attempt.py", clients::ATTEMPT).unwrap();
    let arguments: Vec<&str> = attempts.iter().map(String::as_str).collect();
    let output = daemon.run(AGENT, UNPRIVILEGED, &python.words(&script, &arguments)).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stderr}\ndaemon: {}", output.status, daemon.said());
    (serde_json::from_slice(&output.stdout).unwrap(), clients::pid_told(&output.stderr).unwrap())
}

fn every_way_to(far: &FarEnd, port: u16) -> Vec<String> {
    let addresses = [far.v4.to_string(), far.v6.to_string(), format!("::ffff:{}", far.v4)];
    let kinds = ["tcp", "udp", "udp-sendto"];
    kinds
        .iter()
        .flat_map(|kind| addresses.iter().map(move |address| format!("{kind},{address},{port}")))
        .collect()
}

fn refusals(records: &[Value]) -> Vec<&Value> {
    records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "connection-refused").collect()
}

#[test]
fn what_policy_does_not_allow_does_not_leave() {
    require_root().unwrap();
    let far = FarEnd::new().unwrap();
    let daemon = Daemon::start(&configuration(&far)).unwrap();
    let before = far.arrivals().unwrap();
    let attempts = [every_way_to(&far, UNNAMED), every_way_to(&far, DENIED)].concat();
    let (results, pid) = attempt(&daemon, &attempts);
    daemon.settle().unwrap();

    for result in &results {
        assert_eq!(result["result"], "EPERM", "{result}");
    }
    assert_eq!(far.arrivals().unwrap(), before, "something arrived");

    let records = daemon.records().unwrap();
    let refused = refusals(&records);
    assert_eq!(refused.len(), attempts.len(), "one record an attempt: {refused:#?}");
    for (record, result) in refused.iter().zip(&results) {
        let own = &record["unmapped"]["auditor"];
        assert_eq!(own["agent"]["name"], AGENT, "{record}");
        assert_eq!(record["actor"]["process"]["pid"], pid, "{record}");
        assert_eq!(own["connection"]["verdict"], "deny", "{record}");
        assert_eq!(record["dst_endpoint"]["port"], result["port"], "{record}");
        let tried: IpAddr = result["address"].as_str().unwrap().parse().unwrap();
        let recorded: IpAddr = record["dst_endpoint"]["ip"].as_str().unwrap().parse().unwrap();
        assert_eq!(recorded.to_canonical(), tried.to_canonical(), "{record}");
        let (rule, reason) = (own["connection"]["rule"].as_str(), own["connection"]["reason"].as_str());
        if result["port"] == DENIED {
            assert!(rule.is_some_and(|rule| rule.starts_with("narrow#")), "{record}");
        } else {
            assert_eq!((rule, reason), (None, Some("default")), "{record}");
        }
    }
    daemon.stop().unwrap();
}

#[test]
fn what_policy_allows_leaves() {
    require_root().unwrap();
    let far = FarEnd::new().unwrap();
    let daemon = Daemon::start(&configuration(&far)).unwrap();
    let before = far.arrivals().unwrap();
    let attempts = every_way_to(&far, ALLOWED);
    let (results, _) = attempt(&daemon, &attempts);
    daemon.settle().unwrap();
    for result in &results {
        let expected = if result["kind"] == "tcp" { "ECONNREFUSED" } else { "sent" };
        assert_eq!(result["result"], expected, "{result}");
    }
    let after = far.arrivals().unwrap();
    // Three ways by TCP: v4, v6, mapped; two kinds of UDP by the same three ways.
    assert_eq!((after.tcp - before.tcp, after.udp - before.udp), (3, 6));
    let records = daemon.records().unwrap();
    assert_eq!(refusals(&records).len(), 0);
    daemon.stop().unwrap();
}

#[test]
fn who_is_no_agent_is_not_touched() {
    require_root().unwrap();
    let far = FarEnd::new().unwrap();
    let daemon = Daemon::start(&configuration(&far)).unwrap();
    let (results, _) = attempt(&daemon, &[format!("tcp,{},{UNNAMED}", far.v4)]);
    assert_eq!(results[0]["result"], "EPERM");
    let error = std::net::TcpStream::connect((far.v4, UNNAMED)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "the test itself is no agent");
    daemon.stop().unwrap();
}
