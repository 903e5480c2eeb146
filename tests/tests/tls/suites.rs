//! Every suite that both ends can agree on, sessions that are resumed, keys that change, and TLS that begins with the first byte.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use auditor_tests::certificates::{CLIENT, Key, SERVER};
use auditor_tests::daemon::Daemon;
use auditor_tests::tls::front::{self, Front, Handshake};
use auditor_tests::tls::{AGENT, Expected, Scene, Server, agreed, check_connection, with_variables};
use auditor_tests::{UNPRIVILEGED, child, clients, oracle};
use serde_json::json;

use crate::{psql, system_openssl};

/// Both ends offer what OpenSSL has, except for what has no certificate.
const ALL: &str = "ALL:!aNULL:!eNULL:!PSK:!SRP:!DSS:@SECLEVEL=0";

fn expected(library: &str) -> Expected<'_> {
    Expected { library, sni: Some(SERVER) }
}

/// OpenSSL's and IANA's names of the suites of TLS 1.2 for a certificate with such a key.
fn suites(key: Key) -> Vec<(String, String)> {
    let mut command = Command::new("openssl");
    command.args(["ciphers", "-s", "-tls1_2", "-stdname", ALL]);
    let text = child::succeed(&mut command, Duration::from_secs(10)).unwrap();
    let suites = text.lines().filter_map(|line| {
        let (standard, rest) = line.split_once(" - ")?;
        let (exchange, _) = standard.split_once("_WITH_")?;
        let fits = exchange.ends_with("_ECDSA") == (key == Key::Ec);
        fits.then(|| (rest.split_whitespace().next().unwrap().to_owned(), standard.trim().to_owned()))
    });
    suites.collect()
}

/// Those that must be read: AES-GCM, ChaCha20-Poly1305, AES-CBC with HMAC.
fn is_promised(standard: &str) -> bool {
    let cipher =
        standard.split_once("_WITH_").map_or(standard.trim_start_matches("TLS_"), |(_, cipher)| cipher);
    cipher.starts_with("CHACHA20_POLY1305")
        || cipher.starts_with("AES_") && (cipher.contains("_GCM_") || cipher.contains("_CBC_"))
}

/// A configuration of OpenSSL that a client is run with.
fn openssl_configuration(folder: &Path, name: &str, settings: &str) -> String {
    let text = format!("openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\n{settings}\n");
    clients::write(folder, name, &text).unwrap().display().to_string()
}

/// psql with OpenSSL told by `settings`; `name` tells its connection from others.
fn psql_with(scene: &Scene, name: &str, settings: &str) -> Vec<OsString> {
    let configuration = openssl_configuration(scene.daemon.home().folder(), &format!("{name}.cnf"), settings);
    let words = psql(scene, &format!("application_name={name}"), &format!("select 'with {name}'"));
    with_variables(&[("OPENSSL_CONF", &configuration)], &words)
}

fn of_tls_1_2(key: Key) {
    let settings = [("ssl_ciphers", ALL), ("ssl_max_protocol_version", "TLSv1.2")];
    let mut scene = Scene::new(key, &settings).unwrap();
    let suites: Vec<_> = suites(key).into_iter().filter(|(_, standard)| is_promised(standard)).collect();
    for (name, _) in &suites {
        let only = format!("CipherString = {name}:@SECLEVEL=0");
        scene.run(&psql_with(&scene, name, &only)).unwrap();
        if name.contains("-GCM-") || name.contains("CHACHA20") {
            continue;
        }
        // CBC with the MAC below the encryption (RFC 5246) instead of above (RFC 7366), and the older master secret.
        let older = format!("{only}\nOptions = -EncryptThenMac");
        scene.run(&psql_with(&scene, &format!("{name}-mac-first"), &older)).unwrap();
    }
    let older = format!("CipherString = {}:@SECLEVEL=0\nOptions = -ExtendedMasterSecret", suites[0].0);
    scene.run(&psql_with(&scene, "older-master-secret", &older)).unwrap();
    let records = scene.judge("suites of TLS 1.2", suites.len(), expected(&system_openssl())).unwrap();
    for (_, standard) in &suites {
        let agreed = |record: &&serde_json::Value| {
            record["unmapped"]["auditor"]["connection"]["tls"]["cipher"] == standard.as_str()
        };
        assert!(records.iter().any(|record| agreed(&record)), "no connection with {standard}");
    }
    scene.daemon.stop().unwrap();
}

#[test]
fn every_suite_of_tls_1_2_with_an_rsa_certificate() {
    of_tls_1_2(Key::Rsa);
}

#[test]
fn every_suite_of_tls_1_2_with_an_ecdsa_certificate() {
    of_tls_1_2(Key::Ec);
}

#[test]
fn every_suite_of_tls_1_3() {
    let mut scene = Scene::new(Key::Ec, &[]).unwrap();
    let suites = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
    for suite in suites {
        scene.run(&psql_with(&scene, suite, &format!("Ciphersuites = {suite}"))).unwrap();
    }
    let records = scene.judge("suites of TLS 1.3", 3, expected(&system_openssl())).unwrap();
    for suite in suites {
        assert!(
            records
                .iter()
                .any(|record| record["unmapped"]["auditor"]["connection"]["tls"]["cipher"] == suite)
        );
    }
    scene.daemon.stop().unwrap();
}

/// Suites that nobody promised to read are read, or say why they are not.
#[test]
fn another_suite_is_not_passed_over_in_silence() {
    let settings = [("ssl_ciphers", ALL), ("ssl_max_protocol_version", "TLSv1.2")];
    let server = Server::start(Key::Rsa, true, &settings).unwrap();
    let configuration = server.configuration("").replace("protocol = \"postgres\"\n", "");
    let daemon = Daemon::start(&configuration).unwrap();
    let scene = Scene::of(server, daemon);
    let others: Vec<_> =
        suites(Key::Rsa).into_iter().filter(|(_, standard)| !is_promised(standard)).collect();
    assert!(others.len() >= 6, "{others:?}");
    for (name, _) in &others {
        let words = psql_with(&scene, name, &format!("CipherString = {name}:@SECLEVEL=0"));
        let output = scene.daemon.run(AGENT, UNPRIVILEGED, &words).unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    scene.daemon.settle().unwrap();
    let records = scene.daemon.records().unwrap();
    let agreed = agreed(&scene.server.postgres.log().unwrap()).unwrap();
    for (name, standard) in &others {
        let mine = |record: &&serde_json::Value| {
            let client = oracle::client(record).ok().and_then(|client| agreed.get(&client));
            record["unmapped"]["auditor"]["kind"] == "connection-closed"
                && client.is_some_and(|handshakes| handshakes[0].1 == *standard)
        };
        let ends: Vec<_> = records.iter().filter(mine).collect();
        assert_eq!(ends.len(), 1, "connections with {standard}");
        let tls = &ends[0]["unmapped"]["auditor"]["connection"]["tls"];
        // By its name, or by its number.
        let cipher = tls["cipher"].as_str().unwrap();
        assert!(cipher == standard || cipher.starts_with("0x"), "{tls}");
        let text = format!("select 'with {name}'");
        let told = records.iter().any(|record| record["query_info"]["query_string"] == text.as_str());
        assert_eq!(tls["decrypted"] == true, told, "{tls}");
        assert!(told || tls["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{tls}");
    }
    scene.daemon.stop().unwrap();
}

/// Clients of a front that PostgreSQL is behind: each handshake, and every statement.
fn through_front(
    name: &str,
    options: &serde_json::Value,
    runs: &[(&str, &[&str])],
    check: impl Fn(&[Handshake]),
) {
    auditor_tests::require_root().unwrap();
    let server = Server::start(Key::Ec, true, &[]).unwrap();
    let folder = auditor_tests::place::scratch().unwrap();
    let backend = server.postgres.port();
    let front = Front::start(folder.path(), &server.certificates, Some(backend), options).unwrap();
    let rule = format!(
        "[[policy.rule]]\nto = [\"127.0.0.1:{}\"]\naction = \"allow\"\nprotocol = \"postgres\"\n",
        front.port()
    );
    let daemon = Daemon::start(&server.configuration(&rule)).unwrap();
    let (port, authority) = (front.port().to_string(), server.certificates.authority().display().to_string());
    let mut pids = Vec::new();
    for (script, arguments) in runs {
        let script = clients::write(daemon.home().folder(), "client.py", script).unwrap();
        let mut words: Vec<OsString> = ["/usr/bin/python3", "-B"].map(OsString::from).into();
        words.extend([script.into(), port.clone().into(), authority.clone().into()]);
        words.extend(arguments.iter().map(OsString::from));
        let output = daemon.run(AGENT, UNPRIVILEGED, &words).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}\ndaemon: {}", daemon.said());
        pids.push(clients::pid_told(&output.stderr).unwrap());
    }
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let ends: Vec<_> = records
        .iter()
        .filter(|record| record["unmapped"]["auditor"]["kind"] == "connection-closed")
        .collect();
    let handshakes = front.handshakes(ends.len()).unwrap();
    check(&handshakes);
    let report =
        oracle::compare(&front::behind(server.postgres.log().unwrap(), &handshakes), &records).unwrap();
    eprintln!("tls, {name}: {report}");
    assert!(report.is_equal() && report.told > 0, "{report}\ndaemon: {}", daemon.said());
    oracle::check_attribution(&records, AGENT, &pids).unwrap();
    let library = system_openssl();
    for handshake in &handshakes {
        let end =
            ends.iter().find(|record| oracle::client(record).unwrap().port() == handshake.client).unwrap();
        check_connection(end, &handshake.version, &handshake.cipher, expected(&library)).unwrap();
        let tls = &end["unmapped"]["auditor"]["connection"]["tls"];
        assert_eq!(tls["resumed"].as_bool().unwrap_or(false), handshake.resumed, "{tls}");
        assert_eq!(tls["protocol"].as_str(), handshake.alpn.as_deref(), "{tls}");
    }
    daemon.stop().unwrap();
}

const SESSION: &str = include_str!("../../clients/tls_session.py");
const REKEY: &str = include_str!("../../clients/tls_rekey.py");

#[test]
fn sessions_that_are_resumed() {
    let runs: [(&str, &[&str]); 2] =
        [(SESSION, &["1.2", "request", "6", "resumed"]), (SESSION, &["1.3", "request", "6", "resumed"])];
    through_front("resumption", &json!({}), &runs, |handshakes| {
        assert_eq!(handshakes.iter().filter(|handshake| handshake.resumed).count(), 10);
    });
}

#[test]
fn tls_that_begins_with_the_first_byte() {
    let runs: [(&str, &[&str]); 2] =
        [(SESSION, &["1.2", "direct", "4", "direct"]), (SESSION, &["1.3", "direct", "4", "direct"])];
    through_front("direct TLS", &json!({"alpn": ["postgresql"]}), &runs, |handshakes| {
        assert!(handshakes.iter().all(|handshake| handshake.alpn.as_deref() == Some("postgresql")));
    });
}

#[test]
fn a_server_that_asks_for_another_key_share() {
    let runs: [(&str, &[&str]); 1] = [(SESSION, &["1.3", "request", "4", "asked again"])];
    through_front("hello retry", &json!({"curve": "secp384r1"}), &runs, |_| {});
}

#[test]
fn keys_that_change_on_the_way() {
    through_front("key update", &json!({}), &[(REKEY, &["40", "rekeyed"])], |_| {});
}

#[test]
fn a_client_with_a_certificate() {
    let mut scene = Scene::new(Key::Rsa, &[]).unwrap();
    let certificates = scene.server.certificates.clone();
    // From now on clients are asked for one.
    scene.server.postgres.set("ssl_ca_file", &certificates.authority().display().to_string()).unwrap();
    let own = format!(
        "sslcert={} sslkey={}",
        certificates.client_certificate().display(),
        certificates.client_key().display()
    );
    for version in ["TLSv1.2", "TLSv1.3"] {
        scene.server.postgres.set("ssl_max_protocol_version", version).unwrap();
        let asked = "select client_dn from pg_stat_ssl where pid = pg_backend_pid()";
        let output = scene.run(&psql(&scene, &own, asked)).unwrap();
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(CLIENT),
            "the server was shown no certificate"
        );
    }
    let records = scene.judge("client certificate", 2, expected(&system_openssl())).unwrap();
    let fingerprint = certificates.fingerprint().unwrap();
    for record in records.iter().filter(|record| record["unmapped"]["auditor"]["kind"] == "connection-closed")
    {
        let tls = &record["unmapped"]["auditor"]["connection"]["tls"];
        assert_eq!(tls["server_certificate"]["sha256"], fingerprint.as_str(), "{tls}");
        assert!(
            tls["client_certificate"]["subject"].as_str().is_some_and(|subject| subject.contains(CLIENT)),
            "{tls}"
        );
    }
    scene.daemon.stop().unwrap();
}
