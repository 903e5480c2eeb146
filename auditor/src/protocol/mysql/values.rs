//! Values in the binary form: of a prepared statement's parameters, of query attributes, of rows of a bulk execution.
//!
//! Read as they arrive, each with its own bound and all with one, so that a long value neither takes memory nor hides what is
//! behind it. How many there are must be known beforehand, and their types where the packet does not bring them along.

use std::collections::BTreeMap;

use super::field::{Number, Skip, Text, Variable};
use super::value::{Extent, Type};
use crate::protocol::{Limits, Parameter};

/// Bytes of one value that are kept.
pub(super) const MAX_VALUE_BYTES: usize = 16 << 10;
/// Bytes of a query attribute's name that are kept.
const NAME_BYTES: usize = 256;
/// Values that are kept of all rows of a bulk execution.
const MAX_VALUES: usize = 1 << 16;
/// What a value takes beside its bytes.
const VALUE: usize = size_of::<Parameter>();

/// Values that have been read.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Values {
    pub(super) parameters: Vec<Parameter>,
    /// The types that came along.
    pub(super) types: Option<Vec<Type>>,
    /// Something is missing.
    pub(super) incomplete: bool,
    cost: usize,
}

impl Values {
    /// Bytes that they take, roughly.
    pub(super) fn cost(&self) -> usize {
        self.cost + self.types.as_ref().map_or(0, |types| types.len() * size_of::<Type>())
    }

    /// They are not known.
    pub(super) fn unknown() -> Self {
        Self { incomplete: true, ..Self::default() }
    }

    /// Lets go of them.
    pub(super) fn strip(&mut self) {
        *self = Self { incomplete: true, types: self.types.take(), ..Self::default() };
    }
}

/// What has to be known of the values beforehand.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Shape {
    /// How many.
    pub(super) count: usize,
    /// Their types, unless the packet brings them along.
    pub(super) types: Vec<Type>,
    /// Values that were sent before, by place.
    pub(super) sent: BTreeMap<usize, Parameter>,
    /// Each has a name.
    pub(super) named: bool,
}

/// How nulls and rows are told.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
enum Layout {
    /// One row, with a bit for each NULL, and a byte that says whether types come.
    One,
    /// Any number of rows, each value behind a byte that says what it is.
    Rows,
}

/// Reads them.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct ValuesReader {
    shape: Shape,
    layout: Layout,
    keep: bool,
    budget: usize,
    field: Field,
    nulls: Text,
    byte: Number<1>,
    short: Number<2>,
    length: Variable,
    /// What is kept of the value or the name that is read.
    head: Vec<u8>,
    names: Vec<String>,
    types: Vec<Type>,
    values: Values,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
enum Field {
    Nulls(Skip),
    TypesFollow,
    Type(usize),
    NameLength(usize),
    Name(usize, Skip),
    /// The value of this place comes next.
    Value(usize),
    Indicator(usize),
    Length(usize),
    /// Of the value so many bytes are still to come, of so many.
    Bytes(usize, Skip, u64),
    Done,
}

/// What a byte in front of a value of a bulk execution says.
const INDICATED_NULL: u64 = 1;

impl ValuesReader {
    /// For one row.
    pub(super) fn new(shape: Shape, limits: Limits) -> Self {
        let nulls = shape.count.div_ceil(8);
        let field = if shape.count == 0 { Field::Done } else { Field::Nulls(Skip(nulls as u64)) };
        Self::with(shape, Layout::One, field, Text::new(nulls), limits)
    }

    /// For rows of a bulk execution; `types`: whether they come along.
    pub(super) fn bulk(shape: Shape, types: bool, limits: Limits) -> Self {
        let field = match (shape.count, types) {
            (0, _) => Field::Done,
            (_, true) => Field::Type(0),
            (_, false) => Field::Indicator(0),
        };
        Self::with(shape, Layout::Rows, field, Text::default(), limits)
    }

    fn with(shape: Shape, layout: Layout, field: Field, nulls: Text, limits: Limits) -> Self {
        Self {
            shape,
            layout,
            keep: limits.parameters,
            budget: limits.max_statement_bytes,
            field,
            nulls,
            byte: Number::default(),
            short: Number::default(),
            length: Variable::default(),
            head: Vec::new(),
            names: Vec::new(),
            types: Vec::new(),
            values: Values::default(),
        }
        .settled()
    }

    /// Bytes kept.
    pub(super) fn memory(&self) -> usize {
        let names: usize = self.names.iter().map(|name| size_of::<String>() + name.len()).sum();
        let sent: usize = self.shape.sent.values().map(cost).sum();
        let types = (self.types.len() + self.shape.types.len()) * size_of::<Type>();
        names + sent + types + self.nulls.kept.len() + self.head.len() + self.values.cost()
    }

    /// Lets go of what was read.
    pub(super) fn spare(&mut self) {
        self.values.strip();
        self.shape.sent.clear();
        self.keep = false;
    }

    /// The next piece; `true` once they were all there. What is behind them stays in `input`.
    pub(super) fn read(&mut self, input: &mut &[u8]) -> bool {
        while self.field != Field::Done && !input.is_empty() {
            let next = match &mut self.field {
                Field::Nulls(skip) => {
                    let length = usize::try_from(skip.0).unwrap_or(usize::MAX).min(input.len());
                    self.nulls.add(&input[..length]);
                    skip.read(input).then_some(Field::TypesFollow)
                }
                Field::TypesFollow => self
                    .byte
                    .read(input)
                    .map(|follow| if follow == 1 { Field::Type(0) } else { Field::Value(0) }),
                Field::Type(place) => {
                    let place = *place;
                    self.short.read(input).map(|number| {
                        self.types.push(Type(u16::try_from(number).unwrap_or(0)));
                        if self.shape.named { Field::NameLength(place) } else { self.after_type(place) }
                    })
                }
                Field::NameLength(place) => {
                    let place = *place;
                    self.length.read(input).map(|length| match length {
                        0 => self.name(place),
                        _ => Field::Name(place, Skip(length)),
                    })
                }
                Field::Name(place, skip) => {
                    let place = *place;
                    take(&mut self.head, NAME_BYTES, skip, input).then(|| self.name(place))
                }
                Field::Indicator(place) => {
                    let place = *place;
                    self.byte.read(input).map(|indicator| match indicator {
                        0 => Field::Value(place),
                        INDICATED_NULL => self.push(place, Parameter::Null),
                        // The column's default, or left as it is: there is no value.
                        _ => self.push(place, Parameter::Binary(Vec::new())),
                    })
                }
                Field::Value(place) => Some(Field::Value(*place)),
                Field::Length(place) => {
                    let place = *place;
                    let length = match self.type_of(place).extent() {
                        Extent::Byte => self.byte.read(input),
                        _ => self.length.read(input),
                    };
                    length.map(|length| self.bytes(place, length))
                }
                Field::Bytes(place, skip, length) => {
                    let (place, length) = (*place, *length);
                    let keep = if self.keep { MAX_VALUE_BYTES.min(self.budget) } else { 0 };
                    take(&mut self.head, keep, skip, input).then(|| self.value(place, length))
                }
                Field::Done => None,
            };
            if let Some(next) = next {
                self.field = next;
                self.settle();
            }
        }
        self.field == Field::Done
    }

    /// The end of them; `whole` unless a hole fell into them.
    pub(super) fn end(mut self, whole: bool) -> Values {
        let between_rows = self.layout == Layout::Rows && self.field == Field::Indicator(0);
        if let Field::Bytes(place, skip, length) = self.field {
            // What there is of the value that breaks off.
            let _ = skip;
            self.value(place, length);
        }
        self.values.incomplete |= !whole || !(between_rows || self.field == Field::Done);
        if self.types.len() == self.shape.count {
            self.values.types = Some(self.types);
        }
        self.values
    }

    fn settled(mut self) -> Self {
        self.settle();
        self
    }

    /// Goes past values that take no bytes.
    fn settle(&mut self) {
        while let Field::Value(place) = self.field {
            self.field = if self.layout == Layout::One && place == self.shape.count {
                Field::Done
            } else if self.layout == Layout::One && self.is_null(place) {
                self.push(place, Parameter::Null)
            } else if let Some(sent) = self.shape.sent.remove(&place) {
                self.push(place, sent)
            } else {
                match self.type_of(place).extent() {
                    Extent::Fixed(length) => self.bytes(place, length),
                    Extent::Byte | Extent::Variable => Field::Length(place),
                }
            };
        }
    }

    fn is_null(&self, place: usize) -> bool {
        self.nulls.kept.get(place / 8).is_some_and(|byte| byte >> (place % 8) & 1 == 1)
    }

    fn type_of(&self, place: usize) -> Type {
        let types = if self.types.is_empty() { &self.shape.types } else { &self.types };
        // Without a type it is an error that the server will report.
        types.get(place).copied().unwrap_or(Type(6))
    }

    fn after_type(&self, place: usize) -> Field {
        match (place + 1 == self.shape.count, self.layout) {
            (false, _) => Field::Type(place + 1),
            (true, Layout::One) => Field::Value(0),
            (true, Layout::Rows) => Field::Indicator(0),
        }
    }

    fn name(&mut self, place: usize) -> Field {
        let name = super::field::text(&std::mem::take(&mut self.head));
        if self.keep {
            self.names.push(name);
        }
        self.after_type(place)
    }

    fn bytes(&mut self, place: usize, length: u64) -> Field {
        if length == 0 { self.value(place, 0) } else { Field::Bytes(place, Skip(length), length) }
    }

    /// The end of a value.
    fn value(&mut self, place: usize, length: u64) -> Field {
        let head = std::mem::take(&mut self.head);
        let kept = head.len() as u64 == length;
        let value = if kept { self.type_of(place).show(&head) } else { Parameter::Cut { head, length } };
        self.push(place, value)
    }

    fn push(&mut self, place: usize, value: Parameter) -> Field {
        let value = match (self.names.get(place).filter(|name| !name.is_empty()), value) {
            (Some(name), Parameter::Text(text)) => Parameter::Text(format!("{name}={text}")),
            (Some(name), Parameter::Null) => Parameter::Text(format!("{name}=NULL")),
            (_, value) => value,
        };
        let cost = cost(&value);
        let room = self.values.parameters.len() < MAX_VALUES && cost <= self.budget + VALUE;
        if self.keep && room {
            self.budget = self.budget.saturating_sub(cost - VALUE);
            self.values.cost += cost;
            self.values.parameters.push(value);
        } else {
            self.values.incomplete |= self.keep;
        }
        match self.layout {
            Layout::One => Field::Value(place + 1),
            Layout::Rows if place + 1 == self.shape.count => Field::Indicator(0),
            Layout::Rows => Field::Indicator(place + 1),
        }
    }
}

/// Bytes that a value takes.
pub(super) fn cost(value: &Parameter) -> usize {
    VALUE
        + match value {
            Parameter::Null => 0,
            Parameter::Text(text) => text.len(),
            Parameter::Binary(bytes) | Parameter::Cut { head: bytes, .. } => bytes.len(),
        }
}

/// Keeps what there is room for, up to `keep` bytes, and steps over the rest; `true` at the end.
fn take(head: &mut Vec<u8>, keep: usize, skip: &mut Skip, input: &mut &[u8]) -> bool {
    let length = usize::try_from(skip.0).unwrap_or(usize::MAX).min(input.len());
    let room = keep.saturating_sub(head.len()).min(length);
    head.extend_from_slice(&input[..room]);
    skip.read(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_statement_bytes: 100_000, parameters: true, columns: true };

    fn read(mut reader: impl FnMut() -> ValuesReader, bytes: &[u8]) -> (Vec<Parameter>, bool) {
        let mut at_once = reader();
        at_once.read(&mut &bytes[..]);
        let whole = at_once.end(true);
        let mut piecewise = reader();
        for byte in bytes {
            piecewise.read(&mut std::slice::from_ref(byte));
        }
        let pieces = piecewise.end(true);
        assert_eq!(
            (&whole.parameters, whole.incomplete),
            (&pieces.parameters, pieces.incomplete),
            "cut into bytes"
        );
        (whole.parameters, !whole.incomplete)
    }

    fn text(text: &str) -> Parameter {
        Parameter::Text(text.into())
    }

    fn shape(count: usize) -> Shape {
        Shape { count, ..Shape::default() }
    }

    #[test]
    fn values_come_with_their_types_or_without() {
        let one = || ValuesReader::new(shape(3), LIMITS);
        let bytes = b"\x02\x01\x03\0\x06\0\xfd\0\x07\0\0\0\x02hi";
        assert_eq!(read(one, bytes), (vec![text("7"), Parameter::Null, text("hi")], true));
        let known = || {
            let types = vec![Type(3), Type(6), Type(253)];
            ValuesReader::new(Shape { types, ..shape(3) }, LIMITS)
        };
        assert_eq!(
            read(known, b"\x02\0\x07\0\0\0\x02hi"),
            (vec![text("7"), Parameter::Null, text("hi")], true)
        );
        assert_eq!(read(|| ValuesReader::new(shape(0), LIMITS), b""), (vec![], true));
    }

    #[test]
    fn a_value_that_was_sent_before_is_not_in_the_packet() {
        let sent = || {
            let sent = BTreeMap::from([(0, text("long"))]);
            ValuesReader::new(Shape { sent, ..shape(2) }, LIMITS)
        };
        assert_eq!(read(sent, b"\0\x01\xfc\0\x01\0\x05"), (vec![text("long"), text("5")], true));
    }

    #[test]
    fn names_go_with_values() {
        let named = || ValuesReader::new(Shape { named: true, ..shape(2) }, LIMITS);
        let bytes = b"\0\x01\xfd\0\x01a\x01\0\x00\x01x\x05";
        assert_eq!(read(named, bytes), (vec![text("a=x"), text("5")], true));
    }

    #[test]
    fn rows_of_a_bulk_execution_follow_each_other() {
        let bulk = || ValuesReader::bulk(shape(2), true, LIMITS);
        let bytes = b"\x01\0\xfd\0\0\x01\0\x01a\0\x02\x01\x02\0\x01c";
        let values =
            vec![text("1"), text("a"), text("2"), Parameter::Null, Parameter::Binary(Vec::new()), text("c")];
        assert_eq!(read(bulk, bytes), (values, true));
        assert!(!read(bulk, &bytes[..8]).1);
    }

    #[test]
    fn a_long_value_is_cut_and_hides_nothing() {
        let one = || ValuesReader::new(shape(2), LIMITS);
        let mut bytes = b"\0\x01\xfc\0\x01\0\xfd\x00\x00\x02".to_vec();
        bytes.extend(vec![b'x'; 0x2_0000]);
        bytes.push(9);
        let (values, whole) = read(one, &bytes);
        assert_eq!(
            values,
            [Parameter::Cut { head: vec![b'x'; MAX_VALUE_BYTES], length: 0x2_0000 }, text("9")]
        );
        assert!(whole);
    }

    #[test]
    fn a_body_that_ends_early_is_not_whole() {
        for bytes in [&b""[..], b"\0", b"\0\x01\x03", b"\0\x01\x03\0\x01", b"\0\x01\xfd\0\x09abc"] {
            assert!(!read(|| ValuesReader::new(shape(1), LIMITS), bytes).1, "{}", bytes.escape_ascii());
        }
    }
}
