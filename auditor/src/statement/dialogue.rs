//! What earlier statements of a connection make of later ones: prepared statements, the search path, how strings end.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Analysis, Classes, Command, Effect, Meaning};
use crate::protocol::Login;

/// Prepared statements that are remembered, and bytes that these may take.
const PREPARED: usize = 1024;
const BYTES: usize = 128 << 10;

/// A parameter of MySQL's login: a collation whose character set is none in which ASCII bytes are always themselves.
pub(crate) const COLLATION: &str = "collation";

/// Whether in this character set ASCII bytes are always themselves. By no means all such are here.
pub(crate) fn is_safe_encoding(character_set: &str) -> bool {
    const SAFE: [&str; 20] = [
        "utf8", "utf8mb3", "utf8mb4", "unicode", "ascii", "usascii", "sqlascii", "binary", "latin1",
        "latin2", "latin5", "latin7", "latin9", "koi8r", "koi8u", "win1250", "win1251", "win1252", "cp1250",
        "cp1251",
    ];
    let letters = character_set.chars().filter(char::is_ascii_alphanumeric);
    let plain: String = letters.map(|letter| letter.to_ascii_lowercase()).collect();
    SAFE.contains(&&*plain)
}

/// See the module. One for each connection.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Dialogue {
    /// Schemas in which names are looked up, where they were told.
    search_path: Option<Arc<[String]>>,
    /// The search path as the login has it: told anew with each change of the login, it is news only where it differs.
    told: Option<String>,
    /// What the server said last of its `standard_conforming_strings`.
    backslashes_escape: bool,
    /// The setting may have been changed, and the server has not said so yet.
    unsettled: bool,
    /// The character set that was told is one in which ASCII bytes may be parts of other characters.
    foreign_told: bool,
    /// It may be, as the client may have set it.
    foreign: bool,
    /// Statements were prepared by name in the protocol, where names are the same as in SQL.
    named: bool,
    /// What SQL-level prepared statements do.
    prepared: BTreeMap<String, Command>,
    /// Bytes that these take, roughly.
    bytes: usize,
    /// What the last statement that was understood changes, if it is completed.
    pending: Vec<Pending>,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
enum Pending {
    Prepared(String, Option<Command>),
    Forgotten,
    SearchPath(Vec<String>),
    Unsettled,
    Modes,
    Encoded(bool),
}

impl Dialogue {
    /// What the client said about itself, and the server about its settings.
    pub fn login(&mut self, login: &Login) {
        let mut told = None;
        self.foreign_told = false;
        for (name, value) in &login.parameters {
            match name.as_str() {
                "search_path" => told = Some(value.as_str()),
                "options" => told = told.or_else(|| option(value)),
                "standard_conforming_strings" => self.backslashes_escape = value == "off",
                "client_encoding" => self.foreign_told |= !is_safe_encoding(value),
                _ => {}
            }
        }
        if told != self.told.as_deref() {
            self.told = told.map(str::to_owned);
            self.search_path = told.and_then(|told| path(told, login.user.as_deref()));
        }
    }

    /// The database in which names are looked up, where the protocol tells (MySQL's `USE`, COM_INIT_DB, session tracking).
    pub fn database(&mut self, name: Option<&str>) {
        self.search_path = name.map(|name| Arc::from([name.to_owned()]));
    }

    /// What MySQL's client says of its character set, by the number of a collation.
    pub fn character_set(&mut self, login: &Login) {
        let told = login.parameters.iter().find(|(name, _)| name == COLLATION);
        self.foreign_told = told.is_some();
    }

    /// A statement that the protocol prepared under a name: what SQL prepared may have been replaced.
    pub fn named(&mut self) {
        self.named = true;
        self.forget_all();
    }

    /// Whether ASCII bytes may be parts of other characters.
    pub(super) fn is_foreign(&self) -> bool {
        self.foreign_told || self.foreign
    }

    /// Whether a backslash in a string is a character like any other; `None`: not known.
    pub(super) fn strings_conform(&self) -> Option<bool> {
        (!self.unsettled).then_some(!self.backslashes_escape)
    }

    /// A statement was not seen whole.
    pub(super) fn lost(&mut self) {
        self.pending = vec![Pending::Unsettled];
    }

    /// What a text means here.
    pub(super) fn understand(&mut self, analysis: &Analysis) -> Arc<Meaning> {
        self.pending.clear();
        // Code may prepare anew what it likes.
        if runs_code(analysis.meaning.classes()) {
            self.forget_all();
        }
        let bare = |command: &Command| command.objects.iter().any(|object| !object.contains('.'));
        let resolves = self.search_path.is_some() && analysis.meaning.commands.iter().any(bare);
        if analysis.effects.is_empty() && !resolves {
            return Arc::clone(&analysis.meaning);
        }
        let mut meaning = Meaning::clone(&analysis.meaning);
        meaning.search_path.clone_from(&self.search_path);
        let several = meaning.commands.len() > 1;
        for (index, effect) in analysis.effects.iter().enumerate() {
            match effect {
                Effect::None => {}
                Effect::Prepares(name) => {
                    let command = meaning.commands.get(index).cloned();
                    self.pending.push(Pending::Prepared(name.clone(), command));
                }
                Effect::Executes(name) => match self.look_up(name).cloned() {
                    Some(prepared) => {
                        if runs_code(prepared.classes) {
                            self.pending.push(Pending::Forgotten);
                        }
                        if let Some(command) = meaning.commands.get_mut(index) {
                            execute(command, prepared);
                        }
                    }
                    None => {
                        meaning.unclassified = Some("prepared");
                        self.pending.push(Pending::Unsettled);
                    }
                },
                Effect::Deallocates(Some(name)) => self.pending.push(Pending::Prepared(name.clone(), None)),
                Effect::Deallocates(None) => self.pending.push(Pending::Forgotten),
                Effect::SearchPath(path) => {
                    self.pending.push(Pending::SearchPath(path.clone()));
                    if several {
                        // Names of one message in two paths.
                        meaning.search_path = None;
                    }
                }
                Effect::Unsettles => self.pending.push(Pending::Unsettled),
                Effect::Modes => self.pending.push(Pending::Modes),
                Effect::Encodes(safe) => self.pending.push(Pending::Encoded(*safe)),
            }
        }
        Arc::new(meaning)
    }

    /// The one of this message, else the one that was there before.
    fn look_up(&self, name: &str) -> Option<&Command> {
        if self.named {
            return None;
        }
        let here = self.pending.iter().rev().find_map(|pending| match pending {
            Pending::Prepared(known, command) if known == name => Some(command.as_ref()),
            Pending::Forgotten => Some(None),
            Pending::Unsettled
            | Pending::Modes
            | Pending::Encoded(_)
            | Pending::SearchPath(_)
            | Pending::Prepared(..) => None,
        });
        here.unwrap_or_else(|| self.prepared.get(name))
    }

    /// The statement that was understood last has ended. `completed`: all of it; what else it may have changed is not known any more.
    /// `transaction`: its state afterwards, where the server has told: then it has told of settings that changed, too, and outside of a
    /// transaction what was set stays set.
    pub fn ended(&mut self, completed: bool, transaction: Option<char>) {
        let idle = transaction == Some('I');
        // Then it has told of its client's character set, too.
        self.foreign &= transaction.is_none();
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Prepared(name, command) => {
                    let command = command.filter(|_| completed);
                    self.forget(&name);
                    if let Some(command) = command {
                        self.remember(name, command);
                    }
                }
                Pending::Forgotten => self.forget_all(),
                Pending::SearchPath(path) if completed && idle => self.search_path = Some(path.into()),
                Pending::SearchPath(_) => self.search_path = None,
                // A savepoint may bring back what was set before, so only where there are none of them it is believed.
                Pending::Encoded(true) if completed => self.foreign = false,
                Pending::Encoded(true) => {}
                Pending::Encoded(false) => self.foreign = transaction.is_none(),
                Pending::Unsettled | Pending::Modes => {
                    let all = matches!(pending, Pending::Unsettled);
                    self.foreign |= all && transaction.is_none();
                    self.search_path = None;
                    self.unsettled = transaction.is_none();
                    // Whatever it was, it may have prepared something anew.
                    self.forget_all();
                }
            }
        }
    }

    /// The statement that was understood last was only prepared.
    pub fn not_executed(&mut self) {
        self.pending.clear();
    }

    fn forget_all(&mut self) {
        self.prepared.clear();
        self.bytes = 0;
    }

    fn forget(&mut self, name: &str) {
        if let Some((name, command)) = self.prepared.remove_entry(name) {
            self.bytes -= cost(&name, &command);
        }
    }

    /// Where there is no room, it is not known what executing it will do.
    fn remember(&mut self, name: String, command: Command) {
        let cost = cost(&name, &command);
        if !self.named && self.prepared.len() < PREPARED && self.bytes + cost <= BYTES {
            self.bytes += cost;
            self.prepared.insert(name, command);
        }
    }

    /// Bytes that it takes, roughly.
    pub fn memory(&self) -> usize {
        let told = self.told.as_ref().map_or(0, String::len);
        self.bytes
            + told
            + self.search_path.iter().flat_map(|path| path.iter()).map(String::len).sum::<usize>()
    }
}

fn runs_code(classes: Classes) -> bool {
    classes.contains(Classes::CALLS) || classes.contains(Classes::EXECUTES)
}

fn cost(name: &str, command: &Command) -> usize {
    name.len() + Meaning { commands: vec![command.clone()], ..Meaning::default() }.memory()
}

/// `EXECUTE` does what was prepared.
fn execute(command: &mut Command, prepared: Command) {
    let verbs = prepared.verbs.into_iter().filter(|verb| verb != "prepare");
    let add = |to: &mut Vec<String>, names: &mut dyn Iterator<Item = String>| {
        for name in names {
            if !to.contains(&name) {
                to.push(name);
            }
        }
    };
    add(&mut command.verbs, &mut verbs.into_iter());
    add(&mut command.objects, &mut prepared.objects.into_iter());
    add(&mut command.functions, &mut prepared.functions.into_iter());
    command.classes.insert(prepared.classes);
}

/// The search path in the command-line options of a start-up packet.
fn option(options: &str) -> Option<&str> {
    let (_, value) = options.rsplit_once("search_path=")?;
    // Further options, or blanks within: not worth a guess.
    (!value.contains([' ', '\\'])).then_some(value)
}

/// A search path as the server writes it. The user's own schema is that of its name.
fn path(value: &str, user: Option<&str>) -> Option<Arc<[String]>> {
    let mut schemas = Vec::new();
    let mut rest = value.trim();
    while !rest.is_empty() {
        let (schema, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let end = quoted.find('"')?;
                (quoted[..end].to_owned(), &quoted[end + 1..])
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].trim().to_lowercase(), &rest[end..])
            }
        };
        schemas.push(schema);
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if after.is_empty() => after,
            None => return None,
        };
    }
    for schema in &mut schemas {
        if schema == "$user" {
            *schema = user?.to_owned();
        }
    }
    (!schemas.is_empty()).then(|| schemas.into())
}
