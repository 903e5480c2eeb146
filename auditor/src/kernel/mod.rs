//! The kernel side as the daemon sees it: the object with its programs, where they are attached, and its tables.
//!
//! Attach to each session's cgroup or to the parent of the sessions' cgroups, never to the root of the hierarchy: whoever
//! is not an agent pays nothing.

mod bpf;
pub mod bpffs;
pub mod btf;
pub mod cgroup;
mod link;
pub mod mappings;
pub mod object;
pub mod orphan;
pub mod secrets;
pub mod shares;
pub mod tables;
pub mod tasks;
pub mod tracefs;
pub mod unix;
pub mod unix_stream;
pub mod uprobe;
