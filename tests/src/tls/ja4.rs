//! JA4 of a ClientHello, computed a second time, from what arrived at the server.
//!
//! After FoxIO's description: version, SNI, counts and ALPN in the clear; then a hash over the sorted suites, and one over the
//! sorted extensions and the signature algorithms in their order. GREASE (RFC 8701) does not count.

use sha2::{Digest, Sha256};

/// JA4 of a client over TCP, from its first record.
pub fn ja4(record: &[u8]) -> Option<String> {
    // Record header, message header, legacy version, random.
    let mut rest = Reader(record.get(5 + 4..)?);
    let legacy = rest.number(2)?;
    rest.bytes(32)?;
    rest.vector(1)?;
    let mut suites = numbers(rest.vector(2)?)?;
    rest.vector(1)?;
    let mut extensions = Vec::new();
    let (mut version, mut signatures, mut alpn) = (legacy, Vec::new(), "00".to_owned());
    let mut list = Reader(rest.vector(2)?);
    while !list.0.is_empty() {
        let (kind, body) = (list.number(2)?, list.vector(2)?);
        match kind {
            13 => signatures = numbers(body.get(2..)?)?,
            16 => {
                let first = Reader(body.get(2..)?).vector(1)?;
                alpn = [*first.first()?, *first.last()?].map(char::from).iter().collect();
            }
            43 => version = numbers(body.get(1..)?)?.into_iter().max()?,
            _ => {}
        }
        extensions.push(kind);
    }
    extensions.retain(|kind| !is_grease(*kind));
    let named = if extensions.contains(&0) { 'd' } else { 'i' };
    let version = match version {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        _ => "10",
    };
    let counts = format!("{:02}{:02}", suites.len().min(99), extensions.len().min(99));
    suites.sort_unstable();
    extensions.sort_unstable();
    extensions.retain(|kind| ![0, 16].contains(kind));
    let mut last = spell(&extensions);
    if !signatures.is_empty() {
        last = format!("{last}_{}", spell(&signatures));
    }
    Some(format!("t{version}{named}{counts}{alpn}_{}_{}", hash(&spell(&suites)), hash(&last)))
}

fn is_grease(number: usize) -> bool {
    number & 0x0f0f == 0x0a0a && number >> 8 == number & 0xff
}

fn numbers(bytes: &[u8]) -> Option<Vec<usize>> {
    let mut rest = Reader(bytes);
    let mut numbers = Vec::new();
    while !rest.0.is_empty() {
        numbers.push(rest.number(2)?);
    }
    numbers.retain(|number| !is_grease(*number));
    Some(numbers)
}

fn spell(numbers: &[usize]) -> String {
    numbers.iter().map(|number| format!("{number:04x}")).collect::<Vec<_>>().join(",")
}

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn number(&mut self, length: usize) -> Option<usize> {
        Some(self.bytes(length)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn vector(&mut self, length: usize) -> Option<&'a [u8]> {
        let length = self.number(length)?;
        self.bytes(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of FoxIO's description, given as a hello: t13d1516h2_8daaf6152771_e5627efa2ab1.
    #[test]
    fn the_example_of_the_description() {
        let suites = [
            0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c,
            0x009d, 0x002f, 0x0035,
        ];
        let signatures = [0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601];
        let pack =
            |numbers: &[u16]| numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>();
        let vector = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
        let mut extensions = Vec::new();
        for kind in [
            0x1a1a_u16, 0x001b, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023,
            0x0012, 0x002b, 0xff01, 0x000b, 0x000a, 0x0015,
        ] {
            let body = match kind {
                0x000d => vector(&pack(&signatures)),
                0x0010 => vector(b"\x02h2\x08http/1.1"),
                0x002b => [&[6][..], &pack(&[0xfafa, 0x0304, 0x0303])].concat(),
                _ => Vec::new(),
            };
            extensions.extend([&kind.to_be_bytes()[..], &vector(&body)].concat());
        }
        let mut suites = pack(&suites);
        suites.splice(0..0, [0x2a, 0x2a]);
        let hello =
            [&[0; 9][..], &[3, 3], &[0; 32], &[0], &vector(&suites), &[1, 0], &vector(&extensions)].concat();
        assert_eq!(ja4(&hello).unwrap(), "t13d1516h2_8daaf6152771_e5627efa2ab1");
    }
}
