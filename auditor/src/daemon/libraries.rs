//! Finding the TLS libraries that agents use, and probing each before it is used.
//!
//! A thread of its own, because it races with the agent: between the moment that code is mapped and the first handshake, the code
//! must be probed. It runs before everything that is not real-time. A file that has something to probe and is not probed yet, and
//! one that takes long to look through, makes it freeze the session's cgroup until the probe is in; how long that was is told.
//!
//! A file is looked through once, and told by what it is now (device, inode, size, times), never by its name: a library that is
//! replaced or written to is another file. The libraries that the host's dynamic linker knows are probed at the start, so that the first
//! agent finds them probed.
//!
//! Files are opened through /proc/PID/map_files, which leads to what is mapped: in containers, under other roots, and when it was deleted.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use sha2::{Digest as _, Sha256};

use crate::kernel::cgroup::Hierarchy;
use crate::kernel::mappings::{Mapping, Mappings, Said};
use crate::kernel::tables::Members;
use crate::kernel::uprobe::Uprobes;
use crate::library::{self, Point, Probe};

use super::scheduling;

use std::os::fd::AsFd as _;

/// Time between two looks at whether probed files are still what they were.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Time between two searches for deleted files that nobody has mapped any more.
const SEARCH_AGAIN: Duration = Duration::from_secs(60);
/// Files that are remembered: those without anything to probe, and those with.
const MOST_KNOWN: usize = 65536;
const MOST_PROBED: usize = 1024;
/// Name of the file in the runtime directory that says whom this thread holds. Not the pipeline's (`pipeline/still.rs`), which holds sessions too.
const NOTE: &str = "held-for-probes";
/// Discoveries that wait to be taken.
const MOST_FOUND: usize = 256;

/// A library that is probed from now on, or a file that cannot be.
#[derive(Debug)]
pub(super) struct Found {
    /// Its number, which is also in [`auditor_common::tls::SecretTaken::library`].
    pub(super) library: u64,
    /// Where it was seen: as the process sees it.
    pub(super) path: PathBuf,
    /// What is in it, e.g. `OpenSSL 3.0.19`; `None` where there is nothing to probe.
    pub(super) name: Option<String>,
    /// The session's number and the process that mapped it; `None` for the host's own libraries at the start.
    pub(super) by: Option<(u64, u32)>,
    /// How long the session was held.
    pub(super) pause: Option<Duration>,
    /// Why it is not probed.
    pub(super) error: Option<String>,
}

/// What the thread is told.
enum Order {
    /// Code that these processes have mapped is to be looked at.
    Look(Vec<u32>),
}

/// The thread. It ends with this value.
pub(super) struct Libraries {
    threads: Vec<thread::JoinHandle<()>>,
    orders: Option<SyncSender<Order>>,
    wake: Arc<EventFd>,
    found: Receiver<Found>,
}

impl Libraries {
    /// Probes what sessions that go on have mapped, then goes on in threads: one watches, one looks through the host's libraries.
    pub(super) fn start(
        uprobes: Uprobes,
        members: Members,
        hierarchy: Hierarchy,
        runtime_dir: &Path,
    ) -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        // Listening first: what is mapped from here on is told.
        let mappings = Mappings::listen(wake.as_fd())?;
        let (orders, ordered) = sync_channel(64);
        let (sender, found) = sync_channel(MOST_FOUND);
        let frozen = runtime_dir.join(NOTE);
        thaw_what_was_left(&frozen);
        let probed = uprobes.libraries()?.into_iter().map(|library| (library, None)).collect();
        let uprobes = Arc::new(uprobes);
        let (sender_of_seen, seen) = sync_channel(16);
        let of_host = Arc::clone(&uprobes);
        let known = BTreeSet::new();
        let mut watch = Watch {
            uprobes,
            members,
            hierarchy,
            frozen,
            known,
            probed,
            seen,
            search: None,
            searched: Instant::now(),
            found: sender,
        };
        // Agents begin as `auditor run`, which says nothing under TLS.
        if let Ok(own) = File::open("/proc/self/exe").and_then(|file| number(&file)) {
            watch.remember(own);
        }
        // What the most probable libraries are for is known before any agent begins.
        let (first, rest): (Vec<_>, Vec<_>) =
            host_libraries().into_iter().partition(|path| is_probable(path));
        first.iter().filter_map(|path| see_file(&of_host, path)).for_each(|seen| watch.take_seen(seen));
        watch.look_at_all();
        let own = Arc::clone(&wake);
        let thread = thread::Builder::new().name("libraries".to_owned()).spawn(move || {
            scheduling::go_first();
            watch.run(mappings, &ordered, &own);
        })?;
        let own = Arc::clone(&wake);
        let host = thread::Builder::new().name("host libraries".to_owned()).spawn(move || {
            for seen in rest.iter().filter_map(|path| see_file(&of_host, path)) {
                // Nobody takes it any more: the daemon ends.
                if sender_of_seen.send(seen).is_err() {
                    return;
                }
                let _ = own.write(1);
            }
        })?;
        Ok(Self { threads: vec![thread, host], orders: Some(orders), wake, found })
    }

    /// Has the code looked at that processes have mapped already: they have become a session's.
    pub(super) fn look_at(&self, processes: Vec<u32>) {
        // A thread that is that far behind looks at everything anyway.
        if let Some(orders) = &self.orders {
            let _ = orders.try_send(Order::Look(processes));
        }
        let _ = self.wake.write(1);
    }

    /// What was found since the last call.
    pub(super) fn take_found(&self) -> impl Iterator<Item = Found> {
        self.found.try_iter()
    }
}

impl Drop for Libraries {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.wake.write(1);
        for thread in self.threads.drain(..) {
            // It does not panic; if it did, there is nothing to do about it.
            let _ = thread.join();
        }
    }
}

/// The thread's state.
struct Watch {
    uprobes: Arc<Uprobes>,
    members: Members,
    hierarchy: Hierarchy,
    /// A file that names the cgroup which is frozen now.
    frozen: PathBuf,
    /// Numbers of files that have nothing to probe.
    known: BTreeSet<u64>,
    /// Files that are probed, by their number; `None`: an earlier daemon's, of which the number is all that is known.
    probed: HashMap<u64, Option<File>>,
    /// What is learnt of the host's libraries.
    seen: Receiver<Seen>,
    /// A search for deleted files that nobody has mapped, and when the last one began.
    search: Option<thread::JoinHandle<Vec<u64>>>,
    searched: Instant,
    found: SyncSender<Found>,
}

impl Watch {
    fn run(&mut self, mut mappings: Mappings, orders: &Receiver<Order>, wake: &EventFd) {
        let mut looked = Instant::now();
        loop {
            if let Err(error) = mappings.wait(LOOK_AGAIN) {
                tracing::error!(%error, "libraries are not looked for any more: what is said under TLS may not be read");
                return;
            }
            let mut lost = false;
            mappings.drain(|said| match said {
                Said::Mapped(mapping) => self.mapped(mapping),
                Said::Lost => lost = true,
            });
            if lost {
                self.look_at_all();
            }
            let _ = wake.read();
            loop {
                match orders.try_recv() {
                    Ok(Order::Look(processes)) => {
                        processes.into_iter().for_each(|process| self.look_at(process))
                    }
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                }
            }
            while let Ok(seen) = self.seen.try_recv() {
                self.take_seen(seen);
            }
            if looked.elapsed() >= LOOK_AGAIN {
                looked = Instant::now();
                self.look_again();
            }
        }
    }

    /// Takes over what was learnt of a file of the host's.
    fn take_seen(&mut self, seen: Seen) {
        let Seen { library, file, path, probes, error } = seen;
        if !self.is_new(library) {
            self.recognise(file, library, &path, None);
            return;
        }
        let name = library::name(&file, &points_of(&probes));
        if probes.is_empty() || error.is_some() {
            self.remember(library);
        } else {
            self.probed.insert(library, Some(file));
        }
        if !probes.is_empty() || error.is_some() {
            let _ = self.found.try_send(Found { library, path, name, by: None, pause: None, error });
        }
    }

    /// Looks at all processes of sessions.
    fn look_at_all(&mut self) {
        match self.members.tasks() {
            Ok(tasks) => tasks.into_iter().for_each(|task| self.look_at(task)),
            Err(error) => tracing::error!(%error, "the processes of sessions are not known"),
        }
    }

    /// Looks at what a process has mapped.
    fn look_at(&mut self, process: u32) {
        // Gone, or a thread, whose process is looked at too.
        let Ok(maps) = fs::read_to_string(format!("/proc/{process}/maps")) else { return };
        for mapping in maps.lines().filter_map(|line| executable(process, line)) {
            self.mapped(mapping);
        }
    }

    fn mapped(&mut self, mapping: Mapping) {
        let Ok(Some(member)) = self.members.get(mapping.process) else { return };
        let Mapping { process, start, end } = mapping;
        let place = PathBuf::from(format!("/proc/{process}/map_files/{start:x}-{end:x}"));
        // The process is gone, or has mapped something else there, which is told too.
        let Ok(file) = File::open(&place) else { return };
        let Ok(library) = number(&file) else { return };
        let path = || fs::read_link(&place).unwrap_or_default();
        let by = Some((member.session, process));
        if self.is_new(library) {
            self.see(file, library, &path(), by, Some(member.cgroup));
        } else if self.probed.get(&library).is_some_and(Option::is_none) {
            self.recognise(file, library, &path(), by);
        }
    }

    /// A file that an earlier daemon has probed: what is in it may not be known any more.
    fn recognise(&mut self, file: File, library: u64, path: &Path, by: Option<(u64, u32)>) {
        let Some(earlier @ None) = self.probed.get_mut(&library) else { return };
        let points = library::inspect(&file).map(|probes| points_of(&probes)).unwrap_or_default();
        let name = library::name(&file, &points);
        *earlier = Some(file);
        let found = Found { library, path: path.to_owned(), name, by, pause: None, error: None };
        let _ = self.found.try_send(found);
    }

    fn is_new(&self, library: u64) -> bool {
        !self.known.contains(&library) && !self.probed.contains_key(&library)
    }

    /// Looks through a file, and probes it. With a cgroup, that is held meanwhile.
    fn see(&mut self, file: File, library: u64, path: &Path, by: Option<(u64, u32)>, cgroup: Option<u64>) {
        let mut hold = Hold::new(&self.hierarchy, &self.frozen, cgroup.zip(by.map(|(_, process)| process)));
        if library::takes_long(&file) {
            hold.take();
        }
        let inspected = library::inspect(&file);
        let (mut points, mut error) = (Vec::new(), None);
        match &inspected {
            Ok(probes) if probes.is_empty() => {}
            Ok(probes) => {
                hold.take();
                points = points_of(probes);
                if self.probed.len() >= MOST_PROBED {
                    error = Some("there are as many probed files as there may be".to_owned());
                } else if let Err(refused) = self.uprobes.attach(&file, library, probes) {
                    error = Some(refused.to_string());
                }
            }
            Err(unreadable) => error = Some(unreadable.to_string()),
        }
        let pause = hold.release();
        if points.is_empty() && error.is_none() && pause.is_none() {
            self.remember(library);
            return;
        }
        // Takes milliseconds for a large file, and nobody waits for it any more.
        let name = library::name(&file, &points);
        if error.is_none() && !points.is_empty() {
            self.probed.insert(library, Some(file));
        } else {
            self.remember(library);
        }
        // Whoever takes them is behind: that a library was found is not said, that it is probed stays true.
        let found = Found { library, path: path.to_owned(), name, by, pause, error };
        let _ = self.found.try_send(found);
    }

    fn remember(&mut self, library: u64) {
        if self.known.len() >= MOST_KNOWN {
            self.known.clear();
        }
        self.known.insert(library);
    }

    /// A file that was written to is not what was looked through; and the kernel would go on executing the instruction that stood at the
    /// probe before. One that was deleted and that nobody has mapped any more needs no probe.
    fn look_again(&mut self) {
        let files = || self.probed.iter().filter_map(|(library, file)| Some((*library, file.as_ref()?)));
        let mut gone: Vec<u64> = files()
            .filter(|(library, file)| number(file).ok() != Some(*library))
            .map(|(library, _)| library)
            .collect();
        if let Some(search) = &self.search
            && search.is_finished()
            && let Some(search) = self.search.take()
        {
            // It does not panic; if it did, nothing was found.
            gone.extend(search.join().unwrap_or_default());
        }
        let deleted = files().filter_map(|(library, file)| {
            let status = file.metadata().ok().filter(|status| status.nlink() == 0)?;
            Some((library, status.ino()))
        });
        let deleted: Vec<(u64, u64)> = deleted.collect();
        if self.search.is_none() && !deleted.is_empty() && self.searched.elapsed() >= SEARCH_AGAIN {
            self.searched = Instant::now();
            // Not here: it reads what every process has mapped, and somebody may be about to map something new.
            let search =
                thread::Builder::new().name("mapped files".to_owned()).spawn(move || unused(deleted));
            self.search = search.ok();
        }
        for library in gone {
            if let Err(error) = self.uprobes.detach(library) {
                tracing::warn!(%error, "a probe stays in a file that has changed");
            }
            self.probed.remove(&library);
        }
    }
}

/// Those of deleted files (number, inode) that no process has mapped.
fn unused(mut files: Vec<(u64, u64)>) -> Vec<u64> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    for process in processes.flatten() {
        if process.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit)
            && let Ok(maps) = fs::read_to_string(process.path().join("maps"))
        {
            files.retain(|(_, inode)| !maps.contains(&format!(" {inode} ")));
        }
    }
    files.into_iter().map(|(library, _)| library).collect()
}

/// A file of the host's that was looked through, and is probed where there is something to probe.
struct Seen {
    library: u64,
    file: File,
    path: PathBuf,
    probes: Vec<Probe>,
    error: Option<String>,
}

/// Looks through a file of the host's, and probes it. `None`: it is not there.
fn see_file(uprobes: &Uprobes, path: &Path) -> Option<Seen> {
    let file = File::open(path).ok()?;
    let library = number(&file).ok()?;
    let (probes, error) = match library::inspect(&file) {
        Ok(probes) => {
            let attached = if probes.is_empty() { Ok(()) } else { uprobes.attach(&file, library, &probes) };
            (probes, attached.err().map(|error| error.to_string()))
        }
        Err(unreadable) => (Vec::new(), Some(unreadable.to_string())),
    };
    Some(Seen { library, file, path: path.to_owned(), probes, error })
}

/// Whether a library has a name that TLS libraries have. For an order only: what it is, its contents say.
fn is_probable(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.starts_with(b"libcrypto") || name.starts_with(b"libgnutls")
}

/// What the host's dynamic linker knows (ld.so.cache(5)).
fn host_libraries() -> Vec<PathBuf> {
    let Ok(cache) = fs::read("/etc/ld.so.cache") else { return Vec::new() };
    let names: BTreeSet<&[u8]> = cache
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"/") && name.contains(&b'.'))
        .take(MOST_KNOWN)
        .collect();
    names.into_iter().map(|name| PathBuf::from(OsStr::from_bytes(name))).collect()
}

fn points_of(probes: &[Probe]) -> Vec<Point> {
    let points: BTreeSet<Point> = probes.iter().map(|probe| probe.point).collect();
    points.into_iter().collect()
}

/// A line of /proc/PID/maps (proc(5)), if it is code of a file: `start-end perms offset device inode path`.
fn executable(process: u32, line: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()?.contains('x');
    let inode = fields.nth(2)?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    (is_code && inode != "0").then_some(())?;
    Some(Mapping { process, start: address(start)?, end: address(end)? })
}

/// The number of a file, as it is now. One that is replaced or written to has another.
fn number(file: &File) -> io::Result<u64> {
    let status = file.metadata()?;
    let numbers = [
        status.dev(),
        status.ino(),
        status.size(),
        status.mtime().cast_unsigned(),
        status.mtime_nsec().cast_unsigned(),
    ];
    let mut digest = Sha256::new();
    numbers.iter().for_each(|number| digest.update(number.to_le_bytes()));
    let mut first = [0; 8];
    first.copy_from_slice(&digest.finalize()[..8]);
    Ok(u64::from_le_bytes(first))
}

/// A session that is held while its library is probed.
///
/// A daemon that is killed meanwhile would leave it held. So which cgroup it is stands in a file, and the next daemon lets it go.
struct Hold<'a> {
    hierarchy: &'a Hierarchy,
    note: &'a Path,
    /// Id of the session's cgroup, and a process in it or below it.
    whom: Option<(u64, u32)>,
    held: Option<(PathBuf, Instant)>,
}

impl<'a> Hold<'a> {
    fn new(hierarchy: &'a Hierarchy, note: &'a Path, whom: Option<(u64, u32)>) -> Self {
        Self { hierarchy, note, whom, held: None }
    }

    fn take(&mut self) {
        let Some((cgroup, process)) = self.whom.take() else { return };
        let held = self.switch(cgroup, process);
        match held {
            Ok(Some(switch)) => self.held = Some((switch, Instant::now())),
            // Somebody else holds it, and it does nothing.
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, process, "a session is not held while its library is probed")
            }
        }
    }

    /// Freezes the cgroup of that id among those that the process lives in. Answers what thaws it; `None`: it was frozen already.
    fn switch(&self, cgroup: u64, process: u32) -> io::Result<Option<PathBuf>> {
        let memberships = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
        let lives = self.hierarchy.of_process(&memberships).map_err(io::Error::other)?;
        let path = lives
            .path()
            .ancestors()
            .take_while(|path| *path != self.hierarchy.mount())
            .find(|path| fs::metadata(path).is_ok_and(|status| status.ino() == cgroup))
            .ok_or(io::ErrorKind::NotFound)?;
        let switch = path.join("cgroup.freeze");
        if fs::read_to_string(&switch)?.trim() != "0" {
            return Ok(None);
        }
        fs::write(self.note, switch.as_os_str().as_bytes())?;
        fs::write(&switch, "1")?;
        Ok(Some(switch))
    }

    /// Lets go. Answers how long it was held.
    fn release(mut self) -> Option<Duration> {
        self.let_go()
    }

    fn let_go(&mut self) -> Option<Duration> {
        let (switch, since) = self.held.take()?;
        if let Err(error) = fs::write(&switch, "0")
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(%error, path = %switch.display(), "a session stays frozen: write 0 there");
        }
        let pause = since.elapsed();
        let _ = fs::remove_file(self.note);
        Some(pause)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Lets the session go that an earlier daemon held when it was killed.
fn thaw_what_was_left(note: &Path) {
    let Ok(switch) = fs::read(note) else { return };
    let switch = Path::new(OsStr::from_bytes(&switch));
    if switch.file_name() == Some(OsStr::new("cgroup.freeze")) && switch.exists() {
        match fs::write(switch, "0") {
            Ok(()) => {
                tracing::info!(path = %switch.display(), "a session that an earlier daemon held goes on")
            }
            Err(error) => {
                tracing::error!(%error, path = %switch.display(), "a session stays frozen: write 0 there")
            }
        }
    }
    let _ = fs::remove_file(note);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_files_is_found_among_the_mappings() {
        let line = "7f3fcd177000-7f3fcd19d000 r-xp 00001000 fe:00 325843    /usr/lib/ld (deleted)";
        let mapping = Mapping { process: 3, start: 0x7f3f_cd17_7000, end: 0x7f3f_cd19_d000 };
        assert_eq!(executable(3, line), Some(mapping));
        for other in [
            "7f3fcd177000-7f3fcd19d000 r--p 00001000 fe:00 325843 /usr/lib/ld",
            "7f3fcd177000-7f3fcd19d000 r-xp 00000000 00:00 0 [vdso]",
            "7f3fcd177000-7f3fcd19d000",
            "",
        ] {
            assert_eq!(executable(3, other), None, "{other}");
        }
    }

    #[test]
    fn a_file_that_is_written_to_has_another_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "one").unwrap();
        let file = File::open(&path).unwrap();
        let before = number(&file).unwrap();
        assert_eq!(number(&file).unwrap(), before);
        fs::write(&path, "longer").unwrap();
        assert_ne!(number(&file).unwrap(), before);
    }

    #[test]
    fn what_was_left_frozen_is_thawed_and_nothing_else_written() {
        let directory = tempfile::tempdir().unwrap();
        let (note, switch) = (directory.path().join("frozen"), directory.path().join("cgroup.freeze"));
        let other = directory.path().join("other");
        for (named, expected) in [(&switch, "0"), (&other, "1")] {
            fs::write(named, "1").unwrap();
            fs::write(&note, named.as_os_str().as_bytes()).unwrap();
            thaw_what_was_left(&note);
            assert_eq!(fs::read_to_string(named).unwrap(), expected);
            assert!(!note.exists());
        }
    }
}
