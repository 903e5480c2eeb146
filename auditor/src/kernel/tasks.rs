//! Where the kernel keeps a task's process and cgroup: offsets that the programs on births and moves must be told, from the kernel's type
//! information.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::btf::{self, Types};

/// Why they are not known.
#[derive(Debug, thiserror::Error)]
pub enum TasksError {
    /// The kernel does not tell of its types.
    #[error(
        "the kernel's type information cannot be read at {path}: {error}; boot a kernel with CONFIG_DEBUG_INFO_BTF"
    )]
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
    #[error(
        "this kernel's struct {structure} has no field {field}, without which moves of processes are not seen"
    )]
    NoField {
        /// Which.
        structure: &'static str,
        /// And which.
        field: &'static str,
    },
}

/// Name of a global of the programs, structure and field whose offset it is.
const FIELDS: [(&str, &str, &str); 11] = [
    ("TASK_PID_OFFSET", "task_struct", "pid"),
    ("TASK_TGID_OFFSET", "task_struct", "tgid"),
    ("TASK_SIGNAL_OFFSET", "task_struct", "signal"),
    ("TASK_CGROUPS_OFFSET", "task_struct", "cgroups"),
    ("SIGNAL_LIVE_OFFSET", "signal_struct", "live"),
    ("SET_CGROUP_OFFSET", "css_set", "dfl_cgrp"),
    ("CGROUP_ROOT_OFFSET", "cgroup", "root"),
    ("CGROUP_LEVEL_OFFSET", "cgroup", "level"),
    ("CGROUP_NODE_OFFSET", "cgroup", "kn"),
    ("NODE_ID_OFFSET", "kernfs_node", "id"),
    ("NODE_NAME_OFFSET", "kernfs_node", "name"),
];

/// Reads what the programs must be told before they are loaded: name of a global and its value.
///
/// # Errors
/// [`TasksError`].
pub fn globals(types: &Path) -> Result<Vec<(&'static str, u32)>, TasksError> {
    let bytes = fs::read(types).map_err(|error| TasksError::NoTypes { path: types.to_owned(), error })?;
    let types = Types::parse(&bytes)?;
    let offset =
        |structure, field| types.offset(structure, field).ok_or(TasksError::NoField { structure, field });
    let mut globals = Vec::with_capacity(FIELDS.len() + 2);
    for (name, structure, field) in FIELDS {
        globals.push((name, offset(structure, field)?));
    }
    globals.push(("ROOT_HIERARCHY_OFFSET", offset("cgroup_root", "hierarchy_id")?));
    // Pointers since Linux 6.1, numbers before.
    globals.push(match types.offset("cgroup", "ancestors") {
        Some(offset) => ("CGROUP_ANCESTORS_OFFSET", offset),
        None => ("CGROUP_ANCESTOR_IDS_OFFSET", offset("cgroup", "ancestor_ids")?),
    });
    Ok(globals)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::VMLINUX;
    use crate::kernel::btf::tests::kernel;

    #[test]
    fn this_kernel_says_where_they_are() {
        let globals = globals(Path::new(VMLINUX)).unwrap();
        assert_eq!(globals.len(), FIELDS.len() + 2);
        let of = |name: &str| globals.iter().find(|(global, _)| *global == name).map(|(_, offset)| *offset);
        // One after the other since both exist.
        assert_eq!(of("TASK_PID_OFFSET").map(|offset| offset + 4), of("TASK_TGID_OFFSET"));
    }

    #[test]
    fn a_kernel_that_does_not_say_is_told_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let types = directory.path().join("vmlinux");
        let why = || globals(&types).unwrap_err();
        assert!(why().to_string().contains("CONFIG_DEBUG_INFO_BTF"), "{}", why());
        fs::write(&types, "not BTF").unwrap();
        assert!(matches!(why(), TasksError::Types(_)), "{}", why());
        fs::write(&types, kernel("X")).unwrap();
        assert!(matches!(why(), TasksError::NoField { structure: "task_struct", field: "pid" }), "{}", why());
    }
}
