//! What a file with code has to offer to probes: which TLS library is in it, and where in the file its functions begin.
//!
//! A library is told by what it exports, never by its name: `libcrypto.so.3`, a copy within a Python wheel under a name made of
//! hash digits, and node's own program all export `EVP_KDF_derive`, and all are found the same way. What is compiled into a program
//! (rustls) is told by the program's own symbols, where it has any.
//!
//! The file is read, not mapped, because whoever owns it may cut it short at any time. Nothing in it is believed: offsets and
//! lengths are checked, what is read has a bound, and what makes no sense is an [`Unreadable`], never a panic. A file that lies about its
//! symbols gets a probe where it wants one, in code that only those run who map that file.

mod elf;
mod go;
mod keylog;
mod version;

use std::fs::File;

use serde::{Deserialize, Serialize};

pub use elf::Unreadable;
pub use version::name;

/// A function that secrets pass through, and with it what its arguments are. Each has a kernel program of its own.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub enum Point {
    /// OpenSSL 3: EVP_KDF_derive.
    OpensslDerives,
    /// GnuTLS, TLS 1.3: gnutls_hkdf_expand.
    GnutlsExpands,
    /// GnuTLS, TLS 1.2: _gnutls_prf_raw.
    GnutlsPrf,
    /// Go, TLS 1.3: trafficKey. Go's functions are also found in programs without symbols (`go`).
    GoTrafficKey,
    /// Go, TLS 1.2: keysFromMasterSecret.
    GoMasterSecret,
    /// BoringSSL and what comes of it: ssl_log_secret (`keylog`).
    LogsSecret,
    /// OpenSSL 1.1: EVP_PKEY_derive. Others have a function of that name, too: see [`OPENSSL_11`].
    OpensslDerivesKey,
    /// rustls, TLS 1.3: `Hkdf::expander_for_okm` of whichever provider.
    RustlsExpands,
    /// rustls, TLS 1.2: `Prf::for_secret`.
    RustlsPrf,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::OpensslDerives,
        Self::GnutlsExpands,
        Self::GnutlsPrf,
        Self::GoTrafficKey,
        Self::GoMasterSecret,
        Self::LogsSecret,
        Self::OpensslDerivesKey,
        Self::RustlsExpands,
        Self::RustlsPrf,
    ];

    /// Those of Go.
    const GO: [Self; 2] = [Self::GoTrafficKey, Self::GoMasterSecret];

    /// The symbol that tells it, with the NUL behind it; or a method of a crate that mangles names ([`Self::within`]).
    const fn symbol(self) -> &'static [u8] {
        match self {
            Self::OpensslDerives => b"EVP_KDF_derive\0",
            Self::GnutlsExpands => b"gnutls_hkdf_expand\0",
            Self::GnutlsPrf => b"_gnutls_prf_raw\0",
            Self::GoTrafficKey => b"crypto/tls.(*cipherSuiteTLS13).trafficKey\0",
            Self::GoMasterSecret => b"crypto/tls.keysFromMasterSecret\0",
            Self::LogsSecret => b"ssl_log_secret\0",
            Self::OpensslDerivesKey => b"EVP_PKEY_derive\0",
            Self::RustlsExpands => b"16expander_for_okm",
            Self::RustlsPrf => b"10for_secret",
        }
    }

    /// The crate that the symbol is a method of.
    const fn within(self) -> Option<&'static [u8]> {
        match self {
            Self::RustlsExpands | Self::RustlsPrf => Some(b"rustls"),
            _ => None,
        }
    }

    /// Name of the kernel program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::OpensslDerives => "evp_kdf_derive",
            Self::GnutlsExpands => "gnutls_hkdf_expand",
            Self::GnutlsPrf => "gnutls_prf_raw",
            Self::GoTrafficKey => "go_traffic_key",
            Self::GoMasterSecret => "go_master_secret",
            Self::LogsSecret => "ssl_log_secret",
            Self::OpensslDerivesKey => "evp_pkey_derive",
            Self::RustlsExpands => "rustls_expander",
            Self::RustlsPrf => "rustls_prf",
        }
    }

    /// The library, as its users call it.
    pub const fn library(self) -> &'static str {
        match self {
            Self::OpensslDerives | Self::OpensslDerivesKey => "OpenSSL",
            Self::GnutlsExpands | Self::GnutlsPrf => "GnuTLS",
            Self::GoTrafficKey | Self::GoMasterSecret => "Go crypto/tls",
            Self::LogsSecret => "BoringSSL",
            Self::RustlsExpands | Self::RustlsPrf => "rustls",
        }
    }
}

/// A function that OpenSSL has from 1.1.0 on, and its key derivations with it; neither earlier releases nor LibreSSL or BoringSSL.
const OPENSSL_11: &[u8] = b"EVP_PKEY_CTX_str2ctrl\0";
/// One that it has from 3.0 on. RHEL 8's OpenSSL 1.1 has another EVP_KDF_derive, by which libssl derives nothing.
const OPENSSL_3: &[u8] = b"EVP_KDF_fetch\0";

/// Probes in one file: a function may be there more than once, but not many times.
const MOST_PROBES: usize = 32;
/// Bytes of symbols and names that are looked through in some tenths of a millisecond.
const LONG: u64 = 256 << 10;
/// The same of code and constants.
const LONG_CODE: u64 = 8 << 20;

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
    let is_long =
        |elf: elf::Elf<'_>| elf.symbol_bytes().max(go::bytes(&elf)) > LONG || elf.fixed_bytes() > LONG_CODE;
    elf::Elf::read(file).is_ok_and(|elf| elf.is_some_and(is_long))
}

/// Looks for functions to probe. A file without any, or for another machine, is nothing to report.
///
/// # Errors
/// It begins like an ELF file, and does not go on like one.
pub fn inspect(file: &File) -> Result<Vec<Probe>, Unreadable> {
    let Some(elf) = elf::Elf::read(file)? else { return Ok(Vec::new()) };
    let mut probes = Vec::new();
    let mut add = |point, address| {
        let probe = elf.offset(address).map(|offset| Probe { point, offset });
        if let Some(probe) = probe
            && !probes.contains(&probe)
            && probes.len() < MOST_PROBES
        {
            probes.push(probe);
        }
    };
    let (mut is_openssl_11, mut is_openssl_3) = (false, false);
    let mut wanted = [(OPENSSL_3, None); Point::ALL.len() + 2];
    wanted.iter_mut().zip(Point::ALL).for_each(|(name, point)| *name = (point.symbol(), point.within()));
    wanted[Point::ALL.len()] = (OPENSSL_11, None);
    elf.functions(wanted, |index, address| {
        let Some(point) = Point::ALL.get(index).copied() else {
            is_openssl_11 |= index == Point::ALL.len();
            is_openssl_3 |= index > Point::ALL.len();
            return;
        };
        add(point, address);
        // GnuTLS itself calls what the function that it exports is a shell of.
        if point == Point::GnutlsExpands
            && let Some(within) = elf.first_call(address)
        {
            add(point, within);
        }
    })?;
    if !probes.iter().any(|probe| Point::GO.contains(&probe.point)) {
        go::functions(&elf, Point::GO.map(Point::symbol), |index, address| {
            let offset = elf.offset(address);
            probes.extend(offset.map(|offset| Probe { point: Point::GO[index], offset }));
        })?;
        probes.truncate(MOST_PROBES);
    }
    // OpenSSL 3 has the function of its predecessor as well, and does not derive the keys of connections by it.
    let other = if is_openssl_11 && !is_openssl_3 { Point::OpensslDerives } else { Point::OpensslDerivesKey };
    probes.retain(|probe| probe.point != other);
    // Whoever has another one would tell of each secret twice.
    if probes.iter().any(|probe| probe.point != Point::LogsSecret) {
        probes.retain(|probe| probe.point != Point::LogsSecret);
    } else if probes.is_empty() {
        let offset = keylog::function(&elf)?.and_then(|address| elf.offset(address));
        probes.extend(offset.map(|offset| Probe { point: Point::LogsSecret, offset }));
    }
    Ok(probes)
}
