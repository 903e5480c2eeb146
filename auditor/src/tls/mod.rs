//! TLS, as far as it is in the clear: who is asked for, and what the two ends agree on.

#![forbid(unsafe_code)]

pub mod hello;

pub use self::hello::Hello;
