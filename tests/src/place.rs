//! Where things are: the tree, its target folder, the built program, and the cache that outlives a `cargo clean`.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// The root of this tree. The harness is built from the tree that it tests, so the path is known when it is compiled.
pub fn tree() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => tree().join(folder),
        None => tree().join("target"),
    }
}

/// The `auditor` program of a profile's folder (`debug`, `release`), as `cargo xtask build` leaves it.
///
/// # Errors
/// It is not built.
pub fn auditor(profile: &str) -> Result<PathBuf> {
    let path = target().join(profile).join("auditor");
    if !path.is_file() {
        bail!("{} is not built: run `cargo xtask build`", path.display());
    }
    Ok(path)
}

/// Things that take long to make live here, by name and version: `$XDG_CACHE_HOME/auditor` or `~/.cache/auditor`.
///
/// # Errors
/// Neither variable names a place.
pub fn cache() -> Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    if let Some(folder) = absolute("XDG_CACHE_HOME") {
        return Ok(folder.join("auditor"));
    }
    match absolute("HOME") {
        Some(home) => Ok(home.join(".cache/auditor")),
        None => bail!("no place for the cache: set HOME or XDG_CACHE_HOME to an absolute path"),
    }
}

/// A folder of its own that every user may enter and that is gone when the value is dropped.
///
/// # Errors
/// The temporary folder cannot be written.
pub fn scratch() -> Result<TempDir> {
    scratch_in(&env::temp_dir())
}

/// The same in memory, as `/run` is on most hosts; on disk where there is no `/dev/shm`.
///
/// # Errors
/// As for [`scratch`].
pub fn volatile_scratch() -> Result<TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { scratch_in(memory) } else { scratch() }
}

fn scratch_in(parent: &Path) -> Result<TempDir> {
    let folder =
        tempfile::Builder::new().prefix("auditor-test-").tempdir_in(parent).context("no scratch folder")?;
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).context("scratch folder's mode")?;
    Ok(folder)
}
