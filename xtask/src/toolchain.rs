//! The toolchain of the kernel programs: a compiler that has `core` for bpfel-unknown-none, and a linker that reads the
//! bitcode of this compiler's LLVM.
//!
//! Two compilers do. A rustc that ships the target's `core` prebuilt (Debian's rustc-web with libstd-rust-web-dev-bpf)
//! needs nothing else. A rustup nightly with rust-src builds `core` itself. The first is preferred: it comes from the
//! distribution, signed, and does not change under one's feet. Which it is, is found by asking the compiler, not by
//! asking the package manager.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::invocation::{capture, cargo, cargo_of, find, path_with, run};
use auditor_tests::place;

/// The target of the kernel programs.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// Version of bpf-linker; it knows LLVM 21 to 23.
const LINKER_VERSION: &str = "0.13.0";
/// The LLVM of Debian's rustc-web. The cache keeps its linker under the plain name.
const USUAL_LLVM: u32 = 22;

/// A compiler for the kernel programs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Compiler {
    /// This rustc has the target's `core`.
    Prebuilt(PathBuf),
    /// This rustup toolchain has the sources of `core`.
    BuildStd(&'static str),
}

impl Compiler {
    /// Finds one; `None` if the machine has none.
    pub(crate) fn find() -> Option<Self> {
        // rustup's own proxies come first in PATH, and ask for a toolchain; the distribution's compiler is in /usr/bin.
        let prebuilt = PathBuf::from("/usr/bin/rustc");
        if has_prebuilt_core(&prebuilt) {
            return Some(Self::Prebuilt(prebuilt));
        }
        let sysroot = capture(&mut rustup_rustc(&["--print", "sysroot"])).ok()?;
        let sources = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        sources.is_dir().then_some(Self::BuildStd("nightly"))
    }

    /// In words.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Prebuilt(path) => format!("{} (core for {TARGET} prebuilt)", path.display()),
            Self::BuildStd(toolchain) => format!("rustup toolchain {toolchain} (builds core for {TARGET})"),
        }
    }

    /// A cargo that compiles with it.
    pub(crate) fn cargo(&self) -> Command {
        match self {
            Self::Prebuilt(path) => bootstrap(cargo(), path),
            Self::BuildStd(toolchain) => cargo_of(toolchain),
        }
    }

    /// The same cargo with the clippy that belongs to the compiler; it reads the compiler's own metadata, so no other does.
    pub(crate) fn clippy(&self) -> Command {
        match self {
            Self::Prebuilt(path) => {
                let cargo = cargo();
                let mut command = Command::new(path.with_file_name("cargo-clippy"));
                command.env("CARGO", cargo.get_program()).current_dir(place::tree());
                bootstrap(command, path)
            }
            Self::BuildStd(toolchain) => cargo_of(toolchain),
        }
    }

    /// What cargo is told beside the target.
    pub(crate) fn arguments(&self) -> &'static [&'static str] {
        match self {
            Self::Prebuilt(_) => &[],
            Self::BuildStd(_) => &["-Zbuild-std=core"],
        }
    }

    /// Major version of its LLVM, which decides which linker can read what it writes.
    pub(crate) fn llvm(&self) -> Result<u32> {
        let said = match self {
            Self::Prebuilt(path) => capture(Command::new(path).arg("-vV").env_remove("LD_LIBRARY_PATH"))?,
            Self::BuildStd(_) => capture(&mut rustup_rustc(&["-vV"]))?,
        };
        said.lines()
            .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
            .with_context(|| format!("{} does not tell its LLVM version", self.describe()))
    }
}

/// RUSTC_BOOTSTRAP: aya-ebpf uses features of the bpf target that are not stable.
fn bootstrap(mut command: Command, rustc: &Path) -> Command {
    command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1").env_remove("LD_LIBRARY_PATH");
    command
}

fn rustup_rustc(arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "rustc"]).args(arguments).env_remove("LD_LIBRARY_PATH");
    command
}

fn has_prebuilt_core(rustc: &Path) -> bool {
    let asked = capture(
        Command::new(rustc)
            .args(["--print", "target-libdir", "--target", TARGET])
            .env_remove("LD_LIBRARY_PATH"),
    );
    let Ok(Ok(entries)) = asked.map(|folder| fs::read_dir(folder.trim())) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

/// The folder that bpf-linker for this LLVM is installed under.
fn linker_root(llvm: u32) -> Result<PathBuf> {
    let name = if llvm == USUAL_LLVM {
        format!("bpf-linker-{LINKER_VERSION}")
    } else {
        format!("bpf-linker-{LINKER_VERSION}-llvm-{llvm}")
    };
    Ok(place::cache()?.join(name))
}

/// The bpf-linker in the cache, if it is there.
pub(crate) fn linker(llvm: u32) -> Result<Option<PathBuf>> {
    let path = linker_root(llvm)?.join("bin/bpf-linker");
    Ok(path.is_file().then_some(path))
}

/// Builds bpf-linker into the cache.
pub(crate) fn install_linker(llvm: u32) -> Result<()> {
    let prefix = llvm_prefix(llvm)?;
    run(cargo()
        .args([
            "install",
            "--quiet",
            "--locked",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
            "--no-default-features",
        ])
        .args(["--features", &format!("llvm-{llvm}"), "--root"])
        .arg(linker_root(llvm)?)
        .env("LLVM_PREFIX", &prefix)
        .env("PATH", path_with(&[prefix.join("bin")])?))
    .context("bpf-linker could not be built")
}

/// Where LLVM of this major version is installed with its headers.
fn llvm_prefix(llvm: u32) -> Result<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if debian.join("include/llvm").is_dir() {
        return Ok(debian);
    }
    for name in [format!("llvm-config-{llvm}"), "llvm-config".to_owned()] {
        let Some(program) = find(&name) else { continue };
        let version = capture(Command::new(&program).arg("--version"))?;
        if version.trim().split('.').next() == Some(llvm.to_string().as_str()) {
            return Ok(PathBuf::from(capture(Command::new(&program).arg("--prefix"))?.trim()));
        }
    }
    bail!(
        "bpf-linker needs LLVM {llvm} with its headers (the LLVM of the compiler): install llvm-{llvm}-dev or its like"
    )
}
