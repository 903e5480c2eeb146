//! Builds the kernel programs into `target/bpf/auditor.bpf.o`, then the binary that carries them.
//!
//! The two are compiled by different compilers for different targets. So the kernel side has a target folder and flags of
//! its own (nothing that the caller's RUSTFLAGS say about the host reaches it), and the object is only written when it
//! changed: otherwise each build would build the host crate again.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::invocation::{cargo, path_with, run};
use crate::toolchain::{self, Compiler, TARGET};
use auditor_tests::place;

/// How the host's side is compiled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Profile {
    /// Quick to build.
    Dev,
    /// Optimised: what is measured and shipped.
    Release,
}

/// Builds both sides; returns the path of the binary.
pub(crate) fn build(profile: Profile) -> Result<PathBuf> {
    build_kernel_programs()?;
    build_binary(profile)
}

/// Builds the kernel programs; returns the path of the object.
pub(crate) fn build_kernel_programs() -> Result<PathBuf> {
    let folder = place::target().join("bpf-build");
    run(kernel_cargo(Compiler::cargo, "build")?.args(["--release", "--target-dir"]).arg(&folder))?;
    let built = folder.join(TARGET).join("release/auditor-ebpf");
    let object = place::target().join("bpf/auditor.bpf.o");
    copy_if_changed(&built, &object)?;
    Ok(object)
}

/// Clippy over the kernel programs, for the target that they run on.
pub(crate) fn lint_kernel_programs() -> Result<()> {
    let folder = place::target().join("bpf-build");
    run(kernel_cargo(Compiler::clippy, "clippy")?
        .args(["--release", "--target-dir"])
        .arg(&folder)
        .args(["--", "-Dwarnings"]))
}

fn build_binary(profile: Profile) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--package", "auditor", "--bins"]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    run(&mut command)?;
    Ok(place::target().join(if profile == Profile::Release { "release" } else { "debug" }).join("auditor"))
}

/// A cargo call on the kernel programs with compiler, linker and flags in place.
fn kernel_cargo(program: fn(&Compiler) -> Command, subcommand: &str) -> Result<Command> {
    let Some(compiler) = Compiler::find() else {
        bail!("no compiler for {TARGET} here: run `cargo xtask setup`");
    };
    let Some(linker) = toolchain::linker(compiler.llvm()?)? else {
        bail!("bpf-linker is not built yet: run `cargo xtask setup`");
    };
    let linker_folder = linker.parent().context("the linker has no folder")?.to_path_buf();
    // bpf_target_arch is the host's: it selects the layout of pt_regs, and aya-ebpf wants it said.
    let architecture = format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH);
    let flags = ["-Clinker=bpf-linker", "-Clink-arg=--btf", "-Cdebuginfo=2", architecture.as_str()];
    let mut command = program(&compiler);
    command
        .args([subcommand, "--package", "auditor-ebpf", "--target", TARGET])
        .args(compiler.arguments())
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        // bpf-linker sees the whole program; a link-time optimisation before it would be done twice.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("PATH", path_with(&[linker_folder])?);
    Ok(command)
}

fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    match fs::read(to) {
        Ok(old) if old == new => return Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot read {}", to.display()));
        }
        Ok(_) | Err(_) => {}
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}
