//! Arbitrary bytes and holes on both sides of an HTTP connection, of either version, and memory that is short.
//!
//! Whatever they are, nothing panics, cuts change nothing, no request comes twice, what comes out is bounded by what went in, and a
//! state that was written goes on as if it had not been.
#![no_main]

use std::collections::BTreeSet;

use auditor::protocol::http::Http;
use auditor::protocol::{Dissector, Observation};
use auditor_fuzz::{Event, LIMITS, events};
use libfuzzer_sys::fuzz_target;

fn replay(events: &[Event<'_>], cut: usize, save: bool) -> Vec<Observation> {
    auditor_fuzz::replay(Http::new(LIMITS), events, cut, |_, http| {
        assert!(http.memory() < 4 << 20, "{} bytes", http.memory());
        if save {
            postcard::from_bytes(&http.save().expect("a state")).expect("the same state")
        } else {
            http
        }
    })
}

/// What a switch leaves for whoever reads on depends on the cuts; the rest must not.
fn comparable(mut observations: Vec<Observation>) -> Vec<Observation> {
    for observation in &mut observations {
        if let Observation::Switched { server, .. } = observation {
            server.clear();
        }
    }
    observations
}

fuzz_target!(|input: &[u8]| {
    let events = events(input, true);
    let whole = comparable(replay(&events, usize::MAX, false));
    assert_eq!(whole, comparable(replay(&events, 1, true)), "cut into bytes");
    // The shortest request is a frame without fields; an unfinished line makes one, too.
    assert!(whole.len() <= input.len() / 9 + 3, "{} observations", whole.len());
    let mut seen = BTreeSet::new();
    for observation in &whole {
        if let Observation::Request(request) = observation {
            assert!(seen.insert(request.sequence), "{} twice", request.sequence);
            // A mask may be longer than what it hides.
            assert!(
                request.target.as_ref().is_none_or(|target| target.len() <= 4 * LIMITS.max_statement_bytes)
            );
            assert!(request.started <= request.finished);
            assert!(request.request_body <= request.request_bytes);
        }
    }
});
