//! Brings commands and replies together.
//!
//! Replies come in the order of commands, but for what nobody asked for (pushes, messages), and what is answered several times
//! (SUBSCRIBE). Only what the server itself has confirmed decides which is which, never what a reply looks like: a script can answer
//! anything. Where a reply has no command, or a command's reply cannot be told any more (after MONITOR, and from CLIENT REPLY OFF or
//! SKIP on, of which nobody hears whether it was refused), the conversation is deaf from there on: commands are told without outcomes,
//! which is less than could be said, and nothing wrong.

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
    /// One confirmation for each channel.
    Subscribes(Confirmation, u64),
    /// As many as there are channels, or one.
    UnsubscribesAll(Confirmation),
    Multi,
    Exec,
    Discard,
    /// What follows are lines that look like replies.
    Monitor,
    Reset,
    /// HELLO 2: messages are arrays again.
    Resp2,
    /// Nobody can tell which replies come from here on: CLIENT REPLY OFF or SKIP, or a command whose name is lost.
    Deafens,
    /// What follows is a stream of the database's changes.
    Replicates,
}

/// Which of the six it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
struct Confirmation {
    of: Listened,
    ends: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
enum Listened {
    Channels,
    Patterns,
    Shards,
}

/// What the client listens to, as the server counts it.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Listening {
    channels: i64,
    patterns: i64,
    shards: i64,
}

impl Listening {
    /// Takes what a confirmation says. Answers how many of its kind are left.
    fn confirmed(&mut self, of: Listened, number: i64) -> i64 {
        // Channels and patterns are counted together.
        let (count, others) = match of {
            Listened::Channels => (&mut self.channels, self.patterns),
            Listened::Patterns => (&mut self.patterns, self.channels),
            Listened::Shards => (&mut self.shards, 0),
        };
        *count = number.saturating_sub(others).max(0);
        *count
    }

    fn any(self) -> bool {
        self.channels > 0 || self.patterns > 0 || self.shards > 0
    }
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

/// See the module.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Conversation {
    pub(super) limits: Limits,
    queue: VecDeque<Entry>,
    /// Between MULTI and EXEC: commands whose outcome EXEC will tell.
    transaction: Option<Vec<Entry>>,
    queued_bytes: usize,
    listening: Listening,
    /// The server has sent a push: messages are nothing else.
    pushes: bool,
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
            listening: Listening::default(),
            pushes: false,
            login: Login::default(),
            sequence: 0,
            deaf: false,
        }
    }

    /// Takes a command.
    pub(super) fn command(&mut self, mut command: Command, at: Boottime, out: &mut Vec<Observation>) {
        // Nobody knows what an incomplete one would have had; servers quote it in errors.
        let redacted = text::redact(&mut command) || command.incomplete;
        let names = if command.incomplete { None } else { names(&command) };
        let special = special(&command);
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
        self.lose_thread(at, out);
    }

    /// Goes deaf where the next command is one whose reply nobody can tell.
    fn lose_thread(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        if self.queue.front().is_some_and(|entry| entry.special == Special::Deafens) {
            self.deafen(at, out);
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
        let confirmation = reply.confirms();
        let awaited = confirmation.is_some() && self.awaits() == confirmation;
        if self.is_unasked(&reply, awaited) {
            if let Some(confirmation) = confirmation {
                self.listening.confirmed(confirmation.of, reply.number);
            }
            return;
        }
        let Some(front) = self.queue.front_mut() else {
            // Whose reply that is nobody can tell; nor those that come after it.
            return self.deafen(at, out);
        };
        front.response_bytes += reply.bytes;
        front.incomplete |= reply.incomplete;
        if let Some(confirmation) = confirmation.filter(|_| awaited) {
            let left = self.listening.confirmed(confirmation.of, reply.number);
            let more = match &mut front.special {
                Special::Subscribes(_, channels) => {
                    *channels = channels.saturating_sub(1);
                    *channels > 0
                }
                _ => left > 0,
            };
            if more {
                return;
            }
        }
        let Some(entry) = self.pop() else { return };
        self.answered(entry, reply, at, out);
        self.lose_thread(at, out);
    }

    /// What the next command is answered with, if it is a confirmation.
    fn awaits(&self) -> Option<Confirmation> {
        match self.queue.front()?.special {
            Special::Subscribes(confirmation, _) | Special::UnsubscribesAll(confirmation) => {
                Some(confirmation)
            }
            _ => None,
        }
    }

    /// Whether nobody asked for it.
    fn is_unasked(&mut self, reply: &Reply, awaited: bool) -> bool {
        if reply.is_push() {
            self.pushes = true;
            return !awaited;
        }
        // Without pushes, a server that sends messages answers no command with an array but PING.
        let is_message = matches!(&*reply.word, b"message" | b"pmessage" | b"smessage");
        let confirms = reply.confirms().is_some() && !awaited;
        !self.pushes && self.listening.any() && reply.head.tag.starts_with('*') && (is_message || confirms)
    }

    fn answered(&mut self, mut entry: Entry, mut reply: Reply, at: Boottime, out: &mut Vec<Observation>) {
        let failed = reply.head.error.is_some();
        let queued = reply.head.is_queued();
        let done = !failed && !queued;
        let elements = std::mem::take(&mut reply.elements);
        if done {
            self.accept(&entry, out);
        }
        let count = reply.head.elements;
        entry.result = Some(reply.head);
        match entry.special {
            // EXEC that fails has ended the transaction, or made sure that it will not be executed.
            Special::Exec if self.transaction.is_some() => self.settle(&elements, count, at, out),
            Special::Discard if done && self.transaction.is_some() => self.settle(&[], None, at, out),
            Special::Reset if done => {
                self.settle(&[], None, at, out);
                self.listening = Listening::default();
                self.pushes = false;
            }
            Special::Multi if done && self.transaction.is_none() => self.transaction = Some(Vec::new()),
            Special::Monitor | Special::Replicates if done => {
                self.abandon(at, out);
                self.finish(entry, at, out);
                return self.deafen(at, out);
            }
            special => {
                let Some(transaction) = &mut self.transaction else { return self.finish(entry, at, out) };
                entry.queued = queued;
                self.queued_bytes += entry.memory();
                transaction.push(entry);
                // EXEC's reply would have more elements than commands, and others.
                let unheard = matches!(
                    special,
                    Special::Subscribes(..)
                        | Special::UnsubscribesAll(_)
                        | Special::Monitor
                        | Special::Replicates
                        | Special::Deafens
                );
                if self.queued_bytes > MAX_QUEUED || (queued && unheard) {
                    self.deafen(at, out);
                }
                return;
            }
        }
        self.finish(entry, at, out);
    }

    /// Tells what was queued in a transaction, which has ended: with that many results, of which the first are known, or with none.
    fn settle(&mut self, known: &[Head], count: Option<u64>, at: Boottime, out: &mut Vec<Observation>) {
        let entries = self.transaction.take().unwrap_or_default();
        let queued = entries.iter().filter(|entry| entry.queued).count() as u64;
        let mut known = if count == Some(queued) { known } else { &[] }.iter();
        for mut entry in entries {
            self.queued_bytes = self.queued_bytes.saturating_sub(entry.memory());
            if !entry.queued {
                self.finish(entry, at, out);
                continue;
            }
            entry.result = known.next().cloned();
            match (&entry.result, count) {
                (Some(head), _) => {
                    if head.error.is_none() {
                        self.accept(&entry, out);
                    }
                    self.finish(entry, at, out);
                }
                (None, Some(_)) => self.tell(entry, Outcome::Unknown, at, out),
                (None, None) => self.tell(entry, Outcome::Skipped, at, out),
            }
        }
    }

    /// Tells a command by its result.
    fn finish(&mut self, mut entry: Entry, at: Boottime, out: &mut Vec<Observation>) {
        if entry.result.as_ref().is_some_and(Head::is_queued) {
            // Whether it was done ever is another question.
            entry.result = None;
            return self.tell(entry, Outcome::Unknown, at, out);
        }
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
            portal: None,
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
        if entry.special == Special::Resp2 {
            self.pushes = false;
        }
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
        self.abandon(at, out);
        while let Some(entry) = self.queue.pop_front() {
            self.tell(entry, Outcome::Unknown, at, out);
        }
        self.queued_bytes = 0;
    }

    /// Gives out what was queued in a transaction whose end nobody will see.
    fn abandon(&mut self, at: Boottime, out: &mut Vec<Observation>) {
        for entry in self.transaction.take().into_iter().flatten() {
            if entry.queued {
                self.tell(Entry { result: None, ..entry }, Outcome::Unknown, at, out);
            } else {
                self.finish(entry, at, out);
            }
        }
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

fn special(command: &Command) -> Special {
    // A hole may have made another command of it.
    let decides = if is(command, 0, "CLIENT") || is(command, 0, "HELLO") { 3 } else { 1 };
    if command.incomplete && command.arguments.len() <= decides {
        return Special::Deafens;
    }
    let channels = command.count.saturating_sub(1);
    let mut name = [0; 16];
    let Some(lower) = name.get_mut(..word(command, 0).len()) else { return Special::None };
    lower.copy_from_slice(word(command, 0));
    lower.make_ascii_lowercase();
    if let Some(confirmation) = confirmation(lower) {
        return if confirmation.ends && channels == 0 {
            Special::UnsubscribesAll(confirmation)
        } else {
            Special::Subscribes(confirmation, channels)
        };
    }
    match &*lower {
        b"multi" => Special::Multi,
        b"exec" => Special::Exec,
        b"discard" => Special::Discard,
        b"monitor" => Special::Monitor,
        b"reset" => Special::Reset,
        b"sync" | b"psync" => Special::Replicates,
        b"hello" if is(command, 1, "2") => Special::Resp2,
        b"client" if is(command, 1, "REPLY") && !is(command, 2, "ON") => Special::Deafens,
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

/// By a command's name, or by a confirmation's first word.
fn confirmation(word: &[u8]) -> Option<Confirmation> {
    let (of, ends) = match word {
        b"subscribe" => (Listened::Channels, false),
        b"unsubscribe" => (Listened::Channels, true),
        b"psubscribe" => (Listened::Patterns, false),
        b"punsubscribe" => (Listened::Patterns, true),
        b"ssubscribe" => (Listened::Shards, false),
        b"sunsubscribe" => (Listened::Shards, true),
        _ => return None,
    };
    Some(Confirmation { of, ends })
}

impl Reply {
    /// What it confirms, by its looks.
    fn confirms(&self) -> Option<Confirmation> {
        matches!(&*self.head.tag, "*3" | ">3").then(|| confirmation(&self.word)).flatten()
    }
}
