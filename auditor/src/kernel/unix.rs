//! The programs for unix sockets: loaded and attached by bpf(2) itself, because aya has no word for their attach types.
//!
//! They stand in the same object and use the same tables as the others. A kernel before Linux 6.7 has no such hook; the auditor
//! works without, says so, and refuses a configuration with rules for unix sockets ([`Unsupported`]).

use std::collections::HashSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::{Map, MapData};

use super::bpf;
use super::btf::{self, Types};

/// The kernel's word for the first of the hooks, in `enum bpf_attach_type`.
const HOOK_WORD: &str = "BPF_CGROUP_UNIX_CONNECT";

#[derive(Clone, Copy, Debug)]
struct Hook {
    name: &'static str,
    /// `enum bpf_attach_type` of linux/bpf.h.
    attach_type: u32,
}

const HOOKS: [Hook; 2] =
    [Hook { name: "connect_unix", attach_type: 49 }, Hook { name: "sendmsg_unix", attach_type: 50 }];

/// Why unix sockets cannot be decided on this host.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// The kernel is older than the hooks.
    #[error("the kernel has no hook for unix sockets: Linux 6.7 has")]
    NoHook,
    /// The kernel does not tell of its types.
    #[error("the kernel's type information cannot be read at {path}: {error}")]
    NoTypes {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It does, in an unknown way.
    #[error(transparent)]
    Types(#[from] btf::Malformed),
    /// A structure is not as expected.
    #[error("this kernel's struct {structure} has no field {field}")]
    NoField {
        /// Which.
        structure: &'static str,
        /// And which.
        field: &'static str,
    },
    /// The host's root directory is not known.
    #[error("the root directory of the host cannot be told by {path}: {error}")]
    Root {
        /// What was asked.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The programs do not load.
    #[error("the kernel refused the program {name}: {error}")]
    Program {
        /// Which.
        name: &'static str,
        /// What the kernel said, with the verifier's last words.
        error: String,
    },
}

/// Whether a kernel with this type information has the hooks.
///
/// # Errors
/// The bytes cannot be understood.
pub fn has_hooks(types: &[u8]) -> Result<bool, btf::Malformed> {
    Ok(Types::parse(types)?.has_word("bpf_attach_type", HOOK_WORD))
}

/// What the programs must be told before they are loaded: name of a global and its value.
pub type Globals = Vec<(&'static str, u32)>;

/// Reads it: offsets from the kernel's type information, and what the host's root directory is.
///
/// # Errors
/// [`Unsupported`].
pub fn globals(types: &Path, proc: &Path) -> Result<Globals, Unsupported> {
    let bytes = fs::read(types).map_err(|error| Unsupported::NoTypes { path: types.to_owned(), error })?;
    let types = Types::parse(&bytes)?;
    if !types.has_word("bpf_attach_type", HOOK_WORD) {
        return Err(Unsupported::NoHook);
    }
    let offset =
        |structure, field| types.offset(structure, field).ok_or(Unsupported::NoField { structure, field });
    let root = offset("fs_struct", "root")?;
    // `mount` keeps the part that others see within itself; the number is behind it.
    let mount_id = offset("mount", "mnt_id")?
        .checked_sub(offset("mount", "mnt")?)
        .ok_or(Unsupported::NoField { structure: "mount", field: "mnt_id behind mnt" })?;
    // Whoever loads programs is in the first user namespace.
    let namespace = proc.join("self/ns/user");
    let user = fs::metadata(&namespace)
        .and_then(|namespace| u32::try_from(namespace.ino()).map_err(io::Error::other))
        .map_err(|error| Unsupported::Root { path: namespace, error })?;
    Ok(vec![
        ("UNIX_ADDRESS_OFFSET", offset("bpf_sock_addr_kern", "uaddr")?),
        ("UNIX_SOCKET_OFFSET", offset("bpf_sock_addr_kern", "sk")?),
        ("SOCK_FAMILY_OFFSET", offset("sock_common", "skc_family")?),
        ("SOCK_STATE_OFFSET", offset("sock_common", "skc_state")?),
        ("SOCK_COOKIE_OFFSET", offset("sock_common", "skc_cookie")?),
        ("SOCK_OWNER_OFFSET", offset("sock", "sk_socket")?),
        ("UNIX_PEER_OFFSET", offset("unix_sock", "peer")?),
        ("TASK_FILES_OFFSET", offset("task_struct", "files")?),
        ("FILES_TABLE_OFFSET", offset("files_struct", "fdt")?),
        ("TABLE_LENGTH_OFFSET", offset("fdtable", "max_fds")?),
        ("TABLE_FILES_OFFSET", offset("fdtable", "fd")?),
        ("FILE_DATA_OFFSET", offset("file", "private_data")?),
        ("SOCKET_SOCK_OFFSET", offset("socket", "sk")?),
        // Elsewhere calls have other registers: what is said is counted, and not read.
        ("CALLS_READABLE", u32::from(cfg!(target_arch = "x86_64"))),
        ("UNIX_LENGTH_OFFSET", offset("bpf_sock_addr_kern", "uaddrlen")?),
        ("TASK_FS_OFFSET", offset("task_struct", "fs")?),
        ("TASK_CREDENTIALS_OFFSET", offset("task_struct", "real_cred")?),
        ("CREDENTIALS_USER_OFFSET", offset("cred", "user_ns")?),
        ("USER_NUMBER_OFFSET", offset("user_namespace", "ns")? + offset("ns_common", "inum")?),
        ("FS_MOUNT_OFFSET", root + offset("path", "mnt")?),
        ("FS_DENTRY_OFFSET", root + offset("path", "dentry")?),
        ("MOUNT_ROOT_OFFSET", offset("vfsmount", "mnt_root")?),
        ("MOUNT_ID_OFFSET", mount_id),
        ("HOST_MOUNT_ID", host_mount(proc)?),
        ("HOST_USER_NAMESPACE", user),
    ])
}

/// The id of the mount whose root is the host's root directory: that of process 1, also where the daemon has been given a mount
/// namespace of its own. Where process 1 may not be looked at, the daemon's own: then callers elsewhere are refused, never let through.
fn host_mount(proc: &Path) -> Result<u32, Unsupported> {
    mount_id(&proc.join("1/root")).or_else(|_| mount_id(&proc.join("self/root")))
}

fn mount_id(root: &Path) -> Result<u32, Unsupported> {
    let failed = |error| Unsupported::Root { path: root.to_owned(), error };
    let name = CString::new(root.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: a NUL-terminated path and room for the answer, both of which outlive the call.
    let result =
        unsafe { libc::statx(libc::AT_FDCWD, name.as_ptr(), 0, libc::STATX_MNT_ID, answer.as_mut_ptr()) };
    if result != 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: zeros are a value of the type, and the kernel has written over them.
    let answer = unsafe { answer.assume_init() };
    let is_root = answer.stx_attributes & u64::from(libc::STATX_ATTR_MOUNT_ROOT.unsigned_abs()) != 0;
    if answer.stx_mask & libc::STATX_MNT_ID == 0 || !is_root {
        return Err(failed(io::Error::other("it is not the root of a mount")));
    }
    u32::try_from(answer.stx_mnt_id).map_err(|error| failed(io::Error::other(error)))
}

/// The oldest kernel that has the hooks.
pub(super) const KERNEL: &str = "6.7";

/// Names of the programs.
pub(super) fn programs() -> impl Iterator<Item = &'static str> {
    HOOKS.iter().map(|hook| hook.name)
}

/// A loaded program.
#[derive(Debug)]
pub(super) struct Program {
    hook: Hook,
    descriptor: OwnedFd,
}

impl Program {
    /// Its name in the object.
    pub(super) fn name(&self) -> &'static str {
        self.hook.name
    }

    /// Its descriptor.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Attaches it to a cgroup, for as long as the link lives.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn attach(&self, cgroup: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        create_link(self.as_fd(), cgroup, self.hook.attach_type)
    }
}

/// The loaded programs.
#[derive(Debug)]
pub(super) struct Programs(Vec<Program>);

impl Programs {
    /// Loads them from a [`linked`] object.
    ///
    /// # Errors
    /// [`Unsupported::Program`].
    pub(super) fn load(object: &Result<aya_obj::Object, String>) -> Result<Self, Unsupported> {
        let refused = |name: &'static str| move |error: String| Unsupported::Program { name, error };
        let object = object.as_ref().map_err(|error| refused(HOOKS[0].name)(error.clone()))?;
        let mut programs = Vec::with_capacity(HOOKS.len());
        for hook in HOOKS {
            let Hook { name, attach_type } = hook;
            let program = object.programs.get(name);
            let function = program.and_then(|program| object.functions.get(&program.function_key()));
            let Some((program, function)) = program.zip(function) else {
                return Err(refused(name)("it is not in the object".to_owned()));
            };
            let loaded = load(name, attach_type, &function.instructions, &program.license);
            programs.push(Program { hook, descriptor: loaded.map_err(refused(name))? });
        }
        Ok(Self(programs))
    }

    /// Each of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Program> {
        self.0.iter()
    }
}

/// The object that `ebpf` was loaded from, its programs with `ebpf`'s tables: for what aya has no word for.
pub(super) fn linked(object: &[u8], ebpf: &Ebpf) -> Result<aya_obj::Object, String> {
    let mut object = aya_obj::Object::parse(object).map_err(|error| error.to_string())?;
    link(&mut object, ebpf).map_err(|error| error.to_string())?;
    Ok(object)
}

/// Puts the descriptors of the tables into the instructions, as aya does for its own programs.
fn link(object: &mut aya_obj::Object, ebpf: &Ebpf) -> Result<(), aya_obj::relocation::EbpfRelocationError> {
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let tables: Vec<(String, RawFd, aya_obj::Map)> = object
        .maps
        .drain()
        .filter_map(|(name, map)| {
            let table = ebpf.map(&name).and_then(data)?;
            Some((name, table.fd().as_fd().as_raw_fd(), map))
        })
        .collect();
    object.relocate_maps(tables.iter().map(|(name, table, map)| (name.as_str(), *table, map)), &text)?;
    object.relocate_calls(&text)
}

/// The tables that these programs use; of the others, no descriptor is needed.
fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data) => Some(data),
        _ => None,
    }
}

// From here on: bpf(2), linux/bpf.h. Each structure is the part of union bpf_attr that its command takes, as far as it is used.

pub(super) const BPF_PROG_LOAD: libc::c_long = 5;
pub(super) const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
/// Room for the verifier's words.
const LOG_BYTES: usize = 1 << 20;
/// How many of them are told: the reason stands at the end.
const LOG_TOLD: usize = 600;

#[repr(C)]
#[derive(Default)]
pub(super) struct ProgramLoad {
    pub(super) prog_type: u32,
    pub(super) insn_cnt: u32,
    pub(super) insns: u64,
    pub(super) license: u64,
    pub(super) log_level: u32,
    pub(super) log_size: u32,
    pub(super) log_buf: u64,
    pub(super) kern_version: u32,
    pub(super) prog_flags: u32,
    pub(super) prog_name: [u8; 16],
    pub(super) prog_ifindex: u32,
    pub(super) expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

fn load(
    name: &str,
    attach_type: u32,
    instructions: &[aya_obj::generated::bpf_insn],
    license: &CString,
) -> Result<OwnedFd, String> {
    let mut prog_name = [0; 16];
    // The last byte stays NUL.
    prog_name.iter_mut().take(15).zip(name.bytes()).for_each(|(place, byte)| *place = byte);
    let mut attributes = ProgramLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        insn_cnt: u32::try_from(instructions.len()).map_err(|error| error.to_string())?,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name,
        prog_ifindex: 0,
        expected_attach_type: attach_type,
    };
    // SAFETY: instructions and licence outlive the call, and the lengths are theirs.
    let error = match unsafe { bpf::descriptor(BPF_PROG_LOAD, &mut attributes) } {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let mut log = vec![0_u8; LOG_BYTES];
    attributes.log_level = 1;
    attributes.log_size = u32::try_from(log.len()).unwrap_or(u32::MAX);
    attributes.log_buf = log.as_mut_ptr() as u64;
    // SAFETY: as above; the log has the length that is told.
    let again = unsafe { bpf::descriptor(BPF_PROG_LOAD, &mut attributes) };
    again.map_err(|_| {
        let words = log.split(|byte| *byte == 0).next().unwrap_or_default();
        let told = &words[words.len().saturating_sub(LOG_TOLD)..];
        format!("{error}: {}", String::from_utf8_lossy(told).trim())
    })
}

fn create_link(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type,
        flags: 0,
    };
    // SAFETY: plain numbers.
    unsafe { bpf::descriptor(BPF_LINK_CREATE, &mut attributes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::tests::kernel;

    #[test]
    fn a_kernel_that_cannot_decide_unix_sockets_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let types = directory.path().join("vmlinux");
        let why = || globals(&types, Path::new("/proc")).unwrap_err();
        assert!(matches!(why(), Unsupported::NoTypes { .. }), "{}", why());
        fs::write(&types, "not BTF").unwrap();
        assert!(matches!(why(), Unsupported::Types(_)), "{}", why());
        fs::write(&types, kernel("BPF_CGROUP_SYSCTL")).unwrap();
        assert!(why().to_string().contains("Linux 6.7"), "{}", why());
        fs::write(&types, kernel(HOOK_WORD)).unwrap();
        assert!(matches!(why(), Unsupported::NoField { structure: "fs_struct", field: "root" }), "{}", why());
    }

    #[test]
    fn the_root_is_that_of_process_1_or_else_our_own() {
        let own = mount_id(Path::new("/proc/self/root")).unwrap();
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir_all(proc.path().join("self")).unwrap();
        std::os::unix::fs::symlink("/", proc.path().join("self/root")).unwrap();
        assert_eq!(host_mount(proc.path()).unwrap(), own);
        // A directory that is not the root of a mount says nothing about others.
        fs::create_dir_all(proc.path().join("1/root")).unwrap();
        assert_eq!(host_mount(proc.path()).unwrap(), own);
        assert!(matches!(mount_id(&proc.path().join("1/root")), Err(Unsupported::Root { .. })));
    }
}
