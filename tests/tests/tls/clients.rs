//! Each client with TLS 1.3 and with TLS 1.2: every statement, none on another connection.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use auditor_tests::certificates::{Key, SERVER};
use auditor_tests::clients;
use auditor_tests::python::{self, Python};
use auditor_tests::tls::{Expected, Scene, agreed, with_variables};

use crate::{openssl_in, system_openssl, words};

/// Runs a client once with each version, and judges.
pub(crate) fn with_both_versions(
    name: &str,
    library: &str,
    least: usize,
    client: impl Fn(&Scene, &str) -> Vec<Vec<OsString>>,
) {
    let mut scene = Scene::new(Key::Rsa, &[]).unwrap();
    for version in ["1.3", "1.2"] {
        scene.server.postgres.set("ssl_max_protocol_version", &format!("TLSv{version}")).unwrap();
        for words in client(&scene, &format!("tls {version}")) {
            scene.run(&words).unwrap();
        }
    }
    scene.judge(name, least, Expected { library, sni: Some(SERVER) }).unwrap();
    let versions: Vec<String> = agreed(&scene.server.postgres.log().unwrap())
        .unwrap()
        .into_values()
        .flatten()
        .map(|(version, _)| version)
        .collect();
    assert!(versions.contains(&"1.2".to_owned()) && versions.contains(&"1.3".to_owned()), "{versions:?}");
    scene.daemon.stop().unwrap();
}

/// The words of the client in Python.
fn python(
    scene: &Scene,
    driver: &str,
    way: &str,
    connections: u32,
    statements: u32,
    tag: &str,
) -> Vec<OsString> {
    let python = Python::with_drivers(scene.daemon.home().folder()).unwrap();
    words_of(scene, &python, driver, way, (connections, statements), tag)
}

/// The same with this interpreter and what it has.
fn words_of(
    scene: &Scene,
    python: &Python,
    driver: &str,
    way: &str,
    (connections, statements): (u32, u32),
    tag: &str,
) -> Vec<OsString> {
    let folder = scene.daemon.home().folder();
    let script = clients::write(folder, "tls_client.py", clients::TLS).unwrap();
    let (port, authority) = (scene.server.postgres.port().to_string(), scene.server.certificates.authority());
    let (connections, statements) = (connections.to_string(), statements.to_string());
    let authority = authority.display().to_string();
    python.words(&script, &[driver, way, SERVER, &port, &authority, &connections, &statements, tag])
}

/// The OpenSSL in a wheel.
fn in_wheel(wheel: &str) -> String {
    in_wheel_of(&python::drivers().unwrap(), wheel)
}

fn in_wheel_of(environment: &Path, wheel: &str) -> String {
    let interpreter = fs::read_dir(environment.join("lib")).unwrap().next().unwrap().unwrap().path();
    let libraries = interpreter.join("site-packages").join(wheel);
    let file = fs::read_dir(libraries)
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("libcrypto"));
    openssl_in(&file.unwrap().path())
}

fn with_python(driver: &str, variables: &[(&str, &str)], library: &str) {
    with_both_versions(driver, library, 200, |scene, tag| {
        ["together", "storm"]
            .map(|way| with_variables(variables, &python(scene, driver, way, 12, 5, &format!("{tag} {way}"))))
            .into()
    });
}

#[test]
fn psql_with_a_script() {
    with_both_versions("psql", &system_openssl(), 80, |scene, tag| {
        // A statement over many records, too.
        let long = format!("select '{tag} {}';\n", "0123456789abcdef".repeat(6400));
        let script = clients::STATEMENTS.to_owned() + &long;
        let script = clients::write(scene.daemon.home().folder(), "statements.sql", &script).unwrap();
        let arguments = ["-X", "-q", "-f", &script.display().to_string(), &scene.server.target()];
        vec![words(scene.server.postgres.program("psql"), &arguments)]
    });
}

#[test]
fn pgbench_with_eight_clients() {
    with_both_versions("pgbench", &system_openssl(), 8_000, |scene, _| {
        let target = scene.server.target();
        let program = scene.server.postgres.program("pgbench");
        let tables = words(program.clone(), &["-i", "-q", &target]);
        let run =
            |mode| words(program.clone(), &["-n", "-c", "8", "-j", "2", "-t", "40", "-M", mode, &target]);
        // -C: a handshake for each transaction.
        let connects = words(program.clone(), &["-n", "-S", "-C", "-c", "4", "-t", "20", &target]);
        vec![tables, run("simple"), run("extended"), run("prepared"), connects]
    });
}

#[test]
fn psycopg_in_its_wheel() {
    with_python("psycopg", &[("PSYCOPG_IMPL", "binary")], &in_wheel("psycopg_binary.libs"));
}

#[test]
fn psycopg_in_python_with_the_libpq_of_the_distribution() {
    with_python("psycopg", &[("PSYCOPG_IMPL", "python")], &system_openssl());
}

#[test]
fn psycopg2_with_a_library_of_its_own() {
    with_python("psycopg2", &[], &in_wheel("psycopg2_binary.libs"));
}

fn with_openssl_11(name: &str, wheel: &str, python: impl Fn(&Path) -> anyhow::Result<Python>) {
    let library = in_wheel_of(&python::openssl_11().unwrap(), wheel);
    assert!(library.starts_with("OpenSSL 1.1."), "{library}");
    with_both_versions(name, &library, 200, |scene, tag| {
        let python = python(scene.daemon.home().folder()).unwrap();
        let words = |way: &str| words_of(scene, &python, "psycopg2", way, (12, 5), &format!("{tag} {way}"));
        ["together", "storm"].map(words).into()
    });
}

#[test]
fn psycopg2_with_an_openssl_1_1_of_its_own() {
    with_openssl_11("psycopg2 with OpenSSL 1.1", "psycopg2_binary.libs", Python::with_openssl_11);
}

#[test]
fn psycopg2_with_the_openssl_1_1_of_rhel_8() {
    with_openssl_11("psycopg2 with RHEL 8's OpenSSL", "pymssql.libs", Python::with_openssl_of_rhel_8);
}

#[test]
fn asyncpg_whose_library_sees_no_socket() {
    with_python("asyncpg", &[], &system_openssl());
}

#[test]
fn a_pool_of_sqlalchemy() {
    with_python("sqlalchemy", &[], &in_wheel("psycopg2_binary.libs"));
}

fn two_hundred(driver: &str, library: &str) {
    let mut scene = Scene::new(Key::Ec, &[]).unwrap();
    let words = python(&scene, driver, "together", 200, 8, "one of two hundred");
    scene.run(&words).unwrap();
    scene.judge(driver, 1600, Expected { library, sni: Some(SERVER) }).unwrap();
    scene.daemon.stop().unwrap();
}

#[test]
fn two_hundred_connections_of_threads_in_one_process() {
    two_hundred("psycopg2", &in_wheel("psycopg2_binary.libs"));
}

#[test]
fn two_hundred_connections_in_one_event_loop() {
    two_hundred("asyncpg", &system_openssl());
}

#[test]
fn storms_of_connections() {
    let mut scene = Scene::new(Key::Ec, &[]).unwrap();
    for driver in ["psycopg2", "asyncpg"] {
        let words = python(&scene, driver, "storm", 300, 1, driver);
        scene.run(&words).unwrap();
    }
    // Two libraries, so the version is left open.
    scene.judge("storm", 900, Expected { library: "OpenSSL 3.", sni: Some(SERVER) }).unwrap();
    scene.daemon.stop().unwrap();
}
