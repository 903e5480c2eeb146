//! The cgroup2 hierarchy: where it is mounted, and the cgroups that sessions live in.
//!
//! Two layouts are in use: cgroup2 alone at /sys/fs/cgroup, and the hybrid one, where version 1 hierarchies are there and
//! cgroup2 hangs below them. Which one this host has is read from mountinfo, not assumed.
//!
//! A cgroup is its directory's inode, not its name: one that was removed and made again is another one, of which the programs and
//! the tables know nothing. So each look opens the directory and compares.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Why the hierarchy or one of its cgroups could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Nothing of type cgroup2 is mounted.
    #[error(
        "no cgroup2 hierarchy is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with \
         systemd.unified_cgroup_hierarchy=1"
    )]
    NoHierarchy,
    /// A path that should be a cgroup2 directory is not one.
    #[error("{0} is not a cgroup2 directory: it has no cgroup.procs")]
    NotACgroup(PathBuf),
    /// The root of the hierarchy was named.
    #[error("{0} is the root of the cgroup2 hierarchy, which holds the whole host: name a cgroup below it")]
    Root(PathBuf),
    /// Another directory stands where it was.
    #[error("{0} was removed: what is there now is another cgroup")]
    Gone(PathBuf),
    /// It is part of a threaded subtree.
    #[error(
        "{0} is a threaded cgroup, whose threads share their processes with other cgroups: name the cgroup above it that holds \
         the whole processes"
    )]
    Threaded(PathBuf),
    /// A system call failed.
    #[error("{call} {path}: {error}")]
    Io {
        /// What was tried.
        call: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

impl CgroupError {
    /// Whether the cgroup is there no more, whatever is there now under its name.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Gone(_) => true,
            Self::Io { error, .. } => is_gone(error),
            Self::NoHierarchy | Self::NotACgroup(_) | Self::Root(_) | Self::Threaded(_) => false,
        }
    }
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |error| CgroupError::Io { call, path, error }
}

/// The mounted hierarchy.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    mount: PathBuf,
}

impl Hierarchy {
    /// Finds the cgroup2 mount in `mountinfo` (the text of /proc/self/mountinfo, see proc(5)). With several, the first one.
    ///
    /// # Errors
    /// [`CgroupError::NoHierarchy`].
    pub fn find(mountinfo: &str) -> Result<Self, CgroupError> {
        mountinfo
            .lines()
            .find_map(|line| {
                let (mount, filesystem) = line.split_once(" - ")?;
                (filesystem.split(' ').next() == Some("cgroup2"))
                    .then(|| Self { mount: PathBuf::from(unescape(mount.split(' ').nth(4).unwrap_or("/"))) })
            })
            .ok_or(CgroupError::NoHierarchy)
    }

    /// Takes a directory for the hierarchy's mount.
    ///
    /// # Errors
    /// [`CgroupError::NotACgroup`].
    pub fn at(mount: &Path) -> Result<Self, CgroupError> {
        if !mount.join("cgroup.procs").exists() {
            return Err(CgroupError::NotACgroup(mount.to_owned()));
        }
        Ok(Self { mount: mount.to_owned() })
    }

    /// Where it is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// Opens a cgroup that exists, by its path below the mount or by its whole path.
    ///
    /// # Errors
    /// It is no cgroup, or the root.
    pub fn existing(&self, path: &Path) -> Result<Cgroup, CgroupError> {
        let whole = if path.starts_with(&self.mount) {
            path.to_owned()
        } else {
            self.mount.join(path.strip_prefix("/").unwrap_or(path))
        };
        let whole = fs::canonicalize(&whole).map_err(failed("open", &whole))?;
        if whole == self.mount {
            return Err(CgroupError::Root(whole));
        }
        if !whole.starts_with(&self.mount) || !whole.join("cgroup.procs").exists() {
            return Err(CgroupError::NotACgroup(whole));
        }
        Cgroup::of(whole, &self.mount)
    }

    /// The cgroup that a process lives in, which may be the root.
    ///
    /// `memberships`: the text of /proc/PID/cgroup, see cgroups(7).
    ///
    /// # Errors
    /// The process is in no cgroup of this hierarchy, or the kernel refuses.
    pub fn of_process(&self, memberships: &str) -> Result<Cgroup, CgroupError> {
        let name =
            memberships.lines().find_map(|line| line.strip_prefix("0::")).ok_or(CgroupError::NoHierarchy)?;
        let path = match name.trim_start_matches('/') {
            "" => self.mount.clone(),
            name => self.mount.join(name),
        };
        Cgroup::of(path, &self.mount)
    }

    /// Makes a cgroup below the mount, or takes the one that is there.
    ///
    /// # Errors
    /// mkdir(2) failed.
    pub fn make(&self, name: &Path) -> Result<Cgroup, CgroupError> {
        let path = self.mount.join(name);
        match fs::DirBuilder::new().mode(0o755).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("mkdir", &path)(error));
            }
            _ => {}
        }
        Cgroup::of(path, &self.mount)
    }
}

/// Octal escapes of mountinfo (proc(5)): space, tab, newline, backslash.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// One cgroup.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Cgroup {
    path: PathBuf,
    name: String,
    id: u64,
}

impl Cgroup {
    fn of(path: PathBuf, mount: &Path) -> Result<Self, CgroupError> {
        // The id that bpf_get_current_cgroup_id answers is the inode number of the directory (kernfs, 64 bit).
        let id = fs::metadata(&path).map_err(failed("stat", &path))?.ino();
        let name = Path::new("/").join(path.strip_prefix(mount).unwrap_or(&path)).display().to_string();
        Ok(Self { path, name, id })
    }

    /// Whole path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path below the mount, as /proc/PID/cgroup has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's number for it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How deep it lies below the root of the hierarchy.
    pub fn depth(&self) -> usize {
        Path::new(&self.name).components().count().saturating_sub(1)
    }

    /// Opens its directory: its own, and not that of another one which was made under the same name since.
    ///
    /// # Errors
    /// open(2) or fstat(2) failed, or [`CgroupError::Gone`].
    pub fn open(&self) -> Result<fs::File, CgroupError> {
        let directory = fs::File::open(&self.path).map_err(failed("open", &self.path))?;
        let inode = directory.metadata().map_err(failed("stat", &self.path))?.ino();
        if inode == self.id { Ok(directory) } else { Err(CgroupError::Gone(self.path.clone())) }
    }

    /// Reads one of its files.
    fn read(&self, name: &'static str) -> Result<String, CgroupError> {
        read_in(&self.open()?, name).map_err(failed("read", &self.path.join(name)))
    }

    /// Writes one of its files.
    fn write(&self, call: &'static str, name: &'static str, text: &str) -> Result<(), CgroupError> {
        let directory = self.open()?;
        fs::write(within(&directory, name), text).map_err(failed(call, &self.path.join(name)))
    }

    /// Moves a process in, with all its threads.
    ///
    /// # Errors
    /// The process is gone, or the kernel refuses.
    pub fn admit(&self, pid: u32) -> Result<(), CgroupError> {
        self.write("move a process with", "cgroup.procs", &pid.to_string())
    }

    /// The processes that live in it, not counting those below it.
    ///
    /// # Errors
    /// cgroup.procs cannot be read.
    pub fn members(&self) -> Result<Vec<u32>, CgroupError> {
        Ok(numbers(&self.read("cgroup.procs")?).collect())
    }

    /// Processes in it and in the cgroups below it.
    ///
    /// # Errors
    /// cgroup.procs cannot be read, or a directory not be listed, for another reason than that the cgroup below has gone.
    pub fn all_members(&self) -> Result<Vec<u32>, CgroupError> {
        let mut members = Vec::new();
        let mut open = vec![(self.open()?, self.path.clone())];
        let mut is_first = true;
        while let Some((directory, path)) = open.pop() {
            match read_in(&directory, "cgroup.procs") {
                Ok(text) => members.extend(numbers(&text)),
                Err(error) if !is_first && is_gone(&error) => continue,
                // Threaded: its processes are those of a cgroup above.
                Err(error) if !is_first && error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return Err(failed("read", &path.join("cgroup.procs"))(error)),
            }
            is_first = false;
            let entries = match fs::read_dir(within(&directory, ".")) {
                Ok(entries) => entries,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(failed("list", &path)(error)),
            };
            for entry in entries {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error) if is_gone(&error) => break,
                    Err(error) => return Err(failed("list", &path)(error)),
                };
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let below = path.join(entry.file_name());
                match fs::File::open(entry.path()) {
                    Ok(directory) => open.push((directory, below)),
                    Err(error) if is_gone(&error) => {}
                    Err(error) => return Err(failed("open", &below)(error)),
                }
            }
        }
        Ok(members)
    }

    /// Whether a process lives in it or below it.
    ///
    /// # Errors
    /// cgroup.events cannot be read, or the cgroup is gone.
    pub fn populated(&self) -> Result<bool, CgroupError> {
        Ok(self.read("cgroup.events")?.lines().any(|line| line == "populated 1"))
    }

    /// Whether all who live in it and below it stand still.
    ///
    /// # Errors
    /// cgroup.events cannot be read, or the cgroup is gone.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        Ok(self.read("cgroup.events")?.lines().any(|line| line == "frozen 1"))
    }

    /// Whether somebody has asked for that.
    ///
    /// # Errors
    /// cgroup.freeze cannot be read (before Linux 5.2).
    pub fn is_to_freeze(&self) -> Result<bool, CgroupError> {
        Ok(self.read("cgroup.freeze")?.trim() == "1")
    }

    /// Has all who live in it and below it stand still, or go on. It takes a moment.
    ///
    /// The kernel keeps one bit, and not who has set it. In a daemon three may: `pipeline::streams` for as long as a session fills the
    /// ring, `pipeline::still` while older sockets are looked for, and `libraries` while a library is probed. Whoever finds the bit set
    /// leaves it alone, and lets nobody go on whom it has not stopped: so one owns it at a time. Two that find it clear in the same
    /// moment both own it, and the first to finish clears it for both; the first of the three looks again every few
    /// milliseconds and sets it again, the other two are done by then, or miss what happens in the rest of theirs. Each clears it
    /// when it ends, however it ends. For a daemon that was killed the next one does: by a note of each of the two short ones in the
    /// runtime directory, under a name of its own, and for the first by clearing it on every cgroup that the auditor has made.
    ///
    /// # Errors
    /// cgroup.freeze cannot be written.
    pub fn freeze(&self, still: bool) -> Result<(), CgroupError> {
        self.write("write", "cgroup.freeze", if still { "1" } else { "0" })
    }

    /// Refuses a threaded cgroup.
    ///
    /// # Errors
    /// [`CgroupError::Threaded`], or cgroup.type cannot be read.
    pub fn refuse_threaded(&self) -> Result<(), CgroupError> {
        match self.read("cgroup.type")?.trim() {
            "domain" | "domain threaded" => Ok(()),
            _ => Err(CgroupError::Threaded(self.path.clone())),
        }
    }

    /// Removes it and what is below it. The kernel refuses while a process lives in it.
    ///
    /// # Errors
    /// rmdir(2) failed.
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove_below(&self.path)
    }
}

/// A file of an open directory.
fn within(directory: &fs::File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name)
}

fn read_in(directory: &fs::File, name: &str) -> io::Result<String> {
    fs::read_to_string(within(directory, name))
}

fn numbers(text: &str) -> impl Iterator<Item = u32> + '_ {
    text.lines().filter_map(|line| line.parse().ok())
}

/// Whether a cgroup was removed while it was looked at: kernfs says ENODEV of a file that was open by then.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn remove_below(path: &Path) -> Result<(), CgroupError> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed("list", path))?,
    };
    for entry in entries {
        let entry = entry.map_err(failed("list", path))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // Depth is bounded by cgroup.max.depth and by the length of a path.
            remove_below(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("rmdir", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
26 1 0:23 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
27 26 0:24 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
36 26 0:33 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn both_layouts_are_found() {
        assert_eq!(Hierarchy::find(HYBRID).unwrap().mount(), Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(Hierarchy::find(UNIFIED).unwrap().mount(), Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn a_host_without_cgroup2_is_told_what_to_do() {
        let error = Hierarchy::find("26 1 0:23 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n").unwrap_err();
        assert!(error.to_string().contains("mount -t cgroup2"), "{error}");
    }

    #[test]
    fn a_mount_point_with_a_space_is_read() {
        let line = "30 23 0:26 / /mnt/c\\040g rw - cgroup2 none rw\n";
        assert_eq!(Hierarchy::find(line).unwrap().mount(), Path::new("/mnt/c g"));
    }
}
