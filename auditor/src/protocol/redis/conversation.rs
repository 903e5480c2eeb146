//! Brings commands and replies together.
//!
//! Replies come in the order of commands, but for what nobody asked for (pushes, messages, MONITOR's lines), what is answered several
//! times (SUBSCRIBE), and what is not answered (CLIENT REPLY). Where a reply has no command, or a command's reply cannot be told any
//! more, the conversation is deaf from there on: commands are told without outcomes, which is less than could be said, and nothing wrong.

use std::collections::VecDeque;

use bytes::Bytes;

use super::command::Command;
use super::reply::{Head, Reply};
use super::text;
use crate::clock::Boottime;
use crate::protocol::{CommandResult, Limits, Login, Observation, Outcome, Statement, StatementKind};

/// Bytes of commands that wait for their replies; beyond, the oldest are told without.
const MAX_QUEUED: usize = 64 << 20;
/// What an entry takes beside its text.
const ENTRY: usize = size_of::<Entry>() + 32;

/// What is special about a command's reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
enum Special {
    None,
    /// One for each channel.
    Subscribes(u64),
    /// As many as there are channels, or one.
    UnsubscribesAll,
    Multi,
    Exec,
    Discard,
    Monitor,
    Reset,
    /// CLIENT REPLY OFF or SKIP, and what comes after it: none.
    Unanswered,
    /// What follows is a stream of the database's changes.
    Replicates,
}

/// What a command changes about who talks, if the server accepts it.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Names {
    user: Option<String>,
    database: Option<String>,
    application: Option<String>,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Entry {
    text: Bytes,
    text_length: u64,
    redacted: bool,
    special: Special,
    names: Option<Box<Names>>,
    started: Boottime,
    request_bytes: u64,
    response_bytes: u64,
    incomplete: bool,
    /// Within a transaction: it was queued there.
    queued: bool,
    result: Option<Head>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
enum Answers {
    #[default]
    All,
    /// Not this one's.
    NotTheNext,
    None,
}

/// See the module.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Conversation {
    pub(super) limits: Limits,
    queue: VecDeque<Entry>,
    /// Between MULTI and EXEC: commands whose outcome EXEC will tell.
    transaction: Option<Vec<Entry>>,
    queued_bytes: usize,
    /// Channels that the client listens to, as the server counts them.
    channels: i64,
    monitors: bool,
    answers: Answers,
    login: Login,
    sequence: u64,
    /// Replies are not read any more.
    pub(super) deaf: bool,
}

impl Conversation {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            queue: VecDeque::new(),
            transaction: None,
            queued_bytes: 0,
            channels: 0,
            monitors: false,
            answers: Answers::All,
            login: Login::default(),
            sequence: 0,
            deaf: false,
        }
    }

    /// Takes a command.
    pub(super) fn command(&mut self, mut command: Command, at: Boottime, out: &mut Vec<Observation>) {
        let redacted = text::redact(&mut command);
        let names = names(&command);
        let mut special = special(&command);
        match (self.answers, special) {
            (Answers::None, _) if is_reply(&command, "ON") => self.answers = Answers::All,
            (Answers::None, _) => special = Special::Unanswered,
            (_, Special::Unanswered) if is_reply(&command, "OFF") => self.answers = Answers::None,
            (_, Special::Unanswered) => self.answers = Answers::NotTheNext,
            (Answers::NotTheNext, _) => {
                special = Special::Unanswered;
                self.answers = Answers::All;
            }
            (Answers::All, _) => {}
        }
        let (text, text_length) = text::line(&command, self.limits.max_statement_bytes);
        let entry = Entry {
            text: text.into(),
            text_length,
            redacted,
            special,
            names,
            started: command.started,
            request_bytes: command.bytes,
            response_bytes: 0,
            incomplete: command.incomplete,
            queued: false,
            result: None,
        };
        self.queued_bytes += entry.memory();
        self.queue.push_back(entry);
        if self.deaf || self.queued_bytes > MAX_QUEUED {
            self.deafen(at, out);
        }
        self.unanswered(at, out);
    }

    /// Tells commands that are not answered, as far as they are next.
    fn unanswered(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        while self.queue.front().is_some_and(|entry| entry.special == Special::Unanswered) {
            let entry = self.pop();
            if let Some(entry) = entry {
                self.tell(entry, Outcome::Unknown, at, out);
            }
        }
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.queue.pop_front()?;
        self.queued_bytes = self.queued_bytes.saturating_sub(entry.memory());
        Some(entry)
    }

    /// Whether the elements of the next reply are outcomes.
    pub(super) fn wants_elements(&self) -> bool {
        self.queue.front().is_some_and(|entry| entry.special == Special::Exec)
    }

    /// Takes a reply.
    pub(super) fn reply(&mut self, reply: Reply, at: Boottime, out: &mut Vec<Observation>) {
        let confirms = confirms(&reply.word);
        if self.is_unasked(&reply, confirms) {
            return;
        }
        let Some(front) = self.queue.front_mut() else {
            // Whose reply that is nobody can tell; nor those that come after it.
            return self.deafen(at, out);
        };
        front.response_bytes += reply.bytes;
        front.incomplete |= reply.incomplete;
        if confirms && reply.head.error.is_none() {
            self.channels = reply.number;
            if let Special::Subscribes(channels) = &mut front.special {
                *channels = channels.saturating_sub(1);
                if *channels > 0 {
                    return;
                }
            }
        }
        let Some(entry) = self.pop() else { return };
        self.answered(entry, reply, at, out);
        self.unanswered(at, out);
    }

    /// Whether nobody asked for it.
    fn is_unasked(&self, reply: &Reply, confirms: bool) -> bool {
        let awaited = self.queue.front().is_some_and(|entry| {
            matches!(entry.special, Special::Subscribes(_) | Special::UnsubscribesAll | Special::Reset)
        });
        let is_message = matches!(&*reply.word, b"message" | b"pmessage" | b"smessage");
        let listens = self.channels > 0;
        if reply.is_push() {
            return !(confirms && awaited);
        }
        if reply.head.tag.starts_with('*') && listens && (is_message || (confirms && !awaited)) {
            return true;
        }
        // Confirmations of UNSUBSCRIBE without channels go on after its first.
        if confirms && !awaited && reply.head.tag == "*3" && self.queue.is_empty() {
            return true;
        }
        self.monitors && reply.head.tag.as_bytes().get(1).is_some_and(u8::is_ascii_digit)
    }

    fn answered(&mut self, mut entry: Entry, mut reply: Reply, at: Boottime, out: &mut Vec<Observation>) {
        let failed = reply.head.error.is_some();
        let elements = std::mem::take(&mut reply.elements);
        if !failed {
            self.accept(&entry, out);
        }
        entry.result = Some(reply.head);
        match entry.special {
            Special::Exec | Special::Discard if self.transaction.is_some() => {
                // EXEC without MULTI is an error and ends nothing; so is DISCARD.
                self.settle(&elements, entry.special == Special::Exec && !failed, at, out);
            }
            Special::Reset if !failed => {
                self.settle(&[], false, at, out);
                self.monitors = false;
                self.channels = 0;
                self.answers = Answers::All;
            }
            Special::Multi if !failed && self.transaction.is_none() => self.transaction = Some(Vec::new()),
            Special::Monitor if !failed => self.monitors = true,
            Special::Replicates if !failed => {
                self.finish(entry, at, out);
                return self.deafen(at, out);
            }
            _ => {
                if let Some(transaction) = &mut self.transaction {
                    entry.queued = entry.result.as_ref().is_some_and(|head| head.tag == "+QUEUED");
                    self.queued_bytes += entry.memory();
                    transaction.push(entry);
                    if self.queued_bytes > MAX_QUEUED {
                        self.deafen(at, out);
                    }
                    return;
                }
            }
        }
        self.finish(entry, at, out);
    }

    /// Tells what was queued in a transaction, which has ended.
    fn settle(&mut self, elements: &[Head], executed: bool, at: Boottime, out: &mut Vec<Observation>) {
        let mut elements = elements.iter();
        for mut entry in self.transaction.take().into_iter().flatten() {
            self.queued_bytes = self.queued_bytes.saturating_sub(entry.memory());
            if !entry.queued {
                self.finish(entry, at, out);
                continue;
            }
            match elements.next().filter(|_| executed) {
                Some(head) => {
                    entry.result = Some(head.clone());
                    self.finish(entry, at, out);
                }
                None => {
                    entry.result = None;
                    self.tell(entry, Outcome::Skipped, at, out);
                }
            }
        }
    }

    /// Tells a command by its result.
    fn finish(&mut self, entry: Entry, at: Boottime, out: &mut Vec<Observation>) {
        let outcome = match entry.result.as_ref().and_then(|head| head.error.as_ref()) {
            None => Outcome::Completed,
            Some(error) => {
                let mut error = error.clone();
                if entry.redacted {
                    // Servers quote what they did not understand.
                    let cut = error.message.find(['\'', '"']).unwrap_or(error.message.len());
                    error.message.truncate(cut);
                }
                Outcome::Failed(error)
            }
        };
        self.tell(entry, outcome, at, out);
    }

    fn tell(&mut self, entry: Entry, outcome: Outcome, at: Boottime, out: &mut Vec<Observation>) {
        self.sequence += 1;
        let result = |head: Head| CommandResult { tag: head.tag, rows: head.elements };
        let replicates = entry.special == Special::Replicates;
        out.push(Observation::Statement(Box::new(Statement {
            sequence: self.sequence,
            kind: if replicates { StatementKind::Admin } else { StatementKind::Simple },
            text: entry.text,
            text_length: entry.text_length,
            name: None,
            parameters: Vec::new(),
            results: entry.result.filter(|head| head.error.is_none()).map(result).into_iter().collect(),
            columns: Vec::new(),
            outcome,
            notices: Vec::new(),
            transaction: entry.queued.then_some('T'),
            started: entry.started,
            finished: at,
            request_bytes: entry.request_bytes,
            response_bytes: entry.response_bytes,
            incomplete: entry.incomplete,
        })));
    }

    /// The server has done what the command asked for.
    fn accept(&mut self, entry: &Entry, out: &mut Vec<Observation>) {
        let Some(names) = entry.names.as_deref() else { return };
        let before = self.login.clone();
        for (name, known) in [
            (&names.user, &mut self.login.user),
            (&names.database, &mut self.login.database),
            (&names.application, &mut self.login.application),
        ] {
            if name.is_some() {
                known.clone_from(name);
            }
        }
        if self.login != before {
            out.push(Observation::Login(self.login.clone()));
        }
        if names.user.is_some() {
            out.push(Observation::Authenticated);
        }
    }

    /// Gives out what waits without an outcome, now and from here on.
    pub(super) fn deafen(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        self.deaf = true;
        for entry in self.transaction.take().into_iter().flatten() {
            if entry.queued {
                self.tell(Entry { result: None, ..entry }, Outcome::Unknown, at, out);
            } else {
                self.finish(entry, at, out);
            }
        }
        while let Some(entry) = self.queue.pop_front() {
            self.tell(entry, Outcome::Unknown, at, out);
        }
        self.queued_bytes = 0;
    }

    pub(super) fn memory(&self) -> usize {
        self.queued_bytes + self.login.memory()
    }
}

impl Entry {
    /// Of what does not change while it waits.
    fn memory(&self) -> usize {
        ENTRY + self.text.len()
    }
}

fn word(command: &Command, place: usize) -> &[u8] {
    command.arguments.get(place).map_or(&[], |argument| &argument.kept)
}

fn is(command: &Command, place: usize, expected: &str) -> bool {
    word(command, place).eq_ignore_ascii_case(expected.as_bytes())
}

fn is_reply(command: &Command, how: &str) -> bool {
    is(command, 0, "CLIENT") && is(command, 1, "REPLY") && is(command, 2, how)
}

fn special(command: &Command) -> Special {
    let channels = command.count.saturating_sub(1);
    let mut name = [0; 16];
    let Some(upper) = name.get_mut(..word(command, 0).len()) else { return Special::None };
    upper.copy_from_slice(word(command, 0));
    upper.make_ascii_uppercase();
    match &*upper {
        b"SUBSCRIBE" | b"PSUBSCRIBE" | b"SSUBSCRIBE" => Special::Subscribes(channels),
        b"UNSUBSCRIBE" | b"PUNSUBSCRIBE" | b"SUNSUBSCRIBE" if channels > 0 => Special::Subscribes(channels),
        b"UNSUBSCRIBE" | b"PUNSUBSCRIBE" | b"SUNSUBSCRIBE" => Special::UnsubscribesAll,
        b"MULTI" => Special::Multi,
        b"EXEC" => Special::Exec,
        b"DISCARD" => Special::Discard,
        b"MONITOR" => Special::Monitor,
        b"RESET" => Special::Reset,
        b"SYNC" | b"PSYNC" => Special::Replicates,
        b"CLIENT" if is_reply(command, "OFF") || is_reply(command, "SKIP") => Special::Unanswered,
        _ => Special::None,
    }
}

fn names(command: &Command) -> Option<Box<Names>> {
    let text = |place: usize| Some(String::from_utf8_lossy(word(command, place)).into_owned());
    let mut names = Names::default();
    let name = word(command, 0);
    if name.eq_ignore_ascii_case(b"AUTH") {
        names.user = if command.count > 2 { text(1) } else { Some("default".to_owned()) };
    } else if name.eq_ignore_ascii_case(b"SELECT") {
        names.database = text(1);
    } else if name.eq_ignore_ascii_case(b"CLIENT") && is(command, 1, "SETNAME") {
        names.application = text(2);
    } else if name.eq_ignore_ascii_case(b"RESET") {
        (names.user, names.database) = (Some("default".to_owned()), Some("0".to_owned()));
    } else if name.eq_ignore_ascii_case(b"HELLO") {
        let mut at = 2;
        while at < command.arguments.len() {
            if is(command, at, "AUTH") {
                names.user = text(at + 1);
                at += 3;
            } else if is(command, at, "SETNAME") {
                names.application = text(at + 1);
                at += 2;
            } else {
                at += 1;
            }
        }
    } else {
        return None;
    }
    (names.user.is_some() || names.database.is_some() || names.application.is_some()).then(|| Box::new(names))
}

fn confirms(word: &[u8]) -> bool {
    matches!(
        word,
        b"subscribe" | b"unsubscribe" | b"psubscribe" | b"punsubscribe" | b"ssubscribe" | b"sunsubscribe"
    )
}
