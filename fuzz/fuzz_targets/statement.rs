//! Arbitrary text as SQL of both dialects and as a command of Redis, twice on one connection: everything has a meaning, the same one again
//! where nothing is known of what was before, and nothing panics. PostgreSQL's parser is C: what it does to memory shows here.
#![no_main]

use auditor::clock::Boottime;
use auditor::statement::{Classifier, Dialect, Dialogue, Text, redis};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    redis(bytes, false);
    for dialect in [Dialect::Postgres, Dialect::MySql] {
        let text = Text { dialect, bytes, incomplete: false, session: 1, at: Boottime(0) };
        let (mut classifier, mut dialogue) = (Classifier::default(), Dialogue::default());
        let first = classifier.classify(text, &mut Dialogue::default());
        assert_eq!(first, classifier.classify(text, &mut Dialogue::default()), "kept");
        classifier.classify(text, &mut dialogue);
        dialogue.ended(true, Some('I'));
        assert_eq!(first.fingerprint, classifier.classify(text, &mut dialogue).fingerprint);
    }
});
