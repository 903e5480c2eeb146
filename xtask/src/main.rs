//! Work on the auditor: set up a machine, build, demonstrate, test and measure.
//!
//! Everything that a contributor or a CI machine does to this tree is a subcommand here, so that there is one way to do it
//! and it is written in a language that the rest of the tree is written in. Run as `cargo xtask COMMAND`.

mod build;
mod invocation;

mod toolchain;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Work on the auditor: set up, build, demonstrate, test and measure")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Builds the kernel programs, then the `auditor` binary that carries them
    Build {
        /// Optimise the binary (the kernel programs always are)
        #[arg(long)]
        release: bool,
    },
}

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Build { release } => {
            build::build(if release { build::Profile::Release } else { build::Profile::Dev }).map(drop)
        }
    }
}
