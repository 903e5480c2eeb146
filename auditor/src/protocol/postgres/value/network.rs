//! inet, cidr, macaddr and macaddr8.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Family numbers as the server sends them, which are its own and no system's.
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 3;

/// Family, bits of the network, whether it is a cidr, length, address. A host's inet is shown without its bits.
pub(super) fn address(bytes: &[u8], cidr: bool) -> Option<String> {
    let &[family, bits, _, length, ref address @ ..] = bytes else { return None };
    if usize::from(length) != address.len() {
        return None;
    }
    let (text, all) = match family {
        FAMILY_IPV4 => (Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?).to_string(), 32),
        FAMILY_IPV6 => (Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).to_string(), 128),
        _ => return None,
    };
    (bits <= all).then(|| if bits == all && !cidr { text } else { format!("{text}/{bits}") })
}

/// Six or eight bytes.
pub(super) fn mac(bytes: &[u8]) -> Option<String> {
    if !matches!(bytes.len(), 6 | 8) {
        return None;
    }
    let mut text = String::with_capacity(3 * bytes.len());
    for (index, byte) in bytes.iter().enumerate() {
        let colon = if index > 0 { ":" } else { "" };
        write!(text, "{colon}{byte:02x}").ok()?;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_their_bits_where_they_matter() {
        let host = [2, 32, 0, 4, 10, 0, 0, 1];
        assert_eq!(address(&host, false).as_deref(), Some("10.0.0.1"));
        assert_eq!(address(&host, true).as_deref(), Some("10.0.0.1/32"));
        assert_eq!(address(&[2, 8, 1, 4, 10, 0, 0, 0], true).as_deref(), Some("10.0.0.0/8"));
        let mut six = vec![3, 128, 0, 16];
        six.extend(Ipv6Addr::LOCALHOST.octets());
        assert_eq!(address(&six, false).as_deref(), Some("::1"));
        assert_eq!(address(&[2, 33, 0, 4, 10, 0, 0, 1], false), None);
        assert_eq!(address(&[2, 32, 0, 5, 10, 0, 0, 1], false), None);
    }

    #[test]
    fn mac_addresses_have_six_or_eight_bytes() {
        assert_eq!(mac(&[8, 0, 0x2b, 1, 2, 3]).as_deref(), Some("08:00:2b:01:02:03"));
        assert_eq!(mac(&[8, 0, 0x2b, 1, 2, 3, 4, 5]).as_deref(), Some("08:00:2b:01:02:03:04:05"));
        assert_eq!(mac(&[1]), None);
    }
}
