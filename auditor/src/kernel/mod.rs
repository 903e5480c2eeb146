//! The kernel side as the daemon sees it: the object with its programs, where they are attached, and its tables.
//!
//! Attach to each session's cgroup or to the parent of the sessions' cgroups, never to the root of the hierarchy: whoever
//! is not an agent pays nothing.

pub mod btf;
pub mod cgroup;
mod link;
pub mod object;
pub mod shares;
pub mod tables;
pub mod tracefs;
pub mod unix;
pub mod unix_stream;
