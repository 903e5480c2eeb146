//! Tells HTTP by what is said first.
//!
//! A client's first line must be whole: a method, a target and a version, or else the first of a Redis command in one line
//! (`GET /key`) would do. HTTP/0.9, which has no version, is not HTTP here. The preface of HTTP/2 is told by itself. A server of HTTP/2 may speak
//! first, with SETTINGS.

use super::one::is_request_line;
use super::two::PREFACE;
use crate::protocol::{DETECTION_BYTES, Detection, First};

/// Methods that need no whole line where it is longer than what detection looks at.
const METHODS: [&[u8]; 9] =
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];

/// Whether the first bytes of both ends are HTTP.
pub fn detect_first(first: First<'_>) -> Detection {
    if first.server.is_empty() { detect(first.client) } else { detect_server(first.server) }
}

/// Whether the first bytes of a client are HTTP.
pub(super) fn detect(first: &[u8]) -> Detection {
    // Servers skip empty lines.
    let start = first.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(first.len());
    let line = &first[start..];
    if line.is_empty() {
        return if start > 4 { Detection::No } else { Detection::Incomplete };
    }
    if PREFACE.starts_with(line) || line.starts_with(PREFACE) {
        return if line.len() < PREFACE.len() { Detection::Incomplete } else { Detection::Yes(()) };
    }
    let word = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    let token =
        line[..word].iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_!#$%&'*+.^`|~".contains(byte));
    if !token || word == 0 || word > 32 {
        return Detection::No;
    }
    match memchr::memchr(b'\n', line) {
        Some(end) if is_request_line(line[..end].strip_suffix(b"\r").unwrap_or(&line[..end])) => {
            Detection::Yes(())
        }
        Some(_) => Detection::No,
        None if line.iter().any(|byte| *byte < 0x20 && *byte != b'\r' || *byte == 0x7f) => Detection::No,
        None if first.len() < DETECTION_BYTES => Detection::Incomplete,
        None if METHODS.contains(&&line[..word]) => Detection::Yes(()),
        None => Detection::No,
    }
}

/// Whether the first bytes of a server, before any of the client's, are HTTP/2: SETTINGS that acknowledge nothing.
pub(super) fn detect_server(first: &[u8]) -> Detection {
    const AFTER_LENGTH: [u8; 6] = [4, 0, 0, 0, 0, 0];
    let head = &first[..first.len().min(9)];
    let fits = head.iter().enumerate().all(|(place, byte)| match place {
        // No server has so many settings.
        0 | 1 => *byte == 0,
        2 => byte % 6 == 0,
        place => *byte == AFTER_LENGTH[place - 3],
    });
    match (fits, head.len()) {
        (true, 9) => Detection::Yes(()),
        (true, _) => Detection::Incomplete,
        (false, _) => Detection::No,
    }
}
