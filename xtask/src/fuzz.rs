//! Runs a fuzz target of `fuzz/` for a while.
//!
//! It begins with the inputs of `fuzz/seeds`, which belong to the tree, and with what earlier runs found, which does not
//! (`fuzz/corpus`).

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::build;
use crate::invocation::run;
use crate::setup;

/// Fuzzes `target` for `seconds`; a crash is an error, and its input is under `fuzz/artifacts`.
pub(crate) fn fuzz(target: &str, seconds: u32) -> Result<()> {
    let tree = auditor_tests::place::tree();
    let seeds = tree.join("fuzz/seeds").join(target);
    ensure!(seeds.is_dir(), "no fuzz target {target}: each has its folder in fuzz/seeds");
    // The library that is fuzzed carries the kernel programs.
    setup::build_tools()?;
    build::build_kernel_programs()?;
    let program = setup::ensure_cargo_tool("cargo-fuzz")?;
    let corpus = tree.join("fuzz/corpus").join(target);
    fs::create_dir_all(&corpus).with_context(|| format!("create {}", corpus.display()))?;
    let mut command = Command::new(program);
    command.args(["fuzz", "run", target]).args([corpus, seeds]);
    command.args(["--", &format!("-max_total_time={seconds}"), "-print_final_stats=1"]);
    // The sanitizers are not stable; with this the tree's own toolchain does, and no second one is needed.
    command.env("RUSTC_BOOTSTRAP", "1");
    run(command.current_dir(tree))
}
