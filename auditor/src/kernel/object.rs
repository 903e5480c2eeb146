//! The object with the kernel programs: loading it, with its tables. Below are its programs on cgroups and on tracepoints.

mod attachment;
mod error;
mod tracepoints;

pub use attachment::Attachment;
pub(super) use attachment::hook_names;
pub use error::KernelError;

use std::mem::size_of;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io, thread};

use attachment::HOOKS;
use aya::maps::{Map, MapData};
use aya::programs::cgroup_sockopt::CgroupSockoptLink;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use sha2::{Digest as _, Sha256};

use super::cgroup::Cgroup;
use super::secrets::Secrets;
use super::shares::Shares;
use super::tables::{Members, Tables};
use super::tracefs::{self, Offsets};
use super::uprobe::{self, Uprobes};
use super::{bpffs, btf, tasks, unix};

/// The compiled kernel programs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("AUDITOR_BPF_OBJECT"));

/// Tells of a socket whether it was made in a cgroup; attached for the length of that question.
const MEMBERSHIP: (&str, &str) = ("membership", "5.3");

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

/// Sizes of the two rings in bytes: powers of two, multiples of a page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RingSizes {
    /// Segments.
    pub payload: u32,
    /// Verdicts, connections, processes.
    pub lifecycle: u32,
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
    /// On the tracepoints of [`super::unix_stream`], while they are attached.
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
            bpffs::remove_all(&tables)
                .and_then(|()| bpffs::make_directory(&tables))
                .map_err(|error| KernelError::Pins { path: tables.clone(), error })?;
        }
        let loaded = Self::load_into(sizes, pins, &tables, found);
        if loaded.is_err() && !found {
            // The error at hand matters more than one more. `pins` may hold something else.
            let _ = bpffs::remove_all(&tables);
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
        let secrets = secrets(&mut ebpf, Arc::clone(tables.shares()))?;
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

    /// Why unix sockets are not decided on this host; `None` where they are.
    pub fn unix_unsupported(&self) -> Option<&unix::Unsupported> {
        self.unix.as_ref().err()
    }

    /// Takes down what daemons of other versions left pinned: their tables, their programs on tracepoints.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn remove_other_versions(&self) -> io::Result<()> {
        let mut others = bpffs::directories(&self.pins, LAYOUT_PREFIX);
        others.retain(|directory| *directory != self.layout);
        others.extend(bpffs::directories(&self.layout, UPROBES_PREFIX));
        others.retain(|directory| *directory != self.uprobe_pins);
        others.into_iter().chain(self.other_tracepoints()).try_for_each(|other| bpffs::remove_all(&other))
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
}

/// Name of the directory for tables of this daemon's layout: what is in another one's could be misread.
pub fn layout(sizes: RingSizes) -> String {
    use auditor_common::{LAYOUT, bulk, control, counter, event, rule, tls, unix};
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
        size_of::<bulk::Way>(),
        size_of::<bulk::Place>(),
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

fn secrets(ebpf: &mut Ebpf, shares: Arc<Shares>) -> Result<Secrets, KernelError> {
    match ebpf.take_map("SECRETS") {
        Some(Map::HashMap(map)) => Ok(Secrets::new(map, shares)),
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
