//! The object with the kernel programs: loading it, and attaching its programs to cgroups and tracepoints.

use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use aya::maps::{Map, MapData};
use aya::programs::cgroup_skb::CgroupSkbAttachType;
use aya::programs::cgroup_sockopt::CgroupSockoptLink;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSock, CgroupSockAddr, Program, ProgramError, SockOps,
};
use aya::{Ebpf, EbpfError, EbpfLoader};
use nix::mount::{MsFlags, mount};
use sha2::{Digest as _, Sha256};

use super::cgroup::{Cgroup, CgroupError};
use super::secrets::Secrets;
use super::tables::{Members, TableError, Tables};
use super::tasks::{self, TasksError};
use super::tracefs::{self, Offsets, TracefsError};
use super::uprobe::Uprobes;
use super::{bpf, btf, link, orphan, unix, unix_stream, uprobe};

/// The compiled kernel programs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("AUDITOR_BPF_OBJECT"));

/// How the programs of one kind are attached to a cgroup.
type AttachToCgroup = fn(&mut Program, &fs::File) -> Result<FdLink, ProgramError>;

/// A program that is attached to cgroups, and the kernel that it needs at least.
struct Hook {
    name: &'static str,
    kernel: &'static str,
    attach: AttachToCgroup,
}

const HOOKS: [Hook; 9] = [
    Hook { name: "connect4", kernel: "4.17", attach: attach_sock_addr },
    Hook { name: "connect6", kernel: "4.17", attach: attach_sock_addr },
    Hook { name: "sendmsg4", kernel: "4.18", attach: attach_sock_addr },
    Hook { name: "sendmsg6", kernel: "4.18", attach: attach_sock_addr },
    Hook { name: "sock_create", kernel: "4.10", attach: attach_sock },
    Hook { name: "sock_release", kernel: "5.9", attach: attach_sock },
    Hook { name: "sock_operation", kernel: "4.13", attach: attach_sock_ops },
    Hook { name: "ingress", kernel: "4.10", attach: attach_skb },
    // Last: from here on packets of sockets without a session are refused.
    Hook { name: "egress", kernel: "4.10", attach: attach_skb },
];

/// Tells of a socket whether it was made in a cgroup; attached for the length of that question.
const MEMBERSHIP: (&str, &str) = ("membership", "5.3");

/// Group and name.
const TRACEPOINTS: [(&str, &str); 4] = [
    ("sched", "sched_process_exec"),
    ("sched", "sched_process_fork"),
    ("sched", "sched_process_exit"),
    ("cgroup", "cgroup_attach_task"),
];

/// All maps of the object, pinned so that the next daemon finds them with what is in them.
const MAPS: [&str; 18] = [
    "PAYLOAD",
    "LIFECYCLE",
    "CONTROL",
    "FAILURES",
    "RULES",
    "REFUSALS",
    "SESSIONS",
    "SOCKETS",
    "SHARES",
    "MEMBERS",
    "RELEASED",
    "WALK",
    "WALK_STEPS",
    "NAMES",
    "UNIX_SOCKETS",
    "UNIX_STREAMS",
    "UNIX_IN_CHARGE",
    "SECRETS",
];
const LAYOUT_PREFIX: &str = "layout-";
const TRACEPOINTS_PREFIX: &str = "tracepoints-";
const UPROBES_PREFIX: &str = "uprobes-";

/// Links for tracepoints (BPF_LINK_TYPE_PERF_EVENT).
const TRACEPOINT_KERNEL: &str = "5.15";

/// Why the kernel side could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// tracefs.
    #[error(transparent)]
    Tracefs(#[from] TracefsError),
    /// The kernel's type information.
    #[error(transparent)]
    Tasks(#[from] TasksError),
    /// The object as a whole was refused.
    #[error(
        "the kernel refused the auditor's tables or types: {}; `auditor doctor` says what this kernel lacks",
        with_causes(.0)
    )]
    Object(EbpfError),
    /// One program was refused.
    #[error("the kernel refused the program {name} (it needs Linux {kernel}): {error}")]
    Program {
        /// Which.
        name: &'static str,
        /// Oldest kernel.
        kernel: &'static str,
        /// The kernel's answer, with the verifier's words.
        error: ProgramError,
    },
    /// A program is not in the object.
    #[error("the object has no program {0}: daemon and programs are of different versions")]
    Missing(&'static str),
    /// A table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The configuration has rules about unix sockets, and this host cannot decide them.
    #[error(
        "the configuration has rules for unix sockets, which cannot be decided here: {0}; boot a kernel of 6.7 or later, or remove them"
    )]
    UnixRules(String),
    /// A map is in the object and not in the list of those that are pinned.
    #[error("the object's map {0} is not pinned: this is a defect of the auditor, please report it")]
    NotPinned(String),
    /// The directory for pins.
    #[error("make {path}: {error}; name a directory on a bpffs with --pin-dir")]
    Pins {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// A cgroup is gone, or its directory could not be opened.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A link could not be kept in bpffs.
    #[error("keep the program {name} in {path}: {error}")]
    Pin {
        /// Which.
        name: &'static str,
        /// Where.
        path: PathBuf,
        /// What failed.
        error: String,
    },
}

impl KernelError {
    /// What the kernel itself answered, as an errno value.
    pub fn os_error(&self) -> Option<i32> {
        use std::error::Error as _;
        let mut cause: Option<&dyn std::error::Error> = match self {
            Self::Program { error, .. } => Some(error),
            other => other.source(),
        };
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return error.raw_os_error();
            }
            cause = error.source();
        }
        None
    }
}

/// An error and what caused it, in one line: the kernel's own answer is the last of aya's causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Some of aya's errors say their cause themselves.
        let text = error.to_string();
        if !said.ends_with(&text) {
            said = format!("{said}: {text}");
        }
        cause = error.source();
    }
    said
}

/// Sizes of the two rings in bytes: powers of two, multiples of a page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RingSizes {
    /// Segments.
    pub payload: u32,
    /// Verdicts, connections, processes.
    pub lifecycle: u32,
}

/// Links to one cgroup, pinned in a directory: they outlive the daemon, and only [`Self::detach`] ends them.
#[derive(Debug)]
pub struct Attachment {
    links: Vec<(&'static str, FdLink)>,
    pins: PathBuf,
}

impl Attachment {
    /// What of an earlier daemon's links is pinned in a directory, with that daemon's programs.
    pub fn left_in(pins: &Path) -> Self {
        let found = |name| Some((name, PinnedLink::from_pin(pins.join(name)).ok()?.into()));
        Self { links: hook_names().filter_map(found).collect(), pins: pins.to_owned() }
    }

    /// Detaches.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn detach(self) -> io::Result<()> {
        for name in hook_names() {
            remove(&self.pins.join(name))?;
        }
        // The directory may hold more than these links.
        let _ = fs::remove_dir(&self.pins);
        Ok(())
    }

    /// Names of the programs.
    pub fn programs(&self) -> impl Iterator<Item = &'static str> {
        self.links.iter().map(|(name, _)| *name)
    }
}

/// Names of all programs on cgroups, and of their links' pins.
pub(super) fn hook_names() -> impl Iterator<Item = &'static str> {
    HOOKS.iter().map(|hook| hook.name).chain(unix::programs())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Takes down all that is pinned in a directory, and removes it.
///
/// # Errors
/// unlink(2) or rmdir(2) failed.
pub fn remove_pins(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a directory for pins, for root only.
///
/// # Errors
/// mkdir(2) failed.
pub fn make_pins(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// The loaded object.
#[derive(Debug)]
pub struct Object {
    ebpf: Ebpf,
    unix: Result<unix::Programs, unix::Unsupported>,
    pins: PathBuf,
    /// Below it: the tables, and the links of programs on tracepoints and in libraries, which are bound to the tables.
    layout: PathBuf,
    /// Below that: the links of this object's programs on tracepoints.
    tracepoint_pins: PathBuf,
    /// The same of those in libraries.
    uprobe_pins: PathBuf,
    tracepoints: Vec<FdLink>,
    /// On the tracepoints of [`unix_stream`], while they are attached.
    streams: Vec<FdLink>,
}

/// What loading gives: the programs, the tables, and the rings.
pub struct Loaded {
    /// Programs.
    pub object: Object,
    /// Tables.
    pub tables: Tables,
    /// Segments.
    pub payload: MapData,
    /// Verdicts, connections, processes.
    pub lifecycle: MapData,
    /// TLS secrets.
    pub secrets: Secrets,
    /// Which session tasks are in.
    pub members: Members,
    /// Programs that take TLS secrets.
    pub uprobes: Result<Uprobes, uprobe::Unsupported>,
    /// The tables and rings are an earlier daemon's, with what is in them.
    pub found: bool,
}

impl Object {
    /// Loads all programs. Tables and rings are those that an earlier daemon pinned in `pins`, where they are of this daemon's
    /// layout; else they are new, and pinned. Nothing is attached yet. tracefs must be mounted ([`tracefs::ensure_mounted`]).
    ///
    /// # Errors
    /// Something is missing in this kernel; the message names it.
    pub fn load(sizes: RingSizes, pins: &Path) -> Result<Loaded, KernelError> {
        let tables = pins.join(layout(sizes));
        let found = MAPS.iter().all(|map| tables.join(map).exists());
        if !found {
            // Some of them: a daemon was killed while it began, and nobody has used them.
            remove_pins(&tables)
                .and_then(|()| make_pins(&tables))
                .map_err(|error| KernelError::Pins { path: tables.clone(), error })?;
        }
        let loaded = Self::load_into(sizes, pins, &tables, found);
        if loaded.is_err() && !found {
            // The error at hand matters more than one more. `pins` may hold something else.
            let _ = remove_pins(&tables);
            let _ = fs::remove_dir(pins);
        }
        loaded
    }

    fn load_into(sizes: RingSizes, pins: &Path, pinned: &Path, found: bool) -> Result<Loaded, KernelError> {
        let offsets = Offsets::read(Path::new(tracefs::MOUNT))?;
        let tasks = tasks::globals(Path::new(btf::VMLINUX))?;
        let unix = unix::globals(Path::new(btf::VMLINUX), Path::new("/proc"));
        let program = program_number();
        let mut loader = EbpfLoader::new();
        for (name, value) in tasks.iter().chain(unix.iter().flatten()) {
            loader.override_global(name, value, true);
        }
        loader
            .map_max_entries("PAYLOAD", sizes.payload)
            .map_max_entries("LIFECYCLE", sizes.lifecycle)
            .override_global("EXEC_FILENAME_OFFSET", &offsets.exec_filename, true)
            .override_global("PROGRAM", &program, true)
            .override_global("EXIT_GROUP_DEAD_OFFSET", &offsets.exit_group_dead, true);
        for map in MAPS {
            loader.map_pin_path(map, pinned.join(map));
        }
        let mut ebpf = loader.load(OBJECT).map_err(KernelError::Object)?;
        if let Some((name, _)) = ebpf.maps().find(|(name, _)| !MAPS.contains(name) && !name.starts_with('.'))
        {
            return Err(KernelError::NotPinned(name.to_owned()));
        }
        // Before the tables are taken out.
        let linked = unix::linked(OBJECT, &ebpf);
        let layout = pinned.to_owned();
        let uprobe_pins = layout.join(uprobes_directory());
        // What takes time is the verifier's work, which two processors can share.
        let (loaded, unix, uprobes) = thread::scope(|scope| {
            let beside = scope.spawn(|| Uprobes::load(&linked, uprobe_pins.clone()));
            let loaded = HOOKS.iter().try_for_each(|hook| load_program(&mut ebpf, hook.name, hook.kernel));
            let loaded = loaded.and_then(|()| load_program(&mut ebpf, MEMBERSHIP.0, MEMBERSHIP.1));
            let unix = unix.and_then(|_| unix::Programs::load(&linked));
            (loaded, unix, beside.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        loaded?;
        let tables = Tables::take(&mut ebpf, !found)?;
        let payload = ring(&mut ebpf, "PAYLOAD")?;
        let lifecycle = ring(&mut ebpf, "LIFECYCLE")?;
        let secrets = secrets(&mut ebpf)?;
        let members = Members::open(&pinned.join("MEMBERS"))?;
        let tracepoint_pins = layout.join(tracepoints_directory());
        let object = Self {
            ebpf,
            unix,
            pins: pins.to_owned(),
            layout,
            tracepoint_pins,
            uprobe_pins,
            tracepoints: Vec::new(),
            streams: Vec::new(),
        };
        Ok(Loaded { object, tables, payload, lifecycle, secrets, members, uprobes, found })
    }

    /// Attaches all cgroup programs to a cgroup and pins their links in `pins`. Where an earlier daemon's links are there, these
    /// programs take the place of its own, one by one, each in one step.
    ///
    /// # Errors
    /// The cgroup is gone ([`CgroupError::is_gone`]), or the kernel refused; what this call attached is detached again, and what was there before stays.
    pub fn attach(&mut self, cgroup: &Cgroup, pins: &Path) -> Result<Attachment, KernelError> {
        let directory = cgroup.open()?;
        make_pins(pins).map_err(|error| KernelError::Pins { path: pins.to_owned(), error })?;
        let mut links = Vec::with_capacity(HOOKS.len());
        let mut made = Vec::new();
        if let Err(error) = self.hold_all(&directory, pins, &mut links, &mut made) {
            for path in made {
                // The error at hand matters more than one more of the same kind.
                let _ = fs::remove_file(path);
            }
            let _ = fs::remove_dir(pins);
            return Err(error);
        }
        Ok(Attachment { links, pins: pins.to_owned() })
    }

    /// Puts this object's programs behind the links of a session that nobody knows any more: see [`orphan`]. `false`: the cgroup
    /// is gone, and the links are too now.
    ///
    /// # Errors
    /// The kernel refused. The old programs stay, and hold the cgroup by tables that nobody renews.
    pub fn hold_closed(&mut self, pins: &Path) -> io::Result<bool> {
        if orphan::cgroup_of(pins)?.is_none() {
            remove_pins(pins)?;
            return Ok(false);
        }
        for Hook { name, .. } in &HOOKS {
            let Some(program) = self.ebpf.program(name) else { continue };
            let program = program.fd().map_err(io::Error::other)?;
            replace(&pins.join(name), program.as_fd())?;
        }
        let Ok(programs) = &self.unix else {
            unix::programs().try_for_each(|name| remove(&pins.join(name)))?;
            return Ok(true);
        };
        for program in programs.iter() {
            replace(&pins.join(program.name()), program.as_fd())?;
        }
        Ok(true)
    }

    /// Why unix sockets are not decided on this host; `None` where they are.
    pub fn unix_unsupported(&self) -> Option<&unix::Unsupported> {
        self.unix.as_ref().err()
    }

    /// All programs on one cgroup. `made`: pins of links that are new.
    fn hold_all(
        &mut self,
        cgroup: &fs::File,
        pins: &Path,
        links: &mut Vec<(&'static str, FdLink)>,
        made: &mut Vec<PathBuf>,
    ) -> Result<(), KernelError> {
        for hook in &HOOKS {
            let path = pins.join(hook.name);
            let (link, new) = self.hold(hook, cgroup, &path)?;
            links.push((hook.name, link));
            made.extend(new.then_some(path));
        }
        let Ok(programs) = &self.unix else {
            // An earlier daemon's would go on with rules that nobody keeps.
            return unix::programs().try_for_each(|name| {
                let path = pins.join(name);
                remove(&path).map_err(|error| KernelError::Pin { name, path, error: error.to_string() })
            });
        };
        for program in programs.iter() {
            let (name, path) = (program.name(), pins.join(program.name()));
            let pin =
                |error: io::Error| KernelError::Pin { name, path: path.clone(), error: error.to_string() };
            let new = !replace(&path, program.as_fd()).map_err(pin)?;
            if new {
                let link = program.attach(cgroup.as_fd()).map_err(|error| KernelError::Program {
                    name,
                    kernel: unix::KERNEL,
                    error: ProgramError::IOError(error),
                })?;
                bpf::pin(link.as_fd(), &path).map_err(pin)?;
                made.push(path.clone());
            }
            let link = PinnedLink::from_pin(&path).map_err(|error| pin(io::Error::other(error)))?;
            links.push((name, link.into()));
        }
        Ok(())
    }

    /// One program on one cgroup. Answers whether the link is new.
    fn hold(&mut self, hook: &Hook, cgroup: &fs::File, path: &Path) -> Result<(FdLink, bool), KernelError> {
        let Hook { name, kernel, attach } = *hook;
        let pin = |error: String| KernelError::Pin { name, path: path.to_owned(), error };
        let program = self.ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
        let descriptor =
            program.fd().map_err(|error| KernelError::Program { name, kernel, error })?.try_clone();
        let descriptor = descriptor.map_err(|error| pin(error.to_string()))?;
        if replace(path, descriptor.as_fd()).map_err(|error| pin(error.to_string()))? {
            let link = PinnedLink::from_pin(path).map_err(|error| pin(error.to_string()))?;
            return Ok((link.into(), false));
        }
        let link = attach(program, cgroup).map_err(|error| KernelError::Program { name, kernel, error })?;
        let link = link.pin(path).map_err(|error| pin(error.to_string()))?;
        Ok((link.into(), true))
    }

    /// Attaches the programs on tracepoints and pins their links. Where the very same programs are attached already, they stay: a
    /// tracepoint's link cannot be given another program. Where an earlier version's are, each goes right after its successor has
    /// come: what happens in between is told twice, and nothing is missed.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn attach_tracepoints(&mut self) -> Result<(), KernelError> {
        let directory = self.tracepoint_pins.clone();
        let earlier = self.other_tracepoints();
        make_pins(&directory).map_err(|error| KernelError::Pins { path: directory.clone(), error })?;
        for (group, name) in TRACEPOINTS {
            let path = directory.join(name);
            let link = match PinnedLink::from_pin(&path) {
                Ok(link) => link,
                Err(_) => {
                    load_program(&mut self.ebpf, name, TRACEPOINT_KERNEL)?;
                    let link = attach_tracepoint(&mut self.ebpf, group, name)
                        .map_err(|error| KernelError::Program { name, kernel: TRACEPOINT_KERNEL, error })?;
                    link.pin(&path).map_err(|error| KernelError::Pin {
                        name,
                        path: path.clone(),
                        error: error.to_string(),
                    })?
                }
            };
            self.tracepoints.push(link.into());
            for earlier in &earlier {
                let path = earlier.join(name);
                remove(&path).map_err(|error| KernelError::Pin { name, path, error: error.to_string() })?;
            }
        }
        Ok(())
    }

    /// Directories with links of other versions' programs on tracepoints. Earlier versions kept them beside the tables.
    fn other_tracepoints(&self) -> Vec<PathBuf> {
        let mut others = directories(&self.layout, TRACEPOINTS_PREFIX);
        others.extend(directories(&self.pins, TRACEPOINTS_PREFIX));
        others.retain(|directory| *directory != self.tracepoint_pins);
        others
    }

    /// Has streams between unix sockets read from now on, or no longer. Where another version's programs do so, these take over
    /// in one step.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn read_streams(&mut self, tables: &mut Tables, reads: bool) -> Result<(), KernelError> {
        let directory = self.tracepoint_pins.clone();
        if !reads {
            self.streams.clear();
            return unix_stream::TRACEPOINTS.into_iter().try_for_each(|name| {
                let path = directory.join(name);
                remove(&path).map_err(|error| KernelError::Pin { name, path, error: error.to_string() })
            });
        }
        if !self.streams.is_empty() || self.unix.is_err() {
            return Ok(());
        }
        // Not before they are needed: the kernel takes a quarter of a second to check them.
        for name in unix_stream::TRACEPOINTS.into_iter().chain([unix_stream::LOOK]) {
            if self.ebpf.program(name).is_some_and(|program| program.fd().is_err()) {
                load_program(&mut self.ebpf, name, unix_stream::KERNEL)?;
            }
        }
        make_pins(&directory).map_err(|error| KernelError::Pins { path: directory.clone(), error })?;
        let mut links = Vec::with_capacity(unix_stream::TRACEPOINTS.len());
        for name in unix_stream::TRACEPOINTS {
            let path = directory.join(name);
            let link = match PinnedLink::from_pin(&path) {
                Ok(link) => link,
                Err(_) => {
                    let kernel = unix_stream::KERNEL;
                    let link = attach_tracepoint(&mut self.ebpf, "sock", name)
                        .map_err(|error| KernelError::Program { name, kernel, error })?;
                    link.pin(&path).map_err(|error| KernelError::Pin {
                        name,
                        path: path.clone(),
                        error: error.to_string(),
                    })?
                }
            };
            links.push(link.into());
        }
        tables.put_in_charge(program_number())?;
        self.streams = links;
        Ok(())
    }

    /// Whether streams between unix sockets are read.
    pub fn reads_streams(&self) -> bool {
        !self.streams.is_empty()
    }

    /// Asks the kernel whether the stream of an agent's unix socket goes on. `forced`: its end is recorded in any case.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn look_at_stream(&self, cookie: u64, forced: bool) -> Result<unix_stream::State, KernelError> {
        let (name, kernel) = (unix_stream::LOOK, unix_stream::KERNEL);
        let refused = |error| KernelError::Program { name, kernel, error };
        let Some(Program::RawTracePoint(program)) = self.ebpf.program(name) else {
            return Err(KernelError::Missing(name));
        };
        let program = program.fd().map_err(refused)?;
        unix_stream::look(program.as_fd(), cookie, forced)
            .map_err(|error| refused(ProgramError::IOError(error)))
    }

    /// Takes down what daemons of other versions left pinned: their tables, their programs on tracepoints.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn remove_other_versions(&self) -> io::Result<()> {
        let mut others = directories(&self.pins, LAYOUT_PREFIX);
        others.retain(|directory| *directory != self.layout);
        others.extend(directories(&self.layout, UPROBES_PREFIX));
        others.retain(|directory| *directory != self.uprobe_pins);
        others.into_iter().chain(self.other_tracepoints()).try_for_each(|other| remove_pins(&other))
    }

    /// For as long as the answer lives, asking for SO_INCOMING_CPU of a socket that was made in the cgroup, or below it, gives EPERM to
    /// this process.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn tell_members(&mut self, cgroup: &Cgroup) -> Result<CgroupSockoptLink, KernelError> {
        let (name, kernel) = MEMBERSHIP;
        let directory = cgroup.open()?;
        let program = self.ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
        let Program::CgroupSockopt(program) = program else { return Err(KernelError::Missing(name)) };
        program
            .attach(directory, CgroupAttachMode::Single)
            .and_then(|id| program.take_link(id))
            .map_err(|error| KernelError::Program { name, kernel, error })
    }

    /// Names of the programs that are attached to tracepoints.
    pub fn tracepoints(&self) -> impl Iterator<Item = &'static str> {
        let streams = unix_stream::TRACEPOINTS.into_iter().take(self.streams.len());
        TRACEPOINTS.into_iter().take(self.tracepoints.len()).map(|(_, name)| name).chain(streams)
    }
}

/// Directories whose names begin with `prefix`; none where they cannot be listed.
fn directories(within: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(within).into_iter().flatten().flatten();
    let named =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)));
    named.map(|entry| entry.path()).collect()
}

/// Puts a program behind the link that an earlier daemon left at `path`. `false`: there is none that could be used.
fn replace(path: &Path, program: BorrowedFd<'_>) -> io::Result<bool> {
    match link::replace_program(path, program) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // The cgroup that it was on is gone.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => fs::remove_file(path).map(|()| false),
        Err(error) => Err(error),
    }
}

/// Name of the directory for tables of this daemon's layout: what is in another one's could be misread.
pub fn layout(sizes: RingSizes) -> String {
    use auditor_common::{LAYOUT, control, counter, event, rule, tls, unix};
    let types = [
        size_of::<control::Control>(),
        size_of::<control::Session>(),
        size_of::<control::Refusals>(),
        size_of::<counter::Failure>(),
        size_of::<rule::RuleKey>(),
        size_of::<rule::RuleValue>(),
        size_of::<event::Packet>(),
        size_of::<event::Skipped>(),
        size_of::<event::Decision>(),
        size_of::<event::Established>(),
        size_of::<event::Closed>(),
        size_of::<event::Exec>(),
        size_of::<event::Fork>(),
        size_of::<event::Exit>(),
        size_of::<event::Moved>(),
        size_of::<control::Member>(),
        size_of::<unix::NameKey>(),
        size_of::<unix::UnixDecision>(),
        size_of::<unix::UnixStream>(),
        size_of::<unix::UnixData>(),
        size_of::<tls::Secret>(),
        size_of::<tls::SecretTaken>(),
    ];
    let mut digest = Sha256::new();
    digest.update(format!("{LAYOUT} {types:?} {sizes:?} {MAPS:?}"));
    format!("{LAYOUT_PREFIX}{}", short(&digest.finalize()))
}

/// Tells this object's programs from those of others.
fn program_number() -> u32 {
    let digest = Sha256::digest(OBJECT);
    // Never zero: that stands for nobody's.
    digest.first_chunk().map_or(1, |bytes| u32::from_ne_bytes(*bytes) | 1)
}

fn tracepoints_directory() -> String {
    format!("{TRACEPOINTS_PREFIX}{}", short(&Sha256::digest(OBJECT)))
}

fn uprobes_directory() -> String {
    format!("{UPROBES_PREFIX}{}", short(&Sha256::digest(OBJECT)))
}

fn short(digest: &[u8]) -> String {
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Mounts bpffs where it is missing.
///
/// # Errors
/// mount(2) failed.
pub fn ensure_bpffs(path: &Path) -> nix::Result<()> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    if nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type().0 == BPF_FS_MAGIC) {
        return Ok(());
    }
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
}

fn load_program(ebpf: &mut Ebpf, name: &'static str, kernel: &'static str) -> Result<(), KernelError> {
    let program = ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::TracePoint(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        _ => return Err(KernelError::Missing(name)),
    }
    .map_err(|error| KernelError::Program { name, kernel, error })
}

fn ring(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, KernelError> {
    match ebpf.take_map(name) {
        Some(Map::RingBuf(map)) => Ok(map),
        _ => Err(KernelError::Missing(name)),
    }
}

fn secrets(ebpf: &mut Ebpf) -> Result<Secrets, KernelError> {
    match ebpf.take_map("SECRETS") {
        Some(Map::HashMap(map)) => Ok(Secrets::new(map)),
        _ => Err(KernelError::Missing("SECRETS")),
    }
}

fn as_descriptor(result: Result<FdLink, LinkError>) -> Result<FdLink, ProgramError> {
    result.map_err(|error| match error {
        LinkError::SyscallError(error) => ProgramError::SyscallError(error),
        // The kernel is too old for links (before 5.7): it gave an attachment that cannot be held by a descriptor.
        LinkError::InvalidLink => ProgramError::IOError(io::ErrorKind::Unsupported.into()),
        other => ProgramError::IOError(io::Error::other(other)),
    })
}

fn attach_sock_addr(program: &mut Program, cgroup: &fs::File) -> Result<FdLink, ProgramError> {
    let program: &mut CgroupSockAddr = program.try_into()?;
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    as_descriptor(program.take_link(id)?.try_into())
}

fn attach_sock(program: &mut Program, cgroup: &fs::File) -> Result<FdLink, ProgramError> {
    let program: &mut CgroupSock = program.try_into()?;
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    as_descriptor(program.take_link(id)?.try_into())
}

fn attach_skb(program: &mut Program, cgroup: &fs::File) -> Result<FdLink, ProgramError> {
    let program: &mut CgroupSkb = program.try_into()?;
    let direction = (*program.expected_attach_type()).unwrap_or(CgroupSkbAttachType::Egress);
    let id = program.attach(cgroup, direction, CgroupAttachMode::Single)?;
    as_descriptor(program.take_link(id)?.try_into())
}

fn attach_sock_ops(program: &mut Program, cgroup: &fs::File) -> Result<FdLink, ProgramError> {
    let program: &mut SockOps = program.try_into()?;
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    as_descriptor(program.take_link(id)?.try_into())
}

fn attach_tracepoint(ebpf: &mut Ebpf, group: &str, name: &'static str) -> Result<FdLink, ProgramError> {
    match ebpf.program_mut(name) {
        Some(Program::TracePoint(program)) => {
            let id = program.attach(group, name)?;
            as_descriptor(program.take_link(id)?.try_into())
        }
        Some(Program::RawTracePoint(program)) => {
            let id = program.attach(name)?;
            Ok(program.take_link(id)?.into())
        }
        _ => Err(ProgramError::NotAttached),
    }
}
