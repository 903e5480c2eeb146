//! JA4, the fingerprint of a TLS client: FoxIO's published specification of "JA4: TLS Client Fingerprinting".
//!
//! `t13d1516h2_8daaf6152771_e5627efa2ab1`: transport, version, whether a name was asked for, numbers of ciphers and of
//! extensions, first application protocol; hash of the sorted ciphers; hash of the sorted extensions with the signature
//! algorithms in their order. Values that GREASE reserves (RFC 8701) count nowhere.

use aws_lc_rs::digest;

use super::message::ClientHello;

const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

pub(super) fn ja4(hello: &ClientHello) -> String {
    let ciphers = real(&hello.ciphers);
    let extensions = real(&hello.extensions);
    let version = match real(&hello.versions).into_iter().max().unwrap_or(hello.legacy_version) {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        0x0300 => "s3",
        0x0002 => "s2",
        _ => "00",
    };
    let name = if extensions.contains(&SERVER_NAME) { 'd' } else { 'i' };
    let mut hashed = extensions.clone();
    hashed.retain(|kind| !matches!(*kind, SERVER_NAME | ALPN));
    hashed.sort_unstable();
    let mut sorted = ciphers.clone();
    sorted.sort_unstable();
    let signatures = real(&hello.signature_algorithms);
    let mut second = list(&hashed);
    if !signatures.is_empty() {
        second = format!("{second}_{}", list(&signatures));
    }
    format!(
        "t{version}{name}{:02}{:02}{}_{}_{}",
        ciphers.len().min(99),
        extensions.len().min(99),
        protocol(hello.protocols.first()),
        short_hash(&list(&sorted), sorted.is_empty()),
        short_hash(&second, extensions.is_empty()),
    )
}

fn real(values: &[u16]) -> Vec<u16> {
    values.iter().copied().filter(|value| !is_grease(*value)).collect()
}

/// 0x0a0a, 0x1a1a, … 0xfafa.
const fn is_grease(value: u16) -> bool {
    let [high, low] = value.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

/// First and last character; of the bytes in hexadecimal, where one of the two is neither letter nor digit.
fn protocol(name: Option<&Vec<u8>>) -> String {
    let Some((&first, &last)) = name.and_then(|name| name.first().zip(name.last())) else {
        return "00".to_owned();
    };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        [char::from(first), char::from(last)].iter().collect()
    } else {
        format!("{:x}{:x}", first >> 4, last & 0x0f)
    }
}

fn list(values: &[u16]) -> String {
    values.iter().map(|value| format!("{value:04x}")).collect::<Vec<_>>().join(",")
}

/// The first twelve digits of its SHA-256.
fn short_hash(text: &str, nothing: bool) -> String {
    if nothing {
        return "000000000000".to_owned();
    }
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    hash.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification, with GREASE in each list.
    fn published() -> ClientHello {
        ClientHello {
            legacy_version: 0x0303,
            ciphers: vec![
                0x0a0a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013,
                0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
            ],
            extensions: vec![
                0x1a1a, 0x001b, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023,
                0x0012, 0x002b, 0xff01, 0x000b, 0x000a, 0x0015, 0xfafa,
            ],
            versions: vec![0x2a2a, 0x0304, 0x0303],
            protocols: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            signature_algorithms: vec![0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601],
            ..ClientHello::default()
        }
    }

    #[test]
    fn the_published_example_is_reproduced() {
        assert_eq!(ja4(&published()), "t13d1516h2_8daaf6152771_e5627efa2ab1");
    }

    #[test]
    fn what_is_absent_is_written_as_the_specification_says() {
        let mut hello = published();
        hello.extensions.retain(|kind| *kind != SERVER_NAME);
        hello.versions.clear();
        hello.protocols.clear();
        hello.signature_algorithms.clear();
        let without = ja4(&hello);
        assert!(without.starts_with("t12i151500_8daaf6152771_"), "{without}");
        let hash = digest::digest(
            &digest::SHA256,
            b"0005,000a,000b,000d,0012,0015,0017,001b,0023,002b,002d,0033,4469,ff01",
        );
        let hash: String = hash.as_ref()[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(without.ends_with(&hash), "{without}");
        let nothing = ClientHello { legacy_version: 0x0301, ..ClientHello::default() };
        assert_eq!(ja4(&nothing), "t10i000000_000000000000_000000000000");
    }

    #[test]
    fn the_protocol_is_two_characters() {
        let of = |name: &[u8]| protocol(Some(&name.to_vec()));
        assert_eq!(
            (of(b"http/1.1"), of(b"h"), of(b""), protocol(None)),
            ("h1".into(), "hh".into(), "00".into(), "00".into())
        );
        // The specification's examples of bytes that are neither letters nor digits.
        assert_eq!(
            (of(b"\xab"), of(b"\xab\xcd"), of(b"\x30\xab"), of(b"\x30\x31\xab\xcd")),
            ("ab".into(), "ad".into(), "3b".into(), "3d".into())
        );
        assert_eq!(of(b"\x30\xab\xcd\x31"), "01");
    }
}
