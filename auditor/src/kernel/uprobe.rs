//! Probes in files with code: the programs of [`crate::library::Point`]s, loaded and attached by bpf(2) itself.
//!
//! A probe belongs to a file (an inode), not to a process: it is in all processes that map the file, now and later. One link holds all
//! probes of one program in one file (BPF_TRACE_UPROBE_MULTI, Linux 6.6). Links of the older kind (perf events) would ask for
//! CAP_SYS_ADMIN, which the daemon gives up. aya has no word for the newer kind.
//!
//! Links are pinned, as those of tracepoints are, beside the tables that their programs write to and below the digest of the object
//! that these are from: the next daemon of the same version and layout finds them at work, and one of another version attaches its own before it removes these. So there is no moment
//! without. A pin's name says all that is to be known of it: the library's number, then the program's name.
//!
//! **Stack.** `auditor-ebpf/src/tls.rs` says why these programs must stay below 64 bytes. How much each of their functions needs is asked
//! of the verifier, and a program that needs more is not loaded.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use super::bpf;
use super::bpffs;
use super::unix::{self, ProgramLoad};
use crate::library::{Point, Probe};

const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
const BPF_F_SLEEPABLE: u32 = 1 << 4;
const BPF_LOG_STATS: u32 = 4;
/// BPF_PRIV_STACK_MIN_SIZE (kernel/bpf/verifier.c).
const PRIVATE_STACK: u32 = 64;
/// What stack depths are rounded up to before they are compared with that.
const STACK_STEP: u32 = 16;
/// Room for the verifier's statistics.
const LOG_BYTES: usize = 1 << 16;

/// `union bpf_attr` of BPF_LINK_CREATE for probes in a file.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    reference_counter_offsets: u64,
    cookies: u64,
    count: u32,
    probe_flags: u32,
    pid: u32,
    _padding: u32,
}

/// Why nothing can be probed on this host.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// The programs do not load.
    #[error("the kernel refused the program {name} (it needs Linux 6.6): {error}")]
    Program {
        /// Which.
        name: &'static str,
        /// What the kernel said, with the verifier's last words.
        error: String,
    },
    /// A program would be given a stack that two tasks may use at once.
    #[error(
        "the program {name} needs {depth} bytes of stack: this is a defect of the auditor, please report it"
    )]
    Stack {
        /// Which.
        name: &'static str,
        /// Of its hungriest function.
        depth: u32,
    },
    /// The directory for pins.
    #[error("make {path}: {error}; name a directory on a bpffs with --pin-dir")]
    Pins {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

/// The programs, and where their links are pinned.
#[derive(Debug)]
pub struct Uprobes {
    programs: Vec<(Point, OwnedFd, u32)>,
    pins: PathBuf,
}

impl Uprobes {
    /// Loads the programs from a [`unix::linked`] object. `pins` is the directory of links.
    pub(super) fn load(object: &Result<aya_obj::Object, String>, pins: PathBuf) -> Result<Self, Unsupported> {
        let refused = |name| move |error: String| Unsupported::Program { name, error };
        let object = object.as_ref().map_err(|error| refused(Point::ALL[0].program())(error.clone()))?;
        let mut programs = Vec::with_capacity(Point::ALL.len());
        for point in Point::ALL {
            let name = point.program();
            let program = object.programs.get(name);
            let function = program.and_then(|program| object.functions.get(&program.function_key()));
            let Some((program, function)) = program.zip(function) else {
                return Err(refused(name)("it is not in the object".to_owned()));
            };
            let loaded = load(name, &function.instructions, &program.license);
            let (descriptor, depth) = loaded.map_err(refused(name))?;
            if depth.next_multiple_of(STACK_STEP) >= PRIVATE_STACK {
                return Err(Unsupported::Stack { name, depth });
            }
            programs.push((point, descriptor, depth));
        }
        bpffs::make_directory(&pins).map_err(|error| Unsupported::Pins { path: pins.clone(), error })?;
        Ok(Self { programs, pins })
    }

    /// The bytes of stack of each program's hungriest function, by the verifier's account.
    pub fn stack_depths(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.programs.iter().map(|(point, _, depth)| (point.program(), *depth))
    }

    /// Attaches probes to an open file; those that it has already stay as they are.
    ///
    /// # Errors
    /// The kernel refused: the file is not one that can be probed, or a place in it is no instruction. Probes of other points are attached
    /// all the same.
    pub fn attach(&self, file: &File, library: u64, probes: &[Probe]) -> io::Result<()> {
        let mut result = Ok(());
        for (point, program, _) in &self.programs {
            let offsets: Vec<u64> =
                probes.iter().filter(|probe| probe.point == *point).map(|probe| probe.offset).collect();
            let path = self.pins.join(format!("{library:016x}-{}", point.program()));
            if offsets.is_empty() || path.exists() {
                continue;
            }
            let linked =
                create_link(program, file, &offsets, library).and_then(|link| bpf::pin(link.as_fd(), &path));
            if let Err(error) = linked {
                result = Err(error);
            }
        }
        result
    }

    /// Removes the probes of a library.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn detach(&self, library: u64) -> io::Result<()> {
        let prefix = format!("{library:016x}-");
        for entry in fs::read_dir(&self.pins)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// The numbers of the libraries that are probed.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn libraries(&self) -> io::Result<Vec<u64>> {
        let mut libraries = Vec::new();
        for entry in fs::read_dir(&self.pins)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.split('-').next());
            libraries.extend(number.and_then(|number| u64::from_str_radix(number, 16).ok()));
        }
        libraries.sort_unstable();
        libraries.dedup();
        Ok(libraries)
    }
}

/// Loads a program. Answers also the bytes of stack of its hungriest function.
fn load(
    name: &str,
    instructions: &[aya_obj::generated::bpf_insn],
    license: &CStr,
) -> Result<(OwnedFd, u32), String> {
    let mut log = vec![0_u8; LOG_BYTES];
    let mut attributes = ProgramLoad {
        prog_type: BPF_PROG_TYPE_KPROBE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|error| error.to_string())?,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: BPF_LOG_STATS,
        log_size: u32::try_from(log.len()).unwrap_or(u32::MAX),
        log_buf: log.as_mut_ptr() as u64,
        prog_flags: BPF_F_SLEEPABLE,
        expected_attach_type: BPF_TRACE_UPROBE_MULTI,
        ..ProgramLoad::default()
    };
    // The last byte stays NUL.
    attributes.prog_name.iter_mut().take(15).zip(name.bytes()).for_each(|(place, byte)| *place = byte);
    // SAFETY: instructions, licence and log outlive the call, and the lengths are theirs.
    let loaded = unsafe { bpf::descriptor(unix::BPF_PROG_LOAD, &mut attributes) };
    let words = log.split(|byte| *byte == 0).next().unwrap_or_default();
    let words = String::from_utf8_lossy(words);
    let descriptor = loaded.map_err(|error| format!("{error}: {}", words.trim()))?;
    tracing::debug!(program = name, statistics = words.trim().replace('\n', ", "), "the verifier is content");
    let depth = stack_depth(&words).ok_or("the verifier does not tell the depth of the stack")?;
    Ok((descriptor, depth))
}

/// The greatest of the depths in the verifier's statistics: `stack depth 40+8+32`, a number for each function.
fn stack_depth(statistics: &str) -> Option<u32> {
    let line = statistics.lines().find_map(|line| line.strip_prefix("stack depth "))?;
    let depths: Option<Vec<u32>> = line.trim().split('+').map(|depth| depth.parse().ok()).collect();
    depths?.into_iter().max()
}

fn create_link(program: &OwnedFd, file: &File, offsets: &[u64], library: u64) -> io::Result<OwnedFd> {
    // By descriptor: a path may lead elsewhere by now, or nowhere.
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let cookies = vec![library; offsets.len()];
    let mut attributes = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_fd: 0,
        attach_type: BPF_TRACE_UPROBE_MULTI,
        flags: 0,
        path: path.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        reference_counter_offsets: 0,
        cookies: cookies.as_ptr() as u64,
        count: u32::try_from(offsets.len()).map_err(io::Error::other)?,
        probe_flags: 0,
        pid: 0,
        _padding: 0,
    };
    // SAFETY: path and arrays outlive the call; the count is theirs.
    unsafe { bpf::descriptor(unix::BPF_LINK_CREATE, &mut attributes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hungriest_function_counts() {
        let log =
            "verification time 1034 usec\nstack depth 40+8+56+0\nprocessed 1200 insns (limit 1000000)\n";
        assert_eq!(stack_depth(log), Some(56));
        assert_eq!(stack_depth("stack depth 16"), Some(16));
        assert_eq!(stack_depth("processed 1200 insns"), None);
        assert_eq!(stack_depth("stack depth 16+?"), None);
    }
}
