//! Arbitrary bytes and holes on both sides of a PostgreSQL connection.
//!
//! Whatever they are, nothing panics, cuts change nothing, records are in order, and what comes out is bounded by what went in.
#![no_main]

use auditor::protocol::postgres::Postgres;
use auditor_fuzz::{LIMITS, events, replay, statements};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let events = events(input, false);
    let whole = replay(Postgres::new(LIMITS), &events, usize::MAX, |_, same| same);
    assert_eq!(whole, replay(Postgres::new(LIMITS), &events, 1, |_, same| same), "cut into bytes");
    // The shortest message has five bytes and makes at most one record.
    assert!(whole.len() <= input.len() / 5 + 2, "{} observations", whole.len());
    statements(&whole);
});
