//! The sockets that a process holds, from procfs: which of them were made before the process was tagged.
//!
//! A socket belongs to the cgroup that it was made in and stays there when its process is moved. Then the kernel programs
//! neither decide nor record it.
//!
//! Only numbers are taken from procfs. What a socket is, it is asked itself ([`super::held`]): procfs' tables list those of one network
//! namespace, of some protocols, and none that has no address yet. Not found are sockets that no descriptor leads to: on their way between
//! processes (unix(7), SCM_RIGHTS), or registered with io_uring and closed.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

/// A socket that is open in a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OpenSocket {
    /// A task of the process that has it open.
    pub task: u32,
    /// Number of the descriptor there; of one of them, where there are several.
    pub descriptor: i32,
    /// Number of the socket on sockfs.
    pub inode: u64,
}

/// Lists them. `procfs`: where proc(5) is mounted.
///
/// # Errors
/// The process is gone, or procfs cannot be read.
pub fn of_process(procfs: &Path, process: u32) -> io::Result<Vec<OpenSocket>> {
    let tasks = procfs.join(process.to_string()).join("task");
    let mut sockets = Vec::new();
    let mut found = HashSet::new();
    // Threads share a table of descriptors, unless they have asked for one of their own (unshare(2), CLONE_FILES).
    let mut tables: Vec<u32> = Vec::new();
    for entry in fs::read_dir(&tasks)? {
        let entry = entry?;
        let Some(task) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if tables.iter().any(|other| share_descriptors(*other, task)) {
            continue;
        }
        tables.push(task);
        let descriptors = match fs::read_dir(entry.path().join("fd")) {
            Ok(descriptors) => descriptors,
            // It has ended, and with it its table, if that was its own.
            Err(error) if has_ended(&error) => continue,
            Err(error) => return Err(error),
        };
        for descriptor in descriptors {
            let path = match descriptor {
                Ok(descriptor) => descriptor.path(),
                Err(error) if has_ended(&error) => break,
                Err(error) => return Err(error),
            };
            // It may have been closed meanwhile.
            let Ok(target) = fs::read_link(&path) else { continue };
            let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            // A socket may be open under several numbers; one is enough.
            if let (Some(inode), Some(descriptor)) = (socket_of(&target), number)
                && found.insert(inode)
            {
                sockets.push(OpenSocket { task, descriptor, inode });
            }
        }
    }
    Ok(sockets)
}

fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Whether two tasks have one table of descriptors. Where the kernel does not say (CONFIG_KCMP), both are looked at.
fn share_descriptors(one: u32, other: u32) -> bool {
    const KCMP_FILES: i32 = 2;
    // SAFETY: integers in, an integer out.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) == 0 }
}

/// `socket:[123]`, as the links of proc_pid_fd(5) read.
fn socket_of(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsRawFd as _;
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::process::held::Held;

    fn own() -> Vec<OpenSocket> {
        of_process(Path::new("/proc"), std::process::id()).unwrap()
    }

    fn inode(socket: &impl std::os::fd::AsRawFd) -> u64 {
        let link = fs::read_link(format!("/proc/thread-self/fd/{}", socket.as_raw_fd())).unwrap();
        socket_of(&link).unwrap()
    }

    #[test]
    fn all_of_a_process_are_listed_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let again = listener.try_clone().unwrap();
        let datagrams = UdpSocket::bind("[::1]:0").unwrap();
        let open = own();
        let count = |wanted: u64| open.iter().filter(|socket| socket.inode == wanted).count();
        assert_eq!((count(inode(&listener)), count(inode(&datagrams))), (1, 1), "{open:?}");
        drop(again);
    }

    #[test]
    fn a_thread_with_descriptors_of_its_own_is_looked_at() {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            // SAFETY: this thread alone goes on with a copy of the table.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
            let hidden = UdpSocket::bind("127.0.0.1:0").unwrap();
            tell.send((inode(&hidden), hidden.as_raw_fd())).unwrap();
            let _ = ended.recv();
        });
        let (wanted, number) = told.recv().unwrap();
        let socket = own().into_iter().find(|socket| socket.inode == wanted).unwrap();
        assert_eq!(socket.descriptor, number);
        let held = Held::take(std::process::id(), socket.task, socket.descriptor).unwrap();
        assert_eq!(held.inode().unwrap(), wanted);
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn what_is_no_socket_is_passed_over() {
        for link in ["", "socket:[", "socket:[x]", "pipe:[12]", "/tmp/socket:[12]"] {
            assert_eq!(socket_of(Path::new(link)), None, "{link}");
        }
    }
}
