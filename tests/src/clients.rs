//! The clients that tests, demo and benchmark run: scripts of `tests/clients`, where an unprivileged user can read them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What psql sends: DDL, DML, comments, dollar quotes, several statements in a message, errors, COPY.
pub const STATEMENTS: &str = include_str!("../clients/statements.sql");
/// What a program sends with psycopg: parameters, prepared statements, a pipeline, COPY, a server-side cursor.
pub const DRIVER: &str = include_str!("../clients/driver.py");
/// Tries destinations and prints what the kernel said.
pub const ATTEMPT: &str = include_str!("../clients/attempt.py");
/// What an agent may try against the verdict and the record, one function an attack.
pub const ATTACK: &str = include_str!("../clients/attack.py");
/// What a command may try where no hook of a cgroup looks.
pub const CONFINED: &str = include_str!("../clients/confined.py");
/// Agents that flood, and one that is quiet.
pub const FLOOD: &str = include_str!("../clients/flood.py");
/// Tries unix sockets and prints what the kernel said.
pub const UNIX: &str = include_str!("../clients/unix.py");
/// Says something to PostgreSQL on its unix socket by every way there is.
pub const UNIX_WAYS: &str = include_str!("../clients/unix_ways.py");
/// Does what it is told, line by line: see [`crate::agent`].
pub const AGENT: &str = include_str!("../clients/agent.py");
/// Talks over TLS with one of many drivers.
pub const TLS: &str = include_str!("../clients/tls_client.py");
/// Asks an HTTP server with httpx.
pub const HTTPX: &str = include_str!("../clients/http_client.py");
/// Asks an HTTP server with what node brings along.
pub const NODE_HTTP: &str = include_str!("../clients/http_client.js");
/// A proxy that makes tunnels.
pub const HTTP_PROXY: &str = include_str!("../clients/http_proxy.py");
/// A gRPC server that tells what it was asked.
pub const GRPC_SERVER: &str = include_str!("../clients/grpc_server.py");
/// A gRPC client.
pub const GRPC_CLIENT: &str = include_str!("../clients/grpc_client.py");
/// What a program sends to Redis with redis-py.
pub const REDIS_PY: &str = include_str!("../clients/redis_client.py");
/// What a program sends to Redis with ioredis.
pub const IOREDIS: &str = include_str!("../clients/redis_client.js");
/// What redis-cli sends.
pub const REDIS_CLI: &str = include_str!("../clients/redis.txt");
/// The demo's script for psql.
pub const DEMO_SQL: &str = include_str!("../clients/demo.sql");
/// The demo's program.
pub const DEMO_PROGRAM: &str = include_str!("../clients/demo.py");

/// Writes a client's file into `folder`.
///
/// # Errors
/// It cannot be written.
pub fn write(folder: &Path, name: &str, content: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The words of a command that first tells its process id on stderr, as the clients in Python do.
pub fn telling_pid(words: &[OsString]) -> Vec<OsString> {
    let mut all: Vec<OsString> =
        ["/bin/sh", "-c", "echo pid $$ >&2; exec \"$@\"", "sh"].map(Into::into).into();
    all.extend(words.iter().cloned());
    all
}

/// The process id that a client told.
///
/// # Errors
/// It told none.
pub fn pid_told(stderr: &[u8]) -> Result<u32> {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().find_map(|line| line.strip_prefix("pid "));
    line.and_then(|pid| pid.trim().parse().ok()).with_context(|| format!("no process id in: {text}"))
}
