//! Finding the TLS libraries that agents use, and probing each before it is used.
//!
//! A thread of its own, because it races with the agent: between the moment that code is mapped and the first handshake, the code
//! must be probed. It runs before everything that is not real-time. A file that has something to probe and is not probed yet, and
//! one that takes long to look through, has the session's cgroup frozen until the probe is in; how long that was is told.
//!
//! A file is looked through once, whoever maps it, and told by what it is now (device, inode, size, times), never by its name: a library that
//! is replaced or written to is another file. Its owner can set the time when it was written, but not the one when its inode
//! changed, so that one counts as well. The libraries that the host's dynamic linker knows are probed at the start, so that the first
//! agent finds them probed.
//!
//! Files are opened through /proc/PID/map_files, which leads to what is mapped: in containers, under other roots, and when it was deleted.
//!
//! Agents choose what they map, so all of this is bounded. The thread reads no file itself (`examine`), and a session stands still for
//! [`LONGEST`] at most; then it goes on, and from then on is not held for its files. What an agent's own file system would
//! have to answer is not touched (`filesystem`). Of the files that may be probed at one time, each session has a share (`known`).

mod examine;
mod filesystem;
mod hold;
mod known;

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use sha2::{Digest as _, Sha256};

use crate::kernel::cgroup::Hierarchy;
use crate::kernel::mappings::{Mapping, Mappings, Said};
use crate::kernel::tables::Members;
use crate::kernel::uprobe::Uprobes;
use crate::library::{self, Point, Probe};

use self::examine::{Aim, Examined, Examiner, Job, Outcome};
use self::hold::{Hold, thaw_what_was_left};
use self::known::Known;
use super::scheduling;

use std::os::fd::AsFd as _;

/// Time between two looks at whether probed files are still what they were.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Time between two searches for deleted files that nobody has mapped any more.
const SEARCH_AGAIN: Duration = Duration::from_secs(60);
/// The longest that a session stands still for a file.
const LONGEST: Duration = Duration::from_secs(1);
/// The longest list of the host's libraries.
const MOST_LIBRARIES: usize = 65536;
/// Threads that look for the version of a long file.
const MOST_NAMING: usize = 16;
/// Processes that are held for a file that is being looked through for another one.
const MOST_OTHERS: usize = 64;
/// Files that are being looked through, of which a session may have as many as are still left.
const MOST_ASKED: usize = 4096;
/// How often a mapping may be cut while it is looked at.
const MOST_CUTS: usize = 8;
/// Descriptors that are ever needed.
const MOST_DESCRIPTORS: u64 = 16384;
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
        thaw_what_was_left(runtime_dir);
        let known = Known::of_earlier(uprobes.libraries()?);
        let uprobes = Arc::new(uprobes);
        let (sender_of_seen, seen) = sync_channel(16);
        let of_host = Arc::clone(&uprobes);
        let (answers, answered) = channel();
        let mut watch = Watch {
            uprobes,
            members,
            hierarchy,
            notes: runtime_dir.to_owned(),
            known,
            seen,
            search: None,
            searched: Instant::now(),
            found: sender,
            examiners: HashMap::new(),
            spare: None,
            answers,
            answered,
            wake: Arc::clone(&wake),
            asked: HashMap::new(),
            last: 0,
            slow: BTreeSet::new(),
            naming: Arc::new(AtomicUsize::new(0)),
        };
        // Agents begin as `auditor run`, which says nothing under TLS.
        if let Ok(own) = File::open("/proc/self/exe").and_then(|file| Identity::of(&file)) {
            watch.known.nothing(0, own.number, None);
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

/// Lets this process have as many descriptors as it may: one for each file that is probed.
pub(super) fn may_have_many_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(now, most)| {
        setrlimit(Resource::RLIMIT_NOFILE, now.max(most.min(MOST_DESCRIPTORS)), most)
    });
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of descriptors stays as it is");
    }
}

/// The thread's state.
struct Watch {
    uprobes: Arc<Uprobes>,
    members: Members,
    hierarchy: Hierarchy,
    /// Where files are that name the cgroups which are frozen now.
    notes: PathBuf,
    known: Known,
    /// What is learnt of the host's libraries.
    seen: Receiver<Seen>,
    /// A search for files that nobody has mapped any more, and when the last one began.
    search: Option<thread::JoinHandle<Vec<u64>>>,
    searched: Instant,
    found: SyncSender<Found>,
    /// Who looks through the files of a session, and one who has nothing to do.
    examiners: HashMap<u64, Examiner>,
    spare: Option<Examiner>,
    answers: Sender<Examined>,
    answered: Receiver<Examined>,
    wake: Arc<EventFd>,
    /// What they were asked for, by the job's number.
    asked: HashMap<u64, Asked>,
    last: u64,
    /// Sessions that nobody waits for any more.
    slow: BTreeSet<u64>,
    /// How many threads look for versions.
    naming: Arc<AtomicUsize>,
}

/// A file that is being looked through.
struct Asked {
    library: u64,
    path: PathBuf,
    by: Option<(u64, u32)>,
    aim: Aim,
    /// Nobody waits for it any more.
    is_late: bool,
    hold: Arc<Hold>,
    /// Other processes that have mapped it meanwhile.
    others: Vec<(u32, Hold)>,
}

impl Asked {
    fn session(&self) -> u64 {
        self.by.map_or(0, |(session, _)| session)
    }
}

impl Watch {
    fn run(&mut self, mut mappings: Mappings, orders: &Receiver<Order>, wake: &EventFd) {
        let mut looked = Instant::now();
        loop {
            let limit = if self.asked.is_empty() { LOOK_AGAIN } else { LOOK_AGAIN / 4 };
            if let Err(error) = mappings.wait(limit) {
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
            while let Ok(examined) = self.answered.try_recv() {
                self.settle(examined);
            }
            self.give_up_waiting();
            if looked.elapsed() >= LOOK_AGAIN {
                looked = Instant::now();
                self.look_again();
            }
        }
    }

    /// Takes over what was learnt of a file of the host's.
    fn take_seen(&mut self, seen: Seen) {
        let Seen { identity, file, path, is_probed, name, error } = seen;
        let library = identity.number;
        if !self.known.is_new(0, library) && !self.known.is_unknown(0, library) {
            return;
        }
        if is_probed {
            self.probed(0, identity, file);
        } else {
            self.known.nothing(0, library, None);
        }
        if is_probed || error.is_some() {
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
        for mapping in maps.lines().filter_map(|line| Mapping::listed(process, line)) {
            self.mapped(mapping);
        }
    }

    fn mapped(&mut self, mapping: Mapping) {
        let Ok(Some(member)) = self.members.get(mapping.process) else { return };
        let Mapping { process, device, .. } = mapping;
        // The process is gone, or has mapped something else there, which is told too.
        let Ok((place, library)) = reach(&mapping, number_at) else { return };
        let by = Some((member.session, process));
        if let Some(error) = self.known.unreadable(member.session, library).map(str::to_owned) {
            self.refuse(library, fs::read_link(&place).unwrap_or_default(), by, None, error);
            return;
        }
        let is_new = self.known.is_new(member.session, library);
        if !is_new && !self.known.is_unknown(member.session, library) {
            return;
        }
        let whom = (!self.slow.contains(&member.session)).then_some((member.cgroup, process));
        // Somebody looks through it already, for this session or for another one, which then stands still with that one.
        let is_it = |asked: &&mut Asked| {
            asked.library == library && (asked.aim != Aim::Count || asked.session() == member.session)
        };
        if let Some(asked) = self.asked.values_mut().find(is_it) {
            if asked.by != by && asked.others.len() < MOST_OTHERS {
                self.last += 1;
                let whom = whom.filter(|_| !asked.is_late);
                let hold = Hold::new(&self.hierarchy, &self.notes, self.last, whom);
                hold.take();
                asked.others.push((process, hold));
            }
            return;
        }
        let path = fs::read_link(&place).unwrap_or_default();
        if let Err(error) = filesystem::is_readable(device, process) {
            self.refuse(library, path, by, None, error);
            return;
        }
        let probing = || self.asked.values().filter(|asked| asked.aim == Aim::Probe);
        let own = probing().filter(|asked| asked.session() == member.session).count();
        let aim = match (is_new, self.known.admits(member.session, (own, probing().count()))) {
            (true, true) => Aim::Probe,
            (true, false) => Aim::Count,
            (false, _) => Aim::Recognise,
        };
        self.last += 1;
        let hold = Arc::new(Hold::new(&self.hierarchy, &self.notes, self.last, whom));
        let asked = Asked { library, path, by, aim, is_late: false, hold, others: Vec::new() };
        self.examine(mapping, asked);
    }

    /// Has a file looked through by its session's examiner.
    fn examine(&mut self, mapping: Mapping, asked: Asked) {
        let session = asked.session();
        let waiting = self.asked.values().filter(|asked| asked.session() == session).count();
        let is_admitted = waiting < MOST_ASKED.saturating_sub(self.asked.len());
        let (uprobes, answers, wake) = (&self.uprobes, &self.answers, &self.wake);
        let job = Job { id: self.last, mapping, hold: Arc::clone(&asked.hold), aim: asked.aim };
        if is_admitted
            && let Some(examiner) = self
                .examiners
                .remove(&session)
                .or_else(|| self.spare.take())
                .or_else(|| Examiner::start(uprobes, answers, wake))
        {
            let takes = examiner.ask(job);
            self.examiners.insert(session, examiner);
            if takes {
                self.asked.insert(self.last, asked);
                return;
            }
        }
        let error = "there are too many files to look through".to_owned();
        self.refuse(asked.library, asked.path, asked.by, None, error);
    }

    /// Lets those go who have waited long enough for an examiner. It goes on alone, and what it finds is taken when it comes back.
    fn give_up_waiting(&mut self) {
        for asked in self.asked.values_mut() {
            if asked.is_late || asked.hold.lasts() < LONGEST {
                continue;
            }
            asked.is_late = true;
            asked.others.iter().for_each(|(_, hold)| _ = hold.let_go());
            let pause = asked.hold.let_go();
            self.slow.insert(asked.session());
            let found = Found {
                library: asked.library,
                path: asked.path.clone(),
                name: None,
                by: asked.by,
                pause,
                error: Some(format!(
                    "it could not be looked through within {LONGEST:?}: until it is, it is not probed"
                )),
            };
            let _ = self.found.try_send(found);
        }
    }

    /// Takes over what was learnt of a file.
    fn settle(&mut self, examined: Examined) {
        let Some(asked) = self.asked.remove(&examined.id) else { return };
        let session = asked.session();
        let Asked { library, path, by, aim, others, .. } = asked;
        if !self.asked.values().any(|asked| asked.session() == session) {
            self.spare = self.examiners.remove(&session).or(self.spare.take());
        }
        let Examined { outcome, pause, .. } = examined;
        let Outcome { file, identity, points, name, error, is_unreadable } = match outcome {
            Ok(outcome) => outcome,
            // The process is gone, or has unmapped it; whoever else has mapped it may not have.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                for (process, hold) in others {
                    drop(hold);
                    self.look_at(process);
                }
                return;
            }
            Err(error) => {
                self.refuse(library, path, by, pause, format!("it cannot be read: {error}"));
                return;
            }
        };
        let library = identity.number;
        if let Some(error) = error {
            if is_unreadable {
                self.known.nothing(session, library, Some(error.clone()));
            }
            self.refuse(library, path, by, pause, error);
        } else if points.is_empty() {
            self.known.nothing(session, library, None);
            if pause.is_some() {
                let found = Found { library, path, name: None, by, pause, error: None };
                let _ = self.found.try_send(found);
            }
        } else if aim == Aim::Count {
            let error = "there are as many probed files as its session may have".to_owned();
            self.refuse(library, path, by, pause, error);
        } else {
            let copy = file.try_clone();
            self.probed(session, identity, file);
            // Whoever takes them is behind: that a library was found is not said, that it is probed stays true.
            let found = Found { library, path, name, by, pause, error: None };
            match copy {
                Ok(copy) if found.name.is_none() => self.name(found, copy, points),
                _ => _ = self.found.try_send(found),
            }
        }
    }

    /// Says that a file is not probed for a session, once.
    fn refuse(
        &mut self,
        library: u64,
        path: PathBuf,
        by: Option<(u64, u32)>,
        pause: Option<Duration>,
        error: String,
    ) {
        self.known.refuse(by.map_or(0, |(session, _)| session), library);
        let _ = self.found.try_send(Found { library, path, name: None, by, pause, error: Some(error) });
    }

    /// A file is probed from now on; under its number of before it was written to, no more.
    fn probed(&mut self, session: u64, identity: Identity, file: File) {
        if let Some(earlier) = self.known.probed(session, identity, file)
            && let Err(error) = self.uprobes.detach(earlier)
        {
            tracing::warn!(%error, "a probe stays in a file that has changed");
        }
    }

    /// Looks for the version in a file that is long, which nobody is to wait for.
    fn name(&self, mut found: Found, file: File, points: Vec<Point>) {
        let (sender, naming) = (self.found.clone(), Arc::clone(&self.naming));
        if naming.fetch_add(1, Ordering::Relaxed) < MOST_NAMING {
            let thread = thread::Builder::new().name("library name".to_owned()).spawn(move || {
                found.name = library::name(&file, &points);
                naming.fetch_sub(1, Ordering::Relaxed);
                let _ = sender.try_send(found);
            });
            if thread.is_ok() {
                return;
            }
            self.naming.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("a library is probed, and no thread says which it is");
            return;
        }
        naming.fetch_sub(1, Ordering::Relaxed);
        found.name = points.first().map(|point| point.library().to_owned());
        let _ = sender.try_send(found);
    }

    /// A file that was written to is not what was looked through; and the kernel would go on executing the instruction that stood at the
    /// probe before. One that was deleted and that nobody has mapped any more needs no probe; nor does any, where there are many.
    fn look_again(&mut self) {
        let known = &self.known;
        let mut gone: Vec<u64> = known
            .files()
            // Another name or none, or other rights: whoever has mapped it executes what he did before.
            .filter(|(library, file)| {
                !Identity::of(file).is_ok_and(|now| known.has_content(*library, now.content))
            })
            .map(|(library, _)| library)
            .collect();
        if let Some(search) = &self.search
            && search.is_finished()
            && let Some(search) = self.search.take()
        {
            // It does not panic; if it did, nothing was found.
            gone.extend(search.join().unwrap_or_default());
        }
        let is_crowded = known.is_crowded();
        let deleted = known.files().filter_map(|(library, file)| {
            let status = status(file.as_raw_fd(), c"").ok()?;
            let may_go = status.stx_nlink == 0 || is_crowded && !known.is_hosts(library);
            may_go.then_some((library, status.stx_ino))
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
            self.known.forget(library);
        }
    }
}

/// Those of some files (number, inode) that no process has mapped.
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
    identity: Identity,
    file: File,
    path: PathBuf,
    is_probed: bool,
    name: Option<String>,
    error: Option<String>,
}

/// Looks through a file of the host's, and probes it. `None`: it is not there.
fn see_file(uprobes: &Uprobes, path: &Path) -> Option<Seen> {
    let file = File::open(path).ok()?;
    let identity = Identity::of(&file).ok()?;
    let (probes, error) = match library::inspect(&file) {
        Ok(probes) => {
            let attached =
                if probes.is_empty() { Ok(()) } else { uprobes.attach(&file, identity.number, &probes) };
            (probes, attached.err().map(|error| error.to_string()))
        }
        Err(unreadable) => (Vec::new(), Some(unreadable.to_string())),
    };
    let name = library::name(&file, &points_of(&probes));
    let is_probed = !probes.is_empty() && error.is_none();
    Some(Seen { identity, file, path: path.to_owned(), is_probed, name, error })
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
        .take(MOST_LIBRARIES)
        .collect();
    names.into_iter().map(|name| PathBuf::from(OsStr::from_bytes(name))).collect()
}

fn points_of(probes: &[Probe]) -> Vec<Point> {
    let points: BTreeSet<Point> = probes.iter().map(|probe| probe.point).collect();
    points.into_iter().collect()
}

/// Does something with the file that is mapped, by the path that leads to it. What was told may be cut already when it is looked at: then with what
/// is left of it.
fn reach<T>(mapping: &Mapping, with: impl Fn(&Path) -> io::Result<T>) -> io::Result<(PathBuf, T)> {
    let mut now = *mapping;
    for _ in 0..MOST_CUTS {
        let Mapping { process, start, end, .. } = now;
        let place = PathBuf::from(format!("/proc/{process}/map_files/{start:x}-{end:x}"));
        match with(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => return done.map(|done| (place, done)),
        }
        match mapping.now() {
            Some(left) if left != now => now = left,
            _ => break,
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Which file it is, and whether it is still what it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Identity {
    /// Of the file as it is now. One that is replaced, written to or changed in any way has another.
    number: u64,
    /// Device and inode.
    inode: (u64, u64),
    /// The same as the number as long as nobody writes to the file, also where it loses its name. Its owner can forge it.
    content: u64,
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        status(file.as_raw_fd(), c"").map(|status| Self::told_by(&status))
    }

    fn told_by(status: &libc::statx) -> Self {
        let (device, inode) = (device_of(status), status.stx_ino);
        let content = [device, inode, status.stx_size, seconds(status.stx_mtime), parts(status.stx_mtime)];
        let changed = [seconds(status.stx_ctime), parts(status.stx_ctime)];
        let number = content.iter().chain(&changed).copied();
        Self { number: digest(number), inode: (device, inode), content: digest(content.into_iter()) }
    }
}

/// The number of what a path leads to, without opening it.
fn number_at(place: &Path) -> io::Result<u64> {
    let place = CString::new(place.as_os_str().as_bytes())?;
    status(libc::AT_FDCWD, &place).map(|status| Identity::told_by(&status).number)
}

fn seconds(time: libc::statx_timestamp) -> u64 {
    time.tv_sec.cast_unsigned()
}

fn parts(time: libc::statx_timestamp) -> u64 {
    time.tv_nsec.into()
}

fn device_of(status: &libc::statx) -> u64 {
    u64::from(status.stx_dev_major) << 32 | u64::from(status.stx_dev_minor)
}

fn digest(numbers: impl Iterator<Item = u64>) -> u64 {
    let mut digest = Sha256::new();
    numbers.for_each(|number| digest.update(number.to_le_bytes()));
    let mut first = [0; 8];
    first.copy_from_slice(&digest.finalize()[..8]);
    u64::from_le_bytes(first)
}

/// What is known of a file, without asking whoever is behind its file system: that one may not answer.
fn status(at: RawFd, path: &CStr) -> io::Result<libc::statx> {
    // SAFETY: plain numbers, for which zeros are a value.
    let mut status: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    // SAFETY: the path ends with NUL, and both outlive the call.
    match unsafe { libc::statx(at, path.as_ptr(), flags, libc::STATX_BASIC_STATS, &raw mut status) } {
        0 => Ok(status),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_that_is_cut_leads_to_its_file() {
        let file = File::open("/proc/self/exe").unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let code = maps.lines().find_map(|line| Mapping::listed(std::process::id(), line)).unwrap();
        assert_eq!(code.now(), Some(code));
        // As it was told before other segments were mapped over its end.
        let told = Mapping { end: code.end + (1 << 20), ..code };
        let (_, number) = reach(&told, number_at).unwrap();
        assert_eq!(number, Identity::of(&file).unwrap().number);
        let nowhere = Mapping { start: 4096, end: 8192, ..code };
        assert_eq!(nowhere.now(), None);
        assert_eq!(reach(&nowhere, number_at).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_that_is_written_to_has_another_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "one").unwrap();
        let file = File::open(&path).unwrap();
        let before = Identity::of(&file).unwrap();
        assert_eq!(Identity::of(&file).unwrap(), before);
        assert_eq!(number_at(&path).unwrap(), before.number);
        fs::write(&path, "longer").unwrap();
        let now = Identity::of(&file).unwrap();
        assert!(now.number != before.number && now.content != before.content && now.inode == before.inode);
    }

    #[test]
    fn a_time_that_is_forged_does_not_hide_that_a_file_was_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "nothing").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let (before, written) = (Identity::of(&file).unwrap(), file.metadata().unwrap().modified().unwrap());
        // The clock of files has steps of some milliseconds.
        while number_at(&path).unwrap() == before.number {
            fs::write(&path, "library").unwrap();
            file.set_modified(written).unwrap();
        }
        assert_eq!(Identity::of(&file).unwrap().content, before.content);
    }

    #[test]
    fn a_file_that_loses_its_name_keeps_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "library").unwrap();
        let file = File::open(&path).unwrap();
        let before = Identity::of(&file).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(Identity::of(&file).unwrap().content, before.content);
    }
}
