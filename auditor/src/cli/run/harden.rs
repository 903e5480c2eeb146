//! What a command must not have, given up for good before it begins.
//!
//! First of all, sockets that it would inherit as stdin, stdout or stderr are refused. Then, in this order, because each step may need what a later one takes:
//! 1. descriptors beyond stderr are closed on execution: a socket from outside would carry data past the session's rules;
//! 2. the bounding set, while CAP_SETPCAP may still be there;
//! 3. the user, while CAP_SETUID may still be there;
//! 4. all capabilities: without them no raw sockets, no namespaces, no BPF, no other process's memory;
//! 5. no_new_privs: set-user-id programs such as sudo give nothing back; it is inherited and cannot be unset;
//! 6. processes outside of the session: a Landlock domain, where the kernel has it;
//! 7. the system-call filters of [`super::seccomp`].
//!
//! All of it concerns this thread, which is the only one that survives execve(2).

use std::io;

use auditor::policy::{Confinement, Permit};
use auditor::{capabilities, landlock};
use nix::sys::prctl;

use super::seccomp;
use super::user::User;

/// Which step failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HardenError {
    /// A socket from outside would be the command's stdin, stdout or stderr.
    #[error(
        "{descriptor} is {socket} that was made outside of the session, so no rule holds for it and nothing of it would be \
         recorded; give the command a file, a pipe or a terminal"
    )]
    Socket { descriptor: &'static str, socket: String },
    /// Inherited descriptors could not be closed.
    #[error("cannot close inherited descriptors: {0}")]
    Descriptors(#[source] io::Error),
    /// The process could not become the user.
    #[error("cannot become user {user}: {call}: {source}; only root can use --user")]
    User { call: &'static str, user: String, source: nix::Error },
    /// Capabilities could not be dropped.
    #[error("cannot drop capabilities: {0}")]
    Capabilities(#[source] io::Error),
    /// no_new_privs could not be set.
    #[error("cannot set no_new_privs: {0}")]
    NoNewPrivileges(#[source] nix::Error),
    /// The Landlock domain was not entered.
    #[error("cannot enter a Landlock domain: {0}")]
    Landlock(#[source] io::Error),
    /// A filter was not made.
    #[error("cannot make the system-call filter: {0}")]
    Compile(#[from] seccompiler::BackendError),
    /// A filter was not installed.
    #[error("cannot install the system-call filter: {0}; the kernel needs CONFIG_SECCOMP_FILTER")]
    Filter(#[source] seccompiler::Error),
}

/// Gives everything up. After an error the process is in between, and must not execute anything.
pub(super) fn harden(user: Option<&User>, confinement: &Confinement) -> Result<(), HardenError> {
    let filters = seccomp::filters(confinement)?;
    close_inherited_on_exec().map_err(HardenError::Descriptors)?;
    capabilities::drop_bounding().map_err(HardenError::Capabilities)?;
    if let Some(user) = user {
        user.assume()?;
    }
    capabilities::keep_only(&[]).map_err(HardenError::Capabilities)?;
    prctl::set_no_new_privs().map_err(HardenError::NoNewPrivileges)?;
    if !confinement.permits(Permit::OtherProcesses) && landlock::has_scopes() {
        landlock::keep_to_own_processes().map_err(HardenError::Landlock)?;
    }
    filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter)).map_err(HardenError::Filter)
}

/// Refuses sockets that the command would inherit: the kernel decides about sockets that are made in the session, and these
/// were not. Unix sockets are left alone, as they are within the session.
pub(super) fn refuse_foreign_sockets() -> Result<(), HardenError> {
    let standard =
        [(libc::STDIN_FILENO, "stdin"), (libc::STDOUT_FILENO, "stdout"), (libc::STDERR_FILENO, "stderr")];
    for (number, descriptor) in standard {
        // Not a socket, or closed.
        let Some(domain) = socket_option(number, libc::SO_DOMAIN) else { continue };
        let protocol = socket_option(number, libc::SO_PROTOCOL).unwrap_or(0);
        let socket = match (domain, protocol) {
            (libc::AF_UNIX, _) => continue,
            (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_TCP) => "a TCP socket".to_owned(),
            (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_UDP) => "a UDP socket".to_owned(),
            _ => format!("a socket (family {domain}, protocol {protocol})"),
        };
        return Err(HardenError::Socket { descriptor, socket });
    }
    Ok(())
}

fn socket_option(descriptor: libc::c_int, option: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length: libc::socklen_t = size_of::<libc::c_int>().try_into().ok()?;
    // SAFETY: `value` and `length` are valid and writable for the length of the call, and `length` is the size of `value`.
    let result = unsafe {
        libc::getsockopt(descriptor, libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut length)
    };
    (result == 0).then_some(value)
}

/// By `/proc/self/fd` rather than close_range(2), whose CLOEXEC flag came with Linux 5.11 only.
fn close_inherited_on_exec() -> io::Result<()> {
    let names = std::fs::read_dir("/proc/self/fd")?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    let descriptors = names.iter().filter_map(|name| name.to_str()?.parse::<libc::c_int>().ok());
    for descriptor in descriptors.filter(|descriptor| *descriptor > libc::STDERR_FILENO) {
        // SAFETY: F_SETFD changes a flag of a descriptor and touches no memory; nobody relies on the flag being unset.
        let result = unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
        let error = io::Error::last_os_error();
        // EBADF: the descriptor of the directory listing itself, closed by now.
        if result != 0 && error.raw_os_error() != Some(libc::EBADF) {
            return Err(error);
        }
    }
    Ok(())
}
