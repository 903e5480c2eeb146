//! Doing something in another network namespace, with this thread.
//!
//! What is started there stays there: sockets and children keep the namespace that the thread had when it made them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};

/// Runs `work` in the namespace that `ip netns` knows as `name`; afterwards the thread is back where it was, also when `work`
/// panics.
///
/// # Errors
/// There is no such namespace, or the caller is not root.
pub fn within<T>(name: &str, work: impl FnOnce() -> T) -> Result<T> {
    let there = Path::new("/run/netns").join(name);
    let there = File::open(&there).with_context(|| format!("cannot open {}", there.display()))?;
    let back = Back(File::open("/proc/thread-self/ns/net").context("own network namespace")?);
    enter(&there)?;
    let result = work();
    drop(back);
    Ok(result)
}

/// The namespace to return to.
struct Back(File);

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(error) = enter(&self.0) {
            // Everything that the thread did from here on would happen in the wrong place.
            eprintln!("cannot leave a network namespace: {error:#}");
            std::process::abort();
        }
    }
}

fn enter(namespace: &File) -> Result<()> {
    // SAFETY: a descriptor that is open and a flag.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()).context("setns") }
}
