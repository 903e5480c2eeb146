//! A PgBouncer in front of a [`Postgres`]: the least that any gateway between agent and database costs.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::child::{self, Child};
use crate::place;
use crate::postgres::{Postgres, free_port};

/// A running PgBouncer in session mode, which changes nothing that a client can see.
#[derive(Debug)]
pub struct Pgbouncer {
    _server: Child,
    _folder: TempDir,
    port: u16,
}

impl Pgbouncer {
    /// Starts it in front of `postgres`.
    ///
    /// # Errors
    /// It is not installed or does not start.
    pub fn start(postgres: &Postgres) -> Result<Self> {
        let program = PathBuf::from("/usr/sbin/pgbouncer");
        if !program.is_file() {
            bail!("{} is not installed: run `cargo xtask setup`", program.display());
        }
        let user = child::find_user(&["postgres", crate::UNPRIVILEGED])?;
        let folder = place::scratch()?;
        chown(folder.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).context("chown")?;
        let port = free_port()?;
        let users = folder.path().join("users");
        let configuration = folder.path().join("pgbouncer.ini");
        fs::write(&users, "\"postgres\" \"\"\n").context("cannot write PgBouncer's users")?;
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = session\nlogfile = {}\n\
             max_client_conn = 200\ndefault_pool_size = 100\n",
            postgres.port(),
            users.display(),
            folder.path().join("log").display(),
        );
        fs::write(&configuration, text).context("cannot write PgBouncer's configuration")?;
        let mut command = Command::new(program);
        command.arg("--quiet").arg(&configuration).current_dir(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Child::start(child::as_user(&mut command, &user), Signal::SIGTERM)?;
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if server.ended()?.is_some() || start.elapsed() > Duration::from_secs(10) {
                let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
                bail!("PgBouncer does not accept connections: {log}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { _server: server, _folder: folder, port })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}
