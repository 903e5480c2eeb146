//! Who is at the other end of a connection, as the kernel says it.
//!
//! SO_PEERCRED gives the credentials that the peer had when it connected. A process id alone can lie: the peer may exit and
//! another process get its number. So a pidfd is taken with it (SO_PEERPIDFD, Linux 6.5; pidfd_open(2) right after accept
//! before that, which leaves a window of microseconds), and whatever is read from `/proc/<pid>` counts only if the pidfd
//! says *afterwards* that the process has not exited.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use nix::unistd::{Uid, User};

use crate::record::Caller;

/// Why the other end of a connection could not be identified.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The kernel refused to say.
    #[error("{call}: {errno}")]
    Kernel {
        /// Which call.
        call: &'static str,
        /// With what.
        errno: Errno,
    },
    /// The peer lives in a PID namespace that this process cannot look into.
    #[error("the peer's process id is not visible from the daemon's PID namespace")]
    Invisible,
    /// The peer has exited.
    #[error("the peer has exited")]
    Gone,
    /// `/proc` does not say in which cgroup the peer is.
    #[error("{path}: {source}")]
    Cgroup {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// A process at the other end of a connection.
#[derive(Debug)]
pub struct Peer {
    pid: u32,
    uid: u32,
    handle: OwnedFd,
}

impl Peer {
    /// Identifies the process that connected `socket`.
    ///
    /// # Errors
    /// It cannot be identified, or is gone already.
    pub fn of(socket: &impl AsFd) -> Result<Self, PeerError> {
        let kernel = |call| move |errno| PeerError::Kernel { call, errno };
        let credentials = getsockopt(socket, PeerCredentials).map_err(kernel("getsockopt(SO_PEERCRED)"))?;
        let pid = u32::try_from(credentials.pid()).unwrap_or(0);
        if pid == 0 {
            return Err(PeerError::Invisible);
        }
        let handle = match getsockopt(socket, PeerPidfd) {
            Ok(handle) => handle,
            // Before Linux 6.5 the option does not exist.
            Err(Errno::ENOPROTOOPT) => pidfd_open(pid)?,
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => return Err(PeerError::Gone),
            Err(errno) => return Err(PeerError::Kernel { call: "getsockopt(SO_PEERPIDFD)", errno }),
        };
        Ok(Self { pid, uid: credentials.uid(), handle })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// User id at the time of connect(2).
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Whether the process still exists, i.e. whether its process id still means the same process.
    pub fn is_alive(&self) -> bool {
        let mut descriptors = [PollFd::new(self.handle.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut descriptors, PollTimeout::ZERO), Ok(0))
    }

    /// Path of the peer's cgroup below the cgroup2 mount, now.
    ///
    /// # Errors
    /// The peer is gone, or `/proc` does not tell.
    pub fn cgroup(&self, proc_root: &Path) -> Result<String, PeerError> {
        let path = proc_root.join(self.pid.to_string()).join("cgroup");
        let answer = std::fs::read_to_string(&path);
        if !self.is_alive() {
            return Err(PeerError::Gone);
        }
        let missing = || io::Error::other("no line `0::`: is cgroup2 mounted?");
        answer
            .and_then(|text| unified_cgroup(&text).map(str::to_owned).ok_or_else(missing))
            .map_err(|source| PeerError::Cgroup { path, source })
    }

    /// The peer in the record's words. Asks the user database, which may block.
    pub fn caller(&self) -> Caller {
        let user = User::from_uid(Uid::from_raw(self.uid)).ok().flatten().map(|user| user.name);
        Caller { pid: self.pid, uid: self.uid, user }
    }
}

fn pidfd_open(pid: u32) -> Result<OwnedFd, PeerError> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match Errno::result(result) {
        Ok(descriptor) => {
            let descriptor = RawFd::try_from(descriptor).map_err(|_| PeerError::Gone)?;
            // SAFETY: the call returned a new descriptor that nobody else owns.
            Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
        }
        Err(Errno::ESRCH) => Err(PeerError::Gone),
        Err(errno) => Err(PeerError::Kernel { call: "pidfd_open", errno }),
    }
}

/// The path on the line `0::` of a `/proc/<pid>/cgroup`, without the mark of a removed cgroup.
pub fn unified_cgroup(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.strip_suffix(" (deleted)").unwrap_or(path))
}

/// Whether the cgroup `path` is `ancestor` or lies below it.
pub fn is_within(path: &str, ancestor: &str) -> bool {
    Path::new(path.trim_start_matches('/')).starts_with(ancestor.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_unified_line_is_found_in_both_layouts() {
        assert_eq!(unified_cgroup("0::/user.slice/a b:c\n"), Some("/user.slice/a b:c"));
        assert_eq!(unified_cgroup("9:name=systemd:/x\n1:cpu:/\n0::/auditor/1\n"), Some("/auditor/1"));
        assert_eq!(unified_cgroup("0::/auditor/1 (deleted)\n"), Some("/auditor/1"));
        assert_eq!(unified_cgroup("1:cpu:/\n"), None);
    }

    #[test]
    fn a_cgroup_contains_what_is_below_it_and_nothing_that_only_looks_alike() {
        assert!(is_within("/auditor/1", "auditor/1"));
        assert!(is_within("/auditor/1/child", "/auditor/1/"));
        assert!(!is_within("/auditor/11", "/auditor/1"));
        assert!(!is_within("/auditor", "/auditor/1"));
    }

    #[test]
    fn the_peer_of_a_socket_pair_is_this_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.pid(), std::process::id());
        assert_eq!(peer.uid(), nix::unistd::geteuid().as_raw());
        assert!(peer.is_alive());
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        assert_eq!(peer.cgroup(Path::new("/proc")).unwrap(), unified_cgroup(&own).unwrap());
    }

    #[test]
    fn a_peer_that_has_exited_is_never_taken_for_its_successor() {
        use nix::sys::wait::waitpid;
        use nix::unistd::{ForkResult, fork};

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // SAFETY: the child calls only connect(2), through std, without allocating locks held by other threads, and _exit.
        let child = match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                let _stream = UnixStream::connect(&path);
                std::thread::sleep(std::time::Duration::from_millis(300));
                // SAFETY: _exit ends the child at once.
                unsafe { libc::_exit(0) }
            }
        };
        let (stream, _) = listener.accept().unwrap();
        let peer = Peer::of(&stream).unwrap();
        assert!(peer.is_alive());
        waitpid(child, None).unwrap();
        assert!(!peer.is_alive());
        // A /proc of the test's own, in which the number is in use again: it does not matter.
        let proc_root = directory.path().join("proc");
        std::fs::create_dir_all(proc_root.join(peer.pid().to_string())).unwrap();
        std::fs::write(proc_root.join(peer.pid().to_string()).join("cgroup"), "0::/\n").unwrap();
        assert!(matches!(peer.cgroup(&proc_root), Err(PeerError::Gone)));
    }
}
