//! Clients whose runtime has TLS of its own, linked or compiled into the program.

use std::ffi::OsString;
use std::fs;
use std::process::Command;
use std::time::Duration;

use auditor_tests::certificates::{Key, SERVER};
use auditor_tests::runtimes::{self, JavaScript};
use auditor_tests::tls::{AGENT, Scene, check_opaque};
use auditor_tests::{UNPRIVILEGED, child, place};

use crate::clients::with_both_versions;

/// Whether the secrets of these libraries are taken. Where they are not, their connections say so, and rules that want to see
/// them are violated: that is asserted instead.
const BORINGSSL: bool = true;

/// As [`with_both_versions`], if the library is `read`; with so many statements at least.
fn client(
    name: &str,
    read: bool,
    library: &str,
    least: usize,
    words: impl Fn(&Scene, &str) -> Vec<OsString>,
) {
    if read {
        return with_both_versions(name, library, least, |scene, tag| vec![words(scene, tag)]);
    }
    let scene = Scene::new(Key::Rsa, &[]).unwrap();
    for version in ["1.3", "1.2"] {
        scene.server.postgres.set("ssl_max_protocol_version", &format!("TLSv{version}")).unwrap();
        let output = scene.daemon.run(AGENT, UNPRIVILEGED, &words(&scene, version)).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    scene.daemon.settle().unwrap();
    let (log, records) = (scene.server.postgres.log().unwrap(), scene.daemon.records().unwrap());
    let connections = check_opaque(&log, &records, Some(SERVER)).unwrap();
    assert!(connections >= 24, "only {connections} connections");
    scene.daemon.stop().unwrap();
}

fn javascript(scene: &Scene, runtime: &JavaScript, tag: &str) -> Vec<OsString> {
    let (port, authority) = (scene.server.postgres.port().to_string(), scene.server.certificates.authority());
    runtime.words(&[SERVER, &port, SERVER, &authority.display().to_string(), "12", "5", tag])
}

#[test]
fn node_with_pg() {
    let folder = place::scratch().unwrap();
    let node = JavaScript::node(folder.path()).unwrap();
    let told = Command::new(node.program()).args(["-p", "process.versions.openssl"]).output().unwrap();
    let library = format!("OpenSSL {}", String::from_utf8(told.stdout).unwrap().trim());
    client("node", true, &library, 200, |scene, tag| javascript(scene, &node, tag));
}

#[test]
fn bun_with_pg() {
    let folder = place::scratch().unwrap();
    let bun = JavaScript::bun(folder.path()).unwrap();
    client("bun", BORINGSSL, "BoringSSL", 200, |scene, tag| javascript(scene, &bun, tag));
}

fn go(stripped: bool) {
    let folder = place::scratch().unwrap();
    let program = runtimes::go_client(folder.path(), stripped).unwrap();
    // The release is named in every program, also without its symbols.
    client("Go", true, &format!("go{}", runtimes::GO), 200, |scene, tag| {
        let target = scene.server.target();
        let arguments = ["statements", &target, "12", "5", tag].map(OsString::from);
        std::iter::once(program.clone().into()).chain(arguments).collect()
    });
}

#[test]
fn go_with_lib_pq() {
    go(false);
}

#[test]
fn go_without_its_symbols() {
    go(true);
}

/// rustls is found by the program's symbols, which cargo leaves in it unless it is told not to.
fn rustls(stripped: bool) {
    let folder = place::scratch().unwrap();
    let program = folder.path().join("rustls-client");
    fs::copy(env!("CARGO_BIN_EXE_rustls_client"), &program).unwrap();
    if stripped {
        child::succeed(Command::new("strip").arg(&program), Duration::from_secs(60)).unwrap();
    }
    client("rustls", !stripped, "rustls 0.23.", 120, |scene, tag| {
        let (port, authority) =
            (scene.server.postgres.port().to_string(), scene.server.certificates.authority());
        let authority = authority.display().to_string();
        let arguments = [SERVER, &port, &authority, "12", "5", tag].map(OsString::from);
        std::iter::once(program.clone().into()).chain(arguments).collect()
    });
}

#[test]
fn rustls_with_its_symbols() {
    rustls(false);
}

#[test]
fn rustls_without_its_symbols() {
    rustls(true);
}
