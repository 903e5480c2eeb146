//! An address and a port, canonical, in network byte order.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The bits that an IPv4 prefix length grows by in the canonical, IPv4-mapped form.
pub const IPV4_PREFIX_OFFSET: u32 = 96;

/// An IP address and a port.
///
/// IPv4 is kept in its IPv4-mapped form (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2), so that the two ways in which a
/// program can name one host are one value: a rule for the IPv4 address binds both.
#[repr(C)]
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct Endpoint {
    address: [u8; 16],
    port: [u8; 2],
    _padding: [u8; 2],
}
crate::assert_layout!(Endpoint, size = 20, align = 1);

impl Endpoint {
    /// From an IPv4 address in network byte order and a port in host byte order.
    #[inline(always)]
    pub const fn v4(address: [u8; 4], port: u16) -> Self {
        let [a, b, c, d] = address;
        Self {
            address: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d],
            port: port.to_be_bytes(),
            _padding: [0; 2],
        }
    }

    /// From an IPv6 address in network byte order and a port in host byte order.
    #[inline(always)]
    pub const fn v6(address: [u8; 16], port: u16) -> Self {
        Self { address, port: port.to_be_bytes(), _padding: [0; 2] }
    }

    /// The same endpoint as Linux will use it as a destination: the unspecified address means this host.
    #[inline(always)]
    pub fn as_destination(mut self) -> Self {
        if self.address == [0; 16] {
            self.address[15] = 1;
        } else if self.is_v4() && self.address[12..] == [0; 4] {
            self.address[12] = 127;
            self.address[15] = 1;
        }
        self
    }

    /// Whether this is an IPv4 endpoint.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.address[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
    }

    /// The canonical address: sixteen bytes, IPv4 as IPv4-mapped.
    #[inline(always)]
    pub const fn address(&self) -> [u8; 16] {
        self.address
    }

    /// The port in host byte order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }

    /// The address as the standard library has it, IPv4 unmapped.
    pub const fn ip(&self) -> IpAddr {
        Ipv6Addr::from_octets(self.address).to_canonical()
    }

    /// As a socket address, IPv4 unmapped.
    pub const fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.port())
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        match address.ip() {
            IpAddr::V4(v4) => Self::v4(Ipv4Addr::octets(&v4), address.port()),
            IpAddr::V6(v6) => Self::v6(Ipv6Addr::octets(&v6), address.port()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapped_form_is_the_same_endpoint() {
        let mapped: SocketAddr = "[::ffff:10.1.2.3]:5432".parse().unwrap();
        let plain: SocketAddr = "10.1.2.3:5432".parse().unwrap();
        assert!(Endpoint::from(mapped) == Endpoint::from(plain));
        assert_eq!(Endpoint::from(mapped).socket_address(), plain);
    }

    #[test]
    fn the_unspecified_address_is_this_host() {
        for (given, meant) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.0:1", "10.0.0.0:1")]
        {
            let given: SocketAddr = given.parse().unwrap();
            let meant: SocketAddr = meant.parse().unwrap();
            assert_eq!(Endpoint::from(given).as_destination().socket_address(), meant);
        }
    }
}
