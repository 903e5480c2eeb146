//! Which version of a library is in a file, by the words that it carries about itself.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use memchr::memmem;

use super::Point;

/// A file is looked through in pieces of this size, up to so many bytes.
const PIECE: usize = 1 << 20;
const MOST_BYTES: u64 = 256 << 20;
/// The longest version that is believed, and the longest of what is behind its numbers.
const LONGEST: usize = 24;
const MOST_SUFFIX: usize = 8;

/// The library's name and, where the file says it, its version, e.g. `OpenSSL 3.0.19`. The file's word: what is in it may have been
/// changed, and say the same. `None`: it has no such function.
pub fn name(file: &File, points: &[Point]) -> Option<String> {
    let point = points.first()?;
    let (before, major, dots): (&[u8], _, _) = match point {
        // "OpenSSL 3.0.19 27 Jan 2026", "OpenSSL 1.1.1w  11 Sep 2023", OPENSSL_VERSION_TEXT.
        Point::OpensslDerives | Point::OpensslDerivesKey | Point::LogsSecret => (b"OpenSSL ", "", 2),
        // "Enabled GnuTLS 3.7.9 logging...", which it logs when it begins.
        Point::GnutlsExpands | Point::GnutlsPrf => (b"GnuTLS ", "", 2),
        // "/rustls-0.23.46/src/", where its panics are.
        Point::RustlsExpands | Point::RustlsPrf => (b"/rustls-", "", 2),
        // "go1.22.1", runtime.buildVersion and the build information.
        Point::GoTrafficKey | Point::GoMasterSecret => (b"go1.", "go1.", 1),
    };
    let library = point.library();
    // They say that they are compatible with an OpenSSL, which they are not.
    if *point == Point::LogsSecret {
        let others = [(&b"BoringSSL"[..], "BoringSSL"), (b"AWS-LC", "AWS-LC")];
        let found =
            others.into_iter().find(|(text, _)| contains(file, text)).map(|(_, name)| name.to_owned());
        let openssl = || find(file, before, dots).map(|version| format!("OpenSSL {version}"));
        return Some(found.or_else(openssl).unwrap_or_else(|| "TLS with a key log".to_owned()));
    }
    Some(
        find(file, before, dots)
            .map_or_else(|| library.to_owned(), |version| format!("{library} {major}{version}")),
    )
}

/// Whether a text is in a file.
fn contains(file: &File, text: &[u8]) -> bool {
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    while offset < MOST_BYTES {
        let Ok(length) = file.read_at(&mut piece, offset) else { return false };
        if memmem::find(&piece[..length], text).is_some() {
            return true;
        }
        if length <= text.len() {
            return false;
        }
        offset += (length - text.len()) as u64;
    }
    false
}

/// The first version behind `before`: numbers with so many points between them, or more.
fn find(file: &File, before: &[u8], points: usize) -> Option<String> {
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    while offset < MOST_BYTES {
        let length = file.read_at(&mut piece, offset).ok()?;
        let bytes = &piece[..length];
        for place in memmem::find_iter(bytes, before) {
            let behind = &bytes[place + before.len()..];
            let digits =
                behind.iter().take(LONGEST).take_while(|byte| byte.is_ascii_digit() || **byte == b'.');
            let version: String = digits.map(|byte| char::from(*byte)).collect();
            let suffix = suffix(&behind[version.len()..]);
            let version = version.trim_end_matches('.');
            // Other texts name releases as well, but not so exactly.
            if version.bytes().filter(|byte| *byte == b'.').count() >= points && !version.starts_with('.') {
                return Some(version.to_owned() + suffix);
            }
        }
        // What lies across the end of a piece is found in the next one.
        let kept = (before.len() + LONGEST + MOST_SUFFIX + 1) as u64;
        if length as u64 <= kept {
            return None;
        }
        offset += length as u64 - kept;
    }
    None
}

/// What is behind the numbers of a release: a letter or two (`1.1.1w`, `1.0.2zg`), and what a vendor adds (`3.0.2+quic`).
fn suffix(behind: &[u8]) -> &str {
    let count = behind.iter().take_while(|byte| byte.is_ascii_lowercase() || **byte == b'+').count();
    let is_whole = count <= MOST_SUFFIX && behind.get(count) == Some(&b' ');
    let suffix = behind.get(..count).filter(|_| is_whole);
    suffix.and_then(|suffix| str::from_utf8(suffix).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn told(content: &[u8], point: Point) -> Option<String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        name(&file, &[point])
    }

    #[test]
    fn a_version_is_found_wherever_it_stands() {
        let text = b"OpenSSL %s OpenSSL 3.0 OpenSSL 3.0.19 27 Jan 2026";
        for before in [0, 17, PIECE - 40, PIECE - 30, PIECE - 8, PIECE, 2 * PIECE - 65] {
            let content = [&vec![b' '; before][..], text].concat();
            assert_eq!(told(&content, Point::OpensslDerives).as_deref(), Some("OpenSSL 3.0.19"), "{before}");
        }
    }

    #[test]
    fn what_is_behind_the_numbers_is_part_of_the_version() {
        for (text, version) in [
            ("OpenSSL 1.1.1r  11 Oct 2022", "OpenSSL 1.1.1r"),
            ("OpenSSL 1.0.2zg  7 Feb 2023", "OpenSSL 1.0.2zg"),
            ("OpenSSL 1.1.1v+quic  1 Aug 2023", "OpenSSL 1.1.1v+quic"),
            ("OpenSSL 1.1.1 and later", "OpenSSL 1.1.1"),
            ("OpenSSL 1.1.1only", "OpenSSL 1.1.1"),
            ("OpenSSL 1.1.1 ", "OpenSSL 1.1.1"),
        ] {
            assert_eq!(told(text.as_bytes(), Point::OpensslDerivesKey).as_deref(), Some(version));
        }
    }

    #[test]
    fn a_file_without_one_has_a_name() {
        assert_eq!(told(b"OpenSSL", Point::OpensslDerives).as_deref(), Some("OpenSSL"));
        assert_eq!(told(b"", Point::GnutlsExpands).as_deref(), Some("GnuTLS"));
        assert_eq!(told(b"go1.22.1", Point::GoTrafficKey).as_deref(), Some("Go crypto/tls go1.22.1"));
    }
}
