//! Arbitrary bytes and holes on both sides of a MySQL connection.
//!
//! Whatever they are, nothing panics, cuts change nothing, records are in order, a state that is written and read goes on the same,
//! and what comes out is bounded by what went in.
#![no_main]

use auditor::protocol::Dissector;
use auditor::protocol::mysql::Mysql;
use auditor_fuzz::{LIMITS, events, replay, statements};
use libfuzzer_sys::fuzz_target;

/// Commands that may be in one compressed frame.
const IN_FRAME: usize = 16 << 10;

/// After each fourth event, the same once more.
fn written_and_read(index: usize, mysql: Mysql) -> Mysql {
    if index % 4 != 3 {
        return mysql;
    }
    let state = mysql.save().expect("a state can be written");
    auditor::shared::scope(|| postcard::from_bytes(&state)).expect("and read")
}

fuzz_target!(|input: &[u8]| {
    let events = events(input, false);
    let whole = replay(Mysql::new(LIMITS), &events, usize::MAX, |_, same| same);
    assert_eq!(whole, replay(Mysql::new(LIMITS), &events, 1, |_, same| same), "cut into bytes");
    assert_eq!(whole, replay(Mysql::new(LIMITS), &events, usize::MAX, written_and_read), "written and read");
    // The shortest message has four bytes and makes at most one record; a compressed frame has seven and makes more.
    assert!(whole.len() <= input.len() / 4 + 3 + input.len() / 8 * IN_FRAME, "{} observations", whole.len());
    statements(&whole);
});
