//! All checks that a change must pass, in the order in which they fail fastest.
//!
//! What CI runs is this and nothing else. The tests proper come last, so that their summary is the last thing on the screen.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::build::{self, Profile};
use crate::invocation::{cargo, run};
use crate::setup;

/// The crate that is no program of this host; it is linted for the target that it is built for.
const EXCEPT_KERNEL: [&str; 3] = ["--workspace", "--exclude", "auditor-ebpf"];

/// Sets up, builds, checks, tests. With `advisories` also asks the advisory database, which is fetched from the network.
pub(crate) fn test(advisories: bool) -> Result<()> {
    auditor_tests::require_root()?;
    step("set-up", setup::setup)?;
    step("format", || run(cargo().args(["fmt", "--all", "--check"])))?;
    step("build", || build::build(Profile::Dev).map(drop))?;
    step("clippy, kernel programs", build::lint_kernel_programs)?;
    step("clippy", || {
        run(cargo().arg("clippy").args(EXCEPT_KERNEL).args(["--all-targets", "--", "-Dwarnings"]))
    })?;
    step("dependencies", || check_dependencies(advisories))?;
    step("documentation", || {
        // For readers of this tree, so a link to a private item is a good link.
        let flags = "-Dwarnings -Arustdoc::private_intra_doc_links";
        let arguments = ["--no-deps", "--document-private-items"];
        run(cargo().arg("doc").args(EXCEPT_KERNEL).args(arguments).env("RUSTDOCFLAGS", flags))
    })?;
    step("tests", || {
        let nextest = setup::ensure_cargo_tool("cargo-nextest")?;
        let mut command = std::process::Command::new(nextest);
        command.args(["nextest", "run"]).args(EXCEPT_KERNEL).arg("--no-fail-fast");
        run(command.current_dir(auditor_tests::place::tree()))
    })
}

fn check_dependencies(advisories: bool) -> Result<()> {
    let deny = setup::ensure_cargo_tool("cargo-deny")?;
    let mut command = std::process::Command::new(deny);
    command.args(["--workspace", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]);
    if advisories {
        command.arg("advisories");
    }
    run(command.current_dir(auditor_tests::place::tree()))
}

fn step(name: &str, perform: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    perform().context(name.to_owned())?;
    eprintln!("test: {name}: passed in {} s", start.elapsed().as_secs());
    Ok(())
}
