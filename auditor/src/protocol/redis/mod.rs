//! Redis: RESP2, RESP3 and commands in one line.
//!
//! Follows both directions of one connection and gives out one record for each command, in the order in which the client sent them.
//! The text is the command as one would type it into redis-cli: arguments that could be taken for something else stand in quotes, with
//! escapes. There are no parameters beside it, because they would say the same again. The result's tag is the first line of the reply
//! without values: `+OK`, `:`, `$5` (a string of five bytes), `*3` (three elements), `-MOVED`; `rows` are an aggregate's elements. An
//! error is the outcome, redirects of a cluster included.
//!
//! Never kept: what replies hold, and passwords, in whose place stands `(redacted)`, as in the server's own logs: of AUTH, HELLO, MIGRATE,
//! CONFIG SET, ACL SETUSER and SENTINEL. A misspelt one is a command like any other.
//!
//! Commands within MULTI are told when EXEC has said how each of them ended, and are skipped where it did not execute them. SUBSCRIBE is
//! one command, however many channels it has; what comes for them later belongs to no command. After MONITOR, and from CLIENT REPLY OFF
//! or SKIP on, commands have no outcomes. Of what a script does only its text is seen, and of a replication stream nothing (`kind` is `admin`).
//!
//! Assumes that a command passes before its reply. Refused ([`Observation::Violation`]), and from there on nothing is read: what the server
//! would refuse, too, and a server that begins with what no Redis says. A reply that is malformed, too long or too deep makes the
//! conversation deaf (see `conversation`), and commands are told all the same. A hole within an argument or a string harms that command only. Another one in the server's bytes does
//! the same; in the client's nothing after it is told ([`Observation::Opaque`]): no place can be proven to
//! begin a command, as anything that looks like one may be somebody's value.

#![forbid(unsafe_code)]

mod command;
mod conversation;
mod reply;
#[cfg(test)]
mod tests;
mod text;

use super::{Detection, Dissector, Limits, Observation, Opaque, Side};
use crate::clock::Boottime;
use crate::statement::redis_commands;

use command::CommandReader;
pub(crate) use command::split;
use conversation::Conversation;
use reply::ReplyReader;

/// Bytes of a command's text that are kept where memory is short.
const STATEMENT_IN_NEED: usize = 4 << 10;

/// Whether a client begins like this: with an array of strings, or with a line that begins with a command's name, after whatever the
/// server skips. The latter is also how HTTP's GET and memcached's commands look: HTTP says so at the line's end, and is not taken;
/// memcached is, and its server's first answer is a violation.
pub fn detect(first: &[u8]) -> Detection {
    let mut rest = first;
    while let Some(&byte) = rest.first() {
        let step = if byte == b'*' { skip_array(rest) } else { skip_line(rest) };
        match step {
            Ok(length) => rest = &rest[length..],
            // Nothing but Redis has been seen, and nobody will look again.
            Err(Detection::Incomplete) if first.len() >= super::DETECTION_BYTES => return Detection::Yes(()),
            Err(found) => return found,
        }
    }
    if first.len() >= super::DETECTION_BYTES { Detection::Yes(()) } else { Detection::Incomplete }
}

/// `*2\r\n$`, with as many digits as the server reads, and any byte after `\r`. The length of an array without elements, which is skipped.
fn skip_array(first: &[u8]) -> Result<usize, Detection> {
    let length = first[1..].iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'-').count();
    let (count, rest) = first[1..].split_at(length);
    let none = || match command::number(count) {
        Some(count) => Ok(count <= 0),
        None if matches!(count, [] | [b'-']) && rest.is_empty() => Err(Detection::Incomplete),
        None => Err(Detection::No),
    };
    match rest {
        _ if length > 11 => Err(Detection::No),
        [] | [b'\r'] => Err(none().err().unwrap_or(Detection::Incomplete)),
        [b'\r', _, after @ ..] => match (none()?, after) {
            (true, _) => Ok(length + 3),
            (false, []) => Err(Detection::Incomplete),
            (false, [b'$', ..]) => Err(Detection::Yes(())),
            (false, _) => Err(Detection::No),
        },
        _ => Err(Detection::No),
    }
}

/// A line: a command, or the length of an empty one, which is skipped.
fn skip_line(first: &[u8]) -> Result<usize, Detection> {
    let end = memchr::memchr(b'\n', first);
    let line = &first[..end.unwrap_or(first.len())];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let word = line.trim_ascii_start();
    let length = word.iter().take_while(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte)).count();
    let (word, after) = word.split_at(length);
    let begins = |name: &str| {
        name.get(..length).is_some_and(|beginning| beginning.as_bytes().eq_ignore_ascii_case(word))
    };
    let whole = |word: &[u8]| redis_commands().any(|name| name.as_bytes().eq_ignore_ascii_case(word));
    if !redis_commands().any(begins) {
        return Err(Detection::No);
    }
    match after {
        [] => {}
        [b' ' | b'\t', ..] if whole(word) => {}
        // A name in quotes, or partly.
        [b'"' | b'\'', ..] => {}
        _ => return Err(Detection::No),
    }
    let Some(end) = end else { return Err(Detection::Incomplete) };
    let words = split(line).ok_or(Detection::No)?;
    let Some(name) = words.first() else { return Ok(end + 1) };
    let http = memchr::memmem::rfind(line, b" HTTP/").is_some_and(|at| line.len() - at <= b" HTTP/1.1".len());
    Err(if whole(name) && !http { Detection::Yes(()) } else { Detection::No })
}

/// One connection to a Redis server.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Redis {
    commands: CommandReader,
    replies: ReplyReader,
    conversation: Conversation,
    /// Nothing more is read.
    over: bool,
}

impl Redis {
    /// Begins at the connection's first byte.
    pub fn new(limits: Limits) -> Self {
        Self {
            commands: CommandReader::default(),
            replies: ReplyReader::default(),
            conversation: Conversation::new(limits),
            over: false,
        }
    }
}

impl Dissector for Redis {
    fn protocol(&self) -> super::Protocol {
        super::Protocol::Redis
    }

    fn save(&self) -> Result<Vec<u8>, postcard::Error> {
        crate::shared::scope(|| postcard::to_stdvec(self))
    }

    fn client(&mut self, mut bytes: &[u8], at: Boottime, out: &mut Vec<Observation>) {
        if self.over {
            return;
        }
        let most = self.conversation.limits.max_statement_bytes;
        while let Some(step) = self.commands.step(&mut bytes, at, most) {
            match step {
                command::Step::Command(command) => self.conversation.command(command, at, out),
                command::Step::Malformed(reason) => {
                    self.conversation.deafen(at, out);
                    out.push(Observation::Violation(reason));
                    self.over = true;
                    return;
                }
            }
        }
    }

    fn server(&mut self, mut bytes: &[u8], at: Boottime, out: &mut Vec<Observation>) {
        if self.over {
            return;
        }
        while !self.conversation.deaf {
            match self.replies.step(&mut bytes, self.conversation.wants_elements()) {
                Some(reply::Step::Reply(reply)) => self.conversation.reply(reply, at, out),
                Some(reply::Step::Malformed) => {
                    self.conversation.deafen(at, out);
                    self.replies = ReplyReader::default();
                }
                Some(reply::Step::Foreign) => {
                    self.conversation.deafen(at, out);
                    out.push(Observation::Violation("an answer that is none of Redis'".into()));
                    self.over = true;
                    return;
                }
                None => return,
            }
        }
    }

    fn hole(&mut self, side: Side, at: Boottime, length: u64, out: &mut Vec<Observation>) {
        if self.over {
            return;
        }
        match side {
            Side::Client => {
                if self.commands.hole(length) {
                    // The hole may have reached to the command's end.
                    if let Some(command) = self.commands.ended_in_hole() {
                        self.conversation.command(command, at, out);
                    }
                    return;
                }
                if let Some(command) = self.commands.partial() {
                    self.conversation.command(command, at, out);
                }
                self.conversation.deafen(at, out);
                out.push(Observation::Opaque(Opaque::Hole));
                self.over = true;
            }
            Side::Server if self.conversation.deaf || self.replies.hole(length) => {}
            Side::Server => self.conversation.deafen(at, out),
        }
    }

    fn memory(&self) -> usize {
        self.commands.memory() + self.replies.memory() + self.conversation.memory()
    }

    fn spare(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        self.conversation.limits.max_statement_bytes = STATEMENT_IN_NEED;
        self.conversation.deafen(at, out);
        self.commands.spare();
        self.replies = ReplyReader::default();
    }

    fn close(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        if self.over {
            return;
        }
        self.conversation.deafen(at, out);
        if let Some(command) = self.commands.partial() {
            self.conversation.command(command, at, out);
        }
        self.over = true;
    }
}
