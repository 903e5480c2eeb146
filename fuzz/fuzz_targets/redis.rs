//! Arbitrary bytes and holes on both sides of a Redis connection.
//!
//! Whatever they are, nothing panics, cuts change nothing, records are in order, and what comes out is bounded by what went in.
#![no_main]

use auditor::protocol::redis::Redis;
use auditor_fuzz::{LIMITS, events, replay, statements};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let events = events(input, false);
    let whole = replay(Redis::new(LIMITS), &events, usize::MAX, |_, same| same);
    assert_eq!(whole, replay(Redis::new(LIMITS), &events, 1, |_, same| same), "cut into bytes");
    // The shortest command has two bytes, and makes one record; of a reply come two observations at most.
    assert!(whole.len() <= input.len() + 2, "{} observations", whole.len());
    for statement in statements(&whole) {
        assert!(statement.text.len() <= LIMITS.max_statement_bytes);
    }
});
