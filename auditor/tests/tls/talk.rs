//! Conversations between OpenSSL's client and OpenSSL's server, and what must be read of them.

use auditor::protocol::Side;

use crate::peers::{Peer, Place, Relay, Wire};
use crate::reading::{Reading, foreign};

/// What the two ends said to each other, as they know it.
pub(crate) struct Talk {
    pub(crate) wire: Wire,
    pub(crate) client: Vec<u8>,
    pub(crate) server: Vec<u8>,
}

/// What happens in a connection.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    /// The client says a line of this length, and the server answers with one.
    Line(usize),
    /// A command letter for OpenSSL's client.
    Command(&'static str),
}

pub(crate) const LINES: &[Step] = &[Step::Line(5), Step::Line(0), Step::Line(3000)];

pub(crate) fn line(who: &str, round: usize, length: usize) -> Vec<u8> {
    let line = format!("{who} {round} ");
    line.bytes().chain(b"abcdefghij".iter().copied().cycle().take(length)).chain([b'\n']).collect()
}

/// A server for as many connections as there are in `clients`: arguments, early data, and what then happens.
pub(crate) fn talks(place: &Place, server: &[&str], clients: &[(&[&str], &[u8], &[Step])]) -> Vec<Talk> {
    let socket = place.socket();
    let accept = ["s_server", "-quiet", "-unix", &socket, "-unlink"];
    let mut server = Peer::start(place.path(), &[&accept, server].concat());
    let mut talks = Vec::new();
    for (number, (words, early, steps)) in clients.iter().enumerate() {
        let relay = Relay::to(place.path().join(&socket));
        let to = format!("127.0.0.1:{}", relay.port);
        let connect =
            ["s_client", "-connect", &to, "-brief", "-keylogfile", "keys", "-servername", "db.example.com"];
        let mut client = Peer::start(place.path(), &[&connect, *words].concat());
        let (mut asked, mut answered) = (early.to_vec(), Vec::new());
        for (round, step) in steps.iter().enumerate() {
            match step {
                Step::Line(length) => {
                    let question = line(&format!("question {number}"), round, *length);
                    client.say(&question);
                    server.wait_for(&question);
                    asked.extend(question);
                    let answer = line(&format!("answer {number}"), round, *length);
                    server.say(&answer);
                    client.wait_for(&answer);
                    answered.extend(answer);
                }
                Step::Command(letter) => {
                    let before = relay.passed();
                    client.say(letter.as_bytes());
                    relay.wait_for_more(before);
                }
            }
        }
        client.say(b"Q\n");
        client.wait_end();
        talks.push(Talk { wire: relay.finish(), client: asked, server: answered });
    }
    talks
}

pub(crate) const CERTIFICATE: [&str; 4] = ["-cert", "server.pem", "-key", "server.key"];

pub(crate) fn talk(place: &Place, server: &[&str], client: &[&str], steps: &[Step]) -> Talk {
    talks(place, &[&CERTIFICATE, server].concat(), &[(client, b"", steps)]).remove(0)
}

pub(crate) const EARLY: &[u8] = b"said before anything else\n";

/// Everything is read, with the secrets of many others around.
pub(crate) fn read_all(place: &Place, talk: &Talk) -> Reading {
    let mut keyring = foreign(300);
    place.secrets().offer(&mut keyring);
    let reading = Reading::of(&talk.wire, &keyring);
    assert_eq!(
        (reading.failed, reading.opaque, &reading.violations),
        (0, None, &vec![]),
        "{:?}",
        reading.facts
    );
    same(&reading, talk);
    assert!(reading.counted.iter().all(|counted| counted.opaque == 0));
    assert_eq!(reading.turns, [Side::Client, Side::Server].repeat(reading.turns.len() / 2));
    assert!(reading.facts.decrypted);
    reading
}

/// What was read is what was said, to the byte.
pub(crate) fn same(reading: &Reading, talk: &Talk) {
    for (read, said) in [(&reading.client, &talk.client), (&reading.server, &talk.server)] {
        let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
        assert!(read == said, "{} bytes: {}\nand not {}: {}", read.len(), text(read), said.len(), text(said));
    }
}
