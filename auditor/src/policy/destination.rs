//! Destinations as rules name them.
//!
//! ```text
//! [tcp:|udp:] ADDR | ADDR/LEN | ADDR:PORT | ADDR/LEN:PORT          (IPv4)
//! [tcp:|udp:] ADDR | ADDR/LEN | [ADDR]:PORT | [ADDR/LEN]:PORT      (IPv6)
//! ```
//!
//! Rejected, never repaired: whatever two programs could read differently (`010.0.0.1`, `127.1`, `0x7f.1`, a trailing dot,
//! a zone id, an embedded NUL) is refused, because the agent's C library and this file must mean the same host. So is what
//! would mean more than it says: a prefix with host bits, an IPv6 prefix that contains all of IPv4; and an IPv6 address
//! without brackets that may end in a port (`::1:5432`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use auditor_common::endpoint::{Endpoint, IPV4_PREFIX_OFFSET};
use auditor_common::rule::ANY_PORT;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// Longest destination in bytes: every valid one is far shorter.
const MAX_LENGTH: usize = 128;

/// The IPv4-mapped range, `::ffff:0:0/96`.
const MAPPED: u128 = 0xffff << 32;

/// The transports that a destination stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transports {
    /// TCP and UDP.
    Both,
    /// TCP alone.
    Tcp,
    /// UDP alone.
    Udp,
}

impl Transports {
    /// IP protocol numbers.
    pub const fn numbers(self) -> &'static [u8] {
        match self {
            Self::Both => &[TCP, UDP],
            Self::Tcp => &[TCP],
            Self::Udp => &[UDP],
        }
    }
}

/// A network, a port or all, a transport or both.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Destination {
    text: String,
    transports: Transports,
    address: u128,
    prefix: u32,
    port: u16,
}

impl Destination {
    /// The transports it stands for.
    pub const fn transports(&self) -> Transports {
        self.transports
    }

    /// The same destination for TCP alone; `None` where it is for UDP.
    pub fn tcp_only(mut self) -> Option<Self> {
        if self.transports == Transports::Udp {
            return None;
        }
        self.transports = Transports::Tcp;
        Some(self)
    }

    /// Network address in its canonical form: sixteen bytes, IPv4 as IPv4-mapped.
    pub const fn address(&self) -> [u8; 16] {
        self.address.to_be_bytes()
    }

    /// Prefix length in the canonical form, 0 to 128.
    pub const fn prefix(&self) -> u32 {
        self.prefix
    }

    /// Port in host byte order, [`ANY_PORT`] for all.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether traffic to `remote` over `transport` (IP protocol number) is meant. `remote` as the kernel will use it, see
    /// [`Endpoint::as_destination`].
    pub fn contains(&self, remote: Endpoint, transport: u8) -> bool {
        self.transports.numbers().contains(&transport)
            && (self.port == ANY_PORT || self.port == remote.port())
            && network(u128::from_be_bytes(remote.address()), self.prefix) == self.address
    }
}

/// As it was written.
impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Why a text is not a destination, and what to write instead.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DestinationError {
    /// Nothing there.
    #[error("it is empty: write an address, e.g. \"10.20.0.0/16:5432\"")]
    Empty,
    /// Longer than any destination.
    #[error("it is longer than any address: write one destination in each string")]
    TooLong,
    /// A zone id, or a percent-encoded byte.
    #[error("'%' is not accepted: write the address without zone id and without escapes")]
    Percent,
    /// A control character, white space, or a character beyond ASCII.
    #[error("it holds the character {0:?}: write the address without white space and control characters")]
    Character(char),
    /// A unix socket.
    #[error("a unix socket is written as in \"unix:/run/postgresql/.s.PGSQL.5432\" and has no transport")]
    Unix,
    /// A host name.
    #[error("rules by name are not supported by this version: use the address")]
    Name,
    /// A trailing dot.
    #[error("the address ends in a dot: remove it")]
    TrailingDot,
    /// Looks like IPv4, but is not in its one plain form.
    #[error(
        "not an IPv4 address in its plain form: write four decimal numbers from 0 to 255 without leading zeros"
    )]
    Ipv4,
    /// Looks like IPv6, but is not.
    #[error(
        "not an IPv6 address: write it as in \"2001:db8::/32\", with a port as in \"[2001:db8::1]:5432\""
    )]
    Ipv6,
    /// An IPv6 address whose last group could be meant as a port.
    #[error("it can be read in two ways: write [{address}]:{port} for the port, {whole}/128 for the address")]
    Ambiguous {
        /// The address if a port follows.
        address: Ipv6Addr,
        /// The port.
        port: u16,
        /// The address if none does.
        whole: Ipv6Addr,
    },
    /// Brackets that do not fit.
    #[error("brackets enclose an IPv6 address or prefix that a port follows, as in \"[2001:db8::/32]:5432\"")]
    Brackets,
    /// An IPv4-mapped IPv6 address.
    #[error("an IPv4-mapped address: write the IPv4 address {0}, it stands for both forms")]
    Mapped(Ipv4Addr),
    /// A prefix of IPv6 that contains the IPv4-mapped range.
    #[error(
        "it contains every IPv4 address too, which is decided in its IPv4-mapped form: \
         for IPv6 write \"2000::/3\" (global), \"fc00::/7\" (local), for IPv4 \"0.0.0.0/0\""
    )]
    ContainsIpv4,
    /// The unspecified address.
    #[error("as a destination the unspecified address means this host: write {0}")]
    Unspecified(IpAddr),
    /// A port that is not one.
    #[error(
        "the port must be a decimal number from 1 to 65535 without sign and leading zeros; leave it out for every port"
    )]
    Port,
    /// A prefix length that is not one.
    #[error("the prefix length must be a decimal number from 0 to {0} without sign and leading zeros")]
    Prefix(u32),
    /// Bits set beyond the prefix.
    #[error(
        "the address has bits set beyond its prefix: write {network}/{length} for the network, {host} for the host alone"
    )]
    HostBits {
        /// The network address.
        network: IpAddr,
        /// The prefix length as written.
        length: u32,
        /// The address as written.
        host: IpAddr,
    },
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        check_characters(text)?;
        let (transports, rest) = if let Some(rest) = text.strip_prefix("tcp:") {
            (Transports::Tcp, rest)
        } else if let Some(rest) = text.strip_prefix("udp:") {
            (Transports::Udp, rest)
        } else {
            (Transports::Both, text)
        };
        let (address, prefix, port) = if rest.contains(['[', ']']) {
            let inner = rest.strip_prefix('[').ok_or(DestinationError::Brackets)?;
            let (inner, port) = inner.split_once("]:").ok_or(DestinationError::Brackets)?;
            let (address, prefix) = ipv6(inner)?;
            (address, prefix, parse_port(port)?)
        } else if rest.matches(':').nth(1).is_some() {
            if let Some((address, port, whole)) = ambiguous(rest) {
                return Err(DestinationError::Ambiguous { address, port, whole });
            }
            let (address, prefix) = ipv6(rest)?;
            (address, prefix, ANY_PORT)
        } else {
            match rest.split_once(':') {
                Some((network, port)) => {
                    let (address, prefix) = ipv4(network)?;
                    (address, prefix, parse_port(port)?)
                }
                None => {
                    let (address, prefix) = ipv4(rest)?;
                    (address, prefix, ANY_PORT)
                }
            }
        };
        Ok(Self { text: text.to_owned(), transports, address, prefix, port })
    }
}

/// `A:N` where `A` is an IPv6 address, `N` decimal digits, and the whole an address too: nobody can tell whether `N` is a
/// port, and whoever wrote it meant one of the two. Answers the address before the port, the port, and the whole. A prefix
/// length settles it, and so does writing out all eight groups.
pub fn ambiguous(text: &str) -> Option<(Ipv6Addr, u16, Ipv6Addr)> {
    let (address, last) = text.rsplit_once(':')?;
    let port = last.parse().ok().filter(|port| *port != 0)?;
    Some((address.parse().ok()?, port, text.parse().ok()?))
}

fn check_characters(text: &str) -> Result<(), DestinationError> {
    if text.is_empty() {
        return Err(DestinationError::Empty);
    }
    if let Some(character) = text.chars().find(|character| !character.is_ascii_graphic()) {
        return Err(DestinationError::Character(character));
    }
    if text.contains('%') {
        return Err(DestinationError::Percent);
    }
    if text.starts_with("unix:") || text.starts_with('/') {
        return Err(DestinationError::Unix);
    }
    if text.len() > MAX_LENGTH {
        // A long host name is still a name.
        return Err(if is_name(text) { DestinationError::Name } else { DestinationError::TooLong });
    }
    Ok(())
}

/// `ADDR` or `ADDR/LEN`, in canonical form.
fn ipv4(text: &str) -> Result<(u128, u32), DestinationError> {
    let (address, length) = split_length(text);
    if is_name(address) {
        return Err(DestinationError::Name);
    }
    if address.ends_with('.') {
        return Err(DestinationError::TrailingDot);
    }
    // The standard library takes four plain decimal numbers and nothing else; the tests hold it to that.
    let address: Ipv4Addr = address.parse().map_err(|_| DestinationError::Ipv4)?;
    let length = length.map_or(Ok(32), |length| parse_length(length, 32))?;
    if address.is_unspecified() && length == 32 {
        return Err(DestinationError::Unspecified(Ipv4Addr::LOCALHOST.into()));
    }
    let canonical = address.to_ipv6_mapped().to_bits();
    let prefix = length + IPV4_PREFIX_OFFSET;
    let base = network(canonical, prefix);
    if base != canonical {
        let network = Ipv6Addr::from_bits(base).to_canonical();
        return Err(DestinationError::HostBits { network, length, host: address.into() });
    }
    Ok((canonical, prefix))
}

/// `ADDR` or `ADDR/LEN`.
fn ipv6(text: &str) -> Result<(u128, u32), DestinationError> {
    let (address, length) = split_length(text);
    let address: Ipv6Addr = address.parse().map_err(|_| DestinationError::Ipv6)?;
    let prefix = match length {
        None => 128,
        // The port after a prefix, but without brackets.
        Some(length) if length.contains(':') => return Err(DestinationError::Brackets),
        Some(length) => parse_length(length, 128)?,
    };
    if let Some(mapped) = address.to_ipv4_mapped() {
        return Err(DestinationError::Mapped(mapped));
    }
    if address.is_unspecified() && prefix == 128 {
        return Err(DestinationError::Unspecified(Ipv6Addr::LOCALHOST.into()));
    }
    let bits = address.to_bits();
    let base = network(bits, prefix);
    if base != bits {
        let network = Ipv6Addr::from_bits(base).into();
        return Err(DestinationError::HostBits { network, length: prefix, host: address.into() });
    }
    if prefix <= IPV4_PREFIX_OFFSET && network(MAPPED, prefix) == base {
        return Err(DestinationError::ContainsIpv4);
    }
    Ok((bits, prefix))
}

fn split_length(text: &str) -> (&str, Option<&str>) {
    text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)))
}

/// Whether a text without colons reads as a host name and not as a bad IPv4 address: as in URLs, what ends in a number is
/// meant as an address.
fn is_name(text: &str) -> bool {
    let last = text.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let number = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X")).unwrap_or(last);
    let numeric = if number.len() < last.len() {
        number.bytes().all(|byte| byte.is_ascii_hexdigit())
    } else {
        number.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-'))
    };
    !numeric
}

fn parse_port(text: &str) -> Result<u16, DestinationError> {
    decimal(text)
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .ok_or(DestinationError::Port)
}

fn parse_length(text: &str, most: u32) -> Result<u32, DestinationError> {
    decimal(text).filter(|length| *length <= most).ok_or(DestinationError::Prefix(most))
}

/// Plain decimal: no sign, no leading zeros.
fn decimal(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// The address with all bits beyond the prefix cleared.
pub(crate) fn network(address: u128, prefix: u32) -> u128 {
    let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix)).unwrap_or(0);
    address & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn parsed(text: &str) -> (Transports, IpAddr, u32, u16) {
        let destination: Destination = text.parse().unwrap();
        assert_eq!(destination.to_string(), text);
        let address = Ipv6Addr::from_octets(destination.address()).to_canonical();
        (destination.transports(), address, destination.prefix(), destination.port())
    }

    #[test]
    fn the_grammar() {
        let v4: IpAddr = "10.20.0.0".parse().unwrap();
        let host: IpAddr = "10.20.0.1".parse().unwrap();
        let v6: IpAddr = "2001:db8::".parse().unwrap();
        assert_eq!(parsed("10.20.0.1"), (Transports::Both, host, 128, ANY_PORT));
        assert_eq!(parsed("10.20.0.0/16"), (Transports::Both, v4, 112, ANY_PORT));
        assert_eq!(parsed("10.20.0.1:5432"), (Transports::Both, host, 128, 5432));
        assert_eq!(parsed("tcp:10.20.0.0/16:65535"), (Transports::Tcp, v4, 112, 65535));
        assert_eq!(parsed("0.0.0.0/0").2, 96);
        assert_eq!(parsed("2001:db8::/32"), (Transports::Both, v6, 32, ANY_PORT));
        assert_eq!(parsed("2001:db8::"), (Transports::Both, v6, 128, ANY_PORT));
        assert_eq!(parsed("udp:[2001:DB8::]:53"), (Transports::Udp, v6, 128, 53));
        assert_eq!(parsed("[2001:db8::/32]:3306"), (Transports::Both, v6, 32, 3306));
        assert_eq!(parsed("2000::/3").2, 3);
    }

    #[test]
    fn what_could_be_read_differently_is_rejected() {
        use DestinationError as Error;
        for (text, expected) in [
            ("", Error::Empty),
            ("10.0.0.1\0", Error::Character('\0')),
            ("10.0.0.1\r\n", Error::Character('\r')),
            (" 10.0.0.1", Error::Character(' ')),
            ("10.0.0.\u{0661}", Error::Character('\u{0661}')),
            ("fe80::1%eth0", Error::Percent),
            ("10.0.0.1%00", Error::Percent),
            ("unix:/run/x.sock", Error::Unix),
            ("db.internal:5432", Error::Name),
            ("*.example.com:443", Error::Name),
            ("localhost", Error::Name),
            ("tcp:tcp:10.0.0.1", Error::Name),
            ("TCP:10.0.0.1", Error::Name),
            ("10.0.0.1.", Error::TrailingDot),
            ("0x7f.1", Error::Ipv4),
            ("0x7f000001", Error::Ipv4),
            ("127.0.0.0x1", Error::Ipv4),
            ("127.1", Error::Ipv4),
            ("2130706433", Error::Ipv4),
            ("010.0.0.1", Error::Ipv4),
            ("10.0.0.256", Error::Ipv4),
            ("10.0.0.+1", Error::Ipv4),
            ("10.0.0.1:0", Error::Port),
            ("10.0.0.1:65536", Error::Port),
            ("10.0.0.1:0443", Error::Port),
            ("10.0.0.1:+443", Error::Port),
            ("10.0.0.1:", Error::Port),
            ("[2001:db8::1]:99999999999", Error::Port),
            ("10.0.0.0/33", Error::Prefix(32)),
            ("10.0.0.0/08", Error::Prefix(32)),
            ("10.0.0.0/", Error::Prefix(32)),
            ("10.0.0.0/8/8", Error::Prefix(32)),
            ("2001:db8::/129", Error::Prefix(128)),
            ("2001:db8::/32:3306", Error::Brackets),
            ("[2001:db8::1]", Error::Brackets),
            ("[2001:db8::]/32:3306", Error::Brackets),
            ("[10.0.0.1]:80", Error::Ipv6),
            ("2001:db8:::1", Error::Ipv6),
            ("::ffff:10.0.0.1", Error::Mapped(Ipv4Addr::new(10, 0, 0, 1))),
            ("[::ffff:a00:0/104]:80", Error::Mapped(Ipv4Addr::new(10, 0, 0, 0))),
            ("::/0", Error::ContainsIpv4),
            ("::/80", Error::ContainsIpv4),
            ("0.0.0.0:80", Error::Unspecified(Ipv4Addr::LOCALHOST.into())),
            ("::", Error::Unspecified(Ipv6Addr::LOCALHOST.into())),
        ] {
            assert_eq!(text.parse::<Destination>(), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn an_address_that_may_end_in_a_port_is_rejected() {
        for (text, port, address) in [
            ("::1:5432", "[::1]:5432", "::1:5432/128"),
            ("fe80::1:443", "[fe80::1]:443", "fe80::1:443/128"),
            ("tcp:2001:db8::1:80", "[2001:db8::1]:80", "2001:db8::1:80/128"),
        ] {
            assert_eq!(
                text.parse::<Destination>().unwrap_err().to_string(),
                format!("it can be read in two ways: write {port} for the port, {address} for the address")
            );
            assert!(port.parse::<Destination>().is_ok() && address.parse::<Destination>().is_ok());
        }
        // What stands before the last group is no address, or the last group is no port.
        for text in ["::1", "2001:db8::5432", "2001:db8:0:0:0:0:1:5432", "fe80::1:dead", "fe80::1:0"] {
            assert!(text.parse::<Destination>().is_ok(), "{text}");
        }
    }

    #[test]
    fn host_bits_are_rejected_with_a_proposal() {
        let error = "10.20.3.4/16:5432".parse::<Destination>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the address has bits set beyond its prefix: \
             write 10.20.0.0/16 for the network, 10.20.3.4 for the host alone"
        );
        let error = "2001:db8::1/64".parse::<Destination>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the address has bits set beyond its prefix: \
             write 2001:db8::/64 for the network, 2001:db8::1 for the host alone"
        );
    }
}
