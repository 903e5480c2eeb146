//! What the kernel programs and the daemon agree on: the records that travel over the rings, the keys and values of the
//! tables, and the one function that turns table look-ups into a verdict.
//!
//! Rules of this crate: `no_std`, `repr(C)`, fixed-width integers and byte arrays, explicit padding, no enums and no
//! `Option` in anything that crosses the boundary (a value that the other side does not know must be representable).
//! Sizes and alignments are asserted when it is compiled, for the programs as for the daemon; both take them from here.
#![no_std]
#![forbid(unsafe_code)]

pub mod bulk;
pub mod control;
pub mod counter;
pub mod endpoint;
pub mod event;
pub mod packet;
pub mod rule;
pub mod share;
pub mod tls;
pub mod unix;

/// Version of what the programs' tables and records mean. To be raised when that changes and no size does: a daemon goes on with
/// tables that it finds only if they are of its own version.
pub const LAYOUT: u32 = 9;

/// Asserts the size of a shared type at compile time.
macro_rules! assert_layout {
    ($type:ty, size = $size:expr, align = $align:expr) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        const _: () = assert!(core::mem::align_of::<$type>() == $align);
    };
}
pub(crate) use assert_layout;
