//! What the numbers of prepared statements mean on the server, now.
//!
//! Kept in the order in which the server confirmed it, never in the order in which the client hoped for it: a client that sends
//! everything at once could otherwise have one text executed under the record of another. The table is bounded; the statement
//! that was prepared first is forgotten first, and a forgotten one is unknown, never guessed. It can be executed all the same, so its text is
//! given out when it is forgotten ([`Statements::due`]), unless it was told with an execution before. What is closed is not: the server
//! forgets it as well.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::request::Query;
use super::value::Type;
use super::values::{MAX_VALUE_BYTES, Shape, cost};
use crate::protocol::{Column, Limits, Parameter};

/// MariaDB: the statement that was prepared last, whatever its number.
const LAST: u32 = u32::MAX;
/// Statements that are kept.
const MAX_STATEMENTS: usize = 4096;
/// Bytes that they may take.
const MAX_COST: usize = 8 << 20;
/// What a statement takes beside its text, columns and types.
const STATEMENT: usize = 256;
/// Bytes of all values that were sent before an execution.
const MAX_SENT: usize = 1 << 20;

/// What a number stands for.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Prepared {
    pub(super) number: u32,
    /// The text, up to the limit.
    pub(super) text: Bytes,
    /// Length of the whole text.
    pub(super) text_length: u64,
    /// Parameters that it has.
    pub(super) parameters: u16,
    /// Types that an execution has told.
    types: Vec<Type>,
    /// Columns of its result, where kept.
    pub(super) columns: Vec<Column>,
    /// Values sent in pieces for the next execution.
    sent: BTreeMap<usize, Parameter>,
    /// Bytes of the messages that they came in.
    sent_bytes: u64,
    /// A hole fell into it.
    pub(super) incomplete: bool,
    /// It is on record.
    told: bool,
}

impl Prepared {
    /// This text under this number, with so many parameters.
    pub(super) fn new(number: u32, query: &Query, parameters: u16) -> Self {
        let (text, text_length, incomplete) = (query.text.clone(), query.text_length, !query.whole);
        Self { number, text, text_length, parameters, incomplete, ..Self::default() }
    }

    fn cost(&self) -> usize {
        STATEMENT
            + self.text.len()
            + self.types.len() * size_of::<Type>()
            + columns_cost(&self.columns)
            + self.sent.values().map(cost).sum::<usize>()
    }

    fn is_untold(&self) -> bool {
        !self.told && !self.text.is_empty()
    }

    /// What has to be known to read an execution's values.
    pub(super) fn shape(&self) -> Shape {
        let (types, sent) = (self.types.clone(), self.sent.clone());
        Shape { count: self.parameters.into(), types, sent, named: false }
    }
}

/// Bytes that columns take.
pub(super) fn columns_cost(columns: &[Column]) -> usize {
    columns.iter().map(|column| size_of::<Column>() + column.name.len() + column.type_name.len()).sum()
}

/// The prepared statements of one session.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Statements {
    #[serde(with = "known")]
    known: BTreeMap<u32, Arc<Prepared>>,
    last: Option<u32>,
    cost: usize,
    max: (usize, usize),
    /// What has to be given out; taken before the step that it was found in ends.
    #[serde(skip)]
    due: Vec<Arc<Prepared>>,
}

impl Default for Statements {
    fn default() -> Self {
        let max = (MAX_STATEMENTS, MAX_COST);
        Self { known: BTreeMap::new(), last: None, cost: 0, max, due: Vec::new() }
    }
}

impl Statements {
    /// For where memory is short.
    pub(super) fn in_need() -> Self {
        Self { max: (16, 8 << 10), ..Self::default() }
    }

    /// Bytes that they take, roughly.
    pub(super) fn memory(&self) -> usize {
        self.cost
    }

    /// What the number stands for.
    pub(super) fn get(&self, number: u32) -> Option<&Arc<Prepared>> {
        self.known.get(&self.resolve(number)?)
    }

    /// Gives its number a meaning.
    pub(super) fn insert(&mut self, prepared: Prepared) {
        self.last = Some(prepared.number);
        self.cost += prepared.cost();
        if let Some(before) = self.known.insert(prepared.number, Arc::new(prepared)) {
            self.cost -= before.cost();
        }
        while self.known.len() > self.max.0 || self.cost > self.max.1 {
            let Some((_, oldest)) = self.known.pop_first() else { return };
            self.cost -= oldest.cost();
            self.due.extend(Some(oldest).filter(|oldest| oldest.is_untold()));
        }
    }

    /// A text whose number was never told: it is the last one. It has a record already.
    pub(super) fn suppose(&mut self, query: &Query) {
        self.insert(Prepared { incomplete: true, told: true, ..Prepared::new(LAST, query, 0) });
    }

    /// What the number stands for, which is executed now, and told with it.
    pub(super) fn execute(&mut self, number: u32) -> Option<Arc<Prepared>> {
        if !self.get(number)?.told {
            self.change(number, |prepared| prepared.told = true);
        }
        self.get(number).cloned()
    }

    /// Everything that is not told yet is due.
    pub(super) fn tell_all(&mut self) {
        for prepared in self.known.values_mut().filter(|prepared| prepared.is_untold()) {
            Arc::make_mut(prepared).told = true;
            self.due.push(Arc::clone(prepared));
        }
    }

    /// Takes what has to be given out now.
    pub(super) fn due(&mut self) -> Vec<Arc<Prepared>> {
        std::mem::take(&mut self.due)
    }

    /// Takes its meaning away.
    pub(super) fn remove(&mut self, number: u32) {
        let number = self.resolve(number);
        if let Some(prepared) = number.and_then(|number| self.known.remove(&number)) {
            self.cost -= prepared.cost();
        }
        self.last = self.last.filter(|last| Some(*last) != number);
    }

    /// Nothing is prepared any more.
    pub(super) fn clear(&mut self) {
        *self = Self { max: self.max, due: self.due(), ..Self::default() };
    }

    /// A piece of a value, for the next execution.
    pub(super) fn send(
        &mut self,
        number: u32,
        place: u16,
        head: &[u8],
        length: u64,
        size: u64,
        limits: Limits,
    ) {
        self.change(number, |prepared| {
            prepared.sent_bytes += size;
            if place >= prepared.parameters {
                return;
            }
            let all: usize = prepared.sent.values().map(cost).sum();
            let (before, sent) = match prepared.sent.remove(&place.into()) {
                Some(Parameter::Cut { head, length }) => (head, length),
                Some(Parameter::Text(text)) => (text.into_bytes(), 0),
                Some(Parameter::Binary(bytes)) => (bytes, 0),
                Some(Parameter::Null) | None => (Vec::new(), 0),
            };
            let (mut kept, mut sent) = (before, sent);
            if sent == 0 {
                sent = kept.len() as u64;
            }
            let cut = sent != kept.len() as u64;
            let room = MAX_VALUE_BYTES.saturating_sub(kept.len()).min(MAX_SENT.saturating_sub(all));
            if limits.parameters && !cut {
                kept.extend_from_slice(&head[..room.min(head.len())]);
            }
            sent += length;
            let value = if sent == kept.len() as u64 {
                String::from_utf8(kept)
                    .map_or_else(|error| Parameter::Binary(error.into_bytes()), Parameter::Text)
            } else {
                Parameter::Cut { head: kept, length: sent }
            };
            prepared.sent.insert(place.into(), value);
        });
    }

    /// What was sent for the next execution is forgotten. Answers the bytes of the messages that it came in.
    pub(super) fn forget_sent(&mut self, number: u32) -> u64 {
        let mut bytes = 0;
        if self.get(number).is_some_and(|prepared| prepared.sent_bytes > 0) {
            self.change(number, |prepared| {
                bytes = std::mem::take(&mut prepared.sent_bytes);
                prepared.sent.clear();
            });
        }
        bytes
    }

    /// An execution told the types.
    pub(super) fn typed(&mut self, number: u32, types: Vec<Type>) {
        if self.get(number).is_some_and(|prepared| prepared.types != types) {
            self.change(number, |prepared| prepared.types = types);
        }
    }

    /// An execution told the columns.
    pub(super) fn describe(&mut self, number: u32, columns: &[Column]) {
        if !columns.is_empty() && self.get(number).is_some_and(|prepared| prepared.columns != columns) {
            self.change(number, |prepared| prepared.columns = columns.to_vec());
        }
    }

    fn resolve(&self, number: u32) -> Option<u32> {
        if number == LAST { self.last } else { Some(number) }
    }

    fn change(&mut self, number: u32, change: impl FnOnce(&mut Prepared)) {
        let Some(number) = self.resolve(number) else { return };
        if let Some(prepared) = self.known.get_mut(&number) {
            self.cost -= prepared.cost();
            change(Arc::make_mut(prepared));
            self.cost += prepared.cost();
        }
    }
}

/// The table in state that outlives a daemon.
mod known {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::Prepared;

    #[derive(serde::Serialize, Deserialize)]
    struct Shared(#[serde(with = "crate::shared")] Arc<Prepared>);

    pub(super) fn serialize<S: Serializer>(
        known: &BTreeMap<u32, Arc<Prepared>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(known.iter().map(|(number, prepared)| (number, Shared(Arc::clone(prepared)))))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<u32, Arc<Prepared>>, D::Error> {
        let known = BTreeMap::<u32, Shared>::deserialize(deserializer)?;
        Ok(known.into_iter().map(|(number, Shared(prepared))| (number, prepared)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_statement_bytes: 100_000, parameters: true, columns: true };

    fn prepared(number: u32, text: &'static str) -> Prepared {
        Prepared { number, text: text.into(), parameters: 2, ..Prepared::default() }
    }

    #[test]
    fn the_last_one_needs_no_number() {
        let mut statements = Statements::default();
        statements.insert(prepared(1, "a"));
        statements.insert(prepared(2, "b"));
        assert_eq!(statements.get(LAST).map(|prepared| &prepared.text[..]), Some(&b"b"[..]));
        statements.remove(2);
        assert!(statements.get(LAST).is_none() && statements.get(1).is_some());
        statements.clear();
        assert!(statements.get(1).is_none());
        assert_eq!(statements.cost, 0);
    }

    #[test]
    fn statements_are_bounded_and_the_oldest_goes_first() {
        let mut statements = Statements::default();
        for number in 0..5000 {
            statements.insert(prepared(number, "text"));
        }
        assert!(statements.get(5000 - 4097).is_none() && statements.get(5000 - 4096).is_some());
        for number in 0..5000 {
            statements.remove(number);
        }
        assert_eq!(statements.cost, 0);
    }

    #[test]
    fn pieces_of_a_value_are_one() {
        let mut statements = Statements::default();
        statements.insert(prepared(1, "a"));
        statements.send(1, 0, b"ab", 2, 9, LIMITS);
        statements.send(1, 0, b"c", 1, 8, LIMITS);
        statements.send(1, 7, b"c", 1, 8, LIMITS);
        let shape = statements.get(1).unwrap().shape();
        assert_eq!(shape.sent, BTreeMap::from([(0, Parameter::Text("abc".into()))]));
        statements.send(1, 0, &[b'x'; 20_000], 20_000, 20_007, LIMITS);
        let shape = statements.get(1).unwrap().shape();
        assert!(
            matches!(&shape.sent[&0], Parameter::Cut { head, length: 20_003 } if head.len() == MAX_VALUE_BYTES)
        );
        assert_eq!(statements.forget_sent(1), 20_032);
        assert!(statements.get(1).unwrap().shape().sent.is_empty());
    }
}
