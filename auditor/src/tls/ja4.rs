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
