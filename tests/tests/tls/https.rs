//! HTTPS: what a connection's record says of TLS, whatever is inside.

use std::ffi::OsString;

use auditor_tests::certificates::{Certificates, Key, SERVER};
use auditor_tests::daemon::Daemon;
use auditor_tests::tls::AGENT;
use auditor_tests::tls::front::{Front, Handshake};
use auditor_tests::tls::ja4::ja4;
use auditor_tests::{UNPRIVILEGED, child, oracle, place, require_root, runtimes};
use serde_json::{Value, json};

use crate::system_openssl;

/// Whether the secrets of this library are taken.
const GNUTLS: bool = true;

/// Runs a client against a server of HTTPS, and checks each connection's record against the server's own account.
/// `library` is `None` where its secrets are not taken.
fn talk(
    library: Option<&str>,
    count: usize,
    words: impl Fn(u16, &Certificates, &Daemon) -> Vec<OsString>,
) -> Vec<Handshake> {
    require_root().unwrap();
    let folder = place::scratch().unwrap();
    let user = child::find_user(&["root"]).unwrap();
    let certificates = Certificates::new(folder.path(), Key::Ec, &user).unwrap();
    let front = Front::start(folder.path(), &certificates, None, &json!({"alpn": ["http/1.1"]})).unwrap();
    let port = front.port();
    let daemon = Daemon::start(&format!(
        "[[agent]]\nname = \"{AGENT}\"\npolicy = \"web\"\n\n[[policy]]\nname = \"web\"\ndefault = \"deny\"\n\
         [[policy.rule]]\nto = [\"127.0.0.1:{port}\"]\naction = \"allow\"\n"
    ))
    .unwrap();
    let words = words(port, &certificates, &daemon);
    let output = daemon.run(AGENT, UNPRIVILEGED, &words).unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    daemon.settle().unwrap();
    let records = daemon.records().unwrap();
    let handshakes = front.handshakes(count).unwrap();
    let fingerprint = certificates.fingerprint().unwrap();
    for handshake in &handshakes {
        let end = records.iter().find(|record| {
            record["unmapped"]["auditor"]["kind"] == "connection-closed"
                && oracle::client(record).is_ok_and(|client| client.port() == handshake.client)
        });
        let connection =
            &end.unwrap_or_else(|| panic!("no end of {handshake:?}"))["unmapped"]["auditor"]["connection"];
        check(&connection["tls"], handshake, &fingerprint, library);
    }
    daemon.stop().unwrap();
    handshakes
}

fn check(tls: &Value, handshake: &Handshake, fingerprint: &str, library: Option<&str>) {
    eprintln!("https: {tls}");
    assert_eq!(tls["version"], handshake.version.as_str(), "{tls}");
    assert_eq!(tls["cipher"], handshake.cipher.as_str(), "{tls}");
    assert_eq!(tls["sni"].as_str(), handshake.sni.as_deref(), "{tls}");
    assert_eq!(tls["ja4"].as_str(), ja4(&handshake.hello).as_deref(), "{tls}");
    assert_eq!(tls["decrypted"], library.is_some(), "{tls}");
    if let Some(library) = library {
        assert!(tls["library"].as_str().is_some_and(|name| name.contains(library)), "{tls}");
        assert_eq!(tls["resumed"].as_bool().unwrap_or(false), handshake.resumed, "{tls}");
        assert_eq!(tls["protocol"].as_str(), handshake.alpn.as_deref(), "{tls}");
    } else {
        assert!(tls["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{tls}");
    }
    // With TLS 1.3 it is encrypted.
    if !handshake.resumed && (library.is_some() || handshake.version == "1.2") {
        assert_eq!(tls["server_certificate"]["sha256"], fingerprint, "{tls}");
        let names = tls["server_certificate"]["names"].as_array().unwrap();
        assert!(names.iter().any(|name| name == SERVER), "{tls}");
    }
}

fn curl(port: u16, certificates: &Certificates, more: &[&str]) -> Vec<OsString> {
    let mut words: Vec<OsString> =
        ["curl", "--silent", "--fail", "--http1.1", "--output", "/dev/null"].map(OsString::from).into();
    words.extend(["--connect-to".into(), format!("{SERVER}:{port}:127.0.0.1:{port}").into()]);
    words.extend(["--cacert".into(), certificates.authority().into()]);
    words.extend(more.iter().map(OsString::from));
    words.push(format!("https://{SERVER}:{port}/100000").into());
    words
}

#[test]
fn curl_with_tls_1_3() {
    let library = system_openssl();
    let done = talk(Some(&library), 1, |port, certificates, _| curl(port, certificates, &[]));
    assert_eq!((done[0].version.as_str(), done[0].alpn.as_deref()), ("1.3", Some("http/1.1")));
}

#[test]
fn curl_with_tls_1_2() {
    let library = system_openssl();
    let done =
        talk(Some(&library), 1, |port, certificates, _| curl(port, certificates, &["--tls-max", "1.2"]));
    assert_eq!(done[0].version, "1.2");
}

fn gnutls(priority: &str) -> Vec<Handshake> {
    talk(GNUTLS.then_some("GnuTLS 3."), 1, |port, certificates, _| {
        let request = "printf 'GET /20000 HTTP/1.1\\r\\n\\r\\n' | exec \"$@\"";
        let mut words: Vec<OsString> =
            ["/bin/sh", "-c", request, "sh", "gnutls-cli"].map(OsString::from).into();
        words.extend(["--x509cafile".into(), certificates.authority().into()]);
        words.extend(
            ["--priority", priority, "--alpn", "http/1.1", "--sni-hostname", SERVER].map(OsString::from),
        );
        words.extend(
            ["--verify-hostname", SERVER, "--port", &port.to_string(), "127.0.0.1"].map(OsString::from),
        );
        words
    })
}

#[test]
fn gnutls_with_both_versions() {
    assert_eq!(gnutls("NORMAL")[0].version, "1.3");
    assert_eq!(gnutls("NORMAL:-VERS-TLS1.3")[0].version, "1.2");
}

#[test]
fn go_that_resumes_its_sessions() {
    let library = format!("go{}", runtimes::GO);
    let done = talk(Some(&library), 4, |port, certificates, daemon| {
        let program = runtimes::go_client(daemon.home().folder(), true).unwrap();
        let mut words = vec![program.into_os_string(), "resume".into(), format!("127.0.0.1:{port}").into()];
        words.extend([certificates.authority().into_os_string(), "4".into()]);
        words
    });
    assert_eq!(done.iter().filter(|handshake| handshake.resumed).count(), 3);
}
