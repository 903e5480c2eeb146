//! IP, TCP and UDP headers, as far as the packet hooks need them. Pure, so that it is tested on the host.
//!
//! Each function takes exactly the bytes of a fixed header and answers `None` for what it cannot stand behind: such a
//! packet is refused, never guessed at.

use crate::endpoint::Endpoint;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// TCP flag FIN.
pub const FIN: u8 = 0x01;
/// TCP flag SYN.
pub const SYN: u8 = 0x02;
/// TCP flag RST.
pub const RST: u8 = 0x04;
/// TCP flag ACK.
pub const ACK: u8 = 0x10;
/// TCP flag URG.
pub const URG: u8 = 0x20;

/// Length in bytes of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Length in bytes of the fixed IPv6 header.
pub const IPV6_HEADER: usize = 40;
/// Length in bytes of a TCP header without options.
pub const TCP_HEADER: usize = 20;
/// Length in bytes of a UDP header.
pub const UDP_HEADER: usize = 8;

/// What an IP header says.
#[derive(Clone, Copy)]
pub struct Internet {
    /// Bytes to the next header.
    pub length: u32,
    /// Protocol of the next header.
    pub protocol: u8,
    /// Source, without port.
    pub source: [u8; 16],
    /// Destination, without port.
    pub destination: [u8; 16],
}

/// IPv4 (RFC 791 section 3.1). `None`: not IPv4, a header length below the minimum, or a fragment other than the first.
#[inline(always)]
pub fn ipv4(header: &[u8; IPV4_HEADER]) -> Option<Internet> {
    let length = u32::from(header[0] & 0x0f) * 4;
    let fragment_offset = u16::from_be_bytes([header[6] & 0x1f, header[7]]);
    if header[0] >> 4 != 4 || length < 20 || fragment_offset != 0 {
        return None;
    }
    Some(Internet {
        length,
        protocol: header[9],
        source: Endpoint::v4([header[12], header[13], header[14], header[15]], 0).address(),
        destination: Endpoint::v4([header[16], header[17], header[18], header[19]], 0).address(),
    })
}

/// IPv6 (RFC 8200 section 3). `None`: not IPv6.
#[inline(always)]
pub fn ipv6(header: &[u8; IPV6_HEADER]) -> Option<Internet> {
    if header[0] >> 4 != 6 {
        return None;
    }
    let mut source = [0; 16];
    let mut destination = [0; 16];
    source.copy_from_slice(&header[8..24]);
    destination.copy_from_slice(&header[24..40]);
    Some(Internet { length: 40, protocol: header[6], source, destination })
}

/// Whether an IPv6 next-header value is an extension header that may stand before the transport header and has its length
/// in its second byte (RFC 8200 section 4: hop-by-hop and destination options). A routing header is none of them: it sends
/// the packet through hops that no rule has decided.
#[inline(always)]
pub const fn is_ipv6_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 60)
}

/// What a TCP header says (RFC 9293 section 3.1).
#[derive(Clone, Copy)]
pub struct Tcp {
    /// Source port, host byte order.
    pub source: u16,
    /// Destination port, host byte order.
    pub destination: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Header length in bytes, options included.
    pub length: u32,
    /// Flags byte.
    pub flags: u8,
}

/// TCP. `None`: a data offset below the minimum.
#[inline(always)]
pub fn tcp(header: &[u8; TCP_HEADER]) -> Option<Tcp> {
    let length = u32::from(header[12] >> 4) * 4;
    if length < 20 {
        return None;
    }
    Some(Tcp {
        source: u16::from_be_bytes([header[0], header[1]]),
        destination: u16::from_be_bytes([header[2], header[3]]),
        sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        acknowledgement: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
        length,
        flags: header[13],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_header_is_read_with_its_options_length() {
        let mut header = [0; IPV4_HEADER];
        header[0] = 0x46;
        header[9] = TCP;
        header[12..16].copy_from_slice(&[10, 0, 0, 1]);
        header[16..20].copy_from_slice(&[10, 0, 0, 2]);
        let internet = ipv4(&header).unwrap();
        assert_eq!((internet.length, internet.protocol), (24, TCP));
        assert_eq!(internet.destination, Endpoint::v4([10, 0, 0, 2], 0).address());
    }

    #[test]
    fn what_is_no_first_fragment_is_refused() {
        let mut header = [0; IPV4_HEADER];
        header[0] = 0x45;
        header[7] = 1;
        assert!(ipv4(&header).is_none());
        header[7] = 0;
        // "More fragments" with offset zero still has the transport header.
        header[6] = 0x20;
        assert!(ipv4(&header).is_some());
        header[0] = 0x44;
        assert!(ipv4(&header).is_none());
        header[0] = 0x65;
        assert!(ipv4(&header).is_none());
    }

    #[test]
    fn a_tcp_header_is_read_in_network_order() {
        let mut header = [0; TCP_HEADER];
        header[..8].copy_from_slice(&[0x15, 0x38, 0xc0, 0x00, 0, 0, 1, 2]);
        header[12] = 0x80;
        header[13] = SYN;
        let tcp = tcp(&header).unwrap();
        assert_eq!((tcp.source, tcp.destination, tcp.sequence, tcp.length), (5432, 49152, 258, 32));
        assert_eq!(tcp.flags & SYN, SYN);
        header[12] = 0x40;
        assert!(super::tcp(&header).is_none());
    }
}
