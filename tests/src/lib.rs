//! Harness: throwaway servers, networks, clients and daemons for the tests beside it, the demo and the benchmark.
//!
//! Everything here is real: PostgreSQL as the distribution ships it, drivers as their users have them, the kernel that
//! runs the test. Everything is of its own: own folders, own ports, own network namespaces, a daemon with its own state. And
//! everything ends with the value that owns it: a test that fails half-way leaves no process, no folder, no cgroup and no
//! pinned program behind.
//!
//! Assumed: Linux, root (tests say so when they are not), and what `cargo xtask setup` installs.

pub mod agent;
pub mod certificates;
pub mod cgroup;
pub mod child;
pub mod clients;
pub mod daemon;
pub mod mariadb;
pub mod namespace;
pub mod network;
pub mod nginx;
pub mod oracle;
pub mod pgbouncer;
pub mod place;
pub mod postgres;
pub mod python;
pub mod runtimes;
pub mod secrets;
pub mod shaper;
pub mod tls;
pub mod workload;

use anyhow::{Result, bail};

/// The user that agents and servers run as.
pub const UNPRIVILEGED: &str = "nobody";

/// Fails with the reason when the caller is not root. A test that cannot do its work must not pass.
///
/// # Errors
/// The caller is not root.
pub fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "this needs root: it loads kernel programs, makes cgroups and changes users (try `sudo -E cargo xtask test`)"
    )
}
