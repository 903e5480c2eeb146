//! What the names of prepared statements and portals mean on the server, now.
//!
//! Kept in the order in which the server confirmed it (ParseComplete, BindComplete, CloseComplete), never in the order in
//! which the client hoped for it: a Parse that the server refuses leaves the old meaning in force, and a record that showed
//! the new one would let a client execute one text under the record of another.
//!
//! PostgreSQL cuts names to 63 bytes, other servers may not. A longer name is therefore never looked up, and touching
//! one forgets the name that it would be cut to. The cut happens in the server's encoding, so of a name beyond ASCII that
//! might grow past 63 bytes there nothing is known. The tables are bounded: the oldest name is forgotten first, and a forgotten
//! name is unknown, never guessed.
//!
//! What is forgotten can be executed all the same. So that no text is executed that is not on record, whatever a later execution may
//! not find here is given out first ([`Names::due`]), unless it was told with an execution of its own: what finds no room, what has a name that
//! cannot be looked up, what is called by such a name perhaps. And because SQL's EXECUTE and FETCH know these names too, also from
//! within functions that any statement may call, everything that has a name is given out before another statement is told.
//! What Close, DEALLOCATE or the end of a transaction takes away is not: the server forgets it as well.
//!
//! A limit: SQL inside functions (`DO`, PL/pgSQL `EXECUTE`) can DEALLOCATE and PREPARE without the protocol showing it. The
//! call itself is on record, the command tag of what was executed comes from the server, and where that contradicts the
//! text, as when a DELETE hides behind the name of a SELECT, the record says that it is incomplete.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::record::Subject;
use super::values::Values;
use crate::protocol::Column;

/// Bytes of a name that PostgreSQL tells apart (NAMEDATALEN - 1).
const NAME_BYTES: usize = 63;
/// Bytes of a name in the client's encoding that stay within [`NAME_BYTES`] in any encoding of the server.
const SAFE_BYTES: u64 = 20;

/// The name of a prepared statement or portal; empty for the unnamed one.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) enum Name {
    /// All of it.
    Exact(Box<[u8]>),
    /// Longer than what PostgreSQL tells apart: what it would cut it to.
    Long(Box<[u8]>),
    /// Lost in a hole of the stream, or not to be told apart from others.
    Unknown,
}

impl Name {
    /// The name whose first bytes are `kept`, of `length` bytes on the wire.
    pub(super) fn new(kept: &[u8], length: u64) -> Self {
        if length > SAFE_BYTES && !kept.is_ascii() {
            return Self::Unknown;
        }
        match kept.get(..NAME_BYTES) {
            Some(cut) if length > NAME_BYTES as u64 => Self::Long(cut.into()),
            _ => Self::Exact(kept.into()),
        }
    }

    /// As records have it.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Exact(bytes) | Self::Long(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            Self::Unknown => None,
        }
    }

    /// What it costs to keep.
    pub(super) fn cost(&self) -> usize {
        match self {
            Self::Exact(bytes) | Self::Long(bytes) => bytes.len(),
            Self::Unknown => 0,
        }
    }
}

/// What a table keeps, and what that costs.
pub(super) trait Kept: Clone {
    /// Bytes, roughly.
    fn cost(&self) -> usize;
}

/// What a Parse gave a name to.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Prepared {
    /// The statement's name.
    pub(super) name: Name,
    /// The text, up to the limit.
    pub(super) text: Bytes,
    /// Length of the whole text.
    pub(super) text_length: u64,
    /// Parameter types by OID; zero where the server is to find out.
    pub(super) types: Vec<u32>,
    /// Columns of its result, where described.
    pub(super) columns: Vec<Column>,
    /// A hole fell into it, or what the name means is not known.
    pub(super) incomplete: bool,
}

impl Prepared {
    /// A name whose text is not known.
    pub(super) fn unknown(name: Name) -> Self {
        Self {
            name,
            text: Bytes::new(),
            text_length: 0,
            types: Vec::new(),
            columns: Vec::new(),
            incomplete: true,
        }
    }
}

impl Kept for Prepared {
    fn cost(&self) -> usize {
        self.text.len() + self.types.len() * 4 + self.name.cost() + columns_cost(&self.columns)
    }
}

/// Bytes that columns take.
pub(super) fn columns_cost(columns: &[Column]) -> usize {
    columns.iter().map(|column| size_of::<Column>() + column.name.len() + column.type_name.len()).sum()
}

/// What a Bind made of a prepared statement.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Portal {
    /// The statement as its name was understood at the Bind.
    #[serde(with = "crate::shared")]
    pub(super) prepared: Arc<Prepared>,
    /// Parameter values as sent.
    pub(super) values: Values,
    /// Columns of its result, where the portal itself was described.
    pub(super) columns: Vec<Column>,
    /// A hole fell into the Bind.
    pub(super) incomplete: bool,
    /// Whether an Execute has shown the values already.
    pub(super) executed: bool,
}

impl Portal {
    /// A portal of which nothing is known.
    pub(super) fn unknown() -> Self {
        let prepared = Arc::new(Prepared::unknown(Name::Unknown));
        Self { prepared, values: Values::default(), columns: Vec::new(), incomplete: true, executed: false }
    }
}

impl Kept for Portal {
    fn cost(&self) -> usize {
        // The statement is shared, but the portal may be all that keeps it.
        self.prepared.cost() + self.values.cost() + columns_cost(&self.columns)
    }
}

/// Prepared statements and portals of one session.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Names {
    /// Prepared statements.
    pub(super) statements: Table<Prepared>,
    /// Portals.
    pub(super) portals: Table<Portal>,
}

impl Default for Names {
    fn default() -> Self {
        Self { statements: Table::new(4096, 8 << 20), portals: Table::new(512, 4 << 20) }
    }
}

impl Names {
    /// For where memory is short.
    pub(super) fn in_need() -> Self {
        Self { statements: Table::new(16, 8 << 10), portals: Table::new(16, 8 << 10) }
    }

    /// Bytes that they take, roughly.
    pub(super) fn memory(&self) -> usize {
        self.statements.memory() + self.portals.memory()
    }

    /// What this portal means, which is executed now, and told with it.
    pub(super) fn execute(&mut self, name: &Name) -> Option<Arc<Portal>> {
        let portal = self.portals.look_up(name)?;
        self.portals.told_with(name, &portal);
        self.statements.told_with(&portal.prepared.name, &portal.prepared);
        Some(portal)
    }

    /// Everything that has a name, and is not told yet, is due.
    pub(super) fn tell_named(&mut self) {
        self.portals.tell_named();
        for (_, portal) in &self.portals.due {
            self.statements.told_with(&portal.prepared.name, &portal.prepared);
        }
        self.statements.tell_named();
    }

    /// Everything that is not told yet is due.
    pub(super) fn tell_all(&mut self) {
        self.tell_named();
        self.statements.tell_all();
        self.portals.tell_all();
    }

    /// Takes what has to be given out now.
    pub(super) fn due(&mut self) -> Vec<Subject> {
        let portals = self.portals.due.drain(..).map(|(name, portal)| {
            // Its values are told once.
            Subject { portal: name.text(), ..Subject::portal(&portal, true) }
        });
        let statements = self.statements.due.drain(..).map(|(_, prepared)| Subject::prepared(&prepared));
        portals.chain(statements).filter(|subject| !subject.text.is_empty()).collect()
    }
}

/// What a name takes in a table beside its meaning: its bytes, its slot and its place in the order.
const NAME: usize = 256;

/// A bounded table of names.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(bound(serialize = "T: serde::Serialize", deserialize = "T: crate::shared::Readable"))]
pub(super) struct Table<T> {
    unnamed: Option<Slot<T>>,
    named: HashMap<Arc<[u8]>, Slot<T>>,
    /// Names in the order in which they got their meaning; a stamp that is not the slot's is an old meaning.
    order: VecDeque<(u64, Arc<[u8]>)>,
    stamp: u64,
    /// All with stamps up to this one are on record.
    told: u64,
    cost: usize,
    max_names: usize,
    max_cost: usize,
    /// What has to be given out; taken before the step that it was found in ends.
    #[serde(skip)]
    due: Vec<(Name, Arc<T>)>,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(bound(serialize = "T: serde::Serialize", deserialize = "T: crate::shared::Readable"))]
struct Slot<T> {
    stamp: u64,
    cost: usize,
    /// It is on record.
    told: bool,
    #[serde(with = "crate::shared")]
    value: Arc<T>,
}

impl<T: Kept> Table<T> {
    fn new(max_names: usize, max_cost: usize) -> Self {
        Self {
            unnamed: None,
            named: HashMap::new(),
            order: VecDeque::new(),
            stamp: 0,
            told: 0,
            cost: 0,
            max_names,
            max_cost,
            due: Vec::new(),
        }
    }

    /// Bytes that it takes, roughly.
    fn memory(&self) -> usize {
        self.unnamed.as_ref().map_or(0, |slot| slot.cost) + self.cost + self.order.len() * NAME
    }

    /// What the name means, if that is known.
    pub(super) fn get(&self, name: &Name) -> Option<&Arc<T>> {
        match name {
            Name::Exact(key) if key.is_empty() => self.unnamed.as_ref().map(|slot| &slot.value),
            Name::Exact(key) => self.named.get(key.as_ref()).map(|slot| &slot.value),
            Name::Long(_) | Name::Unknown => None,
        }
    }

    /// The same for what is going to be executed. A name that is not to be told from others may be any of them: these are due.
    pub(super) fn look_up(&mut self, name: &Name) -> Option<Arc<T>> {
        match name {
            Name::Exact(_) => {}
            Name::Long(_) => self.tell_named(),
            Name::Unknown => self.tell_all(),
        }
        self.get(name).cloned()
    }

    /// This is told with an execution, if it is what the name means.
    pub(super) fn told_with(&mut self, name: &Name, value: &Arc<T>) {
        let slot = match name {
            Name::Exact(key) if key.is_empty() => self.unnamed.as_mut(),
            Name::Exact(key) => self.named.get_mut(key.as_ref()),
            Name::Long(_) | Name::Unknown => None,
        };
        if let Some(slot) = slot.filter(|slot| Arc::ptr_eq(&slot.value, value)) {
            slot.told = true;
        }
    }

    /// Everything but the unnamed one is due, the oldest first.
    pub(super) fn tell_named(&mut self) {
        let from = self.order.partition_point(|(stamp, _)| *stamp <= self.told);
        for (stamp, key) in self.order.range(from..) {
            let slot = self.named.get_mut(key).filter(|slot| slot.stamp == *stamp && !slot.told);
            if let Some(slot) = slot {
                slot.told = true;
                self.due.push((Name::Exact(key.as_ref().into()), Arc::clone(&slot.value)));
            }
        }
        self.told = self.stamp;
    }

    /// Everything is due.
    pub(super) fn tell_all(&mut self) {
        self.tell_named();
        if let Some(slot) = self.unnamed.as_mut().filter(|slot| !slot.told) {
            slot.told = true;
            self.due.push((Name::Exact(Box::default()), Arc::clone(&slot.value)));
        }
    }

    /// What the name may mean, but nobody knows.
    pub(super) fn doubt(&mut self, name: &Name, value: Arc<T>) {
        self.due.push((name.clone(), value));
    }

    /// Changes what the name means, if that is known.
    pub(super) fn change(&mut self, name: &Name, change: impl FnOnce(&mut T)) {
        match name {
            Name::Exact(key) if key.is_empty() => {
                if let Some(slot) = &mut self.unnamed {
                    change(Arc::make_mut(&mut slot.value));
                    slot.cost = slot.value.cost();
                }
            }
            Name::Exact(key) => {
                if let Some(slot) = self.named.get_mut(key.as_ref()) {
                    change(Arc::make_mut(&mut slot.value));
                    self.cost -= slot.cost;
                    slot.cost = slot.value.cost();
                    self.cost += slot.cost;
                    self.evict();
                }
            }
            Name::Long(_) | Name::Unknown => {}
        }
    }

    /// Gives the name a meaning, instead of any that it had.
    pub(super) fn insert(&mut self, name: &Name, value: Arc<T>) {
        let key = match name {
            Name::Exact(key) if key.is_empty() => {
                self.unnamed = Some(Slot { stamp: 0, cost: value.cost(), told: false, value });
                return;
            }
            Name::Exact(key) => key,
            Name::Long(_) | Name::Unknown => {
                self.remove(name);
                return self.doubt(name, value);
            }
        };
        drop(self.forget(key));
        let key: Arc<[u8]> = key.as_ref().into();
        let cost = value.cost();
        self.stamp += 1;
        self.cost += cost;
        self.order.push_back((self.stamp, Arc::clone(&key)));
        self.named.insert(key, Slot { stamp: self.stamp, cost, told: false, value });
        self.evict();
    }

    /// Takes the name's meaning away. Which name was meant may be unknown; then none is certain any more.
    pub(super) fn remove(&mut self, name: &Name) {
        match name {
            Name::Exact(key) if key.is_empty() => self.unnamed = None,
            Name::Exact(key) => drop(self.forget(key)),
            // To a server that does not cut names these are two.
            Name::Long(key) => {
                self.tell_named();
                drop(self.forget(key));
            }
            Name::Unknown => {
                self.tell_all();
                self.clear();
            }
        }
    }

    /// Nothing is certain any more but the unnamed one.
    pub(super) fn doubt_named(&mut self) {
        self.tell_named();
        self.clear_named();
    }

    /// The unnamed one may not be there any more.
    pub(super) fn doubt_unnamed(&mut self) {
        let slot = self.unnamed.take().filter(|slot| !slot.told);
        self.due.extend(slot.map(|slot| (Name::Exact(Box::default()), slot.value)));
    }

    fn clear_named(&mut self) {
        self.named.clear();
        self.order.clear();
        self.named.shrink_to(64);
        self.order.shrink_to(64);
        self.cost = 0;
    }

    /// Takes away every meaning.
    pub(super) fn clear(&mut self) {
        self.unnamed = None;
        if !self.named.is_empty() {
            self.clear_named();
        }
    }

    fn forget(&mut self, key: &[u8]) -> Option<Slot<T>> {
        let slot = self.named.remove(key)?;
        self.cost -= slot.cost;
        Some(slot)
    }

    fn evict(&mut self) {
        while self.named.len() > self.max_names || self.cost > self.max_cost {
            let Some((stamp, key)) = self.order.pop_front() else { return };
            if self.named.get(&key).is_some_and(|slot| slot.stamp == stamp)
                && let Some(slot) = self.forget(&key)
                && !slot.told
                && stamp > self.told
            {
                self.due.push((Name::Exact(key.as_ref().into()), slot.value));
            }
        }
        // Names that are given and taken over and over must not pile up.
        if self.order.len() > 2 * self.named.len() + 64 {
            self.order.retain(|(stamp, key)| self.named.get(key).is_some_and(|slot| slot.stamp == *stamp));
        }
    }
}

/// The name in a text that is nothing but one `DEALLOCATE name`.
///
/// Anything else (several commands, comments, Unicode escapes) is `None`: whoever asks must then assume any name.
pub(super) fn deallocated(text: &[u8]) -> Option<Name> {
    let (command, rest) = identifier(text)?;
    if command != b"deallocate" {
        return None;
    }
    let (mut name, mut rest) = identifier(rest)?;
    if name == b"prepare" && !is_end(rest) {
        (name, rest) = identifier(rest)?;
    }
    is_end(rest).then(|| Name::new(&name, name.len() as u64))
}

fn is_end(text: &[u8]) -> bool {
    text.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0c' | b';'))
}

/// One identifier in SQL's syntax, plain and folded to lower case or in double quotes, and what follows it.
fn identifier(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let text = text.trim_ascii_start();
    if let Some(quoted) = text.strip_prefix(b"\"") {
        let end = quoted.iter().position(|&byte| byte == b'"')?;
        let rest = &quoted[end + 1..];
        // A doubled quote is one within the name; no driver makes such names.
        return (!rest.starts_with(b"\"")).then(|| (quoted[..end].to_vec(), rest));
    }
    let within = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$');
    let end = text.iter().position(|byte| !within(byte)).unwrap_or(text.len());
    let begins = text.first().is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_');
    begins.then(|| (text[..end].to_ascii_lowercase(), &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value that costs what it is.
    impl Kept for usize {
        fn cost(&self) -> usize {
            *self
        }
    }

    fn exact(name: &str) -> Name {
        Name::new(name.as_bytes(), name.len() as u64)
    }

    #[test]
    fn a_name_means_what_it_was_given_last() {
        let mut table = Table::new(8, 100);
        table.insert(&exact("a"), Arc::new(1));
        table.insert(&exact("a"), Arc::new(2));
        table.insert(&exact(""), Arc::new(3));
        assert_eq!(table.get(&exact("a")).map(|value| **value), Some(2));
        assert_eq!(table.get(&exact("")).map(|value| **value), Some(3));
        table.doubt_named();
        assert_eq!(table.get(&exact("a")), None);
        assert_eq!(table.get(&exact("")).map(|value| **value), Some(3));
    }

    #[test]
    fn names_and_bytes_are_bounded_and_the_oldest_goes_first() {
        let mut table = Table::new(3, 100);
        for name in ["a", "b", "c", "d"] {
            table.insert(&exact(name), Arc::new(10));
        }
        assert_eq!(table.get(&exact("a")), None);
        assert!(table.get(&exact("b")).is_some());
        table.insert(&exact("e"), Arc::new(90));
        assert_eq!(table.get(&exact("c")), None);
        assert!(table.get(&exact("d")).is_some() && table.get(&exact("e")).is_some());
        table.insert(&exact("f"), Arc::new(101));
        assert_eq!(table.get(&exact("f")), None, "too large to be kept at all");
        assert_eq!(table.cost, 0);
    }

    #[test]
    fn giving_and_taking_one_name_does_not_pile_up() {
        let mut table = Table::new(3, 100);
        table.insert(&exact("stays"), Arc::new(7));
        for _ in 0..10_000 {
            table.insert(&exact("a"), Arc::new(1));
            table.remove(&exact("a"));
        }
        assert!(table.order.len() < 100, "{}", table.order.len());
        assert_eq!(table.get(&exact("stays")).map(|value| **value), Some(7));
    }

    #[test]
    fn a_long_name_is_unknown_and_takes_its_short_form_along() {
        let short = "x".repeat(63);
        let long = format!("{short}y");
        let mut table = Table::new(8, 1000);
        table.insert(&exact(&short), Arc::new(1));
        assert!(table.get(&exact(&short)).is_some());
        table.insert(&exact(&long), Arc::new(2));
        assert_eq!(table.get(&exact(&short)), None);
        assert_eq!(table.get(&exact(&long)), None);
    }

    #[test]
    fn an_unknown_name_leaves_none_certain() {
        let mut table = Table::new(8, 1000);
        table.insert(&exact("a"), Arc::new(1));
        table.insert(&exact(""), Arc::new(1));
        table.remove(&Name::Unknown);
        assert_eq!((table.get(&exact("a")), table.get(&exact(""))), (None, None));
    }

    #[test]
    fn a_single_deallocate_names_its_statement() {
        for (text, name) in [
            ("DEALLOCATE s1", Some("s1")),
            (" deallocate prepare S1 ; ", Some("s1")),
            ("DEALLOCATE PREPARE", Some("prepare")),
            ("DEALLOCATE \"S 1\"", Some("S 1")),
            ("DEALLOCATE \"S\"\"1\"", None),
            ("DEALLOCATE s1; DEALLOCATE s2", None),
            ("DEALLOCATE /* s2 */ s1", None),
            ("DEALLOCATE U&\"s\"", None),
            ("DEALLOCATE s\u{fc}", None),
            ("DO 'x'", None),
            ("", None),
        ] {
            assert_eq!(deallocated(text.as_bytes()), name.map(exact), "{text}");
        }
    }

    #[test]
    fn a_name_that_may_grow_in_the_servers_encoding_is_not_told_apart() {
        assert_eq!(Name::new("\u{fc}".as_bytes(), 2), Name::Exact("\u{fc}".as_bytes().into()));
        let long = "\u{fc}".repeat(15);
        assert_eq!(Name::new(long.as_bytes(), 30), Name::Unknown);
    }
}
