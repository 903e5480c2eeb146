//! Finding the TLS libraries that agents use, and probing them before they are used.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::kernel::uprobe::Uprobes;
use crate::library;

/// Probes what the host's dynamic linker knows (ld.so.cache(5)), so that the first agent that uses one of these finds it probed.
pub(super) fn probe_host(uprobes: &mut Uprobes) {
    let Ok(cache) = fs::read("/etc/ld.so.cache") else { return };
    let names: BTreeSet<&[u8]> =
        cache.split(|byte| *byte == 0).filter(|name| name.starts_with(b"/")).collect();
    for name in names {
        let path = Path::new(std::ffi::OsStr::from_bytes(name));
        if let Err(error) = File::open(path).and_then(|file| probe(uprobes, &file)) {
            tracing::debug!(%error, path = %path.display(), "a library is not probed");
        }
    }
}

/// Probes a file, if there is something to probe.
fn probe(uprobes: &mut Uprobes, file: &File) -> io::Result<()> {
    let probes = library::inspect(file).map_err(io::Error::other)?;
    let library = number(file)?;
    uprobes.attach(file, library, &probes)
}

/// The number of a file, as it is now. One that is replaced or written to has another.
fn number(file: &File) -> io::Result<u64> {
    let status = file.metadata()?;
    let digest = Sha256::digest(format!(
        "{} {} {} {} {}",
        status.dev(),
        status.ino(),
        status.size(),
        status.mtime(),
        status.mtime_nsec()
    ));
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    Ok(u64::from_le_bytes(first))
}
