//! tracefs: the tracepoints' descriptions, which say at which offset a field stands on this kernel.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

/// Where tracefs belongs.
pub const MOUNT: &str = "/sys/kernel/tracing";

/// Why a tracepoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TracefsError {
    /// tracefs is not mounted, and mounting it failed.
    #[error(
        "tracefs is not mounted at {path} and mounting it failed: {error}; mount it with `mount -t tracefs none {path}`"
    )]
    Mount {
        /// Where.
        path: PathBuf,
        /// mount(2)'s error.
        error: nix::Error,
    },
    /// An event's description cannot be read.
    #[error("the kernel's description of the tracepoint cannot be read at {path}: {error}")]
    Format {
        /// The description.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// A field is not there.
    #[error("the tracepoint {event} of this kernel has no field {field}")]
    Field {
        /// The event, after its group.
        event: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// Mounts tracefs where it is missing.
///
/// # Errors
/// mount(2) failed.
pub fn ensure_mounted(path: &Path) -> Result<(), TracefsError> {
    if path.join("events").exists() {
        return Ok(());
    }
    mount(
        Some("none"),
        path,
        Some("tracefs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    )
    .map_err(|error| TracefsError::Mount { path: path.to_owned(), error })
}

/// Offsets of the fields that the kernel programs read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offsets {
    /// `filename` of sched_process_exec.
    pub exec_filename: u32,
    /// `group_dead` of sched_process_exit, 0 where there is none.
    pub exit_group_dead: u32,
}

impl Offsets {
    /// Reads them from a tracefs mount.
    ///
    /// # Errors
    /// A description cannot be read, or lacks a field that is needed.
    pub fn read(mount: &Path) -> Result<Self, TracefsError> {
        let required =
            |event, field| offset(mount, event, field)?.ok_or(TracefsError::Field { event, field });
        Ok(Self {
            exec_filename: required("sched/sched_process_exec", "filename")?,
            exit_group_dead: offset(mount, "sched/sched_process_exit", "group_dead")?.unwrap_or(0),
        })
    }
}

fn offset(mount: &Path, event: &'static str, field: &str) -> Result<Option<u32>, TracefsError> {
    let path = mount.join("events").join(event).join("format");
    match fs::read_to_string(&path) {
        Ok(format) => Ok(offset_in(&format, field)),
        Err(error) => Err(TracefsError::Format { path, error }),
    }
}

/// The offset of a field in an event's description, whose lines read `field:pid_t pid; offset:12; size:4; signed:1;`.
fn offset_in(format: &str, field: &str) -> Option<u32> {
    format.lines().find_map(|line| {
        let (declaration, rest) = line.trim().strip_prefix("field:")?.split_once(';')?;
        let name = declaration.rsplit(' ').next()?;
        if name.split('[').next() != Some(field) {
            return None;
        }
        rest.split(';').find_map(|part| part.trim().strip_prefix("offset:")?.parse().ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_name() {
        let format = "\
name: sched_process_fork
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:__data_loc char[] parent_comm;\toffset:8;\tsize:4;\tsigned:0;
\tfield:pid_t parent_pid;\toffset:12;\tsize:4;\tsigned:1;
\tfield:char comm[16];\toffset:16;\tsize:16;\tsigned:0;
\tfield:pid_t child_pid;\toffset:44;\tsize:4;\tsigned:1;
";
        assert_eq!(offset_in(format, "child_pid"), Some(44));
        assert_eq!(offset_in(format, "comm"), Some(16));
        assert_eq!(offset_in(format, "pid"), None);
    }
}
