//! Work on the auditor: set up a machine, build, demonstrate, test and measure.
//!
//! Everything that a contributor or a CI machine does to this tree is a subcommand here, so that there is one way to do it
//! and it is written in a language that the rest of the tree is written in. Run as `cargo xtask COMMAND`.

mod apt;
mod bench;
mod build;
mod demo;
mod fuzz;
mod invocation;
mod runtimes;
mod setup;
mod test;
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
    /// Installs what building, testing and demonstrating need; says nothing when all is there
    Setup,
    /// Builds the kernel programs, then the `auditor` binary that carries them
    Build {
        /// Optimise the binary (the kernel programs always are)
        #[arg(long)]
        release: bool,
    },
    /// Shows the main job end to end: a database, an agent, its trail
    Demo,
    /// Runs every check that a change must pass
    Test {
        /// Ask the advisory database too; it is fetched from the network
        #[arg(long)]
        advisories: bool,
    },
    /// Measures, with an optimised build
    #[command(subcommand)]
    Bench(Bench),
    /// Runs a fuzz target
    Fuzz {
        /// Name of the target in fuzz/
        target: String,
        /// For how long
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Throughput of a database client with the auditor, and with what else is usual, against none
    Overhead(bench::Overhead),
    /// Statements and bytes a second that one core decodes, from captures of real clients
    Decode(bench::decode::Decode),
    /// Time to know what a statement means, and commands of Redis a second, in one thread from memory
    Classify,
    /// Bytes a second that one core decrypts, by cipher suite
    Decrypt,
    /// Records a second that one core appends and seals, and verifies
    Trail,
    /// Speed of large transfers with the auditor against none
    Transfer(bench::Transfer),
    /// Throughput and handshakes over TLS with the auditor, and with the server's own log, against none
    Tls(bench::Tls),
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
        Task::Setup => setup::setup(),
        Task::Build { release } => {
            setup::build_tools()?;
            let profile = if release { build::Profile::Release } else { build::Profile::Dev };
            build::build(profile).map(drop)
        }
        Task::Demo => demo::demo(),
        Task::Bench(Bench::Overhead(options)) => bench::overhead(&options),
        Task::Bench(Bench::Decode(options)) => bench::decode::decode(&options),
        Task::Bench(Bench::Classify) => bench::classify(),
        Task::Bench(Bench::Decrypt) => bench::decrypt(),
        Task::Bench(Bench::Trail) => bench::trail(),
        Task::Bench(Bench::Transfer(options)) => bench::transfer(&options),
        Task::Bench(Bench::Tls(options)) => bench::tls(&options),
        Task::Test { advisories } => test::test(advisories),
        Task::Fuzz { target, seconds } => fuzz::fuzz(&target, seconds),
    }
}
