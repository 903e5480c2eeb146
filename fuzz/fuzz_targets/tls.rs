//! Arbitrary bytes and holes on both sides of a TLS connection's beginning.
//!
//! The input is a list of events: a byte whose lowest bits say who speaks (or whether a hole follows), two bytes of length,
//! and that many bytes. Whatever they are, nothing panics, cuts change nothing, and what is told is bounded.
#![no_main]

use auditor::protocol::Side;
use auditor::tls::{Hello, hello};
use libfuzzer_sys::fuzz_target;

fn replay(mut input: &[u8], cut: usize) -> Hello {
    let mut hello = Hello::new();
    while let [head, high, low, rest @ ..] = input {
        let side = if head & 1 == 0 { Side::Client } else { Side::Server };
        if head & 0b1110 == 0b1110 {
            hello.gap(side);
            input = rest;
        } else {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let (bytes, rest) = rest.split_at(length.min(rest.len()));
            bytes.chunks(cut).for_each(|piece| hello.bytes(side, piece));
            input = rest;
        }
    }
    hello
}

fuzz_target!(|input: &[u8]| {
    let whole = replay(input, usize::MAX);
    let pieces = replay(input, 1);
    assert_eq!(whole.seen(), pieces.seen(), "cut into bytes");
    assert_eq!(whole.violation(), pieces.violation(), "cut into bytes");
    if let Some(tls) = whole.seen() {
        // An escaped byte takes four characters.
        assert!(tls.sni.as_ref().is_none_or(|name| name.len() <= 4 * hello::LONGEST));
        assert!(tls.alpn.iter().map(String::len).sum::<usize>() <= 4 * hello::LONGEST);
    }
});
