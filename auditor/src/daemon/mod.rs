//! The daemon: one pipeline thread that owns all state, and an API in front of it.

pub mod command;
