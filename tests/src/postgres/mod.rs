//! A PostgreSQL server that lives as long as a value: own data folder, own port on 127.0.0.1 and ::1, own socket folder.
//!
//! It runs as an unprivileged user, because PostgreSQL refuses to be root. It logs each statement to a CSV file
//! ([`log`]), which is the oracle of the tests: what the server says it was told, independent of what the auditor saw.
//! Durability is off: nothing in it outlives the test.

pub mod log;

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::User;
use tempfile::TempDir;

use crate::child::{self, Child};
use crate::place;

/// What start-up and shutdown of a small cluster may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
/// Tries to find a port that nobody takes between our look and the server's start.
const TRIES: usize = 5;

/// How a server shall be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether each statement goes into the server's log.
    pub log_statements: bool,
    /// Further settings, as in postgresql.conf.
    pub settings: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { log_statements: true, settings: Vec::new() }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    // Dropped first: the server must have ended before its folder goes.
    server: Child,
    folder: TempDir,
    programs: PathBuf,
    port: u16,
}

impl Postgres {
    /// Makes a cluster and starts it.
    ///
    /// # Errors
    /// PostgreSQL is not installed or does not start; its log is part of the error.
    pub fn start(options: &Options) -> Result<Self> {
        let programs = programs()?;
        let user = child::find_user(&["postgres", crate::UNPRIVILEGED])?;
        let folder = place::scratch()?;
        for name in ["log", "socket"] {
            let path = folder.path().join(name);
            fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
            chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).context("chown")?;
        }
        make_cluster(&programs, &user, folder.path())?;
        for _ in 0..TRIES {
            let port = free_port()?;
            configure(folder.path(), port, options)?;
            if let Some(server) = launch(&programs, &user, folder.path(), port)? {
                return Ok(Self { server, folder, programs, port });
            }
        }
        bail!("PostgreSQL did not start: {}", said(folder.path()))
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The postmaster's process id.
    pub fn id(&self) -> u32 {
        self.server.id()
    }

    /// The path of one of PostgreSQL's own programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The folder of its unix socket.
    pub fn socket_folder(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Runs SQL over the unix socket, outside any agent's session; returns rows as psql prints them unaligned.
    ///
    /// # Errors
    /// A statement failed.
    pub fn sql(&self, text: &str) -> Result<String> {
        let mut command = Command::new(self.program("psql"));
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres"]);
        command.arg("-h").arg(self.socket_folder()).args(["-p", &self.port.to_string(), "-c", text]);
        child::succeed(&mut command, LIMIT)
    }

    /// Changes a setting that needs no restart; connections made from now on have it.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        self.sql(&format!("alter system set {name} = '{value}'"))?;
        self.sql("select pg_reload_conf()")?;
        let start = Instant::now();
        while self.sql(&format!("show {name}"))?.trim() != value {
            if start.elapsed() > LIMIT {
                bail!("PostgreSQL did not take {name} = {value}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Everything that the server logged up to now.
    ///
    /// The server writes through a collector process. A marker that comes out at its end proves that all before it is there.
    ///
    /// # Errors
    /// The log cannot be read, or the marker does not appear.
    pub fn log(&self) -> Result<Vec<log::Entry>> {
        let marker = format!("harness marker {:?}", Instant::now());
        self.sql(&format!("do $$ begin raise log '{marker}'; end $$"))?;
        let start = Instant::now();
        loop {
            let path = self.folder.path().join("log/postgresql.csv");
            let entries =
                log::parse(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?)?;
            if entries.iter().any(|entry| entry.message == marker) {
                return Ok(entries);
            }
            if start.elapsed() > LIMIT {
                bail!("PostgreSQL's log does not come forward: no marker after {} s", LIMIT.as_secs());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A TCP port that is free on 127.0.0.1 and ::1 at the moment.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    for _ in 0..100 {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr())?.port();
        match TcpListener::bind(("::1", port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            _ => return Ok(port),
        }
    }
    bail!("no TCP port is free")
}

/// PostgreSQL's own programs: Debian keeps each version's server apart from PATH.
///
/// # Errors
/// It is not installed.
pub fn programs() -> Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort();
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let newest_first = versions.into_iter().rev().map(|(_, folder)| folder);
    newest_first
        .chain(std::env::split_paths(&in_path))
        .find(|folder| ["initdb", "postgres", "pgbench"].iter().all(|name| folder.join(name).is_file()))
        .context("PostgreSQL's server is not installed: run `cargo xtask setup`")
}

/// initdb takes seconds, a copy of its result a tenth of one: the first cluster becomes the template of the next.
fn make_cluster(programs: &Path, user: &User, folder: &Path) -> Result<()> {
    let data = folder.join("data");
    let version = child::succeed(Command::new(programs.join("postgres")).arg("--version"), LIMIT)?;
    let version: String = version.chars().filter(|c| c.is_ascii_digit() || *c == '.').collect();
    let template = place::target().join(format!("test-cache/postgres-{version}"));
    if template.is_dir() {
        return copy(&template, &data);
    }
    fs::create_dir(&data).context("cannot make the data folder")?;
    chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw())).context("chown")?;
    let mut initdb = Command::new(programs.join("initdb"));
    initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "-D"]);
    child::succeed(child::as_user(initdb.arg(&data), user).current_dir(folder), LIMIT)?;
    // Another test may be doing the same: whoever renames last loses, and loses nothing.
    let own = template.with_extension(format!("{}-{}", version.len(), std::process::id()));
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

fn configure(folder: &Path, port: u16, options: &Options) -> Result<()> {
    let mut settings: Vec<(&str, String)> = vec![
        ("listen_addresses", "127.0.0.1, ::1".to_owned()),
        ("port", port.to_string()),
        ("unix_socket_directories", folder.join("socket").display().to_string()),
        ("max_connections", "250".to_owned()),
        // Some containers have no /dev/shm that the server's user may write.
        ("dynamic_shared_memory_type", "mmap".to_owned()),
        ("fsync", "off".to_owned()),
        ("full_page_writes", "off".to_owned()),
        ("synchronous_commit", "off".to_owned()),
        ("logging_collector", "on".to_owned()),
        ("log_destination", "csvlog".to_owned()),
        ("log_directory", folder.join("log").display().to_string()),
        ("log_filename", "postgresql.log".to_owned()),
        ("log_rotation_age", "0".to_owned()),
        ("log_rotation_size", "0".to_owned()),
        ("log_statement", if options.log_statements { "all" } else { "none" }.to_owned()),
        ("log_timezone", "UTC".to_owned()),
        ("lc_messages", "C".to_owned()),
    ];
    settings.extend(options.settings.iter().map(|(name, value)| (name.as_str(), value.clone())));
    let text: String =
        settings.iter().map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''"))).collect();
    fs::write(folder.join("data/postgresql.conf"), text).context("cannot write postgresql.conf")
}

/// Starts the server; `None` if it ended at once, as it does when the port is taken.
fn launch(programs: &Path, user: &User, folder: &Path, port: u16) -> Result<Option<Child>> {
    let startup = fs::File::create(folder.join("startup.log")).context("cannot write startup.log")?;
    let mut command = Command::new(programs.join("postgres"));
    command.arg("-D").arg(folder.join("data")).current_dir(folder).stdin(Stdio::null());
    command.stdout(startup.try_clone().context("startup.log")?).stderr(startup);
    // SIGINT: PostgreSQL's fast shutdown, which also ends the connections that are open.
    let mut server = Child::start(child::as_user(&mut command, user), Signal::SIGINT)?;
    let mut ready = Command::new(programs.join("pg_isready"));
    ready.arg("-q").arg("-h").arg(folder.join("socket")).args(["-p", &port.to_string()]);
    let answers = || Ok(child::output(&mut ready, LIMIT)?.status.success());
    Ok(server.comes_up(LIMIT, answers).with_context(|| said(folder))?.then_some(server))
}

/// What the server said, for an error message.
fn said(folder: &Path) -> String {
    ["startup.log", "log/postgresql.csv"]
        .iter()
        .filter_map(|name| fs::read_to_string(folder.join(name)).ok())
        .collect::<Vec<_>>()
        .join("\n")
}
