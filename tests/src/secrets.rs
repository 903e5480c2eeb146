//! What the kernel programs have in their table of TLS secrets, and what a program says of its own in its key log.
//!
//! The table is read from its pin with bpf(2): no command of the auditor prints a secret.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::daemon::Home;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_GET: libc::c_long = 7;
/// Of `auditor_common::tls::Secret`.
const ENTRY_BYTES: usize = 160;

/// An entry.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Taken {
    /// Of which process.
    pub process: u32,
    /// The secret, in hexadecimal digits as a key log has it.
    pub secret: String,
    /// The client's random, likewise; zeros where it is not known.
    pub client_random: String,
}

/// All entries of a daemon's table.
///
/// # Errors
/// The table is not there, or cannot be read.
pub fn taken(home: &Home) -> Result<Vec<Taken>> {
    let map = open(&table(&home.pins)?)?;
    let (mut taken, mut last) = (Vec::new(), None);
    while let Some(key) = next(&map, last)? {
        last = Some(key);
        let mut entry = [0_u8; ENTRY_BYTES];
        let mut element =
            [u64::from(map.as_raw_fd().cast_unsigned()), &raw const key as u64, entry.as_mut_ptr() as u64, 0];
        // SAFETY: the key has eight bytes, the place those of an entry, and both outlive the call.
        match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, element.as_mut_ptr().cast(), 32) } {
            // Removed meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            result => result.context("look up a secret")?,
        };
        let length = usize::from(entry[25]);
        taken.push(Taken {
            process: u32::from_le_bytes(entry[16..20].try_into()?),
            secret: hexadecimal(&entry[32..32 + length]),
            client_random: hexadecimal(&entry[96..128]),
        });
    }
    Ok(taken)
}

/// The traffic secrets and master secrets in a key log.
///
/// # Errors
/// It cannot be read.
pub fn logged(log: &Path) -> Result<BTreeSet<String>> {
    const LABELS: [&str; 5] = [
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
        "CLIENT_RANDOM",
    ];
    let text = fs::read_to_string(log).with_context(|| format!("the key log {}", log.display()))?;
    let secret = |line: &str| {
        let mut words = line.split(' ');
        let label = words.next().is_some_and(|label| LABELS.contains(&label));
        label.then(|| words.nth(1).map(str::to_lowercase))?
    };
    Ok(text.lines().filter_map(secret).collect())
}

/// The pinned table.
fn table(pins: &Path) -> Result<PathBuf> {
    for daemon in fs::read_dir(pins)?.flatten() {
        for layout in fs::read_dir(daemon.path())?.flatten() {
            let path = layout.path().join("SECRETS");
            if path.exists() {
                return Ok(path);
            }
        }
    }
    anyhow::bail!("there is no table of secrets in {}", pins.display())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn open(path: &Path) -> Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut get = [name.as_ptr() as u64, 0];
    // SAFETY: the path ends with NUL and outlives the call.
    let descriptor = unsafe { bpf(BPF_OBJ_GET, get.as_mut_ptr().cast(), 16) }
        .with_context(|| format!("open {}", path.display()))?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(descriptor)?) })
}

fn next(map: &OwnedFd, last: Option<u64>) -> Result<Option<u64>> {
    let mut key = 0_u64;
    let last = last.as_ref().map_or(0, |last| std::ptr::from_ref(last) as u64);
    let mut element = [u64::from(map.as_raw_fd().cast_unsigned()), last, &raw mut key as u64, 0];
    // SAFETY: keys have eight bytes and outlive the call.
    match unsafe { bpf(BPF_MAP_GET_NEXT_KEY, element.as_mut_ptr().cast(), 32) } {
        Ok(_) => Ok(Some(key)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error).context("walk the table of secrets"),
    }
}

/// # Safety
/// `attributes` has `size` bytes, which are what the command takes.
unsafe fn bpf(command: libc::c_long, attributes: *mut u8, size: usize) -> io::Result<libc::c_long> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
