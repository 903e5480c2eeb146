//! What agents say over TLS is in the trail as if it had been said in the clear: verbatim, in order, with the right session and the right
//! connection, for every library that agents bring along. PostgreSQL's log is the judge of statements and of handshakes; the
//! libraries' own key logs name the secrets that nobody may find afterwards.
#![allow(clippy::unwrap_used, reason = "a test panics")]

mod clients;
mod edges;
mod https;
mod runtimes;
mod secrets;
mod soak;
mod suites;
mod takeover;

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use auditor_tests::child;
use auditor_tests::tls::Scene;

/// The words of a client of PostgreSQL's own, which does not tell its process id by itself.
fn words(program: impl Into<OsString>, arguments: &[&str]) -> Vec<OsString> {
    let mut words = vec![program.into()];
    words.extend(arguments.iter().map(OsString::from));
    auditor_tests::clients::telling_pid(&words)
}

/// psql with one statement.
fn psql(scene: &Scene, more: &str, statement: &str) -> Vec<OsString> {
    let target = format!("{} {more}", scene.server.target());
    words(scene.server.postgres.program("psql"), &["-X", "-q", "-c", statement, &target])
}

/// Name and version of the OpenSSL in a file, as the file has it.
fn openssl_in(path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    let begins = |place: &usize| {
        bytes[*place..].starts_with(b"OpenSSL ") && bytes.get(*place + 8).is_some_and(u8::is_ascii_digit)
    };
    let place = (0..bytes.len()).find(begins).unwrap_or_else(|| panic!("no OpenSSL in {}", path.display()));
    let version: String =
        bytes[place + 8..].iter().map(|byte| char::from(*byte)).take_while(|c| *c != ' ').collect();
    format!("OpenSSL {version}")
}

/// The OpenSSL of the distribution, which the clients of PostgreSQL and the interpreter use.
fn system_openssl() -> String {
    let listed = child::succeed(Command::new("/sbin/ldconfig").arg("-p"), Duration::from_secs(10)).unwrap();
    let line = listed.lines().find(|line| line.trim().starts_with("libcrypto.so.3 ")).unwrap();
    openssl_in(Path::new(line.rsplit(' ').next().unwrap()))
}
