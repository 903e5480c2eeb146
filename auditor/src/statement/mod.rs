//! What a statement means: verbs, objects, and what it may do, by a parser of the server's own language.
//!
//! A statement's first word says little: `WITH d AS (DELETE …) SELECT` deletes, `COPY … TO PROGRAM` runs a program, `SELECT
//! pg_read_file(…)` reads files, `EXECUTE p` does what was prepared under that name, and one message may hold several. So each
//! text is parsed and its whole tree looked through, down to the last expression.
//!
//! **What cannot be parsed is unclassified** ([`Classes::UNCLASSIFIED`], `classified: false`), and whoever decides by meanings must take it
//! for the most dangerous thing that it could be: text that the parser refuses, is too long for it, was cut or has a hole, is not
//! UTF-8, or depends on a setting that is not known. A server may take another version's grammar, or an error for an answer; what it
//! did is in the statement's outcome, not here.
//!
//! What a text cannot say: what functions, triggers, rules and views do ([`Classes::CALLS`] tells that functions other than the
//! server's own are called), what code in a DO block does ([`Classes::EXECUTES`]), and which schema a bare name is in, unless the
//! connection told its search path ([`Meaning::search_path`]).
//!
//! **Where it runs and what it costs.** On the pipeline's thread, because what later statements of a connection mean hangs on earlier ones
//! ([`Dialogue`]). So it is bounded: texts have a longest length, meanings are kept by shape ([`shape`]: literals left out, most
//! statements are found there in less than a microsecond), and a session may have so much parsed in a second and no more
//! ([`Classifier::classify`]); beyond that its statements are unclassified, which never makes anything milder, and other sessions'
//! are not.

mod cache;
mod class;
mod dialogue;
mod mysql;
mod postgres;
mod redis;
mod shape;
#[cfg(test)]
mod tests;

pub use class::Classes;
pub use dialogue::Dialogue;
pub(crate) use dialogue::{COLLATION, is_safe_encoding};
pub(crate) use redis::names as redis_commands;

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use self::cache::Cache;
use self::shape::Shape;
use crate::clock::Boottime;
use crate::interned::Name;

/// Whose SQL it is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Dialect {
    /// PostgreSQL's.
    Postgres,
    /// MySQL's and MariaDB's.
    MySql,
}

impl Dialect {
    /// The dialect of a protocol, by the name that records have.
    pub fn of(protocol: &str) -> Option<Self> {
        match protocol {
            "postgres" => Some(Self::Postgres),
            "mysql" => Some(Self::MySql),
            _ => None,
        }
    }
}

/// One of the commands in a text.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Command {
    /// Verbs in its tree, each once, in lower case; its own comes first.
    pub verbs: Vec<String>,
    /// What it names, as written: tables and what else is defined or changed, each once.
    pub objects: Vec<String>,
    /// Functions that it calls and that are dangerous or not the server's own.
    pub functions: Vec<String>,
    /// What it may do.
    pub classes: Classes,
}

/// What a statement means.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Meaning {
    /// Its commands, in order. None where it is not classified, or says nothing.
    pub commands: Vec<Command>,
    /// Why it is not classified: `syntax`, `length`, `encoding`, `incomplete`, `settings`, `prepared`, `budget`; for Redis
    /// `command` (it is not known) and `more-keys` (than are told).
    #[serde(with = "crate::interned::option")]
    pub unclassified: Option<Name>,
    /// Of its shape: the same for texts that differ in their literals alone.
    pub fingerprint: u64,
    /// Schemas in which the server looks names up that have none, where the connection has told; for MySQL the database.
    pub search_path: Option<Arc<[String]>>,
}

impl Meaning {
    /// What all commands may do.
    pub fn classes(&self) -> Classes {
        let none = match self.unclassified {
            Some(_) => Classes::UNCLASSIFIED,
            None => Classes::NONE,
        };
        self.commands.iter().fold(none, |classes, command| classes | command.classes)
    }

    /// Objects without a schema, in each schema that they may be in.
    pub fn resolved(&self) -> Vec<String> {
        let Some(path) = self.search_path.as_deref() else { return Vec::new() };
        let objects = self.commands.iter().flat_map(|command| &command.objects);
        let bare = objects.filter(|object| !object.contains('.'));
        let mut resolved = Vec::new();
        for object in bare {
            let named = path.iter().map(|schema| format!("{schema}.{object}"));
            resolved.extend(named);
        }
        resolved.sort_unstable();
        resolved.dedup();
        resolved
    }

    /// Bytes that it takes, roughly.
    fn memory(&self) -> usize {
        let texts =
            |texts: &[String]| texts.iter().map(|text| size_of::<String>() + text.len()).sum::<usize>();
        let command = |command: &Command| {
            size_of::<Command>() + texts(&command.verbs) + texts(&command.objects) + texts(&command.functions)
        };
        size_of::<Self>() + self.commands.iter().map(command).sum::<usize>()
    }
}

/// What a command changes about the meaning of those after it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
enum Effect {
    #[default]
    None,
    /// `PREPARE name AS` what its tree says.
    Prepares(String),
    /// `EXECUTE name`.
    Executes(String),
    /// `DEALLOCATE name`, or all.
    Deallocates(Option<String>),
    /// `SET search_path`, or `USE`.
    SearchPath(Vec<String>),
    /// Settings are not known any more.
    Unsettles,
    /// Among these, how strings end, and not the client's character set.
    Modes,
    /// `SET NAMES` and the like; whether ASCII bytes are always themselves in the character set.
    Encodes(bool),
}

/// What a text says by itself.
#[derive(Debug, Default)]
struct Analysis {
    meaning: Arc<Meaning>,
    /// Where any command has one: each one's.
    effects: Vec<Effect>,
    /// The shape is not a text that can be parsed; others with it must be parsed themselves.
    by_text: bool,
}

/// Bytes that a session may have parsed at once.
const BURST: u64 = 1 << 20;
/// Bytes that a session may have parsed in a millisecond: a tenth of a processor for usual texts, nine tenths for the worst.
const BYTES_IN_MS: u64 = 2048;
/// Longer texts have no shape: reading it would take as long as it is.
const MAX_SHAPED: usize = 1 << 20;
/// Sessions whose use is known.
const SESSIONS: usize = 4096;

/// What a session may have parsed yet.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    left: u64,
    at: Boottime,
}

/// Finds out meanings, and keeps them.
#[derive(Debug, Default)]
pub struct Classifier {
    cache: [Cache<Analysis>; 2],
    shape: Shape,
    key: Vec<u8>,
    allowances: HashMap<u64, Allowance>,
}

/// What is to be classified.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// Whose SQL.
    pub dialect: Dialect,
    /// The text.
    pub bytes: &'a [u8],
    /// Something of it is missing.
    pub incomplete: bool,
    /// In which session.
    pub session: u64,
    /// When.
    pub at: Boottime,
}

/// What a command of Redis means, as its record has it.
pub fn redis(text: &[u8], incomplete: bool) -> Arc<Meaning> {
    redis::meaning(text, incomplete)
}

impl Classifier {
    /// What `text` means, said in `dialogue`. What it changes there is to be told with [`Dialogue::ended`].
    pub fn classify(&mut self, text: Text<'_>, dialogue: &mut Dialogue) -> Arc<Meaning> {
        if text.incomplete || text.bytes.len() > MAX_SHAPED {
            dialogue.lost();
            return unclassified(if text.incomplete { "incomplete" } else { "length" }, 0);
        }
        self.shape.read(text.dialect, text.bytes);
        // A byte that is half of a character may be a quote or a backslash by itself.
        if dialogue.is_foreign() && !text.bytes.is_ascii() {
            dialogue.lost();
            return unclassified("encoding", fingerprint_of(&self.shape.tokens));
        }
        let analysis = self.analyse(text, dialogue.strings_conform());
        // What follows in this text is read in another character set.
        let encodes = |effect: &Effect| matches!(effect, Effect::Encodes(_));
        if analysis.effects.len() > 1 && analysis.effects.iter().any(encodes) && !text.bytes.is_ascii() {
            dialogue.lost();
            return unclassified("encoding", analysis.meaning.fingerprint);
        }
        dialogue.understand(&analysis)
    }

    /// By the cache, or by a parser. `conforming`: whether a backslash in a string is a character like any other, where that is known.
    fn analyse(&mut self, text: Text<'_>, conforming: Option<bool>) -> Arc<Analysis> {
        if self.shape.sure {
            let analysis = self.look(text, b'S', conforming);
            if !analysis.by_text {
                return analysis;
            }
        }
        let kind = match conforming {
            Some(true) => b'T',
            Some(false) => b'E',
            None => b'U',
        };
        self.look(text, kind, conforming)
    }

    /// By its shape (`S`), or by the text itself as it is read under one setting.
    fn look(&mut self, text: Text<'_>, kind: u8, conforming: Option<bool>) -> Arc<Analysis> {
        let cache = &mut self.cache[usize::from(text.dialect == Dialect::MySql)];
        let parsed = if kind == b'S' { self.shape.tokens.as_slice() } else { text.bytes };
        self.key.clear();
        self.key.push(kind);
        self.key.extend_from_slice(parsed);
        if let Some(known) = cache.get(&self.key) {
            return known;
        }
        let fingerprint = fingerprint_of(&self.shape.tokens);
        let commands = if parsed.len() > postgres::MAX_TEXT {
            Err("length")
        } else if spend(&mut self.allowances, text.session, text.at, parsed.len() as u64) {
            commands(text.dialect, parsed, &self.shape, conforming)
        } else {
            return analysis(Err("budget"), fingerprint);
        };
        let analysis = if kind == b'S' && commands.is_err() {
            Arc::new(Analysis { by_text: true, ..Analysis::default() })
        } else {
            analysis(commands, fingerprint)
        };
        cache.insert(&self.key, Arc::clone(&analysis));
        analysis
    }
}

/// Two ways to write a shape's name would be one too many: the first 64 bits of SHA-256.
fn fingerprint_of(tokens: &[u8]) -> u64 {
    Sha256::digest(tokens).iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn commands(
    dialect: Dialect,
    text: &[u8],
    shape: &Shape,
    conforming: Option<bool>,
) -> Result<Vec<(Command, Effect)>, Name> {
    let text = std::str::from_utf8(text).map_err(|_| "encoding")?;
    if shape.backslash && conforming.is_none() {
        return Err("settings");
    }
    match dialect {
        Dialect::Postgres => postgres::commands(text, conforming.unwrap_or(true)),
        Dialect::MySql => mysql::commands(text, shape),
    }
    .ok_or("syntax")
}

fn analysis(commands: Result<Vec<(Command, Effect)>, Name>, fingerprint: u64) -> Arc<Analysis> {
    let (commands, effects): (Vec<_>, Vec<_>) = match commands {
        Ok(commands) => commands.into_iter().unzip(),
        // It may have been anything.
        Err(reason) => {
            let meaning = unclassified(reason, fingerprint);
            return Arc::new(Analysis { meaning, effects: vec![Effect::Unsettles], by_text: false });
        }
    };
    let effects = if effects.iter().all(|effect| *effect == Effect::None) { Vec::new() } else { effects };
    let meaning = Meaning { commands, fingerprint, ..Meaning::default() };
    Arc::new(Analysis { meaning: Arc::new(meaning), effects, by_text: false })
}

fn unclassified(reason: Name, fingerprint: u64) -> Arc<Meaning> {
    Arc::new(Meaning { unclassified: Some(reason), fingerprint, ..Meaning::default() })
}

/// Whether `bytes` may be parsed for a session now. Time is that of its events, so a replay decides the same.
fn spend(allowances: &mut HashMap<u64, Allowance>, session: u64, at: Boottime, bytes: u64) -> bool {
    if allowances.len() >= SESSIONS && !allowances.contains_key(&session) {
        allowances.clear();
    }
    let allowance = allowances.entry(session).or_insert(Allowance { left: BURST, at });
    let passed = u64::try_from(at.since(allowance.at).as_millis()).unwrap_or(u64::MAX);
    if passed > 0 {
        allowance.left = allowance.left.saturating_add(passed.saturating_mul(BYTES_IN_MS)).min(BURST);
        allowance.at = at;
    }
    let left = allowance.left.checked_sub(bytes);
    allowance.left = left.unwrap_or(allowance.left);
    left.is_some()
}
