//! The auditor's library: everything between the kernel's rings and the trail, and the API in front of it.
//!
//! One direction: [`source`] (events) → [`daemon`]'s pipeline (attribution) → [`stream`] (reassembly) → [`protocol`]
//! (statements) → [`record`] (OCSF) → [`trail`] (chain, segments). ARCHITECTURE.md follows one event all the way.

pub mod api;
pub mod capabilities;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod interned;
pub mod kernel;
pub mod landlock;
pub mod library;
pub mod policy;
pub mod posture;
pub mod process;
pub mod protocol;
pub mod record;
pub mod secrecy;
pub mod session;
pub mod shared;
pub mod source;
pub mod statement;
pub mod stream;
pub mod tls;
pub mod trail;
