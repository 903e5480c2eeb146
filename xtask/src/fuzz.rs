//! Runs a fuzz target of `fuzz/` for a while.

use std::process::Command;

use anyhow::Result;

use crate::build;
use crate::invocation::run;
use crate::setup;

/// Fuzzes `target` for `seconds`; a crash is an error, and its input is under `fuzz/artifacts`.
pub(crate) fn fuzz(target: &str, seconds: u32) -> Result<()> {
    // The library that is fuzzed carries the kernel programs.
    setup::build_tools()?;
    build::build_kernel_programs()?;
    let program = setup::ensure_cargo_tool("cargo-fuzz")?;
    let mut command = Command::new(program);
    command.args([
        "fuzz",
        "run",
        target,
        "--",
        &format!("-max_total_time={seconds}"),
        "-print_final_stats=1",
    ]);
    // The sanitizers are not stable; with this the tree's own toolchain does, and no second one is needed.
    command.env("RUSTC_BOOTSTRAP", "1");
    run(command.current_dir(auditor_tests::place::tree()))
}
