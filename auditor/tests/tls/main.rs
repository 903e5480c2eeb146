//! The passive TLS connection against real peers: every byte that they say, both ways, and every byte counted.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, dead_code, reason = "a test panics")]

mod hostile;
mod openssl;
mod peers;
mod reading;
mod states;
mod talk;
