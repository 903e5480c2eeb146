//! The object with the kernel programs: loading it, and attaching its programs to cgroups and tracepoints.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapError, RingBuf};
use aya::programs::cgroup_skb::CgroupSkbAttachType;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSock, CgroupSockAddr, Program, ProgramError, SockOps, TracePoint,
};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};
use nix::mount::{MsFlags, mount};

use super::cgroup::Cgroup;
use super::tables::{TableError, Tables};
use super::tracefs::{self, Offsets, TracefsError};
use super::{btf, unix};

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

const TRACEPOINTS: [&str; 3] = ["sched_process_exec", "sched_process_fork", "sched_process_exit"];

/// Links for tracepoints (BPF_LINK_TYPE_PERF_EVENT).
const TRACEPOINT_KERNEL: &str = "5.15";

/// Why the kernel side could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// tracefs.
    #[error(transparent)]
    Tracefs(#[from] TracefsError),
    /// The object as a whole was refused.
    #[error(
        "the kernel refused the auditor's tables or types: {0}; `auditor doctor` says what this kernel lacks"
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
    /// A ring could not be mapped.
    #[error("ring {name}: {error}")]
    Ring {
        /// Which.
        name: &'static str,
        /// What aya says.
        error: MapError,
    },
    /// A cgroup's directory could not be opened.
    #[error("open {path}: {error}")]
    Cgroup {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
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

/// Sizes of the two rings in bytes: powers of two, multiples of a page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RingSizes {
    /// Segments.
    pub payload: u32,
    /// Verdicts, connections, processes.
    pub lifecycle: u32,
}

/// Links to one cgroup. Dropping it detaches the programs, unless [`Self::pin`] has made them outlive the daemon.
#[derive(Debug)]
pub struct Attachment {
    links: Vec<(&'static str, FdLink)>,
    unix: unix::Links,
    pins: Option<PathBuf>,
}

impl Attachment {
    /// Keeps the links in a directory of a bpffs. What an earlier daemon left there is taken down, now that these programs are
    /// in force.
    ///
    /// # Errors
    /// The kernel refused; nothing of this attachment stays pinned then.
    pub fn pin(mut self, directory: &Path) -> Result<Self, KernelError> {
        let mut pinned = Vec::with_capacity(self.links.len());
        for (name, link) in std::mem::take(&mut self.links) {
            match pin(link, name, directory) {
                Ok(link) => pinned.push((name, link)),
                Err(error) => {
                    for (_, link) in pinned {
                        // The error at hand matters more than one more of the same kind.
                        let _ = PinnedLink::unpin(link);
                    }
                    return Err(error);
                }
            }
        }
        self.links = pinned.into_iter().map(|(name, link)| (name, FdLink::from(link))).collect();
        let pinned = self.unix.pin(directory);
        self.pins = Some(directory.to_owned());
        if let Err((name, error)) = pinned {
            // The error at hand matters more than one more of the same kind.
            let _ = remove_pins(directory);
            return Err(KernelError::Pin { name, path: directory.join(name), error: error.to_string() });
        }
        Ok(self)
    }

    /// Detaches, also what is pinned.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn detach(self) -> io::Result<()> {
        match &self.pins {
            Some(directory) => remove_pins(directory),
            None => Ok(()),
        }
    }

    /// Names of the programs.
    pub fn programs(&self) -> impl Iterator<Item = &'static str> {
        self.links.iter().map(|(name, _)| *name).chain(self.unix.programs())
    }
}

/// Takes down what is pinned in a directory, and removes it.
///
/// # Errors
/// unlink(2) or rmdir(2) failed.
pub fn remove_pins(directory: &Path) -> io::Result<()> {
    for Hook { name, .. } in &HOOKS {
        match fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    unix::remove_pins(directory)?;
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The loaded object.
#[derive(Debug)]
pub struct Object {
    ebpf: Ebpf,
    unix: Result<unix::Programs, unix::Unsupported>,
    _tracepoints: Vec<FdLink>,
}

/// What loading gives: the programs, the tables, and the rings' reading ends.
pub struct Loaded {
    /// Programs.
    pub object: Object,
    /// Tables.
    pub tables: Tables,
    /// Segments.
    pub payload: RingBuf<MapData>,
    /// Verdicts, connections, processes.
    pub lifecycle: RingBuf<MapData>,
}

impl Object {
    /// Loads all programs and attaches those that belong to tracepoints. Nothing is attached to a cgroup yet. tracefs must be
    /// mounted ([`tracefs::ensure_mounted`]).
    ///
    /// # Errors
    /// Something is missing in this kernel; the message names it.
    pub fn load(sizes: RingSizes) -> Result<Loaded, KernelError> {
        let offsets = Offsets::read(Path::new(tracefs::MOUNT))?;
        let btf = Btf::from_sys_fs().ok();
        let unix = unix::globals(Path::new(btf::VMLINUX), Path::new("/proc"));
        let mut loader = EbpfLoader::new();
        for (name, value) in unix.iter().flatten() {
            loader.override_global(name, value, true);
        }
        let mut ebpf = loader
            .btf(btf.as_ref())
            .map_max_entries("PAYLOAD", sizes.payload)
            .map_max_entries("LIFECYCLE", sizes.lifecycle)
            .override_global("EXEC_FILENAME_OFFSET", &offsets.exec_filename, true)
            .override_global("FORK_CHILD_PID_OFFSET", &offsets.fork_child_pid, true)
            .override_global("EXIT_GROUP_DEAD_OFFSET", &offsets.exit_group_dead, true)
            .load(OBJECT)
            .map_err(KernelError::Object)?;
        let unix = unix.and_then(|_| unix::Programs::load(OBJECT, &ebpf));
        for hook in &HOOKS {
            load_program(&mut ebpf, hook.name, hook.kernel)?;
        }
        let mut tracepoints = Vec::with_capacity(TRACEPOINTS.len());
        for name in TRACEPOINTS {
            load_program(&mut ebpf, name, TRACEPOINT_KERNEL)?;
            let link = attach_tracepoint(&mut ebpf, name).map_err(|error| KernelError::Program {
                name,
                kernel: "5.15",
                error,
            })?;
            tracepoints.push(link);
        }
        let tables = Tables::take(&mut ebpf)?;
        let payload = ring(&mut ebpf, "PAYLOAD")?;
        let lifecycle = ring(&mut ebpf, "LIFECYCLE")?;
        Ok(Loaded { object: Self { ebpf, unix, _tracepoints: tracepoints }, tables, payload, lifecycle })
    }

    /// Attaches all cgroup programs to a cgroup.
    ///
    /// # Errors
    /// The kernel refused; nothing stays attached then.
    pub fn attach(&mut self, cgroup: &Cgroup) -> Result<Attachment, KernelError> {
        let directory = fs::File::open(cgroup.path())
            .map_err(|error| KernelError::Cgroup { path: cgroup.path().to_owned(), error })?;
        let mut links = Vec::with_capacity(HOOKS.len());
        for Hook { name, kernel, attach } in HOOKS {
            let program = self.ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
            let link =
                attach(program, &directory).map_err(|error| KernelError::Program { name, kernel, error })?;
            links.push((name, link));
        }
        let unix = match &self.unix {
            Ok(programs) => programs.attach(directory.as_fd()).map_err(|(name, error)| {
                KernelError::Program { name, kernel: "6.7", error: ProgramError::IOError(error) }
            })?,
            Err(_) => unix::Links::default(),
        };
        Ok(Attachment { links, unix, pins: None })
    }

    /// Why unix sockets are not decided on this host; `None` where they are.
    pub fn unix_unsupported(&self) -> Option<&unix::Unsupported> {
        self.unix.as_ref().err()
    }

    /// Names of the programs that are attached to tracepoints.
    pub fn tracepoints(&self) -> impl Iterator<Item = &'static str> {
        TRACEPOINTS.into_iter()
    }
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

fn pin(link: FdLink, name: &'static str, directory: &Path) -> Result<PinnedLink, KernelError> {
    let path = directory.join(name);
    let failed = |error: String| KernelError::Pin { name, path: path.clone(), error };
    let before = match PinnedLink::from_pin(&path) {
        Ok(before) => Some(before.unpin().map_err(|error| failed(error.to_string()))?),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error.to_string())),
    };
    let pinned = link.pin(&path).map_err(|error| failed(error.to_string()))?;
    // Detaches the earlier daemon's program; ours has been attached beside it for a while.
    drop(before);
    Ok(pinned)
}

fn load_program(ebpf: &mut Ebpf, name: &'static str, kernel: &'static str) -> Result<(), KernelError> {
    let program = ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::TracePoint(program) => program.load(),
        _ => return Err(KernelError::Missing(name)),
    }
    .map_err(|error| KernelError::Program { name, kernel, error })
}

fn ring(ebpf: &mut Ebpf, name: &'static str) -> Result<RingBuf<MapData>, KernelError> {
    let map = ebpf.take_map(name).ok_or(KernelError::Missing(name))?;
    RingBuf::try_from(map).map_err(|error| KernelError::Ring { name, error })
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

fn attach_tracepoint(ebpf: &mut Ebpf, name: &'static str) -> Result<FdLink, ProgramError> {
    let Some(Program::TracePoint(program)) = ebpf.program_mut(name) else {
        return Err(ProgramError::NotAttached);
    };
    let program: &mut TracePoint = program;
    let id = program.attach("sched", name)?;
    as_descriptor(program.take_link(id)?.try_into())
}
