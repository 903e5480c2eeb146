//! `auditor key`: the public key that verifies the trail, for where the host's root cannot reach; and changing the key.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use auditor::trail::seal::{VerifierKey, prepare_key, public_key};

use super::Places;
use super::failure::{Failure, complain};

/// Arguments of `auditor key`.
#[derive(clap::Args, Debug)]
pub(crate) struct Key {
    /// Directory of the trail [default: the trail in the state directory]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Make a new key for the trail in the state directory; the daemon hands over to it at its next reload or start
    #[arg(long, conflicts_with = "path")]
    rotate: bool,
}

impl Key {
    pub(crate) fn execute(self, places: &Places) -> Result<(), Failure> {
        let trail = self.path.unwrap_or_else(|| places.trail_dir());
        let key = if self.rotate { rotate(places, &trail)? } else { current(&trail)? };
        let mut out = stdout().lock();
        writeln!(out, "{key}")?;
        out.flush()?;
        Ok(())
    }
}

fn current(trail: &Path) -> Result<VerifierKey, Failure> {
    public_key(trail).map_err(Failure::usage)?.ok_or_else(|| {
        Failure::usage(format!(
            "the trail in {} is not sealed, or there is none: start the daemon, or name the trail's directory",
            trail.display()
        ))
    })
}

fn rotate(places: &Places, trail: &Path) -> Result<VerifierKey, Failure> {
    // A trail without a key gets one by itself.
    current(trail)?;
    let key = prepare_key(trail, &places.keys_dir(), Path::new("/dev/urandom")).map_err(Failure::usage)?;
    complain("this key is in force once the daemon has taken it: run `auditor reload`");
    Ok(key)
}
