//! A MariaDB server that lives as long as a value: own data folder, own port on 127.0.0.1 and ::1, own socket.
//!
//! It runs as an unprivileged user and writes each command into its general log, a table here, which is the oracle of the tests: what
//! the server says it was told, independent of what the auditor saw. Durability is off: nothing in it outlives the test.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::User;
use tempfile::TempDir;

use crate::certificates::{Certificates, Key};
use crate::child::{self, Child};
use crate::place;
use crate::postgres::free_port;

/// What start-up of a small server, or a client's statement, may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
/// Tries to find a port that nobody takes between our look and the server's start.
const TRIES: usize = 5;

/// Who agents log in as, with which password, and the database that is theirs.
pub const USER: &str = "shopkeeper";
/// See [`USER`].
pub const PASSWORD: &str = "not-in-any-record";
/// See [`USER`].
pub const DATABASE: &str = "shop";

/// A running server.
#[derive(Debug)]
pub struct MariaDb {
    // Dropped first: the server must have ended before its folder goes.
    server: Child,
    folder: TempDir,
    port: u16,
    certificates: Certificates,
}

/// One line of the general log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The connection's number.
    pub connection: u64,
    /// What it calls the command.
    pub command: String,
    /// Its argument, verbatim, up to 400,000 characters.
    pub argument: String,
}

impl MariaDb {
    /// Makes a data folder and starts a server that logs each command, or none.
    ///
    /// # Errors
    /// MariaDB is not installed or does not start; its log is part of the error.
    pub fn start(log: bool) -> Result<Self> {
        let program = server()?;
        let user = child::find_user(&["mysql", crate::UNPRIVILEGED])?;
        let folder = place::scratch()?;
        let certificates = Certificates::new(folder.path(), Key::Rsa, &user)?;
        make_data(&program, &user, folder.path())?;
        for _ in 0..TRIES {
            let port = free_port()?;
            let settings = settings(folder.path(), port, log, &certificates);
            fs::write(folder.path().join("my.cnf"), settings).context("cannot write my.cnf")?;
            if let Some(server) = launch(&program, &user, folder.path())? {
                let started = Self { server, folder, port, certificates };
                started.sql(&format!(
                    "create database {DATABASE}; create user {USER}@'%' identified by '{PASSWORD}'; \
                     grant all on *.* to {USER}@'%'; truncate mysql.general_log"
                ))?;
                return Ok(started);
            }
        }
        bail!("MariaDB did not start: {}", said(folder.path()))
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process id.
    pub fn id(&self) -> u32 {
        self.server.id()
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket/mysqld.sock")
    }

    /// The authority of its certificate.
    pub fn authority(&self) -> PathBuf {
        self.certificates.authority()
    }

    /// Runs SQL over the unix socket, outside any agent's session; returns rows with tabs between columns.
    ///
    /// # Errors
    /// A statement failed.
    pub fn sql(&self, text: &str) -> Result<String> {
        let mut command = client(&self.socket());
        child::succeed(
            command.args(["--user=root", "--skip-column-names", "--batch", "--execute", text]),
            LIMIT,
        )
    }

    /// Everything that clients told it up to now, without what [`Self::sql`] has said.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> Result<Vec<Entry>> {
        let lines = self.sql(
            "select thread_id, command_type, hex(left(argument, 400000)) from mysql.general_log where user_host like '%shopkeeper%' \
             or command_type in ('Connect', 'Change user')",
        )?;
        let entry = |line: &str| {
            let mut fields = line.split('\t');
            let connection = fields.next()?.parse().ok()?;
            let command = fields.next()?.to_owned();
            let digits = fields.next()?.as_bytes();
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
            Some(Entry { connection, command, argument: String::from_utf8(bytes?).ok()? })
        };
        lines
            .lines()
            .map(|line| entry(line).with_context(|| format!("not a line of the log: {line}")))
            .collect()
    }
}

/// The server's program: Debian keeps it apart from users' PATH.
///
/// # Errors
/// It is not installed.
pub fn server() -> Result<PathBuf> {
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&in_path)
        .chain(["/usr/sbin".into(), "/usr/libexec".into()])
        .map(|folder| folder.join("mariadbd"))
        .find(|program| program.is_file())
        .context("MariaDB's server is not installed: run `cargo xtask setup`")
}

fn client(socket: &Path) -> Command {
    let mut command = Command::new("mariadb");
    command.args(["--no-defaults", "--socket"]).arg(socket);
    command
}

/// mariadb-install-db takes seconds, a copy of its result a tenth of one: the first folder becomes the template of the next.
fn make_data(program: &Path, user: &User, folder: &Path) -> Result<()> {
    for name in ["socket", "log"] {
        let path = folder.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).context("chown")?;
    }
    let data = folder.join("data");
    let version = child::succeed(Command::new(program).args(["--no-defaults", "--version"]), LIMIT)?;
    let version = version.split_whitespace().find(|word| word.contains("MariaDB")).unwrap_or("unknown");
    let template = place::target().join(format!("test-cache/mariadb-{version}"));
    if template.is_dir() {
        return copy(&template, &data);
    }
    let mut install = Command::new("mariadb-install-db");
    install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
    install.arg(format!("--user={}", user.name)).arg(format!("--datadir={}", data.display()));
    child::succeed(&mut install, LIMIT)?;
    // Another test may be doing the same: whoever renames last loses, and loses nothing.
    let own = template.with_extension(format!("{}", std::process::id()));
    fs::create_dir_all(place::target().join("test-cache")).context("cannot make the template folder")?;
    copy(&data, &own)?;
    if fs::rename(&own, &template).is_err() {
        fs::remove_dir_all(&own).with_context(|| format!("cannot remove {}", own.display()))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    child::succeed(Command::new("cp").arg("--archive").arg(from).arg(to), LIMIT).map(drop)
}

fn settings(folder: &Path, port: u16, log: bool, certificates: &Certificates) -> String {
    let path = |name: &str| folder.join(name).display().to_string();
    let settings = [
        ("datadir", path("data")),
        ("socket", path("socket/mysqld.sock")),
        ("pid-file", path("log/pid")),
        ("log-error", path("log/error.log")),
        ("port", port.to_string()),
        ("bind-address", "127.0.0.1,::1".to_owned()),
        ("ssl-cert", certificates.certificate().display().to_string()),
        ("ssl-key", certificates.key().display().to_string()),
        ("ssl-ca", certificates.authority().display().to_string()),
        ("general-log", if log { "1" } else { "0" }.to_owned()),
        ("log-output", "TABLE".to_owned()),
        ("log-bin", path("data/binlog")),
        ("server-id", "1".to_owned()),
        ("local-infile", "1".to_owned()),
        ("max-allowed-packet", "64M".to_owned()),
        ("character-set-server", "utf8mb4".to_owned()),
        ("innodb-flush-log-at-trx-commit", "0".to_owned()),
        ("innodb-buffer-pool-size", "32M".to_owned()),
        ("skip-name-resolve", "1".to_owned()),
    ];
    let lines = settings.iter().map(|(name, value)| format!("{name} = {value}\n"));
    ["[mariadbd]\n".to_owned()].into_iter().chain(lines).collect()
}

/// Starts the server; `None` if it ended at once, as it does when the port is taken.
fn launch(program: &Path, user: &User, folder: &Path) -> Result<Option<Child>> {
    let mut command = Command::new(program);
    command.arg(format!("--defaults-file={}", folder.join("my.cnf").display()));
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = Child::start(child::as_user(&mut command, user), Signal::SIGTERM)?;
    let mut ping = client(&folder.join("socket/mysqld.sock"));
    ping.args(["--user=root", "--execute", "select 1"]);
    let answers = || Ok(child::output(&mut ping, LIMIT)?.status.success());
    Ok(server.comes_up(LIMIT, answers).with_context(|| said(folder))?.then_some(server))
}

/// What the server said, for an error message.
fn said(folder: &Path) -> String {
    fs::read_to_string(folder.join("log/error.log")).unwrap_or_default()
}
