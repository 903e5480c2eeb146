//! What a client says: commands as arrays of strings, or as lines.
//!
//! Incremental: whatever the cuts, the same commands come out. Of a command's arguments as much is kept as its text may have; the rest
//! is counted. Refuses what a server refuses (`processMultibulkBuffer`, `processInlineBuffer` in its networking.c).

use crate::clock::Boottime;

/// Longest line: a header, or a command in one line (`PROTO_INLINE_MAX_SIZE`).
const MAX_LINE: usize = 64 << 10;
/// Most arguments, and longest one, as the server has them by default.
const MAX_ARGUMENTS: u64 = (i32::MAX) as u64;
const MAX_ARGUMENT: u64 = 512 << 20;
/// Arguments that are kept whatever their length.
const MAX_KEPT: usize = 64 << 10;

/// An argument, or its beginning.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Argument {
    pub(super) kept: Vec<u8>,
    pub(super) length: u64,
}

/// A command, as far as it was kept.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Command {
    pub(super) arguments: Vec<Argument>,
    /// Arguments in all.
    pub(super) count: u64,
    /// Bytes of the arguments in all.
    pub(super) length: u64,
    pub(super) started: Boottime,
    /// Bytes on the wire.
    pub(super) bytes: u64,
    /// A hole fell into it.
    pub(super) incomplete: bool,
    kept: usize,
    /// The argument under way is one too many to be kept.
    beyond: bool,
    /// Something of it is lost: what comes after that could be taken for something else, a password for a name, and is not kept.
    cut: bool,
}

/// The client's direction.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct CommandReader {
    line: Vec<u8>,
    /// Arguments of the array that are still to come.
    missing: u64,
    /// Bytes of the argument that is under way, with the two after it.
    argument: Option<u64>,
    command: Command,
    under_way: bool,
}

/// What came out of the next bytes.
#[derive(Debug)]
pub(super) enum Step {
    Command(Command),
    Malformed(String),
}

impl CommandReader {
    /// The next command, or why there is none. `None`: all bytes are taken.
    pub(super) fn step(&mut self, bytes: &mut &[u8], at: Boottime, most: usize) -> Option<Step> {
        while !bytes.is_empty() {
            if !std::mem::replace(&mut self.under_way, true) {
                self.command.started = at;
            }
            if let Some(left) = self.argument {
                self.body(left, bytes, most);
                if self.argument.is_none() && self.missing == 0 {
                    return Some(Step::Command(self.take()));
                }
                continue;
            }
            let Some(end) = self.end(bytes) else {
                self.line.extend_from_slice(bytes);
                self.command.bytes += bytes.len() as u64;
                *bytes = &[];
                if self.line.len() > MAX_LINE {
                    return Some(Step::Malformed("a line that does not end".into()));
                }
                return None;
            };
            let (head, rest) = bytes.split_at(end + 1);
            *bytes = rest;
            self.command.bytes += head.len() as u64;
            let gathered = !self.line.is_empty();
            if gathered {
                self.line.extend_from_slice(head);
            }
            let mut line = std::mem::take(&mut self.line);
            let step = self.line(if gathered { &line } else { head }, most);
            line.clear();
            self.line = line;
            if step.is_some() {
                return step;
            }
        }
        None
    }

    /// Where the line under way ends. A header does so with the byte after its first `\r`, whatever that is.
    fn end(&self, bytes: &[u8]) -> Option<usize> {
        if self.missing == 0 && self.line.first().or(bytes.first()) != Some(&b'*') {
            return memchr::memchr(b'\n', bytes);
        }
        if self.line.ends_with(b"\r") {
            return Some(0);
        }
        memchr::memchr(b'\r', bytes).map(|at| at + 1).filter(|at| *at < bytes.len())
    }

    fn line(&mut self, line: &[u8], most: usize) -> Option<Step> {
        if line.len() > MAX_LINE {
            return Some(Step::Malformed("a line that is too long".into()));
        }
        let header = &line[..line.len().saturating_sub(2)];
        if self.missing > 0 {
            return self.argument_header(header);
        }
        if let Some(count) = header.strip_prefix(b"*") {
            let Some(count) = number(count) else {
                return Some(Step::Malformed("an array of commands without a length".into()));
            };
            return match u64::try_from(count) {
                // Nothing is asked, and nothing answered.
                Ok(0) | Err(_) => {
                    self.reset();
                    None
                }
                Ok(count) if count > MAX_ARGUMENTS => Some(Step::Malformed("too many arguments".into())),
                Ok(count) => {
                    self.missing = count;
                    self.command.count = count;
                    None
                }
            };
        }
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let Some(arguments) = split(line.strip_suffix(b"\r").unwrap_or(line)) else {
            return Some(Step::Malformed("quotes that do not match".into()));
        };
        if arguments.is_empty() {
            self.reset();
            return None;
        }
        self.command.count = arguments.len() as u64;
        for argument in arguments {
            self.begin(argument.len() as u64);
            self.keep(&argument, most);
        }
        Some(Step::Command(self.take()))
    }

    fn argument_header(&mut self, line: &[u8]) -> Option<Step> {
        let length = line.strip_prefix(b"$").and_then(number).and_then(|length| u64::try_from(length).ok());
        match length.filter(|length| *length <= MAX_ARGUMENT) {
            Some(length) => {
                self.missing -= 1;
                self.argument = Some(length + 2);
                self.begin(length);
                None
            }
            None => Some(Step::Malformed("an argument without a length".into())),
        }
    }

    fn begin(&mut self, length: u64) {
        self.command.length += length;
        self.command.beyond = self.command.cut || self.command.arguments.len() >= MAX_KEPT;
        if !self.command.beyond {
            self.command.arguments.push(Argument { kept: Vec::new(), length });
        }
    }

    /// Bytes of the argument under way; the last two are no part of it, whatever they are.
    fn body(&mut self, left: u64, bytes: &mut &[u8], most: usize) {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let (piece, rest) = bytes.split_at(taken);
        *bytes = rest;
        self.command.bytes += taken as u64;
        let content = usize::try_from(left.saturating_sub(2)).unwrap_or(usize::MAX).min(taken);
        self.keep(&piece[..content], most);
        let left = left - taken as u64;
        self.argument = (left > 0).then_some(left);
    }

    fn keep(&mut self, piece: &[u8], most: usize) {
        let beyond = self.command.beyond || self.command.cut;
        let room = most.saturating_sub(self.command.kept);
        let piece = &piece[..piece.len().min(room)];
        if let Some(argument) = self.command.arguments.last_mut().filter(|_| !beyond) {
            argument.kept.extend_from_slice(piece);
            self.command.kept += piece.len();
        }
    }

    fn take(&mut self) -> Command {
        self.under_way = false;
        std::mem::take(&mut self.command)
    }

    fn reset(&mut self) {
        self.take();
    }

    /// `length` bytes are missing. `false`: and with them the place of the next command.
    pub(super) fn hole(&mut self, length: u64) -> bool {
        self.command.incomplete = true;
        self.command.cut = true;
        match self.argument {
            Some(left) if length <= left => {
                self.command.bytes += length;
                self.argument = (length < left).then_some(left - length);
                true
            }
            _ => false,
        }
    }

    /// Whether what was under way has come to its end in a hole.
    pub(super) fn ended_in_hole(&mut self) -> Option<Command> {
        (self.under_way && self.argument.is_none() && self.missing == 0 && self.command.incomplete)
            .then(|| self.take())
    }

    /// What has come of a command that will not come to its end.
    pub(super) fn partial(&mut self) -> Option<Command> {
        (self.under_way && !self.command.arguments.is_empty())
            .then(|| Command { incomplete: true, ..self.take() })
    }

    pub(super) fn memory(&self) -> usize {
        self.line.len() + self.command.kept + self.command.arguments.len() * size_of::<Argument>()
    }

    /// Forgets what it keeps of the command under way.
    pub(super) fn spare(&mut self) {
        let command = &mut self.command;
        if command.arguments.is_empty() {
            return;
        }
        command.arguments.truncate(1);
        command.kept = command.arguments.first().map_or(0, |name| name.kept.len());
        (command.incomplete, command.cut) = (true, true);
    }
}

/// A number as the server reads them.
pub(super) fn number(digits: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(digits).ok()?;
    let plain = text.strip_prefix('-').unwrap_or(text);
    let canonical = !plain.is_empty() && plain.bytes().all(|byte| byte.is_ascii_digit());
    canonical.then(|| text.parse().ok()).flatten()
}

/// The words of a line, with quotes and escapes as `sdssplitargs` reads them. `None`: a quote does not end, or a letter follows it.
pub(crate) fn split(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        rest = &rest[rest.iter().take_while(|byte| is_space(**byte)).count()..];
        // To the server, a line is a string of C's.
        if matches!(rest, [] | [0, ..]) {
            return Some(words);
        }
        let mut word = Vec::new();
        let mut quote = None;
        loop {
            match (quote, rest) {
                (None, [] | [0, ..]) => break,
                (Some(_), [] | [0, ..]) => return None,
                (None, [b' ' | b'\n' | b'\r' | b'\t', ..]) => break,
                (None, [byte @ (b'"' | b'\''), after @ ..]) => {
                    quote = Some(*byte);
                    rest = after;
                }
                (Some(b'"'), [b'\\', b'x', high, low, after @ ..])
                    if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
                {
                    word.push(hex(*high) << 4 | hex(*low));
                    rest = after;
                }
                (Some(b'"'), [b'\\', byte, after @ ..]) => {
                    word.push(match byte {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'b' => 8,
                        b'a' => 7,
                        byte => *byte,
                    });
                    rest = after;
                }
                (Some(b'\''), [b'\\', b'\'', after @ ..]) => {
                    word.push(b'\'');
                    rest = after;
                }
                (Some(open), [byte, after @ ..]) if *byte == open => {
                    if after.first().is_some_and(|next| !is_space(*next) && *next != 0) {
                        return None;
                    }
                    quote = None;
                    rest = after;
                }
                (_, [byte, after @ ..]) => {
                    word.push(*byte);
                    rest = after;
                }
            }
        }
        words.push(word);
    }
}

/// What may stand before a word, or after a quote; fewer bytes end a word.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A').wrapping_add(10) & 15,
    }
}
