//! A command as people write it, without what is secret in it.

use super::command::{Argument, Command};

/// What stands in a secret's place, as in the server's own logs.
const REDACTED: &[u8] = b"(redacted)";

/// Words of commands are the same in any case.
fn is(argument: Option<&Argument>, word: &str) -> bool {
    argument.is_some_and(|argument| argument.kept.eq_ignore_ascii_case(word.as_bytes()))
}

/// Overwrites what is secret. Answers whether there was something.
pub(super) fn redact(command: &mut Command) -> bool {
    let arguments = &mut command.arguments;
    let name = arguments.first();
    let mut secret: Vec<usize> = Vec::new();
    if is(name, "AUTH") {
        // AUTH password, AUTH user password.
        let first = if arguments.len() > 2 { 2 } else { 1 };
        secret.extend(first..arguments.len());
    } else if is(name, "HELLO") {
        // HELLO version AUTH user password SETNAME name. A name may be AUTH, and may be forgotten: whatever could be a password is one.
        secret.extend((1..arguments.len()).filter(|at| is(arguments.get(*at), "AUTH")).map(|at| at + 2));
    } else if is(name, "MIGRATE") {
        // MIGRATE host port key db timeout … AUTH password, AUTH2 user password, KEYS key….
        let mut at = 6;
        while at < arguments.len() && !is(arguments.get(at), "KEYS") {
            let words = match () {
                () if is(arguments.get(at), "AUTH") => 1,
                () if is(arguments.get(at), "AUTH2") => 2,
                () => 0,
            };
            if words > 0 {
                secret.push(at + words);
            }
            at += words + 1;
        }
    } else if is(name, "CONFIG") && is(arguments.get(1), "SET") {
        secret.extend(
            (2..arguments.len()).step_by(2).filter(|at| is_secret_setting(&arguments[*at])).map(|at| at + 1),
        );
    } else if is(name, "SENTINEL") {
        secret.extend((1..arguments.len()).filter(|at| is_secret_setting(&arguments[*at])).map(|at| at + 1));
    } else if is(name, "ACL") && is(arguments.get(1), "SETUSER") {
        for argument in arguments.iter_mut().skip(3) {
            if let Some(sign @ (b'>' | b'<' | b'#' | b'!')) = argument.kept.first().copied() {
                argument.kept.fill(0);
                argument.kept = [&[sign], REDACTED].concat();
                argument.length = argument.kept.len() as u64;
                // No argument has this place.
                secret.push(usize::MAX);
            }
        }
    }
    for at in &secret {
        let Some(argument) = arguments.get_mut(*at) else { continue };
        argument.kept.fill(0);
        argument.kept = REDACTED.to_vec();
        argument.length = REDACTED.len() as u64;
    }
    !secret.is_empty()
}

fn is_secret_setting(argument: &Argument) -> bool {
    const SECRET: [&str; 6] = [
        "requirepass",
        "masterauth",
        "tls-key-file-pass",
        "tls-client-key-file-pass",
        "auth-pass",
        "sentinel-pass",
    ];
    SECRET.iter().any(|name| argument.kept.eq_ignore_ascii_case(name.as_bytes()))
}

/// The command as one line, at most `most` bytes of it, and how long it is.
pub(super) fn line(command: &Command, most: usize) -> (Vec<u8>, u64) {
    let mut text = Vec::with_capacity(command.length.min(most as u64) as usize + 2 * command.arguments.len());
    let mut missing = 0_u64;
    for argument in &command.arguments {
        if !text.is_empty() {
            text.push(b' ');
        }
        write(&argument.kept, &mut text);
        missing += argument.length - argument.kept.len() as u64;
    }
    missing += command.count.saturating_sub(command.arguments.len() as u64);
    if text.len() > most {
        missing += (text.len() - most) as u64;
        text.truncate(most);
    }
    let length = text.len() as u64 + missing;
    (text, length)
}

/// One argument: as it is where nobody could take it for something else, else in quotes, with escapes as redis-cli reads them.
fn write(argument: &[u8], text: &mut Vec<u8>) {
    let plain = |byte: &u8| matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'\'' | b'\\');
    if !argument.is_empty() && argument.iter().all(plain) {
        return text.extend_from_slice(argument);
    }
    let is_text = std::str::from_utf8(argument).is_ok();
    text.push(b'"');
    for &byte in argument {
        match byte {
            b'"' | b'\\' => text.extend_from_slice(&[b'\\', byte]),
            b'\n' => text.extend_from_slice(b"\\n"),
            b'\r' => text.extend_from_slice(b"\\r"),
            b'\t' => text.extend_from_slice(b"\\t"),
            b' '..=b'~' => text.push(byte),
            0x80.. if is_text => text.push(byte),
            _ => {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let digits = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
                text.extend_from_slice(&[b'\\', b'x', digits[0], digits[1]]);
            }
        }
    }
    text.push(b'"');
}
