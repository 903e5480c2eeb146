//! Installs what building, testing and demonstrating need, once.
//!
//! Each need is looked for by what it does (a compiler that knows the target, a server that is there), not by the name of a
//! package, so a host that has it from elsewhere is left alone. A run that finds everything says nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use auditor_tests::{mariadb, place, postgres, python};

use crate::apt;
use crate::invocation::{capture, cargo, find, run};
use crate::runtimes;
use crate::toolchain::{self, Compiler, TARGET};

/// What the tests' Python holds, beside what these require themselves.
const PYTHON_PACKAGES: [&str; 3] =
    ["jsonschema==4.26.0", "ocsf-json-schema==1.2.0", "psycopg[binary]==3.3.9"];
/// Database drivers with TLS in as many ways, and one TLS in Python that no probe knows.
const DRIVERS: [&str; 5] = [
    "psycopg[binary]==3.3.9",
    "psycopg2-binary==2.9.13",
    "asyncpg==0.32.0",
    "SQLAlchemy==2.1.9",
    "tlslite-ng==0.8.2",
];
/// A driver whose wheel has OpenSSL 1.1 in it, and another whose wheel has that of RHEL 8. There are wheels of these releases for Python
/// up to 3.11.
const OPENSSL_11: [&str; 2] = ["psycopg2-binary==2.9.5", "pymssql==2.3.1"];
/// Clients and servers of HTTP.
const HTTP_PACKAGES: [&str; 2] = ["httpx[http2]==0.28.1", "grpcio==1.85.1"];
/// Drivers for MySQL's protocol.
const MYSQL_DRIVERS: [&str; 2] = ["PyMySQL==1.2.4", "mysql-connector-python==26.10.0"];
/// Companions of cargo, with the version that is built where the host has none.
const CARGO_TOOLS: [(&str, &str); 3] =
    [("cargo-nextest", "0.9.143"), ("cargo-deny", "0.20.2"), ("cargo-fuzz", "0.13.2")];

/// Everything.
pub(crate) fn setup() -> Result<()> {
    build_tools()?;
    servers()?;
    python_packages(&python::environment()?, &PYTHON_PACKAGES)?;
    python_packages(&python::drivers()?, &DRIVERS)?;
    python_packages(&python::openssl_11()?, &OPENSSL_11)?;
    python_packages(&python::http()?, &HTTP_PACKAGES)?;
    python_packages(&python::redis()?, &["redis==8.1.0"])?;
    python_packages(&python::mysql_drivers()?, &MYSQL_DRIVERS)?;
    runtimes::install()?;
    test_tools()
}

/// What `cargo xtask build` needs: a compiler for the kernel programs and the linker that goes with it, and libclang, with which the
/// bindings of PostgreSQL's parser are made.
pub(crate) fn build_tools() -> Result<()> {
    libclang()?;
    let compiler = match Compiler::find() {
        Some(compiler) => compiler,
        None => install_compiler()?,
    };
    let llvm = compiler.llvm()?;
    if toolchain::linker(llvm)?.is_some_and(|linker| works(&linker)) {
        return Ok(());
    }
    let headers =
        [&format!("llvm-{llvm}-dev"), &format!("libpolly-{llvm}-dev"), "zlib1g-dev", "libzstd-dev", "g++"];
    install_missing(&headers, "LLVM's headers for bpf-linker")?;
    say(&format!("building bpf-linker for LLVM {llvm} (about a minute)"));
    toolchain::install_linker(llvm)
}

/// Where bindgen looks for it, as far as distributions put it there.
fn libclang() -> Result<()> {
    let mut folders: Vec<PathBuf> =
        ["/usr/lib", "/usr/lib64", "/usr/local/lib"].into_iter().map(PathBuf::from).collect();
    folders.extend(std::env::var_os("LIBCLANG_PATH").map(PathBuf::from));
    for entry in fs::read_dir("/usr/lib").into_iter().flatten().flatten() {
        folders.extend([entry.path(), entry.path().join("lib")]);
    }
    let is_library = |name: &str| name.starts_with("libclang.so") || name.starts_with("libclang-");
    let found =
        folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten().any(|entry| {
            let name = entry.file_name();
            name.to_str()
                .is_some_and(|name| is_library(name) && name.contains(".so") && !name.contains("cpp"))
        });
    if found {
        Ok(())
    } else {
        install_missing(&["libclang-dev"], "libclang, for the bindings of PostgreSQL's parser")
    }
}

/// Tools that only `cargo xtask test` needs.
pub(crate) fn test_tools() -> Result<()> {
    if matches!(Compiler::find(), Some(Compiler::Prebuilt(_))) && apt::available() {
        install_missing(&["rust-web-clippy"], "clippy for the kernel programs")?;
    }
    ensure_cargo_tool("cargo-nextest")?;
    ensure_cargo_tool("cargo-deny").map(drop)
}

/// The program of one of cargo's companions: in PATH, or built into the cache.
pub(crate) fn ensure_cargo_tool(name: &str) -> Result<PathBuf> {
    let version = CARGO_TOOLS.iter().find(|(known, _)| *known == name).map(|(_, version)| *version);
    let version = version.with_context(|| format!("{name} is none of this tree's tools"))?;
    let root = place::cache()?.join(format!("{name}-{version}"));
    let cached = root.join("bin").join(name);
    if let Some(program) = find(name).or_else(|| cached.is_file().then(|| cached.clone())) {
        return Ok(program);
    }
    say(&format!("building {name} {version} (some minutes, once)"));
    // Unoptimised: it runs for seconds and would be built for minutes longer.
    let arguments = ["install", "--quiet", "--debug", "--locked", name, "--version", version, "--root"];
    run(cargo().args(arguments).arg(root))?;
    Ok(cached)
}

fn install_compiler() -> Result<Compiler> {
    let packages = ["rustc-web", "libstd-rust-web-dev-bpf"];
    let advice = format!(
        "no compiler for {TARGET}: install Debian's {} and {}, or `rustup toolchain install nightly --component rust-src`",
        packages[0], packages[1]
    );
    if apt::available() {
        apt::update()?;
        if packages.iter().all(|package| apt::known(package)) {
            // rustc-web takes the place of Debian's rustc; where that is installed, apt refuses rather than removes it.
            say(&format!("installing {}", packages.join(" ")));
            apt::install(&packages).context(advice.clone())?;
        }
    }
    if Compiler::find().is_none() && find("rustup").is_some() {
        say("installing rustup's nightly with rust-src");
        let install =
            ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src,clippy"];
        capture(Command::new("rustup").args(install)).context(advice.clone())?;
    }
    Compiler::find().context(advice)
}

fn works(program: &Path) -> bool {
    capture(Command::new(program).arg("--version")).is_ok()
}

/// The servers that tests, demo and benchmark start for themselves.
fn servers() -> Result<()> {
    let mut missing = Vec::new();
    if postgres::programs().is_err() {
        missing.push("postgresql");
    }
    if find("psql").is_none() {
        missing.push("postgresql-client");
    }
    if !Path::new("/usr/sbin/pgbouncer").is_file() {
        missing.push("pgbouncer");
    }
    if !Path::new("/usr/sbin/nginx").is_file() {
        missing.push("nginx");
    }
    if find("redis-server").is_none() {
        missing.push("redis-server");
    }
    if find("redis-cli").is_none() {
        missing.push("redis-tools");
    }
    // The programs alone: Debian's mariadb-server would make a data folder in /var/lib when it is installed.
    if !mariadb::server().is_ok_and(|program| program.is_file()) {
        missing.push("mariadb-server-core");
    }
    if find("mariadb").is_none() {
        missing.push("mariadb-client");
    }
    if find("ip").is_none() {
        missing.push("iproute2");
    }
    for (program, package) in
        [("openssl", "openssl"), ("curl", "curl"), ("wget", "wget"), ("gnutls-cli", "gnutls-bin")]
    {
        if find(program).is_none() {
            missing.push(package);
        }
    }
    // A client that is linked statically, and what its libraries ask for.
    for (header, package) in
        [("openssl/ssl.h", "libssl-dev"), ("zlib.h", "zlib1g-dev"), ("zstd.h", "libzstd-dev")]
    {
        if !Path::new("/usr/include").join(header).is_file() {
            missing.push(package);
        }
    }
    install_missing(&missing, "servers for the tests")
}

/// A virtual environment with `packages`.
fn python_packages(environment: &Path, packages: &[&str]) -> Result<()> {
    let stamp = environment.join("auditor-packages");
    let wanted = packages.join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    let interpreter = interpreter()?;
    say(&format!("installing {} into {}", packages.join(" "), environment.display()));
    capture(Command::new(interpreter).args(["-m", "venv", "--clear"]).arg(environment))?;
    capture(
        Command::new(environment.join("bin/python3"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(packages),
    )?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

/// The distribution's own interpreter where there is one: agents' users must be able to run it.
pub(crate) fn interpreter() -> Result<&'static Path> {
    let system = Path::new("/usr/bin/python3");
    let interpreter = if apt::available() || system.is_file() { system } else { Path::new("python3") };
    if capture(Command::new(interpreter).args(["-c", "import ensurepip, venv"])).is_err() {
        install_missing(&["python3", "python3-venv"], "Python with its virtual environments")?;
    }
    Ok(interpreter)
}

/// Installs those of `packages` that are not there.
pub(crate) fn install_missing(packages: &[&str], what_for: &str) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !apt::available() {
        bail!("{what_for}: install what Debian calls {} and run this again", packages.join(" "));
    }
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !apt::installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("installing {} ({what_for})", missing.join(" ")));
    apt::install(&missing)
}

pub(crate) fn say(line: &str) {
    eprintln!("setup: {line}");
}
