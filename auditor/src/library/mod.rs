//! What a file with code has to offer to probes: which TLS library is in it, and where in the file its functions begin.
//!
//! A library is told by what it exports, never by its name: `libcrypto.so.3`, a copy within a Python wheel under a name made of
//! hash digits, and node's own program all export `EVP_KDF_derive`, and all are found the same way.
//!
//! The file is read, not mapped, because whoever owns it may cut it short at any time. Nothing in it is believed: offsets and
//! lengths are checked, what is read has a bound, and what makes no sense is an [`Unreadable`], never a panic. A file that lies about its
//! symbols gets a probe where it wants one, in code that only those run who map that file.

mod elf;

use std::fs::File;

use serde::{Deserialize, Serialize};

pub use elf::Unreadable;

/// A function that secrets pass through, and with it what its arguments are. Each has a kernel program of its own.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub enum Point {
    /// OpenSSL 3: EVP_KDF_derive.
    OpensslDerives,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::OpensslDerives];

    /// The symbol that tells it.
    const fn symbol(self) -> &'static [u8] {
        match self {
            Self::OpensslDerives => b"EVP_KDF_derive",
        }
    }

    /// Name of the kernel program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::OpensslDerives => "evp_kdf_derive",
        }
    }

    /// The library, as its users call it.
    pub const fn library(self) -> &'static str {
        match self {
            Self::OpensslDerives => "OpenSSL",
        }
    }
}

/// Bytes of symbols and names that are looked through in some tenths of a millisecond.
const LONG: u64 = 256 << 10;

/// Where to probe a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Probe {
    /// Which function.
    pub point: Point,
    /// Offset of its first instruction in the file.
    pub offset: u64,
}

/// Whether [`inspect`] would read so much that one had better see to it that nobody waits for the answer by going on.
pub fn takes_long(file: &File) -> bool {
    elf::Elf::read(file).is_ok_and(|elf| elf.is_some_and(|elf| elf.symbol_bytes() > LONG))
}

/// Looks for functions to probe. A file without any, or for another machine, is nothing to report.
///
/// # Errors
/// It begins like an ELF file, and does not go on like one.
pub fn inspect(file: &File) -> Result<Vec<Probe>, Unreadable> {
    let Some(elf) = elf::Elf::read(file)? else { return Ok(Vec::new()) };
    let mut probes = Vec::new();
    elf.functions(|name, address| {
        let point = Point::ALL.into_iter().find(|point| point.symbol() == name);
        if let Some(point) = point
            && let Some(offset) = elf.offset(address)
            && !probes.contains(&Probe { point, offset })
        {
            probes.push(Probe { point, offset });
        }
    })?;
    Ok(probes)
}
