//! HPACK's Huffman code (RFC 7541, appendix B). It is canonical, so the lengths of its codes say all.

/// Symbols, with the end of string as the last.
const SYMBOLS: usize = 257;
const END: u16 = 256;
const SHORTEST: usize = 5;
const LONGEST: usize = 30;

/// Bits of each symbol's code.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// For each length: the first code that is longer, aligned to the left of 32 bits; what to take off a code to get its place; and the
/// symbols in the order of their codes.
struct Table {
    ends: [u64; LONGEST + 1],
    offsets: [i64; LONGEST + 1],
    symbols: [u16; SYMBOLS],
}

const TABLE: Table = table();

const fn table() -> Table {
    let mut table = Table { ends: [0; LONGEST + 1], offsets: [0; LONGEST + 1], symbols: [0; SYMBOLS] };
    let (mut code, mut place, mut length) = (0_u64, 0_usize, SHORTEST);
    while length <= LONGEST {
        table.offsets[length] = place as i64 - code as i64;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                // No more than 257.
                table.symbols[place] = symbol as u16;
                place += 1;
                code += 1;
            }
            symbol += 1;
        }
        table.ends[length] = code << (32 - length);
        code <<= 1;
        length += 1;
    }
    table
}

/// The text is none that an encoder would write.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Malformed;

/// Appends what `bytes` say to `out`.
pub(super) fn decode(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut bytes = bytes.iter();
    // Bits that are there, at the left, and how many.
    let (mut window, mut have) = (0_u64, 0_usize);
    loop {
        while have <= 56 {
            let Some(byte) = bytes.next() else { break };
            window |= u64::from(*byte) << (56 - have);
            have += 8;
        }
        let head = window >> 32;
        let Some(length) = (SHORTEST..=LONGEST).find(|length| head < TABLE.ends[*length]) else {
            return end(window, have);
        };
        if length > have {
            return end(window, have);
        }
        let code = i64::try_from(head >> (32 - length)).map_err(|_| Malformed)?;
        let place = usize::try_from(code + TABLE.offsets[length]).map_err(|_| Malformed)?;
        let symbol = *TABLE.symbols.get(place).ok_or(Malformed)?;
        if symbol == END {
            return Err(Malformed);
        }
        // Only the end of string is no byte.
        out.extend(u8::try_from(symbol).ok());
        window <<= length;
        have -= length;
    }
}

/// What is left must be padding: less than a byte of ones.
fn end(window: u64, have: usize) -> Result<(), Malformed> {
    let padding = have < 8 && (have == 0 || window >> (64 - have) == (1 << have) - 1);
    if padding { Ok(()) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standards_examples() {
        for (bytes, text) in [
            (
                &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..],
                "www.example.com",
            ),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x64, 0x02], "302"),
            (&[], ""),
        ] {
            let mut out = Vec::new();
            decode(bytes, &mut out).unwrap();
            assert_eq!(out, text.as_bytes());
        }
    }

    #[test]
    fn every_symbol_has_its_code_and_wrong_padding_is_refused() {
        for symbol in 0..=255_u8 {
            let length = usize::from(LENGTHS[usize::from(symbol)]);
            let place = TABLE.symbols.iter().position(|other| *other == u16::from(symbol)).unwrap();
            let code = place as i64 - TABLE.offsets[length];
            let padding = (8 - length % 8) % 8;
            let bits = (u64::try_from(code).unwrap() << padding) | ((1 << padding) - 1);
            let bytes = &bits.to_be_bytes()[8 - (length + padding) / 8..];
            let mut out = Vec::new();
            decode(bytes, &mut out).unwrap();
            assert_eq!(out, [symbol]);
        }
        for bytes in [&[0xff][..], &[0xff; 4], &[0x00, 0xfe], &[0x07, 0xff]] {
            // "0" is five zeros: three zeros after it are no padding, and a whole byte of ones is too much.
            assert_eq!(decode(bytes, &mut Vec::new()), Err(Malformed), "{bytes:02x?}");
        }
    }
}
