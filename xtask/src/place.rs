//! Where things are: the tree, its target folder, and the cache that outlives a `cargo clean`.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The root of this tree. An xtask is built from the tree that it works on, so the path is known when it is compiled.
pub(crate) fn tree() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => tree().join(folder),
        None => tree().join("target"),
    }
}

/// Tools that take long to build live here, by name and version: `$XDG_CACHE_HOME/auditor` or `~/.cache/auditor`.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(folder) =
        env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute())
    {
        return Ok(folder.join("auditor"));
    }
    match env::var_os("HOME").map(PathBuf::from).filter(|folder| folder.is_absolute()) {
        Some(home) => Ok(home.join(".cache/auditor")),
        None => bail!("no place for the cache: set HOME or XDG_CACHE_HOME to an absolute path"),
    }
}
