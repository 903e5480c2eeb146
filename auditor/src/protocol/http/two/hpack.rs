//! HPACK (RFC 7541): the fields of a header block.
//!
//! Written here because a table that forgets what nobody may know, and a decoder that copies nothing for a field that is of no use, are
//! what the crates there are do not have; it is small without an encoder.
//!
//! What comes out is bounded by what goes in: a reference to a long field gives it by reference, not again.

use std::borrow::Cow;

use super::huffman;
use super::table::{Known, LARGEST, Table};
use crate::protocol::http::field::Field;

/// Why a block cannot be read.
pub(super) type Fault = &'static str;

/// One direction's decoder.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Decoder {
    table: Table,
}

impl Decoder {
    /// Reads a whole block. `each` is given each field: what is kept of its value, at most what is of use with `long` for a path, and the
    /// value's length.
    pub(super) fn decode(
        &mut self,
        mut block: &[u8],
        long: usize,
        each: &mut impl FnMut(Field, &[u8], usize),
    ) -> Result<(), Fault> {
        let mut begun = false;
        while let Some(first) = block.first().copied() {
            match first {
                0x80.. => {
                    let index = integer(&mut block, 7)?;
                    let known =
                        self.table.get(index).ok_or("a place in the field table that holds nothing")?;
                    each(known.field, known.value, known.length);
                }
                0x20..0x40 => {
                    let size = integer(&mut block, 5)?;
                    if begun {
                        return Err("the field table's size changes within a block");
                    }
                    if size > LARGEST {
                        return Err("a field table that is larger than anybody's");
                    }
                    self.table.resize(size);
                    continue;
                }
                _ => {
                    let indexed = first >= 0x40;
                    let index = integer(&mut block, if indexed { 6 } else { 4 })?;
                    let (field, name_length) = if index == 0 {
                        let name = string(&mut block)?;
                        (Field::of_two(&name), name.len())
                    } else {
                        let known =
                            self.table.get(index).ok_or("a place in the field table that holds nothing")?;
                        (known.field, known.name_length)
                    };
                    let value = string(&mut block)?;
                    let kept = &value[..field.keeps(long).min(value.len())];
                    each(field, kept, value.len());
                    if indexed {
                        self.table.add(Known { field, name_length, value: kept, length: value.len() });
                    }
                }
            }
            begun = true;
        }
        Ok(())
    }

    /// Bytes that it keeps, roughly.
    pub(super) fn memory(&self) -> usize {
        self.table.memory()
    }
}

/// An integer with a prefix of so many bits (section 5.1).
fn integer(block: &mut &[u8], prefix: u32) -> Result<usize, Fault> {
    const CUT: Fault = "a header block that ends within a field";
    let mask = (1_usize << prefix) - 1;
    let (first, mut rest) = block.split_first().ok_or(CUT)?;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        for shift in (0..).step_by(7) {
            let (byte, after) = rest.split_first().ok_or(CUT)?;
            rest = after;
            if shift > 21 {
                return Err("a number that is larger than anything in a header block");
            }
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *block = rest;
    Ok(value)
}

/// A string (section 5.2).
fn string<'a>(block: &mut &'a [u8]) -> Result<Cow<'a, [u8]>, Fault> {
    let encoded = block.first().is_some_and(|byte| byte & 0x80 != 0);
    let length = integer(block, 7)?;
    let (text, rest) = block.split_at_checked(length).ok_or("a header block that ends within a field")?;
    *block = rest;
    if !encoded {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len() * 8 / 5);
    huffman::decode(text, &mut out).map_err(|_| "a field that is not what its code allows")?;
    Ok(Cow::Owned(out))
}
