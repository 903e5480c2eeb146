//! Debian's packages, installed without side effects on the host that they are installed on.
//!
//! Debian starts a server when its package is installed, and lets it start at boot. On somebody's machine we want the
//! programs only. So while packages are installed, `policy-rc.d` forbids to start services and PostgreSQL's packages are told to
//! make no cluster; services that came with them are then disabled. Both files are put back as they were, also when the
//! installation fails.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};

use crate::invocation::{capture, find};

/// Asked by Debian's maintainer scripts before they start a service; 101 says no.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Read by postgresql-common when a version of the server is installed.
const CLUSTER_SETTINGS: &str = "/etc/postgresql-common/createcluster.d";

/// Whether this is a host with apt.
pub(crate) fn available() -> bool {
    find("apt-get").is_some() && find("dpkg-query").is_some()
}

/// Whether a package is installed.
pub(crate) fn installed(package: &str) -> bool {
    capture(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// Whether the distribution has a package, by the lists that are here.
pub(crate) fn known(package: &str) -> bool {
    capture(Command::new("apt-cache").args(["show", "--no-all-versions", package]))
        .is_ok_and(|text| !text.is_empty())
}

/// Brings the package lists up to date, once in this process: old lists name versions that are gone.
pub(crate) fn update() -> Result<()> {
    static DONE: AtomicBool = AtomicBool::new(false);
    require_root("apt-get update")?;
    if !DONE.swap(true, Ordering::Relaxed) {
        capture(Command::new("apt-get").args(["update", "--quiet"]))?;
    }
    Ok(())
}

/// Installs packages; removes none, and starts no service.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    require_root(&format!("apt-get install {}", packages.join(" ")))?;
    update()?;
    let services = Replaced::new(Path::new(POLICY), "#!/bin/sh\nexit 101\n", 0o755)?;
    let clusters_folder = Made::new(Path::new(CLUSTER_SETTINGS))?;
    let setting = Path::new(CLUSTER_SETTINGS).join("auditor-setup.conf");
    let clusters = Replaced::new(&setting, "create_main_cluster = false\n", 0o644)?;
    let before = enabled_services();
    let done = capture(
        Command::new("apt-get")
            .args(["install", "--yes", "--quiet", "--no-install-recommends", "--no-remove"])
            .args(["--option=Dpkg::Options::=--force-confold", "--option=DPkg::Lock::Timeout=300"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    );
    let disabled = disable_new(&before);
    clusters.restore()?;
    clusters_folder.restore()?;
    services.restore()?;
    done.with_context(|| format!("cannot install {}", packages.join(" ")))?;
    disabled
}

/// Fetches a package and unpacks it into `folder` without installing it: for files that nobody else on this host shall see.
pub(crate) fn unpack(package: &str, folder: &Path) -> Result<()> {
    update()?;
    let fetched = auditor_tests::place::scratch()?;
    // apt drops its privileges for this and then cannot write into a folder of root's.
    let fetch = ["download", "--quiet", "--option=APT::Sandbox::User=root", package];
    capture(Command::new("apt-get").args(fetch).current_dir(fetched.path()))?;
    let mut archives = fs::read_dir(fetched.path()).context("the fetched package")?.flatten();
    let archive = archives.next().with_context(|| format!("apt-get download {package} left no file"))?;
    capture(Command::new("dpkg-deb").arg("--extract").arg(archive.path()).arg(folder)).map(drop)
}

fn require_root(call: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!("`{call}` needs root: run this as root once")
}

/// Services of our packages that start at boot. Where systemd is not installed there are none.
fn enabled_services() -> Vec<String> {
    let candidates = ["postgresql.service", "pgbouncer.service", "mariadb.service"];
    let enabled = |unit: &&str| capture(Command::new("systemctl").args(["is-enabled", unit])).is_ok();
    candidates
        .iter()
        .filter(|unit| find("systemctl").is_some() && enabled(unit))
        .map(ToString::to_string)
        .collect()
}

fn disable_new(before: &[String]) -> Result<()> {
    let new: Vec<String> = enabled_services().into_iter().filter(|unit| !before.contains(unit)).collect();
    if new.is_empty() {
        return Ok(());
    }
    capture(Command::new("systemctl").args(["disable", "--quiet"]).args(&new)).map(drop)
}

/// A file whose content is another one for a while. What was there waits beside it, so that it can also be put back by the
/// next run if this one is killed.
struct Replaced {
    path: PathBuf,
    aside: PathBuf,
    done: bool,
}

impl Replaced {
    fn new(path: &Path, content: &str, mode: u32) -> Result<Self> {
        let mut name = path.file_name().unwrap_or(OsStr::new("file")).to_os_string();
        name.push(".auditor-setup-saved");
        let replaced = Self { path: path.to_path_buf(), aside: path.with_file_name(name), done: false };
        let describe = || format!("cannot replace {} for the installation", path.display());
        // A saved file is the host's; what is in its place is what a killed run left.
        if !replaced.aside.exists() {
            rename_if_there(path, &replaced.aside).with_context(describe)?;
        }
        fs::write(path, content).with_context(describe)?;
        fs::set_permissions(path, Permissions::from_mode(mode)).with_context(describe)?;
        Ok(replaced)
    }

    fn restore(mut self) -> Result<()> {
        self.done = true;
        self.put_back()
    }

    fn put_back(&self) -> Result<()> {
        let describe = || format!("cannot put {} back", self.path.display());
        fs::remove_file(&self.path).with_context(describe)?;
        rename_if_there(&self.aside, &self.path).with_context(describe)
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = self.put_back()
        {
            eprintln!("setup: {error:#}");
        }
    }
}

fn rename_if_there(from: &Path, to: &Path) -> std::io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Folders that are there for a while: those of `path` that did not exist before, deepest first.
struct Made(Vec<PathBuf>);

impl Made {
    fn new(path: &Path) -> Result<Self> {
        let missing = path.ancestors().take_while(|folder| !folder.exists()).map(Path::to_path_buf).collect();
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(missing))
    }

    fn restore(self) -> Result<()> {
        for folder in &self.0 {
            match fs::remove_dir(folder) {
                // The packages have put something into it.
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => return Ok(()),
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_comes_back() {
        let folder = auditor_tests::place::scratch().unwrap();
        let path = folder.path().join("policy");
        fs::write(&path, "theirs").unwrap();
        let replaced = Replaced::new(&path, "ours", 0o755).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "ours");
        replaced.restore().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_run_left_does_not_become_the_hosts_file() {
        let folder = auditor_tests::place::scratch().unwrap();
        let path = folder.path().join("policy");
        fs::write(&path, "theirs").unwrap();
        std::mem::forget(Replaced::new(&path, "ours", 0o755).unwrap());
        Replaced::new(&path, "ours again", 0o755).unwrap().restore().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
    }

    #[test]
    fn a_file_that_was_not_there_is_gone_afterwards() {
        let folder = auditor_tests::place::scratch().unwrap();
        let deep = folder.path().join("a/b");
        let made = Made::new(&deep).unwrap();
        drop(Replaced::new(&deep.join("setting"), "ours", 0o644).unwrap());
        made.restore().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
