//! What an end's certificate says of it. Nothing is verified: it is the word of whoever sent it.

use aws_lc_rs::digest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::message::text;
use crate::record::Certificate;

/// Subject alternative names that are kept.
const MOST_NAMES: usize = 64;
/// Bytes of each text that are kept.
const LONGEST_TEXT: usize = 1024;

/// A certificate that cannot be parsed still has its fingerprint.
pub(super) fn read(der: &[u8]) -> Certificate {
    let sha256 = hexadecimal(digest::digest(&digest::SHA256, der).as_ref());
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return Certificate { sha256, ..Certificate::default() };
    };
    let names = certificate.subject_alternative_name().ok().flatten();
    let names =
        names.map(|names| names.value.general_names.iter().take(MOST_NAMES).map(general_name).collect());
    Certificate {
        sha256,
        subject: cut(certificate.subject().to_string()),
        issuer: cut(certificate.issuer().to_string()),
        serial: cut(hexadecimal(certificate.raw_serial())),
        names: names.unwrap_or_default(),
        not_before: Some(certificate.validity().not_before.timestamp()),
        not_after: Some(certificate.validity().not_after.timestamp()),
    }
}

fn general_name(name: &GeneralName<'_>) -> String {
    cut(match name {
        GeneralName::DNSName(name) => text(name.as_bytes()),
        GeneralName::IPAddress(address) => match **address {
            [a, b, c, d] => std::net::Ipv4Addr::new(a, b, c, d).to_string(),
            _ => <[u8; 16]>::try_from(*address).map_or_else(
                |_| format!("ip:{}", hexadecimal(address)),
                |address| std::net::Ipv6Addr::from(address).to_string(),
            ),
        },
        GeneralName::URI(uri) => format!("uri:{}", text(uri.as_bytes())),
        GeneralName::RFC822Name(mail) => format!("email:{}", text(mail.as_bytes())),
        GeneralName::DirectoryName(name) => format!("dn:{name}"),
        other => format!("other:{}", text(format!("{other:?}").as_bytes())),
    })
}

fn cut(mut text: String) -> String {
    if text.len() > LONGEST_TEXT {
        let end = (0..=LONGEST_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
