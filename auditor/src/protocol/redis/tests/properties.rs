//! What must hold for any bytes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::script::*;
use crate::protocol::redis::split;
use crate::protocol::tests::events::Event;

proptest! {
    #[test]
    fn arguments_come_back_from_a_text(words in vec(vec(any::<u8>(), 0..12), 1..6)) {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in &words {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        let found = statements(&[client(bytes)]);
        // Letters that are not ASCII stand as they are, and a zero ends a line of the server's: this reads them both.
        prop_assert_eq!(split(&found[0].text), Some(words));
    }

    #[test]
    fn cuts_change_nothing(said in vec((any::<bool>(), "[*$+:>%0-9a-zA-Z \r\n-]{0,40}"), 0..12), cut in 1_usize..9) {
        let said: Vec<Event> = said
            .into_iter()
            .map(|(is_client, text)| {
                let text = text.replace('\n', "\r\n");
                if is_client { client(text) } else { server(text) }
            })
            .collect();
        prop_assert_eq!(play(&said, usize::MAX), play(&said, cut));
    }
}
