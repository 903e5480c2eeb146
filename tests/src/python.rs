//! Python with the drivers that `cargo xtask setup` installed, where an unprivileged user can read them.
//!
//! The cache is in root's home, which nobody else may enter. So the packages are copied into the test's own folder, and the
//! distribution's interpreter is told where they are.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::child;
use crate::place;

/// An interpreter and its packages.
#[derive(Debug)]
pub struct Python {
    interpreter: PathBuf,
    packages: PathBuf,
}

/// The virtual environment that `cargo xtask setup` makes.
///
/// # Errors
/// There is no cache folder.
pub fn environment() -> Result<PathBuf> {
    Ok(place::cache()?.join("python"))
}

/// The other one, with database drivers that bring their own TLS or use the interpreter's. It is of its own because every
/// test that needs Python copies what it needs.
///
/// # Errors
/// There is no cache folder.
pub fn drivers() -> Result<PathBuf> {
    Ok(place::cache()?.join("python-drivers"))
}

/// One of its own for a driver that brings OpenSSL 1.1 along, which another release of the same name must not replace.
///
/// # Errors
/// There is no cache folder.
pub fn openssl_11() -> Result<PathBuf> {
    Ok(place::cache()?.join("python-openssl-1.1"))
}

/// The one with clients and servers of HTTP.
///
/// # Errors
/// There is no cache folder.
pub fn http() -> Result<PathBuf> {
    Ok(place::cache()?.join("python-http"))
}

/// One of its own for drivers of MySQL's protocol.
///
/// # Errors
/// There is no cache folder.
pub fn mysql_drivers() -> Result<PathBuf> {
    Ok(place::cache()?.join("python-mysql"))
}

/// And one with a client of Redis.
///
/// # Errors
/// There is no cache folder.
pub fn redis() -> Result<PathBuf> {
    Ok(place::cache()?.join("python-redis"))
}

impl Python {
    /// Copies the packages into `folder`, once.
    ///
    /// # Errors
    /// They are not installed.
    pub fn new(folder: &Path) -> Result<Self> {
        Self::of(&environment()?, "psycopg", folder)
    }

    /// The same with all drivers.
    ///
    /// # Errors
    /// They are not installed.
    pub fn with_drivers(folder: &Path) -> Result<Self> {
        Self::of(&drivers()?, "psycopg", folder)
    }

    /// The one whose driver brings OpenSSL 1.1 along.
    ///
    /// # Errors
    /// It is not installed.
    pub fn with_openssl_11(folder: &Path) -> Result<Self> {
        Self::of(&openssl_11()?, "psycopg2", folder)
    }

    /// The same, with RHEL 8's build of OpenSSL 1.1 in the place of the driver's own: that of another driver's wheel.
    ///
    /// # Errors
    /// They are not installed.
    pub fn with_openssl_of_rhel_8(folder: &Path) -> Result<Self> {
        let python = Self::with_openssl_11(folder)?;
        let own = python.packages.join("psycopg2_binary.libs");
        let others = python.packages.join("pymssql.libs");
        for entry in fs::read_dir(&others).with_context(|| format!("no {}", others.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            fs::copy(entry.path(), own.join(&name))?;
            let name = name.to_string_lossy();
            let Some(library) =
                ["libssl-", "libcrypto-"].into_iter().find(|library| name.starts_with(library))
            else {
                continue;
            };
            // The file is one whatever it is called, so the driver's libpq and this libssl have one libcrypto.
            let replaced = fs::read_dir(&own)?.flatten().map(|entry| entry.file_name());
            let replaced =
                replaced.filter(|old| old.to_string_lossy().starts_with(library) && **old != *name);
            for old in replaced.collect::<Vec<_>>() {
                fs::remove_file(own.join(&old))?;
                symlink(&*name, own.join(&old))?;
            }
        }
        Ok(python)
    }

    /// The same with what speaks HTTP.
    ///
    /// # Errors
    /// It is not installed.
    pub fn with_http(folder: &Path) -> Result<Self> {
        Self::of(&http()?, "httpx", folder)
    }

    /// The same with the drivers of MySQL's protocol.
    ///
    /// # Errors
    /// They are not installed.
    pub fn with_mysql_drivers(folder: &Path) -> Result<Self> {
        Self::of(&mysql_drivers()?, "pymysql", folder)
    }

    /// The one with a client of Redis.
    ///
    /// # Errors
    /// It is not installed.
    pub fn with_redis(folder: &Path) -> Result<Self> {
        Self::of(&redis()?, "redis", folder)
    }

    /// `driver`: a package by which the right folder is known.
    fn of(environment: &Path, driver: &str, folder: &Path) -> Result<Self> {
        // The link leads to the interpreter that the environment was made with.
        let interpreter = environment
            .join("bin/python3")
            .canonicalize()
            .context("no virtual environment: run `cargo xtask setup`")?;
        let packages = folder.join("python");
        if packages.is_dir() {
            return Ok(Self { interpreter, packages });
        }
        let library = environment.join("lib");
        let installed = fs::read_dir(&library)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("site-packages"))
            .find(|path| path.join(driver).is_dir());
        let Some(installed) = installed else {
            bail!("{driver} is not in {}: run `cargo xtask setup`", library.display());
        };
        let mut copy = Command::new("cp");
        copy.args(["--recursive", "--no-preserve=ownership"]).arg(&installed).arg(&packages);
        child::succeed(&mut copy, Duration::from_secs(60))?;
        Ok(Self { interpreter, packages })
    }

    /// The words that run `script` with `arguments`.
    pub fn words(&self, script: &Path, arguments: &[&str]) -> Vec<OsString> {
        let mut path = OsString::from("PYTHONPATH=");
        path.push(&self.packages);
        let mut words = vec!["/usr/bin/env".into(), path, self.interpreter.clone().into()];
        // -B: an agent has no business writing into the test's folder.
        words.extend(["-B".into(), script.into()]);
        words.extend(arguments.iter().map(OsString::from));
        words
    }
}
